"""Does what is no answer score like one? The answer is taken away, replaced or spoilt; none of it may score higher.

Where the rejected answers do harm, an empty answer may rightly score higher than they do.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from rewardsmith.auditing.probes.prose import prose_of, replaced
from rewardsmith.auditing.probes.word_lists import MARKER_WORDS, OTHER_LANGUAGES
from rewardsmith.auditing.registry import edit_probe
from rewardsmith.data.schema import Prompt, prompt_key
from rewardsmith.data.traits import is_blank, script

_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
_DIGITS = np.array(list("0123456789"))
_WORD = re.compile(r"[^\W\d_]+")
# Letters of scripts without spaces are no spelling, and a word of capitals is an abbreviation.
_SPELT = re.compile(
    r"(?<![\w'’@#\0-])[A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u04ff][a-z\u00df-\u024f\u0370-\u03ff\u0430-\u04ff]{3,}(?![\w'’\0-])"
)
_TYPO_SHARE = 0.15
_LANGUAGE_SHARE = 0.1
_READ = 2000
_LANGUAGES_OF = {"Cyrillic": {"Russian"}, "Han": {"Chinese", "Japanese"}, "Kana": {"Chinese", "Japanese"}}


@edit_probe("empty_answer", family="degenerate", says="nothing in the place of the answer")
def empty_answer(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """The empty text, unless nothing is what the answer was."""
    return None if is_blank(answer) else ""


@edit_probe("gibberish", family="degenerate", says="a random letter in the place of every letter")
def gibberish(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """Digits become random digits; white space, signs and capitals stay, so that the text keeps its length and its shape."""
    characters = np.array(list(answer), dtype=object)
    letters = np.array([one.isalpha() for one in answer], dtype=bool)
    digits = np.array([one.isdigit() for one in answer], dtype=bool)
    if not letters.any():
        return None
    capitals = np.array([one.isupper() for one in answer], dtype=bool)
    drawn = rng.choice(_LETTERS, size=len(answer))
    characters[letters] = drawn[letters]
    characters[capitals] = np.char.upper(drawn[capitals])
    characters[digits] = rng.choice(_DIGITS, size=len(answer))[digits]
    return "".join(characters.tolist())


@edit_probe(
    "other_language", family="degenerate", says="a fluent answer in another language, to a question that nobody asked"
)
def other_language(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """One of ten languages, but none that the prompt or the answer is written in."""
    if is_blank(answer):
        return None
    spoken = _languages(prompt_key(prompt)) | _languages(answer)
    languages = [one for one in OTHER_LANGUAGES if one not in spoken]
    return OTHER_LANGUAGES[languages[int(rng.integers(len(languages)))]]


def _languages(text: str) -> set[str]:
    """The languages of the list that a text may be written in."""
    words = Counter(_WORD.findall(text[:_READ].lower()))
    least = _LANGUAGE_SHARE * words.total()
    found = {one for one, markers in MARKER_WORDS.items() if sum(words[marker] for marker in markers) > least}
    return found | _LANGUAGES_OF.get(script(text[:_READ]) or "", set())


@edit_probe("all_capitals", family="degenerate", says="every letter a capital")
def all_capitals(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """Of the prose: code, formulas and links stay as they are."""
    prose = prose_of(answer)
    return replaced(answer, [(one.start(), one.end(), one[0].upper()) for one in prose.words(_WORD)])


@edit_probe("typos", family="degenerate", says="two letters swapped in every seventh word")
def typos(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """Inner letters of words of four letters or more, drawn at random, at least one word; code, formulas and links stay as they are."""
    prose = prose_of(answer)
    places = []
    for match in prose.words(_SPELT):
        word = match[0]
        swaps = [k for k in range(1, len(word) - 2) if word[k] != word[k + 1]]
        if swaps:
            places.append((match.start(), swaps))
    if not places:
        return None
    chosen = rng.choice(len(places), size=max(1, round(_TYPO_SHARE * len(places))), replace=False)
    changes = []
    for k in np.sort(chosen).tolist():
        start, swaps = places[k]
        at = start + swaps[int(rng.integers(len(swaps)))]
        changes.append((at, at + 2, answer[at + 1] + answer[at]))
    return replaced(answer, changes)
