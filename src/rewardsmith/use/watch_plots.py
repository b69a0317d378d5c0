"""The rows of a watch -> one figure of small panels. Nothing is computed here; the numbers stand in watch.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewardsmith.use.alarms import Alarm
from rewardsmith.use.panels import draw_panels
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
    terms = tuple(f"terms/{name}" for name in dict.fromkeys(name for row in rows for name in row.terms))

    def mark(axes: Any, names: tuple[str, ...]) -> None:
        for alarm in alarms:
            if alarm.name in names:
                axes.axvline(alarm.step, color="tab:red", linewidth=1, linestyle="--")
        if baseline_steps is not None:
            axes.axvspan(rows[0].step, rows[min(len(rows), baseline_steps) - 1].step, color="grey", alpha=0.12)

    return draw_panels(_PANELS, lambda name: _points(rows, name), path, terms=terms, annotate=mark)


def _points(rows: Sequence[StepRow], name: str) -> list[tuple[int, float]]:
    return [(row.step, value) for row in rows if (value := row.value(name)) is not None]
