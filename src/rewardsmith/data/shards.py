"""Data in shards: a file, a folder or a glob of many, listed at once and read lazily from any place; and streams of the Hugging Face hub.

A shard is cut into blocks at places where no rows are read together, so that reading can begin at any block and finds the rows that it would have found
from the shard's beginning.
"""

from __future__ import annotations

import glob
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rewardsmith.data import io
from rewardsmith.errors import DataError

BLOCK_ROWS = 512
_LINES = (".jsonl", ".ndjson", ".json")
# Of a folder: what a data set is written in when it is written in shards. `.json` is more often a description of the others.
_KINDS = {"Parquet": (".parquet",), "JSONL": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")}
_BATCH = 256
_BUFFER = 1 << 20


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


def is_hub_name(source: str) -> bool:
    """Whether a source can only be the name of a data set of the Hugging Face hub (owner/name, or owner/name:split)."""
    name = source.partition(":")[0]
    return (
        not Path(source).exists()
        and not glob.has_magic(source)
        and not source.startswith((".", "/", "~"))
        and not Path(name).suffix
        and name.count("/") == 1
    )


def shards_of(source: str) -> list[Shard]:
    """The files of a source in the order of their paths: a file, all shards in a folder, or all that a glob matches.

    Raises:
        DataError: if there are none, if a folder holds both Parquet and JSONL, or if a file cannot be read piece by piece.
    """
    path = Path(source)
    if path.is_dir():
        paths = _in_folder(path)
    elif path.exists():
        paths = [path]
    elif glob.has_magic(source):
        paths = sorted(Path(found) for found in glob.glob(source, recursive=True) if Path(found).is_file())
    else:
        paths = []
    if not paths:
        raise DataError(
            "a file, a folder of shards, or a glob that matches some",
            f"{io.source_name(source)!r}, where no shard lies",
            "Check the path.",
        )
    for one in paths:
        if one.name.removesuffix(".gz").endswith(".json") and io.is_array(one):
            raise DataError(
                "shards that can be read row by row (JSONL, Parquet, CSV)",
                f"{one.name}, which is one JSON array",
                "Write it as JSONL: rewardsmith convert.",
            )
    return [Shard(one, (stat := one.stat()).st_size, stat.st_mtime_ns) for one in paths]


def _in_folder(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    found = {kind: [path for path in files if path.name.endswith(ends)] for kind, ends in _KINDS.items()}
    kinds = [kind for kind, paths in found.items() if paths]
    if len(kinds) > 1:
        raise DataError(
            "shards of one kind in a folder", f"{' and '.join(kinds)} in {folder.name}", "Give a glob of one of them."
        )
    if not kinds and (folder / "state.json").is_file():
        raise DataError(
            "a folder of Parquet or JSONL shards",
            f"{folder.name}, which datasets' save_to_disk wrote",
            "Write it with to_parquet, or leave `stream` out: its rows are read from the disk.",
        )
    return found[kinds[0]] if kinds else []


def left_aside(source: str) -> list[str]:
    """Names of the other files in a folder of shards."""
    path = Path(source)
    if not path.is_dir():
        return []
    taken = {shard.path for shard in shards_of(source)}
    return sorted(one.name for one in path.iterdir() if one.is_file() and one not in taken)


def display_name(source: str) -> str:
    """A source as it may stand in a report: its last part, a hub name as it is."""
    return source if is_hub_name(source) else Path(source).name


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
    if path.name.endswith(".parquet"):
        return _parquet(path, start)
    # Compressed lines and CSV have no places to jump to: they are read from the beginning of the shard.
    rest = islice(io.raw_rows(str(path)), start.row, None)
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
        raise _unreadable(path, error) from error


def _parquet(path: Path, start: Place) -> Iterator[tuple[Place, str, dict[str, Any]]]:
    import pyarrow  # loaded here: JSONL does not need it
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            before, group = 0, 0
            while group < file.num_row_groups and before + file.metadata.row_group(group).num_rows <= start.row:
                before += file.metadata.row_group(group).num_rows
                group += 1
            row = before
            for batch in file.iter_batches(_BATCH, row_groups=range(group, file.num_row_groups)):
                skipped = min(max(start.row - row, 0), len(batch))
                row += skipped
                for values in batch.slice(skipped).to_pylist():
                    yield Place(row), f"{path.name}: row {row + 1}", values
                    row += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"a readable file {path.name}", io.first_line(error), "Fetch or write the file again.")


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
