"""A scorer on a benchmark, and the same numbers from stored scores without any model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from rewardsmith.data.schema import Pair, prompt_key
from rewardsmith.data.sources import source_name
from rewardsmith.errors import DataError, RowError
from rewardsmith.evaluation.benchmarks.items import Benchmark, Item, Question, is_tied
from rewardsmith.evaluation.benchmarks.reading import read_questions
from rewardsmith.evaluation.benchmarks.registry import named
from rewardsmith.scores import Scorer, TableScorer, checked
from rewardsmith.stats import Floats


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark found.

    Args:
        document: the value of the key `benchmark` in a report.
        rows: one row an item, with all scores and what the rule needs: `recompute` turns them into the document again.
    """

    document: dict[str, Any]
    rows: list[dict[str, Any]]


def judge(
    name: str, scorer: Scorer, source: str | Sequence[str], *, seed: int = 0, skip_bad: bool = False
) -> BenchmarkResult:
    """Score every answer of a benchmark once, and apply its rule.

    Args:
        name: of the benchmark; see `registry.BENCHMARKS`.
        scorer: anything with `score`; with `table` too, cuts are counted.
        source: a file, a folder as the authors publish it, a saved dataset or a hub name (owner/name or owner/name:split); several make one benchmark.
        seed: of the bootstrap.
        skip_bad: count malformed rows and rows of other formats instead of stopping at the first.

    Raises:
        SettingsError: if there is no such benchmark.
        DataError: if the source is not of it.
        ScoreError: if a score is not finite.
    """
    benchmark = named(name)
    found = read_questions(benchmark, source, skip_bad=skip_bad)
    items = [question.item for question in found.questions]
    scores, truncated = _score(scorer, found.questions)
    sources = [source] if isinstance(source, str) else list(source)
    about = {
        "source": ", ".join(source_name(one) for one in sources),
        "left_out": dict(found.left_out),
        "splits_not_read": found.not_read,
        "truncated": truncated,
    }
    return BenchmarkResult(_document(benchmark, items, scores, about, seed), _stored(items, scores))


def recompute(name: str, rows: str | Path | Sequence[Mapping[str, Any]], *, seed: int = 0) -> BenchmarkResult:
    """The result of stored rows, without a model.

    Args:
        name: of the benchmark.
        rows: what `judge` gave as `rows`, or a file of them, one JSON object a line.
        seed: of the bootstrap.

    Raises:
        SettingsError: if there is no such benchmark.
        RowError: at a row that is not such a row.
        DataError: if there is none, or the file cannot be read.
    """
    benchmark = named(name)
    source = rows.name if isinstance(rows, Path) else Path(rows).name if isinstance(rows, str) else "stored rows"
    read = _lines(Path(rows)) if isinstance(rows, str | Path) else list(rows)
    if not read:
        raise DataError("at least one stored row", f"none in {source}", "Check the file.")
    items, scores, others = [], [], []
    for number, row in enumerate(read, start=1):
        item, mine = _restored(row, f"{source}:{number}")
        if benchmark.subsets and not any(item.subset == known for known in (*benchmark.subsets, *benchmark.optional)):
            others.append(item.subset)
        items.append(item)
        scores.append(mine)
    if len(others) == len(items):
        raise DataError(f"rows of {name}", f"rows of {others[0]!r} in {source}", "Name the benchmark that wrote them.")
    about: dict[str, Any] = {"source": source, "left_out": {}, "splits_not_read": [], "truncated": None}
    return BenchmarkResult(_document(benchmark, items, scores, about, seed), _stored(items, scores))


def _lines(path: Path) -> list[Mapping[str, Any]]:
    try:
        return [orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
    except (OSError, orjson.JSONDecodeError) as error:
        raise DataError(
            f"a file of stored rows, one JSON object a line, at {path.name}", str(error), "Check it."
        ) from error


def _score(scorer: Scorer, questions: Sequence[Question]) -> tuple[list[Floats], int | None]:
    """Scores of each question's answers, and how many distinct answers were cut; a text that stands in several items is scored once."""
    places: dict[tuple[str, str], int] = {}
    texts: list[Pair] = []
    asked = []
    for question in questions:
        mine = []
        for prompt, answer in question.texts:
            key = prompt_key(prompt), answer
            if key not in places:
                places[key] = len(texts)
                texts.append((prompt, answer))
            mine.append(places[key])
        asked.append(mine)
    truncated = None
    if isinstance(scorer, TableScorer):
        table = scorer.table(texts)
        raw, truncated = table.score, int(table.truncated.sum())
    else:
        raw = scorer.score(texts)
    scores = checked(raw, len(texts)).astype(np.float64)
    return [scores[mine] for mine in asked], truncated


def _stored(items: Sequence[Item], scores: Sequence[Floats]) -> list[dict[str, Any]]:
    return [
        {
            "id": item.id,
            "subset": item.subset,
            "cluster": item.cluster,
            "gold": list(item.gold),
            "scores": mine.tolist(),
            "metadata": dict(item.metadata),
        }
        for item, mine in zip(items, scores, strict=True)
    ]


def _restored(row: Mapping[str, Any], where: str) -> tuple[Item, Floats]:
    needed = {"id", "subset", "cluster", "gold", "scores", "metadata"}
    if not isinstance(row, Mapping) or not needed <= set(row):
        came = f"the keys {sorted(row)}" if isinstance(row, Mapping) else type(row).__name__
        mend = "Give the rows that a benchmark evaluation wrote."
        raise RowError(where, "(line)", needed=f"the keys {sorted(needed)}", came=came, mend=mend)
    gold, scores = row["gold"], row["scores"]
    if len(gold) != len(scores) or not len(gold):
        came, mend = f"{len(scores)} scores for {len(gold)} answers", "Give the rows as they were written."
        raise RowError(where, "scores", needed="one score an answer", came=came, mend=mend)
    item = Item(str(row["id"]), str(row["subset"]), str(row["cluster"]), tuple(map(float, gold)), dict(row["metadata"]))
    return item, checked(scores, len(scores)).astype(np.float64)


def _document(
    benchmark: Benchmark, items: Sequence[Item], scores: Sequence[Floats], about: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    numbers = benchmark.numbers(items, scores, seed)
    counts = Counter(item.subset for item in items)
    missing = [name for name in benchmark.subsets if name not in counts and name not in benchmark.optional]
    short = {
        name: {"items": counts[name], "published": size}
        for name, size in benchmark.subsets.items()
        if size is not None and name in counts and counts[name] != size
    }
    if benchmark.totals and len(items) not in benchmark.totals and not missing and not short:
        short["all items"] = {"items": len(items), "published": max(benchmark.totals)}
    complete = not missing and not short
    name, value = benchmark.headline, numbers.published.get(benchmark.headline)
    if value is None:
        value = numbers.partial.get(benchmark.headline)
        name = f"{name} of what is there"
    if not complete:
        name = f"{name}; NOT the published number, for the benchmark is not whole"
    elif not benchmark.sizes_known:
        name = f"{name}; whether every published row is here is not checked"
    return {
        "name": benchmark.name,
        "definition": benchmark.definition,
        "rule": benchmark.rule,
        "rule_from": benchmark.source,
        "source": about["source"],
        "headline": {
            "name": name,
            "value": value,
            "key": benchmark.headline,
            "is_published": complete and benchmark.sizes_known,
        },
        "complete": complete,
        "missing": missing,
        "other_size": short,
        "withheld": numbers.withheld,
        "notes": [note for note in (benchmark.note(items),) if note],
        "published": numbers.published,
        "honest": {key: found.as_dict() for key, found in numbers.honest.items()},
        "chance": numbers.chance,
        "sections": {
            subset: {"num_items": counts[subset], "published_size": benchmark.subsets.get(subset)}
            for subset in [
                *(s for s in benchmark.subsets if s in counts),
                *sorted(set(counts) - set(benchmark.subsets)),
            ]
        },
        "curves": numbers.curves,
        "num_items": len(items),
        "num_answers": sum(len(item.gold) for item in items),
        "num_prompts": len({item.cluster for item in items}),
        "exact_ties": sum(is_tied(item, mine) for item, mine in zip(items, scores, strict=True)),
        "left_out": about["left_out"],
        "splits_not_read": about["splits_not_read"],
        "truncated": about["truncated"],
        "seed": seed,
    }
