"""Training above frozen layers (MiniLM, the first four of six): on states that these layers left once, beside our own path that runs them at every step.

Run: python benchmarks/frozen_trunk.py [--pairs 96] [--out benchmarks/results/frozen_trunk.json]

The work is three epochs over 400 pairs of rmb_train that fit in 512 tokens, 16 pairs a step, bf16; a round is three epochs over the first `--pairs` of them, a training of its own each time.
`frozen_trunk` begins with an empty cache; `frozen_trunk_cached` finds the states of the round before. Loading and tokenisation are outside the time, states are inside.

By the operations of its layers a step costs 4 (four forward passes) + 3 (layer 5) + about 0.5 (the last layer, of which the first token alone is read), and 3.5 above known states: a ceiling
of 7.5 / 3.5 = 2.1, and of 22.5 / 14.5 = 1.55 where the states are computed in the first of three epochs. The targets are 0.85 of that.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from harness.checks import Check
from harness.comparisons import against, compare, recipe
from harness.record import Row
from harness.script import options, run, wanted

ALL_PAIRS, BATCH, MAX_LENGTH, EPOCHS, FROZEN = 400, 16, 512, 3, 4
NEW, CACHED, PLAIN = "rewardsmith", "rewardsmith, states cached", "rewardsmith, frozen layers at every step"
TARGETS = {"frozen_trunk": (NEW, 1.3), "frozen_trunk_cached": (CACHED, 1.8)}


def measure(asked: argparse.Namespace, folder: Path) -> list[Row]:
    """Both rows, from the same rounds."""
    from harness.work import pairs_that_fit, save_start, write_ours

    start = save_start("minilm", folder / "start", encoding="text", max_length=MAX_LENGTH)
    pairs = pairs_that_fit(asked.data / "rmb_train.jsonl.gz", start, ALL_PAIRS)[: asked.pairs]
    settings = {
        "start": str(start.folder),
        "data": write_ours(pairs, folder / "ours.jsonl"),
        "batch_size": BATCH,
        "epochs": EPOCHS,
        "device": "cpu",
        "precision": "bf16",
        "primed": True,
    }
    tools = {
        tool: ("ours.train_anew", settings | {"keep_cache": tool == CACHED, "recipe": recipe(freeze=FROZEN)})
        for name, (tool, _) in TARGETS.items()
        if wanted(asked, name)
    }
    plain = settings | {"keep_cache": True, "recipe": recipe(freeze=FROZEN, frozen_cache_gb=0)}
    versus = [(tool, PLAIN) for tool in tools]
    measured = compare(asked, folder, {**tools, PLAIN: ("ours.train_anew", plain)}, versus)
    for one in versus:
        measured.checks[one].append(_took_their_paths(measured.facts[one[0]]["notes"], measured.facts[PLAIN]["notes"]))
    work = f"MiniLM, layers 1 to {FROZEN} of 6 frozen, {len(pairs)} of {ALL_PAIRS} pairs of rmb_train, at most {MAX_LENGTH} tokens, batch {BATCH} pairs, {EPOCHS} epochs"
    if asked.threads != os.cpu_count():
        work += f", {asked.threads} of {os.cpu_count()} cores"
    return [
        against(
            name,
            work=work + (", states of an earlier run" if tool == CACHED else ""),
            target=target,
            measured=measured,
            ours=tool,
            theirs=PLAIN,
        )
        for name, (tool, target) in TARGETS.items()
        if tool in tools
    ]


def _took_their_paths(ours: list[str], plain: list[str]) -> Check:
    """Whether the one passed the frozen layers over and the other ran them, by what each said."""
    said = [[note for note in notes if note.startswith("frozen layers: ")] for notes in (ours, plain)]
    ok = "a step runs what stands above them" in str(said[0]) and "run at every step" in str(said[1])
    return Check("frozen layers passed over, and run", ok, said)


def main() -> int:
    """Measure, print one JSON line a row."""
    parser = options(__doc__)
    parser.add_argument("--pairs", type=int, default=96, help="pairs of a round")
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
