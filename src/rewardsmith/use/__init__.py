"""A reward model put to work: rewards for reinforcement learning, best-of-n, win rates, guardrails. Nothing here loads torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewardsmith.use.combining import WeightedSum, load_standards, lower_confidence, save_standards, standards_of
    from rewardsmith.use.guardrail import Guardrail
    from rewardsmith.use.openrlhf import openrlhf_reward_function
    from rewardsmith.use.references import References
    from rewardsmith.use.rewards import Reward
    from rewardsmith.use.samples import Rewards, Sample
    from rewardsmith.use.shaping import Shaping, shaping_from
    from rewardsmith.use.trl import trl_async_reward_function, trl_reward_function
    from rewardsmith.use.verl import verl_async_compute_score, verl_batch_compute_score, verl_compute_score
    from rewardsmith.use.watch import Watch

_HOMES = {
    "Guardrail": "guardrail",
    "References": "references",
    "Reward": "rewards",
    "Rewards": "samples",
    "Sample": "samples",
    "Shaping": "shaping",
    "Watch": "watch",
    "WeightedSum": "combining",
    "load_standards": "combining",
    "lower_confidence": "combining",
    "openrlhf_reward_function": "openrlhf",
    "save_standards": "combining",
    "shaping_from": "shaping",
    "standards_of": "combining",
    "trl_async_reward_function": "trl",
    "trl_reward_function": "trl",
    "verl_async_compute_score": "verl",
    "verl_batch_compute_score": "verl",
    "verl_compute_score": "verl",
}

__all__ = [
    "Guardrail",
    "References",
    "Reward",
    "Rewards",
    "Sample",
    "Shaping",
    "Watch",
    "WeightedSum",
    "load_standards",
    "lower_confidence",
    "openrlhf_reward_function",
    "save_standards",
    "shaping_from",
    "standards_of",
    "trl_async_reward_function",
    "trl_reward_function",
    "verl_async_compute_score",
    "verl_batch_compute_score",
    "verl_compute_score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rewardsmith.use' has no attribute {name!r}")
    return getattr(import_module(f"rewardsmith.use.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
