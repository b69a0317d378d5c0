"""Judge a scorer on pairs: accuracy with its interval, content-blind baselines beside it, slices, and checks of the judging itself.

Evaluation drops nothing that has two answers: a pair whose sides are the same to the model is a tie and counted as collapsed. Rows that annotators
labelled as ties stand outside accuracy.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewardsmith import metrics
from rewardsmith.data.faults import EMPTY, content_fault
from rewardsmith.data.schema import Pair, Preference, prompt_key
from rewardsmith.data.traits import markdown_marks
from rewardsmith.errors import DataError, ScoreError
from rewardsmith.evaluation.reliability import margin_histogram, reliability, selective_accuracy
from rewardsmith.evaluation.slices import by_document, computed_columns, metadata_columns, slices
from rewardsmith.evaluation.temperature import fit_temperature
from rewardsmith.metrics import Codes
from rewardsmith.scores import Scorer, Scores, ScoreTable, TableScorer, checked
from rewardsmith.significance import design_effect, detectable_difference
from rewardsmith.stats import Estimate, Floats, cluster_codes, mean, proportion

_SWAP_PAIRS = 32
_HARDEST = 20
_TIE_WARNING = 0.01


@dataclass(frozen=True)
class PairScores:
    """The two scores of each evaluated pair; all arrays (n,), in the order of `pairs`."""

    pairs: list[Preference]
    chosen: Scores
    rejected: Scores
    chosen_table: ScoreTable | None
    rejected_table: ScoreTable | None

    @property
    def margins(self) -> Floats:
        """Score of chosen minus score of rejected, from float32 scores, float64."""
        return self.chosen.astype(np.float64) - self.rejected.astype(np.float64)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: the document of `--json`, and the per-pair scores it can be recomputed from.

    Args:
        document: see docs/evaluating.md.
        scores: of the pairs.
        warnings: that were given.
        attributions: {row of `scores.pairs`: document}, from `token_view`; empty where it was not asked for.
    """

    document: dict[str, Any]
    scores: PairScores
    warnings: list[str] = field(default_factory=list)
    attributions: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def accuracy(self) -> Estimate:
        """Pair accuracy, ties one half."""
        return Estimate(**self.document["accuracy"])

    def rows(self) -> list[dict[str, Any]]:
        """One row a pair: its texts and metadata, both scores, tokens and what was cut, and which words moved the scores where that was asked for.

        Every number of the document can be recomputed from them.
        """
        return [
            text_columns(pair) | pair_row(self.scores, i) | self._attributed(i)
            for i, pair in enumerate(self.scores.pairs)
        ]

    def _attributed(self, row: int) -> dict[str, Any]:
        return {"attributions": self.attributions[row]} if row in self.attributions else {}


def score_pairs(scorer: Scorer, pairs: Sequence[Preference]) -> PairScores:
    """Score both sides of every pair in one call.

    Raises:
        ScoreError: if a score is not finite.
    """
    texts: list[Pair] = [p.chosen_pair for p in pairs] + [p.rejected_pair for p in pairs]
    n = len(pairs)
    if isinstance(scorer, TableScorer):
        table = scorer.table(texts)
        checked(table.score, 2 * n)
        return PairScores(
            list(pairs), table.score[:n], table.score[n:], table.take(slice(None, n)), table.take(slice(n, None))
        )
    scores = checked(scorer.score(texts), 2 * n)
    return PairScores(list(pairs), scores[:n], scores[n:], None, None)


def text_columns(pair: Preference) -> dict[str, Any]:
    """What pairs.jsonl holds of a pair beside its scores; metadata under a key of their own, for a column of the data may be named like one of ours."""
    row: dict[str, Any] = {"id": pair.id, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    optional = {"rejected_prompt": pair.rejected_prompt, "margin": pair.margin, "votes": pair.votes}
    row |= {name: value for name, value in optional.items() if value is not None}
    return row | ({"tie": True} if pair.tie else {}) | {"metadata": pair.metadata}


def pair_row(scores: PairScores, i: int) -> dict[str, Any]:
    """The row of one pair in pairs.jsonl and in `score`'s output."""
    row: dict[str, Any] = {
        "id": scores.pairs[i].id,
        "score_chosen": float(scores.chosen[i]),
        "score_rejected": float(scores.rejected[i]),
    }
    for side, table in (("chosen", scores.chosen_table), ("rejected", scores.rejected_table)):
        if table is not None:
            row |= {f"tokens_{side}": int(table.tokens[i]), f"truncated_{side}": bool(table.truncated[i])}
    return row


def evaluate(
    scorer: Scorer,
    pairs: Sequence[Preference],
    *,
    by: Sequence[str] | None = None,
    temperature: float | None = None,
    seed: int = 0,
    swap_tolerance: float = 1e-4,
) -> Evaluation:
    """Judge a scorer on preference pairs.

    Args:
        scorer: anything with `score`; with `table` too, cuts and collapses are counted.
        pairs: labelled pairs; those without two answers are dropped and counted.
        by: metadata columns to slice by; all with few values where None (see `slices.metadata_columns`).
        temperature: of calibrated probabilities; the key `calibrated` is None without one.
        seed: of the bootstrap.
        swap_tolerance: how far, times max(1, |s|), a score may move when the sides are exchanged.

    Raises:
        DataError: if no pair is left, or a column of `by` is in no row.
        ScoreError: if a score is not finite, or the judging fails its own swap test.
    """
    usable = [pair for pair in pairs if content_fault(pair) != EMPTY]
    if not any(not pair.tie for pair in usable):
        raise DataError(
            "at least one pair with two answers and a winner", f"{len(pairs)} rows without", "Check the data."
        )
    scores = score_pairs(scorer, usable)
    decided = np.array([not pair.tie for pair in usable])
    # "Equal" clusters: pairs that share a prompt stand or fall together in a resample.
    clusters = cluster_codes([prompt_key(pair.prompt) for pair, keep in zip(usable, decided, strict=True) if keep])
    judged = [pair for pair, keep in zip(usable, decided, strict=True) if keep]
    margins = scores.margins[decided]
    chosen, rejected = scores.chosen[decided].astype(np.float64), scores.rejected[decided].astype(np.float64)
    accuracy = metrics.accuracy(margins, clusters, seed=seed)
    ties = metrics.ties(margins, clusters, seed=seed)
    messages = _messages(margins, ties)
    blind = _blind_wins(judged, scores, decided)
    columns = metadata_columns(judged, by)
    found = slices(columns | computed_columns(judged), margins, clusters, seed=seed)
    document: dict[str, Any] = {
        "num_pairs": len(judged),
        "num_prompts": int(clusters.max()) + 1,
        "accuracy": accuracy.as_dict(),
        "ties": ties.as_dict(),
        "auc": metrics.auc(margins, clusters, seed=seed).as_dict(),
        "pooled_auc": metrics.pooled_auc(chosen, rejected, clusters, seed=seed).as_dict(),
        **_probabilistic(margins, clusters, 1.0, seed),
        "calibrated": None
        if temperature is None
        else {"temperature": temperature, **_probabilistic(margins, clusters, temperature, seed)},
        "temperature_here": _temperature_here(margins, clusters),
        "selective": selective_accuracy(margins, clusters),
        "mean_margin": mean(margins, clusters, seed=seed).as_dict(),
        "margins": margin_histogram(margins),
        "baselines": {name: proportion(won, clusters, seed=seed).as_dict() for name, won in blind.items()},
        "over_baselines": {
            name: mean(metrics.wins(margins) - won, clusters, seed=seed).as_dict() for name, won in blind.items()
        },
        "by": by_document(columns, found),
        "slices": [one.as_dict() for one in found],
        "hardest": _hardest(usable, np.flatnonzero(decided), margins),
        "detectable_difference": detectable_difference(
            clusters, design_effect=design_effect(metrics.wins(margins), clusters)
        ).as_dict(),
        "dropped": {EMPTY: len(pairs) - len(usable)},
        "truncated": _count_truncated(scores),
        "collapsed": _count_collapsed(scores),
        "special_strings": _count_special(scores),
        "labelled_ties": int((~decided).sum()),
        "swap_test": _swap_test(scorer, scores, swap_tolerance),
    }
    return Evaluation(document, scores, messages)


def _probabilistic(margins: Floats, clusters: Codes, temperature: float, seed: int) -> dict[str, Any]:
    null = metrics.ece_null(margins, clusters, temperature=temperature, seed=seed)
    return {
        "log_loss": metrics.log_loss(margins, clusters, temperature=temperature, seed=seed).as_dict(),
        "brier": metrics.brier(margins, clusters, temperature=temperature, seed=seed).as_dict(),
        "ece": metrics.ece(margins, clusters, temperature=temperature, seed=seed).as_dict(),
        "ece_null": null.null.as_dict(),
        "ece_excess": null.excess,
        "ece_p_value": null.p_value,
        "reliability": reliability(margins, clusters, temperature=temperature),
    }


def _temperature_here(margins: Floats, clusters: Codes) -> dict[str, Any] | None:
    """The temperature that these very pairs ask for: a diagnosis, never a claim; None where they give none."""
    try:
        return fit_temperature(margins, clusters).estimate.as_dict()
    except DataError:
        return None


def _hardest(pairs: Sequence[Preference], judged: Codes, margins: Floats) -> dict[str, list[dict[str, Any]]]:
    """The most confidently wrong pairs, and those that the scorer can hardly decide, by their rows in pairs.jsonl: ids may repeat.

    Args:
        pairs: all of the evaluation.
        judged: (n,) the rows of those with a winner.
        margins: (n,) of these.
    """
    order = np.argsort(margins, kind="stable")
    wrong = [int(i) for i in order[:_HARDEST] if margins[i] < 0]
    close = [int(i) for i in np.argsort(np.abs(margins), kind="stable")[:_HARDEST]]
    named = {"most_wrong": wrong, "closest": close}
    return {
        name: [{"row": int(judged[i]), "id": pairs[judged[i]].id, "margin": float(margins[i])} for i in places]
        for name, places in named.items()
    }


def _messages(margins: Floats, ties: Estimate) -> list[str]:
    messages = []
    if ties.value == 1.0:
        messages.append("every pair is a tie: the scorer is constant")
    elif ties.value > _TIE_WARNING:
        messages.append(f"{ties.value:.1%} of the pairs are exact ties: check truncation and precision")
    for message in messages:
        warnings.warn(message, stacklevel=3)
    return messages


def _blind_wins(pairs: Sequence[Preference], scores: PairScores, decided: Any) -> dict[str, Floats]:
    """Which pairs rules that never read the content get right: 1, 0, or 0.5 where they cannot say."""

    def rule(chosen: Sequence[float] | Any, rejected: Sequence[float] | Any) -> Floats:
        return metrics.wins(np.asarray(chosen, float) - np.asarray(rejected, float))

    lengths = [len(p.chosen) for p in pairs], [len(p.rejected) for p in pairs]
    found = {
        "longer": rule(*lengths),
        "shorter": rule(*lengths[::-1]),
        "markdown": rule([markdown_marks(p.chosen) for p in pairs], [markdown_marks(p.rejected) for p in pairs]),
    }
    if scores.chosen_table is not None and scores.rejected_table is not None:
        found["longer_tokens"] = rule(
            scores.chosen_table.full_tokens[decided], scores.rejected_table.full_tokens[decided]
        )
    return found


def _count_truncated(scores: PairScores) -> int | None:
    """Pairs of which a side was cut; None where the scorer does not say."""
    if scores.chosen_table is None or scores.rejected_table is None:
        return None
    return int((scores.chosen_table.truncated | scores.rejected_table.truncated).sum())


def _count_collapsed(scores: PairScores) -> int | None:
    """Pairs whose two sides are the same ids to the model; None where the scorer does not say."""
    if scores.chosen_table is None or scores.rejected_table is None:
        return None
    return int((scores.chosen_table.digest == scores.rejected_table.digest).sum())


def _count_special(scores: PairScores) -> int | None:
    """Pairs whose texts hold special-token strings, which were read as plain text; None where the scorer does not say."""
    if scores.chosen_table is None or scores.rejected_table is None:
        return None
    return int(((scores.chosen_table.special_strings + scores.rejected_table.special_strings) > 0).sum())


def _swap_test(scorer: Scorer, scores: PairScores, tolerance: float) -> dict[str, Any]:
    """Score some pairs again with the sides exchanged: each answer must keep its score, and the accuracy must become 1 - accuracy.

    Raises:
        ScoreError: if it does not; then no accuracy of this scorer means anything.
    """
    some = scores.pairs[:_SWAP_PAIRS]
    n = len(some)
    swapped: list[Pair] = [p.rejected_pair for p in some] + [p.chosen_pair for p in some]
    again = checked(scorer.score(swapped), 2 * n).astype(np.float64)
    first = np.concatenate([scores.rejected[:n], scores.chosen[:n]]).astype(np.float64)
    scale = np.maximum(1.0, np.abs(first))
    worst = float(np.max(np.abs(again - first) / scale))
    accuracy = float(metrics.wins(scores.margins[:n]).mean())
    # In the swapped set the rejected answers stand as chosen.
    mirrored = float(metrics.wins(again[:n] - again[n:]).mean())
    # A pair nearer to a tie than the tolerance may fall on either side.
    close = float((np.abs(scores.margins[:n]) <= 2 * tolerance * np.maximum(scale[:n], scale[n:])).mean())
    if worst > tolerance or abs(accuracy + mirrored - 1) > close + 1e-9:
        raise ScoreError(
            "the same score for an answer on either side of a pair",
            f"scores up to {worst:.2e} x max(1, |s|) apart, accuracy {accuracy:.4f} and {mirrored:.4f} when swapped",
            "The scorer is not a function of (prompt, answer); mend it before it is judged.",
        )
    return {"rescored_pairs": n, "accuracy": accuracy, "swapped_accuracy": mirrored, "max_difference": worst}
