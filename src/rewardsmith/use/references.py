"""Scores of reference answers, by prompt: what an answer to the same prompt is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardsmith.data.schema import Pair, prompt_key
from rewardsmith.errors import DataError
from rewardsmith.functions import Function, as_scorer
from rewardsmith.scores import Scorer, checked
from rewardsmith.stats import Floats
from rewardsmith.use.samples import Sample

_SHOWN = 60


@dataclass(frozen=True)
class References:
    """K raw scores of reference answers to each prompt, K being at least 2 and free to differ.

    Args:
        scores: by `data.schema.prompt_key`.
        source: where the answers are from, in words.

    Raises:
        DataError: if there is no prompt, or one has fewer than two scores or one that is not finite.
    """

    scores: Mapping[str, tuple[float, ...]]
    source: str

    def __post_init__(self) -> None:
        """Check every prompt once, before anything is trained."""
        if not self.scores:
            raise DataError("reference answers to at least one prompt", "none", "Give prompts with answers.")
        for key, values in self.scores.items():
            if len(values) < 2 or not np.isfinite(values).all():
                raise DataError(
                    "at least two finite scores of reference answers to each prompt",
                    f"{list(values)} for {_short(key)}",
                    "Draw more answers of the reference policy, or leave the prompt out.",
                )

    @classmethod
    def measured(cls, scorer: Scorer | Function, pairs: Sequence[Pair], *, source: str) -> References:
        """Score reference answers, several to each prompt.

        Raises:
            DataError: if a prompt has only one.
            RewardsmithError: if they cannot be scored.
        """
        found: dict[str, list[float]] = {}
        for (prompt, _), score in zip(pairs, checked(as_scorer(scorer).score(pairs), len(pairs)), strict=True):
            found.setdefault(prompt_key(prompt), []).append(float(score))
        return cls({key: tuple(values) for key, values in found.items()}, source)

    def of(self, samples: Sequence[Sample]) -> list[Floats]:
        """The reference scores of each sample's prompt, in their order.

        Raises:
            DataError: if a prompt has none.
        """
        missing = {sample.group for sample in samples if sample.group not in self.scores}
        if missing:
            raise DataError(
                "reference answers to every prompt",
                f"none to {len(missing)} prompts, e.g. {_short(min(missing))}",
                "Score reference answers of these prompts, too; a reward is never made up.",
            )
        return [np.asarray(self.scores[sample.group], np.float64) for sample in samples]

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {"source": self.source, "scores": {key: list(values) for key, values in self.scores.items()}}


def _short(key: str) -> str:
    return repr(key if len(key) <= _SHOWN else key[: _SHOWN - 3] + "...")
