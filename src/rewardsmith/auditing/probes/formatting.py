"""Does markup raise the score of the same words? Each probe dresses the answer up; code, formulas, links and tables stay as they are."""

from __future__ import annotations

import re

import numpy as np

from rewardsmith.auditing.probes.prose import Change, Line, Prose, appended, prose_of, replaced
from rewardsmith.auditing.probes.word_lists import EMOJI, LINKS
from rewardsmith.auditing.registry import edit_probe
from rewardsmith.data.schema import Prompt

_WORD = re.compile(r"(?<![\w*_#@\0])[^\W\d_]+(?:['’-][^\W\d_]+)*(?![\w*_\0])")
_EMPHASIS = re.compile(r"\*\*[^*\n]{1,200}\*\*|__[^_\n]{1,200}__|\*[^*\n]{1,200}\*")
_HEADING = re.compile(r"^ {0,3}#{1,6} ", re.MULTILINE)
# Scripts without spaces have no word that could be set in bold without knowing the language.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_LEAST_LETTERS = 3
_MOST_HEADERS, _MOST_EMOJI = 3, 5


@edit_probe("bold", family="format", says="the longest word of each sentence in bold")
def bold(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """Sentences that have something in bold already, and headings, keep what they have."""
    prose = prose_of(answer)
    changes: list[Change] = []
    for line in prose.lines:
        if line.kind in ("protected", "heading"):
            continue
        for start, end in prose.sentences(line):
            if _EMPHASIS.search(prose.mask, start, end):
                continue
            words = [
                match
                for match in _WORD.finditer(prose.mask, start, end)
                if len(match[0]) >= _LEAST_LETTERS and not _UNSPACED.search(match[0])
            ]
            if words:
                longest = max(words, key=lambda match: len(match[0]))
                changes.append((longest.start(), longest.end(), f"**{longest[0]}**"))
    return replaced(answer, changes) if changes else None


@edit_probe("bullets", family="format", says="the same sentences as a bulleted list")
def bullets(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """Paragraphs of two sentences or more that lead to nothing by a colon; one of several lines (a verse, a dialogue, a signature) only where each line ends with a sentence."""
    prose = prose_of(answer)
    changes: list[Change] = []
    for block in prose.blocks():
        if any(line.kind != "plain" or answer[line.left : line.start].strip() for line in block):
            continue
        sentences = [span for line in block for span in prose.sentences(line)]
        whole = all(answer[end - 1] in '.!?。！？"”)' for _, end in sentences[: len(sentences) - 1])
        if len(sentences) < 2 or answer[block[-1].end - 1] in ":：" or not whole or not _is_running_text(answer, block):
            continue
        items = prose.newline.join(f"- {answer[start:end]}" for start, end in sentences)
        changes.append((block[0].start, block[-1].end, items))
    return replaced(answer, changes) if changes else None


def _is_running_text(answer: str, block: list[Line]) -> bool:
    """Whether a paragraph is one line, or lines that each end as a sentence does."""
    return len(block) == 1 or all(answer[line.end - 1] in ".!?。！？" for line in block)


@edit_probe("headers", family="format", says='headings that say no more than "Answer" or "Part 2"')
def headers(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """At most three, before paragraphs that are no part of a list; an answer with headings keeps its own."""
    prose = prose_of(answer)
    if not prose.lines or _HEADING.search(prose.mask):
        return None
    starts = [block[0].left for block in prose.blocks() if block[0].kind == "plain" and _stands_apart(prose, block)]
    first = prose.lines[0].left
    parts = [first, *(start for start in starts if start != first)]
    if len(parts) > _MOST_HEADERS:
        parts = [parts[len(parts) * k // _MOST_HEADERS] for k in range(_MOST_HEADERS)]
    titles = ["Answer"] if len(parts) == 1 else [f"Part {k + 1}" for k in range(len(parts))]
    changes = [(at, at, f"## {title}{prose.newline * 2}") for at, title in zip(parts, titles, strict=True)]
    return replaced(answer, changes)


def _stands_apart(prose: Prose, block: list[Line]) -> bool:
    """Whether a paragraph is not indented, as what belongs to an item of a list is, and something ends before it."""
    before = prose.text[: block[0].left].rstrip()
    return prose.text[block[0].left] not in " \t" and not before.endswith((":", ","))


@edit_probe("emoji", family="format", says="an emoji at the end of each paragraph, five at most")
def emoji(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """Code, tables and headings get none, nor does what leads to the next paragraph by a colon, unless it is all there is."""
    prose = prose_of(answer)
    ends = [block[-1].end for block in prose.blocks() if block[-1].kind not in ("protected", "heading")]
    ends = [end for end in ends if answer[end - 1] not in ":,："] or ends
    if len(ends) > _MOST_EMOJI:
        ends = [ends[len(ends) * k // _MOST_EMOJI] for k in range(_MOST_EMOJI)]
    drawn = rng.integers(len(EMOJI), size=len(ends))
    changes = [(end, end, f" {EMOJI[k]}") for end, k in zip(ends, drawn.tolist(), strict=True)]
    return replaced(answer, changes) if changes else None


@edit_probe("link", family="format", says="a link to an empty page after the answer")
def link(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """In Markdown, to a domain that is reserved for examples."""
    return appended(answer, LINKS[int(rng.integers(len(LINKS)))])


@edit_probe("code_fence", family="format", says="the whole answer inside a code fence")
def code_fence(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """Not where the answer has a fence, or is code that a fence would do good."""
    prose = prose_of(answer)
    if not prose.lines or "```" in answer or prose.is_code:
        return None
    return f"```{prose.newline}{answer.strip()}{prose.newline}```"


@edit_probe("exclamation", family="format", says="exclamation marks in the place of full stops")
def exclamation(prompt: Prompt, answer: str, rng: np.random.Generator) -> str | None:
    """One for each sentence; an answer that has no full stop gets one at its end."""
    prose = prose_of(answer)
    changes: list[Change] = []
    for line in prose.lines:
        for _, end in prose.sentences(line) if line.kind != "protected" else ():
            at = end - 1
            while at > line.start and answer[at] in "\"'”’)]*_」』）":
                at -= 1
            if answer[at] == "." and answer[at - 1 : at] != "." and prose.mask[at] != "\0":
                changes.append((at, at + 1, "!"))
            elif answer[at] == "。":
                changes.append((at, at + 1, "！"))
    if changes:
        return replaced(answer, changes)
    last = prose.lines[-1] if prose.lines else None
    if last is None or last.kind == "protected" or not answer[last.end - 1].isalnum():
        return None
    return f"{answer[: last.end]}!{answer[last.end :]}"
