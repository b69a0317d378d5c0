"""A source of preference data in one format as a file of another: streamed, counted, and never written half."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rewardsmith.data import io, writers
from rewardsmith.data.formats import Native
from rewardsmith.data.pairing import ALL_PAIRS, PairRule, equal_rating_pairs, preferences_of
from rewardsmith.data.schema import Group, Preference, Row
from rewardsmith.data.sources import source_name
from rewardsmith.data.writers import Writer
from rewardsmith.errors import DataError, OutputError, RowError
from rewardsmith.storage import atomic_file, refuse_inside

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_BATCH = 2000


@dataclass
class Converted:
    """What a conversion did.

    Args:
        reading: what was read; its `rows` stay empty.
        written: rows of the new file.
        pairs: those of them that are pairs.
        left_out: rows that lost a column, by column.
        ties_dropped: labelled ties that the new format cannot hold.
        equal_ratings: pairs of groups that hold no preference.
        not_taken: pairs of groups with a preference that the rule did not take.
    """

    reading: io.Reading
    written: int = 0
    pairs: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    ties_dropped: int = 0
    equal_ratings: int = 0
    not_taken: int = 0

    def losses(self) -> dict[str, int]:
        """What is not in the new file, in words, by count."""
        found = {f"left out, no place for `{name}`": count for name, count in self.left_out.most_common()}
        found |= {f"skipped, malformed `{name}`": count for name, count in self.reading.skipped.most_common()}
        found |= {
            "labelled ties left out": self.ties_dropped,
            "pairs of equal ratings": self.equal_ratings,
            "pairs of groups not taken": self.not_taken,
            "rows without a comparison": self.reading.without,
        }
        return {name: count for name, count in found.items() if count}

    def as_dict(self) -> dict[str, Any]:
        """The document of `convert --json`."""
        return {
            "rows": self.reading.num_rows,
            "written": self.written,
            "pairs": self.pairs,
            "format": self.reading.format,
            "reason": self.reading.format_reason,
            "formats": dict(self.reading.formats),
            "left_out": dict(self.left_out),
            "skipped": dict(self.reading.skipped),
            "skipped_examples": self.reading.examples,
            "ties_dropped": self.ties_dropped,
            "equal_ratings": self.equal_ratings,
            "not_taken": self.not_taken,
            "without": self.reading.without,
        }


def convert(
    source: str,
    out: Path,
    *,
    to: str,
    format: str | None = None,
    rule: PairRule | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    on_rows: Callable[[int], None] | None = None,
) -> Converted:
    """Write the rows of a source in another format.

    Args:
        source: rows of any known format.
        out: a file ending in .jsonl, .jsonl.gz, .json or .parquet.
        to: the name of the format to write.
        format: the name of the rows' format; recognised row by row where None.
        rule: which pairs of a group are taken; None keeps groups where the new format holds them, and takes all pairs elsewhere.
        skip_bad: count rows that cannot be read or written; else the first one stops.
        overwrite: replace `out`.
        on_rows: is told the raw rows done so far.

    Raises:
        SettingsError: at an unknown format.
        OutputError: if `out` may not or cannot be written.
        DataError: (or RowError) at the first row that cannot be read or written, or if nothing is left.
    """
    writer = writers.named(to)
    _check_out(out, source, overwrite)
    done = Converted(io.Reading([]))
    natives = _written(source, writer, done, format=format, rule=rule, skip_bad=skip_bad, on_rows=on_rows)
    with _sink(out) as put:
        for native in natives:
            put(native)
        if not done.written:
            raise _nothing_left(done, source)
    return done


def _nothing_left(done: Converted, source: str) -> DataError:
    if not done.reading.num_rows:
        return io.no_rows(done.reading, source)
    came = "; ".join(f"{name}: {count:,}" for name, count in done.losses().items())
    return DataError(f"at least one row of {source_name(source)} to write", f"none: {came}", "Check the file.")


def _check_out(out: Path, source: str, overwrite: bool) -> None:
    if not out.name.endswith(SUFFIXES):
        raise OutputError(f"a name for --out ending in {', '.join(SUFFIXES)}", out.name, "Rename the output.")
    refuse_inside(out, source)
    if out.exists() and (out.is_dir() or not overwrite):
        raise OutputError("a new file for --out", f"{out}, which exists", "Choose another --out, or --overwrite.")


def _written(
    source: str,
    writer: Writer,
    done: Converted,
    *,
    format: str | None,
    rule: PairRule | None,
    skip_bad: bool,
    on_rows: Callable[[int], None] | None,
) -> Iterator[Native]:
    """The rows of the new file, in the order of the source."""
    name = source_name(source)
    for chunk in io.chunks(source):
        for parsed in io.parse_units(chunk, format=format):
            done.reading.add(parsed)
            for row in parsed.rows:
                for one in _one_or_pairs(row, writer, rule, done):
                    try:
                        yield _counted(one, writer, f"{name}: row {parsed.number}", done)
                    except RowError as error:
                        if not skip_bad:
                            raise
                        done.reading.skip(error)
        if on_rows is not None:
            on_rows(done.reading.num_rows)


def _one_or_pairs(row: Row | RowError, writer: Writer, rule: PairRule | None, done: Converted) -> list[Row | RowError]:
    """A row as it is, or the pairs of a group that the new format cannot hold or whose pairs were asked for."""
    if isinstance(row, Preference) and row.tie and not writer.ties:
        done.ties_dropped += 1
        return []
    if not isinstance(row, Group) or row.order == "none" or (rule is None and writer.write_group is not None):
        return [row]
    pairs = preferences_of(row, rule or ALL_PAIRS)
    equal = equal_rating_pairs(row)
    done.equal_ratings += equal
    done.not_taken += len(row.answers) * (len(row.answers) - 1) // 2 - equal - len(pairs)
    return list(pairs)


def _counted(row: Row | RowError, writer: Writer, where: str, done: Converted) -> Native:
    if isinstance(row, RowError):
        raise row
    written = writers.write(row, writer, where)
    done.left_out.update(written.left_out)
    done.written += 1
    done.pairs += isinstance(row, Preference)
    return written.row


# Where rows go. Each takes them one by one and holds a batch at most.


@contextlib.contextmanager
def _sink(out: Path) -> Iterator[Callable[[Native], None]]:
    with atomic_file(out, "wb") as file:
        if out.name.endswith(".parquet"):
            with _parquet(out, file) as put:
                yield put
        elif out.name.endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                yield lambda row: _put_line(packed, row)
        elif out.name.endswith(".json"):
            with _array(file) as put:
                yield put
        else:
            yield lambda row: _put_line(file, row)


def _line(row: Native) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()


def _put_line(file: IO[bytes] | gzip.GzipFile, row: Native) -> None:
    file.write(_line(row) + b"\n")


@contextlib.contextmanager
def _array(file: IO[bytes]) -> Iterator[Callable[[Native], None]]:
    """One JSON array, an item a line."""
    before = b"[\n"

    def put(row: Native) -> None:
        nonlocal before
        file.write(before + _line(row))
        before = b",\n"

    yield put
    file.write(b"\n]\n")


@contextlib.contextmanager
def _parquet(out: Path, file: IO[bytes]) -> Iterator[Callable[[Native], None]]:
    """Parquet, batch by batch.

    The columns of all rows must be known before the first is written, so that they wait as lines in a second file beside `out`.
    """
    import pyarrow as pa  # loaded here: JSONL does not need it
    import pyarrow.parquet as pq

    spool = out.with_name(f".{out.name}.{os.getpid()}.rows.tmp")
    schema = pa.schema([])
    batch: list[Native] = []
    try:
        with open(spool, "wb") as lines:

            def flush() -> None:
                nonlocal schema
                found = pa.Table.from_pylist(_with_all_columns(batch)).schema
                schema = pa.unify_schemas([schema, found], promote_options="permissive")
                lines.writelines(_line(row) + b"\n" for row in batch)
                batch.clear()

            def put(row: Native) -> None:
                batch.append(row)
                if len(batch) >= _BATCH:
                    flush()

            yield put
            if batch:
                flush()
        with open(spool, "rb") as spooled, pq.ParquetWriter(file, schema) as writer:
            for rows in _batches(spooled):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    except pa.ArrowException as error:
        came = (str(error).splitlines() or [""])[0]
        raise OutputError("columns that Parquet can hold", came, "Choose a name for --out ending in .jsonl.") from error
    finally:
        spool.unlink(missing_ok=True)


def _with_all_columns(rows: list[Native]) -> list[Native]:
    """Arrow takes the columns of the first row for those of all."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _batches(lines: IO[bytes]) -> Iterator[list[Native]]:
    batch = []
    for line in lines:
        batch.append(json.loads(line))
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
