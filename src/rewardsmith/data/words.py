"""A text as the words that a person would point at, with nothing left over: joined, they give back the text."""

from __future__ import annotations

import itertools
import re
import unicodedata

from rewardsmith.data.schema import Prompt

# Thai, Lao, Burmese, Khmer, Kana and Han are written without spaces: there a word is a character.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U000323af]")
_APOSTROPHES = "'\u2019"


_BETWEEN_TURNS = "\n\n"


def turns_of(prompt: Prompt) -> list[str]:
    """The texts of a prompt's turns, each with the blank line that stands before the next one in `prompt_text`; a string is one turn."""
    turns = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    return [*(turn + _BETWEEN_TURNS for turn in turns[:-1]), turns[-1]]


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text without roles: its turns, parted by blank lines."""
    return "".join(turns_of(prompt))


def word_spans(text: str) -> list[tuple[int, int]]:
    r"""Where the words of a text begin and end, in characters, first to last; together they cover it.

    A word is a run of letters and digits with the apostrophes inside it, or a run of other signs; in a script without spaces it is one character.
    White space belongs to the word after it, at the end of the text to the last one.

    >>> [text[start:end] for text in ["It's 5 pm, so\n\ngo."] for start, end in word_spans(text)]
    ["It's", ' 5', ' pm', ',', ' so', '\n\ngo', '.']
    """
    starts: list[int] = []
    previous = ""
    for i, character in enumerate(text):
        kind = _kind(text, i, character)
        if kind == "mark" and previous:
            continue  # accents and joiners go with what they stand on, be it a space
        if not previous or (previous != "space" and (kind != previous or kind == "unspaced")):
            starts.append(i)
        previous = kind
    if len(starts) > 1 and text[starts[-1] :].isspace():
        starts.pop()
    return list(itertools.pairwise([*starts, len(text)]))


def _kind(text: str, i: int, character: str) -> str:
    if character.isspace():
        return "space"
    if unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf"):
        return "mark"
    if _UNSPACED.match(character):
        return "unspaced"
    inside = character in _APOSTROPHES and 0 < i < len(text) - 1 and text[i - 1].isalnum() and text[i + 1].isalnum()
    return "word" if inside or character.isalnum() or character == "_" else "sign"
