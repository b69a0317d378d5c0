"""Two processes that train together: they are one run, read each row once, and do not outlive each other."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel

import rewardsmith
from rewardsmith.config import LossSettings, TrainSettings, build
from rewardsmith.data.schema import Preference
from rewardsmith.errors import DataError, SettingsError, TrainingStopped
from rewardsmith.model import processes
from rewardsmith.model.batching import collate
from rewardsmith.model.batching_choice import PADDED
from rewardsmith.model.checkpoints import complete_checkpoints
from rewardsmith.model.dev_part import dev_numbers
from rewardsmith.model.examples import ExampleCollator, example_table
from rewardsmith.model.losses import LOSSES
from rewardsmith.model.network import build_network, load_tokenizer
from rewardsmith.model.optimiser import Rates
from rewardsmith.model.packing import pack
from rewardsmith.model.render import Renderer, RenderSpec
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.scoring import head_outputs
from rewardsmith.model.trainer import PreferenceTrainer, ShareCollator, route
from rewardsmith.model.trainer_arguments import build_arguments, check_trainer_table
from tests.processes import KEPT, Doubled, free_port, is_killed, recipe, together, trains

TEXTS = [(f"How do I mend item {i}?", answer) for i in range(4) for answer in ("Use glue.", "No.")]


def gradients(base, rows, *, packed, together=False):
    """Of the sum of the scores of some texts; together, of a process that averages them with another."""
    network = build_network(base, pooling="auto", seed=0, dropout=False)
    table = Renderer(load_tokenizer(base), RenderSpec(max_length=90)).encode(TEXTS)
    batch = (
        pack(table, rows, share=True, with_types=False) if packed else collate(table, rows, pad_id=0, with_types=False)
    )
    torch.nn.init.ones_(network.head_module.weight)
    route(network)
    model = network.model
    if together:
        processes.join(torch.device("cpu"), seconds=60)
        model = DistributedDataParallel(model, find_unused_parameters=True)
        KEPT.append(model)
    model(batch=batch).sum().backward()
    return {name: p.grad for name, p in network.model.named_parameters() if p.grad is not None}


def one_of_two(rank, base, packed, folder):
    rows = [[0, 1, 2], [3, 4, 5, 6, 7]][rank]
    torch.save(gradients(base, rows, packed=packed, together=True), f"{folder}/{rank}.pt")
    dist.barrier()


@pytest.mark.parametrize("packed", [True, False])
def test_processes_average_the_gradients_of_what_each_of_them_read(packed, tiny, tmp_path):
    base = tiny("llama")
    alone = gradients(base, list(range(8)), packed=packed)
    assert together(one_of_two, base, packed, str(tmp_path)) == [0, 0]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(found[name], gradient / 2, atol=1e-5, rtol=1e-4)


def test_two_processes_are_one_run(tiny, toy_pairs, tmp_path):
    """47 pairs of which some are dev: the last step of an epoch is short, and odd. Every logged number is that of one process; the loss learns, too."""
    rows = [{**json.loads(row), "tie": i % 5 == 0} for i, row in enumerate(Path(toy_pairs).read_text().splitlines())]
    data = tmp_path / "odd.jsonl"
    data.write_text("\n".join(map(json.dumps, rows[:47])))
    # Parts of 100 tokens: the processes need different numbers of them for one step.
    more = {"loss": "davidson", "batch_tokens": 100}
    alone = rewardsmith.train(recipe(tiny("bert"), str(data), tmp_path / "one", **more), console=Console(quiet=True))
    assert together(trains, recipe(tiny("bert"), str(data), tmp_path / "two", **more), tmp_path) == [0, 0]
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert alone["counts"]["data"] == 47 and report["counts"] == alone["counts"]
    assert report["training"]["steps"] == alone["training"]["steps"]
    assert report["training"]["kept_step"] == alone["training"]["kept_step"]
    (learned,) = alone["training"]["learned"].values()
    assert list(report["training"]["learned"].values()) == [pytest.approx(learned, abs=1e-6)]
    for ours, theirs in zip(report["history"], alone["history"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, abs=2e-5, rel=2e-5), name
    for ours, theirs in zip(report["dev_points"], alone["dev_points"], strict=True):
        assert ours["step"] == theirs["step"] and ours["accuracy"] == theirs["accuracy"]
        assert ours["log_loss"] == pytest.approx(theirs["log_loss"], abs=1e-5)
    texts = [(f"How do I mend item {i}?", f"Gladly, use glue number {i}.") for i in range(9)]
    here, there = (RewardModel.load(tmp_path / name).score(texts) for name in ("one", "two"))
    assert np.all(np.abs(here - there) <= 1e-5 * np.maximum(1, np.abs(here)))
    # The first one writes and speaks, the other does neither.
    assert "saved and proven" in (tmp_path / "said-0").read_text()
    assert (tmp_path / "said-1").read_text() == "no report"
    newest = complete_checkpoints(tmp_path / "two" / "checkpoints")[-1]
    document = json.loads((newest / "complete.json").read_text())
    assert document["processes"] == 2
    # Each has its own generators; weights, with their head, and optimiser are there once.
    assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "optimizer.pt"} <= document["files"].keys()


def weights_after_twenty_steps(base, data, folder):
    settings = build(
        TrainSettings,
        recipe(base, data, folder / "run", batch_size=6, trainer={"max_steps": 20, "save_strategy": "no"}),
    )
    made = build_network(base, pooling="pooler", seed=0, dropout=False)
    network = Doubled(**vars(made))
    network.model.double()
    renderer = Renderer(load_tokenizer(base), RenderSpec(max_length=64))
    pairs = rewardsmith.read_pairs(data)[:23]  # 6 + 6 + 6 + 5: every fourth step is short
    table, _ = example_table(pairs, renderer, LossSettings(), cache=None)
    arguments = build_arguments(settings, folder, precision="float32", device=torch.device("cpu"))
    trainer = PreferenceTrainer(
        network,
        table,
        LOSSES["bradley_terry"].build(LossSettings(), pairs),
        arguments,
        collator=ExampleCollator(table, 0, False, PADDED, 60),  # several parts a step
        dtype="float64",
        rates=Rates(1e-3, 0.01),
        average=None,
        callbacks=[],
    )
    KEPT.append(trainer)
    trainer.train()
    assert trainer.state.global_step == 20
    return {name: p.detach().clone() for name, p in network.model.named_parameters()}


def twenty_steps(rank, base, data, folder):
    torch.save(weights_after_twenty_steps(base, data, folder), folder / f"{rank}.pt")
    assert any(isinstance(kept.model_wrapped, DistributedDataParallel) for kept in KEPT)
    dist.barrier()


def test_weights_of_two_processes_equal_those_of_one_in_float64(tiny, toy_pairs, tmp_path):
    alone = weights_after_twenty_steps(tiny("bert"), toy_pairs, tmp_path)
    start = build_network(tiny("bert"), pooling="pooler", seed=0, dropout=False).model.state_dict()
    assert max(float((alone[name] - start[name]).abs().max()) for name in alone) > 1e-3
    assert together(twenty_steps, tiny("bert"), toy_pairs, tmp_path) == [0, 0]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == alone.keys()
        for name, weight in alone.items():
            assert weight.dtype == torch.float64
            torch.testing.assert_close(found[name], weight, atol=1e-9, rtol=0, msg=name)


ANSWERS = ("Use glue. Press hard.", "No.")
ROWS = [
    Preference(str(i), f"How do I mend item {i}?", ANSWERS[i % 3 == 0] + " So." * i, ANSWERS[i % 3 != 0])
    for i in range(8)
]
ROWS.append(replace(ROWS[2], id="8"))


def nine_rows(base):
    """A network, the nine texts (a prompt with its better answer) and the nine pairs; the last of each is the third once more."""
    network = build_network(base, pooling="auto", seed=0, dropout=False)
    torch.nn.init.normal_(network.head_module.weight, generator=torch.Generator().manual_seed(1))
    renderer = Renderer(load_tokenizer(base), RenderSpec(max_length=64))
    texts = renderer.encode([pair.chosen_pair for pair in ROWS])
    pairs, _ = example_table(ROWS, renderer, LossSettings(), cache=None)
    return network, texts, pairs


def judged(network, pairs):
    """(mean loss, accuracy) of the nine pairs."""
    objective = LOSSES["bradley_terry"].build(LossSettings(), ROWS)
    return dev_numbers(
        network, pairs, objective, pad_id=0, with_types=False, device=torch.device("cpu"), precision="float32"
    )


def reads(rank, base, folder):
    """The nine texts in batches of one to five, and how many of them this process read; then the nine pairs."""
    processes.join(torch.device("cpu"), seconds=60)
    network, texts, pairs = nine_rows(base)
    found = {}
    for size in range(1, 6):
        numbers = []

        def read(tokens, size=size, numbers=numbers):
            numbers.append(len(tokens))
            return head_outputs(
                network, tokens, pad_id=0, with_types=False, device=torch.device("cpu"), batch_tokens=size * 64
            )

        found[size] = processes.read_in_shares(texts, read, width=1), sum(numbers)
    torch.save(
        {"by size": found, "judged": judged(network, pairs), "sums": processes.sums([rank + 1, 1])},
        folder / f"{rank}.pt",
    )
    assert processes.share(rank) == 0
    processes.leave()


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.slow)])
def test_nine_rows_are_read_once_each(ranks, tiny, tmp_path):
    """Trap 23: by any number of processes in batches of any size; their mean loss and accuracy are those of one process."""
    network, texts, pairs = nine_rows(tiny("bert"))
    alone = head_outputs(network, texts, pad_id=0, with_types=False, device=torch.device("cpu"))
    assert together(reads, tiny("bert"), tmp_path, ranks=ranks) == [0] * ranks
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(ranks)]
    for size in range(1, 6):
        assert sum(one["by size"][size][1] for one in found) == 8  # the ninth has the ids of the third
    mean_loss, accuracy = judged(network, pairs)
    assert 0 < accuracy < 1
    for one in found:
        assert one["sums"] == [ranks * (ranks + 1) / 2, ranks]
        assert one["judged"][0] == pytest.approx(mean_loss, abs=1e-6) and one["judged"][1] == accuracy
        for outputs, _ in one["by size"].values():
            assert np.allclose(outputs, alone, atol=1e-5, rtol=1e-5)
            assert outputs[8] == outputs[2]


@pytest.mark.parametrize("ranks", [1, 2, 4, 5])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_shares_of_a_step_are_the_step(ranks, size, tiny, toy_pairs):
    """Each row is in one share, and weighs 1 / size in the mean over the processes; a process without a row reads one that weighs nothing."""
    renderer = Renderer(load_tokenizer(tiny("bert")), RenderSpec(max_length=64))
    table, _ = example_table(rewardsmith.read_pairs(toy_pairs), renderer, LossSettings(), cache=None)
    collator = ExampleCollator(table, 0, False, PADDED, 10_000)
    rows = list(range(3, 3 + size))
    weight = dict.fromkeys(rows, 0.0)
    for rank in range(ranks):
        parts = ShareCollator(collator, rank, ranks)(rows)["parts"]
        assert parts
        for part in parts:
            for row in part.rows.tolist():
                weight[row] += part.weight / len(part.rows) / ranks
    assert list(weight.values()) == pytest.approx([1 / size] * size)


def test_a_killed_process_ends_the_others_with_words(tiny, toy_pairs, tmp_path):
    start = time.monotonic()
    settings = recipe(tiny("bert"), toy_pairs, tmp_path / "run", dev_share=0, trainer={"save_steps": 2})
    assert together(is_killed, settings, tmp_path) == [0, -signal.SIGKILL]
    assert time.monotonic() - start < 60
    error = (tmp_path / "error").read_text()
    assert error.startswith(
        "needed all 2 processes to the end; got none of at least one: process 0 lost its connection"
    )
    assert "the same command goes on from the last good checkpoint" in error
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["outcome"] == "failed"
    assert [path.name for path in complete_checkpoints(tmp_path / "run" / "checkpoints")] == ["checkpoint-2"]


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on(tiny, toy_pairs, tmp_path):
    """With dropout: each process goes on with its own generator."""
    settings = recipe(tiny("bert"), toy_pairs, tmp_path / "cut", dropout=True, trainer={"save_steps": 2})
    assert together(is_killed, settings, tmp_path) == [0, -signal.SIGKILL]
    assert together(trains, settings, tmp_path) == [0, 0]
    assert "going on from checkpoint-2" in (tmp_path / "said-0").read_text()
    assert together(trains, {**settings, "out": str(tmp_path / "whole")}, tmp_path) == [0, 0]
    first, second = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("cut", "whole"))
    assert first == second
    ours, theirs = (json.loads((tmp_path / name / "report.json").read_text())["history"] for name in ("cut", "whole"))
    timings = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"}
    for one, other in zip(ours, theirs, strict=True):
        assert {k: v for k, v in one.items() if k not in timings} == {
            k: v for k, v in other.items() if k not in timings
        }


def test_what_would_not_be_one_run_is_refused(tiny, toy_pairs, tmp_path, monkeypatch):
    for table in ({"fsdp": "full_shard"}, {"deepspeed": "zero.json"}):
        settings = build(TrainSettings, recipe(tiny("bert"), toy_pairs, tmp_path / "run", trainer=table))
        with pytest.raises(SettingsError, match="each hold the whole model"):
            check_trainer_table(settings)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(SettingsError, match="each hold the whole model"):
        check_trainer_table(build(TrainSettings, recipe(tiny("bert"), toy_pairs, tmp_path / "run")))
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(SettingsError, match="a launcher that does not compile the model"):
        check_trainer_table(build(TrainSettings, recipe(tiny("bert"), toy_pairs, tmp_path / "run")))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    check_trainer_table(build(TrainSettings, recipe(tiny("bert"), toy_pairs, tmp_path / "run")))
    monkeypatch.setenv("WORLD_SIZE", "3")
    settings = build(TrainSettings, recipe(tiny("bert"), toy_pairs, tmp_path / "run"))
    with pytest.raises(SettingsError, match=r"divides by 3 \(1 accumulation steps x 3 processes\)"):
        build_arguments(settings, tmp_path, precision="float32", device=torch.device("cpu"))


def test_the_precision_is_the_recipes_whatever_the_launcher_says(tiny, toy_pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    settings = build(TrainSettings, recipe(tiny("bert"), toy_pairs, tmp_path / "run"))
    arguments = build_arguments(settings, tmp_path, precision="float32", device=torch.device("cpu"))
    assert arguments.mixed_precision == "no"
    arguments = build_arguments(settings, tmp_path, precision="bf16", device=torch.device("cpu"))
    assert arguments.mixed_precision == "bf16"


def reads_other_data(rank, settings, folder):
    """The second one has a file that has not yet arrived whole."""
    data = Path(settings["data"])
    if rank == 1:
        shorter = folder / "shorter.jsonl"
        shorter.write_text("".join(data.read_text().splitlines(keepends=True)[:-3]))
        settings = {**settings, "data": str(shorter)}
    try:
        rewardsmith.train(settings, console=Console(quiet=True))
    except (DataError, TrainingStopped) as error:
        (folder / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
    os._exit(0)  # gloo's threads would wait for the other one


def test_processes_that_read_other_data_are_told(tiny, toy_pairs, tmp_path):
    settings = recipe(tiny("bert"), toy_pairs, tmp_path / "run", dev_share=0)
    assert together(reads_other_data, settings, tmp_path) == [0, 0]
    assert "others in process 1 (data.data" in (tmp_path / "error-1").read_text()
    assert "TrainingStopped" in (tmp_path / "error-0").read_text()


def test_processes_that_nobody_introduced_are_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match="torchrun gives each of 2 processes"):
        processes.join(torch.device("cpu"), seconds=5)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(TrainingStopped, match=r"2 processes to meet within 0\.5 s"):
        processes.join(torch.device("cpu"), seconds=0.5)


def draws(rank, base, data, folder, start):
    """The first number that dropout's generator gives when a run begins, or goes on from a checkpoint of one process."""
    from rewardsmith.model.trainer import PreferenceTrainer

    found = []
    step = PreferenceTrainer.training_step

    def drawn(self, *arguments, **more):
        found.append(float(torch.rand(()))) if not found else None
        return step(self, *arguments, **more)

    PreferenceTrainer.training_step = drawn
    table = {"save_steps": 2, "max_steps": 4}
    rewardsmith.train(recipe(base, data, folder / start, dropout=True, trainer=table), console=Console(quiet=True))
    (folder / f"{start}-{rank}").write_text(str(found[0]))


@pytest.mark.parametrize("start", ["fresh", pytest.param("resumed", marks=pytest.mark.slow)])
def test_processes_draw_different_numbers_for_dropout(start, tiny, toy_pairs, tmp_path, monkeypatch):
    """Also where a run of one process goes on with two."""
    if start == "resumed":
        step = PreferenceTrainer.training_step

        def stops(self, *arguments, **more):
            if self.state.global_step == 3:
                raise KeyboardInterrupt
            return step(self, *arguments, **more)

        monkeypatch.setattr(PreferenceTrainer, "training_step", stops)
        table = {"save_steps": 2, "max_steps": 4}
        settings = recipe(tiny("bert"), toy_pairs, tmp_path / start, dropout=True, trainer=table)
        with pytest.raises(KeyboardInterrupt):
            rewardsmith.train(settings, console=Console(quiet=True))
    assert together(draws, tiny("bert"), toy_pairs, tmp_path, start) == [0, 0]
    first, second = ((tmp_path / f"{start}-{rank}").read_text() for rank in (0, 1))
    assert first != second
