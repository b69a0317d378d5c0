"""Numbers -> positions: intervals on one scale, histograms, and the ticks of axes. Nothing statistical is computed here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# A histogram's plot area, in the units of its SVG.
PLOT_WIDTH = 320
PLOT_HEIGHT = 120
_MOST_TICKS = 6
# Where the ends of a scale stand, in percent of a bar's width: a point at the very end must not be cut.
_SCALE_START, _SCALE_END = 3.0, 97.0


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high` onto positions from `start` to `end`; values beyond stand at the end.

    >>> Scale(0.0, 1.0, 0.0, 200.0)(0.25)
    50.0
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value, to a hundredth."""
        along = (value - self.low) / (self.high - self.low)
        return round(self.start + min(1.0, max(0.0, along)) * (self.end - self.start), 2)


@dataclass(frozen=True, slots=True)
class Bar:
    """An interval on a scale; positions in percent of the width. `is_off`: the interval holds no reference value."""

    name: str
    value: str
    interval: str
    num_pairs: int
    method: str
    low: float
    high: float
    middle: float
    is_off: bool
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Bars:
    """Intervals that share a scale; ticks are positions with their labels, `reference` is the position of what means nothing."""

    rows: list[Bar]
    ticks: list[tuple[float, str]]
    reference: float | None


def bar_scale(low: float, high: float) -> Scale:
    """A scale across the width of a bar, in percent of it."""
    return Scale(low, high, _SCALE_START, _SCALE_END)


@dataclass(frozen=True, slots=True)
class Series:
    """The counts of one histogram as an SVG path, filled or as a broken outline."""

    name: str
    counts: Sequence[int]
    total: int
    path: str
    is_outline: bool


@dataclass(frozen=True, slots=True)
class Histogram:
    """One or two series over the same bins, drawn as columns of one width whatever the bins' widths are."""

    title: str
    bins: list[str]
    ticks: list[tuple[float, str]]
    series: list[Series]
    top: int


def histogram(title: str, edges: Sequence[float], counts: Mapping[str, Sequence[int]]) -> Histogram:
    """One or two series of counts over the same bins.

    Args:
        title: of the figure.
        edges: where each bin begins; and where the last one ends, unless it is open.
        counts: by name of the series; the second is drawn as an outline over the first.
    """
    num_bins = len(next(iter(counts.values())))
    top = max(1, *(max(values) for values in counts.values()))
    step = math.ceil(len(edges) / _MOST_TICKS)
    series = [
        Series(name.replace("_", " "), values, sum(values), _path(values, top), is_outline=index > 0)
        for index, (name, values) in enumerate(counts.items())
    ]
    ticks = [
        (round(index * PLOT_WIDTH / num_bins, 1), edge_label(edge))
        for index, edge in enumerate(edges)
        if index % step == 0
    ]
    return Histogram(title, list(bin_names(edges, num_bins)), ticks, series, top)


def bin_names(edges: Sequence[float], num_bins: int) -> Iterable[str]:
    """Names of bins; the last one is open where it has no upper edge."""
    for index in range(num_bins):
        if index + 1 < len(edges):
            yield f"{edge_label(edges[index])} to {edge_label(edges[index + 1])}"
        else:
            yield f"{edge_label(edges[index])} or more"


def edge_label(edge: float) -> str:
    """A number on an axis, short."""
    return f"{edge:,.0f}" if float(edge).is_integer() else f"{edge:,.4g}"


def round_ticks(low: float, high: float, *, most: int = _MOST_TICKS) -> list[float]:
    """Round values within [low, high], at steps of 1, 2 or 5 times a power of ten, at most `most` of them.

    >>> round_ticks(0.0, 1.0), round_ticks(3, 118)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [20.0, 40.0, 60.0, 80.0, 100.0])
    """
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            # Rounded: 3 * 0.1 is no label.
            return [float(f"{index * step:.12g}") for index in range(first, last + 1)]
    return [low, high]


def _path(counts: Sequence[int], top: int) -> str:
    """The steps of a histogram as an SVG path from the axis to the axis."""
    width = PLOT_WIDTH / len(counts)
    steps = " ".join(
        f"V{PLOT_HEIGHT * (1 - count / top):.1f} H{(index + 1) * width:.1f}" for index, count in enumerate(counts)
    )
    return f"M0 {PLOT_HEIGHT} {steps} V{PLOT_HEIGHT}"
