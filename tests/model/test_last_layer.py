"""An encoder that is read at its first tokens computes only these in its last layer; no score and no gradient tells the difference."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from rewardsmith.config import LoraSettings
from rewardsmith.model.adapters import add_adapters
from rewardsmith.model.last_layer import FIRST, can_shorten, shorten
from rewardsmith.model.layers import linear_layers
from rewardsmith.model.packing import pack
from tests.invariants.test_packed import both, built, exact, furthest

READ_AT_FIRST = [("bert", "pooler"), ("bert", "cls"), ("electra", "cls"), ("roberta", "cls")]


def last_layer(network):
    return getattr(network.model, network.model.base_model_prefix).encoder.layer[-1]


@pytest.mark.parametrize(("family", "pooling"), READ_AT_FIRST)
def test_scores_and_gradients_are_those_of_the_whole_layer(family, pooling, tmp_path, monkeypatch):
    network, table = built(family, tmp_path, pooling=pooling)
    (padded, of_padded), (packed, of_packed) = both(exact(network, monkeypatch), table, share=False)
    assert float(padded.std()) > 0.01 and float((padded - packed).abs().max()) <= 1e-9
    assert furthest(of_padded, of_packed) <= 1e-9
    assert any("layer.1.attention.self.key.weight" in name for name in of_packed)


@pytest.mark.parametrize("way", ["lora", "checkpointing"])
def test_gradients_are_exact_with(way, tmp_path, monkeypatch):
    network, table = built("bert", tmp_path)
    if way == "lora":
        add_adapters(network, LoraSettings(rank=4), [name for name, _ in linear_layers(network)])
        torch.manual_seed(0)
        for name, parameter in network.model.named_parameters():
            if "lora_B" in name:  # it starts at 0, and the other factor then has no gradient
                nn.init.normal_(parameter, std=0.1)
    exact(network, monkeypatch)
    if way == "checkpointing":
        network.model.train()
        network.model.gradient_checkpointing_enable({"use_reentrant": False})
    (padded, of_padded), (packed, of_packed) = both(network, table, share=False)
    assert float((padded - packed).abs().max()) <= 1e-9 and furthest(of_padded, of_packed) <= 1e-9


@pytest.mark.parametrize(("pooling", "rows"), [("pooler", "texts"), ("mean", "tokens")])
def test_the_last_layer_computes_one_row_a_text_where_only_that_is_read(pooling, rows, tmp_path):
    network, table = built("bert", tmp_path, pooling=pooling)
    batch, seen = pack(table, np.arange(len(table)), share=False, with_types=False), []
    hook = last_layer(network).intermediate.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        network.outputs(batch)
    hook.remove()
    assert seen == [len(table) if rows == "texts" else batch.input_ids.shape[1]]


def test_a_padded_batch_can_be_asked_for_its_first_tokens(tmp_path):
    """As the graphs of exported models are."""
    network, table = built("bert", tmp_path)
    ids = torch.tensor(np.stack([table.row(i)[:20] for i in range(3)]).astype(np.int64))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    backbone = network.model.bert
    shorten(backbone)
    with torch.no_grad():
        whole = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        first = backbone(input_ids=ids, attention_mask=mask, **{FIRST: True}).last_hidden_state
    assert whole.shape[1] == 20 and first.shape[1] == 1
    assert float((whole[:, :1] - first).abs().max()) <= 1e-5


def test_a_model_made_ready_is_saved_and_copied_as_it_was(tmp_path):
    network, _ = built("bert", tmp_path)
    names = set(network.model.state_dict())
    backbone = network.model.bert
    shorten(backbone)
    once = last_layer(network).attention.forward
    shorten(backbone)
    assert last_layer(network).attention.forward is once
    assert set(network.model.state_dict()) == names
    other = copy.deepcopy(network.model)
    with torch.no_grad():
        last_layer(network).attention.self.key.weight.zero_()
        assert float(other.bert.encoder.layer[-1].attention.self.key.weight.abs().sum()) > 0
        ids = torch.arange(5, 17)[None]
        ours, copied = (m.bert(input_ids=ids, **{FIRST: True}).last_hidden_state for m in (network.model, other))
        assert float((ours - copied).abs().max()) > 1e-4, "the copy's last layer still runs the weights of the original"


@pytest.mark.parametrize(
    ("family", "known"), [("bert", True), ("electra", True), ("modernbert", False), ("llama", False)]
)
def test_only_layers_that_are_known_are_shortened(family, known, tmp_path):
    network, _ = built(family, tmp_path)
    assert can_shorten(getattr(network.model, network.model.base_model_prefix)) == known
