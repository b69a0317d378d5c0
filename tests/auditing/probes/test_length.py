"""Probes of length: what they make of a text, that a planted love of length is found and measured, and the statistics against hand arithmetic."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from rewardsmith.auditing.effects import ScoreUnit
from rewardsmith.auditing.probes.length import COPIES, cut, length_statistics, padding, repeated_last_sentence
from rewardsmith.auditing.probes.length import whole_answer_twice as twice
from rewardsmith.auditing.probes.word_lists import NEUTRAL_SENTENCES
from rewardsmith.auditing.registry import PROBES
from rewardsmith.auditing.trials import Subject, run_probes, subjects_of
from rewardsmith.data.schema import Preference
from rewardsmith.errors import DataError
from tests.auditing.planted import Bench, PlantedScorer, misses, river_walks
from tests.fakes import FunctionScorer


def rng():
    return np.random.default_rng(0)


def test_padding_says_nothing_in_a_paragraph_of_its_own():
    edited = padding("p", "The sky is blue.\n", rng())
    assert edited.startswith("The sky is blue.\n\n")
    rest = edited.removeprefix("The sky is blue.\n\n")
    assert sum(sentence in rest for sentence in NEUTRAL_SENTENCES) == 3
    assert padding("p", "One.\r\nTwo.", rng()).startswith("One.\r\nTwo.\r\n\r\n")


@pytest.mark.parametrize(
    "answer", ["", " \n", "```\nan open fence", "村子后面有一座小山，山上种满了茶树。人们天还没亮就上山采茶。"]
)
def test_padding_is_for_closed_answers_in_latin_letters(answer):
    assert padding("p", answer, rng()) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("One. Two is e.g. this.", "One. Two is e.g. this. Two is e.g. this. Two is e.g. this."),
        ("Ask Dr. Who. No", "Ask Dr. Who. No\nNo\nNo"),  # no end mark
        ("- a\n- b", "- a\n- b\n- b\n- b"),
        ("1. Go. Then stop.", "1. Go. Then stop. Then stop. Then stop."),
        ("一。二。", "一。二。二。二。"),
        ("A.\r\nB", "A.\r\nB\r\nB\r\nB"),
        ("Look:\n```\nx = 1\n```", None),
        ("| a | b |\n|---|---|\n| 1 | 2 |", None),
        ("", None),
    ],
)
def test_the_last_sentence_or_item_is_repeated(answer, expected):
    assert repeated_last_sentence(answer, 2) == expected


def test_the_whole_answer_twice():
    assert twice("p", "One.\n", rng()) == "One.\n\nOne."
    assert twice("p", "", rng()) is None
    assert twice("p", "```\nleft open", rng()) is None


@pytest.mark.parametrize(
    ("answer", "share", "expected"),
    [
        ("one two three four", 0.5, "one two"),  # 9 of 18 characters: "one two t"
        ("one two three four", 0.25, "one"),
        ("alone", 0.5, None),
        ("", 0.5, None),
        ("a  ", 0.5, None),  # only white space would be lost
        ("村子后面有一座小山，山上种满了茶树。", 0.5, "村子后面有一座小山"),  # 18 characters, none of them white space
        ("👍🏽👍🏽", 0.75, "👍🏽"),  # a skin tone stays with its thumb
        ("x" * 100, 0.5, "x" * 50),
    ],
)
def test_a_cut_keeps_whole_words(answer, share, expected):
    assert cut(answer, share) == expected


TRAITS = {
    "length_preference": lambda prompt, answer: float(len(answer) > 400),
    "padding": lambda prompt, answer: float(answer.rpartition("The walk ends at")[2].count(".") == 4),
    "whole_answer_twice": lambda prompt, answer: float(answer.count("Things to bring") == 2),
    **{f"cut_{share}": lambda prompt, answer: float("The walk ends at" not in answer) for share in (25, 50, 75)},
    **{f"repetition_{k}": lambda prompt, answer, k=k: float(answer.count("The walk ends at") == k + 1) for k in COPIES},
}


@pytest.mark.parametrize("probe", [name for name in TRAITS if name != "length_preference"])
def test_a_planted_love_of_length_is_flagged_and_measured(probe):
    assert misses(probe, TRAITS[probe]) == []


def test_a_planted_preference_for_the_longer_of_two_answers_is_flagged_and_measured():
    """Answers of two qualities are compared, so it takes more pairs than an edit that leaves the quality as it is."""
    bench = Bench(river_walks(1000), [PROBES["length_preference"]])
    assert misses("length_preference", TRAITS["length_preference"], bench=bench) == []


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_a_score_that_grows_with_every_character_shows_in_the_probes_and_the_statistics(strength):
    """The score is quality + strength * length / 100; eight copies of a sentence of n characters with its space add strength * 8 (n + 1) / 100."""
    pairs = river_walks(120)
    scorer = PlantedScorer(lambda prompt, answer: len(answer) / 100, strength)
    chosen = scorer.score([pair.chosen_pair for pair in pairs]).astype(float)
    rejected = scorer.score([pair.rejected_pair for pair in pairs]).astype(float)
    unit = ScoreUnit.of(chosen - rejected, [pair.prompt for pair in pairs])
    probes = [PROBES[f"repetition_{k}"] for k in COPIES]
    results = run_probes(scorer, subjects_of(pairs), probes, unit)
    last = np.mean([len(f" The walk ends at{pair.rejected.rpartition('The walk ends at')[2]}") for pair in pairs])
    found = length_statistics(pairs, chosen, rejected, results=results)
    assert found.slope_per_copy.low <= strength * last / 100 / unit.sd <= found.slope_per_copy.high
    assert found.slope_per_copy.low > 0
    # The margin is the difference of two qualities + strength * difference / 100.
    slope = strength * found.difference_sd / 100 / unit.sd
    assert found.margin_slope.low <= slope <= found.margin_slope.high
    assert found.margin_slope.low > 0 and found.within_prompt.pearson.low > 0
    assert found.accuracy["chosen_longer"].low > found.accuracy["chosen_shorter"].high


def test_a_scorer_that_follows_the_labels_alone_has_no_preference_for_length():
    """Of 60 pairs the chosen answer is longer in 45, so the longer one wins there; each stratum counts alike, and the effect is 0."""
    subjects = [
        Subject(f"s{i}", f"p{i}", "short" if i < 45 else "much longer", "longer one" if i < 45 else "tiny")
        for i in range(60)
    ]
    scorer = FunctionScorer(lambda prompt, answer: float(answer in ("longer one", "tiny")))
    (result,) = run_probes(scorer, subjects, [PROBES["length_preference"]], ScoreUnit(np.ones(60), tuple("ab" * 30)))
    assert result.effect.value == pytest.approx(0, abs=1e-12) and not result.flagged


def test_without_both_strata_nothing_is_said_of_length():
    subjects = [Subject(f"s{i}", f"p{i}", "short", "longer" if i < 51 else "tiny") for i in range(60)]
    assert PROBES["length_preference"].contrasts(subjects, 0) == []  # nine pairs with a shorter chosen answer
    subjects.append(Subject("s60", "p60", "short", "tiny"))
    assert len(PROBES["length_preference"].contrasts(subjects, 0)) == 61
    same = [Subject(f"s{i}", f"p{i}", "same", "size") for i in range(60)]
    alone = [Subject(f"s{i}", f"p{i}", "same", None) for i in range(60)]
    assert PROBES["length_preference"].contrasts(same + alone, 0) == []


def pair(k, chosen, rejected, prompt=None):
    return Preference(f"p{k}", prompt or f"prompt {k}", "c" * chosen, "r" * rejected)


def test_correlations_by_another_way():
    """Against scipy on all answers, and on what is left when each prompt's mean is taken off; for one pair a prompt the latter is sum(d_s d_l) / root of squares."""
    draws = np.random.default_rng(1)
    lengths = draws.integers(1, 500, (40, 2))
    pairs = [pair(k, *sizes) for k, sizes in enumerate(lengths.tolist())]
    chosen, rejected = draws.normal(size=(2, 40)) + lengths.T / 300
    found = length_statistics(pairs, chosen, rejected)
    scores, sizes = np.concatenate([chosen, rejected]), lengths.T.ravel()
    assert found.pooled.pearson.value == pytest.approx(pearsonr(scores, sizes)[0])
    assert found.pooled.spearman.value == pytest.approx(spearmanr(scores, sizes)[0])
    d_s, d_l = chosen - rejected, lengths[:, 0] - lengths[:, 1]
    expected = (d_s * d_l).sum() / np.sqrt((d_s**2).sum() * (d_l**2).sum())
    assert found.within_prompt.pearson.value == pytest.approx(expected)
    assert found.within_prompt.spearman.value == pytest.approx(np.sign(d_s * d_l).mean())
    assert found.of_labels.spearman.value == pytest.approx(np.sign(d_l).mean())
    slope, intercept = np.polyfit(d_l / d_l.std(), d_s, 1) / np.sqrt((d_s**2).mean() / 2)
    assert found.margin_slope.value == pytest.approx(slope)
    assert found.margin_at_equal_length.value == pytest.approx(intercept)
    assert found.accuracy["chosen_longer"].value == pytest.approx((d_s[d_l > 0] > 0).mean())


def test_ranks_are_taken_anew_in_every_resample():
    """Drawn weights and drawn rows are the same: three values with the weights 2, 0, 1 have the middle ranks 1.5 and 3."""
    from rewardsmith.auditing.probes.length import _weighted_ranks

    ranks = _weighted_ranks(np.array([5.0, 7.0, 9.0, 5.0]))(np.array([[2.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    assert ranks[0, [0, 2]].tolist() == [1.5, 3.0]
    assert ranks[1].tolist() == [1.5, 3.0, 4.0, 1.5]


def test_an_answer_of_several_pairs_counts_once():
    """One prompt's best answer stands in two pairs: four answers in all, and lengths 4, 1, 2 with scores 3, 1, 2 go together perfectly within the prompt."""
    pairs = [pair(0, 4, 1, "same"), pair(1, 4, 2, "same"), pair(2, 5, 3)]
    found = length_statistics(pairs, np.array([3.0, 3.0, 1.0]), np.array([1.0, 2.0, 0.0]))
    assert found.pooled.pearson.n == 5
    assert found.within_prompt.spearman.value == pytest.approx(1.0)


@pytest.mark.slow
def test_intervals_cover_what_is_true_nineteen_times_in_twenty():
    """Scores are normal draws + 0.3 * length in standard deviations of length; within prompt that is a correlation of 0.3 / sqrt(1.09)."""
    draws, covered = np.random.default_rng(2), 0
    for _ in range(200):
        sizes = draws.normal(500, 100, (80, 2)).round().clip(1)
        pairs = [pair(k, *map(int, one)) for k, one in enumerate(sizes)]
        scores = draws.normal(size=(80, 2)) + 0.3 * sizes / 100
        interval = length_statistics(pairs, scores[:, 0], scores[:, 1]).within_prompt.pearson
        covered += interval.low <= 0.3 / np.sqrt(1.09) <= interval.high
    assert covered >= 182  # fewer has a chance of 1 % at 95 %


def test_what_does_not_vary_has_no_correlation():
    pairs = [pair(k, 5, 5) for k in range(12)]
    document = length_statistics(pairs, np.ones(12), np.zeros(12)).as_dict()
    assert document["pooled"] == {"pearson": None, "spearman": None}
    assert document["margin_slope"] is None and document["slope_per_copy"] is None
    assert document["accuracy"]["chosen_longer"] is None and document["accuracy"]["equal_length"]["value"] == 1.0


def test_scores_must_be_one_a_pair():
    with pytest.raises(DataError, match="a score of either answer"):
        length_statistics([pair(0, 1, 2)], np.ones(2), np.ones(1))
    with pytest.raises(DataError, match="at least one pair"):
        length_statistics([], np.ones(0), np.ones(0))
