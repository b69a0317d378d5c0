"""A model as the server knows it: a scorer, what is published of it, and the golden scores that prove the served path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from rewardsmith.data.schema import Pair
from rewardsmith.scores import DomainDetector, Scores, ScoreTable, TextScorer
from rewardsmith.stats import Floats
from rewardsmith.use.guard_rule import Rule


@dataclass(frozen=True)
class Golden:
    """Inputs and the scores that they must have.

    Args:
        inputs: (prompt, answer).
        scores: float32 (n,).
        tolerance: times max(1, |s|).
    """

    inputs: Sequence[Pair]
    scores: Scores
    tolerance: float

    def difference(self, found: Scores) -> float:
        """The largest |difference| / max(1, |s|)."""
        return float(np.max(np.abs(self.scores - found) / np.maximum(1.0, np.abs(self.scores))))


@dataclass(frozen=True)
class ServedModel:
    """One model of a server.

    Args:
        name: by which requests ask for it.
        scorer: reads and scores.
        max_length: tokens of one input.
        precision: of the scores.
        templated_texts: texts of /classify and /pooling were rendered with the model's chat template, and the control tokens in them are meant.
        temperature: of the calibrated probability; None where none was fitted.
        centre: the mean score of the data that the scores were normalised on; 0 where there is none.
        contract: what GET /v1/model publishes of the folder.
        golden: None where the folder has no golden scores.
        domain: says of each text how far it lies from a reference; None where nobody asked for it.
        guardrail: what becomes of answers by their scores; None where nobody asked for it.
    """

    name: str
    scorer: TextScorer
    max_length: int
    precision: str = "float32"
    templated_texts: bool = False
    temperature: float | None = None
    centre: float = 0.0
    contract: Mapping[str, Any] = field(default_factory=dict)
    golden: Golden | None = None
    domain: DomainDetector | None = None
    guardrail: Rule | None = None

    def probability(self, margins: Floats | Scores) -> Floats:
        """sigmoid(margin / T): how probably the first of two answers is the better one; T is 1 where none was fitted."""
        return np.asarray(expit(np.asarray(margins, dtype=np.float64) / (self.temperature or 1.0)))

    def squashed(self, table: ScoreTable) -> Floats:
        """How probably each answer is better than one of average score, float64 (n,)."""
        return self.probability(table.score.astype(np.float64) - self.centre)


def plain_sigmoid(scores: Scores) -> NDArray[np.float64]:
    """1 / (1 + exp(-score)): what protocols that squash a score do to it."""
    return np.asarray(expit(scores.astype(np.float64)))
