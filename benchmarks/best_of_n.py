"""Best of 16 with a decoder (SmolLM2-135M): all answers of a prompt that is four times as long as an answer, beside one text at a time through transformers.

Run: python benchmarks/best_of_n.py [--groups 2] [--out benchmarks/results/best_of_n.json]

The texts are random words, so that every prompt (with what the template puts around it) has exactly four times the tokens of what is an answer's own. A round is
`--groups` groups, from strings to numbers, in float32.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from harness.checks import SCORE_TOLERANCE, same_count, same_scores
from harness.record import Row, row
from harness.rounds import in_turns, ratios, same_work, speed
from harness.script import PACKAGES, options, process, run

ANSWERS, TIMES = 16, 4
OURS, THEIRS = "rewardsmith", "transformers, one text at a time"


def measure(asked: argparse.Namespace, folder: Path) -> list[Row]:
    """The one row."""
    from harness.work import ceiling, exact_groups, ids_of, save_start, write_ours

    start = save_start("smollm2", folder / "start", encoding="chat", max_length=1024)
    groups = exact_groups(start, groups=asked.groups, answers=ANSWERS, answer_tokens=asked.answer_tokens, times=TIMES)
    settings = {
        "model": str(start.folder),
        "data": write_ours(groups, folder / "groups.jsonl"),
        "device": "cpu",
        "precision": "float32",
    }
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(process(asked, folder, name, job, **settings))
            for name, job in ((OURS, "ours.score"), (THEIRS, "peers.one_by_one"))
        }
        own = running[OURS].check()
        other = running[THEIRS].check(uncut=own["uncut"])
        reports = in_turns(running, asked.rounds)
    prompt = TIMES * asked.answer_tokens
    return [
        row(
            "best_of_16",
            work=f"SmolLM2-135M, {len(groups)} groups of {ANSWERS} answers, prompt {prompt} tokens, answer {asked.answer_tokens}",
            ratios=ratios(reports[OURS], reports[THEIRS]),
            target=5.0,
            ours={**speed(reports[OURS], "texts"), "tool": OURS},
            theirs={**speed(reports[THEIRS], "texts"), "tool": THEIRS},
            checks=[
                same_count("hash of all token ids", {OURS: own["ids"], THEIRS: other["ids"]}),
                same_scores("scores", own["scores"], other["scores"], tolerance=SCORE_TOLERANCE),
                *same_work(reports),
            ],
            precision="float32",
            packages=PACKAGES,
            token_ceiling=round(ceiling(ids_of(start, groups)), 3),
        )
    ]


def main() -> int:
    """Measure, print the JSON line."""
    parser = options(__doc__)
    parser.add_argument("--groups", type=int, default=2, help="groups of a round")
    parser.add_argument(
        "--answer-tokens", type=int, default=64, help="tokens of an answer; the prompt has four times as many"
    )
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
