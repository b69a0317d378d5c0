"""Would more data help? A recipe is followed again on shares of its training pairs, every model is judged on the same eval pairs, and the curve is carried on.

That the curve is a saturating power law (`power_law`) is assumed, and three or four points cannot prove it; what they can show is that it does not fit.
Legend: `n` eval pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from rewardsmith import metrics
from rewardsmith.data.faults import EMPTY, content_fault
from rewardsmith.data.schema import Preference, prompt_key
from rewardsmith.data.split import apart, assign_parts, sample_by_prompt, shuffled_prompts
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.evaluation.overfitting import gap
from rewardsmith.evaluation.pairwise import score_pairs
from rewardsmith.evaluation.power_law import Forecast, Measured, estimate, mean_draws
from rewardsmith.evaluation.temperature import fit_temperature
from rewardsmith.scores import Retrained, Scorer, Trainable
from rewardsmith.stats import Estimate, Floats, cluster_codes, proportion

SHARES = (0.125, 0.25, 0.5, 1.0)
REPEATS = 3
WORTH = 0.01
"""The gain in accuracy from twice the data that is worth having: an interval that stays below it says that more data does not help."""
FACTORS = (2, 4)
_LEAST_SHARES = 3
_LEAST_PROMPTS = 30
# What the interval of a gain must leave behind to be called a gain: that which would be shown as more than +0.0 points.
_LEAST_GAIN = 0.0005
_TRAIN_SAMPLE = 200
_BAND_POINTS = 24
FORM = "a + b (n / N)^-c, N being all training pairs"
Codes = NDArray[np.int64]


def _silent(line: str) -> None:
    pass


@dataclass
class _Point:
    """One share: what every training on it made of the eval pairs; the lists run over its trainings.

    Args:
        share: of the training pairs.
        num_pairs: trained on.
        wins: (n,) 1, 0.5 or 0 by pair.
        losses: (n,) at the temperature of the other half.
        raw_losses: (n,) at temperature 1.
        train_accuracy: of the first training, on a sample of its own pairs.
    """

    share: float
    num_pairs: list[int] = field(default_factory=list)
    wins: list[Floats] = field(default_factory=list)
    losses: list[Floats] = field(default_factory=list)
    raw_losses: list[Floats] = field(default_factory=list)
    train_accuracy: Estimate | None = None


def learning_curve(
    trainable: Trainable,
    eval_pairs: Sequence[Preference],
    *,
    shares: Sequence[float] = SHARES,
    repeats: int = REPEATS,
    whole: Retrained | None = None,
    worth: float = WORTH,
    seed: int = 0,
    progress: Callable[[str], None] = _silent,
) -> dict[str, Any]:
    """The key `learning_curve` of documents: points, fit, forecast and the answer in words (docs/learning_curve.md).

    Args:
        trainable: the recipe with its training pairs.
        eval_pairs: on which every model is judged; labelled ties, rows without two answers, and pairs that were trained on stand aside, counted.
        shares: of the training pairs, rising, the last one 1; the subsets of one repeat are nested and hold whole prompts.
        repeats: trainings a share, each on subsets and with a head of its own seed. From two on, their spread enters the intervals of the forecast.
        whole: the model that the recipe gave on all pairs, where it is at hand: it is taken for share 1, which then is not trained again.
        worth: the gain in accuracy from twice the data that is worth having.
        seed: of the first subsets and the first head (the next repeat takes the next number), and of the resamples.
        progress: is told what is trained next.

    Raises:
        SettingsError: if the shares or repeats cannot be meant.
        DataError: if there are too few prompts to train or to judge on.
        RewardsmithError: of a training that failed; the last line of `progress` says which.
    """
    shares = _checked_shares(shares, repeats)
    training = trainable.training_pairs()
    judged, left_out = _judged(eval_pairs, training)
    clusters = cluster_codes([prompt_key(pair.prompt) for pair in judged])
    if int(clusters.max()) + 1 < _LEAST_PROMPTS:
        came = f"{int(clusters.max()) + 1}"
        raise DataError(f"at least {_LEAST_PROMPTS} eval prompts for a learning curve", came, "Give more eval pairs.")
    subsets = [nested_subsets(training, shares, seed=seed + repeat) for repeat in range(repeats)]
    points = [_Point(share) for share in shares]
    halves = assign_parts(clusters, [0.5, 0.5], seed=seed)
    for place, repeat, told in _trainings(shares, repeats, whole is not None):
        subset = subsets[repeat][place]
        if whole is not None and place == len(shares) - 1:
            progress(f"{told}: the model at hand")
            found = whole
        else:
            progress(f"{told}: training on {len(subset):,} pairs")
            found = trainable.train_on(subset, seed=seed + repeat)
        margins = score_pairs(found.scorer, judged).margins
        point = points[place]
        point.num_pairs.append(found.num_pairs)
        point.wins.append(metrics.wins(margins))
        point.losses.append(calibrated_losses(margins, clusters, halves))
        point.raw_losses.append(metrics.log_losses(margins))
        if point.train_accuracy is None:
            point.train_accuracy = _accuracy_on(found.scorer, subset)
    return {
        **_document(points, clusters, worth=worth, seed=seed),
        "num_eval_pairs": len(judged),
        "num_eval_prompts": int(clusters.max()) + 1,
        "left_out": left_out,
        "repeats": repeats,
        "seed": seed,
    }


def nested_subsets(pairs: Sequence[Preference], shares: Sequence[float], *, seed: int) -> list[list[Preference]]:
    """For each share whole prompts in a seeded order until they hold so many of the pairs, in the order of the data; each subset lies in the next one.

    Raises:
        DataError: if two shares give the same subset.
    """
    counts: dict[str, int] = {}
    for pair in pairs:
        key = prompt_key(pair.prompt)
        counts[key] = counts.get(key, 0) + 1
    prompts = shuffled_prompts(pairs, seed)
    reached = np.cumsum([counts[prompt] for prompt in prompts])
    # At least a share, but for rounding: 0.1 x 30 pairs are 3 and not 4.
    ends = [int(np.searchsorted(reached, share * len(pairs) * (1 - 1e-9))) + 1 for share in shares]
    if len(set(ends)) < len(ends):
        came = f"{len(prompts)} prompts, of which these shares take {', '.join(map(str, ends))}"
        raise DataError("enough training prompts to tell the shares apart", came, "Give fewer or larger shares.")
    rank = {prompt: place for place, prompt in enumerate(prompts)}
    return [[pair for pair in pairs if rank[prompt_key(pair.prompt)] < end] for end in ends]


def calibrated_losses(margins: Floats, clusters: Codes, halves: Codes) -> Floats:
    """The log-loss of each pair at the temperature that the other half of the prompts asks for, (n,).

    A model of few pairs may be far too sure of itself, and its log-loss at temperature 1 then says little of what it knows; a dev part would do for a
    temperature, but it is small, and not every recipe has one. A half that a model is no better than chance on asks for an infinite temperature, which gives
    ln 2; a half that asks for none (it is always right, or there are too few pairs) leaves temperature 1, or ln 2 where that is less.

    Args:
        margins: (n,).
        clusters: (n,) codes of the prompts.
        halves: (n,) 0 or 1, the same for all pairs of a prompt.
    """
    losses = np.empty(len(margins))
    for half in (0, 1):
        fitted_on = margins[halves != half]
        losses[halves == half] = metrics.log_losses(
            margins[halves == half], _temperature(fitted_on, cluster_codes(clusters[halves != half]))
        )
    return losses


def _temperature(margins: Floats, clusters: Codes) -> float:
    if margins.sum() <= 0:  # the slope of the log-loss at 1 / T = 0: no certainty at all is best
        return np.inf
    try:
        return fit_temperature(margins, clusters).value
    except DataError:  # none has a least loss: the better one of what it says and of knowing nothing
        return 1.0 if metrics.log_losses(margins).mean() < np.log(2) else np.inf


def _checked_shares(shares: Sequence[float], repeats: int) -> list[float]:
    found = [float(share) for share in shares]
    rising = all(a < b for a, b in zip(found, found[1:], strict=False))
    if len(found) < _LEAST_SHARES or not rising or found[0] <= 0 or found[-1] != 1:
        needed = f"at least {_LEAST_SHARES} shares above 0, rising, the last one 1"
        raise SettingsError(
            needed, ", ".join(f"{share:g}" for share in found) or "none", "Give for example 0.25,0.5,1."
        )
    if repeats < 1:
        raise SettingsError(
            "at least 1 repeat", str(repeats), "Give 1, or 3 to see how far the luck of a training goes."
        )
    return found


def _judged(
    eval_pairs: Sequence[Preference], training: Sequence[Preference]
) -> tuple[list[Preference], dict[str, int]]:
    """The pairs to judge on, and how many of which kind stand aside."""
    whole = [pair for pair in eval_pairs if content_fault(pair) != EMPTY]
    decided = [pair for pair in whole if not pair.tie]
    judged, seen = apart(decided, training)
    left_out = {
        EMPTY: len(eval_pairs) - len(whole),
        "labelled_ties": len(whole) - len(decided),
        "trained_on": len(seen),
    }
    if not judged:
        came = f"{len(eval_pairs)} rows, of which none is left ({', '.join(f'{n} {name}' for name, n in left_out.items())})"
        raise DataError("eval pairs with a winner that were not trained on", came, "Give held-out pairs.")
    return judged, left_out


def _trainings(shares: Sequence[float], repeats: int, whole: bool) -> Iterator[tuple[int, int, str]]:
    """(place of the share, repeat, words for people) of each model to judge; small ones first, so that what fails fails early."""
    last = len(shares) - 1
    plan = [
        (place, repeat) for place in range(len(shares)) for repeat in range(1 if whole and place == last else repeats)
    ]
    for number, (place, repeat) in enumerate(plan, start=1):
        yield place, repeat, f"learning curve {number}/{len(plan)}, share {shares[place]:g}"


def _accuracy_on(scorer: Scorer, subset: Sequence[Preference]) -> Estimate | None:
    """Accuracy on a sample of the pairs that a model was trained on; None where all are labelled ties."""
    decided = [pair for pair in subset if not pair.tie]
    if not decided:
        return None
    sample = sample_by_prompt(decided, min(_TRAIN_SAMPLE, len(decided)), seed=0)
    codes = cluster_codes([prompt_key(pair.prompt) for pair in sample])
    return metrics.accuracy(score_pairs(scorer, sample).margins, codes)


def _document(points: Sequence[_Point], clusters: Codes, *, worth: float, seed: int) -> dict[str, Any]:
    num_pairs = np.array([float(np.mean(point.num_pairs)) for point in points])
    sizes, last = num_pairs / num_pairs[-1], len(points)
    measures = [[1 - np.array(point.wins) for point in points], [np.array(point.losses) for point in points]]
    measures.append([np.array(point.raw_losses) for point in points])  # each (trainings, n)
    columns = np.stack([one.mean(axis=0) for measure in measures for one in measure], axis=1)  # (n, 3 S)
    draws = mean_draws(columns, clusters, seed=seed)
    wrong, lost, raw = (draws[:, start : start + last] for start in (0, last, 2 * last))
    error = Measured.of([one.mean(axis=1) for one in measures[0]], wrong, seed=seed)
    loss = Measured.of([one.mean(axis=1) for one in measures[1]], lost, seed=seed)
    laws = {"accuracy": Forecast.fit(sizes, error), "log_loss": Forecast.fit(sizes, loss)}
    prompts = f"bootstrap over {int(clusters.max()) + 1} prompts"

    def level(place: int, drawn: Floats, measure: int) -> dict[str, Any]:
        value = float(measures[measure][place].mean())
        return estimate(value, drawn[:, place], clusters, prompts).as_dict()

    def step(place: int) -> dict[str, Any]:
        """From one share to the next, on the same pairs."""
        found: dict[str, Any] = {"from": points[place - 1].share, "to": points[place].share}
        for name, drawn, measure, sign in (("accuracy", wrong, 0, -1.0), ("log_loss", lost, 1, 1.0)):
            value = float(measures[measure][place].mean() - measures[measure][place - 1].mean())
            moved = sign * (drawn[:, place] - drawn[:, place - 1]) + 0.0  # no -0.0
            found[name] = estimate(sign * value + 0.0, moved, clusters, prompts).as_dict()
        return found

    def point(place: int) -> dict[str, Any]:
        one = points[place]
        of_first = proportion(one.wins[0], clusters, seed=seed)
        # A mean over trainings is no proportion, for which Wilson's interval is made.
        of_all = estimate(1 - float(measures[0][place].mean()), 1 - wrong[:, place], clusters, prompts)
        return {
            "share": one.share,
            "num_pairs": round(float(num_pairs[place])),
            "trainings": len(one.wins),
            "accuracy": (of_first if len(one.wins) == 1 else of_all).as_dict(),
            "log_loss": level(place, lost, 1),
            "raw_log_loss": level(place, raw, 2),
            "train_accuracy": None if one.train_accuracy is None else one.train_accuracy.as_dict(),
            "gap": None if one.train_accuracy is None else gap(one.train_accuracy, of_first).as_dict(),
        }

    def ahead(factor: float) -> dict[str, Any]:
        return {
            "factor": factor,
            "num_pairs": round(factor * num_pairs[-1]),
            "accuracy": laws["accuracy"].level(factor, clusters, accuracy=True).as_dict(),
            "log_loss": laws["log_loss"].level(factor, clusters).as_dict(),
            "accuracy_change": laws["accuracy"].change(factor, clusters, accuracy=True).as_dict(),
            "log_loss_change": laws["log_loss"].change(factor, clusters).as_dict(),
        }

    forecasts = [ahead(factor) for factor in FACTORS]
    found: dict[str, Any] = {
        "points": [point(place) for place in range(last)],
        "steps": [step(place) for place in range(1, last)],
        "spread": {"accuracy": error.spread, "log_loss": loss.spread, "degrees": error.degrees},
        "fit": {"form": FORM, "assumed": True, **{name: law.as_dict() for name, law in laws.items()}},
        "forecast": forecasts[0],
        "further": forecasts[1:],
        "band": [ahead(float(factor)) for factor in np.geomspace(sizes[0], FACTORS[-1], _BAND_POINTS)],
        "worth": worth,
    }
    found["verdict"] = verdict(Estimate(**forecasts[0]["accuracy_change"]), worth, fits=laws["accuracy"].fits)
    return found | {"reading": reading(found)}


def verdict(change: Estimate, worth: float, *, fits: bool = True) -> str:
    """One of "does not help", "helps" and "cannot tell", by the interval of what twice the data would change.

    >>> verdict(Estimate(0.02, 0.01, 0.03, 400, ""), 0.01), verdict(Estimate(0.001, 0, 0.004, 400, ""), 0.01)
    ('helps', 'does not help')
    """
    if not fits:
        return "cannot tell"
    if change.high < worth:
        return "does not help"
    return "helps" if change.low > _LEAST_GAIN else "cannot tell"


_IN_WORDS = {
    "helps": "more data helps",
    "does not help": "more data of this kind does not help",
    "cannot tell": "more data may help, these pairs cannot tell",
}


def reading(document: Mapping[str, Any]) -> str:
    """The answer in words, with what it rests on."""
    forecast, last = document["forecast"], document["points"][-1]
    change, loss = Estimate(**forecast["accuracy_change"]), Estimate(**forecast["log_loss_change"])
    words = _IN_WORDS[document["verdict"]]
    if document["verdict"] == "does not help":
        words += f" (less than {100 * document['worth']:g} points)"
    if not document["fit"]["accuracy"]["fits"]:
        words = "these points do not lie on a curve of the assumed form, so this forecast is worth nothing"
    step = document["steps"][-1]
    sentences = [
        f"Doubling the pairs from {last['num_pairs']:,} to {forecast['num_pairs']:,} would change accuracy by {_points(change)}: {words}.",
        f"Log-loss would change by {loss.value:+.3f} [{loss.low:+.3f}, {loss.high:+.3f}].",
        f"That the curve is a power law is assumed; measured is the step from {step['from']:g} to {step['to']:g} of the pairs: {_points(Estimate(**step['accuracy']))}.",
    ]
    if document["spread"]["accuracy"] is None:
        sentences.append("The luck of a training is not in these intervals: every share was trained once.")
    return " ".join(sentences)


def _points(estimate: Estimate) -> str:
    low, value, high = (f"{100 * x + 0.0:+.1f}" for x in (estimate.low, estimate.value, estimate.high))
    return f"{value} points [{low}, {high}]"


def learning_table(document: Mapping[str, Any]) -> Table:
    """The points, then the forecast, for people."""
    title = "learning curve, on the same eval pairs (change: from the row above; of a forecast, from all pairs)"
    table = Table(title=title, title_justify="left")
    for name in ("training\npairs", "accuracy", "change,\npoints", "log-loss", "on those\ntrained on"):
        table.add_column(name, justify="right", no_wrap=True)
    for point, step in zip(document["points"], [None, *document["steps"]], strict=True):
        train = point["train_accuracy"]
        table.add_row(
            f"{point['num_pairs']:,}\n{point['trainings']} x",
            _cell(point["accuracy"], ".3f"),
            "" if step is None else _cell(step["accuracy"], "+.1f", 100),
            _cell(point["log_loss"], ".3f"),
            "" if train is None else f"{train['value']:.3f}",
        )
    table.add_section()
    for ahead in (document["forecast"], *document["further"]):
        change = _cell(ahead["accuracy_change"], "+.1f", 100)
        cells = _cell(ahead["accuracy"], ".3f"), change, _cell(ahead["log_loss"], ".3f"), ""
        table.add_row(f"{ahead['num_pairs']:,}\nforecast", *cells)
    return table


def _cell(document: Mapping[str, Any], form: str, factor: float = 1.0) -> str:
    """A value over its interval."""
    value, low, high = (f"{factor * document[name] + 0.0:{form}}" for name in ("value", "low", "high"))
    return f"{value}\n\\[{low}, {high}]"
