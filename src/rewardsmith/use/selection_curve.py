"""What more candidates buy: the expected score of the best of n, and what labels say of it, for n = 1, 2, 4, ... up to the candidates at hand.

Every point is of the same groups and is computed without drawing, from all subsets of n at once (see `auditing.best_of_n`). The score can only rise, for it is what is selected
by; whether the answers get better is said by labels alone.

Legend: `G` groups, `P` candidates of all groups end to end, `L` values of n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardsmith.auditing.best_of_n import Ints, best_of, kl_of_best_of, powers
from rewardsmith.stats import Estimate, Floats, cluster_codes, mean, proportion


@dataclass(frozen=True, slots=True)
class LabelPoint:
    """What labels say at one n.

    Args:
        label: of the selected answer, on average.
        gain: over n = 1, prompt by prompt.
        limit: the label, were the labels themselves selected by.
        best_picked: how often the selected answer is one of the best of its whole group; at n = 1 that is luck. None where the labels tell no answers apart.
    """

    label: Estimate
    gain: Estimate
    limit: Estimate
    best_picked: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """Keys of a point of the document."""
        return {
            "label": self.label.as_dict(),
            "label_gain": self.gain.as_dict(),
            "label_limit": self.limit.as_dict(),
            "best_picked": None if self.best_picked is None else self.best_picked.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Best-of-n at one n.

    Args:
        n: candidates that are drawn.
        kl: log n - (n - 1) / n nats, the distance from the policy; an upper bound where scores are equal.
        score: of the selected answer, on average.
        gain: over n = 1, prompt by prompt.
        labels: None where no group of the curve has them.
    """

    n: int
    kl: float
    score: Estimate
    gain: Estimate
    labels: LabelPoint | None

    def as_dict(self) -> dict[str, Any]:
        """One entry of `curve` in the document."""
        found = {"n": self.n, "kl": self.kl, "score": self.score.as_dict(), "gain": self.gain.as_dict()}
        return found | (self.labels.as_dict() if self.labels is not None else {})


@dataclass(frozen=True)
class SelectionCurve:
    """The curve with what it rests on.

    Args:
        points: n rising from 1.
        num_groups: of which every point is.
    """

    points: list[CurvePoint]
    num_groups: int


def selection_curve(scores: Floats, labels: Floats, starts: Ints, clusters: Ints, *, seed: int = 0) -> SelectionCurve:
    """Best-of-n over the powers of two, on the groups with at least as many candidates as half of all groups have.

    Args:
        scores: that are selected by, (P,).
        labels: larger is better, (P,); a group with a NaN among them has none.
        starts: group g is starts[g]:starts[g + 1], (G + 1,).
        clusters: code of each group's prompt, (G,); intervals go by it.
        seed: of the intervals.
    """
    sizes = np.diff(starts)
    n_max = int(np.quantile(sizes, 0.5, method="lower"))
    ns = powers(n_max)
    groups = np.flatnonzero(sizes >= n_max)
    expected = best_of(scores, scores[:, None], starts, ns)[groups, 0]  # (G, 1, L) -> (groups, L)
    labelled = _label_points(scores, labels, starts, groups, clusters, ns, seed)
    clusters = cluster_codes(clusters[groups])
    points = [
        CurvePoint(
            n,
            float(kl_of_best_of(n)),
            mean(expected[:, i], clusters, seed=seed),
            mean(expected[:, i] - expected[:, 0], clusters, seed=seed),
            labelled[i] if labelled else None,
        )
        for i, n in enumerate(ns)
    ]
    return SelectionCurve(points, len(groups))


def _label_points(
    scores: Floats,
    labels: Floats,
    starts: Ints,
    groups: Ints,
    clusters: Ints,
    ns: Sequence[int],
    seed: int,
) -> list[LabelPoint]:
    """One a value of n; none where no group has labels."""
    worst, best = np.minimum.reduceat(labels, starts[:-1]), np.maximum.reduceat(labels, starts[:-1])  # NaN where one is
    groups = groups[np.isfinite(best[groups])]
    if not len(groups):
        return []
    known = np.nan_to_num(labels)  # groups without labels are not among those that are read
    is_best = (labels == np.repeat(best, np.diff(starts))).astype(np.float64)
    found = best_of(scores, np.stack([known, is_best], axis=1), starts, ns)[groups]  # (groups, 2, L)
    limits = best_of(known, known[:, None], starts, ns)[groups, 0]
    told = np.flatnonzero(best[groups] > worst[groups])
    told_clusters = cluster_codes(clusters[groups[told]])
    clusters = cluster_codes(clusters[groups])
    return [
        LabelPoint(
            mean(found[:, 0, i], clusters, seed=seed),
            mean(found[:, 0, i] - found[:, 0, 0], clusters, seed=seed),
            mean(limits[:, i], clusters, seed=seed),
            proportion(np.clip(found[told, 1, i], 0.0, 1.0), told_clusters, seed=seed) if len(told) else None,
        )
        for i in range(len(ns))
    ]
