"""How a result came to be: opened before the work starts, closed with its outcome.

No absolute path, no environment value and no key is written: paths are reduced to their last part, and files are named by their hash.
"""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from rewardsmith.errors import OutputError
from rewardsmith.storage import write_json

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
# Everything that can move a number.
_PACKAGES = (
    "rewardsmith",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "datasets",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "pydantic",
    "peft",
    "onnxruntime",
    "openvino",
)
Outcome = Literal["running", "finished", "failed", "interrupted"]


def package_versions() -> dict[str, str]:
    """The installed versions of all packages that can move a number; read from metadata, nothing is imported."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return versions


def code_state() -> dict[str, Any]:
    """The commit of this code and whether it was changed since; `commit` is None outside a git checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An installed copy may lie inside somebody else's checkout (a .venv): their commit is not ours.
    if git("ls-files", "--error-unmatch", "manifest.py") is None:
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}


def without_paths(value: Any) -> Any:
    """A copy in which every string that is an absolute or relative path to something that exists keeps only its last part."""
    if isinstance(value, Mapping):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner) for inner in value]
    if isinstance(value, str) and "\n" not in value and len(value) < 4096:
        path = Path(value).expanduser()
        if path.is_absolute() or ("/" in value and path.exists()):
            return path.name
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Manifest:
    """The growing record of one run; every change is on disk at once.

    Args:
        path: of manifest.json.
        document: what it holds.
    """

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        """Wrap a document; use `open` for a new one and `read` for one on disk."""
        self.path, self.document = path, document

    @classmethod
    def open(cls, path: Path, *, verb: str, settings: Mapping[str, Any], **facts: Any) -> Manifest:
        """Start a record with outcome "running" and write it."""
        manifest = cls(
            path,
            {
                "format_version": FORMAT_VERSION,
                "tool": "rewardsmith",
                "verb": verb,
                "outcome": "running",
                "started": _now(),
                "settings": without_paths(dict(settings)),
                "code": code_state(),
                "versions": package_versions(),
                "platform": {"system": platform.system(), "machine": platform.machine()},
                **facts,
            },
        )
        manifest.write()
        return manifest

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """The record at a path, or None where there is none of ours."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(document, dict) or document.get("tool") != "rewardsmith":
            return None
        return cls(path, document)

    def note(self, **facts: Any) -> None:
        """Add or replace facts."""
        self.document |= facts
        self.write()

    def close(self, outcome: Outcome, **facts: Any) -> None:
        """End the record. A disk too full for it must not hide the error that is on its way."""
        try:
            self.note(outcome=outcome, ended=_now(), **facts)
        except OutputError:
            if outcome == "finished":
                raise

    @contextlib.contextmanager
    def until_closed(self) -> Iterator[None]:
        """Hold the record open; a block that ends early closes it as interrupted or failed, and its error goes on."""
        try:
            yield
        except KeyboardInterrupt:
            self.close("interrupted")
            raise
        except BaseException as error:
            self.close("failed", error=f"{type(error).__name__}: {error}"[:500])
            raise

    def write(self) -> None:
        """Write the record, whole or not at all."""
        write_json(self.path, self.document)
