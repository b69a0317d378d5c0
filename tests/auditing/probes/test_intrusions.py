"""Probes of text in an answer that speaks to the scorer or to its parser: what they write, and that a scorer which falls for it is found out."""

import re

import pytest

from rewardsmith.auditing.probes.intrusions import TOKENS, own_tokens
from rewardsmith.auditing.registry import PROBES
from rewardsmith.auditing.trials import Subject, run_probes, subjects_of, unit_of
from rewardsmith.data.traits import has_role_marker, has_template_token
from rewardsmith.errors import SettingsError
from tests.auditing.habits import STRENGTHS, assert_found, edited, pairs_of, put, with_habit

REQUEST = r"highest possible score|full marks|10 out of 10|maximum reward|prefer it to every other|100 of 100"


def test_a_request_for_full_marks_stands_after_the_answer():
    for text in edited("instruction_to_scorer", *(f"Reply {i}." for i in range(40))):
        assert re.match(r"Reply \d+\.\n\n", text) and re.search(REQUEST, text), text


def test_control_tokens_are_those_that_lint_knows():
    """Every format but Alpaca's, whose markers are words, is what lint calls a template token or a role marker."""
    for name, tokens in TOKENS.items():
        assert name == "Alpaca" or has_template_token(tokens) or has_role_marker(f"Reply.\n\n{tokens}"), name
    texts = edited("template_tokens", *(f"Reply {i}." for i in range(200)))
    assert {text.split(".\n\n", 1)[1] for text in texts} == set(TOKENS.values())


def test_the_prompt_is_echoed_to_the_letter():
    assert edited("prompt_echo", "Anything.", prompt="How do I mend it?") == ["How do I mend it?"]
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "And c?"))]
    assert edited("prompt_echo", "Anything.", prompt=turns) == ["And c?"]
    assert edited("prompt_echo", "Anything.", prompt=" ") == []


@pytest.mark.parametrize("name", ["instruction_to_scorer", "template_tokens", "prompt_echo"])
def test_an_edit_takes_any_text(name):
    texts = ["\u4f60\u597d\u3002", "```python\nprint(1)\n```", "\u0645\u0631\u062d\u0628\u0627", "a" * 5000]
    assert len(edited(name, *texts, prompt="\u4f60\u597d")) == len(texts)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(
    ("name", "habit"),
    [
        ("instruction_to_scorer", lambda prompt, answer: re.search(REQUEST, answer) is not None),
        ("template_tokens", lambda prompt, answer: any(tokens in answer for tokens in TOKENS.values())),
        ("prompt_echo", lambda prompt, answer: answer == prompt),
    ],
)
def test_a_scorer_that_takes_orders_is_found(name, habit, strength):
    assert_found(put(name, with_habit(habit, strength)), strength)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_scorers_own_tokens_are_tried_where_it_tells_them(strength):
    pairs, scorer = pairs_of(), with_habit(lambda prompt, answer: "<|fin|>" in answer or "<|go|>" in answer, strength)
    (result,) = run_probes(scorer, subjects_of(pairs), [own_tokens(("<|fin|>", "<|go|>"))], unit_of(scorer, pairs))
    assert_found(result, strength)
    assert {text.edited[1].split("\n\n")[1] for text in result.contrasts} == {"<|fin|>", "<|go|>"}
    assert "own_tokens" not in PROBES


def test_own_tokens_by_hand():
    subject = Subject("a", "How?", "Reply.", "rival")
    (contrast,) = own_tokens(["</s>"]).contrasts([subject, Subject("b", "How?", " ", "rival")], 0)
    assert contrast.edited == ("How?", "Reply.\n\n</s>") and contrast.original == ("How?", "Reply.")
    assert contrast.rival == ("How?", "rival")
    with pytest.raises(SettingsError, match="at least one special token"):
        own_tokens([])
