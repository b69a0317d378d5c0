"""Attention inside the segments of a packed row on GPUs: torch's FlexAttention, which skips the blocks of keys that no query of a block may see.

The compiled kernel computes in tiles and keeps no probabilities. Which blocks it visits is worked out here in plain integers, one row at a time: torch's own
`create_block_mask` would look at every pair of tokens.

Legend: `H` heads of the queries, `K` heads of the keys, `T` tokens of the row, `D` numbers a head, `Q` blocks of 128 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from rewardsmith.model.packing import Segment

BLOCK = 128
"""Tokens of a block, the size that FlexAttention's kernels are tuned for."""


class VisibleBlocks(NamedTuple):
    """Which blocks of keys the queries of each block look at.

    Args:
        partial: some queries see some of the keys, (Q, Q) bool.
        full: every query sees every key, (Q, Q) bool; these are not partial.
    """

    partial: NDArray[np.bool_]
    full: NDArray[np.bool_]


class Extent(NamedTuple):
    """What each token of a row may see, by its place: the keys prefix_start:prefix_stop, and own_start:own_stop. Each (T,) int64."""

    prefix_start: NDArray[np.int64]
    prefix_stop: NDArray[np.int64]
    own_start: NDArray[np.int64]
    own_stop: NDArray[np.int64]


def padded_length(num_tokens: int) -> int:
    """The next multiple of a block."""
    return -(-num_tokens // BLOCK) * BLOCK


def extent(segments: Sequence[Segment], num_tokens: int, *, causal: bool) -> Extent:
    """What each token sees of the row, without a window; tokens after the last segment are one more segment, which nobody else sees.

    Args:
        segments: of the row, in order, without remembered keys among them.
        num_tokens: of the row with what is padded to whole blocks.
        causal: a token sees nothing after itself.

    >>> seen = extent([Segment(0, 2), Segment(2, 4, 0, 2)], 4, causal=True)
    >>> seen.prefix_stop.tolist(), seen.own_start.tolist(), seen.own_stop.tolist()
    ([0, 0, 2, 2], [0, 0, 2, 2], [1, 2, 3, 4])
    """
    last = segments[-1].stop if segments else 0
    parts = [*segments, Segment(last, num_tokens)] if last < num_tokens else list(segments)
    lengths = [segment.stop - segment.start for segment in parts]
    columns = [(s.prefix_start, s.prefix_stop, s.start, s.stop) for s in parts]
    prefix_start, prefix_stop, own_start, own_stop = np.repeat(np.array(columns, np.int64), lengths, axis=0).T
    return Extent(prefix_start, prefix_stop, own_start, np.arange(1, num_tokens + 1) if causal else own_stop)


def visible_blocks(seen: Extent, *, window: int | None) -> VisibleBlocks:
    """The blocks that attention has to visit.

    Args:
        seen: of each token; as many tokens as fill whole blocks.
        window: a query sees keys that are less than so many tokens away; it is left to the mask of the tokens, so that no block is full.
    """
    num_tokens = len(seen.own_start)
    starts = np.arange(0, num_tokens, BLOCK)
    # Within a block the tokens of one segment see stretches with equal starts and rising ends: the first and the last token stand for them all.
    changes = np.flatnonzero(np.diff(seen.own_start) != 0) + 1
    first = np.union1d(starts, changes)  # of each piece of a segment in a block
    last = np.append(first[1:], num_tokens) - 1
    touched = np.zeros((len(first), len(starts)), np.bool_)
    covered = np.zeros_like(touched)
    for start, stop in ((seen.prefix_start, seen.prefix_stop), (seen.own_start, seen.own_stop)):
        begin, least, most = start[first, None], stop[first, None], stop[last, None]
        touched |= (begin < starts + BLOCK) & (most > starts) & (most > begin)
        covered |= (begin <= starts) & (least >= starts + BLOCK)
    of_block = np.searchsorted(first, starts)
    full = np.logical_and.reduceat(covered, of_block, axis=0) & (window is None)
    return VisibleBlocks(np.logical_or.reduceat(touched, of_block, axis=0) & ~full, full)


def block_mask(
    segments: Sequence[Segment], num_tokens: int, *, causal: bool, window: int | None, device: Any
) -> BlockMask:
    """The mask of a row for FlexAttention, `num_tokens` being whole blocks."""
    seen = extent(segments, num_tokens, causal=causal)
    blocks = visible_blocks(seen, window=window)
    prefix_start, prefix_stop, own_start, own_stop = (torch.from_numpy(one).to(device) for one in seen)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_prefix = (key >= prefix_start[query]) & (key < prefix_stop[query])
        in_own = (key >= own_start[query]) & (key < own_stop[query])
        if window is None:
            return in_prefix | in_own
        # Places in the text: those of a segment go on from its prefix.
        place = prefix_stop[query] - prefix_start[query] + query - own_start[query]
        of_prefix = place - (key - prefix_start[query])
        of_own = (query - key).abs()
        return (in_prefix & (of_prefix < window)) | (in_own & (of_own < window))

    return BlockMask.from_kv_blocks(
        *_listed(blocks.partial, device),
        *_listed(blocks.full, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(num_tokens, num_tokens),
    )


def _listed(visited: NDArray[np.bool_], device: Any) -> tuple[Tensor, Tensor]:
    """How many blocks each row of blocks visits, (1, 1, Q), and which, the visited first, (1, 1, Q, Q); int32."""
    order = np.argsort(~visited, axis=1, kind="stable").astype(np.int32)
    counts = visited.sum(axis=1, dtype=np.int32)
    return torch.from_numpy(counts)[None, None].to(device), torch.from_numpy(order)[None, None].to(device)


@cache
def _compiled() -> Callable[..., Any]:
    """One kernel for rows of all lengths: compiled at the first call."""
    return torch.compile(flex_attention, dynamic=True)


def flexible(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, *, scale: float) -> Tensor:
    """Attention of a packed row by its mask, (H, T, D), (K, T, D) twice -> (T, H, D); the row is filled up to whole blocks and cut again."""
    num_tokens = query.shape[1]
    missing = mask.seq_lengths[0] - num_tokens
    if missing:
        query, key, value = (torch.nn.functional.pad(one, (0, 0, 0, missing)) for one in (query, key, value))
    attend = _compiled() if query.device.type == "cuda" else flex_attention
    found = attend(
        query[None], key[None], value[None], block_mask=mask, scale=scale, enable_gqa=query.shape[0] != key.shape[0]
    )
    return found[0, :, :num_tokens].transpose(0, 1)
