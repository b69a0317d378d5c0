"""A run that was killed goes on to the same weights, to the bit: whenever it was killed, and whatever the kill left behind."""

import functools
import gzip
import io
import itertools
import json
import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console

import rewardsmith
from rewardsmith.errors import OutputError, SettingsError
from rewardsmith.model.checkpoints import (
    COMPLETE,
    STAGING,
    complete_checkpoints,
    fault,
    last_good,
    publish,
    rotate,
    seal,
    step_of,
)
from tests.conftest import real_data

# With everything that a step may depend on: dropout, accumulation, an average of the weights, early stopping.
EVERYTHING = {
    "dropout": True,
    "ema_decay": 0.9,
    "patience": 30,
    "epochs": 3,
    "trainer": {"save_steps": 3, "gradient_accumulation_steps": 2, "logging_steps": 4},
}


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
        **EVERYTHING,
        **more,
    }


def train(settings):
    said = io.StringIO()
    report = rewardsmith.train(settings, console=Console(file=said, width=400))
    return report, said.getvalue()


def weights(out):
    return (out / "model" / "model.safetensors").read_bytes()


def numbers(report):
    """What a report says of the run, but for its timings."""
    return {
        "history": report["history"],
        "dev_points": report["dev_points"],
        "kept_step": report["training"]["kept_step"],
        "stopped_early": report["training"]["stopped_early"],
    }


def is_saving(out):
    return any((out / "checkpoints" / STAGING).glob("checkpoint-*/*"))


def newest_step(out):
    return max(map(step_of, complete_checkpoints(out / "checkpoints")), default=0)


def alone(settings):
    """What a process of its own does."""
    train(settings)


def killed(settings, moment):
    """Start a run in a process of its own and kill it (signal 9) when `moment()` says so; whether it was still running."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["rewardsmith.model.training", "rewardsmith.model.reward_model", "rewardsmith.plots"])
    running = server.Process(target=alone, args=(settings,))
    running.start()
    while running.is_alive() and not moment():
        time.sleep(0.001)
    running.kill()
    running.join()
    return running.exitcode == -signal.SIGKILL


def test_a_run_that_was_killed_ends_with_the_same_weights(tiny, toy_pairs, tmp_path):
    """Three kills of one run: in the middle of its first checkpoint, after a later one, and while the model folder is made."""
    evaluated = tmp_path / "eval.jsonl"
    row = '{{"prompt": "May I paint item {i}?", "chosen": "Yes, in {i} colours.", "rejected": "Ask later."}}\n'
    evaluated.write_text("".join(row.format(i=i) for i in range(9)))
    settings = functools.partial(recipe, tiny("bert"), toy_pairs, threads=1, eval_data=str(evaluated))
    whole, _ = train(settings(tmp_path / "whole"))
    out = tmp_path / "cut"
    assert killed(settings(out), lambda: is_saving(out))
    # (48 - dev) / 8 = 5 steps an epoch: step 9 is inside the second one, 15 the end of the run.
    assert killed(settings(out), lambda: newest_step(out) >= 9)
    assert killed(settings(out), lambda: newest_step(out) >= 15)
    report, said = train(settings(out))
    assert "going on from checkpoint-" in said
    assert weights(out) == weights(tmp_path / "whole")
    assert numbers(report) == numbers(whole)
    # Trap 23: the table of the eval pairs, score by score, and what is made of it.
    assert (out / "pairs.jsonl").read_bytes() == (tmp_path / "whole" / "pairs.jsonl").read_bytes()
    assert report["eval"]["num_pairs"] == 9 and report["eval"]["accuracy"] == whole["eval"]["accuracy"]


class Cut(Exception):
    """Stands for a kill where a test needs it at an exact step."""


@pytest.fixture
def cut_at(monkeypatch):
    """cut_at(7) ends the next run in its step 8, half of its accumulated gradient taken; cut_at(None) lets runs be."""
    from rewardsmith.model.trainer import PreferenceTrainer

    original = PreferenceTrainer.compute_loss

    def at(step):
        calls = []

        def breaks(self, *arguments, **more):
            calls.append(self.state.global_step)
            if calls.count(step) == 2:
                raise Cut
            return original(self, *arguments, **more)

        monkeypatch.setattr(PreferenceTrainer, "compute_loss", original if step is None else breaks)

    return at


def cut(settings, step, cut_at):
    cut_at(step)
    with pytest.raises(Cut):
        train(settings)
    cut_at(None)


def harmed(newest, harm):
    """Do to a checkpoint what a disk, or a kill, may have done."""
    victim = newest / "optimizer.pt"
    content = victim.read_bytes()
    if harm == "shorter":
        victim.write_bytes(content[:-1])
    elif harm == "one bit":
        victim.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif harm == "missing":
        victim.unlink()
    else:
        (newest / COMPLETE).unlink()


def test_a_checkpoint_that_is_not_what_was_written_is_skipped_with_a_warning(tiny, toy_pairs, tmp_path, cut_at):
    settings = functools.partial(recipe, tiny("bert"), toy_pairs)
    train(settings(tmp_path / "whole"))
    cut(settings(tmp_path / "cut"), 10, cut_at)
    for harm, reason in {
        "shorter": "corrupt: optimizer.pt has",
        "one bit": "corrupt: optimizer.pt holds other bytes",
        "missing": "corrupt: optimizer.pt is missing",
        "unsealed": "incomplete",
    }.items():
        out = tmp_path / harm
        shutil.copytree(tmp_path / "cut", out)
        newest = complete_checkpoints(out / "checkpoints")[-1]
        assert newest.name == "checkpoint-9"
        harmed(newest, harm)
        _, said = train(settings(out))
        assert f"warning: checkpoint-9 is {reason}" in said
        assert "going on from checkpoint-6" in said
        assert weights(out) == weights(tmp_path / "whole")


def test_a_run_goes_on_with_another_number_of_workers(tiny, toy_pairs, tmp_path, cut_at):
    train(recipe(tiny("bert"), toy_pairs, tmp_path / "whole"))
    out = tmp_path / "cut"
    cut(recipe(tiny("bert"), toy_pairs, out), 7, cut_at)
    table = {**EVERYTHING["trainer"], "dataloader_num_workers": 1}
    _, said = train(recipe(tiny("bert"), toy_pairs, out, trainer=table))
    assert "going on from checkpoint-6" in said
    assert weights(out) == weights(tmp_path / "whole")


@pytest.mark.slow
def test_workers_that_stay_leave_dropout_alone(tiny, toy_pairs, tmp_path, cut_at):
    """Persistent workers are started once in a run, and once more in one that goes on: each start draws a seed."""
    table = {**EVERYTHING["trainer"], "dataloader_persistent_workers": True, "dataloader_num_workers": 1}
    train(recipe(tiny("bert"), toy_pairs, tmp_path / "whole", trainer=table))
    out = tmp_path / "cut"
    cut(recipe(tiny("bert"), toy_pairs, out, trainer=table), 7, cut_at)
    train(recipe(tiny("bert"), toy_pairs, out, trainer={**table, "dataloader_num_workers": 2}))
    assert weights(out) == weights(tmp_path / "whole")


def test_a_run_that_is_over_takes_no_further_step(tiny, toy_pairs, tmp_path, monkeypatch):
    """Killed between its last checkpoint and the model folder: of 7 steps the last is not the end of an epoch."""
    from rewardsmith.model import artefact
    from rewardsmith.model.callbacks import SelectionCallback

    settings = functools.partial(recipe, tiny("bert"), toy_pairs, dev_share=0.2)
    table = {"save_steps": 3, "max_steps": 7}
    whole, _ = train(settings(tmp_path / "whole", trainer=table))

    def ends(*arguments, **more):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(artefact, "save", ends)
        with pytest.raises(Cut):
            train(settings(tmp_path / "cut", trainer=table))
    report, _ = train(settings(tmp_path / "cut", trainer=table))
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert numbers(report) == numbers(whole)
    # Killed before the dev part of the last checkpoint was scored.
    point = SelectionCallback._point

    def stops(self, state):
        if state.global_step == 7:
            raise Cut
        return point(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(SelectionCallback, "_point", stops)
        with pytest.raises(Cut):
            train(settings(tmp_path / "unscored", trainer=table))
    report, _ = train(settings(tmp_path / "unscored", trainer=table))
    assert weights(tmp_path / "unscored") == weights(tmp_path / "whole")
    assert numbers(report) == numbers(whole)


def test_early_stopping_counts_over_a_kill(tiny, toy_pairs, tmp_path, cut_at):
    """A learning rate at which the dev part gets worse: the run stops after two checkpoints without a new best one, killed or not."""
    settings = functools.partial(
        recipe, tiny("bert"), toy_pairs, learning_rate=0.3, patience=2, ema_decay=0, trainer={"save_steps": 2}
    )
    settings = functools.partial(settings, epochs=10)
    whole, _ = train(settings(tmp_path / "whole"))
    assert whole["training"]["stopped_early"]
    last = whole["training"]["steps"]
    out = tmp_path / "cut"
    # Without accumulation a step has one pass: cut in the first one of the step after the first of the two checkpoints.
    from rewardsmith.model.trainer import PreferenceTrainer

    loss = PreferenceTrainer.compute_loss

    def breaks(self, *arguments, **more):
        if self.state.global_step == last - 1:
            raise Cut
        return loss(self, *arguments, **more)

    PreferenceTrainer.compute_loss = breaks
    try:
        with pytest.raises(Cut):
            train(settings(out))
    finally:
        PreferenceTrainer.compute_loss = loss
    report, said = train(settings(out))
    assert f"going on from checkpoint-{last - 2}" in said
    assert report["training"]["steps"] == last
    assert numbers(report) == numbers(whole)
    assert weights(out) == weights(tmp_path / "whole")


def made(folder, step, content="weights"):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_text(content)
    seal(checkpoint, step)
    return checkpoint


def test_a_seal_lists_every_file_with_size_and_hash(tmp_path):
    checkpoint = made(tmp_path, 3)
    document = json.loads((checkpoint / COMPLETE).read_text())
    # printf weights | sha256sum
    assert document["files"] == {
        "model.safetensors": {
            "size": 7,
            "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
        }
    }
    assert fault(checkpoint) is None


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    for step in (2, 4, 6, 8):
        made(tmp_path, step)
    rotate(tmp_path, 2, keep=[4])
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-8"]
    rotate(tmp_path, 1, keep=[4])  # of the two neither may go
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-8"]
    rotate(tmp_path, None, keep=[])
    rotate(tmp_path, 1, keep=[])
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-8"]


def test_a_run_whose_best_checkpoint_is_gone_goes_on_from_before_it(tmp_path):
    """The end of the run would need it: it is made again."""
    said = []
    for step in (2, 4, 6):
        made(tmp_path, step)
    (tmp_path / "checkpoint-4" / "model.safetensors").write_text("weighs!")
    best = {2: 2, 4: 4, 6: 4}
    assert last_good(tmp_path, said.append, best_at=best.get) == tmp_path / "checkpoint-2"
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2"]
    assert said == [
        "warning: checkpoint-4 is corrupt: model.safetensors holds other bytes than were written; it was removed",
        "warning: checkpoint-6 was removed: the best checkpoint up to it, of step 4, is gone",
    ]
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert last_good(tmp_path, said.append, best_at=best.get) is None


def test_the_last_good_checkpoint_is_there_until_the_next_one_is(tiny, toy_pairs, tmp_path, monkeypatch):
    """With room for one checkpoint only: at every moment of a save a good one stands."""
    from rewardsmith.model import trainer as module

    seen = []
    publish = module.publish

    def watched(new, name):
        seen.append([path.name for path in complete_checkpoints(name.parent)])
        publish(new, name)

    monkeypatch.setattr(module, "publish", watched)
    out = tmp_path / "run"
    table = {"save_steps": 2, "save_total_limit": 1, "max_steps": 6}
    train(recipe(tiny("bert"), toy_pairs, out, dev_share=0, patience=None, trainer=table))
    assert seen == [[], ["checkpoint-2"], ["checkpoint-4"]]
    assert [path.name for path in complete_checkpoints(out / "checkpoints")] == ["checkpoint-6"]


def test_what_a_kill_leaves_in_a_run_folder_is_no_other_thing(tiny, toy_pairs, tmp_path):
    """Killed while the first manifest is written: the folder holds nothing but the half of it."""
    out = tmp_path / "run"
    out.mkdir()
    (out / ".manifest.json.7.tmp").write_text("{")
    train(recipe(tiny("bert"), toy_pairs, out, epochs=1))
    assert not (out / ".manifest.json.7.tmp").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_of_a_real_run_change_no_bit(minilm, tmp_path):
    """MiniLM on real pairs, dropout on, killed at ten random moments, four of them in the middle of a save."""
    source = real_data("rmb_train.jsonl.gz")
    data = tmp_path / "pairs.jsonl"
    with gzip.open(source, "rt", encoding="utf-8") as file:
        data.write_text("".join(itertools.islice(file, 400)), encoding="utf-8")
    more = {"max_length": 64, "learning_rate": 5e-5, "epochs": 1, "threads": 1, "patience": None}
    table = {"save_steps": 2, "gradient_accumulation_steps": 2, "logging_steps": 3}
    settings = functools.partial(recipe, minilm, str(data), trainer=table, **more)
    whole, _ = train(settings(tmp_path / "whole"))
    out = tmp_path / "cut"
    rng = random.Random(0)
    for kill in range(10):
        before = newest_step(out)
        delay = rng.uniform(0.0, 5.0)
        seen = []

        def moment(kill=kill, before=before, delay=delay, seen=seen):
            if kill % 3 == 0:
                return is_saving(out)
            if not seen and newest_step(out) > before:  # each start gets further than the one before
                seen.append(time.monotonic())
            return bool(seen) and time.monotonic() - seen[0] > delay

        assert killed(settings(out), moment), f"the run was over before kill {kill}"
    assert newest_step(out) >= 12  # six of them were let through to a further checkpoint
    report, said = train(settings(out))
    assert "going on from checkpoint-" in said
    assert weights(out) == weights(tmp_path / "whole")
    assert numbers(report) == numbers(whole)


def test_a_checkpoint_is_sealed_before_it_has_its_name(tiny, toy_pairs, tmp_path, monkeypatch):
    from rewardsmith.model import trainer

    seen = []

    def watched(made, name):
        seen.append(fault(made))
        publish(made, name)

    monkeypatch.setattr(trainer, "publish", watched)
    train(recipe(tiny("bert"), toy_pairs, tmp_path / "run", epochs=1))
    assert seen and set(seen) == {None}


def test_only_the_same_run_goes_on(tiny, toy_pairs, tmp_path, cut_at):
    """Settings, and every file of the base model that can move a number: a changed tokenizer changes ids."""
    base = Path(shutil.copytree(tiny("bert"), tmp_path / "base"))
    settings = recipe(str(base), toy_pairs, tmp_path / "run")
    cut(settings, 4, cut_at)
    with pytest.raises(OutputError, match=r"the run that stands there; got others \(settings\.learning_rate\)"):
        train({**settings, "learning_rate": 1e-3})
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    whole = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(OutputError, match=r"got others \(base\.tokenizer\.json\)"):
        train(settings)
    (base / "tokenizer.json").write_text(whole)
    assert "going on from checkpoint-3" in train(settings)[1]


@pytest.mark.parametrize(
    "table", [{"save_only_model": True}, {"ignore_data_skip": True}, {"save_strategy": "best"}, {"hub_token": "hf_abc"}]
)
def test_what_would_break_an_exact_resume_is_refused(table, tiny, toy_pairs, tmp_path):
    (name,) = table
    with pytest.raises(SettingsError, match=f"trainer.{name}") as caught:
        train(recipe(tiny("bert"), toy_pairs, tmp_path / "run", trainer=table))
    assert "hf_abc" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_copies_that_a_user_made_of_checkpoints_are_let_be(tiny, toy_pairs, tmp_path, cut_at):
    settings = recipe(tiny("bert"), toy_pairs, tmp_path / "run")
    cut(settings, 4, cut_at)
    copy = tmp_path / "run" / "checkpoints" / "checkpoint-3-backup"
    shutil.copytree(copy.with_name("checkpoint-3"), copy)
    assert "going on from checkpoint-3" in train(settings)[1]
    assert fault(copy) is None


def test_the_model_folder_is_finished_before_the_run_is(tiny, toy_pairs, tmp_path, monkeypatch):
    """A kill between the two leaves a run that the same command goes on with."""
    from rewardsmith.model import training

    def killed_here(*_):
        raise Cut

    monkeypatch.setattr(training, "model_card", lambda document: document["outcome"])
    write = training.write_text
    monkeypatch.setattr(
        training, "write_text", lambda path, text: killed_here() if text == "finished" else write(path, text)
    )
    settings = recipe(tiny("bert"), toy_pairs, tmp_path / "run", epochs=1)
    with pytest.raises(Cut):
        train(settings)
    assert json.loads((tmp_path / "run" / "model" / "manifest.json").read_text())["outcome"] == "finished"
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["outcome"] == "failed"
    monkeypatch.undo()
    train(settings)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["outcome"] == "finished"
