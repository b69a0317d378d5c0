"""Temperatures against their definition, and slices that share evidence as far as they have little of their own."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit

from rewardsmith import metrics
from rewardsmith.errors import DataError
from rewardsmith.evaluation.temperature import fit_temperature, slice_temperatures


def simulated(count, temperature, seed=0, size=2.0):
    """Margins whose outcomes are drawn with p = sigmoid(d / temperature)."""
    rng = np.random.default_rng(seed)
    margins = np.abs(rng.normal(0, size, count))
    return np.where(rng.random(count) < expit(margins / temperature), margins, -margins)


def test_the_temperature_has_the_least_log_loss():
    margins = simulated(500, 1.7)
    found = fit_temperature(margins, np.arange(500)).value
    direct = minimize_scalar(lambda t: metrics.log_losses(margins, t).mean(), bounds=(0.1, 20), method="bounded")
    assert found == pytest.approx(direct.x, rel=1e-4)


def test_the_unit_of_the_scores_does_not_matter():
    margins = simulated(300, 1.0)
    first, second = (fit_temperature(scale * margins, np.arange(300)).estimate for scale in (1.0, 250.0))
    assert second.value == pytest.approx(250 * first.value) and second.low == pytest.approx(250 * first.low)


def test_by_hand():
    # 30 pairs of margin +1 and 10 of -1: the likelihood is greatest where sigmoid(1 / T) = 30 / 40, so T = 1 / ln 3.
    margins = np.r_[np.ones(30), -np.ones(10)]
    found = fit_temperature(margins, np.arange(40))
    assert found.value == pytest.approx(1 / np.log(3))
    # The error of b = 1 / T: slopes are 1/4 (30 times) and -3/4 (10 times), curvature 40 * 3/16 = 7.5, so
    # sqrt(40 / 39 * (30 / 16 + 10 * 9 / 16)) / 7.5 = 0.36980, and relative to b = ln 3 it is that of log T.
    assert found.log_error == pytest.approx(0.36980 / np.log(3), rel=1e-4)


def test_a_tripled_model_is_told_apart_from_a_calibrated_one():
    margins = simulated(2000, 1.0)
    calm, loud = (fit_temperature(scale * margins, np.arange(2000)).estimate for scale in (1, 3))
    assert calm.low <= 1 <= calm.high
    assert loud.low > 2 and loud.low <= 3 <= loud.high


@pytest.mark.parametrize(
    ("margins", "words"),
    [
        (np.ones(40), "wrong now and then"),
        (-np.ones(40), "right more often than wrong"),
        (np.zeros(40), "not all ties"),
        (np.ones(5), "at least 20 pairs"),
        (np.array([]), "at least 20 pairs"),
    ],
)
def test_pairs_without_a_least_loss_are_refused_with_the_reason(margins, words):
    with pytest.raises(DataError, match=words):
        fit_temperature(margins, np.arange(len(margins)))


def test_few_prompts_give_no_temperature():
    """Of one prompt the slopes sum to 0 at the optimum: the error would be 0."""
    with pytest.raises(DataError, match="at least 10 prompts"):
        fit_temperature(simulated(60, 1.0), np.repeat(np.arange(9), 7)[:60])


def test_slices_of_one_temperature_share_it():
    """Eight slices of one truth: what differs is chance, so tau is small and the slices stay near the common temperature."""
    margins = simulated(1600, 2.0)
    values = [f"s{i % 8}" for i in range(1600)]
    found = slice_temperatures(margins, np.arange(1600), values, column="goal")
    assert found.spread < 0.15
    own = [fit_temperature(margins[i::8], np.arange(200)).value for i in range(8)]
    shrunk = [found.temperatures[f"s{i}"].value for i in range(8)]
    assert max(abs(np.log(np.array(shrunk) / found.common))) < max(abs(np.log(np.array(own) / found.common)))


def test_slices_of_different_temperatures_keep_theirs():
    sharp, dull = simulated(1500, 1.0, seed=1), simulated(1500, 4.0, seed=2)
    margins = np.r_[sharp, dull]
    values = ["sharp"] * 1500 + ["dull"] * 1500
    found = slice_temperatures(margins, np.arange(3000), values, column="goal")
    assert found.spread > 0.5
    assert found.temperatures["sharp"].value == pytest.approx(1.0, rel=0.2)
    assert found.temperatures["dull"].value == pytest.approx(4.0, rel=0.25)
    calibrated = metrics.log_losses(margins / found.of(values)).mean()
    assert calibrated < metrics.log_losses(margins, found.common).mean()


def test_a_small_slice_is_drawn_further_to_the_common_temperature_than_a_large_one():
    margins = np.r_[simulated(2000, 1.0, 1), simulated(2000, 3.0, 2), simulated(40, 3.0, 3)]
    values = ["a"] * 2000 + ["b"] * 2000 + ["few"] * 40
    found = slice_temperatures(margins, np.arange(4040), values, column="goal").temperatures
    pull = {name: float(one.method.split()[2]) for name, one in found.items()}
    assert pull["few"] > 3 * pull["b"]


def test_values_without_evidence_use_the_common_temperature():
    margins = np.r_[simulated(200, 1.0), np.ones(5)]
    values = ["a"] * 200 + ["tiny"] * 5
    found = slice_temperatures(margins, np.arange(205), values, column="goal")
    assert found.left_to_common == ["tiny"]
    assert found.of(["tiny", "never seen", None]).tolist() == [found.common] * 3
