"""Where in a network a parameter stands: below, in or above the stack of layers. Freezing, adapters and layer-wise rates go by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from rewardsmith.errors import SettingsError
from rewardsmith.model.network import Network

# The last is the norm of DeBERTa's relative positions, which every layer reads.
_EMBEDDING_NAMES = ("wte", "wpe", "embed", "emb.", "relative_attention_bias", "encoder.LayerNorm.")
# DeBERTa-v2's convolution follows its first layer.
_AFTER_FIRST_LAYER = "encoder.conv."


@dataclass(frozen=True)
class LayerStack:
    """The layers of a backbone.

    Args:
        prefix: name of the list in the model, with a dot at its end ("model.layers.").
        count: how many layers.
        below: parameters that come before the layers: embeddings, and what is made of them.
    """

    prefix: str
    count: int
    below: frozenset[str] = frozenset()

    def layer_of(self, name: str) -> int | None:
        """The layer that a parameter or module belongs to; None outside the stack.

        >>> LayerStack("model.layers.", 30).layer_of("model.layers.7.mlp.up_proj.weight")
        7
        """
        if not name.startswith(self.prefix):
            return None
        return int(name.removeprefix(self.prefix).partition(".")[0])

    def depth_of(self, name: str) -> int:
        """0 for the embeddings, i + 1 for layer i, count + 1 for what stands above: the last norm, a pooler, the head."""
        layer = self.layer_of(name)
        if layer is not None:
            return layer + 1
        if _AFTER_FIRST_LAYER in name:
            return 1
        named = any(part in f"{name}." for part in _EMBEDDING_NAMES)
        below = named or any(f"{one}.".startswith(f"{name}.") for one in self.below)
        return 0 if below else self.count + 1


def layer_stack(network: Network) -> LayerStack:
    """The list of a backbone's layers.

    Raises:
        SettingsError: if the backbone has none (ALBERT has one layer that is used many times).
    """
    wanted = getattr(network.backbone_config, "num_hidden_layers", None)
    lists = [
        f"{name}."
        for name, module in network.model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == wanted and next(module.parameters(), None) is not None
    ]
    outer = [name for name in lists if not any(name != other and name.startswith(other) for other in lists)]
    if len(outer) == 1:  # XLM keeps the parts of its layers in four lists
        names = [name for name, _ in network.model.named_parameters()]
        first = next(i for i, name in enumerate(names) if name.startswith(outer[0]))
        return LayerStack(outer[0], int(wanted or 0), frozenset(names[:first]))
    raise SettingsError(
        "a backbone with a stack of layers, for settings that go by layers",
        network.backbone_type,
        "Leave freeze at none or encoder and layer_decay at 1.",
    )


def num_frozen_layers(freeze: int, stack: LayerStack) -> int:
    """How many layers, counted from below, a whole number in `freeze` leaves as they are.

    Raises:
        SettingsError: if nothing but the head would be left, or there are not so many.
    """
    frozen = freeze if freeze >= 0 else stack.count + freeze
    if not 0 <= frozen < stack.count:
        raise SettingsError(
            f"freeze between {-stack.count} and {stack.count - 1} for a model of {stack.count} layers",
            f"freeze = {freeze}",
            'Set freeze = "encoder" to train the head alone.',
        )
    return frozen


def linear_layers(network: Network) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of every linear layer of the backbone, GPT-2's transposed kind among them; never the head, nor a part that the source did not have."""
    inner = f"{network.model.base_model_prefix}."
    for name, module in network.model.named_modules():
        of_source = name.startswith(inner) and name not in network.new_modules
        if of_source and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"):
            yield name, module
