"""The effect of an edit in units that two reward models share: standard deviations of the score within a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from rewardsmith.errors import DataError, ScoreError
from rewardsmith.stats import Estimate, Floats


@dataclass(frozen=True)
class ScoreUnit:
    """The standard deviation of scores within a prompt, sqrt(mean of (s_chosen - s_rejected)^2 / 2), with what its own uncertainty needs.

    (d^2 / 2 is the sample variance of two scores that lie d apart.)

    Args:
        squares: (n,) (s_chosen - s_rejected)^2 / 2 of each pair, float64.
        clusters: (n,) names of the pairs' prompts.
    """

    squares: Floats
    clusters: tuple[str, ...]

    @classmethod
    def of(cls, margins: Floats, clusters: Sequence[str]) -> ScoreUnit:
        """The unit of a scorer with these margins.

        Raises:
            DataError: if there is no pair.
            ScoreError: if both answers have equal scores in every pair: then nothing can be said in such units.
        """
        if len(margins) == 0:
            raise DataError("at least one pair to measure the spread of scores on", "none", "Give more pairs.")
        squares = np.asarray(margins, np.float64) ** 2 / 2
        if not squares.any():
            raise ScoreError(
                "scores that differ between the two answers of at least one prompt",
                f"equal scores in all {len(squares):,} pairs",
                "A scorer that tells no answers apart has no scale to measure effects on; check it with `rewardsmith verify`.",
            )
        return cls(squares, tuple(clusters))

    @property
    def sd(self) -> float:
        """One unit, in units of the raw score."""
        return float(np.sqrt(self.squares.mean()))


@dataclass(frozen=True)
class Effect:
    """A mean of score differences over the unit, with its standard error; intervals are Student's, over prompts.

    Args:
        value: in standard deviations.
        error: its standard error, from the sums of prompts.
        num_clusters: prompts behind it.
        n: differences behind it.
        freedom: degrees of freedom of the interval: prompts - 1, fewer where a stratum is small.
    """

    value: float
    error: float
    num_clusters: int
    n: int
    freedom: float

    @classmethod
    def of(
        cls,
        differences: Floats,
        clusters: Sequence[str],
        unit: ScoreUnit,
        *,
        strata: NDArray[np.int64] | None = None,
    ) -> Effect:
        """The mean of differences, each stratum counting alike, over the unit.

        With A the mean and V the mean square of the unit, the influence of one difference on A / sqrt(V) is (difference - mean of its stratum) /
        (strata * n of the stratum * sqrt(V)), and of one square -A (square - V) / (2 V^1.5 n); the error is the root of the sum of squares of the prompts'
        sums, times C / (C - 1) (linearised ratio; Cochran, Sampling Techniques, 6.4). So the unit's own uncertainty is in the interval, and a prompt that
        bears on both is counted once.

        Args:
            differences: (n,) in units of the raw score.
            clusters: (n,) names of their prompts.
            unit: what they are divided by.
            strata: (n,) codes; all one stratum by default.

        Raises:
            DataError: if there is no difference.
        """
        n = len(differences)
        if n == 0:
            raise DataError("at least one difference for an effect", "none", "Check what the probe applies to.")
        codes = np.zeros(n, np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
        sizes = np.bincount(codes)
        means = np.bincount(codes, weights=differences) / sizes
        mean, square = float(means.mean()), float(unit.squares.mean())
        value = mean / float(np.sqrt(square))
        own = (differences - means[codes]) / (len(sizes) * sizes[codes] * np.sqrt(square))
        freedom = float("inf")
        if len(sizes) > 1:
            # A small stratum knows its own spread badly: n - 1 for n, and the degrees of freedom of Satterthwaite (1946).
            own *= np.sqrt(sizes / np.maximum(sizes - 1, 1))[codes]
            parts = np.bincount(codes, weights=own**2)
            if parts.any():
                freedom = float(parts.sum() ** 2 / (parts**2 / np.maximum(sizes - 1, 1)).sum())
        scale = -mean * (unit.squares - square) / (2 * square**1.5 * len(unit.squares))
        names, joint = np.unique(np.array([*clusters, *unit.clusters], dtype=object).astype(str), return_inverse=True)
        sums = np.bincount(joint, weights=np.concatenate([own, scale]), minlength=len(names))
        num_clusters = len(np.unique(joint[:n]))
        if num_clusters < 2:  # one prompt says nothing of how prompts differ
            return cls(value, float("inf"), num_clusters, n, 0.0)
        error = float(np.sqrt(num_clusters / (num_clusters - 1) * (sums**2).sum()))
        return cls(value, error, num_clusters, n, min(freedom, num_clusters - 1))

    def interval(self, confidence: float = 0.95) -> Estimate:
        """The effect with its two-sided interval."""
        if self.num_clusters < 2:
            return Estimate(self.value, float("-inf"), float("inf"), self.n, "unknown: one prompt")
        reach = float(t.ppf(0.5 + confidence / 2, self.freedom)) * self.error
        method = f"cluster-robust over {self.num_clusters} prompts"
        return Estimate(self.value, self.value - reach, self.value + reach, self.n, method)

    @property
    def p_value(self) -> float:
        """Two-sided, of "no effect"."""
        if self.num_clusters < 2:
            return 1.0
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * t.sf(abs(self.value) / self.error, self.freedom))


def holm_confidences(p_values: Sequence[float], level: float = 0.05) -> list[float]:
    """The confidence at which each interval excludes 0 exactly when Holm's procedure rejects its hypothesis.

    In the order of their p-values the hypotheses are held to level / m, level / (m - 1), ...; those after the first one that stands are held to the level
    of that one.

    >>> holm_confidences([0.001, 0.04, 0.03])  # 0.05 / 3; then 0.03 > 0.05 / 2 stands, and 0.04 with it
    [0.9833333333333333, 0.975, 0.975]
    """
    m, levels, stopped = len(p_values), [0.0] * len(p_values), 0.0
    for rank, k in enumerate(np.argsort(p_values, kind="stable").tolist()):
        levels[k] = stopped or level / (m - rank)
        if not stopped and p_values[k] > levels[k]:
            stopped = levels[k]
    return [1 - one for one in levels]
