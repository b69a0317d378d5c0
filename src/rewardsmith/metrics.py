"""Arrays of scores -> Estimates. Legend: `n` pairs, `R` bootstrap resamples.

A tie (equal scores) counts one half everywhere. Rows whose two sides the annotators called equal are no test of a winner: callers keep them out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rewardsmith.stats import FEW_CLUSTERS, Estimate, Floats, cluster_bootstrap, mean, proportion

Codes = NDArray[np.int64]
NUM_BINS = 15
# Outcomes of one block of simulated sets; bounds their memory to some tens of MB.
_BLOCK_CELLS = 4_000_000


def wins(margins: Floats) -> Floats:
    """1 for a positive margin, 0.5 for a tie, 0 for a negative one; shape (n,)."""
    return (np.sign(margins) + 1) / 2


def accuracy(margins: Floats, clusters: Codes, *, seed: int = 0) -> Estimate:
    """The share of pairs whose chosen answer scores higher, ties one half.

    >>> accuracy(np.array([1.0, -2.0, 0.0, 3.0]), np.arange(4)).value
    0.625
    """
    return proportion(wins(margins), clusters, seed=seed)


def ties(margins: Floats, clusters: Codes, *, seed: int = 0) -> Estimate:
    """The share of pairs with exactly equal scores."""
    return proportion((margins == 0).astype(np.float64), clusters, seed=seed)


def _weighted_auc(positive: Floats, negative: Floats, clusters: Codes, *, seed: int) -> Estimate:
    """P(positive > negative) + P(equal) / 2 over all cross pairs; example i carries one value of each kind, so both get its weight.

    Mann-Whitney by sorting once: for every resample, the weight of the negatives below each positive is a cumulative sum.
    """
    n = len(positive)
    levels, codes = np.unique(np.concatenate([positive, negative]), return_inverse=True)
    positive_level, negative_level = codes[:n], codes[n:]
    negative_order = np.argsort(negative_level, kind="stable")
    starts = np.searchsorted(negative_level[negative_order], np.arange(len(levels) + 1))

    def statistic(weights: Floats) -> Floats:
        sorted_weights = weights[:, negative_order]
        cumulative = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(sorted_weights, axis=1)], axis=1)
        below = cumulative[:, starts[positive_level]]  # weight of negatives strictly below each positive
        up_to = cumulative[:, starts[positive_level + 1]]  # ... and of those equal to it
        total = weights.sum(axis=1)
        return np.asarray((weights * (below + up_to) / 2).sum(axis=1) / total**2)

    return cluster_bootstrap(statistic, clusters, seed=seed)


def auc(margins: Floats, clusters: Codes, *, seed: int = 0) -> Estimate:
    """AUC of the margins on {(d, 1), (-d, 0)}: P(d_i + d_j > 0), ties one half.

    One-sided margins are all of the class "chosen wins", so each pair enters in both orders.
    """
    return _weighted_auc(margins, -margins, clusters, seed=seed)


def pooled_auc(chosen: Floats, rejected: Floats, clusters: Codes, *, seed: int = 0) -> Estimate:
    """AUC of all chosen against all rejected scores: can scores be compared across prompts? Bradley-Terry does not train that."""
    return _weighted_auc(chosen, rejected, clusters, seed=seed)


def log_losses(margins: Floats, temperature: float = 1.0) -> Floats:
    """softplus(-d / T) of each pair, stable for any margin; shape (n,)."""
    return np.logaddexp(0.0, -margins / temperature)


def win_probabilities(margins: Floats, temperature: float = 1.0) -> Floats:
    """The Bradley-Terry probability that the chosen answer wins, sigmoid(d / T); shape (n,)."""
    return np.exp(-log_losses(margins, temperature))


def log_loss(margins: Floats, clusters: Codes, *, temperature: float = 1.0, seed: int = 0) -> Estimate:
    """The mean of softplus(-d / T): what training minimises; ln 2 = 0.693 is a scorer that knows nothing."""
    return mean(log_losses(margins, temperature), clusters, seed=seed)


def brier(margins: Floats, clusters: Codes, *, temperature: float = 1.0, seed: int = 0) -> Estimate:
    """The mean of (1 - p)^2; 0.25 is a scorer that knows nothing."""
    return mean((1 - win_probabilities(margins, temperature)) ** 2, clusters, seed=seed)


@dataclass(frozen=True)
class ConfidenceBins:
    """Equal-mass bins of the folded confidence max(p, 1 - p), fixed before any resampling.

    Args:
        confidence: (n,) of each pair.
        codes: (n,) bin of each pair, 0..count-1, rising with the confidence.
        count: of bins.
    """

    confidence: Floats
    codes: Codes
    count: int


def confidence_bins(margins: Floats, *, temperature: float = 1.0, num_bins: int = NUM_BINS) -> ConfidenceBins:
    """Pairs in bins of like confidence; fewer bins than asked for where there are fewer pairs."""
    confidence = win_probabilities(np.abs(margins), temperature)
    num_bins = max(1, min(num_bins, len(margins)))
    ranks = np.argsort(np.argsort(confidence, kind="stable"), kind="stable")
    return ConfidenceBins(confidence, (ranks * num_bins // len(margins)).astype(np.int64), num_bins)


def _binned_gap(weights: Floats, correct: Floats, bins: ConfidenceBins) -> Floats:
    """sum_b w_b / w |accuracy_b - confidence_b| = sum_b |sum_i in b w_i (correct_i - confidence_i)| / w; weights (R, n), correct (n,) or (R, n)."""
    members = np.eye(bins.count)[bins.codes]  # (n, bins)
    gaps = (weights * (correct - bins.confidence)) @ members  # (R, bins)
    return np.asarray(np.abs(gaps).sum(axis=1) / weights.sum(axis=1))


def ece(
    margins: Floats, clusters: Codes, *, temperature: float = 1.0, num_bins: int = NUM_BINS, seed: int = 0
) -> Estimate:
    """Expected calibration error of the folded confidence over 15 equal-mass bins.

    Never 0 on finite data, even for a perfectly calibrated scorer: read it against `ece_null`.
    """
    bins, correct = confidence_bins(margins, temperature=temperature, num_bins=num_bins), wins(margins)
    found = cluster_bootstrap(
        lambda weights: _binned_gap(weights, correct, bins), clusters, seed=seed, remove_bias=True
    )
    return replace(found, low=max(0.0, found.low))


@dataclass(frozen=True, slots=True)
class EceNull:
    """The ECE beside what a perfectly calibrated scorer with the same confidences would show.

    Args:
        null: its mean, with the 2.5 and 97.5 percentiles over simulated outcomes: an ECE above `null.high` is real miscalibration.
        excess: the ECE minus that mean.
        p_value: one-sided, the share of simulated outcomes with an ECE at least as large.
    """

    null: Estimate
    excess: float
    p_value: float


def ece_null(
    margins: Floats,
    clusters: Codes,
    *,
    temperature: float = 1.0,
    num_bins: int = NUM_BINS,
    draws: int = 1000,
    seed: int = 0,
) -> EceNull:
    """Is the ECE more than a perfectly calibrated scorer would show?

    Where no prompt repeats, outcomes are drawn from the confidences. Where prompts repeat, pairs of one prompt are right or wrong together, and outcomes
    drawn one by one would make the null too narrow: there the signs of whole prompts' deviations (outcome minus confidence) are drawn instead (the wild
    cluster bootstrap of Cameron, Gelbach and Miller 2008), which keeps what pairs of a prompt have in common.

    A perfectly calibrated scorer with margins ~ N(0, 1) shows 0.063 on 500 pairs and 0.016 on 8,000.
    """
    bins = confidence_bins(margins, temperature=temperature, num_bins=num_bins)
    rng = np.random.default_rng(seed)
    n, num_clusters = len(margins), len(np.unique(clusters))
    deviations = wins(margins) - bins.confidence
    if FEW_CLUSTERS <= num_clusters < n:
        simulated = _flipped_gaps(deviations, clusters, bins, draws, rng)
        method = f"signs of {num_clusters} prompts, {draws} draws"
    else:
        simulated = _drawn_gaps(bins, margins == 0, draws, rng)
        method = f"simulated, {draws} draws"
    found = float(_binned_gap(np.ones((1, n)), wins(margins), bins)[0])
    low, high = np.quantile(simulated, [0.025, 0.975])
    null = Estimate(float(simulated.mean()), float(low), float(high), n, method)
    return EceNull(null, found - null.value, (int((simulated >= found).sum()) + 1) / (draws + 1))


def _drawn_gaps(bins: ConfidenceBins, is_tie: NDArray[np.bool_], draws: int, rng: np.random.Generator) -> Floats:
    """The ECE of outcomes drawn from the confidences, (draws,); a tie is one half whatever is drawn."""
    n = len(bins.confidence)
    block = max(1, _BLOCK_CELLS // n)
    values = []
    for start in range(0, draws, block):
        outcomes = (rng.random((min(block, draws - start), n)) < bins.confidence).astype(np.float64)  # (rows, n)
        outcomes[:, is_tie] = 0.5
        values.append(_binned_gap(np.ones((1, n)), outcomes, bins))
    return np.concatenate(values)


def _flipped_gaps(
    deviations: Floats, clusters: Codes, bins: ConfidenceBins, draws: int, rng: np.random.Generator
) -> Floats:
    """The ECE with the deviations of whole prompts multiplied by random signs, (draws,)."""
    num_clusters = int(clusters.max()) + 1
    places = clusters * bins.count + bins.codes
    sums = np.bincount(places, weights=deviations, minlength=num_clusters * bins.count).reshape(num_clusters, -1)
    block = max(1, _BLOCK_CELLS // num_clusters)
    values = []
    for start in range(0, draws, block):
        signs = 2.0 * rng.integers(0, 2, size=(min(block, draws - start), num_clusters), dtype=np.int8) - 1.0
        values.append(np.abs(signs @ sums).sum(axis=1) / len(deviations))  # (rows, C) @ (C, bins)
    return np.concatenate(values)
