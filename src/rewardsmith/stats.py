"""Numbers with their uncertainty: every figure that is reported is an `Estimate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from rewardsmith.errors import DataError

Floats = NDArray[np.float64]
NUM_RESAMPLES = 2000
# Weights of one block of resamples; bounds the memory of a bootstrap to some tens of MB.
_BLOCK_CELLS = 4_000_000
FEW_CLUSTERS = 10
"""Below this many clusters resampling is too narrow to be shown."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, its 95 % interval, the number of examples behind it and how the interval was made.

    >>> str(Estimate(0.5, 0.4, 0.6, 100, "wilson"))
    '0.500 [0.400, 0.600] (n=100)'
    """

    value: float
    low: float
    high: float
    n: int
    method: str

    def __str__(self) -> str:
        """Value, interval and n, as a person reads them."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n:,})"

    def as_dict(self) -> dict[str, Any]:
        """The document that reports hold."""
        return asdict(self)


def wilson(successes: float, n: int, *, confidence: float = 0.95) -> Estimate:
    """The Wilson score interval of a proportion (Wilson 1927).

    `successes` may be a half count (a tie is half a success), which is why scipy's `binomtest`, for whole counts only, does not serve.

    >>> str(wilson(8, 10))
    '0.800 [0.490, 0.943] (n=10)'
    """
    if n <= 0:
        raise DataError("at least one example for a proportion", "none", "Check the filters before this number.")
    z = float(norm.ppf(0.5 + confidence / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and 1 rounding would put the bound on the wrong side of the value.
    return Estimate(p, max(0.0, min(p, float(centre - half))), min(1.0, max(p, float(centre + half))), n, "wilson")


def cluster_codes(clusters: Sequence[str] | NDArray[Any]) -> NDArray[np.int64]:
    """Cluster names as whole numbers 0..C-1; shape (n,)."""
    return np.unique(np.asarray(clusters), return_inverse=True)[1].astype(np.int64)


def cluster_bootstrap(
    statistic: Callable[[Floats], Floats],
    clusters: NDArray[np.int64],
    *,
    resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
    remove_bias: bool = False,
) -> Estimate:
    """Percentile bootstrap that draws whole clusters (all pairs of a prompt) with replacement.

    The percentiles are moved outward as Hesterberg (2015, "What teachers should know about the bootstrap", 5.3) does, for resamples of C clusters vary
    too little by a factor of sqrt((C - 1) / C) and have lighter tails than Student's t: plain percentiles of 15 prompts cover the truth nine times in ten.

    Args:
        statistic: takes weights (R, n), how often each example was drawn, and returns (R,) values.
        clusters: (n,) cluster of each example, 0..C-1.
        resamples: how many draws.
        seed: of the draws; the same seed gives the same interval.
        confidence: of the interval.
        remove_bias: shift the interval by what resampling itself adds to the statistic; for statistics that grow with noise, such as a calibration error.

    Raises:
        DataError: if there is no example.
    """
    n = len(clusters)
    if n == 0:
        raise DataError("at least one example for an interval", "none", "Check the filters before this number.")
    num_clusters = int(clusters.max()) + 1
    blocks = cluster_draws(num_clusters, max(n, num_clusters), resamples, seed)
    draws = np.concatenate([statistic(drawn[:, clusters]) for drawn in blocks])  # (R, C) -> (R, n) -> (R,)
    tail = interval_tail(num_clusters, confidence)
    low, high = np.quantile(draws, [tail, 1 - tail])
    value = float(statistic(np.ones((1, n)))[0])
    method = f"bootstrap over {num_clusters} prompts"
    if num_clusters < FEW_CLUSTERS:
        method += ", too few for an interval that can be relied on"
    if remove_bias:
        shift = value - float(draws.mean())
        low, high, method = low + shift, high + shift, f"{method}, bias removed"
    return Estimate(value, float(low), float(high), n, method)


def interval_tail(num_clusters: int, confidence: float) -> float:
    """The share of resamples that lies beyond one end of the interval; a single cluster has no tail."""
    if num_clusters < 2:
        return 0.0
    reach = t.ppf(0.5 + confidence / 2, num_clusters - 1) * np.sqrt(num_clusters / (num_clusters - 1))
    return float(norm.sf(reach))


def cluster_draws(num_clusters: int, width: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each cluster is drawn in each resample, in blocks (rows, C) of which arrays (rows, width) fit into memory; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // width)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        # Drawn one by one and counted: a multinomial draw of the counts takes eight times as long.
        drawn = rng.integers(0, num_clusters, size=(rows, num_clusters)) + num_clusters * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * num_clusters)
        yield counts.reshape(rows, num_clusters).astype(np.float64)


def mean(values: Floats, clusters: NDArray[np.int64], *, seed: int = 0) -> Estimate:
    """The mean of any quantity, with a bootstrap interval over clusters.

    It is what `cluster_bootstrap` gives for the weighted mean, from the sums of the clusters alone: a bootstrap of a mean never needs the examples. Under ten
    clusters it is Student's interval of `cluster_ratio`, and of one cluster the range of its values.
    """
    n = len(values)
    if n == 0:
        raise DataError("at least one example for an interval", "none", "Check the filters before this number.")
    num_clusters = int(clusters.max()) + 1
    if (
        num_clusters < FEW_CLUSTERS
    ):  # resampling five prompts covers the truth nine times in ten, and resampling one never
        span = (float(values.min()), float(values.max())) if num_clusters < 2 else (-np.inf, np.inf)
        return cluster_ratio(values, np.ones(n), clusters, low=span[0], high=span[1])
    sums, counts = np.bincount(clusters, weights=values), np.bincount(clusters).astype(np.float64)
    blocks = cluster_draws(num_clusters, max(n, num_clusters), NUM_RESAMPLES, seed)
    draws = np.concatenate([(drawn @ sums) / (drawn @ counts) for drawn in blocks])
    tail = interval_tail(num_clusters, 0.95)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(float(values.mean()), float(low), float(high), n, f"bootstrap over {num_clusters} prompts")


def proportion(values: Floats, clusters: NDArray[np.int64], *, seed: int = 0) -> Estimate:
    """The mean of values in [0, 1] (a tie is 0.5).

    Wilson where no cluster repeats; the cluster bootstrap where one does. With few clusters, or when every value is the same, the bootstrap would claim
    more certainty than there is, so Wilson on the number of clusters is given instead.
    """
    few = _too_few(values, clusters)
    return few or mean(values, clusters, seed=seed)


def linear_proportion(values: Floats, clusters: NDArray[np.int64]) -> Estimate:
    """`proportion` in linear time, by the cluster-robust interval: for millions of rows, or hundreds of slices of them."""
    few = _too_few(values, clusters)
    return few or cluster_ratio(values, np.ones(len(values)), clusters, low=0.0, high=1.0)


def cluster_ratio(
    numerators: Floats,
    denominators: Floats,
    clusters: NDArray[np.int64],
    *,
    low: float = -np.inf,
    high: float = np.inf,
) -> Estimate:
    """sum(numerators) / sum(denominators) with its cluster-robust interval, by Student's t (linearised; Cochran, Sampling Techniques, 6.4).

    The variance is C / (C - 1) * sum over the C clusters of (sum of a cluster's numerators - ratio * denominators)^2, over the square of all denominators.

    Args:
        numerators: (n,).
        denominators: (n,), of which the sum is positive.
        clusters: (n,) codes of the clusters; numbers without rows may lie between.
        low: the least value that the ratio can take.
        high: the largest.

    Raises:
        DataError: if there is no example.
    """
    n = len(numerators)
    if n == 0:
        raise DataError("at least one example for an interval", "none", "Check the filters before this number.")
    total = float(denominators.sum())
    ratio = float(numerators.sum()) / total
    sums = np.bincount(clusters, weights=numerators - ratio * denominators)
    num_clusters = int((np.bincount(clusters) > 0).sum())
    if num_clusters < 2:  # one cluster says nothing of how clusters differ
        return Estimate(ratio, low, high, n, "unknown: one prompt")
    variance = num_clusters / (num_clusters - 1) * float((sums**2).sum()) / total**2
    half = float(t.ppf(0.975, num_clusters - 1)) * float(np.sqrt(variance))
    method = f"cluster-robust over {num_clusters} prompts"
    return Estimate(ratio, max(low, ratio - half), min(high, ratio + half), n, method)


def _too_few(values: Floats, clusters: NDArray[np.int64]) -> Estimate | None:
    """The Wilson interval where nothing repeats, or where no resampling could show the uncertainty."""
    n = len(values)
    if n == 0:
        raise DataError("at least one example for a proportion", "none", "Check the filters before this number.")
    num_clusters = len(np.unique(clusters))
    if num_clusters == n:
        return wilson(float(values.sum()), n)
    if num_clusters < FEW_CLUSTERS or values.min() == values.max():
        share = float(values.mean())
        wide = wilson(share * num_clusters, num_clusters)
        return Estimate(share, wide.low, wide.high, n, f"wilson on {num_clusters} prompts")
    return None
