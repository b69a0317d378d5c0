"""Learning rates by place: each parameter learns at the stated rate, once, and with the defaults as the Trainer has it."""

import io

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer

import rewardsmith
from rewardsmith.config import TrainSettings
from rewardsmith.model.network import build_network
from rewardsmith.model.optimiser import Rates, parameter_groups
from rewardsmith.model.trained_parts import choose_trained
from rewardsmith.model.trainer import PreferenceTrainer

QUIET = Console(file=io.StringIO())
BASE, HALF = 8e-3, 0.5


def network_of(base, **more):
    network = build_network(base, pooling="auto", seed=0, dropout=False)
    choose_trained(network, TrainSettings(model="m", data="d", out="o", **more), pins_level=False)
    return network


def rates_of(network, rates, decayed=()):
    """{parameter: (rate, weight decay)}, each trained parameter once."""
    groups = parameter_groups(network, rates, decayed)
    names = {id(p): name for name, p in network.model.named_parameters()}
    found = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    trained = {name for name, p in network.model.named_parameters() if p.requires_grad}
    assert len(found) == len(trained) and dict(found).keys() == trained
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups)
    return dict(found)


@pytest.mark.parametrize(
    ("family", "places"),
    [
        (
            "bert",
            {
                "bert.embeddings.word_embeddings.weight": 2e-3,
                "bert.embeddings.LayerNorm.bias": 2e-3,
                "bert.encoder.layer.0.attention.self.query.weight": 4e-3,
                "bert.encoder.layer.1.output.dense.bias": 8e-3,
                "bert.pooler.dense.weight": 8e-3,
                "classifier.weight": 8e-3,
            },
        ),
        (
            "llama",
            {
                "model.embed_tokens.weight": 2e-3,
                "model.layers.0.mlp.up_proj.weight": 4e-3,
                "model.layers.1.input_layernorm.weight": 8e-3,
                "model.norm.weight": 8e-3,
                "score.weight": 8e-3,
            },
        ),
        ("distilbert", {"backbone.embeddings.position_embeddings.weight": 2e-3, "score.weight": 8e-3}),
        ("gpt2", {"transformer.wpe.weight": 2e-3, "transformer.h.0.mlp.c_fc.weight": 4e-3, "score.weight": 8e-3}),
    ],
)
def test_each_layer_learns_slower_than_the_one_above(family, places, tiny):
    """Two layers, decay 1/2: 8e-3 on top, 8e-3 x 1/2 in layer 0, 8e-3 x 1/4 in the embeddings."""
    found = rates_of(network_of(tiny(family)), Rates(BASE, 0.0, layer_decay=HALF))
    assert {name: rate for name, (rate, _) in found.items() if name in places} == pytest.approx(places)
    assert sorted({rate for rate, _ in found.values()}) == pytest.approx([2e-3, 4e-3, 8e-3])


def test_the_head_learns_at_its_own_rate(tiny):
    found = rates_of(network_of(tiny("bert")), Rates(BASE, 0.0, head=0.1, layer_decay=HALF))
    assert found["classifier.weight"][0] == 0.1
    assert found["bert.pooler.dense.weight"][0] == BASE
    # DeBERTa's new pooler stands above the layers, and is not the head.
    found = rates_of(network_of(tiny("deberta-v2")), Rates(BASE, 0.0, head=0.1))
    assert {name for name, (rate, _) in found.items() if rate == 0.1} == {"classifier.weight"}


def test_adapters_learn_at_the_rate_of_their_layer(tiny):
    found = rates_of(network_of(tiny("llama"), lora={"rank": 2}), Rates(BASE, 0.0, layer_decay=HALF))
    lower = {rate for name, (rate, _) in found.items() if ".layers.0." in name}
    upper = {rate for name, (rate, _) in found.items() if ".layers.1." in name}
    assert (lower, upper) == ({4e-3}, {8e-3})


def test_what_a_loss_learns_has_a_rate_of_its_own_and_no_decay(tiny):
    network = network_of(tiny("bert"))
    network.model.add_module("objective", nn.ParameterDict({"threshold": nn.Parameter(torch.zeros(1, 1))}))
    everything = [name for name, _ in network.model.named_parameters()]
    found = rates_of(network, Rates(1e-4, 0.01, head=1e-3, layer_decay=HALF), decayed=everything)
    assert found["objective.threshold"] == (1e-2, 0.0)
    assert found["classifier.weight"] == (1e-3, 0.01)
    # Where the network learns faster than that, so does the loss.
    assert rates_of(network, Rates(0.5, 0.01), decayed=everything)["objective.threshold"] == (0.5, 0.0)


def test_weight_decay_is_for_the_parameters_that_it_is_meant_for(tiny):
    network = network_of(tiny("bert"))
    found = rates_of(network, Rates(BASE, 0.01), decayed=["bert.pooler.dense.weight"])
    assert {name for name, (_, decay) in found.items() if decay} == {"bert.pooler.dense.weight"}


def train(base, data, out, **more):
    recipe = {"model": base, "data": data, "out": str(out), "max_length": 64, "dev_share": 0, "batch_size": 8}
    recipe |= {"precision": "float32", "device": "cpu", "learning_rate": 1e-2, "weight_decay": 0.1}
    trainer = {"max_steps": 3, "save_steps": 3, "warmup_steps": 0}
    rewardsmith.train({**recipe, **more, "trainer": trainer}, console=QUIET)
    return load_file(out / "model" / "model.safetensors")


def test_with_the_defaults_a_run_is_that_of_the_trainers_own_optimiser(tiny, toy_pairs, tmp_path, monkeypatch):
    ours = train(tiny("bert"), toy_pairs, tmp_path / "ours")
    monkeypatch.setattr(PreferenceTrainer, "create_optimizer", Trainer.create_optimizer)
    stock = train(tiny("bert"), toy_pairs, tmp_path / "stock")
    assert ours.keys() == stock.keys() and all(torch.equal(ours[name], stock[name]) for name in ours)


def test_the_rates_of_the_settings_reach_the_steps(tiny, toy_pairs, tmp_path, monkeypatch):
    """From the recipe to the optimiser: 0.05, and 1e-2 halved once and twice."""
    seen = []
    original = PreferenceTrainer.create_optimizer

    def watched(self, model=None):
        optimiser = original(self, model)
        names = {id(p): name for name, p in self.network.model.named_parameters()}
        seen.append({names[id(p)]: group["lr"] for group in optimiser.param_groups for p in group["params"]})
        return optimiser

    monkeypatch.setattr(PreferenceTrainer, "create_optimizer", watched)
    train(tiny("bert"), toy_pairs, tmp_path / "run", head_learning_rate=0.05, layer_decay=0.5)
    assert seen[0]["classifier.weight"] == 0.05
    assert seen[0]["bert.encoder.layer.0.output.dense.weight"] == pytest.approx(5e-3)
    assert seen[0]["bert.embeddings.word_embeddings.weight"] == pytest.approx(2.5e-3)
