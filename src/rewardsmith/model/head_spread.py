"""How sure a solved head is: heads on data drawn again by prompt, and how far their scores differ. Legend: `n` pairs, `H` features, `S` heads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardsmith.model.head_solver import GRADIENT_OF_MANY, HeadProblem, Heads, solve_heads
from rewardsmith.stats import Estimate, Floats, mean


def resampled_heads(
    problem: HeadProblem, prompts: NDArray[np.int64], start: Floats, *, l2: float, resamples: int, seed: int
) -> Heads:
    """Heads on data whose prompts were drawn again with replacement, all solved at once from the head (H,) on the data as they are.

    Raises:
        NonFiniteError: if the solver does not arrive.
    """
    codes = np.unique(prompts, return_inverse=True)[1]
    num_prompts = int(codes.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=resamples)  # (S, prompts)
    counts = drawn[:, codes].astype(np.float64)
    return solve_heads(
        problem, counts, np.full(resamples, l2), start=np.tile(start, (resamples, 1)), gradient=GRADIENT_OF_MANY
    )


@dataclass(frozen=True)
class HeadSpread:
    """How far the scores of resampled heads differ on some pairs.

    Args:
        heads: how many.
        part: the pairs: "dev" or "train".
        score_sd: the standard deviation of an answer's score over the heads, the mean over answers; each head's scores are shifted to a mean of 0 first,
            for a loss of pairs leaves their level open.
        margin_sd: the same of a pair's margin, which has no level.
        turned: the share of (pair, head) whose order is not that of the saved head.
    """

    heads: int
    part: str
    score_sd: Estimate
    margin_sd: Estimate
    turned: Estimate

    def as_dict(self) -> dict[str, Any]:
        """The document that reports hold."""
        return asdict(self)


def head_spread(
    weights: Floats, saved: Floats, features: Floats, prompts: NDArray[np.int64], *, part: str
) -> HeadSpread:
    """The spread of heads (S, H) around the saved one (H,) over pairs of features (2n, H), chosen and rejected in turn, of prompts (n,)."""
    scores = features @ weights.T  # (2n, S)
    levelled = scores - scores.mean(0)
    margins = scores[0::2] - scores[1::2]
    order = features[0::2] @ saved - features[1::2] @ saved
    # A pair that the saved head cannot tell apart has no order to turn round.
    turned = (np.sign(margins) != np.sign(order)[:, None]).mean(1) * (order != 0)
    return HeadSpread(
        weights.shape[0],
        part,
        mean(levelled.std(1, ddof=1), np.repeat(prompts, 2)),
        mean(margins.std(1, ddof=1), prompts),
        mean(turned, prompts),
    )
