"""How far a policy went from its reference: estimates from the tokens that it drew, and the coefficient that a penalty is paid at.

Estimates are of one sample, for a token or for a whole answer (Schulman 2020, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np

from rewardsmith.errors import SettingsError

Estimator: TypeAlias = Literal["k1", "k2", "k3"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
Array = TypeVar("Array")
_LARGEST_ERROR = 0.2


def kl_estimate(log_ratio: Array, estimator: Estimator, *, exp: Callable[[Any], Any] = np.exp) -> Array:
    """KL(policy || reference), estimated elementwise from what was drawn from the policy, in nats.

    k1 is without bias and may be negative; k2 is biased and never negative; k3 is both without bias and never negative.

    Args:
        log_ratio: log policy(x) - log reference(x), a float array or tensor of any shape.
        estimator: k1 = lr, k2 = lr^2 / 2, k3 = exp(-lr) - 1 + lr.
        exp: of the kind of array that comes: torch.exp for tensors.

    Raises:
        SettingsError: at another estimator.

    >>> kl_estimate(np.array([0.0, 1.0]), "k3").round(4).tolist()
    [0.0, 0.3679]
    """
    ratio: Any = log_ratio
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return ratio * ratio / 2  # type: ignore[no-any-return]
    if estimator == "k3":
        return exp(-ratio) - 1 + ratio  # type: ignore[no-any-return]
    raise SettingsError(f"one of the estimators {', '.join(ESTIMATORS)}", repr(estimator), "Take k1, or k3.")


class FixedKL:
    """A coefficient that stays as it is.

    Args:
        coefficient: reward lost for a nat, at least 0.

    Raises:
        SettingsError: if it is no such number.
    """

    def __init__(self, coefficient: float) -> None:
        """Keep it."""
        self.coefficient = _at_least_0(coefficient)

    def update(self, kl: float, num_samples: int) -> None:
        """Nothing changes."""

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"coefficient": self.coefficient}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.coefficient = _at_least_0(state.get("coefficient"))


class AdaptiveKL(FixedKL):
    """A coefficient that rises while the policy is further from its reference than a target, and falls while it is nearer.

    coefficient *= 1 + clip(KL / target - 1, -0.2, 0.2) * min(1, n / horizon) (Ziegler et al. 2019, "Fine-tuning language models from human preferences",
    2.2, with n / horizon for their 0.1). The min is ours: without it, a batch of more than five horizons could turn the penalty into a prize.

    Args:
        coefficient: to begin with, above 0: 0 would stay 0.
        target: nats an answer.
        horizon: answers after which a lasting error of 20 % has changed the coefficient by about a fifth.

    Raises:
        SettingsError: if one of them is not above 0.
    """

    def __init__(self, coefficient: float, target: float, horizon: int = 10_000) -> None:
        """Keep the three."""
        super().__init__(coefficient)
        for name, value in (("coefficient", coefficient), ("target", target), ("horizon", horizon)):
            if not (_is_number(value) and value > 0):
                raise SettingsError(f"a {name} above 0 for an adaptive KL penalty", f"{value!r}", f"Change `{name}`.")
        self.target, self.horizon = float(target), int(horizon)

    def update(self, kl: float, num_samples: int) -> None:
        """Move the coefficient by what was seen.

        Args:
            kl: mean KL of a batch, nats an answer.
            num_samples: answers of the batch.

        Raises:
            SettingsError: if the KL is not finite.
        """
        if not _is_number(kl):
            raise SettingsError(
                "a finite KL for an adaptive penalty", f"{kl!r}", "Check the policy's log-probabilities."
            )
        error = min(_LARGEST_ERROR, max(-_LARGEST_ERROR, kl / self.target - 1))
        self.coefficient *= 1 + error * min(1.0, num_samples / self.horizon)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _at_least_0(coefficient: Any) -> float:
    if not (_is_number(coefficient) and coefficient >= 0):
        raise SettingsError("a KL coefficient of at least 0", f"{coefficient!r}", "0.05 is usual.")
    return float(coefficient)
