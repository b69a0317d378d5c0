"""GGUF files as a starting point: dequantised once into an ordinary float32 folder of the user's cache, which everything else reads."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig
from transformers.utils import logging as transformers_logging

from rewardsmith.errors import MissingExtraError, ModelError
from rewardsmith.model.token_cache import default_folder
from rewardsmith.storage import atomic_folder, file_sha256

_WHOLE = "config.json"


def is_gguf(source: str) -> bool:
    """Whether a MODEL argument names a GGUF file."""
    return source.endswith(".gguf") and Path(source).is_file()


def dequantised(file: Path, cache: Path | None = None) -> Path:
    """A folder with the backbone, config and tokenizer of a GGUF file; made on the first call, found by the file's hash afterwards.

    The weights are those that the file's few bits stand for, 4 bytes each; nothing of the quantisation is left in the config, so that what is trained from
    them is an ordinary model.

    Args:
        file: of an architecture that transformers can read from GGUF.
        cache: where to keep the folder; the user's cache folder by default.

    Raises:
        MissingExtraError: if the package gguf is not installed.
        ModelError: if the file cannot be read.
        OutputError: if there is no room for the folder.
    """
    folder = (cache or default_folder()) / "gguf" / file_sha256(file)[:32]
    if (folder / _WHOLE).is_file():
        return folder
    try:
        import gguf  # noqa: F401  # transformers asks for it only in the middle of loading
    except ImportError as error:
        raise MissingExtraError(f"the GGUF file {file.name}", "gguf", "lora") from error
    place, name = str(file.parent), file.name
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(place, gguf_file=name)
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
        read = AutoModel.from_pretrained(place, gguf_file=name, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"a GGUF file that transformers reads in {name}",
            (str(error).splitlines() or [type(error).__name__])[0][:200],
            "Take the original checkpoint of the model.",
        ) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    # A model read from GGUF refuses to be saved: its weights move into a fresh one.
    model = AutoModel.from_config(_plain(config))
    model.load_state_dict(read.state_dict())
    with atomic_folder(folder) as new:
        model.save_pretrained(new, max_shard_size="1TB")
        tokenizer.save_pretrained(new)
    return folder


def _plain(config: PretrainedConfig) -> PretrainedConfig:
    """The config without a trace of the quantisation and of the place it was read from."""
    plain = copy.deepcopy(config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    plain._name_or_path = ""
    return plain
