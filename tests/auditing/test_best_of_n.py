"""The unbiased estimator of best-of-n, against enumeration; and the distance that best-of-n moves."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.integrate import quad

from rewardsmith.auditing.best_of_n import best_of, chances, grid, kl_of_best_of, powers, within
from rewardsmith.errors import SettingsError


def enumerated(proxy, values, n):
    """The mean over all subsets of n of what the best by proxy is worth, ties shared evenly."""
    found = []
    for subset in itertools.combinations(range(len(proxy)), n):
        best = [i for i in subset if proxy[i] == max(proxy[j] for j in subset)]
        found.append(np.mean([values[i] for i in best]))
    return np.mean(found)


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_the_estimator_is_the_mean_over_all_subsets_with_ties_shared(levels):
    """Two levels among seven candidates tie nearly always, a thousand almost never."""
    rng = np.random.default_rng(levels)
    for num_candidates in (1, 2, 5, 7):
        proxy = rng.integers(0, levels, num_candidates).astype(float)
        values = rng.normal(size=(num_candidates, 1))
        ns = list(range(1, num_candidates + 1))
        found = best_of(proxy, values, np.array([0, num_candidates]), ns)[0, 0]
        assert found == pytest.approx([enumerated(proxy, values[:, 0], n) for n in ns], abs=1e-12)


def test_a_tie_by_hand():
    """Of {1, 7, 7'} two are taken: {1, 7}, {1, 7'} and {7, 7'}. The sevens are best in 1 + 1/2 of three each."""
    found = chances(np.array([[1.0, 7.0, 7.0]]), [2, 3])[0]
    assert found == pytest.approx(np.array([[0.0, 0.0], [0.5, 0.5], [0.5, 0.5]]))


def test_all_candidates_tied_are_taken_blindly():
    found = best_of(np.zeros(6), np.arange(6.0)[:, None], np.array([0, 6]), [1, 3, 6])[0, 0]
    assert found == pytest.approx([2.5, 2.5, 2.5])


def test_weights_of_many_candidates_are_those_of_exact_arithmetic():
    """C(59, 29) / C(60, 30) and the like overflow nothing, and lose nothing."""
    found = chances(np.arange(60.0)[None], [30])[0, :, 0]
    exact = [Fraction(math.comb(i, 29), math.comb(60, 30)) for i in range(60)]
    assert found == pytest.approx([float(one) for one in exact], rel=1e-9, abs=1e-15)
    large = chances(np.arange(12_500.0)[None], [1, 6_000, 12_500])[0]
    assert large.sum(axis=0) == pytest.approx([1, 1, 1], rel=1e-9) and large[-1, 2] == pytest.approx(1.0)


def test_the_estimator_finds_the_expected_maximum_of_normal_draws():
    """Of 1, 2, 3 and 4 standard normal draws: 0, 0.5642, 0.8463, 1.0294. The standard error here is below 0.004."""
    values = np.random.default_rng(0).normal(size=60_000)
    found = best_of(values, values[:, None], np.arange(0, 60_001, 10), [1, 2, 3, 4])[:, 0].mean(axis=0)
    assert found == pytest.approx([0, 0.5642, 0.8463, 1.0294], abs=0.012)


def test_groups_of_different_sizes_each_have_their_own_curve():
    rng = np.random.default_rng(1)
    sizes = [3, 1, 4, 3]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    proxy, values = rng.normal(size=11), rng.normal(size=(11, 2))
    found = best_of(proxy, values, starts, [1, 2, 4])
    for g, size in enumerate(sizes):
        rows = slice(starts[g], starts[g + 1])
        alone = best_of(proxy[rows], values[rows], np.array([0, size]), [n for n in (1, 2, 4) if n <= size])[0]
        reached = alone.shape[1]
        assert np.allclose(found[g, :, :reached], alone) and np.isnan(found[g, :, reached:]).all()


def test_the_order_of_candidates_does_not_matter():
    rng = np.random.default_rng(2)
    proxy, values = rng.integers(0, 3, 12).astype(float), rng.normal(size=(12, 1))
    order = rng.permutation(12)
    starts = np.array([0, 12])
    assert best_of(proxy, values, starts, [1, 5, 12]) == pytest.approx(
        best_of(proxy[order], values[order], starts, [1, 5, 12])
    )


@pytest.mark.parametrize(("n", "nats"), [(1, 0.0), (4, 0.64), (16, 1.84), (64, 3.18), (256, 4.55), (12_500, 8.43)])
def test_kl_has_its_published_values(n, nats):
    assert float(kl_of_best_of(n)) == pytest.approx(nats, abs=0.006)


@pytest.mark.parametrize("n", [2, 7, 40])
def test_kl_is_that_of_the_distribution_of_the_best(n):
    """The best of n uniform draws has the density n u^(n - 1); KL is the integral of its logarithm under it."""
    found, _ = quad(lambda u: n * u ** (n - 1) * math.log(n * u ** (n - 1)), 1e-12, 1)
    assert float(kl_of_best_of(n)) == pytest.approx(found, abs=1e-6)


def test_variance_within_groups():
    values = np.array([[1.0], [3.0], [5.0], [5.0], [9.0]])
    assert within(values, np.array([0, 2, 4, 5]))[:, 0].tolist() == [2.0, 0.0, 0.0]  # (1 + 1) / 1; equal; one alone


def test_grids():
    assert grid(16) == list(range(1, 17)) and powers(12) == [1, 2, 4, 8, 12]
    wide = grid(64)
    assert wide[0] == 1 and wide[-1] == 64 and len(wide) < 30 and {2, 4, 8, 16, 32} <= set(wide)


def test_an_n_that_a_group_cannot_have_is_refused():
    with pytest.raises(SettingsError, match="between 1 and the 3"):
        chances(np.zeros((1, 3)), [4])
