"""Which parts of a network are trained, and from where the head begins: its outputs and level, frozen layers, adapters."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rewardsmith.config import TrainSettings
from rewardsmith.errors import SettingsError
from rewardsmith.model import artefact
from rewardsmith.model.adapters import adapted_layers, add_adapters
from rewardsmith.model.frozen_features import check_features
from rewardsmith.model.layers import layer_stack, num_frozen_layers
from rewardsmith.model.losses import Objective
from rewardsmith.model.network import Network


def prepare_head(network: Network, objective: Objective, *, source: str) -> Tensor:
    """Give the head as many outputs as the loss needs, and a new one a bias that starts where the loss says.

    A head that goes on keeps its level, and so does one of a class without a bias (a decoder of transformers): the level of the ratings is then taken off
    the ratings themselves.

    Returns:
        What is to be taken off the ratings, (A,).
    """
    head, start = network.head_module, objective.initial_bias()
    if network.head == "loaded" and objective.num_outputs == 1:
        return start - _level_of(source, start) if start.any() else start
    if objective.num_outputs > 1 or start.any():
        weight = head.weight.detach().expand(objective.num_outputs, -1)
        network.set_head(weight, None if head.bias is None else start)
    return start if head.bias is None else torch.zeros_like(start)


def _level_of(source: str, start: Tensor) -> Tensor:
    """The mean score of a reward model that goes on, as far as its contract says: of the ratings it was trained on, or on its sample."""
    contract = artefact.read_contract(Path(source)) if (Path(source) / artefact.CONTRACT).is_file() else None
    if contract is None:
        return torch.zeros_like(start)
    if "rating_minus_score" in (contract.objective or {}):
        return start - contract.objective["rating_minus_score"]  # type: ignore[index]
    mean = contract.normaliser.mean if contract.normaliser is not None else 0.0
    return torch.full_like(start, mean)


def choose_trained(network: Network, settings: TrainSettings, *, pins_level: bool) -> list[str]:
    """Freeze what is not to be trained and put adapters where they are asked for; returns what was done, for the log.

    A head's bias is trained only where the loss pins the level of the scores: Bradley-Terry cannot see it. Parts that the base model did not have are
    trained even under a frozen encoder, for they are random.

    Raises:
        SettingsError: if the layers or the head's solver do not fit the settings.
    """
    check_features(network, settings)
    model, notes = network.model, []
    stack, frozen_layers = None, 0
    if isinstance(settings.freeze, int):
        stack = layer_stack(network)
        frozen_layers = num_frozen_layers(settings.freeze, stack)
    for name, parameter in model.named_parameters():
        new = any(name.startswith(f"{module}.") for module in (network.head_name, *network.new_modules))
        frozen = settings.freeze == "encoder" or (stack is not None and stack.depth_of(name) <= frozen_layers)
        parameter.requires_grad = new or not frozen
    head = network.head_module
    if head.bias is not None:
        head.bias.requires_grad = pins_level
    if stack is not None:
        notes.append(f"frozen: the embeddings and the first {frozen_layers} of {stack.count} layers")
    if settings.lora is not None:
        if settings.freeze == "encoder":
            raise SettingsError("layers to adapt, for lora", 'freeze = "encoder"', "Remove one of the two.")
        names = adapted_layers(network, settings.lora, stack=stack, frozen_layers=frozen_layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            add_adapters(network, settings.lora, names)
        kind = "DoRA" if settings.lora.dora else "LoRA"
        notes.append(f"{kind}: rank {settings.lora.rank} on {len(names)} linear layers; the head in full, in float32")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in model.parameters())
    return [*notes, f"trained parameters: {trained:,} of {everything:,} ({trained / everything:.1%})"]
