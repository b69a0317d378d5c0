"""The findings of `rewardsmith lint` as tables for the terminal, and the words that the page shares with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rewardsmith.pages.text import percent, visible
from rewardsmith.stats import Estimate

SEVERITIES = ("error", "warning", "info")
_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_STATISTICS = {
    "longer_wins": "the longer answer wins",
    "markdown_wins": "the answer with more Markdown wins",
    "list_wins": "the answer with more of a list wins",
    "apology_wins": "the answer that apologises wins",
    "refusal_wins": "the answer that refuses wins",
    "first_shown_wins": "the answer shown first wins",
    "annotator_agreement": "agreement of annotators (Krippendorff's alpha)",
}
TRUNCATION_COLUMNS = {
    "longer": "longer than the limit",
    "answer_cut": "an answer is cut",
    "answer_tokens_lost": "answer tokens lost",
    "identical": "both sides become identical",
    "difference_beyond": "the difference lies beyond the limit",
}
_NUMBERS = ("value", "95 % interval", "n")
_EXAMPLE_IDS = 3
_WORST_SLICES = 5


@dataclass(frozen=True, slots=True)
class Slice:
    """One shortcut within the rows that share a value of a column."""

    column: str
    value: str
    statistic: str
    estimate: Estimate

    @property
    def distance(self) -> float:
        """How far the whole interval lies from one half; 0 if it holds one half."""
        return max(self.estimate.low - 0.5, 0.5 - self.estimate.high, 0.0)


def counted(entry: Mapping[str, Any]) -> str:
    """A count with its share."""
    return f"{entry['count']:,} ({percent(entry['share'])})"


def statistic_name(key: str) -> str:
    """A statistic's name for people."""
    return _STATISTICS.get(key, key.replace("_", " "))


def is_shortcut(key: str) -> bool:
    """Whether the statistic is the share of pairs that a rule wins, of which one half means nothing."""
    return key.endswith("_wins")


def value_of(key: str, estimate: Estimate) -> str:
    """The value as it is shown: a shortcut in percent, anything else as a plain number."""
    return percent(estimate.value) if is_shortcut(key) else f"{estimate.value:.3f}"


def interval_of(key: str, estimate: Estimate) -> str:
    """The interval as it is shown, in the unit of the value."""
    if is_shortcut(key):
        return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return f"[{estimate.low:.3f}, {estimate.high:.3f}]"


def estimates(documents: Mapping[str, Any] | None) -> dict[str, Estimate]:
    """The estimates among named documents; a statistic that could not be known is null there, and left out."""
    return {
        key: Estimate(*(document[field] for field in ("value", "low", "high", "n", "method")))
        for key, document in (documents or {}).items()
        if document
    }


def sorted_findings(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The findings, the gravest first and of these the most frequent."""
    return sorted(
        document.get("findings") or (),
        key=lambda finding: (SEVERITIES.index(finding["severity"]), -finding["count"]),
    )


def slices(document: Mapping[str, Any]) -> list[Slice]:
    """Every shortcut of every slice, those furthest from one half first."""
    found = [
        Slice(column, value, key, estimate)
        for column, values in (document.get("by") or {}).items()
        for value, documents in values.items()
        for key, estimate in estimates(documents).items()
        if is_shortcut(key)
    ]
    return sorted(found, key=lambda part: -part.distance)


def verdict(document: Mapping[str, Any]) -> str:
    """What was found, in one line: `2 errors, 3 warnings in 12,304 rows`."""
    counts = document.get("severity") or {}
    words = [_plural(counts[name], name) for name in ("error", "warning") if counts.get(name)]
    if counts and not words:
        words = ["no errors, no warnings"]
    if counts.get("info"):
        words.append(f"{counts['info']:,} for information")
    rows = [] if document.get("num_rows") is None else [f"in {_plural(document['num_rows'], 'row')}"]
    return " ".join([", ".join(words) or "linted", *rows])


def headlines(document: Mapping[str, Any]) -> list[str]:
    """What to know first: the gravest error, and the shortcut that is furthest from one half, if any is off it."""
    lines = []
    for finding in sorted_findings(document)[:1]:
        if finding["severity"] == "error":
            lines.append(str(finding.get("message") or f"{finding['rule']}: {finding['count']:,}"))
    off = [
        Slice("", "", key, estimate)
        for key, estimate in estimates(document.get("statistics")).items()
        if is_shortcut(key)
    ]
    if off:
        worst = max(off, key=lambda part: part.distance)
        shown = f"{statistic_name(worst.statistic)} {value_of(worst.statistic, worst.estimate)} of pairs {interval_of(worst.statistic, worst.estimate)} (n={worst.estimate.n:,})"
        lines.append(shown if worst.distance else f"no shortcut is off 50 %; the nearest to it: {shown}")
    return [line[:1].upper() + line[1:] for line in lines]


def noise_line(document: Mapping[str, Any]) -> str | None:
    """How many labels are probably wrong, and how that is known."""
    suspects = document.get("suspects")
    if not suspects:
        return None
    known = estimates({key: suspects.get(key) for key in ("noise_rate", "accuracy")})
    parts = []
    if "noise_rate" in known:
        rate = known["noise_rate"]
        parts.append(
            f"labels that are probably wrong: {percent(rate.value)} [{100 * rate.low:.1f}, {100 * rate.high:.1f}] (n={rate.n:,})"
        )
        if suspects.get("identified") is False:
            parts.append(
                "not identified: pairs that the judge gets wrong and labels that are wrong cannot be told apart"
            )
    if suspects.get("count") is not None:
        parts.append(f"{suspects['count']:,} suspect pairs listed")
    if suspects.get("by"):
        judge = f"judged by {suspects['by']}"
        if "accuracy" in known:
            accuracy = known["accuracy"]
            judge += f", accuracy {percent(accuracy.value)} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}] (n={accuracy.n:,})"
        parts.append(judge)
    return "; ".join(parts)


def lint_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """Everything that the terminal shows of a lint; a part of the document that is missing or empty makes no table."""
    parts: list[RenderableType | None] = [
        Text(visible(verdict(document)), style="bold"),
        *(Text(visible(line)) for line in headlines(document)),
        _findings_table(document),
        _passed_line(document),
        _statistics_table(document),
        _truncation_table(document),
        _slices_table(document),
        _line(noise_line(document)),
        *(Text(visible(f"not checked: {rule} ({reason})")) for rule, reason in (document.get("not_run") or {}).items()),
    ]
    return [part for part in parts if part is not None]


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _line(text: str | None) -> Text | None:
    return None if text is None else Text(visible(text))


def _passed_line(document: Mapping[str, Any]) -> Text | None:
    passed = document.get("passed")
    fired = "no rule fired; " if "findings" in document and not document["findings"] else ""
    if not passed:
        return Text("no rule fired") if fired else None
    return Text(visible(f"{fired}passed: {', '.join(passed)}"))


def _table(title: str, columns: Sequence[str], *, numbers: Sequence[str]) -> Table:
    """A table whose cells are plain text: ids and names come from the data and may look like markup."""
    table = Table(title=Text(title, style="italic"), title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    return table


def _findings_table(document: Mapping[str, Any]) -> Table | None:
    """A line a finding, and under it what is known and what to do: full rule names fit on eighty columns."""
    findings = sorted_findings(document)
    if not findings:
        return None
    table = Table(
        title=Text("findings", style="italic"), title_justify="left", box=None, pad_edge=False, show_header=False
    )
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    for finding in findings:
        examples = finding.get("examples") or ()
        ids = ", ".join(str(example) for example in examples[:_EXAMPLE_IDS])
        ids += ", ..." if len(examples) > _EXAMPLE_IDS else ""
        said = [part for part in (ids, finding.get("message"), finding.get("fix")) if part]
        if finding["severity"] == "error":
            said += _first_note(document, finding["rule"])
        count = (
            counted(finding) if finding["count"] and finding.get("share") is not None else str(finding["count"] or "")
        )
        table.add_row(
            Text(finding["severity"], style=_STYLES[finding["severity"]]),
            Text(finding["rule"]),
            Text(count),
            Text(visible("\n".join(said))),
        )
    return table


def _first_note(document: Mapping[str, Any], rule: str) -> list[str]:
    """What an error's first example shows, such as the place where two prompts part."""
    shown = [one for one in (document.get("examples") or {}).get(rule, ()) if one.get("note")]
    return [f"{one['id']}: {one['note']}" for one in shown[:1]]


def _statistics_table(document: Mapping[str, Any]) -> Table | None:
    known = estimates(document.get("statistics"))
    if not known:
        return None
    table = _table("shortcuts (50 % means nothing)", ("", "value", "95 % interval", "n"), numbers=_NUMBERS)
    # The shortcuts stand together: what follows them has another unit.
    for key in sorted(known, key=lambda key: not is_shortcut(key)):
        table.add_row(Text(statistic_name(key)), *_cells(key, known[key]))
    return table


def _cells(key: str, estimate: Estimate) -> tuple[str, Text, str]:
    return value_of(key, estimate), Text(interval_of(key, estimate)), f"{estimate.n:,}"


def _slices_table(document: Mapping[str, Any]) -> Table | None:
    found = slices(document)
    worst = [part for part in found[:_WORST_SLICES] if part.distance]
    if not worst:
        return None
    title = f"slices furthest from 50 %, of {len(found):,} intervals (about one in twenty is off it by chance)"
    table = _table(title, ("slice", "", *_NUMBERS), numbers=_NUMBERS)
    for part in worst:
        name = Text(visible(f"{part.column} = {part.value}"))
        table.add_row(name, Text(statistic_name(part.statistic)), *_cells(part.statistic, part.estimate))
    return table


def truncation_cell(key: str, entry: Any) -> str:
    """A cell of the truncation table: a count with its share, or a share."""
    if entry is None:
        return "not known"
    return percent(entry) if key == "answer_tokens_lost" else counted(entry)


def _truncation_table(document: Mapping[str, Any]) -> Table | None:
    truncation = document.get("truncation")
    if not truncation or not truncation.get("limits"):
        return None
    columns = ("max_length", *TRUNCATION_COLUMNS.values())
    title = f"truncation: tokens of {truncation['tokenizer']}, policy {truncation['policy']}"
    table = _table(visible(title), columns, numbers=columns)
    for limit in truncation["limits"]:
        cells = (truncation_cell(key, limit.get(key)) for key in TRUNCATION_COLUMNS)
        table.add_row(f"{limit['max_length']:,}", *cells)
    return table
