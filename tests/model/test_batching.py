"""Plans in plain integers."""

import gzip
import json

import numpy as np
import pytest

from rewardsmith.model.batching import (
    WINDOW_BATCHES,
    collate,
    like_lengths,
    runs_within,
    scoring_plan,
    training_order,
)
from rewardsmith.model.network import load_tokenizer
from rewardsmith.model.render import Renderer, RenderSpec
from tests.conftest import DATA


def test_a_scoring_plan_holds_each_text_once_within_its_budget():
    lengths = np.random.default_rng(0).integers(3, 512, size=1000)
    plan = scoring_plan(lengths, 4096)
    assert sorted(np.concatenate(plan).tolist()) == list(range(1000))
    assert all(len(batch) * lengths[batch].max() <= 4096 for batch in plan)


def test_a_text_longer_than_the_budget_goes_alone():
    assert [batch.tolist() for batch in scoring_plan(np.array([9, 100, 9]), 18)] == [[1], [0, 2]]


def test_the_training_order_is_a_seeded_permutation_with_like_lengths_together():
    lengths = np.random.default_rng(0).integers(3, 512, size=4003)
    order = training_order(lengths, 4, seed=1, epoch=0)
    assert sorted(order.tolist()) == list(range(4003))
    assert order.tolist() == training_order(lengths, 4, seed=1, epoch=0).tolist()
    assert order.tolist() != training_order(lengths, 4, seed=1, epoch=1).tolist()
    assert order.tolist() != training_order(lengths, 4, seed=2, epoch=0).tolist()
    batches = lengths[order[:4000]].reshape(-1, 4)
    padded = batches.max(axis=1).sum() * 4
    assert padded / batches.sum() < 1.05  # random batches of four would pad by more than half
    # Batches are shuffled again: the sorted windows do not show in the order of training.
    firsts = batches.mean(axis=1)[:WINDOW_BATCHES]
    assert abs(np.corrcoef(np.arange(len(firsts)), firsts)[0, 1]) < 0.4


def test_collate_pads_right_and_marks_real_tokens(tiny):
    renderer = Renderer(load_tokenizer(tiny("bert")), RenderSpec(encoding="pair", max_length=64))
    table = renderer.encode([("say hi", "Hi!"), ("say hi", "Good morning to you all!")])
    batch = collate(table, [0, 1], pad_id=0, with_types=True)
    short, long = table.lengths.tolist()
    assert batch.input_ids.shape == (2, long)
    assert batch.attention_mask.sum(dim=1).tolist() == [short, long]
    assert batch.input_ids[0, short:].tolist() == [0] * (long - short)
    assert batch.token_type_ids[0].tolist() == [int(table.second[0] <= t < short) for t in range(long)]


def test_an_order_without_sorting_is_a_plain_shuffle_whatever_the_lengths():
    lengths = np.random.default_rng(0).integers(3, 512, size=103)
    order = training_order(lengths, 8, seed=3, epoch=1, sort=False)
    assert sorted(order.tolist()) == list(range(103))
    assert order.tolist() == training_order(lengths[::-1], 8, seed=3, epoch=1, sort=False).tolist()
    assert order.tolist() != training_order(lengths, 8, seed=3, epoch=2, sort=False).tolist()


@pytest.mark.parametrize("sort", [False, True])
def test_ranks_get_even_shares_of_every_step_and_no_example_changes_its_step(sort):
    lengths = np.random.default_rng(0).integers(3, 512, size=1000)
    alone = training_order(lengths, 16, seed=1, epoch=0, sort=sort)
    dealt = training_order(lengths, 4, seed=1, epoch=0, sort=sort, ranks=4)
    steps, shares = alone[:992].reshape(-1, 16), dealt[:992].reshape(-1, 4, 4)
    if not sort:  # windows of like length are as long as a step of all ranks, so sorted steps are the same, too, but in another order
        assert [sorted(step) for step in steps.tolist()] == [sorted(sum(hands, [])) for hands in shares.tolist()]
    tokens = lengths[shares].sum(axis=2)  # (steps, ranks)
    uneven = (tokens.max(axis=1) / tokens.mean(axis=1)).mean()
    assert uneven < (1.05 if sort else 1.1)
    dice = lengths[alone[:992].reshape(-1, 4, 4)].sum(axis=2)
    assert sort or uneven < (dice.max(axis=1) / dice.mean(axis=1)).mean() - 0.1


def test_runs_keep_their_budget_and_their_order():
    costs = np.random.default_rng(0).integers(1, 60, size=200)
    runs = runs_within(costs, 100)
    assert [i for run in runs for i in range(200)[run]] == list(range(200))
    assert all(costs[run].sum() <= 100 for run in runs)
    # No run could have taken the first of the next.
    assert all(costs[a].sum() + costs[b][0] > 100 for a, b in zip(runs, runs[1:], strict=False))
    assert runs_within(np.zeros(0, np.int64), 5) == []


def test_texts_padded_together_grow_by_at_most_a_twentieth():
    lengths = np.random.default_rng(0).integers(3, 512, size=64)
    parts = like_lengths(lengths)
    assert sorted(np.concatenate(parts).tolist()) == list(range(64))
    assert all(len(part) * lengths[part].max() <= 1.05 * lengths[part].sum() for part in parts)
    assert len(like_lengths(np.full(64, 100))) == 1


@pytest.mark.skipif(not (DATA / "rmb_train.jsonl.gz").is_file(), reason="the shared data is not there")
def test_padding_is_under_a_twentieth_of_the_tokens_of_rmb_train():
    """Words stand for tokens here, cut at 350: their lengths are spread alike. Sorting pairs alone would pad a seventh, for sides are of unlike length."""
    with gzip.open(DATA / "rmb_train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    words = np.array(
        [[len(str(row["prompt"]).split()) + len(row[side].split()) for side in ("chosen", "rejected")] for row in rows]
    )
    lengths = words.clip(1, 350)
    order = training_order(lengths.max(axis=1), 16, seed=0, epoch=0)
    steps = np.split(lengths[order].reshape(-1), range(32, 2 * len(order), 32))
    padded = sum(len(part) * step[part].max() for step in steps for part in like_lengths(step))
    assert 1 - lengths.sum() / padded < 0.05
    naive = sum(len(step) * step.max() for step in steps)
    assert 1 - lengths.sum() / naive > 0.10
