"""Routes whose texts the client has rendered itself, control tokens included: OpenRLHF's remote reward model, LLaMA-Factory's reward API.

Special-token strings in these texts are control tokens. The special tokens that the model puts around every text are put there here too, and not twice where
the text brings them: so a text that was rendered with the model's own template has the model's own score.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from rewardsmith.scores import Input, RawText, ScoreTable
from rewardsmith.serving.protocol import Body
from rewardsmith.serving.served import ServedModel


class ExtraLogs(TypedDict):
    """What OpenRLHF logs beside the reward; numbers only."""

    tokens: list[float]
    truncated: list[float]


class RewardAnswer(TypedDict):
    """The response of /get_reward."""

    rewards: list[float]
    scores: list[float]
    extra_logs: ExtraLogs


class EvaluationAnswer(TypedDict):
    """The response of LLaMA-Factory's /v1/score/evaluation."""

    id: str
    object: str
    model: str
    scores: list[float]


class GetReward(Body):
    """The body of /get_reward; an empty list is answered with empty lists."""

    query: str | list[str]
    prompts: Any = None
    labels: Any = None

    def inputs(self, model: ServedModel) -> list[Input]:
        """Each query as it stands."""
        return [RawText(text, control=True) for text in ([self.query] if isinstance(self.query, str) else self.query)]

    def answer(self, model: ServedModel, table: ScoreTable) -> RewardAnswer:
        """`rewards` are raw; `scores`, by which OpenRLHF filters, are the probability of being better than an answer of average score."""
        return RewardAnswer(
            rewards=[float(score) for score in table.score],
            scores=[float(share) for share in model.squashed(table)],
            extra_logs=ExtraLogs(
                tokens=[float(count) for count in table.tokens],
                truncated=[float(cut) for cut in table.truncated],
            ),
        )


class Evaluation(Body):
    """The body of /v1/score/evaluation: `messages` are whole texts."""

    messages: list[str]
    max_length: Annotated[int, Field(ge=1)] | None = None

    def inputs(self, model: ServedModel) -> list[Input]:
        """Each text as it stands."""
        return [RawText(text, control=True, max_tokens=self.max_length) for text in self.messages]

    def answer(self, model: ServedModel, table: ScoreTable) -> EvaluationAnswer:
        """Raw scores."""
        return EvaluationAnswer(
            id=f"scoreval-{uuid.uuid4().hex}",
            object="score.evaluation",
            model=model.name,
            scores=[float(score) for score in table.score],
        )
