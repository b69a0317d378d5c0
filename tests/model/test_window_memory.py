"""The memory of a run over a stream does not grow with its rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = """
import sys
import rewardsmith
from rich.console import Console
model, data, out, stream = sys.argv[1:]
rewardsmith.train(
    {"model": model, "data": data, "out": out, "stream": int(stream), "max_length": 32, "batch_size": 64, "device": "cpu", "threads": 1,
     "dev_share": 0.001, "precision": "float32", "trainer": {"max_steps": 100, "save_strategy": "no"}},
    console=Console(quiet=True),
)
"""


def rows(path, start, count):
    with open(path, "w", encoding="utf-8") as file:
        for i in range(start, start + count):
            row = {
                "prompt": f"How do I mend item {i}?",
                "chosen": f"Gladly, use glue {i}.",
                "rejected": f"No, go away {i}.",
            }
            file.write(json.dumps(row) + "\n")


def peak_of(model, data, out, *, stream=2048):
    """Bytes, as the manifest of a run in a process of its own says."""
    subprocess.run([sys.executable, "-c", TRAIN, model, str(data), str(out), str(stream)], check=True)
    return json.loads((out / "manifest.json").read_text())["peak_memory"]["process"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_peak_memory_is_flat_in_the_number_of_rows(tiny, tmp_path):
    """20,000 and 200,000 rows in shards of 10,000; of both 100 steps of 64 are taken, which is four windows."""
    peaks = {}
    for count in (20_000, 200_000):
        folder = Path(tmp_path / str(count))
        folder.mkdir()
        for shard in range(count // 10_000):
            rows(folder / f"{shard:02}.jsonl", shard * 10_000, 10_000)
        peaks[count] = peak_of(tiny("bert"), folder, tmp_path / f"run-{count}")
    assert peaks[200_000] <= 1.1 * peaks[20_000], peaks
