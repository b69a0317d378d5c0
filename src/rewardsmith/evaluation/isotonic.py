"""A probability for every margin without assuming a formula: symmetric isotonic regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from rewardsmith import metrics
from rewardsmith.errors import DataError
from rewardsmith.stats import Floats

_LEAST_PAIRS = 20


@dataclass(frozen=True)
class Isotonic:
    """p(d) as a rising line through knots at margins >= 0, mirrored below: p(-d) = 1 - p(d).

    Args:
        margins: (K,) knots, rising from 0.
        probabilities: (K,) of a win there, from one half upward.
        num_pairs: that it was fitted on.
    """

    margins: Floats
    probabilities: Floats
    num_pairs: int

    def __call__(self, margins: Floats) -> Floats:
        """The probability that the first answer of each margin wins, (n,)."""
        folded = np.interp(np.abs(margins), self.margins, self.probabilities)
        return np.where(margins >= 0, folded, 1 - folded)

    def as_dict(self) -> dict[str, Any]:
        """The document that model folders and reports hold."""
        knots = {"margins": self.margins.tolist(), "probabilities": self.probabilities.tolist()}
        return {**knots, "num_pairs": self.num_pairs}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Isotonic:
        """What `as_dict` wrote."""
        return cls(np.array(document["margins"]), np.array(document["probabilities"]), int(document["num_pairs"]))


def fit_isotonic(margins: Floats) -> Isotonic:
    """The rising p(d) nearest to the outcomes, with p(-d) = 1 - p(d).

    Fitted on the set with both orders of every pair, {(d, 1), (-d, 0)}, of which the solution is symmetric, so |d| and a lower bound of one half give the
    same. No probability comes nearer to 1 than 1 - 1 / (n + 2), by the rule of succession: n pairs never show certainty, and one wrong pair at p = 1
    would make the log-loss infinite.

    Args:
        margins: (n,) raw margins of labelled pairs.

    Raises:
        DataError: under 20 pairs.
    """
    n = len(margins)
    if n < _LEAST_PAIRS:
        raise DataError(f"at least {_LEAST_PAIRS} pairs for an isotonic fit", str(n), "Give more pairs.")
    fitted = IsotonicRegression(y_min=0.5, y_max=1 - 1 / (n + 2), out_of_bounds="clip")
    fitted.fit(np.abs(margins), metrics.wins(margins))
    knots, probabilities = np.asarray(fitted.X_thresholds_, float), np.asarray(fitted.y_thresholds_, float)
    if knots[0] > 0:  # equal scores are a coin toss
        knots, probabilities = np.r_[0.0, knots], np.r_[0.5, probabilities]
    else:
        probabilities = np.r_[0.5, probabilities[1:]]
    return Isotonic(knots, probabilities, n)
