"""Training runs of tiny models, whole: they learn, stop, go on, refuse, and leave what they promise."""

import functools
import io
import json
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import rewardsmith
from rewardsmith.errors import DataError, OutputError, SettingsError, StuckError
from rewardsmith.model.artefact import verify
from rewardsmith.model.checkpoints import complete_checkpoints
from rewardsmith.model.precision import choose_precision
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.training_data import read_data
from tests.conftest import ENCODERS

QUIET = Console(file=io.StringIO())


def recipe(model, data, out, **more):
    return {
        "model": model,
        "data": data,
        "out": str(out),
        "max_length": 64,
        "learning_rate": 3e-3,
        "batch_size": 8,
        "dev_share": 0.2,
        "precision": "float32",
        "device": "cpu",
        **more,
    }


def train(*arguments, overwrite=False, **more):
    return rewardsmith.train(recipe(*arguments, **more), overwrite=overwrite, console=QUIET)


@pytest.mark.parametrize("family", [*ENCODERS, "qwen2"])
def test_every_family_learns_and_saves_a_proven_model(family, tiny, toy_pairs, tmp_path):
    out = tmp_path / "run"
    report = train(tiny(family), toy_pairs, out, eval_data=toy_pairs, epochs=6, trainer={"save_steps": 10})
    assert report["eval"]["accuracy"]["value"] > 0.9
    assert report["eval"]["baselines"]["longer"]["value"] < 0.9
    assert {path.name for path in out.iterdir()} >= {
        "model",
        "manifest.json",
        "report.json",
        "pairs.jsonl",
        "curves.png",
        "checkpoints",
    }
    assert all(check.ok for check in verify(str(out / "model")))
    rows = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    pairs = rewardsmith.read_pairs(toy_pairs)
    assert [row["id"] for row in rows] == [p.id for p in pairs]
    scores = RewardModel.load(out).score([p.chosen_pair for p in pairs])
    assert np.allclose([row["score_chosen"] for row in rows], scores, atol=1e-5)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["outcome"] == "finished"
    assert manifest["counts"]["train_pairs"] + manifest["counts"]["dev_pairs"] == 48
    assert str(tmp_path) not in (out / "manifest.json").read_text() + (out / "model" / "manifest.json").read_text()
    assert str(tmp_path) not in (out / "report.json").read_text()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_saved_model_scores_in_float32_whatever_trained_it(precision, tiny, toy_pairs, tmp_path):
    """Accelerate leaves an autocast around the model; a save through it would prove itself wrong."""
    train(tiny("bert"), toy_pairs, tmp_path / "run", precision=precision)
    assert all(check.ok for check in verify(str(tmp_path / "run") + "/model"))


def test_the_kept_checkpoint_has_the_lowest_dev_log_loss(tiny, toy_pairs, tmp_path):
    """With a learning rate far too high the last checkpoint is not the best one."""
    out = tmp_path / "run"
    report = train(tiny("bert"), toy_pairs, out, learning_rate=0.3, epochs=4, trainer={"save_steps": 2})
    points = {point["step"]: point["log_loss"] for point in report["dev_points"]}
    kept = report["training"]["kept_step"]
    assert points[kept] == min(loss for step, loss in points.items() if step > 0)
    assert kept in [int(path.name.partition("-")[2]) for path in complete_checkpoints(out / "checkpoints")]
    weights = load_file(out / "model" / "model.safetensors")
    stored = load_file(out / "checkpoints" / f"checkpoint-{kept}" / "model.safetensors")
    assert all(torch.equal(weights[name], stored[name]) for name in weights)


def test_without_a_dev_part_the_last_checkpoint_is_kept(tiny, toy_pairs, tmp_path):
    report = train(tiny("bert"), toy_pairs, tmp_path / "run", dev_share=0)
    assert report["dev_points"] == [] and set(report["overfitting"]) == {"train"}
    assert report["training"]["kept_step"] == report["training"]["steps"] == 6


def test_the_same_command_twice_gives_the_same_weights(tiny, toy_pairs, tmp_path):
    for name in ("a", "b"):
        train(tiny("bert"), toy_pairs, tmp_path / name)
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_interrupted_run_goes_on_to_the_same_weights(tiny, toy_pairs, tmp_path, monkeypatch):
    settings = {"epochs": 2, "trainer": {"save_steps": 3}}
    train(tiny("bert"), toy_pairs, tmp_path / "whole", **settings)
    from rewardsmith.model.trainer import PreferenceTrainer

    original = PreferenceTrainer.compute_loss

    def breaks(self, *arguments, **more):
        if self.state.global_step == 7:
            raise KeyboardInterrupt
        return original(self, *arguments, **more)

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", breaks)
    with pytest.raises(KeyboardInterrupt):
        train(tiny("bert"), toy_pairs, tmp_path / "cut", **settings)
    assert json.loads((tmp_path / "cut" / "manifest.json").read_text())["outcome"] == "interrupted"
    monkeypatch.setattr(PreferenceTrainer, "compute_loss", original)
    with pytest.raises(OutputError, match=r"settings\.seed"):
        train(tiny("bert"), toy_pairs, tmp_path / "cut", seed=5, **settings)
    # A checkpoint that a kill left half-written is removed, not resumed from.
    broken = tmp_path / "cut" / "checkpoints" / "checkpoint-7"
    shutil.copytree(tmp_path / "cut" / "checkpoints" / "checkpoint-6", broken)
    (broken / "complete.json").unlink()
    (broken / "model.safetensors").write_bytes(b"half")
    report = train(tiny("bert"), toy_pairs, tmp_path / "cut", **settings)
    assert not broken.exists()
    assert [point["step"] for point in report["dev_points"]] == [0, 3, 6, 9, 10]
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_keeps_its_best_checkpoint(tiny, toy_pairs, tmp_path, monkeypatch):
    """The state inside a checkpoint was written before its dev part was scored; rotation must not go by it."""
    from rewardsmith.model import training as module

    losses = {0: 0.7, 1: 0.6, 2: 0.1, 3: 0.5, 4: 0.5, 5: 0.5}
    seen = []
    monkeypatch.setattr(module, "dev_numbers", lambda *arguments, **more: (losses[len(seen) - 1], 0.5))
    from rewardsmith.model.callbacks import SelectionCallback

    score = SelectionCallback._point

    def counted(self, state):
        seen.append(state.global_step)
        while len(seen) - 1 < state.global_step:
            seen.append(state.global_step)
        return score(self, state)

    monkeypatch.setattr(SelectionCallback, "_point", counted)
    from rewardsmith.model.trainer import PreferenceTrainer

    loss = PreferenceTrainer.compute_loss

    def breaks(self, *arguments, **more):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return loss(self, *arguments, **more)

    settings = {"trainer": {"save_steps": 1}}
    monkeypatch.setattr(PreferenceTrainer, "compute_loss", breaks)
    with pytest.raises(KeyboardInterrupt):
        train(tiny("bert"), toy_pairs, tmp_path / "run", **settings)
    monkeypatch.setattr(PreferenceTrainer, "compute_loss", loss)
    report = train(tiny("bert"), toy_pairs, tmp_path / "run", **settings)
    assert report["training"]["kept_step"] == 2


def test_the_seed_of_the_trainer_table_wins_everywhere(tiny, toy_pairs, tmp_path):
    train(tiny("bert"), toy_pairs, tmp_path / "a", seed=5)
    train(tiny("bert"), toy_pairs, tmp_path / "b", trainer={"seed": 5})
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_data_that_cannot_be_judged_stop_before_training(tiny, toy_pairs, write_rows, tmp_path):
    ties = write_rows(
        [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "tie": True} for i in range(4)], "ties.jsonl"
    )
    for name in ("eval_data", "dev_data"):
        settings = recipe(tiny("bert"), toy_pairs, tmp_path / "run", **{name: ties})
        if name == "dev_data":
            del settings["dev_share"]
        with pytest.raises(DataError, match="two answers and a winner"):
            rewardsmith.train(settings, console=QUIET)
        assert not (tmp_path / "run").exists()


def test_a_folder_that_may_not_be_written_is_refused(tiny, toy_pairs, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="other things"):
            train(tiny("bert"), toy_pairs, out, overwrite=overwrite)
    assert (out / "thesis.tex").exists()
    train(tiny("bert"), toy_pairs, tmp_path / "mine")
    with pytest.raises(OutputError, match="finished"):
        train(tiny("bert"), toy_pairs, tmp_path / "mine")
    train(tiny("bert"), toy_pairs, tmp_path / "mine", seed=5, overwrite=True)


def test_settings_are_judged_before_data_and_data_before_the_model(toy_pairs, tmp_path):
    for change, error in (
        ({"trainer": {"lerning_rate": 1}, "data": "absent.jsonl"}, SettingsError),
        ({"trainer": {"output_dir": "x"}, "data": "absent.jsonl"}, SettingsError),
        ({"trainer": {"gradient_accumulation_steps": 3}, "data": "absent.jsonl"}, SettingsError),
        ({"data": "absent.jsonl"}, DataError),
    ):
        with pytest.raises(error):
            rewardsmith.train({**recipe("no-such-model", toy_pairs, tmp_path / "o"), **change}, console=QUIET)
        assert not (tmp_path / "o").exists()


def test_a_name_in_the_trainer_table_wins_and_is_printed(tiny, toy_pairs, tmp_path):
    with open(tmp_path / "log", "w") as file:
        settings = recipe(tiny("bert"), toy_pairs, tmp_path / "run", trainer={"learning_rate": 1e-3})
        report = rewardsmith.train(settings, console=Console(file=file, width=200))
    assert "trainer.learning_rate = 0.001 wins over learning_rate = 0.003" in (tmp_path / "log").read_text()
    assert max(line["learning_rate"] for line in report["history"]) <= 1e-3


def test_pairs_that_the_cut_makes_equal_are_dropped_and_counted(tiny, write_rows, tmp_path):
    """Trap 5: under the naive cut a long shared prompt leaves nothing of the answers."""
    long = [{"id": f"long-{i}", "prompt": "word " * 600, "chosen": "yes", "rejected": "no"} for i in range(2)]
    with pytest.raises(DataError, match=r"none left.*2 truncated_equal"):
        train(tiny("bert"), write_rows(long), tmp_path / "a", truncation="right", dev_share=0)
    short = [{"id": f"s{i}", "prompt": f"q{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(60)]
    report = train(tiny("bert"), write_rows(short + long), tmp_path / "b", truncation="right", dev_share=0)
    assert report["dropped"]["counts"] == {"truncated_equal": 2}
    assert report["dropped"]["ids"]["truncated_equal"] == ["long-0", "long-1"]
    # keep_answer has no such pairs; drop leaves them out as over-long.
    report = train(tiny("bert"), write_rows(short + long), tmp_path / "c", dev_share=0)
    assert report["dropped"]["counts"] == {}
    report = train(tiny("bert"), write_rows(short + long), tmp_path / "d", truncation="drop", dev_share=0)
    assert report["dropped"]["counts"] == {"over_length": 2}


def test_label_columns_reach_the_loss(tiny, write_rows, tmp_path):
    """Each column moves the weights; columns of neutral values move nothing."""
    rows = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(16)]
    columns = {
        "plain": lambda i: {},
        "margin": lambda i: {"margin": 2.0 * (i % 2)},
        "votes": lambda i: {"votes": [3, 1 + i % 2]},
        "tie": lambda i: {"tie": i % 2 == 0},
        "weight": lambda i: {"weight": float(i % 2)},  # a constant weight would change nothing under Adam
        "neutral": lambda i: {"margin": 0.0, "votes": [4, 0], "weight": 1.0, "tie": False},
    }
    weights = {}
    for name, column in columns.items():
        data = write_rows([row | column(i) for i, row in enumerate(rows)], f"{name}.jsonl")
        train(tiny("bert"), data, tmp_path / name, dev_share=0)
        weights[name] = load_file(tmp_path / name / "model" / "model.safetensors")["classifier.weight"]
    assert torch.allclose(weights["plain"], weights["neutral"], atol=1e-6)
    names = [name for name in columns if name != "neutral"]
    same = [(a, b) for i, a in enumerate(names) for b in names[:i] if torch.allclose(weights[a], weights[b], atol=1e-6)]
    assert not same


def said(tiny, data, out, **more):
    """What a run prints."""
    console = Console(file=io.StringIO(), width=300)
    rewardsmith.train(recipe(tiny("bert"), data, out, **more), console=console)
    return console.file.getvalue()


def test_a_margin_column_of_zeros_is_said(tiny, write_rows, tmp_path):
    """Trap 4."""
    rows = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": f"no {i}", "margin": 0} for i in range(16)]
    assert "the column `margin` is 0 in every row" in said(tiny, write_rows(rows), tmp_path / "a", dev_share=0)
    rows[3]["margin"] = 1
    text = said(tiny, write_rows(rows), tmp_path / "b", dev_share=0)
    assert "is 0 in every row" not in text and "margin (16 rows)" in text


def test_labels_that_the_texts_give_away_are_said(tiny, write_rows, tmp_path, monkeypatch):
    """Trap 21: a new head that ranks the dev part before the first step has seen the labels."""
    # Sides drawn from one distribution: were they "yes" and "no" throughout, any random head would rank all or none.
    words, draw = ["up", "down", "left", "right", "north", "south", "east", "west"], np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, size=6)) for _ in range(240)]
    rows = [{"prompt": f"q{i}", "chosen": texts[i], "rejected": texts[i + 120]} for i in range(120)]
    assert "give the labels away" not in said(tiny, write_rows(rows), tmp_path / "a", dev_share=0.5)
    from rewardsmith.model import dev_part as module

    original = module.head_outputs

    def leaks(network, table, **more):
        outputs = original(network, table, **more)
        outputs[0::2] += 10
        return outputs

    monkeypatch.setattr(module, "head_outputs", leaks)
    assert "give the labels away" in said(tiny, write_rows(rows), tmp_path / "b", dev_share=0.5)


def test_logs_go_where_the_trainer_sends_them(tiny, toy_pairs, tmp_path):
    pytest.importorskip("tensorboard")
    train(tiny("bert"), toy_pairs, tmp_path / "run", trainer={"report_to": "tensorboard", "logging_steps": 2})
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_a_frozen_encoder_stays_as_it_was_and_trips_no_guard(tiny, toy_pairs, tmp_path):
    train(tiny("bert"), toy_pairs, tmp_path / "run", freeze="encoder", epochs=4, trainer={"warmup_steps": 10})
    before, after = (
        load_file(Path(tiny("bert")) / "model.safetensors"),
        load_file(tmp_path / "run/model/model.safetensors"),
    )
    assert torch.equal(before["encoder.layer.0.output.dense.weight"], after["bert.encoder.layer.0.output.dense.weight"])


def test_accumulation_and_checkpointing_train_the_same_model(tiny, toy_pairs, tmp_path):
    """One batch of 8 pairs, or four of 2 with recomputed activations: the same optimiser step up to rounding."""
    shared = {"dev_share": 0, "trainer": {"max_steps": 1, "warmup_steps": 0, "learning_rate": 1e-3}}
    rows = [json.loads(line) for line in Path(toy_pairs).read_text().splitlines()][:8]
    data = tmp_path / "eight.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(tiny("bert"), str(data), tmp_path / "a", **shared)
    shared["trainer"] = {**shared["trainer"], "gradient_accumulation_steps": 4, "activation_checkpointing": True}
    train(tiny("bert"), str(data), tmp_path / "b", **shared)
    a, b = (RewardModel.load(tmp_path / name) for name in ("a", "b"))
    pairs = [(row["prompt"], row["chosen"]) for row in rows]
    assert np.allclose(a.score(pairs), b.score(pairs), atol=2e-3)
    start = RewardModel.load(tmp_path / "a").network.head_module.weight
    assert not torch.equal(start, torch.zeros_like(start))


def test_a_model_that_sees_no_difference_is_stopped(tiny, toy_pairs, tmp_path, monkeypatch):
    """Trap 21: the pooled token is the same for both sides."""
    from rewardsmith.model.network import Network

    original = Network.outputs

    def pools_nothing(self, batch):
        outputs = original(self, batch)
        return outputs[0::2].repeat_interleave(2, dim=0) if self.model.training else outputs

    monkeypatch.setattr(Network, "outputs", pools_nothing)
    with pytest.raises(StuckError, match=r"0\.693"):
        train(tiny("bert"), toy_pairs, tmp_path / "run", epochs=10, trainer={"warmup_steps": 0})
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["outcome"] == "failed"


def test_a_non_finite_step_stops_and_keeps_the_last_checkpoint(tiny, toy_pairs, tmp_path, monkeypatch):
    from rewardsmith.errors import NonFiniteError
    from rewardsmith.model import trainer

    original = trainer.batch_loss
    calls = []

    def overflows(*arguments, **more):
        calls.append(1)
        return original(*arguments, **more) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(trainer, "batch_loss", overflows)
    with pytest.raises(NonFiniteError, match="step 5, in float32, rows toy-"):
        train(tiny("bert"), toy_pairs, tmp_path / "run", trainer={"save_steps": 2})
    assert [path.name for path in complete_checkpoints(tmp_path / "run" / "checkpoints")] == [
        "checkpoint-2",
        "checkpoint-4",
    ]


def test_fp16_is_refused_for_deberta(tiny, tmp_path):
    """Trap 19; on a GPU too, and without one fp16 is refused for every family, before the data are read."""
    for device in ("cuda", "cpu"):
        with pytest.raises(SettingsError, match="deberta-v2 survives.*bf16"):
            choose_precision("fp16", torch.device(device), "deberta-v2")
    assert choose_precision("fp16", torch.device("cuda"), "bert").name == "fp16"
    with pytest.raises(SettingsError, match="CUDA"):
        train(tiny("deberta-v2"), "absent.jsonl", tmp_path / "run", precision="fp16")


def test_going_on_from_a_reward_model_starts_from_its_scores(tiny, toy_pairs, tmp_path):
    train(tiny("bert"), toy_pairs, tmp_path / "first", epochs=4)
    report = train(str(tmp_path / "first"), toy_pairs, tmp_path / "second", seed=0)
    manifest = json.loads((tmp_path / "second" / "manifest.json").read_text())
    assert manifest["model"]["head"] == "loaded"
    first = json.loads((tmp_path / "first" / "report.json").read_text())
    kept = min(point["log_loss"] for point in first["dev_points"])
    assert report["dev_points"][0]["log_loss"] == pytest.approx(kept, abs=1e-6)


LIMITED = """
    import resource, signal, sys
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    from rewardsmith.cli import main
    from rewardsmith.model.trainer import PreferenceTrainer
    original = PreferenceTrainer._save_checkpoint
    def save(self, *arguments):
        if self.state.global_step > 2:  # the disk fills up after the first checkpoint
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
        return original(self, *arguments)
    PreferenceTrainer._save_checkpoint = save
    sys.exit(main(sys.argv[1:]))
"""


def words(tiny, toy_pairs, out):
    sets = ["max_length=64", "batch_size=8", "dev_share=0.2", "epochs=2", "trainer.save_steps=2"]
    flat = [word for one in sets for word in ("--set", one)]
    return ["train", "--model", tiny("bert"), "--data", toy_pairs, "--out", str(out), "--precision", "float32", *flat]


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs file-size limits")
def test_a_full_disk_keeps_the_last_good_checkpoint(tiny, toy_pairs, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), *words(tiny, toy_pairs, out)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    assert "room to write" in found.stderr and "goes on from the last good checkpoint" in found.stderr
    assert [path.name for path in (out / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (out / "model").exists()
    done = subprocess.run(
        [sys.executable, "-m", "rewardsmith", *command[3:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "going on from checkpoint-2" in done.stderr


def test_ctrl_c_ends_with_130_and_a_whole_checkpoint(tiny, toy_pairs, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rewardsmith", *words(tiny, toy_pairs, out), "--set", "epochs=2000"]
    # A shell's background jobs ignore SIGINT, and their children inherit that.
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
    deadline = time.monotonic() + 120
    while not complete_checkpoints(out / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "goes on from the last good checkpoint" in errors
    assert json.loads((out / "manifest.json").read_text())["outcome"] == "interrupted"
    assert complete_checkpoints(out / "checkpoints")


def test_a_run_in_progress_is_not_touched(tiny, toy_pairs, tmp_path):
    from rewardsmith.storage import folder_lock

    train(tiny("bert"), toy_pairs, tmp_path / "run")
    code = f"from pathlib import Path\nimport time\nfrom rewardsmith.storage import folder_lock\nwith folder_lock(Path({str(tmp_path / 'run')!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(OutputError, match="locked"):
            train(tiny("bert"), toy_pairs, tmp_path / "run", overwrite=True)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with folder_lock(tmp_path / "run"):
        assert (tmp_path / "run" / "model").exists()


def test_the_dev_part_shares_no_prompt_with_training(tiny, toy_pairs, tmp_path):
    settings = rewardsmith.TrainSettings(**recipe("m", toy_pairs, tmp_path / "o"))
    data = read_data(settings)
    assert not {p.prompt for p in data.train} & {p.prompt for p in data.dev}
    assert len(data.dev) == pytest.approx(0.2 * 48, abs=2)


def test_eval_pairs_that_were_trained_on_are_left_out_and_counted(tiny, toy_pairs, write_rows, tmp_path):
    """Trap 8: a shared prompt and pair is removed from the eval with a warning."""
    seen = [json.loads(line) for line in Path(toy_pairs).read_text().splitlines()]
    swapped = seen[1] | {"id": "swapped", "chosen": seen[1]["rejected"], "rejected": seen[1]["chosen"]}
    fresh = [{"id": f"new{i}", "prompt": f"new {i}", "chosen": "Gladly", "rejected": "No"} for i in range(5)]
    held_out = write_rows([seen[0], swapped, *fresh], "eval.jsonl")
    text = said(tiny, toy_pairs, tmp_path / "run", eval_data=held_out)
    assert "warning: 2 of 7 eval pairs are training or dev pairs (first: toy-0, swapped)" in text
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert report["eval"]["num_pairs"] == 5
    assert manifest["data"]["eval_data"]["leaked"] == {"count": 2, "ids": ["toy-0", "swapped"]}


def test_an_eval_of_nothing_but_training_pairs_is_called_what_it_is(tiny, toy_pairs, tmp_path):
    text = said(tiny, toy_pairs, tmp_path / "run", eval_data=toy_pairs)
    assert "no held-out number" in text


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_steps_run_in_the_precision_that_is_said_and_reported_scores_in_float32(
    family, tiny, toy_pairs, tmp_path, monkeypatch
):
    """A decoder is read through its backbone, past the forward that accelerate wraps."""
    from rewardsmith.model.network import Network

    original, seen = Network.outputs, set()

    def watched(self, batch):
        layers = [m for n, m in self.model.named_modules() if n.endswith(("q_proj", "c_attn", "query"))]
        training = self.model.training
        handle = layers[0].register_forward_hook(lambda module, inputs, output: seen.add((training, output.dtype)))
        try:
            return original(self, batch)
        finally:
            handle.remove()

    monkeypatch.setattr(Network, "outputs", watched)
    train(tiny(family), toy_pairs, tmp_path / "run", precision="bf16", dev_share=0, trainer={"max_steps": 1})
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
