"""Training examples read window by window: an epoch is cut into windows of so many examples, and one window is in memory at a time.

An example of the epoch is known by its slot, a whole number. Which window holds a slot is arithmetic; which example it is, only that window's tokens tell.
So a sampler plans in slots without reading anything, a run that goes on jumps to its slot, and every process finds the same examples behind the same slots.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler, get_worker_info

from rewardsmith.config import TrainSettings
from rewardsmith.data import io
from rewardsmith.data.examples import Example
from rewardsmith.data.faults import COLLAPSED, OVER_LENGTH, Dropped
from rewardsmith.data.schema import as_row
from rewardsmith.errors import DataError, RewardsmithError
from rewardsmith.model.batching import training_order
from rewardsmith.model.batching_choice import BatchingChoice
from rewardsmith.model.examples import ExampleCollator, ExampleTable, example_table
from rewardsmith.model.first_pass import ENOUGH_ROWS, Contents, made_once, prompt_place, read_examples
from rewardsmith.model.learner import Learner
from rewardsmith.model.render import Renderer
from rewardsmith.model.train_counts import TrainCounts, unlearnable
from rewardsmith.storage import write_json

SAMPLE = 500
"""Training examples whose scores at the end give the normaliser and the training accuracy."""
# Apart from the numbers of windows, which follow (seed, epoch) in their place.
_SHARDS = (0, 1)


class PromptSample:
    """The examples of the prompts that come first in an order by hash, whatever the run's seed: the last prompt may be cut."""

    def __init__(self) -> None:
        """Nothing was seen."""
        self._heap: list[tuple[int, int, Example]] = []
        self._seen = 0

    def add(self, examples: Sequence[Example]) -> None:
        """Look at further examples."""
        for one in examples:
            self._seen += 1
            item = (-prompt_place(one, 0), -self._seen, one)
            if len(self._heap) < SAMPLE:
                heapq.heappush(self._heap, item)
            else:
                heapq.heappushpop(self._heap, item)

    def examples(self) -> list[Example]:
        """In the order of the rows."""
        return [one for _, _, one in sorted(self._heap, key=lambda item: -item[1])]


class Tokeniser:
    """Examples -> the table of those that can be learned from.

    Args:
        renderer: makes their ids.
        settings: of the run.
    """

    def __init__(self, renderer: Renderer, settings: TrainSettings) -> None:
        """Keep both."""
        self.renderer, self.settings = renderer, settings

    def table(
        self, examples: Sequence[Example], *, used: dict[str, int], dropped: Dropped | None = None
    ) -> tuple[ExampleTable, list[Example]]:
        """The table and its examples.

        Args:
            examples: at least one.
            used: the label columns that tables have.
            dropped: counts the others.
        """
        table, _ = example_table(examples, self.renderer, self.settings.loss, cache=None, used=used)
        collapsed, over = unlearnable(table, drop_long=self.renderer.spec.truncation == "drop")
        if dropped is not None:
            for reason, mask in ((COLLAPSED, collapsed), (OVER_LENGTH, over)):
                dropped.add(reason, [table.ids[i] for i in np.flatnonzero(mask)])
        keep = np.flatnonzero(~(collapsed | over))
        if len(keep) == len(table):
            return table, list(examples)
        return table.take(keep), [examples[i] for i in keep.tolist()]


@dataclass
class Measured:
    """What the second pass found.

    Args:
        kept: examples of each block that are trained on, int64 (blocks,).
        counts: of all of them.
        dropped: with those that the length policy made unlearnable.
        sample: see `PromptSample`.
    """

    kept: NDArray[np.int64]
    counts: TrainCounts
    dropped: Dropped
    sample: list[Example]


def measure(contents: Contents, renderer: Renderer, *, share: bool) -> Measured:
    """Tokenise every example once and keep the counts alone: how many steps an epoch has, and what is dropped, is then known before the first step.

    Args:
        contents: of the shards.
        renderer: makes the ids.
        share: whether to look for what texts begin with alike.

    Raises:
        DataError: if too much is dropped, or the shards are not what the first pass read.
    """
    text = f"{contents.key} {contents.facts['sha256']} {renderer.fingerprint()} {share}"
    key = hashlib.sha256(text.encode()).hexdigest()

    def read(folder: Path) -> Measured:
        document = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
        return Measured(
            np.load(folder / "kept.npy"),
            TrainCounts.from_dict(document["counts"]),
            Dropped.from_dict(document["dropped"]),
            read_examples(folder / "sample.jsonl"),
        )

    measured, folder, is_kept = made_once(
        key, contents.settings, lambda folder: _measure(folder, contents, renderer, share), read
    )
    if not is_kept:
        shutil.rmtree(folder, ignore_errors=True)
    return measured


def _measure(folder: Path, contents: Contents, renderer: Renderer, share: bool) -> None:
    settings, tokeniser = contents.settings, Tokeniser(renderer, contents.settings)
    dropped, counts, sample = Dropped.from_dict(contents.dropped.as_dict()), TrainCounts(), PromptSample()
    kept = np.zeros(len(contents.blocks["shard"]), dtype=np.int64)
    cut = Dropped(0)
    for first in _shard_starts(contents):
        for block, told in contents.told_from(first):
            cut.total += len(told)
            examples = contents.trained(told)
            if not examples:
                continue
            table, left = tokeniser.table(examples, used={}, dropped=cut)
            kept[block] = len(left)
            if left:
                counts.add(table, left, settings.loss, share=share)
                sample.add(left)
            if cut.total >= ENOUGH_ROWS:
                cut.check(settings.max_dropped_share)
    for reason, count in cut.counts.items():
        dropped.counts[reason] += count
        dropped.listed[reason] = cut.listed[reason]
    dropped.check(settings.max_dropped_share)
    if not counts.examples:
        raise DataError(
            "at least one example to train on",
            f"none left ({dropped.describe() or 'all are in the dev part'})",
            "Raise max_length, or lower dev_share.",
        )
    np.save(folder / "kept.npy", kept)
    io.write_rows(folder / "sample.jsonl", map(as_row, sample.examples()))
    write_json(folder / "measured.json", {"counts": counts.as_dict(), "dropped": dropped.as_dict()})


def _shard_starts(contents: Contents) -> list[int]:
    """The first blocks of all shards that have any."""
    firsts = contents.first_blocks.tolist()
    return [first for first, end in zip(firsts[:-1], firsts[1:], strict=True) if first < end]


class Windows(ABC):
    """The examples of an epoch behind their slots: those of epoch e are e * n, ..., e * n + n - 1.

    Args:
        num_examples: n.
        size: examples of a window, a multiple of the examples of an optimiser step: no step lies in two windows, and none is short but the last of the epoch.
        seed: of the order.
        batching: whose costs plan the steps.
        batch_size: examples of one process's batch.
        ranks: processes.
    """

    def __init__(
        self, num_examples: int, size: int, *, seed: int, batching: BatchingChoice, batch_size: int, ranks: int
    ) -> None:
        """Nothing is read yet."""
        assert size % (batch_size * ranks) == 0
        self.num_examples, self.size, self.seed = num_examples, size, seed
        self.batching, self.batch_size, self.ranks = batching, batch_size, ranks
        self._at: tuple[int, int] | None = None
        self._window: tuple[ExampleTable, NDArray[np.int64]] | None = None
        self._begin_reading()

    def _begin_reading(self) -> None:
        self._next = (-1, -1)
        self._coming: Iterator[ExampleTable] = iter(())
        self._rest: ExampleTable | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """For a process that reads for itself: what is being read stays here."""
        return vars(self) | {"_next": (-1, -1), "_coming": iter(()), "_rest": None, "_at": None, "_window": None}

    def __len__(self) -> int:
        """Examples of an epoch."""
        return self.num_examples

    @abstractmethod
    def tables(self, epoch: int, first: int) -> Iterator[ExampleTable]:
        """The examples of an epoch in the order of reading, from the `first` one on."""

    def behind(self, slots: Sequence[int]) -> tuple[ExampleTable, list[int]]:
        """A window and the rows in it that stand behind slots of one step."""
        epoch, place = divmod(slots[0], self.num_examples)
        number = place // self.size
        table, order = self.window(epoch, number)
        first = epoch * self.num_examples + number * self.size
        return table, [int(order[slot - first]) for slot in slots]

    def window(self, epoch: int, number: int) -> tuple[ExampleTable, NDArray[np.int64]]:
        """The examples of a window and the order in which they are seen; the next window goes on reading, any other begins at its own place."""
        if self._window is None or self._at != (epoch, number):
            self._window = None  # its memory goes before the next one comes
            # A worker shares the place in an open file with the process that it was forked from.
            if self._process != os.getpid():
                self._begin_reading()
            if self._next != (epoch, number):
                self._rest, self._coming = None, self.tables(epoch, number * self.size)
            wanted = min(self.size, self.num_examples - number * self.size)
            table = self._take(wanted)
            packed = self.batching.packed
            order = training_order(
                table.costs(share=self.batching.share) if packed else table.longest,
                self.batch_size,
                seed=self.seed,
                epoch=epoch,
                window=number,
                sort=not packed,
                ranks=self.ranks,
            )
            self._window, self._at, self._next = (table, order), (epoch, number), (epoch, number + 1)
        return self._window

    def mark(self, position: int) -> dict[str, Any] | None:
        """What tells, when a run goes on, whether the data up to a position are those that it was trained on; None where reading finds it out by itself."""
        return None

    def expect(self, mark: dict[str, Any] | None) -> None:
        """Hold what is read against the mark of a checkpoint; there is nothing to do where reading does so by itself."""
        assert mark is None

    def _take(self, wanted: int) -> ExampleTable:
        """The next so many examples; what is left of the last block waits for the next window."""
        tables, count = [], 0
        while count < wanted:
            table = self._rest if self._rest is not None else next(self._coming, None)
            self._rest = None
            assert table is not None, "an epoch ended before its last example"
            over = count + len(table) - wanted
            if over > 0:
                rows = np.arange(len(table))
                table, self._rest = table.take(rows[:-over]), table.take(rows[-over:])
            tables.append(table)
            count += len(table)
        return ExampleTable.join(tables)


class ShardWindows(Windows):
    """Windows over local shards, which are shuffled by (seed, epoch); rows are shuffled inside a window by (seed, epoch, window).

    A window is found by the counts of the second pass: reading begins at the block that holds its first example.
    """

    def __init__(self, contents: Contents, measured: Measured, renderer: Renderer, **plan: Any) -> None:
        """Keep where everything lies."""
        super().__init__(measured.counts.examples, **plan)
        self.contents, self.kept, self.used = contents, measured.kept, dict(measured.counts.used)
        self.tokeniser = Tokeniser(renderer, contents.settings)
        self._per_shard = [int(part.sum()) for part in np.split(self.kept, contents.first_blocks[1:-1])]

    def tables(self, epoch: int, first: int) -> Iterator[ExampleTable]:
        """See `Windows`."""
        order = np.random.default_rng([self.seed, epoch, *_SHARDS]).permutation(len(self._per_shard))
        for shard in order.tolist():
            if first >= self._per_shard[shard]:
                first -= self._per_shard[shard]
                continue
            begin, end = self.contents.first_blocks[shard : shard + 2].tolist()
            after = np.cumsum(self.kept[begin:end])
            skipped = int(np.searchsorted(after, first, side="right"))
            first -= int(after[skipped - 1]) if skipped else 0
            for block, told in self.contents.told_from(begin + skipped):
                if not self.kept[block]:
                    continue
                table, _ = self.tokeniser.table(self.contents.trained(told), used=self.used)
                assert len(table) == self.kept[block], "a block of equal content gave other examples"
                yield table.take(np.arange(first, len(table))) if first else table
                first = 0


class WindowSampler(Sampler[int]):
    """The slots of an epoch, in their order: the shuffling is the window's own."""

    def __init__(self, windows: Windows) -> None:
        """Keep how many there are."""
        self.num_examples, self.epoch = len(windows), 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """How many examples an epoch has."""
        return self.num_examples

    def __iter__(self) -> Iterator[int]:
        """Slots."""
        return iter(range(self.epoch * self.num_examples, (self.epoch + 1) * self.num_examples))


@dataclass(frozen=True)
class WindowCollator:
    """Slots of a step -> its batch, as `ExampleCollator` makes it of the window that holds them.

    Args:
        windows: the examples.
        pad_id: see `ExampleCollator`.
        with_types: likewise.
        batching: likewise.
        batch_tokens: likewise.
    """

    windows: Windows
    pad_id: int
    with_types: bool
    batching: BatchingChoice
    batch_tokens: int

    def __call__(self, slots: Sequence[int]) -> dict[str, Any]:
        """The batch; where reading fails in a worker, the error under "error", for torch would make another one of it on its way."""
        try:
            table, rows = self.windows.behind(slots)
        except RewardsmithError as error:
            if get_worker_info() is None:
                raise
            return {"error": error}
        return self.over(table)(rows)

    def over(self, table: ExampleTable) -> ExampleCollator:
        """The collator of a window."""
        return ExampleCollator(table, self.pad_id, self.with_types, self.batching, self.batch_tokens)

    def first(self) -> ExampleCollator:
        """That of the first window, for measurements before training."""
        return self.over(self.windows.window(0, 0)[0])


@dataclass(frozen=True)
class WindowLearner(Learner):
    """A network that is trained on windows."""

    table: Windows  # type: ignore[assignment]

    def collator(self, batch_tokens: int) -> WindowCollator:  # type: ignore[override]
        """See `Learner`."""
        pad_id, with_types = self.reader.padding
        return WindowCollator(self.table, pad_id, with_types, self.reader.batching, batch_tokens)
