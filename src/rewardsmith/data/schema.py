"""One row of preference data, checked: what is a pair, what is a group, and which faults stop a reader.

Structural faults (wrong type, missing column, NaN) raise `RowError` here. Faults of content (an empty answer, equal answers) are no business of this
module: such a row is well formed, and `data.faults` decides what becomes of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from rewardsmith.errors import RowError

Message: TypeAlias = dict[str, str]
Prompt: TypeAlias = str | list[Message]
Pair: TypeAlias = tuple[Prompt, str]
"""What a Scorer scores: a prompt and one answer."""

ROLES = ("system", "user", "assistant", "tool")
_ROLE_MENDS = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant"}


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt with a chosen and a rejected answer.

    `votes` is (for chosen, for rejected); `tie` says that the annotators called the two equal. `rejected_prompt` is set only where the two sides came
    with different prompts, which is a fault of content.
    """

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    group: str | None = None
    margin: float | None = None
    weight: float | None = None
    votes: tuple[int, int] | None = None
    tie: bool = False
    rejected_prompt: Prompt | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def chosen_pair(self) -> Pair:
        """Prompt and chosen answer."""
        return self.prompt, self.chosen

    @property
    def rejected_pair(self) -> Pair:
        """Prompt and rejected answer."""
        return self.prompt if self.rejected_prompt is None else self.rejected_prompt, self.rejected


@dataclass(frozen=True, slots=True)
class Group:
    """All answers of one prompt. `order` says what is known: "ranked" (best first), "rated" (see `ratings`) or "none".

    Metadata `per_answer` holds columns of the single answers, {name: [one value an answer]}; see `data.pairing`.
    """

    id: str
    prompt: Prompt
    answers: tuple[str, ...]
    order: str
    ratings: tuple[float, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Single:
    """One answer to one prompt, to be scored."""

    id: str
    prompt: Prompt
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict)


Row: TypeAlias = Preference | Group | Single


def prompt_key(prompt: Prompt) -> str:
    """A text that two prompts share exactly when they are the same conversation: splits and intervals go by it."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    return "\x1e".join(f"{message['role']}\x1f{message['content']}" for message in prompt)


def as_row(row: Row) -> dict[str, Any]:
    """A row as the native row that `RowReader` reads back; a pair of two prompts keeps each in its own conversation."""
    if isinstance(row, Preference):
        return _pair_row(row)
    if isinstance(row, Single):
        return {"id": row.id, "prompt": row.prompt, "answer": row.answer} | row.metadata
    name = {"ranked": "ranked", "rated": "answers", "none": "candidates"}[row.order]
    ratings = {} if row.ratings is None else {"ratings": list(row.ratings)}
    return {"id": row.id, "prompt": row.prompt, name: list(row.answers)} | ratings | row.metadata


def conversation(prompt: Prompt, answer: str) -> list[Message]:
    """A prompt and its answer as one list of messages."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [*turns, {"role": "assistant", "content": answer}]


def _pair_row(pair: Preference) -> dict[str, Any]:
    row: dict[str, Any] = {"id": pair.id, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    if pair.rejected_prompt is not None:
        del row["prompt"]
        row |= {"chosen": conversation(*pair.chosen_pair), "rejected": conversation(*pair.rejected_pair)}
    votes = None if pair.votes is None else list(pair.votes)
    optional = {"group": pair.group, "margin": pair.margin, "weight": pair.weight, "votes": votes}
    row |= {name: value for name, value in optional.items() if value is not None}
    return row | ({"tie": True} if pair.tie else {}) | pair.metadata


@dataclass(frozen=True)
class RowReader:
    """Reads one row; carries the place, so that every error can name it.

    Args:
        where: `file:line`.
        allow_negative_margin: see `config.LossSettings`.
    """

    where: str
    allow_negative_margin: bool = False

    def fail(self, name: str, needed: str, came: str, mend: str) -> NoReturn:
        """Raise the RowError of this row."""
        raise RowError(self.where, name, needed=needed, came=came, mend=mend)

    def row(self, row: Mapping[str, Any], number: int) -> Row:
        """A native row: a pair, a group or a single answer.

        Raises:
            RowError: at the first structural fault.
        """
        row = {key: value for key, value in row.items() if value is not None}
        identity = self.text(str(row.get("id", number)), "id")
        if "chosen" in row or "rejected" in row:
            return self._pair(row, identity)
        for key in ("ranked", "answers", "candidates"):
            if key in row:
                return self._group(row, identity, key)
        if "answer" in row:
            metadata = _metadata(row, {"id", "prompt", "answer"})
            return Single(identity, self.prompt(row), self.text(row["answer"], "answer"), metadata)
        self.fail(
            "chosen",
            "`chosen` and `rejected` (or `ranked`, `answers` with `ratings`, `candidates`, or `answer`)",
            f"the keys {sorted(row)}",
            "Rename the columns that hold the answers, or add them.",
        )

    def _pair(self, row: Mapping[str, Any], identity: str) -> Preference:
        for key in ("chosen", "rejected"):
            if key not in row:
                self.fail(key, f"a column `{key}`", f"the keys {sorted(row)}", "Give both sides of the pair.")
        prompt = self.prompt(row) if "prompt" in row else None
        chosen_prompt, chosen = self._side(row["chosen"], "chosen", prompt)
        rejected_prompt, rejected = self._side(row["rejected"], "rejected", prompt)
        same = prompt_key(chosen_prompt) == prompt_key(rejected_prompt)
        known = {"id", "prompt", "chosen", "rejected", "group", "margin", "weight", "votes", "tie"}
        return Preference(
            id=identity,
            prompt=chosen_prompt,
            chosen=chosen,
            rejected=rejected,
            group=str(row["group"]) if "group" in row else None,
            margin=self._margin(row),
            weight=self._number(row, "weight", least=0.0),
            votes=self._votes(row),
            tie=self._tie(row),
            rejected_prompt=None if same else rejected_prompt,
            metadata=_metadata(row, known),
        )

    def _group(self, row: Mapping[str, Any], identity: str, key: str) -> Group:
        prompt = self.prompt(row)
        for label in ("margin", "weight", "votes", "tie"):
            if label in row:
                self.fail(label, "a label column on a pair", "one on a group", "Write the group as pairs.")
        answers = row[key]
        if not isinstance(answers, list) or len(answers) < 2:
            self.fail(key, "a list of at least two answers", _short(answers), "Give each answer as a string.")
        texts = tuple(self.text(answer, f"{key}[{i}]") for i, answer in enumerate(answers))
        ratings = None
        if key == "answers":
            ratings = row.get("ratings")
            if not isinstance(ratings, list) or len(ratings) != len(texts):
                self.fail("ratings", f"a list of {len(texts)} numbers", _short(ratings), "Give one rating an answer.")
            ratings = tuple(self.finite(rating, f"ratings[{i}]") for i, rating in enumerate(ratings))
        self._per_answer(row, len(texts))
        order = {"ranked": "ranked", "answers": "rated", "candidates": "none"}[key]
        return Group(identity, prompt, texts, order, ratings, _metadata(row, {"id", "prompt", key, "ratings"}))

    def _per_answer(self, row: Mapping[str, Any], count: int) -> None:
        columns = row.get("per_answer", {})
        whole = isinstance(columns, Mapping) and all(isinstance(v, list) and len(v) == count for v in columns.values())
        if not whole:
            needed = f'{{"name": [{count} values]}}'
            self.fail("per_answer", needed, _short(columns), "Give one value an answer, or leave the column out.")

    def prompt(self, row: Mapping[str, Any]) -> Prompt:
        """The prompt of a row: a string, or messages of which the last is not the assistant's."""
        if "prompt" not in row:
            self.fail("prompt", "a column `prompt`", f"the keys {sorted(row)}", "Give the prompt explicitly.")
        value = row["prompt"]
        if isinstance(value, str):
            return self.text(value, "prompt")
        messages = self.messages(value, "prompt")
        if messages[-1]["role"] == "assistant":
            self.fail(
                "prompt",
                "a prompt that ends with a turn to be answered",
                "messages whose last role is `assistant`",
                "Move that turn into `chosen` and `rejected`.",
            )
        return messages

    def _side(self, value: Any, name: str, prompt: Prompt | None) -> tuple[Prompt, str]:
        """One side of a pair as (its prompt, its answer); messages are split before the last one, never by characters."""
        if isinstance(value, str):
            if prompt is None:
                self.fail(
                    "prompt",
                    "a column `prompt`, messages, or HH transcripts",
                    f"only a text in `{name}`",
                    "Give the prompt explicitly; it is never guessed from what two texts have in common.",
                )
            return prompt, self.text(value, name)
        messages = self.messages(value, name)
        if messages[-1]["role"] != "assistant":
            self.fail(
                name,
                "messages that end with the assistant's answer",
                f"last role `{messages[-1]['role']}`",
                "Remove what follows the answer.",
            )
        before, answer = messages[:-1], messages[-1]["content"]
        if prompt is None:
            if not before:
                self.fail("prompt", "a prompt before the answer", "one message", "Give the column `prompt`.")
            return before, answer
        if before and prompt_key(before) != prompt_key(prompt):
            self.fail(
                name,
                "a conversation that begins with the row's `prompt`",
                "one that begins otherwise",
                "Leave `prompt` out, or give only the assistant's message.",
            )
        return prompt, answer

    def messages(self, value: Any, name: str) -> list[Message]:
        """A checked, non-empty list of {"role", "content"}; other keys of a message are refused."""
        if not isinstance(value, list) or not value:
            self.fail(name, "a text or a non-empty list of messages", _short(value), "Mend the row.")
        messages = []
        for i, message in enumerate(value):
            at = f"{name}[{i}]"
            if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
                self.fail(at, 'a message {"role", "content"}', _short(message), "Mend the row.")
            extra = sorted(key for key, inner in message.items() if key not in ("role", "content") and inner)
            if extra:
                self.fail(at, "a message of role and content", f"the keys {extra} too", "Write it into the content.")
            role = message["role"]
            if role not in ROLES:
                known = _ROLE_MENDS.get(str(role).lower(), "user")
                mend = f"Rename it; `{role}` is probably `{known}`."
                self.fail(f"{at}.role", f"one of {', '.join(ROLES)}", _short(role), mend)
            if isinstance(message["content"], list):
                self.fail(
                    f"{at}.content",
                    "a text",
                    "a list of parts",
                    "Join the text parts; images and tools cannot be scored.",
                )
            messages.append({"role": role, "content": self.text(message["content"], f"{at}.content")})
        return messages

    def text(self, value: Any, name: str) -> str:
        """A string that can be written as UTF-8."""
        if not isinstance(value, str):
            self.fail(name, "a text", f"{_short(value)} ({type(value).__name__})", "Give a string.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            self.fail(
                name,
                "valid Unicode",
                f"a lone surrogate at character {error.start}",
                "Decode the source as UTF-16 or replace the character.",
            )
        return value

    def finite(self, value: Any, name: str) -> float:
        """A finite number."""
        try:
            number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.fail(name, "a finite number", _short(value), "Give a number, or leave the column out.")
        return number

    def _number(self, row: Mapping[str, Any], name: str, *, least: float | None = None) -> float | None:
        if name not in row:
            return None
        value = self.finite(row[name], name)
        if least is not None and value < least:
            self.fail(name, f"a number of at least {least:g}", f"{value:g}", "Mend the row.")
        return value

    def _margin(self, row: Mapping[str, Any]) -> float | None:
        value = self._number(row, "margin")
        if value is not None and value < 0 and not self.allow_negative_margin:
            self.fail(
                "margin",
                "a margin of at least 0",
                f"{value:g}",
                "Swap chosen and rejected, or set loss.allow_negative_margin = true.",
            )
        return value

    def _votes(self, row: Mapping[str, Any]) -> tuple[int, int] | None:
        votes = row.get("votes")
        if votes is None:
            return None
        whole = isinstance(votes, list) and len(votes) == 2
        if not whole or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in votes) or sum(votes) == 0:
            self.fail(
                "votes",
                "[votes for chosen, votes for rejected], whole numbers of at least 0, not both 0",
                _short(votes),
                "Mend the row; the share for chosen must lie in [0, 1].",
            )
        return votes[0], votes[1]

    def _tie(self, row: Mapping[str, Any]) -> bool:
        tie = row.get("tie", False)
        if not isinstance(tie, bool):
            self.fail("tie", "true or false", _short(tie), "Mend the row; a cast may have turned numbers into labels.")
        return tie


def _metadata(row: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in known}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
