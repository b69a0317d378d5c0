"""The report as one HTML page that needs nothing else: no network, no model, no library."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rewardsmith.errors import OutputError, SettingsError
from rewardsmith.evaluation.pages import charts, examples, numbers, provenance, verdicts
from rewardsmith.evaluation.pages.audit import audits_of
from rewardsmith.evaluation.pages.bars import bar, points_scale, share_scale
from rewardsmith.evaluation.pages.charts import Chart
from rewardsmith.evaluation.pages.folders import PAIRS, REPORT, VERB, Report, evaluation_of, read_report
from rewardsmith.evaluation.pages.numbers import PLAIN, POINTS, SHARE
from rewardsmith.pages import environment
from rewardsmith.pages.drawing import Bar, Bars, bar_scale, edge_label, round_ticks
from rewardsmith.pages.text import visible
from rewardsmith.stats import Estimate
from rewardsmith.storage import atomic_folder, refuse_inside, write_text

PAGE = "report.html"
_FOLDER = "evaluation/pages"
# Numbers of an evaluation: key, name, what a scorer that knows nothing gets, whether it is shown in percent.
_METRICS = (
    ("accuracy", "accuracy (ties one half)", "50 %", True),
    ("ties", "exact ties", "", True),
    ("auc", "AUC of the margins", "0.5", False),
    ("pooled_auc", "AUC across prompts", "0.5", False),
    ("log_loss", "log-loss", "0.693", False),
    ("brier", "Brier score", "0.25", False),
    ("ece", "calibration error", "", True),
    ("ece_null", "... of a perfectly calibrated scorer", "", True),
    ("mean_margin", "mean margin", "0", False),
)
_CALIBRATED = ("log_loss", "brier", "ece", "ece_null")
_COUNTS = {
    "num_pairs": "pairs judged",
    "num_prompts": "prompts",
    "labelled_ties": "labelled as ties (outside accuracy)",
    "truncated": "pairs of which a side was cut",
    "collapsed": "pairs that read the same on both sides",
    "special_strings": "pairs with special-token strings in their texts (read as plain text)",
}
# Rows of slices that are shown before "show all"; rows of numbers of an audit's part that are not folded.
_FEW_SLICES, _FEW_NUMBERS = 12, 16


@dataclass(frozen=True, slots=True)
class SliceRow:
    """One slice as the table shows it; positions in percent of the width."""

    column: str
    value: str
    bar: Bar
    difference: str
    difference_interval: str
    p_value: str
    flagged: bool


@dataclass(frozen=True, slots=True)
class Slices:
    """The slices of one model, the worst first."""

    rows: list[SliceRow]
    ticks: list[tuple[float, str]]
    overall: float | None
    num_flagged: int
    is_tested: bool


@dataclass(frozen=True, slots=True)
class Written:
    """Where a report went.

    Args:
        page: the HTML file.
        num_models: on it.
        num_pairs: to browse.
        num_bytes: of the file.
    """

    page: Path
    num_models: int
    num_pairs: int
    num_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The document of `report --json`; no path, only names."""
        return {
            "page": self.page.name,
            "folder": self.page.resolve().parent.name,
            "num_models": self.num_models,
            "num_pairs": self.num_pairs,
            "num_bytes": self.num_bytes,
        }


def write_report(
    runs: Sequence[Path | str], *, out: Path | None = None, overwrite: bool = False, seed: int = 0
) -> Written:
    """Run `rewardsmith report`: draw a page from folders of results.

    Args:
        runs: folders of `train`, `evaluate --out` or `audit --out`; one of an earlier report is drawn again.
        out: a folder for the page with its own report.json and pairs.jsonl; needed for several runs, of a single one the page is written into it.
        overwrite: replace an earlier report in `out`. A page that stands beside its numbers is drawn again without asking.
        seed: of the bootstraps and sign flips of comparisons.

    Raises:
        SettingsError: for several runs without `out`.
        DataError: if a folder is none of ours.
        OutputError: if `out` holds something else.
    """
    folders = [Path(run) for run in runs]
    if not folders or (len(folders) > 1 and out is None):
        raise SettingsError(
            "one run, or --out for several", f"{len(folders)} runs without --out", "Name a folder with --out."
        )
    if out is not None:
        _check_folder(out, folders, overwrite)
    elif (folders[0] / PAGE).exists() and not environment.is_page(folders[0] / PAGE, VERB):
        raise OutputError(
            f"no other {PAGE} in the run folder",
            f"{folders[0] / PAGE}, which no report made",
            "Name another with --out.",
        )
    report = read_report(folders, seed=seed)
    page = render_report(report)
    if out is None:
        place = folders[0] / PAGE
        environment.write_page(place, page)
    else:
        place = out / PAGE
        with atomic_folder(out) as folder:
            # Everything escaped: a lone surrogate of the data, which UTF-8 cannot hold, stays what it is.
            write_text(folder / REPORT, json.dumps(report.document, indent=2, allow_nan=False) + "\n")
            write_text(folder / PAIRS, "".join(json.dumps(row) + "\n" for row in report.rows))
            environment.write_page(folder / PAGE, page)
    return Written(place, len(report.models), len(report.rows), place.stat().st_size)


def render_report(report: Report) -> str:
    """The page; a part of the documents that is missing makes no section. The same report gives the same page."""
    packed = examples.pack(report) if report.rows else None
    style = environment.resource("pages", "base.css") + environment.resource(_FOLDER, "report.css")
    script = environment.resource(_FOLDER, "report.js")
    models = [_model(model) for model in report.models]
    templates = environment.environment(_FOLDER)
    # A number and its unit stay on one line.
    templates.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%")
    page = templates.get_template("report.html.j2").render(
        title=_title(report),
        several=len(models) > 1,
        models=models,
        judged=[model for model in models if model["evaluation"]],
        verdicts=verdicts.verdicts(report),
        words=verdicts.WORDS,
        compared=verdicts.comparisons(report),
        comparisons=[_comparison(one) for one in report.document["comparisons"] if one["num_pairs"]],
        headline_bars=_headline_bars(report),
        metrics=_metrics(report),
        benchmarks=[_benchmark(model) for model in models if model["evaluation"].get("benchmark")],
        counts=_counts(report),
        packed=packed,
        pairs=report.document["pairs"],
        provenance=provenance.provenance(report),
        sections=_sections(report, models, packed),
        style=Markup(style),
        script=Markup(script),
        packed_data=Markup(packed.data) if packed else "",
        policy=_policy(style, script),
        few_slices=_FEW_SLICES,
        few_numbers=_FEW_NUMBERS,
        plot={
            "width": charts.WIDTH,
            "height": charts.HEIGHT,
            "left": charts.LEFT,
            "right": charts.RIGHT,
            "top": charts.TOP,
            "bottom": charts.BOTTOM,
        },
    )
    return visible(page)


def _check_folder(out: Path, folders: Sequence[Path], overwrite: bool) -> None:
    refuse_inside(out, *map(str, folders))
    if not out.exists():
        return
    try:
        ours = json.loads((out / REPORT).read_text(encoding="utf-8")).get("verb") == VERB
    except (OSError, ValueError, AttributeError):
        ours = False
    if not (overwrite and ours):
        raise OutputError(
            "a new folder for --out, or with --overwrite one of an earlier report",
            f"{out}, which exists",
            "Choose another --out.",
        )


def _policy(style: str, script: str) -> str:
    """Only this very style and this very script; nothing is loaded, sent or framed."""

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"

    return f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; img-src data:; base-uri 'none'; form-action 'none'"


def _title(report: Report) -> str:
    return ", ".join(model["name"] for model in report.models)


def _sections(report: Report, models: Sequence[Mapping[str, Any]], packed: examples.Packed | None) -> dict[str, str]:
    """The sections that have something to show, in their order, with their titles."""

    def some(part: str) -> bool:
        return any(model[part] for model in models)

    shown = {
        "numbers": ("Numbers", any(estimate_of(model, "accuracy") for model in models)),
        "comparison": ("Side by side", bool(report.document["comparisons"])),
        "benchmarks": ("Benchmarks", any(model["evaluation"].get("benchmark") for model in models)),
        "training": ("Training", some("training")),
        "confidence": ("Confidence", some("reliability") or some("selective") or some("margins")),
        "learning": ("More data", some("learning")),
        "slices": ("Slices", some("slices")),
        "audit": ("Audit", some("audits")),
        "counts": ("Left out and cut", some("is_counted")),
        "examples": ("Examples", packed is not None),
        "provenance": ("Provenance", True),
    }
    return {key: title for key, (title, is_there) in shown.items() if is_there}


def estimate_of(model: Mapping[str, Any], key: str) -> Estimate | None:
    """One of the estimates of a model's evaluation."""
    return numbers.estimate(model["evaluation"].get(key))


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    """What the sections show of one model."""
    report, evaluation = model["report"], evaluation_of(model["report"])
    name = f"model-{hashlib.sha256(model['name'].encode('utf-8', 'replace')).hexdigest()[:8]}"
    found: list[Chart | None] = [charts.margin_chart(evaluation, name)]
    return {
        "name": model["name"],
        "id": name,
        "report": report,
        "evaluation": evaluation,
        "data": (report.get("data") or {}).get("source") if report["verb"] == "evaluate" else None,
        "audits": audits_of(model, name),
        "over": _over_bars(evaluation),
        "parts": _part_bars(report),
        "training": charts.training_charts(report, name) or report.get("overfitting"),
        "training_charts": charts.training_charts(report, name),
        "training_facts": _training_facts(report),
        "margins": [chart for chart in found if chart],
        "reliability": charts.reliability_charts(evaluation, name),
        "selective": [chart for chart in (charts.selective_chart(evaluation, name),) if chart],
        "learning": charts.learning_charts(evaluation, name),
        "reading": (evaluation.get("learning_curve") or {}).get("reading"),
        "slices": _slices(evaluation),
        "is_counted": "num_pairs" in evaluation,
        "confidence_words": _confidence_words(evaluation),
    }


def _headline_bars(report: Report) -> Bars | None:
    """Accuracies and baselines on one scale; baselines once where all models were judged on the same pairs."""
    rows: list[tuple[str, Estimate, str]] = []
    blind: dict[tuple[str, Estimate], list[str]] = {}
    for model in report.models:
        evaluation = evaluation_of(model["report"])
        accuracy = numbers.estimate(evaluation.get("accuracy"))
        if accuracy is not None:
            rows.append((model["name"], accuracy, "model"))
        for key, one in numbers.estimates(evaluation.get("baselines")).items():
            blind.setdefault((key, one), []).append(model["name"])
    if not rows:
        return None
    num_judged = len(rows)
    for (key, one), names in sorted(blind.items(), key=lambda item: -item[0][1].value):
        of = "" if len(names) == num_judged else f", pairs of {', '.join(names)}"
        rows.append((f"choosing {numbers.baseline_name(key)}{of}", one, "blind"))
    scale, ticks = share_scale([one for _, one, _ in rows], reference=0.5)
    drawn = [bar(name, one, scale, SHARE, reference=0.5, kind=kind) for name, one, kind in rows]
    return Bars(drawn, ticks, scale(0.5))


def _over_bars(evaluation: Mapping[str, Any]) -> Bars | None:
    """Accuracy minus each baseline on the same pairs, on a scale around 0."""
    found = numbers.estimates(evaluation.get("over_baselines"))
    if not found:
        return None
    scale, ticks = points_scale(list(found.values()))
    rows = [
        bar(f"choosing {numbers.baseline_name(key)}", one, scale, POINTS, reference=0.0)
        for key, one in sorted(found.items(), key=lambda item: item[1].value)
    ]
    return Bars(rows, ticks, scale(0))


def _part_bars(report: Mapping[str, Any]) -> Bars | None:
    """Accuracy on training, dev and eval pairs."""
    words = {
        "train": "pairs it was trained on",
        "dev": "dev pairs, which chose the checkpoint",
        "eval": "held-out pairs",
    }
    found = numbers.estimates(report.get("overfitting"))
    if not found:
        return None
    scale, ticks = share_scale(list(found.values()), reference=0.5)
    rows = [bar(words.get(name, name), one, scale, SHARE, reference=0.5) for name, one in found.items()]
    return Bars(rows, ticks, scale(0.5))


def _training_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = report.get("training") or {}
    found = []
    if facts.get("steps") is not None:
        early = ", stopped early" if facts.get("stopped_early") else ""
        found.append(("steps", f"{facts['steps']:,}{early}"))
    if facts.get("kept_step") is not None:
        found.append(("kept", f"the weights of step {facts['kept_step']:,}"))
    if facts.get("train_seconds"):
        found.append(("time", f"{facts['train_seconds']:,.0f} s"))
    if facts.get("pairs_per_second"):
        found.append(("speed", f"{facts['pairs_per_second']:,.1f} pairs a second"))
    if facts.get("dev_precision"):
        found.append(("precision of the dev part", str(facts["dev_precision"])))
    dropped = (report.get("dropped") or {}).get("counts") or {}
    for reason, count in dropped.items():
        found.append((f"dropped: {str(reason).replace('_', ' ')}", f"{count:,} pairs"))
    return found


def _evaluations(report: Report) -> list[Mapping[str, Any]]:
    """Of the models that were judged on pairs."""
    return [found for model in report.models if (found := evaluation_of(model["report"]))]


def _metrics(report: Report) -> list[dict[str, Any]]:
    """Rows of the table of numbers, a cell a model."""
    evaluations = _evaluations(report)
    rows = []
    for key, name, nothing, share in _METRICS:
        rows.append((name, nothing, share, [numbers.estimate(one.get(key)) for one in evaluations]))
    for key, name, nothing, share in _METRICS:
        if key in _CALIBRATED:
            found = [numbers.estimate((one.get("calibrated") or {}).get(key)) for one in evaluations]
            rows.append((f"calibrated: {name}", nothing, share, found))
    return [
        {"name": name, "nothing": nothing, "cells": [_cell(one, share) for one in found]}
        for name, nothing, share, found in rows
        if any(found)
    ]


def _cell(one: Estimate | None, share: bool) -> dict[str, Any] | None:
    if one is None:
        return None
    form = SHARE if share else PLAIN
    return {"value": form.value(one), "interval": form.interval(one), "n": one.n, "method": one.method}


def _confidence_words(evaluation: Mapping[str, Any]) -> list[str]:
    """The calibration error against that of a perfectly calibrated scorer, in words."""
    found = []
    for words, part in (("As it is", evaluation), ("At the stored temperature", evaluation.get("calibrated") or {})):
        error, null = numbers.estimate(part.get("ece")), numbers.estimate(part.get("ece_null"))
        if error is None or null is None:
            continue
        text = f"{words}, the calibration error is {numbers.share(error)}; a perfectly calibrated scorer of the same confidences would show {numbers.share(null)}"
        if part.get("ece_excess") is not None:
            text += f": {100 * part['ece_excess']:+.1f} points apart (p {numbers.equal(part.get('ece_p_value'))})"
        found.append(f"{text}.")
    here = numbers.estimate(evaluation.get("temperature_here"))
    if here is not None:
        found.append(
            f"The temperature that fits these very pairs is {here.value:.2f} [{here.low:.2f}, {here.high:.2f}]: a diagnosis, not what probabilities are made with."
        )
    return found


def _slices(evaluation: Mapping[str, Any]) -> Slices | None:
    """All slices, the worst first; of documents without tests the accuracies by column, the lowest first."""
    documents = evaluation.get("slices")
    is_tested = bool(documents)
    if not documents:
        documents = [
            {"column": column, "value": value, "accuracy": accuracy}
            for column, values in (evaluation.get("by") or {}).items()
            for value, accuracy in values.items()
        ]
        documents.sort(key=lambda one: one["accuracy"]["value"])
    known = [(one, numbers.estimate(one.get("accuracy"))) for one in documents]
    found = [(one, accuracy) for one, accuracy in known if accuracy is not None]
    if not found:
        return None
    overall = numbers.estimate(evaluation.get("accuracy"))
    scale, ticks = bar_scale(0.0, 1.0), [0.0, 0.5, 1.0]
    rows = []
    for one, accuracy in found:
        difference = numbers.estimate(one.get("difference"))
        rows.append(
            SliceRow(
                column=str(one["column"]),
                value=str(one["value"]),
                bar=bar("", accuracy, scale, SHARE, reference=overall.value if overall else None),
                difference=f"{100 * difference.value:+.1f}" if difference else "",
                difference_interval=numbers.points_interval(difference) if difference else "",
                p_value=numbers.p_value(one.get("p_adjusted")) if is_tested else "",
                flagged=bool(one.get("flagged")),
            )
        )
    return Slices(
        rows,
        [(scale(tick), f"{100 * tick:.0f} %") for tick in ticks],
        scale(overall.value) if overall else None,
        sum(row.flagged for row in rows),
        is_tested,
    )


def _counts(report: Report) -> list[dict[str, Any]]:
    """Rows of the table of counts, a cell a model."""
    evaluations = _evaluations(report)
    rows = []
    for key, name in _COUNTS.items():
        if any(key in one for one in evaluations):
            rows.append({"name": name, "cells": [_count(one, key) for one in evaluations]})
    reasons = sorted({reason for one in evaluations for reason in one.get("dropped") or {}})
    for reason in reasons:
        cells = [f"{(one.get('dropped') or {}).get(reason, 0):,}" for one in evaluations]
        rows.append({"name": f"dropped: {reason.replace('_', ' ')}", "cells": cells})
    return rows


def _count(evaluation: Mapping[str, Any], key: str) -> str:
    if key not in evaluation:
        return ""
    return "not known" if evaluation[key] is None else f"{evaluation[key]:,}"


def _comparison(one: Mapping[str, Any]) -> dict[str, Any]:
    """One comparison as the page shows it."""
    difference = numbers.estimate(one["difference"])
    losses = numbers.estimate(one.get("log_loss_difference"))
    assert difference is not None
    slices = [part for part in one.get("slices") or () if part.get("flagged")]
    discordant = one.get("discordant") or {}
    scale, ticks = points_scale([difference])
    name = f"{one['model_a']} minus {one['model_b']}"
    return {
        "a": one["model_a"],
        "b": one["model_b"],
        "num_pairs": one["num_pairs"],
        "num_prompts": one["num_prompts"],
        "bars": Bars([bar(name, difference, scale, POINTS, reference=0.0, kind="model")], ticks, scale(0)),
        "p_value": numbers.equal(one["p_value"]),
        "test": one["test"],
        "only_a": discordant.get("only_a"),
        "only_b": discordant.get("only_b"),
        "log_loss": f"{losses.value:+.4f} [{losses.low:+.4f}, {losses.high:+.4f}]" if losses else None,
        "slices": [
            {
                "name": f"{part['column']} = {part['value']}",
                "difference": numbers.points(part_difference),
                "n": part_difference.n,
                "p_value": numbers.p_value(part.get("p_adjusted")),
            }
            for part in slices
            if (part_difference := numbers.estimate(part["difference"])) is not None
        ],
        "num_slices": len(one.get("slices") or ()),
    }


def _benchmark(model: Mapping[str, Any]) -> dict[str, Any]:
    """A benchmark as a table: its headline first, by its authors' rule, and with ties as one half and intervals; then what is missing."""
    benchmark = model["evaluation"]["benchmark"]
    headline = benchmark.get("headline") or {}
    published, honest = benchmark.get("published") or {}, numbers.estimates(benchmark.get("honest"))
    chance = benchmark.get("chance") or {}
    key = headline.get("key")
    names = sorted({**published, **honest}, key=lambda name: name != key)
    bounds = [0.0, 1.0] + [bound for one in honest.values() for bound in (one.low, one.high)]
    scale = bar_scale(min(bounds), max(bounds))
    return {
        "model": model["name"],
        "name": benchmark.get("name", "benchmark"),
        "rule": benchmark.get("rule"),
        "definition": benchmark.get("definition"),
        "source": benchmark.get("source"),
        "counts": "; ".join(
            f"{benchmark[f'num_{what}']:,} {what}"
            for what in ("items", "answers", "prompts")
            if benchmark.get(f"num_{what}") is not None
        ),
        "headline": f"{headline.get('name', 'score')}: {_number(headline['value'])}"
        if headline.get("value") is not None
        else None,
        "ticks": [(scale(tick), edge_label(tick)) for tick in round_ticks(scale.low, scale.high, most=3)],
        "rows": [
            {
                "name": name,
                "is_headline": name == key,
                "published": _number(published.get(name)),
                "bar": bar(name, honest[name], scale, PLAIN, reference=chance.get(name)) if name in honest else None,
                "chance": _number(chance.get(name)),
                "chance_at": scale(chance[name]) if isinstance(chance.get(name), int | float) else None,
            }
            for name in names
        ],
        "notes": _benchmark_notes(benchmark),
    }


def _benchmark_notes(benchmark: Mapping[str, Any]) -> list[str]:
    """What of the benchmark is not there, was not read, or was cut."""
    notes = [str(note) for note in benchmark.get("notes") or ()]
    if benchmark.get("missing"):
        notes.append(f"missing: {', '.join(benchmark['missing'])}")
    notes += [f"{name} is withheld: {reason}" for name, reason in (benchmark.get("withheld") or {}).items()]
    for name, sizes in (benchmark.get("other_size") or {}).items():
        notes.append(f"{name}: {sizes['items']:,} items, published {sizes['published']:,}")
    notes += [f"left out: {count:,} rows, {reason}" for reason, count in (benchmark.get("left_out") or {}).items()]
    notes += [f"not read: {split}" for split in benchmark.get("splits_not_read") or ()]
    if benchmark.get("exact_ties"):
        notes.append(f"items with an exact tie: {benchmark['exact_ties']:,}")
    if benchmark.get("truncated"):
        notes.append(f"answers of which the model read only a part: {benchmark['truncated']:,}")
    return notes


def _number(value: Any) -> str:
    """A number of a benchmark, which may be a share, a correlation or a count."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
