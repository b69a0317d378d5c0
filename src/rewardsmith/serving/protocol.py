"""What every body of a request has in common: it names a model, turns into inputs, and knows how its protocol answers and complains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from rewardsmith.data.schema import Pair
from rewardsmith.errors import DataError
from rewardsmith.scores import Input, ScoreTable
from rewardsmith.serving.served import ServedModel


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "user", "assistant", "tool"]
    content: str


Prompt: TypeAlias = str | Annotated[list[Message], Field(min_length=1)]


class Body(BaseModel, ABC):
    """The body of a POST request. Types are not converted: a number is no text."""

    # Fields of other people's protocols that mean nothing here are let pass.
    model_config = ConfigDict(strict=True, extra="ignore", use_attribute_docstrings=True, protected_namespaces=())

    model: str | None = None
    """A served model; with one model served, any name will do."""

    protocol: ClassVar[Literal["rewardsmith", "vllm", "tei"]] = "rewardsmith"
    """Whose words errors are put in."""

    @abstractmethod
    def inputs(self, model: ServedModel) -> list[Input]:
        """What is to be scored.

        Raises:
            DataError: if this model cannot score it.
        """

    @abstractmethod
    def answer(self, model: ServedModel, table: ScoreTable) -> Any:
        """The JSON document of the response; the table has a row for each of `inputs`, in their order."""


def as_prompt(prompt: str | list[Message]) -> str | list[dict[str, str]]:
    """A prompt as scorers take it."""
    return prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]


def last_answer(messages: list[Message]) -> Pair:
    """A conversation as (what came before its last message, that answer).

    Raises:
        DataError: if it does not end with an answer, or begins with it.
    """
    if messages[-1].role != "assistant" or len(messages) == 1:
        came = f"roles {', '.join(message.role for message in messages)}"
        raise DataError("messages that end with the assistant's answer to others", came, "Send prompt and answer.")
    return as_prompt(messages[:-1]), messages[-1].content
