"""Can its confidence be believed? Numbers of the reliability diagram, and of answering only where the model is sure. Legend: `n` pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardsmith import metrics
from rewardsmith.stats import Floats, cluster_codes, linear_proportion

SHARES = tuple(round(0.05 * step, 2) for step in range(1, 21))
_MARGIN_BINS = 40


def reliability(
    margins: Floats, clusters: NDArray[np.int64], *, temperature: float = 1.0, num_bins: int = metrics.NUM_BINS
) -> list[dict[str, Any]]:
    """The reliability diagram: in equal-mass bins of the folded confidence max(p, 1 - p), how often the favoured answer won.

    Returns:
        One {"confidence": its mean, "accuracy": Estimate} a bin, rising; a calibrated scorer lies on the diagonal.
    """
    bins = metrics.confidence_bins(margins, temperature=temperature, num_bins=num_bins)
    won = metrics.wins(margins)
    found = []
    for number in range(bins.count):
        rows = bins.codes == number
        accuracy = linear_proportion(won[rows], cluster_codes(clusters[rows]))
        found.append({"confidence": float(bins.confidence[rows].mean()), "accuracy": accuracy.as_dict()})
    return found


def selective_accuracy(margins: Floats, clusters: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Accuracy on the most confident share of the pairs: what a judge that may abstain reaches (El-Yaniv and Wiener 2010).

    A monotone calibration does not change it. Pairs of one |margin| are answered together or not at all, so that their order cannot matter: a share may
    come out larger than it was asked for.

    Returns:
        One {"share", "least_margin": the |margin| from which on it answers, "accuracy": Estimate} for each of twenty shares up to 1.
    """
    size = np.abs(margins)
    levels = np.sort(size)[::-1]
    won = metrics.wins(margins)
    found: list[dict[str, Any]] = []
    for share in SHARES:
        least = levels[max(0, int(np.ceil(share * len(levels) - 1e-9)) - 1)]
        rows = size >= least
        accuracy = linear_proportion(won[rows], cluster_codes(clusters[rows]))
        found.append({"share": float(rows.mean()), "least_margin": float(least), "accuracy": accuracy.as_dict()})
    return [one for i, one in enumerate(found) if i == 0 or one["share"] > found[i - 1]["share"]]


def margin_histogram(margins: Floats) -> dict[str, list[float] | list[int]]:
    """Counts of the margins in forty equal bins over their whole range, 0 on an edge, for a plot."""
    reach = max(float(np.abs(margins).max()), 1e-9)
    low, high = min(0.0, float(margins.min())), max(0.0, float(margins.max()))
    step = max(reach / (_MARGIN_BINS // 2), (high - low) / _MARGIN_BINS)
    edges = step * np.arange(np.floor(low / step), max(np.ceil(high / step), np.floor(low / step) + 1) + 1)
    counts, _ = np.histogram(margins, bins=edges)
    return {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]}
