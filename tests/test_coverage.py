"""Every kind of interval covers the truth: 500 simulated data sets each, independent and clustered, 93 to 97 of 100 (500 trials of 0.95: 475 with a standard deviation of 4.9)."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import expit

from rewardsmith import metrics
from rewardsmith.evaluation.slices import slices
from rewardsmith.evaluation.temperature import fit_temperature
from rewardsmith.stats import Estimate, Floats, linear_proportion, mean, proportion

NUM_SETS = 500
Draw = Callable[[np.random.Generator], tuple[Floats, np.ndarray]]


def independent(rng: np.random.Generator) -> tuple[Floats, np.ndarray]:
    """120 pairs of 120 prompts, margins ~ N(0.5, 1)."""
    return rng.normal(0.5, 1.0, 120), np.arange(120)


def clustered(rng: np.random.Generator) -> tuple[Floats, np.ndarray]:
    """1 to 5 pairs of each of 80 prompts; half of the variance of a margin is its prompt's."""
    sizes = rng.integers(1, 6, 80)
    prompts = np.repeat(np.arange(80), sizes)
    return rng.normal(0.5, np.sqrt(0.5), 80)[prompts] + rng.normal(0, np.sqrt(0.5), len(prompts)), prompts


def truth(function: Callable[[Floats], Floats]) -> float:
    """The mean over N(0.5, 1), of which both ways of drawing have their margins, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    return float((weights * function(0.5 + nodes)).sum() / weights.sum())


def share_covered(draw: Draw, interval: Callable[[Floats, np.ndarray, int], Estimate], target: float) -> float:
    covered = 0
    for seed in range(NUM_SETS):
        found = interval(*draw(np.random.default_rng(1000 + seed)), seed)
        covered += found.low <= target <= found.high
    return covered / NUM_SETS


# P(N(0.5, 1) > 0) = Phi(0.5)
ACCURACY = 0.6914625
INTERVALS = {
    "accuracy": (lambda m, c, seed: metrics.accuracy(m, c, seed=seed), ACCURACY),
    "accuracy, linear": (lambda m, c, seed: linear_proportion(metrics.wins(m), c), ACCURACY),
    "log-loss": (lambda m, c, seed: mean(metrics.log_losses(m), c, seed=seed), truth(metrics.log_losses)),
    "mean margin": (lambda m, c, seed: mean(m, c, seed=seed), 0.5),
}
SLOW_INTERVALS = {
    # d_i + d_j ~ N(1, 2) for different prompts: Phi(1 / sqrt(2)); pairs of one prompt are few enough not to matter.
    "AUC": (lambda m, c, seed: metrics.auc(m, c, seed=seed), 0.760250),
}


@pytest.mark.parametrize("draw", [independent, clustered], ids=["independent", "clustered"])
@pytest.mark.parametrize("name", [*INTERVALS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_INTERVALS)])
def test_intervals_cover_the_truth(name, draw):
    interval, target = (INTERVALS | SLOW_INTERVALS)[name]
    assert 0.93 <= share_covered(draw, interval, target) <= 0.97


def test_paired_differences_cover_the_truth():
    """Scorers with margins N(0.5, 1) and N(0.3, 1), half of whose variance they share prompt by prompt: Phi(0.5) - Phi(0.3) = 0.0735513."""

    def draw(rng):
        prompts = np.repeat(np.arange(80), 3)
        ease = rng.normal(0, np.sqrt(0.5), 80)[prompts]
        return np.stack([centre + ease + rng.normal(0, np.sqrt(0.5), 240) for centre in (0.5, 0.3)]), prompts

    def interval(margins, prompts, seed):
        return mean(metrics.wins(margins[0]) - metrics.wins(margins[1]), prompts, seed=seed)

    assert 0.93 <= share_covered(draw, interval, 0.0735513) <= 0.97


@pytest.mark.parametrize("per_prompt", [1, 4])
def test_temperatures_cover_the_truth(per_prompt):
    """Outcomes drawn with p = sigmoid(d / 2): T = 2, in independent pairs and in four pairs of a prompt of which the label noise is shared by two."""
    covered = 0
    for seed in range(NUM_SETS):
        rng = np.random.default_rng(seed)
        size = np.abs(rng.normal(0, 3, 400))
        draws = rng.random(400)
        if (
            per_prompt > 1
        ):  # pairs 0 and 1 of a prompt have the same margin and outcome: half as much evidence as it seems
            size = size.reshape(-1, 4)
            size[:, 1] = size[:, 0]
            draws = draws.reshape(-1, 4)
            draws[:, 1] = draws[:, 0]
        margins = np.where(draws.ravel() < expit(size.ravel() / 2), size.ravel(), -size.ravel())
        found = fit_temperature(margins, np.repeat(np.arange(400 // per_prompt), per_prompt)).estimate
        covered += found.low <= 2 <= found.high
    assert 0.93 <= covered / NUM_SETS <= 0.97


@pytest.mark.slow
def test_slices_against_the_rest_cover_and_cry_wolf_at_their_level():
    """Ten slices without any difference: each interval covers 0, and Holm raises a false alarm in about 5 % of the evaluations at most."""
    covered = tested = alarms = 0
    for seed in range(NUM_SETS):
        rng = np.random.default_rng(seed)
        prompts = np.repeat(np.arange(150), 2)
        margins = rng.normal(0.5, 0.7, 150)[prompts] + rng.normal(0, 0.7, 300)
        column = [f"value {i}" for i in rng.integers(0, 10, 150)[prompts]]
        found = slices({"column": column}, margins, prompts, seed=seed)
        covered += sum(one.difference.low <= 0 <= one.difference.high for one in found)
        tested += len(found)
        alarms += any(one.p_adjusted is not None and one.p_adjusted < 0.05 for one in found)
    assert 0.93 <= covered / tested <= 0.97
    assert alarms / NUM_SETS <= 0.08


def test_the_bootstrap_of_a_mean_is_the_weighted_one_bit_for_bit_in_its_draws():
    rng = np.random.default_rng(0)
    values, prompts = rng.normal(size=300), np.repeat(np.arange(100), 3)
    from rewardsmith.stats import cluster_bootstrap

    weighted = cluster_bootstrap(lambda weights: (weights @ values) / weights.sum(axis=1), prompts, seed=3)
    quick = mean(values, prompts, seed=3)
    assert (quick.low, quick.high) == (pytest.approx(weighted.low), pytest.approx(weighted.high))


def test_proportions_of_few_prompts_cover():
    """Twelve prompts of three pairs: the percentiles' correction is what keeps the interval honest."""
    covered = 0
    for seed in range(NUM_SETS):
        rng = np.random.default_rng(seed)
        prompts = np.repeat(np.arange(12), 3)
        rates = rng.beta(6, 4, 12)
        found = proportion((rng.random(36) < rates[prompts]).astype(float), prompts, seed=seed)
        covered += found.low <= 0.6 <= found.high
    assert 0.92 <= covered / NUM_SETS <= 0.98
