"""The jobs of the server's benchmark: clients of `rewardsmith serve`, which runs in a process of its own, and one text at a time without a server."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from harness.ours import texts_of
from harness.processes import Channel
from harness.training import clock
from rewardsmith.config import ScoringSettings
from rewardsmith.data.schema import Pair
from rewardsmith.model.precision import prepare_process
from rewardsmith.model.reward_model import RewardModel

_PATIENCE = 60


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    url: str
    process: psutil.Process


@contextmanager
def running_server(model: str, precision: str, threads: int) -> Iterator[Running]:
    """`rewardsmith serve` on a free port, until the block ends."""
    command = [sys.executable, "-W", "ignore", "-m", "rewardsmith", "serve", model, "--port", "0", "--json"]
    command += ["--precision", precision, "--threads", str(threads), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            while httpx.get(f"{url}/ready").status_code != 200:
                time.sleep(0.1)
            yield Running(url, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(timeout=_PATIENCE)


def clients(settings: dict[str, Any], channel: Channel) -> None:
    """So many clients that ask for one text a request, as fast as they get answers; a round asks for all texts of `data`, `repeat` times.

    `settings` holds data, model, precision, threads, clients, repeat.
    """
    pairs = texts_of(settings["data"]) * settings["repeat"]
    with running_server(settings["model"], settings["precision"], settings["threads"]) as server:
        channel.answer({"texts": len(pairs)})
        while True:
            request = channel.wait()
            start = clock()
            scores, latencies = asyncio.run(_ask_all(server.url, pairs, settings["clients"]))
            seconds = clock() - start
            if request["do"] == "check":
                channel.answer({"scores": scores})
                continue
            memory = server.process.memory_info().rss
            channel.answer(
                {
                    "seconds": seconds,
                    "work": {"texts": len(pairs)},
                    "latency": statistics.median(latencies),
                    "server_bytes": memory,
                }
            )


async def _ask_all(url: str, pairs: list[Pair], count: int) -> tuple[list[float], list[float]]:
    """(the score, the seconds) of each pair, asked for by `count` clients that take turns at one list."""
    scores, latencies = [0.0] * len(pairs), [0.0] * len(pairs)
    left = iter(enumerate(pairs))
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=count)

    async def one(client: httpx.AsyncClient) -> None:
        for i, (prompt, answer) in left:
            start = clock()
            response = await client.post(
                f"{url}/v1/score", json={"inputs": [{"prompt": prompt, "answer": answer}]}, timeout=None
            )
            latencies[i] = clock() - start
            response.raise_for_status()
            scores[i] = response.json()["results"][0]["score"]

    async with httpx.AsyncClient(limits=limits) as client:
        await asyncio.gather(*(one(client) for _ in range(count)))
    return scores, latencies


def one_by_one(settings: dict[str, Any], channel: Channel) -> None:
    """The model's own time: `RewardModel.score` of one text, and then of the next."""
    prepare_process(threads=settings["threads"], seed=0)
    model = RewardModel.load(settings["model"], ScoringSettings(device="cpu", precision=settings["precision"]))
    pairs = texts_of(settings["data"])
    channel.answer({"texts": len(pairs)})
    while True:
        asked, scores, times = channel.wait()["do"], [], []
        start = clock()
        for pair in pairs:
            begun = clock()
            scores.append(float(model.score([pair])[0]))
            times.append(clock() - begun)
        seconds = clock() - start
        if asked == "check":
            channel.answer({"scores": scores})
        else:
            channel.answer({"seconds": seconds, "work": {"texts": len(pairs)}, "latency": statistics.median(times)})
