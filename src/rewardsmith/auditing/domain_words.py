"""The words that tell two sets of texts apart: log-odds with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008). Legend: `V` words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from rewardsmith.data.near import words
from rewardsmith.significance import LEVEL, holm

NUM_WORDS = 12
LEAST_TEXTS = 5
"""A word of fewer texts is not looked at."""
# Of what both sides say: the size of the prior, which has their words in their common shares and draws the log-odds of rare words to 0.
_PRIOR_SHARE = 0.1


@dataclass(frozen=True)
class Word:
    """One word.

    Args:
        word: in lower case.
        num_new: new texts that hold it.
        num_reference: reference texts that hold it.
        log_odds: above 0 for a word of the new texts.
        z: log_odds over its standard error.
        p_adjusted: two-sided, by Holm over all words that were looked at.
    """

    word: str
    num_new: int
    num_reference: int
    log_odds: float
    z: float
    p_adjusted: float

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return asdict(self)


@dataclass(frozen=True)
class DomainWords:
    """What is said on one side more than on the other, the clearest first, beyond what the number of words looked at explains.

    Args:
        of_new: words of the new texts.
        of_reference: words of the reference.
        num_tested: words looked at.
        num_new: texts.
        num_reference: texts.
    """

    of_new: tuple[Word, ...]
    of_reference: tuple[Word, ...]
    num_tested: int
    num_new: int
    num_reference: int

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "of_new": [word.as_dict() for word in self.of_new],
            "of_reference": [word.as_dict() for word in self.of_reference],
            "num_tested": self.num_tested,
            "num_new": self.num_new,
            "num_reference": self.num_reference,
        }


def tell_apart(reference: Sequence[str], new: Sequence[str], *, num_words: int = NUM_WORDS) -> DomainWords:
    """The words of either side, a text counting once however often it says a word.

    (Words come in bursts: counted one by one, a single long text would make its words significant.) With y the texts that hold a word, n the sum of y and a
    the prior, the log-odds of one side are log((y + a) / (n + sum of a - y - a)) and the variance of their difference is about 1 / (y_new + a) + 1 / (y_reference + a).

    Args:
        reference: texts that vary independently: one a prompt.
        new: the same of the other side.
        num_words: of each side at most.
    """
    counts = [_texts_with(texts) for texts in (new, reference)]
    known = sorted(word for word in counts[0] | counts[1] if counts[0][word] + counts[1][word] >= LEAST_TEXTS)
    if not known:
        return DomainWords((), (), 0, len(new), len(reference))
    y = np.array([[one[word] for word in known] for one in counts], dtype=np.float64)  # (2, V)
    totals = np.array([sum(one.values()) for one in counts], dtype=np.float64)
    prior = _PRIOR_SHARE * y.sum(axis=0)
    size = _PRIOR_SHARE * totals.sum()
    log_odds = [np.log((own + prior) / (total + size - own - prior)) for own, total in zip(y, totals, strict=True)]
    difference = log_odds[0] - log_odds[1]
    z = difference / np.sqrt((1 / (y + prior)).sum(axis=0))
    p_values = holm((2 * norm.sf(np.abs(z))).tolist())
    found = [
        Word(word.decode(), int(y[0, i]), int(y[1, i]), float(difference[i]), float(z[i]), p_values[i])
        for i, word in enumerate(known)
    ]
    clear = [word for word in found if word.p_adjusted < LEVEL]
    return DomainWords(
        of_new=_first(clear, np.array([-word.z for word in clear]), num_words),
        of_reference=_first(clear, np.array([word.z for word in clear]), num_words),
        num_tested=len(known),
        num_new=len(new),
        num_reference=len(reference),
    )


def _texts_with(texts: Iterable[str]) -> Counter[bytes]:
    counts: Counter[bytes] = Counter()
    for text in texts:
        counts.update(set(words(text)))
    return counts


def _first(found: Sequence[Word], order: NDArray[np.float64], num_words: int) -> tuple[Word, ...]:
    """The words of the lowest order, as long as it is below 0."""
    return tuple(found[i] for i in np.argsort(order, kind="stable")[:num_words] if order[i] < 0)
