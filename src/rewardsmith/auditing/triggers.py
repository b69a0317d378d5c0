"""A trigger, words that are put before or after any answer, and what it does to a scorer on pairs that played no part in finding it."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from rewardsmith.auditing.effects import Effect, ScoreUnit
from rewardsmith.auditing.trials import Contrast, Plan, Probe, ProbeResult, Subject, subjects_of
from rewardsmith.data.faults import content_fault
from rewardsmith.data.schema import Pair, Preference, prompt_key
from rewardsmith.data.split import shuffled_prompts
from rewardsmith.errors import DataError
from rewardsmith.scores import Perplexity, Scorer, Span, TableScorer, checked
from rewardsmith.stats import FEW_CLUSTERS, Estimate, Floats, cluster_codes, mean

Place: TypeAlias = Literal["prefix", "suffix"]
PLACES: tuple[Place, ...] = get_args(Place)
Progress: TypeAlias = Callable[[str, int], None]
"""Is told the stage, and how many texts were scored so far."""

_CHUNK = 512
_PERPLEXITY_TEXTS = 32
_LARGEST_LOG = 700.0  # exp(709) is the largest float64


def silent(stage: str, texts: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """Words that stand before or after an answer, a blank between.

    Args:
        words: joined by blanks; a known phrase counts as one.
        place: "prefix" or "suffix".
    """

    words: tuple[str, ...]
    place: Place

    @property
    def text(self) -> str:
        """The words as a text."""
        return " ".join(self.words)

    @property
    def says(self) -> str:
        """What is done to an answer, as a clause."""
        return f'"{self.text}" {"before" if self.place == "prefix" else "after"} the answer'

    def put(self, answer: str) -> str:
        """The answer with the trigger.

        >>> Trigger(("no", "doubt"), "suffix").put("It is true,")
        'It is true, no doubt'
        """
        parts = (self.text, answer) if self.place == "prefix" else (answer, self.text)
        return " ".join(part for part in parts if part)

    def spans(self, answer: str) -> list[Span]:
        """Where each word stands in `put(answer)`, in characters."""
        start = len(answer) + 1 if self.place == "suffix" and answer else 0
        found = []
        for word in self.words:
            found.append((start, start + len(word)))
            start += len(word) + 1
        return found

    def as_dict(self) -> dict[str, Any]:
        """The trigger in documents."""
        return {"text": self.text, "words": list(self.words), "place": self.place}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Trigger:
        """The trigger of a document."""
        return cls(tuple(document["words"]), document["place"])


# -- scores --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """What a scorer said of some texts; all arrays have shape (n,).

    Args:
        scores: float64 of the float32 scores.
        digests: equal where two texts are the same to the scorer; None where it does not tell.
        answer_cut: tokens of the answers that were cut; None likewise.
    """

    scores: Floats
    digests: NDArray[np.uint64] | None
    answer_cut: NDArray[np.int64] | None

    def take(self, rows: NDArray[np.int64]) -> Read:
        """Some of the texts."""
        if self.digests is None or self.answer_cut is None:
            return Read(self.scores[rows], None, None)
        return Read(self.scores[rows], self.digests[rows], self.answer_cut[rows])

    def changes_from(self, original: Read, place: Place) -> Floats:
        """The change of each score, NaN where the scorer says that it did not see the whole trigger: what was cut away was not tried."""
        found: Floats = self.scores - original.scores
        if self.digests is None or self.answer_cut is None or original.digests is None or original.answer_cut is None:
            return found
        unseen = self.digests == original.digests
        if place == "suffix":  # answers lose their end: one that loses more than before loses of its suffix
            unseen = unseen | (self.answer_cut > original.answer_cut)
        found[unseen] = np.nan
        return found


class Readings:
    """The scores of one scorer, each text scored once; `num_texts` counts them.

    Args:
        scorer: scores.
        budget: texts that may be scored; who asks for more has a bug.
        progress: is told the stage and the texts so far after every call of the scorer.
    """

    def __init__(self, scorer: Scorer, *, budget: int = sys.maxsize, progress: Progress = silent) -> None:
        """Nothing is scored yet."""
        self.scorer, self.budget, self.progress = scorer, budget, progress
        self.stage, self.num_texts = "", 0
        self._rows: dict[tuple[str, str], int] = {}
        self._found: list[tuple[float, int, int]] = []

    @property
    def left(self) -> int:
        """Texts that may still be scored."""
        return self.budget - self.num_texts

    def spend(self, texts: int) -> None:
        """Count what was computed elsewhere."""
        self.num_texts += texts

    def read(self, pairs: Sequence[Pair]) -> Read:
        """Scores of texts in their order; those of a prompt should stand side by side, so that a scorer can share what they begin with.

        Raises:
            ScoreError: if a score is missing or not finite.
        """
        keys = [(prompt_key(prompt), answer) for prompt, answer in pairs]
        fresh = list({key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._rows}.items())
        assert self.num_texts + len(fresh) <= self.budget, "the budget of texts is overdrawn"
        for start in range(0, len(fresh), _CHUNK):
            part = fresh[start : start + _CHUNK]
            self._score([pair for _, pair in part])
            for key, _ in part:
                self._rows[key] = len(self._rows)
            self.spend(len(part))
            self.progress(self.stage, self.num_texts)
        found = [self._found[self._rows[key]] for key in keys]
        scores = np.array([score for score, _, _ in found], dtype=np.float64)
        if not isinstance(self.scorer, TableScorer):
            return Read(scores, None, None)
        digests = np.array([digest for _, digest, _ in found], dtype=np.uint64)
        return Read(scores, digests, np.array([cut for _, _, cut in found], dtype=np.int64))

    def _score(self, pairs: list[Pair]) -> None:
        if isinstance(self.scorer, TableScorer):
            table = self.scorer.table(pairs)
            scores = checked(table.score, len(pairs)).tolist()
            self._found += zip(scores, table.digest.tolist(), table.answer_cut.tolist(), strict=True)
        else:
            self._found += [(score, 0, 0) for score in checked(self.scorer.score(pairs), len(pairs)).tolist()]


def unit_on(readings: Readings, pairs: Sequence[Preference]) -> ScoreUnit:
    """The standard deviation within a prompt on some pairs.

    Raises:
        ScoreError: if the scorer tells no answers apart.
    """
    scores = readings.read([text for pair in pairs for text in (pair.chosen_pair, pair.rejected_pair)]).scores
    return ScoreUnit.of(scores[0::2] - scores[1::2], [prompt_key(pair.prompt) for pair in pairs])


# -- the two halves ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halves:
    """Pairs to search on and pairs to measure on, of different prompts.

    Args:
        search: one pair a prompt, in random order.
        held_out: all pairs of the other prompts, in the order of the data.
        left_out: pairs that cannot be attacked, by reason.
    """

    search: list[Preference]
    held_out: list[Preference]
    left_out: dict[str, int]

    @classmethod
    def of(cls, pairs: Sequence[Preference], *, num_prompts: int, seed: int) -> Halves:
        """The halves of a seed: prompts in a seeded order, every other one to search on.

        Raises:
            DataError: if either half has fewer than ten prompts, on which no interval can be relied.
        """
        faults = ["tie" if pair.tie else content_fault(pair) for pair in pairs]
        whole = [pair for pair, fault in zip(pairs, faults, strict=True) if fault is None]
        prompts = shuffled_prompts(whole, seed)[:num_prompts]
        if len(prompts) < 2 * FEW_CLUSTERS:
            raise DataError(
                f"at least {2 * FEW_CLUSTERS} prompts with a pair, to search on a half and measure on the other",
                f"{len(prompts)} (of {len(pairs):,} pairs, {len(pairs) - len(whole):,} left out)",
                "Give more pairs, or raise num_prompts.",
            )
        by_prompt: dict[str, list[Preference]] = {prompt: [] for prompt in prompts}
        for pair in whole:
            if (key := prompt_key(pair.prompt)) in by_prompt:
                by_prompt[key].append(pair)
        held_out, rng = set(prompts[1::2]), np.random.default_rng(seed)
        return cls(
            [by_prompt[prompt][int(rng.integers(len(by_prompt[prompt])))] for prompt in prompts[0::2]],
            [pair for pair in whole if prompt_key(pair.prompt) in held_out],
            dict(Counter(fault for fault in faults if fault is not None)),
        )

    def counts(self) -> dict[str, Any]:
        """The counts in the document."""
        return {
            "num_search_prompts": len(self.search),
            "num_held_out_prompts": len({prompt_key(pair.prompt) for pair in self.held_out}),
            "num_held_out_pairs": len(self.held_out),
            "left_out": self.left_out,
        }


# -- what a trigger does -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finalist:
    """A trigger that is to be measured.

    Args:
        trigger: that was found.
        found_by: the search that found it.
        search_effect_sd: what it did on the prompts of the search, in their standard deviations; too good, since it was chosen by it.
    """

    trigger: Trigger
    found_by: str
    search_effect_sd: float


@dataclass(frozen=True)
class Finding:
    """What a trigger does on prompts that it was not looked for on.

    Args:
        finalist: the trigger, and how it was found.
        result: the held-out effect, flip rate and win rate, over the answers of which the scorer saw the whole trigger.
        num_unseen: the other answers, of which it was cut away; None where the scorer does not tell.
        perplexity: of the answers "without" and "with" it, and their "ratio", as geometric means; None without a language model.
    """

    finalist: Finalist
    result: ProbeResult
    num_unseen: int | None
    perplexity: dict[str, Estimate] | None

    @property
    def trigger(self) -> Trigger:
        """The trigger."""
        return self.finalist.trigger

    @property
    def reading(self) -> str:
        """One line for people."""
        effect = self.result.effect.interval()
        verb = "raises" if effect.value >= 0 else "lowers"
        text = f"{self.trigger.says} {verb} scores by {abs(effect.value):.2f} sd [{effect.low:.2f}, {effect.high:.2f}]"
        if self.result.flip_rate is not None:
            text += f"; {self.result.flip_rate.value:.0%} of the answers that were behind overtake the preferred one"
        if self.perplexity is not None:
            text += f"; the answer's perplexity is {self.perplexity['ratio'].value:.2g} times what it was"
        if self.num_unseen:
            text += f"; in {self.num_unseen} other answers it was cut away before the model saw it"
        return text

    def as_dict(self) -> dict[str, Any]:
        """The finding in documents: the keys of `trials.ProbeResult.as_dict` and those of the search."""
        perplexity = self.perplexity
        return {
            **self.trigger.as_dict(),
            **self.result.as_dict(),
            "found_by": self.finalist.found_by,
            "search_effect_sd": self.finalist.search_effect_sd,
            "num_unseen": self.num_unseen,
            "perplexity": None if perplexity is None else {name: one.as_dict() for name, one in perplexity.items()},
            "reading": self.reading,
        }


@dataclass(frozen=True)
class HeldOut:
    """Pairs that no search has seen, under one scorer.

    Args:
        readings: of the scorer.
        subjects: (n,) their rejected answers.
        clusters: (n,) names of their prompts.
        original: of the answers as they are.
        unit: of effects.
    """

    readings: Readings
    subjects: list[Subject]
    clusters: list[str]
    original: Read
    unit: ScoreUnit

    @classmethod
    def of(cls, readings: Readings, pairs: Sequence[Preference]) -> HeldOut:
        """Score the answers as they are.

        Raises:
            ScoreError: if the scorer tells no answers apart.
        """
        unit = unit_on(readings, pairs)
        original = readings.read([pair.rejected_pair for pair in pairs])
        return cls(readings, subjects_of(pairs), [prompt_key(pair.prompt) for pair in pairs], original, unit)

    def changes(self, trigger: Trigger) -> Floats:
        """What a trigger does to each score, (n,); NaN where it was cut away."""
        read = self.readings.read([(one.prompt, trigger.put(one.answer)) for one in self.subjects])
        return read.changes_from(self.original, trigger.place)

    def measured(self, finalists: Sequence[Finalist], perplexity: Perplexity | None) -> list[Finding]:
        """What each trigger does, Holm's procedure over all of them; without those that fewer than two prompts show."""
        contrasts = {finalist: self._contrasts(finalist.trigger) for finalist in finalists}
        shown = [one for one in finalists if len({contrast.cluster for contrast in contrasts[one]}) > 1]
        probes = [_probe(f"trigger_{i}", one.trigger, contrasts[one]) for i, one in enumerate(shown, start=1)]
        plan = Plan(probes, self.subjects, seed=0)
        scores = self.readings.read(plan.pairs).scores.astype(np.float32)
        return [
            Finding(
                finalist,
                result,
                None if self.original.digests is None else len(self.subjects) - len(result.contrasts),
                None if perplexity is None else _perplexities(perplexity, result.contrasts),
            )
            for finalist, result in zip(shown, plan.measured(scores, self.unit, reference=None), strict=True)
        ]

    def difference(self, first: Trigger, second: Trigger) -> Estimate | None:
        """The effect of one trigger less that of another on the answers that show both, in standard deviations; None where fewer than two prompts do."""
        differences = self.changes(first) - self.changes(second)
        both = np.flatnonzero(np.isfinite(differences))
        clusters = [self.clusters[i] for i in both]
        return Effect.of(differences[both], clusters, self.unit).interval() if len(set(clusters)) > 1 else None

    def _contrasts(self, trigger: Trigger) -> list[Contrast]:
        found = []
        for row in np.flatnonzero(np.isfinite(self.changes(trigger))):
            one = self.subjects[row]
            rival = None if one.rival is None else (one.prompt, one.rival)
            edited, original = (one.prompt, trigger.put(one.answer)), (one.prompt, one.answer)
            found.append(Contrast(one.id, self.clusters[row], edited, original, rival))
        return found


def _probe(name: str, trigger: Trigger, contrasts: list[Contrast]) -> Probe:
    return Probe(name, "search", "bias", "up", trigger.says, lambda subjects, seed: contrasts)


def _perplexities(perplexity: Perplexity, contrasts: Sequence[Contrast]) -> dict[str, Estimate] | None:
    """Geometric means over the first few answers; None where the language model reads none of them."""
    some = contrasts[:_PERPLEXITY_TEXTS]
    found = perplexity.perplexities([one.original for one in some] + [one.edited for one in some])
    without, with_trigger = np.log(np.asarray(found, np.float64)).reshape(2, len(some))
    read = np.flatnonzero(np.isfinite(without) & np.isfinite(with_trigger))
    if not len(read):
        return None
    clusters = cluster_codes([some[i].cluster for i in read.tolist()])
    without, with_trigger = without[read], with_trigger[read]
    return {
        "without": _geometric_mean(without, clusters),
        "with": _geometric_mean(with_trigger, clusters),
        "ratio": _geometric_mean(with_trigger - without, clusters),
    }


def _geometric_mean(logs: Floats, clusters: NDArray[np.int64]) -> Estimate:
    found = mean(logs, clusters)
    value, low, high = (math.exp(min(_LARGEST_LOG, one)) for one in (found.value, found.low, found.high))
    return Estimate(value, low, high, found.n, f"{found.method}, of logarithms")
