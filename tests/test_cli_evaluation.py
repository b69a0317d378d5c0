"""The verbs of evaluation end to end on a tiny model: what is written, what is refused, and which exit codes come back."""

import json
import shutil

import numpy as np
import pytest

from rewardsmith.model.artefact import read_contract


@pytest.fixture
def run(cli, tiny, toy_pairs, tmp_path):
    """A run whose model has learned the toy pairs, mostly."""
    sets = ["max_length=64", "batch_size=8", "learning_rate=0.003", "epochs=4", "dev_share=0.2"]
    flat = [word for one in sets for word in ("--set", one)]
    code, _, err = cli("train", "--model", tiny("bert"), "--data", toy_pairs, "--out", tmp_path / "run", *flat)
    assert code == 0, err
    return tmp_path / "run"


@pytest.fixture
def hard_pairs(write_rows):
    """Forty prompts, two pairs each, of which every fourth is labelled against what the toy pairs teach: no scorer gets all right."""
    rows = []
    for i in range(80):
        good, bad = f"good answer {i} indeed", f"bad answer {i} not"
        chosen, rejected = (bad, good) if i % 4 == 3 else (good, bad)
        rows.append({"prompt": f"prompt {i // 2}", "chosen": chosen, "rejected": rejected, "topic": f"t{i % 2}"})
    return write_rows(rows)


def test_calibrate_writes_the_temperature_and_evaluate_uses_it(cli, run, hard_pairs):
    before = (run / "model" / "rewardsmith.json").read_text()
    code, out, err = cli("calibrate", run, hard_pairs, "--dry-run", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["written"] is False and (run / "model" / "rewardsmith.json").read_text() == before
    code, out, _ = cli("calibrate", run, hard_pairs, "--by", "topic", "--false-alarms", "0.1", "--json")
    document = json.loads(out)
    contract = read_contract(run / "model")
    assert code == 0 and contract.temperature == document["temperature"]["value"]
    assert contract.calibration is not None and contract.calibration["verdict"] == document["verdict"]
    assert (
        contract.calibration["held_out"]["ways"]["temperature"]["gain"]
        == (document["held_out"]["ways"]["temperature"]["gain"])
    )
    assert "reliability" in document["held_out"]["ways"]["raw"]
    assert "reliability" not in contract.calibration["held_out"]["ways"]["raw"]
    assert set(document["slices"]["temperatures"]) | set(document["slices"]["left_to_common"]) == {"t0", "t1"}
    # The temperature is no part of what the score is made of: the folder still proves itself.
    code, out, _ = cli("verify", run, "--json")
    assert (code, json.loads(out)["ok"]) == (0, True)
    code, out, _ = cli("evaluate", run, hard_pairs, "--json")
    judged = json.loads(out)
    assert judged["calibrated"]["temperature"] == contract.temperature
    assert judged["calibrated"]["log_loss"] != judged["log_loss"]


def test_what_cannot_be_calibrated_is_refused_and_nothing_is_written(cli, run, hard_pairs, toy_pairs):
    before = (run / "model" / "rewardsmith.json").read_text()
    foreign = run.parent / "foreign"
    shutil.copytree(run / "model", foreign)
    (foreign / "rewardsmith.json").unlink()
    for words in (
        ["calibrate", foreign, hard_pairs],
        ["calibrate", run, hard_pairs, "--false-alarms", "5"],
        ["calibrate", run, hard_pairs, "--false-alarms", "a,b"],
        ["calibrate", run, hard_pairs, "--by", "colour"],
        ["calibrate", run, hard_pairs, "--fit-share", "0"],
        ["calibrate", "http://127.0.0.1:9", hard_pairs],
        ["calibrate", run, run / "nothing.jsonl"],
    ):
        assert cli(*words)[0] == 2, words
    assert (run / "model" / "rewardsmith.json").read_text() == before


def test_compare_gives_the_paired_verdict(cli, run, tiny_rm, hard_pairs, tmp_path):
    code, out, err = cli("compare", run, tiny_rm("bert"), hard_pairs, "--out", tmp_path / "compared.json", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert {"accuracy_a", "accuracy_b", "difference", "p_value", "verdict", "slices"} <= set(document)
    assert document["num_pairs"] == 80 and document["num_prompts"] == 40
    assert document["difference"]["value"] == pytest.approx(
        document["accuracy_a"]["value"] - document["accuracy_b"]["value"]
    )
    assert json.loads((tmp_path / "compared.json").read_text()) == document
    assert cli("compare", run, run, hard_pairs, "--out", tmp_path / "compared.json")[0] == 2
    assert cli("compare", run, run, hard_pairs, "--out", tmp_path / "compared.json", "--overwrite")[0] == 0
    assert cli("compare", run, run, hard_pairs, "--out", hard_pairs, "--overwrite")[0] == 2
    code, out, err = cli("compare", run, run, hard_pairs)
    assert code == 0 and "do not tell" in out and "A minus B, paired" in err


def test_a_benchmark_is_judged_by_its_own_rule(cli, tiny_rm, write_rows, tmp_path):
    rows = [
        {
            "question": f"q {i}",
            "response_A": f"a {i}",
            "response_B": f"b {i}",
            "label": "A>B" if i % 2 else "B>A",
            "source": "mmlu-pro",
            "pair_id": str(i),
        }
        for i in range(12)
    ]
    data = write_rows(rows)
    out_folder = tmp_path / "judged"
    code, out, err = cli("evaluate", tiny_rm("bert"), data, "--benchmark", "judgebench", "--out", out_folder, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["benchmark"]["name"] == "judgebench" and document["benchmark"]["complete"] is False
    assert json.loads((out_folder / "report.json").read_text()) == document
    items = [json.loads(line) for line in (out_folder / "items.jsonl").read_text().splitlines()]
    right = np.mean([row["scores"][0] > row["scores"][1] for row in items])
    assert right in document["benchmark"]["published"].values()
    code, _, err = cli("evaluate", tiny_rm("bert"), data, "--benchmark", "judgebnech")
    assert code == 2 and "judgebench" in err
    assert cli("evaluate", tiny_rm("bert"), data, "--benchmark", "judgebench", "--by", "source")[0] == 2
    assert cli("evaluate", tiny_rm("bert"), data, "--benchmark", "rm-bench")[0] == 2


def test_training_fits_a_temperature_where_the_dev_part_allows(cli, tiny, write_rows, tmp_path):
    rows = [{"prompt": f"prompt {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(120)]
    rows += [{"prompt": f"prompt {i}", "chosen": f"no {i}", "rejected": f"yes {i}"} for i in range(120, 160)]
    sets = ["max_length=32", "learning_rate=0.003", "epochs=3", "dev_share=0.4"]
    flat = [word for one in sets for word in ("--set", one)]
    data = write_rows(rows)
    code, out, err = cli("train", "--model", tiny("bert"), "--data", data, "--out", tmp_path / "a", "--json", *flat)
    assert code == 0, err
    found = json.loads(out)["calibration"]
    contract = read_contract(tmp_path / "a" / "model")
    assert found["temperature"] is not None, found
    assert contract.temperature == found["temperature"]["value"] and "dev part" in contract.calibration["fitted_on"]
    few = [*flat[:-1], "dev_share=0.1"]
    code, out, _ = cli("train", "--model", tiny("bert"), "--data", data, "--out", tmp_path / "b", "--json", *few)
    found = json.loads(out)["calibration"]
    assert found["temperature"] is None and "of 30 needed" in found["reason"]
    assert read_contract(tmp_path / "b" / "model").temperature is None


def test_a_learning_curve_follows_the_runs_recipe(cli, tiny, write_rows, tmp_path):
    rows = [{"prompt": f"prompt {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(80)]
    train = write_rows(rows[:48], name="train.jsonl")
    held = write_rows(rows[48:], name="eval.jsonl")
    sets = ["max_length=32", "learning_rate=0.003", "epochs=1", "dev_share=0.1"]
    flat = [word for one in sets for word in ("--set", one)]
    run, judged = tmp_path / "run", tmp_path / "judged"
    code, _, err = cli("train", "--model", tiny("bert"), "--data", train, "--eval-data", held, "--out", run, *flat)
    assert code == 0 and "accuracy on training pairs minus eval pairs" in err, err
    assert "overfitting_gap" in json.loads((run / "report.json").read_text())
    asked = ["--learning-curve", "--train-data", train, "--shares", "0.25,0.5,1", "--repeats", "1"]
    code, out, err = cli("evaluate", run, held, *asked, "--base-model", tiny("bert"), "--out", judged, "--json")
    assert code == 0, err
    curve = json.loads(out)["learning_curve"]
    assert [point["share"] for point in curve["points"]] == [0.25, 0.5, 1.0]
    # The whole is the run itself.
    assert curve["points"][-1]["accuracy"]["value"] == json.loads(out)["accuracy"]["value"]
    assert curve["verdict"] in ("helps", "does not help", "cannot tell") and curve["reading"] in err
    assert cli("report", judged, "--json")[0] == 0 and "learning" in (judged / "report.html").read_text().lower()
    # Other data than the run's, or no data at all, are refused before anything is trained.
    assert cli("evaluate", run, held, "--learning-curve", "--train-data", held, "--base-model", tiny("bert"))[0] == 2
    assert cli("evaluate", run, held, "--learning-curve")[0] == 2
    assert cli("evaluate", run, held, "--train-data", train)[0] == 2
    assert cli("evaluate", run, held, "--dev-data", train)[0] == 2
    assert cli("evaluate", run, held, *asked[:3], "--shares", "1", "--base-model", tiny("bert"))[0] == 2


def test_words_are_written_for_the_hardest_pairs(cli, tiny_rm, toy_pairs, tmp_path):
    judged = tmp_path / "judged"
    code, _, err = cli("evaluate", tiny_rm("bert"), toy_pairs, "--attributions", "3", "--out", judged)
    assert code == 0 and "words:" in err, err
    rows = [json.loads(line) for line in (judged / "pairs.jsonl").read_text().splitlines()]
    shared = [row for row in rows if "attributions" in row]
    margins = sorted(row["score_chosen"] - row["score_rejected"] for row in rows)
    assert sorted(row["score_chosen"] - row["score_rejected"] for row in shared) == margins[:3]
    for row in shared:
        for side in ("chosen", "rejected"):
            one = row["attributions"][side]
            assert "".join(text for text, _ in one["tokens"]) == row[side]
            assert one["score"] == pytest.approx(row[f"score_{side}"], abs=1e-4)
    assert cli("evaluate", tiny_rm("bert"), toy_pairs, "--attributions", "3")[0] == 2
