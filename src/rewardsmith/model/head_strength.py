"""Which strength of the penalty on a solved head: cross-validation over whole prompts. Legend: `n` pairs, `H` features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from rewardsmith.errors import DataError
from rewardsmith.model.head_solver import GRADIENT_OF_MANY, HeadProblem, solve_heads
from rewardsmith.stats import Estimate, Floats, cluster_ratio

STRENGTHS = np.logspace(-6, 1, 15)
"""What "cv" chooses from: two a decade."""

# Weak strengths cost most: the path ends after so many in a row that are worse than the best by more than a standard error.
_WORSE_IN_A_ROW = 3


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
        heads = solve_heads(problem, counts, np.full(folds, l2), start=heads, gradient=GRADIENT_OF_MANY).weight
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
