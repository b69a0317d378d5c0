"""How scores become decisions: the rule of a guardrail, which needs no scorer and is what is saved. See `guardrail`.

Legend: `n` answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from scipy.special import expit

from rewardsmith.data import traits
from rewardsmith.data.schema import Pair
from rewardsmith.errors import ContractError, ScoreError, SettingsError
from rewardsmith.scores import DomainFlag, Scorer, Scores, checked
from rewardsmith.stats import Estimate, Floats
from rewardsmith.storage import write_json

FORMAT_VERSION = 1
Verdict: TypeAlias = Literal["allow", "refuse", "abstain"]
Cause: TypeAlias = Literal[
    "above threshold", "below threshold", "within the threshold's interval", "outside the domain", "truncated", "empty"
]
"""Why, in a few words that programs can rely on."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one answer.

    Args:
        decision: "allow", "refuse", or "abstain": somebody, or something better, has to look.
        cause: why, for programs.
        reason: why, for people.
        score: raw; None for an empty answer, which is not scored.
        threshold: below which an answer is refused.
        probability: that people prefer this answer to one that scores just the threshold; None where the model has no temperature.
        bad_probability: that it is a bad answer, at the share of bad ones that the guardrail was fitted on; None where it was not fitted on labelled answers.
    """

    decision: Verdict
    cause: Cause
    reason: str
    score: float | None
    threshold: Estimate
    probability: float | None = None
    bad_probability: float | None = None

    @property
    def is_allowed(self) -> bool:
        """Whether the answer may be shown."""
        return self.decision == "allow"

    def as_dict(self) -> dict[str, Any]:
        """The document; the threshold with its interval."""
        return asdict(self)


@dataclass(frozen=True)
class BadAnswers:
    """P(bad | score) = sigmoid(intercept - slope * score), with what it is worth on prompts that it was not fitted on.

    Args:
        intercept: in log-odds.
        slope: above 0, a unit of the score.
        bad_share: of the answers that it was fitted on; at another share p', the log-odds move by logit(p') - logit(bad_share).
        ece: its expected calibration error on the held-out prompts.
        ece_null: what a perfectly calibrated one shows there.
    """

    intercept: float
    slope: float
    bad_share: float
    ece: Estimate
    ece_null: Estimate

    def __call__(self, scores: Floats) -> Floats:
        """The probability of each score, (n,)."""
        return np.asarray(expit(self.intercept - self.slope * scores))


@dataclass(frozen=True)
class Evidence:
    """What a threshold does on prompts that it was not fitted on, all shares of answers.

    Args:
        false_alarms: of good answers, below the threshold.
        caught: of bad answers, below it.
        good_refused: of good answers, below the threshold's interval, and so refused.
        good_abstained: of good answers, within the interval.
        bad_refused: of bad answers.
        bad_abstained: of bad answers.
    """

    false_alarms: Estimate
    caught: Estimate
    good_refused: Estimate | None = None
    good_abstained: Estimate | None = None
    bad_refused: Estimate | None = None
    bad_abstained: Estimate | None = None


@dataclass(frozen=True)
class Rule:
    """How scores become decisions: what a guardrail is without its scorer, and what is saved.

    Args:
        threshold: with its interval; one that was given as a number has none.
        model: `files`, SHA-256 by name, and `render_sha256`: what scores are of. Empty where that is not known.
        target_rate: the share of good answers that may be stopped; None where the threshold was given as a number.
        temperature: of `Decision.probability`.
        bad_answers: of `Decision.bad_probability`.
        evidence: None where the threshold was given as a number.
        notes: what could not be had, and why.
    """

    threshold: Estimate
    model: Mapping[str, Any] = field(default_factory=dict)
    target_rate: float | None = None
    temperature: float | None = None
    bad_answers: BadAnswers | None = None
    evidence: Evidence | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that decide nothing: no score is below a threshold of NaN.

        Raises:
            ContractError: at a threshold that is not finite, a temperature that is not above 0, or a rate that is none.
        """
        for known, needed, came in (
            (np.isfinite([self.threshold.value, *self.bounds]).all(), "a finite threshold", self.threshold),
            (self.temperature is None or 0 < self.temperature < np.inf, "a temperature above 0", self.temperature),
            (self.target_rate is None or 0 < self.target_rate < 1, "a rate between 0 and 1", self.target_rate),
        ):
            if not known:
                raise ContractError(f"{needed} in a guardrail", f"{came}", "Fit or calibrate it again.")

    def decide(
        self,
        pairs: Sequence[Pair],
        scores: Scores,
        *,
        truncated: Sequence[bool] | None = None,
        flags: Sequence[DomainFlag] | None = None,
    ) -> list[Decision]:
        """One decision an answer.

        Args:
            pairs: prompts with answers.
            scores: (n,); what stands there for an empty answer is not looked at.
            truncated: whether something of the text was not read; None where nobody knows.
            flags: how far each lies from a domain; None where nobody asks.

        Raises:
            ScoreError: if a score is not finite, or there are not as many of everything.
        """
        n = len(pairs)
        for given, what in ((scores, "scores"), (truncated, "truncation flags"), (flags, "domain flags")):
            if given is not None and len(given) != n:
                raise ScoreError(f"{n} {what}", f"{len(given)}", "Mend the scorer; nothing was allowed.")
        empty = np.array([traits.is_blank(answer) for _, answer in pairs], dtype=np.bool_)
        values = checked(np.where(empty, 0, scores), n).astype(np.float64)
        preferred = None if self.temperature is None else expit((values - self.threshold.value) / self.temperature)
        bad = None if self.bad_answers is None else self.bad_answers(values)
        found = []
        for i in range(n):
            if empty[i]:
                found.append(Decision("refuse", "empty", "the answer is empty", None, self.threshold))
                continue
            is_cut = truncated is not None and bool(truncated[i])
            verdict, cause, reason = self._judge(float(values[i]), is_cut, None if flags is None else flags[i])
            probabilities = [None if some is None else float(some[i]) for some in (preferred, bad)]
            found.append(Decision(verdict, cause, reason, float(values[i]), self.threshold, *probabilities))
        return found

    def _judge(self, score: float, is_cut: bool, flag: DomainFlag | None) -> tuple[Verdict, Cause, str]:
        """What makes the score itself doubtful comes before what the score says."""
        if is_cut:
            return "abstain", "truncated", "the model did not read the whole text: it is over its limit of length"
        # A p-value that is no number is no proof of anything.
        if flag is not None and (flag.outside or not np.isfinite(flag.p_value)):
            reason = f"the {flag.part} are unlike what the model is known to work on (p = {flag.p_value:.2g})"
            return "abstain", "outside the domain", reason
        low, high = self.bounds
        if score < low:
            where = "" if low == high else f", and below its interval's lower end {low:.3f}"
            reason = f"the score {score:.3f} is below the threshold {self.threshold.value:.3f}{where}"
            return "refuse", "below threshold", reason
        if score < high:
            reason = f"the score {score:.3f} lies in the threshold's own interval, {low:.3f} to {high:.3f}"
            return "abstain", "within the threshold's interval", reason
        return (
            "allow",
            "above threshold",
            f"the score {score:.3f} is not below the threshold {self.threshold.value:.3f}",
        )

    @property
    def bounds(self) -> tuple[float, float]:
        """Below the first an answer is refused, from the second on allowed; a percentile interval of few prompts may leave the value outside."""
        ends = [self.threshold.value, self.threshold.low, self.threshold.high]
        return float(np.min(ends)), float(np.max(ends))

    def as_dict(self) -> dict[str, Any]:
        """The document, which `from_dict` reads."""
        return {"format_version": FORMAT_VERSION, **asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Rule:
        """What `as_dict` wrote.

        Raises:
            ContractError: if it is none, or of a later version.
        """
        mend = "Give the file that `Guardrail.save` wrote."
        version = document.get("format_version") if isinstance(document, Mapping) else None
        if version != FORMAT_VERSION:
            raise ContractError(f"a guardrail of format version {FORMAT_VERSION}", f"version {version!r}", mend)
        try:
            bad, evidence = document["bad_answers"], document["evidence"]
            return cls(
                threshold=_estimate(document["threshold"]),
                model=_model(document["model"]),
                target_rate=None if document["target_rate"] is None else float(document["target_rate"]),
                temperature=None if document["temperature"] is None else float(document["temperature"]),
                bad_answers=None if bad is None else _bad_answers(bad),
                evidence=None if evidence is None else _evidence_from(evidence),
                notes=tuple(map(str, document["notes"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ContractError("a whole guardrail", f"one that cannot be read ({error!r})", mend) from error

    def save(self, path: Path) -> None:
        """Write the rule as JSON, whole or not at all.

        Raises:
            SettingsError: if nothing is known of the model, so that nobody could tell whether the file is of another one.
            OutputError: if the system refuses.
        """
        if not self.model.get("files"):
            raise SettingsError(
                "the hashes of the model's files, to save a guardrail",
                "a scorer that has none",
                "Give them: Guardrail(..., files={name: sha256}); `rewardsmith.functions.load_function` returns those of a function.",
            )
        write_json(path, self.as_dict())

    @classmethod
    def load(cls, path: Path) -> Rule:
        """Read what `save` wrote; of which model it is, is `check_model`'s to say.

        Raises:
            ContractError: if it is no guardrail, or of a later version.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ContractError(f"a readable guardrail in {path.name}", f"{error}", "Check the path.") from error
        return cls.from_dict(document)

    def is_of(self, model: Mapping[str, Any]) -> bool:
        """Whether it was made for this model (see `identity_of`); of one that nothing is known of it never is."""
        return bool(self.model.get("files")) and dict(self.model) == dict(model)

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Refuse a scorer of other files, or one that reads texts in another way, than the threshold was fitted for.

        Raises:
            ContractError: if it is another.
        """
        if not self.is_of(model):
            theirs, ours = dict(self.model.get("files") or {}), dict(model.get("files") or {})
            differing = sorted(name for name in theirs | ours if theirs.get(name) != ours.get(name))
            raise ContractError(
                "the model that this guardrail was made for",
                f"another one ({', '.join(differing) or 'it reads texts in another way'})",
                "Scores of two models are not comparable: make a guardrail for this one.",
            )


@runtime_checkable
class _Contracted(Protocol):
    """A scorer with the papers of its model: `contract`, or `contract()` where a server must be asked."""

    @property
    def contract(self) -> Any:
        """A document, something with `as_dict`, or a function that returns one."""
        ...


def contract_of(scorer: Scorer) -> Mapping[str, Any]:
    """What is known of a scorer's model (its rewardsmith.json); empty where nothing is.

    Raises:
        RemoteError: if a server does not say.
    """
    if not isinstance(scorer, _Contracted):
        return {}
    found = scorer.contract
    found = found() if callable(found) else found
    return found if isinstance(found, Mapping) else dict(found.as_dict())


def identity_of(contract: Mapping[str, Any], files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What makes a score the score of this model: its files and the hash of how it reads texts; empty where no files are known."""
    known = dict(files or contract.get("files") or {})
    return {"files": known, "render_sha256": contract.get("render_sha256")} if known else {}


def stored_rule(contract: Mapping[str, Any], target_rate: float, *, files: Mapping[str, str] | None = None) -> Rule:
    """The threshold on raw scores that `rewardsmith calibrate` stored with a model for this rate.

    Args:
        contract: of the model.
        target_rate: share of good answers that may be stopped.
        files: hashes of the model's files, where the contract has none.

    Raises:
        SettingsError: if the rate is none, or no threshold is stored for it; those that are, are listed.
        ContractError: if what is stored cannot be read.
    """
    check_rate(target_rate)
    try:
        thresholds = (contract.get("calibration") or {}).get("thresholds") or []
        stored = {float(one["wished_false_alarms"]): one for one in thresholds if one["scale"] == "score"}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ContractError("readable thresholds", f"{error!r}", "Run `rewardsmith calibrate` again.") from error
    if target_rate not in stored:
        there = ", ".join(f"{rate:g}" for rate in sorted(stored)) or "none"
        raise SettingsError(
            f"a threshold stored with the model for a rate of {target_rate:g}",
            f"thresholds for these rates: {there}",
            f"Fit one: rewardsmith calibrate MODEL DATA --false-alarms {target_rate:g}; or Guardrail.fit on pairs at hand.",
        )
    one = stored[target_rate]
    try:
        threshold, evidence = (
            _estimate(one["threshold"]),
            _evidence_from({k: one[k] for k in ("false_alarms", "caught")}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(
            "a threshold with its evidence", f"{error!r}", "Run `rewardsmith calibrate` again."
        ) from error
    return Rule(
        threshold=threshold,
        model=identity_of(contract, files),
        target_rate=target_rate,
        temperature=contract.get("temperature"),
        evidence=evidence,
        notes=("no bad_probability: it needs labelled answers (Guardrail.fit)",),
    )


def given_rule(threshold: float, contract: Mapping[str, Any], *, files: Mapping[str, str] | None = None) -> Rule:
    """A rule around a threshold that somebody chose.

    Raises:
        SettingsError: if it is not finite.
    """
    value = float(threshold)
    if not np.isfinite(value):
        raise SettingsError("a finite threshold", f"{value}", "Give a score.")
    estimate = Estimate(value, value, value, 0, "given")
    notes = ("no evidence: the threshold was given as a number",)
    return Rule(estimate, identity_of(contract, files), temperature=contract.get("temperature"), notes=notes)


def check_rate(target_rate: float) -> None:
    """Refuse what is no share of good answers.

    Raises:
        SettingsError: at 0, 1 and beyond.
    """
    if not 0 < target_rate < 1:
        raise SettingsError(
            "a share of good answers between 0 and 1", f"{target_rate:g}", "Write for example target_rate=0.05."
        )


def _estimate(document: Mapping[str, Any]) -> Estimate:
    """An Estimate from its document.

    Raises:
        ValueError: if a number of it is not finite.
    """
    value, low, high = (float(document[name]) for name in ("value", "low", "high"))
    if not np.isfinite([value, low, high]).all():
        raise ValueError("a number that is not finite")
    return Estimate(value, low, high, int(document["n"]), str(document["method"]))


def _model(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a guardrail is of.

    Raises:
        TypeError: if the hashes are no mapping.
    """
    if not isinstance(document.get("files", {}), Mapping):
        raise TypeError("`files` that are no hashes by name")
    return dict(document)


def _bad_answers(document: Mapping[str, Any]) -> BadAnswers:
    numbers = [float(document[name]) for name in ("intercept", "slope", "bad_share")]
    if not (np.isfinite(numbers).all() and numbers[1] > 0 and 0 < numbers[2] < 1):
        raise ValueError("a map to probabilities of bad answers that falls with the score")
    intercept, slope, bad_share = numbers
    return BadAnswers(intercept, slope, bad_share, _estimate(document["ece"]), _estimate(document["ece_null"]))


def _evidence_from(document: Mapping[str, Any]) -> Evidence:
    found = {name: None if one is None else _estimate(one) for name, one in document.items()}
    false_alarms, caught = found.pop("false_alarms"), found.pop("caught")
    if false_alarms is None or caught is None:
        raise ValueError("evidence without false alarms")
    return Evidence(false_alarms, caught, **found)
