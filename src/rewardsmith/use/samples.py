"""What a reward is made of in reinforcement learning: answers that a policy gave, and what became of their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from rewardsmith.data.schema import Pair, Prompt, prompt_key
from rewardsmith.scores import Scores
from rewardsmith.stats import Floats


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer that a policy gave, as texts: ids of its vocabulary mean nothing to a reward model.

    Args:
        prompt: that it answers.
        answer: its text, without special tokens.
        is_finished: whether the policy ended it itself, by an end token in the answer; None where nobody knows.
        num_tokens: of the answer in the policy's vocabulary, its end token included; None where nobody counted.
        kl: the estimate of log pi(answer | prompt) - log reference(answer | prompt), summed over its tokens, in nats; None where there is none.
    """

    prompt: Prompt
    answer: str
    is_finished: bool | None = None
    num_tokens: int | None = None
    kl: float | None = None

    @property
    def pair(self) -> Pair:
        """What a scorer is asked."""
        return self.prompt, self.answer

    @property
    def group(self) -> str:
        """Equal for answers to one prompt."""
        return prompt_key(self.prompt)


@dataclass(frozen=True)
class Rewards:
    """The rewards of some samples, with how they came about: value = score + the sum of all terms. All arrays (n,).

    Args:
        value: what the policy is trained on, float64.
        score: raw, of the reward model, float32.
        terms: what each step of shaping added, float64, in their order.
        counts: what a run should know of, e.g. groups of which all rewards are equal.
    """

    value: Floats
    score: Scores
    terms: Mapping[str, Floats]
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """The mean reward, the mean score and what each term adds on average, for logs."""
        parts = {"reward": self.value, "score": self.score, **self.terms}
        return {name: float(np.asarray(values, np.float64).mean()) for name, values in parts.items()}


@runtime_checkable
class RewardFunction(Protocol):
    """Anything that gives samples their rewards."""

    def rewards(self, samples: Sequence[Sample]) -> Rewards:
        """Rewards in the order of `samples`, at least one.

        Raises:
            RewardsmithError: if one cannot be given; a reward is never made up.
        """
        ...
