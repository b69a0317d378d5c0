"""Best-of-n from the N candidates at hand, without drawing anything: each candidate's chance to be the best of n.

Of n candidates taken from N without replacement, the best by the proxy lies among the i lowest with probability C(i, n) / C(N, n). A candidate that stands
alone with i - 1 below it is therefore the best with probability

    (C(i, n) - C(i - 1, n)) / C(N, n) = C(i - 1, n - 1) / C(N, n),

the weights of the unbiased estimator E[g]_n = sum_i C(i - 1, n - 1) / C(N, n) g_(i) (Nakano et al. 2021, "WebGPT", appendix I; Coste et al. 2023). Candidates
with equal proxies, of which a have lower ones and b have no higher ones, are the best together with probability (C(b, n) - C(a, n)) / C(N, n), and where ties are
broken by chance each of them has an equal share of it: the weights of the tied ranks, averaged.

Legend: `G` groups, `N` candidates of a group, `L` values of n, `V` quantities, `P` all candidates of all groups end to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from rewardsmith.errors import SettingsError
from rewardsmith.stats import Floats

Ints = NDArray[np.int64]
# Chances of one block of groups; bounds their memory to some tens of MB.
_BLOCK_CELLS = 2_000_000
_ALL_UP_TO, _POINTS = 16, 24


def kl_of_best_of(n: Floats | Ints | int) -> Floats:
    """How far best-of-n moves from its policy: KL = log n - (n - 1) / n, in nats.

    Exact for a policy whose draws have no equal scores, else an upper bound (Beirami et al. 2024); of a pool that was enlarged by edited copies it is only
    a name for n.

    >>> [round(float(kl_of_best_of(n)), 2) for n in (1, 4, 16, 256)]
    [0.0, 0.64, 1.84, 4.55]
    """
    n = np.asarray(n, np.float64)
    return np.asarray(np.log(n) - (n - 1) / n)


def grid(n_max: int) -> list[int]:
    """The values of n on a curve: each one up to 16; above that about 24 of equal distance on a log scale, and the powers of two.

    >>> grid(5)
    [1, 2, 3, 4, 5]
    """
    if n_max <= _ALL_UP_TO:
        return list(range(1, n_max + 1))
    spread = np.round(np.geomspace(1, n_max, _POINTS)).astype(int).tolist()
    return sorted({*spread, *powers(n_max)})


def powers(n_max: int) -> list[int]:
    """The powers of two up to n_max, and n_max itself.

    >>> powers(6)
    [1, 2, 4, 6]
    """
    return sorted({*(2**k for k in range(n_max.bit_length()) if 2**k <= n_max), n_max})


def _all_below(num_candidates: int, ns: Sequence[int]) -> Floats:
    """C(i, n) / C(N, n) for i = 0..N, by logarithms since the counts overflow: the chance that n candidates all lie among the i lowest; (N + 1, L)."""
    i, n = np.arange(num_candidates + 1, dtype=np.float64)[:, None], np.asarray(ns, np.float64)[None, :]
    reachable = i >= n
    spare = np.where(reachable, i - n, 0.0)
    logs = gammaln(i + 1) - gammaln(spare + 1) - gammaln(num_candidates + 1) + gammaln(num_candidates - n + 1)
    return np.where(reachable, np.exp(logs), 0.0)


def chances(proxy: Floats, ns: Sequence[int]) -> Floats:
    """The chance of each candidate to be the best of n of its group by the proxy, ties broken by chance.

    Args:
        proxy: scores of groups of one size, (G, N).
        ns: each between 1 and N.

    Returns:
        (G, N, L); each group's chances sum to 1.

    Raises:
        SettingsError: at an n that the groups cannot have.

    >>> chances(np.array([[0.1, 0.7, 0.7]]), [1, 2])[0].round(3).tolist()
    [[0.333, 0.0], [0.333, 0.5], [0.333, 0.5]]
    """
    num_candidates = proxy.shape[1]
    if not all(1 <= n <= num_candidates for n in ns):
        raise SettingsError(f"n between 1 and the {num_candidates} candidates of a group", f"{list(ns)}", "Lower n.")
    ordered = np.sort(proxy, axis=1)
    below = np.stack([np.searchsorted(row, own, side="left") for row, own in zip(ordered, proxy, strict=True)])
    up_to = np.stack([np.searchsorted(row, own, side="right") for row, own in zip(ordered, proxy, strict=True)])
    table = _all_below(num_candidates, ns)
    return np.asarray((table[up_to] - table[below]) / (up_to - below)[:, :, None])


def best_of(proxy: Floats, values: Floats, starts: Ints, ns: Sequence[int]) -> Floats:
    """What is to be expected of the best of n candidates by the proxy, group by group.

    Args:
        proxy: (P,).
        values: what is asked of the selected candidate, (P, V).
        starts: group g is starts[g]:starts[g + 1], (G + 1,).
        ns: of the curve.

    Returns:
        (G, V, L); NaN where a group has fewer than n candidates.
    """
    found = np.full((len(starts) - 1, values.shape[1], len(ns)), np.nan)
    for groups, rows, reached in _blocks(starts, ns):
        weights = chances(proxy[rows], [ns[k] for k in reached])  # (G, N, L)
        found[np.ix_(groups, np.arange(values.shape[1]), np.array(reached))] = np.einsum(
            "gnl,gnv->gvl", weights, values[rows]
        )
    return found


def _blocks(starts: Ints, ns: Sequence[int]) -> Iterator[tuple[Ints, Ints, list[int]]]:
    """Groups of one size, the rows of their candidates (G, N), and the places in `ns` that they can have."""
    sizes = np.diff(starts)
    for size in np.unique(sizes).tolist():
        reached = [k for k, n in enumerate(ns) if n <= size]
        alike = np.flatnonzero(sizes == size)
        step = max(1, _BLOCK_CELLS // max(1, size * len(ns)))
        for first in range(0, len(alike), step):
            groups = alike[first : first + step]
            yield groups, starts[groups][:, None] + np.arange(size), reached


def within(values: Floats, starts: Ints) -> Floats:
    """The variance of each quantity within each group (divided by N - 1; 0 for a group of one), from (P, V) to (G, V)."""
    sizes = np.diff(starts)
    means = np.add.reduceat(values, starts[:-1], axis=0) / sizes[:, None]
    squares = np.add.reduceat((values - np.repeat(means, sizes, axis=0)) ** 2, starts[:-1], axis=0)
    return np.asarray(squares / np.maximum(1, sizes - 1)[:, None])
