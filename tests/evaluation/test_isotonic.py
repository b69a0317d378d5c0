"""Isotonic calibration is symmetric, monotone, never certain, and the least-squares fit."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from rewardsmith import metrics
from rewardsmith.errors import DataError
from rewardsmith.evaluation.isotonic import Isotonic, fit_isotonic
from tests.evaluation.test_temperature import simulated


def test_it_is_symmetric_rising_and_never_certain():
    fitted = fit_isotonic(simulated(400, 1.3))
    grid = np.linspace(-12, 12, 401)
    probabilities = fitted(grid)
    assert probabilities + fitted(-grid) == pytest.approx(np.ones(401))
    assert (np.diff(probabilities) >= -1e-12).all()
    assert probabilities.max() <= 1 - 1 / 402 and fitted(np.zeros(1))[0] == 0.5


def test_it_is_the_isotonic_regression_of_both_orders():
    margins = simulated(300, 1.0)
    both = IsotonicRegression(out_of_bounds="clip").fit(np.r_[margins, -margins], np.r_[np.ones(300), np.zeros(300)])
    # At the margins themselves, away from the bound of certainty and from the coin toss at 0.
    inner = np.abs(margins)[(np.abs(margins) > 0.3) & (np.abs(margins) < 4)]
    expected = np.clip(both.predict(inner), 0.5, 1 - 1 / 302)
    assert fit_isotonic(margins)(inner) == pytest.approx(expected, abs=1e-9)


def test_a_crooked_scorer_is_mended_where_a_temperature_cannot():
    """Half of its margins are blown up: no single temperature fits both halves."""
    rng = np.random.default_rng(0)
    truth = np.abs(rng.normal(0, 2, 6000))
    margins = np.where(rng.random(6000) < expit(truth), 1, -1) * np.where(truth > 1, truth**3, truth)
    fitted = fit_isotonic(margins[:3000])
    held = margins[3000:]
    best = min(metrics.log_losses(held, t).mean() for t in np.linspace(0.5, 20, 100))
    assert -np.log(fitted(held)).mean() < best


def test_it_survives_json():
    fitted = fit_isotonic(simulated(100, 1.0))
    again = Isotonic.from_dict(fitted.as_dict())
    grid = np.linspace(-5, 5, 50)
    assert (again(grid) == fitted(grid)).all()


def test_few_pairs_are_refused():
    with pytest.raises(DataError, match="at least 20 pairs"):
        fit_isotonic(np.ones(19))
