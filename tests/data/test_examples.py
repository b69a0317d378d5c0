"""Rows as examples of a loss: pairs, lists, rated answers; and which rows each of them refuses."""

import math

import pytest

from rewardsmith.data.examples import example_fault, examples_of, implied_pairs, together
from rewardsmith.data.schema import Group, Preference, Single
from rewardsmith.errors import DataError

HELPFUL = {"correct": 1.0, "long": -0.5}


def ranked(*answers, **metadata):
    return Group("r", "prompt", answers, "ranked", None, metadata)


def rated(identity="g", ratings=(3.0, 1.0), **columns):
    answers = tuple("abcdefgh"[: len(ratings)])
    return Group(identity, "prompt", answers, "rated", ratings, {"per_answer": columns} if columns else {})


def candidates(**columns):
    return Group("c", "prompt", ("a", "b"), "none", None, {"per_answer": columns} if columns else {})


def single(identity, prompt, answer, **columns):
    return Single(identity, prompt, answer, columns)


def pair(**labels):
    return Preference("p", "prompt", "good", "bad", **labels)


# Pairs


def test_pairs_are_taken_as_they_are_and_groups_by_all_their_pairs():
    rows = [pair(margin=2.0), ranked("a", "b", "c"), rated(ratings=(1.0, 3.0, 1.0))]
    found = examples_of(rows, "pairs", "source")
    # Three answers in order: 0-1, 0-2, 1-2. Ratings 1, 3, 1: the second beats the first and the third, which are equal.
    assert [(one.chosen, one.rejected) for one in found] == [
        ("good", "bad"),
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
        ("b", "a"),
        ("b", "c"),
    ]
    assert [one.margin for one in found] == [2.0, None, None, None, 2.0, 2.0]


@pytest.mark.parametrize("row", [single("s", "prompt", "a", rating=3), candidates()])
def test_pairs_refuse_what_holds_no_preference(row):
    with pytest.raises(DataError, match=f"row '{row.id}'"):
        examples_of([row], "pairs", "source")


# Lists


def test_lists_are_the_ordered_groups_themselves():
    rows = [ranked("a", "b", "c", topic="x"), rated(ratings=(1.0, 3.0, 1.0))]
    assert examples_of(rows, "lists", "source") == rows


def test_a_pair_is_a_list_of_two_and_keeps_its_metadata():
    found = examples_of([pair(metadata={"topic": "x"})], "lists", "source")
    assert found == [Group("p", "prompt", ("good", "bad"), "ranked", None, {"topic": "x"})]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (pair(tie=True), r"'p', which is a pair \(labelled tie\)"),
        (pair(margin=0.0), r"'p', which is a pair \(labelled margin\)"),
        (pair(weight=2.0), r"'p', which is a pair \(labelled weight\)"),
        (pair(votes=(3, 2)), r"'p', which is a pair \(labelled votes\)"),
        (pair(rejected_prompt="another"), r"'p', which is a pair \(of two prompts\)"),
        (candidates(), "'c', which is a group without them"),
        (single("s", "prompt", "a"), "'s', which is a single answer"),
    ],
)
def test_lists_refuse_rows_without_an_order_and_labels_that_a_list_has_no_place_for(row, words):
    with pytest.raises(DataError, match=f"ranked or rated groups in source.*row {words}.*docs/losses.md"):
        examples_of([ranked("a", "b"), row], "lists", "source")


# Ratings


def test_rated_groups_stay_and_single_answers_are_groups_of_one():
    rows = [single("s1", "one", "a", rating=4, source="x"), rated("g", (3.0, 1.0)), single("s2", "one", "b", rating=2)]
    assert examples_of(rows, "ratings", "source") == [
        Group("s1", "one", ("a",), "rated", (4.0,), {"rating": 4, "source": "x"}),
        rated("g", (3.0, 1.0)),
        Group("s2", "one", ("b",), "rated", (2.0,), {"rating": 2}),
    ]


def test_single_answers_to_one_prompt_are_put_together_to_be_compared():
    asked = [{"role": "user", "content": "one"}]
    rows = [
        single("s1", "one", "a", rating=4),
        single("s2", "two", "b", rating=1.5),
        rated("g", (3.0, 1.0)),
        single("s3", asked, "c", rating=2),
    ]
    # A text is one user message: s1 and s3 answer the same prompt. What is no single answer comes first.
    assert together(examples_of(rows, "ratings", "source")) == [
        rated("g", (3.0, 1.0)),
        Group("s1", "one", ("a", "c"), "rated", (4.0, 2.0), {}),
        Group("s2", "two", ("b",), "rated", (1.5,), {}),
    ]
    assert together([pair(), ranked("a", "b")]) == [pair(), ranked("a", "b")]


def test_at_most_eight_answers_are_put_together():
    rows = examples_of([single(f"s{i}", "one", f"a{i}", rating=i) for i in range(19)], "ratings", "source")
    assert [(one.id, len(one.answers)) for one in together(rows)] == [("s0", 8), ("s8", 8), ("s16", 3)]


def test_the_column_of_the_rating_can_be_named():
    rows = [single("s", "one", "a", rating=4, quality=1)]
    assert examples_of(rows, "ratings", "source", rating="quality")[0].ratings == (1.0,)


@pytest.mark.parametrize("value", [None, "4", True, math.nan, math.inf])
def test_a_rating_that_is_no_finite_number_is_refused_by_row(value):
    columns = {} if value is None else {"rating": value}
    with pytest.raises(DataError, match=r"column `rating`.*in row 's2'.*loss\.rating"):
        examples_of([single("s1", "one", "a", rating=1), single("s2", "one", "b", **columns)], "ratings", "source")


@pytest.mark.parametrize("row", [pair(), ranked("a", "b"), candidates(), candidates(correct=[1, 2])])
def test_ratings_refuse_rows_without_ratings(row):
    with pytest.raises(DataError, match=f"rated answers in source.*row '{row.id}'.*a column `rating`"):
        examples_of([row], "ratings", "source")


# Attributes


def test_ratings_of_attributes_are_their_weighted_sums():
    row = rated(ratings=(9.0, 9.0), correct=[4, 1], long=[2, 0.5], other=["x", "y"])
    found = examples_of([row], "ratings", "source", attributes=HELPFUL)
    # 4 - 2/2 = 3, 1 - 0.5/2 = 0.75; the ratings that the group came with are not those of these attributes.
    assert [(one.order, one.ratings) for one in found] == [("rated", (3.0, 0.75))]
    assert found[0].metadata == row.metadata


def test_unordered_candidates_get_an_order_from_their_attributes():
    found = examples_of([candidates(correct=[1, 4], long=[0, 0])], "ratings", "source", attributes=HELPFUL)
    assert (found[0].order, found[0].ratings) == ("rated", (1.0, 4.0))


@pytest.mark.parametrize("columns", [{"correct": [1, None], "long": [1, 2]}, {"correct": [1, 2]}])
def test_a_group_of_which_an_attribute_is_unknown_is_in_no_order_but_keeps_what_is_known(columns):
    found = examples_of([rated(**columns)], "ratings", "source", attributes=HELPFUL)
    assert (found[0].order, found[0].ratings) == ("none", None)
    assert found[0].metadata == {"per_answer": columns}


def test_single_answers_bring_attributes_as_columns():
    rows = [
        single("s1", "one", "a", correct=4, long=2),
        single("s2", "two", "b", correct=1),
        single("s3", "one", "c", correct=2, long=0),
    ]
    found = examples_of(rows, "ratings", "source", attributes=HELPFUL)
    # 4 - 2/2 = 3, 2 - 0/2 = 2; of s2 one attribute is unknown, and with it the rating.
    assert [(one.order, one.ratings) for one in found] == [("rated", (3.0,)), ("none", None), ("rated", (2.0,))]
    assert [one.metadata["per_answer"] for one in found] == [
        {"correct": [4], "long": [2]},
        {"correct": [1]},
        {"correct": [2], "long": [0]},
    ]
    assert together(found) == [
        Group("s1", "one", ("a", "c"), "rated", (3.0, 2.0), {"per_answer": {"correct": [4, 2], "long": [2, 0]}}),
        Group("s2", "two", ("b",), "none", None, {"per_answer": {"correct": [1]}}),
    ]


def test_attributes_refuse_rows_without_columns_naming_those_that_are_needed():
    with pytest.raises(DataError, match="row 'p', which is a pair.*the columns correct, long"):
        examples_of([pair()], "ratings", "source", attributes=HELPFUL)
    with pytest.raises(DataError, match="row 'c', which is a group without them"):
        examples_of([candidates()], "ratings", "source", attributes=HELPFUL)


# What examples say about pairs, and their faults


def test_a_pair_implies_itself_and_an_ordered_group_its_pairs():
    assert implied_pairs(pair(tie=True)) == [pair(tie=True)]
    assert [(one.chosen, one.rejected) for one in implied_pairs(rated(ratings=(1.0, 2.0, 2.0)))] == [
        ("b", "a"),
        ("c", "a"),
    ]


@pytest.mark.parametrize(
    "group", [candidates(), rated(ratings=(2.0, 2.0)), Group("s", "prompt", ("a",), "rated", (1.0,))]
)
def test_no_order_equal_ratings_and_one_answer_imply_no_pair(group):
    assert implied_pairs(group) == []


@pytest.mark.parametrize(
    ("example", "fault"),
    [
        (pair(), None),
        (pair(rejected_prompt="another"), "prompt_mismatch"),
        (Preference("p", "prompt", "same", " same\n"), "equal_answers"),
        (ranked("a", "b"), None),
        # One of three is another answer: there is something to compare.
        (ranked("a", "a", "b"), None),
        (ranked("a", " \n", "b"), "empty_answer"),
        (ranked("a", "\u200b", "b"), "empty_answer"),
        (Preference("p", "prompt", "\ufeff \u200d", "same"), "empty_answer"),
        (ranked("a b", "a  b\n"), "equal_answers"),
        # One rated answer alone is an example of ratings.
        (Group("s", "prompt", ("a",), "rated", (1.0,)), None),
        (Group("s", "prompt", ("",), "rated", (1.0,)), "empty_answer"),
    ],
)
def test_faults_of_content(example, fault):
    assert example_fault(example) == fault
