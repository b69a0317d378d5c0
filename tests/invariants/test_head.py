"""Promise 3: the head is a first-class weight: float32, never lost, never re-initialised, its bias left alone."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewardsmith.config import TrainSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.errors import HeadError, ModelError
from rewardsmith.model.batching import Batch
from rewardsmith.model.modeling_rewardsmith import ScoreHead
from rewardsmith.model.network import build_network, load_network
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.trained_parts import choose_trained
from tests.conftest import FAMILIES


def settings(**more):
    return TrainSettings(model="m", data="d", out="o", **more)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_computes_in_float32_under_autocast(family, tiny):
    network = build_network(tiny(family), pooling="auto", seed=0, dropout=False)
    assert isinstance(network.head_module, ScoreHead)
    seen = []
    network.head_module.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    batch = Batch(torch.arange(5, 25).view(1, 20), torch.ones(1, 20, dtype=torch.long), None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network.scores(batch).dtype == torch.float32
    assert seen == [torch.float32]


@pytest.mark.parametrize("family", ["bert", "distilbert", "qwen2"])
def test_a_missing_or_foreign_head_is_an_error(family, tiny_rm, tmp_path):
    folder = tmp_path / "rm"
    shutil.copytree(tiny_rm(family), folder)
    weights = load_file(folder / "model.safetensors")
    key = RewardModel.load(tiny_rm(family)).contract.head["key"]
    without = {name: tensor for name, tensor in weights.items() if name != key}
    save_file(without, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HeadError, match="cannot be recovered"):
        RewardModel.load(folder)
    (folder / "rewardsmith.json").unlink()  # a plain folder of another tool fares no better
    with pytest.raises(HeadError, match="cannot be recovered"):
        load_network(str(folder))
    save_file({**weights, "score2.weight": torch.ones(1, 32)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HeadError, match="left over"):
        load_network(str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_going_on_from_a_reward_model_keeps_its_scores(family, tiny_rm):
    """Trap 18: the head is loaded, not made anew."""
    source = str(tiny_rm(family))
    network = build_network(source, pooling="auto", seed=99, dropout=False)
    model = RewardModel.load(source)
    going_on = RewardModel(network, model.renderer, model.contract)
    assert network.head == "loaded"
    assert abs(going_on.score(INPUTS) - model.score(INPUTS)).max() <= 1e-6


def test_a_new_head_is_a_function_of_the_seed(tiny):
    heads = [build_network(tiny("bert"), pooling="auto", seed=s, dropout=False).head_module.weight for s in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_bias_is_zero_and_trained_only_when_the_loss_pins_the_level(tiny):
    network = build_network(tiny("bert"), pooling="auto", seed=0, dropout=False)
    choose_trained(network, settings(), pins_level=False)
    assert network.head_module.bias.item() == 0.0
    assert not network.head_module.bias.requires_grad
    choose_trained(network, settings(loss={"centring": 0.01}), pins_level=True)
    assert network.head_module.bias.requires_grad


def test_a_frozen_encoder_trains_the_head_and_what_is_random(tiny):
    network = build_network(tiny("bert"), pooling="auto", seed=0, dropout=False)
    choose_trained(network, settings(freeze="encoder"), pins_level=False)
    assert _num_trained(network) == 32
    network = build_network(tiny("deberta-v2"), pooling="auto", seed=0, dropout=False)
    assert network.new_modules == ("pooler.dense",)  # DeBERTa's pooler is not part of its base checkpoint
    choose_trained(network, settings(freeze="encoder"), pins_level=False)
    assert _num_trained(network) == 32 + 32 * 32 + 32


def _num_trained(network):
    return sum(p.numel() for p in network.model.parameters() if p.requires_grad)


def test_a_base_model_may_lack_only_its_head(tiny, tmp_path):
    """Trap 17: any other missing key is an error."""
    folder = tmp_path / "base"
    shutil.copytree(tiny("bert"), folder)
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if "layer.1.attention.self.query.weight" in name)
    save_file({n: t for n, t in weights.items() if n != gone}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="query.weight"):
        build_network(str(folder), pooling="auto", seed=0, dropout=False)
