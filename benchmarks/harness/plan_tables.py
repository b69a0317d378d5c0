"""The rows of plan.py as Markdown tables, for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _size(count: float) -> str:
    """Bytes for people.

    >>> _size(1_500_000_000.0)
    '1.5 GB'
    """
    for unit, value in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= value:
            return f"{_short(count / value)} {unit}"
    return f"{count:.0f} B"


def _short(number: float) -> str:
    """Three digits.

    >>> _short(1234.5), _short(0.01234), _short(12.0)
    ('1,230', '0.0123', '12')
    """
    if number == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(number)))
    rounded = round(number, digits)
    return f"{rounded:,.0f}" if digits <= 0 else f"{rounded:.{digits}f}".rstrip("0").rstrip(".")


def _time(hours: float) -> str:
    """Hours for people.

    >>> _time(0.005), _time(0.5), _time(30.0), _time(1000.0)
    ('18 s', '30 min', '30 h', '41.7 days')
    """
    for unit, value in (("days", 24), ("h", 1), ("min", 1 / 60)):
        if hours >= (100 if unit == "days" else value):
            return f"{_short(hours / value)} {unit}"
    return f"{_short(hours * 3600)} s"


def _model_table(rows: Sequence[Row]) -> str:
    head = [
        "model",
        "parameters",
        "MFLOP a token: weights",
        "attention",
        "bytes to train all weights, without activations",
        "activations a token",
        "recomputed",
    ]
    return _lines(
        head,
        (
            [
                row["model"],
                f"{row['parameters']:,}",
                _short(row["forward_flops_a_token"]["linear"] / 1e6),
                f"{_short(row['forward_flops_a_token']['attention'] / 1e6)} ({row['tokens_a_text']:,} tokens)",
                _size(row["training_bytes"]),
                _size(row["activation_bytes_a_token"]),
                _size(row["activation_bytes_a_token_recomputed"]),
            ]
            for row in rows
        ),
    )


_HOW = {"full": "all weights", "lora": "LoRA", "frozen": "head alone"}
_SHARDING = {"one": "one GPU", "ddp": "DDP", "fsdp": "FSDP"}


def _training_table(rows: Sequence[Row]) -> str:
    counts = [row["hours"] for row in rows if row["fits"]]
    pairs = list(counts[0]) if counts else []
    priced = any(row.get("money") for row in rows)
    head = [
        "model",
        "trained",
        "GPUs",
        "how",
        "tokens at once",
        "memory a GPU",
        "pairs a step",
        "s a step [all messages hidden, none]",
        "share of peak",
    ]
    head += [f"time of {int(one):,} pairs" for one in pairs] + [f"GPU-hours: {int(one):,}" for one in pairs]
    head += [f"money: {int(one):,}" for one in pairs] if priced else []
    made = []
    for row in rows:
        cells = [row["model"], _HOW[row["how"]], str(row["gpus"])]
        if not row["fits"]:
            least = row["least_gpus"]
            cells.append(f"does not fit; the least is {least} GPUs" if least else "does not fit on 512 GPUs")
            made.append(cells + [""] * (len(head) - len(cells)))
            continue
        seconds = row["seconds_a_step"]
        cells += [
            _SHARDING[row["sharding"]] + (", recomputed" if row["recompute"] else ""),
            f"{row['tokens_at_once']:,.0f}",
            _size(row["memory_bytes"]["total"]),
            str(row["pairs_a_step"]),
            f"{_short(seconds['expected'])} [{_short(seconds['all_hidden'])}, {_short(seconds['none_hidden'])}]",
            f"{row['share_of_peak']:.0%}",
        ]
        cells += [_time(row["hours"][one]) for one in pairs]
        for name in ("gpu_hours", *(("money",) if priced else ())):
            cells += [_short(row[name][one]) for one in pairs]
        made.append(cells)
    return _lines(head, made)


def _saving_table(rows: Sequence[Row]) -> str:
    made = []
    for row in rows:
        if row["saving"] == "no padding":
            made.append([f"packed beside {row['beside']}", _short(row["tokens"]), ""])
        else:
            work = f"{row['answers']} answers of {row['answer_tokens']} tokens to a prompt of {row['prompt_tokens']:,}, read once"
            made.append([work, _short(row["tokens"]), f"{_short(row['flops'])} ({row['of']})"])
    return _lines(["what is spared", "times fewer tokens", "times fewer FLOPs"], made)


def _scoring_table(rows: Sequence[Row]) -> str:
    priced = any(row["money"] is not None for row in rows)
    head = [
        "model",
        "precision",
        "answers a prompt",
        "tokens",
        "FLOPs",
        "device",
        "tokens at once",
        "a copy takes",
        "hours of one",
        "time of",
        "answers a second",
        "tokenizer, core-hours",
    ]
    head += ["money"] if priced else []
    made = []
    for row in rows:
        unit = "core" if row["unit"] == "core" else "GPU"
        cells = [
            row["model"],
            row["precision"],
            str(row["answers_a_prompt"]),
            f"{row['tokens']:.3g}",
            f"{row['flops']:.3g}",
            row["device"],
            f"{row['tokens_at_once']:,}",
            f"{row['units_a_copy']} {unit}{'s' if row['units_a_copy'] > 1 else ''}",
            _short(row["unit_hours"]),
            f"{_time(row['hours'])} ({row['count']:,} {unit}s)",
            _short(row["answers_a_second"]),
            _short(row["tokenizer_core_hours"]),
        ]
        made.append(cells + ([_short(row["money"]) if row["money"] is not None else ""] if priced else []))
    stored = [[f"{rows[0]['answers']:,} {name}", _size(count)] for name, count in _stored(rows).items()]
    return "\n\n".join([_lines(head, made), _lines(["kept", "bytes"], stored)])


def _stored(rows: Sequence[Row]) -> dict[str, float]:
    """Bytes of scores and texts, uncompressed."""
    found = rows[0]["stored_bytes"]
    texts = {row["answers_a_prompt"]: row["stored_bytes"]["texts"] for row in rows}
    return {
        "scores in float32": found["scores"],
        "scores with ids of 16 bytes": found["scores_and_ids"],
        "scores as JSON lines of `score`": found["json_lines"],
        **{f"texts, {answers} answer{'s' if answers > 1 else ''} a prompt": count for answers, count in texts.items()},
    }


def _check_table(rows: Sequence[Row]) -> str:
    made = []
    for row in rows:
        unit = next(iter(row["ours"]))
        name = {"seconds": "s", "gib": "GiB"}[unit]
        made.append(
            [
                row["benchmark"].removeprefix("plan: "),
                f"{_short(row['ours'][unit])} {name}",
                f"{_short(row['theirs'][unit])} {name}",
                f"{row['predicted_over_measured']:.2f}",
            ]
        )
    return _lines(["run", "predicted", "measured", "predicted / measured"], made)


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "model": _model_table,
    "training": _training_table,
    "saving": _saving_table,
    "scoring": _scoring_table,
    "check": _check_table,
}
