"""`lint --fix`: the cleaned set, the removed rows with their reasons, and a manifest. Rows that no rule names are written as they came, byte for byte."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rewardsmith.data import io
from rewardsmith.data.formats import named
from rewardsmith.data.sources import source_identity
from rewardsmith.errors import DataError, OutputError, RowError
from rewardsmith.linting.doctor import Examination
from rewardsmith.linting.mending import mended_row
from rewardsmith.linting.progress import Progress, nothing, size_of
from rewardsmith.manifest import Manifest
from rewardsmith.storage import atomic_folder, file_sha256, refuse_inside

CLEAN, REMOVED, MANIFEST = "clean.jsonl", "removed.jsonl", "manifest.json"
_CHUNK = 2000


def check_output(out: Path, *sources: str, overwrite: bool) -> None:
    """Refuse a folder that is an input, or that exists and is not an earlier repair of ours and nothing else (or may not be replaced).

    Raises:
        OutputError: with what to do.
    """
    refuse_inside(out, *sources)
    if not out.exists():
        return
    earlier = Manifest.read(out / MANIFEST)
    ours = earlier is not None and earlier.document.get("verb") == "lint"
    ours = ours and {path.name for path in out.iterdir()} <= {CLEAN, REMOVED, MANIFEST}
    if not (overwrite and ours):
        raise OutputError(
            "a new folder for --fix, or with --overwrite one that holds an earlier `lint --fix` and nothing else",
            f"{out}, which exists",
            "Choose another folder.",
        )


def repair(
    examination: Examination, out: Path, *, overwrite: bool = False, progress: Progress = nothing
) -> dict[str, Any]:
    """Write the folder: rows that a rule of the action "remove" names are left out, texts that a rule of the action "mend" names are mended.

    A second examination of the cleaned set finds nothing more to remove or mend. A row that holds several groups or pairs goes as a whole: `convert` it to pairs
    first to lose less.

    Returns:
        The document {"out", "kept", "removed", "mended", "by_rule"}; counts are raw rows.

    Raises:
        OutputError: see `check_output`, or if the system refuses.
        DataError: if no row would be left, or the source is of a format that reads neighbouring rows together: without one of them others would become
            neighbours.
    """
    settings = examination.settings
    check_output(out, settings.data, overwrite=overwrite)
    _check_alone(examination)
    reasons, mends = _plan(examination)
    if len(reasons) == examination.columns.num_rows:
        rules = ", ".join(sorted({rule for rules in reasons.values() for rule in rules}))
        raise DataError(
            "a row that is left", f"{len(reasons):,} rows to remove, all of them ({rules})", "Use --ignore."
        )
    counts: Counter[str] = Counter()
    by_rule = {one.rule: one.count for one in examination.findings if one.action != "none" and one.count}
    with atomic_folder(out) as folder:
        manifest = Manifest.open(folder / MANIFEST, verb="lint", settings=settings.model_dump())
        with open(folder / CLEAN, "wb") as clean, open(folder / REMOVED, "wb") as removed:
            for chunk in io.chunks(settings.data, size=_CHUNK):
                for number, (_, raw) in enumerate(chunk.rows, start=chunk.start):
                    if number in reasons:
                        counts["removed"] += 1
                        removed.write(_removed_line(number, reasons[number], raw) + b"\n")
                        continue
                    counts["kept"] += 1
                    counts["mended"] += number in mends
                    if number in mends:
                        row = json.loads(raw) if isinstance(raw, bytes) else raw
                        raw = mended_row(row, mends[number])
                    clean.write(io.line_of(raw) + b"\n")
                progress("writing", len(chunk.rows), size_of(chunk))
        done = {"out": out.name, **{name: counts[name] for name in ("kept", "removed", "mended")}, "by_rule": by_rule}
        manifest.close(
            "finished",
            source_sha256=source_identity(settings.data),
            clean_sha256=file_sha256(folder / CLEAN),
            counts=done,
            findings=examination.document["findings"],
        )
    return done


def _check_alone(examination: Examination) -> None:
    joining = [name for name in examination.columns.formats if named(name).join is not None]
    if joining:
        raise DataError(
            "rows that can be understood one by one, for --fix",
            f"the format {joining[0]}, which reads neighbouring rows together",
            "Run `rewardsmith convert SRC --to native --out FILE` first.",
        )


def _plan(examination: Examination) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """(rules that remove, rules that mend) for each raw row concerned."""
    columns = examination.columns
    plans: dict[str, dict[int, list[str]]] = {"remove": {}, "mend": {}}
    for one in examination.findings:
        if one.action in plans:
            for number in sorted(set(columns.rows.number[one.found.rows].tolist())):
                plans[one.action].setdefault(number, []).append(one.rule)
    return plans["remove"], plans["mend"]


def _removed_line(number: int, reasons: list[str], raw: Any) -> bytes:
    """A removed row as it was: as JSON where it is JSON, else as text."""
    content = raw
    if isinstance(raw, bytes):
        try:
            content = json.loads(raw)
        except ValueError:
            content = raw.decode("utf-8", errors="backslashreplace").rstrip("\r\n")
    elif isinstance(raw, RowError):
        content = raw.content
    return io.line_of({"row": number, "reasons": reasons, "content": content})
