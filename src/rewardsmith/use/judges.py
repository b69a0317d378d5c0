"""Do several judges agree on which policy is better, prompt by prompt and on the whole? Legend: `n` prompts, `R` bootstrap resamples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from rewardsmith.stats import Estimate, Floats, cluster_bootstrap, proportion

_OUTCOMES = 3


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on who wins each prompt: A, B or neither.

    Args:
        judges: their names.
        share: of prompts on which they say the same.
        kappa: Cohen's (1960): the agreement beyond what two judges with these shares of verdicts would have by chance, 1 at most; None where each says one thing alone.
    """

    judges: tuple[str, str]
    share: Estimate
    kappa: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "judges": list(self.judges),
            "share": self.share.as_dict(),
            "kappa": self.kappa.as_dict() if self.kappa else None,
        }


def agreements(outcomes: Mapping[str, Floats], *, seed: int = 0) -> list[Agreement]:
    """Every two judges.

    Args:
        outcomes: {judge: (n,) how far A wins each prompt}; above one half is a win of A, below of B.
        seed: of the bootstraps.
    """
    verdicts = {name: np.sign(values - 0.5).astype(np.int64) + 1 for name, values in outcomes.items()}
    found = []
    for one, other in combinations(verdicts, 2):
        first, second = verdicts[one], verdicts[other]
        prompts = np.arange(len(first))
        share = proportion((first == second).astype(np.float64), prompts, seed=seed)
        kappa = None
        if len(np.union1d(first, second)) > 1:
            cells = np.eye(_OUTCOMES**2)[first * _OUTCOMES + second]  # (n, 9)
            kappa = cluster_bootstrap(partial(_kappas, cells=cells), prompts, seed=seed)
        found.append(Agreement((one, other), share, kappa))
    return found


def _kappas(weights: Floats, *, cells: Floats) -> Floats:
    """Cohen's kappa of weighted prompts, (R, n) -> (R,), as sklearn.metrics.cohen_kappa_score has it; 0 where one verdict is all there is, for nothing is beyond chance."""
    tables = (weights @ cells).reshape(-1, _OUTCOMES, _OUTCOMES) / weights.sum(axis=1)[:, None, None]
    observed = np.trace(tables, axis1=1, axis2=2)
    expected = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1)
    beyond = 1 - expected
    varied = beyond > 1e-12
    return np.where(varied, (observed - expected) / np.where(varied, beyond, 1.0), 0.0)


def winner(win_rate: Estimate) -> str:
    """Who wins: "A" or "B" where the interval leaves one half out, else "undecided"."""
    if win_rate.low > 0.5:
        return "A"
    return "B" if win_rate.high < 0.5 else "undecided"
