"""The win rate that two policies would have if their answers were of one length: a logistic model with the difference of lengths beside the policies.

It is the model of AlpacaEval's length-controlled win rate (Dubois, Galambosi, Liang and Hashimoto 2024, "Length-Controlled AlpacaEval"; alpaca_eval,
metrics/glm_winrate.py), with two of its three terms:

    P(A wins) = sigmoid(theta + phi * tanh((length of A - length of B) / sd))

The third, a difficulty of each instruction that is multiplied by a constant of each model, needs the verdicts on many models: from one pair of policies it cannot be told
from what is left over. AlpacaEval also adds verdicts on two baselines that were made longer and shorter on purpose; there are none here. Of its cross-validated L1
penalty on all terms only the purpose is kept: phi has a normal prior with standard deviation 2.5 (the scale of Gelman, Jakulin, Pittau and Su 2008), theta has none,
so that without an effect of length the result is the plain win rate.

Legend: `n` comparisons, `R` bootstrap resamples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from rewardsmith.stats import NUM_RESAMPLES, Estimate, Floats, cluster_bootstrap

PRIOR_SD = 2.5
"""Of the effect of length; the larger, the less it is held back."""
_TOLERANCE, _MOST_STEPS, _LONGEST_STEP = 1e-10, 200, 1.0
# Comparisons times resamples: about ten seconds. A million comparisons of 64 x 64 answers are no reason to refit for hours.
_MOST_CELLS, _LEAST_RESAMPLES = 40_000_000, 200


@dataclass(frozen=True)
class LengthControl:
    """What is left of a win rate at equal length.

    Args:
        win_rate: sigmoid(theta), A's.
        effect: phi, the log-odds that A gains when its answer is much longer than B's; None where it was not fitted.
        note: why it was not; None where it was.
    """

    win_rate: Estimate
    effect: Estimate | None
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The document of the fit, without the win rate."""
        return {"effect": self.effect.as_dict() if self.effect else None, "prior_sd": PRIOR_SD, "note": self.note}


def length_controlled(
    targets: Floats,
    differences: NDArray[Any],
    weights: Floats,
    clusters: NDArray[np.int64],
    raw: Estimate,
    *,
    seed: int = 0,
) -> LengthControl:
    """Fit the model; the interval is a bootstrap over prompts in which it is fitted anew each time.

    Args:
        targets: (n,) how far A wins each comparison, in [0, 1]: 1, 0.5 and 0, or probabilities.
        differences: (n,) length of A's answer minus length of B's.
        weights: (n,) of the comparisons, those of a prompt adding up to 1.
        clusters: (n,) codes of the prompts, 0..C-1.
        raw: the win rate without control, which is the result where nothing can be fitted.
        seed: of the bootstrap.

    >>> from rewardsmith.stats import wilson
    >>> won = np.array([1.0] * 30 + [0.0] * 10 + [1.0] * 5 + [0.0] * 15)  # A wins 30 of 40 where it is longer, 5 of 20 where it is shorter
    >>> longer, prompts = np.array([100] * 40 + [-100] * 20), np.arange(60)
    >>> found = length_controlled(won, longer, np.ones(60), prompts, wilson(35, 60))
    >>> round(found.win_rate.value, 2), found.effect.low > 0
    (0.5, True)
    """
    scale = _deviation(differences.astype(np.float64), weights)
    if scale == 0:
        note = "the lengths differ by the same in every comparison: their effect cannot be told from the policies'"
        return LengthControl(raw, None, f"{note}, and the plain win rate is given")
    if targets.min() == targets.max():
        what = "one policy wins every comparison" if targets[0] in (0.0, 1.0) else "every comparison ends alike"
        note = f"{what}, whatever the lengths"
        return LengthControl(raw, None, f"{note}: nothing can be fitted, and the plain win rate is given")
    lengths = np.tanh(differences / scale)
    start = _fit(targets, lengths, weights[None, :], np.zeros(2))[0]
    resamples = int(np.clip(_MOST_CELLS // len(targets), _LEAST_RESAMPLES, NUM_RESAMPLES))

    def win_rates(drawn: Floats) -> Floats:  # (R, n) -> (R,); infinite thetas as the rates that they stand for
        return np.asarray(expit(_fit(targets, lengths, drawn * weights, start)[:, 0]))

    def effects(drawn: Floats) -> Floats:
        return _fit(targets, lengths, drawn * weights, start)[:, 1]

    rate, effect = (
        cluster_bootstrap(statistic, clusters, resamples=resamples, seed=seed) for statistic in (win_rates, effects)
    )
    method = f"{rate.method}, fitted anew in each resample"
    return LengthControl(replace(rate, n=raw.n, method=method), replace(effect, n=raw.n, method=method))


def _deviation(values: Floats, weights: Floats) -> float:
    """The weighted standard deviation; with equal weights that of n - 1."""
    mean = np.average(values, weights=weights)
    return float(np.sqrt(np.average((values - mean) ** 2, weights=weights) * len(values) / max(1, len(values) - 1)))


def _fit(targets: Floats, lengths: Floats, weights: Floats, start: Floats) -> Floats:
    """Theta and phi of each row of weights (R, n), as (R, 2): Newton's method on all rows at once, where scikit-learn would be called R times.

    A row in which one policy wins everything has no finite theta: it gets the infinite one, of which the win rate is 0 or 1.
    """
    found = np.tile(start, (len(weights), 1))
    totals, won = weights.sum(axis=1), weights @ targets
    one_sided = (won <= 0) | (won >= totals * (1 - 1e-12))
    active = np.flatnonzero(~one_sided)
    for _ in range(_MOST_STEPS):
        if not len(active):
            break
        part, here = weights[active], found[active]
        probabilities = expit(here[:, :1] + here[:, 1:] * lengths)  # (R, n)
        residuals = part * (targets - probabilities)
        gradient = np.stack([residuals.sum(axis=1), residuals @ lengths - here[:, 1] / PRIOR_SD**2], axis=1)
        curvature = part * probabilities * (1 - probabilities)
        aa, ab = np.maximum(curvature.sum(axis=1), 1e-12), curvature @ lengths
        bb = curvature @ lengths**2 + 1 / PRIOR_SD**2
        determinant = np.maximum(aa * bb - ab**2, 1e-15)
        steps = np.stack([bb * gradient[:, 0] - ab * gradient[:, 1], aa * gradient[:, 1] - ab * gradient[:, 0]], axis=1)
        # Far from the optimum the curve is flat, and Newton's own step would leap over it.
        steps /= determinant[:, None]
        steps /= np.maximum(1.0, np.abs(steps).max(axis=1, keepdims=True) / _LONGEST_STEP)
        found[active] += steps
        active = active[np.abs(steps).max(axis=1) > _TOLERANCE]
    found[one_sided, 0] = np.where(won[one_sided] > 0, np.inf, -np.inf)
    found[one_sided, 1] = 0.0
    return found
