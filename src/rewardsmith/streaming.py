"""Score a source of any size, row for row: memory is bounded by a window, an interrupted run goes on where it stopped.

Rows are written to `<out>.partial` window by window; the name `<out>` appears only when every row is there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rewardsmith.data import io
from rewardsmith.data.schema import Group, Pair, Preference, Row
from rewardsmith.errors import DataError, OutputError, RowError
from rewardsmith.scores import Scorer, TableScorer, checked
from rewardsmith.storage import write_error, write_json

WINDOW = 4096


@dataclass
class Scored:
    """What `score_file` did; `num_tokens`, `truncated` and `special_strings` are of the answers of this call, None where the scorer does not say."""

    num_rows: int = 0
    num_answers: int = 0
    num_tokens: int | None = None
    truncated: int | None = None
    special_strings: int | None = None
    resumed_from: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """The document of `score --json`."""
        return {**vars(self), "skipped": dict(self.skipped)}


def per_second(done: Scored, seconds: float) -> dict[str, float]:
    """Rows, answers and, where the scorer says them, tokens a second of one call.

    >>> per_second(Scored(num_rows=30, num_answers=40, resumed_from=10), 2.0)
    {'rows': 10.0, 'answers': 20.0}
    """
    work = {"rows": done.num_rows - done.resumed_from, "answers": done.num_answers, "tokens": done.num_tokens}
    seconds = max(seconds, 1e-3)  # a clock that is read to the millisecond
    return {name: round(count / seconds, 1) for name, count in work.items() if count is not None}


def answers_of(row: Row) -> list[Pair]:
    """The (prompt, answer) pairs of a row, in the order in which its scores are written."""
    if isinstance(row, Preference):
        return [row.chosen_pair, row.rejected_pair]
    if isinstance(row, Group):
        return [(row.prompt, answer) for answer in row.answers]
    return [(row.prompt, row.answer)]


Columns = Mapping[str, NDArray[Any]]
"""`score`, and `tokens` and `truncated` where the scorer says them; one row an answer."""


def scored_row(row: Row, columns: Columns, start: int) -> dict[str, Any]:
    """One output row; `start` is where the row's answers begin in the columns."""
    document: dict[str, Any] = {"id": row.id}
    for name, column in columns.items():
        if isinstance(row, Preference):
            for offset, side in enumerate(("chosen", "rejected")):
                document[f"{name}_{side}"] = column[start + offset].item()
        elif isinstance(row, Group):
            key = "scores" if name == "score" else name
            document[key] = column[start : start + len(row.answers)].tolist()
        else:
            document[name] = column[start].item()
    return document


def score_file(
    scorer: Scorer,
    source: str,
    out: Path,
    *,
    identity: dict[str, Any],
    skip_bad: bool = False,
    window: int = WINDOW,
    on_window: Callable[[int], None] | None = None,
) -> Scored:
    """Write one JSON row an input row, in the order of the input.

    Args:
        scorer: scores a window at a time.
        source: rows of any kind.
        out: the file that appears at the end.
        identity: what makes two calls the same (model and data); a partial file of another identity is begun anew.
        skip_bad: count malformed rows; else the first one stops.
        window: rows in memory at once.
        on_window: is told the rows done so far.

    Raises:
        DataError: (or RowError) at a malformed row or an empty source; nothing is left behind.
        OutputError: if the disk refuses.
    """
    partial, state = out.with_name(out.name + ".partial"), out.with_name(out.name + ".partial.json")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        said = 0 if isinstance(scorer, TableScorer) else None
        done = Scored(
            num_tokens=said, truncated=said, special_strings=said, resumed_from=_resume(partial, state, identity)
        )
        write_json(state, identity)
        with open(partial, "a", encoding="utf-8") as file:
            rows = _good_rows(source, skip_bad, done)
            for _ in islice(rows, done.resumed_from):
                pass
            done.num_rows = done.resumed_from
            while block := list(islice(rows, window)):
                lines = score_block(scorer, block, done)
                file.write("".join(json.dumps(line) + "\n" for line in lines))
                file.flush()
                if on_window is not None:
                    on_window(done.num_rows)
        if not done.num_rows:
            io.read(source, skip_bad=skip_bad)  # says why there is nothing
        partial.replace(out)
        state.unlink()
    except OSError as error:
        raise write_error(out, error) from error
    except DataError:  # RowError too: after the mend the data are others
        partial.unlink(missing_ok=True)
        state.unlink(missing_ok=True)
        raise
    return done


def _good_rows(source: str, skip_bad: bool, done: Scored) -> Iterator[Row]:
    for row in io.iterate(source):
        if isinstance(row, RowError):
            if not skip_bad:
                raise row
            done.skipped[row.field] += 1
        else:
            yield row


def score_block(scorer: Scorer, block: Sequence[Row], done: Scored) -> list[dict[str, Any]]:
    """The output rows of some rows, scored together, and their counts added to `done`."""
    answers = [answers_of(row) for row in block]
    every = [pair for pairs in answers for pair in pairs]
    columns: Columns
    if isinstance(scorer, TableScorer):
        table = scorer.table(every)
        columns = {"score": table.score, "tokens": table.tokens, "truncated": table.truncated}
        done.num_tokens = (done.num_tokens or 0) + int(table.tokens.sum())
        done.truncated = (done.truncated or 0) + int(table.truncated.sum())
        done.special_strings = (done.special_strings or 0) + int((table.special_strings > 0).sum())
    else:
        columns = {"score": checked(scorer.score(every), len(every))}
    lines, start = [], 0
    for row, pairs in zip(block, answers, strict=True):
        lines.append(scored_row(row, columns, start))
        start += len(pairs)
    done.num_rows += len(block)
    done.num_answers += start
    return lines


def _resume(partial: Path, state: Path, identity: dict[str, Any]) -> int:
    """Whole rows that an interrupted call of the same identity left; a row cut in the middle is removed."""
    try:
        same = json.loads(state.read_text(encoding="utf-8")) == identity
    except (OSError, ValueError):
        same = False
    if not same or not partial.exists():
        partial.unlink(missing_ok=True)
        return 0
    try:
        with open(partial, "rb+") as file:
            whole = rows = 0
            for line in file:
                if line.endswith(b"\n"):
                    whole += len(line)
                    rows += 1
            file.truncate(whole)
    except OSError as error:
        raise OutputError(f"to go on with {partial.name}", str(error), "Delete it.") from error
    return rows
