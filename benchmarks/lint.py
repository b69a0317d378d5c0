"""How fast `rewardsmith lint` reads, how much memory it takes, and how both grow: synthetic pairs of about 1 KB a side, one JSON line a row of the table.

Run: python benchmarks/lint.py [--rows 1000000] [--out benchmarks/results/lint.json]

Every measurement is the command line itself in a fresh process, its memory the sum over all its processes. No other tool lints preference data; where two ways of
doing one part exist (MinHash of datasketch), both do it on the same texts, in turns. A ratio is rate over target, or ours over theirs; higher is better.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from harness import record

EXACT_TARGET, NEAR_TARGET, MEMORY_TARGET, GROWTH_TARGET = 8_000, 1_500, 1.5, 4.4
PLANTED = 0.01
PACKAGES = ("datasketch", "ftfy", "joblib", "numpy", "rensa", "xxhash")


def main() -> None:
    """Write the data, measure, print one JSON line a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large = folder / "small.jsonl", folder / "large.jsonl"
        planted = write_pairs(large, asked.rows)
        head(large, small, asked.rows // 4)
        rows = speed(small, large, asked.rows, planted)
        if find_spec("datasketch"):
            rows.append(minhash(large))
        else:
            print("no datasketch to compare with: pip install '.[bench]'", file=sys.stderr)
    record.publish(rows, asked.out)


def write_pairs(path: Path, rows: int) -> int:
    """Pairs of eleven sentences a side; one in a hundred repeats an earlier one. Returns how many do."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 10, 20_000)]
    sentences = [" ".join(words[i] for i in rng.integers(0, len(words), 14)) + "." for _ in range(50_000)]
    repeats = rng.random(rows) < PLANTED
    repeats[0] = False
    lines: list[str] = []
    with open(path, "w", encoding="utf-8") as file:
        for i in range(rows):
            if repeats[i]:
                line = lines[int(rng.integers(len(lines)))] if lines else ""
            if not repeats[i] or not line:
                at = rng.integers(0, len(sentences), 24)
                texts = [" ".join(sentences[j] for j in at[a:b]) for a, b in ((0, 2), (2, 13), (13, 24))]
                line = f'{{"prompt": "{texts[0]}", "chosen": "{texts[1]}", "rejected": "{texts[2]}", "source": "{"abc"[i % 3]}"}}\n'
                if len(lines) < 5_000:
                    lines.append(line)
            file.write(line)
    return int(repeats.sum())


def head(source: Path, target: Path, rows: int) -> None:
    """The first rows of a file."""
    with open(source, "rb") as file, open(target, "wb") as out:
        out.writelines(line for _, line in zip(range(rows), file, strict=False))


def speed(small: Path, large: Path, rows: int, planted: int) -> list[dict[str, Any]]:
    """Rates at full size with and without near duplicates, memory, and time at four times the rows over time at once."""
    measured = {}
    for near in (False, True):
        for path in (small, large):
            measured[near, path] = lint(path, near=near)
    found = []
    for near, target in ((False, EXACT_TARGET), (True, NEAR_TARGET)):
        at_once, at_four = measured[near, small], measured[near, large]
        name = "all rules with near duplicates" if near else "all exact rules"
        rate = rows / at_four["seconds"]
        same = at_four["exact_duplicates"] == planted
        ours = {"pairs_per_second": round(rate), "seconds": round(at_four["seconds"], 1), "pairs": rows}
        found.append(row(f"lint: {name}, pairs a second", rate / target, target, ours, same))
        memory = at_four["peak_gib"]
        ours = {"peak_gib": round(memory, 3), "pairs": rows}
        found.append(row(f"lint: {name}, memory", MEMORY_TARGET / memory, MEMORY_TARGET, ours, same))
        growth = at_four["seconds"] / at_once["seconds"]
        ours = {"time_at_4x_rows_over_time_at_1x": round(growth, 2), "seconds_at_1x": round(at_once["seconds"], 1)}
        found.append(row(f"lint: {name}, growth", GROWTH_TARGET / growth, GROWTH_TARGET, ours, same))
    return found


def lint(path: Path, *, near: bool) -> dict[str, Any]:
    """One run of the command, its wall time and the peak of all its processes' memory (shared pages counted once: PSS)."""
    command = [sys.executable, "-m", "rewardsmith", "lint", str(path), "--json", *(() if near else ("--no-near",))]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        peak = 0
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, memory_of(watched))
            time.sleep(1)  # to add up shared pages takes a tenth of a second
        seconds = time.perf_counter() - start
        assert process.stdout is not None
        document = json.loads(process.stdout.read())
    counts = {one["rule"]: one["count"] for one in document["findings"]}
    return {"seconds": seconds, "peak_gib": peak / 2**30, "exact_duplicates": counts.get("exact_duplicate", 0)}


def memory_of(process: psutil.Process) -> int:
    """Proportional set size of a process and its children, bytes; those that have just ended count nothing."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            try:
                total += one.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                continue
    except psutil.NoSuchProcess:
        pass
    return total


def minhash(source: Path) -> dict[str, Any]:
    """Our signatures (word hashes in numpy, minima by rensa) beside datasketch's on the same word triples; single process, in turns."""
    import datasketch
    import xxhash

    from rewardsmith.data import near

    with open(source, encoding="utf-8") as file:
        texts = [json.loads(line)["chosen"] for _, line in zip(range(1000), file, strict=False)]

    def ours() -> Any:
        return near.minima(texts)

    def theirs() -> Any:
        signatures = []
        for text in texts:
            words = near.words(text)
            minhash = datasketch.MinHash(near.NUM_MINIMA, hashfunc=xxhash.xxh32_intdigest)
            minhash.update_batch([b" ".join(words[i : i + 3]) for i in range(len(words) - 2)])
            signatures.append(minhash.hashvalues)
        return np.array(signatures)

    ratios, last = [], {}
    for _ in range(5):
        taken = {}
        for name, run in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            last[name] = run()
            taken[name] = time.perf_counter() - start
        ratios.append(taken["theirs"] / taken["ours"])
    # Both estimate the same similarities: of each text with the same text after a few words were changed.
    same = signatures_agree(texts, last["theirs"], near)
    per_second = {name: round(len(texts) / taken[name]) for name in taken}
    found = row("MinHash signatures, texts a second", float(np.median(ratios)), 1.0, per_second["ours"], same)
    found["ratio"] |= {"min": round(min(ratios), 2), "max": round(max(ratios), 2)}
    return found | {"theirs": {"datasketch": per_second["theirs"]}}


def signatures_agree(texts: list[str], theirs: Any, near: Any) -> bool:
    """Whether both estimates of the similarity of neighbouring texts agree on the average (they are unrelated: near 0)."""
    ours = near.minima(texts)
    estimates = [(one[1:] == one[:-1]).mean() for one in (ours, theirs)]
    return bool(abs(estimates[0] - estimates[1]) < 0.01)


def row(name: str, ratio: float, target: float, ours: Any, same: bool) -> dict[str, Any]:
    """One row of the results."""
    return {
        "benchmark": name,
        "ratio": {"median": round(ratio, 2), "min": round(ratio, 2), "max": round(ratio, 2)},
        "target": target,
        "ours": ours,
        "theirs": None,
        "same_work": same,
        "precision": "exact",
        **record.environment(PACKAGES),
    }


if __name__ == "__main__":
    main()
