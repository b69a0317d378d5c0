"""Two scorers on the same pairs: the paired verdict, its words, and the slices on which they differ."""

import numpy as np
import pytest

from rewardsmith.errors import DataError
from rewardsmith.evaluation.comparison import compare, compare_scores, comparison_table
from tests.fakes import FunctionScorer, constant, likes_long_answers, pair


def pairs_of(count, per_prompt=1):
    return [pair(i, prompt=f"prompt {i // per_prompt}", metadata={"half": "a" if i % 2 else "b"}) for i in range(count)]


def test_by_hand():
    """A right on 0 1 2 3 5, B on 0 1 4, both tie nowhere: 3 pairs for A alone (2, 3, 5), 1 for B (4): p = 2 * (1 + 4) / 16 = 0.625."""
    a = np.array([1.0, 1, 1, 1, -1, 1])
    b = np.array([1.0, 1, -1, -1, 1, -1])
    found = compare_scores(a, b, pairs_of(6)).document
    assert found["accuracy_a"]["value"] == pytest.approx(5 / 6) and found["accuracy_b"]["value"] == 0.5
    assert found["difference"]["value"] == pytest.approx(2 / 6)
    assert found["discordant"] == {"only_a": 3, "only_b": 1}
    assert (found["test"], found["p_value"]) == ("exact McNemar", pytest.approx(0.625))
    assert found["detectable_difference"]["discordance"] == 0.2  # of four discordant pairs no share is read
    assert "do not tell A and B apart" in found["verdict"]


def test_a_better_scorer_is_named_and_the_order_only_turns_the_sign():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.0, 1, 600), rng.normal(0.2, 1, 600)
    found = compare_scores(a, b, pairs_of(600), names=("strong", "weak"))
    mirrored = compare_scores(b, a, pairs_of(600), names=("weak", "strong"))
    assert found.document["verdict"].startswith("strong is right more often than weak, by")
    assert mirrored.document["verdict"].startswith("strong is right more often than weak, by")
    assert mirrored.difference.value == -found.difference.value
    assert mirrored.document["p_value"] == found.document["p_value"]


def test_pairs_of_one_prompt_count_once():
    """The same difference in 60 pairs of 12 prompts is less evidence than in 60 pairs of 60."""
    lean = np.repeat(np.random.default_rng(1).choice([1.0, -1.0], 12, p=[0.8, 0.2]), 5)
    alone, together = (compare_scores(lean, -lean, pairs_of(60, n)).document for n in (1, 5))
    assert together["test"] == "sign flips over prompts" and together["p_value"] > 10 * alone["p_value"]
    assert together["detectable_difference"]["difference"] > 1.5 * alone["detectable_difference"]["difference"]


def test_a_difference_on_one_slice_is_found_and_paid_for():
    rng = np.random.default_rng(2)
    pairs = pairs_of(400)
    better = np.array([one.metadata["half"] == "a" for one in pairs])
    a = np.where(better, 1.0, rng.normal(0.5, 1, 400))
    b = np.where(better, rng.choice([1.0, -1.0], 400), a)
    found = compare_scores(a, b, pairs).document["slices"]
    assert (found[0]["column"], found[0]["value"], found[0]["flagged"]) == ("half", "a", True)
    assert all(one["p_adjusted"] >= one["p_value"] for one in found)
    assert not next(one for one in found if one["value"] == "b")["flagged"]


def test_scorers_are_run_on_the_same_pairs_and_equal_names_told_apart():
    pairs = [*pairs_of(30), pair(99, tie=True)]
    found = compare((likes_long_answers(), constant()), pairs, names=("model", "model"))
    assert (found.document["model_a"], found.document["model_b"]) == ("model (A)", "model (B)")
    assert found.document["labelled_ties"] == 1 and found.document["num_pairs"] == 30
    assert comparison_table(found.document, "x").row_count >= 4


def test_a_scorer_against_itself_differs_by_nothing():
    scorer = FunctionScorer(lambda prompt, answer: hash(answer) % 7 / 7)
    found = compare((scorer, scorer), pairs_of(50)).document
    assert (found["difference"]["value"], found["p_value"]) == (0.0, 1.0)
    assert found["log_loss_difference"] == found["log_loss_difference"] | {"value": 0.0, "low": 0.0, "high": 0.0}


def test_half_wins_never_name_the_scorer_that_is_behind():
    """60 ties of B that A gets right (+0.5 each) against 31 whole wins of B: on balance B is ahead by one, which says nothing."""
    a, b = np.r_[np.ones(60), -np.ones(31)], np.r_[np.zeros(60), np.ones(31)]
    found = compare_scores(a, b, pairs_of(91)).document
    assert found["difference"]["value"] == pytest.approx(-1 / 91)
    assert found["test"] == "sign flips over prompts" and found["p_value"] > 0.5


def test_parts_of_few_prompts_are_shown_and_not_tested():
    pairs = pairs_of(40)
    for one in pairs[:5]:
        one.metadata["half"] = "few"
    found = compare_scores(np.ones(40), -np.ones(40), pairs).document["slices"]
    few = next(one for one in found if one["value"] == "few")
    assert few["p_value"] is None and not few["flagged"] and found[-1]["p_adjusted"] is None


def test_nothing_to_compare_is_an_error():
    with pytest.raises(DataError, match="a winner"):
        compare((constant(), constant()), [pair(1, tie=True)])
    with pytest.raises(DataError, match="one margin"):
        compare_scores(np.ones(3), np.ones(2), pairs_of(3))
