"""What a limit of length costs: what it cuts from pairs, whether what stands late in an answer still counts, and accuracy and time at other limits.

docs/prompt_use.md says how to read the numbers. A tie is one half everywhere. Legend: `n` pairs; texts are the n preferred answers, then the n rejected ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rewardsmith.auditing.probes.position import PLACES, num_words
from rewardsmith.auditing.registry import PROBES
from rewardsmith.auditing.trials import Plan, ProbeResult, score_all
from rewardsmith.data.faults import content_fault
from rewardsmith.data.schema import Pair, Preference, prompt_key
from rewardsmith.errors import DataError, LengthError
from rewardsmith.metrics import accuracy, wins
from rewardsmith.scores import LengthLimited, Scorer, ScoreTable, TableScorer, checked
from rewardsmith.stats import (
    FEW_CLUSTERS,
    Estimate,
    Floats,
    cluster_bootstrap,
    cluster_codes,
    cluster_ratio,
    mean,
    proportion,
)

Codes: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

LIMITS = (128, 256, 512, 1024, 2048)
TOLERATED = 0.02
"""A loss of accuracy: a limit is advised if its interval does not reach beyond it."""
_CHUNK = 512
# Time is taken on so many blocks of so many pairs.
_BLOCKS, _BLOCK_PAIRS = 6, 4


@dataclass(frozen=True)
class Cuts:
    """What a scorer's own limit does to the pairs.

    Args:
        cut: share of pairs of which a text was cut.
        collapsed: share of pairs whose two texts are the same to the scorer.
        tokens_removed: share of all tokens that the scorer never read.
        prompt_tokens: mean tokens removed from the prompt of a text that was cut; None where none was.
        answer_tokens: the same of the answer.
        accuracy_cut: of the pairs that were cut; None where there are none.
        accuracy_uncut: of the others.
        difference: the first minus the second; None where either group has fewer than ten prompts.
    """

    cut: Estimate
    collapsed: Estimate
    tokens_removed: Estimate
    prompt_tokens: Estimate | None
    answer_tokens: Estimate | None
    accuracy_cut: Estimate | None
    accuracy_uncut: Estimate | None
    difference: Estimate | None


@dataclass(frozen=True)
class AtLimit:
    """A scorer at one limit.

    Args:
        max_length: tokens of one text.
        own: whether it is the scorer's own limit.
        accuracy: of the pairs.
        difference: of accuracy to the own limit, paired.
        cut: share of pairs of which a text is cut.
        collapsed: share of pairs whose two texts are the same to the scorer.
        seconds_per_pair: on this machine; None where there are too few pairs to take the time.
        relative_time: the time over that at the own limit.
    """

    max_length: int
    own: bool
    accuracy: Estimate
    difference: Estimate
    cut: Estimate
    collapsed: Estimate
    seconds_per_pair: Estimate | None
    relative_time: Estimate | None


@dataclass(frozen=True)
class Decisive:
    """Whether a sentence that decides between right and wrong counts, by its place in a long answer.

    Args:
        places: per cent of the answer before it: share of the items in which the right answer scores higher.
        unseen: items in which the sentence was cut away on both sides; None where the scorer does not tell.
        difference: the last place minus the first one, paired.
        by_words: {words of the answer: {place: share}}.
    """

    places: dict[int, Estimate]
    unseen: dict[int, int | None]
    difference: Estimate
    by_words: dict[int, dict[int, Estimate]]

    def as_dict(self) -> dict[str, Any]:
        """The part `decisive` of the section."""
        return {
            "places": {str(place): estimate.as_dict() for place, estimate in self.places.items()},
            "unseen": {str(place): count for place, count in self.unseen.items()},
            "difference": self.difference.as_dict(),
            "by_words": {
                str(words): {str(place): estimate.as_dict() for place, estimate in places.items()}
                for words, places in self.by_words.items()
            },
        }


@dataclass(frozen=True)
class Truncation:
    """The section `truncation` of an audit.

    Args:
        num_pairs: that were looked at.
        left_out: pairs that were not, by reason.
        max_length: the scorer's own limit; None where it does not tell.
        cuts: at that limit; None where the scorer does not tell what it reads.
        decisive: by place.
        limits: ascending; empty where the scorer cannot be read at other limits.
        not_measured: what is not here, and why.
    """

    num_pairs: int
    left_out: dict[str, int]
    max_length: int | None
    cuts: Cuts | None
    decisive: Decisive
    limits: list[AtLimit] = field(repr=False)
    not_measured: dict[str, str]

    @property
    def advice(self) -> list[str]:
        """At most two sentences, from the numbers alone."""
        about_length = _advice_on_limits(self.limits) or _advice_on_cuts(self.cuts)
        return [sentence for sentence in (about_length, _advice_on_places(self.decisive)) if sentence is not None]

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "num_pairs": self.num_pairs,
            "left_out": self.left_out,
            "max_length": self.max_length,
            "cuts": None if self.cuts is None else _document(vars(self.cuts)),
            "decisive": self.decisive.as_dict(),
            "limits": [_document(vars(one)) for one in self.limits],
            "not_measured": self.not_measured,
            "advice": self.advice,
        }


def measure_truncation(
    scorer: Scorer,
    pairs: Sequence[Preference],
    *,
    limited: LengthLimited | None = None,
    limits: Sequence[int] = LIMITS,
    results: Sequence[ProbeResult] = (),
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Truncation:
    """Measure what the limit of a scorer costs.

    A text that a limit does not cut has the score that it has anyway, and is not scored again. Limits at which nothing would change are left out and said so.

    Args:
        scorer: anything that scores; what it cuts is known only of one that tells (`TableScorer`).
        pairs: labelled pairs; those labelled as ties and those with a fault of content are left out and counted.
        limited: the same scorer where it can be read at other limits.
        limits: tokens of one text.
        results: of the audit's probes; where those of `decisive_at_...` are among them, their texts are not scored again.
        seed: of bootstraps, and of the pairs on which the time is taken.
        clock: in seconds.

    Raises:
        DataError: if no pair is left.
        ScoreError: if a score is missing or not finite.
    """
    faults = ["labelled_tie" if pair.tie else content_fault(pair) for pair in pairs]
    judged = [pair for pair, fault in zip(pairs, faults, strict=True) if fault is None]
    if not judged:
        raise DataError("at least one decided pair", f"none among {len(pairs):,}", "Check the data.")
    counted = [fault for fault in faults if fault is not None]
    left_out = {fault: counted.count(fault) for fault in dict.fromkeys(counted)}
    not_measured: dict[str, str] = {}
    reader = scorer if limited is None or isinstance(scorer, TableScorer) else limited.at_max_length(limited.max_length)
    sides = cuts = None
    if isinstance(reader, TableScorer):
        sides = _Sides.read(reader, judged, seed)
        cuts = _cuts(sides)
    else:
        not_measured["cuts"] = "the scorer does not tell what it reads of a text"
    rows: list[AtLimit] = []
    if limited is None or sides is None:
        not_measured["limits"] = "the scorer cannot be read at other limits of length"
    else:
        rows, why_not = _at_limits(limited, sides, limits, clock)
        not_measured |= why_not
    return Truncation(
        num_pairs=len(judged),
        left_out=left_out,
        max_length=None if limited is None else limited.max_length,
        cuts=cuts,
        decisive=_decisive(scorer, results, seed),
        limits=rows,
        not_measured=not_measured,
    )


@dataclass(frozen=True)
class _Sides:
    """Both texts of every pair, as a scorer read them.

    Args:
        texts: (2n,) the preferred answers, then the rejected ones.
        table: of them.
        clusters: (n,) codes of the prompts.
        seed: of bootstraps.
    """

    texts: list[Pair]
    table: ScoreTable
    clusters: Codes
    seed: int

    @classmethod
    def read(cls, scorer: TableScorer, pairs: Sequence[Preference], seed: int) -> _Sides:
        texts = [pair.chosen_pair for pair in pairs] + [pair.rejected_pair for pair in pairs]
        return cls(texts, _table(scorer, texts), cluster_codes([prompt_key(pair.prompt) for pair in pairs]), seed)

    def __len__(self) -> int:
        """How many pairs."""
        return len(self.clusters)

    def either(self, of_texts: Bools) -> Bools:
        """Whether it holds for a text of each pair, (n,)."""
        return of_texts[: len(self)] | of_texts[len(self) :]

    @property
    def margins(self) -> Floats:
        """Score of chosen minus score of rejected, (n,)."""
        scores = self.table.score.astype(np.float64)
        return scores[: len(self)] - scores[len(self) :]

    @property
    def cut(self) -> Bools:
        """Which pairs were cut, (n,)."""
        return self.either(self.table.truncated)

    def share(self, of_pairs: Bools) -> Estimate:
        """Of the pairs."""
        return proportion(of_pairs.astype(np.float64), self.clusters, seed=self.seed)

    @property
    def collapsed(self) -> Estimate:
        """Share of pairs whose texts are the same to the scorer."""
        return self.share(self.table.digest[: len(self)] == self.table.digest[len(self) :])

    def read_again(self, scorer: TableScorer, rows: Bools) -> _Sides:
        """The same with some of the texts as another scorer reads them."""
        if not rows.any():
            return self
        places = np.flatnonzero(rows)
        again = _table(scorer, [self.texts[place] for place in places])
        columns = {}
        for name, column in vars(self.table).items():
            columns[name] = column.copy()
            columns[name][places] = getattr(again, name)
        return replace(self, table=ScoreTable(**columns))


def _table(scorer: TableScorer, texts: Sequence[Pair]) -> ScoreTable:
    tables = [scorer.table(texts[start : start + _CHUNK]) for start in range(0, len(texts), _CHUNK)]
    table = ScoreTable.join(tables)
    checked(table.score, len(texts))
    return table


def _cuts(sides: _Sides) -> Cuts:
    table, cut = sides.table, sides.cut
    both = np.concatenate([sides.clusters, sides.clusters])
    removed = (table.prompt_cut + table.answer_cut).astype(np.float64)
    right = wins(sides.margins)
    return Cuts(
        cut=sides.share(cut),
        collapsed=sides.collapsed,
        tokens_removed=cluster_ratio(removed, table.full_tokens.astype(np.float64), both, low=0.0, high=1.0),
        prompt_tokens=_mean_of(table.prompt_cut, table.truncated, both, sides.seed),
        answer_tokens=_mean_of(table.answer_cut, table.truncated, both, sides.seed),
        accuracy_cut=_share_of(right, cut, sides),
        accuracy_uncut=_share_of(right, ~cut, sides),
        difference=_difference(right, cut, sides),
    )


def _mean_of(values: NDArray[np.int64], rows: Bools, clusters: Codes, seed: int) -> Estimate | None:
    return mean(values[rows].astype(np.float64), cluster_codes(clusters[rows]), seed=seed) if rows.any() else None


def _share_of(right: Floats, rows: Bools, sides: _Sides) -> Estimate | None:
    return proportion(right[rows], cluster_codes(sides.clusters[rows]), seed=sides.seed) if rows.any() else None


def _difference(right: Floats, cut: Bools, sides: _Sides) -> Estimate | None:
    """Accuracy of the pairs that were cut minus that of the others, over resampled prompts."""
    if min(len(np.unique(sides.clusters[cut])), len(np.unique(sides.clusters[~cut]))) < FEW_CLUSTERS:
        return None
    groups = [cut.astype(np.float64), (~cut).astype(np.float64)]

    def statistic(weights: Floats) -> Floats:
        # Of ten prompts none is drawn once in e^10 resamples.
        first, second = (weights @ (group * right) / np.maximum(weights @ group, 1e-9) for group in groups)
        return np.asarray(first - second)

    return cluster_bootstrap(statistic, sides.clusters, seed=sides.seed)


def _at_limits(
    limited: LengthLimited, own: _Sides, limits: Sequence[int], clock: Callable[[], float]
) -> tuple[list[AtLimit], dict[str, str]]:
    longest_text = int(own.table.full_tokens.max())
    none_cut = not own.table.truncated.any()
    scorers: dict[int, TableScorer] = {}
    read: dict[int, _Sides] = {}
    why_not: dict[str, str] = {}
    for limit in sorted({*limits, limited.max_length}):
        is_own = limit == limited.max_length
        if limit > limited.longest:
            why_not[f"max_length {limit}"] = f"the model reads at most {limited.longest} tokens"
        elif not is_own and none_cut and limit >= longest_text:
            why_not[f"max_length {limit}"] = f"no text is longer than {longest_text} tokens"
        else:
            # What was cut is read anew at any other limit; what was not, only where this limit cuts it.
            again = own.table.truncated | (own.table.full_tokens > limit)
            try:
                scorers[limit] = limited.at_max_length(limit)
                read[limit] = own if is_own else own.read_again(scorers[limit], again)
            except LengthError as error:
                scorers.pop(limit, None)
                why_not[f"max_length {limit}"] = f"it leaves no room beside the template: {error.needed}"
    seconds = _seconds(scorers, own, clock)
    rows = [_row(limit, limit == limited.max_length, sides, own) for limit, sides in read.items()]
    if seconds is None:
        why_not["seconds_per_pair"] = f"fewer than {2 * _BLOCK_PAIRS} pairs"
        return rows, why_not
    return [_timed(row, seconds[row.max_length], seconds[limited.max_length]) for row in rows], why_not


def _row(limit: int, is_own: bool, sides: _Sides, own: _Sides) -> AtLimit:
    differences = wins(sides.margins) - wins(own.margins)
    return AtLimit(
        max_length=limit,
        own=is_own,
        accuracy=accuracy(sides.margins, sides.clusters, seed=sides.seed),
        difference=mean(differences, sides.clusters, seed=sides.seed),
        cut=sides.share(sides.cut),
        collapsed=sides.collapsed,
        seconds_per_pair=None,
        relative_time=None,
    )


def _seconds(scorers: Mapping[int, TableScorer], sides: _Sides, clock: Callable[[], float]) -> dict[int, Floats] | None:
    """By limit, the seconds of each of a few blocks of pairs, (blocks,); every block is read at all limits before the next one, so that a busy machine is busy for all."""
    n = len(sides)
    blocks = min(_BLOCKS, n // _BLOCK_PAIRS)
    if blocks < 2:
        return None
    drawn = np.random.default_rng(sides.seed).permutation(n)[: blocks * _BLOCK_PAIRS].reshape(blocks, -1)
    seconds = {limit: np.zeros(blocks) for limit in scorers}
    texts = [[sides.texts[row] for row in (*block, *(block + n))] for block in drawn]
    for scorer in scorers.values():
        scorer.table(texts[0])  # what is set up at the first call is not counted
    for k, block in enumerate(texts):
        for limit, scorer in scorers.items():
            start = clock()
            scorer.table(block)
            seconds[limit][k] = clock() - start
    return seconds


def _timed(row: AtLimit, seconds: Floats, own: Floats) -> AtLimit:
    blocks = np.arange(len(seconds))
    method = f"{len(seconds)} blocks of {_BLOCK_PAIRS} pairs"
    per_pair = cluster_ratio(seconds, np.full(len(seconds), float(_BLOCK_PAIRS)), blocks, low=0.0)
    relative = cluster_ratio(seconds, own, blocks, low=0.0)
    return replace(
        row,
        seconds_per_pair=replace(per_pair, n=len(seconds) * _BLOCK_PAIRS, method=method),
        relative_time=replace(relative, n=len(seconds) * _BLOCK_PAIRS, method=method),
    )


def _decisive(scorer: Scorer, results: Sequence[ProbeResult], seed: int) -> Decisive:
    names = {place: f"decisive_at_{place}" for place in PLACES}
    found = {result.probe.name: (result.differences, result.num_unseen) for result in results}
    if not all(name in found for name in names.values()):
        found = _differences(scorer, list(names.values()))
    # A probe's difference is wrong minus right.
    right = {place: wins(-found[name][0]) for place, name in names.items()}
    items = np.arange(len(right[PLACES[0]]))
    words = np.array([num_words(item) for item in items.tolist()])
    return Decisive(
        places={place: proportion(values, items, seed=seed) for place, values in right.items()},
        unseen={place: found[name][1] for place, name in names.items()},
        difference=mean(right[PLACES[-1]] - right[PLACES[0]], items, seed=seed),
        by_words={
            count: {
                place: proportion(values[words == count], np.arange((words == count).sum()), seed=seed)
                for place, values in right.items()
            }
            for count in sorted(set(words.tolist()))
        },
    )


def _differences(scorer: Scorer, names: Sequence[str]) -> dict[str, tuple[Floats, int | None]]:
    """By probe, the score of the wrong text minus that of the right one, and in how many contrasts the two are the same to the scorer."""
    plan = Plan([PROBES[name] for name in names], [], seed=0)
    scored = score_all(scorer, plan.pairs)
    scores, found = scored.scores.astype(np.float64), {}
    for name in names:
        contrasts = plan.contrasts[name]
        wrong, right = plan.rows([one.edited for one in contrasts]), plan.rows([one.original for one in contrasts])
        unseen = None if scored.digests is None else int((scored.digests[wrong] == scored.digests[right]).sum())
        found[name] = scores[wrong] - scores[right], unseen
    return found


def _advice_on_limits(limits: Sequence[AtLimit]) -> str | None:
    own = next((one for one in limits if one.own), None)
    if own is None:
        return None
    better = [one for one in limits if one.max_length > own.max_length and one.difference.low > 0]
    if better:
        best = max(better, key=lambda one: one.difference.value)
        return (
            f"At {best.max_length:,} tokens accuracy is higher than at {own.max_length:,} "
            f"(difference {_signed(best.difference)}){_time(best)}."
        )
    shorter = [one for one in limits if one.max_length < own.max_length]
    # The limits down to which none loses accuracy beyond chance, the nearest first.
    enough: list[AtLimit] = []
    for one in reversed(shorter):
        if one.difference.high < 0:
            break
        enough.append(one)
    if enough:
        # The shortest of which the pairs exclude a real loss; where they exclude it of none, the nearest.
        sure = [one for one in enough if one.difference.low >= -TOLERATED]
        best = sure[-1] if sure else enough[0]
        loss = "" if sure else f"; a loss of {-best.difference.low:.3f} is not excluded"
        return (
            f"At {best.max_length:,} tokens accuracy is not distinguishable from {own.max_length:,} "
            f"(difference {_signed(best.difference)}){_time(best)}{loss}."
        )
    if shorter:
        nearest = shorter[-1]
        return (
            f"Every shorter limit that was tried costs accuracy: {nearest.max_length:,} tokens against {own.max_length:,} "
            f"a difference of {_signed(nearest.difference)}{_time(nearest)}."
        )
    return None


def _advice_on_cuts(cuts: Cuts | None) -> str | None:
    if cuts is None or cuts.collapsed.value == 0:
        return None
    share = cuts.collapsed
    return (
        f"{share.value:.1%} of the pairs [{share.low:.1%}, {share.high:.1%}] are one and the same text once they are cut: "
        f"a higher limit would let the scorer tell them apart."
    )


def _advice_on_places(decisive: Decisive) -> str:
    first, last = decisive.places[PLACES[0]], decisive.places[PLACES[-1]]
    if first.low <= 0.5 and last.low <= 0.5:
        return (
            f"The scorer does not tell right from wrong in long answers, whether at {PLACES[0]} % ({_plain(first)} right) or "
            f"at {PLACES[-1]} % ({_plain(last)}): these items do not show how far it reads."
        )
    numbers = f"{_plain(last)} right at {PLACES[-1]} % of a long answer, {_plain(first)} at {PLACES[0]} %"
    unseen = decisive.unseen[PLACES[-1]]
    away = f"; in {unseen} of {last.n} items the sentence was cut away" if unseen else ""
    if decisive.difference.high < 0:
        return f"What stands late counts for less: {numbers} (difference {_signed(decisive.difference)}){away}."
    return f"No loss at the end is seen: {numbers} (difference {_signed(decisive.difference)}){away}."


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _plain(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _time(one: AtLimit) -> str:
    return "" if one.relative_time is None else f" at {one.relative_time.value:.2f} of the time"


def _document(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.as_dict() if isinstance(value, Estimate) else value for name, value in values.items()}
