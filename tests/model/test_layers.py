"""Freezing by layers: exactly what the setting names stays, to the bit."""

import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AlbertConfig, AlbertModel

import rewardsmith
from rewardsmith.config import TrainSettings
from rewardsmith.errors import SettingsError
from rewardsmith.model.layers import LayerStack, layer_stack, linear_layers, num_frozen_layers
from rewardsmith.model.network import build_network
from rewardsmith.model.optimiser import Rates, parameter_groups
from rewardsmith.model.trained_parts import choose_trained
from tests.tiny_models import save_tiny, tiny_tokenizer

PREFIXES = {
    "bert": "bert.encoder.layer.",
    "distilbert": "backbone.transformer.layer.",
    "roberta": "backbone.encoder.layer.",
    "electra": "backbone.encoder.layer.",
    "deberta-v2": "deberta.encoder.layer.",
    "modernbert": "backbone.layers.",
    "qwen2": "model.layers.",
    "llama": "model.layers.",
    "gemma2": "model.layers.",
    "phi": "model.layers.",
    "gpt2": "transformer.h.",
    "gpt_neox": "gpt_neox.layers.",
}
QUIET = Console(file=io.StringIO())


def network_of(base):
    return build_network(base, pooling="auto", seed=0, dropout=False)


def frozen_names(network, freeze):
    choose_trained(network, TrainSettings(model="m", data="d", out="o", freeze=freeze), pins_level=False)
    return {name for name, p in network.model.named_parameters() if not p.requires_grad}


@pytest.fixture(scope="module")
def albert(tmp_path_factory):
    """One layer that is used twice: no stack."""
    out, tokenizer = tmp_path_factory.mktemp("albert") / "albert", tiny_tokenizer("bert")
    sizes = {"embedding_size": 16, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = AlbertConfig(vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=128, **sizes)
    AlbertModel(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return str(out)


@pytest.mark.parametrize("family", PREFIXES)
def test_every_parameter_has_its_place(family, tiny):
    """Of two layers: 0 below, 1 and 2 in the stack, 3 above; the layers are alike, and what looks up tokens lies below."""
    network = network_of(tiny(family))
    stack = layer_stack(network)
    assert (stack.prefix, stack.count) == (PREFIXES[family], 2)
    depths = {name: stack.depth_of(name) for name, _ in network.model.named_parameters()}
    inside = {i: {n.replace(f"{stack.prefix}{i}.", "") for n in depths if depths[n] == i + 1} for i in (0, 1)}
    # ModernBERT's first layer has no norm of its own before the attention.
    assert inside[0] and inside[0] == inside[1] - ({"attn_norm.weight"} if family == "modernbert" else set())
    assert depths[f"{network.head_name}.weight"] == 3
    embeddings = network.model.get_input_embeddings().weight
    below = {name for name, p in network.model.named_parameters() if p is embeddings}
    assert below and all(depths[name] == 0 for name in below)
    assert not [
        name
        for name, depth in depths.items()
        if depth == 0 and "emb" not in name and "wpe" not in name and "wte" not in name
    ]


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "distilbert", "modernbert", "llama", "gpt2"])
@pytest.mark.parametrize(("freeze", "layers"), [(0, ()), (1, (0,)), (-1, (0,)), (-2, ())])
def test_the_named_layers_and_the_embeddings_are_frozen(freeze, layers, family, tiny):
    """By hand, of two layers: n freezes n from below, -k leaves the upper k; the embeddings are frozen either way."""
    network = network_of(tiny(family))
    expected = {n for n, _ in network.model.named_parameters() if any(f"{PREFIXES[family]}{i}." in n for i in layers)}
    expected |= {n for n, _ in network.model.named_parameters() if "embed" in n or "wte" in n or "wpe" in n}
    bias = network.head_module.bias
    expected |= set() if bias is None else {f"{network.head_name}.bias"}  # no pair of answers says anything about it
    assert frozen_names(network, freeze) == expected


@pytest.mark.parametrize("freeze", [2, 3, -3])
def test_a_number_out_of_range_is_refused_with_the_range(freeze, tiny):
    with pytest.raises(SettingsError, match=rf"freeze between -2 and 1 for a model of 2 layers.*freeze = {freeze}\b"):
        frozen_names(network_of(tiny("llama")), freeze)
    stack = LayerStack("layers.", 12)
    # -12 leaves all twelve layers trained, 11 the last one.
    assert [num_frozen_layers(n, stack) for n in (0, 11, -1, -12)] == [0, 11, 11, 0]


def test_what_comes_before_the_layers_lies_below_whatever_its_name():
    """CTRL's embedding is called `w`."""
    stack = LayerStack("transformer.h.", 2, frozenset({"transformer.w.weight"}))
    assert stack.depth_of("transformer.w.weight") == stack.depth_of("transformer.w") == 0
    assert stack.depth_of("transformer.layernorm.weight") == 3


def test_a_model_without_a_stack_is_refused_by_what_needs_one(albert):
    network = network_of(albert)
    for freeze in (1, -1):
        with pytest.raises(SettingsError, match=r"a stack of layers.*albert"):
            frozen_names(network, freeze)
    with pytest.raises(SettingsError, match="layer_decay at 1"):
        parameter_groups(network, Rates(1e-3, 0.0, layer_decay=0.5), [])
    assert frozen_names(network, "none") == {"classifier.bias"}
    assert len(parameter_groups(network, Rates(1e-3, 0.0), [])) == 1


def test_the_linear_layers_leave_out_head_and_embeddings(tiny):
    names = {name.rpartition(".")[2] for name, _ in linear_layers(network_of(tiny("gpt2")))}
    assert names == {"c_attn", "c_proj", "c_fc"}
    names = {name.rpartition(".")[2] for name, _ in linear_layers(network_of(tiny("llama")))}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(("family", "freeze"), [("bert", 1), ("llama", -1)])
def test_frozen_weights_are_the_same_after_a_run_to_the_bit(family, freeze, toy_pairs, tmp_path):
    base = save_tiny(family, tmp_path / family)
    recipe = {"model": str(base), "data": toy_pairs, "out": str(tmp_path / "run"), "freeze": freeze}
    recipe |= {"max_length": 64, "dev_share": 0, "precision": "float32", "device": "cpu", "learning_rate": 1e-2}
    rewardsmith.train(recipe | {"trainer": {"max_steps": 3, "warmup_steps": 0}}, console=QUIET)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "run/model/model.safetensors")
    inner = {"bert": "bert.", "llama": "model."}[family]
    same = {name for name, tensor in before.items() if torch.equal(after[inner + name][: len(tensor)], tensor)}
    expected = {name for name in before if "embed" in name or f"{PREFIXES[family]}0." in inner + name}
    # A key's bias moves no softmax; transformers' pooler of BERT is above the layers.
    assert same - {"encoder.layer.1.attention.self.key.bias"} == expected
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    frozen = sum(before[name].numel() for name in expected)
    total = sum(tensor.numel() for tensor in before.values())
    assert manifest["model"]["trained_parameters"] == total - frozen + 32  # and the head's 32 weights
