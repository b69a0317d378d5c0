"""Training a decoder (SmolLM2-135M) on ranked groups of 4 and of 8 answers whose prompt is four times as long as an answer: shared prompts beside none.

Run: python benchmarks/ranked_groups.py [--answer-tokens 64] [--out benchmarks/results/ranked_groups.json]

The texts are random words, so that every prompt (with what the template puts around it) has exactly four times the tokens of what is an answer's own. A round is one
epoch over `--groups` groups, two groups a step, by Plackett-Luce. The ratio is the saving that was measured over the one that the tokens allow, K (P + R) / (P + K R).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.comparisons import compare, recipe, sharing
from harness.record import Row
from harness.script import options, run

TIMES, BATCH = 4, 2
OURS, UNSHARED = "rewardsmith", "rewardsmith, prompts not shared"


def measure(asked: argparse.Namespace, folder: Path) -> list[Row]:
    """A row for each number of answers."""
    from harness.work import ceiling, exact_groups, ids_of, save_start, write_ours

    start = save_start("smollm2", folder / "start", encoding="chat", max_length=1024)
    rows = []
    for answers in asked.answers or (4, 8):
        groups = exact_groups(
            start, groups=asked.groups, answers=answers, answer_tokens=asked.answer_tokens, times=TIMES
        )
        ours = {
            "start": str(start.folder),
            "data": write_ours(groups, folder / f"groups_{answers}.jsonl"),
            "batch_size": BATCH,
            "rounds": asked.rounds + 1,
            "epochs": 1,
            "device": "cpu",
            "precision": "bf16",
            "recipe": recipe(loss="plackett_luce"),
            "what": "groups",
        }
        tools = {OURS: ("ours.train", ours), UNSHARED: ("ours.train", ours | {"shared": False})}
        measured = compare(asked, folder, tools, [(OURS, UNSHARED)])
        prompt = TIMES * asked.answer_tokens
        rows.append(
            sharing(
                "ranked_sharing",
                work=f"SmolLM2-135M, {len(groups)} ranked groups of {answers} answers, prompt {prompt} tokens, answer {asked.answer_tokens}, batch {BATCH} groups, 1 epoch",
                target=0.85,
                measured=measured,
                ours=OURS,
                unshared=UNSHARED,
                ceiling=ceiling(ids_of(start, groups)),
                what="groups",
                answers=answers,
            )
        )
    return rows


def main() -> int:
    """Measure, print one JSON line a row."""
    parser = options(__doc__)
    parser.add_argument("--answers", type=int, action="append", help="answers of a group; 4 and 8 by default")
    parser.add_argument("--groups", type=int, default=4, help="groups of a round")
    parser.add_argument(
        "--answer-tokens", type=int, default=64, help="tokens of an answer; the prompt has four times as many"
    )
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
