"""Probes of format: the same words dressed up, what is no prose left alone, and planted tastes found and measured."""

import numpy as np
import pytest

from rewardsmith.auditing.probes.formatting import bold, bullets, code_fence, emoji, exclamation, headers, link
from rewardsmith.auditing.probes.word_lists import EMOJI, LINKS
from tests.auditing.planted import misses


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("edit", "answer", "expected"),
    [
        (
            bold,
            "Water boils. It evaporates quickly!",
            "**Water** boils. It **evaporates** quickly!",
        ),
        (bold, "# A heading\n\n**Bold** already. Plain here.", "# A heading\n\n**Bold** already. **Plain** here."),
        (bold, "Call `evaporates()` on $evaporated$ then.", "**Call** `evaporates()` on $evaporated$ then."),
        (bold, "No.", None),
        (bold, "山上种满了茶树。", None),
        (bold, "- e.g. apples\r\n- pears", "- e.g. **apples**\r\n- **pears**"),
        (bullets, "One is here. Two is there.", "- One is here.\n- Two is there."),
        (bullets, "Hello.\n\nOne. Two!\n\n```\na. b. c.\n```", "Hello.\n\n- One.\n- Two!\n\n```\na. b. c.\n```"),
        (bullets, "Roses are red,\nviolets are blue.", None),  # a verse
        (bullets, "- One. Two.\n- Three. Four.", None),
        (bullets, "Only one.", None),
        (bullets, "One. See these:\n\n- a", None),
        (bullets, "一。二。", "- 一。\n- 二。"),
        (headers, "Yes.", "## Answer\n\nYes."),
        (
            headers,
            "One.\r\n\r\nTwo:\r\n\r\n- three",
            "## Part 1\r\n\r\nOne.\r\n\r\n## Part 2\r\n\r\nTwo:\r\n\r\n- three",
        ),
        (headers, "# Mine\n\nOne.", None),
        (headers, "", None),
        (
            headers,
            "A:\n\nB\n\nC\n\nD\n\nE",
            "## Part 1\n\nA:\n\nB\n\n## Part 2\n\nC\n\n## Part 3\n\nD\n\nE",
        ),  # "B" belongs to "A:"
        (code_fence, "Plain words.\n", "```\nPlain words.\n```"),
        (code_fence, "See:\n```\nx\n```", None),
        (code_fence, "def f(x):\n    return x + 1;\n", None),  # a fence would do it good
        (code_fence, "", None),
        (exclamation, "One. Two? See e.g. this, Dr. Who.", "One! Two? See e.g. this, Dr. Who!"),
        (exclamation, 'He said "no." Then 3.5 came.', 'He said "no!" Then 3.5 came!'),
        (exclamation, "No stop here", "No stop here!"),
        (exclamation, "Run `a.b.`\n\n```\nx. y.\n```", None),
        (exclamation, "1. first\n2. second", "1. first\n2. second!"),
        (exclamation, "好。", "好！"),
        (exclamation, "Wait...", None),
    ],
)
def test_the_same_words_in_another_dress(edit, answer, expected):
    assert edit("p", answer, rng()) == expected


def test_emoji_stand_at_the_ends_of_paragraphs_five_at_most():
    edited = emoji("p", "One.\n\nTwo:\n\n```\nthree\n```", rng())
    assert edited[5] in EMOJI and edited.startswith("One. ") and edited.endswith("\n\nTwo:\n\n```\nthree\n```")
    many = emoji("p", "\n\n".join(["Words."] * 40), rng())
    assert sum(many.count(one) for one in EMOJI) == 5
    assert emoji("p", "```\ncode\n```", rng()) is None and emoji("p", "", rng()) is None


def test_a_link_stands_after_the_answer():
    edited = link("p", "Words.  ", rng())
    assert edited.startswith("Words.\n\n") and edited.removeprefix("Words.\n\n") in LINKS
    assert link("p", "```\nopen", rng()) is None and link("p", " ", rng()) is None


TRAITS = {
    "bold": lambda prompt, answer: float("**" in answer),
    "bullets": lambda prompt, answer: float(("\n" + answer).count("\n- ") > 4),
    "headers": lambda prompt, answer: float("## " in answer),
    "emoji": lambda prompt, answer: float(any(one in answer for one in EMOJI)),
    "link": lambda prompt, answer: float("](" in answer),
    "code_fence": lambda prompt, answer: float("```" in answer),
    "exclamation": lambda prompt, answer: float("!" in answer),
}


@pytest.mark.parametrize("probe", TRAITS)
def test_a_planted_taste_is_flagged_and_measured(probe):
    assert misses(probe, TRAITS[probe]) == []


def test_a_taste_that_grows_with_every_mark_is_measured_too():
    assert misses("bold", lambda prompt, answer: answer.count("**") / 10, strengths=[1.0]) == []
    assert misses("exclamation", lambda prompt, answer: answer.count("!") / 5, strengths=[1.0]) == []
