"""Heads of several attributes: trained side by side, reduced to the one score by declared weights, kept beside it for those who ask for them.

A weighted sum of linear heads is a linear head: the reduced model is an ordinary reward model, and no tool that loads it sees a difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rewardsmith.errors import ContractError
from rewardsmith.model.network import Network

FILE_NAME = "attributes.safetensors"


@dataclass(frozen=True)
class AttributeHeads:
    """Legend: `A` attributes, `H` hidden.

    Args:
        names: of the attributes.
        weights: of each in the score.
        weight: of the heads, float32 (A, H).
        bias: of the heads, float32 (A,): what a bias-free head leaves out stands here too.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    weight: Tensor
    bias: Tensor

    def save(self, folder: Path) -> None:
        """Write the heads into a model folder."""
        tensors = {"weight": self.weight.detach().cpu().contiguous(), "bias": self.bias.detach().cpu().contiguous()}
        save_file(tensors, folder / FILE_NAME, metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path, attributes: dict[str, float]) -> AttributeHeads:
        """Read the heads of a model folder; `attributes` is the contract's {name: weight}.

        Raises:
            ContractError: if the file is missing, broken or of another size.
        """
        try:
            with safe_open(folder / FILE_NAME, framework="pt") as file:
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        except (OSError, SafetensorError) as error:
            raise ContractError(f"{FILE_NAME} in {folder.name!r}", str(error), "Restore the folder.") from error
        if weight.ndim != 2 or len(weight) != len(attributes) or bias.shape != weight.shape[:1]:
            raise ContractError(
                f"{len(attributes)} heads in {FILE_NAME}",
                f"weights of shape {list(weight.shape)}, biases of shape {list(bias.shape)}",
                "The file is of another model.",
            )
        return cls(tuple(attributes), tuple(attributes.values()), weight, bias)


def reduce_head(network: Network, attributes: dict[str, float], offset: Tensor) -> AttributeHeads:
    """Put the weighted sum of a network's heads in their place; returns the heads.

    Args:
        network: with one head an attribute.
        attributes: {name: weight}.
        offset: of each attribute that the network leaves out, (A,).
    """
    head = network.head_module
    weights = torch.tensor(list(attributes.values()), dtype=torch.float32, device=head.weight.device)
    weight = head.weight.detach().clone()
    bias = torch.zeros_like(weights) if head.bias is None else head.bias.detach().clone()
    # In float64, so that the one score is the sum of the attributes' to the last digit that float32 has.
    reduced = (weights.double() @ weight.double()).float()[None]
    reduced_bias = None if head.bias is None else (weights.double() @ bias.double()).float()[None]
    network.set_head(reduced, reduced_bias)
    return AttributeHeads(tuple(attributes), tuple(attributes.values()), weight, bias + offset.to(bias.device))
