"""Which parts of an answer are prose: an edit of words must leave code, formulas, links and tables as they are.

A text is looked at through a mask of the same length, in which every protected character but the line breaks is U+0000. Patterns that look for words or
ends of sentences search the mask, and what they find is replaced in the text itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from rewardsmith.auditing.probes.word_lists import ABBREVIATIONS, TITLES
from rewardsmith.data.schema import Prompt

Change = tuple[int, int, str]
"""From, to, and what stands there instead."""

_MASK = "\0"
# Every repetition is bounded or cannot match what follows it, so that no text takes more than a little over linear time.
_PROTECTED = re.compile(
    r"^[ \t]*(?P<fence>```|~~~).*?(?:^[ \t]*(?P=fence)[`~]*[ \t\r]*$|\Z)"  # fenced code, to the end of the text if it is left open
    r"|```.*?```"
    r"|(?P<tick>`{1,2})[^`\n]{1,300}(?P=tick)"
    r"|\$\$.{1,500}?\$\$|\\\[.{1,500}?\\\]|\\\(.{1,500}?\\\)"  # LaTeX
    r"|\\begin\{(?P<name>\w{1,20}\*?)\}.{0,2000}?\\end\{(?P=name)\}"
    r"|\$(?=\S)[^$\n]{0,200}?(?<=\S)\$(?!\w)"  # no space inside: "$5 and $10" is money
    r"|\\[A-Za-z]{2,20}(?:\{[^{}\n]{0,100}\}){0,3}"
    r"|!?\[[^\[\]\n]{0,300}\]\([^()\s]{1,500}(?:[ ]\"[^\"\n]{0,200}\")?\)"  # links of Markdown
    r"|(?:https?://|www\.)[^\s<>]+"
    r"|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}\.[\w.]{1,64}"  # addresses
    r"|</?[A-Za-z!|][^<>\n]{0,200}>"  # tags
    r"|(?<![\w/.])(?:[~.]{0,2}/|[A-Za-z]:\\)[\w.-]{1,100}(?:[/\\][\w.-]{0,100}){1,20}"  # paths
    r"|^[^|\n]*\|[^|\n]*\|[^\n]*$",  # rows of a table
    re.DOTALL | re.MULTILINE,
)
_CODE_SIGNS = re.compile(
    r"[=(){}<>\[\];]|^\s*(?:import|from|def|class|return|else|try|SELECT|FROM|WHERE)\b|[A-Z]{3,}\b"
)
_CODE_LINE = re.compile(
    r"""[ \t]*(?:
      (?:def|class)[ ]+\w+[^\n]*:[ \t]*$
    | from[ ]+[\w.]+[ ]+import\b
    | import[ ]+[\w.]+(?:[ ]+as[ ]+\w+)?;?[ \t]*$
    | \#(?:include|define|ifdef|!/)
    | (?:public|private|protected|static|const|let|var|function|async|struct|void|int|double|float|char|bool|auto|using|return|package)\b[^\n]*[=({;]
    | (?:if|for|while|elif|switch|else)\b[^\n]*[({=<>][^\n]*[:{][ \t]*$ | (?:for|async[ ]for)[ ]+\w+[ ]+in[ ][^\n]*:[ \t]*$ | (?:try|else|finally):[ \t]*$
    | (?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|COPY|FROM|WHERE|VALUES|GROUP[ ]BY|ORDER[ ]BY|LEFT[ ]JOIN|INNER[ ]JOIN|JOIN|PRIMARY[ ]KEY|FOREIGN[ ]KEY)[ ][^\n]*[\w*,;)]
    | \w+[ ]+(?:VARCHAR|INT|INTEGER|TEXT|DATE|SERIAL|DECIMAL|FLOAT|BOOLEAN)\b
    | \w+\[
    | [\w-]+:[ ][^\n]*;[ \t]*$
    | [\w.\[\]'"]+[ ]*[-+*/|&:]?=[ ]*\S
    | [\w.]+\([^()\n]*\)[ \t]*;?[ \t]*$
    | [^\n]*(?:[={}\[\]]|\w\()[^\n]*;[ \t]*$ | [^\n]*[{}][ \t;,]*$
    | (?:>>>|\$|%)[ ]\S
    )""",
    re.VERBOSE,
)
_LONGEST_CODE = 300  # a longer line is a paragraph
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")
_LINE = re.compile(r"[^\n]+")
_MARKER = re.compile(
    r"[ \t]*(?:>[ \t]*)*(?:(?P<heading>#{1,6})[ \t]+|(?P<bullet>[-*+•‣◦●])[ \t]+|(?P<number>\(?(?:\d{1,3}|[A-Za-z])[.)])[ \t]+)?"
)
_END = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s|\Z)|[。！？]+[」』”’）]*")
_LAST_WORD = re.compile(r"[^\s(\[\"“]*\Z")


@dataclass(frozen=True, slots=True)
class Line:
    """One line that holds something.

    Args:
        start: of its words, after the marker of a list or a heading.
        end: after its last character, white space apart.
        kind: what it is; "protected" where nothing of it is prose.
        left: where the line itself begins.
    """

    start: int
    end: int
    kind: str
    left: int


@dataclass(frozen=True, slots=True)
class Prose:
    """A text with its mask and its lines.

    Args:
        text: itself.
        mask: of the same length.
        lines: those that hold something.
        newline: how it ends lines.
        is_open: whether its last code fence is never closed, so that whatever is appended would be code.
    """

    text: str
    mask: str
    lines: tuple[Line, ...]
    newline: str
    is_open: bool

    @property
    def is_code(self) -> bool:
        """Whether half of the lines or more are code outside a fence, or something else that is no prose."""
        return 2 * sum(line.kind == "protected" for line in self.lines) >= len(self.lines)

    def words(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """What a pattern finds in the prose."""
        return pattern.finditer(self.mask)

    def blocks(self) -> list[list[Line]]:
        """Lines without a blank one between them; what is protected stands alone."""
        blocks: list[list[Line]] = []
        for line in self.lines:
            last = blocks[-1][-1] if blocks else None
            gap = "" if last is None else self.mask[last.end : line.left]
            if last is None or gap.count("\n") > 1 or "protected" in (line.kind, last.kind):
                blocks.append([line])
            else:
                blocks[-1].append(line)
        return blocks

    def sentences(self, line: Line) -> list[tuple[int, int]]:
        """Where the sentences of a line begin and end; white space between them belongs to none."""
        spans, start = [], line.start
        for match in _END.finditer(self.mask, line.start, line.end):
            if self._goes_on(match, line):
                continue
            spans.append((start, match.end()))
            start = match.end()
            while start < line.end and self.text[start].isspace():
                start += 1
        if start < line.end:
            spans.append((start, line.end))
        return spans

    def _goes_on(self, match: re.Match[str], line: Line) -> bool:
        """Whether a full stop belongs to an abbreviation or a number rather than to the end of a sentence."""
        if match[0][0] != ".":
            return False
        after = self.mask[match.end() : line.end].lstrip()[:1]
        if after.islower():
            return True
        before = _LAST_WORD.search(self.mask, max(line.start, match.start() - 30), match.start())
        word = before[0] if before else ""
        if not after or not word:
            return False
        return word in TITLES or (len(word) == 1 and word.isupper()) or (word in ABBREVIATIONS and not after.isupper())


@lru_cache(maxsize=2048)  # every probe of an audit looks at the same few hundred answers
def prose_of(text: str) -> Prose:
    """A text, with what is prose in it."""
    mask = _PROTECTED.sub(_hidden, text) if _may_be_protected(text) else text
    mask = _without_code_lines(mask)
    newline = "\r\n" if "\r\n" in text else "\n"
    return Prose(text, mask, tuple(_lines(mask)), newline, sum(1 for _ in _FENCE.finditer(text)) % 2 == 1)


_NO_LINE_BREAK = re.compile(r"[^\r\n]")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_SIGNS = re.compile(r"[`$\\\[/@<|~]|www\.")


def _may_be_protected(text: str) -> bool:
    return _SIGNS.search(text) is not None


def _hidden(match: re.Match[str]) -> str:
    return _blank(match[0])


def _blank(text: str) -> str:
    return _NO_LINE_BREAK.sub(_MASK, text)


def _without_code_lines(mask: str) -> str:
    """Code that stands outside a fence: single lines, and blocks of which half the lines are code."""
    if _CODE_SIGNS.search(mask) is None:
        return mask
    blocks = re.split(r"(\n[ \t\r]*\n)", mask)
    for k in range(0, len(blocks), 2):
        lines = blocks[k].split("\n")
        code = [_is_code(line.rstrip()) for line in lines]
        whole = 2 * sum(code) >= len(lines) and sum(code) > 1
        blocks[k] = "\n".join(
            _blank(line) if is_code or whole else line for line, is_code in zip(lines, code, strict=True)
        )
    return "".join(blocks)


def _is_code(line: str) -> bool:
    """Whether a line is of a program, or a formula: an equation of which less than half is words."""
    if len(line) > _LONGEST_CODE or _CODE_SIGNS.search(line) is None:
        return False
    if _CODE_LINE.match(line):
        return True
    return "=" in line and 2 * sum(map(len, _LONG_WORD.findall(line))) < len(line.replace(" ", ""))


def _lines(mask: str) -> Iterator[Line]:
    for match in _LINE.finditer(mask):
        line = match[0].rstrip()
        if not line:
            continue
        marker = _MARKER.match(line)
        assert marker is not None  # every part of the pattern may be empty
        kind = marker.lastgroup or "plain"
        if not line.strip(" \t\0"):
            kind = "protected"
        yield Line(match.start() + marker.end(), match.start() + len(line), kind, match.start())


def replaced(text: str, changes: Iterable[Change]) -> str:
    """A text with some of its parts changed.

    Args:
        text: as it is.
        changes: which do not overlap, in any order.
    """
    parts, at = [], 0
    for start, end, other in sorted(changes):
        parts += [text[at:start], other]
        at = end
    return "".join([*parts, text[at:]])


def appended(text: str, paragraph: str) -> str | None:
    """A text with a paragraph after it; None where there is no text, or the paragraph would stand inside an open code fence."""
    prose = prose_of(text)
    if not prose.lines or prose.is_open:
        return None
    return f"{text.rstrip()}{prose.newline * 2}{paragraph}"


def begins_sentence(prose: Prose, at: int) -> bool:
    """Whether what stands at a place is the first word of a line or a sentence: a capital letter there is no name."""
    before = prose.mask[max(0, at - 40) : at].rstrip(" \t\"'“‘(*_")
    return not before or before[-1] in ".!?:…\n\r" or _MARKER.fullmatch(before.rpartition("\n")[2] + " ") is not None


def last_request(prompt: Prompt) -> str:
    """What the user asked last."""
    if isinstance(prompt, str):
        return prompt
    return next((message["content"] for message in reversed(prompt) if message["role"] == "user"), "")
