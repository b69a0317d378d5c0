"""Thresholds stop as many good answers as wished, on prompts that they were not fitted on."""

import numpy as np
import pytest

from rewardsmith.data.schema import Preference
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.evaluation.guardrail import Answers, answers_of, fit_threshold, quantile_below, thresholds


def answers(num_prompts, per_prompt, *, offset=0.0, seed=0):
    """Half of the answers of each prompt are good ~ N(1, 1), half bad ~ N(-1, 1), and every prompt has a level of its own."""
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(num_prompts), per_prompt)
    good = np.tile(np.arange(per_prompt) % 2 == 0, num_prompts)
    level = rng.normal(0, offset, num_prompts)[prompt] if offset else 0.0
    score = np.where(good, 1.0, -1.0) + level + rng.normal(0, 1, len(prompt))
    return Answers(score, good, ~good, prompt)


def test_the_largest_threshold_with_at_most_the_share_below_it():
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0])
    # Below 2 lies 1 of 5, below 3 lie 2 of 5.
    assert quantile_below(scores, np.arange(5), 0.2).value == 2.0
    assert quantile_below(scores, np.arange(5), 0.39).value == 2.0
    assert quantile_below(scores, np.arange(5), 0.4).value == 3.0
    # Of equal scores none is stopped alone: below 1 lies nothing, below 2 lie three quarters.
    assert quantile_below(np.array([1.0, 1.0, 1.0, 2.0]), np.arange(4), 0.5).value == 1.0


def test_thresholds_keep_the_wished_rate_on_other_prompts():
    found = [
        fit_threshold(answers(200, 4, seed=seed), answers(200, 4, seed=100 + seed), 0.05, scale="score")
        for seed in range(20)
    ]
    # Both the threshold and the rate are read from 400 good answers: sd of one rate sqrt(2 * 0.05 * 0.95 / 400) = 0.015, of the mean of twenty 0.0034.
    assert np.mean([one.false_alarms.value for one in found]) == pytest.approx(0.05, abs=0.01)
    # The 5 % quantile of N(1, 1) is -0.645: within the interval of about 19 of 20 fits.
    assert sum(one.threshold.low <= -0.645 <= one.threshold.high for one in found) >= 17
    # P(N(-1, 1) < -0.645) = 0.639.
    assert np.mean([one.caught.value for one in found]) == pytest.approx(0.639, abs=0.03)


def test_within_prompt_scores_do_not_mind_the_levels_of_prompts():
    fit, held = answers(400, 6, offset=5.0, seed=1), answers(400, 6, offset=5.0, seed=2)
    raw = fit_threshold(fit, held, 0.05, scale="score")
    within = fit_threshold(fit, held, 0.05, scale="z within prompt")
    assert within.caught.value > raw.caught.value + 0.3
    assert within.false_alarms.low <= 0.05 <= within.false_alarms.high


def test_z_scores_by_hand_need_three_answers():
    few = Answers(np.array([1.0, 2.0, 3.0, 7.0, 9.0]), np.ones(5, bool), np.zeros(5, bool), np.array([0, 0, 0, 1, 1]))
    assert few.within_prompt().score.tolist() == [-1.0, 0.0, 1.0]
    equal = Answers(np.ones(3), np.ones(3, bool), np.zeros(3, bool), np.zeros(3, int))
    assert len(equal.within_prompt().score) == 0


def test_an_answer_that_was_both_is_neither():
    pairs = [Preference("1", "p", "a", "b"), Preference("2", "p", "b", "c")]
    found = answers_of(pairs, np.array([3.0, 2.0], np.float32), np.array([2.0, 1.0], np.float32))
    assert found.score.tolist() == [3.0, 2.0, 1.0]
    assert found.good.tolist() == [True, False, False] and found.bad.tolist() == [False, False, True]


def test_what_cannot_be_had_says_why():
    found, missing = thresholds(answers(30, 2, seed=1), answers(30, 2, seed=2), [0.01, 0.1])
    assert [one.wished for one in found] == [0.1]
    assert "needs 100 good answers" in missing["score, 0.01"]
    assert "at least 3 answers" in missing["z within prompt, 0.1"]
    with pytest.raises(SettingsError, match="between 0 and 1"):
        thresholds(answers(30, 2), answers(30, 2), [1.5])
    with pytest.raises(DataError, match="false-alarm rate"):
        thresholds(answers(30, 2), answers(30, 2), [])


def test_an_answer_at_the_threshold_is_not_stopped():
    """Good answers score 0 or 1, half of them each: for a rate of 0.4 the threshold is 0, and nothing good lies below it."""
    score = np.tile([0.0, 1.0, -1.0, -1.0], 30)
    good = np.tile([True, True, False, False], 30)
    some = Answers(score, good, ~good, np.repeat(np.arange(30), 4))
    found = fit_threshold(some, some, 0.4, scale="score")
    assert (found.threshold.value, found.false_alarms.value, found.caught.value) == (0.0, 0.0, 1.0)
