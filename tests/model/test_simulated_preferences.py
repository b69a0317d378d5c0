"""The loss that matches the labels recovers the true scores better: the study of docs/losses.md, small in every run and at its size in the slow one."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from benchmarks import simulated_preferences as simulated
from benchmarks.simulated_preferences import SCENARIOS

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "simulated_preferences.json"
SHOWN = [(name, *pair) for name, scenario in SCENARIOS.items() for pair in scenario.shown]
NAMED = ("ties_rao_kupper", "ties_davidson", "votes_5", "lists_4")


def found(rows, ours, theirs):
    return [row for row in rows if (row["ours"]["loss"], row["theirs"]["loss"]) == (ours, theirs)]


def test_ties_votes_and_lists_are_what_the_study_claims():
    assert {name for name, _, _ in SHOWN} == set(NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_the_matching_loss_is_nearer_to_the_truth_on_fresh_pairs(name):
    """Six data sets of the small size; the signs of the mean differences, whose intervals the slow test asks for."""
    contestants = SCENARIOS[name].simulate(np.random.default_rng(0), 20).contestants
    penalties = dict.fromkeys(contestants, 1.0)
    runs = [simulated.measure(name, SCENARIOS[name].sizes[0], data_set, penalties) for data_set in range(6)]
    for ours, theirs in SCENARIOS[name].shown:
        assert np.mean([run[ours]["decided"] - run[theirs]["decided"] for run in runs]) < 0, (ours, theirs)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMED)
def test_at_the_size_of_the_study_the_intervals_exclude_0(name):
    rows = simulated.study([name], data_sets=simulated.DATA_SETS, jobs=2)
    for ours, theirs in SCENARIOS[name].shown:
        both_sizes = found(rows, ours, theirs)
        assert len(both_sizes) == 2
        for row in both_sizes:
            assert row["difference"]["decided"]["high"] < 0, row["benchmark"]


def test_the_stored_results_are_of_this_study_and_show_what_it_claims():
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    compared = [
        (name, size, ours, theirs)
        for name, scenario in SCENARIOS.items()
        for size in scenario.sizes
        for ours, theirs in scenario.comparisons
    ]
    assert [(row["scenario"], row["prompts"], row["ours"]["loss"], row["theirs"]["loss"]) for row in rows] == compared
    assert {row["difference"]["decided"]["n"] for row in rows} == {simulated.DATA_SETS}
    claimed = [row for row in rows if row["target"] is not None]
    assert {(row["scenario"], row["ours"]["loss"], row["theirs"]["loss"]) for row in claimed} == set(SHOWN)
    assert all(row["difference"]["decided"]["high"] < 0 for row in claimed)


# The study's own parts, by hand


def test_a_data_set_is_a_function_of_its_numbers():
    penalties = {"plackett_luce": 1.0, "BT, all pairs": 0.3}
    first, second = (simulated.measure("lists_4", 50, 3, penalties) for _ in range(2))
    assert first == second


def test_a_fifth_of_the_pairs_are_ties():
    generator = np.random.default_rng(0)
    # Margins of two standard normal scores have a variance of 2.
    margins = math.sqrt(2) * generator.normal(size=200_000)
    for probabilities in (simulated.rao_kupper_choices, simulated.davidson_choices):
        truth = probabilities(margins, simulated.parameter_of_ties(probabilities, 0.2))
        assert truth.sum(axis=1) == pytest.approx(1.0)
        # The standard error of such a mean is under 0.0003.
        assert truth[:, 2].mean() == pytest.approx(0.2, abs=0.001)


def test_choices_by_hand():
    # Worths 2 and 1/2, so margin ln 4. theta = 2: 2 / (2 + 1), 0.5 / (0.5 + 4); nu = 1: 2 : 0.5 : 1.
    margins = np.array([math.log(4)])
    assert simulated.rao_kupper_choices(margins, math.log(2))[0] == pytest.approx([2 / 3, 1 / 9, 2 / 9])
    assert simulated.davidson_choices(margins, 1.0)[0] == pytest.approx([4 / 7, 1 / 7, 2 / 7])
    assert simulated.choices(margins)[0] == pytest.approx([4 / 5, 1 / 5, 0])


def test_log_losses_by_hand():
    truth = np.array([[0.5, 0.25, 0.25]])
    bradley_terry, ties = np.log([[0.75, 0.25]]), np.log([[0.6, 0.2, 0.2]])
    # Of the decided 0.75: two thirds first. Both predictions say 3/4 of those that are decided.
    expected = -(2 / 3 * math.log(0.75) + 1 / 3 * math.log(0.25))
    assert simulated.decided(truth, bradley_terry) == pytest.approx(expected)
    assert simulated.decided(truth, ties) == pytest.approx(expected)
    # Half of the ties each way: 0.625 and 0.375 in truth; 0.7 and 0.3 in the prediction with ties.
    expected = -(0.625 * math.log(0.75) + 0.375 * math.log(0.25))
    assert simulated.halves(truth, bradley_terry) == pytest.approx(expected)
    expected = -(0.625 * math.log(0.7) + 0.375 * math.log(0.3))
    assert simulated.halves(truth, ties) == pytest.approx(expected)
    # Bradley-Terry gets the true share of ties, 1/4: 0.75 x 3/4, 0.25 x 3/4, 1/4.
    expected = -(0.5 * math.log(0.5625) + 0.25 * math.log(0.1875) + 0.25 * math.log(0.25))
    assert simulated.three(truth, bradley_terry) == pytest.approx(expected)
    assert simulated.three(truth, ties) == pytest.approx(-(0.5 * math.log(0.6) + 0.5 * math.log(0.2)))


def test_the_higher_of_two_levels_by_hand():
    # First: levels 0, 1, 2 with 0.2, 0.3, 0.5; second with 0.5, 0.5, 0. Higher: 0.3 x 0.5 + 0.5 x 1; lower: 0.2 x 0.5; equal: 0.1 + 0.15.
    levels = np.array([[[0.2, 0.3, 0.5], [0.5, 0.5, 0.0]]])
    assert simulated.outcomes_of_levels(levels)[0] == pytest.approx([0.65, 0.1, 0.25])


def test_all_pairs_of_a_list_put_the_better_answer_first_and_leave_equal_ones_out():
    features = np.array([[[0.0], [1.0], [2.0]]])
    pairs, gaps = simulated.all_pairs(features, np.array([[1.0, 3.0, 1.0]]))
    # The second beats the first and the third, both by 2.
    assert pairs[:, :, 0].tolist() == [[1.0, 0.0], [1.0, 2.0]] and gaps.tolist() == [2.0, 2.0]
