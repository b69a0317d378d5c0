"""Pools: groups from data or from a policy, and edited copies that are known as such."""

import numpy as np
import pytest

from rewardsmith.auditing.pools import (
    ORIGINAL,
    Candidate,
    Candidates,
    Pool,
    drawn_pool,
    enlarged,
    merged,
    pool_of,
    probe_copies,
)
from rewardsmith.auditing.trials import Contrast, Probe
from rewardsmith.data import io
from rewardsmith.data.schema import Single
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.scores import Drawn, Generator
from tests.conftest import real_data
from tests.fakes import pair


def shouted(prompt, answer, rng):
    return [answer.upper()]


def padded(prompt, answer, rng):
    return [f"{answer} {rng.integers(1000)}", f"{answer}!"]


def two_groups():
    first = Candidates("a", "p", (Candidate("one", label=1.0), Candidate("two", label=0.0)))
    return Pool([first, Candidates("b", "q", (Candidate("one", label=0.0), Candidate("THREE", label=1.0)))])


def test_each_kind_of_row_gives_its_labels(write_rows):
    rows = [
        {"id": "c", "prompt": "p", "candidates": ["x", "y"]},
        {"id": "r", "prompt": "p", "ranked": ["best", "middle", "worst"]},
        {"id": "a", "prompt": "p", "answers": ["x", "y"], "ratings": [2, 7.5]},
        {"id": "b", "prompt": "p", "best": "good", "others": ["bad", "worse"]},
        {"id": "n", "prompt": "p", "answer": "alone"},
    ]
    read = [row for row in rows if row["id"] != "b"]
    pool = pool_of([*io.read(write_rows(read)).rows, *io.read(write_rows([rows[3]], "bon.jsonl")).rows])
    labels = {group.id: [one.label for one in group.answers] for group in pool.groups}
    assert labels == {"c": [None, None], "r": [2.0, 1.0, 0.0], "a": [2.0, 7.5], "b": [1.0, 0.0, 0.0]}
    assert pool.left_out == {"no group of candidates": 1}
    with pytest.raises(DataError, match="2 of 10 without"):
        pool.labels()


def test_rmb_best_of_n_is_a_pool_with_one_best_answer_a_group():
    pool = pool_of(io.read(real_data("rmb_bon_eval.jsonl.gz")).rows)
    assert len(pool.groups) == 600 and pool.sizes.min() == 3
    assert pool.labels().sum() == 600  # one best answer each
    together = merged(pool)
    assert len(together.groups) == len(set(pool.prompts())) == 352 and together.sizes.max() == 9


def test_what_is_no_pool_is_refused():
    with pytest.raises(DataError, match="none among 2 rows"):
        pool_of([pair(1), Single("s", "p", "a")])


def test_merging_keeps_each_answer_once_with_its_mean_label():
    groups = [
        Candidates("a", "p", (Candidate("A", label=1.0), Candidate("B", label=0.0))),
        Candidates("b", [{"role": "user", "content": "p"}], (Candidate("C", label=1.0), Candidate("A", label=0.0))),
        Candidates("c", "q", (Candidate("A"), Candidate("B"))),
    ]
    found = merged(Pool(groups)).groups
    assert [(one.answer, one.label) for one in found[0].answers] == [("A", 0.5), ("B", 0.0), ("C", 1.0)]
    assert [one.label for one in found[1].answers] == [None, None]


def test_copies_are_marked_keep_the_label_of_their_original_and_repeat_nothing():
    pool = enlarged(two_groups(), {"capitals": shouted, "padding": padded}, seed=0)
    first, second = pool.groups
    assert [one.kind for one in first.answers] == [ORIGINAL] * 2 + ["capitals", "padding", "padding"] * 2
    assert [one.label for one in first.answers] == [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    # THREE shouted is THREE, which is there already.
    assert [one.kind for one in second.answers].count("capitals") == 1
    again = enlarged(Pool(two_groups().groups[::-1]), {"padding": padded, "capitals": shouted}, seed=0)
    assert {one.answer for one in again.groups[1].answers} == {one.answer for one in first.answers}
    other = enlarged(two_groups(), {"padding": padded}, seed=1)
    assert {one.answer for one in other.groups[0].answers} != {one.answer for one in first.answers}


def test_so_many_copies_of_each_answer_as_are_asked_for():
    pool = enlarged(two_groups(), {"capitals": shouted, "padding": padded}, per_answer=1, seed=0)
    assert pool.sizes.tolist() == [4, 4]
    kinds = {one.kind for one in pool.candidates()}
    assert kinds <= {ORIGINAL, "capitals", "padding"} and len(kinds) > 1


def test_a_probe_gives_copies():
    def contrasts(subjects, seed):
        one = subjects[0]
        original = (one.prompt, one.answer)
        return [
            Contrast(one.id, "p", (one.prompt, f"Yes! {one.answer}"), original),
            Contrast(one.id, "p", ("another prompt", one.answer), original),
            Contrast(one.id, "p", (one.prompt, "b"), (one.prompt, "a")),
        ]

    probe = Probe("yes", "openings", "bias", "up", "Yes!", contrasts)
    assert probe_copies(probe)("p", "No.", np.random.default_rng(0)) == ["Yes! No."]
    with pytest.raises(SettingsError, match="brings its own texts"):
        probe_copies(Probe("own", "x", "bias", "up", "x", contrasts, edits_answers=False))


def test_edits_that_change_nothing_or_have_the_name_of_originals_are_refused():
    with pytest.raises(DataError, match="applies to some answer"):
        enlarged(two_groups(), {"none": lambda prompt, answer, rng: [answer]}, seed=0)
    with pytest.raises(SettingsError, match="original"):
        enlarged(two_groups(), {ORIGINAL: shouted}, seed=0)


class Echo:
    """A policy that says the prompt, the seed and a number; every second answer is cut."""

    def draw(self, prompts, num_answers, *, seed):
        return [[Drawn(f"{prompt} {seed} {j}", j % 2 == 1, 3) for j in range(num_answers)] for prompt in prompts]


def test_a_pool_drawn_from_a_policy_asks_each_prompt_once_and_marks_what_was_cut():
    assert isinstance(Echo(), Generator)
    pool = drawn_pool(Echo(), ["p", "q", "p"], num_answers=2, ids=["a", "b", "c"], seed=5)
    assert [(group.id, group.prompt, group.prompt_cut) for group in pool.groups] == [("a", "p", 3), ("b", "q", 3)]
    assert pool.groups[1].answers == (Candidate("q 5 0"), Candidate("q 5 1", is_cut=True))
    assert pool.left_out == {"prompt that was there before": 1}
    with pytest.raises(SettingsError, match="two answers"):
        drawn_pool(Echo(), ["p"], num_answers=1, seed=0)
    with pytest.raises(DataError, match="one prompt"):
        drawn_pool(Echo(), [], num_answers=2, seed=0)
