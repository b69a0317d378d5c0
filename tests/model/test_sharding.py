"""Weights that are dealt out over two processes: the same run as with one, the same numbers, and one consolidated checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

import rewardsmith
from rewardsmith.config import LossSettings, TrainSettings, build
from rewardsmith.errors import SettingsError
from rewardsmith.model import processes
from rewardsmith.model.batching import collate
from rewardsmith.model.batching_choice import PADDED
from rewardsmith.model.checkpoints import complete_checkpoints
from rewardsmith.model.examples import ExampleCollator, example_table
from rewardsmith.model.losses import LOSSES
from rewardsmith.model.moving_average import WeightAverage
from rewardsmith.model.network import build_network, load_tokenizer
from rewardsmith.model.optimiser import OBJECTIVE, Rates
from rewardsmith.model.precision import Format
from rewardsmith.model.render import Renderer, RenderSpec
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.scoring import head_outputs
from rewardsmith.model.sharding import asked_by_launcher, check_sharding, shard, whole
from rewardsmith.model.trainer import PreferenceTrainer, route
from rewardsmith.model.trainer_arguments import build_arguments
from tests.model.test_processes import TEXTS
from tests.processes import KEPT, Doubled, is_killed, recipe, together, trains

CPU = torch.device("cpu")


def with_ties(data, folder):
    """The toy pairs, every fifth of them a tie."""
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    tied = folder / "ties.jsonl"
    tied.write_text("".join(json.dumps({**row, "tie": i % 5 == 0}) + "\n" for i, row in enumerate(rows)))
    return str(tied)


def first_text(table):
    return collate(table, np.array([0]), pad_id=0, with_types=False)


def twenty_steps(base, data, folder, *, sharded):
    """Weights, their average and what the loss learned, after 20 steps in float64 of steps in several parts, by one process or by its share of two."""
    settings = build(
        TrainSettings,
        recipe(base, data, folder / "run", batch_size=6, trainer={"max_steps": 20, "save_strategy": "no"}),
    )
    network = Doubled(**vars(build_network(base, pooling="pooler", seed=0, dropout=False)))
    network.model.double()
    renderer = Renderer(load_tokenizer(base), RenderSpec(max_length=64))
    pairs = rewardsmith.read_pairs(data)[:23]  # 6 + 6 + 6 + 5: every fourth step is short
    table, _ = example_table(pairs, renderer, LossSettings(name="davidson"), cache=None)
    arguments = build_arguments(settings, folder, precision="float32", device=CPU)
    objective = LOSSES["davidson"].build(LossSettings(name="davidson"), pairs).double()
    network.model.add_module(OBJECTIVE, objective)
    if sharded:
        processes.join(CPU, seconds=60)
    sharding = shard(network, CPU, precision="float32") if sharded else None
    average = WeightAverage(network.model, 0.9)
    trainer = PreferenceTrainer(
        network,
        table,
        objective,
        arguments,
        # 6 pairs of about 50 tokens by 60 tokens a part: two processes need different numbers of parts for a step of five.
        collator=ExampleCollator(table, 0, False, PADDED, 60),
        dtype="float64",
        rates=Rates(1e-3, 0.01),
        average=average,
        callbacks=[],
        sharding=sharding,
    )
    KEPT.append(trainer)
    trainer.train()
    average.update()
    assert trainer.state.global_step == 20
    if sharded:
        dealt = [p for n, p in network.model.named_parameters() if not n.startswith(OBJECTIVE)]
        assert all(isinstance(p, DTensor) for p in dealt)
        held = sum(p.to_local().numel() for p in dealt)
        assert 0.4 < held / sum(p.numel() for p in dealt) < 0.6
        assert trainer.model_wrapped is network.model  # and not DDP around it
    weights = {name: whole(p) for name, p in network.model.named_parameters()}
    return weights | {f"average {name}": whole(tensor) for name, tensor in average.average.items()}


def shares_twenty_steps(rank, base, data, folder):
    torch.save(twenty_steps(base, data, folder, sharded=True), folder / f"{rank}.pt")
    dist.barrier()


def test_weights_of_sharded_processes_equal_those_of_one_in_float64(tiny, toy_pairs, tmp_path):
    data = with_ties(toy_pairs, tmp_path)
    alone = twenty_steps(tiny("bert"), data, tmp_path, sharded=False)
    start = build_network(tiny("bert"), pooling="pooler", seed=0, dropout=False).model.state_dict()
    assert max(float((alone[name] - start[name]).abs().max()) for name in start) > 1e-3
    assert together(shares_twenty_steps, tiny("bert"), data, tmp_path) == [0, 0]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == alone.keys() and "objective.log_nu" in found
        for name, weight in alone.items():
            # Averages are in float32.
            torch.testing.assert_close(
                found[name], weight, atol=1e-9 if weight.dtype == torch.float64 else 1e-7, rtol=0, msg=name
            )


def reads(rank, base, folder):
    """Nine texts, all but one of which are long: the processes take different numbers of passes."""
    processes.join(CPU, seconds=60)
    network = build_network(base, pooling="auto", seed=0, dropout=False)
    table = Renderer(load_tokenizer(base), RenderSpec(max_length=64)).encode([*TEXTS, ("Why?", "So. " * 30)])
    sharding = shard(network, CPU, precision="float32")
    route(network)
    passes = []
    network.model.register_forward_hook(lambda *_: passes.append(1))

    def read(tokens):
        with sharding.reader(lambda: first_text(table)) as reading:
            return head_outputs(reading, tokens, pad_id=0, with_types=False, device=CPU, batch_tokens=30)

    outputs = processes.read_in_shares(table, read, width=1)
    numbers = processes.largest([len(passes)])[0]
    torch.save({"outputs": outputs, "passes": len(passes), "most": numbers}, folder / f"{rank}.pt")
    processes.leave()


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_sharded_processes_read_each_text_once(family, tiny, tmp_path):
    network = build_network(tiny(family), pooling="auto", seed=0, dropout=False)
    table = Renderer(load_tokenizer(tiny(family)), RenderSpec(max_length=64)).encode([*TEXTS, ("Why?", "So. " * 30)])
    alone = head_outputs(network, table, pad_id=0, with_types=False, device=CPU)
    assert together(reads, tiny(family), tmp_path) == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    for one in found:
        assert np.allclose(one["outputs"], alone, atol=1e-5)
        assert one["passes"] == one["most"] > 1


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("bert", {"loss": "davidson", "ema_decay": 0.5}),
        pytest.param(
            "llama",
            {"lora": {"rank": 4}, "batch_tokens": 100, "trainer": {"gradient_checkpointing": True}},
            marks=pytest.mark.slow,
        ),
        pytest.param("modernbert", {"trainer": {"gradient_accumulation_steps": 2}}, marks=pytest.mark.slow),
        pytest.param("deberta-v2", {"freeze": 1}, marks=pytest.mark.slow),
        pytest.param("gpt2", {"layer_decay": 0.9, "head_learning_rate": 2e-3}, marks=pytest.mark.slow),
        pytest.param("qwen3", {"loss": {"name": "bradley_terry", "label_smoothing": 0.1}}, marks=pytest.mark.slow),
    ],
)
def test_a_sharded_run_is_the_run_of_one_process(family, more, tiny, toy_pairs, tmp_path):
    """Every logged number, the kept step and the saved model; the checkpoint holds whole weights with their head, once."""
    rows = Path(with_ties(toy_pairs, tmp_path)).read_text().splitlines()[:47]
    data = tmp_path / "odd.jsonl"
    data.write_text("\n".join(rows))
    alone = rewardsmith.train(recipe(tiny(family), str(data), tmp_path / "one", **more), console=Console(quiet=True))
    settings = recipe(tiny(family), str(data), tmp_path / "two", shard=True, **more)
    assert together(trains, settings, tmp_path) == [0, 0]
    assert "dealt out over 2 processes" in (tmp_path / "said-0").read_text()
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["training"]["kept_step"] == alone["training"]["kept_step"]
    for ours, theirs in zip(report["history"], alone["history"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, abs=2e-5, rel=2e-5), name
    for ours, theirs in zip(report["dev_points"], alone["dev_points"], strict=True):
        assert ours["log_loss"] == pytest.approx(theirs["log_loss"], abs=1e-5)
    texts = [
        (f"How do I mend item {i}?", answer * (i + 1)) for i in range(9) for answer in ("Gladly, use glue. ", "No. ")
    ]
    here, there = (RewardModel.load(tmp_path / name).score(texts) for name in ("one", "two"))
    margins = here[::2] - here[1::2]
    assert np.all(np.abs(margins - (there[::2] - there[1::2])) <= 1e-5 * np.maximum(1, np.abs(margins)))
    # Bradley-Terry does not see the level: what shifts all scores alike (a last bias) has roundings for gradients, which Adam scales to full size.
    assert np.all(np.abs(here - there) <= 1e-4 * np.maximum(1, np.abs(here)))
    first, second = (complete_checkpoints(tmp_path / run / "checkpoints")[-1] for run in ("one", "two"))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (second, first))
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}
    files = json.loads((second / "complete.json").read_text())["files"]
    assert {"optimizer/__0_0.distcp", "optimizer/__1_0.distcp", "rng_state_1.pth"} <= files.keys()


def test_a_sharded_run_goes_on_to_the_bit(tiny, toy_pairs, tmp_path):
    """With dropout, an average of the weights and a loss that learns: a process is killed in step 4, and both start again from step 2."""
    settings = recipe(
        tiny("bert"),
        with_ties(toy_pairs, tmp_path),
        tmp_path / "cut",
        shard=True,
        dropout=True,
        loss="davidson",
        ema_decay=0.9,
        trainer={"save_steps": 2, "max_steps": 6},
    )
    assert together(is_killed, settings, tmp_path) == [0, -9]
    assert together(trains, settings, tmp_path) == [0, 0]
    assert "going on from checkpoint-2" in (tmp_path / "said-0").read_text()
    assert together(trains, {**settings, "out": str(tmp_path / "whole")}, tmp_path) == [0, 0]
    first, second = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("cut", "whole"))
    assert first == second


@pytest.mark.slow
def test_a_sharded_run_goes_on_with_another_number_of_processes(tiny, toy_pairs, tmp_path):
    """Of two processes that wrote the optimiser's state, by three: the numbers of the run of two, whose roundings alone differ."""
    more = {"shard": True, "batch_size": 6, "trainer": {"save_steps": 2, "max_steps": 6}}
    settings = recipe(tiny("bert"), toy_pairs, tmp_path / "cut", **more)
    assert together(is_killed, settings, tmp_path) == [0, -9]
    assert together(trains, settings, tmp_path, ranks=3) == [0, 0, 0]
    said = (tmp_path / "said-0").read_text()
    assert "going on from checkpoint-2" in said and "is of 2 processes and goes on with 3" in said
    assert together(trains, {**settings, "out": str(tmp_path / "whole")}, tmp_path) == [0, 0]
    ours, theirs = (json.loads((tmp_path / name / "report.json").read_text())["history"] for name in ("cut", "whole"))
    for one, other in zip(ours, theirs, strict=True):
        assert one.get("loss") == pytest.approx(other.get("loss"), abs=2e-5)
        assert one.get("grad_norm") == pytest.approx(other.get("grad_norm"), rel=1e-3)


def computes(rank, base, folder, precision: Format):
    processes.join(CPU, seconds=60)
    network = build_network(base, pooling="auto", seed=0, dropout=False)
    table = Renderer(load_tokenizer(base), RenderSpec(max_length=64)).encode(TEXTS)
    shard(network, CPU, precision=precision)
    route(network)
    seen = {}
    layer = network.model.get_submodule("bert.encoder.layer.0")
    layer.register_forward_pre_hook(lambda module, _: seen.update({n: p.dtype for n, p in module.named_parameters()}))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        score = network.model(batch=first_text(table))
    score.sum().backward()
    dtypes = {p.dtype for p in network.model.parameters()}, {p.grad.dtype for p in network.model.parameters()}
    torch.save({"score": score.detach(), "seen": seen, "dtypes": dtypes}, folder / f"{precision}-{rank}.pt")
    processes.leave()


def test_layers_compute_in_bf16_from_weights_in_float32(tiny, tmp_path):
    found = {}
    for precision in ("float32", "bf16"):
        assert together(computes, tiny("bert"), tmp_path, precision) == [0, 0]
        found[precision] = torch.load(tmp_path / f"{precision}-0.pt", weights_only=False)
        assert found[precision]["dtypes"] == ({torch.float32}, {torch.float32})
    assert set(found["float32"]["seen"].values()) == {torch.float32}
    for name, dtype in found["bf16"]["seen"].items():
        assert dtype == (torch.float32 if "LayerNorm" in name else torch.bfloat16), name
    assert found["bf16"]["score"].dtype == torch.float32
    torch.testing.assert_close(found["bf16"]["score"], found["float32"]["score"], atol=5e-2, rtol=0)


@pytest.mark.parametrize("more", [{"freeze": "encoder"}, {"precision": "fp16"}, {"trainer": {"torch_compile": True}}])
def test_settings_that_cannot_be_sharded_are_refused(more, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="settings that sharded weights can take"):
        check_sharding(build(TrainSettings, recipe("m", "d", tmp_path, shard=True, **more)))


def test_one_process_has_nobody_to_share_with(tmp_path):
    with pytest.raises(SettingsError, match="several processes for shard = true; got one"):
        check_sharding(build(TrainSettings, recipe("m", "d", tmp_path, shard=True)))


def test_a_launcher_that_asks_for_fsdp2_gets_it(tmp_path, monkeypatch):
    settings = build(TrainSettings, recipe("m", "d", tmp_path))
    assert asked_by_launcher(settings) is settings
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SettingsError, match="accelerate's FSDP 1"):
        asked_by_launcher(settings)
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(SettingsError, match="accelerate's FSDP 2, offloaded"):
        asked_by_launcher(settings)
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "false")
    assert asked_by_launcher(settings).shard
    assert "ACCELERATE_USE_FSDP" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]])
def test_accelerate_launch_starts_a_run_of_two(how, tiny, toy_pairs, tmp_path):
    """Without a GPU `--multi_gpu` starts processes on the CPU; `--cpu` would start one."""
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", *how, "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--module", "rewardsmith"]
    train = ["train", "--model", tiny("bert"), "--data", toy_pairs, "--out", str(tmp_path / "run"), "--device", "cpu"]
    options = ["--precision", "float32", "--threads", "1", "--set", "max_length=64"]
    done = subprocess.run([*command, *train, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    newest = complete_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert json.loads((newest / "complete.json").read_text())["processes"] == 2
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["settings"]["shard"] == ("--use_fsdp" in how)
    assert (newest / "optimizer").is_dir() == ("--use_fsdp" in how)
