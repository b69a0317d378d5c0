"""rewardsmith's own API: score, compare, rank. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from rewardsmith.data import traits
from rewardsmith.scores import Input, ScoreTable
from rewardsmith.serving.protocol import Body, Prompt, as_prompt
from rewardsmith.serving.served import ServedModel


class Flags(TypedDict):
    """What to know of a score before it is believed; texts of equal digests are the same to the model."""

    prompt_cut: int
    answer_cut: int
    special_strings: int
    empty_answer: bool
    digest: str


class Domain(TypedDict):
    """How far a text lies from the reference of the server's detector; `part` is that of prompts and answers which is more unusual."""

    distance: float
    p_value: float
    outside: bool
    part: str


class _Result(TypedDict):
    score: float
    tokens: int
    truncated: bool


class Result(_Result, total=False):
    """The score of one answer, raw; `probability` and `flags` where they were asked for, `domain` where the server has a detector."""

    probability: float
    flags: Flags
    domain: Domain


class ScoreAnswer(TypedDict):
    """The response of POST /v1/score."""

    model: str
    precision: str
    calibrated: bool
    results: list[Result]


class CompareAnswer(TypedDict):
    """The response of POST /v1/compare."""

    model: str
    precision: str
    calibrated: bool
    probability: float
    margin: float
    score_a: float
    score_b: float
    indistinguishable: bool
    truncated: bool


class Ranked(TypedDict):
    """One answer of a ranking."""

    index: int
    score: float
    truncated: bool


class RankAnswer(TypedDict):
    """The response of POST /v1/rank, the best answer first; equal scores keep their order."""

    model: str
    precision: str
    results: list[Ranked]


class Own(Body):
    """A body of our own API."""

    model_config = ConfigDict(extra="forbid")


class PromptAndAnswer(BaseModel):
    """What is scored."""

    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: Prompt
    answer: str


class Score(Own):
    """Score answers.

    `include`: `probability` is that of being better than an answer of average score; `flags` says what was cut or looks odd.
    """

    inputs_: Annotated[list[PromptAndAnswer], Field(alias="inputs")]
    include: list[Literal["probability", "flags"]] = []

    def inputs(self, model: ServedModel) -> list[Input]:
        """Prompt and answer through the model's template."""
        return [(as_prompt(one.prompt), one.answer) for one in self.inputs_]

    def answer(self, model: ServedModel, table: ScoreTable) -> ScoreAnswer:
        """One result an input, in their order."""
        probabilities = model.squashed(table)
        domain = (
            model.domain.flags([(as_prompt(one.prompt), one.answer) for one in self.inputs_]) if model.domain else []
        )
        results: list[Result] = []
        for i, one in enumerate(self.inputs_):
            result = Result(
                score=float(table.score[i]), tokens=int(table.tokens[i]), truncated=bool(table.truncated[i])
            )
            if "probability" in self.include:
                result["probability"] = float(probabilities[i])
            if "flags" in self.include:
                result["flags"] = Flags(
                    prompt_cut=int(table.prompt_cut[i]),
                    answer_cut=int(table.answer_cut[i]),
                    special_strings=int(table.special_strings[i]),
                    empty_answer=traits.is_blank(one.answer),
                    digest=f"{int(table.digest[i]):016x}",
                )
            if model.domain:
                flag = domain[i]
                result["domain"] = Domain(
                    distance=flag.distance, p_value=flag.p_value, outside=flag.outside, part=flag.part
                )
            results.append(result)
        return ScoreAnswer(
            model=model.name, precision=model.precision, results=results, calibrated=model.temperature is not None
        )


class Compare(Own):
    """Compare two answers to one prompt."""

    prompt: Prompt
    answer_a: str
    answer_b: str

    def inputs(self, model: ServedModel) -> list[Input]:
        """Both answers."""
        prompt: Any = as_prompt(self.prompt)
        return [(prompt, self.answer_a), (prompt, self.answer_b)]

    def answer(self, model: ServedModel, table: ScoreTable) -> CompareAnswer:
        """`probability`: that A is the better answer; `indistinguishable`: the model reads the same tokens of both."""
        margin = float(table.score[0]) - float(table.score[1])
        return CompareAnswer(
            model=model.name,
            precision=model.precision,
            calibrated=model.temperature is not None,
            probability=float(model.probability(np.array([margin]))[0]),
            margin=margin,
            score_a=float(table.score[0]),
            score_b=float(table.score[1]),
            indistinguishable=bool(table.digest[0] == table.digest[1]),
            truncated=bool(table.truncated.any()),
        )


class Rank(Own):
    """Order the answers to one prompt."""

    prompt: Prompt
    answers: Annotated[list[str], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=1)] | None = None

    def inputs(self, model: ServedModel) -> list[Input]:
        """Every answer."""
        prompt: Any = as_prompt(self.prompt)
        return [(prompt, answer) for answer in self.answers]

    def answer(self, model: ServedModel, table: ScoreTable) -> RankAnswer:
        """The best first."""
        order = (-table.score).argsort(kind="stable")[: self.top_n]
        results = [Ranked(index=int(i), score=float(table.score[i]), truncated=bool(table.truncated[i])) for i in order]
        return RankAnswer(model=model.name, precision=model.precision, results=results)
