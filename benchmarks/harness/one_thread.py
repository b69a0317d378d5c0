"""What `plan.py --measure` measures: what one processor thread gives, and three short runs on it."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import costs, record

_BENCHMARKS = Path(__file__).resolve().parents[1]


def measure() -> dict[str, Any]:
    """What the model needs to know of this machine, and three runs to hold it against, all on one thread and in seconds of the processor: products, the optimiser's pass, a tokenizer, the memory of a process that did nothing yet."""
    import os
    import subprocess
    import tempfile
    import time

    # Before torch and the tokenizers start their threads.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch

    from harness.processes import Process
    from harness.work import embedded_pairs, ids_of, save_start, write_ours

    torch.set_num_threads(1)
    rates = {name: _product_rate(torch, kind) for name, kind in (("float32", torch.float32), ("bf16", torch.bfloat16))}
    code = "import harness.ours; from harness.training import peak_bytes; print(peak_bytes())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_BENCHMARKS), os.environ.get("PYTHONPATH", "")])}
    idle = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = folder / "cache"
        cache.mkdir()
        start = save_start("minilm", folder / "start", encoding="text")
        pairs = _distinct(embedded_pairs(start, 400), 48)
        lengths = [len(text) for group in ids_of(start, pairs) for text in group]
        texts = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)] * 20
        begun = time.process_time()
        tokens = int(start.renderer.encode(texts).lengths.sum())
        tokenizer = tokens / (time.process_time() - begun)
        data = write_ours(pairs, folder / "pairs.jsonl")
        common = {"device": "cpu", "data": data, "model": str(start.folder), "start": str(start.folder)}
        rounds, batch, runs = 4, 16, []
        for label, job, precision in (
            ("encoder training", "ours.train", "bf16"),
            ("encoder scoring", "ours.score", "float32"),
            ("encoder scoring", "ours.score", "bf16"),
        ):
            settings = {"precision": precision, "batch_size": batch, "rounds": rounds, "epochs": 1}
            with Process(label, job, common | settings, threads=1, cache=cache) as tool:
                spent, reports = [], []
                for _ in range(rounds):
                    before = _processor_seconds(tool)
                    reports.append(tool.round())
                    spent.append(_processor_seconds(tool) - before)
            total = sum(lengths)
            runs.append(
                {
                    "name": label,
                    "precision": precision,
                    "texts": len(lengths),
                    "tokens": total,
                    "spread": sum(one**2 for one in lengths) * len(lengths) / total**2,
                    "steps": math.ceil(len(pairs) / batch) if job == "ours.train" else 0,
                    "seconds": statistics.median(spent[1:]),
                    "peak_bytes": reports[-1]["peak_bytes"],
                }
            )
    for name, kind in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        rates[name] = max(rates[name], _product_rate(torch, kind))
    return {
        "flops": rates,
        "adamw_bytes_a_second": _adamw_rate(torch),
        "resident_bytes": int(idle.stdout),
        "tokens_a_second_and_core": tokenizer,
        "runs": runs,
        **record.environment(("torch", "transformers", "tokenizers")),
    }


def _processor_seconds(tool: Any) -> float:
    """Seconds that the processor gave to a tool: what else runs on the machine counts less than by the clock."""
    import psutil

    times = psutil.Process(tool._process.pid).cpu_times()
    return float(times.user + times.system)


def _distinct(pairs: Sequence[Any], count: int) -> list[Any]:
    """The first so many pairs, no text of which came before: equal texts are read once, and would be counted twice."""
    seen: set[tuple[str, str]] = set()
    found = []
    for pair in pairs:
        texts = {(str(pair.prompt), pair.chosen), (str(pair.prompt), pair.rejected)}
        if len(texts) == 2 and not texts & seen:
            seen |= texts
            found.append(pair)
    return found[:count]


def _product_rate(torch: Any, kind: Any) -> float:
    """FLOP/s of a product of MiniLM's sizes: the best of twenty tries of five."""
    import time

    rows, hidden, inner = 2048, 384, 1536
    left, right = torch.randn(rows, hidden).to(kind), torch.randn(hidden, inner).to(kind)
    best = math.inf
    for _ in range(20):
        begun = time.process_time()
        for _ in range(5):
            left @ right
        best = min(best, time.process_time() - begun)
    return 5 * 2 * rows * hidden * inner / best


def _adamw_rate(torch: Any) -> float:
    """Bytes a second of a fused AdamW over 25 million weights: the best of four steps after the first, which makes the moments."""
    import time

    count = 25_000_000
    weight = torch.nn.Parameter(torch.zeros(count))
    weight.grad = torch.zeros(count)
    optimiser = torch.optim.AdamW([weight], fused=True)
    best = math.inf
    for number in range(5):
        begun = time.process_time()
        optimiser.step()
        best = min(best, time.process_time() - begun) if number else best
    return costs.ADAMW_PASS * count / best
