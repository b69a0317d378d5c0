"""Which pooling a model gets, whether a class of transformers expresses it, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from rewardsmith.config import Pooling
from rewardsmith.errors import ModelError, SettingsError

# Families whose own sequence-classification class is exactly: pooler's output -> dropout -> linear.
POOLER_FAMILIES = frozenset({"albert", "bert", "deberta", "deberta-v2", "ernie", "megatron-bert"})
# Decoders whose own sequence-classification class has more than one linear layer over the last token.
_DEEPER_HEADS = frozenset({"modernbert-decoder"})


@dataclass(frozen=True)
class PoolingChoice:
    """A resolved pooling.

    Args:
        pooling: what is done.
        native: whether transformers' own class does it; else the folder is of our class.
        reason: why, for the log.
    """

    pooling: Literal["pooler", "cls", "mean", "last", "native"]
    native: bool
    reason: str


def is_decoder(config: PretrainedConfig) -> bool:
    """Whether a model reads left to right."""
    return reads_left_to_right(config.model_type)


def reads_left_to_right(kind: str) -> bool:
    """Whether a model type does: it has a causal and no masked language model."""
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def choose_pooling(wanted: Pooling, config: PretrainedConfig) -> PoolingChoice:
    """The pooling for a base model.

    Raises:
        SettingsError: if the architecture cannot do what was asked.
        ModelError: if the architecture is an encoder-decoder.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError("an encoder or a decoder", f"the encoder-decoder {kind!r}", "Choose another base model.")
    has_native = kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    reads_last = has_native and kind not in _DEEPER_HEADS
    if wanted == "auto":
        if is_decoder(config):
            return PoolingChoice("last", reads_last, "auto: a decoder, so the last real token")
        if kind in POOLER_FAMILIES:
            return PoolingChoice("pooler", True, f"auto: {kind} has a pooler")
        return PoolingChoice("mean", False, f"auto: {kind} has no pooler of its own, so the mean over tokens")
    if wanted == "pooler":
        if kind not in POOLER_FAMILIES:
            raise SettingsError(
                'an architecture with a pooler for pooling = "pooler"', kind, 'Set pooling = "mean" or "auto".'
            )
        return PoolingChoice("pooler", True, "as set")
    if wanted == "native":
        if not has_native:
            raise SettingsError(
                "a sequence-classification class of transformers", f"{kind}, which has none", 'Set pooling = "mean".'
            )
        if kind in POOLER_FAMILIES:
            return PoolingChoice("pooler", True, f"native: {kind}'s own class is its pooler and a linear head")
        if is_decoder(config) and reads_last:
            return PoolingChoice("last", True, f"native: {kind}'s own class reads the last token")
        return PoolingChoice("native", True, "as set")
    if wanted == "last" and is_decoder(config) and reads_last:
        return PoolingChoice("last", True, "as set")
    return PoolingChoice(wanted, False, "as set")
