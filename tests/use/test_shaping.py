"""Shaping: every step against numbers worked out by hand, what always holds of a chain, and what is refused."""

import json
import math

import numpy as np
import pytest

from rewardsmith.errors import DataError, ScoreError, SettingsError
from rewardsmith.use.references import References
from rewardsmith.use.repetition import repeated_share
from rewardsmith.use.samples import Sample
from rewardsmith.use.shaping import Shaping, shaping_from
from rewardsmith.use.terms import (
    STEPS,
    Clip,
    GroupZScore,
    KLPenalty,
    LengthBudget,
    LengthPenalty,
    LogSigmoid,
    MissingEnd,
    Overlong,
    PreferenceAsReward,
    PromptZScore,
    RepetitionPenalty,
    ZScore,
)
from tests.fakes import by_table, constant

STATISTICS = {"mean": 1.0, "sd": 2.0, "n": 100, "source": "dev pairs"}
REFERENCES = References({"p": (0.0, 2.0), "q": (1.0, 1.0, 4.0)}, "the policy before training")


def scores(*values):
    return np.array(values, np.float32)


def sample(prompt="p", answer="a b c", **more):
    return Sample(prompt, answer, **more)


def shaped(step, raw, samples, references=None):
    return Shaping([step], references=references).apply(scores(*raw), samples)


def test_without_steps_the_reward_is_the_score():
    found = Shaping().apply(scores(1.5, -2.0), [sample(), sample()])
    assert found.value.tolist() == [1.5, -2.0]
    assert found.terms == {}


def test_z_score_takes_stored_statistics():
    # (5 - 1) / 2 = 2; (-1 - 1) / 2 = -1
    assert shaped(ZScore(**STATISTICS), [5, -1], [sample(), sample()]).value.tolist() == [2.0, -1.0]


def test_asking_for_a_z_score_without_statistics_is_an_error():
    for table in ({"name": "z_score"}, {"name": "z_score", "mean": 0.0, "sd": 1.0}):
        with pytest.raises(SettingsError, match="statistics"):
            shaping_from([table])
    with pytest.raises(SettingsError, match="mean"):
        ZScore()
    with pytest.raises(SettingsError, match="lower"):
        Clip(lower=-1.0)
    with pytest.raises(SettingsError, match="normaliser"):
        ZScore.from_contract({"normaliser": None})
    with pytest.raises(SettingsError, match="normaliser"):
        ZScore.from_contract({"normaliser": {"mean": 0.0, "std": 0.0, "n": 5, "data_sha256": "ab"}})


def test_statistics_are_measured_from_a_scorer_or_read_from_a_contract():
    scorer = by_table({"a": 1.0, "b": 3.0, "c": 5.0})
    found = ZScore.measured(scorer, [("p", "a"), ("p", "b"), ("q", "c")], source="three")
    assert (found.mean, found.sd, found.n, found.source) == (3.0, 2.0, 3, "three")
    stated = ZScore.from_contract({"normaliser": {"mean": 0.5, "std": 2.0, "n": 9, "data_sha256": "0123456789abcdef"}})
    assert (stated.mean, stated.sd, stated.n) == (0.5, 2.0, 9)
    assert "0123456789ab" in stated.source
    with pytest.raises(ScoreError):
        ZScore.measured(constant(), [("p", "a"), ("p", "b")], source="equal")


def test_the_contract_of_a_real_folder_is_read(tiny_rm):
    from dataclasses import replace

    from rewardsmith import RewardModel
    from rewardsmith.model.artefact import Normaliser

    contract = RewardModel.load(tiny_rm("bert")).contract
    with pytest.raises(SettingsError, match="measured"):  # this folder was saved without a normaliser
        ZScore.from_contract(contract.as_dict())
    stated = replace(contract, normaliser=Normaliser(mean=0.5, std=2.0, n=9, data_sha256="ab" * 32))
    found = ZScore.from_contract(json.loads(json.dumps(stated.as_dict())))
    assert (found.mean, found.sd, found.n) == (0.5, 2.0, 9)


def test_prompt_z_score_compares_with_references_of_the_same_prompt():
    # p: mean 1, sd sqrt(2); q: mean 2, sd sqrt(((-1)^2 + (-1)^2 + 2^2) / 2) = sqrt(3)
    found = shaped(PromptZScore(), [2, 2], [sample("p"), sample("q")], REFERENCES)
    assert found.value.tolist() == pytest.approx([1 / math.sqrt(2), 0.0])


def test_a_prompt_without_references_is_an_error():
    with pytest.raises(DataError, match="'r'"):
        shaped(PromptZScore(), [2, 2], [sample("p"), sample("r")], REFERENCES)
    with pytest.raises(SettingsError, match="reference answers"):
        Shaping([PromptZScore()])
    with pytest.raises(DataError, match="differ"):
        shaped(PromptZScore(), [2], [sample("p")], References({"p": (1.0, 1.0)}, "equal"))


def test_references_are_measured_by_prompt_and_need_two_answers():
    scorer = by_table({"a": 1.0, "b": 3.0, "c": 5.0, "d": 6.0})
    # a text and one user message are the same prompt
    asked = [{"role": "user", "content": "p"}]
    found = References.measured(scorer, [("p", "a"), ("q", "b"), (asked, "c"), ("q", "d")], source="two each")
    assert dict(found.scores) == {"p": (1.0, 5.0), "q": (3.0, 6.0)}
    with pytest.raises(DataError, match="two"):
        References.measured(scorer, [("p", "a"), ("q", "b"), ("q", "c")], source="one")


def test_groups_are_normalised_within_and_equal_ones_counted():
    samples = [sample("p"), sample("q"), sample("p"), sample("q")]
    found = shaped(GroupZScore(), [1, 7, 3, 7], samples)
    # p: mean 2, sd sqrt(2): -1 / sqrt(2), 1 / sqrt(2); q: all 7
    assert found.value.tolist() == pytest.approx([-1 / math.sqrt(2), 0.0, 1 / math.sqrt(2), 0.0])
    assert found.counts == {"groups": 2, "equal_groups": 1}
    assert shaped(GroupZScore(scale=False), [1, 7, 3, 7], samples).value.tolist() == [-1.0, 0.0, 1.0, 0.0]
    with pytest.raises(DataError, match="two answers"):
        shaped(GroupZScore(), [1, 2, 3], [sample("p"), sample("p"), sample("q")])


def test_groups_of_equal_rewards_are_counted_without_a_step_that_asks_for_them():
    # p: equal after the clip; q: 1 and 0; r: alone, and no group
    samples = [sample(prompt) for prompt in "pqpqr"]
    found = shaped(Clip(low=0, high=1), [5, 5, 7, 0, 3], samples)
    assert found.counts == {"clipped": 4, "groups": 2, "equal_groups": 1}
    assert shaped(Clip(low=0, high=1), [5], [sample()]).counts == {"clipped": 1}


def test_par_is_the_mean_probability_of_beating_the_references():
    found = shaped(PreferenceAsReward(k=2.0), [1.0], [sample("p")], REFERENCES)
    # references 0 and 2: (sigmoid(2) + sigmoid(-2)) / 2 = 1/2
    assert found.value.tolist() == pytest.approx([0.5])
    found = shaped(PreferenceAsReward(), [3.0], [sample("p")], REFERENCES)
    assert found.value.tolist() == pytest.approx([(1 / (1 + math.exp(-3)) + 1 / (1 + math.exp(-1))) / 2])


def test_log_sigmoid_is_centred_at_the_quantile_of_the_references():
    # p: mean 1, sd sqrt(2), 85 % point 1 + 1.03643 * 1.41421 = 2.46573
    found = shaped(LogSigmoid(), [2.46573], [sample("p")], REFERENCES)
    assert found.value.tolist() == pytest.approx([math.log(0.5)], abs=1e-5)
    far = shaped(LogSigmoid(), [-1000.0, 1000.0], [sample("p"), sample("p")], REFERENCES).value
    assert far.tolist() == pytest.approx([-1002.46573, 0.0], abs=1e-4)  # no overflow


def test_clipping_is_counted():
    found = shaped(Clip(low=-1, high=2), [-3, 0.5, 9], [sample()] * 3)
    assert found.value.tolist() == [-1.0, 0.5, 2.0]
    assert found.counts["clipped"] == 2


def test_linear_length_penalties_count_tokens_or_characters():
    one = sample(answer="hello", num_tokens=2)
    assert shaped(LengthPenalty(cost=0.5), [1], [one]).value.tolist() == [0.0]
    assert shaped(LengthPenalty(cost=0.5, unit="characters"), [1], [one]).value.tolist() == [-1.5]


def test_a_budget_is_free_up_to_it_and_sets_in_softly():
    lengths = [100, 105, 110, 120]
    samples = [sample(num_tokens=length) for length in lengths]
    found = shaped(LengthBudget(budget=100, cost=0.1, edge=10), [0] * 4, samples)
    # over 0, 5, 10, 20: 0; 25 / 20 = 1.25; 100 / 20 = 5; 20 - 5 = 15
    assert found.value.tolist() == pytest.approx([0.0, -0.125, -0.5, -1.5])
    assert found.counts["over_budget"] == 3
    sharp = shaped(LengthBudget(budget=100, cost=0.1), [0] * 4, samples)
    assert sharp.value.tolist() == pytest.approx([0.0, -0.5, -1.0, -2.0])


def test_overlong_answers_are_punished_as_in_dapo():
    # max 100, buffer 20: free up to 80, half at 90, whole from 100 on
    samples = [sample(num_tokens=length) for length in (80, 90, 100, 130)]
    found = shaped(Overlong(max_length=100, buffer=20, factor=2), [0] * 4, samples)
    assert found.value.tolist() == [0.0, -1.0, -2.0, -2.0]
    assert found.counts["overlong"] == 3


def test_repetition_is_the_share_of_repeated_n_grams():
    # "so good" four times... bigrams of 6 words: 5, of which 2 distinct: 3 / 5
    assert repeated_share("so good so good so good", 2) == pytest.approx(0.6)
    assert repeated_share("all of these words differ", 2) == 0.0
    assert repeated_share("So so", 1) == 0.5
    assert repeated_share("aaaa", 2, of="characters") == pytest.approx(2 / 3)
    assert repeated_share("", 3) == repeated_share("one two", 3) == 0.0
    found = shaped(RepetitionPenalty(cost=2, n=2), [1], [sample(answer="so good so good so good")])
    assert found.value.tolist() == pytest.approx([1 - 1.2])


def test_a_missing_end_costs_and_an_unknown_one_is_an_error():
    found = shaped(MissingEnd(penalty=3), [1, 1], [sample(is_finished=True), sample(is_finished=False)])
    assert found.value.tolist() == [1.0, -2.0]
    assert found.counts["unfinished"] == 1
    with pytest.raises(DataError, match="end tokens"):
        shaped(MissingEnd(penalty=3), [1, 1], [sample(is_finished=True), sample()])


def test_the_kl_penalty_takes_the_estimate_of_the_answer():
    samples = [sample(kl=2.0), sample(kl=-1.0)]
    assert shaped(KLPenalty(coefficient=0.1), [0, 0], samples).value.tolist() == pytest.approx([-0.2, 0.1])
    k3 = shaped(KLPenalty(coefficient=0.1, estimator="k3"), [0, 0], samples).value
    assert k3.tolist() == pytest.approx([-0.11353, -0.07183], abs=1e-5)
    with pytest.raises(DataError, match="kl"):
        shaped(KLPenalty(coefficient=0.1), [0], [sample()])
    with pytest.raises(ScoreError, match="finite"):  # exp(1000)
        shaped(KLPenalty(coefficient=0.1, estimator="k3"), [0], [sample(kl=-1000.0)])


def test_an_adaptive_kl_coefficient_follows_after_a_batch_and_never_within():
    shaping = Shaping([KLPenalty(coefficient=0.1, target=1.0, horizon=2)])
    samples = [sample(kl=3.0), sample(kl=3.0)]
    first = shaping.apply(scores(0, 0), samples)
    assert shaping.apply(scores(0, 0), samples).value.tolist() == first.value.tolist() == pytest.approx([-0.3, -0.3])
    shaping.update(samples)  # 3 / 1 - 1 clipped to 0.2, a whole horizon: 0.12
    assert shaping.apply(scores(0, 0), samples).value.tolist() == pytest.approx([-0.36, -0.36])


def random_chain(rng):
    """Steps in random order, with what they need."""
    first = [None, PromptZScore(), PreferenceAsReward(k=0.7), LogSigmoid(quantile=0.9)][rng.integers(4)]
    others = [
        ZScore(**STATISTICS),
        GroupZScore(),
        Clip(low=-2, high=2),
        LengthPenalty(cost=0.01),
        LengthPenalty(label="characters", cost=0.001, unit="characters"),
        LengthBudget(budget=10, cost=0.1, edge=5),
        Overlong(max_length=40, buffer=10),
        RepetitionPenalty(cost=1),
        MissingEnd(penalty=1),
        KLPenalty(coefficient=0.05, target=2.0),
    ]
    chosen = [others[i] for i in rng.permutation(len(others))[: rng.integers(1, len(others) + 1)]]
    return Shaping([*([first] if first else []), *chosen], references=REFERENCES)


def random_samples(rng, n=12):
    return [
        sample(
            "pq"[i % 2],
            " ".join(rng.choice(["ja", "no", "so"], size=rng.integers(1, 9))),
            is_finished=bool(rng.integers(2)),
            num_tokens=int(rng.integers(1, 60)),
            kl=float(rng.normal()),
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("seed", range(40))
def test_score_and_terms_add_up_to_the_reward_whatever_the_chain(seed, tmp_path):
    rng = np.random.default_rng(seed)
    shaping, samples = random_chain(rng), random_samples(rng)
    raw = rng.normal(size=len(samples)).astype(np.float32) * 3
    found = shaping.apply(raw, samples)
    assert list(found.terms) == [step.key for step in shaping.terms]
    assert np.allclose(found.value, raw + sum(found.terms.values()), rtol=0, atol=1e-9)
    assert np.array_equal(found.score, raw)
    # The order of the answers changes nothing but the order of the rewards.
    order = rng.permutation(len(samples))
    moved = shaping.apply(raw[order], [samples[i] for i in order])
    assert np.allclose(moved.value, found.value[order], rtol=0, atol=1e-12)
    # What was saved loads as it was, a changed coefficient included, and gives the same numbers to the bit.
    shaping.update(samples)
    shaping.save(tmp_path / "shaping.json")
    loaded = Shaping.load(tmp_path / "shaping.json")
    assert loaded.as_dict() == shaping.as_dict()
    assert np.array_equal(loaded.apply(raw, samples).value, shaping.apply(raw, samples).value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_never_a_reward(bad):
    with pytest.raises(ScoreError):
        Shaping([Clip(low=-1, high=1)]).apply(scores(0.0, bad), [sample(), sample()])
    with pytest.raises(DataError):
        Shaping().apply(scores(), [])


@pytest.mark.parametrize("name", sorted(STEPS))
def test_unknown_keys_are_refused_with_the_nearest_known(name):
    needed = {
        "z_score": STATISTICS,
        "clip": {"low": 0, "high": 1},
        "length": {"cost": 1},
        "length_budget": {"cost": 1, "budget": 1},
        "overlong": {"max_length": 10, "buffer": 5},
        "repetition": {"cost": 1},
        "missing_end": {"penalty": 1},
        "kl": {"coefficient": 0.1},
    }.get(name, {})
    with pytest.raises(SettingsError, match="Did you mean `label`"):
        shaping_from([{"name": name, **needed, "lable": "x"}], references=REFERENCES)
    assert shaping_from([{"name": name, **needed}], references=REFERENCES).terms[0].name == name


def test_what_cannot_be_meant_is_refused_before_anything_is_scored():
    with pytest.raises(SettingsError, match="Did you mean `length`"):
        shaping_from([{"name": "lenght", "cost": 1}])
    with pytest.raises(SettingsError, match="label"):
        Shaping([Clip(low=0, high=1), Clip(low=0, high=2)])
    with pytest.raises(SettingsError, match="label"):
        Shaping([Clip(label="score", low=0, high=1)])
    with pytest.raises(SettingsError, match="first"):
        Shaping([Clip(low=0, high=1), PreferenceAsReward()], references=REFERENCES)
    for terms in (Clip(low=0, high=1), [{"name": "clip", "low": 0, "high": 1}]):
        with pytest.raises(SettingsError, match="steps"):
            Shaping(terms)  # type: ignore[arg-type]
    for tables in ({"name": "clip", "low": 0, "high": 1}, ["clip"]):
        with pytest.raises(SettingsError, match="tables"):
            shaping_from(tables)  # type: ignore[arg-type]
    for table in (
        {"name": "clip", "low": 1, "high": 1},
        {"name": "clip", "low": float("nan"), "high": 1},
        {"name": "overlong", "max_length": 4, "buffer": 5},
        {"name": "z_score", **STATISTICS, "sd": 0.0},
        {"name": "kl", "coefficient": 0.1, "estimator": "k4"},
        {"name": "length", "cost": -1},
    ):
        with pytest.raises(SettingsError):
            shaping_from([table])
    both = Shaping([Clip(low=0, high=1), Clip(label="second", low=0, high=0.5)])
    assert list(both.apply(scores(3), [sample()]).terms) == ["clip", "second"]


def test_files_that_are_no_shaping_of_ours_are_refused(tmp_path):
    place = tmp_path / "shaping.json"
    good = Shaping([KLPenalty(coefficient=0.1)]).as_dict()
    for document in (
        {**good, "format_version": 2},
        {**good, "more": 1},
        {**good, "state": {}},
        {**good, "state": {"kl": {"coefficient": -1}}},
        {**good, "steps": [{"name": "kl", "coefficient": 0.1, "unit": "x"}]},
        {**good, "references": {"source": "x"}},
        [],
    ):
        place.write_text(json.dumps(document))
        with pytest.raises(SettingsError):
            Shaping.load(place)
    place.write_text("{")
    with pytest.raises(SettingsError):
        Shaping.load(place)
    with pytest.raises(SettingsError):
        Shaping.load(tmp_path / "none.json")
