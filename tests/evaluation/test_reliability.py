"""The numbers behind the reliability diagram and the curve of selective accuracy."""

import numpy as np
import pytest

from rewardsmith import metrics
from rewardsmith.evaluation.reliability import margin_histogram, reliability, selective_accuracy
from tests.evaluation.test_temperature import simulated


def test_the_diagram_holds_the_calibration_error():
    margins = simulated(300, 2.0)
    bins = reliability(margins, np.arange(300))
    counts = [one["accuracy"]["n"] for one in bins]
    gaps = [abs(one["accuracy"]["value"] - one["confidence"]) for one in bins]
    assert sum(counts) == 300 and len(bins) == 15
    assert np.average(gaps, weights=counts) == pytest.approx(metrics.ece(margins, np.arange(300)).value)
    confidences = [one["confidence"] for one in bins]
    assert confidences == sorted(confidences) and confidences[0] >= 0.5


def test_a_calibrated_scorer_lies_on_the_diagonal():
    margins = simulated(6000, 1.0)
    inside = [
        one["accuracy"]["low"] <= one["confidence"] <= one["accuracy"]["high"]
        for one in reliability(margins, np.arange(6000))
    ]
    assert sum(inside) >= 13


def test_selective_accuracy_by_hand():
    # |d| falls with the place; the two most confident are right, the third wrong, the rest right.
    margins = np.array([10.0, 9.0, -8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    found = {one["share"]: one for one in selective_accuracy(margins, np.arange(10))}
    assert found[0.2]["accuracy"]["value"] == 1.0 and found[0.2]["least_margin"] == 9.0
    assert found[0.3]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert found[1.0]["accuracy"]["value"] == 0.9


def test_equal_confidence_is_answered_together():
    """A constant |margin|: there is no more confident half, whatever the order of the rows."""
    margins = np.r_[np.ones(50), -np.ones(50)]
    assert [(one["share"], one["accuracy"]["value"]) for one in selective_accuracy(margins, np.arange(100))] == [
        (1.0, 0.5)
    ]


def test_the_curve_of_a_calibrated_scorer_falls():
    found = [one["accuracy"]["value"] for one in selective_accuracy(simulated(4000, 1.0), np.arange(4000))]
    assert found[0] > found[9] > found[-1]


@pytest.mark.parametrize(
    "margins", [np.array([-3.0, 0.0, 1.0, 5.0]), np.zeros(4), np.array([2.0]), np.array([-1e-9, 3e5])]
)
def test_every_margin_is_in_a_bin_and_zero_is_an_edge(margins):
    found = margin_histogram(margins)
    assert sum(found["counts"]) == len(margins) and len(found["edges"]) == len(found["counts"]) + 1
    assert min(abs(edge) for edge in found["edges"]) < 1e-9 * max(1, *np.abs(found["edges"]))
