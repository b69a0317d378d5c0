"""An exponential moving average of the trained weights, kept beside them while a run goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rewardsmith import launched
from rewardsmith.model.sharding import fill, whole

FILE_NAME = "average.safetensors"


class WeightAverage:
    """The average a <- k a + (1 - k) w after every step, in float32, of every parameter that is trained.

    Early on k is (1 + t) / (10 + t) where that is less than `decay`, so that the start, which knows nothing, is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with the weights as they are."""
        self.decay, self.steps = decay, 0
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone().float() for name, p in self.parameters.items()}

    def update(self) -> None:
        """Take one step's weights in."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights = [p.detach().float() for p in self.parameters.values()]
        get_ema_multi_avg_fn(decay)(list(self.average.values()), weights, self.steps)

    def put(self) -> None:
        """Put the average into the model."""
        self._write(self.average)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the average as its weights, for as long as the block lasts."""
        old = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.put()
        try:
            yield
        finally:
            self._write(old)

    def _write(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    def save(self, folder: Path) -> None:
        """Have the first process write the average into a checkpoint; all of them must call it, for each may hold a part."""
        tensors = {name: whole(tensor).contiguous() for name, tensor in self.average.items()}
        if launched.is_first():
            save_file({**tensors, "steps": torch.tensor([self.steps])}, folder / FILE_NAME)

    def load(self, folder: Path) -> None:
        """Go on from the average in a checkpoint."""
        tensors = load_file(folder / FILE_NAME)
        self.steps = int(tensors.pop("steps"))
        for name, tensor in tensors.items():
            fill(self.average[name], tensor)
