"""A pad token of its own for a decoder: transformers' own class, vLLM and others find the last token of a text by it."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from rewardsmith.model.network import Network
from rewardsmith.model.pooling import is_decoder

PAD_TOKEN = "<|pad|>"
# Names under which vocabularies carry a pad token that the tokenizer was not told of.
_KNOWN = (PAD_TOKEN, "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>")


def give_pad_token(network: Network, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give a decoder without a pad token, or with one that is its end token as well, one of its own; returns what was done, for the log.

    Were the end token the filler too, a tool that looks for the last token that is no filler would skip a real end token and read the score one token early
    (trap 1). The token is one that the vocabulary has by name, else a new one; its row of the embedding table is zero and never reaches a score.

    Args:
        network: its embedding table may grow by one row; its config learns the id.
        tokenizer: is changed.
    """
    if not (is_decoder(network.backbone_config) and network.native):
        return None
    rows = network.model.get_input_embeddings().num_embeddings
    # A tokenizer that was saved beside an adapter has our token already; its base has no row for it.
    ours = tokenizer.pad_token == PAD_TOKEN and tokenizer.pad_token_id == rows
    if not ours and tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in _end_ids(network, tokenizer):
        return None
    vocabulary, ends = tokenizer.get_vocab(), _end_ids(network, tokenizer)
    name = next((one for one in _KNOWN if one in vocabulary and vocabulary[one] not in ends), PAD_TOKEN)
    before = (
        "no row for it"
        if ours
        else "none"
        if tokenizer.pad_token_id is None
        else f"the end token {tokenizer.pad_token!r}"
    )
    tokenizer.add_special_tokens({"pad_token": name})
    pad = int(tokenizer.pad_token_id)
    model = network.model
    if pad >= rows:
        model.resize_token_embeddings(pad + 1, mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[rows:] = 0
    model.config.get_text_config().pad_token_id = pad
    grown = f"; the embedding table grew from {rows} to {pad + 1} rows" if pad >= rows else ""
    return f"pad token: {name!r}, for the model had {before}{grown}"


def _end_ids(network: Network, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that end a text, by tokenizer or config; some configs list several."""
    declared = getattr(network.backbone_config, "eos_token_id", None)
    found = declared if isinstance(declared, list) else [declared]
    return {int(one) for one in (*found, tokenizer.eos_token_id) if one is not None}
