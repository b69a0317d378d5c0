"""Two scorers on the same pairs: which one is right more often, and could that be chance? Legend: `n` pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from rewardsmith import metrics
from rewardsmith.data.faults import EMPTY, content_fault
from rewardsmith.data.schema import Preference, prompt_key
from rewardsmith.errors import DataError
from rewardsmith.evaluation.pairwise import score_pairs
from rewardsmith.evaluation.slices import FEW_PROMPTS, Column, computed_columns, metadata_columns
from rewardsmith.scores import Scorer
from rewardsmith.significance import DISCORDANCE, LEVEL, design_effect, detectable_difference, holm, paired_test
from rewardsmith.stats import Estimate, Floats, cluster_codes, mean

# With fewer discordant pairs their share is no guide.
_FEW_DISCORDANT = 10


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: the document of `--json`."""

    document: dict[str, Any]

    @property
    def difference(self) -> Estimate:
        """Accuracy of the first scorer minus accuracy of the second."""
        return Estimate(**self.document["difference"])


def compare_scores(
    margins_a: Floats,
    margins_b: Floats,
    pairs: Sequence[Preference],
    *,
    names: tuple[str, str] = ("A", "B"),
    by: Sequence[str] | None = None,
    temperatures: tuple[float | None, float | None] = (None, None),
    seed: int = 0,
) -> Comparison:
    """Compare two scorers by their margins on the same labelled pairs, ties one half.

    Args:
        margins_a: (n,) raw margins of the first scorer.
        margins_b: (n,) of the second.
        pairs: (n,), none labelled as a tie.
        names: for the verdict.
        by: metadata columns of slices; all with few values where None.
        temperatures: of calibrated probabilities; log-losses are compared at these where both are known, else at 1.
        seed: of bootstraps and sign flips.

    Raises:
        DataError: if there is no pair, or a column of `by` is in no row.
    """
    if not len(margins_a) == len(margins_b) == len(pairs):
        raise DataError(
            "one margin of each scorer a pair",
            f"{len(margins_a)} and {len(margins_b)} margins for {len(pairs)} pairs",
            "Score the same pairs with both.",
        )
    if not pairs:
        raise DataError("at least one labelled pair", "none", "Check the data.")
    clusters = cluster_codes([prompt_key(pair.prompt) for pair in pairs])
    won_a, won_b = metrics.wins(margins_a), metrics.wins(margins_b)
    differences = won_a - won_b
    test = paired_test(differences, clusters, seed=seed)
    difference = mean(differences, clusters, seed=seed)
    # Of a handful of discordant pairs no share can be read: two copies of one model would seem to be told apart by nothing at all.
    enough = int((differences != 0).sum()) >= _FEW_DISCORDANT
    discordance = float((differences != 0).mean()) if enough else DISCORDANCE
    power = detectable_difference(clusters, discordance=discordance, design_effect=design_effect(differences, clusters))
    scales = [one if all(temperatures) and one is not None else 1.0 for one in temperatures]
    losses = [metrics.log_losses(margins, scale) for margins, scale in zip((margins_a, margins_b), scales, strict=True)]
    columns = computed_columns(pairs) | metadata_columns(pairs, by)
    document: dict[str, Any] = {
        "model_a": names[0],
        "model_b": names[1],
        "num_pairs": len(pairs),
        "num_prompts": int(clusters.max()) + 1,
        "accuracy_a": metrics.accuracy(margins_a, clusters, seed=seed).as_dict(),
        "accuracy_b": metrics.accuracy(margins_b, clusters, seed=seed).as_dict(),
        "difference": difference.as_dict(),
        "p_value": test.p_value,
        "test": test.test,
        "discordant": {"only_a": int((differences > 0).sum()), "only_b": int((differences < 0).sum())},
        "log_loss_difference": mean(losses[0] - losses[1], clusters, seed=seed).as_dict(),
        "log_loss_temperatures": scales,
        "detectable_difference": power.as_dict(),
        "slices": _slices(columns, differences, clusters, seed),
        "verdict": verdict(names, difference, test.p_value, power.difference),
    }
    return Comparison(document)


def compare(
    scorers: tuple[Scorer, Scorer],
    pairs: Sequence[Preference],
    *,
    names: tuple[str, str] = ("A", "B"),
    by: Sequence[str] | None = None,
    temperatures: tuple[float | None, float | None] = (None, None),
    seed: int = 0,
) -> Comparison:
    """Score the same pairs with two scorers and compare them; see `compare_scores`.

    Labelled ties, and rows without two answers, stand aside and are counted.

    Raises:
        DataError: if no pair is left, or a column of `by` is in no row.
        ScoreError: if a score is not finite.
    """
    whole = [pair for pair in pairs if content_fault(pair) != EMPTY]
    judged = [pair for pair in whole if not pair.tie]
    if not judged:
        raise DataError(
            "at least one pair with two answers and a winner", f"{len(pairs)} rows without", "Check the data."
        )
    margins_a, margins_b = (score_pairs(scorer, judged).margins for scorer in scorers)
    found = compare_scores(
        margins_a, margins_b, judged, names=told_apart(*names), by=by, temperatures=temperatures, seed=seed
    )
    counts = {"dropped": {EMPTY: len(pairs) - len(whole)}, "labelled_ties": len(whole) - len(judged)}
    return Comparison(found.document | counts)


def verdict(names: tuple[str, str], difference: Estimate, p_value: float, detectable: float) -> str:
    """The paired verdict in one sentence; "no difference" is never said, only what the sample could have shown."""
    points = f"{abs(100 * difference.value):.1f} points"
    interval = f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    p = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
    if p_value < LEVEL and difference.value != 0:
        better, worse = names if difference.value > 0 else names[::-1]
        return (
            f"{better} is right more often than {worse}, by {points} of accuracy ({interval}, {p}, n={difference.n:,})."
        )
    return (
        f"These pairs do not tell {names[0]} and {names[1]} apart: {100 * difference.value:+.1f} points of accuracy "
        f"({interval}, {p}, n={difference.n:,}); they would show a difference of {100 * detectable:.1f} points in four "
        f"of five tries."
    )


def _slices(
    columns: Mapping[str, Column], differences: Floats, clusters: NDArray[np.int64], seed: int
) -> list[dict[str, Any]]:
    """The paired difference on each part, Holm over all of them, the largest first."""
    found: list[dict[str, Any]] = []
    for column, values in columns.items():
        names = np.array(values, dtype=object)
        for value in dict.fromkeys(value for value in values if value is not None):
            part = names == value
            codes = cluster_codes(clusters[part])
            estimate = mean(differences[part], codes, seed=seed)
            tested = len(np.unique(codes)) >= FEW_PROMPTS
            p_value = paired_test(differences[part], codes, seed=seed).p_value if tested else None
            found.append({"column": column, "value": value, "difference": estimate.as_dict(), "p_value": p_value})
    adjusted = iter(holm([one["p_value"] for one in found if one["p_value"] is not None]))
    for one in found:
        p_adjusted = None if one["p_value"] is None else next(adjusted)
        one |= {"p_adjusted": p_adjusted, "flagged": p_adjusted is not None and p_adjusted < LEVEL}
    untested = 2.0  # after all that were tested
    return sorted(
        found,
        key=lambda one: (
            untested if one["p_adjusted"] is None else one["p_adjusted"],
            -abs(one["difference"]["value"]),
        ),
    )


_ROWS = (
    ("accuracy_a", "accuracy of A (ties one half)"),
    ("accuracy_b", "accuracy of B"),
    ("difference", "A minus B, paired"),
    ("log_loss_difference", "log-loss of A minus that of B, paired"),
)


def comparison_table(document: Mapping[str, Any], title: str) -> Table:
    """The numbers of a comparison, and the slices on which the two differ beyond the number of slices looked at."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("")
    for column in ("value", "95 % interval", "n", "p"):
        table.add_column(column, justify="right")

    def add(name: str, estimate: Estimate, p_value: float | None) -> None:
        interval = rf"\[{estimate.low:+.3f}, {estimate.high:+.3f}]"
        p = "" if p_value is None else f"{p_value:.2g}"
        table.add_row(name, f"{estimate.value:+.3f}", interval, f"{estimate.n:,}", p)

    for key, name in _ROWS:
        add(name, Estimate(**document[key]), document["p_value"] if key == "difference" else None)
    flagged = [one for one in document["slices"] if one["flagged"]]
    if flagged:
        table.add_section()
    for one in flagged:
        add(escape(f"A minus B, {one['column']} = {one['value']}"), Estimate(**one["difference"]), one["p_adjusted"])
    return table


def told_apart(name_a: str, name_b: str) -> tuple[str, str]:
    """Two names that can be told apart in a sentence."""
    return (name_a, name_b) if name_a != name_b else (f"{name_a} (A)", f"{name_b} (B)")
