"""What shared beginnings save: measured on the first examples of a run, beside the ceiling that their tokens set."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from rewardsmith.model.batching import runs_within
from rewardsmith.model.examples import ExampleCollator, Part
from rewardsmith.model.network import Network
from rewardsmith.model.precision import Format

# Tokens of the examples that are measured: a few seconds on a laptop.
_TOKENS = 768
_ROUNDS = 2


@dataclass(frozen=True)
class Saving:
    """How many times fewer tokens, and how many times less time, a forward and backward pass takes when beginnings are shared.

    Args:
        ceiling: tokens read without sharing over those read with it, of all examples; of one list K (P + R) / (P + K R).
        measured: the ratio of the times.
        measured_ceiling: the ceiling of the examples that were measured.
        num_examples: that were measured.
    """

    ceiling: float
    measured: float
    measured_ceiling: float
    num_examples: int

    def describe(self) -> str:
        """For the log."""
        return (
            f"shared beginnings: {self.ceiling:.2f} times fewer tokens; measured on {self.num_examples} examples, "
            f"{self.measured:.2f} times faster where the tokens allow {self.measured_ceiling:.2f}"
        )


def measure_saving(network: Network, collator: ExampleCollator, *, precision: Format, device: torch.device) -> Saving:
    """Time one pass over the first examples with and without sharing; no weight changes and no gradient is left behind.

    Args:
        network: on its device, ready to be trained.
        collator: of the run; its batching shares.
        precision: of the steps.
        device: of the network.
    """
    table = collator.table
    costs = {share: table.costs(share=share) for share in (False, True)}
    rows = np.arange(len(table))[runs_within(costs[False], _TOKENS)[0]]
    ways = {share: replace(collator, batching=replace(collator.batching, share=share)) for share in (False, True)}
    parts = {share: way.part(rows).to(device) for share, way in ways.items()}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(_ROUNDS):
        for share, part in parts.items():
            seconds[share].append(_pass(network, part, precision=precision, device=device))
    network.model.zero_grad(set_to_none=True)
    return Saving(
        ceiling=float(costs[False].sum() / costs[True].sum()),
        measured=min(seconds[False]) / min(seconds[True]),
        measured_ceiling=float(costs[False][rows].sum() / costs[True][rows].sum()),
        num_examples=len(rows),
    )


def _pass(network: Network, part: Part, *, precision: Format, device: torch.device) -> float:
    """Seconds of one forward and backward pass."""
    dtype = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    _wait(device)
    start = time.perf_counter()
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        outputs = part.in_order([network.outputs(batch) for batch, _ in part.batches])
    outputs.sum().backward()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """A GPU is asked, and answers later."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
