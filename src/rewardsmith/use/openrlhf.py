"""`reward_func(queries, prompts, labels)` for OpenRLHF, in a Python file that `--reward.remote_url` names.

A query is the prompt and the answer as the policy's tokenizer decodes them, with special tokens; the prompt is that text without the answer. Here both are taken
apart again: the answer is what follows the prompt, and the prompt is read back from the policy's chat template, so that the reward model renders both by its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from rewardsmith.data.schema import Prompt
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.functions import Function
from rewardsmith.scores import Scorer
from rewardsmith.use.conversations import same_length
from rewardsmith.use.rendered import TemplateReader
from rewardsmith.use.rewards import OnRewards, Reward, check_needs
from rewardsmith.use.samples import Sample
from rewardsmith.use.shaping import Shaping
from rewardsmith.use.terms import Need

_NO_KL = "OpenRLHF takes KL into the reward itself: set its --algo.kl settings."
_NO_COUNT = "Take unit = characters, or OpenRLHF's own length penalties: it hands over texts."
_NO_GROUPS = "OpenRLHF asks for one answer at a time; its advantage estimators normalise groups."
_NO_ENDS = "Give `tokenizer` (the policy's) or `end_tokens`."


class OpenRLHFReward:
    """What `openrlhf_reward_function` returns; picklable where its parts are."""

    def __init__(
        self,
        reward: Reward,
        *,
        as_tensor: Callable[[list[float]], Any],
        end_tokens: Iterable[str],
        pad_token: str | None,
        special_tokens: Iterable[str],
        read_prompt: Callable[[str], Prompt] | None,
        centre: float,
        temperature: float,
    ) -> None:
        """Keep them."""
        self.reward, self.as_tensor, self.read_prompt = reward, as_tensor, read_prompt
        self.end_tokens = tuple(sorted(set(end_tokens), key=len, reverse=True))
        self.pad_token, self.special_tokens = pad_token, tuple(special_tokens)
        self.centre, self.temperature = centre, temperature

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **more: Any
    ) -> dict[str, Any]:
        """The document that OpenRLHF takes: `rewards` for advantages, `scores` within (0, 1) for its dynamic filter, `extra_logs` by name.

        Raises:
            SettingsError: at token ids, or prompts that are rendered where nothing reads them.
            DataError: if a query does not begin with its prompt.
            RewardsmithError: see `Reward.rewards`.
        """
        same_length(queries=queries, prompts=prompts, labels=labels)
        samples = [self._sample(*both, i) for i, both in enumerate(zip(queries, prompts, strict=True))]
        found = self.reward.rewards(samples)
        raw = found.score.astype(np.float64)
        logs = {"score": raw, **found.terms}
        return {
            "rewards": self._tensor(found.value),
            "scores": self._tensor(expit((raw - self.centre) / self.temperature)),
            "extra_logs": {name: self._tensor(values) for name, values in logs.items()},
        }

    def _tensor(self, values: Any) -> Any:
        return self.as_tensor([float(value) for value in values])

    def _sample(self, query: Any, prompt: Any, row: int) -> Sample:
        if not (isinstance(query, str) and isinstance(prompt, str)):
            raise SettingsError(
                "queries and prompts as texts",
                f"{type(query).__name__} and {type(prompt).__name__} at query {row}",
                "Decode them: token ids of a policy mean nothing to a reward model.",
            )
        text = query
        if not text.startswith(prompt) and self.pad_token:  # whole batches are decoded with what fills them up
            while text.startswith(self.pad_token):
                text = text.removeprefix(self.pad_token)
        if not text.startswith(prompt):
            raise DataError(
                "a query that begins with its prompt",
                f"another text at query {row}: the prompt was cut, or its tokens do not decode to it",
                "Raise OpenRLHF's limit of prompt tokens, or use the server's route /get_reward, which takes whole texts.",
            )
        answer, is_finished = self._ended(text[len(prompt) :])
        return Sample(self._prompt(prompt), answer, is_finished=is_finished)

    def _ended(self, answer: str) -> tuple[str, bool | None]:
        """The answer without what ends it and fills it up; whether something ended it, looked for in the answer alone."""
        if not self.end_tokens:
            return answer, None
        if self.pad_token and self.pad_token not in self.end_tokens:
            while answer.endswith(self.pad_token):
                answer = answer.removesuffix(self.pad_token)
        is_finished = False
        while end := next((one for one in self.end_tokens if answer.endswith(one)), None):
            answer, is_finished = answer.removesuffix(end), True
        return answer, is_finished

    def _prompt(self, prompt: str) -> Prompt:
        if self.read_prompt is not None:
            return self.read_prompt(prompt)
        control = [one for one in self.special_tokens if one in prompt]
        if control:
            raise SettingsError(
                "prompts as people wrote them, or what reads them back",
                f"one that a template has rendered: {control[0]!r} stands in it",
                "Give `tokenizer` (the policy's, with its chat template) or `read_prompt`.",
            )
        return prompt


def openrlhf_reward_function(
    scorer: Scorer | Function,
    shaping: Shaping | None = None,
    *,
    as_tensor: Callable[[list[float]], Any],
    tokenizer: Any = None,
    end_tokens: Iterable[str] = (),
    read_prompt: Callable[[str], Prompt] | None = None,
    on_rewards: OnRewards | None = None,
    centre: float = 0.0,
    temperature: float = 1.0,
) -> OpenRLHFReward:
    """A `reward_func` for OpenRLHF.

    Args:
        scorer: see `Reward`.
        shaping: see `Reward`.
        as_tensor: `torch.tensor`: OpenRLHF computes with tensors, and nothing here loads torch.
        tokenizer: the policy's: its end and pad tokens are taken off answers, its chat template is read back.
        end_tokens: further strings that end an answer.
        read_prompt: from a rendered prompt to a text or messages; the tokenizer's template where None.
        on_rewards: is told of each batch.
        centre: the score whose `scores` are 0.5, e.g. the mean of the model's normaliser.
        temperature: of `scores` = sigmoid((score - centre) / temperature).

    Raises:
        SettingsError: if a step of shaping needs what it is not told, or the template cannot be read back.
    """
    if isinstance(end_tokens, str):
        raise SettingsError("a list of end tokens", f"one text, {end_tokens!r}", "Put it into a list.")
    ends = set(end_tokens)
    if getattr(tokenizer, "eos_token", None):
        ends.add(tokenizer.eos_token)
    lacking: dict[Need, str] = {"kl": _NO_KL, "num_tokens": _NO_COUNT, "groups": _NO_GROUPS}
    check_needs(shaping, lacking if ends else {**lacking, "is_finished": _NO_ENDS})
    if not (np.isfinite(centre) and np.isfinite(temperature) and temperature > 0):
        raise SettingsError("a finite centre, a temperature above 0", f"{centre} and {temperature}", "Take 0 and 1.")
    if read_prompt is None and getattr(tokenizer, "chat_template", None):
        read_prompt = TemplateReader(tokenizer)
    return OpenRLHFReward(
        Reward(scorer, shaping, on_rewards=on_rewards),
        as_tensor=as_tensor,
        end_tokens=ends,
        pad_token=getattr(tokenizer, "pad_token", None),
        special_tokens=[*getattr(tokenizer, "all_special_tokens", ()), *end_tokens],
        read_prompt=read_prompt,
        centre=centre,
        temperature=temperature,
    )
