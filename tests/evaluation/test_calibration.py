"""Calibration is fitted on some prompts and shown on others; it mends what it can and says what it cannot."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from rewardsmith.data.schema import Preference
from rewardsmith.errors import DataError
from rewardsmith.evaluation.calibration import calibrate, calibration_tables
from rewardsmith.stats import Estimate
from tests.fakes import by_table, constant, pair


def simulated(num_prompts, *, scale=1.0, per_prompt=3, seed=0):
    """(scorer, pairs) of a scorer whose margins, over `scale`, are the true log-odds."""
    rng = np.random.default_rng(seed)
    scores, pairs = {}, []
    for prompt in range(num_prompts):
        for i in range(per_prompt):
            margin = abs(rng.normal(0, 2))
            first_wins = rng.random() < expit(margin)
            a, b = f"a {prompt} {i}", f"b {prompt} {i}"
            scores[a], scores[b] = scale * margin, 0.0
            chosen, rejected = (a, b) if first_wins else (b, a)
            goal = "even" if prompt % 2 else "odd"
            pairs.append(Preference(f"{prompt}-{i}", f"prompt {prompt}", chosen, rejected, metadata={"goal": goal}))
    return by_table(scores), pairs


def test_a_tripled_scorer_is_repaired_on_prompts_it_was_not_fitted_on():
    scorer, pairs = simulated(600, scale=3.0)
    found = calibrate(scorer, pairs)
    raw, mended = (found.document["held_out"]["ways"][way] for way in ("raw", "temperature"))
    assert found.temperature.estimate.low <= 3 <= found.temperature.estimate.high
    assert raw["ece_p_value"] < 0.01 and raw["ece"]["value"] > raw["ece_null"]["high"]
    assert mended["ece"]["value"] <= mended["ece_null"]["high"]
    assert mended["gain"]["low"] > 0
    assert "claim too much" in found.document["verdict"] and "within" in found.document["verdict"]


def test_a_calibrated_scorer_is_left_in_peace():
    scorer, pairs = simulated(600)
    found = calibrate(scorer, pairs).document
    temperature = Estimate(**found["temperature"])
    assert temperature.low <= 1 <= temperature.high
    assert "need no temperature" in found["verdict"]
    assert found["held_out"]["ways"]["raw"]["gain"]["value"] == 0.0


def test_no_prompt_is_on_both_sides_and_the_shares_are_as_asked():
    scorer, pairs = simulated(100)
    found = calibrate(scorer, pairs, fit_share=0.3).document
    assert found["fit"]["num_prompts"] + found["held_out"]["num_prompts"] == 100
    assert found["fit"]["num_pairs"] == pytest.approx(90, abs=3)


def test_slices_get_their_temperatures_and_are_judged_with_them():
    calm, pairs_a = simulated(300, seed=1)
    rng = np.random.default_rng(5)
    loud_pairs, table = (
        [],
        {answer: float(calm.function("", answer)) for p in pairs_a for answer in (p.chosen, p.rejected)},
    )
    for i in range(900):
        margin = abs(rng.normal(0, 2))
        names = (f"loud a {i}", f"loud b {i}")
        table |= {names[0]: 4 * margin, names[1]: 0.0}
        chosen, rejected = names if rng.random() < expit(margin) else names[::-1]
        loud_pairs.append(Preference(f"l{i}", f"loud {i // 3}", chosen, rejected, metadata={"goal": "loud"}))
    found = calibrate(by_table(table), pairs_a + loud_pairs, by="goal").document
    ways = found["held_out"]["ways"]
    assert ways["slices"]["log_loss"]["value"] < ways["temperature"]["log_loss"]["value"]
    assert found["slices"]["temperatures"]["loud"]["value"] > 2.5
    assert {table.title for table in calibration_tables(found)} >= {
        f"{found['held_out']['num_pairs']:,} pairs of other prompts"
    }


def test_labelled_ties_and_empty_answers_stand_aside_and_are_counted():
    scorer, pairs = simulated(100)
    extra = [pair(1, tie=True), Preference("e", "x", "", "y")]
    found = calibrate(scorer, pairs + extra).document
    assert found["labelled_ties"] == 1 and found["dropped"] == {"empty_answer": 1}
    assert found["fit"]["num_pairs"] + found["held_out"]["num_pairs"] == len(pairs)


def test_the_same_seed_gives_the_same_document_and_another_another_split():
    scorer, pairs = simulated(80)
    first, again, other = (calibrate(scorer, pairs, seed=seed).document for seed in (0, 0, 1))
    assert first == again and first["temperature"] != other["temperature"]


def test_a_scorer_that_knows_nothing_is_refused():
    with pytest.raises(DataError, match="not all ties"):
        calibrate(constant(), [pair(i) for i in range(100)])
    with pytest.raises(DataError, match="two answers"):
        calibrate(constant(), [pair(1, tie=True)])


def test_a_column_of_numbers_has_the_same_bins_on_both_sides():
    scorer, pairs = simulated(200)
    numbered = [replace(one, metadata={"length": i / 7}) for i, one in enumerate(pairs)]
    found = calibrate(scorer, numbered, by="length").document
    assert len(found["slices"]["temperatures"]) == 4
    ways = found["held_out"]["ways"]
    assert ways["slices"]["log_loss"] != ways["temperature"]["log_loss"] or found["slices"]["spread"] == 0


def test_one_prompt_is_refused_in_its_own_words():
    scorer, pairs = simulated(1, per_prompt=50)
    with pytest.raises(DataError, match="at least two prompts, to fit on some"):
        calibrate(scorer, pairs)
