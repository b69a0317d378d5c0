"""The answers of two policies, A and B, put beside each other by prompt. Nothing is left out without being counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from rewardsmith.data import io, traits
from rewardsmith.data.schema import Pair, Preference, Prompt, RowReader, Single, prompt_key
from rewardsmith.data.sources import source_name
from rewardsmith.data.texts import prompts_of, read_texts
from rewardsmith.errors import DataError, RowError
from rewardsmith.scores import Generator


@dataclass(frozen=True)
class MatchedAnswers:
    """What two policies answered to the prompts that both have answers to, in the order of the prompts' texts, whichever policy is called A.

    Args:
        prompts: each once.
        a: the answers of A to each prompt, at least one.
        b: the answers of B.
        metadata: of each prompt: the columns on which all rows of A for it agree.
        counts: of what was matched, and of what a reader should know of; see `match_answers`.
    """

    prompts: list[Prompt]
    a: list[tuple[str, ...]]
    b: list[tuple[str, ...]]
    metadata: list[dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)

    def texts(self, side: str) -> list[Pair]:
        """Every (prompt, answer) of side "a" or "b", prompts in order."""
        answers = self.a if side == "a" else self.b
        return [(prompt, one) for prompt, some in zip(self.prompts, answers, strict=True) for one in some]

    def as_preferences(self) -> list[Preference]:
        """One row a prompt, with its metadata, for what looks at columns."""
        rows = zip(self.prompts, self.a, self.b, self.metadata, strict=True)
        return [
            Preference(str(i), prompt, a[0], b[0], metadata=metadata) for i, (prompt, a, b, metadata) in enumerate(rows)
        ]


def read_answers(source: str, *, skip_bad: bool = False) -> tuple[list[Single], int]:
    """The rows `{"prompt", "answer"}` of a source, and how many malformed ones were left out.

    Raises:
        RowError: at the first malformed row, unless `skip_bad` counts them.
        DataError: if a row is of another kind, or none is left.
    """
    reading = io.read(source, skip_bad=skip_bad)
    found: list[Single] = []
    for row in reading.rows:
        if not isinstance(row, Single):
            kind = "a pair" if isinstance(row, Preference) else "a group"
            raise DataError(
                f'rows {{"prompt", "answer"}} in {source_name(source)}',
                f"row {row.id!r}, which is {kind}",
                "Give one file a policy, one answer a row; several rows may share a prompt.",
            )
        found.append(row)
    return found, sum(reading.skipped.values())


def match_answers(rows_a: Sequence[Single], rows_b: Sequence[Single]) -> MatchedAnswers:
    """Match by prompt.

    The counts: `answers_a` and `answers_b` that are compared; `prompts_only_a` and `prompts_only_b`, which are not; `empty_a` and `empty_b`, answers of white space
    alone, which stay, for to say nothing is what that policy did; `repeated_a` and `repeated_b`, answers that a prompt has already, which stay, for a policy that
    says one thing twice in three tries is to be judged by that; `same_answers`, comparisons of a text with itself, which are ties.

    Raises:
        DataError: if no prompt has answers of both.
    """
    by_a, by_b = _by_prompt(rows_a), _by_prompt(rows_b)
    shared = sorted(set(by_a) & set(by_b))
    if not shared:
        raise DataError(
            "at least one prompt that both policies have answered",
            f"{len(by_a):,} prompts of A and {len(by_b):,} of B, none in common",
            "Check that both files hold the same prompts, to the letter, system messages included.",
        )
    answers_a = [tuple(row.answer for row in by_a[key]) for key in shared]
    answers_b = [tuple(row.answer for row in by_b[key]) for key in shared]
    counts: dict[str, int] = {}
    for side, by_prompt, answers in (("a", by_a, answers_a), ("b", by_b, answers_b)):
        counts[f"answers_{side}"] = sum(map(len, answers))
        counts[f"prompts_only_{side}"] = len(by_prompt) - len(shared)
        counts[f"empty_{side}"] = sum(traits.is_blank(one) for some in answers for one in some)
        counts[f"repeated_{side}"] = sum(len(some) - len(set(some)) for some in answers)
    both = zip(answers_a, answers_b, strict=True)
    counts["same_answers"] = sum(one == other for some, others in both for one in some for other in others)
    return MatchedAnswers(
        prompts=[by_a[key][0].prompt for key in shared],
        a=answers_a,
        b=answers_b,
        metadata=[_agreed([row.metadata for row in by_a[key]]) for key in shared],
        counts=counts,
    )


@dataclass(frozen=True)
class DrawnAnswers:
    """What a policy answered by chance.

    Args:
        rows: one an answer; the column `is_cut` says which ones the limit of tokens ended.
        num_cut: so many were.
        num_prompts_cut: prompts that did not fit and were not read whole.
    """

    rows: list[Single]
    num_cut: int
    num_prompts_cut: int


def draw_answers(
    policy: Generator, prompts: Mapping[str, tuple[Prompt, Mapping[str, Any]]], *, num_answers: int, seed: int
) -> DrawnAnswers:
    """Answers of one policy to each prompt.

    Two policies are given two seeds: with one they would share the numbers that tokens are drawn by, and a policy would tie with itself.

    Args:
        policy: that answers.
        prompts: as `read_prompts_with_columns` gives them.
        num_answers: to each.
        seed: of the draws.
    """
    drawn = policy.draw([prompt for prompt, _ in prompts.values()], num_answers, seed=seed)
    rows = [
        Single(f"{i}-{j}", prompt, one.answer, {**metadata, "is_cut": one.is_cut})
        for i, ((prompt, metadata), some) in enumerate(zip(prompts.values(), drawn, strict=True))
        for j, one in enumerate(some)
    ]
    num_cut = sum(one.is_cut for some in drawn for one in some)
    return DrawnAnswers(rows, num_cut, sum(any(one.prompt_cut for one in some) for some in drawn))


def read_prompts_with_columns(
    source: str, *, skip_bad: bool = False, skipped: Counter[str] | None = None
) -> dict[str, tuple[Prompt, Mapping[str, Any]]]:
    """The distinct prompts of rows of any kind, {key: (prompt, its metadata)}, in their order; see `data.texts.read_texts` for the arguments.

    Raises:
        RowError: at the first malformed row, unless `skip_bad` leaves it out.
        DataError: if no row is left.
    """
    found: dict[str, tuple[Prompt, Mapping[str, Any]]] = {}
    for row in read_texts(source, skip_bad=skip_bad, skipped=skipped):
        metadata = {} if isinstance(row, str | list) else row.metadata
        for prompt in prompts_of(row):
            found.setdefault(prompt_key(prompt), (prompt, metadata))
    for key, columns in _columns_of_prompts(source).items():  # other readers keep no columns of a prompt alone
        if key in found and not found[key][1]:
            found[key] = found[key][0], columns
    return found


def _columns_of_prompts(source: str) -> dict[str, dict[str, Any]]:
    """The further columns of rows that are well formed and hold a prompt, {key: columns}."""
    found: dict[str, dict[str, Any]] = {}
    for chunk in io.chunks(source):
        for where, raw in chunk.rows:
            try:
                row = orjson.loads(raw) if isinstance(raw, bytes) else raw
                if isinstance(row, dict) and "prompt" in row:
                    columns = {name: value for name, value in row.items() if name not in ("id", "prompt")}
                    found.setdefault(prompt_key(RowReader(where).prompt(row)), columns)
            except (orjson.JSONDecodeError, RowError):
                continue  # said, or left out, by the reader of the prompts
    return found


def _by_prompt(rows: Sequence[Single]) -> dict[str, list[Single]]:
    found: dict[str, list[Single]] = {}
    for row in rows:
        found.setdefault(prompt_key(row.prompt), []).append(row)
    return found


def _agreed(metadata: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns that all have with one value."""
    first, *rest = metadata
    return {name: value for name, value in first.items() if all(one.get(name) == value for one in rest)}
