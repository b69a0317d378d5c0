"""Texts end to end in one row, with a little filler at its end; texts that begin alike read their beginning once. Plain integers first, then tensors.

A row is a chain of segments. A segment stands alone, or goes on from a *prefix*: a stretch of the same row that several texts begin with. Its tokens see the
prefix and themselves, never another segment, and their positions go on from the prefix: what every token computes is what it would compute in its text alone.
Prefixes are for models that read left to right, where nothing after the prefix can change it.

What a prefix left behind in every layer, its keys and values, may be kept and stand among the keys of a later row, which then need not hold its tokens. Segments are
therefore counted in keys: those of the row's own tokens, with remembered ones put in between.

Legend: `N` texts, `T` tokens of the row, `L` tokens of the longest text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewardsmith.model.batching import runs_within
from rewardsmith.model.render import TokenTable

# A shorter common beginning is not worth the copies of its keys.
LEAST_PREFIX = 8
# Rows come in few lengths: multiples of this, from 256 tokens on of a thirty-second of the power of two below.
_STEP = 8


class Segment(NamedTuple):
    """Keys start:stop of a row, which go on from its keys prefix_start:prefix_stop (none where both are equal).

    `shift` of the keys before them are remembered ones: the tokens of the segment are start - shift : stop - shift of the row.
    """

    start: int
    stop: int
    prefix_start: int = 0
    prefix_stop: int = 0
    shift: int = 0

    @property
    def prefix(self) -> int:
        """Tokens of the prefix."""
        return self.prefix_stop - self.prefix_start


class Family(NamedTuple):
    """Texts (by number) whose first `prefix` tokens are equal and read once."""

    prefix: int
    texts: list[int]


@dataclass(eq=False)
class States:
    """What a beginning of texts left behind: its keys and values by layer, each (key heads, length, numbers a head); empty until a row has filled it."""

    length: int
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Insert(NamedTuple):
    """Remembered states among the keys of a row: before its token `place`."""

    place: int
    states: States


class Keep(NamedTuple):
    """The keys start:stop of a row are to be remembered in `states`."""

    start: int
    stop: int
    states: States


class Recall(NamedTuple):
    """What is known of the beginning of a family's texts, and what of it is to be remembered; None: nothing."""

    known: States | None = None
    keep: States | None = None


class Memory(Protocol):
    """States of earlier rows."""

    def recall(self, texts: Sequence[NDArray[np.int32]], prefix: int) -> Recall:
        """Of texts whose first `prefix` tokens are equal: known states of fewer tokens than the shortest has, and of one text alone of any beginning."""
        ...


@dataclass(frozen=True)
class PackedBatch:
    """N texts in one row of T tokens.

    Args:
        input_ids: (1, T).
        position_ids: the place of each token in its text, from 0, (1, T).
        token_type_ids: (1, T), or None.
        tokens: where in the row the tokens of each text stand, right-padded with 0, (N, L).
        mask: 1 for real tokens of `tokens`, (N, L).
        segments: of the row; those of texts, then at most one of filler, which nobody sees.
        inserts: remembered states among its keys; a text that begins with them has 0 in `tokens` there.
        keeps: what is to be remembered of it.
        filler: tokens at the end that are of no text.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor | None
    tokens: Tensor
    mask: Tensor
    segments: tuple[Segment, ...]
    inserts: tuple[Insert, ...] = ()
    keeps: tuple[Keep, ...] = ()
    filler: int = 0

    @property
    def num_tokens(self) -> int:
        """Of texts, in the row."""
        return self.input_ids.shape[1] - self.filler

    def map(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        """The batch with each of its tensors changed: moved, pinned. Remembered states stay where the model left them."""
        types = None if self.token_type_ids is None else change(self.token_type_ids)
        return replace(
            self,
            input_ids=change(self.input_ids),
            position_ids=change(self.position_ids),
            token_type_ids=types,
            tokens=change(self.tokens),
            mask=change(self.mask),
        )

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on a device."""
        return self.map(lambda tensor: tensor.to(device))


def families(texts: Sequence[NDArray[np.int32]]) -> list[Family]:
    """Texts that begin alike, grouped where that saves the most tokens; a text of its own kind is a family of one with no prefix.

    Sorted by their ids, texts of a common beginning are neighbours; each joins the family before it as long as the family then saves more than without it.

    >>> families([np.arange(20), np.arange(100), np.array([7]), np.arange(30)])
    [Family(prefix=20, texts=[0, 3, 1]), Family(prefix=0, texts=[2])]
    """
    order = sorted(range(len(texts)), key=lambda i: texts[i].astype(">i4").tobytes())
    found: list[Family] = []
    current: list[int] = []
    prefix = saved = 0
    for i in order:
        common = common_beginning(texts[current[-1]], texts[i]) if current else 0
        shared = min(prefix, common) if len(current) > 1 else common
        if shared >= LEAST_PREFIX and len(current) * shared > saved:
            prefix, saved = shared, len(current) * shared
            current.append(i)
            continue
        if current:
            found.append(Family(prefix, current))
        current, prefix, saved = [i], 0, 0
    return [*found, Family(prefix, current)] if current else found


def common_beginning(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """Tokens that two texts begin with alike."""
    least = min(len(one), len(other))
    different = np.flatnonzero(one[:least] != other[:least])
    return int(different[0]) if len(different) else least


def tokens_read(texts: Sequence[NDArray[np.int32]]) -> int:
    """Tokens that some texts cost when they share their beginnings."""
    return sum(f.prefix + sum(len(texts[i]) - f.prefix for i in f.texts) for f in families(texts))


def packed_plan(
    table: TokenTable, rows: NDArray[np.int64], batch_tokens: int, *, share: bool
) -> list[NDArray[np.int64]]:
    """Batches of texts for scoring within a token budget, families together, those of long texts first; a family over the budget is cut, its prefix read again."""
    texts = [table.row(int(i)) for i in rows]
    alone = [Family(0, [i]) for i in range(len(texts))]
    parts: list[tuple[int, list[int]]] = []  # (tokens, texts)
    for family in families(texts) if share else alone:
        own = np.array([len(texts[i]) - family.prefix for i in family.texts], dtype=np.int64)
        for run in runs_within(own, max(1, batch_tokens - family.prefix)):
            parts.append((family.prefix + int(own[run].sum()), family.texts[run]))
    parts.sort(key=lambda part: -max(len(texts[i]) for i in part[1]))
    runs = runs_within(np.array([tokens for tokens, _ in parts], dtype=np.int64), batch_tokens)
    return [rows[np.concatenate([np.array(part, dtype=np.int64) for _, part in parts[run]])] for run in runs]


def pack(
    table: TokenTable,
    rows: NDArray[np.int64],
    *,
    share: bool,
    with_types: bool,
    memory: Memory | None = None,
) -> PackedBatch:
    """Some texts of a table as one row; with `share`, those that begin alike read their beginning once, and one in `memory` not at all."""
    texts = [table.row(int(i)) for i in rows]
    segments: list[Segment] = []
    stretches: list[tuple[int, int, int]] = []  # (text, first token in it, one past the last)
    places: list[tuple[Segment, int] | None] = [None] * len(texts)  # (where it ends, tokens of it that are remembered)
    inserts: list[Insert] = []
    keeps: list[Keep] = []
    end = shift = 0
    for family in families(texts) if share else [Family(0, [i]) for i in range(len(texts))]:
        first = end
        recall = memory.recall([texts[i] for i in family.texts], family.prefix) if memory is not None else Recall()
        known = 0
        if recall.known is not None:
            known = recall.known.length
            inserts.append(Insert(end - shift, recall.known))
            end, shift = end + known, shift + known
        if family.prefix > known:
            prefix = Segment(end, first + family.prefix, first, end, shift)
            end = _lay(segments, stretches, prefix, family.texts[0], known)
        begun = end - first
        for i in family.texts:
            segment = Segment(end, end + len(texts[i]) - begun, first, first + begun, shift)
            places[i] = segment, known
            if segment.stop > segment.start:
                end = _lay(segments, stretches, segment, i, begun)
        if recall.keep is not None:
            keeps.append(Keep(first, first + recall.keep.length, recall.keep))
    filler = row_length(end - shift) - (end - shift)
    if filler:
        segments.append(Segment(end, end + filler, end, end, shift))
    longest = max(map(len, texts))
    tokens = np.zeros((len(texts), longest), dtype=np.int64)
    for i, place in enumerate(places):
        assert place is not None
        segment, known = place
        tokens[i, known : segment.prefix] = np.arange(segment.prefix_start + known, segment.prefix_stop) - segment.shift
        tokens[i, segment.prefix : len(texts[i])] = np.arange(segment.start, segment.stop) - segment.shift
    lengths = np.array([len(text) for text in texts])
    types = None
    if with_types:
        second = table.second[np.asarray(rows, dtype=np.int64)]
        types = _row([(np.arange(a, b) >= second[i]).astype(np.int64) for i, a, b in stretches], filler)
    return PackedBatch(
        input_ids=_row([texts[i][a:b].astype(np.int64) for i, a, b in stretches], filler),
        position_ids=_row([np.arange(a, b) for _, a, b in stretches], filler),
        token_type_ids=types,
        tokens=torch.from_numpy(tokens),
        mask=torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int64)),
        segments=tuple(segments),
        inserts=tuple(inserts),
        keeps=tuple(keeps),
        filler=filler,
    )


def row_length(tokens: int) -> int:
    """Tokens of the row that holds so many: 1 % more on average.

    oneDNN, which multiplies matrices for torch on CPUs, prepares a program for every shape that it meets and keeps a thousand of them. Rows of ever new lengths make it prepare some
    for every batch, and the kept ones lie scattered in the heap, which grows by 1 MiB a batch (docs/design).

    >>> [row_length(tokens) for tokens in (1, 8, 250, 300, 1000, 4097)]
    [8, 8, 256, 304, 1008, 4224]
    """
    step = max(_STEP, 1 << max(0, tokens.bit_length() - 6))
    return -(-tokens // step) * step


def _lay(
    segments: list[Segment], stretches: list[tuple[int, int, int]], segment: Segment, text: int, first: int
) -> int:
    """Put one segment into the row: tokens of `text` from its token `first` on; returns where the row then ends."""
    segments.append(segment)
    stretches.append((text, first, first + segment.stop - segment.start))
    return segment.stop


def _row(parts: list[NDArray[np.int64]], filler: int) -> Tensor:
    return torch.from_numpy(np.concatenate([*parts, np.zeros(filler, dtype=np.int64)]))[None]
