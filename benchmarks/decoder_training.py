"""Training a decoder (SmolLM2-135M) on real pairs: beside TRL's RewardTrainer, and with shared prompts beside itself without.

Run: python benchmarks/decoder_training.py [--pairs 16] [--out benchmarks/results/decoder_training.json]

The work is one epoch over 48 pairs of hh_harmless_test that fit in 512 tokens, 8 pairs a step, bf16, no checkpointing; a round is one epoch over the first `--pairs` of
them, each tool in its own order. Two comparisons, one after the other: with TRL, and with rewardsmith whose shared prompts are switched off. `decoder_sharing` is the
saving that was measured over the one that the tokens allow: all tokens over those that are left when the two sides of each pair read what they begin with once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from harness.comparisons import against, arguments, compare, recipe, sharing
from harness.record import Row
from harness.script import options, require, run, wanted

ALL_PAIRS, BATCH, MAX_LENGTH = 48, 8, 512
OURS, UNSHARED, TRL = "rewardsmith", "rewardsmith, prompts not shared", "TRL RewardTrainer"


def measure(asked: argparse.Namespace, folder: Path) -> list[Row]:
    """Both rows."""
    rows = [name for name in ("decoder_training_bf16", "decoder_sharing") if wanted(asked, name)]
    if "decoder_training_bf16" in rows:
        require("trl", "the comparison with TRL's RewardTrainer")
    from harness.work import ceiling, ids_of, pairs_that_fit, save_start, write_ids, write_ours

    start = save_start("smollm2", folder / "start", encoding="chat", max_length=MAX_LENGTH)
    pairs = pairs_that_fit(asked.data / "hh_harmless_test.jsonl.gz", start, ALL_PAIRS)[: asked.pairs]
    both = {"start": str(start.folder), "batch_size": asked.batch_size, "rounds": asked.rounds + 1, "epochs": 1}
    ours = both | {
        "data": write_ours(pairs, folder / "ours.jsonl"),
        "device": "cpu",
        "precision": "bf16",
        "recipe": recipe(),
    }
    theirs = both | {
        "rows": write_ids(pairs, start, folder / "theirs.jsonl"),
        "cpu": True,
        "freeze": False,
        "anew": False,
        "arguments": arguments(max_length=MAX_LENGTH, bf16=True, gradient_checkpointing=False),
    }
    work = f"SmolLM2-135M, {len(pairs)} of {ALL_PAIRS} pairs of hh_harmless_test, at most {MAX_LENGTH} tokens, batch {asked.batch_size} pairs, 1 epoch"
    found = []

    def beside(name: str, job: str, settings: dict[str, Any]) -> Any:
        # Two tools at a time: three of them, at up to 10 GB each, are more than a machine of 24 GB holds.
        return compare(asked, folder, {OURS: ("ours.train", ours), name: (job, settings)}, [(OURS, name)])

    if "decoder_training_bf16" in rows:
        found.append(
            against(
                "decoder_training_bf16",
                work=work,
                target=2.5,
                measured=beside(TRL, "peers.trl", theirs),
                ours=OURS,
                theirs=TRL,
            )
        )
    if "decoder_sharing" in rows:
        found.append(
            sharing(
                "decoder_sharing",
                work=work,
                target=0.85,
                measured=beside(UNSHARED, "ours.train", ours | {"shared": False}),
                ours=OURS,
                unshared=UNSHARED,
                ceiling=ceiling(ids_of(start, pairs)),
            )
        )
    return found


def main() -> int:
    """Measure, print one JSON line a row."""
    parser = options(__doc__)
    parser.add_argument("--pairs", type=int, default=16, help="pairs of a round")
    parser.add_argument("--batch-size", type=int, default=BATCH, help="pairs a step")
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
