"""The formulas of PPO over answers of unequal lengths: rewards of tokens, advantages, clipped losses.

Legend: `N` answers, `A` tokens of the longest one. A mask is True at the tokens that were drawn, the end token included; what stands elsewhere counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewardsmith.errors import ScoreError
from rewardsmith.stats import Floats
from rewardsmith.use.kl import Estimator, kl_estimate

Total = Callable[[Tensor], Tensor]
"""Adds a tensor up over the processes of a run."""
_SMALL = 1e-8
_LEAST_SPREAD = 1e-5


def alone(value: Tensor) -> Tensor:
    """The `Total` of a single process."""
    return value


def token_rewards(
    rewards: Tensor, log_ratio: Tensor, mask: Tensor, *, coefficient: float, estimator: Estimator
) -> Tensor:
    """What each token earns: a penalty for leaving the reference, and at the last one the reward of the answer (Ouyang et al. 2022, eq. 2).

    Args:
        rewards: of the answers (N,).
        log_ratio: log policy - log reference of the tokens (N, A).
        mask: (N, A), at least one token an answer.
        coefficient: of the penalty.
        estimator: see `kl_estimate`.

    Returns:
        (N, A), 0 outside of the mask.
    """
    penalty = kl_estimate(log_ratio.masked_fill(~mask, 0.0), estimator, exp=torch.exp)
    earned = torch.where(mask, -coefficient * penalty, 0.0)
    last = mask.sum(dim=1) - 1
    earned[torch.arange(len(earned)), last] += rewards
    return earned


def advantages_of(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantages and the returns that values are to foretell (Schulman et al. 2016, eq. 16).

    d_t = r_t + gamma V_(t+1) - V_t and A_t = d_t + gamma lambda A_(t+1), with V and A of 0 after the last token: an answer that was cut is scored as it
    stands, so nothing is to come. Returns are A + V.

    Args:
        rewards: of the tokens (N, A).
        values: foretold before each token was drawn (N, A).
        mask: (N, A), without gaps.
        gamma: discount a token.
        gae_lambda: between one step ahead (0) and the whole rest (1).

    Returns:
        Two tensors (N, A), 0 outside of the mask.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        surprise = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(mask[:, t], surprise + gamma * gae_lambda * following, 0.0)
        advantages[:, t] = following
        next_value = values[:, t]
    return advantages, (advantages + values).masked_fill(~mask, 0.0)


def whitened(values: Tensor, mask: Tensor, total: Total = alone) -> Tensor:
    """Values with mean 0 and standard deviation 1 over the tokens of the mask, 0 elsewhere; values that differ by their rounding alone become 0."""
    real = torch.where(mask, values, 0.0).double()
    count, added = total(torch.stack([mask.sum().double(), real.sum()]))
    centred = torch.where(mask, real - added / count, 0.0)
    variance = total((centred**2).sum()) / count
    spread = float(variance.sqrt())
    # Log-probabilities are rounded: where all rewards are equal, dividing by that noise would make it the lesson of the step.
    return (centred / spread if spread > _LEAST_SPREAD else torch.zeros_like(centred)).to(values.dtype)


def policy_losses(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """The clipped loss of each token, and whether the clip holds it (Schulman et al. 2017, eq. 7, with its sign turned).

    max(-A r, -A min(max(r, 1 - clip), 1 + clip)), r = exp(new - old log-probability).
    """
    ratio = torch.exp(log_probs - old_log_probs)
    plain, bounded = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, bounded), bounded > plain


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Half the squared error of each token's value; the worse one of the value and of the value held within `clip` of the old one."""
    plain = (values - returns) ** 2
    if clip is None:
        return plain / 2
    bounded = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum(plain, (bounded - returns) ** 2) / 2


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, total: Total = alone) -> float | None:
    """1 - var(returns - values) / var(returns) over the tokens of the mask: 1 is all of it, 0 what a constant does; None where returns do not vary."""
    target, error = returns[mask].double(), (returns - values)[mask].double()
    sums = [torch.ones_like(target).sum(), target.sum(), (target**2).sum(), error.sum(), (error**2).sum()]
    n, first, second, error_first, error_second = total(torch.stack(sums)).tolist()
    variance = second / n - (first / n) ** 2
    if variance <= _SMALL:
        return None
    return 1 - (error_second / n - (error_first / n) ** 2) / variance


@dataclass
class RewardScale:
    """Mean and standard deviation of all rewards of a run so far.

    Args:
        count: rewards seen.
        mean: of them.
        squares: sum of their squared distances from the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, rewards: Floats) -> None:
        """Take in a batch (Chan, Golub and LeVeque 1983, eq. 2.1)."""
        new, total = len(rewards), self.count + len(rewards)
        mean = float(rewards.mean())
        gap = mean - self.mean
        self.squares += float(((rewards - mean) ** 2).sum()) + gap * gap * self.count * new / total
        self.mean += gap * new / total
        self.count = total

    @property
    def sd(self) -> float:
        """Standard deviation; 1 while all rewards are equal, which then become 0."""
        spread = math.sqrt(self.squares / self.count) if self.count else 0.0
        return spread if spread > _SMALL else 1.0

    def apply(self, rewards: Floats) -> Floats:
        """Rewards in units of the standard deviation, from the mean."""
        return (rewards - self.mean) / self.sd

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.count, self.mean, self.squares = int(state["count"]), float(state["mean"]), float(state["squares"])


def checked_rewards(values: Floats, num_answers: int) -> Floats:
    """Rewards of the right shape, all finite.

    Raises:
        ScoreError: otherwise.
    """
    if values.shape != (num_answers,) or not bool(torch.isfinite(torch.from_numpy(values)).all()):
        raise ScoreError(
            f"{num_answers} finite rewards",
            f"an array of shape {values.shape}, or one that is not finite",
            "Mend the reward function.",
        )
    return values
