"""PPE, the proxies of RLHF's outcome (arXiv 2410.14872): correctness of 32 samples a question, and human preferences between models.

The definitions are the paper's and were not checked against its authors' code. What the paper leaves open is settled here and said: an
expectation over subsets of samples is exact, not drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import gammaln
from scipy.stats import rankdata

from rewardsmith import metrics
from rewardsmith.data.schema import Group, Preference
from rewardsmith.evaluation.benchmarks.items import (
    Benchmark,
    Item,
    LeftOut,
    Question,
    Scored,
    group_question,
    margins,
    pair_question,
)
from rewardsmith.evaluation.benchmarks.weighing import Leaf, Numbers, Sum, weigh
from rewardsmith.stats import Floats

_SETS = ("mmlu_pro", "math", "gpqa", "ifeval", "mbpp_plus")
_SOURCE = "the PPE paper (arXiv 2410.14872); not checked against its authors' code"


def best_of_k(scores: Floats, gold: Floats) -> Floats:
    """The expected worth of the best-scored of k samples, for k = 1..N, over all subsets of k of the N; shape (N,).

    With the samples in rising order of score, the i-th is the best of a subset in (i-1 over k-1) of (N over k) cases (the estimator of Nakano et al. 2021
    and Gao et al. 2022). Samples of one score share their places, as if ties were broken by lot.

    >>> best_of_k(np.array([0.1, 0.9]), np.array([0.0, 1.0])).tolist()
    [0.5, 1.0]
    """
    size = len(scores)
    order = np.argsort(scores, kind="stable")
    levels = np.unique(scores[order], return_inverse=True)[1]
    worth = (np.bincount(levels, weights=gold[order]) / np.bincount(levels))[levels]
    place, k = np.arange(1, size + 1)[None, :], np.arange(1, size + 1)[:, None]
    possible = place >= k
    below = np.where(possible, place - k, 0)
    log_ways = gammaln(place) - gammaln(k) - gammaln(below + 1)
    log_all = gammaln(size + 1) - gammaln(k + 1) - gammaln(size - k + 1)
    chance = np.where(possible, np.exp(log_ways - log_all), 0.0)  # (K, N)
    return np.asarray(chance @ worth)


def _set_of(text: str) -> str | None:
    words = text.lower().replace("-", "_").replace("mmlu_pro", "mmlupro").replace("mbpp_plus", "mbppplus")
    known = {name.replace("_", ""): name for name in _SETS}
    return next((name for word, name in known.items() if word in words), None)


def _correctness_question(row: Group, label: str) -> Question | LeftOut:
    subset = _set_of(str(row.metadata.get("benchmark") or label))
    if subset is None:
        return LeftOut("neither a column `benchmark` nor the name of the source says which of the five sets it is")
    if not set(row.ratings or ()) <= {0.0, 1.0}:
        return LeftOut("a score that is neither right nor wrong")
    pairs = row.metadata.get("sampled_conflict_pairs") or []
    places = range(len(row.answers))
    whole = all(len(pair) == 2 and all(int(place) in places for place in pair) for pair in pairs)
    if not whole:
        return LeftOut("a pair in `sampled_conflict_pairs` outside the samples")
    drawn = [[int(place) for place in pair] for pair in pairs]
    if any(row.ratings[a] == row.ratings[b] for a, b in drawn):  # type: ignore[index]
        return LeftOut("a pair in `sampled_conflict_pairs` of equal correctness")
    return group_question(row, subset, metadata={"pairs": drawn})


def _pair_margins(item: Item, scores: Floats) -> Floats:
    """Correct minus wrong for each conflict pair: the published ones, or all where the row has none."""
    gold = item.gold
    pairs = item.metadata.get("pairs") or [
        (a, b) for a in range(len(gold)) for b in range(len(gold)) if gold[a] > gold[b]
    ]
    return np.array([scores[a] - scores[b] if gold[a] > gold[b] else scores[b] - scores[a] for a, b in pairs])


def _correlation(left: Floats, right: Floats) -> float:
    """Pearson's; 0 where the scores do not vary, for they say nothing."""
    left, right = left - left.mean(), right - right.mean()
    norm = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / norm if norm > 0 else 0.0


def _correctness_numbers(items: Sequence[Item], scores: Scored, seed: int) -> Numbers:
    leaves: dict[str, Leaf] = {}
    curves: dict[str, Any] = {}
    metrics_of_a_set = ("accuracy", "end score", "loss", "row-wise correlation")
    for name in _SETS:
        rows = np.array([i for i, item in enumerate(items) if item.subset == name], dtype=np.int64)
        mixed = np.array([i for i in rows if len(set(items[i].gold)) == 2], dtype=np.int64)
        gold = {i: np.array(items[i].gold) for i in rows}
        picked = {i: best_of_k(scores[i], gold[i]) for i in rows}
        ideal = {i: best_of_k(gold[i], gold[i]) for i in rows}
        base = np.array([gold[i].mean() for i in rows])
        differences = [_pair_margins(items[i], scores[i]) for i in mixed]
        strict = np.array([(one > 0).mean() for one in differences])
        half = np.array([metrics.wins(one).mean() for one in differences])
        leaves[f"{name}, accuracy"] = Leaf(mixed, strict, half, np.full(len(mixed), 0.5))
        end = np.array([picked[i][-1] for i in rows])
        leaves[f"{name}, end score"] = Leaf(rows, end, end, base)
        # For right and wrong alone the squared gap to the best of the subset is the gap itself.
        loss = np.array([(ideal[i] - picked[i]).mean() for i in rows])
        blind = np.array([(ideal[i] - gold[i].mean()).mean() for i in rows])
        leaves[f"{name}, loss"] = Leaf(rows, loss, loss, blind)
        related = np.array([_correlation(scores[i], gold[i]) for i in mixed])
        zeros = np.zeros(len(mixed))
        leaves[f"{name}, row-wise correlation"] = Leaf(mixed, related, related, zeros, low=-1.0, high=1.0)
        if len(rows) and len({len(gold[i]) for i in rows}) == 1:
            curves[name] = {
                "picked": np.mean([picked[i] for i in rows], axis=0).tolist(),
                "ideal": np.mean([ideal[i] for i in rows], axis=0).tolist(),
                "chance": float(base.mean()),
            }
    sums = {metric: Sum({f"{name}, {metric}": 1.0 for name in _SETS}) for metric in metrics_of_a_set}
    found = weigh(leaves, sums, [item.cluster for item in items], seed)
    for name, curve in curves.items():
        found.published[f"{name}, maximum"] = max(curve["picked"])
    if len(curves) == len(_SETS):
        found.published["maximum"] = float(np.mean([max(curve["picked"]) for curve in curves.values()]))
    found.curves = {"best of k": curves}
    return found


PPE_CORRECTNESS = Benchmark(
    name="ppe-correctness",
    definition="per set: accuracy on the sampled pairs of a right and a wrong answer; the best-of-k curve with its maximum, its end and its mean gap to the ideal (loss); "
    "the correlation of scores and correctness within a question. Each is the plain mean of the five sets",
    rule="an exact tie in a pair is wrong; in a best-of-k, ties are broken by lot (their expectation is taken)",
    source=_SOURCE,
    headline="accuracy",
    needed="rows with `response_1`, `response_2`, ... and a list `scores` of right and wrong, of a source (or with a column `benchmark`) that names MMLU-Pro, MATH, GPQA, IFEval or MBPP-Plus",
    kind=Group,
    formats=("ppe-best-of-k",),
    subsets=dict.fromkeys(_SETS),
    totals=(2555,),
    question=_correctness_question,
    numbers=_correctness_numbers,
    hub_split="train",
)

# Human preferences. What compares models needs their names and enough battles; what cannot be computed is withheld with its reason.

_RESAMPLES = 200


def _preference_question(row: Preference, label: str) -> Question | LeftOut:
    models = [row.metadata.get(f"{side}_model") for side in ("chosen", "rejected")]
    gold = (0.5, 0.5) if row.tie else (1.0, 0.0)
    return pair_question(row, "battles", gold=gold, metadata={"models": models})


def _preference_numbers(items: Sequence[Item], scores: Scored, seed: int) -> Numbers:
    found = margins(scores)
    decided = np.array([i for i, item in enumerate(items) if item.gold[0] != item.gold[1]], dtype=np.int64)
    strict, half = (found > 0).astype(np.float64), metrics.wins(found)
    leaf = Leaf(decided, strict[decided], half[decided], np.full(len(decided), 0.5))
    clusters = [item.cluster for item in items]
    numbers = weigh({"accuracy": leaf}, {}, clusters, seed)
    _compare_models(numbers, items, half, clusters, seed)
    return numbers


def _compare_models(
    numbers: Numbers, items: Sequence[Item], judged: Floats, clusters: Sequence[str], seed: int
) -> None:
    """Numbers on models: do the scores see the same win rates as people, and can they tell models apart?"""
    named = [i for i, item in enumerate(items) if all(item.metadata.get("models") or ())]
    models = sorted({model for i in named for model in items[i].metadata["models"]})
    wanted = ("row-wise correlation", "spearman", "separability")
    if len(models) < 3:
        numbers.withheld |= dict.fromkeys(wanted, f"fewer than three named models ({len(models)})")
        return
    place = {model: number for number, model in enumerate(models)}
    first = np.array([place[items[i].metadata["models"][0]] for i in named])
    second = np.array([place[items[i].metadata["models"][1]] for i in named])
    ours, theirs = judged[named], np.array([items[i].gold[0] for i in named])
    rows = [_row_correlation(number, first, second, ours, theirs, len(models)) for number in range(len(models))]
    known = [value for value in rows if value is not None]
    if known:
        numbers.published["row-wise correlation"] = float(np.mean(known))
        numbers.curves["models whose row could be correlated"] = len(known)
    else:
        numbers.withheld["row-wise correlation"] = "no model has three opponents with win rates that vary"
    one = np.ones((1, len(named)))
    rates = [_win_rates(one, first, second, wins, len(models))[0] for wins in (ours, theirs)]
    numbers.published["spearman"] = _correlation(rankdata(rates[0]), rankdata(rates[1]))
    numbers.published["separability"] = _separability(first, second, ours, [clusters[i] for i in named], models, seed)
    numbers.curves["win rates"] = {
        model: {"scores": float(rates[0][i]), "people": float(rates[1][i])} for model, i in place.items()
    }


def _row_correlation(
    model: int, first: Any, second: Any, ours: Floats, theirs: Floats, num_models: int
) -> float | None:
    """Pearson's of one row of the matrix of win rates; None with fewer than three opponents, or where people's rates do not vary."""
    opponents = np.concatenate([second[first == model], first[second == model]])
    count = np.bincount(opponents, minlength=num_models)
    met = count > 0
    if met.sum() < 3:
        return None
    mine, people = (
        np.bincount(
            opponents,
            weights=np.concatenate([wins[first == model], 1 - wins[second == model]]),
            minlength=num_models,
        )[met]
        / count[met]
        for wins in (ours, theirs)
    )
    return _correlation(mine, people) if np.ptp(people) > 0 else None


def _win_rates(weights: Floats, first: Any, second: Any, wins: Floats, num_models: int) -> Floats:
    """Each model's share of won battles, ties one half, under weights of the battles; (R, n) -> (R, models)."""
    sides = np.eye(num_models)
    won = (weights * wins) @ sides[first] + (weights * (1 - wins)) @ sides[second]
    played = weights @ sides[first] + weights @ sides[second]
    return np.asarray(won / np.maximum(played, 1.0))


def _separability(
    first: Any, second: Any, wins: Floats, clusters: Sequence[str], models: Sequence[str], seed: int
) -> float:
    """The share of pairs of models whose 95 % intervals of the win rate do not overlap (percentiles over resampled prompts)."""
    codes = np.unique(np.array(clusters), return_inverse=True)[1]
    size = int(codes.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=_RESAMPLES)
    rates = _win_rates(drawn[:, codes].astype(np.float64), first, second, wins, len(models))
    low, high = np.quantile(rates, [0.025, 0.975], axis=0)
    pairs = list(itertools.combinations(range(len(models)), 2))
    return float(np.mean([high[a] < low[b] or high[b] < low[a] for a, b in pairs]))


def _preference_note(items: Sequence[Item]) -> str:
    ties = sum(item.gold[0] == item.gold[1] for item in items)
    return f"{ties:,} battles that people called a tie stand outside accuracy, and count one half in win rates"


PPE_PREFERENCE = Benchmark(
    name="ppe-preference",
    definition="accuracy on battles with a winner; over models: the correlation of a model's win rates against its opponents (row-wise), Spearman's of the models' "
    "win rates, and the share of pairs of models whose intervals do not overlap (separability)",
    rule="an exact tie is wrong in accuracy and one half in win rates",
    source=_SOURCE,
    headline="accuracy",
    needed="rows with `prompt`, `response_1`, `response_2` and `winner`, or battles with `conversation_a` and `conversation_b`",
    kind=Preference,
    formats=("ppe-preference", "arena", "arena-table"),
    subsets={"battles": 16038},
    question=_preference_question,
    numbers=_preference_numbers,
    hub_split="test",
    note=_preference_note,
)
