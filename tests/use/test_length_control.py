"""The model of lengths against scikit-learn's, against known truth, and where nothing can be fitted."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from rewardsmith.stats import wilson
from rewardsmith.use.length_control import PRIOR_SD, length_controlled
from rewardsmith.use.win_rates import share


def controlled(targets, differences, *, weights=None, clusters=None, seed=0):
    n = len(targets)
    clusters = np.arange(n) if clusters is None else clusters
    weights = np.ones(n) if weights is None else weights
    by_prompt = np.bincount(clusters, weights=targets * weights)
    return length_controlled(targets, differences, weights, clusters, share(by_prompt), seed=seed)


def drawn(n, *, theta, phi, seed):
    """Differences of lengths with a mean of half a deviation, and wins by the model itself."""
    rng = np.random.default_rng(seed)
    differences = np.round(rng.normal(150, 300, n))
    wins = rng.random(n) < expit(theta + phi * np.tanh(differences / differences.std(ddof=1)))
    return wins.astype(float), differences


@pytest.mark.parametrize("kind", ["hard", "ties", "soft"])
def test_the_fit_is_scikit_learns_with_an_unpenalised_intercept(kind):
    """scikit-learn minimises C * loss + |w|^2 / 2: C is the variance of the prior. Soft targets are rows of both classes with weights."""
    targets, differences = drawn(120, theta=0.4, phi=1.2, seed=1)
    rng = np.random.default_rng(2)
    if kind == "ties":
        targets[rng.integers(0, 120, 20)] = 0.5
    if kind == "soft":
        targets = np.clip(targets * 0.6 + 0.4 * rng.random(120), 0, 1)
    found = controlled(targets, differences)
    lengths = np.tanh(differences / differences.std(ddof=1))[:, None]
    model = LogisticRegression(C=PRIOR_SD**2, tol=1e-10, max_iter=10_000)
    model.fit(
        np.concatenate([lengths, lengths]),
        np.repeat([1, 0], 120),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    assert found.win_rate.value == pytest.approx(expit(model.intercept_[0]), abs=1e-5)
    assert found.effect.value == pytest.approx(model.coef_[0, 0], abs=1e-4)
    assert found.win_rate.low < found.win_rate.value < found.win_rate.high and found.win_rate.n == 120


def test_what_length_explains_is_taken_away():
    """Two policies that are equally good at equal length, of which A writes more: it wins more than half, and half when controlled."""
    targets, differences = drawn(2000, theta=0.0, phi=2.0, seed=3)
    found = controlled(targets, differences)
    assert targets.mean() > 0.57
    assert found.win_rate.value == pytest.approx(0.5, abs=0.04) and found.win_rate.low < 0.5 < found.win_rate.high
    assert found.effect.low > 1.5


def test_exchanged_policies_have_one_minus_the_rate():
    targets, differences = drawn(90, theta=0.7, phi=-1.0, seed=4)
    one, other = controlled(targets, differences), controlled(1 - targets, -differences)
    assert [one.win_rate.value, one.win_rate.low, one.win_rate.high] == pytest.approx(
        [1 - other.win_rate.value, 1 - other.win_rate.high, 1 - other.win_rate.low], abs=1e-8
    )
    assert one.effect.value == pytest.approx(other.effect.value, abs=1e-6)


@pytest.mark.parametrize("difference", [0, 40])
def test_lengths_that_differ_by_the_same_everywhere_change_nothing(difference):
    targets = np.array([1.0] * 14 + [0.0] * 6)
    found = controlled(targets, np.full(20, difference))
    assert found.win_rate == wilson(14, 20) and found.effect is None and "by the same" in found.note


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_where_one_policy_wins_everything_the_plain_rate_is_given(outcome):
    found = controlled(np.full(20, outcome), np.arange(20) * 10)
    assert found.win_rate == wilson(20 * outcome, 20) and "wins every comparison" in found.note


def test_where_every_comparison_is_a_tie_the_interval_is_not_a_point():
    found = controlled(np.full(20, 0.5), np.arange(20) * 10)
    assert found.win_rate == wilson(10, 20) and "ends alike" in found.note


def test_length_that_decides_everything_leaves_finite_numbers():
    """The longer answer always wins: without the prior the effect would be infinite. A is longer in 30 of 40, yet at equal length neither is better."""
    differences = np.concatenate([np.linspace(10, 300, 30), -np.linspace(10, 300, 10)])
    found = controlled((differences > 0).astype(float), differences)
    assert 3 < found.effect.value < 20
    assert 0.3 < found.win_rate.value < 0.8 and found.win_rate.low < 0.5


def test_a_single_loss_leaves_resamples_without_one_and_the_interval_stands():
    targets = np.ones(40)
    targets[7] = 0
    found = controlled(targets, np.random.default_rng(0).normal(0, 100, 40))
    assert found.win_rate.high == 1.0 and 0.8 < found.win_rate.low < found.win_rate.value < 1


def test_comparisons_of_one_prompt_share_its_weight_and_its_chance():
    """Each comparison four times with a quarter of the weight says what it said once, with the same interval."""
    targets, differences = drawn(60, theta=0.3, phi=1.0, seed=5)
    clusters = np.repeat(np.arange(60), 4)
    once = controlled(targets, differences)
    four = controlled(np.repeat(targets, 4), np.repeat(differences, 4), weights=np.full(240, 0.25), clusters=clusters)
    # The deviation of 240 values has another n - 1.
    assert four.win_rate.value == pytest.approx(once.win_rate.value, abs=2e-3)
    assert four.win_rate.high - four.win_rate.low == pytest.approx(once.win_rate.high - once.win_rate.low, rel=0.02)


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """300 data sets of 80 prompts: 95 % of the intervals should hold it; 0.92 is two standard errors and a half below."""
    hits = []
    for seed in range(300):
        targets, differences = drawn(80, theta=0.5, phi=1.5, seed=seed)
        found = controlled(targets, differences, seed=seed).win_rate
        hits.append(found.low <= expit(0.5) <= found.high)
    assert np.mean(hits) > 0.92
