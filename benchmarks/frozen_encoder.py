"""Training a head on a frozen encoder (MiniLM): beside TRL's RewardTrainer with its backbone frozen, with features that are computed anew and with cached ones.

Run: python benchmarks/frozen_encoder.py [--pairs 96] [--out benchmarks/results/frozen_encoder.json]

The work is three epochs over 400 pairs of rmb_train that fit in 512 tokens, 16 pairs a step, bf16; a round is three epochs over the first `--pairs` of them, a training of
its own in every tool. `frozen_encoder` begins with an empty cache each time; `frozen_cached` finds the features of the round before. Loading and tokenisation are outside
the time in all of them, features are inside.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.comparisons import against, arguments, compare, recipe
from harness.record import Row
from harness.script import options, require, run, wanted

ALL_PAIRS, BATCH, MAX_LENGTH, EPOCHS = 400, 16, 512, 3
NEW, CACHED, TRL = "rewardsmith", "rewardsmith, features cached", "TRL RewardTrainer, backbone frozen"
TARGETS = {"frozen_encoder": (NEW, 8.0), "frozen_cached": (CACHED, 100.0)}


def measure(asked: argparse.Namespace, folder: Path) -> list[Row]:
    """Both rows, from the same rounds."""
    require("trl", "the comparison with TRL's RewardTrainer")
    from harness.work import pairs_that_fit, save_start, write_ids, write_ours

    start = save_start("minilm", folder / "start", encoding="text", max_length=MAX_LENGTH)
    pairs = pairs_that_fit(asked.data / "rmb_train.jsonl.gz", start, ALL_PAIRS)[: asked.pairs]
    both = {"start": str(start.folder), "batch_size": BATCH, "epochs": EPOCHS}
    ours = both | {
        "data": write_ours(pairs, folder / "ours.jsonl"),
        "device": "cpu",
        "precision": "bf16",
        "recipe": recipe(freeze="encoder"),
    }
    theirs = both | {
        "rows": write_ids(pairs, start, folder / "theirs.jsonl"),
        "cpu": True,
        "freeze": True,
        "anew": True,
        "arguments": arguments(max_length=MAX_LENGTH, bf16=True, gradient_checkpointing=False),
    }
    tools = {
        tool: ("ours.train_anew", ours | {"keep_cache": tool == CACHED})
        for name, (tool, _) in TARGETS.items()
        if wanted(asked, name)
    }
    measured = compare(asked, folder, {**tools, TRL: ("peers.trl", theirs)}, [(tool, TRL) for tool in tools])
    work = f"MiniLM frozen, {len(pairs)} of {ALL_PAIRS} pairs of rmb_train, at most {MAX_LENGTH} tokens, batch {BATCH} pairs, {EPOCHS} epochs"
    return [
        against(
            name,
            work=work + (", features of an earlier run" if tool == CACHED else ""),
            target=target,
            measured=measured,
            ours=tool,
            theirs=TRL,
        )
        for name, (tool, target) in TARGETS.items()
        if tool in tools
    ]


def main() -> int:
    """Measure, print one JSON line a row."""
    parser = options(__doc__)
    parser.add_argument("--pairs", type=int, default=96, help="pairs of a round")
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
