"""Two processes that train on windows are one run: both read the same windows, and each example once between them."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import rewardsmith
from rewardsmith.config import LossSettings, TrainSettings, build
from rewardsmith.model import streamed
from rewardsmith.model.batching_choice import PADDED
from rewardsmith.model.losses import LOSSES
from rewardsmith.model.network import build_network, load_tokenizer
from rewardsmith.model.optimiser import Rates
from rewardsmith.model.render import Renderer, RenderSpec
from rewardsmith.model.trainer import PreferenceTrainer
from rewardsmith.model.trainer_arguments import build_arguments
from rewardsmith.model.training_data import read_data
from rewardsmith.model.windows import WindowCollator
from tests.processes import KEPT, Doubled, recipe, together, trains

STEPS = 14


def trained(base, data, folder):
    """(the weights after so many steps, the ids that this process read), all arithmetic in float64."""
    table = {"max_steps": STEPS, "save_strategy": "no"}
    values = recipe(base, data, folder / "run", batch_size=6, stream=12, dev_share=0, epochs=4, trainer=table)
    settings = build(TrainSettings, values)
    network = Doubled(**vars(build_network(base, pooling="pooler", seed=0, dropout=False)))
    network.model.double()
    renderer = Renderer(load_tokenizer(base), RenderSpec(max_length=64))
    found = read_data(settings)
    _, measured = streamed.count(found, renderer, share=False)
    windows = streamed.windows(found, measured, renderer, settings, PADDED)
    trainer = PreferenceTrainer(
        network,
        windows,
        LOSSES["bradley_terry"].build(LossSettings(), []),
        build_arguments(settings, folder, precision="float32", device=torch.device("cpu")),
        collator=WindowCollator(windows, 0, False, PADDED, 60),  # several parts a step
        dtype="float64",
        rates=Rates(1e-3, 0.01),
        average=None,
        callbacks=[],
    )
    KEPT.append(trainer)
    ids = []
    loss = trainer.compute_loss

    def noted(model, inputs, **more):
        if inputs["part"].weight:
            ids.extend(inputs["part"].ids)
        return loss(model, inputs, **more)

    trainer.compute_loss = noted
    trainer.train()
    assert trainer.state.global_step == STEPS
    return {name: p.detach().clone() for name, p in network.model.named_parameters()}, ids


def one_of_two(rank, base, data, folder):
    torch.save(trained(base, data, folder), folder / f"{rank}.pt")
    assert any(isinstance(kept.model_wrapped, DistributedDataParallel) for kept in KEPT)
    dist.barrier()


def test_weights_of_two_processes_on_windows_equal_those_of_one_in_float64(tiny, toy_pairs, tmp_path):
    """23 pairs in two shards, windows of 12, steps of 6: the last step of an epoch has 5, and of a window of 11."""
    rows = Path(toy_pairs).read_text().splitlines(keepends=True)
    shards = tmp_path / "shards"
    shards.mkdir()
    for i, (start, end) in enumerate([(0, 9), (9, 23)]):
        (shards / f"{i}.jsonl").write_text("".join(rows[start:end]))
    alone, ids = trained(tiny("bert"), str(shards), tmp_path)
    start = build_network(tiny("bert"), pooling="pooler", seed=0, dropout=False).model.state_dict()
    assert max(float((alone[name] - start[name]).abs().max()) for name in alone) > 1e-3
    # 14 steps: three epochs of four steps, and twelve pairs of a fourth.
    assert len(ids) == 3 * 23 + 12 and sorted(ids[:23]) == sorted(f"toy-{i}" for i in range(23))
    assert together(one_of_two, tiny("bert"), str(shards), tmp_path) == [0, 0]
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert sorted(both[0][1] + both[1][1]) == sorted(ids)
    for found, read in both:
        assert 0 < len(read) < len(ids)
        for name, weight in alone.items():
            assert weight.dtype == torch.float64
            torch.testing.assert_close(found[name], weight, atol=1e-9, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_a_run_of_two_processes_over_shards_has_the_numbers_of_one(shard, tiny, toy_pairs, tmp_path):
    """The whole command: first pass, second pass, windows, the dev part; also with weights that are dealt out."""
    settings = recipe(tiny("bert"), toy_pairs, tmp_path / "two", stream=16, dev_share=0.3)
    alone = rewardsmith.train({**settings, "out": str(tmp_path / "one")})
    assert together(trains, {**settings, "shard": shard}, tmp_path) == [0, 0]
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["counts"] == alone["counts"] and report["dropped"] == alone["dropped"]
    for ours, theirs in zip(report["history"], alone["history"], strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, abs=2e-5, rel=2e-5), name
