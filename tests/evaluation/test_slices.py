"""Slices: which there are, which is worst, and that looking at many is paid for."""

from datetime import date

import numpy as np
import pytest

from rewardsmith.data.schema import Preference
from rewardsmith.errors import DataError
from rewardsmith.evaluation.slices import computed_columns, metadata_columns, slices
from rewardsmith.significance import holm


def rows(count, **columns):
    return [
        Preference(f"{i}", f"prompt {i}", "good", "bad", metadata={name: make(i) for name, make in columns.items()})
        for i in range(count)
    ]


def test_columns_of_few_values_of_numbers_and_of_many():
    pairs = rows(60, goal=lambda i: f"g{i % 3}", score=lambda i: i / 7, name=lambda i: f"n{i}", same=lambda i: 1)
    found = metadata_columns(pairs, None)
    assert set(found) == {"goal", "score"}  # `name` has too many values, `same` too few
    assert len(set(found["score"])) == 4 and found["score"].count(found["score"][0]) == 15
    assert set(metadata_columns(pairs, ["name"])["name"]) == {f"n{i}" for i in range(60)}
    with pytest.raises(DataError, match="a column 'gaol' to slice by"):
        metadata_columns(pairs, ["gaol"])


def test_what_is_computed_of_every_pair():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    pairs = [
        Preference("1", "p", "x" * 100, "x" * 95),
        Preference("2", "p", "x" * 100, "x" * 80, margin=1.0, votes=(3, 0)),
        Preference("3", "p", "x" * 100, "x" * 210, margin=2.0, votes=(2, 1)),
        Preference("4", turns, "x" * 300, "x" * 100, votes=(1, 1)),
    ]
    found = computed_columns(pairs)
    assert found["length difference"] == [
        "within 10 %",
        "chosen longer by 10 to 50 %",
        "chosen shorter by over 50 %",
        "chosen longer by over 50 %",
    ]
    assert found["length of the longer answer"][2:] == ["201 to 500 characters"] * 2
    assert found["turns of the prompt"] == ["1", "1", "1", "2 to 3"]
    assert found["margin of the raters"] == [None, "1.0", "2.0", None]
    assert found["votes for the chosen"] == [None, "all", "over 50 %", "50 % or fewer"]
    assert "length of the prompt" not in found  # all in one bin: no slice


def test_the_planted_weak_slice_is_first_and_flagged():
    rng = np.random.default_rng(0)
    column = [f"v{i % 10}" for i in range(600)]
    margins = np.where(np.array(column) == "v3", rng.normal(-0.5, 1, 600), rng.normal(1.0, 1, 600))
    found = slices({"column": column}, margins, np.arange(600))
    assert (found[0].value, found[0].flagged) == ("v3", True)
    assert [one.value for one in found if one.flagged] == ["v3"]
    part = np.array(column) == "v3"
    # Accuracy of the slice minus that of the rest, by hand.
    assert found[0].difference.value == pytest.approx((margins[part] > 0).mean() - (margins[~part] > 0).mean())


def test_a_slice_of_few_prompts_is_shown_and_not_tested():
    found = slices({"column": ["few"] * 9 + ["many"] * 91}, -np.ones(100), np.arange(100))
    few = next(one for one in found if one.value == "few")
    assert few.p_value is None and not few.flagged and few.difference.n == 9
    # Nine pairs of one prompt each, and nine wrong ones: the interval does not claim certainty.
    lone = slices({"column": ["a"] * 12 + ["b"] * 60}, np.r_[np.ones(12), np.tile([1.0, -1.0], 30)], np.arange(72))
    assert lone[-1].value == "a" and lone[-1].difference.low < 0.45 < lone[-1].difference.high


def test_pairs_of_one_prompt_are_one_piece_of_evidence():
    """Slice a: 20 prompts with the same wrong outcome in all of 10 pairs; by pairs it would be 200 to nothing."""
    outcomes = np.repeat(np.random.default_rng(3).choice([1.0, -1.0], 40), 10)
    column = ["a"] * 200 + ["b"] * 200
    together = slices({"c": column}, outcomes, np.repeat(np.arange(40), 10))[0]
    alone = slices({"c": column}, outcomes, np.arange(400))[0]
    width = [one.difference.high - one.difference.low for one in (together, alone)]
    assert width[0] / width[1] == pytest.approx(np.sqrt(10), rel=0.1)


def test_a_prompt_on_both_sides_cancels():
    """Each prompt has one pair in a and one in b with the same outcome: the difference is 0, and sure."""
    outcomes = np.repeat(np.random.default_rng(3).choice([1.0, -1.0], 50), 2)
    found = slices({"c": ["a", "b"] * 50}, outcomes, np.repeat(np.arange(50), 2))
    assert found[0].difference.value == 0 and found[0].difference.high == pytest.approx(0, abs=1e-12)
    assert found[0].p_value == 1.0


def test_all_tested_slices_of_all_columns_share_the_level():
    rng = np.random.default_rng(1)
    columns = {name: [f"{name}{i}" for i in rng.integers(0, 4, 300)] for name in ("a", "b")}
    found = slices(columns, rng.normal(0.4, 1, 300), np.arange(300))
    assert len(found) == 8
    assert [one.p_adjusted for one in found] == pytest.approx(holm([one.p_value for one in found]))


def test_dates_and_close_numbers_are_slices_too():
    day = rows(30, day=lambda i: date(2026, 1, 1 + i % 3), time=lambda i: 1_700_000_000 + i)
    found = metadata_columns(day, None)
    assert set(found["day"]) == {'"2026-01-01"', '"2026-01-02"', '"2026-01-03"'}
    assert len(set(found["time"])) == 4
