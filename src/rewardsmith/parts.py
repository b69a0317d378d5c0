"""Bulk scoring cut into parts: which raw rows make one, and how it is scored and written, whole. Whoever runs it is another module's business.

A part is a run of raw rows of one file and the name of one Parquet file. Where it really begins and ends is found by whoever scores it, by the same rule on both
sides of each border, so that the plan needs nothing but the number of rows of each file, and a part comes out the same whenever and wherever it is made.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardsmith.data import io
from rewardsmith.data.schema import Group, Preference, Row, prompt_key
from rewardsmith.errors import DataError, OutputError, RowError
from rewardsmith.scores import Scorer, TableScorer
from rewardsmith.storage import atomic_file
from rewardsmith.streaming import Scored, score_block

if TYPE_CHECKING:
    import pyarrow

MOST_PARTS = 10_000
"""Of one source, beyond one a file: a billion rows are still a folder that can be listed."""
_COUNTS = b"rewardsmith"


@dataclass(frozen=True)
class Part:
    """What one output file is made of.

    Args:
        number: of the output file.
        file: of the source.
        first: raw row of the file at which it begins, counted from 0, before prompts are kept together.
        until: where the next one begins.
        offset: raw rows of the files before.
    """

    number: int
    file: str
    first: int
    until: int
    offset: int

    @property
    def name(self) -> str:
        """Of the output file."""
        return f"part-{self.number:05d}.parquet"


def plan(files: Sequence[tuple[str, int]], *, block: int) -> list[Part]:
    """The parts of a source: of each file equal runs of at most a block, or of a few blocks where these would be too many.

    Args:
        files: (file, number of its raw rows), in order.
        block: raw rows that are scored together.

    >>> [(part.name, part.first, part.until) for part in plan([("a.jsonl", 5), ("b.jsonl", 2)], block=3)]
    [('part-00000.parquet', 0, 2), ('part-00001.parquet', 2, 5), ('part-00002.parquet', 0, 2)]
    """
    blocks = sum(-(-rows // block) for _, rows in files)
    size = block * -(-blocks // MOST_PARTS)
    parts: list[Part] = []
    offset = 0
    for file, rows in files:
        count = -(-rows // size)
        for i in range(count):
            parts.append(Part(len(parts), file, rows * i // count, rows * (i + 1) // count, offset))
        offset += rows
    return parts


class RawRows:
    """Raw rows of files by their place, read forwards: a worker's parts come in order, so that it reads each file once and holds a block of it."""

    def __init__(self) -> None:
        """Nothing is open."""
        self._file: str | None = None
        self._coming: Iterator[tuple[str, Any]] = iter(())
        self._start, self._held = 0, list[tuple[str, Any]]()

    def seek(self, file: str, index: int) -> None:
        """Make `at` answer for this file, from this row on."""
        ahead = index - self._start
        if file != self._file or ahead < 0:
            self._open(file, index)
        elif ahead <= len(self._held):
            del self._held[:ahead]
            self._start = index
        elif file.endswith(".parquet"):  # opening it again skips row groups unread
            self._open(file, index)
        else:
            skipped = ahead - len(self._held)
            next(islice(self._coming, skipped - 1, skipped), None)
            self._start, self._held = index, []

    def at(self, index: int) -> tuple[str, Any] | None:
        """A raw row; None past the end."""
        while self._start + len(self._held) <= index:
            row = next(self._coming, None)
            if row is None:
                return None
            self._held.append(row)
        return self._held[index - self._start]

    def _open(self, file: str, index: int) -> None:
        self._file, self._start, self._held = file, index, []
        self._coming = io.raw_rows(file, first=index)


def border(rows: RawRows, at: int, *, reach: int) -> int:
    """The first raw row from `at` on whose prompt is another one than that of the row before it.

    More than `reach` rows of one prompt are cut; rows that a format reads together never are. A border further on is never an earlier row.

    Raises:
        DataError: if the file has become shorter.
    """
    if at == 0:
        return 0
    before, allowed, index = rows.at(at - 1), None, at
    if before is None:
        raise DataError("data that stay as they are", "fewer rows than at the start", "Begin again, with --overwrite.")
    while (row := rows.at(index)) is not None:
        if index >= at + reach and allowed is not None:
            return allowed
        if not io.read_together(before, row):
            if not _same_prompt(before, row):
                return index
            allowed = index if allowed is None else allowed
        before, index = row, index + 1
    return index


def _same_prompt(first: tuple[str, Any], second: tuple[str, Any]) -> bool:
    one, other = ([row for _, row in io.parse(io.Chunk(1, [raw]))] for raw in (first, second))
    if not one or not other or isinstance(one[-1], RowError) or isinstance(other[0], RowError):
        return False
    return prompt_key(one[-1].prompt) == prompt_key(other[0].prompt)


def kind_of(row: Row) -> str:
    """What a row is, for the columns of its scores."""
    return "pairs" if isinstance(row, Preference) else "groups" if isinstance(row, Group) else "single answers"


def schema(kind: str, *, with_tokens: bool) -> pyarrow.Schema:
    """The columns of every part; see `streaming.scored_row`."""
    import pyarrow as pa

    types = {"score": pa.float32()} | ({"tokens": pa.int64(), "truncated": pa.bool_()} if with_tokens else {})
    columns = [("id", pa.string())]
    for name, one in types.items():
        if kind == "pairs":
            columns += [(f"{name}_{side}", one) for side in ("chosen", "rejected")]
        elif kind == "groups":
            columns.append(("scores" if name == "score" else name, pa.list_(one)))
        else:
            columns.append((name, one))
    return pa.schema(columns)


def score_part(
    scorer: Scorer, part: Part, rows: RawRows, out: Path, *, kind: str, block: int, skip_bad: bool
) -> Scored:
    """Score a part and write its file under its name, or leave nothing.

    Raises:
        DataError: (or RowError) at a malformed row, or one of another kind.
        OutputError: if the disk refuses.
    """
    import pyarrow as pa
    import pyarrow.parquet

    with_tokens = isinstance(scorer, TableScorer)
    said = 0 if with_tokens else None
    done = Scored(num_tokens=said, truncated=said, special_strings=said)
    columns = schema(kind, with_tokens=with_tokens)
    rows.seek(part.file, max(0, part.first - 1))
    start = border(rows, part.first, reach=block)
    with atomic_file(out / part.name, "wb") as file, pa.parquet.ParquetWriter(file, columns) as writer:
        for end in [*range(part.first + block, part.until, block), part.until]:
            rows.seek(part.file, min(start, end - 1))
            stop = border(rows, end, reach=block)
            raw = [row for index in range(start, stop) if (row := rows.at(index)) is not None]
            scored = list(_good_rows(io.Chunk(part.offset + start + 1, raw), kind, skip_bad, done))
            if scored:
                writer.write_table(pa.Table.from_pylist(score_block(scorer, scored, done), schema=columns))
            start = stop
        writer.add_key_value_metadata({_COUNTS: json.dumps(counts(done))})
    return done


def _good_rows(chunk: io.Chunk, kind: str, skip_bad: bool, done: Scored) -> Iterator[Row]:
    for _, row in io.parse(chunk):
        if isinstance(row, RowError):
            if not skip_bad:
                raise row
            done.skipped[row.field] += 1
        elif kind_of(row) != kind:
            raise DataError(
                f"rows of one kind, as their scores share the columns of a Parquet file ({kind}, like the first row)",
                f"row {row.id!r}, which is of {kind_of(row)}",
                "Score each kind by itself, or without --ray, which writes JSONL.",
            )
        else:
            yield row


def counts(done: Scored) -> dict[str, Any]:
    """What a part tells of itself."""
    return {name: value for name, value in done.as_dict().items() if name != "resumed_from"}


def read_counts(path: Path) -> Scored:
    """The counts that stand in a part's file.

    Raises:
        OutputError: if it is no part.
    """
    import pyarrow as pa
    import pyarrow.parquet

    try:
        held = json.loads(pa.parquet.read_metadata(path).metadata[_COUNTS])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise OutputError(
            f"{path.name} as it was written", f"{type(error).__name__}: {error}", "Delete it and run the command again."
        ) from error
    return Scored(**{**held, "skipped": Counter(held["skipped"])})


def added(every: Sequence[Scored]) -> Scored:
    """The counts of parts together."""
    total = Scored()
    for one in every:
        total.num_rows += one.num_rows
        total.num_answers += one.num_answers
        total.skipped.update(one.skipped)
        for name in ("num_tokens", "truncated", "special_strings"):
            value = getattr(one, name)
            if value is not None:
                setattr(total, name, (getattr(total, name) or 0) + value)
    return total
