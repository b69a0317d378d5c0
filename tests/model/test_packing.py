"""Rows without padding, in plain integers: every text is whole, every shared beginning is read once, no budget is passed."""

import numpy as np
import pytest

from rewardsmith.model.packing import (
    LEAST_PREFIX,
    Family,
    Segment,
    families,
    pack,
    packed_plan,
    row_length,
    tokens_read,
)
from rewardsmith.model.render import TokenTable


def table_of(texts, seconds=None):
    lengths = np.array([len(text) for text in texts])
    zeros = np.zeros(len(texts), np.int32)
    second = lengths if seconds is None else np.array(seconds)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return TokenTable(np.concatenate(texts).astype(np.int32), starts, second.astype(np.int32), zeros, zeros, zeros)


def arrays(*texts):
    return [np.array(text, dtype=np.int32) for text in texts]


PROMPT = list(range(100, 110))  # ten tokens, more than the least prefix
TEXTS = arrays([*PROMPT, 1, 2], [7, 8], [*PROMPT, 3], [*PROMPT, 1, 2], PROMPT)


def test_texts_that_begin_alike_are_a_family():
    assert LEAST_PREFIX <= len(PROMPT)
    assert families(TEXTS) == [Family(0, [1]), Family(10, [4, 0, 3, 2])]


def test_a_text_joins_a_family_only_where_that_saves_tokens():
    """Two texts share 30 tokens: 30 saved. A third shares 12 with both: together 2 x 12 = 24 would be saved, so it stays alone."""
    long = list(range(30))
    texts = arrays([*long, 1], [*long, 2], [*long[:12], 99])
    assert families(texts) == [Family(30, [0, 1]), Family(0, [2])]
    # With 16 in common it is 2 x 16 = 32 > 30.
    texts[2] = np.array([*long[:16], 99], dtype=np.int32)
    assert families(texts) == [Family(16, [0, 1, 2])]


def test_beginnings_shorter_than_the_least_are_read_again():
    few = list(range(LEAST_PREFIX - 1))
    assert families(arrays([*few, 50], [*few, 51])) == [Family(0, [0]), Family(0, [1])]


def test_tokens_read_counts_a_shared_beginning_once():
    # The prompt, then 2 + 1 + 2 + 0 tokens of answers; the other text alone.
    assert tokens_read(TEXTS) == 10 + (2 + 1 + 2 + 0) + 2
    # K (P + R) / (P + K R), the ceiling of the issue, for K = 4, P = 40, R = 10: 200 / 80.
    group = arrays(*[[*range(40), *range(100 * k, 100 * k + 10)] for k in range(1, 5)])
    assert sum(map(len, group)) / tokens_read(group) == 200 / 80


@pytest.mark.parametrize("share", [False, True])
def test_a_packed_row_holds_every_text_at_its_own_positions(share):
    table = table_of(TEXTS)
    rows = np.array([3, 1, 0, 4, 2])
    batch = pack(table, rows, share=share, with_types=False)
    assert batch.input_ids.shape[1] == (24 if share else 48)  # 17 and 47 tokens, up to the next multiple of 8
    assert batch.num_tokens == (17 if share else 47)
    for place, row in enumerate(rows):
        at = batch.tokens[place][batch.mask[place] == 1]
        assert batch.input_ids[0, at].tolist() == TEXTS[row].tolist()
        assert batch.position_ids[0, at].tolist() == list(range(len(TEXTS[row])))


def test_every_token_stands_in_one_segment_and_every_prefix_before_what_goes_on_from_it():
    batch = pack(table_of(TEXTS), np.arange(5), share=True, with_types=False)
    covered = [token for segment in batch.segments for token in range(segment.start, segment.stop)]
    assert covered == list(range(24))
    alone, prompt, *answers, filler = batch.segments
    assert (filler.stop - filler.start, filler.prefix) == (24 - 17, 0)
    assert (alone, prompt) == (Segment(0, 2), Segment(2, 12, 2, 2))
    assert [(a.prefix_start, a.prefix_stop) for a in answers] == [(2, 12)] * 3  # the text that is all prompt needs none
    assert [a.stop - a.start for a in answers] == [2, 2, 1]


def test_token_types_follow_the_text():
    table = table_of(arrays([5, 6, 7], [8, 9]), seconds=[1, 2])
    batch = pack(table, np.array([1, 0]), share=False, with_types=True)
    assert batch.input_ids.tolist() == [[8, 9, 5, 6, 7, 0, 0, 0]]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]]


def test_rows_come_in_few_lengths_and_little_of_them_is_filler():
    lengths = {row_length(tokens) for tokens in range(1, 8193)}
    assert len(lengths) < 200 and all(row_length(length) == length for length in lengths)
    # A thirty-second at the most from 256 tokens on, seven tokens below.
    assert all(0 <= row_length(t) - t <= max(7, t / 32) for t in range(1, 8193))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("budget", [1, 15, 40, 10_000])
def test_a_plan_holds_each_text_once_and_keeps_its_budget(share, budget):
    rng = np.random.default_rng(0)
    texts = [np.concatenate([np.full(12, k % 9), rng.integers(0, 50, rng.integers(1, 20))]) for k in range(80)]
    table = table_of(arrays(*texts))
    rows = np.arange(5, 80)
    plan = packed_plan(table, rows, budget, share=share)
    assert sorted(np.concatenate(plan).tolist()) == rows.tolist()
    for part in plan:
        read = pack(table, part, share=share, with_types=False).num_tokens
        assert read <= budget or len(part) == 1
    if share and budget == 10_000:
        # 75 texts of 9 kinds: but for nine times, the 12 tokens that they begin with are saved at the least.
        assert sum(pack(table, p, share=True, with_types=False).num_tokens for p in plan) <= (
            table.lengths[rows].sum() - (75 - 9) * 12
        )
