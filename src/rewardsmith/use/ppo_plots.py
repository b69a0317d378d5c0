"""The log of a PPO run -> one figure. Nothing is computed here; the numbers stand in log.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardsmith.use.panels import draw_panels

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
    terms = tuple(dict.fromkeys(name for row in rows for name in row if name.startswith("terms/")))

    def budget(axes: Any, names: tuple[str, ...]) -> None:
        if "kl" in names and kl_budget is not None:
            axes.axhline(kl_budget, color="grey", linewidth=0.8, linestyle="--", label="budget")

    return draw_panels(_PANELS, lambda name: _points(rows, name), path, terms=terms, annotate=budget)


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]
