"""The first pass over shards that do not fit memory: all that a run must know of its data before a model is loaded.

Rows are read, checked, counted and hashed as `training_data.read_data` does it with rows in memory, block by block. What is found is kept in the cache, so that
the same command goes on after a kill without another pass; where the cache is off, each start takes one. Memory holds the dev part (at most `MOST_DEV`
examples), the rows that share an answer with an eval pair, and 48 bytes a block of 512 rows.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import shutil
import tempfile
import warnings
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from rewardsmith import launched
from rewardsmith.config import TrainSettings
from rewardsmith.data import io
from rewardsmith.data.examples import Example, example_fault, told_examples
from rewardsmith.data.faults import Dropped, folded
from rewardsmith.data.row_hashes import HashWriter, StoredHashes, row_hash
from rewardsmith.data.schema import Preference, RowReader, as_row, prompt_key
from rewardsmith.data.shards import Block, Place, Shard, blocks, shards_of
from rewardsmith.data.sources import source_name
from rewardsmith.errors import DataError, OutputError, RowError
from rewardsmith.manifest import source_sha256
from rewardsmith.model.checkpoints import fault, seal
from rewardsmith.model.losses import LOSSES
from rewardsmith.model.token_cache import default_folder
from rewardsmith.storage import atomic_folder, refuse_inside, text_sha256, write_json

Found = TypeVar("Found")
MOST_DEV = 10_000
"""Examples that a dev part split off a stream may have: they are in memory, and scored at every checkpoint."""
ENOUGH_ROWS = 10_000
"""From so many examples on, too large a share of dropped ones stops a pass before its end."""
_COLUMNS = ("shard", "row", "line", "offset", "digest")


@dataclass
class Contents:
    """What shards hold.

    Args:
        settings: of the run.
        shards: in the order of their paths.
        shard_rows: raw rows of each.
        blocks: one entry a block, in order: its shard, its `Place`, and a hash of its examples.
        facts: counts and hash of the source, as of one in memory.
        dropped: examples with faults of content.
        below: prompts whose hash lies below are in the dev part.
        dev: that part, examples with faults of content left out.
        seen: examples that share an answer with an eval pair.
        rows: a hash of every row.
        key: what tells these contents, and how they were read, from others.
    """

    settings: TrainSettings
    shards: list[Shard]
    shard_rows: list[int]
    blocks: dict[str, NDArray[Any]]
    facts: dict[str, Any]
    dropped: Dropped
    below: int
    dev: list[Example]
    seen: list[Example]
    rows: StoredHashes
    key: str

    @cached_property
    def first_blocks(self) -> NDArray[np.int64]:
        """The blocks of shard i are first_blocks[i]:first_blocks[i + 1], int64 (shards + 1,)."""
        return np.searchsorted(self.blocks["shard"], np.arange(len(self.shards) + 1)).astype(np.int64)

    def told_from(self, block: int) -> Iterator[tuple[int, list[Example]]]:
        """(block, its examples) from a block to the end of its shard, read anew.

        Raises:
            DataError: if they are not what the first pass read.
        """
        shard = int(self.blocks["shard"][block])
        start = Place(*(int(self.blocks[name][block]) for name in ("row", "line", "offset")))
        end, before = int(self.first_blocks[shard + 1]), sum(self.shard_rows[:shard])
        unread = io.Reading([])
        number = block
        for found in blocks(self.shards[shard], start=start, rows_before=before):
            if number == end:
                raise self._changed(shard, found.place.row)
            told, _ = told_in(found, self.settings, self.shards[shard].path.name, unread)
            if block_hash(map(io.content_line, told)) != int(self.blocks["digest"][number]):
                raise self._changed(shard, found.place.row)
            yield number, told
            number += 1
        if number < end:
            raise self._changed(shard, int(self.blocks["row"][number]))

    def trained(self, told: Sequence[Example]) -> list[Example]:
        """Those that are neither of the dev part nor at fault."""
        seed = self.settings.seed
        return [one for one in told if example_fault(one) is None and prompt_place(one, seed) >= self.below]

    def _changed(self, shard: int, row: int) -> DataError:
        # What the cache says of files of these sizes and times is wrong: the next start looks again.
        shutil.rmtree(self.rows.folder, ignore_errors=True)
        return DataError(
            f"in {self.shards[shard].path.name} the rows that the run began with",
            f"others from row {row + 1} on",
            "Restore the file; or let the run begin anew with --overwrite.",
        )


def prompt_place(example: Example, seed: int) -> int:
    """Where a prompt stands in the order by which a dev part is split off a stream: a 64-bit hash of its text and the seed.

    A hash and no draw, so that whether a row is in the dev part can be told from the row alone.
    """
    text = f"{seed}\x1d{prompt_key(example.prompt)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def block_hash(lines: Iterable[bytes]) -> int:
    """A hash of the contents of a block."""
    digest = hashlib.blake2b(digest_size=8)
    for line in lines:
        digest.update(line)
    return int.from_bytes(digest.digest(), "big")


def told_in(block: Block, settings: TrainSettings, name: str, reading: io.Reading) -> tuple[list[Example], int]:
    """The examples of a block, and how many of its comparisons say nothing; rows are counted in `reading`.

    Raises:
        RowError: at a malformed row, unless `skip_bad` counts it.
        DataError: at a row that the loss cannot read.
    """
    loss = settings.loss
    rows = []
    for parsed in io.parse_units(block.chunk, allow_negative_margin=loss.allow_negative_margin):
        reading.add(parsed)
        for row in parsed.rows:
            if not isinstance(row, RowError):
                rows.append(row)
            elif settings.skip_bad:
                reading.skip(row)
            else:
                raise row
    return told_examples(rows, LOSSES[loss.name].data, name, rating=loss.rating, attributes=loss.attributes)


def contents_of(settings: TrainSettings, evaluated: Sequence[Preference]) -> Contents:
    """The contents of `settings.data`, by a first pass or from the cache.

    Args:
        settings: of the run.
        evaluated: the eval pairs, to find those that are trained on.

    Raises:
        DataError: (or RowError) at the first fault that stops a run.
        OutputError: if a shard lies in the run folder.
    """
    shards = shards_of(settings.data)
    refuse_inside(Path(settings.out), *(str(shard.path) for shard in shards))
    key = _key(settings, shards, evaluated)

    def read(folder: Path) -> Contents:
        document = json.loads((folder / "contents.json").read_text(encoding="utf-8"))
        with np.load(folder / "blocks.npz") as arrays:
            columns = {name: arrays[name] for name in _COLUMNS}
        return Contents(
            settings=settings,
            shards=shards,
            shard_rows=document["shard_rows"],
            blocks=columns,
            facts=document["facts"],
            dropped=Dropped.from_dict(document["dropped"]),
            below=document["below"],
            dev=read_examples(folder / "dev.jsonl"),
            seen=read_examples(folder / "seen.jsonl"),
            rows=StoredHashes(folder),
            key=key,
        )

    contents, folder, is_kept = made_once(
        key, settings, lambda folder: _read(folder, shards, settings, evaluated), read
    )
    if not is_kept:
        weakref.finalize(contents.rows, shutil.rmtree, folder, ignore_errors=True)
    return contents


def _key(settings: TrainSettings, shards: Sequence[Shard], evaluated: Sequence[Preference]) -> str:
    """A SHA-256 over the places, sizes and times of the shards and all that reading them depends on, our own code included.

    Content is compared later: the fingerprint of the first pass is a part of the run's identity, and each block that is read again is held against its hash.
    """
    names = ("loss", "skip_bad", "dev_data", "dev_share", "seed", "max_dropped_share")
    values = settings.model_dump(include=set(names)) | {"dev_data": bool(settings.dev_data)}
    files = [[str(path.resolve()), size, changed] for path, size, changed in shards]
    code = source_sha256(Path(io.__file__).parent) + source_sha256(Path(__file__).parent)
    parts = [files, values, code, io.fingerprint(evaluated)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def made_once(
    key: str, settings: TrainSettings, make: Callable[[Path], None], read: Callable[[Path], Found]
) -> tuple[Found, Path, bool]:
    """What `read` finds in a folder that `make` filled, now or in an earlier start; the folder, and whether it stays.

    A folder in the cache whose files are not those that were written is made again, with a warning. Of several processes only the first keeps one.
    """
    path = default_folder() / "streams" / key
    if settings.cache and path.is_dir():
        if (wrong := fault(path)) is None:
            return read(path), path, True
        warnings.warn(f"cache of the first pass is {wrong}; it is made again", stacklevel=2)
    if settings.cache and launched.is_first():
        try:
            shutil.rmtree(path, ignore_errors=True)
            with atomic_folder(path) as made:
                make(made)
                seal(made, 0)
            return read(path), path, True
        except OutputError as error:
            warnings.warn(f"cache of the first pass not written: {error}", stacklevel=2)
    folder = Path(tempfile.mkdtemp(prefix="rewardsmith-"))
    try:
        make(folder)
        return read(folder), folder, False
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _read(folder: Path, shards: Sequence[Shard], settings: TrainSettings, evaluated: Sequence[Preference]) -> None:
    """The pass itself; what it found lies in `folder`."""
    name, kind = source_name(settings.data), LOSSES[settings.loss.name]
    reading, dropped, content = io.Reading([]), Dropped(0), hashlib.sha256()
    dev = DevPart(0.0 if settings.dev_data else settings.dev_share)
    checks, leaks = LossChecks(settings), Leaks(evaluated)
    equal, shard_rows, shard_examples = 0, [], []
    columns = {column: array("Q") for column in _COLUMNS}
    with HashWriter(folder) as writer:
        for number, shard in enumerate(shards):
            before, told_before = reading.num_rows, dropped.total
            for block in blocks(shard, rows_before=before):
                told, alike = told_in(block, settings, shard.path.name, reading)
                lines = [io.content_line(one) for one in told]
                content.update(b"".join(lines))
                writer.add([one.id for one in told], [row_hash(line) for line in lines])
                for column, value in zip(_COLUMNS, (number, *block.place, block_hash(lines)), strict=True):
                    columns[column].append(value)
                equal += alike
                sound = drop_from(told, dropped)
                if dropped.total >= ENOUGH_ROWS:
                    dropped.check(settings.max_dropped_share)
                checks.see(sound)
                leaks.see(told)
                for one in sound:
                    dev.see(prompt_place(one, settings.seed), one)
            shard_rows.append(reading.num_rows - before)
            shard_examples.append(dropped.total - told_before)
    if not dropped.total:
        raise nothing_told(settings.data, kind.data, equal) if reading.num_rows else io.no_rows(reading, name)
    dropped.check(settings.max_dropped_share)
    checks.end()
    facts = {
        "source": name,
        "shards": len(shards),
        "rows": reading.num_rows,
        "formats": dict(reading.formats),
        "read_as": reading.describe(settings.data),
        "without": reading.without,
        kind.data: dropped.total,
        "equal_ratings": equal,
        "skipped_bad": dict(reading.skipped),
        "skipped_examples": reading.examples,
        "sha256": content.hexdigest(),
        # The order goes by shards: the same rows dealt otherwise over files, or one file more without any, come in another one.
        "cut_sha256": text_sha256(json.dumps(shard_examples)),
    }
    arrays = {name: np.array(v, dtype=np.uint64 if name == "digest" else np.int64) for name, v in columns.items()}
    np.savez(folder / "blocks.npz", **arrays)  # type: ignore[arg-type]
    io.write_rows(folder / "dev.jsonl", map(as_row, dev.examples()))
    io.write_rows(folder / "seen.jsonl", map(as_row, leaks.seen.values()))
    write_json(
        folder / "contents.json",
        {"shard_rows": shard_rows, "facts": facts, "dropped": dropped.as_dict(), "below": dev.below},
    )


def drop_from(told: Sequence[Example], dropped: Dropped) -> list[Example]:
    """The examples of a block without faults of content; the others are counted."""
    sound = []
    for one in told:
        reason = example_fault(one)
        if reason is None:
            sound.append(one)
        else:
            dropped.add(reason, [one.id])
    dropped.total += len(told)
    return sound


def nothing_told(source: str, kind: str, equal: int) -> DataError:
    """The error for a source that holds rows, and nothing to train on."""
    return DataError(
        f"at least one row for a loss of {kind} in {source_name(source)}",
        "groups whose answers are all rated alike" if equal else "none",
        "Check the data.",
    )


def read_examples(path: Path) -> list[Example]:
    """Examples that were written as native rows, pairs of negative margin too."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line)
    found = [RowReader(path.name, allow_negative_margin=True).row(row, i) for i, row in enumerate(rows, 1)]
    return cast("list[Example]", found)


class DevPart:
    """The prompts with the smallest hashes, up to a share of all hashes and to `MOST_DEV` examples: which they are needs no second look at any row."""

    def __init__(self, share: float) -> None:
        """Nothing was seen."""
        self.below = int(share * 2**64)
        self._prompts: dict[int, list[tuple[int, Example]]] = {}
        self._largest: list[int] = []  # a heap of the prompts, as negative numbers
        self._count = self._seen = 0

    def see(self, place: int, example: Example) -> None:
        """Look at one example; what no longer has room goes back to training, whole prompts at a time."""
        self._seen += 1
        if place >= self.below:
            return
        if place not in self._prompts:
            heapq.heappush(self._largest, -place)
        self._prompts.setdefault(place, []).append((self._seen, example))
        self._count += 1
        while self._count > MOST_DEV:
            self.below = -heapq.heappop(self._largest)
            self._count -= len(self._prompts.pop(self.below))

    def examples(self) -> list[Example]:
        """In the order of the rows."""
        both = sorted((one for prompt in self._prompts.values() for one in prompt), key=lambda one: one[0])
        return [example for _, example in both]


class LossChecks:
    """What a loss asks of its training data: of every row at once, of the whole as soon as some block shows it."""

    def __init__(self, settings: TrainSettings) -> None:
        """Nothing was seen."""
        self.loss, self.kind = settings.loss, LOSSES[settings.loss.name]
        self._missing: DataError | None = None
        self._shown = False

    def see(self, examples: Sequence[Example]) -> None:
        """Look at a block.

        Raises:
            DataError: at a row that the loss cannot read.
            SettingsError: at a setting that it does not read.
        """
        if not examples:
            return
        self.kind.check_rows(self.loss, examples)
        if self._shown:
            return
        try:
            self.kind.check(self.loss, examples)
            self._shown = True
        except DataError as error:
            self._missing = self._missing or error

    def end(self) -> None:
        """All was seen.

        Raises:
            DataError: if the data lack what the loss needs.
        """
        if not self._shown and self._missing is not None:
            raise self._missing


class Leaks:
    """Training examples that share an answer with an eval pair, once each: among them are all that hold the pair."""

    def __init__(self, evaluated: Sequence[Preference]) -> None:
        """Of the eval pairs, which are in memory."""
        self._answers = {answer for pair in evaluated for answer in _answers_of(pair)}
        self.seen: dict[str, Example] = {}

    def see(self, examples: Sequence[Example]) -> None:
        """Look at a block."""
        if not self._answers:
            return
        for one in examples:
            if not self._answers.isdisjoint(_answers_of(one)):
                self.seen.setdefault(io.fingerprint([one]), one)


def _answers_of(example: Example) -> list[tuple[str, str]]:
    answers = (example.chosen, example.rejected) if isinstance(example, Preference) else example.answers
    prompt = folded(prompt_key(example.prompt))
    return [(prompt, folded(answer)) for answer in answers]
