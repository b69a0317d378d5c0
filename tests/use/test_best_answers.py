"""Best-of-n against closed forms and counts by hand: curves, rankings, ties, repeated texts, probabilities, abstention."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import comb, expit

from rewardsmith.auditing.pools import Candidate, Candidates, Pool
from rewardsmith.data.schema import Group, Preference, Single
from rewardsmith.errors import DataError, ScoreError, SettingsError
from rewardsmith.scores import ScoreTable
from rewardsmith.use.best_answers import Abstention, best_answers
from rewardsmith.use.candidates import candidates_of, score_pool
from rewardsmith.use.rejection_sampling import fine_tuning_rows, preference_rows
from rewardsmith.use.soft_best import kl_of_choice, soft_weights
from tests.fakes import FunctionScorer, by_table, constant

POWERS = [1, 2, 4, 8, 16, 32, 64]


def number(prompt, answer):
    """The score that an answer names with its first word."""
    return float(answer.split()[0])


def pool_of_scores(groups, labels=None):
    """A pool whose answers name their scores; the second word tells equal ones apart."""
    return Pool(
        [
            Candidates(
                f"g{g}",
                f"prompt {g}",
                tuple(
                    Candidate(f"{score!r} {i}", label=None if labels is None else labels[g][i])
                    for i, score in enumerate(scores)
                ),
            )
            for g, scores in enumerate(groups)
        ]
    )


def texts(groups, **more):
    """A pool of given texts."""
    return Pool(
        [Candidates(f"g{g}", f"p{g}", tuple(Candidate(one, **more) for one in some)) for g, some in enumerate(groups)]
    )


def test_the_curve_of_uniform_scores_is_n_over_n_plus_1():
    """The best of n taken from {1, ..., N} without replacement is n (N + 1) / (n + 1) on average: over N + 1 that is n / (n + 1), for every N.

    KL: log 64 - 63 / 64 = 3.1745.
    """
    pool = pool_of_scores([[i / 65 for i in range(1, 65)] for _ in range(3)])
    curve = best_answers(number, pool).curve
    assert [point.n for point in curve.points] == POWERS and curve.num_groups == 3
    assert [point.score.value for point in curve.points] == pytest.approx([n / (n + 1) for n in POWERS], abs=1e-6)
    assert [point.gain.value for point in curve.points] == pytest.approx([n / (n + 1) - 0.5 for n in POWERS], abs=1e-6)
    assert curve.points[-1].kl == pytest.approx(4.158883 - 0.984375, abs=1e-6)


def test_the_curve_of_exponential_scores_is_the_harmonic_numbers():
    """The i-th smallest of N exponential draws is H_N - H_(N-i) on average, the largest of n is H_n; the estimator is linear in the ordered scores, so it gives H_n from their means."""
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, 65))])
    curve = best_answers(number, pool_of_scores([(harmonic[64] - harmonic[63::-1]).tolist()])).curve
    assert [point.score.value for point in curve.points] == pytest.approx([harmonic[n] for n in POWERS], abs=1e-6)


def test_the_interval_of_the_curve_holds_the_truth_on_draws():
    """400 groups of 64 uniform draws: the standard error at n is below 0.29 / sqrt(400) = 0.0145 at n = 1 and falls with n."""
    rng = np.random.default_rng(3)
    curve = best_answers(number, pool_of_scores(rng.random((400, 64)).tolist())).curve
    for point in curve.points:
        assert point.score.low < point.n / (point.n + 1) < point.score.high
        assert point.score.high - point.score.low < 0.06 and point.score.n == 400


def test_every_point_of_the_curve_is_of_the_same_groups():
    """Three groups of 8 and two of 2: half of the groups have 8, so the two small ones stand outside the curve, and inside all else."""
    found = best_answers(number, pool_of_scores([range(8)] * 3 + [[100, 200]] * 2))
    assert [point.n for point in found.curve.points] == [1, 2, 4, 8] and found.curve.num_groups == 3
    assert found.curve.points[0].score.value == pytest.approx(3.5)
    document = found.as_dict()
    assert document["num_groups"] == 5 and document["num_candidates"] == 28
    # (3 * 7 + 2 * 200) / 5
    assert document["best_score"]["value"] == pytest.approx(84.2)
    # (3 * (log 8 - 7 / 8) + 2 * (log 2 - 1 / 2)) / 5 = (3 * 1.204442 + 2 * 0.193147) / 5
    assert document["kl"] == {"value": pytest.approx(0.799924, abs=1e-6), "is_upper_bound": False}


def test_labels_say_whether_selection_helps():
    """Scores 1, 2, 3 with labels 5, 0, 1: best of 1: 2; of 2: {1,2} 0, {1,3} 1, {2,3} 1: 2 / 3; of 3: 1. By label: of 2 5, 5 and 1: 11 / 3; of 3: 5.

    The best label is picked at n = 1 once in three, at 2 and 3 never.
    """
    found = best_answers(number, pool_of_scores([[1, 2, 3]] * 12, labels=[[5, 0, 1]] * 12))
    points = [point.labels for point in found.curve.points]
    assert [one.label.value for one in points] == pytest.approx([2, 2 / 3, 1])
    assert [one.gain.value for one in points] == pytest.approx([0, -4 / 3, -1])
    assert [one.limit.value for one in points] == pytest.approx([2, 11 / 3, 5])
    assert [one.best_picked.value for one in points] == pytest.approx([1 / 3, 0, 0])
    labels = found.as_dict()["labels"]
    assert labels["accuracy"]["value"] == 0 and labels["chance"] == pytest.approx(1 / 3)
    assert labels["label_gain"]["value"] == pytest.approx(-1)
    assert any("do not show" in line for line in found.warnings())
    helped = best_answers(lambda prompt, answer: -number(prompt, answer), found.pool)
    assert helped.as_dict()["labels"]["accuracy"]["value"] == 1
    assert not any("do not show" in line for line in helped.warnings())


def test_groups_without_labels_and_groups_of_equal_labels_are_no_test():
    """Two labelled groups, one of equal labels, one that lacks a label: accuracy is over two, the label over three."""
    pool = pool_of_scores([[1, 2]] * 4, labels=[[0, 1], [1, 0], [3, 3], [1, None]])
    labels = best_answers(number, pool).as_dict()["labels"]
    assert (labels["num_groups"], labels["all_equal"]) == (3, 1)
    assert labels["accuracy"]["value"] == 0.5 and labels["accuracy"]["n"] == 2
    assert labels["label"]["value"] == pytest.approx((1 + 0 + 3) / 3)
    assert best_answers(number, pool_of_scores([[1, 2]])).as_dict()["labels"] is None


def test_a_scorer_that_knows_nothing_gains_nothing_from_the_order_of_the_answers():
    """The best answer stands first in every group of four; equal scores share: one in four, and the seed takes each place about as often (200 groups: 50 +- 6)."""
    pool = pool_of_scores([[1, 1, 1, 1]] * 200, labels=[[1, 0, 0, 0]] * 200)
    found = best_answers(constant(), pool)
    document = found.as_dict()
    assert document["labels"]["accuracy"]["value"] == pytest.approx(0.25)
    assert document["ties"]["value"] == 1 and found.choices[0].num_tied == 3
    assert document["kl"]["is_upper_bound"]
    assert 30 < sum(one.taken == 0 for one in found.choices) < 70
    assert any("equal scores" in line for line in found.warnings())


def test_ties_are_broken_by_seed_and_texts_alone():
    pool = pool_of_scores([[1, 2, 2, 2, 0]] * 30)
    reversed_pool = Pool([Candidates(one.id, one.prompt, one.answers[::-1]) for one in pool.groups[::-1]])
    taken = [one.answer for one in best_answers(number, pool).taken()]
    assert taken == [one.answer for one in best_answers(number, reversed_pool).taken()][::-1]
    assert taken == [one.answer for one in best_answers(number, pool).taken()]
    assert taken != [one.answer for one in best_answers(number, pool, seed=1).taken()]


def test_the_ranking_is_whole_and_a_repeated_text_is_scored_once_and_no_runner_up():
    """The text c scores 3 twice, a 1, b 2: the runner-up is b, one point behind; P = sigmoid(1 / 2) = 0.6225. One of four candidates is a repetition."""
    scorer = by_table({"a": 1, "b": 2, "c": 3})
    found = best_answers(scorer, texts([["c", "a", "c", "b"]]), temperature=2.0)
    assert scorer.calls == [3] and found.num_duplicates == 1
    (choice,) = found.choices
    assert choice.ranking == (0, 2, 3, 1) and choice.runner_up == 3 and choice.num_tied == 0
    assert choice.margin == 1 and choice.probability == pytest.approx(0.6225, abs=1e-4)
    (row,) = found.rows()
    assert row["scores"] == [3, 1, 3, 2] and row["answer"] == "c" and row["num_candidates"] == 4
    assert row["num_distinct"] == 3 and row["margin"] == 1 and "drawn" not in row
    # A policy that says c twice in four draws has c among its best of 2 oftener: subsets {c,a},{c,c},{c,b},{a,c},{a,b},{c,b}: (5 * 3 + 2) / 6.
    assert found.curve.points[1].score.value == pytest.approx(17 / 6)
    assert found.as_dict()["kl"]["is_upper_bound"]


def test_the_same_answer_to_two_prompts_is_two_texts():
    seen = []
    scorer = FunctionScorer(lambda prompt, answer: seen.append((prompt, answer)) or len(prompt))
    pool = Pool([Candidates("a", "p", (Candidate("x"), Candidate("y"))), Candidates("b", "long", (Candidate("x"),))])
    assert score_pool(scorer, pool).scores.tolist() == [1, 1, 4] and len(seen) == 3


def test_a_group_of_one_text_is_not_abstained_from_and_is_no_evidence():
    found = best_answers(
        by_table({"a": 1, "b": 1.1}), texts([["a"], ["a", "a"], ["a", "b"]]), abstain=Abstention("margin", 0.5)
    )
    assert [one.is_abstained for one in found.choices] == [False, False, True]
    assert [one.margin is None for one in found.choices] == [True, True, False]
    assert found.abstained.value == 1 and found.abstained.n == 1
    assert found.as_dict()["uncontested"] == 2
    assert any("one text alone" in line for line in found.warnings())


def test_abstention_by_probability_sorts_right_choices_from_wrong_ones():
    """At T = 2 a margin of 0.5 is sigmoid(0.25) = 0.562, of 1 sigmoid(0.5) = 0.622: below 0.6 the first is abstained from. Close choices are wrong here, clear ones right."""
    pool = pool_of_scores([[0, 0.5]] * 20 + [[0, 1]] * 30, labels=[[1, 0]] * 20 + [[0, 1]] * 30)
    found = best_answers(number, pool, temperature=2.0, abstain=Abstention("probability", 0.6))
    document = found.as_dict()
    assert document["abstained"]["value"] == pytest.approx(0.4) and document["abstention"]["count"] == 20
    assert document["abstention"]["accuracy_kept"]["value"] == 1 and document["abstention"]["accuracy_kept"]["n"] == 30
    assert document["abstention"]["accuracy_abstained"]["value"] == 0
    assert "0.562, below 0.6" in found.choices[0].reason and found.choices[-1].reason is None
    assert found.rows()[0]["abstained"] and not found.rows()[-1]["abstained"]
    stated = document["labels"]["best_beats_runner_up"]
    assert stated["stated"]["value"] == pytest.approx(0.4 * expit(0.25) + 0.6 * expit(0.5), abs=1e-6)
    assert stated["found"]["value"] == pytest.approx(0.6)


def test_probabilities_that_are_too_high_among_the_best_are_said():
    """Margin 4 at T = 1 states 0.98; labels agree in half of 100 groups."""
    pool = pool_of_scores([[0, 4]] * 100, labels=[[0, 1], [1, 0]] * 50)
    assert any("too high" in line for line in best_answers(number, pool, temperature=1.0).warnings())
    assert not any("too high" in line for line in best_answers(number, pool, temperature=100.0).warnings())


def test_an_exact_tie_is_a_coin_for_its_probability():
    pool = pool_of_scores([[1, 1]] * 40, labels=[[0, 1]] * 40)
    document = best_answers(number, pool, temperature=1.0).as_dict()["labels"]["best_beats_runner_up"]
    assert document["stated"]["value"] == document["found"]["value"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("by", "below"),
    [
        ("probability", 0.5),
        ("probability", 1.2),
        ("probability", float("nan")),
        ("margin", 0.0),
        ("margin", float("inf")),
        ("score", 1.0),
    ],
)
def test_a_rule_of_abstention_that_cannot_be_meant_is_refused(by, below):
    with pytest.raises(SettingsError):
        Abstention(by, below)


def test_a_probability_without_a_temperature_is_refused_before_anything_is_scored():
    scorer = constant()
    with pytest.raises(SettingsError, match="rewardsmith calibrate"):
        best_answers(scorer, texts([["a", "b"]]), abstain=Abstention("probability", 0.6))
    with pytest.raises(SettingsError, match="several models"):
        best_answers({"x": scorer, "y": scorer}, texts([["a", "b"]]), abstain=Abstention("probability", 0.6))
    with pytest.raises(SettingsError, match="several models"):
        best_answers({"x": scorer, "y": scorer}, texts([["a", "b"]]), temperature=1.0)
    with pytest.raises(SettingsError, match="above 0"):
        best_answers(scorer, texts([["a", "b"]]), soft=0.0)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(SettingsError, match="temperature"):
            best_answers(scorer, texts([["a", "b"]]), temperature=bad)
    two = {"x": scorer, "y": scorer}
    for members, more in (({"x": scorer}, {}), ({}, {}), (two, {"rule": "worst-case"}), (two, {"k": -1.0})):
        with pytest.raises(SettingsError):
            best_answers(members, texts([["a", "b"]]), **more)
    for pool in (Pool([]), texts([["a", "b"], []])):
        with pytest.raises(DataError, match="at least one"):
            best_answers(scorer, pool)
    assert not scorer.calls


def test_a_score_that_is_no_number_is_an_error():
    with pytest.raises(ScoreError):
        best_answers(FunctionScorer(lambda prompt, answer: float("nan")), texts([["a", "b"]]))


# Soft best-of-n


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_soft_best_of_n_of_coin_flips_is_its_closed_form(temperature):
    """Scores 0 and 1 with probability 1 / 2 each, n = 4; all 16 draws as groups are the distribution itself.

    With k ones of four, a one is drawn with probability k e / (k e + 4 - k), e = exp(1 / T): E = sum_k C(4, k) / 16 * that. The answers then follow (1 - E, E), of which the KL from (1/2, 1/2) is known.
    """
    weight = np.exp(1 / temperature)
    expected = sum(comb(4, k) / 16 * k * weight / (k * weight + 4 - k) for k in range(5))
    found = best_answers(number, pool_of_scores(itertools.product([0, 1], repeat=4)), soft=temperature)
    soft = found.as_dict()["soft"]
    assert soft["score"]["value"] == pytest.approx(expected, abs=1e-12)
    moved = np.log(2) + expected * np.log(expected) + (1 - expected) * np.log(1 - expected)
    # Upper bounds hold, and the second is the lower one of two.
    assert moved <= soft["kl_at_most"] <= soft["kl"]["value"] + 1e-12
    assert soft["kl_at_most"] <= np.log(4) - 3 / 4 + 1e-12


def test_soft_best_of_many_is_the_tilted_policy():
    """Of 2,000 zeros and 2,000 ones a one is drawn with probability sigmoid(1 / T); the choice's KL is that of (1 - q, q) from (1/2, 1/2): nothing of the bound is lost."""
    weights = soft_weights(np.repeat([0.0, 1.0], 2000), 0.5)
    q = expit(2.0)
    assert weights[2000:].sum() == pytest.approx(q, abs=1e-12)
    assert kl_of_choice(weights) == pytest.approx(np.log(2) + q * np.log(q) + (1 - q) * np.log(1 - q), abs=1e-9)


def test_a_cold_soft_choice_is_best_of_n_and_a_hot_one_is_blind():
    """T -> 0: the best one, or equal best ones alike, KL log(4 / 2); T -> infinity: each of four alike, KL 0."""
    scores = np.array([1.0, 3.0, 3.0, 2.0])
    for cold in (1e-3, 1e-308):
        assert soft_weights(scores, cold).tolist() == [0, 0.5, 0.5, 0]
    assert kl_of_choice(soft_weights(scores, 1e-3)) == pytest.approx(np.log(2))
    assert soft_weights(scores, 1e12) == pytest.approx([0.25] * 4)
    assert kl_of_choice(soft_weights(scores, 1e12)) == pytest.approx(0, abs=1e-9)
    pool = pool_of_scores([[1, 5, 2], [7, 0, 1]])
    assert [one.taken for one in best_answers(number, pool, soft=1e-3).choices] == [1, 0]
    soft = best_answers(number, pool, soft=1e-3).as_dict()["soft"]
    assert soft["takes_best"]["value"] == 1
    # The choice itself tells log 3 nats; best-of-3, which moves as far as any choice can, only log 3 - 2 / 3.
    assert soft["kl"]["value"] == pytest.approx(np.log(3))
    assert soft["kl_at_most"] == pytest.approx(np.log(3) - 2 / 3)


def test_soft_draws_have_their_weights_and_depend_on_seed_and_prompt_alone():
    """Scores 0 and log 3: the second is drawn in three of four; of 400 groups 300 +- 9."""
    pool = pool_of_scores([[0.0, float(np.log(3))]] * 400)
    found = best_answers(number, pool, soft=1.0)
    assert 265 < sum(one.taken for one in found.choices) < 335
    assert all(one.ranking == (1, 0) for one in found.choices)  # what is drawn changes no ranking
    turned = Pool([replace(one, answers=one.answers[::-1]) for one in pool.groups])
    assert [one.answer for one in best_answers(number, turned, soft=1.0).taken()] == [
        one.answer for one in found.taken()
    ]
    half = best_answers(number, Pool(pool.groups[200:]), soft=1.0)
    assert [one.taken for one in half.choices] == [one.taken for one in found.choices[200:]]
    assert [one.taken for one in best_answers(number, pool, soft=1.0, seed=1).choices] != [
        one.taken for one in found.choices
    ]
    row = found.rows()[[one.taken for one in found.choices].index(0)]
    assert row["answer"].startswith("0.0") and row["score"] == 0 and row["ranking"][0] == 1


# Several models


def test_several_models_score_together_by_the_rule():
    """x: 0, 1, 2 and y: 4, 4, 1 have sds 1 and sqrt(3): standardised x -1, 0, 1 and y 0.577, 0.577, -1.155. Mean: -0.211, 0.289, -0.077. Worst: -1, 0, -1.155."""
    members = {"x": by_table({"a": 0, "b": 1, "c": 2}), "y": by_table({"a": 4, "b": 4, "c": 1})}
    pool = texts([["a", "b", "c"]])
    mean, worst = (best_answers(members, pool, rule=rule) for rule in ("mean", "worst case"))
    assert mean.scored.scores == pytest.approx([-0.2113, 0.2887, -0.0774], abs=1e-4)
    assert worst.scored.scores == pytest.approx([-1, 0, -1.1547], abs=1e-4)
    assert mean.choices[0].ranking == (1, 2, 0) and worst.choices[0].ranking == (1, 0, 2)
    document = mean.as_dict()["ensemble"]
    assert document["members"]["x"] == {"mean": 1.0, "sd": 1.0} and document["same_best"]["value"] == 0
    with pytest.raises(ScoreError, match="differ"):
        best_answers({**members, "z": constant()}, pool)


def test_members_agree_where_they_rank_one_text_highest():
    """Of two groups, both members put b first in the one, and each another text in the other."""
    members = {"x": by_table({"a": 0, "b": 1, "c": 2, "d": 3}), "y": by_table({"a": 0, "b": 2, "c": 4, "d": 1})}
    assert best_answers(members, texts([["a", "b"], ["c", "d"]])).as_dict()["ensemble"]["same_best"]["value"] == 0.5


# Reading, and what a table scorer tells


def test_single_answers_are_grouped_by_prompt_and_keep_their_marks():
    rows = [
        Single("1", "p", "x"),
        Group("2", "q", ("a", "b"), "rated", (1.0, 2.0), {"per_answer": {"is_cut": [False, True]}}),
        Single("3", [{"role": "user", "content": "p"}], "y", {"is_cut": True}),
        Preference("4", "p", "good", "bad"),
    ]
    pool = candidates_of(rows)
    assert [(one.id, [answer.answer for answer in one.answers]) for one in pool.groups] == [
        ("1", ["x", "y"]),
        ("2", ["a", "b"]),
    ]
    assert [one.is_cut for one in pool.candidates()] == [False, True, False, True]
    assert [one.label for one in pool.candidates()] == [None, None, 1.0, 2.0]
    assert pool.left_out == {"pair": 1}
    with pytest.raises(DataError, match="1 pairs"):
        candidates_of(rows[3:])
    with pytest.raises(DataError, match="is_cut"):
        candidates_of([Single("1", "p", "x", {"is_cut": "no"})])


class CuttingScorer:
    """Reads the first four characters."""

    def table(self, pairs):
        read = [answer[:4] for _, answer in pairs]
        counts = np.zeros(len(pairs), np.int64)
        return ScoreTable(
            score=np.array([sum(map(ord, text)) for text in read], np.float32),
            tokens=counts,
            full_tokens=counts,
            truncated=np.array([len(answer) > 4 for _, answer in pairs]),
            prompt_cut=counts,
            answer_cut=counts,
            special_strings=counts,
            digest=np.array([int.from_bytes(text.encode(), "little") for text in read], np.uint64),
        )

    def score(self, pairs):
        return self.table(pairs).score


def test_cut_texts_are_counted_and_equal_ones_after_the_cut_are_ties():
    """Of five candidates three are longer than four characters; in the first group the two best begin alike."""
    found = best_answers(CuttingScorer(), texts([["zzzz, then", "zzzz, else", "a"], ["zzzz, once", "b"]]))
    document = found.as_dict()
    assert (document["truncated"], document["collapsed"]) == (3, 1)
    assert document["ties"]["value"] == 0.5
    assert [row["truncated"] for row in found.rows()] == [True, True]
    assert any("same after that cut" in line for line in found.warnings())
    assert best_answers(constant(), texts([["a", "b"]])).as_dict()["truncated"] is None


# Rejection sampling


def test_what_is_fine_tuned_on_leaves_out_doubt_emptiness_and_unfinished_answers():
    pool = Pool(
        [
            Candidates("kept", "p0", (Candidate("9 good"), Candidate("1 bad"))),
            Candidates("close", "p1", (Candidate("9 good"), Candidate("8.9 too"))),
            Candidates(
                "cut", [{"role": "user", "content": "p2"}], (Candidate("9 good", is_cut=True), Candidate("1 bad"))
            ),
            Candidates("empty", "p3", (Candidate(" \u200b"), Candidate("1 bad"))),
        ]
    )
    found = best_answers(
        lambda prompt, answer: number(prompt, answer) if answer.strip(" \u200b") else 99,
        pool,
        abstain=Abstention("margin", 0.5),
    )
    exported = fine_tuning_rows(found)
    assert exported.rows == [{"id": "kept", "prompt": "p0", "answer": "9 good", "score": 9.0}]
    assert exported.left_out == {"abstained": 1, "cut_answer": 1, "empty_answer": 1}
    (row,) = fine_tuning_rows(found, messages=True).rows
    assert row["messages"] == [{"role": "user", "content": "p0"}, {"role": "assistant", "content": "9 good"}]
    assert any("unfinished" in line for line in found.warnings())


def test_pairs_are_best_and_worst_and_say_what_they_left_out():
    """The middle one is in no pair; groups of one text, of equal scores, of texts equal but for white space and of small margins give none."""
    pool = texts([["2 b", "1 a", "3 c"], ["5 x", "5 y"], ["7"], ["2 z", "2.0  z"], ["4 u", "3.9 v"], ["6 w", ""]])
    found = best_answers(lambda prompt, answer: number(prompt, answer) if answer else 0, pool)
    exported = preference_rows(found, min_margin=0.5)
    assert exported.rows == [{"id": "g0", "prompt": "p0", "chosen": "3 c", "rejected": "1 a", "score_margin": 2.0}]
    assert exported.left_out == {"equal_scores": 2, "one_text": 1, "small_margin": 1, "empty_answer": 1}
    assert len(preference_rows(found).rows) == 2
    (row, _) = preference_rows(found, messages=True).rows
    assert row["prompt"] == [{"role": "user", "content": "p0"}]
    assert row["rejected"] == [{"role": "assistant", "content": "1 a"}]
    spaced = best_answers(lambda prompt, answer: len(answer), texts([["a b", "a  b"]]))
    assert preference_rows(spaced).left_out == {"equal_answers": 1}
    cut = best_answers(number, texts([["2", "1"]], is_cut=True))
    assert preference_rows(cut).left_out == {"cut_answer": 1}
