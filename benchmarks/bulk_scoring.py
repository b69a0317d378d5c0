"""Bulk scoring on Ray Data, two actors on this machine, beside two plain `rewardsmith score` processes on half of the rows each; and the memory of a plain one.

Run: python benchmarks/bulk_scoring.py [--rows 200000] [--round-rows 40000] [--memory-rows 100000] [--out benchmarks/results/bulk_scoring.json]

Both sides are whole commands over Parquet shards, with a tiny random encoder, rows of 32 tokens and one thread for each process. The ratio is of the time from the first row
to the last, so that starting Ray and loading models is outside; `whole_command` holds the same ratio with all of it inside. Once, `--rows` rows are scored while a worker is
killed in the middle: each id must be there once, each score as the plain command gives it.
Memory is the most that the process of a plain `score` ever held, at `--memory-rows` rows and at ten times as many; its ratio is 1.1 / (memory at ten times the rows / memory).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.checks import SCORE_TOLERANCE, Check, same_scores
from harness.record import Row, row, spread
from harness.rounds import Report, in_turns, ratios, same_work, say, speed
from harness.script import options, require, run, wanted

PACKAGES = ("ray", "torch", "transformers", "tokenizers", "pyarrow", "numpy")
OURS, THEIRS = "rewardsmith score --ray local", "two plain rewardsmith score"
TOKENS, SHARDS, ACTORS = 32, 10, 2
MOST_MEMORY = 1.1
# Each is one token of the encoder's tokenizer; the template takes 12 of a row's 32.
WORDS = "time year people way day man thing woman life child world school state family student group country problem hand part place case week company".split()
_PROMPT_WORDS, _ANSWER_WORDS = 8, 12


def measure(asked: argparse.Namespace, folder: Path) -> list[Row]:
    """Both rows."""
    require("ray", "bulk scoring")
    model = _encoder(folder)
    rows = []
    if wanted(asked, "bulk_scoring"):
        rows.append(_bulk(asked, model, folder))
    if wanted(asked, "bulk_memory"):
        rows.append(_memory(asked, model, folder))
    return rows


def _encoder(folder: Path) -> Path:
    """A reward model with random weights and a real tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from harness.work import save_start
    from rewardsmith.model.bundled import minilm

    tokenizer = AutoTokenizer.from_pretrained(str(minilm()))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return save_start(str(folder / "base"), folder / "model", encoding="text", max_length=64).folder


def _write_rows(count: int, folder: Path, *, shards: int = SHARDS) -> Path:
    """Distinct rows in Parquet shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = random.Random(0)
    folder.mkdir()
    size = -(-count // shards)
    for start in range(0, count, size):
        rows = [
            {
                "id": f"r{i}",
                "prompt": " ".join(chance.choices(WORDS, k=_PROMPT_WORDS)),
                "answer": " ".join(chance.choices(WORDS, k=_ANSWER_WORDS)),
            }
            for i in range(start, min(count, start + size))
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"shard-{start // size:03d}.parquet")
    return folder


def _start(model: Path, data: Path | str, out: Path, *more: str) -> subprocess.Popen[str]:
    source = Path(__file__).resolve().parents[1] / "src"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    words = ["score", str(model), str(data), "--out", str(out), "--threads", "1", "--json", "--overwrite", *more]
    command = [sys.executable, "-W", "ignore", "-m", "rewardsmith", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def _end(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate()
    if process.returncode:
        raise RuntimeError(err)
    document: dict[str, Any] = json.loads(out)
    return document


@dataclass
class Ray:
    """Our command, once a round."""

    model: Path
    data: Path
    out: Path
    whole: list[float] = field(default_factory=list)

    def round(self) -> Report:
        """One command."""
        began = time.perf_counter()
        done = _end(self.start())
        self.whole.append(time.perf_counter() - began)
        work = {"rows": done["num_rows"], "tokens": done["num_tokens"]}
        return {"seconds": done["seconds"]["scoring"], "work": work}

    def start(self) -> subprocess.Popen[str]:
        """The command, running."""
        return _start(self.model, self.data, self.out, "--ray", "local", "--actors", str(ACTORS))


@dataclass
class Plain:
    """Two plain commands at once, on half of the shards each."""

    model: Path
    data: Path
    out: Path
    whole: list[float] = field(default_factory=list)

    def round(self) -> Report:
        """Both commands."""
        self.out.mkdir(exist_ok=True)
        began = time.perf_counter()
        halves = (f"{self.data}/shard-00[0-4].parquet", f"{self.data}/shard-00[5-9].parquet")
        both = [_start(self.model, half, self.out / f"{i}.jsonl") for i, half in enumerate(halves)]
        done = [_end(process) for process in both]
        self.whole.append(time.perf_counter() - began)
        work = {
            "rows": sum(one["num_rows"] for one in done),
            "tokens": sum(one["num_tokens"] for one in done),
        }
        return {"seconds": max(one["seconds"]["scoring"] for one in done), "work": work}

    def scores(self) -> dict[str, float]:
        """What the last round gave, by id."""
        files = (self.out / f"{i}.jsonl" for i in range(2))
        rows = (json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines())
        return {row["id"]: row["score"] for row in rows}


def _bulk(asked: argparse.Namespace, model: Path, folder: Path) -> Row:
    data = _write_rows(asked.round_rows, folder / "round")
    tools = {OURS: Ray(model, data, folder / "ray"), THEIRS: Plain(model, data, folder / "plain")}
    reports = in_turns(tools, asked.rounds)
    whole = ratios(*([{"seconds": one} for one in tool.whole[1:]] for tool in tools.values()))
    checks, killed = _killed(asked, model, folder)
    tokens = reports[OURS][0]["work"]["tokens"] / reports[OURS][0]["work"]["rows"]
    return row(
        "bulk_scoring",
        work=f"tiny random encoder, {asked.round_rows:,} rows of {TOKENS} tokens in {SHARDS} Parquet shards",
        ratios=ratios(reports[OURS], reports[THEIRS]),
        target=0.9,
        ours={**speed(reports[OURS], "rows"), "tool": OURS},
        theirs={**speed(reports[THEIRS], "rows"), "tool": THEIRS},
        checks=[*same_work(reports), Check("tokens a row", tokens == TOKENS, tokens), *checks],
        precision="float32",
        packages=PACKAGES,
        whole_command={"ratio": spread(whole), **{name: spread(tool.whole[1:]) for name, tool in tools.items()}},
        worker_killed=killed,
    )


def _killed(asked: argparse.Namespace, model: Path, folder: Path) -> tuple[list[Check], dict[str, Any]]:
    """The large run in which a worker is killed: whether its rows are those of the plain command, and what it took."""
    import pyarrow.parquet as pq

    data = _write_rows(asked.rows, folder / "large")
    ours, plain = Ray(model, data, folder / "killed"), Plain(model, data, folder / "large_plain")
    process = ours.start()
    while process.poll() is None and len(list(ours.out.glob("part-*.parquet"))) < asked.rows // 4096 // 2:
        time.sleep(0.05)
    victim = _workers(process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    done = _end(process)
    say(f"{asked.rows:,} rows, a worker killed: {done['seconds']['scoring']:.2f} s")
    report = plain.round()
    say(f"the same, plain: {report['seconds']:.2f} s")
    found = pq.read_table(ours.out).to_pylist()
    expected = plain.scores()
    ids = [row["id"] for row in found]
    checks = [
        Check("each id once after a killed worker", sorted(ids) == sorted(expected), len(ids)),
        same_scores(
            "scores after a killed worker",
            [row["score"] for row in found],
            [expected.get(one, float("nan")) for one in ids],
            tolerance=SCORE_TOLERANCE,
        ),
        Check("a worker was started again", sum(done["restarts"].values()) == 1, done["restarts"]),
    ]
    seconds = {OURS: done["seconds"]["scoring"], THEIRS: report["seconds"]}
    ratio = float(f"{seconds[THEIRS] / seconds[OURS]:.3g}")
    return checks, {"rows": asked.rows, "parts": done["parts"], "seconds": seconds, "ratio": ratio}


def _workers(root: int) -> Sequence[int]:
    """Process numbers of the actors below a command."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()]
    family = {str(root)}
    while grown := {pid for pid, parent, _ in rows if parent in family} - family:
        family |= grown
    return [int(pid) for pid, _, name in rows if pid in family and name.startswith("ray::MapWorker")]


def _memory(asked: argparse.Namespace, model: Path, folder: Path) -> Row:
    peaks, work = [], []
    for count in (asked.memory_rows, 10 * asked.memory_rows):
        data = _write_rows(count, folder / f"memory_{count}", shards=max(1, count // 100_000))
        process = _start(model, data, folder / "memory.jsonl")
        assert process.stdout is not None and process.stderr is not None
        document = json.loads(process.stdout.read())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
        peaks.append(used.ru_maxrss / 2**10)
        work.append(document)
        say(f"{count:,} rows: {peaks[-1]:.1f} MiB, {document['seconds']['scoring']:.1f} s")
    tokens = {one["num_tokens"] / one["num_rows"] for one in work}
    ours = {"peak_mib": round(peaks[1], 1), "peak_mib_at_a_tenth": round(peaks[0], 1)}
    return row(
        "bulk_memory",
        work=f"plain score, tiny random encoder, {asked.memory_rows:,} and {10 * asked.memory_rows:,} rows of {TOKENS} tokens",
        ratios=[MOST_MEMORY / (peaks[1] / peaks[0])],
        target=1.0,
        ours={**ours, "rows_per_second": work[1]["per_second"]["rows"]},
        theirs=None,
        checks=[
            Check("ten times as many rows", work[1]["num_rows"] == 10 * work[0]["num_rows"], work[1]["num_rows"]),
            Check("tokens a row", tokens == {TOKENS}, sorted(tokens)),
        ],
        precision="float32",
        packages=PACKAGES,
    )


def main() -> int:
    """Measure, print one JSON line a row."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the run in which a worker is killed")
    parser.add_argument("--round-rows", type=int, default=40_000, help="rows of a round")
    parser.add_argument("--memory-rows", type=int, default=100_000, help="rows of the smaller memory measurement")
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
