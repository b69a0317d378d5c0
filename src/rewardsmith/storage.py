"""Files that are never half-written: everything is made under a temporary name and renamed when it is whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rewardsmith.errors import OutputError

_CHUNK = 1 << 20
_ABANDONED_SECONDS = 24 * 3600
# Names under which files and folders are made here, with the number of the process.
_LEFTOVER = re.compile(r"\..+\.\d+\.(?:tmp|old)")
# EFBIG is what a file-size limit (ulimit -f) raises: to the user it is the same fault as a full disk.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def text_sha256(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes, as 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_error(path: Path, error: OSError) -> OutputError:
    """The typed error for a write that the system refused."""
    if error.errno in _FULL:
        return OutputError(
            f"room to write {path.name}",
            f"{error.strerror or error} ({path.parent})",
            "Free some disk space and run the same command again; nothing half-written was left behind.",
        )
    return OutputError(
        f"to write {path.name}", f"{error.strerror or error} ({path.parent})", "Choose a folder that can be written."
    )


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_leftover(path: Path) -> bool:
    """Whether a name is one under which a file or folder is made here: whoever was to rename it was killed, or still writes."""
    return _LEFTOVER.fullmatch(path.name) is not None


def remove_abandoned(folder: Path) -> None:
    """Remove the files of a shared folder that `atomic_file` was to rename, if nobody wrote to them for a day.

    Not by the process in the name: it may run on another machine.
    """
    with contextlib.suppress(OSError):  # no folder, or none that can be read: then there is nothing to remove
        for path in folder.iterdir():
            with contextlib.suppress(OSError):  # gone by now, or another user's
                if is_leftover(path) and time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write that takes its name only when the block ends well.

    Raises:
        OutputError: if the system refuses (no room, no permission).
    """
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # the error that matters is on its way
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic_file(path) as file:
        file.write(text)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes its name only when the block ends well; one of that name is replaced.

    Raises:
        OutputError: if the system refuses (no room, no permission).
    """
    temporary = _beside(path)
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        # If the second rename failed, what stood there before comes back.
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def refuse_inside(out: Path, *sources: str) -> None:
    """Refuse an output that is, or holds, one of the inputs.

    Raises:
        OutputError: naming the input.
    """
    for source in sources:
        if Path(source).exists() and Path(source).resolve().is_relative_to(out.resolve()):
            raise OutputError(
                "an output that neither is nor holds an input", f"{out} for {source}", "Choose another --out."
            )


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process.

    Raises:
        OutputError: if another process holds it.
    """
    from filelock import FileLock, Timeout  # loaded here: no other command needs it

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            "a folder that no other run is using",
            f"{folder}, which is locked",
            "Wait for the other run to end, or choose another --out.",
        ) from error
    try:
        yield
    finally:
        lock.release()


def verb_of(path: Path) -> str | None:
    """The verb that wrote a document; None where it is none of ours."""
    try:
        verb = json.loads(path.read_text(encoding="utf-8"))["verb"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(verb)


def check_result_file(out: Path, verb: str, *inputs: str, overwrite: bool) -> None:
    """A new file, or with `overwrite` an earlier document of the same verb; never one of the inputs.

    Raises:
        OutputError: if it is something else.
    """
    refuse_inside(out, *inputs)
    if out.exists() and not (overwrite and verb_of(out) == verb):
        raise OutputError(
            f"a new file for --out, or with --overwrite an earlier document of {verb}",
            f"{out}, which exists",
            "Choose another --out.",
        )


def check_result_folder(out: Path, verb: str, *inputs: str, overwrite: bool) -> None:
    """A new folder, or with `overwrite` one that the same verb made; never a run or a model.

    Raises:
        OutputError: if it is something else.
    """
    refuse_inside(out, *inputs)
    if out.exists() and not (overwrite and verb_of(out / "report.json") == verb):
        raise OutputError(
            f"a new folder for --out, or with --overwrite one of an earlier {verb}",
            f"{out}, which exists",
            "Choose another --out.",
        )
