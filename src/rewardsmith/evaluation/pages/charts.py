"""Stored numbers -> shapes of an SVG, with the table of the same numbers that stands below it. Every estimate is drawn with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewardsmith.evaluation.pages import numbers
from rewardsmith.pages.drawing import Scale, bin_names, edge_label, round_ticks
from rewardsmith.pages.text import clipped
from rewardsmith.stats import Estimate

# The plot area, in the units of the SVG, and the room around it for axes and their names.
WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 50, 22, 24, 42
_KNOWS_NOTHING = math.log(2)


@dataclass(frozen=True, slots=True)
class Shape:
    """One SVG element; attributes are numbers, classes and paths of our own making."""

    tag: str
    attributes: dict[str, str | float]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """The numbers of a chart."""

    headers: list[str]
    rows: list[list[str]]


@dataclass
class Chart:
    """A figure. `key` names its marks: (class of the mark, words)."""

    name: str
    title: str
    description: str
    x: Scale
    y: Scale
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    table: Table
    shapes: list[Shape] = field(default_factory=list)
    key: list[tuple[str, str]] = field(default_factory=list)

    def line(self, points: Iterable[tuple[float, float]], name: str) -> None:
        """A line through points."""
        path = " ".join(f"{'L' if i else 'M'}{self.x(x)} {self.y(y)}" for i, (x, y) in enumerate(points))
        if path:
            self.shapes.append(Shape("path", {"class": f"line {name}", "d": path}))

    def band(self, points: Sequence[tuple[float, float, float]], name: str) -> None:
        """The area between a low and a high value at each x."""
        if len(points) < 2:
            return
        there = [f"{self.x(x)} {self.y(high)}" for x, _, high in points]
        back = [f"{self.x(x)} {self.y(low)}" for x, low, _ in reversed(points)]
        self.shapes.append(Shape("path", {"class": f"band {name}", "d": f"M{' L'.join([*there, *back])} Z"}))

    def interval(self, x: float, low: float, high: float, name: str) -> None:
        """An upright interval."""
        at = self.x(x)
        self.shapes.append(
            Shape("line", {"class": f"whisker {name}", "x1": at, "x2": at, "y1": self.y(low), "y2": self.y(high)})
        )

    def dot(self, x: float, y: float, name: str) -> None:
        """A point."""
        self.shapes.append(Shape("circle", {"class": f"dot {name}", "cx": self.x(x), "cy": self.y(y), "r": 3.6}))

    def level(self, y: float, text: str) -> None:
        """A broken line across, with its meaning."""
        at = self.y(y)
        self.shapes.append(Shape("line", {"class": "level", "x1": self.x.start, "x2": self.x.end, "y1": at, "y2": at}))
        if text:
            self.shapes.append(
                Shape("text", {"class": "note", "x": self.x.end, "y": at - 4, "text-anchor": "end"}, text)
            )

    def place(self, x: float, text: str) -> None:
        """A broken line upright, with its meaning."""
        at = self.x(x)
        self.shapes.append(Shape("line", {"class": "level", "x1": at, "x2": at, "y1": self.y.end, "y2": self.y.start}))
        if text:  # above the plot, where no line of it runs
            anchor = "end" if at > (self.x.start + self.x.end) / 2 else "start"
            where: dict[str, str | float] = {"class": "note", "x": at, "y": self.y.end - 10, "text-anchor": anchor}
            self.shapes.append(Shape("text", where, text))


def training_charts(report: Mapping[str, Any], name: str) -> list[Chart]:
    """Loss and accuracy over the steps: training batches and the dev part, with the step that was kept."""
    history = [line for line in report.get("history") or () if "step" in line]
    dev = report.get("dev_points") or []
    kept = (report.get("training") or {}).get("kept_step")
    found = []
    for key, dev_key, title in (
        ("loss", "log_loss", "Loss over the steps"),
        ("accuracy", "accuracy", "Accuracy over the steps"),
    ):
        batches = [(line["step"], line[key]) for line in history if isinstance(line.get(key), int | float)]
        parts = [(point["step"], point[dev_key]) for point in dev if isinstance(point.get(dev_key), int | float)]
        if len(batches) + len(parts) < 2:
            continue
        share = key == "accuracy"
        level = 0.5 if share else _KNOWS_NOTHING
        values = [y for _, y in batches + parts] + [level]
        steps = [x for x, _ in batches + parts] + ([kept] if kept else [])
        chart = _chart(
            f"{name}-{key}",
            title,
            "Batches of training as a thin line, the dev part as points.",
            (0, max(steps)),
            _padded(values, share=share),
            "optimiser step",
            "accuracy" if share else "loss",
            share_y=share,
            table=_steps_table(batches, parts, share),
        )
        chart.level(level, "a coin" if share else "knows nothing (ln 2)")
        if kept is not None:
            chart.place(kept, f"kept: {kept:,}")
        chart.line(batches, "faint")
        chart.line(parts, "main")
        for x, y in parts:
            chart.dot(x, y, "main")
        chart.key = ([("faint", "training batches")] if batches else []) + ([("main", "dev part")] if parts else [])
        found.append(chart)
    return found


def margin_chart(evaluation: Mapping[str, Any], name: str) -> Chart | None:
    """The histogram of margins: left of 0 the model is wrong."""
    margins = evaluation.get("margins")
    if not margins or not margins["counts"]:
        return None
    edges, counts = margins["edges"], margins["counts"]
    names = list(bin_names(edges, len(counts)))
    table = Table(["margin", "pairs"], [[one, f"{count:,}"] for one, count in zip(names, counts, strict=True)])
    chart = _chart(
        f"{name}-margins",
        "Margins",
        "How far apart the two scores of a pair are; left of 0 the rejected answer scores higher.",
        (edges[0], edges[-1]),
        (0, max(1, *counts)),
        "score of chosen minus score of rejected",
        "pairs",
        table=table,
    )
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        left, right, top = chart.x(low), chart.x(high), chart.y(count)
        side = "wrong" if high <= 0 else "right"
        size = {"x": left, "y": top, "width": max(0.5, round(right - left - 0.6, 2)), "height": round(HEIGHT - top, 2)}
        if count:
            chart.shapes.append(Shape("rect", {"class": f"column {side}", **size}))
    if edges[0] < 0 < edges[-1]:
        chart.place(0, "")
    chart.key = [("wrong", "the rejected answer scores higher"), ("right", "the chosen answer scores higher")]
    return chart


def reliability_charts(evaluation: Mapping[str, Any], name: str) -> list[Chart]:
    """How often the favoured answer won, against how sure the model was: raw, and at the stored temperature."""
    parts = {"raw": evaluation, "calibrated": evaluation.get("calibrated") or {}}
    drawn = {key: part["reliability"] for key, part in parts.items() if part.get("reliability")}
    bins = [one for kind in drawn.values() for one in kind]
    if not bins:
        return []
    low = min([0.5] + [one["accuracy"]["low"] for one in bins])
    found = []
    for key, points in drawn.items():
        title = (
            "As it is" if key == "raw" else f"At the stored temperature {evaluation['calibrated']['temperature']:.2f}"
        )
        table = Table(
            ["confidence", "favoured answer won", "95 % interval", "n"],
            [[f"{100 * one['confidence']:.1f} %", *_share_cells(one["accuracy"])] for one in points],
        )
        chart = _chart(
            f"{name}-reliability-{key}",
            title,
            "Bins of as many pairs each; on the diagonal the model is as often right as it says.",
            (0.5, 1.0),
            (math.floor(low * 10) / 10, 1.0),
            "confidence of the model",
            "favoured answer won",
            share_x=True,
            share_y=True,
            table=table,
        )
        chart.line([(0.5, 0.5), (1.0, 1.0)], "diagonal")
        for one in points:
            chart.interval(one["confidence"], one["accuracy"]["low"], one["accuracy"]["high"], "main")
            chart.dot(one["confidence"], one["accuracy"]["value"], "main")
        chart.key = [("main", "a bin, with its 95 % interval"), ("diagonal", "perfectly calibrated")]
        found.append(chart)
    return found


def selective_chart(evaluation: Mapping[str, Any], name: str) -> Chart | None:
    """Accuracy when only the most confident pairs are answered."""
    points = evaluation.get("selective")
    if not points or len(points) < 2:
        return None
    accuracies = [one["accuracy"] for one in points]
    least = "least_margin" if "least_margin" in points[0] else "confidence"
    table = Table(
        ["share answered", "from " + least.replace("_", " "), "accuracy", "95 % interval", "n"],
        [
            [f"{100 * one['share']:.0f} %", f"{one.get(least, math.nan):.3f}", *_share_cells(one["accuracy"])]
            for one in points
        ],
    )
    chart = _chart(
        f"{name}-selective",
        "If it may abstain",
        "Accuracy on the most confident share of the pairs.",
        (0, 1),
        _padded([bound for one in accuracies for bound in (one["low"], one["high"])], share=True),
        "share of pairs answered, most confident first",
        "accuracy",
        share_x=True,
        share_y=True,
        table=table,
    )
    chart.band([(one["share"], one["accuracy"]["low"], one["accuracy"]["high"]) for one in points], "main")
    chart.line([(one["share"], one["accuracy"]["value"]) for one in points], "main")
    chart.key = [("main", "accuracy, with its 95 % interval")]
    return chart


def learning_charts(evaluation: Mapping[str, Any], name: str) -> list[Chart]:
    """Accuracy and log-loss against the number of training pairs, and the forecast with its interval."""
    curve = evaluation.get("learning_curve") or {}
    points, forecast = curve.get("points") or [], curve.get("forecast") or {}
    found = []
    for key, title in (
        ("accuracy", "Accuracy against training pairs"),
        ("log_loss", "Log-loss against training pairs"),
    ):
        known = [(one["num_pairs"], one[key]) for one in points if numbers.estimate(one.get(key))]
        ahead = forecast.get(key) if numbers.estimate(forecast.get(key)) else None
        if len(known) < 2:
            continue
        drawn = [one for _, one in known] + ([ahead] if ahead else [])
        sizes = [size for size, _ in known] + ([forecast["num_pairs"]] if ahead else [])
        share = key == "accuracy"
        cells = _share_cells if share else _plain_cells
        rows = [[f"{size:,}", *cells(one)] for size, one in known]
        if ahead:
            rows.append([f"{forecast['num_pairs']:,} (forecast)", *cells(ahead)])
        chart = _chart(
            f"{name}-learning-{key}",
            title,
            "Each point a model trained on a part of the data; the forecast is drawn with its interval.",
            (0, max(sizes)),
            _padded([bound for one in drawn for bound in (one["low"], one["high"])], share=share),
            "training pairs",
            "accuracy" if share else "log-loss",
            share_y=share,
            table=Table(["training pairs", key.replace("_", "-"), "95 % interval", "n"], rows),
        )
        if ahead:
            size, last = known[-1]
            chart.band(
                [(size, last["value"], last["value"]), (forecast["num_pairs"], ahead["low"], ahead["high"])], "ahead"
            )
            chart.line([(size, last["value"]), (forecast["num_pairs"], ahead["value"])], "ahead")
            chart.interval(forecast["num_pairs"], ahead["low"], ahead["high"], "ahead")
            chart.dot(forecast["num_pairs"], ahead["value"], "ahead")
        chart.line([(size, one["value"]) for size, one in known], "main")
        for size, one in known:
            chart.interval(size, one["low"], one["high"], "main")
            chart.dot(size, one["value"], "main")
        chart.key = [("main", "measured, with its 95 % interval")] + ([("ahead", "forecast")] if ahead else [])
        found.append(chart)
    return found


def optimisation_charts(part: Mapping[str, Any], name: str) -> list[Chart]:
    """Best-of-n by each proxy and ensemble: gains of its own score and of gold against the KL distance, all on one scale, with what controls and gold itself select."""
    curves = [(one, _gains(one, "proxy"), _gains(one, "gold")) for one in part.get("selectors") or ()]
    curves = [(one, own, gold) for one, own, gold in curves if len(own) > 1 and len(own) == len(gold)]
    followed = [curve for curve in curves if curve[0].get("role") not in ("gold", "control")]
    beside = [(one, gold) for one, _, gold in curves if one.get("role") in ("gold", "control")]
    bounds = [bound for _, own, gold in followed for _, gain in own + gold for bound in (gain.low, gain.high)]
    bounds += [gain.value for _, gold in beside for _, gain in gold]
    found = []
    for number, (one, own, gold) in enumerate(followed, start=1):
        chart = _chart(
            f"{name}-best-of-n-{number}",
            clipped(f"Best-of-n by {one.get('name')}", numbers.LONGEST_LABEL),
            "Gains over one answer taken blindly; own score and gold each in their standard deviations within prompts.",
            (0, max(kl for kl, _ in own)),
            _padded(bounds, share=False),
            "KL distance in nats: log n - (n - 1) / n",
            "gain, sd",
            table=_gains_table(one, beside),
        )
        chart.level(0, "")
        star = numbers.estimate(one.get("n_star"))
        if star is not None:
            at = [kl for (kl, _), step in zip(own, one["curve"], strict=True) if step["n"] == star.value]
            for kl in at:
                chart.place(kl, f"n*: {star.value:,.0f}")
        for place, (other, gains) in enumerate(beside):
            mark = "diagonal" if other.get("role") == "gold" else f"control c{place % 3}"
            chart.line([(kl, gain.value) for kl, gain in gains], mark)
            chart.key.append((mark, clipped(f"gold of what {other.get('name')} selects", numbers.LONGEST_LABEL)))
        for mark, gains in (("main", own), ("gold", gold)):
            chart.band([(kl, gain.low, gain.high) for kl, gain in gains], mark)
            chart.line([(kl, gain.value) for kl, gain in gains], mark)
            for kl, gain in gains:
                chart.dot(kl, gain.value, mark)
        chart.key[:0] = [("main", "its own score, with its 95 % interval"), ("gold", "gold, with its 95 % interval")]
        found.append(chart)
    return found


def _gains(selector: Mapping[str, Any], key: str) -> list[tuple[float, Estimate]]:
    """(KL distance, gain) of each n."""
    found = [(step.get("kl"), numbers.estimate(step.get(key))) for step in selector.get("curve") or ()]
    return [(kl, gain) for kl, gain in found if kl is not None and gain is not None]


def _gains_table(selector: Mapping[str, Any], beside: Sequence[tuple[Mapping[str, Any], Any]]) -> Table:
    others = [clipped(str(other.get("name")), numbers.LONGEST_LABEL) for other, _ in beside]
    rows = []
    for place, step in enumerate(selector["curve"]):
        cells = [f"{step['n']:,}", f"{step['kl']:.2f}"]
        for key in ("proxy", "gold"):
            one = numbers.estimate(step[key])
            cells += [numbers.EFFECT.value(one), numbers.EFFECT.interval(one)] if one else ["", ""]
        rows.append(cells + [f"{gains[place][1].value:+.2f}" if place < len(gains) else "" for _, gains in beside])
    headers = ["n", "KL", "own score", "95 % interval", "gold", "95 % interval"]
    return Table([*headers, *(f"gold by {other}" for other in others)], rows)


def _chart(
    name: str,
    title: str,
    description: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_label: str,
    y_label: str,
    *,
    table: Table,
    share_x: bool = False,
    share_y: bool = False,
) -> Chart:
    x, y = Scale(*_wide(x_range), 0.0, WIDTH), Scale(*_wide(y_range), HEIGHT, 0.0)
    return Chart(
        name,
        title,
        description,
        x,
        y,
        x_label,
        y_label,
        [(x(tick), _label(tick, share_x)) for tick in round_ticks(x.low, x.high)],
        [(y(tick), _label(tick, share_y)) for tick in round_ticks(y.low, y.high)],
        table,
    )


def _wide(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _padded(values: Sequence[float], *, share: bool) -> tuple[float, float]:
    """A range that holds all values with a little room; shares stay within 0 and 1."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05
    return (max(0.0, low - room), min(1.0, high + room)) if share else (low - room, high + room)


def _label(tick: float, share: bool) -> str:
    return f"{100 * tick:.3g} %" if share else edge_label(tick)


def _share_cells(document: Mapping[str, Any]) -> list[str]:
    one = numbers.estimate(document)
    assert one is not None
    return [numbers.percent(one.value), numbers.share_interval(one), f"{one.n:,}"]


def _plain_cells(document: Mapping[str, Any]) -> list[str]:
    one = numbers.estimate(document)
    assert one is not None
    return [f"{one.value:.3f}", numbers.plain_interval(one), f"{one.n:,}"]


def _steps_table(batches: Sequence[tuple[float, float]], dev: Sequence[tuple[float, float]], share: bool) -> Table:
    show = numbers.percent if share else "{:.4f}".format
    by_step: dict[float, list[str]] = {}
    for place, points in enumerate((batches, dev)):
        for step, value in points:
            by_step.setdefault(step, ["", ""])[place] = show(value)
    rows = [[f"{step:,}", *cells] for step, cells in sorted(by_step.items())]
    return Table(["step", "training batches", "dev part"], rows)
