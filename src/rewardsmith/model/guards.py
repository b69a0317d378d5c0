"""Guards: a run that cannot become a reward model is stopped with a diagnosis, while a healthy one never notices them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rewardsmith.errors import NoGradientError, NonFiniteError, StuckError
from rewardsmith.model import processes
from rewardsmith.model.sharding import local

GRADIENT_STEPS = 3
STUCK_STEPS = 20
_EXPERTS = re.compile(r"\bexperts?\b")


def check_finite(loss: Tensor, outputs: Tensor, sizes: Tensor, *, step: int, rows: list[str], dtype: str) -> None:
    """Stop at the first loss or output that is NaN or infinite.

    Args:
        loss: a scalar.
        outputs: of the batch, (N, A), the answers of an example one after the other.
        sizes: how many answers each example has, (B,).
        step: the optimiser step it happened in.
        rows: the ids of the B examples.
        dtype: number format of the step.

    Raises:
        NonFiniteError: naming step, rows and dtype.
    """
    if bool(torch.isfinite(loss)) and bool(torch.isfinite(outputs).all()):
        return
    finite = [bool(part.all()) for part in torch.isfinite(outputs).split(sizes.tolist())]
    bad = [row for row, ok in zip(rows, finite, strict=True) if not ok] or rows
    raise NonFiniteError(
        "finite losses and scores",
        f"loss {float(loss):g} at step {step}, in {dtype}, rows {', '.join(bad[:4])}",
        'Lower learning_rate, set precision = "float32", or look at those rows; the last good checkpoint is kept.',
    )


@dataclass
class GradientGuard:
    """By step 3 every trained tensor must have had a finite gradient, and every trained matrix a gradient other than 0.

    Vectors may rightly have none: a bias that shifts both scores of a pair alike has a gradient of exactly 0 under Bradley-Terry (the last layer norm's
    bias under mean pooling), and so has a key bias under softmax. Not judged at step 1: behind a matrix that starts at 0 (LoRA's B) nothing has a
    gradient yet. Gradients are judged, not updates, so a warm-up from 0 is no fault. Experts that no token was routed to are exempt.
    """

    seen: set[str] = field(default_factory=set)
    steps: int = 0

    def after_backward(self, model: nn.Module, *, step: int, margins_are_zero: bool = False) -> None:
        """Look at the gradients of one optimiser step; cheap, and done for three steps only.

        Steps whose margins were all exactly 0 do not count: then every gradient is 0 too, and `StuckGuard` has the better diagnosis.

        Raises:
            NonFiniteError: at a gradient that is NaN or infinite.
            NoGradientError: at the third step, naming the tensors without one.
        """
        if self.steps >= GRADIENT_STEPS or margins_are_zero:
            return
        self.steps += 1
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad and not _EXPERTS.search(name)}
        found = [_look_at(parameter) for parameter in trained.values()]
        # Of a gradient that is dealt out over processes each of them sees a part.
        infinite, moved = (processes.sums([one[i] for one in found]) for i in (0, 1))
        for name, is_infinite, has_moved in zip(trained, infinite, moved, strict=True):
            if is_infinite:
                raise NonFiniteError(
                    "finite gradients",
                    f"NaN or infinity in {name} at step {step}",
                    'Lower learning_rate or set precision = "float32".',
                )
            if has_moved:
                self.seen.add(name)
        missing = sorted(set(trained) - self.seen)
        if self.steps == GRADIENT_STEPS and missing:
            raise NoGradientError(
                f"a gradient in every trained tensor within {GRADIENT_STEPS} steps",
                f"none in {len(missing)} of {len(trained)}: {', '.join(missing[:5])}",
                "Freeze what the score does not use, or check checkpointing (use_reentrant = false) and the pooling.",
            )


def _look_at(parameter: nn.Parameter) -> tuple[bool, bool]:
    """Of a parameter's gradient, as far as this process holds it: (NaN or infinite somewhere, there as far as there must be one)."""
    if parameter.grad is None:
        return False, False
    gradient = local(parameter.grad)
    return not bool(torch.isfinite(gradient).all()), parameter.ndim < 2 or bool((gradient != 0).any())


@dataclass
class StuckGuard:
    """Margins of exactly 0 for 20 steps in a row mean that both sides of every pair are the same to the model."""

    steps: int = 0

    def after_step(self, margins: Tensor, *, step: int) -> None:
        """Look at the margins of one step, (m,): better minus worse of every comparison; a step without one says nothing.

        Raises:
            StuckError: with the causes in the order of their likelihood.
        """
        if not len(margins):
            return
        self.steps = 0 if bool((margins != 0).any()) else self.steps + 1
        if self.steps >= STUCK_STEPS:
            raise StuckError(
                "margins that differ from 0",
                f"exactly 0 for {STUCK_STEPS} steps up to step {step}: the loss stays at ln 2 = 0.693",
                "Look, in this order, at: the pooled token (is it the same for both sides?), truncation (does it cut the difference away?), "
                "pairs with identical sides, a frozen head.",
            )
