"""Simulated pools: what each candidate is worth is known, and so is every proxy's error."""

import numpy as np

from rewardsmith.auditing.pools import Candidate, Candidates, Pool


class Simulated:
    """Candidates with normal worth, and proxies that see it with an error; scorers look a candidate up."""

    def __init__(self, errors, *, num_groups=60, num_candidates=16, seed=0, lengths=False):
        """`errors(rng, shape)` gives the errors of the proxies, one row a proxy."""
        rng = np.random.default_rng(seed)
        worth = rng.normal(size=(num_groups, num_candidates))
        seen = worth[None] + errors(rng, worth.shape)
        self.table = {}
        groups = []
        for g in range(num_groups):
            answers = []
            for i in range(num_candidates):
                answer = f"answer {g} {i}" + "x" * (int(rng.integers(0, 30)) if lengths else 0)
                self.table[answer] = [worth[g, i], *seen[:, g, i]]
                answers.append(Candidate(answer, label=float(worth[g, i])))
            groups.append(Candidates(f"g{g}", f"prompt {g}", tuple(answers)))
        self.pool = Pool(groups)
        self.num_proxies = len(seen)

    def gold(self, prompt, answer):
        return self.table[answer][0]

    def proxy(self, k):
        return lambda prompt, answer: self.table[answer][k + 1]

    @property
    def proxies(self):
        return {f"m{k}": self.proxy(k) for k in range(self.num_proxies)}


def heavy_tailed(num_proxies=1, *, scale=0.4, freedom=1.5):
    """Errors of Student's t: the more candidates, the more the largest error decides, and gold falls again."""
    return lambda rng, shape: scale * rng.standard_t(freedom, size=(num_proxies, *shape))


def normal(num_proxies=1, *, scale=1.0):
    """Errors under which gold rises without end."""
    return lambda rng, shape: scale * rng.normal(size=(num_proxies, *shape))


def none(rng, shape):
    """A perfect proxy."""
    return np.zeros((1, *shape))
