"""Does a longer answer score higher because it is longer? Probes that lengthen and shorten, and how scores and lengths go together."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from rewardsmith.auditing.effects import ScoreUnit
from rewardsmith.auditing.probes.prose import appended, prose_of
from rewardsmith.auditing.probes.word_lists import NEUTRAL_SENTENCES
from rewardsmith.auditing.registry import edit_probe, register
from rewardsmith.auditing.trials import Contrast, Probe, ProbeResult, Subject
from rewardsmith.data.schema import Preference, Prompt, prompt_key
from rewardsmith.data.traits import script
from rewardsmith.errors import DataError
from rewardsmith.stats import FEW_CLUSTERS, Estimate, Floats, cluster_bootstrap, cluster_codes, proportion

COPIES = (1, 2, 4, 8)
_NUM_NEUTRAL = 3
# A cut goes back to the last white space, unless that is as far away as in scripts without any.
_FARTHEST_SPACE = 40
_END_MARKS = re.compile(r"[.!?…。！？][\"'”’)\]*_」』]*\Z")
# Joiners, variation selectors and skin tones: what belongs to the character before.
_JOINERS = "\u200d\ufe0e\ufe0f\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"


def _longer_against_shorter(subjects: Sequence[Subject], seed: int) -> list[Contrast]:
    """Both answers of each pair, the longer one first; stratum 0 where the preferred one is longer, 1 where it is shorter.

    Averaged over both strata, what the labels say cancels out. With fewer than ten prompts in a stratum nothing is said.
    """
    contrasts, prompts = [], (set[str](), set[str]())
    for subject in subjects:
        if subject.rival is None or len(subject.rival) == len(subject.answer):
            continue
        longer, shorter = sorted([subject.rival, subject.answer], key=len, reverse=True)
        key, stratum = prompt_key(subject.prompt), int(longer == subject.answer)
        prompts[stratum].add(key)
        contrasts.append(
            Contrast(subject.id, key, (subject.prompt, longer), (subject.prompt, shorter), stratum=stratum)
        )
    return contrasts if min(map(len, prompts)) >= FEW_CLUSTERS else []


register(
    Probe(
        "length_preference",
        "length",
        "bias",
        "up",
        "the longer answer of a pair in the place of the shorter one, as often preferred as not",
        _longer_against_shorter,
        edits_answers=False,
    )
)


@edit_probe("padding", family="length", says="three sentences that say nothing after the answer")
def padding(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """English sentences, so only after answers in the Latin script or of a few letters."""
    if script(answer) not in (None, "Latin"):
        return None
    drawn = rng.choice(len(NEUTRAL_SENTENCES), size=_NUM_NEUTRAL, replace=False)
    return appended(answer, " ".join(NEUTRAL_SENTENCES[k] for k in drawn))


def repeated_last_sentence(answer: str, copies: int) -> str | None:
    """An answer with its last sentence said again, or its last item of a list; None where it ends in code or a table.

    What has no end mark is repeated on lines of its own.
    """
    prose = prose_of(answer)
    if not prose.lines or prose.is_open or prose.lines[-1].kind == "protected":
        return None
    line = prose.lines[-1]
    sentences = prose.sentences(line)
    is_sentence = line.kind == "plain" or len(sentences) > 1  # an item of one sentence is repeated as an item
    start, end = sentences[-1] if sentences and is_sentence else (line.left, line.end)
    last = answer[start:end]
    separator = " " if is_sentence and _END_MARKS.search(last) else prose.newline
    if separator == " " and last.endswith(("。", "！", "？", "」", "』")):
        separator = ""
    return answer.rstrip() + (separator + last) * copies


def _register_repetition(copies: int) -> None:
    times = "once" if copies == 1 else "twice" if copies == 2 else f"{copies} times"

    @edit_probe(f"repetition_{copies}", family="length", says=f"the last sentence said again {times}")
    def repetition(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
        return repeated_last_sentence(answer, copies)


for _copies in COPIES:
    _register_repetition(_copies)


@edit_probe("whole_answer_twice", family="length", says="the whole answer said twice")
def whole_answer_twice(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """The copy is a paragraph of its own."""
    return appended(answer, answer.strip())


def cut(answer: str, share: float) -> str | None:
    """The beginning of an answer, up to a share of its characters, cut after a whole word; None where no whole word is left or nothing is lost."""
    at = int(len(answer) * share)
    if not answer[at:].strip():
        return None
    if not answer[at].isspace():
        space = next((k for k in range(at, max(0, at - _FARTHEST_SPACE) - 1, -1) if answer[k : k + 1].isspace()), None)
        if space is not None:
            at = space
        elif at < len(answer) and answer[at].isascii() and at <= _FARTHEST_SPACE:
            return None  # a single word
        else:
            while at > 0 and (
                unicodedata.combining(answer[at]) or answer[at] in _JOINERS or answer[at - 1] == "\u200d"
            ):
                at -= 1
    return answer[:at].rstrip() or None


def _register_cut(percent: int) -> None:
    @edit_probe(f"cut_{percent}", family="length", says=f"the answer cut after {percent} % of its characters")
    def cut_answer(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
        return cut(answer, percent / 100)


for _percent in (25, 50, 75):
    _register_cut(_percent)


@dataclass(frozen=True)
class Correlations:
    """How two quantities go together; None where one of them does not vary."""

    pearson: Estimate | None
    spearman: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """The document that reports hold."""
        return {"pearson": _document(self.pearson), "spearman": _document(self.spearman)}


@dataclass(frozen=True)
class LengthStatistics:
    """Scores beside lengths in characters, without any edit.

    Args:
        num_pairs: looked at.
        pooled: score and length over all answers of all prompts.
        within_prompt: the same for what is left when each prompt's mean is taken off; ranks are taken within the prompt, so that for pairs the rank
            correlation is P(longer scores higher) - P(longer scores lower).
        of_labels: the label (1 for chosen, 0 for rejected) in the place of the score, within prompt: what a scorer that only follows the labels shows.
        accuracy: share of pairs whose chosen answer scores higher, ties one half, by "chosen_longer", "chosen_shorter", "equal_length"; None where
            there is no such pair.
        difference_sd: standard deviation of length(chosen) - length(rejected), in characters.
        margin_slope: from the least-squares line of the margin, in standard deviations of the score, over the length difference, in its standard
            deviations; the labels are in the intercept. None where lengths do not vary.
        margin_at_equal_length: the intercept of that line.
        slope_per_copy: effect of one more copy of the last sentence, in standard deviations of the score: least squares through 0 over the repetition
            probes. None without their results.
    """

    num_pairs: int
    pooled: Correlations
    within_prompt: Correlations
    of_labels: Correlations
    accuracy: dict[str, Estimate | None]
    difference_sd: float
    margin_slope: Estimate | None
    margin_at_equal_length: Estimate | None
    slope_per_copy: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """Section `length` of the audit's document."""
        return {
            "num_pairs": self.num_pairs,
            "pooled": self.pooled.as_dict(),
            "within_prompt": self.within_prompt.as_dict(),
            "of_labels": self.of_labels.as_dict(),
            "accuracy": {name: _document(estimate) for name, estimate in self.accuracy.items()},
            "difference_sd": self.difference_sd,
            "margin_slope": _document(self.margin_slope),
            "margin_at_equal_length": _document(self.margin_at_equal_length),
            "slope_per_copy": _document(self.slope_per_copy),
        }


def _document(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.as_dict()


def length_statistics(
    pairs: Sequence[Preference],
    chosen_scores: Floats,
    rejected_scores: Floats,
    *,
    results: Sequence[ProbeResult] = (),
    seed: int = 0,
) -> LengthStatistics:
    """How scores and lengths go together, every interval a bootstrap over prompts.

    Args:
        pairs: labelled ones.
        chosen_scores: (n,) of their chosen answers.
        rejected_scores: (n,) of their rejected ones.
        results: of an audit on the same pairs; those of the repetition probes are used.
        seed: of the resamples.

    Raises:
        DataError: if there is no pair, or the scores are not one a pair.
    """
    n = len(pairs)
    if n == 0 or len(chosen_scores) != n or len(rejected_scores) != n:
        came = f"{n} pairs, {len(chosen_scores)} and {len(rejected_scores)} scores"
        raise DataError("at least one pair, with a score of either answer", came, "Score the pairs first.")
    names = [prompt_key(pair.prompt) for pair in pairs]
    clusters = cluster_codes(names)
    margins = np.asarray(chosen_scores, np.float64) - np.asarray(rejected_scores, np.float64)
    differences = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs], np.float64)
    answers = _answers(pairs, names, chosen_scores, rejected_scores)
    slope, intercept = _line(differences, margins, clusters, seed)
    outcomes = (np.sign(margins) + 1) / 2
    groups = {"chosen_longer": differences > 0, "chosen_shorter": differences < 0, "equal_length": differences == 0}
    return LengthStatistics(
        num_pairs=n,
        pooled=answers.pooled(seed),
        within_prompt=answers.within(answers.scores, seed),
        of_labels=answers.within(answers.labels, seed),
        accuracy={
            name: proportion(outcomes[rows], cluster_codes(clusters[rows]), seed=seed) if rows.any() else None
            for name, rows in groups.items()
        },
        difference_sd=float(differences.std()),
        margin_slope=slope,
        margin_at_equal_length=intercept,
        slope_per_copy=_slope_per_copy(results, margins, names, seed),
    )


@dataclass(frozen=True)
class _Answers:
    """Every answer once: (n,) scores, lengths, labels (the share of its pairs in which it was chosen), and codes of the prompts."""

    scores: Floats
    lengths: Floats
    labels: Floats
    clusters: NDArray[np.int64]

    def pooled(self, seed: int) -> Correlations:
        return Correlations(
            _correlation(self.scores, self.lengths, self.clusters, seed),
            _rank_correlation(self.scores, self.lengths, self.clusters, seed),
        )

    def within(self, values: Floats, seed: int) -> Correlations:
        centred = [_centred(one, self.clusters) for one in (values, self.lengths)]
        ranks = [_centred(_ranks_within(one, self.clusters), self.clusters) for one in (values, self.lengths)]
        return Correlations(
            _correlation(centred[0], centred[1], self.clusters, seed),
            _correlation(ranks[0], ranks[1], self.clusters, seed),
        )


def _answers(
    pairs: Sequence[Preference], names: Sequence[str], chosen_scores: Floats, rejected_scores: Floats
) -> _Answers:
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for pair, name, chosen, rejected in zip(pairs, names, chosen_scores, rejected_scores, strict=True):
        rows.setdefault((name, pair.chosen), []).append((float(chosen), 1.0))
        rows.setdefault((name, pair.rejected), []).append((float(rejected), 0.0))
    means = np.array([np.mean(one, axis=0) for one in rows.values()])
    lengths = np.array([len(answer) for _, answer in rows], np.float64)
    return _Answers(means[:, 0], lengths, means[:, 1], cluster_codes([name for name, _ in rows]))


def _centred(values: Floats, clusters: NDArray[np.int64]) -> Floats:
    return values - (np.bincount(clusters, weights=values) / np.bincount(clusters))[clusters]


def _ranks_within(values: Floats, clusters: NDArray[np.int64]) -> Floats:
    ranks = np.empty(len(values))
    order = np.argsort(clusters, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1):
        ranks[rows] = rankdata(values[rows])
    return ranks


def _correlation(x: Floats, y: Floats, clusters: NDArray[np.int64], seed: int) -> Estimate | None:
    """Pearson's r; None where a side does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)  # (n, 6)
    return cluster_bootstrap(lambda weights: _pearson(weights @ moments), clusters, seed=seed)


def _pearson(sums: Floats) -> Floats:
    """(R, 6) sums of 1, x, y, x^2, y^2 and x y -> (R,) correlations, 0 where a side does not vary."""
    count, x, y, xx, yy, xy = sums.T
    spread = np.sqrt(np.maximum(xx - x * x / count, 0) * np.maximum(yy - y * y / count, 0))
    together = xy - x * y / count
    r = np.divide(together, spread, out=np.zeros_like(together), where=spread > 1e-12)
    return np.asarray(np.clip(r, -1, 1))


def _rank_correlation(x: Floats, y: Floats, clusters: NDArray[np.int64], seed: int) -> Estimate | None:
    """Spearman's r, the ranks being taken anew in each resample; None where a side does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    ranks = [_weighted_ranks(x), _weighted_ranks(y)]

    def statistic(weights: Floats) -> Floats:
        total = weights.sum(axis=1, keepdims=True)
        a, b = (ranked(weights) / total - 0.5 for ranked in ranks)  # middle ranks have the mean (total + 1) / 2
        terms = [weights, weights * a, weights * b, weights * a * a, weights * b * b, weights * a * b]
        return _pearson(np.stack([term.sum(axis=1) for term in terms], axis=1))

    return cluster_bootstrap(statistic, clusters, seed=seed)


def _weighted_ranks(values: Floats) -> Callable[[Floats], Floats]:
    """From (R, n) how often each value was drawn to its middle rank among all that were drawn."""
    levels, codes = np.unique(values, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(levels)))

    def ranked(weights: Floats) -> Floats:
        of_level = np.add.reduceat(weights[:, order], starts, axis=1)  # (R, levels)
        middle = np.cumsum(of_level, axis=1) - of_level / 2 + 0.5
        return np.asarray(middle[:, codes])

    return ranked


def _line(
    differences: Floats, margins: Floats, clusters: NDArray[np.int64], seed: int
) -> tuple[Estimate | None, Estimate | None]:
    """Slope and intercept of the margin over the length difference, in the units of `LengthStatistics`."""
    spread = float(differences.std())
    if spread == 0 or not margins.any():
        return None, None
    x = differences / spread
    sums = np.stack([np.ones_like(x), x, margins, x * x, x * margins, margins * margins / 2], axis=1)  # (n, 6)

    def line(weights: Floats) -> tuple[Floats, Floats]:
        count, of_x, of_y, xx, xy, square = (weights @ sums).T
        unit = np.sqrt(square / count)
        variance = xx - of_x * of_x / count
        slope = np.divide(xy - of_x * of_y / count, variance, out=np.zeros_like(xy), where=variance > 1e-9 * count)
        unit[unit == 0] = 1.0  # a resample of ties only
        return slope / unit, (of_y - slope * of_x) / count / unit

    return (
        cluster_bootstrap(lambda weights: line(weights)[0], clusters, seed=seed),
        cluster_bootstrap(lambda weights: line(weights)[1], clusters, seed=seed),
    )


def _slope_per_copy(
    results: Sequence[ProbeResult], margins: Floats, names: Sequence[str], seed: int
) -> Estimate | None:
    """sum(k d_k) / sum(k^2) over all contrasts, k copies having the effect d_k, over the unit of the same resample."""
    copies = {f"repetition_{k}": float(k) for k in COPIES}
    used = [result for result in results if result.probe.name in copies]
    if not used or not margins.any():
        return None
    k = np.concatenate([np.full(len(result.differences), copies[result.probe.name]) for result in used])
    effects = np.concatenate([result.differences for result in used])
    prompts = [contrast.cluster for result in used for contrast in result.contrasts]
    clusters = cluster_codes(np.array([*prompts, *names], dtype=object).astype(str))
    squares, m = ScoreUnit.of(margins, names).squares, len(k)

    def statistic(weights: Floats) -> Floats:
        of_copies, of_pairs = weights[:, :m], weights[:, m:]
        slope = np.divide(
            of_copies @ (k * effects), of_copies @ (k * k), out=np.zeros(len(weights)), where=(of_copies @ k) > 0
        )
        unit = np.sqrt(
            np.divide(
                of_pairs @ squares, of_pairs.sum(axis=1), out=np.ones(len(weights)), where=of_pairs.sum(axis=1) > 0
            )
        )
        return np.asarray(slope / np.where(unit > 0, unit, 1.0))

    return replace(cluster_bootstrap(statistic, clusters, seed=seed), n=m)
