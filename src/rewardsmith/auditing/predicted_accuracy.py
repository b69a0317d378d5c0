"""Accuracy on pairs that nobody has labelled, foretold from how sure the scorer is: average thresholded confidence (ATC) and difference of confidences (DoC).

Both assume that a confidence means the same on both sides, that P(right | confidence) is unchanged. Where the new pairs ask another question that is false, and no interval here
knows of it: the realised accuracy of a few labelled pairs does. Legend: `n` pairs of both sides, `R` resamples, `C` prompts, `G` grid points of the temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import norm, t

from rewardsmith.errors import DataError
from rewardsmith.metrics import wins
from rewardsmith.stats import FEW_CLUSTERS, Estimate, Floats, cluster_codes, cluster_draws, cluster_ratio, proportion

Bools = NDArray[np.bool_]
Codes = NDArray[np.int64]

RESAMPLES = 1000
LEAST_SLICES = 2
# Temperatures from a thousandth to a thousand times the typical margin; those of resamples within a factor of 16, at steps of 3 %.
_REACH = 1e3
_NEAR, _GRID = 16.0, 193


@dataclass(frozen=True)
class Prediction:
    """What the scorer's confidence foretells of the new pairs, with 95 % intervals that hold the chance of both samples.

    Args:
        atc: average thresholded confidence (Garg et al. 2022): the share of new pairs whose confidence exceeds a threshold t, t being such that the share of reference pairs
            above it is the accuracy there. It goes by ranks alone: no temperature changes it.
        doc: difference of confidences (Guillory et al. 2021): the reference's accuracy minus the loss of mean confidence.
        reference_accuracy: on the reference pairs, ties one half: what "no shift" would foretell.
        confidence_reference: the mean of sigmoid(|margin| / T).
        confidence_new: the same on the new pairs.
        threshold: t, as a confidence.
        temperature: T.
        is_fitted: T was fitted on the reference pairs, here; else it was handed in.
        realised: accuracy on the new pairs; None where they have no labels.
        atc_error: atc minus realised.
        doc_error: doc minus realised.
    """

    atc: Estimate
    doc: Estimate
    reference_accuracy: Estimate
    confidence_reference: Estimate
    confidence_new: Estimate
    threshold: float
    temperature: float
    is_fitted: bool
    realised: Estimate | None = None
    atc_error: Estimate | None = None
    doc_error: Estimate | None = None

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        optional = {"realised": self.realised, "atc_error": self.atc_error, "doc_error": self.doc_error}
        return {
            "atc": self.atc.as_dict(),
            "doc": self.doc.as_dict(),
            "reference_accuracy": self.reference_accuracy.as_dict(),
            "confidence_reference": self.confidence_reference.as_dict(),
            "confidence_new": self.confidence_new.as_dict(),
            "threshold": self.threshold,
            "temperature": self.temperature,
            "temperature_fitted": self.is_fitted,
            **{name: one.as_dict() if one else None for name, one in optional.items()},
            "assumes": "P(right | confidence) is the same on both sides",
        }


def predict_accuracy(
    reference: tuple[Floats, Sequence[str]],
    new: tuple[Floats, Sequence[str]],
    *,
    is_labelled: bool,
    temperature: float | None = None,
    seed: int = 0,
) -> Prediction:
    """The accuracy to be expected on new pairs.

    Args:
        reference: margins (score of chosen minus score of rejected) of labelled pairs, and the names of their prompts.
        new: the same of the new pairs; without labels only the sizes of the margins are used.
        is_labelled: whether the signs of the new margins say right and wrong.
        temperature: of the scorer; fitted on the reference pairs, anew in every resample, where None.
        seed: of the bootstrap.

    Raises:
        DataError: if either side has fewer than ten prompts.
    """
    for side, (_, prompts) in (("reference", reference), ("new", new)):
        if len(set(prompts)) < FEW_CLUSTERS:
            raise DataError(
                f"pairs of at least {FEW_CLUSTERS} prompts on each side", f"{len(set(prompts))} {side}", "Give more."
            )
    margins = np.concatenate([reference[0], new[0]]).astype(np.float64)
    clusters = cluster_codes([*reference[1], *new[1]])
    is_new = np.arange(len(margins)) >= len(reference[0])
    return _Foretelling(margins, clusters, temperature, seed).of(is_new, is_labelled=is_labelled)


@dataclass(frozen=True)
class SlicePredictions:
    """Each value of a column foretold from the pairs of all others, beside what came out.

    Args:
        column: the name.
        predictions: {value: prediction}, each with its realised accuracy.
        atc_error: mean absolute error of ATC over the slices.
        doc_error: the same of DoC.
        no_shift_error: the same of foretelling the accuracy of all other pairs, without a look at the slice.
        chance_error: what that error would be for a perfect forecast, for a slice's own accuracy is known from so many pairs only.
        too_few: values of fewer than ten prompts.
    """

    column: str
    predictions: dict[str, Prediction]
    atc_error: Estimate
    doc_error: Estimate
    no_shift_error: Estimate
    chance_error: float
    too_few: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "column": self.column,
            "num_slices": len(self.predictions),
            "slices": {value: one.as_dict() for value, one in self.predictions.items()},
            "mean_absolute_error": {
                "atc": self.atc_error.as_dict(),
                "doc": self.doc_error.as_dict(),
                "no_shift": self.no_shift_error.as_dict(),
            },
            "chance_error": self.chance_error,
            "too_few": list(self.too_few),
        }

    def table(self) -> Table:
        """Foretold and realised accuracy of each slice, the worst first."""
        table = Table(title=f"accuracy foretold by {escape(self.column)}", title_justify="left")
        table.add_column(escape(self.column))
        for name in ("ATC", "DoC", "other pairs", "realised"):
            table.add_column(name, justify="right")
        table.add_column("n", justify="right")
        for value, one in sorted(self.predictions.items(), key=lambda item: _value(item[1].realised)):
            cells = [one.atc, one.doc, one.reference_accuracy, one.realised]
            table.add_row(escape(value), *map(_cell, cells), f"{one.realised.n:,}" if one.realised else "")
        table.add_section()
        errors = [self.atc_error, self.doc_error, self.no_shift_error]
        table.add_row("mean absolute error", *map(_cell, errors), f"{self.chance_error:.3f} by chance", "")
        return table


def predict_slices(
    margins: Floats,
    prompts: Sequence[str],
    values: Sequence[str | None],
    *,
    column: str,
    temperature: float | None = None,
    seed: int = 0,
) -> SlicePredictions:
    """Foretell the accuracy of every value of a column from all pairs that have another one.

    Args:
        margins: (n,) of labelled pairs.
        prompts: (n,) names.
        values: (n,) of the column; pairs without one belong to no slice and to no reference.
        column: its name.
        temperature: see `predict_accuracy`.
        seed: of the bootstrap, whose draws all slices share.

    Raises:
        DataError: if fewer than two values have ten prompts in and out of them.
    """
    known = np.array([value is not None for value in values])
    names = np.array([value for value in values if value is not None], dtype=object)
    margins, clusters = np.asarray(margins, np.float64)[known], cluster_codes(np.asarray(prompts)[known])
    foretelling = _Foretelling(margins, clusters, temperature, seed)
    found: dict[str, Prediction] = {}
    too_few = []
    for value in dict.fromkeys(names.tolist()):
        part = names == value
        if min(len(np.unique(clusters[part])), len(np.unique(clusters[~part]))) < FEW_CLUSTERS:
            too_few.append(str(value))
        else:
            found[str(value)] = foretelling.of(part, is_labelled=True)
    if len(found) < LEAST_SLICES:
        raise DataError(
            f"at least {LEAST_SLICES} values of {column!r} with {FEW_CLUSTERS} prompts or more",
            f"{len(found)}",
            "Choose another column, or give more pairs.",
        )
    atc, doc = (np.array([_value(getattr(one, name)) for one in found.values()]) for name in ("atc_error", "doc_error"))
    no_shift = np.array([one.reference_accuracy.value - _value(one.realised) for one in found.values()])
    errors = [_error_of(one.realised) for one in found.values() if one.realised]
    return SlicePredictions(
        column=column,
        predictions=found,
        atc_error=_mean_over_slices(np.abs(atc)),
        doc_error=_mean_over_slices(np.abs(doc)),
        no_shift_error=_mean_over_slices(np.abs(no_shift)),
        # E|z| of a standard normal variable is sqrt(2 / pi).
        chance_error=float(np.sqrt(2 / np.pi) * np.mean(errors)),
        too_few=tuple(too_few),
    )


def _mean_over_slices(errors: Floats) -> Estimate:
    found = cluster_ratio(errors, np.ones(len(errors)), np.arange(len(errors)), low=0.0)
    return replace(found, method=f"Student's t over {len(errors)} slices")


def _error_of(estimate: Estimate) -> float:
    return (estimate.high - estimate.low) / 2 / float(norm.ppf(0.975))


def _value(estimate: Estimate | None) -> float:
    return float("nan") if estimate is None else estimate.value


def _cell(estimate: Estimate | None) -> str:
    return "" if estimate is None else rf"{estimate.value:.3f} \[{estimate.low:.3f}, {estimate.high:.3f}]"


class _Foretelling:
    """Pairs and the resamples of their prompts; any part of the pairs may be the new side, and a prompt that stands on both is drawn for both at once.

    Args:
        margins: (n,).
        clusters: (n,) codes 0..C-1.
        temperature: None where it is to be fitted.
        seed: of the resamples.
    """

    def __init__(self, margins: Floats, clusters: Codes, temperature: float | None, seed: int) -> None:
        if not np.isfinite(margins).all():
            raise DataError("finite margins", "NaN or infinite ones", "Mend the scorer.")
        self.margins, self.clusters, self.temperature, self.seed = margins, clusters, temperature, seed
        self.won, self.num_prompts = wins(margins), int(clusters.max()) + 1

    def of(self, is_new: Bools, *, is_labelled: bool) -> Prediction:
        """One prediction; the pairs that are not new are the reference."""
        reference, new = np.flatnonzero(~is_new), np.flatnonzero(is_new)
        threshold = _Threshold(np.abs(self.margins), self.won, reference, new)
        confidence = _Confidence(self.margins, self.clusters, self.won, reference, new, self.temperature)

        def statistics(drawn: Floats) -> dict[str, Floats]:
            atc, _ = threshold.foretold(drawn[:, self.clusters])
            found = confidence.foretold(drawn) | {"atc": atc}
            errors = {f"{name}_error": found[name] - found["realised"] for name in ("atc", "doc")}
            return found | errors

        whole = np.ones((1, self.num_prompts))
        point = {name: float(values[0]) for name, values in statistics(whole).items()}
        blocks = cluster_draws(self.num_prompts, max(len(self.margins), self.num_prompts), RESAMPLES, self.seed)
        parts = [statistics(drawn) for drawn in blocks]
        prompts = [len(np.unique(self.clusters[rows])) for rows in (reference, new)]

        def estimate(name: str, n: int) -> Estimate:
            draws = np.concatenate([part[name] for part in parts])
            low, high = np.nanquantile(draws, _tails(min(prompts)))  # a resample may leave out one side
            method = f"bootstrap over {prompts[0]} and {prompts[1]} prompts"
            return Estimate(point[name], float(low), float(high), n, method)

        n = len(self.margins)
        size = float(threshold.foretold(np.ones((1, n)))[1][0])
        inverse = confidence.grid[confidence.middle]
        return Prediction(
            atc=estimate("atc", n),
            doc=estimate("doc", n),
            reference_accuracy=self._accuracy(reference),
            confidence_reference=estimate("confidence_reference", len(reference)),
            confidence_new=estimate("confidence_new", len(new)),
            threshold=float(expit(size * inverse)),
            temperature=float(1 / inverse),
            is_fitted=self.temperature is None,
            realised=self._accuracy(new) if is_labelled else None,
            atc_error=estimate("atc_error", n) if is_labelled else None,
            doc_error=estimate("doc_error", n) if is_labelled else None,
        )

    def _accuracy(self, rows: NDArray[np.int64]) -> Estimate:
        return proportion(self.won[rows], cluster_codes(self.clusters[rows]), seed=self.seed)


def _tails(num_prompts: int) -> tuple[float, float]:
    """The percentiles of resamples of so few prompts that have the coverage of 95 % (Hesterberg 2015, 5.3)."""
    reach = t.ppf(0.975, num_prompts - 1) * np.sqrt(num_prompts / (num_prompts - 1))
    return float(norm.sf(reach)), float(norm.cdf(reach))


class _Threshold:
    """ATC by sorting once: a share of weights above a threshold is a cumulative sum."""

    def __init__(self, size: Floats, won: Floats, reference: Codes, new: Codes) -> None:
        """Sort both sides from the surest pair down."""
        self.reference = reference[np.argsort(-size[reference], kind="stable")]
        self.new = new[np.argsort(-size[new], kind="stable")]
        self.won, self.size = won[self.reference], size[self.reference]
        falling, fresh = -self.size, -size[self.new]
        # Pairs as sure as the one at the threshold stand together, on either side.
        self.first, self.end = (np.searchsorted(falling, falling, side=side) for side in ("left", "right"))
        self.new_first, self.new_end = (np.searchsorted(fresh, falling, side=side) for side in ("left", "right"))

    def foretold(self, weights: Floats) -> tuple[Floats, Floats]:
        """ATC and the margin at its threshold, both (R,), of weights (R, n).

        Where several pairs stand at the threshold, as many of the new ones count as are needed of the reference: a scorer that knows nothing foretells one half.
        """
        drawn = weights[:, self.reference]
        sums, new_sums = _cumulative(drawn), _cumulative(weights[:, self.new])
        wanted = drawn @ self.won
        place = np.minimum((sums[:, 1:] < wanted[:, None] * (1 - 1e-12)).sum(axis=1), len(self.size) - 1)
        rows = np.arange(len(weights))
        above, at = sums[rows, self.first[place]], sums[rows, self.end[place]] - sums[rows, self.first[place]]
        share = np.clip((wanted - above) / np.where(at > 0, at, 1.0), 0.0, 1.0)
        start, end = new_sums[rows, self.new_first[place]], new_sums[rows, self.new_end[place]]
        with np.errstate(invalid="ignore"):  # 0 / 0 where a resample has no new pair
            return (start + share * (end - start)) / new_sums[:, -1], self.size[place]


def _cumulative(weights: Floats) -> Floats:
    """Sums of the first 0, 1, ... columns, (R, n + 1)."""
    return np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights, axis=1)], axis=1)


class _Confidence:
    """DoC with a temperature of each resample's own.

    The temperature is the root of the slope of the log-loss in 1 / T, sum of d * sigmoid(-d / T), which falls from grid point to grid point; slopes and
    confidences of a resample at the grid points are sums over prompts.
    """

    def __init__(
        self, margins: Floats, clusters: Codes, won: Floats, reference: Codes, new: Codes, temperature: float | None
    ) -> None:
        """Sum up by prompt what resamples need."""
        num_prompts = int(clusters.max()) + 1
        if temperature is None:
            inverse = _inverse_temperature(margins[reference])
            self.grid = inverse * np.geomspace(1 / _NEAR, _NEAR, _GRID)
        else:
            self.grid = np.array([1 / temperature])
        self.middle = len(self.grid) // 2

        def summed(values: Floats, rows: Codes) -> Floats:
            sums = np.zeros((num_prompts, *values.shape[1:]))
            np.add.at(sums, clusters[rows], values[rows])
            return sums

        logits = margins[:, None] * self.grid  # (n, G)
        surest, ones = expit(np.abs(logits)), np.ones(len(margins))
        self.slopes = summed(margins[:, None] * expit(-logits), reference)  # (C, G)
        self.confidences = [summed(surest, rows) for rows in (reference, new)]
        self.won = [summed(won, rows) for rows in (reference, new)]
        self.counts = [summed(ones, rows) for rows in (reference, new)]

    def foretold(self, drawn: Floats) -> dict[str, Floats]:
        """Statistics of draws of the prompts, (R, C), each (R,)."""
        place = self._places(drawn)
        with np.errstate(invalid="ignore"):  # 0 / 0 where a resample has no pair of one side
            counts = [drawn @ one for one in self.counts]
            accuracy, realised = (drawn @ one / count for one, count in zip(self.won, counts, strict=True))
            reference, new = (
                _between(drawn @ one, place) / count for one, count in zip(self.confidences, counts, strict=True)
            )
        doc = np.clip(accuracy - reference + new, 0.0, 1.0)
        return {"doc": doc, "realised": realised, "confidence_reference": reference, "confidence_new": new}

    def _places(self, drawn: Floats) -> Floats:
        """Where on the grid each resample's temperature lies, (R,), fractions meaning between two points; its ends where there is no root."""
        if len(self.grid) == 1:
            return np.zeros(len(drawn))
        slopes = drawn @ self.slopes  # (R, G), falling
        last = np.clip((slopes > 0).sum(axis=1) - 1, 0, len(self.grid) - 2)  # the last point that is still above 0
        rows = np.arange(len(drawn))
        high, low = slopes[rows, last], slopes[rows, last + 1]
        fall = np.where(high > low, high - low, 1.0)
        return np.asarray(last + np.clip(high / fall, 0.0, 1.0))


def _between(values: Floats, places: Floats) -> Floats:
    """Values (R, G) at fractional places (R,)."""
    rows, left = np.arange(len(values)), np.minimum(places.astype(np.int64), max(0, values.shape[1] - 2))
    right = np.minimum(left + 1, values.shape[1] - 1)
    share = places - left
    return np.asarray((1 - share) * values[rows, left] + share * values[rows, right])


def _inverse_temperature(margins: Floats) -> float:
    """1 / T of the least log-loss; at the end of what is looked at where the scorer is right by chance or always (a T of a thousand typical margins says: it knows nothing)."""
    scale = float(np.median(np.abs(margins[margins != 0]))) if margins.any() else 1.0
    unit = margins / scale

    def slope(inverse: float) -> float:
        return float((unit * expit(-unit * inverse)).sum())

    if slope(1 / _REACH) <= 0:
        return 1 / _REACH / scale
    if slope(_REACH) >= 0:
        return _REACH / scale
    return float(brentq(slope, 1 / _REACH, _REACH, xtol=1e-12, rtol=1e-12)) / scale
