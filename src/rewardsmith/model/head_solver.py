"""The linear head over frozen features, solved exactly: L-BFGS on the loss of the run plus an L2 penalty, many heads at once.

Every problem is the same data under other weights and another strength: a fold of a cross-validation, a bootstrap resample. So all of them are one matrix of
heads, and one evaluation is two products of matrices. Legend: `n` pairs, `H` features, `S` problems.

The penalty is l2 / 2 * (r |w|)^2, r the root mean square length of the difference between a pair's features: r |w| is the size of the margins that the weights
can make, so a strength means the same for features of any size, and a rotation of them changes nothing. It is added to the mean loss of a pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from rewardsmith.config import HeadSettings, TrainSettings
from rewardsmith.errors import DataError, NonFiniteError, SettingsError
from rewardsmith.model.losses import Labels, PairObjective
from rewardsmith.stats import Floats

SOLVABLE = ("bradley_terry", "vote_share")
"""Losses that are convex in the head's weights and learn nothing beside them."""
# What takes steps reads them; a solution does not.
_OF_STEPS = (
    *("learning_rate", "head_learning_rate", "weight_decay", "epochs", "batch_size"),
    *("batch_tokens", "ema_decay", "patience", "trainer", "layer_decay"),
)
_GRADIENT = 1e-8
_MAX_ITERATIONS = 5000
# The solver also stops when no step gains a digit any more. So far from its goal that is an answer, further off it is none.
_SLACK = 1e3
GRADIENT_OF_MANY = 1e-6
"""Where folds and resamples stop: an error of the gradient enters a loss by its square."""


def check_head(settings: TrainSettings) -> None:
    """Refuse a `[head]` table that cannot be meant beside the other settings.

    Raises:
        SettingsError: naming the setting.
    """
    head, defaults = settings.head, HeadSettings()
    if head.solver == "adamw":
        unread = [name for name in ("l2", "folds", "resamples") if getattr(head, name) != getattr(defaults, name)]
        if unread:
            raise SettingsError(
                f'head.solver = "lbfgs" for {", ".join(f"head.{name}" for name in unread)}',
                'solver = "adamw"',
                'Set head.solver = "lbfgs", or leave it out.',
            )
        return
    if settings.freeze != "encoder":
        raise SettingsError(
            'freeze = "encoder" for head.solver = "lbfgs", which solves for the head alone',
            f"freeze = {settings.freeze!r}",
            'Set freeze = "encoder", or leave head.solver out.',
        )
    if settings.loss.name not in SOLVABLE:
        raise SettingsError(
            f'one of the losses {", ".join(SOLVABLE)} for head.solver = "lbfgs"',
            settings.loss.name,
            'Choose one of them, or head.solver = "adamw".',
        )
    for name in _OF_STEPS:
        if getattr(settings, name) != TrainSettings.model_fields[name].get_default(call_default_factory=True):
            raise SettingsError(
                'only settings that head.solver = "lbfgs" reads: it takes no steps',
                f"{name} = {getattr(settings, name)!r}",
                f"Leave {name} out.",
            )
    if head.l2 != "cv" and head.folds != defaults.folds:
        raise SettingsError('head.l2 = "cv" for head.folds', f"l2 = {head.l2:g}", "Leave one of the two out.")


@dataclass(frozen=True)
class HeadProblem:
    """Pairs as differences of features under a loss of d = w (chosen - rejected).

    Args:
        objective: gives the loss of each d.
        labels: of the n pairs.
        differences: chosen minus rejected, float64 (n, H).
        sums: chosen plus rejected, float64 (n, H), where the loss is centred; else None.
        has_bias: whether the head has a bias to centre with.
    """

    objective: PairObjective
    labels: Labels
    differences: Tensor
    sums: Tensor | None
    has_bias: bool

    @classmethod
    def of(cls, objective: PairObjective, labels: Labels, features: Floats, *, has_bias: bool) -> HeadProblem:
        """The problem of n pairs whose features (2n, H) stand in the order chosen, rejected.

        Raises:
            DataError: if no two answers differ in their features.
        """
        both = torch.from_numpy(np.asarray(features, dtype=np.float64))
        chosen, rejected = both[0::2], both[1::2]
        if not bool((chosen != rejected).any()):
            raise DataError(
                "pairs whose answers differ in their features", "none", "Choose another pooling or another encoder."
            )
        sums = chosen + rejected if objective.centring else None
        return cls(objective, labels, chosen - rejected, sums, has_bias)

    @cached_property
    def weight(self) -> Tensor:
        """Of the pairs in the loss, float64 (n,)."""
        ones = torch.ones(len(self.differences), dtype=torch.float64)
        return ones if self.labels.weight is None else ones * self.labels.weight

    @cached_property
    def size(self) -> float:
        """The root mean square length of the differences."""
        return float(self.differences.square().sum(1).mean().sqrt())

    @cached_property
    def basis(self) -> Basis:
        """In which the solver works."""
        return Basis.of(self)


@dataclass(frozen=True)
class Basis:
    """The principal axes of the pairs' differences, in which the curvature of the loss at w = 0 is diagonal.

    Args:
        axes: orthonormal, (H, K), K at most the smaller of n and H: what no pair differs in the penalty keeps at 0.
        curvature: of the mean loss along them at w = 0, in units of `HeadProblem.size`, (K,).
        differences: along them and in these units, (n, K).
        sums: likewise; less their mean where there is a bias.
    """

    axes: Tensor
    curvature: Tensor
    differences: Tensor
    sums: Tensor | None

    @classmethod
    def of(cls, problem: HeadProblem) -> Basis:
        """The curvature of softplus at 0 is 1/4, that of c x^2 is 2 c. Labels and margins move it a little, which a start may leave aside."""
        root, sums = problem.weight.sqrt()[:, None], problem.sums
        rows = [problem.differences * root / 2]
        if sums is not None:
            if problem.has_bias:  # which takes up whatever all sums share
                sums = sums - sums.mean(0)
            rows.append(sums * root * math.sqrt(2 * problem.objective.centring))
        stacked = torch.cat(rows).numpy() / problem.size
        if len(stacked) < stacked.shape[1]:
            _, singular, transposed = scipy.linalg.svd(stacked, full_matrices=False, check_finite=False)
            axes, squares = transposed.T, singular**2
        else:  # the axes come out orthonormal all the same, and their curvature only has to be about right
            squares, axes = scipy.linalg.eigh(stacked.T @ stacked, overwrite_a=True, check_finite=False)
        inside = torch.from_numpy(np.ascontiguousarray(axes))
        curvature = torch.from_numpy(squares.clip(min=0) / len(problem.differences))
        along = None if sums is None else sums / problem.size @ inside
        return cls(inside, curvature, problem.differences / problem.size @ inside, along)


@dataclass(frozen=True)
class Heads:
    """Solutions of S problems.

    Args:
        weight: in the features' own units, float64 (S, H).
        bias: (S,); 0 but where the loss is centred and the head has one.
        gradient_norm: of the penalised loss at the solution, with respect to weights in units of `HeadProblem.size`, the largest of all problems.
        iterations: of the solver.
    """

    weight: Floats
    bias: Floats
    gradient_norm: float
    iterations: int


def solve_heads(
    problem: HeadProblem,
    counts: Floats,
    strengths: Floats,
    *,
    start: Floats | None = None,
    gradient: float = _GRADIENT,
) -> Heads:
    """The heads that minimise the penalised loss, each for its own row of counts and its own strength.

        sum_i c_i weight_i loss_i(w) / sum_i c_i  +  l2 / 2 * (r |w|)^2

    Strictly convex, so there is one solution whatever the start. L-BFGS works in the basis of `Basis`, each axis divided by the root of its curvature and the
    strength, so that the curvature at w = 0 is the identity matrix: that changes the path and not the solution.

    Args:
        problem: the pairs.
        counts: how often each pair counts, (S, n); a row of ones is the data as they are.
        strengths: l2 of each problem, above 0, (S,).
        start: weights near the solutions, (S, H); 0 where None.
        gradient: at which the solver stops, the largest entry in its own units.

    Raises:
        NonFiniteError: if the solver does not arrive.
    """
    basis = problem.basis
    weight = torch.from_numpy(counts / counts.sum(1, keepdims=True)) * problem.weight  # (S, n)
    l2 = torch.from_numpy(np.asarray(strengths, dtype=np.float64))[:, None]
    units = (basis.curvature + l2).rsqrt()  # (S, K)

    def evaluate(heads: Tensor) -> tuple[float, Tensor]:
        value, slope = _data_term(problem, weight, heads)
        if basis.sums is not None:
            more, steeper = _centring_term(problem, basis.sums, weight, heads)
            value, slope = value + more, slope + steeper
        return value + float((l2 * heads.square()).sum()) / 2, slope + l2 * heads

    def heads_at(point: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(point).reshape(units.shape) * units

    def objective(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, slope = evaluate(heads_at(point))
        return value, (slope * units).reshape(-1).numpy()

    near = torch.zeros_like(units) if start is None else torch.from_numpy(start) @ basis.axes * problem.size / units
    found = minimize(
        objective,
        near.reshape(-1).numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _MAX_ITERATIONS, "maxfun": 2 * _MAX_ITERATIONS, "gtol": gradient, "ftol": 0, "maxcor": 20},
    )
    heads = heads_at(found.x)
    norm = float(evaluate(heads)[1].norm(dim=1).max())
    if not norm < _SLACK * gradient:
        raise NonFiniteError(
            f"a head at which the gradient is below {_SLACK * gradient:g}",
            f"{norm:.2g} after {found.nit} iterations ({found.message})",
            "Set a larger head.l2, or look for extreme weights and margins in the data.",
        )
    weights = heads @ basis.axes.T / problem.size  # (S, K) -> (S, H)
    bias = torch.zeros(len(weights), dtype=torch.float64)
    if problem.sums is not None and problem.has_bias:
        bias = -_mean_sums(problem.sums, weight, weights)[:, 0] / 2
    return Heads(weights.numpy(), bias.numpy(), norm, int(found.nit))


def _data_term(problem: HeadProblem, weight: Tensor, heads: Tensor) -> tuple[float, Tensor]:
    """Value and gradient (S, K) of the weighted losses; the loss itself is the one that training uses."""
    inside = problem.basis.differences
    margins = (heads @ inside.T).requires_grad_()  # (S, n)
    losses = (weight * problem.objective.fitted(margins, problem.labels)).sum()
    (slope,) = torch.autograd.grad(losses, margins)
    return float(losses.detach()), slope @ inside


def _centring_term(problem: HeadProblem, sums: Tensor, weight: Tensor, heads: Tensor) -> tuple[float, Tensor]:
    """Value and gradient (S, K) of c (s_chosen + s_rejected)^2, at the bias that is best for these heads if there is one."""
    levels = heads @ sums.T  # (S, n)
    if problem.has_bias:
        levels = levels - _mean_sums(sums, weight, heads)
    pull = problem.objective.centring * weight * levels
    # The bias is where its own derivative is 0, so that how it moves with the heads adds nothing.
    return float((pull * levels).sum()), 2 * pull @ sums


def _mean_sums(sums: Tensor, weight: Tensor, heads: Tensor) -> Tensor:
    """The weighted mean of both scores' sum under each head, (S, 1)."""
    return ((heads @ sums.T) * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
