"""GGUF files as a starting point: dequantised once into an ordinary float32 folder of the user's cache, which everything else reads."""

from __future__ import annotations

import contextlib
import copy
import io
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rewardsmith.errors import MissingExtraError, ModelError
from rewardsmith.model.token_cache import default_folder
from rewardsmith.storage import atomic_folder, file_sha256

_WHOLE = "config.json"
# What transformers' reader raises at a file that is cut short or no GGUF at all.
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError, struct.error)


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
        ModelError: if the file cannot be read, or lacks a weight.
        OutputError: if there is no room for the folder.
    """
    folder = (cache or default_folder()) / "gguf" / file_sha256(file)[:32]
    if (folder / _WHOLE).is_file():
        return folder
    try:
        import gguf  # noqa: F401  # transformers asks for it only in the middle of loading
    except ImportError as error:
        raise MissingExtraError(f"the GGUF file {file.name}", "gguf", "lora") from error
    with _without_bars():
        config, tokenizer, read = _read(file)
        # A model read from GGUF refuses to be saved: its weights move into a fresh one.
        model = AutoModel.from_config(_plain(config))
        model.load_state_dict(read.state_dict())
        with atomic_folder(folder) as new:
            model.save_pretrained(new, max_shard_size="1TB")
            tokenizer.save_pretrained(new)
    return folder


def _read(file: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase, PreTrainedModel]:
    """Config, tokenizer and backbone of a GGUF file, every weight of it."""
    place, name = str(file.parent), file.name
    try:
        config = AutoConfig.from_pretrained(place, gguf_file=name)
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
        read, info = AutoModel.from_pretrained(place, gguf_file=name, dtype=torch.float32, output_loading_info=True)
    except _UNREADABLE as error:
        raise ModelError(
            f"a GGUF file that transformers reads in {name}",
            (str(error).splitlines() or [type(error).__name__])[0][:200],
            "Take the original checkpoint of the model.",
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"all weights of the base model in {name}",
            f"{len(missing)} missing: {', '.join(missing[:3])}",
            "Fetch the file again, or take the original checkpoint of the model.",
        )
    return config, tokenizer, read


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Silence progress bars: those of transformers, and one that it draws past its own switch, straight to standard error."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _plain(config: PretrainedConfig) -> PretrainedConfig:
    """The config without a trace of the quantisation and of the place it was read from."""
    plain = copy.deepcopy(config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    plain._name_or_path = ""
    return plain
