"""Soft best-of-n: of n candidates one is drawn, a better score making it likelier, instead of the best one being taken.

Candidate i of n is drawn with probability w_i = exp(s_i / T) / sum_j exp(s_j / T) (Verdun et al. 2025, "Soft Best-of-n Sampling for Model Alignment", where T is
lambda). T -> 0 is best-of-n, equal scores sharing evenly; T -> infinity is one answer of the policy; with many candidates it comes near to the policy that maximises
E[score] - T KL. Where T is the temperature of a Bradley-Terry model's probabilities, w_i is its probability (Plackett-Luce) that candidate i is the best.

Legend: `N` candidates of one prompt.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax, xlogy

from rewardsmith.errors import SettingsError
from rewardsmith.stats import Floats


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is none.

    Raises:
        SettingsError: unless it is finite and above 0.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise SettingsError(
            "a finite temperature above 0 for soft best-of-n",
            f"{temperature}",
            "Leave it out for best-of-n; a larger one stays nearer to the policy.",
        )


def soft_weights(scores: Floats, temperature: float) -> Floats:
    """The probability of each candidate to be drawn, (N,) from scores (N,).

    >>> soft_weights(np.array([0.0, np.log(3.0)]), 1.0).round(3).tolist()
    [0.25, 0.75]
    """
    # From the best score down, so that no temperature is too low: what overflows is a weight of 0.
    with np.errstate(over="ignore"):
        return np.asarray(softmax((scores - scores.max()) / temperature))


def kl_of_choice(weights: Floats) -> float:
    """KL of a choice by weights from a choice by chance, log N - entropy(weights), in nats.

    Its mean over draws of the candidates is an upper bound of how far the chosen answers move from the policy: the chosen answer is a function of candidates and choice,
    and no function brings two distributions further apart (data processing).

    >>> round(kl_of_choice(np.array([0.5, 0.5, 0.0, 0.0])), 4)  # log 2
    0.6931
    """
    return float(np.log(len(weights)) + xlogy(weights, weights).sum())


def soft_draw(weights: Floats, *, seed: int, code: int) -> int:
    """The place of one candidate, drawn by weights; the same for the same seed and code, whatever else is drawn."""
    return int(np.random.default_rng([seed, code]).choice(len(weights), p=weights))
