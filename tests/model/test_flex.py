"""FlexAttention on packed rows: the same as segment by segment; which blocks it visits; on a GPU gradients and whole models too."""

import numpy as np
import pytest
import torch

from rewardsmith.model.attention import AttentionPlan, Rules, _fused, _SegmentAttention
from rewardsmith.model.flex import BLOCK, block_mask, extent, flexible, padded_length, visible_blocks
from rewardsmith.model.packing import Segment

# A prompt of 150 tokens that two answers share, a text alone, a short one and filler: prefixes and segments across the edges of blocks.
ROW = (
    Segment(0, 150),
    Segment(150, 300, 0, 150),
    Segment(300, 310, 0, 150),
    Segment(310, 600),
    Segment(600, 603),
    Segment(603, 608),
)
TOKENS = 608


def seen_by_pairs(segments, num_tokens, causal, window):
    """Whether each query sees each key, pair by pair."""
    seen = np.zeros((num_tokens, num_tokens), bool)
    for s in segments:
        for q in range(s.start, s.stop):
            keys = [*range(s.prefix_start, s.prefix_stop), *range(s.start, s.stop)]
            for place, k in enumerate(keys):
                own = s.prefix + q - s.start
                seen[q, k] = (place <= own or not causal) and (window is None or abs(own - place) < window)
    return seen


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 40), (False, None), (False, 70)])
def test_the_mask_shows_each_query_its_prefix_and_its_segment_and_nothing_else(causal, window):
    segments = ROW if causal else tuple(Segment(s.start, s.stop) for s in ROW)
    length = padded_length(TOKENS)
    assert length == 5 * BLOCK
    mask = block_mask(segments, length, causal=causal, window=window, device="cpu")
    q, k = torch.meshgrid(torch.arange(TOKENS), torch.arange(TOKENS), indexing="ij")
    zero = torch.zeros((), dtype=torch.long)
    assert np.array_equal(mask.mask_mod(zero, zero, q, k).numpy(), seen_by_pairs(segments, TOKENS, causal, window))


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 40), (False, None)])
def test_blocks_are_visited_where_something_is_seen_and_full_where_all_is(causal, window):
    segments = ROW if causal else tuple(Segment(s.start, s.stop) for s in ROW)
    length = padded_length(TOKENS)
    blocks = visible_blocks(extent(segments, length, causal=causal), window=window)
    filled = [*segments, Segment(TOKENS, length)]
    pairs = seen_by_pairs(filled, length, causal, window).reshape(5, BLOCK, 5, BLOCK).transpose(0, 2, 1, 3)
    some, every = pairs.any(axis=(2, 3)), pairs.all(axis=(2, 3))
    assert not (some & ~blocks.partial & ~blocks.full).any()  # nothing that is seen is passed over
    assert not (blocks.full & ~every).any()
    if window is None:
        assert np.array_equal(blocks.full, every) and np.array_equal(blocks.partial, some & ~every)
        assert blocks.full.any() and (~some).any()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")  # it compiles on GPUs
@pytest.mark.parametrize("window", [None, 40])
def test_flexible_attention_equals_attention_segment_by_segment(window):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(h, TOKENS, 16, dtype=torch.float64, generator=generator) for h in (4, 2, 2))
    plan = AttentionPlan(ROW)
    mask = plan.flexible_mask(TOKENS, causal=True, window=window, device=torch.device("cpu"))
    found = flexible(query, key, value, mask, scale=0.25)
    expected = _fused(query, key, value, Rules(plan, True, window, 0.25))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 40])
def test_gradients_on_a_gpu_equal_those_of_plain_products(window):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(h, TOKENS, 64, generator=generator) for h in (4, 2, 2)]
    weights = torch.randn(TOKENS, 4, 64, generator=generator).cuda()
    plan = AttentionPlan(ROW)

    def run(flex, dtype):
        own = [one.to("cuda", dtype).requires_grad_() for one in parts]
        if flex:
            mask = plan.flexible_mask(TOKENS, causal=True, window=window, device=torch.device("cuda"))
            out = flexible(*own, mask, scale=0.125)
        else:
            out = _SegmentAttention.apply(*own, Rules(AttentionPlan(ROW), True, window, 0.125))
        (out * weights.to(dtype)).sum().backward()
        return [out.detach().double(), *(one.grad.double() for one in own)]

    exact = run(False, torch.float64)
    for ours, plain, true in zip(run(True, torch.bfloat16), run(False, torch.bfloat16), exact, strict=True):
        scale = true.abs().max()
        assert (ours - true).abs().max() <= 2 * (plain - true).abs().max() + 1e-3 * scale
