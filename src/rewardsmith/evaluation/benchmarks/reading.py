"""The questions of a benchmark, from a file, a folder as its authors publish it, a saved dataset or the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rewardsmith.data import io
from rewardsmith.data.schema import Row
from rewardsmith.data.sources import source_name
from rewardsmith.errors import DataError, RowError
from rewardsmith.evaluation.benchmarks.items import Benchmark, LeftOut, Question


@dataclass
class Questions:
    """What a source holds for a benchmark.

    Args:
        questions: in the order of the source.
        left_out: rows that are not counted, by reason.
        not_read: splits of a saved dataset that are not the benchmark.
    """

    questions: list[Question] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    not_read: list[str] = field(default_factory=list)


def read_questions(benchmark: Benchmark, source: str | Sequence[str], *, skip_bad: bool = False) -> Questions:
    """All questions of a benchmark in one source, or in several that make it up.

    Raises:
        DataError: if a source is not of this benchmark, or holds nothing of it.
        RowError: at a malformed row, unless `skip_bad` counts them.
    """
    found = Questions()
    sources = [source] if isinstance(source, str) else list(source)
    for part, label in (one for name in sources for one in _parts(benchmark, name, found)):
        for format, row in _rows(part):
            if isinstance(row, RowError):
                if not skip_bad:
                    raise row
                found.left_out[f"malformed: field `{row.field}`"] += 1
            elif format not in benchmark.formats or not isinstance(row, benchmark.kind):
                came = f"a row of the format {format} that is a {type(row).__name__.lower()}"
                if not skip_bad:
                    raise _not_of(benchmark, label, came)
                found.left_out[came] += 1
            else:
                _take(benchmark, row, label, found)
    if not found.questions:
        reasons = "; ".join(f"{count} rows: {reason}" for reason, count in found.left_out.most_common(3))
        raise _not_of(benchmark, ", ".join(source_name(name) for name in sources), reasons or "no rows")
    return found


def _not_of(benchmark: Benchmark, label: str, came: str) -> DataError:
    return DataError(
        f"rows of the benchmark {benchmark.name} ({benchmark.needed})",
        f"{came} in {label}",
        "Give the file as its authors publish it, or another --benchmark.",
    )


def _rows(source: str) -> Iterator[tuple[str | None, Row | RowError]]:
    for chunk in io.chunks(source):
        for parsed in io.parse_units(chunk):
            name = None if parsed.format is None else parsed.format.name
            yield from ((name, row) for row in parsed.rows)


def _take(benchmark: Benchmark, row: Row, label: str, found: Questions) -> None:
    question = benchmark.question(row, label)
    if isinstance(question, LeftOut):
        found.left_out[question.reason] += 1
    else:
        found.questions.append(question)


def _parts(benchmark: Benchmark, source: str, found: Questions) -> list[tuple[str, str]]:
    """(what `data.io` can read, the name it has in the benchmark) of everything in a source."""
    path = Path(source)
    if not path.is_dir():
        if path.exists():
            return [(source, f"{path.parent.name}/{path.name}")]
        hub = "/" in source and not source.startswith((".", "/", "~")) and not Path(source).suffix
        whole = f"{source}:{benchmark.hub_split}" if hub and ":" not in source and benchmark.hub_split else source
        return [(whole, source)]
    if (path / "dataset_dict.json").exists():
        splits = sorted(inner.name for inner in path.iterdir() if (inner / "state.json").exists())
        if benchmark.hub_split in splits:
            found.not_read += [f"{path.name}/{split}" for split in splits if split != benchmark.hub_split]
            splits = [str(benchmark.hub_split)]
        return [(str(path / split), f"{path.name}/{split}") for split in splits]
    if (path / "state.json").exists():
        return [(source, path.name)]
    files = sorted({file for pattern in benchmark.files for file in path.rglob(pattern) if file.is_file()})
    if not files:
        patterns = ", ".join(benchmark.files)
        raise DataError(
            f"files of the benchmark {benchmark.name} ({patterns}) or a saved dataset in {path.name}",
            "neither",
            "Check the path.",
        )
    return [(str(file), f"{path.name}/{file.relative_to(path).as_posix()}") for file in files]
