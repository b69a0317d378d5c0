"""Faults of content: well-formed pairs that no reward model can learn from. Dropped from training, counted, listed; never in silence.

Evaluation drops less: a pair with two answers is a test, even when they are equal (a tie).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rewardsmith.data.schema import Group, Preference
from rewardsmith.data.traits import is_blank
from rewardsmith.errors import DataError

EMPTY, EQUAL, MISMATCH, COLLAPSED, OVER_LENGTH = (
    "empty_answer",
    "equal_answers",
    "prompt_mismatch",
    "truncated_equal",
    "over_length",
)
Faulty = TypeVar("Faulty", bound=Preference | Group)
_MAX_LISTED = 20
# Above this share of equal answers the columns themselves are suspect.
_SWAPPED_SHARE = 0.5


def folded_words(text: str) -> list[str]:
    """The stretches between white space of a text after Unicode NFC."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).split()


def folded(text: str) -> str:
    """A text after NFC and with white space folded: two answers equal in this form are the same answer."""
    return " ".join(folded_words(text))


def content_fault(pair: Preference) -> str | None:
    """The reason why a pair cannot be learned from, or None."""
    if is_blank(pair.chosen) or is_blank(pair.rejected):
        return EMPTY
    if pair.rejected_prompt is not None:
        return MISMATCH
    if folded(pair.chosen) == folded(pair.rejected):
        return EQUAL
    return None


@dataclass
class Dropped:
    """Which pairs were left out, and why.

    Args:
        total: rows before anything was dropped.
    """

    total: int
    counts: Counter[str] = field(default_factory=Counter)
    listed: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, ids: Iterable[str]) -> None:
        """Count pairs under a reason and keep the first few ids."""
        for identity in ids:
            self.counts[reason] += 1
            listed = self.listed.setdefault(reason, [])
            if len(listed) < _MAX_LISTED:
                listed.append(identity)

    def check(self, max_share: float) -> None:
        """Refuse to go on when too much was dropped.

        Raises:
            DataError: if more than `max_share` of the rows are gone, or all of them.
        """
        gone = self.counts.total()
        if self.counts[EQUAL] > _SWAPPED_SHARE * self.total:
            raise DataError(
                "two different answers in most rows",
                f"{self.counts[EQUAL]} of {self.total} pairs with equal answers",
                "Are the columns swapped or duplicated?",
            )
        if gone >= self.total:
            raise DataError("at least one pair to train on", f"none left ({self.describe()})", "Mend the data.")
        if gone > max_share * self.total:
            raise DataError(
                f"at most {max_share:.0%} of the rows to be dropped",
                f"{gone} of {self.total} ({self.describe()})",
                "Mend the rows listed, or accept the loss with --set max_dropped_share=1 (the count stays in the manifest).",
            )

    def describe(self) -> str:
        """Counts and first ids in one line."""
        return "; ".join(
            f"{count} {reason} (first: {', '.join(self.listed[reason][:3])})" for reason, count in self.counts.items()
        )

    def as_dict(self) -> dict[str, Any]:
        """The record for manifests and reports."""
        return {"total": self.total, "counts": dict(self.counts), "ids": self.listed}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Dropped:
        """What `as_dict` gave."""
        return cls(document["total"], Counter(document["counts"]), {k: list(v) for k, v in document["ids"].items()})


def drop_faults(examples: Sequence[Faulty], fault_of: Callable[[Faulty], str | None]) -> tuple[list[Faulty], Dropped]:
    """The examples that can be trained on, and the record of the others."""
    dropped = Dropped(len(examples))
    kept = []
    for example in examples:
        reason = fault_of(example)
        if reason is None:
            kept.append(example)
        else:
            dropped.add(reason, [example.id])
    return kept, dropped
