"""Probes of invariance: edits that no reader would mind, and planted dislikes and likes of them found and measured."""

import re
import unicodedata

import numpy as np
import pytest

from rewardsmith.auditing.probes.invariance import contractions, list_order, synonyms, unicode_variants, white_space
from rewardsmith.auditing.probes.word_lists import SYNONYMS
from tests.auditing.planted import PlantedScorer, misses, river_bench


def rng(seed=0):
    return np.random.default_rng(seed)


def test_white_space_applies_to_whatever_is_not_empty():
    for answer in ["a", " ", "\n", "👍", "```\nx\n```", "One.\r\nTwo."]:
        assert white_space("p", answer, rng()) == answer + ("\r\n" if "\r\n" in answer else "\n") or "\r" in answer
    assert white_space("p", "", rng()) is None


def test_white_space_changes_nothing_but_white_space_and_nothing_in_code():
    answer = "One is here. Two is there.\nThree. Four\n\nFive `a.  b` six.\n\n```\nx = 1\n\ny = 2\n```\n\nSeven. Eight."
    edits = {white_space("p", answer, rng(seed)) for seed in range(40)}
    assert len(edits) > 10 and all(edit.split() == answer.split() for edit in edits)
    assert all("```\nx = 1\n\ny = 2\n```" in edit and "`a.  b`" in edit for edit in edits)
    assert any("here.  Two" in edit for edit in edits) and any("there. \nThree" in edit for edit in edits)
    assert any("Four\n\n\nFive" in edit or "Four \n\n\nFive" in edit for edit in edits)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It's \"so\" and 'so'.", "It’s “so” and ‘so’."),
        ("It’s “so”… yes", 'It\'s "so"... yes'),
        ("He is 5'10\" tall.", "He is 5'10\" tall."),
        ("In the '90s, \"'tis\" said...", "In the ’90s, “’tis” said…"),
        (
            "one - two--three, pages 10-15, on 2020-01-02, call 555-1234",
            "one – two—three, pages 10–15, on 2020-01-02, call 555-1234",
        ),
        ("a dog and 5 cats", "a\u00a0dog and 5\u00a0cats"),
        ("caf\u00e9", "cafe\u0301"),
        ('`it\'s` and $a - b$ and\n```\nx = "y"\n```', '`it\'s` and $a - b$ and\n```\nx = "y"\n```'),
        ("- one\n- two", "- one\n- two"),
        ('**"bold"**', "**“bold”**"),
        ("", ""),
    ],
)
def test_unicode_variants(answer, expected):
    edited = unicode_variants("p", answer, rng())
    assert edited == expected
    if "\u0301" in expected:
        assert unicodedata.normalize("NFC", edited) == answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I don't know. They are not here.", "I do not know. They aren't here."),
        ("Don't go; it can't be, you cannot.", "Do not go; it cannot be, you can't."),
        ("I’m sure they’re. He does not.", "I am sure they are. He doesn’t."),
        ("Why don't people? Isn't it? Didn't he?", None),
        ("But don't you see, aren't they here, and isn't that so?", None),
        ('The song "Please Don\'t Stop" is old.', None),
        ("It's hers; he'd go. It would not only help.", None),
        ("DON'T!", None),
        ("`don't` and dos and don'ts", None),
        ("You're right.", "You are right."),
        ("", None),
    ],
)
def test_contractions(answer, expected):
    assert contractions("p", answer, rng()) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("For example, people often assist each other.", "For instance, people frequently help one another."),
        ("a huge tree; an enormous tree; huge trees", "a huge tree; an enormous tree; enormous trees"),
        ("In addition, eat. In addition to that, sleep.", "Additionally, eat. In addition to that, sleep."),
        ("He went to Begin With Books.", None),
        ("Use `often` and often-used things.", None),
        ("USUALLY", None),
        ("", None),
    ],
)
def test_synonyms(answer, expected):
    assert synonyms("p", answer, rng()) == expected


def test_no_synonym_is_itself_or_an_article_away_from_nothing():
    assert all(word != other and word == word.lower() == word.strip() and other for word, other in SYNONYMS.items())


def test_the_items_of_a_list_change_places_with_all_that_belongs_to_them():
    answer = "You may need:\n\n- apples\n  and pears\n- bread\n\n- cheese\n\nThat is all."
    edited = list_order("p", answer, rng())
    assert edited != answer and edited.startswith("You may need:\n\n- ") and edited.endswith("\n\nThat is all.")
    assert "- apples\n  and pears\n" in edited and sorted(edited) == sorted(answer)
    assert {list_order("p", "* x\r\n* y", rng(seed)) for seed in range(9)} == {"* y\r\n* x"}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "- alone",
        "1. one\n2. two",
        "- Boil water\n- Then add salt",
        "- 1990: born\n- 2020: died",
        "The steps are:\n\n- Boil water\n- Add salt",
        "- How are you?\n- Fine",
        "- apples,\n- bread, and\n- cheese",
        "- x\n- y which\nwraps here",
        "```\n- a\n- b\n```",
        "- It follows\n- Nothing",
        "- Heat water\n- Pour it over the leaves",
        "- the year 1990\n- the year 2020",
        "- Monday: work\n- Sunday: rest",
    ],
)
def test_a_list_whose_order_may_matter_stays(answer):
    assert list_order("p", answer, rng()) in (None, answer)


def test_a_list_that_was_asked_for_in_order_stays():
    assert list_order("Give me a recipe", "- flour\n- eggs", rng()) is None
    assert list_order("What do I need?", "- flour\n- eggs", rng()) == "- eggs\n- flour"


def _items(answer):
    return re.findall(r"^- (\w+)$", answer, re.MULTILINE)


TRAITS = {
    "white_space": lambda prompt, answer: float(answer.endswith("\n")),
    "unicode_variants": lambda prompt, answer: float("’" in answer),
    "contractions": lambda prompt, answer: float("does not" in answer),
    "synonyms": lambda prompt, answer: float("frequently" in answer),
    "list_order": lambda prompt, answer: float(_items(answer) != sorted(_items(answer))),
}


@pytest.mark.parametrize("probe", TRAITS)
def test_a_planted_like_or_dislike_is_flagged_and_measured(probe):
    assert misses(probe, TRAITS[probe]) == []
    assert misses(probe, TRAITS[probe], strengths=[-0.3, -1.0]) == []


def test_the_flip_rate_of_white_space_stands_beside_all_others():
    bench = river_bench()
    results = bench.results(PlantedScorer(lambda prompt, answer: 0.0, 0.0).score(bench.plan.pairs))
    assert len(results["white_space"].contrasts) == len(bench.pairs)
    assert results["bold"].flip_rate_reference == results["white_space"].flip_rate
