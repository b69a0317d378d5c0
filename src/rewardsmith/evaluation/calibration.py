"""Calibrate a scorer: fit on the pairs of some prompts, show on the pairs of other prompts what it is worth. Legend: `n` pairs.

Every way is a map from margins to margins whose sigmoid is the probability, so that one set of metrics judges them all: d / T, d / T of its slice, and
the log-odds of an isotonic fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy.special import logit

from rewardsmith import metrics
from rewardsmith.data.faults import EMPTY, content_fault
from rewardsmith.data.schema import Preference, prompt_key
from rewardsmith.data.split import split_by_prompt
from rewardsmith.errors import DataError
from rewardsmith.evaluation.guardrail import answers_of, thresholds
from rewardsmith.evaluation.isotonic import Isotonic, fit_isotonic
from rewardsmith.evaluation.pairwise import PairScores, score_pairs
from rewardsmith.evaluation.reliability import reliability
from rewardsmith.evaluation.slices import Column, metadata_columns
from rewardsmith.evaluation.temperature import Fit, SliceTemperatures, fit_temperature, slice_temperatures
from rewardsmith.scores import Scorer
from rewardsmith.stats import Estimate, Floats, cluster_codes, mean

FIT_SHARE = 0.5
FALSE_ALARMS = (0.01, 0.05, 0.1)
_WAYS = {
    "raw": "raw margins",
    "temperature": "one temperature",
    "slices": "a temperature a slice",
    "isotonic": "isotonic",
}


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and the document with its evidence.

    Args:
        temperature: of sigmoid(d / T).
        isotonic: the same without a formula.
        by_slice: temperatures of the values of one column; None where none was asked for.
        document: of `--json`, which a model folder keeps as well.
    """

    temperature: Fit
    isotonic: Isotonic
    by_slice: SliceTemperatures | None
    document: dict[str, Any]


@dataclass(frozen=True)
class _Part:
    """The pairs of some prompts with their scores."""

    scores: PairScores
    clusters: NDArray[np.int64]
    column: Column

    @classmethod
    def of(cls, scorer: Scorer, pairs: Sequence[Preference], value_of: Mapping[int, str | None]) -> _Part:
        clusters = cluster_codes([prompt_key(pair.prompt) for pair in pairs])
        column = [value_of[id(pair)] for pair in pairs] if value_of else []
        return cls(score_pairs(scorer, pairs), clusters, column)


def calibrate(
    scorer: Scorer,
    pairs: Sequence[Preference],
    *,
    by: str | None = None,
    fit_share: float = FIT_SHARE,
    false_alarms: Sequence[float] = FALSE_ALARMS,
    seed: int = 0,
) -> Calibration:
    """Fit temperatures, an isotonic map and guardrail thresholds on some prompts; report on the others.

    Args:
        scorer: its raw scores.
        pairs: labelled ones that the scorer was not trained on; labelled ties, and rows without two answers, stand aside and are counted.
        by: a metadata column whose values get temperatures of their own.
        fit_share: share of the pairs, as whole prompts, to fit on.
        false_alarms: wished shares of good answers that a guardrail stops.
        seed: of the split and of bootstraps.

    Raises:
        DataError: if the pairs give no temperature (see `fit_temperature`), or the column is in no row.
        SettingsError: if a wished share is not between 0 and 1.
        ScoreError: if a score is not finite.
    """
    whole = [pair for pair in pairs if content_fault(pair) != EMPTY]
    usable = [pair for pair in whole if not pair.tie]
    if not usable:
        raise DataError("labelled pairs with two answers", f"{len(pairs)} rows without", "Check the data.")
    if len({prompt_key(pair.prompt) for pair in usable}) < 2:
        raise DataError("pairs of at least two prompts, to fit on some and show on others", "one", "Give more pairs.")
    held_pairs, fit_pairs = split_by_prompt(usable, fit_share, seed=seed)
    # Once, before the split: bins of numbers must be the same on both sides.
    values = metadata_columns(usable, [by])[by] if by else []
    value_of = {id(pair): value for pair, value in zip(usable, values, strict=False)}
    fit, held = (_Part.of(scorer, part, value_of) for part in (fit_pairs, held_pairs))
    temperature = fit_temperature(fit.scores.margins, fit.clusters)
    isotonic = fit_isotonic(fit.scores.margins)
    by_slice = None if by is None else slice_temperatures(fit.scores.margins, fit.clusters, fit.column, column=by)
    answers = [answers_of(part.scores.pairs, part.scores.chosen, part.scores.rejected) for part in (fit, held)]
    stops, no_stops = thresholds(answers[0], answers[1], false_alarms, seed=seed)
    margins = held.scores.margins
    ways = {"raw": margins, "temperature": margins / temperature.value}
    if by_slice is not None:
        ways["slices"] = margins / by_slice.of(held.column)
    ways["isotonic"] = np.asarray(logit(isotonic(margins)))
    judged = {name: _judged(way, margins, held.clusters, seed) for name, way in ways.items()}
    document: dict[str, Any] = {
        "fit": {"num_pairs": len(fit_pairs), "num_prompts": int(fit.clusters.max()) + 1},
        "held_out": {"num_pairs": len(held_pairs), "num_prompts": int(held.clusters.max()) + 1, "ways": judged},
        "temperature": temperature.estimate.as_dict(),
        "isotonic": isotonic.as_dict(),
        "slices": None if by_slice is None else by_slice.as_dict(),
        "thresholds": [one.as_dict() for one in stops],
        "no_thresholds": no_stops,
        "dropped": {EMPTY: len(pairs) - len(whole)},
        "labelled_ties": len(whole) - len(usable),
        "seed": seed,
    }
    document["verdict"] = verdict(document)
    return Calibration(temperature, isotonic, by_slice, document)


def _judged(margins: Floats, raw: Floats, clusters: NDArray[np.int64], seed: int) -> dict[str, Any]:
    """One way on the held-out pairs; `gain` is the log-loss of the raw margins minus its own, paired."""
    null = metrics.ece_null(margins, clusters, seed=seed)
    gain = mean(metrics.log_losses(raw) - metrics.log_losses(margins), clusters, seed=seed)
    return {
        "log_loss": metrics.log_loss(margins, clusters, seed=seed).as_dict(),
        "gain": gain.as_dict(),
        "brier": metrics.brier(margins, clusters, seed=seed).as_dict(),
        "ece": metrics.ece(margins, clusters, seed=seed).as_dict(),
        "ece_null": null.null.as_dict(),
        "ece_excess": null.excess,
        "ece_p_value": null.p_value,
        "reliability": reliability(margins, clusters),
    }


def without_curves(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as a contract keeps it: all numbers but those of the reliability diagrams, which are drawn from the output of `calibrate`."""
    held_out = document["held_out"]
    ways = {name: {k: v for k, v in way.items() if k != "reliability"} for name, way in held_out["ways"].items()}
    return {**document, "held_out": {**held_out, "ways": ways}}


def verdict(document: Mapping[str, Any]) -> str:
    """In words: was it calibrated before, is it afterwards, and how sure is that."""
    temperature = Estimate(**document["temperature"])
    way = document["held_out"]["ways"]["temperature"]
    gain, null = Estimate(**way["gain"]), Estimate(**way["ece_null"])
    if temperature.low <= 1 <= temperature.high:
        before = "The raw margins need no temperature: its interval holds 1."
    else:
        before = f"The raw margins claim too {'much' if temperature.value > 1 else 'little'}."
    sure = "" if gain.low > 0 or gain.high < 0 else ", an interval that holds 0"
    after = (
        f"At T = {temperature.value:.2f} [{temperature.low:.2f}, {temperature.high:.2f}] the log-loss of {gain.n:,} other pairs "
        f"is {abs(gain.value):.4f} {'lower' if gain.value >= 0 else 'higher'} ([{gain.low:+.4f}, {gain.high:+.4f}]{sure})"
    )
    within = way["ece"]["value"] <= null.high
    ece = (
        f"their calibration error {way['ece']['value']:.3f} lies {'within' if within else 'above'} what a perfectly "
        f"calibrated scorer shows ({null.low:.3f} to {null.high:.3f}, p = {way['ece_p_value']:.2g})."
    )
    return f"{before} {after}; {ece}"


def calibration_tables(document: Mapping[str, Any]) -> list[Table]:
    """The held-out numbers of each way, and the thresholds of guardrails."""
    ways = Table(title=f"{document['held_out']['num_pairs']:,} pairs of other prompts", title_justify="left")
    ways.add_column("")
    for column in ("log-loss", "lower than raw by", "Brier", "ECE", "of a perfect one", "p"):
        ways.add_column(column, justify="right")
    for name, way in document["held_out"]["ways"].items():
        gain, null = Estimate(**way["gain"]), Estimate(**way["ece_null"])
        better = "" if name == "raw" else rf"{gain.value:+.4f} \[{gain.low:+.4f}, {gain.high:+.4f}]"
        numbers = [f"{way[key]['value']:.3f}" for key in ("log_loss", "brier", "ece")]
        perfect = f"{null.low:.3f} to {null.high:.3f}"
        ways.add_row(_WAYS[name], numbers[0], better, *numbers[1:], perfect, f"{way['ece_p_value']:.2g}")
    stops = Table(title="a guardrail that stops answers below the threshold", title_justify="left")
    for column in ("scale", "false alarms wished", "threshold", "false alarms", "bad answers stopped"):
        stops.add_column(column, justify="left" if column == "scale" else "right")
    for one in document["thresholds"]:
        cells = [_interval(Estimate(**one[key])) for key in ("threshold", "false_alarms", "caught")]
        stops.add_row(one["scale"], f"{one['wished_false_alarms']:.0%}", *cells)
    return [ways, *([stops] if document["thresholds"] else [])]


def _interval(estimate: Estimate) -> str:
    return rf"{estimate.value:.3f} \[{estimate.low:.3f}, {estimate.high:.3f}]"
