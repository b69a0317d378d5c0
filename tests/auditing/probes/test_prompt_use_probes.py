"""Probes of whether the prompt is read: which answers and prompts they exchange, and what blind and reading scorers show."""

import math
from collections import Counter

import numpy as np
import pytest

from rewardsmith.auditing.probes.prompt_use import NEARLY_THE_SAME, Prompts
from rewardsmith.auditing.registry import PROBES
from rewardsmith.auditing.trials import Subject, subjects_of
from tests.auditing.habits import STRENGTHS, noise, number_of, over_qualities, pairs_of, put, with_habit

SUBJECTS = [
    Subject("sea", "Why is the sea salty?", "worse sea", "better sea"),
    Subject("sky", "Why is the sky blue?", "worse sky", "better sky"),
    Subject("tea", "How long should green tea steep?", "worse tea", "better tea"),
    Subject("tea again", "How long should green tea steep?", "other worse tea", "other better tea"),
]


def _by(name, subjects=SUBJECTS, seed=0):
    return {one.id: one for one in PROBES[name].contrasts(subjects, seed)}


def test_contrasts_by_hand():
    wrong, none, off, hard = (_by(name) for name in ("wrong_prompt", "no_prompt", "off_topic", "hard_negative"))
    assert none["sea"].edited == ("", "better sea") and none["sea"].original == ("", "worse sea")
    foreign = wrong["sea"].edited[0]
    assert foreign in {one.prompt for one in SUBJECTS} - {"Why is the sea salty?"}
    assert wrong["sea"].edited == (foreign, "better sea") and wrong["sea"].original == (foreign, "worse sea")
    assert wrong["sea"].rival is None and wrong["sea"].cluster == "Why is the sea salty?"
    # The answer that is lent is the one to the very prompt that was lent.
    lent = next(one.rival for one in SUBJECTS if one.prompt == foreign)
    assert off["sea"].edited == ("Why is the sea salty?", lent)
    assert off["sea"].original == ("Why is the sea salty?", "worse sea")
    assert off["sea"].rival == ("Why is the sea salty?", "better sea")
    # Three words of four in common, against one with none.
    assert hard["sea"].edited == ("Why is the sea salty?", "better sky")
    assert hard["sky"].edited == ("Why is the sky blue?", "better sea")
    assert "tea" not in hard  # no other prompt has a word in common with it


def test_answers_of_one_prompt_are_lent_in_turn():
    wrong = _by("wrong_prompt")
    assert wrong["tea"].edited[0] == wrong["tea again"].edited[0] != SUBJECTS[2].prompt
    off = _by("off_topic")
    borrower = next(one for one in off.values() if "tea" in one.edited[1])
    assert borrower.edited[1] == "better tea"


def test_a_prompt_that_is_nearly_the_same_is_no_other_prompt():
    words = [f"word{i}" for i in range(20)]
    near = " ".join([*words[:19], "changed"])
    subjects = [
        Subject("a", " ".join(words), "wa", "ba"),
        Subject("b", near, "wb", "bb"),
        Subject("c", "word1 else", "wc", "bc"),
    ]
    others, similar = Prompts(subjects, 0).others(), Prompts(subjects, 0).similar()
    # 19 words of 20 in common: cosine over 0.8; a and b can lend to c alone, and c borrows from one of them.
    assert others.rows.tolist() == [2, 2, others.rows[2]] and others.rows[2] in (0, 1)
    assert similar.rows.tolist()[:2] == [2, 2] and (similar.cosines < NEARLY_THE_SAME).all()


def test_an_answer_that_the_borrower_has_itself_is_not_lent():
    refusal = "I cannot help with that."
    subjects = [Subject("a", "How a?", "worse a", refusal), Subject("b", "How b?", refusal, "better b")]
    assert Prompts(subjects, 0).others().rows.tolist() == [1, -1]  # b's rejected answer is what a would lend
    third = [*subjects, Subject("c", "How c?", "worse c", f" {refusal}\n")]
    found = Prompts(third, 0).others().rows.tolist()
    assert found[1] == -1 and found[0] == 1 and found[2] == 1


def test_every_prompt_lends_about_as_often_as_any_other_whatever_their_order():
    subjects = subjects_of(pairs_of(60))
    turned = subjects[::-1]
    for find in (Prompts.others, Prompts.similar):
        found, again = find(Prompts(subjects, 3)).rows, find(Prompts(turned, 3)).rows
        # All prompts are alike but for a number: of each kind of seven one may be left over, and takes one that has lent before.
        assert max(Counter(found.tolist()).values()) <= 2 and len(set(found.tolist())) >= 53
        by_id = {one.id: subjects[row].id for one, row in zip(subjects, found, strict=True)}
        assert by_id == {one.id: turned[row].id for one, row in zip(turned, again, strict=True)}
        assert find(Prompts(subjects, 4)).rows.tolist() != found.tolist()
    assert Counter(Prompts(subjects, 3).others().rows.tolist()) == Counter(range(60))


def test_any_text_is_taken():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "\u4f60\u597d\u5417"}]
    prompts = ["", "?!", turns, "\u4f60\u597d", "\ud800 half", "How?"]
    subjects = [Subject(str(i), prompt, f"w{i}", f"b{i}") for i, prompt in enumerate(prompts)]
    assert len(_by("wrong_prompt", subjects)) == len(prompts)
    assert len(_by("no_prompt", subjects)) == len(prompts) - 1  # without the one that is empty anyway
    hard = _by("hard_negative", subjects)
    assert hard["2"].edited[1] == "b3" and hard["3"].edited[1] == "b2"  # two characters in common
    assert _by("wrong_prompt", [Subject("a", "How?", "w", None)]) == {}
    assert Prompts([], 0).others().rows.tolist() == Prompts([], 0).similar().rows.tolist() == []
    wordless = [Subject(str(i), "?" * i, "w", f"b{i}") for i in range(1, 4)]
    assert Prompts(wordless, 0).similar().rows.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("effect", [0.3, 1.0, 1.3])
@pytest.mark.parametrize("name", ["wrong_prompt", "no_prompt", "off_topic", "hard_negative"])
def test_a_blind_scorer_is_found(name, effect):
    """A scorer that pays b for preferred answers under any prompt has margins of mean b and variance 2.

    One sd is sqrt((b^2 + 2) / 2), and the effect, b over that, stays below sqrt(2).
    """
    bonus = effect / math.sqrt(1 - effect**2 / 2)
    found = over_qualities(name, lambda prompt, answer: "good" in answer, bonus, effect)
    assert found.flagged >= (0.8 if effect < 1 else 1.0)
    assert found.covered >= 0.88  # 3.2 standard errors of 100 below 0.95


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", ["off_topic", "hard_negative"])
def test_a_scorer_that_likes_answers_to_other_prompts_is_found(name, strength):
    found = over_qualities(name, lambda prompt, answer: number_of(prompt) != number_of(answer), strength, strength)
    assert found.flagged >= (0.8 if strength < 1 else 1.0)
    assert found.covered >= 0.88


@pytest.mark.parametrize("name", ["wrong_prompt", "no_prompt", "off_topic", "hard_negative"])
def test_a_scorer_that_pays_only_for_answers_to_the_prompt_is_left_alone(name):
    def reads(prompt, answer):
        return "good" in answer and number_of(prompt) == number_of(answer)

    result = put(name, with_habit(reads, 2.0, of=lambda answer: 0.3 * noise(answer)))
    assert not result.flagged
    assert np.abs(result.effect.value) < 0.2


def test_probes_are_of_a_kind_of_their_own():
    for name in ("wrong_prompt", "no_prompt", "off_topic", "hard_negative"):
        probe = PROBES[name]
        assert (probe.family, probe.kind, probe.direction) == ("prompt_use", "prompt use", "up")
        assert not probe.edits_answers
