"""Benchmarks of pairs: RewardBench 1, RMB's pairs, JudgeBench, LLMBar and the prior preference sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewardsmith import metrics
from rewardsmith.data.schema import Preference
from rewardsmith.evaluation.benchmarks.items import (
    Benchmark,
    Item,
    LeftOut,
    Question,
    Scored,
    margins,
    pair_question,
)
from rewardsmith.evaluation.benchmarks.rmb_scenarios import GOALS, goal_of, scenario_of
from rewardsmith.evaluation.benchmarks.weighing import Leaf, Numbers, Pooled, Sum, weigh
from rewardsmith.stats import Floats

STRICT = "an exact tie is wrong: only a strictly higher score of the better answer counts"


def leaves_by_subset(items: Sequence[Item], names: Sequence[str], published: Floats, honest: Floats) -> dict[str, Leaf]:
    """One leaf a subset; a scorer that knows nothing gets one half of every pair."""
    subsets = np.array([item.subset for item in items])
    found = {}
    for name in names:
        rows = np.flatnonzero(subsets == name)
        found[name] = Leaf(rows, published[rows], honest[rows], np.full(len(rows), 0.5))
    return found


def _strict(items: Sequence[Item], scores: Scored, names: Sequence[str]) -> dict[str, Leaf]:
    found = margins(scores)
    return leaves_by_subset(items, names, (found > 0).astype(np.float64), metrics.wins(found))


def _clusters(items: Sequence[Item]) -> list[str]:
    return [item.cluster for item in items]


# RewardBench 1: rewardbench/constants.py (sections, counts), scripts/run_rm.py (strict comparison), rewardbench/utils.py::calculate_scores_per_section,
# analysis/get_benchmark_results.py (prior sets and the weights of the paper's average).

_SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 250,
        "xstest-should-respond": 154,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,  # 447 pairs, weighted as many as all pairs of code together
        **dict.fromkeys(("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"), 164),
    },
}
# Rows of the file where they are not the weights: the authors' weights of the two XSTest subsets are exchanged.
_ACTUAL = {"math-prm": 447, "xstest-should-refuse": 154, "xstest-should-respond": 250}
_PRIOR = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
_OTHER_PRIOR = ("anthropic_harmless", "mtbench_gpt4", "mtbench_human")
_PRIOR_MEAN = "prior sets"


def _prior_numbers(items: Sequence[Item], scores: Scored, seed: int) -> Numbers:
    leaves = _strict(items, scores, (*_PRIOR, *_OTHER_PRIOR))
    return weigh(leaves, {_PRIOR_MEAN: Sum(dict.fromkeys(_PRIOR, 1.0))}, _clusters(items), seed)


def _rewardbench_numbers(items: Sequence[Item], scores: Scored, seed: int) -> Numbers:
    core = [name for counts in _SECTIONS.values() for name in counts]
    leaves = _strict(items, scores, (*core, *_PRIOR))
    sums: dict[str, Sum | Pooled] = {
        section: Sum({name: float(count) for name, count in counts.items()}) for section, counts in _SECTIONS.items()
    }
    sums["leaderboard"] = Sum(dict.fromkeys(_SECTIONS, 1.0))
    if any(len(leaves[name].rows) for name in _PRIOR):
        sums[_PRIOR_MEAN] = Sum(dict.fromkeys(_PRIOR, 1.0))
        sums["paper"] = Sum({**dict.fromkeys(_SECTIONS, 2.0), _PRIOR_MEAN: 1.0})
    return weigh(leaves, sums, _clusters(items), seed)


def _by_column(row: Preference, known: Sequence[str]) -> Question | LeftOut:
    subset = row.metadata.get("subset")
    if subset not in known:
        return LeftOut(f"subset {subset!r} is not of this benchmark")
    return pair_question(row, str(subset))


def _rewardbench_question(row: Preference, label: str) -> Question | LeftOut:
    known = (*(name for counts in _SECTIONS.values() for name in counts), *_PRIOR)
    return _by_column(row, known)


REWARDBENCH = Benchmark(
    name="rewardbench",
    definition="a section is the mean of its subsets weighted by their pairs (math-prm as 984), the leaderboard the mean of the four sections; "
    "the paper's average weighs the prior sets, where they are there, half a section",
    rule=STRICT,
    source="allenai/reward-bench: rewardbench/constants.py, rewardbench/utils.py, scripts/run_rm.py, analysis/get_benchmark_results.py",
    headline="leaderboard",
    needed="pairs with a column `subset` that names one of RewardBench's 23 subsets",
    kind=Preference,
    formats=("native",),
    subsets={name: _ACTUAL.get(name, count) for counts in _SECTIONS.values() for name, count in counts.items()}
    | dict.fromkeys(_PRIOR),
    optional=_PRIOR,
    question=_rewardbench_question,
    numbers=_rewardbench_numbers,
    hub_split="filtered",
)

# The prior sets of RewardBench 1 (allenai/pref-test-sets, one split a set), and the sets they were drawn from.

_PRIOR_BY_FORMAT = {"shp": "shp", "summarize": "summarize"}


def _prior_question(row: Preference, label: str) -> Question | LeftOut:
    known = (*_PRIOR, *_OTHER_PRIOR)
    subset = row.metadata.get("subset")
    if subset not in known:  # a column of that name inside a set (of HHH) is not the set
        subset = prior_set_of(label)
    if subset is None:
        return LeftOut("neither a column `subset` nor the file or split names a prior set")
    if row.tie:
        return LeftOut("labelled a tie")
    return pair_question(row, subset)


def prior_set_of(label: str) -> str | None:
    """The prior set that a file, a split or a hub name stands for, by the words in it."""
    text = label.lower().replace("-", "_")
    words = {"hhh": "anthropic_hhh", "harmless": "anthropic_harmless", "helpful": "anthropic_helpful", "shp": "shp"}
    words |= {"summar": "summarize", "mtbench_gpt4": "mtbench_gpt4", "mtbench_human": "mtbench_human"}
    return next((name for word, name in words.items() if word in text), None)


PRIOR_SETS = Benchmark(
    name="prior-sets",
    definition="accuracy of each set, and the mean of Anthropic Helpful, Anthropic HHH, SHP and Summarize; Harmless and MT-Bench stand outside the mean",
    rule=STRICT,
    source="allenai/reward-bench: scripts/run_rm.py --pref_sets, analysis/get_benchmark_results.py",
    headline=_PRIOR_MEAN,
    needed="pairs whose column `subset`, file or split names one of anthropic_helpful, anthropic_harmless, anthropic_hhh, shp, summarize, mtbench_human, mtbench_gpt4",
    kind=Preference,
    formats=("native", "hh", "shp", "summarize-from-feedback", "trl-implicit"),
    subsets=dict.fromkeys((*_PRIOR, *_OTHER_PRIOR)),
    optional=_OTHER_PRIOR,
    question=_prior_question,
    numbers=_prior_numbers,
)

# RMB: eval/scripts/my_run_rm.py (strict, and one mean over all files of a folder).

RMB_MEAN = "mean of both goals"


def rmb_sums(scenarios: Sequence[str]) -> dict[str, Sum | Pooled]:
    """Goals pooled over their scenarios, as the authors' script does over a folder; then their mean, and all items together."""
    sums: dict[str, Sum | Pooled] = {
        goal: Pooled(tuple(name for name in scenarios if goal_of(name) == goal)) for goal in GOALS
    }
    sums[RMB_MEAN] = Sum(dict.fromkeys(GOALS, 1.0))
    sums["all items"] = Pooled(tuple(scenarios))
    return sums


def _rmb_numbers(items: Sequence[Item], scores: Scored, seed: int) -> Numbers:
    scenarios = sorted({item.subset for item in items})
    leaves = _strict(items, scores, scenarios)
    return weigh(leaves, rmb_sums(scenarios), _clusters(items), seed)


def _rmb_question(row: Preference, label: str) -> Question | LeftOut:
    scenario = scenario_of(row.metadata)
    if scenario is None:
        return LeftOut("no scenario of RMB in `category_path` or `subset`")
    return pair_question(row, scenario)


# JudgeBench: utils/judges.py (reward models answer A>B if A scores higher, else B>A), utils/metrics.py, run_judge.py (the four groups of sources, and all).

_JUDGEBENCH = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
_OTHER_SOURCE = "other sources"


def _judgebench_question(row: Preference, label: str) -> Question | LeftOut:
    if row.tie:
        return LeftOut("labelled a tie (A=B)")
    source = str(row.metadata.get("source", ""))
    subset = next((name for name in _JUDGEBENCH if source.startswith(name)), _OTHER_SOURCE)
    metadata = {
        "better_is_b": row.metadata.get("shown_first") == "rejected",
        "answered_by": row.metadata.get("chosen_model"),
    }
    return pair_question(row, subset, metadata=metadata)


def _judgebench_numbers(items: Sequence[Item], scores: Scored, seed: int) -> Numbers:
    found = margins(scores)
    second = np.array([bool(item.metadata.get("better_is_b")) for item in items])
    right = np.where(found == 0, second, found > 0).astype(np.float64)
    names = [*_JUDGEBENCH, *({_OTHER_SOURCE} & {item.subset for item in items})]
    leaves = leaves_by_subset(items, names, right, metrics.wins(found))
    sums: dict[str, Sum | Pooled] = {"micro": Pooled(tuple(names)), "macro": Sum(dict.fromkeys(_JUDGEBENCH, 1.0))}
    return weigh(leaves, sums, _clusters(items), seed)


def _judgebench_note(items: Sequence[Item]) -> str:
    models = sorted({str(item.metadata.get("answered_by")) for item in items})
    if len(models) < 2:
        return ""
    return f"pairs of {', '.join(models)} are taken together; the leaderboard has one table for each"


JUDGEBENCH = Benchmark(
    name="judgebench",
    definition="micro: the share of all pairs, as the authors print under Overall; macro: the mean of the four groups of sources, which others report",
    rule="an exact tie is the verdict B>A: right where B is the better answer, wrong where A is",
    source="ScalerLab/JudgeBench: utils/judges.py, utils/metrics.py, run_judge.py --single_game",
    headline="micro",
    needed="rows with `question`, `response_A`, `response_B`, `label` and `source`",
    kind=Preference,
    formats=("judgebench",),
    subsets=dict.fromkeys(_JUDGEBENCH),
    totals=(350, 270),
    question=_judgebench_question,
    numbers=_judgebench_numbers,
    hub_split="gpt",
    note=_judgebench_note,
)

# LLMBar: LLMEvaluator/evaluate.py. A rating evaluator's tie gives the answer shown first in one order and the other one in the other: half of `correct_average`.

_LLMBAR = {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}


def _llmbar_question(row: Preference, label: str) -> Question | LeftOut:
    words = f"{row.metadata.get('subset') or label}".lower()
    subset = next((name for name in _LLMBAR if name.lower() in words), None)
    if subset is None:
        return LeftOut("neither a column `subset` nor the path names a subset of LLMBar")
    return pair_question(row, subset)


def _llmbar_numbers(items: Sequence[Item], scores: Scored, seed: int) -> Numbers:
    won = metrics.wins(margins(scores))
    adversarial = tuple(_LLMBAR)[1:]
    sums: dict[str, Sum | Pooled] = {
        "Adversarial": Sum(dict.fromkeys(adversarial, 1.0)),
        "average": Sum(dict.fromkeys(_LLMBAR, 1.0)),
        "all items": Pooled(tuple(_LLMBAR)),
    }
    return weigh(leaves_by_subset(items, tuple(_LLMBAR), won, won), sums, _clusters(items), seed)


LLMBAR = Benchmark(
    name="llmbar",
    definition="accuracy of Natural and of the four Adversarial subsets, the mean of these four, and the mean of all five; `all items` weighs by instances",
    rule="an exact tie is one half: right in one order of the two answers and wrong in the other",
    source="princeton-nlp/LLMBar: LLMEvaluator/evaluate.py (the rule of its rating evaluators); the means as the paper's table has them",
    headline="average",
    needed="rows with `input`, `output_1`, `output_2` and `label` in files or a column `subset` named Natural, Neighbor, GPTInst, GPTOut or Manual",
    kind=Preference,
    formats=("llmbar",),
    subsets=_LLMBAR,
    question=_llmbar_question,
    numbers=_llmbar_numbers,
    files=("dataset.json",),
)

RMB_PAIRS = Benchmark(
    name="rmb-pairs",
    definition="accuracy of each goal over all its pairs, and the mean of both goals; the paper's overall number is the mean of these two and of the two of rmb-best-of-n",
    rule=STRICT,
    source="Zhou-Zoey/RMB-Reward-Model-Benchmark: eval/scripts/my_run_rm.py",
    headline=RMB_MEAN,
    needed="pairs of RMB with `category_path`, or with `goal` and `subset`",
    kind=Preference,
    formats=("rmb-pairs", "native"),
    subsets=dict.fromkeys(name for names in GOALS.values() for name in names),
    question=_rmb_question,
    numbers=_rmb_numbers,
)
