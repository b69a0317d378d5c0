"""Where a scorer is weak: accuracy on parts of the pairs, each beside the rest, with the number of parts looked at paid for.

Legend: `n` pairs, `C` prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from rewardsmith import metrics
from rewardsmith.data.schema import Preference
from rewardsmith.errors import DataError
from rewardsmith.significance import LEVEL, holm
from rewardsmith.stats import Estimate, Floats, cluster_codes

MAX_VALUES = 20
"""A metadata column with more values than this is no slice unless it is asked for."""
FEW_PROMPTS = 10
"""A slice of fewer prompts is shown and not tested: its interval says enough."""
_NUM_BINS = 4
_LENGTHS = (200, 500, 1000, 2000, 4000)

Column = list[str | None]


@dataclass(frozen=True, slots=True)
class Slice:
    """One part of the pairs.

    Args:
        column: a metadata column, or one of `computed_columns`.
        value: of the column.
        accuracy: on the part, ties one half.
        difference: accuracy on the part minus accuracy on all other pairs that have the column; None where there are no others.
        p_value: two-sided, of no difference; None where the part or the rest has fewer than ten prompts.
        p_adjusted: by Holm over all tested slices of the evaluation.
    """

    column: str
    value: str
    accuracy: Estimate
    difference: Estimate | None
    p_value: float | None
    p_adjusted: float | None = None

    @property
    def flagged(self) -> bool:
        """Whether the scorer is worse here than elsewhere, beyond what looking at so many slices explains."""
        return (
            self.p_adjusted is not None
            and self.p_adjusted < LEVEL
            and self.difference is not None
            and self.difference.value < 0
        )

    def as_dict(self) -> dict[str, Any]:
        """The document that reports hold."""
        return {
            "column": self.column,
            "value": self.value,
            "accuracy": self.accuracy.as_dict(),
            "difference": self.difference.as_dict() if self.difference else None,
            "p_value": self.p_value,
            "p_adjusted": self.p_adjusted,
            "flagged": self.flagged,
        }


def metadata_columns(pairs: Sequence[Preference], by: Sequence[str] | None) -> dict[str, Column]:
    """The values of metadata columns as texts, (n,) each; None where a pair has no value.

    Args:
        pairs: to look at.
        by: the columns; all with 2 to 20 values where None, numbers of more values in four bins of like size.

    Raises:
        DataError: if a column of `by` is in no row.
    """
    known = sorted({key for pair in pairs for key in pair.metadata})
    columns: dict[str, Column] = {}
    for name in known if by is None else by:
        if name not in known:
            raise DataError(f"a column {name!r} to slice by", f"the columns {known}", "Check the name given to --by.")
        values = [pair.metadata.get(name) for pair in pairs]
        texts = [_text(value) for value in values]
        num_values = len({text for text in texts if text is not None})
        if num_values > MAX_VALUES and _is_numeric(values):
            columns[name] = _binned(values)
        elif by is not None or 1 < num_values <= MAX_VALUES:
            columns[name] = texts
    return columns


def computed_columns(pairs: Sequence[Preference]) -> dict[str, Column]:
    """What every pair has: difference of lengths, length, length of the prompt, turns, and the raters' margin or votes where they are known.

    Bins are fixed, so that two evaluations of other data speak of the same slices; only the raters' margins, whose scale nobody knows, go by quantiles.
    """
    columns: dict[str, Column] = {
        "length difference": [_length_difference(len(pair.chosen), len(pair.rejected)) for pair in pairs],
        "length of the longer answer": [_length(max(len(pair.chosen), len(pair.rejected))) for pair in pairs],
        "length of the prompt": [_length(_prompt_length(pair)) for pair in pairs],
        "turns of the prompt": [_turns(pair) for pair in pairs],
    }
    if any(pair.margin is not None for pair in pairs):
        margins = [pair.margin for pair in pairs]
        distinct = len(set(margins) - {None})
        columns["margin of the raters"] = _binned(margins) if distinct > MAX_VALUES else [_text(m) for m in margins]
    if any(pair.votes is not None for pair in pairs):
        columns["votes for the chosen"] = [_votes(pair.votes) for pair in pairs]
    return {name: values for name, values in columns.items() if len(set(values) - {None}) > 1}


def slices(
    columns: Mapping[str, Column], margins: Floats, clusters: NDArray[np.int64], *, seed: int = 0
) -> list[Slice]:
    """Every value of every column, the worst first.

    Args:
        columns: {name: (n,) values}.
        margins: (n,) raw margins.
        clusters: (n,) codes of the prompts.
        seed: of bootstraps.
    """
    won = metrics.wins(margins)
    found = []
    for column, values in columns.items():
        names = np.array(values, dtype=object)
        known = np.array([value is not None for value in values])
        for value in dict.fromkeys(value for value in values if value is not None):
            part = names == value
            accuracy = metrics.accuracy(margins[part], cluster_codes(clusters[part]), seed=seed)
            difference, p_value = _against_rest(won, clusters, part, known & ~part)
            found.append(Slice(column, value, accuracy, difference, p_value))
    return sorted(_adjusted(found), key=lambda one: (one.difference.value if one.difference else 0.0, one.column))


def by_document(columns: Mapping[str, Column], found: Sequence[Slice]) -> dict[str, dict[str, Any]]:
    """The key `by` of evaluations: {column: {value: accuracy}}, values in alphabetical order."""
    documents: dict[str, dict[str, Any]] = {column: {} for column in columns}
    for one in sorted(found, key=lambda one: one.value):
        if one.column in documents:
            documents[one.column][one.value] = one.accuracy.as_dict()
    return documents


def _against_rest(
    won: Floats, clusters: NDArray[np.int64], part: NDArray[np.bool_], rest: NDArray[np.bool_]
) -> tuple[Estimate | None, float | None]:
    """Mean of a part minus mean of the rest, by their influence summed over prompts, which may have pairs in both; Student's t with Welch's degrees of freedom."""
    if not rest.any():
        return None, None
    inside, outside = won[part], won[rest]
    difference = float(inside.mean() - outside.mean())
    num_prompts = len(np.unique(clusters[part])), len(np.unique(clusters[rest]))
    own = _error(won, clusters, (part, rest), num_prompts, means=(float(inside.mean()), float(outside.mean())))
    error = float(np.sqrt(own.value**2 + _unseen(inside, num_prompts[0]) + _unseen(outside, num_prompts[1])))
    half = float(t.ppf(0.975, own.freedom)) * error
    low, high = max(-1.0, difference - half), min(1.0, difference + half)
    if min(num_prompts) < 2:  # one prompt says nothing of how prompts differ
        low, high = -1.0, 1.0
    method = f"cluster-robust over {num_prompts[0]} and {num_prompts[1]} prompts"
    estimate = Estimate(difference, low, high, int(part.sum()), method)
    if min(num_prompts) < FEW_PROMPTS:
        return estimate, None
    # The test takes its error under the hypothesis that both have one mean: of a small part with few losses its own would be far too small, now and then.
    common = float(won[part | rest].mean())
    null = _error(won, clusters, (part, rest), num_prompts, means=(common, common))
    if null.value == 0:  # every outcome is the same
        return estimate, 1.0
    return estimate, float(2 * t.sf(abs(difference) / null.value, null.freedom))


@dataclass(frozen=True)
class _Error:
    """Standard error of a difference of two means, with Welch's (1947) degrees of freedom: a small part beside a large rest has those of the part."""

    value: float
    freedom: float


def _error(
    won: Floats,
    clusters: NDArray[np.int64],
    sides: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    num_prompts: tuple[int, int],
    *,
    means: tuple[float, float],
) -> _Error:
    of_part, of_rest = (
        _influence(won - mean, clusters, rows, count)
        for rows, count, mean in zip(sides, num_prompts, means, strict=True)
    )
    variances = [float((one**2).sum()) for one in (of_part, of_rest)]
    parts = sum(variance**2 / max(1, count - 1) for variance, count in zip(variances, num_prompts, strict=True))
    freedom = sum(variances) ** 2 / parts if parts > 0 else float(max(1, min(num_prompts) - 1))
    # A prompt may have pairs on both sides: their deviations cancel where they agree.
    return _Error(float(np.sqrt(((of_part - of_rest) ** 2).sum())), freedom)


def _influence(deviations: Floats, clusters: NDArray[np.int64], rows: NDArray[np.bool_], num_prompts: int) -> Floats:
    """What each prompt adds to the deviation of the mean over some rows, (C,); the sum of its squares is the variance of that mean."""
    sums = np.bincount(clusters, weights=np.where(rows, deviations, 0.0) / rows.sum())
    return np.asarray(sums * np.sqrt(num_prompts / max(1, num_prompts - 1)))


def _unseen(outcomes: Floats, num_prompts: int) -> float:
    """Variance of a part in which every outcome is the same: that of one success and one failure more (Agresti and Caffo 2000), not 0."""
    if outcomes.min() != outcomes.max():
        return 0.0
    share = (float(outcomes[0]) * num_prompts + 1) / (num_prompts + 2)
    return share * (1 - share) / (num_prompts + 2)


def _adjusted(found: list[Slice]) -> list[Slice]:
    tested = [one.p_value for one in found if one.p_value is not None]
    adjusted = iter(holm(tested))
    return [one if one.p_value is None else replace(one, p_adjusted=next(adjusted)) for one in found]


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    # Dates and bytes of a Parquet file as texts.
    return json.dumps(value, ensure_ascii=False, default=str)


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)


def _binned(values: Sequence[Any]) -> Column:
    """Numbers in bins of like size, named by their bounds."""
    numbers = np.array([np.nan if value is None else float(value) for value in values])
    numbers[np.isinf(numbers)] = np.nan
    edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, _NUM_BINS + 1)))
    bins = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, max(0, len(edges) - 2))
    names = [f"{low:.10g} to {high:.10g}" for low, high in zip(edges[:-1], edges[1:], strict=True)] or [
        f"{edges[0]:.10g}"
    ]
    return [None if np.isnan(number) else names[place] for number, place in zip(numbers, bins, strict=True)]


def _length_difference(chosen: int, rejected: int) -> str:
    """In percent of the longer answer, in characters."""
    share = (chosen - rejected) / max(1, chosen, rejected)
    if abs(share) <= 0.1:
        return "within 10 %"
    size = "over 50 %" if abs(share) > 0.5 else "10 to 50 %"
    return f"chosen {'longer' if share > 0 else 'shorter'} by {size}"


def _length(characters: int) -> str:
    """A fixed bin of characters."""
    bounds = (0, *_LENGTHS)
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        if characters <= high:
            return f"{low + 1 if low else 0:,} to {high:,} characters"
    return f"over {_LENGTHS[-1]:,} characters"


def _prompt_length(pair: Preference) -> int:
    if isinstance(pair.prompt, str):
        return len(pair.prompt)
    return sum(len(message["content"]) for message in pair.prompt)


def _turns(pair: Preference) -> str:
    turns = 1 if isinstance(pair.prompt, str) else sum(message["role"] == "user" for message in pair.prompt)
    return "1" if turns <= 1 else "2 to 3" if turns <= 3 else "4 or more"


def _votes(votes: tuple[int, int] | None) -> str | None:
    if votes is None:
        return None
    share = votes[0] / sum(votes)
    return "all" if share == 1 else "over 75 %" if share > 0.75 else "over 50 %" if share > 0.5 else "50 % or fewer"
