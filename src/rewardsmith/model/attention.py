"""Attention inside the segments of a packed row, for every model of transformers that lets its attention function be chosen.

Segment by segment there is no padding, no mask of the whole row, and what is worked on stays in the processor's caches. The gradient is written as plain
matrix products: on CPUs torch's own fused backward takes two to four times as long (docs/benchmarks.md). Its formulas are those of FlashAttention (Dao et al.
2022, section 3.1 and appendix B.4) without the tiling: P = softmax(scale Q K^T), O = P V; dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(P dP)).

Legend: `H` heads of the queries, `K` heads of the keys (H / K queries share one), `T` tokens of the row, `D` numbers a head, `R` queries and `C` keys of a block.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rewardsmith.model.packing import Insert, Keep, Segment

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

NAME = "rewardsmith"
"""The attention implementation under which a model takes packed rows as well as padded batches."""
SEGMENTS = "rewardsmith_segments"
"""The keyword that carries a row's `AttentionPlan` through a model's forward to its attention."""
# A longer segment is worked on in blocks of so many queries: of a causal one the upper triangle is then mostly skipped.
QUERIES = 512
# Probabilities are kept for the backward while they take no more room than the rest of a layer's activations, about so many numbers a token per head size.
KEPT = 16


class Block(NamedTuple):
    """Queries of one segment and the keys that they may see: its prefix and its own tokens own_start:own_stop.

    Args:
        start, stop: rows of the queries.
        prefix_start, prefix_stop: rows of the prefix among the keys.
        own_start, own_stop: rows of the segment's own keys.
        offset: the place of the first query among the keys.
        masked: whether any of the keys is hidden from any query.
    """

    start: int
    stop: int
    prefix_start: int
    prefix_stop: int
    own_start: int
    own_stop: int
    offset: int
    masked: bool

    @property
    def columns(self) -> int:
        """How many keys."""
        return self.prefix_stop - self.prefix_start + self.own_stop - self.own_start


class AttentionPlan:
    """What the attention of all layers needs to know of one packed row; blocks and masks are made once and kept."""

    def __init__(
        self,
        segments: tuple[Segment, ...],
        inserts: tuple[Insert, ...] = (),
        keeps: tuple[Keep, ...] = (),
        *,
        first_tokens: Tensor | None = None,
    ) -> None:
        """Keep the segments; remembered states and what is to be remembered, for scores without gradients; the rows of first tokens, if only these are read (`last_layer`)."""
        self.segments, self.inserts, self.keeps = segments, inserts, keeps
        self.first_tokens = first_tokens
        self._blocks: dict[tuple[bool, int | None], list[Block]] = {}
        self._masks: dict[tuple[Any, ...], Tensor] = {}
        self._flexible: dict[tuple[bool, int | None], BlockMask] = {}

    @property
    def is_plain(self) -> bool:
        """Whether every key is of a token of the row and every token is a query."""
        return not self.inserts and not self.keeps and not any(segment.shift for segment in self.segments)

    def flexible_mask(self, num_tokens: int, *, causal: bool, window: int | None, device: torch.device) -> BlockMask:
        """The mask of a row of so many tokens for FlexAttention, filled up to whole blocks."""
        from rewardsmith.model.flex import block_mask, padded_length  # a second of imports that only GPUs need

        if (causal, window) not in self._flexible:
            self._flexible[causal, window] = block_mask(
                self.segments, padded_length(num_tokens), causal=causal, window=window, device=device
            )
        return self._flexible[causal, window]

    def with_states(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer with the remembered ones between them, (K, T, D) twice; what is to be remembered is copied."""
        if self.inserts:
            states = [insert.states.layers[layer] for insert in self.inserts]
            places = [insert.place for insert in self.inserts]
            key = _between(key, places, [one for one, _ in states])
            value = _between(value, places, [one for _, one in states])
        for keep in self.keeps:
            part = slice(keep.start, keep.stop)
            keep.states.layers[layer] = key[:, part].clone(), value[:, part].clone()
        return key, value

    def of_first_tokens(self) -> AttentionPlan:
        """The plan of a layer whose queries are the first tokens of the texts, in the order of their segments."""
        assert self.first_tokens is not None
        return _FirstTokens(self.segments[: len(self.first_tokens)])

    def blocks(self, *, causal: bool, window: int | None) -> list[Block]:
        """The blocks of a layer; `window`: a query sees keys that are less than so many tokens away."""
        if (causal, window) not in self._blocks:
            self._blocks[causal, window] = [
                block for segment in self.segments for block in _blocks_of(segment, causal=causal, window=window)
            ]
        return self._blocks[causal, window]

    def mask(self, block: Block, *, causal: bool, window: int | None, like: Tensor) -> Tensor | None:
        """0 where a query sees a key and minus infinity elsewhere, (R, C) of the type of `like`; None where all is seen."""
        if not block.masked:
            return None
        size = (block.stop - block.start, block.columns)
        key = (size, block.offset, causal, window, like.dtype)
        if key not in self._masks:
            hidden = torch.zeros(size, dtype=torch.bool, device=like.device)
            everything = torch.ones_like(hidden)
            if causal:
                hidden |= everything.triu(block.offset + 1)
            if window is not None:
                hidden |= everything.tril(block.offset - window) | everything.triu(block.offset + window)
            self._masks[key] = torch.zeros(size, dtype=like.dtype, device=like.device).masked_fill(hidden, -math.inf)
        return self._masks[key]


class _FirstTokens(AttentionPlan):
    """One query a segment, which sees all of it."""

    is_plain = False

    def blocks(self, *, causal: bool, window: int | None) -> list[Block]:
        """One block a segment."""
        assert not causal and window is None
        return [Block(i, i + 1, s.start, s.start, s.start, s.stop, 0, False) for i, s in enumerate(self.segments)]


def _between(rows: Tensor, places: list[int], others: list[Tensor]) -> Tensor:
    """Rows with each of the others before the row of its place, (K, T, D)."""
    parts, start = [], 0
    for place, other in zip(places, others, strict=True):
        parts += [rows[:, start:place], other]
        start = place
    return torch.cat([*parts, rows[:, start:]], 1)


def _blocks_of(segment: Segment, *, causal: bool, window: int | None) -> list[Block]:
    blocks = []
    for start in range(segment.start, segment.stop, QUERIES):
        stop = min(start + QUERIES, segment.stop)
        own_stop = stop if causal else segment.stop
        offset = segment.prefix + start - segment.start
        columns = segment.prefix + own_stop - segment.start
        # The two pairs that are furthest apart: the last query and the first key, and the first query and the last key.
        cut = window is not None and max(offset + stop - start, columns - offset) > window
        masked = cut or (causal and stop - start > 1)
        row = start - segment.shift, stop - segment.shift
        blocks.append(Block(*row, segment.prefix_start, segment.prefix_stop, segment.start, own_stop, offset, masked))
    return blocks


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function for `AttentionInterface`: (1, H, T, D), (1, K, T, D) twice -> (1, T, H, D) of a packed row.

    Without segments it is torch's own, for padded batches. Nothing is dropped out of a packed row.
    """
    plan = kwargs.pop(SEGMENTS, None)
    if plan is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    assert not dropout and kwargs.get("softcap") is None and kwargs.get("s_aux") is None, "no packed row for this model"
    causal = bool(getattr(module, "is_causal", False))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    keys, values = key[0], value[0]
    if plan.inserts or plan.keeps:
        keys, values = plan.with_states(module.layer_idx, keys, values)
    with torch.autocast(query.device.type, enabled=False):
        rules = Rules(plan, causal, sliding_window, scale)
        if query.device.type == "cuda" and query.dtype != torch.float64 and plan.is_plain:
            from rewardsmith.model.flex import flexible

            mask = plan.flexible_mask(query.shape[2], causal=causal, window=sliding_window, device=query.device)
            return flexible(query[0], keys, values, mask, scale=scale)[None], None
        if torch.is_grad_enabled() or query.dtype in (torch.bfloat16, torch.float16):
            return _SegmentAttention.apply(query[0], keys, values, rules)[None], None
        return _fused(query[0], keys, values, rules)[None], None


class Rules(NamedTuple):
    """What a layer asks of its attention: see `AttentionPlan`; logits are scaled by `scale`."""

    plan: AttentionPlan
    causal: bool
    window: int | None
    scale: float

    def blocks(self) -> list[Block]:
        """The layer's blocks."""
        return self.plan.blocks(causal=self.causal, window=self.window)

    def mask(self, block: Block, like: Tensor) -> Tensor | None:
        """A block's mask."""
        return self.plan.mask(block, causal=self.causal, window=self.window, like=like)


def _fused(query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
    """Scores alone, in float32 or float64: torch's fused kernel, whose sums are of the full type, block by block; (H, T, D) -> (T, H, D)."""
    outputs = torch.empty(query.shape[1], query.shape[0], query.shape[2], dtype=query.dtype, device=query.device)
    for block in rules.blocks():
        outputs[block.start : block.stop] = torch.nn.functional.scaled_dot_product_attention(
            query[None, :, block.start : block.stop],
            _keys_of(key, block)[None],
            _keys_of(value, block)[None],
            attn_mask=rules.mask(block, query),
            scale=rules.scale,
            enable_gqa=query.shape[0] != key.shape[0],
        )[0].transpose(0, 1)
    return outputs


class _SegmentAttention(torch.autograd.Function):
    """Attention by plain matrix products, forward and backward; (H, T, D), (K, T, D) twice -> (T, H, D)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        outputs = torch.empty(query.shape[1], query.shape[0], query.shape[2], dtype=query.dtype, device=query.device)
        room = KEPT * query.shape[2] * query.shape[1]
        blocks = rules.blocks()
        keep = any(ctx.needs_input_grad) and sum((b.stop - b.start) * b.columns for b in blocks) <= room
        kept = []
        for block in blocks:
            probabilities = _probabilities(query, key, block, rules)
            if keep:
                kept.append(probabilities)
            part = torch.bmm(probabilities, _keys_of(value, block))  # (K, H / K x R, D)
            outputs[block.start : block.stop] = _as_heads(part, query, block).transpose(0, 1)
        ctx.rules = rules
        ctx.save_for_backward(query, key, value, *kept)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, *kept = ctx.saved_tensors
        rules: Rules = ctx.rules
        gradient = gradient.transpose(0, 1)  # (T, H, D) -> (H, T, D)
        of_query = torch.empty_like(query)
        blocks = rules.blocks()
        # Keys that several blocks look at sum up their gradients, and in no less than float32; keys that none looks at have none.
        alone = not any(b.prefix_stop > b.prefix_start or b.start > b.own_start for b in blocks)
        sums = query.dtype if alone else torch.promote_types(query.dtype, torch.float32)
        of_key, of_value = torch.zeros_like(key, dtype=sums), torch.zeros_like(value, dtype=sums)
        for i, block in enumerate(blocks):
            probabilities = kept[i] if kept else _probabilities(query, key, block, rules)
            incoming = _queries_of(gradient, key.shape[0], block)
            _put(of_value, torch.bmm(probabilities.transpose(1, 2), incoming), block, alone=alone)
            logits = torch._softmax_backward_data(
                torch.bmm(incoming, _keys_of(value, block).transpose(1, 2)), probabilities, -1, probabilities.dtype
            )
            logits *= rules.scale
            part = torch.bmm(logits, _keys_of(key, block))
            of_query[:, block.start : block.stop] = _as_heads(part, query, block)
            queries = _queries_of(query, key.shape[0], block)
            _put(of_key, torch.bmm(logits.transpose(1, 2), queries), block, alone=alone)
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None


def _probabilities(query: Tensor, key: Tensor, block: Block, rules: Rules) -> Tensor:
    """softmax(scale Q K^T) of a block, (K, H / K x R, C)."""
    queries, keys = _queries_of(query, key.shape[0], block), _keys_of(key, block).transpose(1, 2)
    mask = rules.mask(block, query)
    if mask is None:
        # With beta = 0 the first argument is never read: the scale is part of the product, and the logits are rounded once.
        logits = torch.baddbmm(query.new_empty(1, 1, 1), queries, keys, beta=0, alpha=rules.scale)
    else:
        shared = queries.shape[1] // len(mask)
        logits = torch.baddbmm(mask.repeat(shared, 1), queries, keys, alpha=rules.scale)
    return torch.softmax(logits, -1)


def _queries_of(tensor: Tensor, key_heads: int, block: Block) -> Tensor:
    """Rows of a block with the queries of one key's heads under each other, (H, T, D) -> (K, H / K x R, D)."""
    return tensor[:, block.start : block.stop].reshape(key_heads, -1, tensor.shape[2])


def _as_heads(part: Tensor, query: Tensor, block: Block) -> Tensor:
    """The way back, (K, H / K x R, D) -> (H, R, D)."""
    return part.view(query.shape[0], block.stop - block.start, query.shape[2])


def _keys_of(tensor: Tensor, block: Block) -> Tensor:
    """The rows of the keys of a block, (K, T, D) -> (K, C, D)."""
    if block.prefix_stop in (block.prefix_start, block.own_start):
        first = block.own_start - (block.prefix_stop - block.prefix_start)
        return tensor[:, first : block.own_stop]
    return torch.cat(
        [tensor[:, block.prefix_start : block.prefix_stop], tensor[:, block.own_start : block.own_stop]], 1
    )


def _put(gradients: Tensor, part: Tensor, block: Block, *, alone: bool) -> None:
    """Add the gradient of a block's keys, (K, C, D), to that of the row."""
    if alone:
        gradients[:, block.own_start : block.own_stop] = part
        return
    prefix = block.prefix_stop - block.prefix_start
    gradients[:, block.prefix_start : block.prefix_stop] += part[:, :prefix]
    gradients[:, block.own_start : block.own_stop] += part[:, prefix:]


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
