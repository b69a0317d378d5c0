"""Temperatures: the one number that turns a margin into a probability that can be believed, p = sigmoid(margin / T).

There is no intercept: the probability that A beats B and the probability that B beats A must add up to 1. Legend: `n` pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

from rewardsmith import metrics
from rewardsmith.errors import DataError
from rewardsmith.stats import FEW_CLUSTERS, Estimate, Floats, cluster_codes

# Temperatures of 1 / 1,000 and of 1,000 times the typical margin are certainty and ignorance; beyond them is no maximum worth the name.
_REACH = 1e3
_LEAST_PAIRS = 20


@dataclass(frozen=True)
class Fit:
    """A fitted temperature: log T is roughly normal around log `value` with the standard error `log_error`."""

    value: float
    log_error: float
    num_pairs: int
    num_prompts: int

    @property
    def estimate(self) -> Estimate:
        """The temperature with its 95 % interval, which is symmetric in the logarithm."""
        half = float(t.ppf(0.975, self.num_prompts - 1)) * self.log_error
        low, high = self.value * np.exp(-half), self.value * np.exp(half)
        method = f"maximum likelihood, cluster-robust over {self.num_prompts} prompts"
        return Estimate(self.value, float(low), float(high), self.num_pairs, method)


def fit_temperature(margins: Floats, clusters: NDArray[np.int64]) -> Fit:
    """The temperature of the least log-loss, argmin over T of the mean of softplus(-d / T), with a cluster-robust error.

    The loss is convex in b = 1 / T, so its minimum is the root of the slope, sum of d * sigmoid(-b d). The error is the sandwich H^-1 V H^-1 of b with
    V the sum over clusters of squared slopes, carried over to log T = -log b.

    Args:
        margins: (n,) raw margins of labelled pairs, ties included.
        clusters: (n,) codes of their prompts.

    Raises:
        DataError: where no temperature has a least loss: the scorer is right about every pair, or no better than chance; or there are under 20 pairs, or under ten prompts.
    """
    num_prompts = len(np.unique(clusters))
    scale = float(np.median(np.abs(margins[margins != 0]))) if np.any(margins) else 0.0
    if len(margins) < _LEAST_PAIRS or scale == 0.0:
        came = f"{len(margins)}" if len(margins) < _LEAST_PAIRS else "pairs of equal scores"
        raise DataError(f"at least {_LEAST_PAIRS} pairs for a temperature, not all ties", came, "Give more pairs.")
    if num_prompts < FEW_CLUSTERS:
        raise DataError(
            f"pairs of at least {FEW_CLUSTERS} prompts for a temperature", str(num_prompts), "Give more prompts."
        )
    unit = margins / scale  # so that 1 / T is near 1 whatever the unit of the scores is

    def slope(inverse: float) -> float:
        return float((unit * metrics.win_probabilities(-unit, 1 / inverse)).sum())

    if slope(1 / _REACH) <= 0:
        raise DataError(
            "a scorer that is right more often than wrong, by the size of its margins",
            f"one whose pairs are best explained by no preference at all (accuracy {metrics.wins(margins).mean():.3f})",
            "A temperature cannot mend this model; check the labels, the template (`rewardsmith verify`) and the data.",
        )
    if slope(_REACH) >= 0:
        raise DataError(
            "pairs that the scorer gets wrong now and then, to tell how sure it may be",
            f"{len(margins)} pairs of which none is wrong by more than a thousandth of a typical margin",
            "Give more, or harder, pairs.",
        )
    inverse = float(brentq(slope, 1 / _REACH, _REACH, xtol=1e-12, rtol=1e-12))
    lose = metrics.win_probabilities(-unit, 1 / inverse)
    curvature = float((unit**2 * lose * (1 - lose)).sum())
    per_cluster = np.bincount(clusters, weights=unit * lose)
    correction = num_prompts / max(1, num_prompts - 1)
    error = float(np.sqrt(correction * (per_cluster**2).sum())) / curvature
    return Fit(scale / inverse, error / inverse, len(margins), num_prompts)


@dataclass(frozen=True)
class SliceTemperatures:
    """Temperatures of the values of one column, drawn towards the common one as far as their own evidence is weak.

    Args:
        column: the metadata column.
        common: temperature of all pairs.
        spread: standard deviation of log T between values, beyond what chance explains (tau).
        temperatures: {value: shrunk temperature with its interval}.
        left_to_common: values of too few pairs, or without a least loss of their own: they use the common temperature.
    """

    column: str
    common: float
    spread: float
    temperatures: dict[str, Estimate]
    left_to_common: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The document that model folders and reports hold."""
        return {
            "column": self.column,
            "common": self.common,
            "spread": self.spread,
            "temperatures": {name: one.as_dict() for name, one in self.temperatures.items()},
            "left_to_common": self.left_to_common,
        }

    def of(self, values: Sequence[str | None]) -> Floats:
        """The temperature for each value of the column, (n,); the common one for a value that was not seen."""
        known = {name: one.value for name, one in self.temperatures.items()}
        return np.array([known.get(value, self.common) if value is not None else self.common for value in values])


def slice_temperatures(
    margins: Floats, clusters: NDArray[np.int64], values: Sequence[str | None], *, column: str
) -> SliceTemperatures:
    """Temperatures by slice with empirical-Bayes shrinkage.

    log T of a slice is taken as normal around log T of all with variance tau^2, which is estimated by DerSimonian and Laird (1986) from the slices' own
    fits; each slice then gets the precision-weighted mean of the two (Efron and Morris 1975). Slices that differ by chance alone give tau = 0 and the
    common temperature for all.

    Args:
        margins: (n,) raw margins.
        clusters: (n,) codes of the prompts.
        values: (n,) of the column; None where a pair has none.
        column: its name.

    Raises:
        DataError: if the pairs together give no temperature.
    """
    common = fit_temperature(margins, clusters)
    names = np.array(values, dtype=object)
    fits: dict[str, Fit] = {}
    left = []
    for name in sorted({value for value in values if value is not None}):
        rows = names == name
        try:
            fits[name] = fit_temperature(margins[rows], cluster_codes(clusters[rows]))
        except DataError:  # too few pairs, or pairs without a minimum: said in `left_to_common`
            left.append(name)
    variance = _between({name: fit for name, fit in fits.items()}, common)
    shrunk = {name: _shrunk(fit, common, variance) for name, fit in fits.items()}
    return SliceTemperatures(column, common.value, float(np.sqrt(variance)), shrunk, left)


def _between(fits: dict[str, Fit], common: Fit) -> float:
    """Variance of log T between slices, by the method of moments; 0 where chance explains all of it."""
    if len(fits) < 2:
        return 0.0
    logs = np.array([np.log(fit.value) for fit in fits.values()])
    weights = np.array([1 / fit.log_error**2 for fit in fits.values()])
    centre = float((weights * logs).sum() / weights.sum())
    excess = float((weights * (logs - centre) ** 2).sum()) - (len(fits) - 1)
    scale = float(weights.sum() - (weights**2).sum() / weights.sum())
    return max(0.0, excess / scale)


def _shrunk(fit: Fit, common: Fit, variance: float) -> Estimate:
    own = 1 / fit.log_error**2
    # With no spread between slices all evidence is about the common temperature.
    prior = np.inf if variance == 0 else 1 / variance
    weight = 0.0 if np.isinf(prior) else own / (own + prior)
    log_value = weight * np.log(fit.value) + (1 - weight) * np.log(common.value)
    error = common.log_error if weight == 0 else float(np.sqrt(1 / (own + prior)))
    half = float(norm.ppf(0.975)) * error
    method = f"shrunk by {1 - weight:.2f} towards the common temperature"
    low, value, high = (float(np.exp(log_value + step)) for step in (-half, 0.0, half))
    return Estimate(value, low, high, fit.num_pairs, method)
