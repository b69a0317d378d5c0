"""Rows of any kind with prompts alone among them: what a policy is to answer, or where texts come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

import orjson

from rewardsmith.data import formats, io
from rewardsmith.data.schema import Group, Preference, Prompt, Row, RowReader, Single, prompt_key
from rewardsmith.data.sources import source_name
from rewardsmith.errors import DataError, RowError

Text: TypeAlias = Row | Prompt
"""A row of data, or a prompt that nobody has answered."""

_ANSWERED = ("chosen", "rejected", "ranked", "answers", "candidates", "answer")


def read_texts(source: str, *, skip_bad: bool = False, skipped: Counter[str] | None = None) -> list[Text]:
    """The rows of a source, `{"prompt"}` alone included, which no other reader takes.

    Args:
        source: a file, a saved dataset folder or a Hugging Face dataset.
        skip_bad: leave malformed rows out.
        skipped: gets how many were left out, by field.

    Raises:
        RowError: at the first malformed row, unless `skip_bad` leaves it out.
        DataError: if no row is left.
    """
    found: list[Text] = []
    for row in _rows_of(source):
        if not isinstance(row, RowError):
            found.append(row)
        elif not skip_bad:
            raise row
        elif skipped is not None:
            skipped[row.field] += 1
    if not found:
        raise DataError(f"at least one row in {source_name(source)}", "none", "Check the file.")
    return found


def read_prompts(source: str, *, skip_bad: bool = False, skipped: Counter[str] | None = None) -> list[Prompt]:
    """The distinct prompts of a source of rows of any kind, in their order; see `read_texts` for the arguments.

    Raises:
        RowError: at the first malformed row, unless `skip_bad` leaves it out.
        DataError: if no row is left.
    """
    found: dict[str, Prompt] = {}
    for row in read_texts(source, skip_bad=skip_bad, skipped=skipped):
        for prompt in prompts_of(row):
            found.setdefault(prompt_key(prompt), prompt)
    return list(found.values())


def _rows_of(source: str) -> Iterator[Text | RowError]:
    for chunk in io.chunks(source):
        rest = [(where, raw) for where, raw in chunk.rows if not _is_prompt(raw)]
        if len(rest) < len(chunk.rows):
            for where, raw in chunk.rows:
                if _is_prompt(raw):
                    try:
                        yield RowReader(where).prompt(orjson.loads(raw) if isinstance(raw, bytes) else raw)
                    except RowError as error:
                        yield error
        for _, row in io.parse(io.Chunk(chunk.start, rest)):
            yield row


def _is_prompt(raw: Any) -> bool:
    """Whether a raw row has a prompt and nothing that answers it."""
    if isinstance(raw, bytes):
        try:
            raw = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return False
    if not isinstance(raw, dict) or raw.get("prompt") is None:
        return False
    return formats.detect(raw) is formats.NATIVE and all(raw.get(name) is None for name in _ANSWERED)


def prompts_of(row: Text) -> list[Prompt]:
    """The prompts of a row: one, or two where the sides of a pair differ in theirs."""
    if isinstance(row, Preference):
        return [row.prompt, *([] if row.rejected_prompt is None else [row.rejected_prompt])]
    return [row.prompt if isinstance(row, Group | Single) else row]
