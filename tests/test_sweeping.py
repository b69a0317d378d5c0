"""train --sweep: plain runs on one split, chosen by the dev part, judged once; and what is kept, refused and said."""

import json
from pathlib import Path

import pytest

from rewardsmith import runs
from rewardsmith.data.embedded import embedded_preferences
from rewardsmith.data.schema import as_row
from rewardsmith.errors import SettingsError, StuckError
from rewardsmith.storage import folder_lock
from rewardsmith.sweeping import axes_from, choose, make_plan, settings_rows, spread

SETS = ("max_length=32", "epochs=1", "batch_size=8", "dev_share=0.25", "precision=float32", "trainer.save_steps=0.5")
BASE = {"model": "m", "data": "d", "out": "o"}


@pytest.fixture
def words(tiny, toy_pairs, tmp_path):
    """The words of `train` on the toy pairs, without --sweep."""
    flat = [word for one in SETS for word in ("--set", one)]
    return ["train", "--model", tiny("bert"), "--data", toy_pairs, "--out", tmp_path / "sweep", *flat]


def row(name, *losses, accuracies=None, failed=()):
    """A row of the table, by hand."""
    return {
        "name": name,
        "runs": [f"{name},seed={i}" for i in range(len(losses))],
        "num_runs": len(losses),
        "dev_log_loss": spread(losses) if losses else None,
        "dev_accuracy": spread(accuracies or losses) if losses else None,
        "failed": dict.fromkeys(failed, "stuck"),
    }


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("learning_rate=1e-5,2e-5", ("1e-5", "2e-5")),
        ("loss.name=bradley_terry, davidson", ("bradley_terry", "davidson")),
        ('lora.targets=all-linear,["q_proj","v_proj"]', ("all-linear", '["q_proj","v_proj"]')),
        ("lora={rank=8, dora=true},true", ("{rank=8, dora=true}", "true")),
        ('template="{prompt}, {answer}"', ('"{prompt}, {answer}"',)),
        ("seed=3", ("3",)),
    ],
)
def test_values_are_parted_at_commas_outside_of_quotes_and_brackets(text, values):
    assert axes_from([text])[0].values == values


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["seed"], "key=value,value"),
        (["=1,2"], "key=value,value"),
        (["seed=0,,1"], "comma"),
        (["seed="], "comma"),
        (['lora.targets=["q_proj","v_proj"'], "Close"),
        (["seed=0", "seed=1"], "in two"),
        (["data=a,b"], "share"),
        (["dev_share=0.1,0.2"], "share"),
        (["loss.allow_negative_margin=true,false"], "share"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(texts, said):
    with pytest.raises(SettingsError, match=said):
        axes_from(texts)


def test_every_combination_is_a_run_and_seeds_of_a_setting_stand_together():
    plan = make_plan(BASE | {"seed": 7}, ["seed=0,1", "learning_rate=1e-5,2e-5", "freeze=none,-3"])
    assert [one.name for one in plan.runs][:3] == [
        "freeze=none,learning_rate=1e-05,seed=0",
        "freeze=none,learning_rate=1e-05,seed=1",
        "freeze=-3,learning_rate=1e-05,seed=0",
    ]
    assert len(plan.runs) == 8 and len({one.setting_name for one in plan.runs}) == 4
    assert {one.settings.seed for one in plan.runs} == {0, 1} and plan.shared.seed == 7
    assert {one.settings.freeze for one in plan.runs} == {"none", -3}
    assert {(one.settings.data, one.settings.dev_data) for one in plan.runs} == {
        ("o/data/train.jsonl", "o/data/dev.jsonl")
    }
    assert {one.settings.eval_data for one in plan.runs} == {None}


def test_names_are_plain_and_stable():
    one = make_plan(BASE, ["learning_rate=0.00001,3e-5", "seed=0"]).runs[0].name
    assert one == make_plan(BASE, ["seed=0,1", "learning_rate=1e-5"]).runs[0].name == "learning_rate=1e-05,seed=0"
    for text in (
        'template="{prompt} / {answer}","{prompt}: {answer}"',
        "lora={rank=8},{rank=9}",
        "model=/a/m,/b/m",
        "freeze=3,-3",
    ):
        names = [one.name for one in make_plan(BASE, [text]).runs]
        assert len(set(names)) == 2
        assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789=,._-") for name in names)
        assert all(len(name) < 200 for name in names)


def test_given_dev_data_are_used_as_they_are():
    plan = make_plan(BASE | {"dev_data": "v"}, ["seed=0,1"])
    assert {(one.settings.data, one.settings.dev_data) for one in plan.runs} == {("d", "v")}


@pytest.mark.parametrize(
    ("base", "text", "said"),
    [
        ({}, "learning_rate=1e-5,-1", r"learning_rate.*in the run learning_rate=-1"),
        ({}, "lerning_rate=1", "learning_rate"),
        ({}, "learning_rate=1e-5,0.00001", "twice"),
        ({"dev_share": 0}, "seed=0,1", "dev part"),
    ],
)
def test_a_combination_that_cannot_be_run_is_named(base, text, said):
    with pytest.raises(SettingsError, match=said):
        make_plan(BASE | base, [text])


def test_spread_by_hand_and_of_one_run_it_is_not_known():
    # Mean 2, squares 1 + 0 + 1 over n - 1 = 2: deviation 1.
    assert spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "sd": 1.0, "min": 1.0, "max": 3.0, "n": 3}
    assert spread([0.5])["sd"] is None


def test_the_lowest_mean_log_loss_is_chosen_and_small_differences_are_said_to_be_small():
    # Means 0.50, 0.60, 0.52; deviations 0.1 sqrt(2) / 2 = 0.0707 (b: 0, c: 0.0283): only c is nearer than the larger deviation.
    rows = [row("a", 0.45, 0.55), row("b", 0.60, 0.60), row("c", 0.50, 0.54)]
    found = choose(rows, by="log_loss")
    assert found["name"] == "a" and found["runs"] == ["a,seed=0", "a,seed=1"]
    assert "0.5000, 2 runs" in found["reason"]
    assert "c (difference 0.0200, spread 0.0707)" in found["spread"] and "b (" not in found["spread"]
    assert "larger than the spread" in choose([rows[1], row("d", 0.1, 0.1)], by="log_loss")["spread"]


def test_one_run_a_setting_says_that_the_spread_is_not_known():
    found = choose([row("a", 0.5), row("b", 0.6)], by="log_loss")
    assert "1 run" in found["reason"] and "not known" in found["spread"]
    assert "no other setting" in choose([row("a", 0.5)], by="log_loss")["spread"]


def test_a_setting_with_a_failed_run_is_chosen_only_where_all_have_one():
    whole, lucky, lost = (
        row("whole", 0.6, 0.6),
        row("lucky", 0.3, failed=["lucky,seed=1"]),
        row("lost", failed=["lost,seed=0"]),
    )
    found = choose([lucky, lost, whole], by="log_loss")
    assert found["name"] == "whole" and "failed: lucky" in found["reason"]
    assert choose([lost, lucky], by="log_loss")["name"] == "lucky"


def test_runs_of_different_losses_are_chosen_by_accuracy():
    assert make_plan(BASE, ["loss.name=bradley_terry,flip_noise"]).chosen_by == "accuracy"
    assert make_plan(BASE, ["loss.centring=0,0.01", "seed=0,1"]).chosen_by == "log_loss"
    rows = [row("a", 0.2, accuracies=[0.6]), row("b", 0.9, accuracies=[0.7])]
    found = choose(rows, by="accuracy")
    assert (
        found["name"] == "b"
        and "highest mean dev accuracy" in found["reason"]
        and "cannot be compared" in found["reason"]
    )


def test_a_sweep_through_the_command_line(cli, words, write_rows, toy_pairs, tmp_path):
    """The whole promise, once: one split, choice by dev, eval by the chosen runs alone, everything in sweep.json, and an average of the seeds."""
    pairs = embedded_preferences()[-40:]
    leaked = [json.loads(line) for line in Path(toy_pairs).read_text().splitlines()][:3]
    judge_by = write_rows([*map(as_row, pairs), *leaked], "eval.jsonl")
    out = tmp_path / "sweep"
    axes = ("--sweep", "learning_rate=1e-5,3e-3", "--sweep", "seed=0,1")
    code, printed, err = cli(*words, "--eval-data", judge_by, *axes, "--json")
    assert code == 0, err
    assert "runs to make: 4 (settings: 2, seeds: 2)" in err
    document = json.loads(printed)
    assert {"sweep": "sweep", **json.loads((out / "sweep.json").read_text())} == document
    assert document["outcome"] == "finished" and str(tmp_path) not in printed

    # One split for all: that of a plain run with the seed of the sweep.
    names = list(document["runs"])
    reports = {name: json.loads((out / name / "report.json").read_text()) for name in names}
    manifests = [json.loads((out / name / "manifest.json").read_text()) for name in names]
    assert len({m["identity"]["data"]["dev_data"] for m in manifests}) == 1
    assert {m["settings"]["seed"] for m in manifests} == {0, 1}
    dev_ids = [json.loads(line)["id"] for line in (out / "data/dev.jsonl").read_text().splitlines()]
    plain = runs.read_pairs(toy_pairs)
    from rewardsmith.data.split import split_by_prompt

    assert dev_ids == [pair.id for pair in split_by_prompt(plain, 0.25, seed=0)[1]]
    assert document["split"]["dev"]["rows"] == len(dev_ids) == 12 and document["split"]["train"]["rows"] == 36

    # The rows of the table are those of the reports.
    for found in document["rows"]:
        own = [reports[name] for name in found["runs"]]
        kept = [p for r in own for p in r["dev_points"] if p["step"] == r["training"]["kept_step"]]
        losses = [point["log_loss"] for point in kept]
        assert found["dev_log_loss"]["mean"] == pytest.approx(sum(losses) / 2)
        # Two values: |a - b| / sqrt(2).
        assert found["dev_log_loss"]["sd"] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
        accuracies = [report["overfitting"]["dev"]["value"] for report in own]
        assert found["dev_accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
        assert found["seeds"] == [0, 1] and found["seconds"] > 0
    best = min(document["rows"], key=lambda found: found["dev_log_loss"]["mean"])
    assert document["chosen"]["name"] == best["name"] == "learning_rate=0.003"

    # The eval pairs were scored by the chosen runs alone, without those that were trained on.
    assert all(report["eval"] is None for report in reports.values())
    assert [name for name in names if (out / name / "eval.json").exists()] == best["runs"]
    judged = document["eval"]
    assert judged["data"]["leaked"]["count"] == 3 and "3 of 43 eval pairs" in err
    own = write_rows(list(map(as_row, pairs)), "own.jsonl")
    for name in best["runs"]:
        code, found, _ = cli("evaluate", out / name, own, "--json")
        assert json.loads(found)["accuracy"] == judged["accuracy"][name]
    assert judged["spread"]["n"] == 2

    # A finished sweep is refused, as any finished run is; and one model can be made of its seeds.
    assert cli(*words, "--eval-data", judge_by, *axes)[0] == 2
    members = [out / name for name in best["runs"]]
    code, printed, err = cli("average", *members, "--out", tmp_path / "one", "--data", own, "--json")
    assert code == 0, err
    assert "different heads" in err
    accuracies = json.loads(printed)["accuracy"]
    assert [accuracies[name] for name in best["runs"]] == [judged["accuracy"][name] for name in best["runs"]]
    assert cli("verify", tmp_path / "one")[0] == 0
    assert "accuracy on 40 pairs" in cli("average", *members, "--out", tmp_path / "two", "--data", own)[2]


def test_an_interrupted_sweep_goes_on_and_keeps_what_is_finished(cli, words, tmp_path, monkeypatch):
    out, real, seen = tmp_path / "sweep", runs.train, []

    def once(settings, **rest):
        seen.append(Path(settings.out).name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(settings, **rest)

    monkeypatch.setattr(runs, "train", once)
    assert cli(*words, "--sweep", "seed=0,1")[0] == 130
    document = json.loads((out / "sweep.json").read_text())
    assert document["outcome"] == "interrupted" and document["runs"]["seed=1"]["outcome"] == "interrupted"
    first = (out / "seed=0/manifest.json").read_bytes()

    # Another sweep there is refused, before and after the lock; so is a plain run, and a sweep while another holds the folder.
    assert "others (runs)" in cli(*words, "--sweep", "seed=0,2")[2]
    assert cli(*words)[0] == 2
    del seen[2:]  # the plain run
    with folder_lock(out):
        assert "locked" in cli(*words, "--sweep", "seed=0,1")[2]

    code, printed, err = cli(*words, "--sweep", "seed=0,1", "--json")
    assert code == 0, err
    assert seen == ["seed=0", "seed=1", "seed=1"] and "seed=0 is finished and kept" in err
    assert (out / "seed=0/manifest.json").read_bytes() == first
    assert json.loads(printed)["rows"][0]["num_runs"] == 2 and json.loads(printed)["eval"] is None


def test_a_failed_run_is_a_row_with_its_reason_and_all_failed_is_an_error(cli, words, tmp_path, monkeypatch):
    out, real = tmp_path / "sweep", runs.train

    def stuck(settings, **rest):
        if settings.learning_rate > 0.001:
            raise StuckError("margins that differ", "0 in every pair", "Look at the data.")
        return real(settings, **rest)

    monkeypatch.setattr(runs, "train", stuck)
    code, printed, err = cli(*words, "--sweep", "learning_rate=1,2")
    assert code == 1 and "learning_rate=1: needed margins that differ" in err
    assert json.loads((out / "sweep.json").read_text())["outcome"] == "failed"
    (out / "mine.txt").write_text("not of the sweep")
    code, printed, err = cli(*words, "--sweep", "learning_rate=1,1e-4", "--overwrite", "--json")
    assert code == 0, err
    document = json.loads(printed)
    assert document["rows"][0]["failed"] == {
        "learning_rate=1": "needed margins that differ; got 0 in every pair. Look at the data."
    }
    assert document["rows"][0]["dev_log_loss"] is None and document["chosen"]["name"] == "learning_rate=0.0001"
    assert "learning_rate=1 failed" in err
    # --overwrite took what the sweep had made, and nothing else.
    assert (out / "mine.txt").exists() and not (out / "learning_rate=2").exists()


def test_a_run_that_diverges_does_not_end_the_sweep(cli, words):
    code, printed, err = cli(*words, "--sweep", "learning_rate=1e30,1e-3", "--json")
    assert code == 0, err
    document = json.loads(printed)
    assert list(document["rows"][0]["failed"]) == ["learning_rate=1e+30"]
    assert document["chosen"]["runs"] == ["learning_rate=0.001"]


@pytest.mark.parametrize(
    ("axis", "more", "said"),
    [
        ("batch_size=8,9", ("--set", "trainer.gradient_accumulation_steps=2"), "in the run batch_size=9"),
        ("learning_rate=1e-5,2e-5", ("--set", "trainer.learning_rate=1e-4"), "would train the same"),
        ("trainer.nonsense=1,2", (), "nonsense"),
        ("model=./nowhere,./elsewhere", (), "nowhere"),
        ("seed=0,1", ("--eval-data", "missing.jsonl"), "missing.jsonl"),
        ("seed=0,1", ("--set", "dev_share=0"), "dev part"),
        ("loss.name=bradley_terry,davidson", (), "tie"),
    ],
)
def test_everything_is_judged_before_the_first_run(axis, more, said, cli, words, tmp_path):
    code, _, err = cli(*words, *more, "--sweep", axis)
    assert code == 2 and said in err
    assert not (tmp_path / "sweep").exists()


def test_losses_of_lists_and_of_pairs_are_swept_over_one_split_of_the_groups(cli, words, write_rows, tmp_path):
    rows = [
        {"id": f"g{i}", "prompt": f"prompt {i}", "ranked": [f"best {i}", f"fair {i}", f"worst {i}"]} for i in range(16)
    ]
    words[words.index("--data") + 1] = write_rows(rows)
    code, printed, err = cli(*words, "--sweep", "loss.name=bradley_terry,plackett_luce", "--json")
    assert code == 0, err
    document = json.loads(printed)
    # A quarter of 16 groups; each of them says three things about pairs, whatever the loss reads.
    assert document["split"]["dev"]["rows"] == 4
    parts = [json.loads((tmp_path / "sweep" / name / "report.json").read_text()) for name in document["runs"]]
    assert [part["overfitting"]["dev"]["n"] for part in parts] == [12, 12]
    assert document["chosen"]["by"] == "dev_accuracy"


def test_a_folder_of_other_things_is_never_a_sweep(cli, words, tmp_path):
    out = tmp_path / "sweep"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    (out / "sweep.json").write_text('{"verb": "sweep"}')
    for flag in ([], ["--overwrite"]):
        assert cli(*words, *flag, "--sweep", "seed=0,1")[0] == 2
    assert {path.name for path in out.iterdir()} == {"thesis.txt", "sweep.json"}


def test_rows_with_faults_are_counted_by_each_run_and_dev_data_are_not_split(
    cli, words, write_rows, toy_pairs, tmp_path
):
    rows = [json.loads(line) for line in Path(toy_pairs).read_text().splitlines()]
    data = write_rows([*rows, {"id": "empty", "prompt": "How do I mend item 0?", "chosen": "", "rejected": "r"}])
    words[words.index("--data") + 1] = data
    assert cli(*words, "--sweep", "seed=1")[0] == 0
    manifest = json.loads((tmp_path / "sweep/seed=1/manifest.json").read_text())
    assert manifest["dropped"]["counts"] == {"empty_answer": 1}
    assert manifest["counts"]["train_pairs"] + manifest["counts"]["dev_pairs"] == 48
    given = write_rows(rows[:8], "dev.jsonl")
    words[words.index("dev_share=0.25")] = "dev_share=0.05"
    words[words.index("--out") + 1] = tmp_path / "given"
    assert cli(*words, "--dev-data", given, "--sweep", "seed=1")[0] == 0
    assert not (tmp_path / "given/data").exists()


def test_a_setting_without_a_finished_run_has_no_numbers():
    plan = make_plan(BASE, ["seed=0,1"])
    failed = {
        one.name: {"setting": {}, "seed": one.seed, "outcome": "failed", "reason": "r", "seconds": 1.0}
        for one in plan.runs
    }
    found = settings_rows(plan, failed)
    assert found[0]["num_runs"] == 0 and found[0]["dev_log_loss"] is None and found[0]["seconds"] == 2.0
