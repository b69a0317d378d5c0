"""What a manifest says of the machine and of the files that a run started from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from rewardsmith import launched
from rewardsmith.storage import file_sha256

# Beside the weights: all that decides ids, architecture and contract, as transformers and rewardsmith name them.
_READ = (
    "config.json",
    "rewardsmith.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def base_files(source: str, *, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """The SHA-256 of each file of a base model that can move a number, by name; empty where the files are not at hand.

    Args:
        source: a folder, or a Hugging Face name that was loaded before.
        known: hashes that need not be computed again.
    """
    folder = Path(source)
    if not folder.is_dir():
        cached = try_to_load_from_cache(source, "config.json") if source.count("/") <= 1 else None
        if not isinstance(cached, str):
            return {}
        folder = Path(cached).parent
    weights = next((found for kind in _WEIGHTS if (found := sorted(folder.glob(kind)))), [])
    paths = [*weights, *(folder / name for name in _READ)]
    known = known or {}
    return {path.name: known.get(path.name) or file_sha256(path) for path in paths if path.is_file()}


def device_facts(device: torch.device) -> dict[str, Any]:
    """The device of a run, with what of it decides the order and the rounding of its sums."""
    facts: dict[str, Any] = {
        "type": device.type,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processes": launched.count(),
    }
    if device.type == "cuda":
        facts |= {
            "name": torch.cuda.get_device_name(device),
            "count": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "float32": torch.get_float32_matmul_precision(),
        }
    return facts


def device_memory(device: torch.device) -> dict[str, int]:
    """The most bytes that tensors took on a GPU; empty elsewhere."""
    return {"cuda": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
