"""Which of two policies answers better, in the eyes of a scorer: win rates over the prompts that both have answered.

Several answers of a policy to one prompt: each answer of A is compared with each of B, and the mean over these comparisons is the outcome of the prompt. Every prompt
counts once, so what is drawn anew in an interval, or has its sign flipped in a test, is a prompt.

Legend: `n` prompts, `m` comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from rewardsmith.data.schema import Pair, prompt_key
from rewardsmith.evaluation.slices import FEW_PROMPTS, metadata_columns
from rewardsmith.functions import Function, as_scorer
from rewardsmith.metrics import win_probabilities, wins
from rewardsmith.scores import DomainDetector, Scorer, Scores, TableScorer, checked
from rewardsmith.significance import LEVEL, holm, mcnemar, sign_flips
from rewardsmith.stats import FEW_CLUSTERS, Estimate, Floats, mean, proportion
from rewardsmith.use.answers_matched import MatchedAnswers
from rewardsmith.use.judges import winner
from rewardsmith.use.length_control import LengthControl, length_controlled

LIKE_LENGTH = 0.1
"""Answers are of like length where they differ by less than this share of the longer one."""
FEW_MATCHED = 30
"""With fewer prompts a length-matched win rate is not to be relied on."""
_ONE_SIDED = 0.9
_TIE_WARNING = 0.01


@dataclass(frozen=True)
class Comparisons:
    """Every answer of A beside every answer of B, prompt by prompt; all arrays (m,).

    Args:
        prompt: which prompt, 0..n-1.
        answer_a: which answer of A, counted over all prompts.
        answer_b: which answer of B.
        score_a: float32.
        score_b: float32.
        length_a: characters.
        length_b: characters.
        truncated: of all answers that are compared, so many were cut before they were scored; None where the scorer does not tell.
        collapsed: comparisons of two different answers that are the same to the model.
    """

    prompt: NDArray[np.int64]
    answer_a: NDArray[np.int64]
    answer_b: NDArray[np.int64]
    score_a: Scores
    score_b: Scores
    length_a: NDArray[np.int64]
    length_b: NDArray[np.int64]
    truncated: int | None
    collapsed: int

    @property
    def margins(self) -> Floats:
        """Score of A minus score of B, float64."""
        return self.score_a.astype(np.float64) - self.score_b.astype(np.float64)

    @property
    def num_prompts(self) -> int:
        """How many."""
        return int(self.prompt[-1]) + 1

    @property
    def weights(self) -> Floats:
        """Of each comparison: those of a prompt add up to 1."""
        return np.asarray(1 / np.bincount(self.prompt)[self.prompt])

    def by_prompt(self, values: Floats) -> Floats:
        """The mean of values over each prompt's comparisons, (m,) -> (n,)."""
        return np.asarray(np.bincount(self.prompt, weights=values) / np.bincount(self.prompt))


def compare_answers(scorer: Scorer | Function, matched: MatchedAnswers) -> Comparisons:
    """Score every distinct answer once, in an order that does not depend on which policy is called A, and set answers beside each other.

    So a text has one score wherever it stands, texts that are the same to the model (cut to the same tokens) have one too, and exchanged policies have exchanged results.

    Raises:
        ScoreError: if a score is not finite.
    """
    able = as_scorer(scorer)
    sides: list[list[Pair]] = [matched.texts("a"), matched.texts("b")]
    keys = [[(prompt_key(prompt), answer) for prompt, answer in side] for side in sides]
    texts = {key: pair for side, pairs in zip(keys, sides, strict=True) for key, pair in zip(side, pairs, strict=True)}
    order = sorted(texts)
    place = {key: i for i, key in enumerate(order)}
    asked = [texts[key] for key in order]
    identity, truncated = np.arange(len(order)), None
    if isinstance(able, TableScorer):
        table = able.table(asked)
        scores = checked(table.score, len(asked))
        _, first, copies = np.unique(table.digest, return_index=True, return_inverse=True)
        identity = first[copies]
        scores, cut = scores[identity], table.truncated
        truncated = sum(int(cut[place[key]]) for side in keys for key in side)
    else:
        scores = checked(able.score(asked), len(asked))
    rows_a, rows_b = (np.array([place[key] for key in side]) for side in keys)
    answer_a, answer_b, prompt = _all_pairs([len(one) for one in matched.a], [len(one) for one in matched.b])
    lengths = np.array([len(answer) for _, answer in asked])
    at_a, at_b = rows_a[answer_a], rows_b[answer_b]
    return Comparisons(
        prompt=prompt,
        answer_a=answer_a,
        answer_b=answer_b,
        score_a=scores[at_a],
        score_b=scores[at_b],
        length_a=lengths[at_a],
        length_b=lengths[at_b],
        truncated=truncated,
        collapsed=int(((identity[at_a] == identity[at_b]) & (at_a != at_b)).sum()),
    )


def _all_pairs(num_a: Sequence[int], num_b: Sequence[int]) -> tuple[NDArray[np.int64], ...]:
    """(answer of A, answer of B, prompt) of every comparison; answers are counted over all prompts."""
    firsts, seconds, prompts = [], [], []
    start_a = start_b = 0
    for i, (a, b) in enumerate(zip(num_a, num_b, strict=True)):
        firsts.append(np.repeat(np.arange(start_a, start_a + a), b))
        seconds.append(np.tile(np.arange(start_b, start_b + b), a))
        prompts.append(np.full(a * b, i))
        start_a, start_b = start_a + a, start_b + b
    return tuple(np.concatenate(parts).astype(np.int64) for parts in (firsts, seconds, prompts))


@dataclass(frozen=True)
class SliceWinRate:
    """The win rate on some of the prompts.

    Args:
        column: of the metadata.
        value: of the column.
        win_rate: of A.
        p_value: of no difference between the policies there; None with fewer than ten prompts.
        p_adjusted: by Holm over all tested slices.
    """

    column: str
    value: str
    win_rate: Estimate
    p_value: float | None
    p_adjusted: float | None

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "column": self.column,
            "value": self.value,
            "win_rate": self.win_rate.as_dict(),
            "p_value": self.p_value,
            "p_adjusted": self.p_adjusted,
        }


@dataclass(frozen=True)
class WinRates:
    """How often A's answers score higher than B's.

    Args:
        win_rate: mean of [A's score is higher] + [equal] / 2.
        ties: share of exactly equal scores.
        expected: the mean of sigmoid(margin / temperature), by calibrated probability; None without a temperature.
        mean_margin: score of A minus score of B.
        p_value: two-sided, of "neither policy is better".
        test: that gave it: the exact sign test where every prompt is won, lost or even, else flips of the prompts' signs with their sizes.
        length_controlled: at equal length, from wins.
        length_controlled_expected: the same from calibrated probabilities; None without a temperature.
        length_matched: over comparisons of like length alone; None where there are none.
        longer: how often A's answer is the longer one, equal lengths one half.
        longer_wins: how often the longer answer wins, equal lengths one half.
        mean_length_difference: characters of A minus characters of B.
        slices: by metadata, in the order of columns and values.
        outcomes: (n,) how far A wins each prompt.
        comparisons: behind them.
        matched: the answers.
        warnings: what a reader must know before trusting the numbers.
    """

    win_rate: Estimate
    ties: Estimate
    expected: Estimate | None
    mean_margin: Estimate
    p_value: float
    test: str
    length_controlled: LengthControl
    length_controlled_expected: LengthControl | None
    length_matched: Estimate | None
    longer: Estimate
    longer_wins: Estimate
    mean_length_difference: Estimate
    slices: list[SliceWinRate]
    outcomes: Floats
    comparisons: Comparisons
    matched: MatchedAnswers
    warnings: list[str] = field(default_factory=list)

    @property
    def winner(self) -> str:
        """Who wins: "A" or "B" where both the interval leaves one half out and the test is below its level, else "undecided"."""
        return winner(self.win_rate) if self.p_value < LEVEL else "undecided"

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        by: dict[str, dict[str, Any]] = {}
        for one in self.slices:
            by.setdefault(one.column, {})[one.value] = one.win_rate.as_dict()
        controlled = self.length_controlled_expected
        return {
            "num_prompts": self.win_rate.n,
            "num_comparisons": len(self.comparisons.prompt),
            "win_rate": self.win_rate.as_dict(),
            "p_value": self.p_value,
            "test": self.test,
            "winner": self.winner,
            "ties": self.ties.as_dict(),
            "expected_win_rate": _maybe(self.expected),
            "mean_margin": self.mean_margin.as_dict(),
            "length_controlled_win_rate": self.length_controlled.win_rate.as_dict(),
            "length_controlled_expected_win_rate": _maybe(controlled.win_rate if controlled else None),
            "length_control": self.length_controlled.as_dict(),
            "length_matched_win_rate": _maybe(self.length_matched),
            "length": {
                "unit": "characters",
                "mean_difference": self.mean_length_difference.as_dict(),
                "longer": self.longer.as_dict(),
                "longer_wins": self.longer_wins.as_dict(),
            },
            "counts": {
                **self.matched.counts,
                "truncated": self.comparisons.truncated,
                "collapsed": self.comparisons.collapsed,
            },
            "by": by,
            "slices": [one.as_dict() for one in self.slices],
            "warnings": list(self.warnings),
            "verdict": self.verdict(),
        }

    def verdict(self) -> str:
        """One sentence; "they are equal" is never said."""
        rate, controlled = self.win_rate, self.length_controlled.win_rate
        shown = f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        facts = f"A wins {shown} of {rate.n:,} prompts ({p})"
        equal = (
            f"{100 * controlled.value:.1f} % [{100 * controlled.low:.1f}, {100 * controlled.high:.1f}] at equal length"
        )
        if self.length_controlled.note is not None:  # the plain rate stands in its place: it says nothing of length
            equal = "what it would be at equal length cannot be told"
        if self.winner == "undecided":
            return f"This scorer does not tell the policies apart on these prompts: {facts}; {equal}."
        better = f"This scorer prefers {self.winner}: {facts}"
        if self.length_controlled.note is not None:
            return f"{better}; {equal}."
        if winner(controlled) == self.winner:
            return f"{better}; still {equal}."
        if winner(controlled) == "undecided":
            return f"{better}; {equal}, which does not tell them apart: length may be all there is to it."
        return f"{better}; but {equal}: length turns the verdict around."

    def rows(self) -> list[dict[str, Any]]:
        """One row a prompt: its answers and their scores, and how far A wins. Every number can be computed again from them."""
        found, matched = self.comparisons, self.matched
        scores = [
            dict(zip(which.tolist(), scores.tolist(), strict=True))
            for which, scores in ((found.answer_a, found.score_a), (found.answer_b, found.score_b))
        ]
        of_a, of_b = (iter([by_answer[i] for i in sorted(by_answer)]) for by_answer in scores)
        return [
            {
                "prompt": prompt,
                "answers_a": list(a),
                "answers_b": list(b),
                "scores_a": [next(of_a) for _ in a],
                "scores_b": [next(of_b) for _ in b],
                "outcome": float(outcome),
                "metadata": metadata,
            }
            for prompt, a, b, metadata, outcome in zip(
                matched.prompts, matched.a, matched.b, matched.metadata, self.outcomes, strict=True
            )
        ]


def win_rates(
    scorer: Scorer | Function,
    matched: MatchedAnswers,
    *,
    temperature: float | None = None,
    by: Sequence[str] | None = None,
    seed: int = 0,
) -> WinRates:
    """Compare two policies by a scorer.

    Args:
        scorer: a scorer, or a function of (prompt, answer).
        matched: the answers of both; `match_answers`.
        temperature: of calibrated probabilities; None where none was fitted.
        by: metadata columns of slices; all with 2 to 20 values where None.
        seed: of the bootstraps and sign flips.

    Raises:
        DataError: if a column of `by` is in no row.
        ScoreError: if a score is not finite.

    >>> matched = match_answers(rows_a, rows_b)  # doctest: +SKIP
    >>> print(win_rates(RewardModel.load("runs/mine"), matched).win_rate)  # doctest: +SKIP
    0.621 [0.552, 0.686] (n=200)
    """
    columns = metadata_columns(
        matched.as_preferences(), by
    )  # a column that is not there is said before anything is scored
    found = compare_answers(scorer, matched)
    margins, weights = found.margins, found.weights
    won = wins(margins)
    outcomes = found.by_prompt(won)
    win_rate = share(outcomes, seed=seed)
    p_value, test = sign_test(outcomes, seed=seed)
    differences = found.length_a - found.length_b
    longer = wins(differences.astype(np.float64))
    prompts = np.arange(len(outcomes))
    controlled = length_controlled(won, differences, weights, found.prompt, win_rate, seed=seed)
    expected = controlled_expected = None
    if temperature is not None:
        chances = win_probabilities(margins, temperature)
        expected = mean(found.by_prompt(chances), prompts, seed=seed)
        expected = Estimate(
            expected.value, max(0.0, expected.low), min(1.0, expected.high), expected.n, expected.method
        )
        controlled_expected = length_controlled(chances, differences, weights, found.prompt, expected, seed=seed)
    # The longer answer wins where A is longer and wins, or is shorter and loses: 1/2 + (2 won - 1) (2 longer - 1) / 2.
    longer_wins = 0.5 + (2 * won - 1) * (2 * longer - 1) / 2
    rates = WinRates(
        win_rate=win_rate,
        ties=share(found.by_prompt((margins == 0).astype(np.float64)), seed=seed),
        expected=expected,
        mean_margin=mean(found.by_prompt(margins), prompts, seed=seed),
        p_value=p_value,
        test=test,
        length_controlled=controlled,
        length_controlled_expected=controlled_expected,
        length_matched=_length_matched(found, won, seed),
        longer=share(found.by_prompt(longer), seed=seed),
        longer_wins=share(found.by_prompt(longer_wins), seed=seed),
        mean_length_difference=mean(found.by_prompt(differences.astype(np.float64)), prompts, seed=seed),
        slices=_slices(columns, outcomes, seed),
        outcomes=outcomes,
        comparisons=found,
        matched=matched,
    )
    rates.warnings.extend(_warnings(rates))
    return rates


def share(outcomes: Floats, *, seed: int = 0) -> Estimate:
    """The mean of one value in [0, 1] a prompt.

    Wilson, as for the accuracy of pairs, where every prompt is won, lost or even, where nothing varies, and of few prompts; else the bootstrap, for a mean of several comparisons varies
    less than one of them.
    """
    prompts = np.arange(len(outcomes))
    whole = bool(np.isin(outcomes, (0.0, 0.5, 1.0)).all())
    if whole or len(outcomes) < FEW_CLUSTERS or outcomes.min() == outcomes.max():
        return proportion(outcomes, prompts, seed=seed)
    return mean(outcomes, prompts, seed=seed)


def sign_test(outcomes: Floats, *, seed: int = 0) -> tuple[float, str]:
    """(two-sided p-value of "either policy could have been either", the test).

    >>> sign_test(np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.5]))
    (0.21875, 'exact sign test')
    """
    if np.isin(outcomes, (0.0, 0.5, 1.0)).all():
        return mcnemar(int((outcomes > 0.5).sum()), int((outcomes < 0.5).sum())), "exact sign test"
    return sign_flips(outcomes - 0.5, np.arange(len(outcomes)), seed=seed), "sign flips over prompts"


def _length_matched(found: Comparisons, won: Floats, seed: int) -> Estimate | None:
    """The win rate over comparisons of like length, each prompt that has one counting once."""
    shorter, longer = np.minimum(found.length_a, found.length_b), np.maximum(found.length_a, found.length_b)
    like = longer - shorter < LIKE_LENGTH * longer
    like |= longer == 0  # two empty answers
    if not like.any():
        return None
    _, codes = np.unique(found.prompt[like], return_inverse=True)
    return share(np.bincount(codes, weights=won[like]) / np.bincount(codes), seed=seed)


def _slices(columns: Mapping[str, Sequence[str | None]], outcomes: Floats, seed: int) -> list[SliceWinRate]:
    found = []
    for column, values in columns.items():
        names = np.array(values, dtype=object)
        for value in sorted({value for value in values if value is not None}):
            part = outcomes[names == value]
            p_value = sign_test(part, seed=seed)[0] if len(part) >= FEW_PROMPTS else None
            found.append((column, value, share(part, seed=seed), p_value))
    adjusted = iter(holm([p_value for *_, p_value in found if p_value is not None]))
    return [SliceWinRate(*one, None if one[3] is None else next(adjusted)) for one in found]


def _warnings(rates: WinRates) -> list[str]:
    counts, said = rates.matched.counts, []
    for side in ("a", "b"):
        name = side.upper()
        if empty := counts[f"empty_{side}"]:
            said.append(f"{empty:,} answers of {name} are empty; they are scored like any other")
        if alone := counts[f"prompts_only_{side}"]:
            said.append(f"{alone:,} prompts that {name} alone has answered are left out")
        if repeated := counts[f"repeated_{side}"]:
            said.append(f"{repeated:,} answers of {name} repeat another of the same prompt; they stay")
    if rates.comparisons.truncated:
        total = counts["answers_a"] + counts["answers_b"]
        said.append(f"{rates.comparisons.truncated:,} of {total:,} texts were cut before they were scored")
    if rates.comparisons.collapsed:
        said.append(f"{rates.comparisons.collapsed:,} comparisons are of answers that are the same after the cut: ties")
    if rates.ties.value > _TIE_WARNING:
        said.append(f"{100 * rates.ties.value:.1f} % of the comparisons are ties")
    if not 1 - _ONE_SIDED < rates.longer.value < _ONE_SIDED and rates.length_controlled.note is None:
        longer, often = ("A", rates.longer.value) if rates.longer.value > 0.5 else ("B", 1 - rates.longer.value)
        said.append(
            f"{longer}'s answer is the longer one in {100 * often:.0f} % of the comparisons: the win rate at equal length is extrapolated"
        )
    if rates.length_controlled.note is not None:
        said.append(f"no length control: {rates.length_controlled.note}")
    matched = rates.length_matched
    if matched is None or matched.n < FEW_MATCHED:
        said.append(
            f"{0 if matched is None else matched.n} prompts have answers of like length; fewer than {FEW_MATCHED} say little"
        )
    return said


@dataclass(frozen=True)
class OutsideDomain:
    """How much of what a policy says lies outside of what the reward model is known to work on.

    Args:
        share_a: of A's answers (with their prompts) that the detector flags, each prompt counting once.
        share_b: of B's.
        level: that it flags of its own reference, too.
        win_rate_inside: over comparisons of which neither side is flagged; None where there are none.
    """

    share_a: Estimate
    share_b: Estimate
    level: float
    win_rate_inside: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "outside_a": self.share_a.as_dict(),
            "outside_b": self.share_b.as_dict(),
            "level": self.level,
            "win_rate_inside": _maybe(self.win_rate_inside),
        }

    @property
    def warnings(self) -> list[str]:
        """Where more is flagged than the detector's level explains."""
        return [
            f"{100 * one.value:.0f} % of {name}'s answers [{100 * one.low:.0f}, {100 * one.high:.0f}] lie outside of the domain that the reward model is known to work on "
            f"({100 * self.level:.0f} % of its own would): what it says of them is not vouched for"
            for name, one in (("A", self.share_a), ("B", self.share_b))
            if one.low > self.level
        ]


def outside_domain(detector: DomainDetector, rates: WinRates, *, level: float, seed: int = 0) -> OutsideDomain:
    """Ask a detector about the answers of both policies.

    Args:
        detector: see `DomainDetector`.
        rates: of the policies.
        level: of the detector.
        seed: of the bootstraps.
    """
    found, flags, shares = rates.comparisons, {}, {}
    for side, answers in (("a", rates.matched.a), ("b", rates.matched.b)):
        judged = detector.flags(rates.matched.texts(side))
        flags[side] = np.array([one.outside for one in judged], dtype=np.float64)
        counts = np.array([len(some) for some in answers])
        prompts = np.repeat(np.arange(len(counts)), counts)
        shares[side] = share(np.bincount(prompts, weights=flags[side]) / counts, seed=seed)
    inside = (flags["a"][found.answer_a] == 0) & (flags["b"][found.answer_b] == 0)
    win_rate = None
    if inside.any():
        _, codes = np.unique(found.prompt[inside], return_inverse=True)
        win_rate = share(np.bincount(codes, weights=wins(found.margins)[inside]) / np.bincount(codes), seed=seed)
    return OutsideDomain(shares["a"], shares["b"], level, win_rate)


def _maybe(estimate: Estimate | None) -> dict[str, Any] | None:
    return estimate.as_dict() if estimate else None


_ROWS = (
    ("win_rate", "A wins (ties one half)"),
    ("ties", "exact ties"),
    ("expected_win_rate", "A wins, by calibrated probability"),
    ("length_controlled_win_rate", "A wins, at equal length (model)"),
    ("length_controlled_expected_win_rate", "... by calibrated probability"),
    ("length_matched_win_rate", "A wins, answers of like length"),
    ("mean_margin", "score of A minus score of B"),
)
_LENGTH_ROWS = (
    ("longer", "A's answer is the longer one"),
    ("longer_wins", "the longer answer wins"),
    ("mean_difference", "characters of A minus characters of B"),
)
_FEW_VALUES = 10


def win_rates_table(document: Mapping[str, Any], title: str, *, by: Sequence[str] = ()) -> Table:
    """The numbers of a document for people; slices of columns of few values, and of those named in `by`."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("")
    for column in ("value", "95 % interval", "n"):
        table.add_column(column, justify="right")

    def add(name: str, found: Mapping[str, Any] | None, style: str = "") -> None:
        if found is not None:
            digits = 0 if abs(found["value"]) >= 100 else 3
            low, high = f"{found['low']:.{digits}f}", f"{found['high']:.{digits}f}"
            table.add_row(name, f"{found['value']:.{digits}f}", rf"\[{low}, {high}]", f"{found['n']:,}", style=style)

    for key, name in _ROWS:
        add(name, document[key], "bold" if key == "win_rate" else "")
    table.add_section()
    for key, name in _LENGTH_ROWS:
        add(name, document["length"][key])
    if domain := document.get("domain"):
        table.add_section()
        add("A's answers outside of the domain", domain["outside_a"])
        add("B's answers outside of the domain", domain["outside_b"])
        add("A wins, both inside", domain["win_rate_inside"])
    for column, values in document["by"].items():
        if column in by or len(values) <= _FEW_VALUES:
            table.add_section()
            for value, estimate in values.items():
                add(escape(f"A wins, {column} = {value}"), estimate)
    return table
