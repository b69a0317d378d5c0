"""Scoring files: order kept, memory bounded, an interrupted call goes on where it stopped."""

import json

import pytest
import torch

from rewardsmith import streaming
from rewardsmith.errors import DataError, OutputError, RowError
from rewardsmith.model.reward_model import RewardModel

ROWS = [
    {"id": "pair", "prompt": "p", "chosen": "yes please", "rejected": "no"},
    {"id": "group", "prompt": "p", "candidates": ["a", "b b b", "c"]},
    {"id": "one", "prompt": "p", "answer": "word " * 80},
]


@pytest.fixture
def model(tiny_rm):
    return RewardModel.load(tiny_rm("bert"))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(model, source, out, **more):
    return streaming.score_file(model, source, out, **{"identity": {"m": 1}, **more})


def test_one_row_an_input_row_in_the_same_order(model, write_rows, tmp_path):
    out = tmp_path / "scores.jsonl"
    done = run(model, write_rows(ROWS), out)
    pair, group, one = lines(out)
    expected = model.score(
        [("p", "yes please"), ("p", "no"), ("p", "a"), ("p", "b b b"), ("p", "c"), ("p", "word " * 80)]
    ).tolist()
    found = [pair["score_chosen"], pair["score_rejected"], *group["scores"], one["score"]]
    assert found == pytest.approx(expected, abs=1e-5)
    assert set(one) == {"id", "score", "tokens", "truncated"} and one["truncated"] is True and one["tokens"] == 64
    assert {"tokens_chosen", "truncated_rejected"} < set(pair)
    assert (done.num_rows, done.num_answers, done.truncated) == (3, 6, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pairs.jsonl", "scores.jsonl"]


def test_the_window_does_not_change_the_result_and_bounds_what_is_held(model, write_rows, tmp_path):
    source = write_rows([{"id": str(i), "prompt": f"p{i}", "answer": f"answer {i}"} for i in range(50)])
    run(model, source, tmp_path / "whole.jsonl")
    held = []
    original = model.table
    model.table = lambda pairs: held.append(len(pairs)) or original(pairs)
    run(model, source, tmp_path / "small.jsonl", window=7)
    assert max(held) == 7
    whole, small = lines(tmp_path / "whole.jsonl"), lines(tmp_path / "small.jsonl")
    assert [row["id"] for row in small] == [str(i) for i in range(50)]
    assert [row["score"] for row in small] == pytest.approx([row["score"] for row in whole], abs=1e-5)


def test_an_interrupted_call_goes_on(model, write_rows, tmp_path):
    source = write_rows([{"id": str(i), "prompt": f"p{i}", "answer": f"answer {i}"} for i in range(20)])
    out = tmp_path / "scores.jsonl"
    run(model, source, tmp_path / "expected.jsonl", window=4)
    original, calls = model.table, []

    def breaks(pairs):
        calls.append(len(pairs))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(pairs)

    model.table = breaks
    with pytest.raises(KeyboardInterrupt):
        run(model, source, out, window=4)
    assert not out.exists()
    partial = tmp_path / "scores.jsonl.partial"
    with open(partial, "a") as file:
        file.write('{"id": "8", "sc')  # a row cut in the middle by a kill
    model.table = original
    done = run(model, source, out, window=4)
    assert (done.resumed_from, done.num_rows) == (8, 20)
    assert lines(out) == lines(tmp_path / "expected.jsonl")
    assert not partial.exists()


def test_another_model_or_data_begins_anew(model, write_rows, tmp_path):
    source = write_rows(ROWS)
    out = tmp_path / "scores.jsonl"
    (tmp_path / "scores.jsonl.partial").write_text('{"id": "stale"}\n')
    (tmp_path / "scores.jsonl.partial.json").write_text('{"m": 2}')
    assert run(model, source, out).resumed_from == 0
    assert lines(out)[0]["id"] == "pair"


def test_malformed_rows_stop_or_are_counted(model, write_rows, tmp_path):
    source = write_rows([ROWS[0], {"nothing": 1}, ROWS[2]])
    out = tmp_path / "scores.jsonl"
    with pytest.raises(RowError, match="pairs.jsonl:2"):
        run(model, source, out)
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.jsonl"]
    done = run(model, source, out, skip_bad=True)
    assert (done.num_rows, dict(done.skipped)) == (2, {"chosen": 1})


def test_an_empty_file_is_an_error(model, write_rows, tmp_path):
    with pytest.raises(DataError, match="empty file"):
        run(model, write_rows([]), tmp_path / "scores.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.jsonl"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        run(model, write_rows(ROWS), tmp_path / "file" / "scores.jsonl")


def test_models_without_a_contract_are_told_apart(tiny, tmp_path):
    """Another tool's folder: what was scored with one must not be gone on with by another."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from rewardsmith.config import ScoringSettings
    from rewardsmith.loading import load_source

    base = tiny("bert")
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(base, num_labels=1)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / str(seed))
        AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / str(seed))
        with pytest.warns(UserWarning, match="rewardsmith.json"):
            found.append(load_source(str(tmp_path / str(seed)), ScoringSettings(), threads=None, seed=0).files)
    assert found[0]["tokenizer.json"] == found[1]["tokenizer.json"]
    assert found[0]["model.safetensors"] != found[1]["model.safetensors"]


def test_ctrl_c_says_where_the_same_command_goes_on(cli, tiny_rm, write_rows, tmp_path, monkeypatch):
    def stops(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "score_file", stops)
    code, _, error = cli("score", tiny_rm("bert"), write_rows(ROWS), "--out", tmp_path / "scores.jsonl")
    assert code == 130 and error.endswith("interrupted; the same command goes on after the rows that it wrote\n")
