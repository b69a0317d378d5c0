"""Accuracy without labels: both forecasts by hand, their intervals by simulation, and what they are worth slice by slice."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit

from rewardsmith.auditing.predicted_accuracy import predict_accuracy, predict_slices
from rewardsmith.errors import DataError
from rewardsmith.metrics import log_losses


def named(side, count, each=1):
    return [f"{side}{i}" for i in range(count) for _ in range(each)]


def calibrated(rng, num_prompts, scale, each=1):
    """Margins of a scorer that is right with probability sigmoid(|margin|), the sizes |N(0, scale)|."""
    size = np.abs(rng.normal(0, scale, num_prompts * each))
    return np.where(rng.random(len(size)) < expit(size), size, -size)


def accuracy_of(scale):
    """The accuracy of `calibrated`, E sigmoid(|z| scale) of a standard normal z, as a sum over a fine grid."""
    z = np.linspace(0, 8, 20_001)
    density = np.exp(-(z**2) / 2)
    return float((density * expit(z * scale)).sum() / density.sum())


REFERENCE = (np.array([-1.0, -2.0, -3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]), named("a", 10))
NEW = (np.array([0.5, 1.0, 2.0, 3.0, 3.9, 4.1, 5.0, 6.0, 7.0, -8.0, 9.0, 20.0]), named("b", 12))


def test_atc_by_hand():
    """7 of 10 reference pairs are right, so the threshold lets the seven surest through, |d| >= 4; of the new ones these are 4.1, 5, 6, 7, 8, 9, 20: 7 of 12."""
    found = predict_accuracy(REFERENCE, NEW, is_labelled=False, temperature=2.0)
    assert found.atc.value == pytest.approx(7 / 12)
    assert found.threshold == pytest.approx(expit(4 / 2))
    assert found.reference_accuracy.value == 0.7
    assert (found.realised, found.atc_error, found.doc_error) == (None, None, None)


def test_doc_by_hand():
    """The reference's accuracy - (mean sigmoid(|d| / T) of the reference - that of the new pairs)."""
    found = predict_accuracy(REFERENCE, NEW, is_labelled=True, temperature=3.0)
    before, after = (expit(np.abs(margins) / 3).mean() for margins, _ in (REFERENCE, NEW))
    assert found.doc.value == pytest.approx(0.7 - (before - after))
    assert found.confidence_reference.value == pytest.approx(before)
    assert found.confidence_new.value == pytest.approx(after)
    assert found.realised.value == pytest.approx(11 / 12)
    assert found.doc_error.value == pytest.approx(found.doc.value - 11 / 12)
    assert not found.is_fitted


def test_without_labels_the_signs_of_the_new_margins_are_not_looked_at():
    turned = (-NEW[0], NEW[1])
    found, same = (predict_accuracy(REFERENCE, new, is_labelled=False, temperature=2.0) for new in (NEW, turned))
    assert found == same


def test_the_temperature_is_that_of_the_least_log_loss_and_atc_knows_none():
    rng = np.random.default_rng(0)
    reference = (3 * calibrated(rng, 200, 1.5), named("a", 200))
    new = (3 * calibrated(rng, 100, 1.0), named("b", 100))
    fitted = predict_accuracy(reference, new, is_labelled=False)
    least = minimize_scalar(
        lambda t: log_losses(reference[0], t).mean(), bounds=(0.1, 50), method="bounded", options={"xatol": 1e-8}
    )
    assert fitted.is_fitted and fitted.temperature == pytest.approx(least.x, rel=1e-4)
    handed = predict_accuracy(reference, new, is_labelled=False, temperature=0.7)
    assert handed.atc == fitted.atc and handed.doc != fitted.doc


def test_a_scorer_that_knows_nothing_foretells_what_it_has():
    """Equal scores: accuracy one half on ties, every confidence one half, and half of the new pairs stand above the threshold at which all stand."""
    found = predict_accuracy((np.zeros(20), named("a", 20)), (np.zeros(30), named("b", 30)), is_labelled=True)
    assert (found.atc.value, found.doc.value, found.realised.value) == (0.5, 0.5, 0.5)
    # Right on every pair: there is no temperature of least loss, and both forecasts are certain.
    sure = predict_accuracy(
        (np.arange(1.0, 21), named("a", 20)), (np.arange(1.0, 31), named("b", 30)), is_labelled=True
    )
    assert sure.atc.value == sure.doc.value == 1.0
    # Wrong more often than right: no confidence is worth anything, so nothing changes.
    wrong = predict_accuracy(
        (np.r_[np.ones(8), -np.ones(12)], named("a", 20)), (np.full(30, 5.0), named("b", 30)), is_labelled=False
    )
    assert wrong.doc.value == pytest.approx(0.4, abs=1e-2)
    json.dumps([one.as_dict() for one in (found, sure, wrong)], allow_nan=False)


@pytest.mark.parametrize("each", [1, 3])
def test_intervals_hold_the_chance_of_both_samples(each):
    """A calibrated scorer whose margins shrink by a third: 100 sets at 95 %, 95 with a standard deviation of 2.2. ATC's own target is a share of the surer pairs, from 400,000 draws."""
    covered = dict.fromkeys(("atc", "doc", "doc_error"), 0)
    many = np.sort(np.abs(np.random.default_rng(99).normal(0, 1.5, 400_000)))
    threshold = many[int((1 - accuracy_of(1.5)) * len(many))]
    targets = {"atc": (many / 1.5 > threshold).mean(), "doc": accuracy_of(1.0), "doc_error": 0.0}
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found = predict_accuracy(
            (calibrated(rng, 60, 1.5, each), named("a", 60, each)),
            (calibrated(rng, 50, 1.0, each), named("b", 50, each)),
            is_labelled=True,
            seed=seed,
        )
        for name, target in targets.items():
            estimate = getattr(found, name)
            covered[name] += estimate.low <= target <= estimate.high
    assert min(covered.values()) >= 88, covered


def test_the_reference_is_part_of_the_uncertainty():
    """4,000 new pairs have little chance left; 60 reference pairs have sqrt(.7 * .3 / 60) = 0.06 of it, and the interval says so."""
    rng = np.random.default_rng(1)
    two = (calibrated(rng, 60, 1.5), named("a", 60)), (calibrated(rng, 4000, 1.5), named("b", 4000))
    found = predict_accuracy(*two, is_labelled=False)
    assert found.doc.high - found.doc.low > 2 * 1.96 * 0.045
    assert found.atc.high - found.atc.low > 2 * 1.96 * 0.045
    # So is the temperature that was fitted on it; one that is handed in is taken as it is.
    handed = predict_accuracy(*two, is_labelled=False, temperature=found.temperature)
    widths = [one.confidence_new.high - one.confidence_new.low for one in (found, handed)]
    assert widths[0] > 5 * widths[1]


def test_few_prompts_and_broken_margins_are_refused():
    with pytest.raises(DataError, match="at least 10 prompts"):
        predict_accuracy(REFERENCE, (np.ones(20), named("b", 5, each=4)), is_labelled=False)
    with pytest.raises(DataError, match="finite"):
        predict_accuracy(REFERENCE, (np.full(12, np.nan), NEW[1]), is_labelled=False)


# Slices


def test_slices_of_a_calibrated_scorer_are_foretold_within_chance():
    """Eight slices of other difficulty, 150 pairs each: DoC errs by no more than chance would, and by less than the accuracy of the others does."""
    rng = np.random.default_rng(2)
    scales = np.linspace(0.3, 3.0, 8)
    margins = np.concatenate([calibrated(rng, 150, scale) for scale in scales])
    values = [f"topic {k}" for k in range(8) for _ in range(150)]
    found = predict_slices(margins, named("p", 1200), [*values[:-1], None], column="topic")
    assert len(found.predictions) == 8
    assert found.doc_error.value < 2 * found.chance_error < found.no_shift_error.value
    for name in ("atc_error", "doc_error"):
        by_hand = np.mean([abs(getattr(one, name).value) for one in found.predictions.values()])
        assert getattr(found, name).value == pytest.approx(by_hand)
    # A proportion of 150 near 0.7 has a standard deviation of 0.037; its mean absolute deviation is sqrt(2 / pi) of that.
    assert found.chance_error == pytest.approx(0.8 * 0.037, abs=0.006)
    covered = sum(one.doc_error.low <= 0 <= one.doc_error.high for one in found.predictions.values())
    assert covered >= 7
    assert found.table().row_count == 9
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_prompt_on_both_sides_is_drawn_for_both_at_once():
    """Each prompt has one pair in either slice, both with the same margin: what one slice foretells of the other is then free of chance."""
    rng = np.random.default_rng(3)
    margins = calibrated(rng, 100, 1.5)
    found = predict_slices(
        np.r_[margins, margins], [*named("p", 100), *named("p", 100)], ["x"] * 100 + ["y"] * 100, column="copy"
    )
    for one in found.predictions.values():
        assert one.doc_error.value == pytest.approx(0, abs=1e-9) and one.atc_error.value == pytest.approx(0, abs=1e-9)
        assert one.doc_error.high - one.doc_error.low < 1e-6
        assert one.doc.high - one.doc.low > 0.1


def test_values_of_few_prompts_are_named_and_left_out():
    rng = np.random.default_rng(4)
    values = ["a"] * 40 + ["b"] * 40 + ["rare"] * 9
    found = predict_slices(calibrated(rng, 89, 1.0), named("p", 89), values, column="topic")
    assert set(found.predictions) == {"a", "b"} and found.too_few == ("rare",)
    with pytest.raises(DataError, match="at least 2 values of 'topic'"):
        predict_slices(calibrated(rng, 49, 1.0), named("p", 49), values[40:], column="topic")
