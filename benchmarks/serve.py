"""The server beside the model without a server (MiniLM): throughput with 64 clients, the latency of a single one, memory over many requests.

Run: python benchmarks/serve.py [--texts 240] [--idle-texts 40] [--requests 20000] [--out benchmarks/results/serve.json]

`serve_throughput`: 64 clients in one other process ask for one text a request, as fast as they get answers, beside `RewardModel.score` of the same texts at once; the clients and
the HTTP side share the processor's cores with the model. `serve_latency`: one client, one text at a time; the ratio is (1.3 x the model's own median time + 5 ms) / the client's
median latency. `serve_memory`: resident memory of the server, read ten times over the requests; it goes up and down by a tenth, as freed memory is given back now and then, so the ratio is
1.02 x the highest reading of the first half / the highest of the second.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from harness.checks import SCORE_TOLERANCE, Check, same_count, same_scores
from harness.record import Row, row
from harness.rounds import in_turns, ratios, same_work, say, speed
from harness.script import PACKAGES, options, process, require, run, wanted

SERVED, OFFLINE = "rewardsmith serve", "rewardsmith, no server"
CLIENTS, MAX_LENGTH, SHARE = 64, 512, 0.85
PARTS = 10
VERSIONS = (*PACKAGES, "fastapi", "uvicorn", "httpx")


def measure(asked: argparse.Namespace, folder: Path) -> list[Row]:
    """The rows asked for."""
    require("psutil", "the memory of the server")
    from harness.work import distinct_pairs, save_start, write_ours

    start = save_start("minilm", folder / "start", encoding="text", max_length=MAX_LENGTH)
    pairs = distinct_pairs(asked.data / "rmb_eval.jsonl.gz", asked.texts // 2)
    common: dict[str, Any] = {"model": str(start.folder), "device": "cpu", "precision": "float32", "repeat": 1}
    rows = []
    if wanted(asked, "serve_throughput"):
        rows.append(_throughput(asked, folder, common | {"data": write_ours(pairs, folder / "all.jsonl")}))
    if wanted(asked, "serve_latency"):
        some = pairs[: asked.idle_texts // 2]
        rows.append(_latency(asked, folder, common | {"data": write_ours(some, folder / "some.jsonl")}))
    if wanted(asked, "serve_memory"):
        short = sorted(pairs, key=lambda pair: len(pair.chosen) + len(pair.rejected) + 2 * len(str(pair.prompt)))[:10]
        rows.append(_memory(asked, folder, common | {"data": write_ours(short, folder / "short.jsonl")}))
    return rows


def _throughput(asked: argparse.Namespace, folder: Path, settings: dict[str, Any]) -> Row:
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(process(asked, folder, name, job, **settings, clients=CLIENTS))
            for name, job in ((SERVED, "serving.clients"), (OFFLINE, "ours.score"))
        }
        scores = {name: tool.check()["scores"] for name, tool in running.items()}
        reports = in_turns(running, asked.rounds)
    texts = running[SERVED].facts["texts"]
    return row(
        "serve_throughput",
        work=f"MiniLM, {texts} texts of rmb_eval, {CLIENTS} clients, one text a request, beside all of them at once",
        ratios=ratios(reports[SERVED], reports[OFFLINE]),
        target=SHARE,
        ours={**speed(reports[SERVED], "texts"), "tool": SERVED},
        theirs={**speed(reports[OFFLINE], "texts"), "tool": OFFLINE},
        checks=[_same(scores), same_count("texts", {name: tool.facts["texts"] for name, tool in running.items()})],
        precision="float32",
        packages=VERSIONS,
    )


def _latency(asked: argparse.Namespace, folder: Path, settings: dict[str, Any]) -> Row:
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(process(asked, folder, name, job, **settings, clients=1))
            for name, job in ((SERVED, "serving.clients"), (OFFLINE, "serving.one_by_one"))
        }
        scores = {name: tool.check()["scores"] for name, tool in running.items()}
        reports = in_turns(running, asked.rounds)
    allowed = [1.3 * report["latency"] + 0.005 for report in reports[OFFLINE]]
    found = [report["latency"] for report in reports[SERVED]]
    return row(
        "serve_latency",
        work=f"MiniLM, {running[SERVED].facts['texts']} texts of rmb_eval, one client, one at a time",
        ratios=[most / one for most, one in zip(allowed, found, strict=True)],
        target=1.0,
        ours=_milliseconds(found, SERVED),
        theirs=_milliseconds([report["latency"] for report in reports[OFFLINE]], OFFLINE),
        checks=[_same(scores), *same_work(reports)],
        precision="float32",
        packages=VERSIONS,
    )


def _memory(asked: argparse.Namespace, folder: Path, settings: dict[str, Any]) -> Row:
    repeat = asked.requests // (PARTS * 20)
    with process(asked, folder, SERVED, "serving.clients", **settings | {"repeat": repeat}, clients=CLIENTS) as tool:
        reports = []
        for _ in range(PARTS):
            reports.append(tool.round())
            say(f"{SERVED}: {reports[-1]['server_bytes'] / 2**20:.0f} MiB")
    held = [report["server_bytes"] / 2**20 for report in reports]
    asked_for = sum(report["work"]["texts"] for report in reports)
    return row(
        "serve_memory",
        work=f"MiniLM, {asked_for} requests of one short text, {CLIENTS} clients",
        ratios=[1.02 * max(held[: PARTS // 2]) / max(held[PARTS // 2 :])],
        target=1.0,
        ours={**speed(reports, "texts"), "server_mib": [round(one, 1) for one in held], "tool": SERVED},
        theirs=None,
        checks=[Check("all requests answered", asked_for == repeat * 20 * PARTS, asked_for)],
        precision="float32",
        packages=VERSIONS,
    )


def _milliseconds(latencies: list[float], tool: str) -> dict[str, Any]:
    """The median of the rounds' medians, and each of them."""
    each = [round(1000 * one, 2) for one in latencies]
    return {"median_ms": median(each), "rounds_ms": each, "tool": tool}


def _same(scores: dict[str, list[float]]) -> Check:
    return same_scores("scores", scores[OFFLINE], scores[SERVED], tolerance=SCORE_TOLERANCE)


def main() -> int:
    """Measure, print one JSON line a row."""
    parser = options(__doc__)
    parser.add_argument("--texts", type=int, default=240, help="texts of a round of serve_throughput")
    parser.add_argument("--idle-texts", type=int, default=40, help="texts of a round of serve_latency")
    parser.add_argument("--requests", type=int, default=20_000, help="requests of serve_memory")
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
