"""Estimates of KL are what their definitions say, of arrays and tensors alike; coefficients stay, or follow."""

import numpy as np
import pytest
import torch

from rewardsmith.errors import SettingsError
from rewardsmith.use.kl import AdaptiveKL, FixedKL, kl_estimate


def test_estimates_are_their_definitions():
    ratio = np.array([-1.0, 0.0, 2.0])
    assert kl_estimate(ratio, "k1").tolist() == [-1.0, 0.0, 2.0]
    assert kl_estimate(ratio, "k2").tolist() == [0.5, 0.0, 2.0]
    # e - 1 - 1 = 0.7183; 0; e^-2 - 1 + 2 = 1.1353
    assert kl_estimate(ratio, "k3").round(4).tolist() == [0.7183, 0.0, 1.1353]


def test_tensors_give_what_arrays_give_and_keep_their_gradient():
    ratio = torch.tensor([-0.5, 0.3], requires_grad=True)
    found = kl_estimate(ratio, "k3", exp=torch.exp)
    assert np.allclose(found.detach().numpy(), kl_estimate(ratio.detach().numpy(), "k3"))
    found.sum().backward()  # d/dx (exp(-x) - 1 + x) = 1 - exp(-x)
    assert ratio.grad is not None
    assert torch.allclose(ratio.grad, 1 - torch.exp(-ratio.detach()))


def test_k1_and_k3_are_without_bias_and_k2_is_not():
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    ratio = np.log(policy / reference)
    kl = float((policy * ratio).sum())  # 0.3735
    expected = {name: float((policy * kl_estimate(ratio, name)).sum()) for name in ("k1", "k2", "k3")}
    assert expected["k1"] == pytest.approx(kl, abs=1e-12)
    assert expected["k3"] == pytest.approx(kl, abs=1e-12)
    assert abs(expected["k2"] - kl) > 0.005


def test_a_fixed_coefficient_stays():
    control = FixedKL(0.05)
    control.update(100.0, 1000)
    assert control.coefficient == 0.05


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.6, 0.1 * (1 + 0.1 * 0.5)),  # 6.6 / 6 - 1 = 0.1, half a horizon
        (60.0, 0.1 * (1 + 0.2 * 0.5)),  # clipped at + 0.2
        (0.0, 0.1 * (1 - 0.2 * 0.5)),  # clipped at - 0.2
        (6.0, 0.1),
    ],
)
def test_an_adaptive_coefficient_follows_by_its_formula(kl, expected):
    control = AdaptiveKL(0.1, 6.0, horizon=100)
    control.update(kl, 50)
    assert control.coefficient == pytest.approx(expected, rel=1e-12)


def test_a_batch_of_many_horizons_never_makes_a_prize_of_the_penalty():
    control = AdaptiveKL(0.1, 6.0, horizon=10)
    control.update(0.0, 1000)  # without the limit: 1 - 0.2 * 100 = -19
    assert control.coefficient == pytest.approx(0.08)


def test_a_checkpoint_brings_the_coefficient_back():
    control = AdaptiveKL(0.1, 6.0, horizon=10)
    control.update(20.0, 5)
    other = AdaptiveKL(0.1, 6.0, horizon=10)
    other.restore(control.state())
    assert other.coefficient == control.coefficient != 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedKL(-0.1),
        lambda: FixedKL(float("nan")),
        lambda: AdaptiveKL(0.0, 6.0),
        lambda: AdaptiveKL(0.1, 0.0),
        lambda: AdaptiveKL(0.1, 6.0, horizon=0),
        lambda: AdaptiveKL(0.1, 6.0).update(float("nan"), 4),
        lambda: AdaptiveKL(0.1, 6.0).restore({}),
        lambda: kl_estimate(np.zeros(2), "k4"),
    ],
)
def test_what_cannot_be_meant_is_refused(make):
    with pytest.raises(SettingsError):
        make()
