"""How a network reads many texts: in padded batches, or packed end to end; every automatic choice returns its reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rewardsmith.config import Batching, SharePrompts
from rewardsmith.errors import SettingsError
from rewardsmith.model.attention import NAME
from rewardsmith.model.network import Network
from rewardsmith.model.pooling import reads_left_to_right

# Families whose packed scores and gradients a test compares with the padded ones, in float64. All let their attention be chosen and take position ids.
PACKED_FAMILIES = frozenset(
    {
        "bert",
        "distilbert",
        "electra",
        "gemma",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "llama",
        "mistral",
        "modernbert",
        "olmo2",
        "phi",
        "qwen2",
        "qwen3",
        "roberta",
    }
)


@dataclass(frozen=True)
class BatchingChoice:
    """How texts are batched, and why.

    Args:
        packed: texts stand end to end, without padding.
        share: texts that begin alike read their beginning once.
        reason: for the log and the record.
    """

    packed: bool
    share: bool
    reason: str

    @property
    def name(self) -> str:
        """For the log and the record."""
        return "packed, shared prompts" if self.share else "packed" if self.packed else "padded"


PADDED = BatchingChoice(False, False, "as set")
"""Batches as every model of transformers takes them."""


def choose_batching(
    network: Network,
    device: torch.device,
    *,
    wanted: Batching = "auto",
    share: SharePrompts = "auto",
    dropout: bool = False,
    compiled: bool = False,
) -> BatchingChoice:
    """How a network's texts are batched.

    Args:
        network: to score or train.
        device: it runs on.
        wanted: "packed" is refused where it is not exact.
        share: likewise.
        dropout: whether the network is trained with dropout.
        compiled: whether the Trainer compiles the model.

    Raises:
        SettingsError: if what is asked for would not be exact.
    """
    if wanted == "padded":
        if share is True:
            raise SettingsError("packed batches for share_prompts", 'batching = "padded"', "Remove one of the two.")
        return PADDED
    obstacle = _obstacle(network, dropout=dropout, compiled=compiled)
    if obstacle and (wanted == "packed" or share is True):
        raise SettingsError("a model and settings that can be packed", obstacle, 'Set batching = "auto".')
    if obstacle:
        return BatchingChoice(False, False, f"auto: {obstacle}")
    causal = reads_left_to_right(network.backbone_type)
    if wanted == "auto" and device.type != "cpu" and not (device.type == "cuda" and causal):
        kind = "decoders" if device.type == "cuda" else "it"
        return BatchingChoice(False, False, f"auto: on {device.type} packing has been measured for {kind} alone")
    if share is True and not causal:
        raise SettingsError(
            "a model that reads left to right for share_prompts",
            network.backbone_type,
            "Leave share_prompts at auto: in an encoder a prompt is read differently beside every answer.",
        )
    how = "as set" if wanted == "packed" else "auto"
    if causal and share is not False:
        return BatchingChoice(True, True, f"{how}: {network.backbone_type} reads left to right")
    return BatchingChoice(True, False, f"{how}: no padding for {network.backbone_type}")


def _obstacle(network: Network, *, dropout: bool, compiled: bool) -> str:
    """Why a network cannot read packed rows exactly; empty where it can."""
    kind = network.backbone_type
    if kind not in PACKED_FAMILIES:
        return f"packing is not proven for {kind}"
    if network.pooling == "native":
        return f"{kind}'s own head reads padded batches"
    if dropout:
        return "dropout is on"
    if compiled:
        return "torch_compile is on, and a packed row has a shape of its own at every step"
    attention = network.backbone_config._attn_implementation
    if attention not in ("sdpa", NAME):
        return f"the model asks for {attention} attention"
    return ""
