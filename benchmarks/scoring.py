"""Scoring with an encoder (MiniLM): beside CrossEncoder.predict in bf16 and in float32, in float32 also beside a pipeline of transformers.

Rows that end in `_openvino` are of the same model after `rewardsmith export --to openvino`, where that package is installed; the other tools run torch in all rows.

Run: python benchmarks/scoring.py [--texts 120] [--out benchmarks/results/scoring.json]

The work is distinct texts of rmb_eval, prompt and answer as two segments, at most 512 tokens, from strings to numbers; a round is the first `--texts` of them, in float32 the first
`--float32-texts`. The model folder is the same for all tools, and so are the token ids of every text that is not cut; what is cut is cut to the same number of tokens.
Each tool works in batches of its own.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.checks import SCORE_TOLERANCE, Check, largest_difference, pair_agreement, same_count, same_scores
from harness.record import Row, row
from harness.rounds import fastest, in_turns, ratios, same_work, speed
from harness.script import PACKAGES, options, process, require, run, wanted

MAX_LENGTH, PIPELINE_BATCH = 512, 16
OURS, CROSS_ENCODER, PIPELINE = "rewardsmith", "CrossEncoder.predict", "transformers pipeline"


def measure(asked: argparse.Namespace, folder: Path) -> list[Row]:
    """Both rows."""
    require("sentence-transformers", "the comparison with CrossEncoder.predict")
    from harness.work import distinct_pairs, save_start, write_ours

    start = save_start("minilm", folder / "start", encoding="pair", max_length=MAX_LENGTH)
    pairs = distinct_pairs(asked.data / "rmb_eval.jsonl.gz", asked.texts // 2)
    common = {"model": str(start.folder), "device": "cpu", "max_length": MAX_LENGTH}
    rows, some = [], pairs[: asked.float32_texts // 2]
    everything = common | {"data": write_ours(pairs, folder / "all.jsonl")}
    part = common | {"data": write_ours(some, folder / "some.jsonl")}
    for ending in ("", "_openvino") if find_spec("openvino") else ("",):
        if wanted(asked, f"scoring_bf16{ending}"):
            model = _exported(start.folder, folder, "bf16") if ending else str(start.folder)
            rows.append(_bf16(asked, folder, everything, f"scoring_bf16{ending}", model, texts=2 * len(pairs)))
        if wanted(asked, f"scoring_float32{ending}"):
            model = _exported(start.folder, folder, "float32") if ending else str(start.folder)
            rows.append(_float32(asked, folder, part, f"scoring_float32{ending}", model, texts=2 * len(some)))
    return rows


def _exported(model: Path, folder: Path, precision: str) -> str:
    """The model for OpenVINO, proven by the export itself."""
    from rewardsmith.config import ExportSettings
    from rewardsmith.model.export import export_model

    out = folder / f"openvino-{precision}"
    settings = ExportSettings(model=str(model), to="openvino", precision=precision, out=str(out))  # type: ignore[arg-type]
    done = export_model(settings, overwrite=False, seed=0)
    assert done.ok, done.checks
    return str(out)


def _bf16(asked: argparse.Namespace, folder: Path, common: dict[str, Any], name: str, model: str, *, texts: int) -> Row:
    """One row; `model` is the folder that ours reads."""
    with ExitStack() as stack:
        running = {
            tool: stack.enter_context(process(asked, folder, tool, job, **common | read, precision="bf16"))
            for tool, job, read in (
                (OURS, "ours.score", {"model": model}),
                (CROSS_ENCODER, "peers.cross_encoder", {}),
            )
        }
        own = running[OURS].check()
        other = running[CROSS_ENCODER].check(uncut=own["uncut"])
        reports = in_turns(running, asked.rounds)
    with process(asked, folder, OURS, "ours.score", **common, precision="float32") as tool:
        exact = tool.check()["scores"]
    quality = {
        tool: {
            "pair_agreement_with_float32": round(pair_agreement(exact, scores), 4),
            "largest_difference_from_float32": round(largest_difference(exact, scores), 5),
        }
        for tool, scores in ((OURS, own["scores"]), (CROSS_ENCODER, other["scores"]))
    }
    return row(
        name,
        work=f"MiniLM, {texts} texts of rmb_eval, at most {MAX_LENGTH} tokens",
        ratios=ratios(reports[OURS], reports[CROSS_ENCODER]),
        target=2.0,
        ours={**speed(reports[OURS], "texts"), "tool": OURS, **quality[OURS]},
        theirs={**speed(reports[CROSS_ENCODER], "texts"), "tool": CROSS_ENCODER, **quality[CROSS_ENCODER]},
        checks=[_same_ids(own, {CROSS_ENCODER: other}), *same_work(reports)],
        precision="bf16",
        packages=PACKAGES,
    )


def _float32(
    asked: argparse.Namespace, folder: Path, common: dict[str, Any], name: str, model: str, *, texts: int
) -> Row:
    """One row; `model` is the folder that ours reads."""
    jobs = {OURS: "ours.score", CROSS_ENCODER: "peers.cross_encoder", PIPELINE: "peers.pipeline"}
    common = common | {"precision": "float32", "batch_size": PIPELINE_BATCH}
    with ExitStack() as stack:
        running = {
            tool: stack.enter_context(
                process(asked, folder, tool, job, **common | ({"model": model} if tool == OURS else {}))
            )
            for tool, job in jobs.items()
        }
        own = running[OURS].check()
        uncut = own["uncut"]
        others = {tool: running[tool].check(uncut=uncut) for tool in (CROSS_ENCODER, PIPELINE)}
        reports = in_turns(running, asked.rounds)
    scores = [
        same_scores(
            f"scores of {tool} where nothing is cut",
            [own["scores"][i] for i in uncut],
            [other["scores"][i] for i in uncut],
            tolerance=SCORE_TOLERANCE,
        )
        for tool, other in others.items()
    ]
    theirs = fastest(reports, (CROSS_ENCODER, PIPELINE))
    return row(
        name,
        work=f"MiniLM, {texts} texts of rmb_eval, at most {MAX_LENGTH} tokens",
        ratios=ratios(reports[OURS], reports[theirs]),
        target=1.6,
        ours={**speed(reports[OURS], "texts"), "tool": OURS},
        theirs={**speed(reports[theirs], "texts"), "tool": theirs},
        checks=[_same_ids(own, others), *scores, *same_work(reports)],
        precision="float32",
        packages=PACKAGES,
        all_tools={tool: speed(found, "texts") for tool, found in reports.items()},
    )


def _same_ids(own: dict[str, Any], others: dict[str, dict[str, Any]]) -> Check:
    """The same token ids wherever nothing is cut."""
    return same_count(
        "hash of the token ids of texts that are not cut",
        {OURS: own["ids"], **{name: other["ids"] for name, other in others.items()}},
    )


def main() -> int:
    """Measure, print one JSON line a row."""
    parser = options(__doc__)
    parser.add_argument("--texts", type=int, default=120, help="texts of a round in bf16")
    parser.add_argument("--float32-texts", type=int, default=60, help="texts of a round in float32")
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
