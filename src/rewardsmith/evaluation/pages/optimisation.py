"""The part `over_optimisation` of an audit -> tables: what best-of-n by each scorer gives, scorers against each other, and what the selected answers are like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewardsmith.evaluation.pages import numbers
from rewardsmith.evaluation.pages.grids import Grid, Row, estimate_cell, folded, name_cell
from rewardsmith.evaluation.pages.numbers import COUNT, EFFECT, mapping
from rewardsmith.significance import LEVEL
from rewardsmith.stats import Estimate

KEYS = ("selectors", "comparisons", "traits", "probes")
"""Of the part, that are drawn and tabled here."""
_AT = {"n_star": "each at its n*", "n_max": "at the largest n"}


def optimisation_grids(content: Mapping[str, Any]) -> list[Grid]:
    """The tables; a key that is missing makes none."""
    return [
        *_selectors(content.get("selectors") or ()),
        *_comparisons(content.get("comparisons") or ()),
        *_traits(mapping(content.get("traits")).get("changes") or ()),
        *[grid for one in content.get("probes") or () for grid in _probes(mapping(one))],
    ]


def change_row(one: Mapping[str, Any], change: Estimate) -> Row:
    """A probe before and after: of two audits, or of answers taken blindly and selected ones."""
    flags = ["yes" if one.get(key) else "no" for key in ("flagged_before", "flagged_after")]
    p_value = one.get("p_adjusted")
    is_certain = isinstance(p_value, int | float) and p_value < LEVEL
    cells = [
        name_cell(one.get("name")),
        ("grew" if change.value > 0 else "shrank") if is_certain else "",
        flags[0] if flags[0] == flags[1] else " -> ".join(flags),
        _effect(one.get("before_sd")),
        _effect(one.get("after_sd")),
        EFFECT.value(change),
        EFFECT.interval(change),
        numbers.p_value(p_value),
        f"{change.n:,}",
    ]
    return Row(cells, "newly flagged" if flags == ["no", "yes"] else "")


CHANGE_HEADERS = [
    "probe",
    "beyond chance",
    "flagged",
    "before",
    "after",
    "change, sd",
    "95 % interval",
    "p, adjusted",
    "n",
]


def _effect(value: Any) -> str:
    return f"{value:+.2f}" if isinstance(value, int | float) else ""


def _selectors(documents: Sequence[Mapping[str, Any]]) -> list[Grid]:
    rows = []
    for one in documents:
        curve = one.get("curve") or [{}]
        last = numbers.estimate(mapping(curve[-1]).get("proxy"))
        gold, best, decline, n_star = (
            numbers.estimate(one.get(key)) for key in ("gold_at_n_max", "gold_at_n_star", "decline", "n_star")
        )
        cells = [
            name_cell(one.get("name")),
            name_cell(one.get("role") or ""),
            estimate_cell(last, EFFECT),
            estimate_cell(gold, EFFECT),
            estimate_cell(n_star, COUNT),
            estimate_cell(best, EFFECT),
            estimate_cell(decline, EFFECT),
            f"{gold.n:,}" if gold else "",
        ]
        rows.append(Row(cells, "over-optimised" if one.get("over_optimised") else ""))
    headers = ["selected by", "role", "own score", "gold", "n*", "gold at n*", "gold from n* on", "n"]
    caption = "Best-of-n: gains over one answer taken blindly at the largest n, in sd, with 95 % intervals"
    return [Grid(caption, headers, 2, rows)] if rows else []


def _comparisons(documents: Sequence[Mapping[str, Any]]) -> list[Grid]:
    rows = [
        Row(
            [
                f"{name_cell(one.get('first'))} less {name_cell(one.get('second'))}",
                _AT.get(str(one.get("at")), name_cell(one.get("at") or "")),
                EFFECT.value(difference),
                EFFECT.interval(difference),
                numbers.p_value(one.get("p_adjusted")),
                f"{difference.n:,}",
            ]
        )
        for one in documents
        if (difference := numbers.estimate(one.get("difference_sd"))) is not None
    ]
    headers = ["gold of the answers selected by", "at", "difference, sd", "95 % interval", "p, adjusted", "n"]
    caption = "Selections against each other, paired by prompt"
    return [Grid(caption, headers, 2, rows, f"Comparisons: {len(rows):,}")] if rows else []


def _traits(documents: Sequence[Mapping[str, Any]]) -> list[Grid]:
    rows = []
    for one in documents:
        change, excess = (numbers.estimate(one.get(key)) for key in ("change_sd", "excess_over_gold_sd"))
        cells = [
            numbers.words(name_cell(one.get("trait"))),
            name_cell(one.get("selector")),
            estimate_cell(change, EFFECT),
            estimate_cell(excess, EFFECT),
            numbers.p_value(one.get("p_adjusted")),
            f"{change.n:,}" if change else "",
        ]
        rows.append(Row(cells, "flagged" if one.get("flagged") else ""))
    headers = ["trait", "selected by", "change, sd", "beyond gold, sd", "p, adjusted", "n"]
    caption = "What the selected answers are like, against answers taken blindly; flagged where gold does not select for it as much"
    return folded(caption, headers, 2, rows, "Traits that are not flagged")


def _probes(document: Mapping[str, Any]) -> list[Grid]:
    known = [(one, numbers.estimate(one.get("change_sd"))) for one in document.get("probes") or ()]
    found = sorted(((one, change) for one, change in known if change), key=lambda item: -abs(item[1].value))
    caption = (
        f"Probes put to the answers that {name_cell(document.get('selector'))} selects, against answers taken blindly"
    )
    return folded(caption, CHANGE_HEADERS, 3, [change_row(*one) for one in found], "Probes that are not newly flagged")
