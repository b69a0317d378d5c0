"""Decoders: the score is read at the last real token, by the mask alone, wherever the padding stands and whatever it is made of."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from rewardsmith.data.golden import INPUTS
from rewardsmith.errors import ContractError, ModelError
from rewardsmith.model.artefact import save, verify
from rewardsmith.model.batching import Batch
from rewardsmith.model.network import build_network, check_vocabulary, load_tokenizer
from rewardsmith.model.padding import give_pad_token
from rewardsmith.model.render import Renderer, RenderSpec, with_end_token
from rewardsmith.model.reward_model import RewardModel
from tests.tiny_models import save_tiny, tiny_tokenizer

DECODERS = (
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "qwen2",
    "qwen3",
    "olmo2",
)
# These see 16 tokens back in some or all layers; the texts are longer.
WINDOWED = {"mistral": 16, "gemma2": 16, "gemma3_text": 16}
PAIRS = [
    ("How do I mend item 3?", "Gladly, here is how: use glue."),
    ("How do I mend item 3?", "No."),
    ("Why?", "Because."),
    *[pair for pair in INPUTS if 40 < len(str(pair)) < 300][:5],
]


def worst(expected, found):
    return float(np.max(np.abs(expected - found) / np.maximum(1.0, np.abs(expected))))


def padded(rows, *, side, pad, extra=3):
    """A batch made by hand, with `extra` columns that are padding in every row."""
    longest = max(map(len, rows)) + extra
    ids, mask = [], []
    for row in rows:
        filler, none = [pad] * (longest - len(row)), [0] * (longest - len(row))
        ids.append([*row, *filler] if side == "right" else [*filler, *row])
        mask.append([1] * len(row) + none if side == "right" else none + [1] * len(row))
    return Batch(torch.tensor(ids), torch.tensor(mask), None)


def scores_of(network, batch):
    with torch.inference_mode():
        return network.scores(batch).numpy()


def own_scores(model, batch):
    with torch.inference_mode():
        return model.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0].numpy()


def with_large_head(folder):
    """A network over a base model, and its tokenizer; the head is scaled up so that scores are of order 1."""
    network, tokenizer = build_network(str(folder), pooling="auto", seed=1, dropout=False), load_tokenizer(str(folder))
    with torch.no_grad():
        network.head_module.weight.mul_(3)
    network.model.eval()
    return network, tokenizer


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """decoder("gpt2") holds a network in memory, its renderer, the folder it was saved to and the ids of PAIRS."""
    made = {}

    def build(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            changes = {"sliding_window": WINDOWED[family]} if family in WINDOWED else {}
            network, tokenizer = with_large_head(save_tiny(family, folder / "base", **changes))
            give_pad_token(network, tokenizer)
            renderer = Renderer(
                tokenizer, RenderSpec(template=with_end_token(RenderSpec().template, tokenizer), max_length=128)
            )
            save(network, renderer, folder / "rm", training_dtype="float32", manifest={})
            table = renderer.encode(PAIRS)
            rows = [table.row(i).tolist() for i in range(len(PAIRS))]
            made[family] = SimpleNamespace(network=network, renderer=renderer, folder=folder / "rm", rows=rows)
        return made[family]

    return build


@pytest.mark.parametrize("family", DECODERS)
def test_neither_padding_nor_batch_size_nor_saving_moves_a_score(family, decoder):
    made = decoder(family)
    loaded = RewardModel.load(made.folder)
    assert max(map(len, made.rows)) > 3 * WINDOWED.get(family, 0)
    alone = np.concatenate([scores_of(made.network, padded([row], side="right", pad=0, extra=0)) for row in made.rows])
    assert np.std(alone) > 0.01, "a constant scorer would pass this test"
    assert worst(alone, loaded.score(PAIRS)) <= 1e-5
    pad = made.renderer.tokenizer.pad_token_id
    for network in (made.network, loaded.network):
        for side in ("right", "left"):
            for size in (1, 3, 8):
                chunks = [made.rows[start : start + size] for start in range(0, len(made.rows), size)]
                found = [scores_of(network, padded(rows, side=side, pad=pad)) for rows in chunks]
                assert worst(alone, np.concatenate(found)) <= 1e-5, (side, size)


@pytest.mark.parametrize("family", DECODERS)
def test_plain_transformers_gives_our_scores_from_the_saved_folder(family, decoder):
    """Its class and its tokenizer with padding=True: same ids, same token read."""
    made = decoder(family)
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(made.folder),
        AutoTokenizer.from_pretrained(made.folder),
    )
    pairs = [pair for pair, row in zip(PAIRS, made.rows, strict=True) if len(row) < 128]  # what was cut is not rendered
    texts = tokenizer([made.renderer.render(*pair) for pair in pairs], padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = model.eval()(**texts).logits[:, 0].numpy()
    assert len(pairs) >= 6 and worst(RewardModel.load(made.folder).score(pairs), found) <= 1e-5


def test_gpt2_of_transformers_moves_under_left_padding_and_ours_does_not(decoder):
    """Why positions are counted from the mask: its own class counts them from the first column, filler or not."""
    made = decoder("gpt2")
    pad = made.renderer.tokenizer.pad_token_id
    right, left = (padded(made.rows, side=side, pad=pad) for side in ("right", "left"))
    assert worst(own_scores(made.network.model, right), own_scores(made.network.model, left)) > 1e-2
    assert worst(scores_of(made.network, right), scores_of(made.network, left)) <= 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_last_real_token_is_read_when_the_filler_is_the_end_token(family, side, tiny):
    """Trap 1: padding, the end of every text and a place inside every prompt are all the same token."""
    network, tokenizer = with_large_head(tiny(family))
    end = tokenizer.eos_token_id
    prompt = [*range(10, 20), end, *range(20, 26)]
    rows = [[*prompt, 30, 31, 32, end], [*prompt, 33, 34, end], [*prompt, 35, 36, 37, 38, 39]]
    batch = padded(rows, side=side, pad=end)
    # By hand: the prompt has 17 tokens, the rows have 21, 20 and 22, and three columns more are padding in every row.
    last = {"right": [20, 19, 21], "left": [24, 24, 24]}[side]
    assert batch.input_ids.shape == (3, 25)
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        backbone = getattr(network.model, network.model.base_model_prefix)
        states = backbone(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions
        ).last_hidden_state
        expected = torch.stack([network.head_module(states[i, at]) for i, at in enumerate(last)])[:, 0].numpy()
    found = scores_of(network, batch)
    assert worst(expected, found) <= 1e-6
    # A wrong token (the end token of the prompt) is the same in all rows: scores would tie and the first loss of every pair be ln 2.
    assert len({round(float(score), 4) for score in found}) == 3
    losses = [math.log1p(math.exp(-float(found[0] - other))) for other in found[1:]]
    assert all(abs(loss - math.log(2)) > 1e-3 for loss in losses)


def test_without_a_pad_token_any_filler_gives_the_same_scores(tiny):
    """Trap 3: the mask tells what is padding, not an id."""
    network, tokenizer = with_large_head(tiny("gpt2"))
    assert tokenizer.pad_token_id is None and network.model.config.pad_token_id is None
    rows = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    found = [scores_of(network, padded(rows, side=side, pad=pad)) for side in ("right", "left") for pad in (0, 7, 400)]
    assert all(worst(found[0], other) <= 1e-5 for other in found[1:])
    # For other tools there must be one, all the same.
    with pytest.raises(ContractError, match="no pad token"):
        check_vocabulary(network, tokenizer)


def test_a_pad_id_beyond_the_embedding_table_is_named_before_the_first_forward_pass(tiny):
    network, tokenizer = with_large_head(tiny("llama"))
    rows = network.model.get_input_embeddings().num_embeddings
    tokenizer.add_special_tokens({"pad_token": "[NEW]"})
    assert tokenizer.pad_token_id == rows
    with pytest.raises(ModelError, match=f"the {rows} rows of the embedding table; got pad_token_id = {rows}"):
        check_vocabulary(network, tokenizer)


def test_a_pad_token_of_a_nested_configuration_is_found_by_transformers(tmp_path):
    """Gemma 3 with its image side keeps the pad id of its text side in a configuration of its own, where transformers' class looks."""
    tokenizer = tiny_tokenizer("gemma")
    tokenizer.pad_token = None
    text = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    text |= {"intermediate_size": 64, "head_dim": 8, "vocab_size": len(tokenizer), "max_position_embeddings": 256}
    text |= {"initializer_range": 0.2, "pad_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    AutoModel.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    network, tokenizer = with_large_head(tmp_path / "base")
    assert give_pad_token(network, tokenizer)
    save(network, Renderer(tokenizer, RenderSpec()), tmp_path / "rm", training_dtype="float32", manifest={})
    ours = RewardModel.load(tmp_path / "rm")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    texts = [ours.renderer.render(*pair) for pair in PAIRS[:3]]
    batch = AutoTokenizer.from_pretrained(tmp_path / "rm")(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = model.eval()(**batch).logits[:, 0].numpy()
    assert worst(ours.score(PAIRS[:3]), found) <= 1e-5


def test_a_saved_decoder_verifies(decoder):
    """One with a window and one with positions of its own; the folders of all others were proven when they were saved."""
    for family in ("gpt2", "mistral"):
        assert all(check.ok for check in verify(str(decoder(family).folder)))
