"""Training and scoring with a decoder of the shape of Qwen3-0.6B, random weights, on one CUDA GPU: beside TRL's RewardTrainer, and with shared prompts beside none.

Run: python benchmarks/gpu.py [--row NAME] [--pairs 256] [--out benchmarks/results/gpu.json]

A row takes some minutes on one GPU, most of them the start of each tool: where time is short, one --row a call. Batches of 16 pairs need more than 80 GB for three tools at a time; --batch-size 8 does not.

Nothing is downloaded: the weights are random, and the tokenizer is a byte-level one made here from the texts. The pairs are those of hh_harmless_test where that file is at
hand, else those of the embedded set. Everything is in bf16. Without a CUDA GPU there is nothing to measure: each row then says so, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness import record
from harness.checks import SCORE_TOLERANCE_BF16, same_count, same_scores
from harness.comparisons import against, arguments, compare, recipe, sharing
from harness.record import Row, row
from harness.rounds import in_turns, ratios, same_work, speed
from harness.script import PACKAGES, options, process, require, run, wanted

MAX_LENGTH, ANSWERS, TIMES = 512, 16, 4
TARGETS = {"gpu_decoder_training_bf16": 2.5, "gpu_decoder_sharing": 0.85, "gpu_best_of_16": 5.0}
OURS, UNSHARED, TRL = "rewardsmith", "rewardsmith, prompts not shared", "TRL RewardTrainer"
ONE_BY_ONE = "transformers, one text at a time"
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
    },
    # To try the script itself, on any machine.
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 4096,
    },
}


def measure(asked: argparse.Namespace, folder: Path) -> list[Row]:
    """All rows, or the reason why there are none."""
    import torch

    if asked.device == "cuda" and not torch.cuda.is_available():
        reason = "no CUDA GPU on this machine"
        return [
            record.skipped(name, reason, target=target, packages=PACKAGES)
            for name, target in TARGETS.items()
            if wanted(asked, name)
        ]
    from harness.work import embedded_pairs, pairs_that_fit, random_decoder, save_start

    real = asked.data / "hh_harmless_test.jsonl.gz"
    model = random_decoder(folder / "base", SHAPES[asked.shape], real)
    start = save_start(str(model), folder / "start", encoding="chat", max_length=MAX_LENGTH)
    if real.is_file():
        pairs, source = pairs_that_fit(real, start, asked.pairs), "hh_harmless_test"
    else:
        pairs, source = embedded_pairs(start, asked.pairs), "the embedded set"
    rows = []
    if wanted(asked, "gpu_decoder_training_bf16") or wanted(asked, "gpu_decoder_sharing"):
        rows += _training(asked, folder, start, pairs, source)
    if wanted(asked, "gpu_best_of_16"):
        rows.append(_best_of_n(asked, folder, start))
    return [one | {"gpu": torch.cuda.get_device_name() if asked.device == "cuda" else None} for one in rows]


def _training(asked: argparse.Namespace, folder: Path, start: Any, pairs: list[Any], source: str) -> list[Row]:
    from harness.work import ceiling, ids_of, write_ids, write_ours

    both = {"start": str(start.folder), "batch_size": asked.batch_size, "rounds": asked.rounds + 1, "epochs": 1}
    ours = both | {
        "data": write_ours(pairs, folder / "ours.jsonl"),
        "device": asked.device,
        "precision": "bf16",
        "recipe": recipe(batching=asked.batching),
    }
    theirs = both | {
        "rows": write_ids(pairs, start, folder / "theirs.jsonl"),
        "cpu": asked.device == "cpu",
        "freeze": False,
        "anew": False,
        "arguments": arguments(max_length=MAX_LENGTH, bf16=True, gradient_checkpointing=False),
    }
    tools = {OURS: ("ours.train", ours)}
    if wanted(asked, "gpu_decoder_training_bf16"):
        require("trl", "the comparison with TRL's RewardTrainer")
        tools[TRL] = ("peers.trl", theirs)
    if wanted(asked, "gpu_decoder_sharing"):
        tools[UNSHARED] = ("ours.train", ours | {"shared": False})
    measured = compare(asked, folder, tools, [(OURS, other) for other in tools if other != OURS])
    work = f"shape {asked.shape}, {len(pairs)} pairs of {source}, at most {MAX_LENGTH} tokens, batch {asked.batch_size} pairs, 1 epoch"
    found = []
    if TRL in tools:
        name = "gpu_decoder_training_bf16"
        found.append(against(name, work=work, target=TARGETS[name], measured=measured, ours=OURS, theirs=TRL))
    if UNSHARED in tools:
        name, most = "gpu_decoder_sharing", ceiling(ids_of(start, pairs))
        found.append(
            sharing(
                name, work=work, target=TARGETS[name], measured=measured, ours=OURS, unshared=UNSHARED, ceiling=most
            )
        )
    return found


def _best_of_n(asked: argparse.Namespace, folder: Path, start: Any) -> Row:
    from harness.work import ceiling, exact_groups, ids_of, write_ours

    groups = exact_groups(start, groups=asked.groups, answers=ANSWERS, answer_tokens=asked.answer_tokens, times=TIMES)
    settings = {
        "model": str(start.folder),
        "data": write_ours(groups, folder / "groups.jsonl"),
        "device": asked.device,
        "precision": "bf16",
        "batching": asked.batching,
    }
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(process(asked, folder, name, job, **settings))
            for name, job in ((OURS, "ours.score"), (ONE_BY_ONE, "peers.one_by_one"))
        }
        own = running[OURS].check()
        other = running[ONE_BY_ONE].check(uncut=own["uncut"])
        reports = in_turns(running, asked.rounds)
    prompt = TIMES * asked.answer_tokens
    return row(
        "gpu_best_of_16",
        work=f"shape {asked.shape}, {len(groups)} groups of {ANSWERS} answers, prompt {prompt} tokens, answer {asked.answer_tokens}",
        ratios=ratios(reports[OURS], reports[ONE_BY_ONE]),
        target=TARGETS["gpu_best_of_16"],
        ours={**speed(reports[OURS], "texts"), "tool": OURS},
        theirs={**speed(reports[ONE_BY_ONE], "texts"), "tool": ONE_BY_ONE},
        checks=[
            same_count("hash of all token ids", {OURS: own["ids"], ONE_BY_ONE: other["ids"]}),
            same_scores("scores", own["scores"], other["scores"], tolerance=SCORE_TOLERANCE_BF16),
            *same_work(reports),
        ],
        precision="bf16",
        packages=PACKAGES,
        token_ceiling=round(ceiling(ids_of(start, groups)), 3),
    )


def main() -> int:
    """Measure, print one JSON line a row."""
    parser = options(__doc__)
    parser.add_argument("--pairs", type=int, default=256, help="pairs of a round of training")
    parser.add_argument("--batch-size", type=int, default=16, help="pairs a step")
    parser.add_argument("--groups", type=int, default=16, help="groups of a round of scoring")
    parser.add_argument("--answer-tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--batching", choices=("auto", "packed", "padded"), default="auto", help="of ours")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is there to try the script")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="qwen3-0.6b", help="tiny is there to try the script")
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
