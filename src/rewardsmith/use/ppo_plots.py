"""The log of a PPO run -> one figure. Nothing is computed here; the numbers stand in log.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardsmith.errors import MissingExtraError
from rewardsmith.storage import atomic_file

_PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("reward and score", ("reward", "score")),
    ("KL from the reference, nats an answer", ("kl", "kl_sampled")),
    ("tokens an answer", ("tokens",)),
    ("share of answers that ended", ("finished",)),
    ("entropy, nats a token", ("entropy",)),
    ("share of tokens held by the clip", ("clip_fraction",)),
    ("moved by a step, nats a token", ("update_kl",)),
    ("explained variance of the values", ("explained_variance",)),
    ("coefficient of the KL penalty", ("kl_coefficient",)),
)
_COLUMNS = 3


def ppo_curves(rows: Sequence[Mapping[str, Any]], path: Path, *, kl_budget: float | None = None) -> list[str]:
    """One panel for each kind of number that the run has.

    Args:
        rows: of log.jsonl, at least one.
        path: of the PNG.
        kl_budget: drawn as a line; None for none.

    Returns:
        The titles of the panels.

    Raises:
        MissingExtraError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no global state and no window
    except ImportError as error:
        raise MissingExtraError("plots", "matplotlib", "plot") from error
    panels = [(title, names) for title, names in _PANELS if any(_points(rows, name) for name in names)]
    terms = tuple(dict.fromkeys(name for row in rows for name in row if name.startswith("terms/")))
    if terms:
        panels.insert(1, ("what each term added", terms))
    height = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 2.6 * height + 0.3), layout="constrained")
    drawn = figure.subplots(height, _COLUMNS, squeeze=False).ravel()
    for axes, (title, names) in zip(drawn, panels, strict=False):
        for name in names:
            points = _points(rows, name)
            if points:
                marker = "." if len(points) < 40 else ""
                label = name.removeprefix("terms/").replace("$", r"\$")  # else matplotlib reads a formula
                axes.plot(*zip(*points, strict=True), linewidth=1, marker=marker, label=label)
        if "kl" in names and kl_budget is not None:
            axes.axhline(kl_budget, color="grey", linewidth=0.8, linestyle="--", label="budget")
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


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]
