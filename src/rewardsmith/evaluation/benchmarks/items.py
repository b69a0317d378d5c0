"""What every benchmark is made of: a prompt with answers of known worth, and the rule that turns their scores into numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewardsmith.data.schema import Group, Pair, Preference, Prompt, prompt_key
from rewardsmith.evaluation.benchmarks.weighing import Numbers
from rewardsmith.stats import Floats


@dataclass(frozen=True)
class Item:
    """One row of a benchmark without its texts: all that its rule needs beside the scores.

    Args:
        id: as the file has it, or the number of the row.
        subset: by which the benchmark's numbers are grouped.
        cluster: what rows share that stand or fall together, which is their prompt.
        gold: worth of each answer: 1 for a correct one, 0 for a wrong one, one half for both sides of a labelled tie.
        metadata: what else the rule looks at.
    """

    id: str
    subset: str
    cluster: str
    gold: tuple[float, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """An item with the texts to score, one (prompt, answer) for each number in its `gold`."""

    item: Item
    texts: tuple[Pair, ...]


@dataclass(frozen=True)
class LeftOut:
    """A row that the benchmark does not count, and why."""

    reason: str


Scored = Sequence[Floats]
"""The scores of each item's answers, in the order of its `gold`."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: what it reads, and its rule as a function of items and scores alone.

    Args:
        name: by which it is asked for.
        definition: how its numbers are computed, in a sentence.
        rule: what an exact tie of scores counts, in words.
        source: the file of the authors' code that the rule is taken from, or what else it rests on.
        headline: which of its numbers is the one.
        needed: what a row must hold, as a clause.
        kind: of its rows: pairs, or answers of known worth.
        formats: names of `data.formats` that its rows have.
        subsets: published subsets and their numbers of items; None where the number is not known to this program.
        question: what a row of that kind is to this benchmark; its second argument is the name of the file or split that the row came from.
        numbers: the rule; takes items, their scores and a seed.
        totals: published numbers of items of the whole; several where the benchmark has several sets that are reported apart.
        optional: subsets of which none need be there.
        hub_split: the split of the hub's data set that is the benchmark.
        files: patterns of its files in a folder as the authors' repository has it.
        note: what a reader must know about these items; "" where nothing.
    """

    name: str
    definition: str
    rule: str
    source: str
    headline: str
    needed: str
    kind: type[Preference] | type[Group]
    formats: tuple[str, ...]
    subsets: Mapping[str, int | None]
    question: Callable[[Any, str], Question | LeftOut]
    numbers: Callable[[Sequence[Item], Scored, int], Numbers]
    totals: tuple[int, ...] = ()
    optional: tuple[str, ...] = ()
    hub_split: str | None = None
    files: tuple[str, ...] = ("*.json", "*.jsonl", "*.jsonl.gz", "*.parquet")
    note: Callable[[Sequence[Item]], str] = lambda items: ""

    @property
    def sizes_known(self) -> bool:
        """Whether it can be told that rows are missing from a subset."""
        return bool(self.totals) or None not in (n for name, n in self.subsets.items() if name not in self.optional)


def cluster_of(prompt: Prompt) -> str:
    """A short name of a prompt, equal exactly for equal prompts; it stands in stored rows instead of the text."""
    return hashlib.sha256(prompt_key(prompt).encode("utf-8")).hexdigest()[:16]


def pair_question(
    pair: Preference, subset: str, *, gold: tuple[float, float] = (1.0, 0.0), metadata: Mapping[str, Any] | None = None
) -> Question:
    """A pair, the chosen answer first."""
    item = Item(pair.id, subset, cluster_of(pair.prompt), gold, metadata or {})
    return Question(item, (pair.chosen_pair, pair.rejected_pair))


def group_question(
    group: Group, subset: str, *, cluster: str | None = None, metadata: Mapping[str, Any] | None = None
) -> Question:
    """A rated group with its answers in the order of the file."""
    gold = tuple(group.ratings or ())
    item = Item(group.id, subset, cluster or cluster_of(group.prompt), gold, metadata or {})
    return Question(item, tuple((group.prompt, answer) for answer in group.answers))


def margins(scores: Scored) -> Floats:
    """Score of the first answer minus score of the second, (n,), for items that are pairs."""
    table = np.array(scores, dtype=np.float64).reshape(-1, 2)
    return np.asarray(table[:, 0] - table[:, 1])


def is_tied(item: Item, scores: Floats) -> bool:
    """Whether answers of different worth have exactly the same score; of a labelled tie, its two sides."""
    gold = np.array(item.gold)
    if len(set(item.gold)) == 1:
        return len(set(scores.tolist())) < len(scores)
    return any(len(set(gold[scores == score])) > 1 for score in set(scores.tolist()))
