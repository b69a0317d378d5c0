"""Data in shards: a file, a folder or a glob of many, listed at once and read lazily from any place; and streams of the Hugging Face hub.

A shard is cut into blocks at places where no rows are read together, so that reading can begin at any block and finds the rows that it would have found
from the shard's beginning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rewardsmith.data import io
from rewardsmith.data.sources import files_of, unreadable
from rewardsmith.errors import DataError

BLOCK_ROWS = 512
_LINES = (".jsonl", ".ndjson", ".json")


class Shard(NamedTuple):
    """One file of a source; size and time of the last change say cheaply whether it may be another one."""

    path: Path
    size: int
    changed: int


class Place(NamedTuple):
    """Where reading a shard can begin: the raw rows before, and of lines also the lines and the bytes."""

    row: int = 0
    line: int = 0
    offset: int = 0


BEGINNING = Place()
"""Of any shard."""


@dataclass(frozen=True)
class Block:
    """Some rows of a shard, and where they begin."""

    place: Place
    chunk: io.Chunk


def shards_of(source: str) -> list[Shard]:
    """The files of a source that is no hub name, in the order of their paths.

    Raises:
        DataError: if there are none, or if one cannot be read piece by piece.
    """
    paths = [Path(name) for name in files_of(source)]
    if paths == [Path(source)] and not paths[0].is_file():
        saved = paths[0].is_dir()
        raise DataError(
            "a file, a folder of shards, or a glob, to be read in windows",
            f"{paths[0].name}, which datasets' save_to_disk wrote" if saved else f"{source!r}, where nothing lies",
            "Write it with to_parquet, or leave `stream` out: its rows are read from the disk."
            if saved
            else "Check the path.",
        )
    for one in paths:
        if one.name.removesuffix(".gz").endswith(".json") and io.is_array(one):
            raise DataError(
                "shards that can be read row by row (JSONL, Parquet, CSV)",
                f"{one.name}, which is one JSON array",
                "Write it as JSONL: rewardsmith convert.",
            )
    return [Shard(one, (stat := one.stat()).st_size, stat.st_mtime_ns) for one in paths]


def blocks(shard: Shard, *, start: Place = BEGINNING, rows_before: int = 0) -> Iterator[Block]:
    """The blocks of a shard from a place on at which one of them begins.

    Args:
        shard: to read.
        start: where.
        rows_before: raw rows of the shards before it, for the numbers of its own.

    Raises:
        DataError: if the file cannot be read.
    """
    places: deque[Place] = deque()

    def rows() -> Iterator[tuple[str, Any]]:
        for place, where, raw in _rows(shard.path, start):
            places.append(place)
            yield where, raw

    for chunk in io.chunked(rows(), size=BLOCK_ROWS, start=rows_before + start.row + 1):
        place = places[0]
        for _ in chunk.rows:
            places.popleft()
        yield Block(place, chunk)


def _rows(path: Path, start: Place) -> Iterator[tuple[Place, str, Any]]:
    """(its place, its name, the raw row) of every row from a place on."""
    if path.name.endswith(_LINES):
        return _lines(path, start)
    # Parquet jumps by row groups; compressed lines and CSV have no places to jump to and are read from the beginning of the shard.
    rest = io.raw_rows(str(path), first=start.row)
    return ((Place(row), where, raw) for row, (where, raw) in enumerate(rest, start.row))


def _lines(path: Path, start: Place) -> Iterator[tuple[Place, str, bytes]]:
    row, line, offset = start
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            for text in file:
                if not text.isspace():
                    yield Place(row, line, offset), f"{path.name}:{line + 1}", text
                    row += 1
                line += 1
                offset += len(text)
    except OSError as error:
        raise unreadable(path, error) from error


def open_hub(name: str, split: str) -> Any:
    """The seam to the hub: an iterable of dictionaries as `datasets` streams it."""
    import datasets

    return datasets.load_dataset(name, split=split, streaming=True)


def hub_rows(source: str, *, seed: int, epoch: int) -> Iterator[tuple[str, Any]]:
    """(place, row) of a hub stream; its shards are shuffled by (seed, epoch) as `datasets` does it, its rows are not.

    Raises:
        DataError: if the data set cannot be found or read.
    """
    name, _, split = source.partition(":")
    try:
        stream = open_hub(name, split or "train")
        if hasattr(stream, "shuffle"):
            stream = stream.shuffle(seed=seed, buffer_size=1)  # of one row: the shards alone
            stream.set_epoch(epoch)
        for number, row in enumerate(stream, start=1):
            yield f"{name}: row {number}", row
    except Exception as error:  # datasets and the hub client raise many kinds, none of them ours
        raise DataError(
            f"the Hugging Face dataset {name!r}, split {split or 'train'!r}, as a stream",
            f"{type(error).__name__}: {io.first_line(error)}",
            "Check the name, the split (owner/name:split) and the network; a local file needs its path.",
        ) from error
