"""A plan on paper: what training a reward model on 1 to 512 GPUs costs, and scoring a billion answers; and how far the arithmetic is from what was measured here.

Run: python benchmarks/plan.py                       one JSON line a row
     python benchmarks/plan.py --table               the same as Markdown tables
     python benchmarks/plan.py --only training --model qwen3-0.6b --gpus 8 --pairs 200000 --price 2.5
     python benchmarks/plan.py --page                writes the tables of docs/scale.md; --check: exit code 1 if they are not up to date
     python benchmarks/plan.py --measure             measures this machine on one thread (a minute or two) and writes benchmarks/plan_measured.json

Nothing is run but by --measure. The formulas are in harness/costs.py; every assumption is a flag. Rows of kind "check" have the fields of the other benchmarks' rows: `ours` is predicted, `theirs`
measured, `ratio` how near (the smaller over the larger, 1 is exact), `target` 0.5. Rows of the other kinds compare nothing, and have neither ratio nor target.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import costs, record
from harness.costs import Assumptions, Device, How, Precision, Reading, Shape, Way
from harness.plan_tables import TABLES
from rewardsmith.errors import RewardsmithError, SettingsError

HERE = Path(__file__).resolve().parent
RESULTS, MEASURED, PAGE = HERE / "results", HERE / "plan_measured.json", HERE.parent / "docs" / "scale.md"
Row = dict[str, Any]
KINDS = ("model", "training", "saving", "scoring", "check")
# The sizes in each model's config.json on the Hugging Face hub.
SHAPES = {
    "minilm": Shape("all-MiniLM-L6-v2", False, 384, 1536, 6, 12, 12, 32, 30_522, positions=512, types=2),
    "smollm2": Shape("SmolLM2-135M", True, 576, 1536, 30, 9, 3, 64, 49_152),
    "qwen3-0.6b": Shape("Qwen3-0.6B", True, 1024, 3072, 28, 16, 8, 128, 151_936, head_norms=True),
    "llama-3.1-8b": Shape("Llama-3.1-8B", True, 4096, 14_336, 32, 32, 8, 128, 128_256),
    "llama-3.1-70b": Shape("Llama-3.1-70B", True, 8192, 28_672, 80, 64, 8, 128, 128_256),
}
TRAINED = ("qwen3-0.6b", "llama-3.1-8b", "llama-3.1-70b")
H100 = Device(
    "H100 SXM",
    bf16=989e12,
    float32=67e12,
    bandwidth=3.35e12,
    memory=80e9,
    in_node=8,
    link=450e9,
    network=50e9,
    source="NVIDIA H100 datasheet: dense bf16 without sparsity, float32 without TF32, HBM3, NVLink 900 GB/s both ways; network: one InfiniBand card of 400 Gb/s a GPU, a common set-up",
)
# Matrix products of MiniLM's sizes on both cores (docs/speed.md, the middle of what is given there). What its memory moves comes from plan_measured.json: see `processor`.
CPU = Device(
    "2 cores of AMD EPYC",
    bf16=395e9,
    float32=170e9,
    bandwidth=math.nan,
    memory=24e9,
    source="docs/speed.md, measured",
)
# FLOP/s of attention on the two cores, either precision: 0.28 of a step of 2.5 s that has 74 GFLOP of it, 0.20 of 8.6 s and 0.34 of 5.1 s with 140 GFLOP: 105, 81 and 81 (profiles of docs/speed.md).
CPU_ATTENTION = 90e9
# What the same profiles show beside products and attention: 0.19, 0.10 and 0.15 of the time.
CPU_REST = 0.15
# Whole nodes above one.
GPU_COUNTS = (1, 2, 4, 8, *range(16, 513, 8))
# The tokens that a device takes at once, over Assumptions.part; at least one group, at most all of a step.
PART_SIZES = (8, 4, 2, 1, 1 / 2, 1 / 4, 1 / 8)
# A plainer way is taken where it costs no more than this beside the fastest.
PLAINER = 1.05
# Tokens that scoring takes at once: the default of `score`, and what a GPU needs to be busy.
SCORED_AT_ONCE, BUSY = 4096, 65_536
FULL, LORA, FROZEN = "full", "lora", "frozen"
_STORED = {"score": 4, "id": 16, "line": 90}  # bytes of a score in float32, of an id, of a JSON line of `score`


def main(words: Iterable[str] | None = None) -> int:
    """Make the rows that are asked for; returns the exit code."""
    asked = parser().parse_args(None if words is None else list(words))
    try:
        if asked.measure:
            from harness.one_thread import measure

            MEASURED.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
            return 0
        if asked.page or asked.check:
            return _page(write=asked.page)
        check_asked(asked)
        rows = rows_of(asked)
    except RewardsmithError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if asked.table:
        print("\n\n".join(TABLES[kind](found) for kind in KINDS if (found := [r for r in rows if r["kind"] == kind])))
    if asked.out or not asked.table:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        if asked.out:
            asked.out.write_text(lines, encoding="utf-8")
        if not asked.table:
            print(lines, end="")
    return 0


def parser() -> argparse.ArgumentParser:
    """All flags; their defaults are what docs/scale.md shows."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", action="append", choices=KINDS, help="rows of this kind; may be given again")
    made.add_argument("--model", action="append", choices=SHAPES, help="this model; may be given again")
    made.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512], help="numbers of GPUs")
    made.add_argument("--how", nargs="+", choices=(FULL, LORA, FROZEN), default=[FULL, LORA, FROZEN])
    made.add_argument("--pairs", type=int, nargs="+", default=[80_000, 1_000_000], help="pairs to train on, one epoch")
    made.add_argument("--prompt-tokens", type=int, default=512)
    made.add_argument("--answer-tokens", type=int, default=512)
    made.add_argument("--batch-size", type=int, default=128, help="pairs a step; at least one a GPU")
    made.add_argument("--apart", action="store_true", help="read prompts beside every answer, not once")
    made.add_argument("--answers", type=int, default=1_000_000_000, help="answers to score")
    made.add_argument("--answers-a-prompt", type=int, default=16, help="of those to score")
    made.add_argument("--score-gpus", type=int, default=64)
    made.add_argument("--score-cores", type=int, default=1024)
    made.add_argument("--price", type=float, help="of an hour of a GPU, in any currency; none is assumed")
    made.add_argument("--core-price", type=float, help="of an hour of a processor core")
    for name, what in (
        ("bf16", "FLOP/s of a GPU in bf16"),
        ("float32", "the same in float32"),
        ("bandwidth", "bytes a second of its memory"),
        ("memory", "its bytes"),
        ("link", "bytes a second to a GPU of its node, one way"),
        ("network", "bytes a second to another node, one way"),
    ):
        made.add_argument(f"--gpu-{name}", type=float, default=getattr(H100, name), help=f"{what} [%(default)g]")
    made.add_argument("--gpus-a-node", type=int, default=H100.in_node)
    made.add_argument("--compute-share", type=float, default=Assumptions.linear, help="of the peak [%(default)s]")
    for field in ("bandwidth", "link", "hidden", "usable"):
        default = getattr(Assumptions, field)
        made.add_argument(f"--{field}-share", type=float, default=default, help="see docs/scale.md [%(default)s]")
    for field, kind in (("launch", float), ("hop", float), ("frozen_bytes", int), ("part", int), ("rank", int)):
        default = getattr(Assumptions, field)
        made.add_argument(f"--{field.replace('_', '-')}", type=kind, default=default, help="see docs/scale.md")
    made.add_argument("--tokenizer-rate", type=float, help="tokens a second and core that a tokenizer reads [measured]")
    made.add_argument("--bytes-a-token", type=float, default=4.5, help="of text [%(default)s]")
    made.add_argument("--table", action="store_true", help="Markdown instead of JSON")
    made.add_argument("--out", type=Path, help="write the JSON lines to this file as well")
    made.add_argument("--page", action="store_true", help="write the tables of docs/scale.md, with the defaults")
    made.add_argument("--check", action="store_true", help="exit code 1 if that page is not up to date")
    made.add_argument("--measure", action="store_true", help="measure this machine, on one thread")
    return made


def check_asked(asked: argparse.Namespace) -> None:
    """Refuse what nobody can mean.

    Raises:
        SettingsError: for a count, size or rate that is not above 0, or a share outside its range.
    """
    for name, value in vars(asked).items():
        if name == "usable_share" or name.endswith("_share"):
            least, low = (0.0, True) if name == "hidden_share" else (0.0, False)
            if not (least <= value <= 1) or (value == 0 and not low):
                raise SettingsError(f"--{name.replace('_', '-')} above 0 and at most 1", str(value), "Give a share.")
            continue
        values = value if isinstance(value, list) else [value]
        numbers = [one for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
        least = 0 if name in ("launch", "hop", "price", "core_price") else None
        for one in numbers:
            if not math.isfinite(one) or one < 0 or (one == 0 and least is None):
                flag = f"--{name.replace('_', '-')}"
                raise SettingsError(f"{flag} above 0", str(one), "Give a positive number.")


def rows_of(asked: argparse.Namespace) -> list[Row]:
    """The rows of the kinds that are asked for."""
    made: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
        "model": model_rows,
        "training": training_rows,
        "saving": saving_rows,
        "scoring": scoring_rows,
        "check": lambda _: check_rows(),
    }
    return [{"kind": kind, **row} for kind in KINDS if kind in (asked.only or KINDS) for row in made[kind](asked)]


def device_of(asked: argparse.Namespace) -> Device:
    """The GPU of the flags."""
    changed = {name: getattr(asked, f"gpu_{name}") for name in ("bf16", "float32", "bandwidth", "memory", "link")}
    found = dataclasses.replace(H100, **changed, network=asked.gpu_network, in_node=asked.gpus_a_node)
    return found if found == H100 else dataclasses.replace(found, name="GPU of the flags", source="flags")


def assumptions_of(asked: argparse.Namespace) -> Assumptions:
    """The assumptions of the flags."""
    return Assumptions(
        linear=asked.compute_share,
        attention=asked.compute_share,
        bandwidth=asked.bandwidth_share,
        link=asked.link_share,
        hidden=asked.hidden_share,
        usable=asked.usable_share,
        launch=asked.launch,
        hop=asked.hop,
        frozen_bytes=asked.frozen_bytes,
        part=asked.part,
        rank=asked.rank,
    )


def model_rows(asked: argparse.Namespace) -> list[Row]:
    """What each model is."""
    length = asked.prompt_tokens + asked.answer_tokens
    rows = []
    for name in asked.model or SHAPES:
        shape = SHAPES[name]
        tokens = length if shape.decoder else min(length, shape.positions)
        once = costs.forward(shape, Reading.of_texts(1, tokens, spread=1.0, decoder=shape.decoder))
        way = Way(FULL, "one", 1, False, 1)
        rows.append(
            {
                "model": shape.name,
                "parameters": shape.parameters,
                "weights_of_products": shape.layers * shape.products,
                "tokens_a_text": tokens,
                "forward_flops_a_token": {
                    "linear": once.linear / tokens,
                    "attention": once.attention / tokens,
                },
                "training_bytes": costs.memory(shape, way, Assumptions()).total - costs.activations(shape, way),
                "activation_bytes_a_token": costs.activations(shape, way),
                "activation_bytes_a_token_recomputed": costs.activations(
                    shape, dataclasses.replace(way, recompute=True)
                ),
            }
        )
    return rows


def group_of(asked: argparse.Namespace, shape: Shape, *, apart: bool = False, answers: int = 2) -> Reading:
    """One prompt with its answers, as a model reads it; an encoder cuts what is longer than its positions."""
    prompt, answer = asked.prompt_tokens, asked.answer_tokens
    if not shape.decoder:
        total = min(prompt + answer, shape.positions)
        prompt, answer = total - min(answer, total), min(answer, total)
    shared = shape.decoder and not (apart or asked.apart)
    return Reading.of_groups(1, prompt, answer, answers=answers, shared=shared, decoder=shape.decoder)


def ways(how: How, devices: int, tokens: float, group: float, assumed: Assumptions) -> list[Way]:
    """Every way that is considered, the plainest first: copies before slices, without recomputation before with, in parts down to one group."""
    shardings: tuple[costs.Sharding, ...] = ("one",) if devices == 1 else ("ddp", "fsdp")
    # The tokens in a row, the largest first: within a sharding and a way to keep activations, fewer parts are never slower.
    parts = sorted({max(group, min(tokens, assumed.part * size)) for size in PART_SIZES}, reverse=True)
    return [
        Way(how, sharding, devices, recompute, part)
        for sharding in shardings
        for recompute in ((False,) if how == FROZEN else (False, True))
        for part in parts
    ]


def fits(shape: Shape, way: Way, device: Device, assumed: Assumptions) -> bool:
    """Whether what is counted takes no more than the usable share of a device's memory."""
    return costs.memory(shape, way, assumed).total <= device.memory * assumed.usable


@dataclass(frozen=True)
class Choice:
    """The fastest way that fits, and what a step of it takes."""

    way: Way
    step: costs.Step
    pairs: int


def choose(
    shape: Shape, how: How, devices: int, group: Reading, *, batch: int, device: Device, assumed: Assumptions
) -> Choice | None:
    """The fastest of the ways that fit, or a plainer one that takes no more than 5 % longer; None where none fits.

    Args:
        shape: of the network.
        how: it is trained.
        devices: how many.
        group: one pair.
        batch: pairs a step, at least; every device has the same number of whole pairs.
        device: the kind of device.
        assumed: see `Assumptions`.
    """
    local = math.ceil(batch / devices)
    reading = group.times(local)
    found = [
        Choice(way, costs.step(shape, reading, way, device, assumed), local * devices)
        for way in ways(how, devices, reading.tokens, group.tokens, assumed)
        if fits(shape, way, device, assumed)
    ]
    fastest = min((one.step.seconds for one in found), default=0.0)
    return next((one for one in found if one.step.seconds <= PLAINER * fastest), None)


def least_devices(
    shape: Shape, how: How, group: Reading, *, batch: int, device: Device, assumed: Assumptions
) -> int | None:
    """The smallest number of devices on which a pair fits: 1, 2, 4, 8 or whole nodes up to 64 of them."""
    for count in GPU_COUNTS:
        if choose(shape, how, count, group, batch=batch, device=device, assumed=assumed):
            return count
    return None


def training_rows(asked: argparse.Namespace) -> list[Row]:
    """Each model trained in each way on each number of GPUs."""
    device, assumed = device_of(asked), assumptions_of(asked)
    rows = []
    for name in asked.model or TRAINED:
        shape = SHAPES[name]
        group = group_of(asked, shape)
        for how in asked.how:
            least = least_devices(shape, how, group, batch=asked.batch_size, device=device, assumed=assumed)
            for count in asked.gpus:
                found = choose(shape, how, count, group, batch=asked.batch_size, device=device, assumed=assumed)
                row: Row = {
                    "model": shape.name,
                    "how": how,
                    "device": device.name,
                    "gpus": count,
                    "fits": found is not None,
                    "least_gpus": least,
                }
                rows.append(row | (_training(shape, found, group, device, assumed, asked) if found else {}))
    return rows


def _training(
    shape: Shape, found: Choice, group: Reading, device: Device, assumed: Assumptions, asked: argparse.Namespace
) -> Row:
    way, step = found.way, found.step
    local = group.times(found.pairs / way.devices)
    flops = costs.training(shape, local, how=way.how, recompute=False).total
    held = costs.memory(shape, way, assumed)
    parts = max(1, math.ceil(local.tokens / way.part))
    hours = {str(pairs): math.ceil(pairs / found.pairs) * step.seconds / 3600 for pairs in asked.pairs}
    return {
        "sharding": way.sharding,
        "recompute": way.recompute,
        "tokens_at_once": way.part,
        "pairs_a_step": found.pairs,
        "tokens_a_step_and_gpu": local.tokens,
        "memory_bytes": {**dataclasses.asdict(held), "total": held.total},
        "flops_a_step_and_gpu": flops,
        "bytes_sent_a_step_and_gpu": costs.messages(shape, way, device, assumed, parts=parts).bytes,
        "seconds_a_step": {
            "expected": step.seconds,
            "all_hidden": step.least,
            "none_hidden": step.most,
            "products": step.products,
            "launches": step.launches,
            "messages": step.messages,
            "exposed": step.exposed,
            "optimiser": step.optimiser,
        },
        "share_of_peak": flops / (step.seconds * device.bf16),
        "pairs_a_second": found.pairs / step.seconds,
        "hours": hours,
        "gpu_hours": {pairs: one * way.devices for pairs, one in hours.items()},
        "money": None
        if asked.price is None
        else {pairs: one * way.devices * asked.price for pairs, one in hours.items()},
    }


def saving_rows(asked: argparse.Namespace) -> list[Row]:
    """What reading a prompt once spares, and what not padding does."""
    rows: list[Row] = []
    cases = ((512, 512, 2), (512, 512, 4), (512, 512, 16), (2048, 256, 2), (2048, 256, 16), (256, 64, 16))
    shape = SHAPES["llama-3.1-8b"]
    for prompt, answer, answers in cases:
        alone, shared = (
            costs.forward(shape, Reading.of_groups(1, prompt, answer, answers=answers, shared=one, decoder=True)).total
            for one in (False, True)
        )
        rows.append(
            {
                "saving": "shared prompts",
                "prompt_tokens": prompt,
                "answer_tokens": answer,
                "answers": answers,
                "tokens": costs.sharing_ceiling(prompt, answer, answers),
                "flops": alone / shared,
                "of": shape.name,
            }
        )
    # Shares of filler as docs/speed.md gives them for RMB.
    for name, filler in (("padded in random order", 1 / 3), ("padded, sorted by length", 1 / 7)):
        rows.append({"saving": "no padding", "beside": name, "tokens": (1 - 0.01) / (1 - filler)})
    return rows


def scoring_rows(asked: argparse.Namespace) -> list[Row]:
    """So many answers through an encoder and decoders, on GPUs and on processor cores."""
    device, assumed = device_of(asked), assumptions_of(asked)
    core = dataclasses.replace(CPU, name="core of AMD EPYC", bf16=CPU.bf16 / 2, float32=CPU.float32 / 2)
    many = asked.answers_a_prompt
    gpu_cases: list[tuple[str, int, Precision, int]] = [
        ("minilm", 1, "bf16", SCORED_AT_ONCE),
        ("minilm", 1, "bf16", BUSY),
    ]
    gpu_cases += [("minilm", 1, "float32", BUSY), ("qwen3-0.6b", 1, "bf16", SCORED_AT_ONCE)]
    for name in TRAINED:
        gpu_cases += [(name, 1, "bf16", BUSY), (name, many, "bf16", BUSY), (name, 1, "float32", BUSY)]
    cases = [(*case, device, assumed, asked.score_gpus) for case in gpu_cases]
    on_cores: list[Precision] = ["float32", "bf16"]
    for precision in on_cores:
        for name, answers in (("minilm", 1), ("smollm2", many)):
            own = cpu_assumptions(precision)
            cases.append((name, answers, precision, SCORED_AT_ONCE, core, own, asked.score_cores))
    rows = []
    for name, answers, precision, at_once, on, own, count in cases:
        if asked.model and name not in asked.model:
            continue
        shape, first = SHAPES[name], not SHAPES[name].decoder
        group = group_of(asked, shape, answers=answers)
        reading = group.times(asked.answers / answers)
        weights = shape.parameters * own.frozen_bytes + costs.layer_bytes(shape, precision) * at_once
        copies = max(1, math.ceil(weights / (on.memory * own.usable)))
        seconds = costs.scoring_seconds(shape, reading, on, own, precision=precision, part=at_once, first_token=first)
        unit = "core" if on is core else "gpu"
        price = asked.core_price if unit == "core" else asked.price
        texts = asked.answers * (asked.answer_tokens + asked.prompt_tokens / answers) * asked.bytes_a_token
        rate = asked.tokenizer_rate or measured()["tokens_a_second_and_core"]
        rows.append(
            {
                "model": shape.name,
                "device": on.name,
                "unit": unit,
                "count": count,
                "precision": precision,
                "answers": asked.answers,
                "answers_a_prompt": answers,
                "tokens_at_once": at_once,
                "tokens": reading.tokens,
                "flops": costs.forward(shape, reading, first_token=first).total,
                "units_a_copy": copies,
                "unit_hours": seconds / 3600,
                "hours": seconds / 3600 / count,
                "answers_a_second": asked.answers / seconds * count,
                "money": None if price is None else seconds / 3600 * price,
                "tokenizer_core_hours": reading.tokens / rate / 3600,
                "stored_bytes": {
                    "scores": asked.answers * _STORED["score"],
                    "scores_and_ids": asked.answers * (_STORED["score"] + _STORED["id"]),
                    "json_lines": asked.answers * _STORED["line"],
                    "texts": texts,
                },
            }
        )
    return rows


def cpu_assumptions(precision: Precision) -> Assumptions:
    """What docs/speed.md shows of the processor: products at what was measured, attention at a rate of its own, no launches to wait for."""
    peak = CPU.bf16 if precision == "bf16" else CPU.float32
    return Assumptions(
        linear=1.0, attention=CPU_ATTENTION / peak, rest=CPU_REST, bandwidth=1.0, launch=0.0, usable=0.85, part=8192
    )


def processor() -> Device:
    """The processor of this project, with the rate at which a fused AdamW was measured to move its bytes."""
    return dataclasses.replace(CPU, bandwidth=measured()["adamw_bytes_a_second"])


def measured() -> dict[str, Any]:
    """What --measure wrote.

    Raises:
        SettingsError: if it was never run.
    """
    if not MEASURED.is_file():
        raise SettingsError(f"the file {MEASURED.name}", "none", "Run: python benchmarks/plan.py --measure")
    return json.loads(MEASURED.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Run:
    """A run that was measured, and what the model is told of it.

    Args:
        name: of the check.
        row: of benchmarks/results whose `side` tells time or memory.
        model: a name of SHAPES.
        texts, tokens: of a round; tokens before anything is shared.
        spread: mean T^2 over squared mean T of its texts, from their lengths.
        steps: of the optimiser in a round; 0: scoring.
        precision: of the products.
        ceiling: tokens over those read with prompts shared.
        side: ours or theirs.
    """

    name: str
    row: tuple[str, str]
    model: str
    texts: int
    tokens: int
    spread: float
    steps: int
    precision: Precision
    ceiling: float = 1.0
    side: str = "ours"
    answers: int | None = None


RUNS = (
    Run("encoder training", ("encoder_training", "encoder_training_bf16"), "minilm", 64, 17_678, 1.25, 2, "bf16"),
    Run("encoder training, 128 pairs", ("growth", "growth"), "minilm", 256, 61_818, 1.33, 8, "bf16"),
    Run(
        "decoder training",
        ("decoder_training", "decoder_training_bf16"),
        "smollm2",
        32,
        7150,
        1.23,
        2,
        "bf16",
        ceiling=1.628,
    ),
    Run(
        "decoder training, prompts not shared",
        ("decoder_training", "decoder_sharing"),
        "smollm2",
        32,
        7150,
        1.23,
        2,
        "bf16",
        side="theirs",
    ),
    Run(
        "4 groups of 4 answers",
        ("ranked_groups", "ranked_sharing"),
        "smollm2",
        16,
        5120,
        1.0,
        2,
        "bf16",
        ceiling=2.5,
        answers=4,
    ),
    Run(
        "4 groups of 8 answers",
        ("ranked_groups", "ranked_sharing"),
        "smollm2",
        32,
        10_240,
        1.0,
        2,
        "bf16",
        ceiling=10 / 3,
        answers=8,
    ),
    Run("encoder scoring", ("scoring", "scoring_float32"), "minilm", 60, 19_311, 1.24, 0, "float32"),
    Run("encoder scoring", ("scoring", "scoring_bf16"), "minilm", 120, 39_266, 1.25, 0, "bf16"),
    Run("encoder scoring, 160 pairs", ("growth", "growth_scoring"), "minilm", 320, 78_278, 1.32, 0, "float32"),
    Run(
        "best of 16",
        ("best_of_n", "best_of_16"),
        "smollm2",
        32,
        10_240,
        1.0,
        0,
        "float32",
        ceiling=4.0,
    ),
)


def predicted_seconds(run: Run, device: Device, assumed: Assumptions) -> float:
    """Seconds of a round of a run."""
    shape = SHAPES[run.model]
    first = not shape.decoder
    reading = Reading.of_texts(run.texts, run.tokens, spread=run.spread, decoder=shape.decoder, ceiling=run.ceiling)
    if not run.steps:
        return costs.scoring_seconds(shape, reading, device, assumed, precision=run.precision, first_token=first)
    way = Way(FULL, "one", 1, False, assumed.part, run.precision)
    one = costs.step(shape, reading.times(1 / run.steps), way, device, assumed, first_token=first)
    return one.seconds * run.steps


def check_rows() -> list[Row]:
    """Predicted beside measured: times on this project's processor and on one H100, and memory."""
    rows = []
    for run in RUNS:
        source = _result(run)
        found = source[run.side]["seconds"]["median"]
        predicted = predicted_seconds(run, processor(), cpu_assumptions(run.precision))
        rows.append(_check(f"{run.name}: {SHAPES[run.model].name}", "seconds", predicted, found, run.precision, source))
    return rows + _own_rows() + _gpu_rows() + _memory_rows()


def _result(run: Run) -> Row:
    file, name = run.row
    rows = [row for row in record.read(RESULTS / f"{file}.json") if row["benchmark"] == name]
    return next(row for row in rows if run.answers is None or row["answers"] == run.answers)


def _check(name: str, unit: str, predicted: float, found: float, precision: str, source: Mapping[str, Any]) -> Row:
    near = min(predicted, found) / max(predicted, found)
    return {
        "benchmark": f"plan: {name}, {precision}",
        "ratio": record.spread([near]),
        "target": 0.5,
        "ours": {unit: predicted, "tool": "predicted"},
        "theirs": {unit: found, "tool": "measured"},
        "predicted_over_measured": predicted / found,
        "same_work": True,
        "precision": precision,
        "machine": source.get("machine"),
        "versions": source.get("versions"),
    }


def _own_rows() -> list[Row]:
    """What --measure ran on one thread, against the rates that it measured on that thread."""
    own = measured()
    device = dataclasses.replace(
        CPU, bf16=own["flops"]["bf16"], float32=own["flops"]["float32"], bandwidth=own["adamw_bytes_a_second"]
    )
    rows = []
    for one in own["runs"]:
        run = Run(
            one["name"], ("", ""), "minilm", one["texts"], one["tokens"], one["spread"], one["steps"], one["precision"]
        )
        assumed = dataclasses.replace(
            cpu_assumptions(run.precision), attention=CPU_ATTENTION / 2 / own["flops"][run.precision]
        )
        predicted = predicted_seconds(run, device, assumed)
        name = f"{run.name}, one thread: {SHAPES[run.model].name}"
        rows.append(_check(name, "seconds", predicted, one["seconds"], run.precision, own))
    return rows


# docs/speed.md: seconds on one H100 with the shape of Qwen3-0.6B; the middle of what is given there.
_STEP_TOKENS, _STEP_SECONDS, _GROUPS_SECONDS = 2600, 0.150, 0.335


def _gpu_rows() -> list[Row]:
    """The two figures of docs/speed.md. Of the first, `Assumptions.launch` was taken; the second is foretold by it."""
    shape, assumed = SHAPES["qwen3-0.6b"], Assumptions()
    reading = Reading.of_texts(16, _STEP_TOKENS, spread=1.23, decoder=True)
    whole = dataclasses.replace(assumed, linear=1.0, attention=1.0, bandwidth=1.0, launch=0.0)
    way = Way(FULL, "one", 1, False, assumed.part)
    groups = Reading.of_groups(16, 256, 64, answers=16, shared=True, decoder=True)
    nothing = dataclasses.replace(assumed, launch=0.0)
    source = {"machine": {"processor": "H100 SXM"}, "versions": None}
    cases = (
        (
            "training step, products alone, at the peak",
            costs.step(shape, reading, way, H100, whole).products,
            _STEP_SECONDS,
        ),
        ("training step, products alone", costs.step(shape, reading, way, H100, nothing).products, _STEP_SECONDS),
        ("training step, without launches", costs.step(shape, reading, way, H100, nothing).seconds, _STEP_SECONDS),
        ("training step, with launches", costs.step(shape, reading, way, H100, assumed).seconds, _STEP_SECONDS),
        (
            "16 groups of 16, without launches",
            costs.scoring_seconds(shape, groups, H100, nothing, precision="bf16"),
            _GROUPS_SECONDS,
        ),
        (
            "16 groups of 16, with launches",
            costs.scoring_seconds(shape, groups, H100, assumed, precision="bf16"),
            _GROUPS_SECONDS,
        ),
    )
    return [
        _check(f"H100, {name}: {shape.name}", "seconds", predicted, found, "bf16", source)
        for name, predicted, found in cases
    ]


def _memory_rows() -> list[Row]:
    """Peaks of growth.py, of MiniLM: the process as it is after its imports, and the count."""
    own, shape = measured(), SHAPES["minilm"]
    growth = {row["benchmark"]: row for row in record.read(RESULTS / "growth.json")}
    way = Way(FULL, "one", 1, False, Assumptions.part)
    # The probabilities of attention are kept on CPUs (model/attention.py): 12 heads a token, each with the mean of what a token sees, in bf16.
    kept = shape.layers * shape.heads * 241 * 1.33 * 2
    held = own["resident_bytes"] + costs.memory(shape, way, Assumptions()).total + kept * way.part
    read = own["resident_bytes"] + 4 * shape.parameters + costs.layer_bytes(shape, "float32") * 4096
    rows = []
    for one in own["runs"]:
        mean = one["tokens"] / one["texts"] * one["spread"]
        if one["steps"]:
            tokens = one["tokens"] / one["steps"]
            count = costs.memory(shape, dataclasses.replace(way, part=tokens), Assumptions()).total
            count += shape.layers * shape.heads * mean * 2 * tokens
        else:
            tokens = min(one["tokens"], SCORED_AT_ONCE)
            count = 4 * shape.parameters + costs.layer_bytes(shape, one["precision"]) * tokens
        label = f"peak of {one['name']}, one thread, {one['tokens']:,} tokens: {shape.name}"
        count += own["resident_bytes"]
        rows.append(_check(label, "gib", count / 2**30, one["peak_bytes"] / 2**30, one["precision"], own))
    for name, predicted, precision in (("growth_memory", held, "bf16"), ("growth_scoring_memory", read, "float32")):
        verb = "training" if name == "growth_memory" else "scoring"
        for size, field in (("a quarter of the pairs", "peak_gib_at_a_quarter"), ("all pairs", "peak_gib")):
            found = growth[name]["ours"][field]
            label = f"peak of {verb}, {size}: {shape.name}"
            rows.append(_check(label, "gib", predicted / 2**30, found, precision, growth[name]))
    return rows


def with_tables(page: str) -> str:
    """A page with the tables of the default settings between their marks, `<!-- plan: KIND [HOW] -->` and `<!-- end of plan -->`.

    Raises:
        ValueError: if the page lacks the marks of a table.
    """
    end = "<!-- end of plan -->"
    for kind, how in (
        ("model", None),
        ("training", FULL),
        ("training", LORA),
        ("training", FROZEN),
        ("saving", None),
        ("scoring", None),
        ("check", None),
    ):
        begin = f"<!-- plan: {kind}{f' {how}' if how else ''} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the page needs the two lines {begin} and {end}")
        asked = parser().parse_args(["--only", kind, *(["--how", how] if how else [])])
        page = f"{before}{begin}\n{TABLES[kind](rows_of(asked))}\n{end}{after}"
    return page


def _page(*, write: bool) -> int:
    page = PAGE.read_text(encoding="utf-8")
    wanted = with_tables(page)
    if write:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    print("up to date" if page == wanted else "not up to date: python benchmarks/plan.py --page", file=sys.stderr)
    return int(page != wanted)


if __name__ == "__main__":
    sys.exit(main())
