"""Intervals: known values, and how often they cover the truth."""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from rewardsmith.errors import DataError
from rewardsmith.stats import (
    cluster_bootstrap,
    cluster_codes,
    cluster_ratio,
    linear_proportion,
    mean,
    proportion,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(8, 10), (0, 20), (20, 20), (333, 500)])
def test_wilson_equals_scipys_for_whole_counts(k, n):
    expected = binomtest(k, n).proportion_ci(method="wilson")
    found = wilson(k, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_bootstrap_is_seeded_and_wider_for_clustered_data():
    rng = np.random.default_rng(0)
    per_prompt = rng.random(50) < 0.7
    values = np.repeat(per_prompt, 6).astype(float)  # six pairs of a prompt stand or fall together
    clusters = np.repeat(np.arange(50), 6)
    clustered = mean(values, clusters)
    naive = mean(values, np.arange(300))
    assert clustered == mean(values, clusters)
    # The variance is that of 50 draws, not of 300: the interval is about sqrt(6) = 2.4 times as wide.
    assert 2.0 < (clustered.high - clustered.low) / (naive.high - naive.low) < 2.9


def test_clustered_intervals_cover_the_truth():
    """200 simulated sets of 40 prompts with 1-5 pairs each; 95 % intervals must cover P = 0.7 about 95 % of the time."""
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 6, size=40)
        clusters = np.repeat(np.arange(40), sizes)
        quality = rng.beta(7, 3, size=40)
        values = (rng.random(len(clusters)) < quality[clusters]).astype(float)
        found = mean(values, clusters, seed=seed)
        covered += found.low <= 0.7 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_proportion_is_wilson_where_no_prompt_repeats():
    assert proportion(np.array([1.0, 0.5, 0.0, 1.0]), np.arange(4)).method == "wilson"
    assert proportion(np.array([1.0, 0.5, 0.0, 1.0]), np.arange(4)).value == 0.625


def test_few_or_equal_clusters_claim_no_certainty():
    same = proportion(np.ones(60), np.repeat(np.arange(20), 3))
    assert same.low == pytest.approx(wilson(20, 20).low) and same.n == 60
    few = proportion(np.array([0.0, 1.0] * 6), np.repeat(np.arange(3), 4))
    assert few.high - few.low > 0.6


def test_a_mean_of_nothing_is_an_error():
    for function in (lambda: wilson(0, 0), lambda: proportion(np.array([]), np.array([], int))):
        with pytest.raises(DataError, match="at least one"):
            function()
    with pytest.raises(DataError):
        cluster_bootstrap(lambda w: w.sum(axis=1), np.array([], int))


def test_codes_are_whole_numbers_from_zero():
    assert cluster_codes(["b", "a", "b"]).tolist() == [1, 0, 1]


def test_the_linear_interval_is_the_bootstraps():
    """The same data, both ways: the cluster-robust normal interval and the bootstrap over prompts agree to a few thousandths."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(400), 3)
    values = (rng.random(1200) < np.repeat(rng.beta(3, 2, 400), 3)).astype(float)
    quick, slow = linear_proportion(values, clusters), proportion(values, clusters)
    assert quick.value == slow.value
    assert quick.low == pytest.approx(slow.low, abs=0.004) and quick.high == pytest.approx(slow.high, abs=0.004)


def test_a_ratio_of_sums_by_hand():
    # Clusters {0: 1 of 2, 1: 3 of 4}: ratio 4/6; residual sums 1 - 4/3 = -1/3 and 3 - 8/3 = 1/3;
    # variance = 2 / 1 * (1/9 + 1/9) / 36 = 1/81, half width t(1) = 12.706 times 1 / 9.
    found = cluster_ratio(np.array([1.0, 1.0, 2.0]), np.array([2.0, 1.0, 3.0]), np.array([0, 1, 1]))
    assert found.value == pytest.approx(2 / 3)
    assert found.high - found.value == pytest.approx(12.7062 / 9, rel=1e-4)


def test_the_linear_interval_covers():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        rates = rng.beta(2, 2, 150)
        values = (rng.random(600) < np.repeat(rates, 4)).astype(float)
        found = linear_proportion(values, np.repeat(np.arange(150), 4))
        covered += found.low <= 0.5 <= found.high
    # 200 trials of 0.95: 190 with a standard deviation of 3.
    assert 180 <= covered <= 199


def test_the_bootstrap_is_scipys_on_independent_examples():
    """The same percentile interval, but for the widening for few clusters: with 400 of them 0.3 % of the width."""
    rng = np.random.default_rng(5)
    values = rng.gamma(2.0, 1.0, 400)
    theirs = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=rng).confidence_interval
    ours = mean(values, np.arange(400))
    width = theirs.high - theirs.low
    assert (ours.low, ours.high) == (
        pytest.approx(theirs.low, abs=0.06 * width),
        pytest.approx(theirs.high, abs=0.06 * width),
    )


def test_few_prompts_widen_the_interval_as_students_t_does():
    # Of 2,000 resamples 17 lie beyond an end, hence the tolerance. 10 prompts: t(9) = 2.262 instead of 1.960, and sqrt(10 / 9): together 1.217 times the plain percentiles of a normal sample.
    rng = np.random.default_rng(6)
    values = rng.normal(size=10)
    plain = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=rng).confidence_interval
    ours = mean(values, np.arange(10))
    assert (ours.high - ours.low) / (plain.high - plain.low) == pytest.approx(1.217, abs=0.08)


@pytest.mark.parametrize("num_prompts", [2, 3, 5, 8])
def test_means_over_few_prompts_cover_too(num_prompts):
    """Where resampling would be far too narrow, Student's interval over prompts: 300 sets, 95 % with a standard deviation of 1.3 %."""
    covered = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        prompts = np.repeat(np.arange(num_prompts), 4)
        found = mean(rng.normal(0, 1, num_prompts)[prompts] + rng.normal(0, 0.5, 4 * num_prompts), prompts)
        covered += found.low <= 0 <= found.high
    assert 0.91 <= covered / 300 <= 0.99


def test_the_mean_of_one_prompt_claims_nothing_but_its_range():
    found = mean(np.array([1.0, 0.0, 1.0]), np.zeros(3, int))
    assert (found.low, found.high, found.method) == (0.0, 1.0, "unknown: one prompt")
