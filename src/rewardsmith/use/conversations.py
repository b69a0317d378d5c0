"""Prompts and answers as trainers hand them over: texts or messages. Token ids are refused: those of a policy mean nothing to a reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from rewardsmith.data.schema import Pair, Prompt, RowReader, conversation
from rewardsmith.errors import DataError, SettingsError


def read_prompt(value: Any, where: str) -> Prompt:
    """A prompt: a text, or messages of which the last is not the assistant's.

    Raises:
        SettingsError: at token ids.
        RowError: at messages that cannot be read.
    """
    value = _plain(value, where)
    return RowReader(where).prompt({"prompt": value})


def read_pair(prompt: Any, completion: Any, where: str) -> Pair:
    """A prompt and what a policy made of it, as what a scorer is asked.

    Messages that stand before the last one (a tool's, of an answer in several turns) belong to the prompt that the last one answers.

    Args:
        prompt: a text or messages.
        completion: a text, or messages of which the last is the assistant's.
        where: for errors.

    Raises:
        SettingsError: at token ids.
        RowError: at messages that cannot be read: with parts that are no text, or calls of tools.
    """
    asked = read_prompt(prompt, where)
    value = _plain(completion, where)
    reader = RowReader(where)
    if isinstance(value, str):
        return asked, reader.text(value, "completion")
    messages = reader.messages(value, "completion")
    if messages[-1]["role"] != "assistant":
        reader.fail(
            "completion",
            "messages that end with the policy's answer",
            f"last role `{messages[-1]['role']}`",
            "Let the policy answer after its last tool.",
        )
    answer = messages[-1]["content"]
    if len(messages) == 1:
        return asked, answer
    return [*conversation(asked, "")[:-1], *messages[:-1]], answer


def read_texts(prompts: Sequence[Any], answers: Sequence[Any]) -> list[Pair]:
    """Prompts with their answers, row by row.

    Raises:
        DataError: if they are not equally many.
        RewardsmithError: see `read_pair`.
    """
    same_length(prompts=prompts, answers=answers)
    return [read_pair(*both, f"row {i}") for i, both in enumerate(zip(prompts, answers, strict=True))]


def same_length(**columns: Sequence[Any]) -> None:
    """Check that every column has one value an answer.

    Raises:
        SettingsError: at one text in the place of several: its characters would be taken for prompts.
        DataError: if they are not equally many.
    """
    for name, column in columns.items():
        if isinstance(column, str | Mapping) or not hasattr(column, "__len__"):
            raise SettingsError(f"a list of {name}, one an answer", type(column).__name__, "Put it into a list.")
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        came = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise DataError("one value an answer in every column", came, "Check what calls the reward function.")


def _plain(value: Any, where: str) -> Any:
    """Strings, and lists of plain mappings; arrays of messages come from Parquet files."""
    if isinstance(value, str):
        return value
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        return [dict(one) for one in value]
    # Lists of whole numbers, arrays and tensors of any kind.
    is_list_of_ids = (
        isinstance(value, list) and bool(value) and not any(isinstance(one, str | Mapping) for one in value)
    )
    if is_list_of_ids or hasattr(value, "dtype"):
        _refuse_ids(where)
    return value


def _refuse_ids(where: str) -> NoReturn:
    raise SettingsError(
        "prompts and answers as texts or messages",
        f"token ids at {where}",
        "Decode them by the policy's tokenizer, without special tokens: a reward model has a vocabulary of its own.",
    )
