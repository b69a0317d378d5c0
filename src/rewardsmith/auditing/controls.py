"""Scorers that know nothing of quality. What a reward model is said to bring must be more than these bring.

A gain under random scores, under length alone, or under labels that were shuffled is no gain of the reward model (Shao et al. 2025, "Spurious rewards";
Singhal et al. 2023 for length).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from rewardsmith.auditing.best_of_n import Ints
from rewardsmith.data.schema import Pair, prompt_key
from rewardsmith.scores import Scores
from rewardsmith.stats import Floats

RANDOM, LENGTH, SHUFFLED, TRAINED = "random", "length only", "shuffled labels", "trained on shuffled labels"


class RandomScorer:
    """A number between 0 and 1 drawn for each text: the same text has the same number for the same seed, on every machine."""

    def __init__(self, seed: int) -> None:
        """Keep the seed."""
        self.seed = seed

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """Numbers from a hash of (seed, prompt, answer); 24 bits, which float32 holds without rounding."""
        return np.array([self._draw(prompt_key(prompt), answer) for prompt, answer in pairs], dtype=np.float32)

    def _draw(self, key: str, answer: str) -> float:
        text = f"{self.seed}\x1f{key}\x1f{answer}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=3).digest(), "big") / 2**24


class LengthScorer:
    """The length of the answer, in characters."""

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """Lengths as scores."""
        return np.array([len(answer) for _, answer in pairs], dtype=np.float32)


def shuffled(values: Floats, starts: Ints, *, seed: int) -> Floats:
    """Values that have changed places within each group: all of their distribution, and nothing of what they say.

    Args:
        values: (P,).
        starts: group g is starts[g]:starts[g + 1].
        seed: of the shuffling.
    """
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    return values[np.lexsort((rng.random(len(values)), groups))]
