"""Checkpoints that are whole or absent: made under another name, sealed with the hash of every file, renamed, checked before a run goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from rewardsmith.storage import file_sha256, write_json

COMPLETE = "complete.json"
"""Written last into a checkpoint: its step, how many processes made it, size and SHA-256 of every other file."""
STAGING = ".saving"
"""The folder beside the checkpoints in which one is made."""
_NAME = re.compile(r"checkpoint-\d+")


def step_of(checkpoint: Path | None) -> int:
    """The step in the name `checkpoint-<step>`; 0 of none."""
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def seal(folder: Path, step: int, *, processes: int = 1) -> None:
    """Bring every file of a finished checkpoint to the disk, and write the list by which it is checked.

    Raises:
        OutputError: (or OSError) if the system refuses.
    """
    files: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE):
        _to_disk(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    write_json(folder / COMPLETE, {"step": step, "processes": processes, "files": files})
    _to_disk(folder)


def publish(made: Path, name: Path) -> None:
    """Give a sealed checkpoint its name, for good: a rename that a power cut may not undo."""
    if name.exists():  # of the same step, by a run whose later half was given up
        shutil.rmtree(name)
    made.rename(name)
    _to_disk(name.parent)


def _to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return [path for path in _checkpoints(folder) if (path / COMPLETE).is_file()]


def _checkpoints(folder: Path) -> list[Path]:
    """What has a checkpoint's name, oldest first; a user's own copies (`checkpoint-5-backup`) are let be."""
    return sorted((path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)), key=step_of)


def processes_of(checkpoint: Path) -> int:
    """How many processes made a checkpoint."""
    return int(json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8")).get("processes", 1))


def fault(checkpoint: Path) -> str | None:
    """Why a checkpoint is not what was written, or None.

    >>> fault(Path("absent"))
    'incomplete'
    """
    try:
        document = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
        files = dict(document["files"])
    except FileNotFoundError:
        return "incomplete"
    except (ValueError, KeyError, TypeError):
        return f"corrupt: {COMPLETE} is unreadable"
    for name, facts in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"corrupt: {name} is missing"
        if path.stat().st_size != facts["size"]:
            return f"corrupt: {name} has {path.stat().st_size} bytes, {facts['size']} were written"
        if file_sha256(path) != facts["sha256"]:
            return f"corrupt: {name} holds other bytes than were written"
    return None


def last_good(folder: Path, say: Callable[[str], None], *, best_at: Callable[[int], int | None]) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start; all that a run from there will write again is removed.

    It is the newest one that is good itself and whose best one so far is good too: the end of the run may need that one.

    Args:
        folder: of the checkpoints.
        say: prints a warning.
        best_at: the step of the best checkpoint that a run knew at a step; None where nothing was compared.
    """
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    good: dict[int, Path] = {}
    for path in _checkpoints(folder):
        wrong = fault(path)
        if wrong is None:
            good[step_of(path)] = path
        else:
            say(f"warning: {path.name} is {wrong}; it was removed")
            shutil.rmtree(path)
    fit = [step for step in good if best_at(step) is None or best_at(step) in good]
    newest = max(fit, default=0)
    for step, path in good.items():
        if step > newest:
            say(f"warning: {path.name} was removed: the best checkpoint up to it, of step {best_at(step)}, is gone")
            shutil.rmtree(path)
    return good.get(newest)


def rotate(folder: Path, limit: int | None, *, keep: Collection[int]) -> None:
    """Remove the oldest whole checkpoints beyond `limit`; never the newest, nor those of the steps in `keep`."""
    if not limit or limit < 0:
        return
    whole = complete_checkpoints(folder)
    spare = [path for path in whole[:-1] if step_of(path) not in keep]
    for path in spare[: max(0, len(whole) - limit)]:
        (path / COMPLETE).unlink()  # first: a kill may leave half of the rest
        shutil.rmtree(path)
