"""Reward functions for TRL's trainers: GRPOTrainer, RLOOTrainer, OnlineDPOTrainer, and the asynchronous ones.

TRL calls `reward_funcs` with `prompts` and `completions` as texts or messages, `completion_ids` of the policy's vocabulary, every further column of its data set,
and in GRPO and RLOO `log_metric` and `log_extra`. It takes None for "no reward" and goes on; these functions never return it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rewardsmith.errors import SettingsError
from rewardsmith.functions import Function
from rewardsmith.scores import Scorer
from rewardsmith.use.conversations import read_pair, same_length
from rewardsmith.use.rewards import OnRewards, Reward, check_needs, floats
from rewardsmith.use.samples import Rewards, Sample
from rewardsmith.use.shaping import Shaping
from rewardsmith.use.terms import Need

_NO_KL = "TRL's trainers take KL into the loss or the reward themselves: set `beta` in their config."
_NO_ENDS = "Give `tokenizer` (the policy's) or `end_token_ids`."


@dataclass(frozen=True)
class Ends:
    """How a policy ends its answers.

    Args:
        end_ids: tokens of which one ends an answer.
        pad_id: what batches are filled up with, which OnlineDPOTrainer leaves in; None where nothing is left in.
    """

    end_ids: frozenset[int]
    pad_id: int | None = None

    def read(self, ids: Sequence[int]) -> tuple[bool, int]:
        """Whether a completion was ended by the policy, and its tokens, the end token included; prompts are none of its business."""
        num = len(ids)
        while num and ids[num - 1] == self.pad_id:
            num -= 1
        if num < len(ids) and self.pad_id in self.end_ids and not (num and ids[num - 1] in self.end_ids):
            num += 1  # the first of the pads was the end
        return num > 0 and ids[num - 1] in self.end_ids, num


class TRLReward:
    """What `trl_reward_function` returns; picklable where its scorer is."""

    def __init__(self, reward: Reward, *, ends: Ends | None, name: str) -> None:
        """Keep them; TRL logs a reward function under its `__name__`."""
        self.reward, self.ends = reward, ends
        self.__name__ = name

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Any] | None = None,
        *,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One reward a completion, in their order.

        Args:
            prompts: texts or messages.
            completions: texts or messages.
            completion_ids: of the policy, only to see how a completion ends.
            log_metric: gets what each step of shaping added, on average.
            log_extra: gets the same of each completion, for the table of completions.
            columns: of the data set, and what else TRL tells; not looked at.

        Raises:
            SettingsError: at token ids in the place of texts.
            RewardsmithError: see `Reward.rewards`.
        """
        found = self.reward.rewards(self.samples(prompts, completions, completion_ids))
        _log(found, self.__name__, log_metric, log_extra)
        return floats(found)

    def samples(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any] | None
    ) -> list[Sample]:
        """What TRL hands over as samples."""
        same_length(prompts=prompts, completions=completions)
        pairs = [read_pair(*both, f"completion {i}") for i, both in enumerate(zip(prompts, completions, strict=True))]
        if completion_ids is None or self.ends is None:
            return [Sample(prompt, answer) for prompt, answer in pairs]
        same_length(completions=completions, completion_ids=completion_ids)
        seen = [self.ends.read(_whole_numbers(ids)) for ids in completion_ids]
        return [Sample(*pair, is_finished=end, num_tokens=num) for pair, (end, num) in zip(pairs, seen, strict=True)]


class AsyncTRLReward:
    """The same as a coroutine: while a server scores, TRL runs its other reward functions."""

    def __init__(self, function: TRLReward) -> None:
        """Keep what is run in a thread."""
        self.function = function
        self.__name__ = function.__name__

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], *more: Any, **named: Any
    ) -> list[float]:
        """See `TRLReward`."""
        return await asyncio.to_thread(self.function, prompts, completions, *more, **named)


def trl_reward_function(
    scorer: Scorer | Function,
    shaping: Shaping | None = None,
    *,
    tokenizer: Any = None,
    end_token_ids: Iterable[int] | None = None,
    on_rewards: OnRewards | None = None,
    name: str = "reward_model",
) -> TRLReward:
    """A function for `reward_funcs` of TRL's trainers.

    Args:
        scorer: see `Reward`.
        shaping: see `Reward`.
        tokenizer: the policy's: answers end with its end token, and are filled up with its pad token. It is not kept.
        end_token_ids: further tokens that end an answer, of the policy's generation config; TRL's are `trainer.eos_token_ids`.
        on_rewards: is told of each batch.
        name: that TRL logs it by.

    Raises:
        SettingsError: if a step of shaping needs what it is not told.
    """
    return TRLReward(
        _reward(scorer, shaping, tokenizer, end_token_ids, on_rewards), ends=_ends(tokenizer, end_token_ids), name=name
    )


def trl_async_reward_function(
    scorer: Scorer | Function,
    shaping: Shaping | None = None,
    *,
    tokenizer: Any = None,
    end_token_ids: Iterable[int] | None = None,
    on_rewards: OnRewards | None = None,
    name: str = "reward_model",
) -> AsyncTRLReward:
    """The same as a coroutine; see `trl_reward_function`. OnlineDPOTrainer takes no coroutines."""
    reward = _reward(scorer, shaping, tokenizer, end_token_ids, on_rewards)
    return AsyncTRLReward(TRLReward(reward, ends=_ends(tokenizer, end_token_ids), name=name))


def _reward(
    scorer: Scorer | Function,
    shaping: Shaping | None,
    tokenizer: Any,
    end_token_ids: Iterable[int] | None,
    on_rewards: OnRewards | None,
) -> Reward:
    lacking: dict[Need, str] = {"kl": _NO_KL}
    if end_token_ids is not None and not isinstance(end_token_ids, Iterable):
        raise SettingsError("end_token_ids as a list of numbers", repr(end_token_ids), f"Write [{end_token_ids}].")
    if tokenizer is None and end_token_ids is None:
        lacking |= {"is_finished": _NO_ENDS, "num_tokens": _NO_ENDS}
    check_needs(shaping, lacking)
    return Reward(scorer, shaping, on_rewards=on_rewards)


def _ends(tokenizer: Any, end_token_ids: Iterable[int] | None) -> Ends | None:
    if end_token_ids is not None and not isinstance(end_token_ids, Iterable):
        raise SettingsError("end_token_ids as a list of numbers", repr(end_token_ids), f"Write [{end_token_ids}].")
    if tokenizer is None and end_token_ids is None:
        return None
    found = set() if end_token_ids is None else {int(one) for one in end_token_ids}
    of_tokenizer = getattr(tokenizer, "eos_token_id", None)
    if of_tokenizer is not None:
        found.add(int(of_tokenizer))
    if not found:
        raise SettingsError("at least one token that ends an answer", "none", _NO_ENDS)
    pad = getattr(tokenizer, "pad_token_id", None)
    return Ends(frozenset(found), None if pad is None else int(pad))


def _whole_numbers(ids: Any) -> list[int]:
    try:
        return [int(one) for one in ids]
    except (TypeError, ValueError) as error:
        mend = "Give texts as `completions`, their ids as `completion_ids`."
        raise SettingsError("`completion_ids` as token ids", repr(ids)[:60], mend) from error


def _log(
    rewards: Rewards,
    name: str,
    log_metric: Callable[[str, float], None] | None,
    log_extra: Callable[[str, list[Any]], None] | None,
) -> None:
    parts: dict[str, Any] = {"score": rewards.score, **rewards.terms}
    if log_metric is not None:
        means = rewards.means
        for key in parts:
            log_metric(f"{name}/{key}", means[key])
        for key, count in rewards.counts.items():
            log_metric(f"{name}/num_{key}", float(count))
    if log_extra is not None:
        for key, values in parts.items():
            log_extra(f"{name}/{key}", [float(value) for value in values])
