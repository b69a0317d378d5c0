"""A run whose head is solved for: strength, solution and spread; its labels and features into the solver, the solution into the network."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rewardsmith.config import HeadSettings, TrainSettings
from rewardsmith.data.examples import Example
from rewardsmith.data.schema import prompt_key
from rewardsmith.model.callbacks import DevPoint, SelectionCallback
from rewardsmith.model.examples import ExampleTable
from rewardsmith.model.frozen_features import HeadLearner
from rewardsmith.model.head_solver import HeadProblem, solve_heads
from rewardsmith.model.head_spread import HeadSpread, head_spread, resampled_heads
from rewardsmith.model.head_strength import StrengthChoice, choose_strength
from rewardsmith.model.losses import PairObjective
from rewardsmith.stats import Floats, cluster_codes


@dataclass(frozen=True)
class HeadFit:
    """The head of a run.

    Args:
        weight: float32 (H,).
        bias: 0 but where the loss is centred and the head has one.
        l2: strength of the penalty.
        choice: how it was chosen; None where it was set.
        loss: the mean training loss, without penalty and centring.
        gradient_norm: see `Heads`.
        iterations: of the last solution.
        size: r in the penalty.
        spread: of resampled heads, if any.
        seconds: that everything took.
    """

    weight: NDArray[np.float32]
    bias: float
    l2: float
    choice: StrengthChoice | None
    loss: float
    gradient_norm: float
    iterations: int
    size: float
    spread: HeadSpread | None
    seconds: float

    def facts(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "solver": "lbfgs",
            "l2": self.l2,
            "l2_chosen_by": "as set" if self.choice is None else "cross-validation",
            "cross_validation": None if self.choice is None else self.choice.as_dict(),
            "train_loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "iterations": self.iterations,
            "feature_size": self.size,
            "resamples": None if self.spread is None else self.spread.as_dict(),
        }

    def lines(self) -> list[str]:
        """The same for people."""
        chosen = "as set"
        told = []
        if self.choice is not None:
            choice = self.choice
            chosen = f"the best of {len(choice.strengths)} by cross-validation in {choice.folds} folds of whole prompts"
            weak, strong = choice.alike
            told.append(
                f"head: held-out log-loss {choice.log_loss}; within one standard error of it: l2 from {weak:.2g} to {strong:.2g}"
            )
            if choice.l2 in (choice.strengths[0], choice.strengths[-1]):
                told.append(f"warning: l2 {choice.l2:.2g} is at the end of what was tried; set head.l2 to go further")
        if self.spread is not None:
            told.append(
                f"head: {self.spread.heads} heads on data drawn again by prompt: standard deviation {self.spread.score_sd} of a score and "
                f"{self.spread.margin_sd} of a margin of the {self.spread.part} pairs; {self.spread.turned} of the orders turn round"
            )
        return [
            f"head: solved in {self.seconds:.1f} s by L-BFGS ({self.iterations} iterations, gradient {self.gradient_norm:.0e}); "
            f"l2 {self.l2:.2g} ({chosen})",
            *told,
        ]


def fit_head(
    problem: HeadProblem,
    prompts: NDArray[np.int64],
    settings: HeadSettings,
    *,
    seed: int,
    spread_on: Callable[[], tuple[Floats, NDArray[np.int64], str]],
) -> HeadFit:
    """Choose the strength if that is asked for, solve for the head, and for resampled ones if they are.

    Args:
        problem: the training pairs.
        prompts: the prompt of each, (n,).
        settings: the `[head]` table.
        seed: of folds and resamples; the head does not depend on it but through the chosen strength.
        spread_on: the features (2m, H), the prompts (m,) and the name of the pairs on which resampled heads are compared.

    Raises:
        DataError: if there are fewer prompts than folds.
        NonFiniteError: if the solver does not arrive.
    """
    started = time.monotonic()
    choice = None if settings.l2 != "cv" else choose_strength(problem, prompts, folds=settings.folds, seed=seed)
    l2 = choice.l2 if choice is not None else float(settings.l2)
    heads = solve_heads(problem, np.ones((1, len(prompts))), np.array([l2]))
    weight = heads.weight[0]
    margins = problem.differences @ torch.from_numpy(weight)
    losses = problem.weight * problem.objective.fitted(margins, problem.labels)
    fit = HeadFit(
        weight.astype(np.float32),
        float(heads.bias[0]),
        l2,
        choice,
        float(losses.mean()),
        heads.gradient_norm,
        heads.iterations,
        problem.size,
        None,
        0.0,
    )
    if settings.resamples:
        again = resampled_heads(problem, prompts, weight, l2=l2, resamples=settings.resamples, seed=seed)
        features, of_prompts, part = spread_on()
        fit = replace(fit, spread=head_spread(again.weight, weight, features, of_prompts, part=part))
    return replace(fit, seconds=time.monotonic() - started)


@dataclass(frozen=True)
class Learned:
    """How the weights that are now in the network came to be.

    Args:
        history: log lines (loss, accuracy, ... by step).
        kept_step: the step whose weights were kept.
        steps: how many were taken; of a solver its iterations.
        seconds: that it took.
        pairs_per_second: examples a second.
        stopped_early: whether patience ended it.
        facts: more for the record.
    """

    history: list[dict[str, Any]]
    kept_step: int
    steps: int
    seconds: float
    pairs_per_second: float
    stopped_early: bool
    facts: dict[str, Any] = field(default_factory=dict)


def solve_on_features(
    learner: HeadLearner,
    objective: PairObjective,
    train: Sequence[Example],
    dev: Sequence[Example],
    settings: TrainSettings,
    selection: SelectionCallback | None,
    *,
    say: Callable[[str], None],
) -> Learned:
    """Solve for the head, put it into the network and judge it on the dev part, which had no say in it.

    Args:
        learner: the head over features.
        objective: the loss.
        train: the examples of the learner's table.
        dev: those of its dev part.
        settings: of the run.
        selection: scores the dev part, where there is one.
        say: prints a line.

    Raises:
        DataError: if the pairs do not differ, or there are fewer prompts than folds.
        NonFiniteError: if the solver does not arrive.
    """
    if selection is not None:
        selection.history.points.clear()  # of a run that was cut off: this one begins anew
        selection.at_start(_judge(selection, 0))
    table, head = learner.table, learner.network.head_module
    problem = HeadProblem.of(
        objective, table.labels_of(np.arange(len(table))), _features(learner, table), has_bias=head.bias is not None
    )

    def spread_on() -> tuple[Floats, NDArray[np.int64], str]:
        if learner.dev_table is None:
            return _features(learner, table), _prompts(train), "train"
        return _features(learner, learner.dev_table), _prompts(dev), "dev"

    fit = fit_head(problem, _prompts(train), settings.head, seed=settings.seed, spread_on=spread_on)
    for line in fit.lines():
        say(line)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fit.weight)[None])
        if head.bias is not None:
            head.bias.fill_(fit.bias)
    if selection is not None:
        _judge(selection, fit.iterations)
    return _learned(fit, len(train))


def _judge(selection: SelectionCallback, step: int) -> DevPoint:
    point = DevPoint(step, *selection.score_dev())
    selection.history.add(point)
    selection.say(f"iteration {step}: dev {selection.measure} {point.log_loss:.4f}, accuracy {point.accuracy:.3f}")
    return point


def _features(learner: HeadLearner, table: ExampleTable) -> Floats:
    return learner.inputs(table).astype(np.float64)


def _prompts(examples: Sequence[Example]) -> NDArray[np.int64]:
    return cluster_codes([prompt_key(example.prompt) for example in examples])


def _learned(fit: HeadFit, num_pairs: int) -> Learned:
    return Learned(
        history=[{"step": fit.iterations, "loss": fit.loss}],
        kept_step=fit.iterations,
        steps=fit.iterations,
        seconds=fit.seconds,
        pairs_per_second=num_pairs / max(fit.seconds, 1e-9),
        stopped_early=False,
        facts={"head": fit.facts()},
    )
