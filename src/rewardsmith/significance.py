"""Whether a difference is more than chance: tests of two systems on the same examples, many tests at once, and what a sample is able to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from rewardsmith.errors import DataError
from rewardsmith.stats import Floats

LEVEL = 0.05
"""Of every test, two-sided."""
SIGN_FLIPS = 10_000
POWER, DISCORDANCE = 0.8, 0.2
# Signs of one block of flips; bounds the memory of a test to some tens of MB.
_BLOCK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A two-sided p-value and the test that gave it."""

    p_value: float
    test: Literal["exact McNemar", "sign flips over prompts"]


def paired_test(differences: Floats, clusters: NDArray[np.int64], *, seed: int = 0) -> PairedTest:
    """Do two systems differ on the same examples?

    Exact McNemar where no cluster repeats and no outcome is a half one. Where a cluster repeats, its examples are no independent trials: the signs of whole clusters are flipped at random
    instead, under the hypothesis that either system could have been either.

    Args:
        differences: (n,) outcome of the first system minus outcome of the second; with outcomes of 1, 0.5 and 0, values in {-1, -0.5, 0, 0.5, 1}.
        clusters: (n,) codes 0..C-1.
        seed: of the flips.

    Raises:
        DataError: if there is no example.

    >>> paired_test(np.array([1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 0.0]), np.arange(7))
    PairedTest(p_value=0.21875, test='exact McNemar')
    """
    if len(differences) == 0:
        raise DataError("at least one example for a test", "none", "Check the filters before this number.")
    # A half win against a whole one is no coin toss: then signs are flipped with their sizes.
    whole = not np.any(np.abs(differences) == 0.5)
    if whole and len(np.unique(clusters)) == len(clusters):
        return PairedTest(mcnemar(int((differences > 0).sum()), int((differences < 0).sum())), "exact McNemar")
    return PairedTest(sign_flips(differences, clusters, seed=seed), "sign flips over prompts")


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test (1947): are the examples that one system alone gets right split like coin tosses?

    Args:
        only_first: examples that only the first gets right (or gets more of, with half counts).
        only_second: the same for the second.

    >>> mcnemar(0, 0)
    1.0
    """
    total = only_first + only_second
    return float(binomtest(only_first, total, 0.5).pvalue) if total else 1.0


def sign_flips(values: Floats, clusters: NDArray[np.int64], *, flips: int = SIGN_FLIPS, seed: int = 0) -> float:
    """Two-sided p-value of "the sum is 0", by flipping the signs of whole clusters; the observed signs count as one of the draws (Phipson and Smyth 2010)."""
    sums = np.bincount(clusters, weights=values)
    sums = np.abs(sums[sums != 0])  # what is 0 stays 0 under any sign
    observed = abs(float(values.sum()))
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // max(1, len(sums)))
    reached = 0
    for start in range(0, flips, block):
        rows = min(block, flips - start)
        signs = 2.0 * rng.integers(0, 2, size=(rows, len(sums)), dtype=np.int8) - 1.0  # (rows, C)
        # Sums of the same numbers in another order differ by rounding.
        reached += int((np.abs(signs @ sums) >= observed * (1 - 1e-12) - 1e-12).sum())
    return (reached + 1) / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that the chance of any false alarm among them stays at the level (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    stepped = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, float)[order] * factors))
    adjusted = np.empty(len(p_values))
    adjusted[order] = stepped
    return [float(one) for one in adjusted]


@dataclass(frozen=True, slots=True)
class DetectableDifference:
    """The least difference in accuracy of two systems that a sample shows with the given power, at the two-sided level of 5 %.

    Args:
        difference: as a share; 0.05 is five points.
        num_pairs: of the sample.
        num_prompts: of the sample.
        power: how often such a difference would be found.
        discordance: share of pairs on which the two systems disagree; 0.2 where it is not known.
    """

    difference: float
    num_pairs: int
    num_prompts: int
    power: float
    discordance: float

    def as_dict(self) -> dict[str, Any]:
        """The document that reports hold."""
        return asdict(self)


def design_effect(values: Floats, clusters: NDArray[np.int64]) -> float:
    """By how much pairs of one prompt inflate the variance of a mean (Kish 1965), at least 1."""
    centred = values - values.mean()
    alone = float((centred**2).sum())
    together = float((np.bincount(clusters, weights=centred) ** 2).sum())
    return max(1.0, together / alone) if alone > 0 else 1.0


def detectable_difference(
    clusters: NDArray[np.int64], *, discordance: float = DISCORDANCE, power: float = POWER, design_effect: float = 1.0
) -> DetectableDifference:
    """(z of 97.5 % + z of the power) * sqrt(discordance * design effect / n), the variance of a paired difference being at most its discordance (Connor 1987).

    Args:
        clusters: (n,) codes of the examples.
        discordance: share of examples on which two systems disagree.
        power: how often the difference is to be found.
        design_effect: by how much pairs of one prompt inflate the variance; 1 where they are independent.

    >>> round(detectable_difference(np.arange(620)).difference, 3)
    0.05
    """
    n = len(clusters)
    if n == 0:
        raise DataError("at least one example", "none", "Check the filters before this number.")
    reach = float(norm.ppf(0.975) + norm.ppf(power))
    difference = min(1.0, reach * float(np.sqrt(discordance * design_effect / n)))
    return DetectableDifference(difference, n, len(np.unique(clusters)), power, discordance)
