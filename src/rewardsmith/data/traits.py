"""What a text looks like from outside: marks of Markdown, list items, apologies, refusals, damage. No meaning is read.

These are the surface traits that labels lean on and reward models learn instead of quality; the lint, the baselines of an evaluation and the audit ask for them
here, so that "more marked up" means the same everywhere.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

import ftfy

# Patterns that begin with a line break are searched in "\n" + text: the regex engine then jumps from line to line instead of trying every character.
_LINE_MARKS = re.compile(r"\n(?:#{1,6} |[ \t]*(?:[-*+] |\d+[.)] )|\|)")
_LINKS = re.compile(r"\[[^\]]+\]\([^)]+\)")
_CODE = re.compile(r"`+")
_LIST_ITEM = re.compile(r"\n[ \t]*(?:[-*+•] |\d{1,3}[.)] )")
_APOLOGY = re.compile(r"\b(?:sorry|apologi[sz]e|apologies|my apologies|forgive me|i regret)\b")
_REFUSAL = re.compile(
    r"\b(?:i|we) (?:can ?not|can't|can’t|could not|couldn't|won't|will not|am not able|am unable|'m not able|'m unable|must decline|have to decline)\b"
    r"|\bi'm (?:not able|unable)\b|\bi’m (?:not able|unable)\b|\bas an ai\b|\bas a (?:large )?language model\b|\bnot (?:appropriate|comfortable) (?:for me )?to\b"
)
# One of these is in every match; to look for them first is quicker.
_REFUSAL_WORDS = ("can", "could", "won", "will", "not", "unable", "decline", "as a")
# An apology or a refusal stands at the beginning; further on the words are usually part of the matter.
_OPENING = 300
# Controls other than tab, line feed and carriage return; overrides of writing direction; the byte order mark. Joiners stay: scripts and emoji need them.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
# Letters, marks and a sign that are drawn as nothing: fillers, variation selectors, the empty Braille pattern; and format characters that are drawn, before Arabic, Syriac and Kaithi numbers.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_DRAWN = re.compile("[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd]")
_TEMPLATE_TOKEN = re.compile(
    r"<\|[A-Za-z_]{2,30}\|>|</s>\s*$|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>|\[/?INST\]|<</?SYS>>|\[SEP\]\s*$"
    r"|<｜[^｜<>]{1,40}｜>"
)
_ROLE_MARKER = re.compile(r"\n(?:\n(?:Human|Assistant):|### ?(?:Human|Assistant|User)(?::|\n|$)|(?:USER|ASSISTANT): )")
_ROLE_AT_START = ("Human:", "Assistant:")
_WORD_RANGES = (
    ("Latin", "A-Za-z\u00c0-\u024f\u1e00-\u1eff"),
    ("Greek", "\u0370-\u03ff"),
    ("Cyrillic", "\u0400-\u052f"),
    ("Hebrew", "\u0590-\u05ff"),
    ("Arabic", "\u0600-\u06ff\u0750-\u077f"),
    ("Devanagari", "\u0900-\u097f"),
    ("Bengali", "\u0980-\u09ff"),
    ("Tamil", "\u0b80-\u0bff"),
    ("Thai", "\u0e00-\u0e7f"),
    ("Georgian", "\u10a0-\u10ff"),
    ("Hangul", "\u1100-\u11ff\uac00-\ud7af"),
    ("Kana", "\u3040-\u30ff"),
    ("Han", "\u3400-\u4dbf\u4e00-\u9fff"),
)
_SCRIPTS = [(name, re.compile(f"[{letters}]")) for name, letters in _WORD_RANGES]
# Fewer letters than this say nothing about the language of a text.
_FEW_LETTERS = 20
_ENOUGH_LATIN = re.compile(f"(?:[^A-Za-z]*[A-Za-z]){{{_FEW_LETTERS}}}")
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
_NO_ASCII_LETTER = re.compile(r"[\x00-@\[-`{-\x7f]")
# Below this share of different words a long answer is a loop.
_LOOP_SHARE, _LOOP_WORDS, _LONG_WORD = 0.1, 40, 200
_WORD_CHARACTER = re.compile(r"[^\W_]")


@dataclass(frozen=True, slots=True)
class Traits:
    """The surface of one answer."""

    length: int
    markdown: int
    has_list: bool
    has_apology: bool
    has_refusal: bool


def traits(text: str) -> Traits:
    r"""The traits of an answer.

    >>> traits("Sorry, I cannot do that.\n- one\n- **two**")
    Traits(length=41, markdown=4, has_list=True, has_apology=True, has_refusal=True)
    """
    opening = text[:_OPENING].lower()
    return Traits(
        len(text),
        markdown_marks(text),
        _LIST_ITEM.search("\n" + text) is not None,
        _APOLOGY.search(opening) is not None,
        any(word in opening for word in _REFUSAL_WORDS) and _REFUSAL.search(opening) is not None,
    )


def markdown_marks(text: str) -> int:
    """How many marks of Markdown a text holds: emphasis, code, headings, list items, table rows, links."""
    marks = text.count("**") + text.count("__") + len(_LINE_MARKS.findall("\n" + text))
    if "`" in text:
        marks += len(_CODE.findall(text))
    if "](" in text:
        marks += len(_LINKS.findall(text))
    return marks


def has_control_characters(text: str) -> bool:
    """Whether a text holds characters that no reader sees and every tokenizer does."""
    # Most texts are printable but for their line breaks, which is known ten times sooner.
    return not text.replace("\n", "").isprintable() and _CONTROL.search(text) is not None


def without_control_characters(text: str) -> str:
    """The text without them."""
    return _CONTROL.sub("", text)


def is_mojibake(text: str) -> bool:
    """Whether a text was decoded with the wrong encoding somewhere and can be read back (by ftfy)."""
    return not text.isascii() and ftfy.is_bad(text) and ftfy.fix_encoding(text) != text


def without_mojibake(text: str) -> str:
    """The text as it was meant, as far as ftfy can tell."""
    return str(ftfy.fix_encoding(text))


def has_replacement_character(text: str) -> bool:
    """Whether a decoder has given up on a part of the text (U+FFFD); what stood there is lost."""
    return "\ufffd" in text


def has_template_token(text: str) -> bool:
    """Whether a text holds a control token of a chat template, written out."""
    return ("<" in text or "[" in text) and _TEMPLATE_TOKEN.search(text) is not None


def has_role_marker(text: str) -> bool:
    """Whether an answer goes on with the marker of another turn, which a transcript cut in the wrong place leaves behind."""
    return _ROLE_MARKER.search(text) is not None or text.lstrip().startswith(_ROLE_AT_START)


def is_blank(text: str) -> bool:
    r"""Whether a text shows nothing: it is empty, or holds spaces, controls, joiners, selectors and fillers alone.

    >>> is_blank(" \u200b\n"), is_blank(".")
    (True, False)
    """
    return not any(_shows(one) for one in text)


def _shows(one: str) -> bool:
    if one.isspace() or _UNSEEN.match(one):
        return False
    return unicodedata.category(one) not in ("Cc", "Cf") or _DRAWN.match(one) is not None


def is_bare_signs(text: str) -> bool:
    """Whether a text consists of punctuation alone; emoji say something."""
    return _WORD_CHARACTER.search(text) is None and not any(unicodedata.category(one) == "So" for one in text)


def is_loop(words: list[str]) -> bool:
    """Whether a long answer says the same few words, or few characters, over and over."""
    few = _LOOP_SHARE * len(words)
    # The first words of a text that is no loop are different enough already; only a suspect is looked at whole.
    if len(words) >= _LOOP_WORDS and len(set(words[:_LOOP_WORDS])) < few and len(set(words)) < few:
        return True
    # A word of hundreds of characters is a script without spaces, or a run of the same few: pairs of neighbours tell.
    longest = max(words[:_LOOP_WORDS], key=len, default="")
    return len(longest) >= _LONG_WORD and _says_little(longest)


def _says_little(word: str) -> bool:
    return len(set(itertools.pairwise(word))) < _LOOP_SHARE * len(word)


def script(text: str) -> str | None:
    """The writing system of most letters, or None where there are too few. Languages that share a script are not told apart.

    >>> script("Это предложение написано по-русски."), script("42")
    ('Cyrillic', None)
    """
    if text.isascii():
        return "Latin" if _ENOUGH_LATIN.match(text) else None
    rest = "".join(_BEYOND_ASCII.findall(text))
    counts = Counter({name: len(pattern.findall(rest)) for name, pattern in _SCRIPTS})
    counts["Latin"] += len(text) - len(rest) - len(_NO_ASCII_LETTER.findall(text))
    if counts["Kana"] > 0.1 * counts["Han"]:
        counts["Kana"] += counts.pop("Han", 0)  # Japanese is written in both
    name, count = counts.most_common(1)[0]
    return name if count >= _FEW_LETTERS else None
