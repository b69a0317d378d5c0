"""Evaluations as tables for people. Every number that is shown stands in the document too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rewardsmith.stats import Estimate

_ROWS = (
    ("accuracy", "accuracy (ties one half)"),
    ("ties", "exact ties"),
    ("auc", "AUC of the margins"),
    ("pooled_auc", "AUC across prompts"),
    ("log_loss", "log-loss (ln 2 = 0.693 knows nothing)"),
    ("brier", "Brier (0.25 knows nothing)"),
    ("ece", "calibration error"),
    ("ece_null", "... of a perfectly calibrated scorer"),
    ("mean_margin", "mean margin"),
)
# A column of more values is shown when it is asked for; the document always holds it.
_FEW_VALUES = 10
_MOST_SLICES, _MOST_WRONG, _SHORT = 12, 5, 60
_BASELINES = {
    "longer": "baseline: the longer answer",
    "shorter": "baseline: the shorter answer",
    "markdown": "baseline: more Markdown",
    "longer_tokens": "baseline: more tokens",
}


def _add(table: Table, name: str, document: Mapping[str, Any], style: str = "") -> None:
    estimate = Estimate(**document)
    interval = f"[{estimate.low:.3f}, {estimate.high:.3f}]".replace("[", r"\[", 1)
    table.add_row(name, f"{estimate.value:.3f}", interval, f"{estimate.n:,}", style=style)


def evaluation_table(document: Mapping[str, Any], title: str, *, by: Collection[str] = ()) -> Table:
    """The numbers of one evaluation, baselines and slices below: columns of few values, and those named in `by`."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("")
    for column in ("value", "95 % interval", "n"):
        table.add_column(column, justify="right")
    for key, name in _ROWS:
        _add(table, name, document[key], "bold" if key == "accuracy" else "")
    table.add_section()
    for key, name in _BASELINES.items():
        if key in document["baselines"]:
            _add(table, name, document["baselines"][key])
    best = max(document["baselines"], key=lambda key: document["baselines"][key]["value"])
    _add(table, "accuracy minus the best of them, paired", document["over_baselines"][best])
    for column, values in document["by"].items():
        if column not in by and len(values) > _FEW_VALUES:
            continue
        table.add_section()
        for value, estimate in values.items():
            _add(table, escape(f"accuracy, {column} = {value}"), estimate)
    return table


def slices_table(document: Mapping[str, Any]) -> Table | None:
    """The slices on which the scorer is worse than elsewhere beyond what looking at so many explains, the worst first; None where there are none."""
    flagged = [one for one in document["slices"] if one["flagged"]]
    if not flagged:
        return None
    tested = sum(one["p_value"] is not None for one in document["slices"])
    title = f"worse than on the other pairs ({len(flagged)} of {tested} slices tested; p by Holm)"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("accuracy", "minus the rest", "95 % interval", "n", "p"):
        table.add_column(name, justify="right")
    for one in flagged[:_MOST_SLICES]:
        difference = Estimate(**one["difference"])
        interval = rf"\[{difference.low:+.3f}, {difference.high:+.3f}]"
        cells = f"{one['accuracy']['value']:.3f}", f"{difference.value:+.3f}", interval, f"{difference.n:,}"
        table.add_row(escape(f"{one['column']} = {one['value']}"), *cells, f"{one['p_adjusted']:.2g}")
    return table


def hardest_table(document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """The most confidently wrong pairs with the beginnings of their texts; None where no pair is wrong.

    Args:
        document: of an evaluation.
        rows: of its pairs, as in pairs.jsonl.
    """
    wrong = document["hardest"]["most_wrong"][:_MOST_WRONG]
    if not wrong:
        return None
    table = Table(title="the most confidently wrong pairs", title_justify="left")
    table.add_column("margin", justify="right")
    for name in ("id", "prompt", "chosen", "rejected"):
        table.add_column(name)
    for one in wrong:
        row = rows[one["row"]]
        cells = (str(one["id"]), *(_beginning(row[name]) for name in ("prompt", "chosen", "rejected")))
        table.add_row(f"{one['margin']:+.2f}", *(Text(cell) for cell in cells))
    return table


def power_line(document: Mapping[str, Any]) -> str:
    """What so many pairs can show of two models."""
    power = document["detectable_difference"]
    return (
        f"with these {power['num_pairs']:,} pairs two models are told apart, four times in five, from {100 * power['difference']:.1f} points "
        f"of accuracy on (if they disagree on {power['discordance']:.0%} of the pairs)"
    )


def _beginning(text: str | list[dict[str, str]]) -> str:
    """The first characters on one line; of a conversation those of its last message."""
    plain = text if isinstance(text, str) else text[-1]["content"]
    line = " ".join(plain.split())
    return line if len(line) <= _SHORT else line[: _SHORT - 3] + "..."


def counts_line(document: Mapping[str, Any]) -> str:
    """What was left out, cut or told apart by nothing."""
    swap = document["swap_test"]
    return (
        f"{document['num_pairs']:,} pairs of {document['num_prompts']:,} prompts; dropped {sum(document['dropped'].values())}, "
        f"labelled ties {document['labelled_ties']}, truncated {_known(document['truncated'])}, "
        f"collapsed {_known(document['collapsed'])}, with special-token strings {_known(document['special_strings'])}; swap test on {swap['rescored_pairs']} pairs scored again: {swap['accuracy']:.3f} + {swap['swapped_accuracy']:.3f} = 1"
    )


def _known(count: int | None) -> str:
    return "not known" if count is None else f"{count:,}"


def overfitting_table(parts: Mapping[str, Mapping[str, Any]]) -> Table:
    """Accuracy on training, dev and eval pairs side by side: a gap is what the model learned by heart."""
    table = Table(title="accuracy of the kept model", title_justify="left")
    for column in ("part", "value", "95 % interval", "n"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, document in parts.items():
        _add(table, name, document)
    return table
