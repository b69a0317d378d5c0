"""Rows of results: what was measured, on which machine and with which versions, one JSON line each."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.checks import Check
from rewardsmith import __version__

Row = dict[str, Any]
# Named in /proc/cpuinfo; the first that is there multiplies bf16.
_BF16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
# Packages by the name that they are imported under, where it is another one.
MODULES = {"sentence-transformers": "sentence_transformers"}


def row(
    name: str,
    *,
    work: str,
    ratios: Sequence[float],
    target: float,
    ours: Any,
    theirs: Any,
    checks: Sequence[Check],
    precision: str,
    packages: Sequence[str],
    **more: Any,
) -> Row:
    """One row. A ratio is better when higher; where the tools did not do the same work there is none, and `same_work` is false.

    Args:
        name: of the row.
        work: what was done in one round, for people.
        ratios: one a round.
        target: what the median is to reach.
        ours: what was measured of rewardsmith.
        theirs: the same of the other tool; None where there is none.
        checks: whether both did the same work.
        precision: number format of both.
        packages: whose versions count.
        **more: columns of this benchmark alone.
    """
    same = all(check.ok for check in checks)
    return {
        "benchmark": name,
        "ratio": spread(ratios) if same else None,
        "target": target,
        "ours": ours,
        "theirs": theirs,
        "same_work": same,
        "precision": precision,
        "work": work,
        "rounds": len(ratios),
        "checks": {check.name: {"ok": check.ok, "found": check.found} for check in checks},
        **more,
        **environment(packages),
    }


def skipped(name: str, reason: str, *, target: float, packages: Sequence[str]) -> Row:
    """The row of a benchmark that this machine cannot run."""
    return {"benchmark": name, "skipped": reason, "target": target, **environment(packages)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of some numbers, to three digits.

    >>> spread([2.0, 1.0, 4.0])
    {'median': 2.0, 'min': 1.0, 'max': 4.0}
    """
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """The machine and the versions of what ran on it."""
    return {
        "machine": {
            "cores": os.cpu_count(),
            "processor": processor(),
            "bf16": bf16_unit(),
            "system": platform.system(),
        },
        "versions": {
            "python": platform.python_version(),
            "rewardsmith": __version__,
            **{name: version(name) for name in packages if find_spec(MODULES.get(name, name))},
        },
    }


def processor() -> str:
    """The processor's name as Linux tells it, else what Python knows."""
    return _cpuinfo("model name") or platform.processor()


def bf16_unit() -> str | None:
    """The instructions that multiply bf16 on this processor; None where there are none or nobody tells."""
    flags = set(_cpuinfo("flags").split())
    return next((name for flag, name in _BF16_UNITS.items() if flag in flags), None)


def _cpuinfo(field: str) -> str:
    """The first line of a field of /proc/cpuinfo, empty where there is no such thing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def publish(rows: Sequence[Mapping[str, Any]], out: Path | None) -> None:
    """Print one JSON line a row, and write them to a file if one is named."""
    lines = [json.dumps(row) for row in rows]
    print("\n".join(lines), flush=True)
    if out:
        out.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def read(path: Path) -> list[Row]:
    """The rows of a results file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
