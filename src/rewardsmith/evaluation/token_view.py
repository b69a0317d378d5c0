"""Which words moved the scores of the pairs that a scorer gets most wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rewardsmith.evaluation.pairwise import PairScores
from rewardsmith.scores import Attributions


def _no_progress(pairs_done: int) -> None:
    pass


def attribute_lowest(
    attributions: Attributions,
    scores: PairScores,
    number: int,
    *,
    on_pair: Callable[[int], None] = _no_progress,
) -> dict[int, dict[str, Any]]:
    """Share out both scores of the pairs of lowest margin: the most confidently wrong ones first, then the closest right ones.

    Args:
        attributions: what shares out.
        scores: of an evaluation; pairs labelled as ties stand aside.
        number: of pairs.
        on_pair: called with the number of pairs done.

    Returns:
        {row of `scores.pairs`: the value of its key `attributions` in pairs.jsonl}.

    Raises:
        ScoreError: if a score is not finite.
    """
    judged = np.array([i for i, pair in enumerate(scores.pairs) if not pair.tie], dtype=np.int64)
    lowest = judged[np.argsort(scores.margins[judged], kind="stable")[:number]]
    found: dict[int, dict[str, Any]] = {}
    for done, row in enumerate(lowest, start=1):
        pair = scores.pairs[row]
        chosen, rejected = attributions.attribute([pair.chosen_pair, pair.rejected_pair])
        found[int(row)] = {"chosen": chosen.as_dict(), "rejected": rejected.as_dict()}
        on_pair(done)
    return found
