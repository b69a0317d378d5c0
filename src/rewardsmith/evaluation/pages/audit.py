"""An audit's document -> what the section "Audit" shows: verdict, limits, probes, the other parts, what was not covered, what changed.

Only the JSON is read, so that a page needs nothing of what made it; a key that is missing makes no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewardsmith.evaluation.pages import numbers
from rewardsmith.evaluation.pages.grids import Grid, Row, folded, name_cell
from rewardsmith.evaluation.pages.numbers import LONGEST_TEXT, mapping, scalar, words
from rewardsmith.evaluation.pages.optimisation import CHANGE_HEADERS, change_row
from rewardsmith.evaluation.pages.parts import Part, parts
from rewardsmith.evaluation.pages.probes import Probes, probes_table
from rewardsmith.pages.text import clipped


@dataclass(frozen=True, slots=True)
class Changes:
    """Two audits of one sample beside each other."""

    text: str
    grids: list[Grid]


@dataclass(frozen=True, slots=True)
class Audit:
    """One audit of one model."""

    id: str
    name: str
    text: str
    facts: list[tuple[str, str]]
    limits: list[Grid]
    probes: Probes | None
    parts: list[Part]
    not_covered: list[str]
    changes: Changes | None


def audits_of(model: Mapping[str, Any], id: str) -> list[Audit]:
    """The audits of a model of the page.

    Args:
        model: as `folders.Report` holds it.
        id: that the anchors of its parts begin with.
    """
    return [
        _audit(audit["report"], str(audit["name"]), f"{id}-audit-{number}")
        for number, audit in enumerate(model.get("audits") or (), start=1)
    ]


def _audit(document: Mapping[str, Any], name: str, id: str) -> Audit:
    verdict = mapping(document.get("verdict"))
    return Audit(
        id=id,
        name=name_cell(name),
        text=clipped(str(verdict.get("text") or ""), LONGEST_TEXT),
        facts=_facts(document),
        limits=_limits(verdict.get("limits") or ()),
        probes=probes_table(document.get("probes") or (), f"{id}-probes", "Effect of each edit on the score"),
        parts=parts(document, id),
        not_covered=[clipped(str(line), LONGEST_TEXT) for line in document.get("not_covered") or ()],
        changes=_changes(mapping(document.get("changes"))),
    )


def _facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was looked at."""
    coverage = mapping(document.get("coverage"))
    accuracy = numbers.estimate(document.get("accuracy"))
    spread = document.get("score_sd")
    pairs = (numbers.count(document.get("num_pairs")), numbers.count(coverage.get("num_rows")))
    found = [
        ("data", name_cell(mapping(document.get("data")).get("source") or "")),
        ("pairs", " of ".join(number for number in pairs if number)),
        ("prompts", numbers.count(document.get("num_prompts"))),
        ("conversations of several turns", numbers.count(coverage.get("conversations"))),
        ("texts scored", numbers.count(coverage.get("num_texts"))),
        ("accuracy on these pairs", numbers.share(accuracy) if accuracy else ""),
        ("1 sd of the score within a prompt", f"{spread:.4g}" if isinstance(spread, int | float) else ""),
        ("scripts", _tally(coverage.get("scripts"))),
        ("not eligible", _tally(coverage.get("left_out"))),
    ]
    return [(name, value) for name, value in found if value]


def _tally(counts: Any) -> str:
    return clipped(", ".join(f"{words(name)} {scalar(count)}" for name, count in mapping(counts).items()), LONGEST_TEXT)


def _limits(documents: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """What is over its limit, and what is within it."""
    rows = []
    for one in documents:
        effect, most = one.get("effect_sd"), one.get("limit_sd")
        cells = [
            name_cell(one.get("probe")),
            name_cell(one.get("limit")),
            f"{most:g}" if isinstance(most, int | float) else "",
            f"{effect:+.2f}" if isinstance(effect, int | float) else "not measured",
        ]
        rows.append(Row(cells, "" if one.get("ok") else "over its limit"))
    headers = ["probe", "limit on", "at most, sd", "found, sd"]
    return folded("Limits that were set", headers, 2, rows, "Probes within their limits")


def _changes(document: Mapping[str, Any]) -> Changes | None:
    """Effects beside those of an earlier audit, the largest change first."""
    known = [(one, numbers.estimate(one.get("change_sd"))) for one in document.get("probes") or ()]
    found = sorted(((one, change) for one, change in known if change), key=lambda item: -abs(item[1].value))
    text = clipped(str(document.get("text") or ""), LONGEST_TEXT)
    caption = "Effects in sd, each audit in its own; changes are paired. Beyond chance: with so many looked at (Holm)"
    grids = [Grid(caption, CHANGE_HEADERS, 3, [change_row(*one) for one in found])] if found else []
    return Changes(text, grids) if text or grids else None
