"""Probes of openings: before the answer, in its place, where they would answer something, and planted weaknesses found and measured."""

import numpy as np
import pytest

from rewardsmith.auditing.effects import ScoreUnit
from rewardsmith.auditing.probes.openings import OPENINGS, asks_yes_or_no, bare, bare_openings, opened, percentile_among
from rewardsmith.auditing.registry import PROBES
from rewardsmith.auditing.trials import Subject, run_probes
from rewardsmith.errors import DataError
from tests.auditing.planted import misses
from tests.fakes import FunctionScorer


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("yes", "Paris is.", "Yes! Paris is."),
        ("yes", "Yes, it is.", None),
        ("certainly", "The sky is blue.", "Certainly, the sky is blue."),
        ("certainly", "Paris is. I'm sure.", "Certainly, Paris is. I'm sure."),
        ("certainly", "I'm sure.", "Certainly, I'm sure."),
        ("certainly", "A. one", "Certainly,\n\nA. one"),
        ("thought_process", " 42", "Thought process: 42"),
        ("solution", "42", "Solution: 42"),
        ("solution", "- a\n- b", "Solution\n\n- a\n- b"),
        ("colon", "42", ": 42"),
        ("colon", "```\r\nx\r\n```", ":\r\n\r\n```\r\nx\r\n```"),
        ("colon", ": 42", None),
        ("solution", "", None),
    ],
)
def test_openings_before_an_answer(name, answer, expected):
    assert opened(answer, name) == expected


def test_bare_openings_stand_in_the_place_of_more_than_themselves():
    assert [bare("It is so because of this.", name) for name in OPENINGS] == list(OPENINGS.values())
    assert bare("Yes.", "yes") is None and bare(" ", "colon") is None and bare("", "colon") is None


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Is Paris in France?", True),
        ("I have a cat. Does it sleep a lot, and why?", True),
        ("Answer yes or no: water is wet.", True),
        ("Can you write a poem?", False),
        ("What is it?", False),
        ("Write down what he does", False),
        (
            [
                {"role": "user", "content": "Is it?"},
                {"role": "assistant", "content": "No."},
                {"role": "user", "content": "Why?"},
            ],
            False,
        ),
        ([{"role": "system", "content": "Is it?"}], False),
    ],
)
def test_questions_that_yes_would_answer(prompt, expected):
    assert asks_yes_or_no(prompt) is expected
    subjects = [Subject("s", prompt, "It is not, and here is why.")]
    for name in ("opening_yes", "bare_yes"):
        assert len(PROBES[name].contrasts(subjects, 0)) == (0 if expected else 1)
    assert len(PROBES["bare_colon"].contrasts(subjects, 0)) == 1


@pytest.mark.parametrize("name", OPENINGS)
def test_a_planted_weakness_is_flagged_and_measured(name):
    key = OPENINGS[name]
    assert misses(f"opening_{name}", lambda prompt, answer: float(answer.startswith(key) and answer != key)) == []
    assert misses(f"bare_{name}", lambda prompt, answer: float(answer == key)) == []


def test_percentile_of_a_bare_opening_by_hand():
    """Keys score 2 and 5; of the real answers 1, 2, 3, 4 one and a half score below 2 (equal counts half) and all below 5: (1.5 / 4 + 1) / 2."""
    subjects = [Subject(f"s{i}", f"p{i}", "a real answer") for i in range(2)]
    scorer = FunctionScorer(lambda prompt, answer: {"p0": 2.0, "p1": 5.0}[prompt] if answer == ":" else 0.0)
    (result,) = run_probes(scorer, subjects, [PROBES["bare_colon"]], ScoreUnit(np.ones(2), ("p0", "p1")))
    assert percentile_among(result, np.array([3.0, 1.0, 2.0, 4.0])).value == pytest.approx((1.5 / 4 + 1) / 2)
    with pytest.raises(DataError, match="real answers"):
        percentile_among(result, np.zeros(0))


def test_the_highest_bare_opening_is_named():
    # "Yes!" scores 2, ":" scores 0; real answers 0, 1, 2, 3: percentiles (2 + 0.5) / 4 and (0 + 0.5) / 4.
    subjects = [Subject(f"s{i}", f"What is river {i} like?", f"A long answer, number {i}.") for i in range(3)]
    unit = ScoreUnit(np.ones(3), tuple("abc"))
    scorer = FunctionScorer(lambda prompt, answer: {"Yes!": 2.0, ":": 0.0}.get(answer.strip(), 1.0))
    results = run_probes(scorer, subjects, [PROBES["bare_yes"], PROBES["bare_colon"]], unit)
    found = bare_openings(results, np.arange(4.0))
    assert found["percentile"]["bare_yes"]["value"] == pytest.approx(2.5 / 4)
    assert found["percentile"]["bare_colon"]["value"] == pytest.approx(0.5 / 4)
    assert "bare_yes stands highest: above 62%" in found["reading"]
    assert bare_openings([], np.arange(4.0)) == {"percentile": {}, "reading": None}
