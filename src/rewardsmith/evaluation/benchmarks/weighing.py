"""Numbers that are weighted sums of means: subsets, sections and headlines of every benchmark, by the authors' rule and honestly, from one description.

Legend: `n` items, `m` values of all leaves under one number, `L` of these leaves, `R` bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardsmith.stats import FEW_CLUSTERS, Estimate, Floats, cluster_bootstrap, cluster_codes, mean, proportion, wilson

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Leaf:
    """A number that is a plain mean over some items. All arrays have shape (items of this leaf,).

    Args:
        rows: which items, by their place.
        published: the value of each by the authors' rule.
        honest: the value of each with a tie as one half, or as its share at the top.
        chance: what a scorer that knows nothing gets on average.
        low: the least value that an item can have.
        high: the largest.
    """

    rows: Codes
    published: Floats
    honest: Floats
    chance: Floats
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Sum:
    """A number that is a weighted sum of others.

    Args:
        weights: of its parts, by their names. An empty table takes no part.
        honest: weights of the honest version where they differ.
        normalised: whether the weights are divided by their sum.
    """

    weights: Mapping[str, float]
    honest: Mapping[str, float] | None = None
    normalised: bool = True


@dataclass(frozen=True)
class Pooled:
    """A number that is the mean over all items of its leaves, so that a leaf weighs by its items."""

    parts: tuple[str, ...]


@dataclass
class Numbers:
    """What a rule found.

    Args:
        published: by the authors' rule, as they would print it.
        honest: ties one half, with intervals clustered by prompt.
        chance: of a scorer that knows nothing, for the honest numbers.
        withheld: numbers that cannot be computed, with the reason.
        partial: of a withheld sum, its value over the parts that are there.
        curves: tables that are more than a number.
    """

    published: dict[str, float] = field(default_factory=dict)
    honest: dict[str, Estimate] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    withheld: dict[str, str] = field(default_factory=dict)
    partial: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)


def weigh(leaves: Mapping[str, Leaf], sums: Mapping[str, Sum | Pooled], clusters: Sequence[str], seed: int) -> Numbers:
    """All numbers of a benchmark. A sum of which a part is missing is withheld, never printed as if it were whole.

    Args:
        leaves: by name; those without items are missing.
        sums: by name, each after its parts.
        clusters: (n,) name of each item's prompt.
        seed: of the bootstrap.
    """
    codes = cluster_codes(list(clusters))
    there = {name: leaf for name, leaf in leaves.items() if len(leaf.rows)}
    found = Numbers()
    # Every number as {leaf: weight}, for the authors' rule and for the honest one.
    published = {name: {name: 1.0} for name in there}
    honest = {name: {name: 1.0} for name in there}
    for name, leaf in there.items():
        found.published[name] = float(leaf.published.mean())
        found.honest[name] = estimate([leaf], [1.0], codes, seed)
        found.chance[name] = float(leaf.chance.mean())
    for name, number in sums.items():
        weights = _weights(number, there)
        missing = [part for part in weights if part not in published]
        present = {part: weight for part, weight in weights.items() if part in published}
        if missing or not present:
            found.withheld[name] = f"missing: {', '.join(missing) or 'all of its items'}"
            if present:
                table = _expand(present, published, normalised=True)
                found.partial[name] = _value(table, there, "published")
            continue
        normalised = isinstance(number, Pooled) or number.normalised
        published[name] = _expand(weights, published, normalised=normalised)
        other = number.honest if isinstance(number, Sum) and number.honest is not None else weights
        honest[name] = _expand(other, honest, normalised=normalised)
        found.published[name] = _value(published[name], there, "published")
        found.chance[name] = _value(honest[name], there, "chance")
        parts = [there[leaf] for leaf in honest[name]]
        if isinstance(number, Pooled):
            found.honest[name] = estimate([_joined(parts)], [1.0], codes, seed)
        else:
            found.honest[name] = estimate(parts, list(honest[name].values()), codes, seed)
    return found


def _weights(number: Sum | Pooled, there: Mapping[str, Leaf]) -> Mapping[str, float]:
    if isinstance(number, Pooled):
        return {part: float(len(there[part].rows)) if part in there else 0.0 for part in number.parts}
    return number.weights


def _expand(
    weights: Mapping[str, float], known: Mapping[str, Mapping[str, float]], *, normalised: bool
) -> dict[str, float]:
    total = sum(weights.values()) if normalised else 1.0
    table: dict[str, float] = {}
    for part, weight in weights.items():
        for leaf, inner in known[part].items():
            table[leaf] = table.get(leaf, 0.0) + weight / total * inner
    return table


def _value(table: Mapping[str, float], leaves: Mapping[str, Leaf], column: str) -> float:
    return float(sum(weight * getattr(leaves[name], column).mean() for name, weight in table.items()))


def _joined(parts: Sequence[Leaf]) -> Leaf:
    columns = {
        name: np.concatenate([getattr(leaf, name) for leaf in parts])
        for name in ("rows", "published", "honest", "chance")
    }
    return Leaf(**columns, low=min(leaf.low for leaf in parts), high=max(leaf.high for leaf in parts))


def estimate(parts: Sequence[Leaf], weights: Sequence[float], codes: Codes, seed: int) -> Estimate:
    """The weighted sum of the leaves' honest means with its interval over prompts.

    One leaf alone: a proportion as `stats.proportion` gives it. Several: prompts are drawn with replacement across all leaves at once; a leaf that a resample
    misses leaves its weight to the others. Where every value is the same, or prompts are few, resampling would claim certainty: Wilson on the number of
    prompts, stretched to the range that the sum can have, stands for it.
    """
    joined = _joined(parts)
    clusters = cluster_codes(codes[joined.rows])
    num_clusters = int(clusters.max()) + 1
    if len(parts) == 1 and weights[0] == 1.0:
        if (joined.low, joined.high) == (0.0, 1.0):
            return proportion(joined.honest, clusters, seed=seed)
        if num_clusters >= FEW_CLUSTERS and np.ptp(joined.honest) > 0:
            return mean(joined.honest, clusters, seed=seed)
    num_items = len(np.unique(joined.rows))
    coefficients = np.array(weights)  # (L,)
    if num_clusters < FEW_CLUSTERS or all(np.ptp(leaf.honest) == 0 for leaf in parts):
        value = float(sum(weight * leaf.honest.mean() for weight, leaf in zip(weights, parts, strict=True)))
        low = float(sum(weight * leaf.low for weight, leaf in zip(weights, parts, strict=True)))
        high = float(sum(weight * leaf.high for weight, leaf in zip(weights, parts, strict=True)))
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        wide = wilson(share * num_clusters, num_clusters)
        method = f"wilson on {num_clusters} prompts"
        return Estimate(
            value,
            min(value, low + wide.low * (high - low)),
            max(value, low + wide.high * (high - low)),
            num_items,
            method,
        )
    places = np.repeat(np.arange(len(parts)), [len(leaf.rows) for leaf in parts])
    members = np.eye(len(parts))[places]  # (m, L)
    valued = members * joined.honest[:, None]

    def statistic(drawn: Floats) -> Floats:
        counts = drawn @ members  # (R, m) -> (R, L)
        seen = coefficients * (counts > 0)
        means = (drawn @ valued) / np.maximum(counts, 1.0)
        # A resample that misses every leaf cannot be: each cluster has a value in some leaf.
        return np.asarray((seen * means).sum(axis=1) * coefficients.sum() / seen.sum(axis=1))

    return replace(cluster_bootstrap(statistic, clusters, seed=seed), n=num_items)
