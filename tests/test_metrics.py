"""Metrics against hand arithmetic, mirrors and scikit-learn."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from rewardsmith import metrics

MARGINS = np.array([2.0, -1.0, 0.0, 0.5])
ALONE = np.arange(4)


def test_ties_count_one_half():
    assert metrics.accuracy(MARGINS, ALONE).value == (1 + 0 + 0.5 + 1) / 4
    assert metrics.ties(MARGINS, ALONE).value == 0.25


def test_swapping_the_sides_mirrors_accuracy_and_auc():
    rng = np.random.default_rng(0)
    margins = np.round(rng.normal(0.4, 1, size=300), 1)  # rounded: with ties
    clusters = np.repeat(np.arange(100), 3)
    for metric in (metrics.accuracy, metrics.auc):
        assert metric(margins, clusters).value + metric(-margins, clusters).value == pytest.approx(1)


def test_auc_is_over_both_orders():
    # P(d_i + d_j > 0) over the 16 ordered couples of (2, -1, 0, 0.5), ties one half: by rows, sums with 2: 4, 1, 2, 2.5 -> 4;
    # with -1: 1, -2, -1, -0.5 -> 1; with 0: 2, -1, 0, 0.5 -> 2.5; with 0.5: 2.5, -0.5, 0.5, 1 -> 3. Total 10.5 / 16.
    assert metrics.auc(MARGINS, ALONE).value == pytest.approx(10.5 / 16)
    labels = np.r_[np.ones(4), np.zeros(4)]
    assert metrics.auc(MARGINS, ALONE).value == pytest.approx(roc_auc_score(labels, np.r_[MARGINS, -MARGINS]))


def test_pooled_auc_equals_scikit_learn():
    rng = np.random.default_rng(1)
    chosen, rejected = np.round(rng.normal(0.5, 1, 200), 1), np.round(rng.normal(0, 1, 200), 1)
    expected = roc_auc_score(np.r_[np.ones(200), np.zeros(200)], np.r_[chosen, rejected])
    assert metrics.pooled_auc(chosen, rejected, np.arange(200)).value == pytest.approx(expected)


def test_weighted_resamples_equal_repeated_rows():
    """The interval's arithmetic: weights 2, 1, 0, 1 are the same as listing rows so often."""
    statistic = {}

    def capture(function, clusters, **_):
        statistic["auc"] = function
        return None

    original = metrics.cluster_bootstrap
    metrics.cluster_bootstrap = capture
    try:
        metrics.auc(MARGINS, ALONE)
    finally:
        metrics.cluster_bootstrap = original
    weighted = statistic["auc"](np.array([[2.0, 1.0, 0.0, 1.0]]))[0]
    assert weighted == pytest.approx(metrics.auc(MARGINS[[0, 0, 1, 3]], ALONE).value)


def test_log_loss_and_brier_by_hand():
    # softplus(-d): 0.126928, 1.313262, 0.693147, 0.474077; p = 0.880797, 0.268941, 0.5, 0.622459
    expected = np.mean([math.log1p(math.exp(-d)) for d in MARGINS])
    assert metrics.log_loss(MARGINS, ALONE).value == pytest.approx(expected) == pytest.approx(0.6518535)
    p = 1 / (1 + np.exp(-MARGINS))
    assert metrics.brier(MARGINS, ALONE).value == pytest.approx(np.mean((1 - p) ** 2))
    assert metrics.log_loss(MARGINS, ALONE, temperature=2.0).value == pytest.approx(
        metrics.log_loss(MARGINS / 2, ALONE).value
    )
    assert metrics.log_loss(np.array([-1000.0]), np.array([0])).value == 1000.0


def test_ece_by_hand_with_one_bin():
    # folded confidences 0.880797, 0.731059, 0.5, 0.622459: mean 0.683579; correct 1, 0, 0.5, 1: mean 0.625
    assert metrics.ece(MARGINS, ALONE, num_bins=1).value == pytest.approx(0.683579 - 0.625, abs=1e-6)


def test_a_calibrated_scorer_lies_within_its_null_and_a_sharpened_one_above():
    rng = np.random.default_rng(0)
    strength = np.abs(rng.normal(0, 1.5, 3000))
    margins = np.where(rng.random(3000) < 1 / (1 + np.exp(-strength)), strength, -strength)
    clusters = np.arange(3000)
    null = metrics.ece_null(margins, clusters).null
    assert null.low <= metrics.ece(margins, clusters).value <= null.high
    assert metrics.ece(3 * margins, clusters).value > metrics.ece_null(3 * margins, clusters).null.high
    found = metrics.ece(margins, clusters)
    assert found.low <= found.value <= found.high


def test_the_order_of_the_pairs_does_not_matter():
    rng = np.random.default_rng(2)
    margins, clusters = rng.normal(size=60), np.repeat(np.arange(20), 3)
    order = rng.permutation(60)
    for metric in (metrics.accuracy, metrics.auc, metrics.log_loss, metrics.ece):
        assert metric(margins, clusters).value == pytest.approx(metric(margins[order], clusters[order]).value)


def alarms(correlation, margins_and_outcomes, num_sets=200):
    """How often a calibrated scorer is called miscalibrated at 5 %, and how often it would be if every pair stood for itself."""
    with_prompts = alone = 0
    for seed in range(num_sets):
        margins, clusters = margins_and_outcomes(np.random.default_rng(seed), correlation)
        with_prompts += metrics.ece_null(margins, clusters, draws=400).p_value < 0.05
        alone += metrics.ece_null(margins, np.arange(len(margins)), draws=400).p_value < 0.05
    return with_prompts / num_sets, alone / num_sets


def calibrated_prompts(rng, correlation):
    """100 prompts of 6 pairs; each outcome has the probability that the scorer says, and outcomes of one prompt go together (a Gaussian copula)."""
    size = np.abs(rng.normal(0, 1.5, (100, 6)))
    shared = np.sqrt(correlation) * rng.normal(size=(100, 1)) + np.sqrt(1 - correlation) * rng.normal(size=(100, 6))
    right = norm.cdf(shared) < 1 / (1 + np.exp(-size))
    return np.where(right, size, -size).ravel(), np.repeat(np.arange(100), 6)


def test_pairs_that_are_right_together_are_no_miscalibration():
    with_prompts, alone = alarms(0.6, calibrated_prompts)
    # 5 % of 200 sets, standard deviation 1.5 %.
    assert with_prompts <= 0.10
    assert alone >= 0.12


def test_the_null_of_prompts_still_sees_miscalibration():
    found = [
        metrics.ece_null(3 * margins, clusters, draws=400).p_value
        for margins, clusters in (calibrated_prompts(np.random.default_rng(seed), 0.3) for seed in range(20))
    ]
    assert max(found) < 0.05
