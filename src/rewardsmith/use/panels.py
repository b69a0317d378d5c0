"""Numbers of a run step by step -> one figure of small panels. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rewardsmith.errors import MissingExtraError
from rewardsmith.storage import atomic_file

Points: TypeAlias = Sequence[tuple[int, float]]
"""(step, value) of one series."""

_COLUMNS = 3
_MARKED = 40
"""A series of fewer points shows each of them."""


def draw_panels(
    panels: Sequence[tuple[str, tuple[str, ...]]],
    points_of: Callable[[str], Points],
    path: Path,
    *,
    terms: Sequence[str] = (),
    annotate: Callable[[Any, tuple[str, ...]], None] = lambda axes, names: None,
) -> list[str]:
    """Draw one panel for each kind of number that there is something of.

    Args:
        panels: a title with the names of its series.
        points_of: the points of a series, none where the run has none.
        path: of the PNG.
        terms: series of what each term of shaping added, `terms/NAME`; a panel of their own after the first.
        annotate: adds what a panel shows beside its series, given its axes and their names.

    Returns:
        The titles of the panels that were drawn.

    Raises:
        MissingExtraError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no global state and no window
    except ImportError as error:
        raise MissingExtraError("plots", "matplotlib", "plot") from error
    shown = [(title, names) for title, names in panels if any(points_of(name) for name in names)]
    if terms:
        shown.insert(1, ("what each term added", tuple(terms)))
    height = -(-len(shown) // _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 2.6 * height + 0.3), layout="constrained")
    drawn = figure.subplots(height, _COLUMNS, squeeze=False).ravel()
    for axes, (title, names) in zip(drawn, shown, strict=False):
        for name in names:
            if points := points_of(name):
                label = name.removeprefix("terms/").replace("$", r"\$")  # else matplotlib reads a formula
                marker = "." if len(points) < _MARKED else ""
                axes.plot(*zip(*points, strict=True), linewidth=1, marker=marker, label=label)
        annotate(axes, names)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2)
        if len(names) > 1:
            axes.legend(fontsize=7)
    for axes in drawn[len(shown) :]:
        axes.set_axis_off()
    with atomic_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    return [title for title, _ in shown]
