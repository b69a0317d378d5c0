"""A guardrail: may this answer be shown? Allow, refuse or abstain, with the reason in words.

    guardrail = Guardrail(scorer, target_rate=0.05)
    guardrail("How do I boil an egg?", "Eight minutes in boiling water.").decision  # "allow"

Everything that makes the score doubtful (a text that was cut, one outside of the model's domain, a score no farther from the threshold than the threshold's own
uncertainty) is an abstention, never an allowance; a scorer that fails raises, and nothing is allowed by an error.

What the probabilities are. A Bradley-Terry score has no zero, so "how good is this answer" has no probability by itself. Two that can be checked have:
`probability`, that people prefer this answer to one of the same prompt that scores just the threshold, sigmoid((s - t) / T) at the model's temperature; and
`bad_probability`, that it is a bad answer, where good and bad ones are as frequent as among those that the guardrail was fitted on (only `Guardrail.fit` has such).

Legend: `n` answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from rewardsmith import metrics
from rewardsmith.data import traits
from rewardsmith.data.faults import EMPTY, content_fault
from rewardsmith.data.schema import Pair, Preference, Prompt, prompt_key
from rewardsmith.data.split import split_by_prompt
from rewardsmith.errors import DataError, RewardsmithError, ScoreError, SettingsError
from rewardsmith.evaluation.guardrail import Answers, Threshold, answers_of, fit_threshold
from rewardsmith.evaluation.pairwise import score_pairs
from rewardsmith.evaluation.temperature import fit_temperature
from rewardsmith.functions import Function, as_scorer
from rewardsmith.scores import DomainDetector, DomainFlag, Scorer, Scores, TableScorer, checked
from rewardsmith.stats import FEW_CLUSTERS, cluster_codes, proportion
from rewardsmith.use.guard_rule import (
    BadAnswers,
    Decision,
    Evidence,
    Rule,
    check_rate,
    contract_of,
    given_rule,
    identity_of,
    stored_rule,
)

FIT_SHARE = 0.5


def fit_rule(
    scorer: Scorer, pairs: Sequence[Preference], target_rate: float, *, model: Mapping[str, Any], seed: int = 0
) -> Rule:
    """A rule from labelled pairs: fitted on half of the prompts, shown on the other half.

    Good answers are those that were chosen somewhere and rejected nowhere, bad ones the reverse. "Good" is therefore "the better of two": the rates hold for
    answers like these, and for the mix of prompts that they come from.

    Args:
        scorer: its raw scores.
        pairs: that it was not trained on; labelled ties and rows without two answers are left out.
        target_rate: share of good answers that may be stopped.
        model: see `Rule`.
        seed: of the split and of bootstraps.

    Raises:
        SettingsError: if the rate is none.
        DataError: if there are too few pairs or prompts for it, before anything is scored; or good answers do not score higher than bad ones.
        ScoreError: if a score is not finite.
    """
    check_rate(target_rate)
    usable = [pair for pair in pairs if content_fault(pair) != EMPTY and not pair.tie]
    num_prompts = len({prompt_key(pair.prompt) for pair in usable})
    if num_prompts < 2 * FEW_CLUSTERS:
        raise _too_few_prompts(f"pairs of at least {2 * FEW_CLUSTERS} prompts", num_prompts)
    held_pairs, fit_pairs = split_by_prompt(usable, FIT_SHARE, seed=seed)
    _check_labels(fit_pairs, held_pairs, target_rate, seed=seed)
    fit, held = score_pairs(scorer, fit_pairs), score_pairs(scorer, held_pairs)
    answers, others = (answers_of(part.pairs, part.chosen, part.rejected) for part in (fit, held))
    found = fit_threshold(answers, others, target_rate, scale="score", seed=seed)
    assert not isinstance(found, str)  # else _check_labels had raised
    temperature, notes = None, []
    try:
        temperature = fit_temperature(fit.margins, cluster_codes([prompt_key(pair.prompt) for pair in fit_pairs])).value
    except DataError as error:
        notes.append(f"no probability: {error}")
    bad_answers = _fit_bad_answers(answers, others, seed=seed)
    rule = Rule(found.threshold, model, target_rate, temperature, bad_answers, notes=tuple(notes))
    return replace(rule, evidence=_evidence(rule, found, others, seed=seed))


def _check_labels(fit: Sequence[Preference], held: Sequence[Preference], rate: float, *, seed: int) -> None:
    """Refuse pairs that are too few whatever their scores: labels alone tell, before minutes of scoring.

    Raises:
        DataError: saying what is missing.
    """
    answers, others = (answers_of(part, *np.zeros((2, len(part)), np.float32)) for part in (fit, held))
    missing = fit_threshold(answers, others, rate, scale="score", seed=seed)
    if isinstance(missing, str):
        raise DataError("enough labelled pairs for a threshold", missing, "Give more pairs, or a higher rate.")
    # Of fewer prompts the bootstrap's interval is too narrow (of one, nothing at all), and what lies within it must be abstained from.
    if (num_prompts := len(np.unique(answers.prompt[answers.good]))) < FEW_CLUSTERS:
        raise _too_few_prompts(f"good answers to at least {FEW_CLUSTERS} prompts in the fitting half", num_prompts)


def _too_few_prompts(needed: str, num_prompts: int) -> DataError:
    return DataError(f"{needed}, for a threshold with an interval", f"{num_prompts}", "Give pairs of more prompts.")


def _evidence(rule: Rule, found: Threshold, held: Answers, *, seed: int) -> Evidence:
    """What the decisions are on answers of other prompts, besides what the threshold alone would do."""
    low, high = rule.bounds
    refused, abstained = held.score < low, (held.score >= low) & (held.score < high)
    shares = [
        proportion(which[kind].astype(np.float64), cluster_codes(held.prompt[kind]), seed=seed)
        for kind in (held.good, held.bad)
        for which in (refused, abstained)
    ]
    return Evidence(found.false_alarms, found.caught, *shares)


def _fit_bad_answers(fit: Answers, held: Answers, *, seed: int) -> BadAnswers:
    """Logistic regression of bad (1) against good (0) answers on the score.

    Labels are drawn in as Platt (1999, "Probabilistic outputs for support vector machines", 2.2) does, (N + 1) / (N + 2) for 1 and 0, so that scores which part the two
    kinds without an error give a finite slope. The calibration error is that of the confidence max(p, 1 - p) in the likelier kind.

    Raises:
        DataError: if good answers do not score higher than bad ones.
    """
    known = fit.take(fit.good | fit.bad)
    counts = {kind: int(rows.sum()) for kind, rows in (("good", known.good), ("bad", known.bad))}
    if not counts["bad"]:
        raise DataError("bad answers to fit a guardrail on", "none", "Give pairs of more prompts.")
    mean, spread = float(known.score.mean()), float(known.score.std()) or 1.0
    soft = np.where(known.bad, (counts["bad"] + 1) / (counts["bad"] + 2), 1 / (counts["good"] + 2))
    inputs = np.tile((known.score - mean) / spread, 2)[:, None]
    labels = np.repeat([1, 0], len(known.score))
    fitted = LogisticRegression(C=np.inf).fit(inputs, labels, sample_weight=np.concatenate([soft, 1 - soft]))
    slope = -float(fitted.coef_[0, 0]) / spread
    if slope <= 0:
        raise DataError(
            "a scorer that gives good answers higher scores than bad ones, across prompts",
            f"one whose bad answers score as high or higher ({counts['good']} good and {counts['bad']} bad answers)",
            "No threshold makes a guardrail of it; check the labels and the model (`rewardsmith evaluate`).",
        )
    intercept = float(fitted.intercept_[0]) + slope * mean
    others = held.take(held.good | held.bad)
    log_odds = intercept - slope * others.score
    # The log-odds of what an answer is: positive where the likelier kind is the right one.
    margins = np.where(others.bad, log_odds, -log_odds)
    return BadAnswers(
        intercept,
        slope,
        counts["bad"] / len(known.score),
        ece=metrics.ece(margins, others.prompt, seed=seed),
        ece_null=metrics.ece_null(margins, others.prompt, seed=seed).null,
    )


class Guardrail:
    """A scorer with a threshold; see the module.

    >>> guardrail = Guardrail(lambda prompt, answer: len(answer), threshold=5)
    >>> guardrail("Hi?", "Hello there.").decision
    'allow'
    >>> guardrail("Hi?", "Ho.").reason
    'the score 3.000 is below the threshold 5.000'
    """

    def __init__(
        self,
        scorer: Scorer | Function,
        *,
        threshold: float | None = None,
        target_rate: float | None = None,
        rule: Rule | None = None,
        domain: DomainDetector | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Choose the threshold; nothing is scored.

        Args:
            scorer: anything that scores; one that tells what it cut (a `TableScorer`) has cut texts abstained from.
            threshold: a score below which answers are refused.
            target_rate: the share of good answers that may be stopped: a threshold is then looked up among those stored with the model.
            rule: a whole rule; `fit` and `load` make such.
            domain: texts outside of it are abstained from.
            files: SHA-256 by name of the model's files, for a scorer that does not tell.

        Raises:
            SettingsError: unless exactly one of `threshold`, `target_rate` and `rule` is given; at a threshold that is not finite; if none is stored for the rate.
            ContractError: if the rule is of another model.
        """
        if sum(one is not None for one in (threshold, target_rate, rule)) != 1:
            raise SettingsError(
                "one of threshold and target_rate", "none, or several", "Give one: Guardrail(scorer, target_rate=0.05)."
            )
        self.scorer, self.domain = as_scorer(scorer), domain
        contract = contract_of(self.scorer)
        if target_rate is not None:
            rule = stored_rule(contract, target_rate, files=files)
        elif threshold is not None:
            rule = given_rule(threshold, contract, files=files)
        assert rule is not None
        if rule.model:
            rule.check_model(identity_of(contract, files))
        self.rule = rule

    @classmethod
    def fit(
        cls,
        scorer: Scorer | Function,
        pairs: Sequence[Preference],
        target_rate: float,
        *,
        seed: int = 0,
        domain: DomainDetector | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Guardrail:
        """A guardrail from labelled pairs; see `fit_rule`."""
        scorer = as_scorer(scorer)
        model = identity_of(contract_of(scorer), files)
        rule = fit_rule(scorer, pairs, target_rate, model=model, seed=seed)
        return cls(scorer, rule=rule, domain=domain, files=files)

    @classmethod
    def load(
        cls,
        path: Path,
        scorer: Scorer | Function,
        *,
        domain: DomainDetector | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Guardrail:
        """A guardrail that was saved, for the model that it was made for.

        Raises:
            ContractError: if it is no guardrail, of a later version, or of another model.
        """
        rule, scorer = Rule.load(path), as_scorer(scorer)
        rule.check_model(identity_of(contract_of(scorer), files))
        return cls(scorer, rule=rule, domain=domain, files=files)

    def save(self, path: Path) -> None:
        """Write the rule; see `Rule.save`. A domain detector is saved by itself."""
        self.rule.save(path)

    def as_dict(self) -> dict[str, Any]:
        """The document of the rule."""
        return self.rule.as_dict()

    def __call__(self, prompt: Prompt, answer: str) -> Decision:
        """What becomes of one answer."""
        return self.decide([(prompt, answer)])[0]

    def decide(self, pairs: Sequence[Pair]) -> list[Decision]:
        """What becomes of each answer, in the order of `pairs`, scored in one call.

        Raises:
            DataError: if an answer is no text.
            ScoreError: if the scorer fails, or a score is not finite. Nothing is allowed by an error.
            RewardsmithError: of another kind, where the scorer or the detector raises one.
        """
        for _, answer in pairs:
            if not isinstance(answer, str):
                raise DataError("answers as texts", f"a {type(answer).__name__}", "Give '' for an empty answer.")
        rows = [i for i, (_, answer) in enumerate(pairs) if not traits.is_blank(answer)]
        asked = [pairs[i] for i in rows]
        scores, truncated = np.zeros(len(pairs), np.float32), np.zeros(len(pairs), np.bool_)
        flags: list[DomainFlag] | None = None
        if asked:
            try:
                scores[rows], truncated[rows] = self._scored(asked)
                flags = None if self.domain is None else self._flags(asked, rows, len(pairs))
            except RewardsmithError:
                raise
            except Exception as error:
                raise ScoreError(
                    "a score for every answer",
                    f"{type(error).__name__}: {error}",
                    "Mend the scorer; nothing was allowed.",
                ) from error
        return self.rule.decide(pairs, scores, truncated=truncated.tolist(), flags=flags)

    def _scored(self, pairs: Sequence[Pair]) -> tuple[Scores, NDArray[np.bool_]]:
        if isinstance(self.scorer, TableScorer):
            table = self.scorer.table(pairs)
            # Not by assignment alone: numpy takes None for False, and one flag for all.
            truncated = np.asarray(table.truncated)
            if truncated.shape != (len(pairs),) or truncated.dtype != np.bool_:
                came = f"an array of {truncated.dtype}, of shape {truncated.shape}"
                raise ScoreError(f"{len(pairs)} truncation flags", came, "Mend the scorer; nothing was allowed.")
            return checked(table.score, len(pairs)), truncated
        return checked(self.scorer.score(pairs), len(pairs)), np.zeros(len(pairs), np.bool_)

    def _flags(self, pairs: Sequence[Pair], rows: Sequence[int], num_pairs: int) -> list[DomainFlag]:
        """Flags of what was scored, with one that nobody looks at for every empty answer."""
        assert self.domain is not None
        found = self.domain.flags(pairs)
        if len(found) != len(pairs):
            raise ScoreError(f"{len(pairs)} domain flags", f"{len(found)}", "Mend the detector; nothing was allowed.")
        by_row = dict(zip(rows, found, strict=True))
        return [by_row.get(i, found[0]) for i in range(num_pairs)]
