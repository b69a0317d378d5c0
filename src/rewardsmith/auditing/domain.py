"""The texts of a data set as a domain: its distinct prompts, its answers and its pairs, drawn by prompt up to a cap that is said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from rewardsmith.data.faults import EMPTY, content_fault
from rewardsmith.data.pairing import preferences_of
from rewardsmith.data.schema import Group, Pair, Preference, Prompt, Single, prompt_key
from rewardsmith.data.texts import Text, prompts_of
from rewardsmith.data.traits import is_blank
from rewardsmith.errors import DataError

Drawn = TypeVar("Drawn")

MAX_TEXTS = 2000
"""Prompts, and answers, of one side; half as many pairs."""


@dataclass(frozen=True)
class Domain:
    """What is read of one side.

    Args:
        prompts: distinct ones, in a random order.
        answers: distinct (prompt, answer) that are not empty, of these prompts.
        pairs: two answers to one of these prompts, none empty.
        labelled: of each pair, whether its chosen answer is known to be the better one.
        num_prompts: distinct ones before the cap.
        num_answers: before the cap.
        num_pairs: before the cap.
        num_empty: empty answers and pairs with one, which are left out.
        keys: of all prompts, before the cap.
    """

    prompts: tuple[Prompt, ...]
    answers: tuple[Pair, ...]
    pairs: tuple[Preference, ...]
    labelled: tuple[bool, ...]
    num_prompts: int
    num_answers: int
    num_pairs: int
    num_empty: int
    keys: frozenset[str]

    def as_dict(self) -> dict[str, Any]:
        """Counts of what was read, and of what there is."""
        return {
            "num_prompts": len(self.prompts),
            "num_answers": len(self.answers),
            "num_pairs": len(self.pairs),
            "num_labelled": sum(self.labelled),
            "of": {"num_prompts": self.num_prompts, "num_answers": self.num_answers, "num_pairs": self.num_pairs},
            "num_empty": self.num_empty,
        }


def domain_of(rows: Iterable[Text], *, max_texts: int = MAX_TEXTS, seed: int = 0) -> Domain:
    """Prompts, answers and pairs of rows of any kind.

    Above a cap prompts are drawn at random, and of these one pair each before any has two: pairs of one prompt say less than pairs of two. The answers of the drawn
    pairs are taken first. An ordered group gives all its pairs; of unordered candidates neighbours make pairs without a label. Labelled ties have no better answer.

    Args:
        rows: pairs, groups, single answers, or bare prompts.
        max_texts: prompts and answers that are kept, and twice the pairs.
        seed: of the draw.

    Raises:
        DataError: if there is no row.
    """
    prompts: dict[str, Prompt] = {}
    answers: dict[str, dict[str, Pair]] = {}
    pairs: dict[str, list[tuple[Preference, bool]]] = {}
    num_empty = 0
    for row in rows:
        for prompt in prompts_of(row):
            prompts.setdefault(prompt_key(prompt), prompt)
        for prompt, answer in _answers_of(row):
            if is_blank(answer):
                num_empty += 1
            else:
                answers.setdefault(prompt_key(prompt), {}).setdefault(answer, (prompt, answer))
        for pair, is_labelled in _pairs_of(row):
            if content_fault(pair) == EMPTY:
                num_empty += 1
            else:
                pairs.setdefault(prompt_key(pair.prompt), []).append((pair, is_labelled))
    if not prompts:
        raise DataError("at least one row", "none", "Check the file.")
    known = list(prompts)
    rng = np.random.default_rng(seed)
    keys = [known[i] for i in rng.permutation(len(known))[:max_texts]]
    judged = _spread([pairs.get(key, []) for key in keys], max_texts // 2, rng)
    of_pairs = {(prompt_key(prompt), a) for pair, _ in judged for prompt, a in (pair.chosen_pair, pair.rejected_pair)}
    given = {key: answers.get(key, {}) for key in keys}
    num_taken = sum((key, answer) in of_pairs for key, own in given.items() for answer in own)
    others = [[pair for answer, pair in own.items() if (key, answer) not in of_pairs] for key, own in given.items()]
    taken = of_pairs | {(prompt_key(prompt), a) for prompt, a in _spread(others, max_texts - num_taken, rng)}
    return Domain(
        prompts=tuple(prompts[key] for key in keys),
        answers=tuple(pair for key, own in given.items() for a, pair in own.items() if (key, a) in taken),
        pairs=tuple(pair for pair, _ in judged),
        labelled=tuple(is_labelled for _, is_labelled in judged),
        num_prompts=len(prompts),
        num_answers=sum(map(len, answers.values())),
        num_pairs=sum(map(len, pairs.values())),
        num_empty=num_empty,
        keys=frozenset(prompts),
    )


def _answers_of(row: Text) -> list[Pair]:
    match row:
        case Preference():
            return [row.chosen_pair, row.rejected_pair]
        case Group():
            return [(row.prompt, answer) for answer in row.answers]
        case Single():
            return [(row.prompt, row.answer)]
    return []


def _pairs_of(row: Text) -> list[tuple[Preference, bool]]:
    match row:
        case Preference():
            return [(row, not row.tie)]
        case Group(order="none"):
            sides = zip(row.answers[::2], row.answers[1::2], strict=False)
            return [(Preference(f"{row.id}#{i}", row.prompt, *two), False) for i, two in enumerate(sides)]
        case Group():
            return [(pair, True) for pair in preferences_of(row)]
    return []


def _spread(lists: Sequence[Sequence[Drawn]], most: int, rng: np.random.Generator) -> list[Drawn]:
    """At most so many of all, from as many lists as there can be: one of each, then a second one of each, ..., drawn at random within a list; in the order of the lists."""
    places = [(int(turn), k, int(i)) for k, one in enumerate(lists) for turn, i in enumerate(rng.permutation(len(one)))]
    return [lists[k][i] for _, k, i in sorted(sorted(places)[:most], key=lambda place: place[1:])]
