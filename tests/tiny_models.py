"""Tiny random models with tokenizers of their family's kind, made in memory: no test reaches a model hub."""

import math
import string
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from rewardsmith.data.golden import INPUTS

HIDDEN = 32
CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
_BRACKETS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**_COMMON, "max_position_embeddings": 128},
    "distilbert": {"dim": HIDDEN, "n_heads": 4, "n_layers": 2, "hidden_dim": 64, "max_position_embeddings": 128},
    "roberta": {**_COMMON, "max_position_embeddings": 130, "type_vocab_size": 1},
    "electra": {**_COMMON, "embedding_size": 16, "max_position_embeddings": 128},
    "deberta-v2": {
        **_COMMON,
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "type_vocab_size": 0,
        "max_position_embeddings": 128,
        "pooler_hidden_size": HIDDEN,
    },
    "modernbert": {**_COMMON, "max_position_embeddings": 256, "global_attn_every_n_layers": 2, "local_attention": 16},
    "qwen2": {**_COMMON, "num_key_value_heads": 2, "max_position_embeddings": 256},
    "qwen3": {**_COMMON, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 8},
    "llama": {**_COMMON, "num_key_value_heads": 2, "max_position_embeddings": 256},
    "mistral": {**_COMMON, "num_key_value_heads": 2, "max_position_embeddings": 256, "sliding_window": None},
    "gemma": {**_COMMON, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 8},
    "gemma2": {
        **_COMMON,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "head_dim": 8,
        "sliding_window": 64,
    },
    "gemma3_text": {
        **_COMMON,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "head_dim": 8,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "olmo2": {**_COMMON, "num_key_value_heads": 2, "max_position_embeddings": 256},
    "phi": {**_COMMON, "max_position_embeddings": 256},
    "gpt2": {"n_embd": HIDDEN, "n_head": 4, "n_layer": 2, "n_inner": 64, "n_positions": 256},
    "gpt_neox": {**_COMMON, "max_position_embeddings": 256},
}
# What each decoder's tokenizer knows: (added before a text, end token, pad token).
_DECODER_TOKENS = {
    "qwen3": (None, "<|end|>", "<|end|>"),
    "llama": ("<s>", "</s>", None),
    "mistral": ("<s>", "</s>", "</s>"),
    "gemma": ("<bos>", "<eos>", "<pad>"),
    "gemma2": ("<bos>", "<eos>", "<pad>"),
    "gemma3_text": ("<bos>", "<eos>", "<pad>"),
    "olmo2": (None, "<|endoftext|>", "<|pad|>"),
    "phi": (None, "<|endoftext|>", None),
    "gpt2": (None, "<|endoftext|>", None),
    "gpt_neox": (None, "<|endoftext|>", None),
}


def _texts() -> list[str]:
    texts = []
    for prompt, answer in INPUTS:
        texts += [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        texts.append(answer)
    return [*texts, "### Prompt: ### Answer: User: Assistant: System: How do I mend item? Gladly use glue number"]


def _pieces(tokenizer: Tokenizer, most: int) -> Counter[str]:
    """The single characters and the most frequent words, with their counts.

    By hand, because the trainers of WordPiece and Unigram give another vocabulary in every process, and a test of a tiny model would then be a test of luck.
    """
    words: Counter[str] = Counter()
    for text in _texts():
        normal = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    letters = Counter(tokenizer.normalizer.normalize_str(string.ascii_letters + string.digits + string.punctuation))
    letters.update(letter for word in words for letter in word)
    frequent = sorted(words, key=lambda word: (-words[word], word))[:most]
    return Counter(
        {**{letter: letters[letter] for letter in sorted(letters)}, **{word: words[word] for word in frequent}}
    )


def _wordpiece() -> tuple[Tokenizer, dict[str, str]]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = list(_pieces(tokenizer, 300))
    inside = [f"##{piece}" for piece in pieces if len(piece) == 1]
    vocabulary = {piece: i for i, piece in enumerate([*specials, *pieces, *inside])}
    tokenizer.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, _BRACKETS


def _byte_level(first: str, last: str, *, doubled: bool) -> tuple[Tokenizer, dict[str, str]]:
    """A byte-level BPE; `doubled` puts two end tokens between segments, as RoBERTa does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = [first, "<pad>", last, "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _texts(), trainers.BpeTrainer(vocab_size=700, special_tokens=specials, initial_alphabet=alphabet)
    )
    middle = f"{last} {last}" if doubled else last
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {middle} $B {last}", special_tokens=[(first, 0), (last, 2)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": first, "sep_token": last, "mask_token": "<mask>"}
    return tokenizer, names


def _unigram() -> tuple[Tokenizer, dict[str, str]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    pieces = _pieces(tokenizer, 300)
    scored = [(piece, math.log(count / pieces.total())) for piece, count in pieces.items()]
    tokenizer.model = models.Unigram([*((token, 0.0) for token in specials), *scored], unk_id=specials.index("[UNK]"))
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, _BRACKETS


def _chat() -> tuple[Tokenizer, dict[str, str]]:
    """A decoder's tokenizer: nothing is added around a text; its own pad token; control tokens of a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<|endoftext|>", "<|pad|>", "<|start|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _texts(), trainers.BpeTrainer(vocab_size=700, special_tokens=specials, initial_alphabet=alphabet)
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, {"pad_token": "<|pad|>", "eos_token": "<|endoftext|>"}


def _decoder(family: str) -> tuple[Tokenizer, dict[str, str]]:
    """A byte-level tokenizer with the family's habits: some add a first token, some have no pad token, of some it is the end token."""
    first, end, pad = _DECODER_TOKENS[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = list(dict.fromkeys(token for token in (first, end, pad) if token))
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    if first:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A $B", special_tokens=[(first, tokenizer.token_to_id(first))]
        )
    tokenizer.decoder = decoders.ByteLevel()
    names = {"bos_token": first, "eos_token": end, "pad_token": pad}
    return tokenizer, {name: token for name, token in names.items() if token}


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the family's kind."""
    if family in ("bert", "distilbert", "electra"):
        backend, names = _wordpiece()
    elif family == "deberta-v2":
        backend, names = _unigram()
    elif family == "qwen2":
        backend, names = _chat()
    elif family in _DECODER_TOKENS:
        backend, names = _decoder(family)
    else:
        first, last = ("<s>", "</s>") if family == "roberta" else ("[CLS]", "[SEP]")
        backend, names = _byte_level(first, last, doubled=family == "roberta")
    inputs = ["input_ids", "attention_mask"]
    if family in ("bert", "electra", "deberta-v2"):
        inputs.insert(1, "token_type_ids")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names)
    if family == "qwen2":
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tiny(family: str, out: Path, **changes: Any) -> Path:
    """A base model with random weights large enough that scores differ visibly; `changes` go into its config."""
    tokenizer = tiny_tokenizer(family)
    torch.manual_seed(0)
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    if family == "qwen2" or family in _DECODER_TOKENS:
        special |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if family == "modernbert":
        special |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    # Decoders without a spare row must grow one for their pad token.
    spare = 0 if family in _DECODER_TOKENS else 8
    values = {**_CONFIGS[family], **special, **changes}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer) + spare, initializer_range=0.2, **values)
    model = AutoModel.from_config(config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def save_reward_model(base: str, out: Path, *, pooling: str, encoding: str, max_length: int, **more: Any) -> Path:
    """A reward model over a base model, its head scaled up so that scores are of order 1; `more` goes into its `RenderSpec`."""
    from rewardsmith.model.artefact import save
    from rewardsmith.model.network import build_network, load_tokenizer
    from rewardsmith.model.render import Renderer, RenderSpec

    network = build_network(base, pooling=pooling, seed=1, dropout=False)  # type: ignore[arg-type]
    with torch.no_grad():
        network.head_module.weight.mul_(3)
    renderer = Renderer(load_tokenizer(base), RenderSpec(encoding=encoding, max_length=max_length, **more))  # type: ignore[arg-type]
    save(network, renderer, out, training_dtype="float32", manifest={})
    return out


def save_causal(family: str, out: Path, *, chat: bool = False) -> str:
    """A causal language model with random weights and the tokenizer of its family."""
    tokenizer = tiny_tokenizer(family)
    if chat:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
        tokenizer.chat_template = CHAT_TEMPLATE
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    values = {**_CONFIGS[family], **special, "initializer_range": 0.2}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer) + 8, **values)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return str(out)
