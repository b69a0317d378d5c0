"""Packed rows and shared beginnings change no score and no gradient: against padded batches and transformers' own attention, family by family."""

import numpy as np
import pytest
import torch
from torch import nn

from rewardsmith.config import LoraSettings, ScoringSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.errors import SettingsError
from rewardsmith.model import attention
from rewardsmith.model.adapters import add_adapters
from rewardsmith.model.batching import collate
from rewardsmith.model.batching_choice import PACKED_FAMILIES, PADDED, BatchingChoice, choose_batching
from rewardsmith.model.layers import linear_layers
from rewardsmith.model.modeling_rewardsmith import ScoreHead
from rewardsmith.model.network import build_network, load_tokenizer
from rewardsmith.model.packing import pack, tokens_read
from rewardsmith.model.pooling import reads_left_to_right
from rewardsmith.model.render import Renderer, RenderSpec
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.scoring import head_outputs
from tests.tiny_models import save_tiny

CPU = torch.device("cpu")
# A list of answers to one prompt (two of them equal, one the beginning of another), beside texts of their own.
GROUP = [(INPUTS[1][0], answer) for answer in ("yes indeed", "no", "no", "no way", "maybe so " * 5)]
TEXTS = [*INPUTS[:4], *GROUP]
DECODERS = sorted(family for family in PACKED_FAMILIES if reads_left_to_right(family))
# Windows shorter than the texts, in every layer that has one.
CHANGES = {"mistral": {"sliding_window": 24}, "gemma3_text": {"sliding_window": 24}}


class ExactNorm(nn.Module):
    """RMSNorm as transformers writes it, but for the float32 in its middle, which would hide what float64 is to show."""

    def __init__(self, norm):
        """Take over the weight."""
        super().__init__()
        self.weight, self.offset = norm.weight, 1.0 if type(norm).__name__.startswith("Gemma") else 0.0
        self.eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps

    def forward(self, states):
        spread = states.pow(2).mean(-1, keepdim=True) + self.eps
        return states * torch.rsqrt(spread) * (self.weight + self.offset)


def exact(network, monkeypatch):
    """A network in float64 throughout."""
    network.model.double()
    for name, module in list(network.model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, child = name.rpartition(".")
            setattr(network.model.get_submodule(parent), child, ExactNorm(module))
    monkeypatch.setattr(ScoreHead, "forward", nn.Linear.forward)
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    return network


def built(family, folder, *, pooling="auto", max_length=90):
    base = str(save_tiny(family, folder / family, **CHANGES.get(family, {})))
    network = build_network(base, pooling=pooling, seed=0, dropout=False)
    renderer = Renderer(load_tokenizer(base), RenderSpec(max_length=max_length))
    return network, renderer.encode(TEXTS)


def both(network, table, *, share):
    """(outputs, gradients) of padded and of packed texts, under a loss that gives every text a weight of its own."""
    rows, found = np.arange(len(table)), []
    choice = choose_batching(network, CPU)
    assert choice.packed, choice.reason
    for batch in (
        collate(table, rows, pad_id=0, with_types=False),
        pack(table, rows, share=share, with_types=False),
    ):
        network.model.zero_grad()
        outputs = network.outputs(batch)[:, 0]
        (outputs * torch.arange(1, len(table) + 1)).sum().backward()
        gradients = {n: p.grad.clone() for n, p in network.model.named_parameters() if p.grad is not None}
        found.append((outputs.detach(), gradients))
    return found


def test_on_a_gpu_decoders_are_packed_and_encoders_padded(tmp_path):
    cuda = torch.device("cuda")
    decoder, encoder = built("llama", tmp_path)[0], built("bert", tmp_path)[0]
    assert choose_batching(decoder, cuda).name == "packed, shared prompts"
    assert not choose_batching(encoder, cuda).packed and choose_batching(encoder, cuda, wanted="packed").packed
    assert not choose_batching(decoder, torch.device("mps")).packed


def furthest(one, other):
    """The largest |difference| / max(1, largest |value|) over tensors."""
    assert set(one) == set(other)
    return max(float((one[n] - other[n]).abs().max() / one[n].abs().max().clamp(min=1)) for n in one)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("family", sorted(PACKED_FAMILIES))
def test_packed_scores_and_gradients_equal_padded_ones_in_float64(family, share, tmp_path, monkeypatch):
    if share and family not in DECODERS:
        pytest.skip("an encoder reads a prompt differently beside every answer")
    network, table = built(family, tmp_path)
    (padded, of_padded), (packed, of_packed) = both(exact(network, monkeypatch), table, share=share)
    assert padded.dtype == torch.float64 and float(padded.std()) > 0.01
    assert float((padded - packed).abs().max()) <= 1e-9
    assert furthest(of_padded, of_packed) <= 1e-9
    assert len(of_padded) > 10


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mistral", "gemma3_text"])
def test_shared_scores_and_gradients_equal_unshared_ones_in_float32(family, tmp_path):
    network, table = built(family, tmp_path)
    (padded, of_padded), (packed, of_packed) = both(network, table, share=True)
    assert float(((padded - packed).abs() / padded.abs().clamp(min=1)).max()) <= 1e-5
    assert furthest(of_padded, of_packed) <= 1e-5


@pytest.mark.parametrize("way", ["lora", "checkpointing", "lora and checkpointing", "mean"])
def test_shared_gradients_are_exact_with(way, tmp_path, monkeypatch):
    network, table = built("llama", tmp_path, pooling="mean" if way == "mean" else "auto")
    if "lora" in way:
        add_adapters(network, LoraSettings(rank=4), [name for name, _ in linear_layers(network)])
        torch.manual_seed(0)
        for name, parameter in network.model.named_parameters():
            if "lora_B" in name:  # it starts at 0, and the other factor then has no gradient
                nn.init.normal_(parameter, std=0.1)
    exact(network, monkeypatch)
    if "checkpointing" in way:
        network.model.train()
        network.model.gradient_checkpointing_enable({"use_reentrant": False})
    (padded, of_padded), (packed, of_packed) = both(network, table, share=True)
    assert float((padded - packed).abs().max()) <= 1e-9
    assert furthest(of_padded, of_packed) <= 1e-9
    assert ("lora_A" in " ".join(of_packed)) == ("lora" in way)


@pytest.mark.parametrize("kept", [0, 1000])
@pytest.mark.parametrize(("family", "queries"), [("llama", 16), ("bert", 16), ("mistral", 7), ("modernbert", 7)])
def test_blocks_of_queries_and_recomputed_probabilities_change_nothing(family, queries, kept, tmp_path, monkeypatch):
    """Long segments come in blocks, and long ones are computed again in the backward pass: forced here on short ones."""
    monkeypatch.setattr(attention, "QUERIES", queries)
    monkeypatch.setattr(attention, "KEPT", kept)
    network, table = built(family, tmp_path)
    (padded, of_padded), (packed, of_packed) = both(exact(network, monkeypatch), table, share=family in DECODERS)
    assert float((padded - packed).abs().max()) <= 1e-9
    assert furthest(of_padded, of_packed) <= 1e-9


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama", "mistral", "gpt2"])
def test_the_fused_way_of_scoring_agrees_with_the_one_of_training(family, tmp_path):
    network, table = built(family, tmp_path)
    choose_batching(network, CPU)
    batch = pack(table, np.arange(len(table)), share=family in DECODERS, with_types=False)
    trained = network.outputs(batch).detach()
    with torch.no_grad():
        assert float((network.outputs(batch) - trained).abs().max()) <= 1e-5


def test_a_padded_batch_is_read_as_before_by_a_network_made_ready_for_packing(tmp_path):
    """To the bit: without segments the attention is torch's own."""
    for family in ("bert", "llama", "mistral"):
        network, table = built(family, tmp_path)
        batch = collate(table, range(len(table)), pad_id=0, with_types=False)
        with torch.no_grad():
            before = network.outputs(batch)
            network.outputs(pack(table, np.arange(len(table)), share=False, with_types=False))
            assert network.backbone_config._attn_implementation == attention.NAME
            assert torch.equal(network.outputs(batch), before)


def test_token_types_go_where_their_texts_go(tiny):
    network = build_network(tiny("bert"), pooling="auto", seed=0, dropout=False)
    renderer = Renderer(load_tokenizer(tiny("bert")), RenderSpec(encoding="pair", max_length=64))
    table, choice = renderer.encode(INPUTS), choose_batching(network, CPU)
    options = {"pad_id": 0, "with_types": True, "device": CPU}
    packed = head_outputs(network, table, batching=choice, **options)
    padded = head_outputs(network, table, batching=PADDED, batch_tokens=1, **options)
    assert np.abs(packed - padded).max() <= 1e-5
    without = head_outputs(network, table, batching=choice, pad_id=0, with_types=False, device=CPU)
    assert np.abs(packed - without).max() > 1e-3, "the types do not matter to this model"


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("batch_tokens", [1, 60, 100_000])
def test_no_budget_moves_a_score(family, batch_tokens, tmp_path):
    network, table = built(family, tmp_path)
    options = {"pad_id": 0, "with_types": False, "device": CPU}
    expected = head_outputs(network, table, batching=PADDED, batch_tokens=1, **options)
    found = head_outputs(network, table, batch_tokens=batch_tokens, **options)
    assert np.abs(found - expected).max() <= 1e-5
    assert found[5] == found[6], "equal texts are a tie to the bit"


def test_sharing_reads_fewer_tokens(tmp_path):
    network, table = built("llama", tmp_path)
    rows = np.arange(len(table))
    shared, alone = (pack(table, rows, share=share, with_types=False) for share in (True, False))
    assert alone.num_tokens == table.lengths.sum()
    assert shared.num_tokens == tokens_read([table.row(i) for i in rows]) < 0.8 * table.lengths.sum()


def test_what_cannot_be_packed_is_padded_and_says_why(tiny, tmp_path):
    deberta = build_network(tiny("deberta-v2"), pooling="auto", seed=0, dropout=False)
    assert choose_batching(deberta, CPU) == BatchingChoice(False, False, "auto: packing is not proven for deberta-v2")
    with pytest.raises(SettingsError, match="not proven for deberta-v2"):
        choose_batching(deberta, CPU, wanted="packed")
    assert choose_batching(deberta, CPU, wanted="padded") == PADDED, "the reason is the user's wish"
    roberta = build_network(tiny("roberta"), pooling="native", seed=0, dropout=False)
    assert "own head" in choose_batching(roberta, CPU).reason
    bert = build_network(tiny("bert"), pooling="auto", seed=0, dropout=True)
    assert choose_batching(bert, CPU, dropout=True).reason == "auto: dropout is on"
    with pytest.raises(SettingsError, match="reads left to right"):
        choose_batching(bert, CPU, share=True)
    with pytest.raises(SettingsError, match="packed batches"):
        choose_batching(
            build_network(tiny("qwen2"), pooling="auto", seed=0, dropout=False), CPU, wanted="padded", share=True
        )
    eager = build_network(tiny("bert"), pooling="auto", seed=0, dropout=False)
    eager.model.set_attn_implementation("eager")
    assert "eager attention" in choose_batching(eager, CPU).reason
    gpu = choose_batching(build_network(tiny("bert"), pooling="auto", seed=0, dropout=False), torch.device("cuda"))
    assert not gpu.packed and "cuda" in gpu.reason


def test_a_reward_model_can_be_told_how_to_batch(tiny_rm):
    folder = tiny_rm("qwen2")
    scores = {
        name: RewardModel.load(folder, ScoringSettings(**settings)).score(TEXTS)
        for name, settings in {
            "shared": {},
            "packed": {"share_prompts": False},
            "padded": {"batching": "padded"},
        }.items()
    }
    for name in ("packed", "padded"):
        assert np.abs(scores["shared"] - scores[name]).max() <= 1e-5
    assert RewardModel.load(folder).batching.share
    assert not RewardModel.load(folder, ScoringSettings(batching="padded")).batching.packed
