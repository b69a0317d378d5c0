"""Rows of cells, some of them marked with a word: tables of an audit that are no bars."""

from __future__ import annotations

from dataclasses import dataclass

from rewardsmith.evaluation.pages.numbers import LONGEST_LABEL, Form
from rewardsmith.pages.text import clipped
from rewardsmith.stats import Estimate


@dataclass(frozen=True, slots=True)
class Row:
    """A row; `mark` is a word beside its name that says what is wrong with it."""

    cells: list[str]
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table.

    Args:
        caption: above it.
        headers: of the columns.
        num_words: how many of the columns, from the left, hold words; the others hold numbers.
        rows: one cell a column.
        summary: where the table is folded, what stands for it.
    """

    caption: str
    headers: list[str]
    num_words: int
    rows: list[Row]
    summary: str = ""


def folded(caption: str, headers: list[str], num_words: int, rows: list[Row], rest: str) -> list[Grid]:
    """A table of the marked rows, and one of the others that is folded; none that is empty.

    Args:
        caption: of both.
        headers: see `Grid`.
        num_words: see there.
        rows: of both.
        rest: what the others are, before their number.
    """
    marked, plain = [row for row in rows if row.mark], [row for row in rows if not row.mark]
    grids = [
        Grid(caption, headers, num_words, marked),
        Grid(caption, headers, num_words, plain, f"{rest}: {len(plain):,}"),
    ]
    return [grid for grid in grids if grid.rows]


def name_cell(value: object) -> str:
    """A name from a document."""
    return clipped(str(value), LONGEST_LABEL)


def estimate_cell(one: Estimate | None, form: Form) -> str:
    """A number with its interval, in one cell."""
    return f"{form.value(one)} {form.interval(one)}" if one else ""
