"""Perplexity of answers under a causal language model: the model's own loss over the answer's tokens, and nobody else's."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rewardsmith.config import ScoringSettings
from rewardsmith.errors import ModelError
from rewardsmith.model.language_model import LanguageModel
from rewardsmith.scores import Perplexity
from tests.tiny_models import save_tiny, tiny_tokenizer

PAIRS = [
    ("Say hi.", "Hi there."),
    ("How do I mend item 3?", "Gladly use glue number 3."),
    (
        [
            {"role": "user", "content": "Hm?"},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": "Go on."},
        ],
        "No.",
    ),
]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """language_model("llama") is the folder of a tiny random causal model."""

    def build(family, tie=False):
        folder, tokenizer = tmp_path_factory.mktemp("lm") / family, tiny_tokenizer(family)
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            family, vocab_size=len(tokenizer), initializer_range=0.3, hidden_size=32, num_attention_heads=4, tie_word_embeddings=tie,
            num_hidden_layers=2, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=256,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return build


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_it_is_the_models_own_loss_over_the_answer(family, language_model):
    """A default text and a chat template; by hand: the rendered text, with labels at the answer alone."""
    folder = language_model(family)
    model = LanguageModel(folder)
    assert isinstance(model, Perplexity)
    found = model.perplexities(PAIRS)
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    for i, (prompt, answer) in enumerate(PAIRS):
        ids = torch.tensor(model.renderer.encode([(prompt, answer)]).row(0)).long()
        places = model._placed.placed((prompt, answer)).places
        inside = torch.tensor([place is not None and place.slot == -2 for place in places])
        spelt = model.renderer.tokenizer.decode(ids[inside])
        assert spelt.strip() == answer
        with torch.no_grad():
            loss = network(input_ids=ids[None], labels=torch.where(inside, ids, -100)[None]).loss
        assert found[i] == pytest.approx(float(loss.exp()), rel=1e-4)


def test_company_does_not_move_it_and_nothing_read_is_no_number(language_model):
    folder = language_model("llama")
    together = LanguageModel(folder).perplexities([*PAIRS, ("Say nothing.", "")])
    alone = LanguageModel(folder, settings=ScoringSettings(batch_tokens=1)).perplexities(PAIRS)
    assert together[:3] == pytest.approx(alone, rel=1e-5) and np.isnan(together[3])
    assert np.isnan(LanguageModel(folder).perplexities([("a", "")])).all()
    long = LanguageModel(folder, max_length=48)
    assert long.max_length == 48 and np.isfinite(long.perplexities([("Say it.", "never again " * 60)])).all()
    assert LanguageModel(folder).max_length == 256


def test_a_model_without_its_output_layer_is_refused(tmp_path, language_model):
    with pytest.raises(ModelError, match="all weights of a causal language model"):
        LanguageModel(save_tiny("llama", tmp_path / "base", tie_word_embeddings=False))
    # Tied to the embeddings, it is there.
    assert np.isfinite(
        LanguageModel(save_tiny("qwen3", tmp_path / "tied", tie_word_embeddings=True)).perplexities(PAIRS)
    ).all()
    with pytest.raises(ModelError, match="causal language model"):
        LanguageModel(save_tiny("deberta-v2", tmp_path / "encoder"))
