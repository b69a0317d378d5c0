"""The guardrail as a route: may these answers be shown? A server without a guardrail for the model says so; it allows nothing by default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from rewardsmith.data.schema import Pair
from rewardsmith.scores import Input, ScoreTable
from rewardsmith.serving.complaints import Complaint
from rewardsmith.serving.native import Own, PromptAndAnswer
from rewardsmith.serving.protocol import as_prompt
from rewardsmith.serving.served import ServedModel
from rewardsmith.use.guard_rule import Rule


class Guarded(TypedDict):
    """What becomes of one answer.

    `probability`: that people prefer it to an answer that scores just the threshold; null without a fitted temperature. `bad_probability`: that it is a bad answer;
    null where the guardrail was not fitted on labelled answers. An empty answer has no score.
    """

    decision: Literal["allow", "refuse", "abstain"]
    cause: Literal[
        "above threshold",
        "below threshold",
        "within the threshold's interval",
        "outside the domain",
        "truncated",
        "empty",
    ]
    reason: str
    score: float | None
    threshold: float
    probability: float | None
    bad_probability: float | None
    truncated: bool


class GuardAnswer(TypedDict):
    """The response of POST /v1/guard: between the two bounds the server abstains. `target_rate`: the share of good answers that may be stopped."""

    model: str
    precision: str
    target_rate: float | None
    threshold: float
    threshold_low: float
    threshold_high: float
    results: list[Guarded]


class Guard(Own):
    """Allow, refuse or abstain, answer by answer."""

    inputs_: Annotated[list[PromptAndAnswer], Field(alias="inputs")]

    def inputs(self, model: ServedModel) -> list[Input]:
        """Prompt and answer through the model's template.

        Raises:
            Complaint: 404 where no guardrail is configured for the model.
        """
        rule_of(model)
        return [*self._pairs()]

    def answer(self, model: ServedModel, table: ScoreTable) -> GuardAnswer:
        """One result an input, in their order."""
        rule, pairs = rule_of(model), self._pairs()
        flags = model.domain.flags(pairs) if model.domain else None
        low, high = rule.bounds
        decisions = rule.decide(pairs, table.score, truncated=table.truncated.tolist(), flags=flags)
        results = [
            Guarded(
                decision=one.decision,
                cause=one.cause,
                reason=one.reason,
                score=one.score,
                threshold=rule.threshold.value,
                probability=one.probability,
                bad_probability=one.bad_probability,
                truncated=bool(cut),
            )
            for one, cut in zip(decisions, table.truncated, strict=True)
        ]
        return GuardAnswer(
            model=model.name,
            precision=model.precision,
            target_rate=rule.target_rate,
            threshold=rule.threshold.value,
            threshold_low=low,
            threshold_high=high,
            results=results,
        )

    def _pairs(self) -> list[Pair]:
        return [(as_prompt(one.prompt), one.answer) for one in self.inputs_]


def rule_of(model: ServedModel) -> Rule:
    """The guardrail of a model.

    Raises:
        Complaint: 404 where there is none.
    """
    if model.guardrail is None:
        raise Complaint(
            404,
            "NoGuardrail",
            f"no guardrail is configured for {model.name}; start with --set guardrail=RATE or a file",
        )
    return model.guardrail
