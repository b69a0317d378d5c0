"""Training an encoder (MiniLM) on real pairs, beside TRL's RewardTrainer: both in bf16, and each as it comes out of the box.

Run: python benchmarks/encoder_training.py [--pairs 32] [--out benchmarks/results/encoder_training.json]

The work is one epoch over 128 pairs of rmb_train that fit in 512 tokens, 16 pairs a step; a round is one epoch over the first `--pairs` of them, each tool in its own
order. Time is that of the steps with all that happens between them, from the first batch to the last update; loading and tokenisation are outside it in both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.comparisons import against, arguments, compare, recipe
from harness.record import Row
from harness.script import options, require, run, wanted

ALL_PAIRS, BATCH, MAX_LENGTH = 128, 16, 512
OURS, TRL = "rewardsmith", "TRL RewardTrainer"


def measure(asked: argparse.Namespace, folder: Path) -> list[Row]:
    """Both rows."""
    require("trl", "the comparison with TRL's RewardTrainer")
    from harness.work import pairs_that_fit, save_start, write_ids, write_ours

    start = save_start("minilm", folder / "start", encoding="text", max_length=MAX_LENGTH)
    pairs = pairs_that_fit(asked.data / "rmb_train.jsonl.gz", start, ALL_PAIRS)[: asked.pairs]
    both = {"start": str(start.folder), "batch_size": asked.batch_size, "rounds": asked.rounds + 1, "epochs": 1}
    ours = both | {"data": write_ours(pairs, folder / "ours.jsonl"), "device": "cpu", "recipe": recipe()}
    theirs = both | {
        "rows": write_ids(pairs, start, folder / "theirs.jsonl"),
        "cpu": True,
        "freeze": False,
        "anew": False,
    }
    work = f"MiniLM, {len(pairs)} of {ALL_PAIRS} pairs of rmb_train, at most {MAX_LENGTH} tokens, batch {asked.batch_size} pairs, 1 epoch"
    rows = []
    if wanted(asked, "encoder_training_bf16"):
        changed = arguments(max_length=MAX_LENGTH, bf16=True, gradient_checkpointing=False)
        measured = compare(
            asked,
            folder,
            {OURS: ("ours.train", ours | {"precision": "bf16"}), TRL: ("peers.trl", theirs | {"arguments": changed})},
            [(OURS, TRL)],
        )
        rows.append(
            against(
                "encoder_training_bf16",
                work=work,
                target=2.5,
                measured=measured,
                ours=OURS,
                theirs=TRL,
            )
        )
    if wanted(asked, "encoder_training_default"):
        # RewardConfig() as it is stops on a CPU: its bf16 asks for a GPU. bf16 = False is the change that lets it run; the rest stays.
        changed = arguments(max_length=MAX_LENGTH, bf16=False)
        measured = compare(
            asked,
            folder,
            {OURS: ("ours.train", ours | {"precision": "auto"}), TRL: ("peers.trl", theirs | {"arguments": changed})},
            [(OURS, TRL)],
        )
        rows.append(
            against(
                "encoder_training_default",
                work=work + ", each tool's own precision and checkpointing",
                target=5.0,
                measured=measured,
                ours=OURS,
                theirs=TRL,
                note={"gradient_checkpointing": measured.facts[TRL]["checkpointing"]},
            )
        )
    return rows


def main() -> int:
    """Measure, print one JSON line a row."""
    parser = options(__doc__)
    parser.add_argument("--pairs", type=int, default=32, help="pairs of a round")
    parser.add_argument("--batch-size", type=int, default=BATCH, help="pairs a step")
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
