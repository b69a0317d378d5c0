"""The reward of a scorer: scores of texts, shaped; in plain Python, and what the functions for trainers are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from rewardsmith.errors import SettingsError
from rewardsmith.functions import Function, as_scorer
from rewardsmith.scores import Scorer, checked
from rewardsmith.use.conversations import read_texts
from rewardsmith.use.samples import Rewards, Sample
from rewardsmith.use.shaping import Shaping
from rewardsmith.use.terms import Need

OnRewards: TypeAlias = Callable[[Sequence[Sample], Rewards], object]
"""Told of each batch after it was rewarded, e.g. `Watch.record`."""


class Reward:
    """A `RewardFunction` made of a scorer: it renders by its own template, batches by itself, and says nothing where it cannot score.

    >>> reward = Reward(lambda prompt, answer: len(answer))
    >>> reward(["Hi?", "Hi?"], ["Hello.", "Ho."])
    [6.0, 3.0]

    Args:
        scorer: a scorer, of this machine or remote, or a function of (prompt, answer).
        shaping: what becomes of its scores; none where None.
        on_rewards: is told of each batch.

    Raises:
        SettingsError: if the scorer, or the shaping, is none.
    """

    def __init__(
        self, scorer: Scorer | Function, shaping: Shaping | None = None, *, on_rewards: OnRewards | None = None
    ) -> None:
        """Nothing is scored yet."""
        check_is_shaping(shaping)
        self.scorer, self.shaping, self.on_rewards = as_scorer(scorer), shaping or Shaping(), on_rewards

    def rewards(self, samples: Sequence[Sample]) -> Rewards:
        """See `RewardFunction`; adaptive KL coefficients then follow what was seen.

        Raises:
            RemoteError: if a server does not answer within its tries.
            ScoreError: if a score or a reward is not finite.
            DataError: if a sample lacks what a step of shaping needs.
        """
        scores = checked(self.scorer.score([sample.pair for sample in samples]), len(samples))
        found = self.shaping.apply(scores, samples)
        self.shaping.update(samples)
        if self.on_rewards is not None:
            self.on_rewards(samples, found)
        return found

    def __call__(self, prompts: Sequence[Any], answers: Sequence[Any]) -> list[float]:
        """Rewards of answers, one a prompt; texts or messages.

        Raises:
            SettingsError: at token ids.
            RewardsmithError: see `rewards`.
        """
        samples = [Sample(*pair) for pair in read_texts(prompts, answers)]
        return floats(self.rewards(samples))


def floats(rewards: Rewards) -> list[float]:
    """The rewards as plain numbers, as trainers take them."""
    return [float(value) for value in rewards.value]


def check_is_shaping(shaping: object) -> None:
    """Refuse bare steps, or settings, in the place of a shaping.

    Raises:
        SettingsError: if it is neither a shaping nor None.
    """
    if not (shaping is None or isinstance(shaping, Shaping)):
        raise SettingsError("a Shaping, or None", type(shaping).__name__, "Make one: Shaping([step, ...]).")


def check_needs(shaping: Shaping | None, lacking: Mapping[Need, str]) -> None:
    """Refuse a shaping that asks for what a trainer does not tell, before anything runs.

    Args:
        shaping: or None.
        lacking: what is not told, with what to do about it.

    Raises:
        SettingsError: naming the step.
    """
    check_is_shaping(shaping)
    for step in shaping.terms if shaping is not None else ():
        for need in sorted(step.needs & set(lacking)):
            words = {"groups": "several answers to each prompt in a call"}.get(need, f"`{need}` of every answer")
            raise SettingsError(f"{words}, for the step `{step.key}`", "a trainer that does not tell it", lacking[need])
