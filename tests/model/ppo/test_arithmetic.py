"""The formulas of PPO against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from rewardsmith.errors import ScoreError
from rewardsmith.model.ppo.arithmetic import (
    RewardScale,
    advantages_of,
    checked_rewards,
    explained_variance,
    policy_losses,
    token_rewards,
    value_losses,
    whitened,
)

# Two answers, of three tokens and of one; what stands at padding must never count.
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_the_reward_stands_at_the_last_token_and_the_penalty_at_each():
    """k1, coefficient 0.1: answer 1 earns -0.1 x (1, -2, 3) = (-0.1, 0.2, -0.3), and 5 at its third token: 4.7; answer 2 earns -0.1 x 4 + 7 = 6.6 at its first."""
    log_ratio = torch.tensor([[1.0, -2.0, 3.0], [4.0, 99.0, torch.nan]])
    earned = token_rewards(torch.tensor([5.0, 7.0]), log_ratio, MASK, coefficient=0.1, estimator="k1")
    torch.testing.assert_close(earned, torch.tensor([[-0.1, 0.2, 4.7], [6.6, 0.0, 0.0]]))


def test_the_penalty_goes_by_the_estimator():
    """k2 of 2 is 2; k3 of 2 is exp(-2) - 1 + 2 = 1.1353."""
    log_ratio = torch.tensor([[2.0]])
    for estimator, nats in (("k2", 2.0), ("k3", math.exp(-2) + 1)):
        earned = token_rewards(torch.zeros(1), log_ratio, torch.tensor([[True]]), coefficient=0.5, estimator=estimator)
        assert earned.item() == pytest.approx(-0.5 * nats)


def test_advantages_equal_a_hand_computed_example():
    """Gamma 0.9, lambda 0.5, so that gamma lambda = 0.45; V and A are 0 after the last token.

    Answer 1: r = (1, 0, 2), V = (0.5, 1, -1).
      d_3 = 2 + 0 - (-1)         =  3      A_3 = 3
      d_2 = 0 + 0.9 x (-1) - 1   = -1.9    A_2 = -1.9 + 0.45 x 3     = -0.55
      d_1 = 1 + 0.9 x 1 - 0.5    =  1.4    A_1 =  1.4 + 0.45 x -0.55 =  1.1525
      returns = A + V = (1.6525, 0.45, 2)
    Answer 2: r = 4, V = 1: d = A = 4 - 1 = 3, return 4. At its padding stand rewards and values of 100, which count for nothing.
    """
    rewards = torch.tensor([[1.0, 0.0, 2.0], [4.0, 100.0, 100.0]])
    values = torch.tensor([[0.5, 1.0, -1.0], [1.0, 100.0, 100.0]])
    advantages, returns = advantages_of(rewards, values, MASK, gamma=0.9, gae_lambda=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[1.1525, -0.55, 3.0], [3.0, 0.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.6525, 0.45, 2.0], [4.0, 0.0, 0.0]]))


def test_with_gamma_and_lambda_1_advantages_are_what_is_still_to_come_minus_the_value():
    """Rewards (1, 0, 2): to come are (3, 2, 2); V = (0.5, 1, -1) leaves (2.5, 1, 3)."""
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, -1.0]])
    advantages, returns = advantages_of(rewards, values, MASK[:1], gamma=1.0, gae_lambda=1.0)
    torch.testing.assert_close(advantages, torch.tensor([[2.5, 1.0, 3.0]]))
    torch.testing.assert_close(returns, torch.tensor([[3.0, 2.0, 2.0]]))


def test_advantages_are_whitened_over_real_tokens_alone():
    """1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5."""
    values = torch.tensor([[1.0, 3.0, 5.0], [7.0, 1000.0, torch.inf]])
    expected = torch.tensor([[-3.0, -1.0, 1.0], [3.0, 0.0, 0.0]]) / math.sqrt(5)
    torch.testing.assert_close(whitened(values, MASK), expected)
    # Nothing to learn: no division by 0, and rounding is not blown up into a lesson.
    assert whitened(torch.full((2, 3), 2.0), MASK).abs().max() == 0
    assert whitened(2.0 + 1e-7 * values, MASK).abs().max() == 0


def test_the_policy_loss_is_clipped_where_the_ratio_has_gone_the_good_way():
    """Clip 0.2, five tokens.

    Ratio 1.5: with A = 1 the bound 1.2 counts, loss -1.2, held; with A = -1 the worse 1.5 counts, loss 1.5, free.
    Ratio 0.5: with A = -1 the bound 0.8 counts, loss 0.8, held; with A = 1 loss -0.5, free. Ratio 1.1 is within, loss -1.1.
    """
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0])
    old = torch.full((5,), -2.0)
    new = (old + ratio.log()).requires_grad_()
    losses, held = policy_losses(new, old, advantages, 0.2)
    torch.testing.assert_close(losses, torch.tensor([-1.2, 1.5, 0.8, -0.5, -1.1]))
    assert held.tolist() == [True, False, True, False, False]
    losses.sum().backward()
    # What is held has no gradient; else it is -A x ratio.
    torch.testing.assert_close(new.grad, torch.tensor([0.0, 1.5, 0.0, -0.5, -1.1]))


def test_the_value_loss_takes_the_worse_of_value_and_held_value():
    """Old 1, clip 0.2. New 2, return 3: plain 1, held at 1.2: 3.24, the worse. New 2, return 0: plain 4, held 1.44. New 1.1, return 2: both 0.81. Halved."""
    values, old = torch.tensor([2.0, 2.0, 1.1]), torch.ones(3)
    returns = torch.tensor([3.0, 0.0, 2.0])
    torch.testing.assert_close(value_losses(values, old, returns, 0.2), torch.tensor([1.62, 2.0, 0.405]))
    torch.testing.assert_close(value_losses(values, old, returns, None), torch.tensor([0.5, 2.0, 0.405]))


def test_explained_variance_is_of_real_tokens():
    """Returns 0, 2, 4, 6 (variance 5). Values 0.5 below each: all of it. Values 0, 1, 2, 3: what is left has variance 1.25, so 0.75. A constant: 0."""
    returns = torch.tensor([[0.0, 2.0, 4.0], [6.0, 50.0, -50.0]])
    for values, expected in ((returns - 0.5, 1.0), (returns / 2, 0.75), (torch.ones(2, 3), 0.0)):
        assert explained_variance(values, returns, MASK) == pytest.approx(expected)
    assert explained_variance(returns, torch.ones(2, 3), MASK) is None


def test_running_statistics_are_those_of_all_rewards():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3, 2, size=n) for n in (4, 1, 7)]
    scale = RewardScale()
    for batch in batches:
        scale.update(batch)
    every = np.concatenate(batches)
    assert scale.mean == pytest.approx(every.mean()) and scale.sd == pytest.approx(every.std())
    assert scale.apply(np.array([every.mean() + every.std()])) == pytest.approx([1.0])
    again = RewardScale()
    again.restore(scale.state())
    assert again == scale
    equal = RewardScale()
    equal.update(np.full(3, 5.0))
    assert equal.apply(np.full(3, 5.0)).tolist() == [0.0, 0.0, 0.0]


def test_a_reward_that_is_none_stops_the_run():
    with pytest.raises(ScoreError):
        checked_rewards(np.array([1.0, np.nan]), 2)
    with pytest.raises(ScoreError):
        checked_rewards(np.array([1.0]), 2)
