"""Prompts of rows of any kind: each once, in order, and malformed rows counted."""

import json
from collections import Counter

import pytest

from rewardsmith.data.texts import read_prompts
from rewardsmith.errors import RowError


def test_prompts_come_once_in_their_order_whatever_the_rows_are(tmp_path):
    rows = [{"prompt": "b"}, {"prompt": "a", "chosen": "x", "rejected": "y"}, {"prompt": "b", "answer": "z"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_prompts(str(path)) == ["b", "a"]


def test_malformed_prompts_are_an_error_or_are_counted_by_field(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("a", 7, ["x"], "b")))
    with pytest.raises(RowError, match="rows.jsonl:2"):
        read_prompts(str(path))
    skipped = Counter()
    assert read_prompts(str(path), skip_bad=True, skipped=skipped) == ["a", "b"]
    assert sum(skipped.values()) == 2
