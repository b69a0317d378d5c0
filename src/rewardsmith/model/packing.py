"""Texts end to end in one row, without padding; texts that begin alike read their beginning once. Plain integers first, then tensors.

A row is a chain of segments. A segment stands alone, or goes on from a *prefix*: a stretch of the same row that several texts begin with. Its tokens see the
prefix and themselves, never another segment, and their positions go on from the prefix: what every token computes is what it would compute in its text alone.
Prefixes are for models that read left to right, where nothing after the prefix can change it.

Legend: `N` texts, `T` tokens of the row, `L` tokens of the longest text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewardsmith.model.batching import runs_within
from rewardsmith.model.render import TokenTable

# A shorter common beginning is not worth the copies of its keys.
LEAST_PREFIX = 8


class Segment(NamedTuple):
    """Tokens start:stop of a row, which go on from its tokens prefix_start:prefix_stop (none where both are equal)."""

    start: int
    stop: int
    prefix_start: int = 0
    prefix_stop: int = 0

    @property
    def prefix(self) -> int:
        """Tokens of the prefix."""
        return self.prefix_stop - self.prefix_start


class Family(NamedTuple):
    """Texts (by number) whose first `prefix` tokens are equal and read once."""

    prefix: int
    texts: list[int]


@dataclass(frozen=True)
class PackedBatch:
    """N texts in one row of T tokens.

    Args:
        input_ids: (1, T).
        position_ids: the place of each token in its text, from 0, (1, T).
        token_type_ids: (1, T), or None.
        tokens: where in the row the tokens of each text stand, right-padded with 0, (N, L).
        mask: 1 for real tokens of `tokens`, (N, L).
        segments: of the row.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor | None
    tokens: Tensor
    mask: Tensor
    segments: tuple[Segment, ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        """The batch with each of its tensors changed: moved, pinned."""
        types = None if self.token_type_ids is None else change(self.token_type_ids)
        return PackedBatch(
            change(self.input_ids),
            change(self.position_ids),
            types,
            change(self.tokens),
            change(self.mask),
            self.segments,
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
        common = _common(texts[current[-1]], texts[i]) if current else 0
        shared = min(prefix, common) if len(current) > 1 else common
        if shared >= LEAST_PREFIX and len(current) * shared > saved:
            prefix, saved = shared, len(current) * shared
            current.append(i)
            continue
        if current:
            found.append(Family(prefix, current))
        current, prefix, saved = [i], 0, 0
    return [*found, Family(prefix, current)] if current else found


def _common(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
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


def pack(table: TokenTable, rows: NDArray[np.int64], *, share: bool, with_types: bool) -> PackedBatch:
    """Some texts of a table as one row; with `share`, those that begin alike read their beginning once."""
    texts = [table.row(int(i)) for i in rows]
    segments: list[Segment] = []
    stretches: list[tuple[int, int, int]] = []  # (text, first token in it, one past the last)
    places: list[Segment | None] = [None] * len(texts)
    end = 0
    for family in families(texts) if share else [Family(0, [i]) for i in range(len(texts))]:
        first = end
        if family.prefix:
            end = _lay(segments, stretches, Segment(end, end + family.prefix), family.texts[0], 0)
        for i in family.texts:
            segment = Segment(end, end + len(texts[i]) - family.prefix, first, first + family.prefix)
            places[i] = segment
            if segment.stop > segment.start:
                end = _lay(segments, stretches, segment, i, family.prefix)
    longest = max(map(len, texts))
    tokens = np.zeros((len(texts), longest), dtype=np.int64)
    for i, place in enumerate(places):
        assert place is not None
        tokens[i, : place.prefix] = np.arange(place.prefix_start, place.prefix_stop)
        tokens[i, place.prefix : len(texts[i])] = np.arange(place.start, place.stop)
    lengths = np.array([len(text) for text in texts])
    types = None
    if with_types:
        second = table.second[np.asarray(rows, dtype=np.int64)]
        types = _row([(np.arange(a, b) >= second[i]).astype(np.int64) for i, a, b in stretches])
    return PackedBatch(
        input_ids=_row([texts[i][a:b].astype(np.int64) for i, a, b in stretches]),
        position_ids=_row([np.arange(a, b) for _, a, b in stretches]),
        token_type_ids=types,
        tokens=torch.from_numpy(tokens),
        mask=torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int64)),
        segments=tuple(segments),
    )


def _lay(
    segments: list[Segment], stretches: list[tuple[int, int, int]], segment: Segment, text: int, first: int
) -> int:
    """Put one segment into the row: tokens of `text` from its token `first` on; returns where the row then ends."""
    segments.append(segment)
    stretches.append((text, first, first + segment.stop - segment.start))
    return segment.stop


def _row(parts: list[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))[None]
