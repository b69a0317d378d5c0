"""Resamples of whole prompts, the same for every number of an analysis: what is computed from one resample belongs together.

Legend: `G` groups, `C` prompts, `R` resamples, `M` quantities.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewardsmith.stats import FEW_CLUSTERS, NUM_RESAMPLES, Estimate, Floats, cluster_codes, cluster_draws, interval_tail


class Resamples:
    """The prompts of some groups, and how often each is drawn.

    Args:
        prompts: the prompt of each group, (G,).
        seed: of the draws.
    """

    def __init__(self, prompts: Sequence[str], *, seed: int) -> None:
        """Draw nothing yet: the draws are made again, and the same, whenever they are asked for."""
        self.codes = cluster_codes(prompts)
        self.names = tuple(map(str, self.codes.tolist()))
        self.num_prompts, self.seed = int(self.codes.max()) + 1, seed

    def means(self, values: Floats) -> Floats:
        """The mean over the groups in each resample, from (G, M) to (R, M)."""
        sums = np.zeros((self.num_prompts, values.shape[1]))
        np.add.at(sums, self.codes, values)
        counts = np.bincount(self.codes).astype(np.float64)
        draws = cluster_draws(self.num_prompts, self.num_prompts, NUM_RESAMPLES, self.seed)
        return np.concatenate([(drawn @ sums) / (drawn @ counts)[:, None] for drawn in draws])

    def estimate(self, value: float, drawn: Floats, *, whole: bool = False) -> Estimate:
        """A number with the interval of its resamples, moved outward as `stats.cluster_bootstrap` does.

        Args:
            value: of all groups.
            drawn: of each resample, (R,).
            whole: the number can take whole values only, and so do the bounds.
        """
        return self.intervals(np.array([value]), drawn[:, None], whole=whole)[0]

    def intervals(self, values: Floats, drawn: Floats, *, whole: bool = False) -> list[Estimate]:
        """As `estimate`, of numbers (M,) with their resamples (R, M)."""
        tail = interval_tail(self.num_prompts, 0.95)
        lows = np.quantile(drawn, tail, axis=0, method="lower" if whole else "linear")
        highs = np.quantile(drawn, 1 - tail, axis=0, method="higher" if whole else "linear")
        method = f"bootstrap over {self.num_prompts} prompts"
        if self.num_prompts < FEW_CLUSTERS:
            method += ", too few for an interval that can be relied on"
        return [
            Estimate(float(value), float(low), float(high), len(self.codes), method)
            for value, low, high in zip(values, lows, highs, strict=True)
        ]

    def estimates(self, values: Floats) -> list[Estimate]:
        """The mean of each quantity, from (G, M) to M."""
        return self.intervals(values.mean(axis=0), self.means(values))
