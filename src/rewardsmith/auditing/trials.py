"""The engine of probes: which texts are compared, and what their scores say.

A probe makes contrasts: an edited text beside the original one. All texts of all probes are scored once, and a contrast's effect is the difference of its
two scores. What is planned and what is measured are apart, so that a thousand audits can be simulated without a scorer, and one table of scores serves
every number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rewardsmith.auditing.effects import Effect, ScoreUnit, holm_confidences
from rewardsmith.data.schema import Pair, Preference, Prompt, prompt_key
from rewardsmith.errors import DataError
from rewardsmith.scores import Scorer, Scores, TableScorer, checked
from rewardsmith.significance import LEVEL, holm
from rewardsmith.stats import Estimate, Floats, cluster_codes, cluster_ratio, proportion

LEAST_EFFECT = 0.1
"""In standard deviations: what is smaller is not flagged, however certain."""
Kind: TypeAlias = Literal["bias", "invariance", "prompt use", "truncation"]
Direction: TypeAlias = Literal["up", "either"]
_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Subject:
    """An answer that probes edit.

    Args:
        id: of its row.
        prompt: of the answer.
        answer: the rejected one, where it comes from a pair.
        rival: an answer that was preferred to it, for flip rates; None where none is known.
    """

    id: str
    prompt: Prompt
    answer: str
    rival: str | None = None


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two texts whose scores are compared: the effect is score(edited) - score(original), less that of `neutral`.

    Args:
        id: of the subject, or of the item of a probe that brings its own texts.
        cluster: the prompt that it belongs to, for intervals.
        edited: prompt and answer after the edit.
        original: the same before it.
        rival: the preferred answer that the edited one may overtake; None where there is none.
        neutral: (edited, original) of the same contrast without what the probe asks about; its effect is taken off.
        stratum: effects are averaged within each stratum first, so that strata count alike.
    """

    id: str
    cluster: str
    edited: Pair
    original: Pair
    rival: Pair | None = None
    neutral: tuple[Pair, Pair] | None = None
    stratum: int = 0

    def pairs(self) -> list[Pair]:
        """Everything that has to be scored for it."""
        return [self.edited, self.original, *([self.rival] if self.rival else []), *(self.neutral or ())]


@dataclass(frozen=True)
class Probe:
    """One question to a scorer.

    Args:
        name: one word or a few, joined by underscores.
        family: what it is about: length, format, openings, ...
        kind: a direction of bias, invariance under edits that keep the meaning, use of the prompt, or truncation.
        direction: which effect is a finding: "up", the edited text scores higher; "either", it scores differently.
        says: what is done to the text, as a clause: "three exclamation marks at the end".
        contrasts: from subjects and a seed to contrasts; a subject that the probe does not apply to is left out.
        edits_answers: whether the contrasts edit the subjects' answers, so that the probe can be put to other answers of theirs.
    """

    name: str
    family: str
    kind: Kind
    direction: Direction
    says: str
    contrasts: Callable[[Sequence[Subject], int], list[Contrast]]
    edits_answers: bool = True


def subjects_of(pairs: Sequence[Preference]) -> list[Subject]:
    """The rejected answers of pairs, their chosen ones as rivals."""
    return [Subject(pair.id, pair.prompt, pair.rejected, pair.chosen) for pair in pairs]


class Plan:
    """Every text that some probes need, each once.

    >>> plan = Plan(probes, subjects, seed=0)  # doctest: +SKIP
    >>> results = plan.measured(scorer.score(plan.pairs), unit)  # doctest: +SKIP
    """

    def __init__(self, probes: Sequence[Probe], subjects: Sequence[Subject], *, seed: int) -> None:
        """Make the contrasts; nothing is scored.

        Args:
            probes: in the order of the results.
            subjects: the answers to edit.
            seed: of the edits that draw something.
        """
        self.probes = list(probes)
        self.num_subjects = len(subjects)
        self.contrasts = {probe.name: probe.contrasts(subjects, seed) for probe in probes}
        self.pairs: list[Pair] = []
        self._places: dict[tuple[str, str], int] = {}
        for contrasts in self.contrasts.values():
            for contrast in contrasts:
                self.add(contrast.pairs())

    def add(self, pairs: Sequence[Pair]) -> NDArray[np.int64]:
        """Plan some more texts; returns their rows in `pairs`."""
        rows = []
        for prompt, answer in pairs:
            key = (prompt_key(prompt), answer)
            if key not in self._places:
                self._places[key] = len(self.pairs)
                self.pairs.append((prompt, answer))
            rows.append(self._places[key])
        return np.array(rows, dtype=np.int64)

    def rows(self, pairs: Sequence[Pair]) -> NDArray[np.int64]:
        """Rows of planned texts."""
        return np.array([self._places[prompt_key(prompt), answer] for prompt, answer in pairs], dtype=np.int64)

    def measured(
        self,
        scores: Scores,
        unit: ScoreUnit,
        *,
        digests: NDArray[np.uint64] | None = None,
        truncated: NDArray[np.bool_] | None = None,
        reference: str | None = "white_space",
    ) -> list[ProbeResult]:
        """What the scores say, Holm's procedure going over all probes that apply to something.

        Args:
            scores: (len(pairs),) float32.
            unit: of effects.
            digests: (len(pairs),) equal where two texts are the same to the scorer; None where that is not known.
            truncated: (len(pairs),) whether something of a text was cut; with None any equal texts are taken for cut ones.
            reference: the probe whose flip rate stands beside every other: an edit that changes nothing for a reader.

        Where digests tell that the scorer read an edited answer as the original, because what was edited was cut away, the contrast says nothing and is left
        out, counted. An edit that the tokenizer folds (capitals, white space) has an effect of 0 and stays. Contrasts of probes that bring their own texts
        stay, too: that a sentence was cut away is what some of them ask.

        Returns:
            One result a probe that has contrasts of two prompts or more, in the order of the probes.
        """
        values = scores.astype(np.float64)
        unseen = (
            None
            if digests is None
            else {probe.name: self._is_unseen(probe, digests, truncated) for probe in self.probes}
        )
        seen = {probe.name: self._seen(probe, None if unseen is None else unseen[probe.name]) for probe in self.probes}
        measured = [
            _Measured.of(probe, seen[probe.name], self, values, unit)
            for probe in self.probes
            # One prompt says nothing of how prompts differ: such a probe is not measured.
            if len({contrast.cluster for contrast in seen[probe.name]}) > 1
        ]
        p_values = [one.effect.p_value for one in measured]
        by_chance = next((one.flip_rate for one in measured if one.probe.name == reference), None)
        return [
            ProbeResult(
                probe=one.probe,
                contrasts=one.contrasts,
                differences=one.differences,
                edited_scores=one.edited,
                original_scores=one.original,
                rival_scores=one.rival,
                effect=one.effect,
                adjusted=one.effect.interval(confidence),
                p_adjusted=p_adjusted,
                movement=one.movement,
                flip_rate=one.flip_rate,
                flip_rate_reference=None if one.probe.name == reference else by_chance,
                win_rate=one.win_rate,
                num_subjects=self.num_subjects,
                num_made=len(self.contrasts[one.probe.name]),
                num_unseen=None if unseen is None else int(unseen[one.probe.name].sum()),
            )
            for one, confidence, p_adjusted in zip(
                measured, holm_confidences(p_values, LEVEL), holm(p_values), strict=True
            )
        ]

    def _seen(self, probe: Probe, unseen: NDArray[np.bool_] | None) -> list[Contrast]:
        """The contrasts of a probe that are two texts to the scorer."""
        contrasts = self.contrasts[probe.name]
        if unseen is None or not probe.edits_answers:
            return contrasts
        return [one for one, is_unseen in zip(contrasts, unseen.tolist(), strict=True) if not is_unseen]

    def _is_unseen(
        self, probe: Probe, digests: NDArray[np.uint64], truncated: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_]:
        """Of each contrast of a probe, whether its two texts are one to the scorer since their difference was cut away."""
        contrasts = self.contrasts[probe.name]
        edited, original = self.rows([one.edited for one in contrasts]), self.rows([one.original for one in contrasts])
        unseen: NDArray[np.bool_] = digests[edited] == digests[original]
        return unseen if truncated is None else unseen & truncated[edited]


@dataclass(frozen=True)
class _Measured:
    """A probe's numbers before they are seen beside those of the others."""

    probe: Probe
    contrasts: list[Contrast]
    edited: Floats
    original: Floats
    rival: Floats
    differences: Floats
    effect: Effect
    movement: Estimate
    flip_rate: Estimate | None
    win_rate: Estimate

    @classmethod
    def of(cls, probe: Probe, contrasts: list[Contrast], plan: Plan, scores: Floats, unit: ScoreUnit) -> _Measured:
        names = [one.cluster for one in contrasts]
        clusters = cluster_codes(names)
        strata = np.array([one.stratum for one in contrasts], dtype=np.int64)
        rows = plan.rows([one.edited for one in contrasts]), plan.rows([one.original for one in contrasts])
        edited, original = scores[rows[0]], scores[rows[1]]
        rival = np.full(len(contrasts), np.nan)
        with_rival = np.array([one.rival is not None for one in contrasts])
        rival[with_rival] = scores[plan.rows([one.rival for one in contrasts if one.rival is not None])]
        differences = edited - original
        with_neutral = np.array([one.neutral is not None for one in contrasts])
        neutral = [one.neutral for one in contrasts if one.neutral is not None]
        differences[with_neutral] -= (
            scores[plan.rows([pair for pair, _ in neutral])] - scores[plan.rows([pair for _, pair in neutral])]
        )
        return cls(
            probe=probe,
            contrasts=contrasts,
            edited=edited,
            original=original,
            rival=rival,
            differences=differences,
            effect=Effect.of(differences, names, unit, strata=strata),
            movement=Effect.of(np.abs(differences), names, unit, strata=strata).interval(),
            flip_rate=_flip_rate(edited, original, rival, clusters),
            win_rate=_win_rate(differences, clusters, strata),
        )


def _flip_rate(edited: Floats, original: Floats, rival: Floats, clusters: NDArray[np.int64]) -> Estimate | None:
    """Of the answers below their rivals, how many stand above them after the edit; None where there is no such answer."""
    below = original < rival  # False where there is no rival
    if not below.any():
        return None
    flipped = 0.5 + 0.5 * np.sign(edited[below] - rival[below])
    return proportion(flipped, cluster_codes(clusters[below]))


def _win_rate(differences: Floats, clusters: NDArray[np.int64], strata: NDArray[np.int64]) -> Estimate:
    """How often the edited text scores higher, ties one half, strata counting alike."""
    wins = 0.5 + 0.5 * np.sign(differences)
    codes = np.unique(strata, return_inverse=True)[1]
    if codes.max() == 0:
        return proportion(wins, clusters)
    weights = 1 / np.bincount(codes)[codes]
    return cluster_ratio(wins * weights, weights, clusters, low=0.0, high=1.0)


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found; arrays have one value a contrast.

    Args:
        probe: that asked.
        contrasts: that it made and the scorer could see.
        differences: the effects, in units of the raw score.
        edited_scores: of the edited texts.
        original_scores: of the originals.
        rival_scores: of the preferred answers, NaN where there is none.
        effect: their mean in standard deviations.
        adjusted: the same with its interval after Holm's procedure.
        p_adjusted: two-sided, after Holm's procedure.
        movement: mean absolute effect, in standard deviations.
        flip_rate: see `as_dict`.
        flip_rate_reference: that of an edit which keeps the meaning.
        win_rate: how often the edited text scores higher.
        num_subjects: that the probe was offered.
        num_made: contrasts that it made, unseen ones included.
        num_unseen: contrasts of which the scorer saw no difference, since what was edited was cut away; None where that is not known. Those of edited answers are
            left out of everything else.
    """

    probe: Probe
    contrasts: list[Contrast] = field(repr=False)
    differences: Floats = field(repr=False)
    edited_scores: Floats = field(repr=False)
    original_scores: Floats = field(repr=False)
    rival_scores: Floats = field(repr=False)
    effect: Effect
    adjusted: Estimate
    p_adjusted: float
    movement: Estimate
    flip_rate: Estimate | None
    flip_rate_reference: Estimate | None
    win_rate: Estimate
    num_subjects: int
    num_made: int
    num_unseen: int | None

    @property
    def flagged(self) -> bool:
        """Whether the adjusted interval excludes 0 in the probe's direction, and the effect is at least 0.1 sd."""
        if abs(self.effect.value) < LEAST_EFFECT:
            return False
        return self.adjusted.low > 0 or (self.probe.direction == "either" and self.adjusted.high < 0)

    @property
    def reading(self) -> str:
        """One line for people."""
        verb = "raises" if self.effect.value >= 0 else "lowers"
        estimate = self.effect.interval()
        text = (
            f"{self.probe.says}: {verb} the score by {abs(estimate.value):.2f} sd"
            f" [{estimate.low:.2f}, {estimate.high:.2f}]"
        )
        if self.flip_rate is not None:
            text += f"; {self.flip_rate.value:.0%} of the answers that were behind overtake the preferred one"
            if self.flip_rate_reference is not None:
                text += f" ({self.flip_rate_reference.value:.0%} after an edit that keeps the meaning)"
        if self.num_unseen:
            text += f"; in {self.num_unseen} of {self.num_made} answers the edit was cut away before the model saw it"
        return text

    def as_dict(self) -> dict[str, Any]:
        """The probe in the audit's document.

        `flip_rate` is the share of the answers scored below their rival that are scored above it after the edit, ties one half.
        """
        return {
            "name": self.probe.name,
            "family": self.probe.family,
            "kind": self.probe.kind,
            "direction": self.probe.direction,
            "says": self.probe.says,
            "effect_sd": self.effect.interval().as_dict(),
            "effect_sd_adjusted": self.adjusted.as_dict(),
            "p_value": self.effect.p_value,
            "p_adjusted": self.p_adjusted,
            "movement_sd": self.movement.as_dict(),
            "flip_rate": None if self.flip_rate is None else self.flip_rate.as_dict(),
            "flip_rate_reference": None if self.flip_rate_reference is None else self.flip_rate_reference.as_dict(),
            "win_rate": self.win_rate.as_dict(),
            "flagged": self.flagged,
            "num_contrasts": len(self.contrasts),
            "num_subjects": self.num_subjects,
            "num_unseen": self.num_unseen,
            "reading": self.reading,
            "examples": self.examples(),
        }

    def examples(self) -> list[dict[str, Any]]:
        """Two worked ones: the contrast of largest effect, and the one in the middle."""
        order = np.argsort(self.differences if self.effect.value >= 0 else -self.differences, kind="stable")
        return [self._example(int(row)) for row in dict.fromkeys([order[-1], order[len(order) // 2]])]

    def _example(self, row: int) -> dict[str, Any]:
        contrast = self.contrasts[row]
        original, edited = _around_the_edit(contrast.original[1], contrast.edited[1])
        rival = self.rival_scores[row]
        return {
            "id": contrast.id,
            "prompt": _beginning(prompt_key(contrast.edited[0])),
            "prompt_before": None
            if contrast.edited[0] == contrast.original[0]
            else _beginning(prompt_key(contrast.original[0])),
            "original": original,
            "edited": edited,
            "score_original": float(self.original_scores[row]),
            "score_edited": float(self.edited_scores[row]),
            "score_rival": None if np.isnan(rival) else float(rival),
        }


_SHOWN, _BEFORE = 300, 60


def _beginning(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _around_the_edit(original: str, edited: str) -> tuple[str, str]:
    """Both texts from a little before the first difference on."""
    first = next(
        (i for i, (one, other) in enumerate(zip(original, edited, strict=False)) if one != other),
        min(len(original), len(edited)),
    )
    start = max(0, first - _BEFORE)
    dots = "..." if start else ""
    return dots + _beginning(original[start:]), dots + _beginning(edited[start:])


@dataclass(frozen=True)
class Scored:
    """Scores of planned texts, with what is the same to the scorer where it tells.

    Args:
        scores: (n,) float32.
        digests: (n,) uint64, or None.
        truncated: (n,) bool, or None.
    """

    scores: Scores
    digests: NDArray[np.uint64] | None
    truncated: NDArray[np.bool_] | None


def score_all(scorer: Scorer, pairs: Sequence[Pair], *, on_texts: Callable[[int], None] | None = None) -> Scored:
    """Scores in calls of a few hundred texts, those of a prompt side by side so that a scorer can share what they begin with.

    Args:
        scorer: scores.
        pairs: prompts with answers.
        on_texts: called with the number of texts done.

    Raises:
        ScoreError: if a score is missing or not finite.
    """
    order = np.argsort([prompt_key(prompt) for prompt, _ in pairs], kind="stable")
    scores = np.zeros(len(pairs), np.float32)
    tells = isinstance(scorer, TableScorer)
    digests, truncated = np.zeros(len(pairs), np.uint64), np.zeros(len(pairs), np.bool_)
    for start in range(0, len(pairs), _CHUNK):
        rows = order[start : start + _CHUNK]
        texts = [pairs[row] for row in rows]
        if isinstance(scorer, TableScorer):
            table = scorer.table(texts)
            scores[rows] = checked(table.score, len(texts))
            digests[rows], truncated[rows] = table.digest, table.truncated
        else:
            scores[rows] = checked(scorer.score(texts), len(texts))
        if on_texts is not None:
            on_texts(min(len(pairs), start + _CHUNK))
    return Scored(scores, digests if tells else None, truncated if tells else None)


def unit_of(scorer: Scorer, pairs: Sequence[Preference]) -> ScoreUnit:
    """The unit of a scorer on some pairs.

    Raises:
        DataError: if there is no pair.
        ScoreError: if it tells no answers apart.
    """
    if not pairs:
        raise DataError("at least one pair to measure the spread of scores on", "none", "Give more pairs.")
    scored = score_all(scorer, [text for pair in pairs for text in (pair.chosen_pair, pair.rejected_pair)])
    margins = scored.scores[0::2].astype(np.float64) - scored.scores[1::2].astype(np.float64)
    return ScoreUnit.of(margins, [prompt_key(pair.prompt) for pair in pairs])


def run_probes(
    scorer: Scorer, subjects: Sequence[Subject], probes: Sequence[Probe], unit: ScoreUnit, *, seed: int = 0
) -> list[ProbeResult]:
    """Put some probes to a scorer: plan, score, measure.

    Args:
        scorer: anything that scores.
        subjects: the answers to edit.
        probes: see `registry`.
        unit: of effects; see `unit_of`.
        seed: of the edits that draw something.

    Raises:
        ScoreError: if a score is missing or not finite.
    """
    plan = Plan(probes, subjects, seed=seed)
    scored = score_all(scorer, plan.pairs)
    return plan.measured(scored.scores, unit, digests=scored.digests, truncated=scored.truncated)
