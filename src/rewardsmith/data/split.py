"""Splits by prompt: no prompt ever stands on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rewardsmith.data.faults import folded
from rewardsmith.data.schema import Preference, Row, prompt_key
from rewardsmith.errors import DataError

HasPrompt = TypeVar("HasPrompt", bound=Row)


def shuffled_prompts(pairs: Sequence[Row], seed: int) -> list[str]:
    """The distinct prompts in a seeded order that does not depend on the order of the rows."""
    prompts = sorted({prompt_key(pair.prompt) for pair in pairs})
    return [prompts[i] for i in np.random.default_rng(seed).permutation(len(prompts))]


def split_by_prompt(pairs: Sequence[HasPrompt], share: float, *, seed: int) -> tuple[list[HasPrompt], list[HasPrompt]]:
    """(rest, part): `part` holds whole prompts, about `share` of the pairs (or groups) and at least one prompt.

    Raises:
        DataError: if fewer than two prompts are there to split.
    """
    prompts = shuffled_prompts(pairs, seed)
    if len(prompts) < 2:
        raise DataError(
            "at least two prompts to split off a dev part", f"{len(prompts)}", "Give --dev-data, or set dev_share = 0."
        )
    per_prompt: dict[str, int] = {}
    for pair in pairs:
        key = prompt_key(pair.prompt)
        per_prompt[key] = per_prompt.get(key, 0) + 1
    taken: set[str] = set()
    count = 0
    for prompt in prompts[:-1]:
        if taken and count + per_prompt[prompt] > share * len(pairs):
            break
        taken.add(prompt)
        count += per_prompt[prompt]
    rest = [pair for pair in pairs if prompt_key(pair.prompt) not in taken]
    part = [pair for pair in pairs if prompt_key(pair.prompt) in taken]
    return rest, part


def sample_by_prompt(pairs: Sequence[HasPrompt], count: int, *, seed: int) -> list[HasPrompt]:
    """About `count` pairs as whole prompts, in the order of the rows: prompts are taken until `count` is reached, the last one cut."""
    order = {prompt: i for i, prompt in enumerate(shuffled_prompts(pairs, seed))}
    ranked = sorted(range(len(pairs)), key=lambda i: (order[prompt_key(pairs[i].prompt)], i))
    return [pairs[i] for i in sorted(ranked[:count])]


def apart(pairs: Sequence[Preference], seen: Sequence[Preference]) -> tuple[list[Preference], list[Preference]]:
    """(pairs that `seen` does not hold, pairs that it does): the same prompt and the same two answers, whichever was chosen."""

    def key(pair: Preference) -> tuple[str, frozenset[str]]:
        return folded(prompt_key(pair.prompt)), frozenset((folded(pair.chosen), folded(pair.rejected)))

    known = {key(pair) for pair in seen}
    kept: list[Preference] = []
    held: list[Preference] = []
    for pair in pairs:
        (held if key(pair) in known else kept).append(pair)
    return kept, held


def assign_parts(
    clusters: NDArray[np.int64], shares: Sequence[float], *, strata: NDArray[np.int64] | None = None, seed: int
) -> NDArray[np.int64]:
    """The part of each row, int64 (n,): whole clusters, dealt out in a seeded order to the part that lacks most rows.

    Args:
        clusters: (n,) codes; rows of one cluster stay together.
        shares: of the rows, by part; they add up to 1.
        strata: (n,) codes; every part gets its share of each. A cluster belongs to the stratum of most of its rows.
        seed: of the order.

    Raises:
        DataError: if there are fewer clusters than parts.
    """
    names, codes, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    if len(names) < len(shares):
        raise DataError(
            f"at least {len(shares)} prompts for {len(shares)} parts",
            f"{len(names)}",
            "Give more data, or fewer parts.",
        )
    stratum = np.zeros(len(names), dtype=np.int64) if strata is None else _commonest(codes, strata)
    part_of_cluster = np.full(len(names), -1, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(names))
    # Every part begins with one prompt, the smallest share first: it would be the one to go without.
    for part, cluster in zip(np.argsort(shares, kind="stable"), order, strict=False):
        part_of_cluster[cluster] = part
    lacking = np.zeros(len(shares))
    for value in np.unique(stratum):
        here = order[(stratum[order] == value)]
        # What one stratum was too small to give, the next one makes good.
        lacking = lacking + np.array(shares) * sizes[here].sum()
        for cluster in here:
            if part_of_cluster[cluster] < 0:
                part_of_cluster[cluster] = int(np.argmax(lacking))
            lacking[part_of_cluster[cluster]] -= sizes[cluster]
    return part_of_cluster[codes]


def _commonest(clusters: NDArray[np.int64], strata: NDArray[np.int64]) -> NDArray[np.int64]:
    """The stratum of most rows of each cluster, the least of several: the order of the rows says nothing."""
    both, counts = np.unique(np.stack([clusters, strata]), axis=1, return_counts=True)
    order = np.lexsort((both[1], -counts, both[0]))
    first = np.unique(both[0][order], return_index=True)[1]
    return np.asarray(both[1][order][first], dtype=np.int64)
