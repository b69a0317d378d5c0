"""The table of training examples: answers end to end, labels beside them, and batches that hold what their examples hold."""

import math

import numpy as np
import pytest

from rewardsmith.config import LossSettings
from rewardsmith.data.schema import Group, Preference
from rewardsmith.model.batching_choice import PADDED, BatchingChoice
from rewardsmith.model.examples import (
    ExampleCollator,
    ExampleRows,
    ExampleTable,
    columns_in_use,
    example_table,
)
from rewardsmith.model.network import load_tokenizer
from rewardsmith.model.packing import PackedBatch
from rewardsmith.model.render import Renderer, RenderSpec, TokenTable


def table_of(texts, sizes, better, *, cut=(), **labels):
    """A table of given token ids; `cut` lists the answers of which something was cut."""
    lengths = np.array([len(text) for text in texts])
    zeros = np.zeros(len(texts), np.int32)
    answer_cut = np.array([int(i in cut) for i in range(len(texts))], np.int32)
    tokens = TokenTable(
        np.concatenate(texts).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        lengths.astype(np.int32),
        zeros,
        answer_cut,
        zeros,
    )
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    names = [f"e{i}" for i in range(len(sizes))]
    return ExampleTable(names, tokens, starts, labels, np.array(better, dtype=np.int64).reshape(-1, 2))


@pytest.fixture
def mixed():
    """A pair (answers 0, 1), a list of three (2, 3, 4), one rated answer (5), a pair of equal answers (6, 7)."""
    return table_of(
        [[1, 2], [1, 3, 4], [5], [5, 6], [5, 6, 7, 8], [9], [4, 4], [4, 4]],
        [2, 3, 1, 2],
        [(0, 1), (2, 3), (2, 4), (3, 4), (6, 7)],
        cut=(3, 7),
        weight=np.array([1, 2, 3, 4], np.float32),
        rating=np.arange(8, dtype=np.float32)[:, None],
    )


def test_sizes_and_longest_answers(mixed):
    assert mixed.sizes.tolist() == [2, 3, 1, 2]
    assert mixed.longest.tolist() == [3, 4, 1, 2]


def test_answers_follow_the_order_of_the_examples_asked_for(mixed):
    assert mixed.answers_of(np.array([3, 0])).tolist() == [6, 7, 0, 1]
    assert mixed.answers_of(np.array([2, 1])).tolist() == [5, 2, 3, 4]
    assert mixed.answers_of(np.array([], dtype=np.int64)).tolist() == []


def test_comparisons_are_counted_among_the_answers_asked_for(mixed):
    # Answers in the order 5, 2, 3, 4: the list's are at places 1, 2, 3.
    assert mixed.comparisons_of(np.array([2, 1])).tolist() == [[1, 2], [1, 3], [2, 3]]
    # In the order 6, 7, 0, 1: the first pair's answers are at places 2 and 3.
    assert sorted(mixed.comparisons_of(np.array([3, 0])).tolist()) == [[0, 1], [2, 3]]
    assert mixed.comparisons_of(np.array([2])).tolist() == []


def test_labels_go_by_example_and_ratings_by_answer(mixed):
    labels = mixed.labels_of(np.array([3, 1]))
    assert labels.sizes.tolist() == [2, 3] and labels.weight.tolist() == [4, 2]
    assert labels.rating[:, 0].tolist() == [6, 7, 2, 3, 4]
    assert labels.margin is labels.share is labels.tie is labels.votes is None


def test_taking_examples_takes_all_that_is_theirs(mixed):
    taken = mixed.take(np.array([3, 1]))
    assert (taken.ids, taken.starts.tolist()) == (["e3", "e1"], [0, 2, 5])
    assert [taken.tokens.row(i).tolist() for i in range(5)] == [[4, 4], [4, 4], [5], [5, 6], [5, 6, 7, 8]]
    assert taken.labels["weight"].tolist() == [4, 2] and taken.labels["rating"][:, 0].tolist() == [6, 7, 2, 3, 4]
    assert sorted(taken.better.tolist()) == [[0, 1], [2, 3], [2, 4], [3, 4]]
    # The same again from the smaller table: only the list, at the front.
    assert taken.take(np.array([1])).better.tolist() == [[0, 1], [0, 2], [1, 2]]


def test_collapsed_examples_are_those_without_a_difference(mixed):
    """One answer alone has nothing to be told apart from."""
    assert mixed.collapsed().tolist() == [False, False, False, True]
    # Two of three equal answers still leave a comparison.
    assert table_of([[1], [1], [2]], [3], [(0, 2)]).collapsed().tolist() == [False]


def test_over_length_examples_are_those_with_a_cut_answer(mixed):
    assert mixed.over_length().tolist() == [False, True, False, True]


@pytest.fixture(scope="module")
def renderer(tiny):
    return Renderer(load_tokenizer(tiny("bert")), RenderSpec("text", max_length=64))


def pair(number, **labels):
    return Preference(f"p{number}", f"q{number}", f"yes {number}", f"no {number}", **labels)


def built(examples, renderer, **loss):
    return example_table(examples, renderer, LossSettings(**loss), cache=None)[0]


def test_pairs_stand_chosen_first_and_ties_compare_nothing(renderer):
    table = built([pair(0), pair(1, tie=True), pair(2)], renderer, name="davidson")
    expected = renderer.encode([("q0", "yes 0"), ("q0", "no 0"), ("q1", "yes 1"), ("q1", "no 1"), ("q2", "yes 2")])
    assert [table.tokens.row(i).tolist() for i in range(5)] == [expected.row(i).tolist() for i in range(5)]
    assert table.better.tolist() == [[0, 1], [4, 5]]
    assert table.labels["tie"].tolist() == [False, True, False]


def test_rows_without_a_label_get_its_neutral_value(renderer):
    rows = [pair(0, margin=2.0), pair(1, weight=0.5), pair(2, votes=(3, 1)), pair(3, votes=(0, 2))]
    labels = built(rows, renderer).labels
    assert labels["margin"].tolist() == [2, 0, 0, 0]
    assert labels["weight"].tolist() == [1, 0.5, 1, 1]
    # 3 of 4 votes, 0 of 2; without votes the label is certain.
    assert labels["share"].tolist() == [1, 1, 0.75, 0]
    assert set(labels) == {"margin", "weight", "share"}
    votes = built([pair(2, votes=(3, 1)), pair(3, votes=(0, 2))], renderer, name="vote_share").labels
    assert votes["votes"].tolist() == [[3, 1], [0, 2]] and "share" not in votes


def test_lists_compare_every_better_answer_with_every_worse_one(renderer):
    ranked = Group("r", "q", ("a", "b", "c"), "ranked")
    rated = Group("s", "q", ("a", "b", "c"), "rated", (2.0, 5.0, 2.0))
    table = built([ranked, rated], renderer, name="plackett_luce")
    # The first of three stands highest; of the rated ones b (5) is above a and c (2), which are not compared.
    assert table.labels["rating"][:, 0].tolist() == [3, 2, 1, 2, 5, 2]
    assert table.better.tolist() == [[0, 1], [0, 2], [1, 2], [4, 3], [4, 5]]


def test_attributes_are_columns_and_unknown_ones_are_nan(renderer):
    per_answer = {"help": [4, None], "brief": [1.5, 0], "other": [9, 9]}
    rated = Group("a", "q", ("x", "y"), "none", None, {"per_answer": per_answer})
    table = built([rated], renderer, name="attributes", attributes={"brief": 1.0, "help": -1.0})
    assert table.labels["rating"].shape == (2, 2) and table.labels["rating"].dtype == np.float32
    assert table.labels["rating"][:, 0].tolist() == [1.5, 0]
    assert table.labels["rating"][0, 1] == 4 and math.isnan(table.labels["rating"][1, 1])
    assert table.better.tolist() == []  # no order is known where an attribute is not


PACKED = BatchingChoice(True, False, "as set")
SHARED = BatchingChoice(True, True, "as set")


def collator(table, batching=PADDED, *, with_types=False, batch_tokens=10_000):
    return ExampleCollator(table, 0, with_types, batching, batch_tokens)


def texts_of_part(part):
    """The ids of the N answers of a part, in their order."""
    texts = {}
    for batch, places in part.batches:
        if isinstance(batch, PackedBatch):
            ids = [batch.input_ids[0, at[mask == 1]] for at, mask in zip(batch.tokens, batch.mask, strict=True)]
        else:
            ids = [row[mask == 1] for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
        texts |= {int(place): row.tolist() for place, row in zip(places, ids, strict=True)}
    return [texts[place] for place in sorted(texts)]


@pytest.mark.parametrize("batching", [PADDED, PACKED, SHARED])
def test_a_batch_holds_its_answers_in_the_order_of_its_examples(renderer, batching):
    examples = [pair(0, margin=1.0), pair(1, margin=3.0), pair(2, margin=5.0, tie=True)]
    table = built(examples, renderer)
    rows = [ExampleRows(table)[i] for i in (2, 0)]
    (part,) = collator(table, batching)(rows)["parts"]
    assert texts_of_part(part) == [table.tokens.row(i).tolist() for i in (4, 5, 0, 1)]
    assert part.rows.tolist() == [2, 0] and part.labels.sizes.tolist() == [2, 2] and part.weight == 1
    assert part.labels.margin.tolist() == [5, 1] and part.better.tolist() == [[2, 3]]
    assert part.labels.tie.tolist() == [True, False]
    assert part.labels.votes is None and part.labels.rating is None
    assert all(batch.token_type_ids is None for batch, _ in part.batches)


def test_a_batch_of_lists_of_unlike_size(renderer):
    lists = [Group(str(k), "q", tuple("abcd"[:k]), "ranked") for k in (4, 2, 3)]
    table = built(lists, renderer, name="plackett_luce")
    (part,) = collator(table, with_types=True)([2, 1])["parts"]
    assert part.labels.sizes.tolist() == [3, 2] and len(texts_of_part(part)) == 5
    assert part.labels.rating[:, 0].tolist() == [3, 2, 1, 2, 1]
    assert sorted(part.better.tolist()) == [[0, 1], [0, 2], [1, 2], [3, 4]]
    assert part.batches[0][0].token_type_ids is not None


def test_a_batch_over_its_budget_comes_in_parts_that_hold_whole_examples(renderer):
    table = built([pair(i) for i in range(5)], renderer)
    cost = table.costs(share=False)
    parts = collator(table, PACKED, batch_tokens=int(cost[:2].sum()))(range(5))["parts"]
    assert [part.rows.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert [part.weight for part in parts] == [0.4, 0.4, 0.2]
    assert sum(part.num_tokens for part in parts) == cost.sum()
    assert [part.num_tokens for part in collator(table, PACKED, batch_tokens=1)([3, 1])["parts"]] == cost[
        [3, 1]
    ].tolist()


def test_what_answers_begin_with_alike_is_counted_once(renderer):
    table = built([Preference("0", "a long question about nothing in particular", "yes indeed", "no")], renderer)
    one, other = table.tokens.row(0).tolist(), table.tokens.row(1).tolist()
    common = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert common >= 8, "too short a beginning to be shared"
    assert table.costs(share=False).tolist() == [len(one) + len(other)]
    assert table.costs(share=True).tolist() == [len(one) + len(other) - common]


def test_label_columns_that_a_loss_does_not_read_are_reported():
    pairs = [pair(0, margin=1.0, votes=(2, 1)), pair(1, margin=2.0, weight=2.0), pair(2, tie=True)]
    everything = {"margin": 2, "weight": 1, "votes": 1, "tie": 1}
    assert columns_in_use(pairs, LossSettings()) == (everything, {})
    used, unread = columns_in_use(pairs, LossSettings(name="rao_kupper"))
    assert (used, unread) == ({"weight": 1, "tie": 1}, {"margin": 2, "votes": 1})
    used, unread = columns_in_use(pairs, LossSettings(margin=False, weight=False))
    assert (used, unread) == ({"votes": 1, "tie": 1}, {"margin": 2, "weight": 1})
    rated = [Group("g", "q", ("a", "b"), "rated", (1.0, 2.0), {"per_answer": {"help": [1, 2]}})]
    assert columns_in_use(rated, LossSettings(name="regression")) == ({"ratings": 1}, {"per_answer": 1})
    attributes = LossSettings(name="attributes", attributes={"help": 1.0})
    assert columns_in_use(rated, attributes) == ({"per_answer": 1}, {})
