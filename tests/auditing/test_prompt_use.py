"""Whether the prompt is read: the measures by hand, the index at its two ends, and what a cure changes."""

import numpy as np
import pytest

from rewardsmith.auditing.probes import prompt_use as probes  # noqa: F401
from rewardsmith.auditing.prompt_use import (
    INDICES,
    MEASURES,
    change_table,
    compare_prompt_use,
    known_scores,
    measure_prompt_use,
)
from rewardsmith.auditing.registry import PROBES
from rewardsmith.auditing.trials import Plan, subjects_of
from rewardsmith.data.schema import Preference
from rewardsmith.errors import DataError
from tests.auditing.habits import noise, number_of, pairs_of, with_habit
from tests.fakes import FunctionScorer, constant, pair

THREE = [
    Preference("sea", "Why is the sea salty?", "good sea", "bad sea"),
    Preference("sky", "Why is the sky blue?", "good sky", "bad sky"),
    Preference("tea", "How long should green tea steep?", "good tea", "bad tea"),
]


def _value(found, name):
    estimate = found.estimates[name]
    return None if estimate is None else (estimate.value, estimate.n)


def test_measures_by_hand():
    """Scores: preferred answers 2 under their own prompt and 1 under another or none, bad sea 3, other rejected ones 1."""

    def score(prompt, answer):
        if answer.startswith("bad"):
            return 3.0 if answer == "bad sea" else 1.0
        return 2.0 if answer.removeprefix("good ") in prompt else 1.0

    found = measure_prompt_use(FunctionScorer(score), THREE)
    assert _value(found, "accuracy") == (2 / 3, 3)  # sea is wrong
    # Under another prompt sea is wrong (1 < 3), and the others are ties.
    assert _value(found, "accuracy_wrong_prompt") == _value(found, "accuracy_no_prompt") == (1 / 3, 3)
    assert _value(found, "match") == (1.0, 3)
    assert _value(found, "match_hard") == (1.0, 2)  # tea has no word in common with another prompt
    assert _value(found, "off_topic_beats_rejected") == (1 / 3, 3)
    assert _value(found, "hard_negative_beats_rejected") == (1 / 4, 2)  # sea 0, sky a tie
    # Three pairs do not tell 2 / 3 from one half.
    assert found.indices == {"index": None, "index_no_prompt": None}
    assert "0.667 [0.208, 0.939] (n=3), is not told from one half" in found.why_not["index"]
    assert 0 < found.mean_cosine < 1


def _blind(strength=2.0):
    return with_habit(lambda prompt, answer: "good" in answer, strength)


def _ties_without_prompt():
    return FunctionScorer(
        lambda prompt, answer: float("good" in answer) if number_of(prompt) == number_of(answer) else 0.0
    )


def _reads(share, strength=2.0):
    """Quality for everything, and the preference in part only for answers to the prompt."""

    def preference(prompt, answer):
        right = "good" in answer
        return right * (share if number_of(prompt) == number_of(answer) else 0.0) + right * (1 - share)

    return with_habit(preference, strength)


def test_the_index_of_a_blind_scorer_is_0_and_of_one_that_knows_nothing_else_1():
    blind = measure_prompt_use(_blind(), pairs_of())
    for name in INDICES:
        index = blind.indices[name]
        assert index.value == 0.0 and index.low < 0.0 < index.high < 0.1
    reading = measure_prompt_use(_ties_without_prompt(), pairs_of())
    for name in INDICES:
        index = reading.indices[name]
        assert index.value == 1.0 and 0.9 < index.low < 1.0 < index.high
    assert reading.estimates["accuracy_wrong_prompt"].value == 0.5


def test_the_index_in_between_covers_what_was_planted():
    """With preference b under the own prompt and b/2 under others, answers of sd 1: A = Phi(b / sqrt 2), A_other = Phi(b / 2 / sqrt 2)."""
    from scipy.stats import norm

    b = 1.5
    own, other = norm.cdf(b / np.sqrt(2)), norm.cdf(b / 2 / np.sqrt(2))
    found = measure_prompt_use(_reads(0.5, b), pairs_of(600))
    index = found.indices["index"]
    assert index.low <= (own - other) / (own - 0.5) <= index.high
    assert index.high - index.low < 0.5 and index.method == "bootstrap over 600 prompts"


def test_a_scorer_without_skill_has_no_index_and_says_why():
    found = measure_prompt_use(constant(), pairs_of(40))
    assert found.indices["index"] is None and found.as_dict()["index"] is None
    assert "is not told from one half" in found.as_dict()["why_not"]["index"]
    assert "cannot be said" in found.reading


def test_pairs_of_one_prompt_are_one_piece_of_evidence():
    alone = [pair(i, prompt=f"prompt number {i}") for i in range(60)]
    together = [pair(i, prompt=f"prompt number {i // 6}") for i in range(60)]
    scorer = FunctionScorer(lambda prompt, answer: 1.0 if "good" in answer and hash_of(answer) > -0.8 else 0.5)
    wide, narrow = (measure_prompt_use(scorer, pairs).estimates["accuracy"] for pairs in (together, alone))
    assert wide.n == narrow.n == 60 and "10 prompts" in wide.method
    assert wide.value == narrow.value


def hash_of(answer):
    return noise(answer)


def test_scores_that_are_known_are_not_asked_for_again():
    pairs, scorer = pairs_of(30), _blind()
    names = ("wrong_prompt", "no_prompt", "off_topic", "hard_negative")
    plan = Plan([PROBES[name] for name in names], subjects_of(pairs), seed=5)
    plan.add([one.chosen_pair for one in pairs])
    known = known_scores(plan.pairs, scorer.score(plan.pairs))
    again = FunctionScorer(scorer.function)
    found = measure_prompt_use(again, pairs, seed=5, known=known)
    assert again.calls == []
    assert found.as_dict() == measure_prompt_use(scorer, pairs, seed=5).as_dict()
    measure_prompt_use(again, pairs, seed=6, known=known)  # other prompts stand in for theirs
    assert 0 < sum(again.calls) <= 30 * 4


def test_each_text_is_scored_once():
    scorer, pairs = _blind(), pairs_of(30)
    measure_prompt_use(scorer, pairs)
    # Of each pair: 2 texts under 3 prompts, and 2 lent answers.
    assert sum(scorer.calls) <= 30 * 8


def test_what_cannot_be_judged_is_left_out_and_counted():
    pairs = [*pairs_of(12), pair(90, tie=True), Preference("e", "How?", "", "bad"), Preference("q", "How?", "a", "a")]
    found = measure_prompt_use(_blind(), pairs)
    assert found.left_out == {"labelled_tie": 1, "empty_answer": 1, "equal_answers": 1}
    assert found.as_dict()["num_pairs"] == 12
    with pytest.raises(DataError, match="at least two prompts"):
        measure_prompt_use(_blind(), pairs[-3:])


def test_the_reading_holds_the_numbers():
    text = measure_prompt_use(_blind(), pairs_of()).reading
    assert "0.00 [" in text and "needs the prompt" in text and "where the prompts are similar" in text
    alone = [Preference("a", "?", "good 1", "bad 1"), Preference("b", "!", "good 2", "bad 2")]
    assert "similar" not in measure_prompt_use(_blind(), alone).reading


def test_a_cure_is_shown_with_what_it_costs():
    """Before: half of the preference reads the prompt. After: all of it does, and one pair in ten is got wrong for it."""
    pairs = pairs_of(300)
    before = measure_prompt_use(_reads(0.3), pairs)

    def cured(prompt, answer):
        if number_of(prompt) != number_of(answer):
            return -1.0
        return 2.0 * ("good" in answer) * (int(number_of(answer)) % 10 != 0)

    after = measure_prompt_use(with_habit(cured, 1.0), pairs)
    change = compare_prompt_use(before, after, names=("plain", "prompt_swap"))
    found = change.as_dict()
    assert found["names"] == ["plain", "prompt_swap"] and list(found["measures"]) == list(MEASURES)
    for name, row in found["measures"].items():
        assert row["before"] == before.estimates[name].as_dict() and row["after"] == after.estimates[name].as_dict()
        differences = after.outcomes[name] - before.outcomes[name]
        assert row["difference"]["value"] == pytest.approx(differences.mean())
        assert row["p_adjusted"] >= row["p_value"]
    assert found["measures"]["match"]["difference"]["low"] > 0
    assert found["measures"]["off_topic_beats_rejected"]["difference"]["high"] < 0
    assert found["measures"]["accuracy"]["difference"]["value"] < 0
    assert found["indices"]["index"]["difference"]["low"] > 0
    assert "Told apart beyond chance:" in change.reading and "match" in change.reading
    table = change_table(found, "what prompt_swap changes")
    assert table.row_count == len(MEASURES) + len(INDICES)


def test_a_scorer_against_itself_is_told_apart_by_nothing():
    found = measure_prompt_use(_reads(0.5), pairs_of(100))
    change = compare_prompt_use(found, found)
    assert all(row["difference"]["value"] == 0 for row in change.as_dict()["measures"].values())
    assert change.as_dict()["indices"]["index"]["difference"]["value"] == 0
    assert "None of these measures is told apart beyond chance." in change.reading


def test_other_texts_are_not_compared():
    pairs = pairs_of(40)
    one, other = (measure_prompt_use(_blind(), pairs, seed=seed) for seed in (0, 1))
    with pytest.raises(DataError, match="same pairs with the same seed"):
        compare_prompt_use(one, other)


def test_an_index_that_is_missing_leaves_a_gap_in_the_change():
    pairs = pairs_of(40)
    change = compare_prompt_use(measure_prompt_use(constant(), pairs), measure_prompt_use(_blind(), pairs))
    assert change.as_dict()["indices"]["index"]["before"] is None
    assert change.as_dict()["indices"]["index"]["difference"] is None
    assert change_table(change.as_dict(), "gap").row_count == len(MEASURES) + len(INDICES)
