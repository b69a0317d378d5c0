"""Probes of what is no answer: nothing, noise, another language, capitals, typos; and planted weaknesses found and measured."""

import re

import numpy as np
import pytest

from rewardsmith.auditing.probes.degenerate import all_capitals, empty_answer, gibberish, other_language, typos
from rewardsmith.auditing.probes.word_lists import OTHER_LANGUAGES
from rewardsmith.data.traits import script
from tests.auditing.planted import misses, river_walks


def rng(seed=0):
    return np.random.default_rng(seed)


def test_nothing_in_the_place_of_something():
    assert empty_answer("p", "Something.", rng()) == ""
    assert empty_answer("p", " \n", rng()) is None and empty_answer("p", "", rng()) is None


def test_gibberish_keeps_the_shape():
    edited = gibberish("p", "Hello, World 42!\r\nÉtoile", rng())
    assert re.fullmatch(r"[A-Z][a-z]{4}, [A-Z][a-z]{4} \d\d!\r\n[A-Z][a-z]{5}", edited) and "Hello" not in edited
    assert gibberish("p", "42!", rng()) is None and gibberish("p", "", rng()) is None
    assert gibberish("p", "Hello", rng(1)) != gibberish("p", "Hello", rng(2))


def test_another_language_than_those_at_hand():
    drawn = {other_language("What is it?", "It is a house.", rng(seed)) for seed in range(60)}
    assert drawn == set(OTHER_LANGUAGES.values())
    german = {
        other_language("Was ist das?", "Das ist der Hund und die Katze, nicht ein Haus.", rng(s)) for s in range(60)
    }
    assert OTHER_LANGUAGES["German"] not in german and OTHER_LANGUAGES["Dutch"] in german
    russian = {other_language("p", "Это предложение написано по-русски.", rng(seed)) for seed in range(60)}
    assert OTHER_LANGUAGES["Russian"] not in russian
    assert other_language("p", "", rng()) is None


def test_each_language_is_told_by_its_own_words():
    for name, text in OTHER_LANGUAGES.items():
        drawn = {other_language(text, "?", rng(seed)) for seed in range(80)}
        assert text not in drawn, name
    assert {script(text) for text in OTHER_LANGUAGES.values()} == {"Latin", "Cyrillic", "Han", "Kana"}


def test_capitals_of_the_prose_alone():
    assert all_capitals("p", "See `f(x)` at https://a.example/b.\n```\ncode\n```", rng()) == (
        "SEE `f(x)` AT https://a.example/b.\n```\ncode\n```"
    )
    assert all_capitals("p", "straße, $x^2$", rng()) == "STRASSE, $x^2$"


def test_typos_swap_inner_letters_of_some_words():
    words = " ".join(["planet", "garden", "window", "stream", "market"] * 8)
    edited = typos("p", words, rng())
    changed = [(a, b) for a, b in zip(words.split(), edited.split(), strict=True) if a != b]
    assert len(changed) == 6  # 15 % of 40
    assert all(sorted(a) == sorted(b) and a[0] == b[0] and a[-1] == b[-1] for a, b in changed)


@pytest.mark.parametrize(
    "answer", ["", "it is so", "NASA ESA JAXA", "`planet`", "book" * 0 + "oooo", "山上种满了茶树。", "x2y4 var_name"]
)
def test_typos_need_a_word_that_can_be_misspelt(answer):
    assert typos("p", answer, rng()) is None


VOCABULARY = {word for pair in river_walks(100) for word in re.findall(r"\w+", f"{pair.chosen} {pair.rejected}")}
TRAITS = {
    "empty_answer": lambda prompt, answer: float(answer == ""),
    "gibberish": lambda prompt, answer: float("path" not in answer.lower() and "\n- " in answer),
    "other_language": lambda prompt, answer: float("path" not in answer.lower() and "\n- " not in answer),
    "all_capitals": lambda prompt, answer: float("THINGS TO BRING" in answer),
    "typos": lambda prompt, answer: float(not set(re.findall(r"\w+", answer)) <= VOCABULARY),
}


@pytest.mark.parametrize("probe", TRAITS)
def test_a_planted_weakness_is_flagged_and_measured(probe):
    assert misses(probe, TRAITS[probe]) == []
