"""How much better a model does on what it was trained on than on what it was not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardsmith.stats import Estimate

_HELD_OUT = ("eval", "dev")


def gap(train: Estimate, held_out: Estimate) -> Estimate:
    """Train accuracy minus held-out accuracy, of two independent samples, from their two intervals.

    The squared distances from value to bound add up, each side for itself: low = d - sqrt((v1 - l1)^2 + (u2 - v2)^2), and the other way round for high
    (Newcombe 1998, method 10, where both are Wilson intervals; Zou and Donner 2008 for any two). So intervals over prompts give an interval over prompts.

    >>> str(gap(Estimate(0.8, 0.77, 0.83, 500, "wilson"), Estimate(0.7, 0.66, 0.74, 400, "wilson")))
    '0.100 [0.050, 0.150] (n=900)'
    """
    value = train.value - held_out.value
    down = np.hypot(train.value - train.low, held_out.high - held_out.value)
    up = np.hypot(train.high - train.value, held_out.value - held_out.low)
    method = f"from both intervals ({train.n:,} train and {held_out.n:,} held-out pairs)"
    return Estimate(value, float(value - down), float(value + up), train.n + held_out.n, method)


@dataclass(frozen=True)
class RunGap:
    """The gap of a run.

    Args:
        against: "eval", or "dev" where there are no eval pairs; the dev part has chosen the checkpoint, which makes its gap a little small.
        accuracy: on training pairs minus on those.
    """

    against: str
    accuracy: Estimate

    def reading(self) -> str:
        """The gap in words; it is no fault by itself, for what counts is the held-out accuracy."""
        found = self.accuracy
        low, value, high = (f"{100 * x + 0.0:+.1f}" for x in (found.low, found.value, found.high))
        line = f"accuracy on training pairs minus {self.against} pairs: {value} points [{low}, {high}]"
        if found.low > 0:
            return f"{line}: the model knows part of its training pairs by heart"
        if found.high < 0:
            return f"{line}: the {self.against} pairs are easier than the training pairs"
        return f"{line}: no overfitting that these pairs can show"


def run_gap(parts: Mapping[str, Mapping[str, Any]]) -> RunGap | None:
    """The gap of a run's kept model; None without a train or a held-out part.

    Args:
        parts: its accuracy Estimates by part, as `overfitting` in a run's report.
    """
    against = next((name for name in _HELD_OUT if name in parts), None)
    if "train" not in parts or against is None:
        return None
    return RunGap(against, gap(Estimate(**parts["train"]), Estimate(**parts[against])))
