"""Whether two tools did the same work: plain comparisons of what each says that it read and found."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Of a loss on one batch, absolute. In bf16 two ways to add up the same sums differ in the second digit of a score.
LOSS_TOLERANCE = {"float32": 1e-4, "bf16": 3e-2}
# Of a score, times max(1, |score|): twice the project's own bound, for either tool may be off by it.
SCORE_TOLERANCE = 2e-5
# The same in bf16, where the project's own bound is 5e-2.
SCORE_TOLERANCE_BF16 = 0.1


@dataclass(frozen=True)
class Check:
    """One reason to believe, or not, that both did the same.

    Args:
        name: what was compared.
        ok: whether it agrees.
        found: the numbers.
    """

    name: str
    ok: bool
    found: Any


def same_count(name: str, counts: Mapping[str, Any]) -> Check:
    """Whether every tool says the same number (or hash)."""
    return Check(name, len(set(counts.values())) == 1, dict(counts))


def same_losses(ours: Sequence[float], theirs: Sequence[float], *, precision: str) -> Check:
    """Whether two loss curves agree at every step, within `LOSS_TOLERANCE`.

    That two curves agree says little where they are flat: their spread over the steps has to be at least five times what they differ by. The first loss says nothing of the gradients: two are the
    least.
    """
    tolerance = LOSS_TOLERANCE[precision]
    differences = [abs(a - b) for a, b in zip(ours, theirs, strict=False)]
    worst = max(differences, default=float("inf"))
    moved = max(ours, default=0.0) - min(ours, default=0.0)
    found = {"ours": _short(ours), "theirs": _short(theirs), "largest_difference": worst, "tolerance": tolerance}
    ok = len(ours) == len(theirs) > 1 and worst <= tolerance and 5 * worst <= moved
    return Check("losses of the same batches in the same order", ok, found)


def same_scores(name: str, ours: Sequence[float], theirs: Sequence[float], *, tolerance: float) -> Check:
    """Whether two lists of scores agree within tolerance x max(1, |ours|)."""
    worst = largest_difference(ours, theirs)
    return Check(name, worst <= tolerance, {"largest_difference": worst, "tolerance": tolerance, "texts": len(ours)})


def largest_difference(reference: Sequence[float], scores: Sequence[float]) -> float:
    """The largest |difference| / max(1, |reference|); infinite where the lists have different lengths or no entries."""
    if len(reference) != len(scores) or not reference:
        return float("inf")
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(reference, scores, strict=True))


def pair_agreement(reference: Sequence[float], scores: Sequence[float]) -> float:
    """The share of pairs (texts 0 and 1, 2 and 3, ...) that both order alike; a tie agrees with a tie alone.

    >>> pair_agreement([2.0, 1.0, 5.0, 3.0], [1.5, 1.0, 2.0, 3.0])
    0.5
    """
    signs = [
        [(first > second) - (first < second) for first, second in zip(one[::2], one[1::2], strict=True)]
        for one in (reference, scores)
    ]
    return statistics.fmean(a == b for a, b in zip(*signs, strict=True))


def digest(ids: Iterable[Iterable[int]]) -> str:
    """A hash of the token ids of some texts, in their order."""
    found = hashlib.sha256()
    for text in ids:
        found.update((",".join(str(int(token)) for token in text) + "\n").encode())
    return found.hexdigest()[:16]


def _short(values: Sequence[float]) -> list[float]:
    return [round(value, 5) for value in values]
