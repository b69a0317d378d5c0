"""Rewards in plain Python, several models as one, and what importing costs."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from rewardsmith.errors import DataError, RowError, ScoreError, SettingsError
from rewardsmith.use import (
    Reward,
    Shaping,
    WeightedSum,
    load_standards,
    lower_confidence,
    save_standards,
    standards_of,
)
from rewardsmith.use.samples import RewardFunction, Sample
from rewardsmith.use.terms import Clip, KLPenalty, LengthPenalty
from tests.fakes import by_table, constant, likes_long_answers


def test_a_reward_is_the_shaped_score_in_the_order_asked():
    reward = Reward(
        likes_long_answers(), Shaping([Clip(low=0, high=0.05), LengthPenalty(cost=0.01, unit="characters")])
    )
    assert isinstance(reward, RewardFunction)
    # 3 and 10 characters: min(0.05, 0.03) - 0.03 = 0; min(0.05, 0.1) - 0.1 = -0.05
    found = reward(["Hi?", [{"role": "user", "content": "Hi?"}]], ["Ho.", "Hello all."])
    assert found == pytest.approx([0.0, -0.05], abs=1e-7)


def test_a_local_model_is_asked_once_a_batch():
    scorer = likes_long_answers()
    Reward(scorer)(["Hi?"] * 5, ["Ho."] * 5)
    assert scorer.calls == [5]


def test_who_wants_to_know_is_told_of_samples_and_rewards():
    told = []
    reward = Reward(constant(), on_rewards=lambda samples, rewards: told.append((samples, rewards)))
    samples = [Sample("Hi?", "Ho.")]
    assert reward.rewards(samples) is told[0][1]
    assert told[0][0] == samples
    assert told[0][1].means == {"reward": 0.25, "score": 0.25}


def test_adaptive_coefficients_follow_from_batch_to_batch():
    reward = Reward(constant(), Shaping([KLPenalty(coefficient=0.1, target=1.0, horizon=1)]))
    samples = [Sample("Hi?", "Ho.", kl=5.0)]
    assert [float(reward.rewards(samples).value[0]) for _ in range(2)] == pytest.approx([0.25 - 0.5, 0.25 - 0.6])


def test_arrays_of_messages_are_read_as_messages():
    prompt = np.array([{"role": "user", "content": "Hi?"}], dtype=object)  # so Parquet files give them
    assert Reward(likes_long_answers())([prompt], ["Ho."]) == pytest.approx([0.03])


def test_what_is_no_text_is_refused():
    reward = Reward(likes_long_answers())
    for prompts, answers, error in (
        (["Hi?"], [[1, 2, 3]], SettingsError),
        ([np.array([1, 2])], ["Ho."], SettingsError),
        (["Hi?"], [None], RowError),
        (["Hi?"], [7], RowError),
        ([[{"role": "robot", "content": "x"}]], ["Ho."], RowError),
        (["Hi?", "Hi?"], ["Ho."], DataError),
        ([], [], DataError),
        (["Hi?"], ["\ud800"], RowError),
        ("Hi?", "Ho.", SettingsError),  # no three prompts of one letter
        (["H"], "o", SettingsError),
        (["Hi?"], None, SettingsError),
    ):
        with pytest.raises(error):
            reward(prompts, answers)
    with pytest.raises(SettingsError):
        Reward(7)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="Shaping"):
        Reward(constant(), [Clip(low=0, high=1)])  # type: ignore[arg-type]
    with pytest.raises(ScoreError):
        Reward(by_table({"Ho.": float("inf")}))(["Hi?"], ["Ho."])


PAIRS = [("p", "a"), ("p", "b"), ("p", "c")]
MEMBERS = {"one": by_table({"a": 0.0, "b": 2.0, "c": 4.0}), "two": by_table({"a": 30.0, "b": 10.0, "c": 20.0})}


def test_a_weighted_sum_is_of_standardised_scores():
    standards = standards_of(MEMBERS, PAIRS)
    assert (standards["one"].mean, standards["one"].sd) == (2.0, 2.0)
    assert (standards["two"].mean, standards["two"].sd) == (20.0, 10.0)
    both = WeightedSum(MEMBERS, {"one": 1.0, "two": -0.5}, standards=standards)
    # one: -1, 0, 1; two: 1, -1, 0
    assert both.score(PAIRS).tolist() == pytest.approx([-1.5, 0.5, 1.0])
    assert Reward(both)(["p"], ["a"]) == pytest.approx([-1.5])


def test_a_lower_confidence_reward_pays_for_disagreement():
    scorer = lower_confidence(MEMBERS, standards=standards_of(MEMBERS, PAIRS), k=1.0)
    # b: mean -0.5, sd over two members |0 - -1| / sqrt(2) = 0.7071; c: 0.5 - 0.7071; a: 0 - sqrt(2)
    assert Reward(scorer)(["p"] * 3, ["a", "b", "c"]) == pytest.approx([-1.41421, -1.20711, -0.20711], abs=1e-4)


def test_members_without_statistics_or_weight_are_refused():
    standards = standards_of(MEMBERS, PAIRS)
    with pytest.raises(SettingsError, match="standard"):
        WeightedSum(MEMBERS, {"one": 1, "two": 1}, standards={})
    with pytest.raises(SettingsError, match="weight"):
        WeightedSum(MEMBERS, {"one": 1}, standards=standards)
    with pytest.raises(SettingsError, match="weight"):
        WeightedSum(MEMBERS, {"one": 1, "two": float("nan")}, standards=standards)
    with pytest.raises(SettingsError, match="at least 2"):
        lower_confidence({"one": MEMBERS["one"]}, standards=standards)
    with pytest.raises(SettingsError, match="k of"):
        lower_confidence(MEMBERS, standards=standards, k=-1)
    with pytest.raises(ScoreError):
        standards_of({"flat": constant()}, PAIRS)


def test_standards_are_kept_in_a_file(tmp_path):
    place = tmp_path / "standards.json"
    save_standards(standards_of(MEMBERS, PAIRS), place)
    both = WeightedSum(MEMBERS, {"one": 1.0, "two": -0.5}, standards=load_standards(place))
    assert both.score(PAIRS).tolist() == pytest.approx([-1.5, 0.5, 1.0])
    for text in ("{", "[]", '{"one": {"mean": 1}}', '{"one": {"mean": 1, "sd": 0}}', '{"one": {"mean": NaN, "sd": 1}}'):
        place.write_text(text)
        with pytest.raises(SettingsError, match="standards"):
            load_standards(place)


def test_a_remote_reward_travels_to_other_processes():
    from rewardsmith.remote import RemoteScorer

    reward = Reward(RemoteScorer("http://127.0.0.1:9", tries=1), Shaping([Clip(low=0, high=1)]))
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.shaping.as_dict() == reward.shaping.as_dict()
    assert copy.scorer.connection.url == "http://127.0.0.1:9"


def test_reward_functions_load_neither_torch_nor_trl():
    program = (
        "import sys, rewardsmith.use as use\n"
        "shaping = use.shaping_from([{'name': 'clip', 'low': 0, 'high': 1}])\n"
        "score = lambda prompt, answer: 1.0\n"
        "use.trl_reward_function(score, shaping)(['a'], ['b'])\n"
        "use.openrlhf_reward_function(score, shaping, as_tensor=list)(['ab'], ['a'], [None])\n"
        "use.verl_compute_score(score, shaping)('', 'b', '', {'prompt': 'a'})\n"
        "print([name for name in ('torch', 'transformers', 'trl') if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_unknown_names_are_no_attributes():
    import rewardsmith.use

    with pytest.raises(AttributeError):
        rewardsmith.use.reward_function  # noqa: B018
    assert "Shaping" in dir(rewardsmith.use)
