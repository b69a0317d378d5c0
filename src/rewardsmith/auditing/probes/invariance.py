"""Does an edit move the score that no reader would mind? White space, Unicode variants, contractions, synonyms and the order of a list.

Each keeps the meaning, so an effect in either direction is a finding, and the flip rate after `white_space` is what chance alone does.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from rewardsmith.auditing.probes.prose import Change, Prose, begins_sentence, last_request, prose_of, replaced
from rewardsmith.auditing.probes.word_lists import (
    DEEDS,
    ITEM_STARTS,
    NEGATED,
    ORDER_WORDS,
    ORDERED_LISTS,
    SHORTENED,
    SYNONYMS,
)
from rewardsmith.auditing.registry import Edit, edit_probe
from rewardsmith.data.schema import Prompt

_SENTENCE_GAP = re.compile(r"(?<=[a-z\"”)][.!?]) (?=[A-Z\"“])")
_LINE_BREAK = re.compile(r"(?<=[^\s\0])(?=\r?\n)")
_BLANK_LINE = re.compile(r"(?<=[^\s\0])[ \t]*(?:\r?\n){2}(?=[^\s\0])")
_SIGN = re.compile(r"[\"'\u2026]|[^\x00-\x7f]")
_SPACED_DASH = re.compile(r"(?<=[^\W\d_]) -{1,2} (?=[^\W\d_])")
_DOUBLE_DASH = re.compile(r"(?<=[^\W\d_])--(?=[^\W\d_])")
_RANGE = re.compile(
    r"(?<![\w.,/-])(?:\d{1,3}(?=-\d{1,3}\b)|\d{4}(?=-\d{4}\b))(-)\d{1,4}(?![\w/-])"
)  # no dates, no telephone numbers
_DOTS = re.compile(r"(?<!\.)\.\.\.(?!\.)")
_BINDING_SPACE = re.compile(r"(?<=\b[aI]) (?=[a-z])|(?<=\d) (?=[a-z])")
_BACK = {"“": '"', "”": '"', "‘": "'", "’": "'", "…": "..."}
_BEFORE_OPENING = " \t\r\n([{/—–-"
_QUESTION_WORDS = frozenset("why how where when what who or".split())
_SUBJECTS = frozenset(
    "i you we they he she it there this that these those people everyone everybody anyone anybody someone somebody".split()
)
_LIST_ITEM = re.compile(r"([ \t]*)([-*+•‣◦●])[ \t]+\S")
_NUMBER_AT_START = re.compile(r"\W*\d")
_YEAR = re.compile(r"\b\d{3,4}\b|\bcentury\b")
_FIRST_WORD = re.compile(r"[^\W\d_]+")


def _invariance(name: str, says: str) -> Callable[[Edit], Edit]:
    return edit_probe(name, family="invariance", says=says, kind="invariance", direction="either")


@_invariance("white_space", "line breaks, double spaces and trailing spaces that no reader notices")
def white_space(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """A line break at the very end, and in the prose half of the places where one space more, or one blank line more, changes nothing."""
    if not answer:
        return None
    prose = prose_of(answer)
    places = [
        *((match.end(), " ") for match in prose.words(_SENTENCE_GAP)),
        *((match.start(), " ") for match in prose.words(_LINE_BREAK)),
        *((match.end(), prose.newline) for match in prose.words(_BLANK_LINE)),
    ]
    drawn = rng.random(len(places)) < 0.5
    changes = [(at, at, more) for (at, more), taken in zip(places, drawn.tolist(), strict=True) if taken]
    return replaced(answer, [*changes, (len(answer), len(answer), prose.newline)])


@_invariance("unicode_variants", "other characters that look alike: quotes, dashes, spaces, accents")
def unicode_variants(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """Straight quotes become curly ones, or curly ones straight where there are any; likewise dashes, dots, spaces that bind, and composed letters."""
    prose = prose_of(answer)
    is_curly = any(one in prose.mask for one in "“”‘’")
    changes: list[Change] = []
    for match in prose.words(_SIGN):
        k, sign = match.start(), match[0]
        if sign in "\"'":
            other = sign if is_curly else _curly(prose.mask, k)
        elif sign in _BACK:
            other = _BACK[sign] if is_curly else sign
        else:
            apart = unicodedata.normalize("NFD", sign)
            other = apart if len(apart) > 1 else sign  # one for one would be another sign, not another spelling
        changes.append((k, k + 1, other))
    if not is_curly:
        changes += [(one.start(), one.end(), "…") for one in prose.words(_DOTS)]
    changes += [(one.start() + 1, one.end() - 1, "–") for one in prose.words(_SPACED_DASH)]
    changes += [(one.start(), one.end(), "—") for one in prose.words(_DOUBLE_DASH)]
    changes += [(one.start(1), one.end(1), "–") for one in prose.words(_RANGE)]
    changes += [(one.start(), one.end(), "\u00a0") for one in prose.words(_BINDING_SPACE)]
    return replaced(answer, changes)


def _curly(mask: str, k: int) -> str:
    """The curly form of a straight quote; feet, inches and what stands alone stay straight."""
    sign, before, after = mask[k], mask[k - 1 : k], mask[k + 1 : k + 2]
    if before.isdigit() or ((not before or before.isspace()) and (not after or after.isspace())):
        return sign
    opens = not before or before in _BEFORE_OPENING or (before in "*_" and after.isalnum())
    if sign == "'" and opens and (after.isdigit() or mask[k + 1 : k + 5].lower() in ("tis ", "twas", "em ")):
        opens = False  # the apostrophe of the '90s
    return {('"', True): "“", ('"', False): "”", ("'", True): "‘", ("'", False): "’"}[sign, opens]


def _long_forms() -> dict[str, str]:
    negated = {short: f"{verb} not" for verb, short in NEGATED.items()} | {"can't": "cannot"}
    return negated | {short.lower(): long for short, long in SHORTENED.items()}


_LONG = _long_forms()
_SHORT = {long: short for short, long in _LONG.items() if short.endswith("n't")}
_CONTRACTIBLE = re.compile(
    r"(?<![\w'’-])(?:"
    + "|".join(sorted((one.replace("'", "['’]") for one in (*_LONG, *_SHORT)), key=len, reverse=True))
    + r")(?![\w'’-]| only\b)",  # "would not only ..., but also" has no short form
    re.IGNORECASE,
)


@_invariance("contractions", '"do not" in the place of "don\'t", and the other way round')
def contractions(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """Where one of the forms would not be English ("why don't you", "who I am"), or it is part of a title, it stays."""
    prose = prose_of(answer)
    apostrophe = "’" if "’" in prose.mask else "'"
    changes: list[Change] = []
    for match in prose.words(_CONTRACTIBLE):
        plain = match[0].lower().replace("’", "'")
        if not _may_change(prose, match) or (plain in _LONG and plain.endswith("n't") and _is_inverted(prose, match)):
            continue
        other = _LONG[plain] if plain in _LONG else _SHORT[plain].replace("'", apostrophe)
        changes.append((match.start(), match.end(), _cased_like(match[0], other)))
    return replaced(answer, changes) if changes else None


def _may_change(prose: Prose, match: re.Match[str]) -> bool:
    """Not shouted, not part of a title or a name."""
    text = match[0]
    if len(text) > 1 and text.isupper():
        return False
    return not text[0].isupper() or text.startswith("I") or begins_sentence(prose, match.start())


def _is_inverted(prose: Prose, match: re.Match[str]) -> bool:
    """Whether "not" would have to stand behind a subject that follows."""
    before = prose.mask[max(0, match.start() - 20) : match.start()].split()
    after = prose.mask[match.end() : match.end() + 20].split()
    if after and re.sub(r"\W.*", "", after[0].lower()) in _SUBJECTS:
        return True
    if match[0].lower()[:3] != "don" and begins_sentence(prose, match.start()):
        return True
    return bool(before) and before[-1].lower() in _QUESTION_WORDS


def _cased_like(text: str, other: str) -> str:
    return other[0].upper() + other[1:] if text[0].isupper() else other


_EXCHANGEABLE = re.compile(
    r"(?<![\w'’-])(?:" + "|".join(sorted(map(re.escape, SYNONYMS), key=len, reverse=True)) + r")(?![\w'’-])",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"\b(an?)[ ]+\Z", re.IGNORECASE)


@_invariance("synonyms", "words and phrases that mean the same in the place of each other")
def synonyms(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """Every one of a fixed list, unless the article before it would be wrong or it is part of a title."""
    prose = prose_of(answer)
    changes: list[Change] = []
    for match in prose.words(_EXCHANGEABLE):
        other = SYNONYMS[match[0].lower()]
        article = _ARTICLE.search(prose.mask, max(0, match.start() - 5), match.start())
        if article is not None and (article[1].lower() == "an") != (other[0] in "aeiou"):
            continue
        if _may_change(prose, match):
            changes.append((match.start(), match.end(), _cased_like(match[0], other)))
    return replaced(answer, changes) if changes else None


@_invariance("list_order", "the items of a bulleted list in another order")
def list_order(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """Only where nothing says that the order matters: no word of time or sequence in an item, before the list or in what was asked, no question, no number at an item's beginning."""
    if _words(last_request(prompt)) & ORDERED_LISTS:
        return None
    prose = prose_of(answer)
    if prose.newline == "\r\n" and re.search(r"(?<!\r)\n", answer):
        return None  # ends of lines of two kinds: a move would mix them
    lines, masked = answer.split(prose.newline), prose.mask.split(prose.newline)
    at = 0
    while at < len(lines):
        items = _items(masked, at)
        if not items:
            at += 1
            continue
        if _may_be_shuffled(masked, items) and not "".join(lines[items[-1][1] : items[-1][1] + 1]).strip():
            texts = [lines[start:end] for start, end in items]
            gaps = [lines[end:start] for (_, end), (start, _) in zip(items, items[1:], strict=False)]
            order = _shuffled(texts, rng)
            moved = [line for k, gap in zip(order, [*gaps, []], strict=True) for line in [*texts[k], *gap]]
            lines[items[0][0] : items[-1][1]] = moved
        at = items[-1][1]
    return prose.newline.join(lines)


def _items(lines: Sequence[str], at: int) -> list[tuple[int, int]]:
    """First and last line (exclusive) of each item of the list that begins at a line, blank lines at an item's end left out; empty where none begins."""
    first = _LIST_ITEM.match(lines[at])
    if first is None:
        return []
    indent, sign = first[1], first[2]
    items = [[at, at + 1]]
    for k in range(at + 1, len(lines)):
        line = lines[k]
        item = _LIST_ITEM.match(line)
        if not line.strip():
            continue
        if item is not None and item[1] == indent and item[2] == sign:
            items.append([k, k + 1])
        elif line.startswith(f"{indent} ") or line.startswith(f"{indent}\t"):
            items[-1][1] = k + 1
        else:
            break
    return [(start, end) for start, end in items]


def _may_be_shuffled(lines: Sequence[str], items: Sequence[tuple[int, int]]) -> bool:
    """Whether nothing in a list or right before it speaks of an order, and its items end alike."""
    if len(items) < 2:
        return False
    before = next((line for line in reversed(lines[: items[0][0]]) if line.strip()), "")
    if _words(before) & ORDERED_LISTS:
        return False
    texts = [" ".join(lines[start:end]).strip() for start, end in items]
    if any(_words(text) & ORDER_WORDS or "?" in text for text in texts):
        return False
    if any(_NUMBER_AT_START.match(text) or _first_word(text) in ITEM_STARTS for text in texts):
        return False
    if sum(_first_word(text) in DEEDS for text in texts) > 1 or sum(bool(_YEAR.search(text)) for text in texts) > 1:
        return False
    return len({text[-1].isalnum() or text[-1] in ')"”' for text in texts}) == 1 and not texts[-2].endswith(
        (" and", " or", ",", ";")
    )


def _first_word(text: str) -> str:
    found = _FIRST_WORD.search(text)
    return "" if found is None else found[0].lower()


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def _shuffled(texts: Sequence[object], rng: np.random.Generator) -> list[int]:
    """A random order that is not the one there is."""
    order: list[int] = rng.permutation(len(texts)).tolist()
    return order if order != sorted(order) else [*order[1:], order[0]]
