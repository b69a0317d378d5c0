"""Training examples as ids and labels: what a step reads. Legend: `B` examples, `N` answers end to end in their order, `T` tokens, `A` outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rewardsmith.config import LossSettings
from rewardsmith.data.examples import Example
from rewardsmith.data.schema import Group, Pair, Preference
from rewardsmith.model.batching import Batch, collate, like_lengths, runs_within
from rewardsmith.model.batching_choice import BatchingChoice
from rewardsmith.model.losses import LOSSES, Labels, attribute_ratings
from rewardsmith.model.packing import PackedBatch, pack, tokens_read
from rewardsmith.model.render import Renderer, TokenTable
from rewardsmith.model.token_cache import encode_cached

_PER_EXAMPLE = ("weight", "margin", "share", "tie", "votes")


@dataclass(frozen=True)
class ExampleTable:
    """n examples, ready for batches.

    Args:
        ids: the rows' own ids, for diagnoses.
        tokens: the answers of all examples end to end; of a pair chosen, then rejected.
        starts: the answers of example i are starts[i]:starts[i + 1], int64 (n + 1,).
        labels: per example: weight, margin, share (n,), tie bool (n,), votes (n, 2); per answer: rating (num answers, A). Only those that are used.
        better: comparisons that the labels imply, (m, 2): answers by their place in `tokens`, the better one first; in the order of the better ones.
    """

    ids: list[str]
    tokens: TokenTable
    starts: NDArray[np.int64]
    labels: dict[str, NDArray[Any]]
    better: NDArray[np.int64]

    def __len__(self) -> int:
        """How many examples."""
        return len(self.ids)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Answers of each example, int64 (n,)."""
        return np.diff(self.starts)

    @property
    def longest(self) -> NDArray[np.int64]:
        """Tokens of the longest answer of each example, int64 (n,)."""
        return np.maximum.reduceat(self.tokens.lengths, self.starts[:-1])

    def costs(self, *, share: bool) -> NDArray[np.int64]:
        """Tokens that each example costs, int64 (n,): those of its answers, what they begin with alike counted once if it is shared."""
        return self._shared_costs if share else self._own_costs

    @cached_property
    def _own_costs(self) -> NDArray[np.int64]:
        return np.add.reduceat(self.tokens.lengths, self.starts[:-1])

    @cached_property
    def _shared_costs(self) -> NDArray[np.int64]:
        examples = zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)
        return np.array([tokens_read([self.tokens.row(i) for i in range(a, b)]) for a, b in examples], dtype=np.int64)

    def answers_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places of the answers of some examples, in their order."""
        parts = [np.arange(self.starts[i], self.starts[i + 1]) for i in rows]
        return np.concatenate([*parts, np.zeros(0, np.int64)])

    @cached_property
    def _better_starts(self) -> NDArray[np.int64]:
        """The comparisons of example i are better[_better_starts[i]:_better_starts[i + 1]], int64 (n + 1,)."""
        return np.searchsorted(self.better[:, 0], self.starts)

    def comparisons_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The comparisons inside some examples, (m, 2), by the place among the answers of just these examples."""
        firsts = np.concatenate([[0], np.cumsum(self.sizes[rows])])
        parts = [
            self.better[self._better_starts[i] : self._better_starts[i + 1]] - self.starts[i] + first
            for i, first in zip(rows, firsts, strict=False)
        ]
        return np.concatenate([*parts, np.zeros((0, 2), np.int64)])

    def labels_of(self, rows: NDArray[np.int64]) -> Labels:
        """The labels of some examples as tensors."""
        values = {name: torch.from_numpy(self.labels[name][rows]) for name in _PER_EXAMPLE if name in self.labels}
        if "rating" in self.labels:
            values["rating"] = torch.from_numpy(self.labels["rating"][self.answers_of(rows)])
        return Labels(torch.from_numpy(self.sizes[rows]), **values)

    def take(self, rows: NDArray[np.int64]) -> ExampleTable:
        """Some of the examples, in the order given."""
        answers = self.answers_of(rows)
        labels = {name: column[answers if name == "rating" else rows] for name, column in self.labels.items()}
        starts = np.concatenate([[0], np.cumsum(self.sizes[rows])]).astype(np.int64)
        return ExampleTable(
            [self.ids[i] for i in rows], self.tokens.take(answers), starts, labels, self.comparisons_of(rows)
        )

    @classmethod
    def join(cls, tables: Sequence[ExampleTable]) -> ExampleTable:
        """Tables of the same label columns, at least one, one after the other."""
        firsts = np.concatenate([[0], np.cumsum([len(table.tokens) for table in tables])])
        return cls(
            [one for table in tables for one in table.ids],
            TokenTable.join([table.tokens for table in tables]),
            np.concatenate([[0], np.cumsum(np.concatenate([table.sizes for table in tables]))]).astype(np.int64),
            {name: np.concatenate([table.labels[name] for table in tables]) for name in tables[0].labels},
            np.concatenate([table.better + first for table, first in zip(tables, firsts, strict=False)]),
        )

    def collapsed(self) -> NDArray[np.bool_]:
        """Examples all of whose answers became the same ids, bool (n,): they cannot be told apart. One answer alone is no such example."""
        digests = self.tokens.digests()
        same = np.minimum.reduceat(digests, self.starts[:-1]) == np.maximum.reduceat(digests, self.starts[:-1])
        return same & (self.sizes > 1)

    def over_length(self) -> NDArray[np.bool_]:
        """Examples of which an answer was cut, bool (n,)."""
        return np.logical_or.reduceat(self.tokens.truncated, self.starts[:-1])


def texts_of(example: Example) -> list[Pair]:
    """The (prompt, answer) pairs of an example, in its order."""
    if isinstance(example, Preference):
        return [example.chosen_pair, example.rejected_pair]
    return [(example.prompt, answer) for answer in example.answers]


def columns_in_use(examples: Sequence[Example], settings: LossSettings) -> tuple[dict[str, int], dict[str, int]]:
    """Label columns by the number of examples that have them: (those that the loss reads, those that it leaves unread)."""
    pairs = [example for example in examples if isinstance(example, Preference)]
    counts = {
        "margin": sum(pair.margin is not None for pair in pairs),
        "weight": sum(pair.weight is not None for pair in pairs)
        + sum(isinstance(example, Group) and "weight" in example.metadata for example in examples),
        "votes": sum(pair.votes is not None for pair in pairs),
        "tie": sum(pair.tie for pair in pairs),
        "per_answer": sum(isinstance(example, Group) and "per_answer" in example.metadata for example in examples),
        # Of attributes the ratings are our own sums.
        "ratings": sum(
            isinstance(example, Group) and example.ratings is not None and not settings.attributes
            for example in examples
        ),
    }
    switched_off = {name for name in ("margin", "weight", "votes") if not getattr(settings, name)}
    reads = LOSSES[settings.name].reads - switched_off
    found = {name: count for name, count in counts.items() if count}
    return {n: c for n, c in found.items() if n in reads}, {n: c for n, c in found.items() if n not in reads}


def example_table(
    examples: Sequence[Example],
    renderer: Renderer,
    settings: LossSettings,
    *,
    cache: Path | None,
    used: Mapping[str, int] | None = None,
) -> tuple[ExampleTable, str]:
    """The table of some examples, and whether the token cache had it ("hit", "miss", "off").

    Rows without a label column get its neutral value. Under Bradley-Terry a labelled tie is a share of one half whatever the votes say.

    Args:
        examples: the examples.
        renderer: makes their ids.
        settings: of the loss.
        cache: the folder of token ids, or None.
        used: the label columns of all data, where these examples are a part of them; those of the examples by default.
    """
    tokens, cached = encode_cached(renderer, [text for example in examples for text in texts_of(example)], cache)
    sizes = [2 if isinstance(example, Preference) else len(example.answers) for example in examples]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    if used is None:
        used, _ = columns_in_use(examples, settings)
    pairs = [example for example in examples if isinstance(example, Preference)]
    labels = _pair_labels(pairs, settings, used) if pairs else _ratings(examples, settings)
    better = [
        (start + i, start + j)
        for start, example in zip(starts.tolist(), examples, strict=False)
        for i, j in _better(example)
    ]
    table = ExampleTable(
        ids=[example.id for example in examples],
        tokens=tokens,
        starts=starts,
        labels=labels,
        better=np.array(better, dtype=np.int64).reshape(-1, 2),
    )
    return table, cached


def _pair_labels(
    pairs: Sequence[Preference], settings: LossSettings, used: Mapping[str, int]
) -> dict[str, NDArray[Any]]:
    labels: dict[str, NDArray[Any]] = {}
    if "margin" in used:
        labels["margin"] = np.array([p.margin or 0.0 for p in pairs], dtype=np.float32)
    if "weight" in used:
        labels["weight"] = np.array([1.0 if p.weight is None else p.weight for p in pairs], dtype=np.float32)
    if "tie" in used:
        labels["tie"] = np.array([p.tie for p in pairs], dtype=np.bool_)
    if "votes" in used and settings.name == "vote_share":
        labels["votes"] = np.array([p.votes for p in pairs], dtype=np.float32)
    elif "votes" in used:
        shares = [1.0 if p.votes is None else p.votes[0] / sum(p.votes) for p in pairs]
        labels["share"] = np.array(shares, dtype=np.float32)
    return labels


def _ratings(examples: Sequence[Example], settings: LossSettings) -> dict[str, NDArray[Any]]:
    groups = [example for example in examples if isinstance(example, Group)]
    if settings.attributes:
        columns = list(settings.attributes)
        return {"rating": np.concatenate([attribute_ratings(g, columns) for g in groups]).astype(np.float32)}
    heights = [height for group in groups for height in _heights(group)]
    return {"rating": np.array(heights, dtype=np.float32)[:, None]}


def _heights(group: Group) -> Sequence[float]:
    """One number an answer, higher for the better: its rating, or its place counted from the end; NaN where there is no order."""
    if group.ratings is not None:
        return group.ratings
    if group.order == "ranked":
        return range(len(group.answers), 0, -1)
    return [math.nan] * len(group.answers)


def _better(example: Example) -> list[tuple[int, int]]:
    """(better, worse) answers of an example; none of a labelled tie."""
    if isinstance(example, Preference):
        return [] if example.tie else [(0, 1)]
    heights = _heights(example)
    places = range(len(heights))
    return [(i, j) for i in places for j in places if heights[i] > heights[j]]


class ExampleRows(Dataset[int]):
    """The row numbers of a table: the collator does the rest, for a whole batch at once."""

    def __init__(self, table: Sized) -> None:
        """Count them."""
        self.num_examples = len(table)

    def __len__(self) -> int:
        """How many examples."""
        return self.num_examples

    def __getitem__(self, index: int) -> int:
        """The row number itself."""
        return int(index)


@dataclass(frozen=True)
class Part:
    """Some examples of a batch: what one forward and backward pass is about.

    Args:
        batches: texts that go through the network together, (batch, the places of its texts among the N answers).
        labels: of the B examples.
        better: comparisons inside them, (m, 2), by place among the N answers; the better one first.
        rows: of the examples in their table, (B,).
        ids: of the examples, for diagnoses.
        weight: the share of the batch's examples that are here.
        num_tokens: that are read, padding not counted.
        spare: batches to read along for the sake of other processes; what the network says of them weighs nothing.
    """

    batches: list[tuple[Batch | PackedBatch, Tensor]]
    labels: Labels
    better: Tensor
    rows: Tensor
    ids: list[str]
    weight: float
    num_tokens: int
    spare: list[Batch | PackedBatch] = field(default_factory=list)

    def in_order(self, outputs: list[Tensor]) -> Tensor:
        """What the network says of each batch, as one (N, A) in the order of the answers."""
        return torch.cat(outputs)[torch.argsort(torch.cat([places for _, places in self.batches]))]

    def map(self, change: Callable[[Tensor], Tensor]) -> Part:
        """The part with each of its tensors changed: moved, pinned."""
        labels = {name: value if value is None else change(value) for name, value in vars(self.labels).items()}
        batches = [(batch.map(change), change(places)) for batch, places in self.batches]
        return replace(
            self, batches=batches, labels=Labels(**labels), better=change(self.better), rows=change(self.rows)
        )

    def to(self, device: torch.device, non_blocking: bool = False) -> Part:
        """The part on a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Part:
        """The part in memory that a GPU copies from while it computes; the data loader asks for it."""
        return self.map(Tensor.pin_memory)


@dataclass(frozen=True)
class ExampleCollator:
    """Row numbers -> the batch of these examples, in parts of at most `batch_tokens` tokens (one example at least).

    Args:
        table: the examples.
        pad_id: the filler of padding, never looked at.
        with_types: whether batches carry token types.
        batching: how texts are batched.
        batch_tokens: of one part.
    """

    table: ExampleTable
    pad_id: int
    with_types: bool
    batching: BatchingChoice
    batch_tokens: int

    def __call__(self, rows: Sequence[int]) -> dict[str, list[Part]]:
        """The batch, whose parts the Trainer moves to its device."""
        at = np.asarray(rows, dtype=np.int64)
        runs = runs_within(self.table.costs(share=self.batching.share)[at], self.batch_tokens)
        return {"parts": [self.part(at[run], weight=len(at[run]) / len(at)) for run in runs]}

    def part(self, rows: NDArray[np.int64], *, weight: float = 1.0) -> Part:
        """Some examples as one part."""
        answers = self.table.answers_of(rows)
        return Part(
            batches=self._batches(answers),
            labels=self.table.labels_of(rows),
            better=torch.from_numpy(self.table.comparisons_of(rows)),
            rows=torch.from_numpy(rows),
            ids=[self.table.ids[i] for i in rows.tolist()],
            weight=weight,
            num_tokens=int(self.table.costs(share=self.batching.share)[rows].sum()),
        )

    def _batches(self, answers: NDArray[np.int64]) -> list[tuple[Batch | PackedBatch, Tensor]]:
        tokens = self.table.tokens
        if self.batching.packed:
            packed = pack(tokens, answers, share=self.batching.share, with_types=self.with_types)
            return [(packed, torch.arange(len(answers)))]
        return [
            (
                collate(tokens, answers[places], pad_id=self.pad_id, with_types=self.with_types),
                torch.from_numpy(places),
            )
            for places in like_lengths(tokens.lengths[answers])
        ]
