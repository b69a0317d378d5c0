"""Learning rates by place in the network: the layers below slower than those above, the head at a rate of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from rewardsmith.model.layers import layer_stack
from rewardsmith.model.network import Network

OBJECTIVE = "objective"
"""Name, in the model, of what a loss learns beside the network: a threshold, say."""
# Such a number starts at most a few units from where it belongs; at the network's rate it would never arrive.
_OBJECTIVE_RATE = 1e-2


@dataclass(frozen=True)
class Rates:
    """Peak learning rates and the weight decay of a run.

    Args:
        base: of the top layer.
        weight_decay: of matrices; norms, biases and what a loss learns have none.
        head: of the head; `base` where None.
        layer_decay: factor between a layer and the one above it.
    """

    base: float
    weight_decay: float
    head: float | None = None
    layer_decay: float = 1.0


def parameter_groups(network: Network, rates: Rates, decayed: Collection[str]) -> list[dict[str, Any]]:
    """The trained parameters as groups of equal rate and decay, for a torch optimiser, in the order of their first parameter.

    Layer i of n has the rate base x decay^(n - 1 - i), the embeddings base x decay^n; what stands above the layers has the base rate.

    Args:
        network: after `choose_trained`.
        rates: see `Rates`.
        decayed: names of the parameters that weight decay is meant for.

    Raises:
        SettingsError: if layer_decay is below 1 and the backbone has no stack of layers.
    """
    stack = layer_stack(network) if rates.layer_decay < 1 else None
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = rates.weight_decay if name in decayed else 0.0
        rate, of_objective = rates.base, name.startswith(f"{OBJECTIVE}.")
        if of_objective:
            rate, decay = max(_OBJECTIVE_RATE, rate), 0.0
        elif name.startswith(f"{network.head_name}."):
            rate = rates.base if rates.head is None else rates.head
        elif stack is not None:
            rate = rates.base * rates.layer_decay ** max(0, stack.count - stack.depth_of(name))
        # By itself whatever its rate: sharded weights and whole ones cannot be stepped together.
        groups[rate, decay, of_objective].append(parameter)
    return [{"params": items, "lr": rate, "weight_decay": decay} for (rate, decay, _), items in groups.items()]
