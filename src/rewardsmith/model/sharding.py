"""A network whose weights, gradients and optimiser state are dealt out over the processes: FSDP2, by torch's `fully_shard`, the same on CPUs and GPUs.

A layer's weights are put together while it computes and dealt out again. That is work for all processes at once, so each of them must go through the
network as often as every other: in a step (`Sharding.even`), and when texts are read (`Sharding.reader`).
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as sharded_files
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rewardsmith import launched
from rewardsmith.config import TrainSettings
from rewardsmith.errors import ModelError, SettingsError
from rewardsmith.model import processes
from rewardsmith.model.batching import Batch
from rewardsmith.model.examples import Part
from rewardsmith.model.layers import layer_stack
from rewardsmith.model.network import Network
from rewardsmith.model.optimiser import OBJECTIVE
from rewardsmith.model.packing import PackedBatch
from rewardsmith.model.precision import Format

OPTIMISER = "optimizer"
"""The folder in a checkpoint that holds the optimiser's state, one file a process; read by any number of processes."""


def check_sharding(settings: TrainSettings) -> None:
    """Refuse what cannot be meant, or is not built, together with `shard`.

    Raises:
        SettingsError: naming the setting.
    """
    if not settings.shard:
        return
    if launched.count() == 1:
        raise SettingsError(
            "several processes for shard = true",
            "one",
            "Start it with torchrun --nproc-per-node N --module rewardsmith train ..., or leave shard out.",
        )
    for wrong, came, mend in (
        (settings.freeze == "encoder", 'freeze = "encoder"', "Leave shard out: a head alone needs no sharding."),
        (settings.precision == "fp16", 'precision = "fp16"', 'Set precision = "bf16" or "float32".'),
        (bool(settings.trainer.get("torch_compile")), "trainer.torch_compile", "Leave one of the two out."),
    ):
        if wrong:
            raise SettingsError("settings that sharded weights can take, with shard = true", came, mend)


def asked_by_launcher(settings: TrainSettings) -> TrainSettings:
    """The settings, with `shard` where `accelerate launch --use_fsdp` started the processes.

    Its word is taken out of the environment: accelerate would wrap a sharded model once more, and on a CPU it takes DDP without saying so.

    Raises:
        SettingsError: if it asks for what `shard` does not do.
    """
    if not _is_true("ACCELERATE_USE_FSDP"):
        return settings
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2" or _is_true("FSDP_OFFLOAD_PARAMS"):
        raise SettingsError(
            "FSDP2 without offloading",
            f"accelerate's FSDP {version}{', offloaded' if _is_true('FSDP_OFFLOAD_PARAMS') else ''}",
            "Set fsdp_version: 2 and fsdp_offload_params: false, or start with torchrun and shard = true.",
        )
    del os.environ["ACCELERATE_USE_FSDP"]
    return settings.model_copy(update={"shard": True})


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


@dataclass(frozen=True)
class Sharding:
    """What `shard` made of a network.

    Args:
        network: whose model holds this process's share of every weight.
        shape: the same model without weights, as it was before; to put the whole in again.
    """

    network: Network
    shape: nn.Module = field(repr=False)

    def even(self, parts: list[Part]) -> list[Part]:
        """The parts of this process's step, and as many passes more as another process needs; those weigh nothing."""
        number = int(processes.largest([len(parts)])[0])
        parts = [*parts, *[replace(parts[-1], weight=0.0)] * (number - len(parts))]
        passes = processes.largest([len(part.batches) for part in parts])
        return [
            replace(part, spare=[part.batches[0][0]] * (int(most) - len(part.batches)))
            for part, most in zip(parts, passes, strict=True)
        ]

    @contextlib.contextmanager
    def reader(self, spare: Callable[[], Batch | PackedBatch]) -> Iterator[Network]:
        """The network to read texts with, by passes that the processes take together.

        Args:
            spare: makes what a process reads that has read all of its own when others have not.
        """
        reading = _Together(**vars(self.network))
        try:
            yield reading
            # Not at an error: it ends the process, and thereby the others.
            while processes.sums([0.0])[0]:
                reading.read(spare())
        finally:
            # Read without a backward pass, the outermost weights stay whole, and would be those of the next step.
            self.network.model.reshard()

    def gather(self) -> dict[str, Tensor]:
        """All weights, whole and on the CPU, in the first process; nothing in the others. All of them must call it."""
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return dict(get_model_state_dict(self.network.model, options=whole))

    def load(self, file: Path) -> None:
        """Take this process's share of the weights in a safetensors file; frozen ones may be missing there.

        Raises:
            ModelError: if the file lacks a trained weight, or holds one that the model does not have.
        """
        state = load_file(file)
        result = set_model_state_dict(
            self.network.model, state, options=StateDictOptions(full_state_dict=True, strict=False)
        )
        trained = {name for name, parameter in self.network.model.named_parameters() if parameter.requires_grad}
        if wrong := [*result.unexpected_keys, *trained.intersection(result.missing_keys)]:
            raise ModelError(
                f"the model's weights in {file.name}",
                f"{len(wrong)} missing or left over: {', '.join(sorted(wrong)[:4])}",
                "Start the run anew with --overwrite.",
            )

    def save_optimiser(self, optimiser: torch.optim.Optimizer, checkpoint: Path) -> None:
        """Write every process's share of the optimiser's state."""
        state = get_optimizer_state_dict(self.network.model, optimiser)
        sharded_files.save({OPTIMISER: state}, checkpoint_id=checkpoint / OPTIMISER)

    def load_optimiser(self, optimiser: torch.optim.Optimizer, checkpoint: Path) -> None:
        """Go on from the optimiser's state in a checkpoint, by whatever number of processes it was written."""
        state = {OPTIMISER: get_optimizer_state_dict(self.network.model, optimiser)}
        sharded_files.load(state, checkpoint_id=checkpoint / OPTIMISER)
        set_optimizer_state_dict(self.network.model, optimiser, state[OPTIMISER])

    def dissolve(self, device: torch.device) -> None:
        """Give the network of the first process its whole model again, on a device; the others have theirs no more to use."""
        state = self.gather()
        if launched.is_first():
            self.shape.load_state_dict(state, assign=True)
            self.network.model = self.shape.to(device)


class _Together(Network):
    """A network that reads a batch when all processes do, or when the others only catch up."""

    def outputs(self, batch: Batch | PackedBatch) -> Tensor:
        """See `Network.outputs`; announces the pass to the others."""
        processes.sums([1.0])
        return self.read(batch)

    def read(self, batch: Batch | PackedBatch) -> Tensor:
        """A pass through the model's own forward, which is what puts the weights together."""
        # Weights put together in inference mode could not be trained afterwards.
        with torch.inference_mode(False), torch.no_grad():
            return self.model(batch=batch)


def shard(network: Network, device: torch.device, *, precision: Format) -> Sharding:
    """Deal the weights of a network out over the processes, layer by layer, and move this process's share to a device.

    What the objective learns stays whole in every process. Layers compute in `precision`; their weights, and what is above and below them, are kept in
    the format that they came in, and gradients are summed in float32.

    Raises:
        SettingsError: if the backbone has no stack of layers.
    """
    stack = layer_stack(network)
    nothing = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in network.model.parameters()
    }
    shape = copy.deepcopy(network.model, nothing)
    objective = getattr(network.model, OBJECTIVE, nn.Module()).to(device)
    mesh = init_device_mesh(device.type, (launched.count(),))
    kept = set(objective.parameters())
    # Under autocast alone a bf16 copy of every layer would be alive until the backward pass.
    layers = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32 if precision == "bf16" else None,
        cast_forward_inputs=False,
    )
    for layer in network.model.get_submodule(stack.prefix.rstrip(".")).children():
        norms = [module for module in layer.modules() if "norm" in type(module).__name__.lower()]
        if precision == "bf16" and norms:
            fully_shard(norms, mesh=mesh)  # autocast computes them in float32
        fully_shard(layer, mesh=mesh, mp_policy=layers)
    fully_shard(network.model, mesh=mesh, ignored_params=kept)
    return Sharding(network, shape)


def whole(tensor: Tensor) -> Tensor:
    """A tensor on the CPU; one that is dealt out is put together, for which all processes must call."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def fill(target: Tensor, values: Tensor) -> None:
    """Copy a whole tensor into one that may be dealt out."""
    if isinstance(target, DTensor):
        on_device = values.to(target.device)
        values = distribute_tensor(on_device, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(values)
