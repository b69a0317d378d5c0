"""Policies that speak a few words: tiny random decoders whose whole vocabulary can be written down."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

END = "</s>"


def save_word_policy(out: Path, words: list[str], *, hidden: int = 16, layers: int = 1, dropout: float = 0.0) -> str:
    """A random GPT-2 that can say `words`, an end token, and one unknown word; prompts are read as runs of unknown words."""
    vocabulary = {token: i for i, token in enumerate([END, "<unk>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, unk_token="<unk>")
    config = AutoConfig.for_model(
        "gpt2",
        vocab_size=len(vocabulary),
        n_embd=hidden,
        n_head=2,
        n_layer=layers,
        n_inner=2 * hidden,
        n_positions=96,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return str(out)
