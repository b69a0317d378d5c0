"""Guards trip on what they are for (traps 19, 20, 21) and on nothing healthy."""

import pytest
import torch
from torch import nn

from rewardsmith.errors import NoGradientError, NonFiniteError, StuckError
from rewardsmith.model.guards import GRADIENT_STEPS, STUCK_STEPS, GradientGuard, StuckGuard, check_finite


def step(model, guard, loss, number):
    model.zero_grad()
    loss.backward()
    guard.after_backward(model, step=number)


def test_a_non_finite_score_is_named_with_its_row():
    outputs, sizes = torch.tensor([[1.0], [float("nan")], [2.0], [0.0]]), torch.tensor([2, 2])
    with pytest.raises(NonFiniteError, match=r"step 7, in bf16, rows a\."):
        check_finite(torch.tensor(float("nan")), outputs, sizes, step=7, rows=["a", "b"], dtype="bf16")
    check_finite(torch.tensor(0.7), torch.ones(4, 1), sizes, step=7, rows=["a", "b"], dtype="bf16")


def test_a_tensor_without_gradient_is_named_at_step_three():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
    guard = GradientGuard()
    for number in range(1, GRADIENT_STEPS):
        step(model, guard, model["used"](torch.ones(1, 2)).sum(), number)
    with pytest.raises(NoGradientError, match=r"unused\.bias, unused\.weight"):
        step(model, guard, model["used"](torch.ones(1, 2)).sum(), GRADIENT_STEPS)


def test_healthy_runs_do_not_trip_it():
    """LoRA's A has no gradient at step 1 (B is 0); frozen tensors and experts without tokens never have one."""
    model = nn.ModuleDict(
        {"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 1, bias=False), "frozen": nn.Linear(2, 1)}
    )
    model["experts"] = nn.ModuleList([nn.Linear(2, 1)])
    model["frozen"].requires_grad_(False)
    nn.init.zeros_(model["b"].weight)
    guard = GradientGuard()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for number in range(1, GRADIENT_STEPS + 3):
        step(model, guard, (model["b"](model["a"](torch.ones(1, 2))) - 1).square().sum(), number)
        optimiser.step()


def test_a_bias_that_shifts_both_sides_alike_is_no_fault():
    """Its gradient is exactly 0 under Bradley-Terry."""
    head = nn.Linear(2, 1)
    guard = GradientGuard()
    for number in range(1, GRADIENT_STEPS + 1):
        step(head, guard, (head(torch.ones(1, 2)) - head(torch.zeros(1, 2))).sum(), number)
    assert head.bias.grad.item() == 0.0


def test_steps_of_zero_margin_are_left_to_the_other_guard():
    head, guard = nn.Linear(2, 1), GradientGuard()
    for number in range(1, 30):
        head.zero_grad()
        (0 * head(torch.ones(1, 2))).sum().backward()
        guard.after_backward(head, step=number, margins_are_zero=True)


def test_a_non_finite_gradient_is_named():
    head = nn.Linear(2, 1)
    with pytest.raises(NonFiniteError, match="weight at step 1"):
        step(head, GradientGuard(), head(torch.tensor([[float("inf"), 1.0]])).sum(), 1)


def test_stuck_needs_twenty_steps_in_a_row():
    guard = StuckGuard()
    for number in range(STUCK_STEPS - 1):
        guard.after_step(torch.zeros(4), step=number)
    guard.after_step(torch.tensor([0.0, 1e-9]), step=20)
    for number in range(STUCK_STEPS - 1):
        guard.after_step(torch.zeros(4), step=number)
    with pytest.raises(StuckError, match="pooled token.*truncation.*identical sides.*frozen head"):
        guard.after_step(torch.zeros(4), step=40)
