"""Preference data in: JSONL and CSV line by line, so that an error names file and line; Parquet a few rows at a time; everything else through `datasets`.

A source is a file, a folder or glob of many (`files_of`), or a dataset by its name. It is a stream of raw rows, cut into chunks that can be parsed anywhere (`chunks`, `parse`); `iterate` and `read` are written through these two.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import orjson

from rewardsmith.data import formats
from rewardsmith.data.formats import NATIVE, Format
from rewardsmith.data.pairing import ALL_PAIRS, PairRule, preferences_of
from rewardsmith.data.schema import Group, Preference, Row, RowReader
from rewardsmith.data.sources import aside_note, files_of, source_name, unreadable
from rewardsmith.errors import DataError, RowError
from rewardsmith.storage import atomic_file

# Columns that a CSV, which knows only text, holds as JSON.
_CSV_JSON = ("margin", "weight", "votes", "tie", "ranked", "answers", "ratings", "candidates", "per_answer")
_MAX_EXAMPLES = 5
_CHUNK = 2000
_CHUNK_BYTES = 8 << 20
# Row groups may be of hundreds of megabytes: they are read through a buffer, some rows at a time.
_PARQUET_ROWS = 1024
_PARQUET_BUFFER = 1 << 20
csv.field_size_limit(1 << 30)  # answers are long; the default of 128 KiB is for spreadsheets


@dataclass
class Reading:
    """What came out of a source, and what did not.

    Args:
        rows: the well-formed rows; one raw row may hold several, and several may be one.
        num_rows: raw rows.
        skipped: malformed rows by field (only with skip_bad).
        examples: the first few messages of these.
        formats: raw rows by the name of their format.
        without: raw rows that hold nothing to learn from or to score, such as a message tree in which no answers were ranked.
    """

    rows: list[Row]
    num_rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    without: int = 0

    @property
    def format(self) -> str:
        """The name of the format of most rows."""
        return self.formats.most_common(1)[0][0] if self.formats else NATIVE.name

    @property
    def format_reason(self) -> str:
        """Why rows were taken for that format."""
        return formats.named(self.format).reason

    def add(self, parsed: Parsed) -> None:
        """Count what was parsed."""
        self.num_rows += parsed.num_raw
        if parsed.format is not None:
            self.formats[parsed.format.name] += parsed.num_raw
        self.without += 0 if parsed.rows else parsed.num_raw

    def skip(self, error: RowError) -> None:
        """Count a malformed row."""
        self.skipped[error.field] += 1
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(str(error))

    def describe(self, source: str) -> str:
        """One line: what the rows were taken for, and why; of a folder of data files also what else lies in it."""
        text = f"{source_name(source)}: format {self.format} ({self.format_reason})"
        others = [f"{name} {count:,}" for name, count in self.formats.most_common()[1:]]
        text += f"; other rows: {', '.join(others)}" if others else ""
        text += f"; {self.without:,} rows hold no comparison" if self.without else ""
        aside = aside_note(source)
        return text + (f"; {aside}" if aside else "")


@dataclass(frozen=True)
class Chunk:
    """Raw rows that stand beside each other in a source; rows that a format joins are never in two chunks.

    Args:
        start: the number of the first raw row, counted from 1.
        rows: (place, raw row): a line as bytes, a row as a dictionary, or the RowError of a line that is no row.
    """

    start: int
    rows: list[tuple[str, Any]]


@dataclass(frozen=True)
class Parsed:
    """What became of one raw row, or of several that are read together.

    Args:
        number: of the first raw row, counted from 1.
        num_raw: raw rows.
        format: None where the row could not even be recognised.
        rows: what they hold, or the one fault that stopped reading them.
    """

    number: int
    num_raw: int
    format: Format | None
    rows: list[Row | RowError]


def raw_rows(source: str, *, first: int = 0) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row of a source that is no folder or glob of `files_of`.

    Args:
        source: see above.
        first: rows to leave out; whole row groups of a Parquet file are not even read.

    Raises:
        DataError: if the source cannot be found or opened.
        RowError: if a line is no JSON.
    """
    path = Path(source)
    if path.is_file() and path.name.endswith(".parquet"):
        return _parquet_rows(path, first)
    return islice(_all_rows(source), first, None)


def num_raw_rows(source: str) -> int:
    """How many rows `raw_rows` gives: from the footer of a Parquet file, else by reading.

    Raises:
        DataError: if the source cannot be read.
    """
    path = Path(source)
    if path.is_file() and path.name.endswith(".parquet"):
        with _readable_parquet(path) as file:
            return int(file.metadata.num_rows)
    return sum(1 for _ in raw_rows(source))


def _all_rows(source: str) -> Iterator[tuple[str, Any]]:
    path = Path(source)
    if path.is_dir():
        yield from _saved_dataset(path)
    elif path.exists():
        yield from _file_rows(path)
    elif source.startswith((".", "/", "~")) or Path(source.partition(":")[0]).suffix or "/" not in source:
        raise DataError(
            "a file, a saved dataset folder or a Hugging Face dataset name (owner/name or owner/name:split)",
            f"{source!r}, which is none of them",
            "Check the path.",
        )
    else:
        yield from _hub_rows(source)


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        path.open("rb").close()
    except OSError as error:
        raise unreadable(path, error) from error
    name = path.name.removesuffix(".gz")
    if name.endswith(".json") and is_array(path):
        return _json_array(path)
    if name.endswith((".jsonl", ".json", ".ndjson")):
        return _json_lines(path)
    if path.name.endswith((".csv", ".csv.gz")):
        return _csv_rows(path)
    raise DataError(
        "a file of preference data (.jsonl, .jsonl.gz, .json, .parquet, .csv)",
        path.name,
        "Convert the file or rename it.",
    )


def _open_bytes(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb")


def is_array(path: Path) -> bool:
    """Whether a .json file holds one array, as LLaMA-Factory's do, and not an object a line."""
    try:
        with _open_bytes(path) as file:
            return bool(file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["))
    except (OSError, EOFError, zlib.error):
        return False  # the reader of lines says what is wrong with it


def _json_array(path: Path) -> Iterator[tuple[str, Any]]:
    """The items of one array. It is read whole: JSON has no other way."""
    try:
        with _open_bytes(path) as file:
            items = json.loads(file.read())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"a readable file {path.name}", str(error), "Fetch or write the file again.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"a JSON array in {path.name}", str(error), "Mend the file, or write JSONL.") from error
    for number, item in enumerate(items, start=1):
        yield f"{path.name}: item {number}", item


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    with _open_bytes(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.isspace():
                    continue
                yield f"{path.name}:{number}", line
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"a readable file {path.name}", f"{error} after line {number}", "Fetch or write the file again."
            ) from error


def _parse_line(where: str, line: bytes) -> Any:
    """A line of JSON as an object; NaN and Infinity are read, so that the field check can name their field."""
    with contextlib.suppress(
        orjson.JSONDecodeError
    ):  # three times as fast, and stricter: what it refuses is read below
        return orjson.loads(line)
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise RowError(
            where, "(line)", needed="UTF-8", came=f"byte {error.start} is not", mend="Save the file as UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        mend = "Write one JSON object a line."
        if line.strip() in (b"[", b"{") or line.lstrip().startswith(b"[{"):
            mend = "The file looks like one JSON document; write one JSON object a line instead."
        raise RowError(where, "(line)", needed="a JSON object", came=str(error), mend=mend) from error
    return row


@contextlib.contextmanager
def _readable_parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet  # loaded here: it takes a while, and JSONL does not need it

    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_PARQUET_BUFFER, pre_buffer=False) as file:
            yield file
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(
            f"a readable parquet file {path.name}", first_line(error), "Fetch or write the file again."
        ) from error


def _parquet_rows(path: Path, first: int) -> Iterator[tuple[str, Any]]:
    """By pyarrow, a few rows at a time, and not through `datasets`, which takes a whole row group at once."""
    with _readable_parquet(path) as file:
        end = 0  # rows up to the end of a row group
        for group in range(file.metadata.num_row_groups):
            number, end = end, end + file.metadata.row_group(group).num_rows
            if end <= first:
                continue
            for batch in file.iter_batches(_PARQUET_ROWS, row_groups=[group]):
                wanted = batch.slice(max(0, first - number))
                number += len(batch)
                for place, row in enumerate(wanted.to_pylist(), start=number - len(wanted) + 1):
                    yield f"{path.name}: row {place}", row


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Every cell is text (an answer "NA" stays an answer); empty optional cells are absent, JSON columns are parsed.

    By the standard library and not through `datasets`, which guesses types (a prompt "42" becomes a number) and knows no lines.
    """
    opened = gzip.open(path, "rt", encoding="utf-8-sig", newline="") if path.name.endswith(".gz") else None
    with opened or open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for cells in reader:
                where = f"{path.name}:{reader.line_num}"
                if None in cells or None in cells.values():
                    yield (
                        where,
                        RowError(
                            where,
                            "(line)",
                            needed=f"{len(reader.fieldnames or [])} cells",
                            came="more or fewer",
                            mend="Quote texts that hold commas or line breaks.",
                            content={str(key): cell for key, cell in cells.items()},
                        ),
                    )
                    continue
                yield where, {key: value for key, value in map(_csv_cell, cells.items()) if value is not None}
        except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"a readable CSV file {path.name}", f"{error} after line {reader.line_num}", "Write the file again."
            ) from error


def _csv_cell(cell: tuple[str, str]) -> tuple[str, Any]:
    key, text = cell
    if key in _CSV_JSON or (key == "prompt" and text.startswith('[{"role"')):
        if text == "":
            return key, None
        try:
            return key, json.loads(text.lower() if key == "tie" else text)
        except ValueError:
            return key, text  # the field check says what it should be
    return key, text


def _saved_dataset(path: Path) -> Iterator[tuple[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"a folder saved by datasets' save_to_disk at {path.name}", first_line(error), "Check the path."
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if set(loaded) != {"train"}:
            mend = f"Give one split: {path.name}/<split>."
            raise DataError("one split", f"the splits {sorted(loaded)} in {path.name}", mend)
        loaded = loaded["train"]
    for number, row in enumerate(loaded, start=1):
        yield f"{path.name}: row {number}", row


def _hub_rows(source: str) -> Iterator[tuple[str, Any]]:
    import datasets

    name, _, split = source.partition(":")
    try:
        loaded = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # datasets and the hub client raise many kinds, none of them ours
        raise DataError(
            f"the Hugging Face dataset {name!r}, split {split or 'train'!r}",
            f"{type(error).__name__}: {first_line(error)}",
            "Check the name, the split (owner/name:split) and the network; a local file needs its path.",
        ) from error
    for number, row in enumerate(loaded, start=1):
        yield f"{name}: row {number}", row


def first_line(error: BaseException) -> str:
    """What another package's error says, as one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def chunks(source: str, *, size: int = _CHUNK) -> Iterator[Chunk]:
    """The raw rows of a source, about `size` at a time; rows of one file that are read together stay together.

    Raises:
        DataError: if the source cannot be found or read.
    """
    start = 1
    for shard in files_of(source):
        for chunk in chunked(raw_rows(shard), size=size, start=start):
            start += len(chunk.rows)
            yield chunk


def chunked(rows: Iterator[tuple[str, Any]], *, size: int = _CHUNK, start: int = 1) -> Iterator[Chunk]:
    """Raw rows that come one by one as chunks; rows that are read together stay together.

    Args:
        rows: (place, row), see `raw_rows`.
        size: rows of a chunk; fewer where they are large, more where they are read together.
        start: the number of the first row.
    """
    held = _next_rows(rows, size)
    while held:
        coming = next(rows, None)
        while coming is not None and read_together(held[-1], coming):
            held.append(coming)
            coming = next(rows, None)
        yield Chunk(start, held)
        start += len(held)
        # Counted like any other, so that a chunk is the same whether reading began at it or before it.
        held = [] if coming is None else _next_rows(chain([coming], rows), size)


def _next_rows(rows: Iterator[tuple[str, Any]], size: int) -> list[tuple[str, Any]]:
    """So many rows, or fewer where they are large: a chunk of long conversations must fit in memory as one of short ones does."""
    held, num_bytes = [], 0
    for where, raw in islice(rows, size):
        held.append((where, raw))
        num_bytes += len(raw) if isinstance(raw, bytes) else 0
        if num_bytes > _CHUNK_BYTES:
            break
    return held


def line_of(raw: Any) -> bytes:
    """A raw row as one line of JSON without its end: a line as it came, anything else written anew.

    What JSON does not know (dates, decimals, bytes of a Parquet file) becomes text, and a number that is none becomes null.
    """
    if isinstance(raw, bytes):
        return raw.rstrip(b"\r\n")
    if isinstance(raw, RowError):
        raw = raw.content
    text = json.dumps(_plain(raw), ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate can only be written as an escape
        return json.dumps(_plain(raw)).encode()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line (see `line_of`), whole or not at all.

    Raises:
        OutputError: if the system refuses.
    """
    with atomic_file(path, "wb") as file:
        file.writelines(line_of(row) + b"\n" for row in rows)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def parse(
    chunk: Chunk, *, format: str | None = None, allow_negative_margin: bool = False
) -> Iterator[tuple[int, Row | RowError]]:
    """(number of its first raw row, row) of everything in a chunk, a malformed row as the RowError that it would raise.

    Args:
        chunk: holds all that is needed, so that it can be sent to another process.
        format: the name of the rows' format; recognised row by row where None.
        allow_negative_margin: see `config.LossSettings`.

    Raises:
        SettingsError: if no format has that name.
    """
    for parsed in parse_units(chunk, format=format, allow_negative_margin=allow_negative_margin):
        for row in parsed.rows:
            yield parsed.number, row


def parse_units(chunk: Chunk, *, format: str | None = None, allow_negative_margin: bool = False) -> Iterator[Parsed]:
    """The same as `parse` by what was read together, with its format: for those who count."""
    told = None if format is None else formats.named(format)
    waiting: _Unit | None = None
    for number, (where, raw) in enumerate(chunk.rows, start=chunk.start):
        reader = RowReader(where, allow_negative_margin)
        row: Any
        found, key = told, None
        try:
            row = _loaded(where, raw, reader)
            found = told or formats.detect(row)
            if told is not None:
                formats.check(row, told, reader)
            key = found.join(row) if found.join else None
        except RowError as error:
            row = error
        if waiting is not None:
            if key is not None and waiting.key == key and waiting.format is found:
                waiting.rows.append(row)
                continue
            yield waiting.parsed()
            waiting = None
        if isinstance(row, RowError):
            yield Parsed(number, 1, None, [row])
        elif found is not None and found.join:
            waiting = _Unit(number, found, key, reader, [row])
        elif found is not None:
            yield Parsed(number, 1, found, _read(found, row, reader, number))
    if waiting is not None:
        yield waiting.parsed()


@dataclass
class _Unit:
    """Rows that are read together, so far."""

    number: int
    format: Format
    key: str | None
    reader: RowReader
    rows: list[Any]

    def parsed(self) -> Parsed:
        rows = _read(self.format, {"rows": self.rows}, self.reader, self.number)
        return Parsed(self.number, len(self.rows), self.format, rows)


def _read(format: Format, row: Any, reader: RowReader, number: int) -> list[Row | RowError]:
    try:
        if format is NATIVE:  # of which millions are read
            return [reader.row(row, number)]
        natives = format.read(row, reader)
        numbered = len(natives) > 1
        return [
            reader.row({"id": f"{number}.{i}", **one} if numbered else one, number) for i, one in enumerate(natives)
        ]
    except RowError as error:
        return [error]


def _loaded(where: str, raw: Any, reader: RowReader) -> Any:
    """A raw row as a dictionary."""
    if isinstance(raw, RowError):
        raise raw
    row = _parse_line(where, raw) if isinstance(raw, bytes) else raw
    if not isinstance(row, dict):
        reader.fail("(line)", "a JSON object", type(row).__name__, "Write one JSON object a line.")
    return row


def read_together(first: tuple[str, Any], second: tuple[str, Any]) -> bool:
    """Whether a format joins two neighbours into one row."""
    try:
        return formats.joined(*(_loaded(where, raw, RowReader(where)) for where, raw in (first, second)))
    except RowError:
        return False  # a malformed row stands alone


def iterate(source: str, *, format: str | None = None, allow_negative_margin: bool = False) -> Iterator[Row | RowError]:
    """Every row of a source in order, a malformed one as the RowError that it would raise; memory stays flat."""
    for chunk in chunks(source):
        for _, row in parse(chunk, format=format, allow_negative_margin=allow_negative_margin):
            yield row


def read(
    source: str, *, skip_bad: bool = False, format: str | None = None, allow_negative_margin: bool = False
) -> Reading:
    """All rows of a source.

    Raises:
        RowError: at the first malformed row, unless `skip_bad` counts them.
        DataError: if no row is left.
    """
    reading = Reading([])
    for chunk in chunks(source):
        for parsed in parse_units(chunk, format=format, allow_negative_margin=allow_negative_margin):
            reading.add(parsed)
            for row in parsed.rows:
                if not isinstance(row, RowError):
                    reading.rows.append(row)
                elif skip_bad:
                    reading.skip(row)
                else:
                    raise row
    if not reading.rows:
        raise no_rows(reading, source)
    return reading


def no_rows(reading: Reading, source: str) -> DataError:
    """The error for a source of which nothing is left."""
    came = "an empty file"
    if reading.num_rows:
        came = f"{reading.num_rows} rows, all of them malformed or without a comparison"
    return DataError(f"at least one row in {source_name(source)}", came, "Check the file.")


def preferences(rows: Iterable[Row], source: str, *, rule: PairRule = ALL_PAIRS) -> list[Preference]:
    """The pairs in rows: a pair is itself, an ordered group gives the pairs that the rule takes.

    Raises:
        DataError: at a row that holds no preference.
    """
    pairs = preferences_in(rows, source, rule=rule)
    if not pairs:
        raise DataError(
            f"at least one preference in {source_name(source)}",
            "groups whose ratings are all equal or nearer than min_gap",
            "Check the ratings.",
        )
    return pairs


def preferences_in(rows: Iterable[Row], source: str, *, rule: PairRule = ALL_PAIRS) -> list[Preference]:
    """The same of a part of a source, which may hold no preference.

    Raises:
        DataError: at a row that holds none by its kind.
    """
    pairs: list[Preference] = []
    for row in rows:
        if isinstance(row, Preference):
            pairs.append(row)
        elif isinstance(row, Group) and row.order != "none":
            pairs.extend(preferences_of(row, rule))
        else:
            kind = "unordered candidates" if isinstance(row, Group) else "a single answer"
            raise DataError(
                f"pairs or ranked groups in {source_name(source)}",
                f"row {row.id!r}, which is {kind}",
                "Give `chosen` and `rejected`, `ranked`, or `answers` with `ratings`; `rewardsmith score` takes any row.",
            )
    return pairs


def fingerprint(examples: Iterable[Preference | Group]) -> str:
    """A SHA-256 over the content of pairs (or groups), in order, whatever file held them."""
    digest = hashlib.sha256()
    for one in examples:
        digest.update(content_line(one))
    return digest.hexdigest()


def content_line(one: Preference | Group) -> bytes:
    """What a fingerprint is taken of: texts and labels of one example, neither its id nor its metadata."""
    content: list[Any] = [one.prompt]
    if isinstance(one, Preference):
        content += [one.chosen, one.rejected, one.rejected_prompt, one.margin, one.weight, one.votes, one.tie]
    else:
        content += [one.answers, one.order, one.ratings, one.metadata.get("per_answer")]
    return json.dumps(content, ensure_ascii=False, sort_keys=True).encode() + b"\n"
