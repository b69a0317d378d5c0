"""Promise 6: nothing is dropped, cut or skipped in silence."""

import gzip
import json

import pytest

from rewardsmith.config import TrainSettings
from rewardsmith.data import io
from rewardsmith.data.faults import content_fault, drop_faults
from rewardsmith.data.schema import Preference
from rewardsmith.errors import DataError, RowError
from rewardsmith.evaluation.pairwise import evaluate
from rewardsmith.model.training_data import read_data
from tests.conftest import real_data
from tests.fakes import constant, pair

GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


def test_the_first_malformed_row_stops_with_file_line_field_and_mend(write_rows):
    path = write_rows([GOOD, {"prompt": "p", "chosen": "a"}])
    with pytest.raises(RowError) as caught:
        io.read(path)
    assert caught.value.where == "pairs.jsonl:2"
    assert caught.value.field == "rejected"
    assert "both sides" in caught.value.mend


def test_skip_bad_counts_instead(write_rows):
    reading = io.read(write_rows([GOOD, {"prompt": "p"}, {**GOOD, "margin": "wide"}, GOOD]), skip_bad=True)
    assert (reading.num_rows, len(reading.rows)) == (4, 2)
    assert dict(reading.skipped) == {"chosen": 1, "margin": 1}
    assert "pairs.jsonl:2" in reading.examples[0]


def test_content_faults_are_dropped_from_training_counted_and_listed():
    pairs = [pair(i) for i in range(97)]
    pairs += [Preference("empty", "p", " ", "x"), Preference("same", "p", "x  y", "x y")]
    pairs += [Preference("two", "p", "x", "y", rejected_prompt="q")]
    kept, dropped = drop_faults(pairs, content_fault)
    assert len(kept) == 97
    assert dropped.as_dict()["counts"] == {"empty_answer": 1, "equal_answers": 1, "prompt_mismatch": 1}
    assert dropped.listed["equal_answers"] == ["same"]
    dropped.check(0.05)
    with pytest.raises(DataError, match="at most 2%"):
        dropped.check(0.02)


def test_more_than_half_equal_answers_are_suspect_columns():
    """Trap 7."""
    pairs = [Preference(str(i), f"p{i}", "same", "same") for i in range(6)] + [pair(i) for i in range(4)]
    _, dropped = drop_faults(pairs, content_fault)
    with pytest.raises(DataError, match="swapped or duplicated"):
        dropped.check(1.0)


def test_evaluation_keeps_every_pair_with_two_answers():
    pairs = [pair(1), Preference("same", "p", "x", "x"), Preference("two", "p", "x", "y", rejected_prompt="q")]
    pairs += [Preference("empty", "p", "", "x"), Preference("tie", "p", "x", "y", tie=True)]
    with pytest.warns(UserWarning, match="constant"):
        found = evaluate(constant(), pairs).document
    assert (found["num_pairs"], found["dropped"], found["labelled_ties"]) == (3, {"empty_answer": 1}, 1)


def test_a_file_with_no_row_left_is_an_error(write_rows, tmp_path):
    with pytest.raises(DataError, match="empty file"):
        io.read(write_rows([]))
    with pytest.raises(DataError, match="all of them malformed"):
        io.read(write_rows([{"x": 1}], "bad.jsonl"), skip_bad=True)
    with pytest.raises(DataError, match="none of them"):
        io.read(str(tmp_path / "absent.jsonl"))


def test_real_faults_are_found_in_hh(tmp_path):
    """The raw HH file: a few pairs have two prompts or an empty answer; the prompt ends at the last assistant turn."""
    reading = io.read(real_data("hh_harmless_test.jsonl.gz"))
    pairs = io.preferences(reading.rows, "hh")
    assert len(pairs) == 2312 and not reading.skipped
    _, dropped = drop_faults(pairs, content_fault)
    assert dropped.counts["prompt_mismatch"] >= 1 and dropped.counts["empty_answer"] >= 1
    dropped.check(0.05)
    with gzip.open(real_data("hh_harmless_test.jsonl.gz"), "rt", encoding="utf-8") as file:
        for row, found in zip(map(json.loads, file), pairs, strict=False):
            assert row["chosen"].rpartition("\n\nAssistant:")[2].strip() == found.chosen
            assert row["chosen"].count("\n\nAssistant:") == 1 + sum(m["role"] == "assistant" for m in found.prompt)


def test_a_training_set_of_the_real_file_counts_what_it_drops(tmp_path):
    settings = TrainSettings(model="m", data=real_data("rmb_train.jsonl.gz"), out=str(tmp_path / "o"))
    data = read_data(settings)
    assert data.facts["data"]["rows"] == 12304
    assert len(data.train) + len(data.dev) + data.dropped.counts.total() == 12304
    assert not {str(p.prompt) for p in data.train} & {str(p.prompt) for p in data.dev}
