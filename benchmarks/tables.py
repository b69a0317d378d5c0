"""The table of docs/benchmarks.md, made from benchmarks/results/*.json, so that no figure is typed by hand.

Run: python benchmarks/tables.py            writes it into the page
     python benchmarks/tables.py --check    exit code 1 if the page is not up to date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import record
from harness.record import Row

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table: made by benchmarks/tables.py -->", "<!-- end of the table -->"


def rows_of(folder: Path) -> list[Row]:
    """The rows of all results files, in the order of the files' names; a study of losses compares log-losses, not time, and has a page of its own."""
    rows = [row for path in sorted(folder.glob("*.json")) for row in record.read(path)]
    return [row for row in rows if "difference" not in row]


def table(rows: Sequence[Row]) -> str:
    """The Markdown of some rows, with the machines and versions that they were measured on under them."""
    places: dict[str, str] = {}
    lines = [
        "| row | work of a round | precision | ours | theirs | ratio: median [lowest, highest] | target | machine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        place = places.setdefault(_place(row), str(len(places) + 1))
        cells = [
            f"`{row['benchmark']}`",
            row.get("work", ""),
            row.get("precision", ""),
            _found(row.get("ours")),
            _found(row.get("theirs")),
            _ratio(row),
            f"{row['target']:,}",
            place,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {text}" for text, number in places.items())])


def _ratio(row: Mapping[str, Any]) -> str:
    if "skipped" in row:
        return f"not measured: {row['skipped']}"
    if not row["same_work"]:
        return "none: not the same work"
    found = row["ratio"]
    return f"{found['median']:g} [{found['min']:g}, {found['max']:g}]"


def _found(document: Mapping[str, Any] | float | None) -> str:
    """The first number of a side, and whose it is."""
    if document is None:
        return ""
    if isinstance(document, int | float):
        return f"{document:,}"
    name, value = next((name, value) for name, value in document.items() if isinstance(value, int | float))
    words = name.replace("_", " ")
    number = f"{value:,}" if isinstance(value, int) else f"{value:,g}"
    tool = document.get("tool", "rewardsmith")
    return f"{number} {words}" if tool == "rewardsmith" else f"{number} {words} ({tool})"


def _place(row: Mapping[str, Any]) -> str:
    machine, versions = row["machine"], row["versions"]
    unit = f", {machine['bf16']}" if machine.get("bf16") else ""
    gpu = f", {row['gpu']}" if row.get("gpu") else ""
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{machine['cores']} cores of {machine['processor']}{unit}{gpu}, {machine['system']}; {names}"


def with_table(page: str, rows: Sequence[Row]) -> str:
    """A page with the table between its two marks.

    Raises:
        ValueError: if the page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page needs the two lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"


def main(words: Iterable[str] | None = None) -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked = parser.parse_args(None if words is None else list(words))
    page = PAGE.read_text(encoding="utf-8")
    wanted = with_table(page, rows_of(RESULTS))
    if asked.check:
        print("up to date" if page == wanted else "not up to date: python benchmarks/tables.py", file=sys.stderr)
        return int(page != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
