"""A benchmark as a table for people: the published number beside the honest one. Every number that is shown stands in the document too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from rewardsmith.stats import Estimate

# Names beyond this many are shown by the report alone; the headline and the sums always are.
_MOST_ROWS = 30


def benchmark_table(document: Mapping[str, Any], title: str = "") -> Table:
    """The numbers of one benchmark: the headline first, then sums, then subsets; what is missing or left out stands below.

    Args:
        document: of a `BenchmarkResult`.
        title: above the table; the benchmark's name where none is given.
    """
    table = Table(title=escape(title or document["name"]), title_justify="left", caption=escape(_caption(document)))
    table.caption_justify = "left"
    table.add_column("")
    for column in ("by its rule", "ties half", "95 % interval", "n", "chance"):
        table.add_column(column, justify="right")
    headline = document["headline"]
    key = headline["key"]
    if key not in document["published"]:
        value = "-" if headline["value"] is None else f"{headline['value']:.3f}"
        table.add_row(escape(headline["name"]), value, "-", "-", "-", "-", style="bold")
    names = list(document["published"])
    sums = [name for name in names if name not in document["sections"] and name != key]
    order = [*([key] if key in names else []), *reversed(sums), *(n for n in names if n in document["sections"])]
    for name in order[:_MOST_ROWS]:
        shown = headline["name"] if name == key else name
        _add(table, shown, document, name, "bold" if name == key else "")
    if len(order) > _MOST_ROWS:
        table.add_row(f"... and {len(order) - _MOST_ROWS} more in the document", "", "", "", "", "")
    return table


def _add(table: Table, shown: str, document: Mapping[str, Any], name: str, style: str) -> None:
    cells = ["-", "-", "-"]
    if name in document["honest"]:
        found = Estimate(**document["honest"][name])
        cells = [f"{found.value:.3f}", escape(f"[{found.low:.3f}, {found.high:.3f}]"), f"{found.n:,}"]
    chance = document["chance"].get(name)
    blind = "-" if chance is None else f"{chance:.3f}"
    table.add_row(escape(shown), f"{document['published'][name]:.3f}", *cells, blind, style=style)


def _caption(document: Mapping[str, Any]) -> str:
    lines = [
        f"{document['num_items']:,} items, {document['num_answers']:,} answers, {document['num_prompts']:,} prompts; "
        f"items with an exact tie: {document['exact_ties']:,}",
        f"tie rule: {document['rule']}",
    ]
    if document["missing"]:
        lines.append(f"missing: {', '.join(document['missing'])}")
    for name, sizes in document["other_size"].items():
        lines.append(f"{name}: {sizes['items']:,} items, published {sizes['published']:,}")
    lines += [f"left out: {count:,} rows, {reason}" for reason, count in document["left_out"].items()]
    lines += [f"not read: {split}" for split in document["splits_not_read"]]
    if document["truncated"]:
        lines.append(f"answers of which the model read only a part: {document['truncated']:,}")
    return "\n".join([*lines, *document["notes"]])
