"""The public benchmarks of reward models, each by its authors' own rule from one table of scores, with an honest version beside it."""

from rewardsmith.evaluation.benchmarks.judging import BenchmarkResult, judge, recompute
from rewardsmith.evaluation.benchmarks.registry import BENCHMARKS, named
from rewardsmith.evaluation.benchmarks.table import benchmark_table

__all__ = ["BENCHMARKS", "BenchmarkResult", "benchmark_table", "judge", "named", "recompute"]
