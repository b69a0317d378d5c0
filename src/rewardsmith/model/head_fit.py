"""A run whose head is solved for: its features and labels into the solver, the solution into the network, the dev part as ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rewardsmith.config import TrainSettings
from rewardsmith.data.examples import Example
from rewardsmith.data.schema import prompt_key
from rewardsmith.model.callbacks import DevPoint, SelectionCallback
from rewardsmith.model.examples import ExampleTable
from rewardsmith.model.frozen_features import HeadLearner
from rewardsmith.model.head_solver import HeadFit, HeadProblem, fit_head
from rewardsmith.model.losses import PairObjective
from rewardsmith.stats import Floats, cluster_codes


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
