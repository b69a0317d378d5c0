"""`compute_score` for verl: for one answer, as a coroutine, and for a batch.

verl hands over the answer as a text, and no prompt: what a data set wants its reward function to know stands in `extra_info`. So the prompt must be put there when
the data set is made, as messages or as a text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rewardsmith.errors import DataError
from rewardsmith.functions import Function
from rewardsmith.scores import Scorer
from rewardsmith.use.conversations import read_pair, same_length
from rewardsmith.use.rewards import OnRewards, Reward, check_needs
from rewardsmith.use.samples import Sample
from rewardsmith.use.shaping import Shaping
from rewardsmith.use.terms import Need

PROMPT_KEY = "prompt"
_TEXT_ALONE = "verl hands over the text of an answer and nothing else: leave the step out, or set verl's own."
_NO_COUNT = "Take unit = characters, or verl's own overlong buffer: it hands over texts."
_NO_GROUPS = "verl asks for one answer at a time, and its advantage estimators normalise groups; or take verl_batch_compute_score."


class VerlReward:
    """What `verl_compute_score` returns; picklable where its scorer is."""

    def __init__(self, reward: Reward, *, prompt_key: str, with_terms: bool) -> None:
        """Keep them."""
        self.reward, self.prompt_key, self.with_terms = reward, prompt_key, with_terms

    def __call__(
        self,
        data_source: Any = None,
        solution_str: Any = None,
        ground_truth: Any = None,
        extra_info: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> float | dict[str, float]:
        """The reward of one answer; with its terms, a dict of which `score` is the reward.

        Raises:
            DataError: if `extra_info` holds no prompt.
            SettingsError: at token ids.
            RewardsmithError: see `Reward.rewards`.
        """
        return self.batch([solution_str], [extra_info])[0]

    def batch(self, answers: Sequence[Any], extra_infos: Sequence[Any]) -> list[float | dict[str, float]]:
        """Likewise of several."""
        same_length(solution_strs=answers, extra_infos=extra_infos)
        samples = []
        for i, (answer, info) in enumerate(zip(answers, extra_infos, strict=True)):
            prompt = info.get(self.prompt_key) if isinstance(info, Mapping) else None
            if prompt is None:
                keys = sorted(map(str, info)) if isinstance(info, Mapping) else info
                raise DataError(
                    f"the prompt in extra_info[{self.prompt_key!r}]",
                    f"{keys} at answer {i}",
                    "Put it there when the data set is made, or name the key that holds it by `prompt_key`.",
                )
            samples.append(Sample(*read_pair(prompt, answer, f"answer {i}")))
        found = self.reward.rewards(samples)
        values = [float(value) for value in found.value]
        if not self.with_terms:
            return list(values)
        parts: dict[str, Any] = {"rm_score": found.score, **found.terms}
        return [
            {"score": value, **{name: float(part[i]) for name, part in parts.items()}} for i, value in enumerate(values)
        ]


class VerlBatchReward:
    """What `verl_batch_compute_score` returns: for verl's reward manager `batch`."""

    def __init__(self, one: VerlReward) -> None:
        """Keep what does the work."""
        self.one = one

    def __call__(
        self,
        data_sources: Sequence[Any],
        solution_strs: Sequence[Any],
        ground_truths: Sequence[Any],
        extra_infos: Sequence[Any],
        **more: Any,
    ) -> list[float | dict[str, float]]:
        """One reward an answer; see `VerlReward`."""
        return self.one.batch(solution_strs, extra_infos)


def verl_compute_score(
    scorer: Scorer | Function,
    shaping: Shaping | None = None,
    *,
    prompt_key: str = PROMPT_KEY,
    with_terms: bool = False,
    on_rewards: OnRewards | None = None,
) -> VerlReward:
    """A `compute_score` for verl's `custom_reward_function`.

    Args:
        scorer: see `Reward`.
        shaping: see `Reward`.
        prompt_key: of `extra_info`, where the prompt stands.
        with_terms: return a dict with `score`, `rm_score` and what each step added, which verl logs.
        on_rewards: is told of each answer.

    Raises:
        SettingsError: if a step of shaping needs what verl does not tell.
    """
    return _verl(scorer, shaping, prompt_key, with_terms, on_rewards, groups=False)


def verl_async_compute_score(
    scorer: Scorer | Function,
    shaping: Shaping | None = None,
    *,
    prompt_key: str = PROMPT_KEY,
    with_terms: bool = False,
    on_rewards: OnRewards | None = None,
) -> Callable[..., Awaitable[float | dict[str, float]]]:
    """The same as a coroutine function, which is what verl looks for: an object with an async `__call__` it would take for a plain one."""
    return partial(_in_thread, _verl(scorer, shaping, prompt_key, with_terms, on_rewards, groups=False))


def verl_batch_compute_score(
    scorer: Scorer | Function,
    shaping: Shaping | None = None,
    *,
    prompt_key: str = PROMPT_KEY,
    with_terms: bool = False,
    on_rewards: OnRewards | None = None,
) -> VerlBatchReward:
    """The same for verl's reward manager `batch`, which asks for all answers at once."""
    return VerlBatchReward(_verl(scorer, shaping, prompt_key, with_terms, on_rewards, groups=True))


async def _in_thread(function: VerlReward, *arguments: Any, **named: Any) -> float | dict[str, float]:
    return await asyncio.to_thread(function, *arguments, **named)


def _verl(
    scorer: Scorer | Function,
    shaping: Shaping | None,
    prompt_key: str,
    with_terms: bool,
    on_rewards: OnRewards | None,
    *,
    groups: bool,
) -> VerlReward:
    lacking: dict[Need, str] = {"kl": _TEXT_ALONE, "is_finished": _TEXT_ALONE, "num_tokens": _NO_COUNT}
    check_needs(shaping, lacking if groups else {**lacking, "groups": _NO_GROUPS})
    return VerlReward(Reward(scorer, shaping, on_rewards=on_rewards), prompt_key=prompt_key, with_terms=with_terms)
