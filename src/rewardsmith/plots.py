"""Plain numbers -> figures. Nothing is computed here; the numbers stand in report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardsmith.errors import MissingExtraError
from rewardsmith.storage import atomic_file


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure  # no pyplot: no global state and no window
    except ImportError as error:
        raise MissingExtraError("plots", "matplotlib", "plot") from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with atomic_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)


def _error_bar(estimate: Mapping[str, Any]) -> list[list[float]]:
    """Distances down and up; a percentile interval of few examples may leave the value outside, which cannot be drawn."""
    below, above = estimate["value"] - estimate["low"], estimate["high"] - estimate["value"]
    return [[max(0.0, below)], [max(0.0, above)]]


def training_curves(
    history: Sequence[Mapping[str, Any]],
    dev_points: Sequence[Mapping[str, Any]],
    kept_step: int,
    final: Mapping[str, Mapping[str, Any]],
    path: Path,
) -> None:
    """Loss and accuracy over the steps: training batches, dev part, and the final accuracy of each part with its interval.

    Args:
        history: log lines of the Trainer.
        dev_points: {"step", "log_loss", "accuracy"} at each checkpoint.
        kept_step: the step whose weights were kept.
        final: accuracy Estimates by part ("train", "dev", "eval").
        path: of the PNG.

    Raises:
        MissingExtraError: without matplotlib.
    """
    figure = _figure(10, 4)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    lines = [line for line in history if "loss" in line]
    for axes, key, dev_key in ((loss_axes, "loss", "log_loss"), (accuracy_axes, "accuracy", "accuracy")):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), color="tab:blue", alpha=0.5, linewidth=1, label="training batches")
        if dev_points:
            axes.plot(
                [p["step"] for p in dev_points], [p[dev_key] for p in dev_points], "o-", color="tab:orange", label="dev"
            )
        axes.axvline(kept_step, color="grey", linewidth=0.8, linestyle=":", label="kept")
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.2)
    loss_axes.set_title("loss")
    loss_axes.axhline(0.6931, color="grey", linewidth=0.8, linestyle="--", label="knows nothing (ln 2)")
    accuracy_axes.set_title("pair accuracy, ties one half")
    # Wider values would push the last points off the axis: the final ones stand beside it.
    last = max([p["step"] for p in dev_points] + [line["step"] for line in lines] + [kept_step, 1])
    for i, (name, estimate) in enumerate(final.items()):
        error = _error_bar(estimate)
        accuracy_axes.errorbar(
            [last * (1.04 + 0.04 * i)],
            [estimate["value"]],
            yerr=error,
            fmt="s",
            markersize=4,
            capsize=3,
            label=f"final, {name}",
        )
    for axes in (loss_axes, accuracy_axes):
        axes.legend(fontsize=8)
    _save(figure, path)


def accuracy_bars(estimates: Mapping[str, Mapping[str, Any]], title: str, path: Path) -> None:
    """Accuracies with intervals, one row each, and the line of chance.

    Raises:
        MissingExtraError: without matplotlib.
    """
    figure = _figure(7, 0.5 + 0.45 * len(estimates))
    axes = figure.subplots()
    for i, estimate in enumerate(reversed(list(estimates.values()))):
        error = _error_bar(estimate)
        axes.errorbar(
            [estimate["value"]],
            [i],
            xerr=error,
            fmt="o",
            color="tab:blue" if i == len(estimates) - 1 else "grey",
            capsize=3,
        )
    axes.set_yticks(range(len(estimates)), list(reversed(list(estimates))))
    axes.axvline(0.5, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.2)
    _save(figure, path)


_CONTROL_LINES = ((0, (1, 1)), (0, (4, 2)), (0, (4, 2, 1, 2)), (0, (8, 2)))
_PANELS_A_ROW = 3


def over_optimisation_curves(section: Mapping[str, Any], path: Path) -> None:
    """Best-of-n on the axis of KL: one panel for each proxy and ensemble with its own score, gold and the fit to it; gold itself and the controls in every panel.

    Args:
        section: `over_optimisation` of an audit's document.
        path: of the PNG.

    Raises:
        MissingExtraError: without matplotlib.
    """
    selectors = section["selectors"]
    shown = [one for one in selectors if one["role"] in ("proxy", "ensemble")]
    beside = [one for one in selectors if one["role"] in ("gold", "control")]
    columns = min(_PANELS_A_ROW, len(shown))
    rows = -(-len(shown) // columns)
    figure = _figure(4.2 * columns + 0.6, 3.6 * rows + 0.9)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, one in zip(panels, shown, strict=False):
        points = one["curve"]
        kl = [point["kl"] for point in points]
        _band(axes, kl, [point["proxy"] for point in points], "tab:orange", "its own score", dashed=True)
        _band(axes, kl, [point["gold"] for point in points], "tab:blue", "gold")
        fit = one["fit"]["gold"]
        if fit is not None:
            a, b = fit["a"]["value"], fit["b"]["value"]
            fitted = [x**0.5 * (a - b * x**0.5) for x in kl]
            axes.plot(kl, fitted, color="tab:blue", linewidth=0.8, linestyle=":", label="d (a - b d), fitted to gold")
        at = [point["n"] for point in points].index(one["n_star"]["value"])
        axes.plot([kl[at]], [points[at]["gold"]["value"]], "v", color="tab:blue", label="n*")
        lines = iter(_CONTROL_LINES)
        for other in beside:
            gold = [point["gold"]["value"] for point in other["curve"]]
            is_gold = other["role"] == "gold"
            axes.plot(
                kl,
                gold,
                color="black" if is_gold else "grey",
                linewidth=0.8,
                linestyle="-" if is_gold else next(lines),
                label="gold selecting by itself" if is_gold else f"control: {other['name']}",
            )
        axes.set_title(_plain(one["name"]) + (" (over-optimised)" if one["over_optimised"] else ""), fontsize=10)
        axes.set_xlabel("KL of best-of-n, nats")
        axes.grid(alpha=0.2)
        top = axes.secondary_xaxis("top")
        powers = [point for point in points if point["n"] & (point["n"] - 1) == 0]
        top.set_xticks([point["kl"] for point in powers], [str(point["n"]) for point in powers], fontsize=7)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    panels[0].set_ylabel("gain over n = 1, sd within prompts")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    _save(figure, path)


def _band(
    axes: Any,
    at: Sequence[float],
    estimates: Sequence[Mapping[str, Any]],
    color: str,
    label: str,
    *,
    dashed: bool = False,
) -> None:
    """A line with its intervals."""
    axes.fill_between(at, [one["low"] for one in estimates], [one["high"] for one in estimates], color=color, alpha=0.2)
    values = [one["value"] for one in estimates]
    axes.plot(at, values, color=color, linestyle="--" if dashed else "-", label=label)


def _plain(text: str) -> str:
    """A name that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def margins_histogram(margins: Sequence[float], win_rate: Mapping[str, Any], path: Path) -> None:
    """The margins of two policies, one a prompt: where A's answers score higher, and by how much.

    Args:
        margins: score of A minus score of B, the mean of each prompt.
        win_rate: Estimate of A's win rate, for the title.
        path: of the PNG.

    Raises:
        MissingExtraError: without matplotlib.
    """
    figure = _figure(7, 3.6)
    axes = figure.subplots()
    reach = max(max(map(abs, margins)), 1e-6)
    bins = 2 * max(5, min(20, len(margins) // 10))  # even, so that no bin holds both winners and losers
    edges = [reach * (2 * i / bins - 1) for i in range(bins + 1)]
    for sign, color, label in ((1, "tab:blue", "A scores higher"), (-1, "tab:orange", "B scores higher")):
        part = [margin for margin in margins if margin * sign > 0]
        axes.hist(part, bins=edges, color=color, label=f"{label} ({len(part):,})")
    if even := len([margin for margin in margins if margin == 0]):
        axes.plot([0], [even], "_", color="black", markersize=14, label=f"equal ({even:,})")
    axes.axvline(0, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel("score of A minus score of B, mean of a prompt")
    axes.set_ylabel("prompts")
    low, high = 100 * win_rate["low"], 100 * win_rate["high"]
    axes.set_title(f"A wins {100 * win_rate['value']:.1f} % [{low:.1f}, {high:.1f}] of {win_rate['n']:,} prompts")
    axes.legend(fontsize=8)
    axes.grid(axis="y", alpha=0.2)
    _save(figure, path)


def best_of_n_curve(curve: Sequence[Mapping[str, Any]], path: Path) -> None:
    """What more candidates buy, on the axis of KL: the score, and where there are labels what they say.

    Args:
        curve: of a best-of-n document.
        path: of the PNG.

    Raises:
        MissingExtraError: without matplotlib.
    """
    panels = [[("score", "tab:orange", "score of the selected answer")]]
    if "label" in curve[0]:
        panels.append(
            [("label", "tab:blue", "label of the selected answer"), ("label_limit", "black", "selected by label")]
        )
    figure = _figure(4.6 * len(panels), 3.6)
    kl = [point["kl"] for point in curve]
    for axes, lines in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for key, color, label in lines:
            _band(axes, kl, [point[key] for point in curve], color, label, dashed=key == "label_limit")
        axes.set_xlabel("KL of best-of-n, nats")
        axes.grid(alpha=0.2)
        axes.legend(fontsize=8)
        top = axes.secondary_xaxis("top")
        top.set_xticks(kl, [str(point["n"]) for point in curve], fontsize=7)
    _save(figure, path)
