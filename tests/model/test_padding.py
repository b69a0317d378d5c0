"""Decoders under every kind of pad token: trained, saved, and read by other tools at the same token."""

import json

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rewardsmith
from rewardsmith.errors import ContractError
from rewardsmith.model.network import build_network, load_tokenizer
from rewardsmith.model.padding import PAD_TOKEN, give_pad_token

DECODERS = ("gpt2", "gpt_neox", "llama", "mistral", "gemma", "gemma2", "phi", "qwen3")
TEXTS = [
    ("How do I mend item 3?", "Gladly, here is how: use glue."),
    ("How do I mend item 3?", "No."),
    ("Why?", "Because the end token of some models stands inside the text, as in a conversation of several turns."),
]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """trained("gpt2") is the model folder of a short run."""
    made = {}

    def run(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            rows = [
                {"prompt": f"item {i}?", "chosen": f"Gladly, use glue {i}.", "rejected": f"No, go away {i}."}
                for i in range(16)
            ]
            (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            recipe = {
                "model": tiny(family),
                "data": str(folder / "pairs.jsonl"),
                "out": str(folder / "run"),
                "max_length": 96,
            }
            recipe |= {"batch_size": 8, "epochs": 1, "dev_share": 0, "precision": "float32", "device": "cpu"}
            with open(folder / "log", "w", encoding="utf-8") as log:
                rewardsmith.train(recipe, console=Console(file=log, width=300))
            made[family] = folder / "run" / "model", (folder / "log").read_text()
        return made[family]

    return run


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_is_saved_with_a_pad_token_of_its_own(family, trained, tiny):
    folder, log = trained(family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert (
        tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
        and config["pad_token_id"] == tokenizer.pad_token_id
    )
    before = load_tokenizer(tiny(family))
    assert (f"pad token: '{PAD_TOKEN}'" in log) == (before.pad_token_id in (None, before.eos_token_id))


@pytest.mark.parametrize("family", DECODERS)
def test_transformers_own_class_reads_the_same_token(family, trained):
    folder, _ = trained(family)
    model = rewardsmith.RewardModel.load(folder)
    ours = model.score(TEXTS)
    renderer = model.renderer
    other = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    table = renderer.encode(TEXTS)
    rows = [table.row(i).tolist() for i in range(len(TEXTS))]
    longest, pad = max(map(len, rows)), renderer.tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        theirs = other(input_ids=ids, attention_mask=mask).logits[:, 0].numpy()
    assert np.abs(ours - theirs).max() <= 1e-5 * max(1, np.abs(ours).max())
    assert len(set(ours.tolist())) == len(TEXTS)


@pytest.mark.parametrize("family", DECODERS)
def test_batches_and_their_order_move_no_score(family, trained):
    folder, _ = trained(family)
    model = rewardsmith.RewardModel.load(folder)
    together, alone = model.score(TEXTS), np.array([model.score([text])[0] for text in TEXTS])
    assert np.abs(together - alone).max() <= 1e-5 * max(1, np.abs(alone).max())


def test_an_end_token_inside_the_text_is_read_past(tiny):
    """Trap 1: two answers to one prompt that holds the end token differ, and a pair's first loss is not ln 2."""
    folder = tiny("gpt2")
    network, tokenizer = build_network(folder, pooling="auto", seed=0, dropout=False), load_tokenizer(folder)
    assert give_pad_token(network, tokenizer) and give_pad_token(network, tokenizer) is None
    from rewardsmith.model.batching import Batch

    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[5, 6, end, 7, 8], [5, 6, end, 9, 10, 11], [5, 6, end, 12, end]]
    ids = torch.tensor([row + [pad] * (6 - len(row)) for row in rows])
    mask = (torch.arange(6)[None] < torch.tensor([[len(row)] for row in rows])).long()
    with torch.no_grad():
        scores = network.scores(Batch(ids, mask, None))
    assert len(set(scores.tolist())) == 3
    # The filler is never looked at: whatever stands there, the scores stay.
    with torch.no_grad():
        other = network.scores(Batch(torch.where(mask.bool(), ids, torch.tensor(end)), mask, None))
    assert torch.equal(scores, other)


def test_a_pad_token_that_the_vocabulary_has_is_used(tiny):
    folder = tiny("gemma")
    network, tokenizer = build_network(folder, pooling="auto", seed=0, dropout=False), load_tokenizer(folder)
    rows = network.model.get_input_embeddings().num_embeddings
    tokenizer.pad_token = tokenizer.eos_token
    note = give_pad_token(network, tokenizer)
    assert note is not None and "<pad>" in note and tokenizer.pad_token == "<pad>"
    assert network.model.get_input_embeddings().num_embeddings == rows


def test_encoders_are_left_alone(tiny):
    network, tokenizer = (
        build_network(tiny("bert"), pooling="auto", seed=0, dropout=False),
        load_tokenizer(tiny("bert")),
    )
    assert give_pad_token(network, tokenizer) is None


def test_a_decoder_of_another_tool_without_a_pad_token_is_refused_for_use(tiny, tmp_path):
    """Scoring changes no folder: only training gives a pad token."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny("gpt2"), num_labels=1)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny("gpt2")).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="carries no"), pytest.raises(ContractError, match="a pad token of its own"):
        rewardsmith.RewardModel.load(str(tmp_path))
