"""How time and memory grow with the number of pairs: training and scoring (MiniLM) at so many pairs and at four times as many.

Run: python benchmarks/growth.py [--train-pairs 32] [--score-pairs 40] [--out benchmarks/results/growth.json]

The smaller set has one pair of each four of like length of the larger one, so that it has a quarter of the tokens, nearly. The exponent is log(time at four times the
pairs / time) / log(4), of the same round; the ratio 1.05 / exponent is at least 1 where time grows no faster than pairs^1.05. Memory is the most that the process ever
held; its ratio is 1.1 / (memory at four times the pairs / memory).
"""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.checks import Check, same_count
from harness.record import Row, row
from harness.rounds import Report, in_turns, speed
from harness.script import PACKAGES, options, process, run, wanted

TIMES, BATCH, MAX_LENGTH = 4, 16, 512
MOST_EXPONENT, MOST_MEMORY = 1.05, 1.1
# Tokens of the larger set over those of the smaller one, over four: within this of 1.
_TOKENS_APART = 0.02
SMALL, LARGE = "pairs", "four times the pairs"


def measure(asked: argparse.Namespace, folder: Path) -> list[Row]:
    """Two rows of training, two of scoring."""
    from harness.work import pairs_that_fit, same_length_quarter, save_start, write_ours

    start = save_start("minilm", folder / "start", encoding="text", max_length=MAX_LENGTH)
    rows = []
    jobs = {
        "growth": ("ours.train", asked.train_pairs, "bf16", "training"),
        "growth_scoring": ("ours.score", asked.score_pairs, "float32", "scoring"),
    }
    for name, (job, count, precision, verb) in jobs.items():
        if not (wanted(asked, name) or wanted(asked, f"{name}_memory")):
            continue
        large = pairs_that_fit(asked.data / "rmb_train.jsonl.gz", start, TIMES * count)
        sets = {SMALL: same_length_quarter(large, start), LARGE: large}
        settings = {
            "device": "cpu",
            "precision": precision,
            "start": str(start.folder),
            "model": str(start.folder),
            "batch_size": BATCH,
            "rounds": asked.rounds + 1,
            "epochs": 1,
        }
        with ExitStack() as stack:
            running = {
                size: stack.enter_context(
                    process(
                        asked,
                        folder,
                        size,
                        job,
                        **settings,
                        data=write_ours(pairs, folder / f"{name}_{len(pairs)}.jsonl"),
                    )
                )
                for size, pairs in sets.items()
            }
            reports = in_turns(running, asked.rounds)
        work = f"MiniLM, {verb}, {count} and {TIMES * count} pairs of rmb_train, at most {MAX_LENGTH} tokens"
        rows += _rows(asked, name, work, precision, reports)
    return rows


def _rows(
    asked: argparse.Namespace, name: str, work: str, precision: str, reports: dict[str, list[Report]]
) -> list[Row]:
    what = next(iter(reports[SMALL][0]["work"]))
    times = [b["seconds"] / a["seconds"] for a, b in zip(reports[SMALL], reports[LARGE], strict=True)]
    exponents = [math.log(one) / math.log(TIMES) for one in times]
    peaks = {size: own[-1]["peak_bytes"] / 2**30 for size, own in reports.items()}
    common: dict[str, Any] = {
        "target": 1.0,
        "theirs": None,
        "checks": _checks(reports, what),
        "precision": precision,
        "packages": PACKAGES,
    }
    found = []
    if wanted(asked, name):
        ours = {**speed(reports[LARGE], what), "exponents": [round(one, 3) for one in exponents]}
        found.append(row(name, work=work, ratios=[MOST_EXPONENT / one for one in exponents], ours=ours, **common))
    if wanted(asked, f"{name}_memory"):
        ours = {"peak_gib": round(peaks[LARGE], 3), "peak_gib_at_a_quarter": round(peaks[SMALL], 3)}
        ratio = MOST_MEMORY / (peaks[LARGE] / peaks[SMALL])
        found.append(row(f"{name}_memory", work=work, ratios=[ratio], ours=ours, **common))
    return found


def _checks(reports: dict[str, list[Report]], what: str) -> list[Check]:
    """Four times the pairs, and four times the tokens within two percent, in every round."""
    counts = {
        size: {(report["work"][what], report["work"]["tokens"]) for report in own} for size, own in reports.items()
    }
    steady = all(len(found) == 1 for found in counts.values())
    (small, small_tokens), (large, large_tokens) = (sorted(counts[size])[0] for size in (SMALL, LARGE))
    tokens = large_tokens / small_tokens / TIMES
    return [
        Check("the same counts in all rounds", steady, {size: sorted(found) for size, found in counts.items()}),
        same_count("four times as many", {"expected": TIMES * small, "found": large}),
        Check("four times the tokens", abs(tokens - 1) < _TOKENS_APART, round(TIMES * tokens, 3)),
    ]


def main() -> int:
    """Measure, print one JSON line a row."""
    parser = options(__doc__)
    parser.add_argument("--train-pairs", type=int, default=32, help="pairs of the smaller training set")
    parser.add_argument("--score-pairs", type=int, default=40, help="pairs of the smaller set to score")
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
