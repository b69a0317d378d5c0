"""The rows of a watch -> one figure of small panels. Nothing is computed here; the numbers stand in watch.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewardsmith.errors import MissingExtraError
from rewardsmith.storage import atomic_file
from rewardsmith.use.alarms import Alarm
from rewardsmith.use.sample_statistics import StepRow

_PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("reward and score", ("reward", "score")),
    ("characters", ("length",)),
    ("KL, nats an answer", ("kl",)),
    ("reward against length, rank correlation", ("length_correlation",)),
    ("distinct-1, distinct-2", ("distinct_1", "distinct_2")),
    ("repetition", ("repetition",)),
    ("finished", ("finished",)),
    ("outside the domain", ("outside_domain",)),
    ("groups of equal rewards", ("equal_groups",)),
)
_COLUMNS = 3


def watch_panels(
    rows: Sequence[StepRow], alarms: Sequence[Alarm], path: Path, *, baseline_steps: int | None = None
) -> list[str]:
    """One panel for each kind of number that the run has; the baseline shaded, each alarm a line where it was told.

    Args:
        rows: at least one.
        alarms: of the run.
        path: of the PNG.
        baseline_steps: None where no alarm could come.

    Returns:
        The titles of the panels that were drawn.

    Raises:
        MissingExtraError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no global state and no window
    except ImportError as error:
        raise MissingExtraError("plots", "matplotlib", "plot") from error
    panels = [(title, names) for title, names in _PANELS if any(_points(rows, name) for name in names)]
    terms = tuple(f"terms/{name}" for name in dict.fromkeys(name for row in rows for name in row.terms))
    if terms:
        panels.insert(1, ("what each term added", terms))
    num_rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 2.6 * num_rows + 0.3), layout="constrained")
    drawn = figure.subplots(num_rows, _COLUMNS, squeeze=False).ravel()
    for axes, (title, names) in zip(drawn, panels, strict=False):
        for name in names:
            _draw(axes, _points(rows, name), name, alarms)
        if baseline_steps is not None:
            axes.axvspan(rows[0].step, rows[min(len(rows), baseline_steps) - 1].step, color="grey", alpha=0.12)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2)
        if len(names) > 1:
            axes.legend(fontsize=7)
    for axes in drawn[len(panels) :]:
        axes.set_axis_off()
    with atomic_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    return [title for title, _ in panels]


def _points(rows: Sequence[StepRow], name: str) -> list[tuple[int, float]]:
    return [(row.step, value) for row in rows if (value := row.value(name)) is not None]


def _draw(axes: Any, points: Sequence[tuple[int, float]], name: str, alarms: Sequence[Alarm]) -> None:
    if not points:
        return
    label = name.removeprefix("terms/").replace("$", r"\$")  # else matplotlib reads a formula
    axes.plot(*zip(*points, strict=True), linewidth=1, marker="." if len(points) < 40 else "", label=label)
    for alarm in alarms:
        if alarm.name == name:
            axes.axvline(alarm.step, color="tab:red", linewidth=1, linestyle="--")
