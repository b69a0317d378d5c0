"""Which loss recovers the true scores from which kind of labels: simulated preferences, one JSON line a comparison.

Run: OMP_NUM_THREADS=1 python benchmarks/simulated_preferences.py [--data-sets 40] [--jobs 2] [--out benchmarks/results/simulated_preferences.json]

In each data set true scores are linear in random features, labels are drawn from them, and each loss fits a linear score to the same prompts through the project's own
`LOSSES`. Fits differ in nothing but the loss and the form that it gives to the labels. The strength of the L2 penalty is chosen for each of them by its own dev loss, on
held-out prompts of a few data sets that are not those of the study. What is compared is the log-loss on fresh pairs, in expectation under the true probabilities, so that no fresh label
adds noise. Intervals are bootstraps over data sets of the paired difference: below 0 the matching loss is better. The labels are drawn by formulas written here in
numpy, not by the losses themselves.

Legend: `n` examples, `K` answers of each, `F` features, `M` fresh pairs, `L` levels of ratings.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from harness import record
from rewardsmith import stats
from rewardsmith.config import LossSettings
from rewardsmith.data.prompt_swap import swapped_pairs
from rewardsmith.data.schema import Group, Preference
from rewardsmith.model.losses import LOSSES, Labels, Objective

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

NUM_FEATURES = 64
NUM_FRESH = 2000
DATA_SETS = 40
TIE_SHARE = 0.2
FLIP_SHARE = 0.2
NUM_VOTES = 5
LIST_LENGTH = 4
LEVEL_THRESHOLDS = np.array([-2.0, -0.7, 0.5, 1.8])
# Beside the features: what a pair's annotators agree on beyond the score, and how mild or strict the rater of a prompt is.
SHARED_DEVIATION = 1.0
# In units of F / n, which is the penalty of the true prior of the weights under one independent label an example.
PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
DEV_SHARE = 0.2
PILOTS = 4
# Losses of lists compare all answers of a batch with each other, those of ratings add up each example's answers under a mask.
BATCH_SIZES = {"pairs": 10**6, "lists": 50, "ratings": 200}
PACKAGES = ("numpy", "scipy", "torch")
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()


# ---------------------------------------------------------------- one fit


@dataclass(frozen=True)
class Examples:
    """What one loss is fitted to.

    Args:
        features: of the answers, (n, K, F); of a pair chosen, then rejected.
        rows: the same as the project's rows, which the loss judges and counts; texts do not matter.
        columns: labels by their name in `Labels`, (n, ...); `rating` (n, K).
    """

    features: Floats
    rows: Sequence[Any]
    columns: dict[str, NDArray[Any]]

    def batches(self, size: int) -> list[tuple[Tensor, Labels]]:
        """Features (N, F) and labels of so many examples at a time."""
        n, count, width = self.features.shape
        return [
            (
                torch.from_numpy(self.features[at : at + size].reshape(-1, width)),
                self._labels(slice(at, at + size), len(self.features[at : at + size]), count),
            )
            for at in range(0, n, size)
        ]

    def _labels(self, rows: slice, n: int, count: int) -> Labels:
        values = {name: torch.from_numpy(column[rows]) for name, column in self.columns.items()}
        if "rating" in values:
            values["rating"] = values["rating"].reshape(-1, 1)
        return Labels(torch.full((n,), count), **values)


@dataclass(frozen=True)
class Contestant:
    """A loss, and the form that it gives to the labels of some prompts.

    Args:
        loss: its settings.
        examples: the examples of some prompts.
        dev: the same for the prompts that choose the penalty, where these differ.
    """

    loss: LossSettings
    examples: Callable[[Rows], Examples]
    dev: Callable[[Rows], Examples] | None = None


@dataclass(frozen=True)
class Fit:
    """A fitted linear score; `objective` holds what was learned beside it, `factor` is the penalty in units of F / n."""

    objective: Objective
    weights: Tensor
    factor: float

    def margins(self, features: Floats) -> Floats:
        """Score of the first answer minus score of the second, (M, 2, F) -> (M,)."""
        scores = features @ self.weights.numpy()
        return np.asarray(scores[:, 0] - scores[:, 1])


def dev_losses(contestant: Contestant, num_prompts: int, generator: np.random.Generator) -> list[float]:
    """The loss's own dev loss on a fifth of the prompts after a fit of the others, at each penalty."""
    order = generator.permutation(num_prompts)
    held_out = round(DEV_SHARE * num_prompts)
    kept = contestant.examples(np.sort(order[held_out:]))
    dev = (contestant.dev or contestant.examples)(np.sort(order[:held_out]))
    fit, found = None, []
    for factor in PENALTIES:
        fit = fit_once(contestant.loss, kept, factor, num_prompts - held_out, start=fit)
        found.append(_dev_loss(fit, dev.batches(_batch_size(contestant.loss))))
    return found


def fit_once(
    settings: LossSettings, examples: Examples, factor: float, num_prompts: int, *, start: Fit | None = None
) -> Fit:
    """Minimise mean loss + penalty / 2 |weights|^2 over the weights and what the loss learns, by L-BFGS to convergence.

    Raises:
        RuntimeError: if it does not converge.
    """
    LOSSES[settings.name].check(settings, examples.rows)
    objective = LOSSES[settings.name].build(settings, examples.rows).double()
    # A number added to all scores changes no margin, but a squared error needs it.
    bias = objective.initial_bias().double().requires_grad_(objective.pins_level)
    weights = torch.zeros(examples.features.shape[2], dtype=torch.float64)
    if start is not None:
        weights = start.weights.clone()
    free = [weights.requires_grad_(), *([bias] if objective.pins_level else []), *objective.parameters()]
    penalty = factor * NUM_FEATURES / num_prompts
    batches, n = examples.batches(_batch_size(settings)), len(examples.features)
    optimiser = torch.optim.LBFGS(
        free, max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-6, tolerance_change=0
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = penalty / 2 * (weights**2).sum()
        for answers, labels in batches:
            total = total + objective((answers @ weights)[:, None] + bias, labels).sum() / n
        total.backward()
        return total

    optimiser.step(closure)
    closure()
    steepest = max(float(parameter.grad.abs().max()) for parameter in free if parameter.grad is not None)
    if steepest > 1e-4:
        raise RuntimeError(f"a fit of {settings.name} stopped at a gradient of {steepest:.1e}")
    return Fit(objective.requires_grad_(False), weights.detach(), factor)


def _batch_size(settings: LossSettings) -> int:
    return BATCH_SIZES[LOSSES[settings.name].data]


def _dev_loss(fit: Fit, batches: Sequence[tuple[Tensor, Labels]]) -> float:
    bias = fit.objective.initial_bias().double()
    losses = [fit.objective.dev_losses((answers @ fit.weights)[:, None] + bias, labels) for answers, labels in batches]
    return float(torch.cat(losses).mean())


# ---------------------------------------------------------------- judging a fit on fresh pairs


@dataclass(frozen=True)
class Fresh:
    """Fresh pairs.

    Args:
        features: (M, 2, F).
        margins: true score of the first minus that of the second, (M,).
        truth: true probabilities that the first wins, that the second wins, and of a tie, (M, 3).
    """

    features: Floats
    margins: Floats
    truth: Floats


def predicted(fit: Fit, features: Floats) -> Floats:
    """Log probabilities that the first wins, that the second wins and, where the loss knows ties, of a tie, (M, 2 or 3)."""
    margins = torch.from_numpy(fit.margins(features))
    name = type(fit.objective).__name__
    if name == "Ordinal":
        return _from_levels(fit, features)
    if name in ("RaoKupper", "Davidson"):
        sizes, tied = torch.full((len(margins),), 2), torch.ones(len(margins), dtype=torch.bool)
        ways = ((margins, ~tied), (-margins, ~tied), (margins, tied))
        return np.stack([-fit.objective.likelihood(d, Labels(sizes, tie=tie)).numpy() for d, tie in ways], axis=1)
    return -np.logaddexp(0, np.stack([-margins.numpy(), margins.numpy()], axis=1))


def _from_levels(fit: Fit, features: Floats) -> Floats:
    """Which of two answers gets the higher level, by the fitted probabilities of the levels."""
    answers = torch.from_numpy(features.reshape(-1, features.shape[2]))
    outputs, sizes = (answers @ fit.weights)[:, None], torch.ones(len(answers), dtype=torch.int64)
    logs = []
    for at in range(0, len(answers), 500):
        some, one = outputs[at : at + 500], sizes[at : at + 500]
        ratings = [torch.full_like(some, level) for level in fit.objective.learned()["levels"]]
        logs.append(torch.stack([-fit.objective(some, Labels(one, rating=rating)) for rating in ratings], dim=1))
    levels = torch.exp(torch.cat(logs)).numpy().reshape(len(features), 2, -1)
    return np.log(outcomes_of_levels(levels))


def outcomes_of_levels(levels: Floats) -> Floats:
    """Probabilities of (first higher, second higher, equal) from those of the levels of two answers, (M, 2, L) -> (M, 3)."""
    below = np.cumsum(levels, axis=2) - levels
    higher = (levels * below[:, ::-1]).sum(2)
    return np.column_stack([higher, (levels[:, 0] * levels[:, 1]).sum(1)])


def decided(truth: Floats, logs: Floats) -> float:
    """Log-loss on pairs that are no ties; a loss that knows ties is asked for its probabilities given that there is none."""
    both = truth[:, :2]
    given = logs[:, :2] - np.logaddexp(logs[:, :1], logs[:, 1:2])
    return float(-_expected(both, given) / both.sum())


def halves(truth: Floats, logs: Floats) -> float:
    """Log-loss where a tie is half a win each way, in the label as in the prediction: what Bradley-Terry with ties as halves minimises."""
    shares = truth[:, :2] + truth[:, 2:] / 2
    given = logs if logs.shape[1] == 2 else np.logaddexp(logs[:, :2], logs[:, 2:] - math.log(2))
    return float(-_expected(shares, given) / len(truth))


def three(truth: Floats, logs: Floats) -> float:
    """Log-loss of win, loss or tie; a loss that knows no ties gets the best constant share of them, which it could not know."""
    if logs.shape[1] == 2:
        share = truth[:, 2].mean()
        logs = np.column_stack([logs + math.log1p(-share), np.full(len(logs), math.log(share))])
    return float(-_expected(truth, logs) / len(truth))


def _expected(probabilities: Floats, logs: Floats) -> float:
    # What cannot happen adds nothing, whatever its logarithm.
    return float(np.where(probabilities > 0, probabilities * np.where(probabilities > 0, logs, 0), 0).sum())


MEASURES: dict[str, Callable[[Floats, Floats], float]] = {"decided": decided, "halves": halves, "three": three}


def judged(fit: Fit, fresh: Fresh, measures: Sequence[str]) -> dict[str, float]:
    """Log-losses above those of the true probabilities, how well margins agree, and what the loss learned.

    `rescaled` is the log-loss on decided pairs after the scores were multiplied by the factor that is best on these very fresh pairs: what is left of the loss if its scale
    is forgiven. It is read as Bradley-Terry probabilities, whatever the loss.
    """
    logs, margins = predicted(fit, fresh.features), fit.margins(fresh.features)
    with np.errstate(divide="ignore"):
        floor = np.log(fresh.truth)
    found = {
        name: MEASURES[name](fresh.truth, logs) - MEASURES[name](fresh.truth, _known(floor, name)) for name in measures
    }

    def at(log_factor: float) -> float:
        scaled = math.exp(log_factor) * margins
        return decided(fresh.truth, -np.logaddexp(0, np.stack([-scaled, scaled], axis=1)))

    found["rescaled"] = float(minimize_scalar(at, bounds=(-4, 4), method="bounded").fun) - decided(fresh.truth, floor)
    found["correlation"] = float(np.corrcoef(margins, fresh.margins)[0, 1])
    found["error"] = float(np.sqrt(((margins - fresh.margins) ** 2).mean()))
    found["spread"] = float(margins.std() / fresh.margins.std())
    found["penalty"] = fit.factor
    learned = fit.objective.learned()
    found |= {name: value for name, value in learned.items() if isinstance(value, float)}
    return found


def _known(floor: Floats, measure: str) -> Floats:
    """The logarithms of the truth without a column of ties where there are none."""
    return floor if measure == "decided" or np.isfinite(floor[:, 2]).all() else floor[:, :2]


# ---------------------------------------------------------------- true scores and what people say of them


@dataclass(frozen=True)
class Simulation:
    """One data set.

    Args:
        contestants: by name.
        fresh: fresh pairs by name.
        parameters: what a loss should learn beside the network, by the name under which it says so.
    """

    contestants: dict[str, Contestant]
    fresh: dict[str, Fresh]
    parameters: dict[str, float] = field(default_factory=dict)


def true_weights(generator: np.random.Generator, count: int = NUM_FEATURES) -> Floats:
    """Weights under which scores have a standard deviation of 1: a scorer that knows them ranks about 0.72 of Bradley-Terry pairs right."""
    return generator.normal(size=count) / math.sqrt(count)


def draw(generator: np.random.Generator, probabilities: Floats) -> Rows:
    """One outcome a row, (n, outcomes) -> (n,)."""
    return (generator.random(len(probabilities))[:, None] > np.cumsum(probabilities, axis=1)[:, :-1]).sum(axis=1)


def over_normal(probabilities: Callable[[float], Floats], deviation: float) -> Floats:
    """The mean of some probabilities over a normal deviate that they depend on."""
    return np.asarray(
        sum(weight * probabilities(deviation * node) for node, weight in zip(NODES, NODE_WEIGHTS, strict=True))
    )


def choices(margins: Floats) -> Floats:
    """Bradley-Terry: (first wins, second wins, never a tie), (M,) -> (M, 3)."""
    return np.column_stack([special.expit(margins), special.expit(-margins), np.zeros(len(margins))])


def rao_kupper_choices(margins: Floats, threshold: float) -> Floats:
    """Worths a and b: a / (a + theta b), b / (b + theta a), and a tie otherwise, (M,) -> (M, 3)."""
    a, b, theta = np.exp(margins / 2), np.exp(-margins / 2), math.exp(threshold)
    first, second = a / (a + theta * b), b / (b + theta * a)
    return np.column_stack([first, second, 1 - first - second])


def davidson_choices(margins: Floats, nu: float) -> Floats:
    """Worths a and b: a, b and a tie as a : b : nu sqrt(a b), (M,) -> (M, 3)."""
    a, b = np.exp(margins / 2), np.exp(-margins / 2)
    masses = np.column_stack([a, b, np.full(len(margins), nu)])
    return masses / masses.sum(axis=1, keepdims=True)


def level_probabilities(scores: Floats) -> Floats:
    """P(y <= k) = sigmoid(theta_k - s), (...,) -> (..., L)."""
    up_to = special.expit(LEVEL_THRESHOLDS - scores[..., None])
    edges = np.concatenate([np.zeros_like(scores)[..., None], up_to, np.ones_like(scores)[..., None]], axis=-1)
    return np.diff(edges, axis=-1)


def parameter_of_ties(probabilities: Callable[[Floats, float], Floats], share: float) -> float:
    """The threshold, or nu, under which this share of all pairs are ties; margins have a variance of 2."""

    def surplus(parameter: float) -> float:
        return float(NODE_WEIGHTS @ probabilities(math.sqrt(2) * NODES, parameter)[:, 2]) - share

    return float(brentq(surplus, 1e-6, 20))


def fresh_pairs(generator: np.random.Generator, weights: Floats, truth: Callable[[Floats], Floats]) -> Fresh:
    """Fresh pairs of standard normal features, with their outcomes' probabilities from the true margins."""
    features = generator.normal(size=(NUM_FRESH, 2, len(weights)))
    scores = features @ weights
    margins = scores[:, 0] - scores[:, 1]
    return Fresh(features, margins, truth(margins))


def first_wins_as_chosen(features: Floats, first: NDArray[np.bool_]) -> Floats:
    """Each pair with its winner first."""
    return np.where(first[:, None, None], features, features[:, ::-1])


def pair_examples(features: Floats, **columns: NDArray[Any]) -> Examples:
    """Pairs, chosen first, with label columns."""
    ties, votes = columns.get("tie"), columns.get("votes")
    rows = [
        Preference(
            str(i),
            "prompt",
            "chosen",
            "rejected",
            tie=ties is not None and bool(ties[i]),
            votes=None if votes is None else (int(votes[i, 0]), int(votes[i, 1])),
        )
        for i in range(len(features))
    ]
    return Examples(features, rows, columns)


def list_examples(features: Floats, ratings: Floats) -> Examples:
    """Lists with ratings, higher the better."""
    texts = tuple("abcdefgh"[: features.shape[1]])
    rows = [Group(str(i), "prompt", texts, "rated", tuple(row)) for i, row in enumerate(ratings.tolist())]
    return Examples(features, rows, {"rating": ratings})


def all_pairs(features: Floats, ratings: Floats) -> tuple[Floats, Floats]:
    """All pairs of different ratings of each list, the better answer first, (n, K, F) -> (pairs, 2, F); and the differences of the ratings."""
    found, gaps = [], []
    for i, j in combinations(range(features.shape[1]), 2):
        gap = ratings[:, i] - ratings[:, j]
        told = gap != 0
        found.append(first_wins_as_chosen(features[told][:, [i, j]], gap[told] > 0))
        gaps.append(np.abs(gap[told]))
    return np.concatenate(found), np.concatenate(gaps)


def ties(
    generator: np.random.Generator, num_prompts: int, probabilities: Callable[[Floats, float], Floats]
) -> Simulation:
    """Pairs of which a fifth are called equal."""
    parameter = parameter_of_ties(probabilities, TIE_SHARE)
    weights = true_weights(generator)
    features = generator.normal(size=(num_prompts, 2, NUM_FEATURES))
    scores = features @ weights
    outcome = draw(generator, probabilities(scores[:, 0] - scores[:, 1], parameter))
    tied, ordered = outcome == 2, first_wins_as_chosen(features, outcome != 1)

    def with_ties(rows: Rows) -> Examples:
        return pair_examples(ordered[rows], tie=tied[rows])

    def without(rows: Rows) -> Examples:
        return pair_examples(ordered[rows[~tied[rows]]])

    contestants = {
        "rao_kupper": Contestant(LossSettings(name="rao_kupper"), with_ties),
        "davidson": Contestant(LossSettings(name="davidson"), with_ties),
        "BT, ties dropped": Contestant(LossSettings(), without),
        "BT, ties as halves": Contestant(LossSettings(), with_ties),
    }
    fresh = fresh_pairs(generator, weights, lambda margins: probabilities(margins, parameter))
    name = {rao_kupper_choices: "threshold", davidson_choices: "nu"}[probabilities]
    return Simulation(contestants, {"": fresh}, {name: parameter})


def votes(generator: np.random.Generator, num_prompts: int, *, least: int, most: int, shared: float) -> Simulation:
    """Pairs with several votes each; `shared` is how much the voters of a pair agree on beyond the score."""
    weights = true_weights(generator)
    features = generator.normal(size=(num_prompts, 2, NUM_FEATURES))
    scores = features @ weights
    seen = scores[:, 0] - scores[:, 1] + shared * generator.normal(size=num_prompts)
    voters = generator.integers(least, most + 1, size=num_prompts)
    first = generator.binomial(voters, special.expit(seen))
    both = np.stack([first, voters - first], axis=1).astype(np.float64)

    def counted(rows: Rows) -> Examples:
        return pair_examples(features[rows], votes=both[rows])

    def shares(rows: Rows) -> Examples:
        return pair_examples(features[rows], share=both[rows, 0] / both[rows].sum(axis=1))

    def majority(rows: Rows) -> Examples:
        rows = rows[both[rows, 0] != both[rows, 1]]
        return pair_examples(first_wins_as_chosen(features[rows], both[rows, 0] > both[rows, 1]))

    contestants = {
        "vote_share": Contestant(LossSettings(name="vote_share"), counted),
        "BT, majority of the votes": Contestant(LossSettings(), majority),
        "BT, vote shares as soft labels": Contestant(LossSettings(), shares),
    }
    truth = fresh_pairs(generator, weights, lambda margins: over_normal(lambda moved: choices(margins + moved), shared))
    return Simulation(contestants, {"": truth})


def lists(generator: np.random.Generator, num_prompts: int) -> Simulation:
    """Full rankings of four answers: the best is chosen among all by its worth, then the best of the rest, and so on."""
    weights = true_weights(generator)
    features = generator.normal(size=(num_prompts, LIST_LENGTH, NUM_FEATURES))
    worths = np.exp(features @ weights)
    ratings = np.zeros((num_prompts, LIST_LENGTH))
    left = np.ones((num_prompts, LIST_LENGTH), dtype=bool)
    for place in range(LIST_LENGTH, 0, -1):
        masses = worths * left
        taken = draw(generator, masses / masses.sum(axis=1, keepdims=True))
        ratings[np.arange(num_prompts), taken] = place
        left[np.arange(num_prompts), taken] = False
    contestants = _of_lists(features, ratings, ["plackett_luce", "BT, all pairs"])
    return Simulation(contestants, {"": fresh_pairs(generator, weights, choices)})


def ratings_of_levels(generator: np.random.Generator, num_prompts: int, *, shared: float) -> Simulation:
    """Four answers a prompt, each rated on five levels; `shared` is how much raters differ in mildness from prompt to prompt."""
    weights = true_weights(generator)
    features = generator.normal(size=(num_prompts, LIST_LENGTH, NUM_FEATURES))
    mild = shared * generator.normal(size=(num_prompts, 1))
    levels = level_probabilities(features @ weights + mild)
    ratings = 1.0 + draw(generator, levels.reshape(-1, levels.shape[2])).reshape(num_prompts, LIST_LENGTH)
    names = ["ordinal", "regression", "plackett_luce", "BT, all pairs", "BT, all pairs with margins"]
    contestants = _of_lists(features, ratings, names)
    pairs = generator.normal(size=(NUM_FRESH, 2, NUM_FEATURES))
    scores = pairs @ weights
    truth = over_normal(lambda moved: outcomes_of_levels(level_probabilities(scores + moved)), shared)
    return Simulation(contestants, {"": Fresh(pairs, scores[:, 0] - scores[:, 1], truth)})


def _of_lists(features: Floats, ratings: Floats, names: Sequence[str]) -> dict[str, Contestant]:
    def whole(rows: Rows) -> Examples:
        return list_examples(features[rows], ratings[rows])

    def pairs(rows: Rows) -> Examples:
        return pair_examples(all_pairs(features[rows], ratings[rows])[0])

    def with_margins(rows: Rows) -> Examples:
        found, gaps = all_pairs(features[rows], ratings[rows])
        return pair_examples(found, margin=gaps)

    known = {
        "BT, all pairs": Contestant(LossSettings(), pairs),
        "BT, all pairs with margins": Contestant(LossSettings(), with_margins),
    }
    return {name: known.get(name) or Contestant(LossSettings(name=name), whole) for name in names}  # type: ignore[arg-type]


def flips(generator: np.random.Generator, num_prompts: int, *, share: float) -> Simulation:
    """Pairs of which some are the wrong way round; fresh pairs are not."""
    weights = true_weights(generator)
    features = generator.normal(size=(num_prompts, 2, NUM_FEATURES))
    scores = features @ weights
    first = generator.random(num_prompts) < special.expit(scores[:, 0] - scores[:, 1])
    ordered = first_wins_as_chosen(features, first ^ (generator.random(num_prompts) < share))

    def labelled(rows: Rows) -> Examples:
        return pair_examples(ordered[rows])

    contestants = {
        "flip_noise 0.2": Contestant(LossSettings(name="flip_noise", flip_rate=0.2), labelled),
        "flip_noise 0.1": Contestant(LossSettings(name="flip_noise", flip_rate=0.1), labelled),
        "BT": Contestant(LossSettings(), labelled),
        "BT, label smoothing 0.2": Contestant(LossSettings(label_smoothing=0.2), labelled),
    }
    return Simulation(contestants, {"": fresh_pairs(generator, weights, choices)})


def swaps(generator: np.random.Generator, num_prompts: int) -> Simulation:
    """Scores of style and of relevance; all answers of the data are on topic, so that their relevance hardly differs.

    The features of an answer are 48 of style and the products of 16 topics of its prompt with the same 16 of the answer. A relevant answer has about 4 more than an
    answer to another prompt; between two answers to one prompt relevance differs by about 0.7.
    """
    style, topics = 48, 16
    weights = np.concatenate([true_weights(generator, style), np.ones(topics)])

    def answers(count: int) -> tuple[Floats, Floats, Floats]:
        """Topics of prompts (count, T), style (count, 2, S) and topics (count, 2, T) of two answers to each."""
        asked = generator.normal(size=(count, topics))
        told = asked[:, None] + 0.5 * generator.normal(size=(count, 2, topics))
        return asked, generator.normal(size=(count, 2, style)), told

    def features_of(asked: Floats, written: Floats, told: Floats) -> Floats:
        return np.concatenate([written, asked[:, None] * told / math.sqrt(topics)], axis=2)

    asked, written, told = answers(num_prompts)
    scores = features_of(asked, written, told) @ weights
    first = generator.random(num_prompts) < special.expit(scores[:, 0] - scores[:, 1])
    written, told = first_wins_as_chosen(written, first), first_wins_as_chosen(told, first)
    # Texts by number, so that the project's own augmentation can lend them out.
    rows_of = [Preference(str(i), f"p{i}", f"c{i}", f"r{i}") for i in range(num_prompts)]
    seed = int(generator.integers(1 << 31))

    def plain(rows: Rows) -> Examples:
        return pair_examples(features_of(asked[rows], written[rows], told[rows]))

    def swapped(rows: Rows, off_topic: float, neutral: float) -> Examples:
        extra = swapped_pairs([rows_of[i] for i in rows], off_topic=off_topic, neutral=neutral, seed=seed)
        pairs = [*(rows_of[i] for i in rows), *extra]
        prompt = np.array([int(pair.prompt[1:]) for pair in pairs])
        lender = np.array([[int(text[1:]) for text in (pair.chosen, pair.rejected)] for pair in pairs])
        side = np.array([[int(text[0] == "r") for text in (pair.chosen, pair.rejected)] for pair in pairs])
        tied = np.array([pair.tie for pair in pairs])
        return pair_examples(features_of(asked[prompt], written[lender, side], told[lender, side]), tie=tied)

    contestants = {
        "BT": Contestant(LossSettings(), plain),
        "BT, off_topic 1": Contestant(LossSettings(), lambda rows: swapped(rows, 1.0, 0.0), plain),
        "BT, off_topic 1, neutral 1": Contestant(LossSettings(), lambda rows: swapped(rows, 1.0, 1.0), plain),
    }

    def fresh(features: Floats) -> Fresh:
        margins = features @ weights
        margins = margins[:, 0] - margins[:, 1]
        return Fresh(features, margins, choices(margins))

    new_asked, new_written, new_told = answers(NUM_FRESH)
    lent_written, lent_told = new_written.copy(), new_told.copy()
    lent_written[:, 1], lent_told[:, 1] = np.roll(new_written[:, 1], 1, axis=0), np.roll(new_told[:, 1], 1, axis=0)
    return Simulation(
        contestants,
        {
            "": fresh(features_of(new_asked, new_written, new_told)),
            "one off topic": fresh(features_of(new_asked, lent_written, lent_told)),
        },
    )


# ---------------------------------------------------------------- the study


@dataclass(frozen=True)
class Scenario:
    """A kind of data, and what is compared on it.

    Args:
        title: for people.
        simulate: draws one data set of so many prompts.
        sizes: numbers of prompts.
        comparisons: (a loss, another loss); the first one should be better where `shown` says so.
        measures: log-losses on fresh pairs.
        shown: the comparisons in which the study claims that the first is better.
    """

    title: str
    simulate: Callable[[np.random.Generator, int], Simulation]
    sizes: tuple[int, ...]
    comparisons: tuple[tuple[str, str], ...]
    measures: tuple[str, ...] = ("decided",)
    shown: tuple[tuple[str, str], ...] = ()


PAIRS, LISTS = (1000, 4000), (250, 1000)
_DROPPED, _HALVES, _MAJORITY, _SOFT = (
    "BT, ties dropped",
    "BT, ties as halves",
    "BT, majority of the votes",
    "BT, vote shares as soft labels",
)
_OF_VOTES = (("vote_share", _MAJORITY), ("vote_share", _SOFT))
_OF_RATINGS = (
    ("ordinal", "BT, all pairs"),
    ("regression", "BT, all pairs"),
    ("plackett_luce", "BT, all pairs"),
    ("BT, all pairs with margins", "BT, all pairs"),
)
_OF_FLIPS = (("flip_noise 0.2", "BT"), ("flip_noise 0.1", "BT"), ("BT, label smoothing 0.2", "BT"))
SCENARIOS: dict[str, Scenario] = {
    "ties_rao_kupper": Scenario(
        "20 % ties by Rao and Kupper",
        lambda generator, n: ties(generator, n, rao_kupper_choices),
        PAIRS,
        (("rao_kupper", _DROPPED), ("rao_kupper", _HALVES), ("davidson", _DROPPED), ("rao_kupper", "davidson")),
        ("decided", "halves", "three"),
        shown=(("rao_kupper", _DROPPED), ("rao_kupper", _HALVES)),
    ),
    "ties_davidson": Scenario(
        "20 % ties by Davidson",
        lambda generator, n: ties(generator, n, davidson_choices),
        PAIRS,
        (("davidson", _DROPPED), ("davidson", _HALVES), ("rao_kupper", _DROPPED), ("davidson", "rao_kupper")),
        ("decided", "halves", "three"),
        shown=(("davidson", _DROPPED), ("davidson", _HALVES)),
    ),
    "votes_5": Scenario(
        "5 votes a pair",
        lambda generator, n: votes(generator, n, least=NUM_VOTES, most=NUM_VOTES, shared=0.0),
        PAIRS,
        _OF_VOTES,
        shown=(("vote_share", _MAJORITY),),
    ),
    "votes_1_to_9": Scenario(
        "1 to 9 votes a pair",
        lambda generator, n: votes(generator, n, least=1, most=9, shared=0.0),
        PAIRS,
        _OF_VOTES,
    ),
    "votes_1_to_9_shared": Scenario(
        "1 to 9 votes a pair that depend on each other",
        lambda generator, n: votes(generator, n, least=1, most=9, shared=SHARED_DEVIATION),
        PAIRS,
        _OF_VOTES,
    ),
    "lists_4": Scenario(
        "lists of 4",
        lists,
        LISTS,
        (("plackett_luce", "BT, all pairs"),),
        shown=(("plackett_luce", "BT, all pairs"),),
    ),
    "ratings": Scenario(
        "4 answers rated on 5 levels",
        lambda generator, n: ratings_of_levels(generator, n, shared=0.0),
        LISTS,
        _OF_RATINGS,
    ),
    "ratings_mild": Scenario(
        "4 answers rated on 5 levels, raters mild or strict by prompt",
        lambda generator, n: ratings_of_levels(generator, n, shared=SHARED_DEVIATION),
        LISTS,
        _OF_RATINGS,
    ),
    "flips": Scenario(
        "20 % of the labels the wrong way round",
        lambda generator, n: flips(generator, n, share=FLIP_SHARE),
        PAIRS,
        _OF_FLIPS,
    ),
    "no_flips": Scenario(
        "no label the wrong way round", lambda generator, n: flips(generator, n, share=0.0), PAIRS, _OF_FLIPS
    ),
    "prompt_swap": Scenario(
        "all answers on topic",
        swaps,
        PAIRS,
        (("BT, off_topic 1", "BT"), ("BT, off_topic 1, neutral 1", "BT")),
    ),
}


def penalties_of(name: str, num_prompts: int, *, jobs: int = 1) -> dict[str, float]:
    """The penalty of each contestant that has the lowest mean dev loss over a few data sets, which are not those of the study."""
    found = joblib.Parallel(n_jobs=jobs)(joblib.delayed(_pilot)(name, num_prompts, pilot) for pilot in range(PILOTS))
    return {label: PENALTIES[int(np.mean([one[label] for one in found], axis=0).argmin())] for label in found[0]}


def _pilot(name: str, num_prompts: int, number: int) -> dict[str, list[float]]:
    torch.set_num_threads(1)
    simulation, split = _simulated(name, num_prompts, [0, number])
    return {
        label: dev_losses(contestant, num_prompts, np.random.default_rng(split))
        for label, contestant in simulation.contestants.items()
    }


def measure(name: str, num_prompts: int, data_set: int, penalties: dict[str, float]) -> dict[str, dict[str, float]]:
    """Everything about one data set: {contestant: {measure: value}}; a function of its arguments."""
    torch.set_num_threads(1)  # tensors this small gain nothing from more
    scenario, (simulation, _) = SCENARIOS[name], _simulated(name, num_prompts, [1, data_set])
    found = {}
    for label, contestant in simulation.contestants.items():
        examples = contestant.examples(np.arange(num_prompts))
        fit = fit_once(contestant.loss, examples, penalties[label], num_prompts)
        found[label] = {
            f"{kind}: {key}" if kind else key: value
            for kind, fresh in simulation.fresh.items()
            for key, value in judged(fit, fresh, scenario.measures).items()
        }
        learned = fit.objective.learned()
        found[label] |= {
            f"{key} error": learned[key] - true for key, true in simulation.parameters.items() if key in learned
        }
    return found


def _simulated(name: str, num_prompts: int, stream: list[int]) -> tuple[Simulation, int]:
    """A data set, and the seed of its split."""
    generator = np.random.default_rng([list(SCENARIOS).index(name), num_prompts, *stream])
    return SCENARIOS[name].simulate(generator, num_prompts), int(generator.integers(1 << 31))


def study(names: Sequence[str], *, data_sets: int, jobs: int = 1, small: bool = False) -> list[dict[str, Any]]:
    """One row a comparison and size; `small` leaves out the larger sizes."""
    rows = []
    for name in names:
        scenario = SCENARIOS[name]
        for num_prompts in scenario.sizes[: 1 if small else None]:
            penalties = penalties_of(name, num_prompts, jobs=jobs)
            found = joblib.Parallel(n_jobs=jobs)(
                joblib.delayed(measure)(name, num_prompts, data_set, penalties) for data_set in range(data_sets)
            )
            rows += [compared(name, num_prompts, ours, theirs, found) for ours, theirs in scenario.comparisons]
    return rows


def compared(
    name: str, num_prompts: int, ours: str, theirs: str, found: Sequence[dict[str, dict[str, float]]]
) -> dict[str, Any]:
    """One row of the results; log-losses in nats above those of the true probabilities.

    `difference` holds ours minus theirs: by measure; of ours as it is to theirs with the best factor there is; of both with their best factors, which sees only the
    order and the relative sizes of margins; and of the correlations with the true margins.
    """
    scenario = SCENARIOS[name]
    own, other = (
        {key: np.array([one[label][key] for one in found]) for key in found[0][label]} for label in (ours, theirs)
    )
    differences = {
        key: own[key] - other[key] for key in own if key.split(": ")[-1] in (*scenario.measures, "correlation")
    }
    differences["decided, theirs rescaled"] = own["decided"] - other["rescaled"]
    differences["decided, both rescaled"] = own["rescaled"] - other["rescaled"]
    ratios = other["decided"] / own["decided"]
    return {
        "benchmark": f"{scenario.title}: {ours} against {theirs}, {num_prompts} prompts",
        "scenario": name,
        "prompts": num_prompts,
        "features": NUM_FEATURES,
        "fresh_pairs_a_data_set": NUM_FRESH,
        "ratio": {
            key: round(float(of(ratios)), 3) for key, of in (("median", np.median), ("min", np.min), ("max", np.max))
        },
        "target": 1.0 if (ours, theirs) in scenario.shown else None,
        "difference": {key: over_data_sets(values).as_dict() for key, values in differences.items()},
        "learned_minus_true": {
            key: over_data_sets(own[key]).as_dict() for key in own if key in ("threshold error", "nu error")
        },
        "ours": {"loss": ours, **means(own)},
        "theirs": {"loss": theirs, **means(other)},
        "same_work": True,
        "precision": "float64",
    }


def over_data_sets(values: Floats) -> stats.Estimate:
    """The mean of one number a data set, with its bootstrap interval."""
    found = stats.mean(values, np.arange(len(values)))
    return replace(found, method=f"bootstrap over {len(values)} data sets")


def means(columns: dict[str, Floats]) -> dict[str, float]:
    """Means over data sets."""
    return {key: round(float(values.mean()), 5) for key, values in columns.items()}


def main() -> None:
    """Run the study, print one JSON line a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-sets", type=int, default=DATA_SETS)
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = study(asked.scenario or list(SCENARIOS), data_sets=asked.data_sets, jobs=asked.jobs)
    environment = record.environment(PACKAGES)
    record.publish([row | environment for row in rows], asked.out)


if __name__ == "__main__":
    main()
