"""The linear head over frozen features, solved exactly: L-BFGS on the loss of the run plus an L2 penalty, many heads at once.

Every problem is the same data under other weights and another strength: a fold of a cross-validation, a bootstrap resample. So all of them are one matrix of
heads, and one evaluation is two products of matrices. Legend: `n` pairs, `H` features, `S` problems.

The penalty is l2 / 2 * (r |w|)^2, r the root mean square length of the difference between a pair's features: r |w| is the size of the margins that the weights
can make, so a strength means the same for features of any size, and a rotation of them changes nothing. It is added to the mean loss of a pair.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.model_selection import GroupKFold
from torch import Tensor

from rewardsmith.config import HeadSettings, TrainSettings
from rewardsmith.errors import DataError, NonFiniteError, SettingsError
from rewardsmith.model.losses import Labels, PairObjective
from rewardsmith.stats import Estimate, Floats, cluster_ratio, mean

SOLVABLE = ("bradley_terry", "vote_share")
"""Losses that are convex in the head's weights and learn nothing beside them."""
STRENGTHS = np.logspace(-6, 1, 15)
"""What "cv" chooses from: two a decade."""

# What takes steps reads them; a solution does not.
_OF_STEPS = (
    *("learning_rate", "head_learning_rate", "weight_decay", "epochs", "batch_size"),
    *("ema_decay", "patience", "trainer", "layer_decay"),
)
_GRADIENT = 1e-8
_MAX_ITERATIONS = 5000
# The solver also stops when no step gains a digit any more. So far from its goal that is an answer, further off it is none.
_SLACK = 1e3
# Among the folds it need not: an error of the gradient enters a loss by its square.
_GRADIENT_OF_FOLDS = 1e-6
# Weak strengths cost most: the path ends after so many in a row that are worse than the best by more than a standard error.
_WORSE_IN_A_ROW = 3


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


# ---------------------------------------------------------------- the problem


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


# ---------------------------------------------------------------- which strength


@dataclass(frozen=True)
class StrengthChoice:
    """A cross-validation over whole prompts.

    Args:
        l2: the strength with the lowest held-out log-loss.
        folds: how many.
        strengths: all that were tried, rising.
        log_losses: the held-out log-loss of a pair under each.
        alike: the weakest and the strongest whose log-loss lies within one standard error of the lowest.
    """

    l2: float
    folds: int
    strengths: tuple[float, ...]
    log_losses: tuple[Estimate, ...]
    alike: tuple[float, float]

    @property
    def log_loss(self) -> Estimate:
        """Of the chosen strength. It was chosen by this number, which flatters it a little."""
        return self.log_losses[self.strengths.index(self.l2)]

    def as_dict(self) -> dict[str, Any]:
        """The document that the manifest holds."""
        return {
            "folds": self.folds,
            "log_loss": self.log_loss.as_dict(),
            "within_one_standard_error": list(self.alike),
            "tried": [
                {"l2": l2, "log_loss": e.as_dict()} for l2, e in zip(self.strengths, self.log_losses, strict=True)
            ],
        }


def choose_strength(
    problem: HeadProblem,
    prompts: NDArray[np.int64],
    *,
    folds: int,
    seed: int,
    strengths: Sequence[float] = tuple(STRENGTHS.tolist()),
) -> StrengthChoice:
    """The strength of the lowest held-out log-loss, every pair judged by a head that saw no pair of its prompt.

    Held out, a pair counts by its own likelihood, as in a dev part: without margin, smoothing, centring and weight. From the strongest penalty to the
    weakest, each from the solutions of the last one, the folds at once; weak ones are left out when three in a row were worse by more than a standard error.

    Args:
        problem: the pairs.
        prompts: the prompt of each pair, (n,).
        folds: parts of whole prompts.
        seed: of the assignment of prompts to folds.
        strengths: to choose from.

    Raises:
        DataError: if there are fewer prompts than folds.
        NonFiniteError: if the solver does not arrive.
    """
    num_prompts = len(np.unique(prompts))
    if num_prompts < folds:
        raise DataError(
            f"at least {folds} prompts for a cross-validation of {folds} folds",
            f"{num_prompts}",
            "Lower head.folds, or set head.l2 to a number.",
        )
    parts = [part for _, part in GroupKFold(folds, shuffle=True, random_state=seed).split(prompts, groups=prompts)]
    counts = np.ones((folds, len(prompts)))
    for fold, part in enumerate(parts):
        counts[fold, part] = 0
    tried: list[tuple[float, Estimate]] = []
    heads = np.zeros((folds, problem.differences.shape[1]))
    worse = 0
    for l2 in sorted(strengths, reverse=True):
        heads = solve_heads(problem, counts, np.full(folds, l2), start=heads, gradient=_GRADIENT_OF_FOLDS).weight
        tried.append((l2, _held_out_loss(problem, heads, parts, prompts)))
        best = min((one for _, one in tried), key=lambda one: one.value)
        worse = worse + 1 if tried[-1][1].value > best.value + _standard_error(best) else 0
        if worse == _WORSE_IN_A_ROW:
            break
    found = sorted(tried, key=lambda one: one[0])
    lowest = min(found, key=lambda one: one[1].value)
    alike = [l2 for l2, one in found if one.value <= lowest[1].value + _standard_error(lowest[1])]
    return StrengthChoice(
        lowest[0], folds, tuple(l2 for l2, _ in found), tuple(one for _, one in found), (alike[0], alike[-1])
    )


def _held_out_loss(
    problem: HeadProblem, heads: Floats, parts: Sequence[NDArray[np.int64]], prompts: NDArray[np.int64]
) -> Estimate:
    """The log-loss of all pairs, each under the head of the fold that it was left out of."""
    margins = torch.zeros(len(prompts), dtype=torch.float64)
    for head, part in zip(torch.from_numpy(heads), parts, strict=True):
        margins[part] = problem.differences[part] @ head
    losses = problem.objective.likelihood(margins, problem.labels).numpy()
    return cluster_ratio(losses, np.ones(len(losses)), prompts)


def _standard_error(estimate: Estimate) -> float:
    """Of a normal interval of 95 %."""
    return (estimate.high - estimate.low) / (2 * 1.959964)


# ---------------------------------------------------------------- how sure


def resampled_heads(
    problem: HeadProblem, prompts: NDArray[np.int64], start: Floats, *, l2: float, resamples: int, seed: int
) -> Heads:
    """Heads on data whose prompts were drawn again with replacement, all solved at once from the head (H,) on the data as they are.

    Raises:
        NonFiniteError: if the solver does not arrive.
    """
    codes = np.unique(prompts, return_inverse=True)[1]
    num_prompts = int(codes.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=resamples)  # (S, prompts)
    counts = drawn[:, codes].astype(np.float64)
    return solve_heads(
        problem, counts, np.full(resamples, l2), start=np.tile(start, (resamples, 1)), gradient=_GRADIENT_OF_FOLDS
    )


@dataclass(frozen=True)
class HeadSpread:
    """How far the scores of resampled heads differ on some pairs.

    Args:
        heads: how many.
        part: the pairs: "dev" or "train".
        score_sd: the standard deviation of an answer's score over the heads, the mean over answers; each head's scores are shifted to a mean of 0 first,
            for a loss of pairs leaves their level open.
        margin_sd: the same of a pair's margin, which has no level.
        turned: the share of (pair, head) whose order is not that of the saved head.
    """

    heads: int
    part: str
    score_sd: Estimate
    margin_sd: Estimate
    turned: Estimate

    def as_dict(self) -> dict[str, Any]:
        """The document that reports hold."""
        return asdict(self)


def head_spread(
    weights: Floats, saved: Floats, features: Floats, prompts: NDArray[np.int64], *, part: str
) -> HeadSpread:
    """The spread of heads (S, H) around the saved one (H,) over pairs of features (2n, H), chosen and rejected in turn, of prompts (n,)."""
    scores = features @ weights.T  # (2n, S)
    levelled = scores - scores.mean(0)
    margins = scores[0::2] - scores[1::2]
    order = features[0::2] @ saved - features[1::2] @ saved
    # A pair that the saved head cannot tell apart has no order to turn round.
    turned = (np.sign(margins) != np.sign(order)[:, None]).mean(1) * (order != 0)
    return HeadSpread(
        weights.shape[0],
        part,
        mean(levelled.std(1, ddof=1), np.repeat(prompts, 2)),
        mean(margins.std(1, ddof=1), prompts),
        mean(turned, prompts),
    )


# ---------------------------------------------------------------- a whole fit


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
