"""What a loss is computed over: pairs, lists, or rated answers, made from the rows of a source.

One example is one element of a batch: all answers of a list or a rated group stay together, as InstructGPT found that pairs of one prompt must.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from rewardsmith.data import io
from rewardsmith.data.faults import EMPTY, EQUAL, content_fault, folded
from rewardsmith.data.pairing import equal_rating_pairs, preferences_of
from rewardsmith.data.schema import Group, Preference, Row, Single, prompt_key
from rewardsmith.data.sources import source_name
from rewardsmith.data.traits import is_blank
from rewardsmith.errors import DataError

Example: TypeAlias = Preference | Group
_MOST_TOGETHER = 8
Kind: TypeAlias = Literal["pairs", "lists", "ratings"]


def examples_of(
    rows: Iterable[Row],
    kind: Kind,
    source: str,
    *,
    rating: str = "rating",
    attributes: Mapping[str, float] | None = None,
) -> list[Example]:
    """The examples of one kind in the rows of a source.

    "pairs": `Preference`s, ordered groups by all their pairs. "lists": ordered `Group`s, a pair being a list of two. "ratings": rated `Group`s, and single
    answers with a rating as groups of one; a group's `ratings` are then the weighted sums of its attributes where these are given.

    Args:
        rows: of the source.
        kind: which examples.
        source: its name, for errors.
        rating: column of single answers that holds their rating.
        attributes: {column: weight}; columns of single answers, or of `per_answer`.

    Raises:
        DataError: at a row of another kind, naming it.
    """
    if kind == "pairs":
        return list(io.preferences_in(rows, source))
    if kind == "lists":
        return [_list_of(row, source) for row in rows]
    return _rated(rows, source, rating, attributes or {})


def told_examples(
    rows: Sequence[Row],
    kind: Kind,
    source: str,
    *,
    rating: str = "rating",
    attributes: Mapping[str, float] | None = None,
) -> tuple[list[Example], int]:
    """The examples in some rows that say something, and how many comparisons do not, because the ratings are equal; see `examples_of`.

    Raises:
        DataError: at a row of another kind, naming it.
    """
    examples = examples_of(rows, kind, source, rating=rating, attributes=attributes)
    told = examples if kind != "lists" else [example for example in examples if implied_pairs(example)]
    groups = [row for row in rows if isinstance(row, Group)] if kind == "pairs" else []
    return told, sum(map(equal_rating_pairs, groups)) + len(examples) - len(told)


def implied_pairs(example: Example) -> list[Preference]:
    """The pairs that an example says something about: itself, or the pairs of an ordered group."""
    if isinstance(example, Preference):
        return [example]
    return preferences_of(example) if example.order != "none" and len(example.answers) > 1 else []


def together(examples: Sequence[Example]) -> list[Example]:
    """Groups of one answer joined by prompt, at most eight to a group, so that they can be compared; all other examples as they are.

    For judging, not for training: there every answer stays an element of its own, and a prompt with a thousand answers costs no more memory than others.
    """
    joined: list[Example] = []
    alone: dict[tuple[str, str], list[Group]] = {}
    for example in examples:
        if isinstance(example, Group) and len(example.answers) == 1:
            alone.setdefault((prompt_key(example.prompt), example.order), []).append(example)
        else:
            joined.append(example)
    for groups in alone.values():
        joined += [_joined(groups[i : i + _MOST_TOGETHER]) for i in range(0, len(groups), _MOST_TOGETHER)]
    return joined


def _joined(groups: Sequence[Group]) -> Group:
    first = groups[0]
    ratings = None if first.ratings is None else tuple(group.ratings[0] for group in groups if group.ratings)
    names = sorted({name for group in groups for name in group.metadata.get("per_answer", {})})
    columns = {name: [group.metadata["per_answer"].get(name, [None])[0] for group in groups] for name in names}
    answers = tuple(group.answers[0] for group in groups)
    return Group(first.id, first.prompt, answers, first.order, ratings, {"per_answer": columns} if columns else {})


def example_fault(example: Example) -> str | None:
    """The reason why an example cannot be learned from, or None; see `data.faults`."""
    if isinstance(example, Preference):
        return content_fault(example)
    if any(is_blank(answer) for answer in example.answers):
        return EMPTY
    if len(example.answers) > 1 and len({folded(answer) for answer in example.answers}) == 1:
        return EQUAL
    return None


def _list_of(row: Row, source: str) -> Group:
    if isinstance(row, Group) and row.order != "none":
        return row
    labelled = isinstance(row, Preference) and (row.margin, row.weight, row.votes) != (None, None, None)
    if isinstance(row, Preference) and row.rejected_prompt is None and not row.tie and not labelled:
        return Group(row.id, row.prompt, (row.chosen, row.rejected), "ranked", None, dict(row.metadata))
    raise _refused(row, source, "ranked or rated groups", "`ranked`, or `answers` with `ratings`")


def _rated(rows: Iterable[Row], source: str, rating: str, attributes: Mapping[str, float]) -> list[Example]:
    groups: list[Example] = []
    for row in rows:
        if isinstance(row, Group) and ("per_answer" in row.metadata if attributes else row.ratings is not None):
            groups.append(_reduced(row, attributes) if attributes else row)
        elif isinstance(row, Single):
            groups.append(_alone(row, source, rating, attributes))
        else:
            needed = f"the columns {', '.join(attributes)}" if attributes else f"a column `{rating}`"
            raise _refused(row, source, "rated answers", f"`answers` with `ratings`, or `answer` with {needed}")
    return groups


def _alone(row: Single, source: str, rating: str, attributes: Mapping[str, float]) -> Group:
    """A single answer as a group of one."""
    if attributes:
        columns = {name: [row.metadata[name]] for name in attributes if row.metadata.get(name) is not None}
        metadata = row.metadata | {"per_answer": columns}
        return _reduced(Group(row.id, row.prompt, (row.answer,), "none", None, metadata), attributes)
    value = row.metadata.get(rating)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"a finite number in the column `{rating}` of every single answer in {source_name(source)}",
            f"{value!r} in row {row.id!r}",
            "Name the column: --set loss.rating=..., or mend the row.",
        )
    return Group(row.id, row.prompt, (row.answer,), "rated", (float(value),), row.metadata)


def _reduced(group: Group, attributes: Mapping[str, float]) -> Group:
    """The group with the weighted sums of its attributes as ratings, or in no order where one of them is not known."""
    columns: dict[str, list[Any]] = group.metadata["per_answer"]
    known = [columns.get(name, [None] * len(group.answers)) for name in attributes]
    if any(not isinstance(value, int | float) for column in known for value in column):
        return Group(group.id, group.prompt, group.answers, "none", None, group.metadata)
    weights = list(attributes.values())
    ratings = tuple(
        float(sum(weight * value for weight, value in zip(weights, values, strict=True)))
        for values in zip(*known, strict=True)
    )
    return Group(group.id, group.prompt, group.answers, "rated", ratings, group.metadata)


def _refused(row: Row, source: str, needed: str, columns: str) -> DataError:
    kinds = {Preference: "a pair", Single: "a single answer"}
    came = kinds.get(type(row), "a group without them")
    return DataError(
        f"{needed} in {source_name(source)}",
        f"row {row.id!r}, which is {came}{_with(row)}",
        f"Give {columns}, or choose a loss for the data you have (docs/losses.md).",
    )


def _with(row: Row) -> str:
    """What keeps a pair from being a list of two."""
    if not isinstance(row, Preference):
        return ""
    labels = [name for name in ("margin", "weight", "votes") if getattr(row, name) is not None]
    labels += ["tie"] if row.tie else []
    parts = [f"labelled {', '.join(labels)}"] if labels else []
    parts += ["of two prompts"] if row.rejected_prompt is not None else []
    return f" ({' and '.join(parts)})" if parts else ""
