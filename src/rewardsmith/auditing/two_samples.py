"""Do two samples come from one distribution? A classifier that tries to tell them apart, and the maximum mean discrepancy (MMD).

Both are tested by permutations that move all texts of a prompt together. Legend: `n` texts of both samples, `B` permutations, `H` features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix
from scipy.spatial.distance import pdist
from scipy.special import expit
from scipy.stats import rankdata, t
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import euclidean_distances

from rewardsmith.errors import DataError
from rewardsmith.stats import Estimate, Floats, cluster_bootstrap, cluster_codes, wilson

Codes = NDArray[np.int64]
Bools = NDArray[np.bool_]
Single = NDArray[np.float32]

FOLDS = 5
LEAST_PROMPTS = 20
"""Of each side: with fewer, a fold has next to nobody to tell apart."""
PERMUTATIONS = 500
_MMD_RESAMPLES = 500
_BANDWIDTH_TEXTS = 1000
# Principal components that the classifier reads, chosen without looking at the sides.
_MAX_COMPONENTS = 64
PENALTY = 0.1
"""Of half the squared weights, for each text: whitened components of rare texts would else run away."""
_MAX_STEPS = 200
# Of the logits, in root mean square: the AUC of a permutation is then right to a few thousandths of its own spread.
_TOLERANCE = 1e-3
# The classifiers of the folds begin to agree where the AUC exceeds 0.5 by so many standard deviations of the null; coverage was simulated for it.
_AGREED = 2.0
# Logits of one block of permutations; bounds their memory to some tens of MB.
_BLOCK_CELLS = 2_000_000


@dataclass(frozen=True)
class Samples:
    """Texts of two sides as numbers.

    Args:
        values: finite features, (n, H).
        is_new: the side of each, (n,).
        prompts: the prompt of each, codes that both sides share, (n,).
    """

    values: Floats
    is_new: Bools
    prompts: Codes

    @classmethod
    def of(cls, reference: tuple[Any, list[str]], new: tuple[Any, list[str]]) -> Samples:
        """From (features, names of the prompts) of each side.

        Raises:
            DataError: if a side has fewer than 20 prompts, or a feature is not finite.
        """
        for side, (_, prompts) in (("the reference", reference), ("the new texts", new)):
            num_prompts = len(set(prompts))
            if num_prompts < LEAST_PROMPTS:
                raise DataError(f"at least {LEAST_PROMPTS} prompts in {side}", str(num_prompts), "Give more of them.")
        values = np.concatenate([reference[0], new[0]]).astype(np.float64)
        if not np.isfinite(values).all():
            raise DataError("finite features", "NaN or infinite ones", "Check what computes the features.")
        is_new = np.arange(len(values)) >= len(reference[1])
        return cls(values, is_new, cluster_codes([*reference[1], *new[1]]))

    def shuffled(self, rng: np.random.Generator, times: int) -> Bools:
        """The sides as they might have been, (n, times): the texts of a prompt on one side move together, so many of these blocks to each side as there are.

        A prompt that stands on both sides is two blocks, which may move apart: that makes the test of such samples a cautious one.
        """
        blocks, first = np.unique(2 * self.prompts + self.is_new, return_index=True)
        of_row = np.searchsorted(blocks, 2 * self.prompts + self.is_new)
        sides = np.tile(self.is_new[first][:, None], (1, times))  # (blocks, B)
        return np.asarray(rng.permuted(sides, axis=0)[of_row])

    def counts(self) -> dict[str, int]:
        """Texts and prompts of each side."""
        return {
            "num_reference": int((~self.is_new).sum()),
            "num_new": int(self.is_new.sum()),
            "prompts_reference": len(np.unique(self.prompts[~self.is_new])),
            "prompts_new": len(np.unique(self.prompts[self.is_new])),
        }


@dataclass(frozen=True)
class ClassifierTest:
    """What a classifier could tell apart (Lopez-Paz and Oquab 2017), out of fold.

    Args:
        auc: how often it finds a new text newer than a reference text of the same fold; 0.5 is a coin.
        p_value: one-sided, by permutations with the classifier fitted anew.
        null_high: the AUC that 5 % of the permutations exceed.
        widened: by how much the interval is wider than that of a classifier which had been fitted elsewhere.
        counts: texts and prompts.
    """

    auc: Estimate
    p_value: float
    null_high: float
    widened: float
    counts: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "auc": self.auc.as_dict(),
            "p_value": self.p_value,
            "null_high": self.null_high,
            "widened": self.widened,
            "permutations": PERMUTATIONS,
            **self.counts,
        }


def classifier_test(samples: Samples, *, permutations: int = PERMUTATIONS, seed: int = 0) -> ClassifierTest:
    """Logistic regression of the side on the features, five folds of whole prompts, judged on the fold it has not seen.

    Folds are drawn without looking at the sides and texts are compared within a fold only: the AUC of two samples of one distribution is then 0.5 on average,
    where one of all out-of-fold scores together lies below it (Airola et al. 2011). Its interval is the cluster-robust one over prompts, on the
    logit, of a classifier as it is; but the classifiers of the folds saw each other's texts, every pair of texts of two folds has a say in both, and under the null
    the variance is about twice as large. The permutations tell the factor, and the interval is widened by its root; where the AUC is far from 0.5 the
    classifiers agree, whatever they have seen, and the widening fades as the square of the null's spread over the excess.

    Args:
        samples: see there.
        permutations: of whole prompts between the sides.
        seed: of folds and permutations.
    """
    rng = np.random.default_rng(seed)
    folds = rng.permutation(np.arange(int(samples.prompts.max()) + 1) % FOLDS)[samples.prompts]
    values = _components(samples.values, seed)
    shuffled = samples.shuffled(rng, permutations)
    # One fit serves both: the real sides are one column more.
    sides, ranks = np.column_stack([samples.is_new, shuffled]), np.zeros((len(values), permutations + 1))
    for k in range(FOLDS):
        train, test = folds != k, folds == k
        ranks[test] = rankdata(decisions(values[train], sides[train], values[test]), axis=0)
    auc, *null_aucs = _auc(ranks, sides, folds).tolist()
    fixed_aucs = _auc(ranks[:, :1], shuffled, folds)  # of a classifier that was fitted once
    widened = _widened(auc, float(np.std(null_aucs)), float(np.std(fixed_aucs)))
    return ClassifierTest(
        auc=_auc_interval(auc, ranks[:, 0], folds, samples, widened),
        p_value=(sum(one >= auc - 1e-12 for one in null_aucs) + 1) / (permutations + 1),
        null_high=float(np.quantile(null_aucs, 0.95)),
        widened=widened,
        counts=samples.counts(),
    )


def _components(values: Floats, seed: int) -> Floats:
    """At most 64 principal components of both samples together, each of unit variance."""
    spread = values.std(axis=0)
    values = values[:, spread > 0] / spread[spread > 0]
    if values.shape[1] == 0:  # all texts are the same: nothing to tell apart
        return np.zeros((len(values), 1))
    size = min(_MAX_COMPONENTS, *values.shape)
    found = PCA(size, whiten=True, svd_solver="full").fit(values)
    kept = found.explained_variance_ > 1e-9 * found.explained_variance_[0]
    return np.asarray(found.transform(values)[:, kept])


def decisions(train: Floats, sides: Bools, test: Floats) -> Floats:
    """Decisions on `test`, (m, B), of a ridge-penalised logistic regression for each column of `sides`, all fitted at once.

    Newton's steps with the Hessian at its bound X'X / 4 (Boehning and Lindsay 1988), which is one matrix for all: the same optimum as scikit-learn's, for
    hundreds of labellings at the price of a few. The penalty is a fixed part of the bound, so an error shrinks by a quarter at least with every step.
    """
    x, ends = (np.column_stack([rows, np.ones(len(rows))]).astype(np.float32) for rows in (train, test))
    penalty = np.full((x.shape[1], 1), PENALTY * len(train))
    penalty[-1] = 1e-9  # the intercept is free
    factor = cho_factor(x.T.astype(np.float64) @ x / 4 + np.diag(penalty[:, 0]))
    found = np.zeros((len(test), sides.shape[1]))
    block = max(1, _BLOCK_CELLS // len(x))
    for start in range(0, sides.shape[1], block):
        y = sides[:, start : start + block].astype(np.float32)
        weights = np.zeros((x.shape[1], y.shape[1]))
        for _ in range(_MAX_STEPS):
            slope = x.T @ (y - expit(x @ weights.astype(np.float32))) - penalty * weights
            step = cho_solve(factor, slope)
            weights += step
            # The squared logits of a step, in the metric of the bound: no pass over the texts is needed.
            if np.sqrt((step * slope).sum(axis=0).max() * 4 / len(x)) < _TOLERANCE:
                break
        found[:, start : start + block] = ends @ weights.astype(np.float32)
    return found


def _auc(ranks: Floats, sides: Bools, folds: Codes) -> Floats:
    """Mann-Whitney within the folds, a fold counting as many pairs as it has; (B,), of ranks (n, 1) or (n, B)."""
    above, of = np.zeros(sides.shape[1]), np.zeros(sides.shape[1])
    for k in range(FOLDS):
        rows = folds == k
        new = sides[rows].sum(axis=0)
        above += (ranks[rows] * sides[rows]).sum(axis=0) - new * (new + 1) / 2
        of += new * (rows.sum() - new)
    return np.asarray(above / np.maximum(of, 1))


def _widened(auc: float, null_error: float, fixed_error: float) -> float:
    """The factor of the interval's half-width: the root of the extra variance under the null, as far as the classifiers are still made of noise."""
    if fixed_error == 0:
        return 1.0
    extra = max(0.0, (null_error / fixed_error) ** 2 - 1)
    excess = abs(auc - 0.5)
    noise = min(1.0, (_AGREED * null_error / excess) ** 2) if excess > 0 else 1.0
    return float(np.sqrt(1 + extra * noise))


def _auc_interval(auc: float, ranks: Floats, folds: Codes, samples: Samples, widened: float) -> Estimate:
    """The cluster-robust interval over prompts of the AUC within folds (Obuchowski 1997), on the logit, `widened` times as wide."""
    influence, of = np.zeros(len(ranks)), 0
    for k in range(FOLDS):
        for mine in (True, False):
            rows, others = (folds == k) & (samples.is_new == mine), (folds == k) & (samples.is_new != mine)
            own = rankdata(ranks[rows]) if rows.any() else np.zeros(0)
            below = ranks[rows] - own  # texts of the other side below each, ties one half
            won = below if mine else others.sum() - below
            influence[rows] = won - auc * others.sum()
            of += int(rows.sum() * others.sum()) if mine else 0
    return interval_of_share(
        auc,
        influence / max(1, of),
        samples.prompts,
        of_prompts=min(*list(samples.counts().values())[2:]),
        widen=widened,
    )


def interval_of_share(
    value: float, influence: Floats, prompts: Codes, *, of_prompts: int, widen: float = 1.0
) -> Estimate:
    """A value between 0 and 1 with the interval that the influence of each text gives it: Student's, over prompts, on the logit.

    Args:
        value: the value.
        influence: (n,) by how much each text moves it.
        prompts: (n,) codes.
        of_prompts: prompts of the smaller side: no interval is narrower than theirs where nothing varies.
        widen: the factor of the half-width.
    """
    sums = np.bincount(prompts, weights=influence)
    num_prompts = len(np.unique(prompts))
    error = widen * float(np.sqrt(num_prompts / (num_prompts - 1) * (sums**2).sum()))
    method = f"cluster-robust over {num_prompts} prompts"
    if not 0 < value < 1 or error == 0:
        edge = wilson(value * of_prompts, of_prompts)
        return Estimate(value, edge.low, edge.high, len(prompts), f"wilson on {of_prompts} prompts")
    reach = float(t.ppf(0.975, of_prompts - 1)) * error / (value * (1 - value))
    centre = np.log(value / (1 - value))
    low, high = expit([centre - reach, centre + reach])
    return Estimate(value, float(low), float(high), len(prompts), method)


@dataclass(frozen=True)
class MmdTest:
    """The squared maximum mean discrepancy (Gretton et al. 2012) of two samples.

    Args:
        mmd2: the unbiased estimate over pairs of texts of different prompts; 0 in the mean where both come from one distribution, so it may be negative.
        p_value: one-sided, by permutations.
        null_high: the value that 5 % of the permutations exceed.
        bandwidth: of the Gaussian kernel exp(-distance^2 / (2 bandwidth^2)): the median distance.
        counts: texts and prompts.
    """

    mmd2: Estimate
    p_value: float
    null_high: float
    bandwidth: float
    counts: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "mmd2": self.mmd2.as_dict(),
            "p_value": self.p_value,
            "null_high": self.null_high,
            "bandwidth": self.bandwidth,
            "permutations": PERMUTATIONS,
            **self.counts,
        }


def mmd_test(samples: Samples, *, permutations: int = PERMUTATIONS, seed: int = 0) -> MmdTest:
    """MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y), over pairs of texts of different prompts, with a permutation test.

    The kernel of 4,000 texts takes 64 MB. The interval is a bootstrap over prompts; where there is no difference it is too wide.

    Args:
        samples: see there.
        permutations: of whole prompts between the sides.
        seed: of permutations and resamples.
    """
    rng = np.random.default_rng(seed)
    kernel, bandwidth = _kernel(samples, rng)
    of_prompt = csr_matrix((np.ones(len(kernel), np.float32), (samples.prompts, np.arange(len(kernel)))))
    new, old = np.flatnonzero(samples.is_new), np.flatnonzero(~samples.is_new)
    total = kernel.sum(axis=1, dtype=np.float64)[:, None]

    def of_sides(sides: Single) -> Floats:
        """MMD^2 for each column of 0 (reference) and 1 (new)."""
        with_new = kernel @ sides  # (n, B)
        others = 1 - sides
        sums = [(sides * with_new), (others * (total - with_new)), (others * with_new)]
        return _mmd2([one.sum(axis=0, dtype=np.float64) for one in sums], of_prompt @ sides, of_prompt @ others)

    def of_weights(weights: Floats) -> Floats:
        """MMD^2 for each row of weights of the texts, whose sides stay as they are."""
        drawn = weights.T.astype(np.float32)
        sides, others = drawn * samples.is_new[:, None], drawn * ~samples.is_new[:, None]
        with_new = kernel[:, new] @ drawn[new]
        with_old = kernel[np.ix_(old, old)] @ drawn[old]
        sums = [sides * with_new, drawn[old] * with_old, others * with_new]
        return _mmd2([one.sum(axis=0, dtype=np.float64) for one in sums], of_prompt @ sides, of_prompt @ others)

    found = float(of_sides(samples.is_new[:, None].astype(np.float32))[0])
    null = np.concatenate([of_sides(sides) for sides in _blocks(samples.shuffled(rng, permutations))])
    return MmdTest(
        mmd2=cluster_bootstrap(of_weights, samples.prompts, resamples=_MMD_RESAMPLES, seed=seed),
        p_value=(int((null >= found - 1e-12).sum()) + 1) / (permutations + 1),
        null_high=float(np.quantile(null, 0.95)),
        bandwidth=bandwidth,
        counts=samples.counts(),
    )


def _kernel(samples: Samples, rng: np.random.Generator) -> tuple[Single, float]:
    """The kernel matrix, float32 (n, n), 0 within a prompt, and its bandwidth, the median distance of (at most) a thousand texts."""
    spread = samples.values.std(axis=0)
    values = samples.values[:, spread > 0] / spread[spread > 0]
    if values.shape[1] == 0:  # all texts are the same
        values = np.zeros((len(values), 1))
    some = rng.permutation(len(values))[:_BANDWIDTH_TEXTS]
    bandwidth = float(np.median(pdist(values[some]))) or 1.0
    squares = euclidean_distances(values, squared=True)
    kernel = np.exp(np.divide(squares, -2 * bandwidth**2, out=squares), out=squares).astype(np.float32)
    kernel[samples.prompts[:, None] == samples.prompts[None, :]] = 0
    return kernel, bandwidth


def _mmd2(sums: Sequence[Floats], new: Single, reference: Single) -> Floats:
    """MMD^2 from the kernel's sums within the new side, within the reference and between them, each (B,), and the prompts' weights, (C, B)."""
    numbers = [(new, new), (reference, reference), (reference, new)]
    within_new, within_reference, between = (total / _num_apart(*two) for total, two in zip(sums, numbers, strict=True))
    return np.asarray(within_new + within_reference - 2 * between)


def _num_apart(first: Single, second: Single) -> Floats:
    """The weight of all pairs of texts of different prompts, (B,)."""
    all_pairs = first.sum(axis=0, dtype=np.float64) * second.sum(axis=0, dtype=np.float64)
    return np.asarray(np.maximum(all_pairs - (first * second).sum(axis=0, dtype=np.float64), 1.0))


def _blocks(sides: Bools) -> Iterator[Single]:
    size = max(1, _BLOCK_CELLS // len(sides))
    for start in range(0, sides.shape[1], size):
        yield sides[:, start : start + size].astype(np.float32)
