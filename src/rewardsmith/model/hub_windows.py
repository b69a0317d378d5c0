"""Windows over a stream of the Hugging Face hub: rows come once, in one order, and nobody knows how many there are.

So the run says how many steps it takes, faults are counted as rows come, and what is known of the data is known at the end. A run that goes on reads the
stream from its beginning to where it stood, and holds what it read against a hash in the checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewardsmith.config import TrainSettings
from rewardsmith.data import io
from rewardsmith.data.faults import Dropped
from rewardsmith.data.schema import Preference
from rewardsmith.data.shards import BEGINNING, BLOCK_ROWS, Block, hub_rows
from rewardsmith.data.sources import source_name
from rewardsmith.errors import DataError
from rewardsmith.model.examples import ExampleTable
from rewardsmith.model.first_pass import ENOUGH_ROWS, Leaks, LossChecks, drop_from, told_in
from rewardsmith.model.losses import LOSSES
from rewardsmith.model.render import Renderer
from rewardsmith.model.train_counts import TrainCounts
from rewardsmith.model.windows import PromptSample, Tokeniser, Windows


@dataclass(frozen=True)
class HubStream:
    """A stream that is trained on.

    Args:
        settings: of the run.
        evaluated: the eval pairs, to find those that are trained on.
    """

    settings: TrainSettings
    evaluated: Sequence[Preference]


@dataclass
class Read:
    """What the rows of the first pass through a stream were, as far as it was read."""

    leaks: Leaks
    checks: LossChecks
    reading: io.Reading = field(default_factory=lambda: io.Reading([]))
    dropped: Dropped = field(default_factory=lambda: Dropped(0))
    counts: TrainCounts = field(default_factory=TrainCounts)
    sample: PromptSample = field(default_factory=PromptSample)
    equal: int = 0
    is_whole: bool = False


class HubWindows(Windows):
    """See `Windows`; the run is one epoch of so many steps, and goes through the stream again where it ends before them."""

    def __init__(self, stream: HubStream, renderer: Renderer, *, share: bool, **plan: Any) -> None:
        """Keep the source."""
        super().__init__(**plan)
        self.stream, self.share, self.tokeniser = stream, share, Tokeniser(renderer, stream.settings)
        self.read = self._nothing_read()
        self._trail: list[tuple[int, str]] = []
        self._expected: dict[str, Any] | None = None
        # Which columns the data have is not known: every table has all that the loss reads, neutral where a row has none.
        loss = stream.settings.loss
        switched_off = {name for name in ("margin", "weight", "votes") if not getattr(loss, name)}
        self.used = dict.fromkeys(LOSSES[loss.name].reads - switched_off, 0)

    def _nothing_read(self) -> Read:
        return Read(Leaks(self.stream.evaluated), LossChecks(self.stream.settings))

    def mark(self, position: int) -> dict[str, Any] | None:
        """See `Windows`: the content up to the block that holds the last example before the position."""
        self._trail = [step for step in self._trail if step[0] >= position]
        return dict(zip(("examples", "sha256"), self._trail[0], strict=True)) if self._trail else None

    def expect(self, mark: dict[str, Any] | None) -> None:
        """See `Windows`; what was read before, for a measurement, is read again under the mark's eyes."""
        self._expected, self._at, self._window = mark, None, None
        self._begin_reading()

    def tables(self, epoch: int, first: int) -> Iterator[ExampleTable]:
        """See `Windows`: always from the beginning of the stream."""
        self.read, self._trail = self._nothing_read(), []
        content, count, number = hashlib.sha256(), 0, 0
        while True:
            before = count
            for table, lines in self._pass(number):
                content.update(lines)
                count += len(table) if table is not None else 0
                self._trail.append((count, content.hexdigest()))
                self._check_mark()
                if table is None or count <= first:
                    continue
                over = count - first
                yield table if over >= len(table) else table.take(np.arange(len(table) - over, len(table)))
            if count == before:
                raise DataError(
                    f"at least one example to train on in {self.stream.settings.data}",
                    f"none left ({self.read.dropped.describe() or 'no row'})",
                    "Mend the data, or raise max_length.",
                )
            number += 1

    def _pass(self, number: int) -> Iterator[tuple[ExampleTable | None, bytes]]:
        """(the examples of a block, their content) of one pass; the first one counts."""
        settings, read = self.stream.settings, self.read
        if number:
            read = self._nothing_read()  # counted once
        name = source_name(settings.data)
        rows = hub_rows(settings.data, seed=self.seed, epoch=number)
        for chunk in io.chunked(rows, size=BLOCK_ROWS):
            told, alike = told_in(Block(BEGINNING, chunk), settings, name, read.reading)
            read.equal += alike
            read.leaks.see(told)
            sound = drop_from(told, read.dropped)
            read.checks.see(sound)
            table, left = self.tokeniser.table(sound, used=self.used, dropped=read.dropped) if sound else (None, [])
            if left and table is not None:
                read.counts.add(table, left, settings.loss, share=self.share)
                read.sample.add(left)
            if read.dropped.total >= ENOUGH_ROWS:
                read.dropped.check(settings.max_dropped_share)
            yield table if left else None, b"".join(map(io.content_line, told))
        if not number:
            read.is_whole = True
            read.checks.end()
            read.dropped.check(settings.max_dropped_share)

    def _check_mark(self) -> None:
        """Hold the last block against the mark.

        Raises:
            DataError: if the stream is not what the run was trained on.
        """
        if self._expected is None or self._trail[-1][0] < self._expected["examples"]:
            return
        if self._trail[-1] != (self._expected["examples"], self._expected["sha256"]):
            raise DataError(
                f"from {self.stream.settings.data} the rows that the run began with",
                "others",
                "Go on with the same revision of the data set, or let the run begin anew with --overwrite.",
            )
        self._expected = None

    def facts(self) -> dict[str, Any]:
        """Counts of the source, as far as it was read."""
        settings, read = self.stream.settings, self.read
        name = source_name(settings.data)
        return {
            "source": name,
            "rows": read.reading.num_rows,
            "read_to_its_end": read.is_whole,
            "formats": dict(read.reading.formats),
            "read_as": read.reading.describe(name),
            "without": read.reading.without,
            LOSSES[settings.loss.name].data: read.dropped.total,
            "equal_ratings": read.equal,
            "skipped_bad": dict(read.reading.skipped),
            "skipped_examples": read.reading.examples,
        }
