"""A run holds all that is needed to repeat it, a repetition has the same bits, and what differs is named before anything is trained."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from rewardsmith import runs
from rewardsmith.config import TrainSettings, build
from rewardsmith.manifest import Manifest
from rewardsmith.reproducing import Checked, compare_golden, compare_metrics, verdict, verdict_line
from rewardsmith.storage import text_sha256

RECIPE = {
    "max_length": 64,
    "batch_size": 8,
    "learning_rate": 0.003,
    "epochs": 1,
    "dev_share": 0.2,
    "cache": False,
    "precision": "float32",
}


def quiet():
    return Console(file=io.StringIO())


def pair(i, prompt=""):
    return {
        "id": f"toy-{i}",
        "prompt": f"How do I mend item {i % 24}?{prompt}",
        "chosen": f"Gladly, use glue number {i}.",
        "rejected": f"No idea, go away with number {i}.",
    }


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A folder with base, data and a finished run beside each other."""
    place = tmp_path_factory.mktemp("reproduce")
    shutil.copytree(tiny("bert"), place / "base")
    write(place / "train.jsonl", [pair(i) for i in range(48)] + [pair(48) | {"chosen": " "}])
    write(place / "eval.jsonl", [pair(i, " Please.") for i in range(30)])
    settings = {
        **RECIPE,
        "model": str(place / "base"),
        "data": str(place / "train.jsonl"),
        "eval_data": str(place / "eval.jsonl"),
        "out": str(place / "run"),
    }
    words = ["train", "--data", settings["data"], "--out", settings["out"]]
    runs.train(settings, command=words, console=quiet())
    return place


@pytest.fixture
def place(trained, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(trained, tmp_path / "place")


def change(path, **facts):
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | facts))


def test_the_manifest_of_a_run_holds_what_a_repetition_needs_and_no_place(trained):
    text = (trained / "run" / "manifest.json").read_text()
    found = json.loads(text)
    assert found["outcome"] == "finished" and found["command"] == ["train", "--data", "train.jsonl", "--out", "run"]
    assert len(found["code"]["sha256"]) == 64 and {"torch", "jinja2", "numpy"} <= set(found["versions"])
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(found["base"]["files"])
    assert len(found["template_sha256"]) == len(found["weights_sha256"]) == 64
    # 49 rows: one has an empty answer, and of the others every fifth prompt or so went to the dev part.
    assert found["dropped"]["counts"] == {"empty_answer": 1}
    assert found["dropped"]["ids"] == {"empty_answer": ["toy-48"]}
    assert found["counts"]["train_pairs"] + found["counts"]["dev_pairs"] == 48
    assert found["counts"]["train_texts"] == 2 * found["counts"]["train_pairs"]
    assert found["counts"]["train_texts_cut"] == {"prompt": 0, "answer": 0}
    parts = {"reading", "loading", "tokenising", "training", "saving", "judging"}
    assert set(found["timings"]) == parts and sum(found["timings"].values()) > 0
    assert found["device"]["type"] == "cpu" and found["device"]["threads"] >= 1 and found["device"]["processes"] == 1
    assert found["peak_memory"]["process"] > 10_000_000 and found["resumed_from"] is None
    speed, per_pair = found["training"], found["counts"]["train_tokens_read"] / found["counts"]["train_pairs"]
    assert speed["tokens_per_second"] == pytest.approx(speed["pairs_per_second"] * per_pair, rel=0.01)
    assert str(trained) not in text and os.environ["PATH"] not in text
    assert found == json.loads((trained / "run" / "model" / "manifest.json").read_text())


def test_a_repetition_has_the_same_bits(cli, place):
    code, text, err = cli("reproduce", place / "run", "--json")
    assert code == 0, err
    document = json.loads(text)
    assert document["verdict"] == "bit-equal" and document["weights"]["bit_equal"]
    assert document["weights"]["tensors"] > 10 and document["golden"]["max_difference"] == 0
    assert {"accuracy on eval pairs", "eval log_loss", "accuracy on train pairs"} <= set(document["metrics"])
    assert document["versions"] == document["code"] == document["device"] == {}
    again = place / "run-reproduced"
    assert (again / "model" / "model.safetensors").read_bytes() == (
        place / "run" / "model" / "model.safetensors"
    ).read_bytes()
    assert json.loads((again / "reproduction.json").read_text()) == document
    # Settings that resolve here as they did there stay as they were set: the two manifests say the same.
    settings = [json.loads((one / "manifest.json").read_text())["settings"] for one in (place / "run", again)]
    assert settings[0] | {"out": ""} == settings[1] | {"out": ""}
    code, _, err = cli("reproduce", place / "run")
    assert code == 2 and "which exists" in err


def test_a_changed_row_is_named_before_anything_is_trained(cli, place):
    rows = [json.loads(line) for line in (place / "train.jsonl").read_text().splitlines()]
    rows[6]["chosen"], rows[6]["rejected"] = rows[6]["rejected"], rows[6]["chosen"]
    del rows[40]
    write(place / "train.jsonl", [*rows, pair(99)])
    code, _, err = cli("reproduce", place / "run")
    assert code == 2 and not (place / "run-reproduced").exists()
    for said in ("1 changed: row 7 (id toy-6)", "1 missing: row 41 (id toy-40)", "1 added: row 49 (id toy-99)"):
        assert said in err
    code, text, err = cli("reproduce", place / "run", "--anyway", "--json")
    document = json.loads(text)
    assert (code, document["verdict"]) == (0, "moved")
    assert not document["weights"]["bit_equal"] and document["weights"]["largest"] > 0
    assert document["moved"]["data"]["data"]["rows"]["changed"]["first"] == [{"row": 7, "id": "toy-6"}]
    assert document["moved"]["paired"]["num_pairs"] == 30 and "1 changed: row 7 (id toy-6)" in err


def test_another_base_model_is_named_by_its_file(cli, place):
    config = place / "base" / "config.json"
    config.write_text(config.read_text() + "\n")
    (place / "base" / "vocab.txt").write_text("[PAD]\n")
    code, _, err = cli("reproduce", place / "run")
    assert code == 2 and "config.json: another one" in err and "vocab.txt: added" in err
    assert "model.safetensors" not in err and not (place / "run-reproduced").exists()


def test_scores_beyond_the_tolerance_fail_and_versions_that_differ_are_named(cli, place):
    golden = place / "run" / "model" / "golden.jsonl"
    rows = [json.loads(line) for line in golden.read_text().splitlines()]
    rows[3]["score"] += 0.5
    write(golden, rows)
    said = json.loads((place / "run" / "manifest.json").read_text())
    versions = said["versions"] | {"torch": "1.0"}
    starts = [{key: said[key] for key in ("code", "platform", "device")} | {"versions": versions | {"numpy": "0.1"}}]
    change(place / "run" / "manifest.json", versions=versions, starts=starts)
    code, text, err = cli("reproduce", place / "run", "--json")
    document = json.loads(text)
    assert (code, document["verdict"]) == (1, "beyond tolerance")
    assert document["golden"]["max_difference"] == pytest.approx(0.5, abs=0.3) and list(document["versions"]) == [
        "torch"
    ]
    assert "versions: torch" in document["reason"] and "(the run: 1.0)" in err
    began = f"versions: numpy: 0.1 (the last start: {versions['numpy']})"
    assert document["other_starts"] == [began] and began in document["reason"]
    assert f"the run was resumed; an earlier start had {began}" in err


def compared(*, bits=False, ids=True, golden=0.0, metrics=0.0, names=("accuracy on eval pairs",)):
    return {
        "weights": {"bit_equal": bits, "largest": None},
        "golden": {"same_ids": ids, "max_difference": golden} if golden != "none" else None,
        "metrics": dict.fromkeys(names),
        "metrics_only_run": [],
        "metrics_only_here": [],
        "metrics_max_difference": metrics,
    }


TORCH = {"versions": {"torch": {}}}


@pytest.mark.parametrize(
    ("document", "where", "expected"),
    [
        (compared(bits=True), {}, ("bit-equal", True)),
        # The tolerances are 0.05 of scores and 0.02 of metrics.
        (compared(golden=0.049, metrics=0.019), {"differing": TORCH}, ("within tolerance", True)),
        (compared(golden=0.051), {"differing": TORCH}, ("beyond tolerance", False)),
        (compared(metrics=0.021), {"differing": TORCH}, ("beyond tolerance", False)),
        # The same place owes the same bits, unless a GPU adds in another order.
        (compared(golden=1e-6), {}, ("within tolerance", False)),
        (compared(golden=1e-6), {"device": "cuda"}, ("within tolerance", True)),
        # A run that began under other versions was not made at one place.
        (compared(golden=1e-6), {"starts": ["versions: torch: 1"]}, ("within tolerance", True)),
        # Equal weights whose scores or metrics differ are not equal.
        (compared(bits=True, metrics=1e-9), {}, ("within tolerance", False)),
        (compared(bits=True, golden=1e-9), {}, ("within tolerance", False)),
        # Scores of other token ids are not compared, and decide nothing.
        (compared(bits=True, ids=False), {}, ("beyond tolerance", False)),
        (compared(bits=True, ids=False, golden=None), {}, ("beyond tolerance", False)),
        # What is no finite number is within nothing.
        (compared(bits=True, metrics=None), {"differing": TORCH}, ("beyond tolerance", False)),
        (compared(bits=True, golden=None), {"differing": TORCH}, ("beyond tolerance", False)),
        # Without golden scores the metrics decide; without either, nothing says that the runs are alike.
        (compared(golden="none", metrics=0.01), {"differing": TORCH}, ("within tolerance", True)),
        (compared(golden="none", names=()), {"differing": TORCH}, ("beyond tolerance", False)),
    ],
)
def test_the_verdict(document, where, expected):
    checked = Checked(build(TrainSettings, {"model": "m", "data": "d", "out": "o"}), **where)
    found = verdict(document, checked, changed=False)
    assert (found["verdict"], found["ok"]) == expected
    assert verdict_line(document | found).startswith(expected[0])


def test_golden_inputs_that_are_others_are_not_compared():
    rows = [{"ids": [1, i], "score": float(i)} for i in range(4)]
    # |2 - 2.5| over max(1, 2).
    moved = [*rows[:2], {"ids": [1, 2], "score": 2.5}, rows[3]]
    assert compare_golden(rows, moved) == {"inputs": 4, "same_ids": True, "max_difference": 0.25}
    for here in (rows[:3], [*rows, rows[0]], [*rows[:3], {"ids": [9], "score": 3.0}], []):
        assert compare_golden(rows, here) == {"inputs": 4, "same_ids": False, "max_difference": None}


def test_a_metric_of_one_side_is_said_and_no_nan_is_lost():
    found = compare_metrics({"a": 0.5, "b": 0.25, "c": 1.0}, {"a": 0.5, "b": 0.5, "d": 1.0})
    assert found["metrics_max_difference"] == 0.25 and set(found["metrics"]) == {"a", "b"}
    assert (found["metrics_only_run"], found["metrics_only_here"]) == (["c"], ["d"])
    said = verdict_line(compared(bits=True) | found | {"verdict": "bit-equal", "reason": "the same bits"})
    assert "the run alone has it: c" in said and "the repetition alone has it: d" in said
    # Wherever a NaN stands, the largest difference is none.
    for order in ("ab", "ba"):
        then, here = {"a": 0.5, "b": 0.5}, {"a": 0.75, "b": float("nan")}
        assert compare_metrics({name: then[name] for name in order}, here)["metrics_max_difference"] is None


def test_odd_run_folders_are_refused_before_anything_is_trained(cli, place):
    run = place / "run"
    code, _, err = cli("reproduce", run / "model")
    assert code == 2 and "the model folder of one" in err and str(run) in err
    code, _, err = cli("reproduce", run, "--out", place / "base", "--overwrite")
    assert code == 2 and "neither is nor holds an input" in err and "learning_rate" not in err
    code, _, err = cli("reproduce", run, "--out", run / "again")
    assert code == 2 and "outside the run" in err
    golden = run / "model" / "golden.jsonl"
    kept = golden.read_bytes()
    golden.write_bytes(kept[:-20])
    code, _, err = cli("reproduce", run)
    assert code == 2 and "golden.jsonl" in err and f"line {kept.count(chr(10).encode())}, which holds none" in err
    golden.write_bytes(kept)
    document = json.loads((run / "manifest.json").read_text())
    for spoiled, said in (
        ({"format_version": 99}, "format 99"),
        ({"settings": None}, "settings.model"),
        ({"settings": {"data": "d"}}, "one without settings.model"),
        ({"identity": {"model": "m"}}, "one without identity.data"),
    ):
        change(run / "manifest.json", **spoiled)
        code, _, err = cli("reproduce", run)
        assert code == 2 and said in err
        (run / "manifest.json").write_text(json.dumps(document))
    assert not list(place.glob("**/*-reproduced")) and not (run / "again").exists()


def test_what_cannot_be_repeated_is_refused(cli, place, tmp_path, monkeypatch):
    run = place / "run"
    code, _, err = cli("reproduce", run, "--dev-data", place / "eval.jsonl")
    assert code == 2 and "the run had none" in err
    (place / "eval.jsonl").rename(place / "held.jsonl")
    code, _, err = cli("reproduce", run)
    assert code == 2 and "eval.jsonl, 30 rows" in err and "--eval-data" in err
    code, _, err = cli("reproduce", run, "--eval-data", place / "held.jsonl", "--out", place)
    assert code == 2 and "neither is nor holds an input" in err
    weights = run / "model" / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    code, _, err = cli("reproduce", run, "--eval-data", place / "held.jsonl")
    assert code == 2 and "as its manifest names them" in err
    weights.write_bytes(kept)
    change(run / "manifest.json", outcome="running")
    code, _, err = cli("reproduce", run)
    assert code == 2 and "train, killed" in err
    assert cli("reproduce", tmp_path / "nothing")[0] == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = cli("reproduce", run)
    assert code == 2 and "one process for reproduce" in err
    assert not (place / "run-reproduced").exists()


def test_the_date_of_a_chat_template_is_that_of_the_run(cli, tiny, tmp_path):
    base = shutil.copytree(tiny("qwen2"), tmp_path / "base")
    template = base / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}" + template.read_text())
    settings = {**RECIPE, "model": str(base), "data": write(tmp_path / "train.jsonl", [pair(i) for i in range(24)])}
    runs.train(settings | {"out": str(tmp_path / "run")}, day="2020-01-02", console=quiet())
    code, text, err = cli("reproduce", tmp_path / "run", "--json")
    assert code == 0, err
    assert json.loads(text)["verdict"] == "bit-equal"
    found = Manifest.read(Path(tmp_path / "run-reproduced" / "manifest.json"))
    assert found is not None and found.document["render"]["date"] == "2020-01-02"
    # Of the template as it was loaded: the day is no part of it.
    assert found.document["template_sha256"] == text_sha256(template.read_text())
