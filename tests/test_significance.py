"""Tests of differences against the libraries that everybody trusts, and against hand arithmetic."""

import time

import numpy as np
import pytest
from scipy.stats import permutation_test
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from rewardsmith.errors import DataError
from rewardsmith.significance import detectable_difference, holm, mcnemar, paired_test, sign_flips
from rewardsmith.stats import mean


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 1), (10, 12), (60, 31), (0, 25)])
def test_mcnemar_equals_statsmodels(b, c):
    expected = statsmodels_mcnemar([[40, b], [c, 30]], exact=True).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected)


def test_mcnemar_by_hand():
    # 5 against 1: 2 * (C(6,0) + C(6,1)) / 2^6 = 2 * 7 / 64
    assert mcnemar(5, 1) == pytest.approx(14 / 64)


@pytest.mark.parametrize("seed", range(3))
def test_holm_equals_statsmodels(seed):
    p_values = np.random.default_rng(seed).random(12) ** 3
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([]) == []


def test_sign_flips_equal_scipys_exact_permutation():
    """Eight clusters have 256 flips: scipy lists them all, we draw ten thousand."""
    rng = np.random.default_rng(4)
    sums = rng.normal(0.6, 1.0, 8)
    exact = permutation_test((sums,), lambda x: abs(np.sum(x)), permutation_type="samples", alternative="greater")
    # Each cluster's sum split over three examples: only the sum of a prompt counts.
    values, clusters = np.repeat(sums / 3, 3), np.repeat(np.arange(8), 3)
    assert sign_flips(values, clusters) == pytest.approx(exact.pvalue, abs=0.012)


def test_pairs_of_one_prompt_are_no_independent_evidence():
    """Six equal differences of one prompt against none: McNemar would say 2 / 64; one prompt can never show anything."""
    alone = paired_test(np.ones(6), np.arange(6))
    assert (alone.test, alone.p_value) == ("exact McNemar", pytest.approx(2 / 64))
    together = paired_test(np.ones(6), np.zeros(6, int))
    assert (together.test, together.p_value) == ("sign flips over prompts", 1.0)


def test_p_values_of_no_difference_are_uniform():
    """400 sets of 60 prompts with two pairs each and no difference: p < 0.05 in 5 % of them (20, standard deviation 4.4)."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 2)
    alarms = 0
    for seed in range(400):
        lean = rng.choice([-1.0, 0.0, 1.0], 60)[clusters]  # a whole prompt leans to one side
        alarms += sign_flips(lean * rng.integers(0, 2, 120), clusters, flips=999, seed=seed) < 0.05
    assert 8 <= alarms <= 33


def test_six_hundred_and_twenty_pairs_show_five_points():
    # (1.95996 + 0.84162) * sqrt(0.2 / 620) = 0.05032
    found = detectable_difference(np.arange(620))
    assert found.difference == pytest.approx(0.05032, abs=1e-5)
    # Twice the variance of independent pairs: sqrt(2) times the difference.
    assert detectable_difference(np.arange(620), design_effect=2).difference == pytest.approx(0.07116, abs=1e-5)


def test_a_detectable_difference_is_found_four_times_in_five():
    """300 simulated comparisons at exactly the detectable difference: 80 % of the tests are below 0.05 (exact McNemar is a little conservative)."""
    rng = np.random.default_rng(1)
    detectable = detectable_difference(np.arange(620)).difference
    found = 0
    for _ in range(300):
        draws = rng.random(620)
        # 20 % of the pairs are discordant, A ahead by the detectable difference.
        ahead, behind = 0.1 + detectable / 2, 0.1 - detectable / 2
        differences = (draws < ahead).astype(float) - ((draws >= ahead) & (draws < ahead + behind)).astype(float)
        found += paired_test(differences, np.arange(620)).p_value < 0.05
    assert 0.70 <= found / 300 <= 0.87


def test_nothing_to_test_is_an_error():
    for function in (lambda: paired_test(np.array([]), np.array([], int)), lambda: detectable_difference(np.array([]))):
        with pytest.raises(DataError, match="at least one example"):
            function()


def test_two_thousand_resamples_of_ten_thousand_pairs_are_a_matter_of_seconds():
    """No assertion on the time, which the speed page gives; only that the size is no obstacle to memory."""
    clusters = np.random.default_rng(0).integers(0, 5000, 10_000)
    clusters = np.unique(clusters, return_inverse=True)[1]
    start = time.perf_counter()
    found = mean(np.ones(10_000), clusters)
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0) and time.perf_counter() > start
