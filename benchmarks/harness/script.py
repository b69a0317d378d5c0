"""What every benchmark script does around its measurement: options, a folder that goes away, rows at the end, errors as sentences."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import record
from harness.processes import Process
from harness.record import Row
from harness.rounds import check_rounds
from rewardsmith.errors import MissingExtraError, RewardsmithError

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "trl", "sentence-transformers", "numpy")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count; one more warms up")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="processor threads of each tool")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with the real data")
    parser.add_argument("--row", action="append", help="measure this row alone; may be given again")
    parser.add_argument("--out", type=Path, help="write the rows to this file as well")
    return parser


def run(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace, Path], list[Row]]) -> int:
    """Measure and publish; returns the exit code: 0 if every row is of the same work, 1 if not, 2 for an error that the user can mend."""
    asked = parser.parse_args()
    try:
        check_rounds(asked.rounds)
        with tempfile.TemporaryDirectory() as name:
            rows = measure(asked, Path(name))
    except RewardsmithError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return finish(rows, asked.out)


def finish(rows: Sequence[Row], out: Path | None) -> int:
    """Print the rows; they are written to a file only if all of them compare the same work."""
    different = [row for row in rows if not row.get("same_work", True)]
    record.publish(rows, None if different else out)
    for row in different:
        failed = [name for name, check in row["checks"].items() if not check["ok"]]
        print(f"error: {row['benchmark']}: not the same work: {'; '.join(failed)}; no ratio", file=sys.stderr)
    return 1 if different else 0


def require(package: str, feature: str) -> None:
    """Refuse to begin without a package.

    Raises:
        MissingExtraError: with the line that installs it.
    """
    if find_spec(record.MODULES.get(package, package)) is None:
        raise MissingExtraError(feature, package, "bench")


def wanted(asked: argparse.Namespace, name: str) -> bool:
    """Whether a row is to be measured."""
    return not asked.row or name in asked.row


def process(asked: argparse.Namespace, folder: Path, name: str, job: str, **settings: Any) -> Process:
    """A tool in a process of its own, with the threads that were asked for."""
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    return Process(name, job, settings, threads=asked.threads, cache=cache)
