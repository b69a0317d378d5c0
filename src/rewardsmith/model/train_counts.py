"""What a run's training examples come to as ids: counted in one piece, or block by block where they are not all in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewardsmith.config import LossSettings
from rewardsmith.data.examples import Example
from rewardsmith.model.examples import ExampleTable, columns_in_use


@dataclass
class TrainCounts:
    """Counts over training examples.

    Args:
        examples: that are trained on.
        examples_cut: of which an answer was cut.
        texts: of all of them.
        prompts_cut: texts that lost a part of their prompt.
        answers_cut: texts that lost a part of their answer.
        special_strings: special-token strings in the content, read as plain text.
        tokens: of all texts.
        shared_tokens: the same with what an example's texts begin with alike counted once; 0 where nobody asked.
        margins: examples with a margin other than 0.
        used: label columns that the loss reads, by the examples that have them.
        unread: those that it does not read.
    """

    examples: int = 0
    examples_cut: int = 0
    texts: int = 0
    prompts_cut: int = 0
    answers_cut: int = 0
    special_strings: int = 0
    tokens: int = 0
    shared_tokens: int = 0
    margins: int = 0
    used: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)

    def add(self, table: ExampleTable, examples: Sequence[Example], loss: LossSettings, *, share: bool) -> None:
        """Count some examples.

        Args:
            table: their ids.
            examples: what they were made of.
            loss: says which label columns are read.
            share: whether to look for what texts begin with alike.
        """
        used, unread = columns_in_use(examples, loss)
        self.used.update(used)
        self.unread.update(unread)
        self.margins += sum(bool(getattr(one, "margin", None)) for one in examples)
        self.examples += len(table)
        self.examples_cut += int(table.over_length().sum())
        self.texts += len(table.tokens)
        self.prompts_cut += int((table.tokens.prompt_cut > 0).sum())
        self.answers_cut += int((table.tokens.answer_cut > 0).sum())
        self.special_strings += int(table.tokens.special_strings.sum())
        self.tokens += int(table.tokens.lengths.sum())
        self.shared_tokens += int(table.costs(share=True).sum()) if share else 0

    def tokens_read(self, *, share: bool) -> int:
        """Tokens that one epoch reads."""
        return self.shared_tokens if share else self.tokens

    @property
    def ceiling(self) -> float:
        """How many times fewer tokens are read where beginnings are shared."""
        return self.tokens / self.shared_tokens

    def as_dict(self) -> dict[str, Any]:
        """The record, from which `TrainCounts(**record)` is made again."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> TrainCounts:
        """What `as_dict` gave."""
        columns = {name: Counter(document[name]) for name in ("used", "unread")}
        return cls(**document | columns)

    def facts(self, kind: str, *, share: bool) -> dict[str, Any]:
        """The counts as a manifest holds them."""
        return {
            f"train_{kind}": self.examples,
            f"train_{kind}_cut": self.examples_cut,
            "train_texts": self.texts,
            "train_texts_cut": {"prompt": self.prompts_cut, "answer": self.answers_cut},
            "special_strings": self.special_strings,
            "train_tokens": self.tokens,
            "train_tokens_read": self.tokens_read(share=share),
        }


def unlearnable(table: ExampleTable, *, drop_long: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(examples that the cut made all alike, examples that are too long), bool (n,) each; no example is in both."""
    over = table.over_length() if drop_long else np.zeros(len(table), dtype=bool)
    return table.collapsed() & ~over, over
