"""Every benchmark by its name."""

from __future__ import annotations

from rewardsmith.config import near_miss
from rewardsmith.errors import SettingsError
from rewardsmith.evaluation.benchmarks.choices import REWARDBENCH2, RMB_BEST_OF_N
from rewardsmith.evaluation.benchmarks.items import Benchmark
from rewardsmith.evaluation.benchmarks.pairs import JUDGEBENCH, LLMBAR, PRIOR_SETS, REWARDBENCH, RMB_PAIRS
from rewardsmith.evaluation.benchmarks.proxies import PPE_CORRECTNESS, PPE_PREFERENCE
from rewardsmith.evaluation.benchmarks.styles import RM_BENCH

BENCHMARKS: dict[str, Benchmark] = {
    one.name: one
    for one in (
        REWARDBENCH,
        REWARDBENCH2,
        RM_BENCH,
        RMB_PAIRS,
        RMB_BEST_OF_N,
        JUDGEBENCH,
        LLMBAR,
        PPE_CORRECTNESS,
        PPE_PREFERENCE,
        PRIOR_SETS,
    )
}


def named(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        SettingsError: if there is none, with the nearest name.
    """
    if name not in BENCHMARKS:
        raise SettingsError("a benchmark that is known", repr(name), near_miss(name, list(BENCHMARKS)))
    return BENCHMARKS[name]
