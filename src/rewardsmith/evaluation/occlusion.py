"""Which words moved a score, for any scorer: take a word out, score the answer again, and look at the difference.

    value of a word = score of the answer - score of the answer without it

Nothing need be known of the scorer, which may be a server. Words that do one another's work (two apologies) have small values, and words that work
together are counted twice: the values of all words need not sum to score - baseline. The gap says by how much they do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rewardsmith.data.schema import Pair
from rewardsmith.data.words import prompt_text, word_spans
from rewardsmith.scores import Attribution, Attributions, Piece, Scorer, TableScorer, checked

MAX_PIECES = 64
"""Pieces of one answer; in longer ones several words go at a time."""


class Occlusion:
    """The `Attributions` of a scorer of which nothing is known but its scores.

    The words of the prompt have no values: without its question an answer is an answer to something else. The baseline is the empty answer to the same prompt.

    >>> model = by_table({"so good": 3.0, "good": 2.0, "so": 0.5, "": 0.0})  # doctest: +SKIP
    >>> Occlusion(model).attribute([("p", "so good")])[0].tokens  # doctest: +SKIP
    [('so', 1.0), (' good', 2.5)]

    Args:
        scorer: any; one with `table` also tells which words it never read.
        max_pieces: at most so many of one answer are scored; of a longer one several words are taken out at a time, as many as it needs.
    """

    def __init__(self, scorer: Scorer, *, max_pieces: int = MAX_PIECES) -> None:
        """Nothing is scored yet."""
        self.scorer, self.max_pieces = scorer, max_pieces

    def attribute(self, pairs: Sequence[Pair]) -> list[Attribution]:
        """The score of each (prompt, answer), shared out among the words of the answer; all texts are scored in one call.

        Raises:
            ScoreError: if a score is not finite.
        """
        windows = [_windows(answer, self.max_pieces) for _, answer in pairs]
        texts: list[Pair] = []
        starts = [0]
        for (prompt, answer), (bounds, _) in zip(pairs, windows, strict=True):
            texts += [(prompt, answer), (prompt, "")]
            texts += [(prompt, without(answer, start, end)) for start, end in pairwise(bounds)]
            starts.append(len(texts))
        scores, digests = self._scored(texts)
        return [
            _attribution(pair, *window, scores[start:end], None if digests is None else digests[start:end])
            for pair, window, (start, end) in zip(pairs, windows, pairwise(starts), strict=True)
        ]

    def _scored(self, texts: Sequence[Pair]) -> tuple[NDArray[np.float64], NDArray[np.uint64] | None]:
        if isinstance(self.scorer, TableScorer):
            table = self.scorer.table(texts)
            return checked(table.score, len(texts)).astype(np.float64), table.digest
        return checked(self.scorer.score(texts), len(texts)).astype(np.float64), None


def choose(scorer: Scorer) -> tuple[Attributions, str]:
    """What shares out the scores of a scorer, and why: its own companion where it has one, else occlusion."""
    own = scorer if isinstance(scorer, Attributions) else getattr(scorer, "attributions", None)
    if own is not None:
        return own, f"{type(own).__name__}: the model brings its own attributions"
    return Occlusion(scorer), "occlusion: of this scorer nothing is known but its scores, so words are taken out"


def without(answer: str, start: int, end: int) -> str:
    """An answer without its characters start:end; what then comes first loses the white space before it."""
    return answer[:start] + answer[end:] if start else answer[end:].lstrip()


def _windows(answer: str, max_pieces: int) -> tuple[list[int], int]:
    """(bounds of the pieces of an answer, in characters, how many words each has)."""
    words = [start for start, _ in word_spans(answer)]
    num_words = max(1, math.ceil(len(words) / max_pieces))
    return [*words[::num_words], len(answer)], num_words


def _attribution(
    pair: Pair, bounds: list[int], num_words: int, scores: NDArray[np.float64], digests: NDArray[np.uint64] | None
) -> Attribution:
    """Of the scores of an answer, of the empty one, and of the answer without each piece."""
    prompt, answer = pair
    tokens: list[Piece] = []
    for k, (start, end) in enumerate(pairwise(bounds)):
        # The same ids without the piece: it was never read, as behind max_length, or the tokenizer drops its characters.
        unread = digests is not None and digests[k + 2] == digests[0]
        tokens.append((answer[start:end], None if unread else float(scores[0] - scores[k + 2])))
    at_a_time = "a word" if num_words == 1 else f"{num_words} words"
    return Attribution(
        method=f"occlusion, {at_a_time} at a time, against the empty answer",
        score=float(scores[0]),
        baseline=float(scores[1]),
        tokens=tokens,
        prompt_tokens=[(prompt_text(prompt), None)] if prompt_text(prompt) else [],
        num_readings=len(scores),
    )
