"""The pairs of a report as the page holds them: compressed, with everything that a row shows worked out beforehand.

Texts are kept once each, for prompts and answers repeat; a browser unpacks them with DecompressionStream.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewardsmith import metrics
from rewardsmith.evaluation.pages.folders import Report, evaluation_of, margin_of
from rewardsmith.pages.text import visible

MOST_PAIRS = 20_000
"""More pairs than this make a page that no phone opens: the first ones are shown, and the page says so."""
MOST_VALUES = 200
"""A metadata column with more values is no filter; its values are found by the search."""


@dataclass
class _Texts:
    """Every text once."""

    texts: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def place(self, text: str) -> int:
        text = visible(text)
        if text not in self.places:
            self.places[text] = len(self.texts)
            self.texts.append(text)
        return self.places[text]


@dataclass(frozen=True, slots=True)
class Packed:
    """What the page embeds. `counts` are those of the filters for the first model, as the page shows them before it has unpacked."""

    data: str
    num_shown: int
    num_rows: int
    has_texts: bool
    has_attributions: bool


def pack(report: Report) -> Packed:
    """The rows of a report, as base64 of gzip of JSON; the same rows give the same text."""
    rows = report.rows[:MOST_PAIRS]
    texts = _Texts()
    # A model that scored no pair, of which there is only an audit for example, has nothing to browse.
    scored = [number for number in range(len(report.models)) if any(row["models"][number] for row in rows)]
    models = [report.models[number] for number in scored]
    rows = [row | {"models": [row["models"][number] for number in scored]} for row in rows]
    temperatures = [_temperature(model["report"]) for model in models]
    document = {
        "models": [visible(model["name"]) for model in models],
        "temperatures": temperatures,
        "filters": _filters(rows),
        "rows": [_packed_row(row, texts, temperatures) for row in rows],
        "texts": texts.texts,
    }
    raw = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    return Packed(
        data=base64.b64encode(gzip.compress(raw, 9, mtime=0)).decode("ascii"),
        num_shown=len(rows),
        num_rows=len(report.rows),
        has_texts=any(row.get("chosen") is not None for row in rows),
        has_attributions=any((scores or {}).get("attributions") for row in rows for scores in row["models"]),
    )


def _temperature(report: Mapping[str, Any]) -> float | None:
    found = (evaluation_of(report).get("calibrated") or {}).get("temperature")
    return None if found is None else float(found)


def _filters(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Metadata columns to filter by, with their values in alphabetical order."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for column, value in (row.get("metadata") or {}).items():
            if value is not None:
                values.setdefault(visible(str(column)), set()).add(shown(value))
    return {column: sorted(found) for column, found in sorted(values.items()) if 1 < len(found) <= MOST_VALUES}


def shown(value: Any) -> str:
    """A value of metadata as text."""
    return visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True))


def _packed_row(row: Mapping[str, Any], texts: _Texts, temperatures: Sequence[float | None]) -> dict[str, Any]:
    packed: dict[str, Any] = {"id": visible(str(row["id"]))}
    if row.get("prompt") is not None:
        packed["p"] = _packed_prompt(row["prompt"], texts)
    if row.get("rejected_prompt") is not None:
        packed["q"] = _packed_prompt(row["rejected_prompt"], texts)
    for short, name in (("c", "chosen"), ("r", "rejected")):
        if row.get(name) is not None:
            packed[short] = texts.place(_text(row[name]))
    if row.get("tie"):
        packed["tie"] = 1
    metadata = {
        visible(str(key)): shown(value) for key, value in (row.get("metadata") or {}).items() if value is not None
    }
    if metadata:
        packed["m"] = metadata
    packed["s"] = [
        None if scores is None else _packed_scores(scores, temperature)
        for scores, temperature in zip(row["models"], temperatures, strict=True)
    ]
    attributions = [_packed_attributions(scores) for scores in row["models"]]
    if any(attributions):
        packed["a"] = attributions
    return packed


def _packed_prompt(prompt: Any, texts: _Texts) -> Any:
    """A place for a single text, [[role, place], ...] for a conversation."""
    if isinstance(prompt, list):
        return [[visible(str(message["role"])), texts.place(str(message["content"]))] for message in prompt]
    return texts.place(str(prompt))


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def _packed_scores(scores: Mapping[str, Any], temperature: float | None) -> list[Any]:
    """[chosen, rejected, margin, probability that chosen is better, tokens of each, whether each was cut]."""
    margin = margin_of(scores)
    probability = float(metrics.win_probabilities(np.array([margin]), temperature or 1.0)[0])
    return [
        round(float(scores["score_chosen"]), 5),
        round(float(scores["score_rejected"]), 5),
        # Not rounded to 0: only equal scores are a tie.
        round(margin, 5) or margin,
        round(probability, 4),
        scores.get("tokens_chosen"),
        scores.get("tokens_rejected"),
        _flag(scores.get("truncated_chosen")),
        _flag(scores.get("truncated_rejected")),
    ]


def _flag(value: Any) -> int | None:
    return None if value is None else int(bool(value))


def _packed_attributions(scores: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Both sides' attributions with their words; each word's shade from -5 to 5 of the largest value of the pair."""
    found = (scores or {}).get("attributions")
    if not found:
        return None
    largest = max((abs(value or 0.0) for side in found.values() for _, value in side["tokens"]), default=0.0) or 1.0
    return {
        side: {
            "method": visible(str(one["method"])),
            "score": one.get("score"),
            "baseline": one.get("baseline"),
            "sum": one.get("sum"),
            "gap": one.get("gap"),
            "tokens": [
                [visible(str(text)), None if value is None else round(value, 5), round(5 * (value or 0.0) / largest)]
                for text, value in one["tokens"]
            ],
        }
        for side, one in found.items()
    }
