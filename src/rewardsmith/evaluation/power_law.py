"""Saturating power laws, a + b s^-c, through a few measured points and through many resamples of them, and what they say of larger sizes.

Legend: `n` pairs, `C` prompts, `S` points (sizes), `R` resamples, `G` exponents that are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from rewardsmith.stats import NUM_RESAMPLES, Estimate, Floats, cluster_draws

Codes = NDArray[np.int64]

EXPONENTS: tuple[float, float] = (0.05, 2.0)
"""The least and the largest c. In theory a loss comes down to its floor as n^-1 at the fastest, and measured curves have 0.07 to 0.35 (Hestness et al. 2017). The
bound is 2 all the same: a recipe of fixed epochs takes few steps on a small share, so that real curves begin steeper than that and then level off. Of
simulated curves that approach their end exponentially, and have reached it, seven of ten read as still rising under c <= 1, and one or two under c <= 2. Below 0.05 a power law is a logarithm to the
eye, and a and b can no longer be told apart."""
_NUM_EXPONENTS = 48
# Residuals of that many of their own standard deviations are no chance.
_MISFIT = 3.0


@dataclass(frozen=True)
class PowerLaws:
    """R curves a + b s^-c.

    Args:
        a: the level that no amount of data gets below, at least 0; (R,).
        b: what is above it at s = 1, at least 0; (R,).
        c: how fast that falls, within `EXPONENTS`; (R,). It means nothing where b is 0.
        residuals: points minus curve, (R, S).
    """

    a: Floats
    b: Floats
    c: Floats
    residuals: Floats

    def at(self, sizes: Floats) -> Floats:
        """The curves at some sizes, (R, m)."""
        return np.asarray(self.a[:, None] + self.b[:, None] * sizes[None, :] ** -self.c[:, None])


def fit_power_laws(sizes: Floats, values: Floats) -> PowerLaws:
    """The least squares fit of each curve under a >= 0 and b >= 0, by a grid over c; for each c it is a line in s^-c, in closed form.

    A bound at 0 that the free line breaks holds exactly: b < 0 gives b = 0 and the mean as a; a < 0 gives a = 0 and a line through the origin. Both at once
    cannot be, as the values are not negative. All points weigh the same: they are means over the same pairs, and noise that they share moves `a` alone.

    Args:
        sizes: (S,) positive, as shares of the largest.
        values: (R, S), at least 0: errors or losses, of which less is better.

    >>> law = fit_power_laws(np.array([0.25, 0.5, 1.0]), np.array([[0.36, 0.24, 0.21]]))
    >>> [round(float(part[0]), 2) for part in (law.a, law.b, law.c)]
    [0.2, 0.01, 2.0]
    """
    grid = np.geomspace(*EXPONENTS, _NUM_EXPONENTS)
    powers = sizes[None, :] ** -grid[:, None]  # (G, S)
    centred = powers - powers.mean(axis=1, keepdims=True)
    level = values.mean(axis=1)[:, None]  # (R, 1)
    b = values @ centred.T / (centred**2).sum(axis=1)  # (R, G)
    a = level - b * powers.mean(axis=1)
    through_origin = values @ powers.T / (powers**2).sum(axis=1)
    b, a = np.where(a < 0, through_origin, b), np.maximum(a, 0.0)
    b, a = np.where(b <= 0, 0.0, b), np.where(b <= 0, level, a)
    misfit = np.zeros_like(b)
    for place in range(len(sizes)):  # point by point: (R, G, S) at once would be large for nothing
        misfit += (values[:, [place]] - a - b * powers[:, place]) ** 2
    rows, best = np.arange(len(values)), misfit.argmin(axis=1)
    found = a[rows, best], b[rows, best], grid[best]
    curves = PowerLaws(*found, residuals=np.zeros_like(values))
    return PowerLaws(*found, residuals=values - curves.at(sizes))


def mean_draws(columns: Floats, clusters: Codes, *, seed: int, resamples: int = NUM_RESAMPLES) -> Floats:
    """The means of all columns over the same resampled prompts, (R, K): what the columns have in common cancels in their differences.

    Args:
        columns: (n, K).
        clusters: (n,) codes of the prompts.
        seed: of the draws.
        resamples: how many.
    """
    num_clusters = int(clusters.max()) + 1
    sums = np.stack([np.bincount(clusters, weights=column) for column in columns.T], axis=1)  # (C, K)
    counts = np.bincount(clusters).astype(np.float64)
    blocks = cluster_draws(num_clusters, num_clusters, resamples, seed)
    drawn = np.concatenate([(counted @ sums) / (counted @ counts)[:, None] for counted in blocks])
    # Resamples of C clusters vary too little by sqrt((C - 1) / C); see stats.cluster_bootstrap.
    centre = columns.mean(axis=0)
    stretch = np.sqrt(num_clusters / max(1, num_clusters - 1))
    return np.asarray(centre + (drawn - centre) * stretch)


def estimate(value: float, draws: Floats, clusters: Codes, method: str) -> Estimate:
    """A value with the interval of its draws (R,), Student's t in place of the normal; the value itself is never left outside."""
    num_clusters = int(clusters.max()) + 1
    tail = float(norm.sf(t.ppf(0.975, max(1, num_clusters - 1))))
    low, high = np.quantile(draws, [tail, 1 - tail])
    # A bound on b keeps the resamples of a flat curve on one side of it.
    return Estimate(value, min(value, float(low)), max(value, float(high)), len(clusters), method)


@dataclass(frozen=True)
class Measured:
    """A measure at every size, of which less is better.

    Args:
        points: (S,), means over pairs and trainings.
        draws: (R, S), resampled, with the luck of the trainings.
        spread: standard deviation between trainings at one size; None where every size was trained once.
        degrees: of freedom of it.
    """

    points: Floats
    draws: Floats
    spread: float | None
    degrees: int

    @classmethod
    def of(cls, trainings: Sequence[Sequence[float]], draws: Floats, *, seed: int) -> Measured:
        """Add the luck of the trainings to draws that know of the prompts alone.

        Its standard deviation is taken to be the same at every size; a mean of k trainings holds 1 / sqrt(k) of it, by Student's t.

        Args:
            trainings: the measure of each training, by size.
            draws: (R, S) of the means of the trainings.
            seed: of the luck.
        """
        points = np.array([np.mean(one) for one in trainings])
        counts = np.array([len(one) for one in trainings])
        degrees = int((counts - 1).sum())
        if not degrees:
            return cls(points, draws, None, 0)
        squares = sum(float(np.var(one)) * len(one) for one in trainings)
        spread = float(np.sqrt(squares / degrees))
        luck = np.random.default_rng(seed).standard_t(degrees, size=draws.shape) * spread / np.sqrt(counts)
        return cls(points, np.maximum(draws + luck, 0.0), spread, degrees)


@dataclass(frozen=True)
class Forecast:
    """The curve through the points, and the curves through their resamples.

    Args:
        found: one curve.
        drawn: R curves.
        misfit: the largest residual in its own standard deviations; 0 where three points leave none.
        luck: whether the intervals hold the spread between trainings.
    """

    found: PowerLaws
    drawn: PowerLaws
    misfit: float
    luck: bool

    @classmethod
    def fit(cls, sizes: Floats, measured: Measured) -> Forecast:
        """Fit the points, and each resample of them.

        Args:
            sizes: (S,) as shares of the largest.
            measured: at these.
        """
        found, drawn = fit_power_laws(sizes, measured.points[None]), fit_power_laws(sizes, measured.draws)
        spread = drawn.residuals.std(axis=0)
        ratios = np.divide(np.abs(found.residuals[0]), spread, out=np.zeros_like(spread), where=spread > 1e-9)
        return cls(found, drawn, float(ratios.max()), measured.spread is not None)

    @property
    def fits(self) -> bool:
        """Whether the points lie on such a curve, as far as they can show."""
        return self.misfit <= _MISFIT

    @property
    def is_flat(self) -> bool:
        """Whether the best curve does not fall at all."""
        return float(self.found.b[0]) == 0.0

    def level(self, factor: float, clusters: Codes, *, accuracy: bool = False) -> Estimate:
        """The measure at `factor` times the pairs; the accuracy is 1 - error."""
        at = np.array([factor])
        values, draws = float(self.found.at(at)[0, 0]), self.drawn.at(at)[:, 0]
        return self._estimate(1 - values, 1 - draws, clusters) if accuracy else self._estimate(values, draws, clusters)

    def change(self, factor: float, clusters: Codes, *, accuracy: bool = False) -> Estimate:
        """What `factor` times the pairs change, along the curve."""
        at, sign = np.array([1.0, factor]), -1.0 if accuracy else 1.0
        values, draws = self.found.at(at), self.drawn.at(at)
        moved = float(values[0, 1] - values[0, 0])
        return self._estimate(sign * moved + 0.0, sign * (draws[:, 1] - draws[:, 0]) + 0.0, clusters)

    def _estimate(self, value: float, draws: Floats, clusters: Codes) -> Estimate:
        method = f"power law refitted over {int(clusters.max()) + 1} resampled prompts"
        method += " and the spread of the trainings" if self.luck else ", one training a share"
        return estimate(value, draws, clusters, method)

    def as_dict(self) -> dict[str, Any]:
        """The parameters as the document holds them: of the error (1 - accuracy) or of the log-loss."""
        return {
            "a": float(self.found.a[0]),
            "b": float(self.found.b[0]),
            "c": None if self.is_flat else float(self.found.c[0]),
            "flat": self.is_flat,
            "flat_resamples": float((self.drawn.b == 0).mean()),
            "bounds": {"a": [0, None], "b": [0, None], "c": list(EXPONENTS)},
            "misfit": self.misfit,
            "fits": self.fits,
        }
