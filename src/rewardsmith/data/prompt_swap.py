"""Extra training pairs from answers of other prompts, so that a score depends on the prompt (RRM, Liu et al. 2024, arXiv 2409.13156).

A model can learn "long" or "polite" as well as "answers the question". In an off-topic pair the chosen answer meets an answer to another prompt, which
is as long and as polite as any; in a neutral pair two such answers meet, and neither is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rewardsmith.data.faults import content_fault, folded
from rewardsmith.data.schema import Preference, prompt_key
from rewardsmith.errors import DataError

# An answer that would answer the borrowing prompt after all is not lent to it; so many more rounds make up for such gaps.
_SPARE_ROUNDS = 10


class ExtraKind(str):
    """Which kind of extra pair one is; a type of its own, so that a column `augmented` of somebody's data is never taken for it."""


def swapped_pairs(pairs: Sequence[Preference], *, off_topic: float, neutral: float, seed: int) -> list[Preference]:
    """The extra pairs alone, the off-topic ones first; a function of the seed and of the pairs in their order.

    An off-topic pair is a pair's prompt and chosen answer over an answer (chosen or rejected) of another prompt; a neutral one is its prompt with two
    answers of two other prompts, labelled as a tie. Of each kind, every answer is lent once before any is lent twice (but for those that were equal to the
    borrower's own), so that none of them gives a label away. Pairs with a fault of content and labelled ties neither borrow nor lend: n others are left.

    Args:
        pairs: training pairs.
        off_topic: round(off_topic x n) such pairs are made.
        neutral: round(neutral x n) such pairs are made.
        seed: of the draws.

    Raises:
        DataError: if there are fewer than three prompts, if one of them holds so many pairs that the others cannot lend it enough answers (over a half of n
            for off-topic pairs, over a third for neutral ones), or if most answers are equal.
    """
    sources = _Sources.of(pairs)
    counts = [round(ratio * len(sources)) for ratio in (off_topic, neutral)]
    if not off_topic and not neutral:
        return []
    if len(sources.prompt_sizes) < 3:
        raise DataError(
            "whole pairs of at least three prompts to swap answers between (labelled ties do not count)",
            f"{len(sources.prompt_sizes)} prompts",
            "Give more data, or leave prompt_swap out.",
        )
    made: list[Preference] = []
    for kind, (extra_pairs, count) in enumerate(zip((_off_topic_pairs, _neutral_pairs), counts, strict=True)):
        # A stream of draws for each kind: neither changes with how many of the other are asked for.
        generator = np.random.default_rng([seed, kind])
        rounds = -(-count // len(sources)) + _SPARE_ROUNDS
        some = list(islice(extra_pairs(sources, rounds, generator), count))
        if len(some) < count:
            raise DataError(
                f"answers that differ from prompt to prompt, for {count} extra pairs",
                f"{len(some)} after {rounds} rounds: the others would have repeated an answer of their own prompt",
                "Leave prompt_swap out: it is for answers that depend on the prompt.",
            )
        made += some
    return made


@dataclass(frozen=True)
class _Sources:
    """The n pairs that borrow and lend.

    Args:
        pairs: n of them.
        prompts: the code of each one's prompt, int64 (n,).
        prompt_sizes: how many pairs each prompt has.
        answers: (chosen, rejected) of each.
        texts: the same with white space folded, to be compared.
    """

    pairs: list[Preference]
    prompts: NDArray[np.int64]
    prompt_sizes: NDArray[np.int64]
    answers: list[tuple[str, str]]
    texts: list[tuple[str, str]]

    @classmethod
    def of(cls, pairs: Sequence[Preference]) -> _Sources:
        """Those of the pairs that are whole and decided."""
        taken = [pair for pair in pairs if not pair.tie and content_fault(pair) is None]
        # Codes by first appearance: nothing depends on the hash of a text.
        codes: dict[str, int] = {}
        prompts = np.array([codes.setdefault(prompt_key(pair.prompt), len(codes)) for pair in taken], dtype=np.int64)
        return cls(
            taken,
            prompts,
            np.bincount(prompts),
            [(pair.chosen, pair.rejected) for pair in taken],
            [(folded(pair.chosen), folded(pair.rejected)) for pair in taken],
        )

    def __len__(self) -> int:
        """How many pairs."""
        return len(self.pairs)


def _off_topic_pairs(sources: _Sources, rounds: int, generator: np.random.Generator) -> Iterator[Preference]:
    sides = np.zeros(len(sources), dtype=np.int64)
    for number in range(1, rounds + 1):
        # Each lender lends one of its answers in odd rounds, by a coin, and the other one in even rounds.
        sides = generator.integers(2, size=len(sources)) if number % 2 else 1 - sides
        for borrower, lender in _lenders(sources, 1, generator).tolist():
            chosen, lent = sources.answers[borrower][0], sources.answers[lender][sides[lender]]
            if sources.texts[lender][sides[lender]] != sources.texts[borrower][0]:
                yield _extra(sources.pairs[borrower], chosen, lent, kind="off_topic", number=number)


def _neutral_pairs(sources: _Sources, rounds: int, generator: np.random.Generator) -> Iterator[Preference]:
    for number in range(1, rounds + 1):
        # Each pair lends twice a round: one answer as the first of a tie, by a coin, and the other one as the second.
        sides = generator.integers(2, size=len(sources))
        for borrower, first, second in _lenders(sources, 2, generator).tolist():
            one, other = sides[first], 1 - sides[second]
            four = {*sources.texts[borrower], sources.texts[first][one], sources.texts[second][other]}
            if len(four) == 4:
                answers = sources.answers[first][one], sources.answers[second][other]
                yield _extra(sources.pairs[borrower], *answers, kind="neutral", number=number)


def _lenders(sources: _Sources, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """One round: each pair in random order with `count` others, all of different prompts, each of which lends `count` times; int64 (n, 1 + count).

    The pairs stand in a circle, those of a prompt side by side and the prompts in random order. Where no prompt has more than m pairs, those that stand m
    places further on are of another prompt, those 2m places on of a third one, and so on for as long as m more places do not close the circle.
    """
    most = int(sources.prompt_sizes.max())
    if (count + 1) * most > len(sources):
        limit = {1: "half", 2: "a third"}[count]
        raise DataError(
            f"no prompt with more than {limit} of the pairs, for each answer to be lent as often as any other",
            f"one with {most} of {len(sources)}",
            "Take fewer pairs of that prompt, or leave prompt_swap out.",
        )
    order = generator.permutation(len(sources))
    places = generator.permutation(len(sources.prompt_sizes))[sources.prompts[order]]
    circle = order[np.argsort(places, kind="stable")]
    columns = [np.roll(circle, -step * most) for step in range(count + 1)]
    # In random order, so that a part of a round is not all pairs of a few prompts.
    return np.stack(columns, axis=1)[generator.permutation(len(circle))]


def _extra(borrower: Preference, chosen: str, rejected: str, *, kind: str, number: int) -> Preference:
    """An extra pair without margin, votes and weight: nobody has judged it."""
    return Preference(
        f"{borrower.id}~{kind}{number}",
        borrower.prompt,
        chosen,
        rejected,
        tie=kind == "neutral",
        metadata={"augmented": ExtraKind(kind)},
    )
