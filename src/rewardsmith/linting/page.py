"""One HTML page from the document of `rewardsmith lint`: self-contained, without scripts, drawn from stored numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from rewardsmith.errors import OutputError
from rewardsmith.linting import tables
from rewardsmith.pages import environment
from rewardsmith.pages.drawing import PLOT_HEIGHT, PLOT_WIDTH, Bar, Bars, Histogram, bar_scale, histogram
from rewardsmith.pages.text import percent, visible
from rewardsmith.stats import Estimate
from rewardsmith.storage import refuse_inside

# Bars of slices that are shown at once; all of them stand in the folded tables.
_WORST_SLICES = 12
_SECTIONS = {
    "findings": "Findings",
    "shortcuts": "Shortcuts",
    "agreement": "Further statistics",
    "slices": "Slices",
    "distributions": "Distributions",
    "columns": "Values of columns",
    "truncation": "Truncation",
    "suspects": "Suspect labels",
    "not_run": "Not checked",
    "fixed": "Fixed",
    "versions": "Versions",
}


def render_page(document: Mapping[str, Any]) -> str:
    """The page of a lint; a part of the document that is missing or empty makes no section.

    Args:
        document: what `lint --json` prints.
    """
    parts = _parts(document)
    sections = {key: title for key, title in _SECTIONS.items() if parts[key]}
    page = _environment().get_template("page.html.j2").render(document=document, sections=sections, **parts)
    # Last, over everything: texts from the data may hold what neither HTML nor UTF-8 can.
    return visible(page)


def check_output(path: Path, *sources: str, overwrite: bool) -> None:
    """Refuse a file that is an input, or that exists and is not a page of ours (or may not be replaced).

    Raises:
        OutputError: with what to do.
    """
    refuse_inside(path, *sources)
    if not path.exists():
        return
    if not (overwrite and environment.is_page(path, "lint")):
        raise OutputError(
            "a new file for --html, or with --overwrite an earlier page of lint",
            f"{path}, which exists",
            "Choose another.",
        )


def write_page(document: Mapping[str, Any], path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        OutputError: if the system refuses.
    """
    environment.write_page(path, render_page(document))


def _environment() -> jinja2.Environment:
    made = environment.environment("linting")
    made.filters.update(statistic=tables.statistic_name, truncated=tables.truncation_cell)
    return made


def _parts(document: Mapping[str, Any]) -> dict[str, Any]:
    """What each section shows, under the section's name; and what the head of the page shows."""
    statistics = tables.estimates(document.get("statistics"))
    shortcuts = {tables.statistic_name(key): value for key, value in statistics.items() if tables.is_shortcut(key)}
    found = tables.slices(document)
    worst = {_slice_name(part): part.estimate for part in found[:_WORST_SLICES] if part.distance}
    return {
        "verdict": tables.verdict(document),
        "headlines": tables.headlines(document),
        "worst_severity": next((name for name in tables.SEVERITIES if (document.get("severity") or {}).get(name)), ""),
        "findings": "findings" in document or document.get("passed"),
        "found": tables.sorted_findings(document),
        "shortcuts": _bars(shortcuts) if shortcuts else None,
        "agreement": [_row(key, value) for key, value in statistics.items() if not tables.is_shortcut(key)],
        "slices": document.get("by"),
        "num_slice_intervals": len(found),
        "worst_slices": _bars(worst) if worst else None,
        "slice_rows": {column: _slice_rows(values) for column, values in (document.get("by") or {}).items()},
        "distributions": _histograms(document.get("distributions") or {}),
        "columns": document.get("counts_by"),
        "truncation": (document.get("truncation") or {}).get("limits"),
        "truncation_columns": tables.TRUNCATION_COLUMNS,
        "suspects": tables.noise_line(document),
        "not_run": document.get("not_run"),
        "fixed": document.get("fixed"),
        "versions": document.get("versions"),
        "width": PLOT_WIDTH,
        "height": PLOT_HEIGHT,
    }


def _slice_name(part: tables.Slice) -> str:
    return f"{part.column} = {part.value}: {tables.statistic_name(part.statistic)}"


def _row(key: str, estimate: Estimate) -> dict[str, Any]:
    return {
        "name": tables.statistic_name(key),
        "value": tables.value_of(key, estimate),
        "interval": tables.interval_of(key, estimate),
        "num_pairs": estimate.n,
        "method": estimate.method,
    }


def _slice_rows(values: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (value, _row(key, estimate))
        for value, documents in values.items()
        for key, estimate in tables.estimates(documents).items()
    ]


def _bars(estimates: Mapping[str, Estimate]) -> Bars:
    """Intervals on the narrowest scale of whole tens of percent, the same to both sides of one half, that holds them all."""
    furthest = max(max(abs(estimate.low - 0.5), abs(estimate.high - 0.5)) for estimate in estimates.values())
    reach = min(5, max(1, math.ceil(furthest * 10 - 1e-9))) / 10

    position = bar_scale(0.5 - reach, 0.5 + reach)
    rows = [
        Bar(
            name=name,
            value=percent(estimate.value),
            interval=f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]",
            num_pairs=estimate.n,
            method=estimate.method,
            low=position(estimate.low),
            high=position(estimate.high),
            middle=position(estimate.value),
            is_off=estimate.low > 0.5 or estimate.high < 0.5,
        )
        for name, estimate in estimates.items()
    ]
    marks = (0.5 - reach, 0.5, 0.5 + reach)
    return Bars(rows, [(position(mark), f"{100 * mark:.0f} %") for mark in marks], position(0.5))


def _histograms(distributions: Mapping[str, Any]) -> list[Histogram]:
    """A histogram for each distribution; what is known of chosen and rejected over the same bins is laid over each other."""
    histograms, drawn = [], set()
    for key, distribution in distributions.items():
        if key in drawn or not distribution or not distribution["counts"]:
            continue
        twin = key.replace("chosen_", "rejected_", 1) if key.startswith("chosen_") else None
        other = distributions.get(twin) if twin else None
        if other and other["edges"] == distribution["edges"]:
            drawn.add(twin)
            title = f"{key.removeprefix('chosen_')} of chosen and rejected"
            series = {"chosen": distribution["counts"], "rejected": other["counts"]}
        else:
            title, series = key, {key: distribution["counts"]}
        histograms.append(histogram(title.replace("_", " "), distribution["edges"], series))
    return histograms
