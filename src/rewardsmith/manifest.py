"""How a result came to be: opened before the work starts, closed with its outcome.

No absolute path, no environment value and no key is written: paths are reduced to their last part, files are named by their hash, and what stands under the name of a secret is withheld.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from rewardsmith.errors import DataError, OutputError
from rewardsmith.storage import write_json

FORMAT_VERSION = 1
_WHERE = ("code", "versions", "platform", "device")
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
    "pyarrow",
    "jinja2",
    "sentencepiece",
    "huggingface-hub",
    "peft",
    "trl",
    "gguf",
    "onnxruntime",
    "openvino",
)
Outcome = Literal["running", "finished", "failed", "interrupted"]
State = Literal["running", "finished", "failed", "interrupted", "killed"]
"""An outcome as a later reader finds it: a record that says "running" while nobody holds its folder is of a killed run."""
WITHHELD = "withheld"
_SECRET = re.compile(
    r"(^|[._-])(api)?(authorization|passwd|(token|key|secret|password|credential)(?P<many>s)?)$", re.IGNORECASE
)
# `max_new_tokens = 64` and `batch_tokens=1024,2048` count.
_COUNTS = re.compile(r"[-+\d.,_\s\[\]]+")
_AUTHORIZATION = re.compile(r"(authorization['\"]?\s*[:=]).*", re.IGNORECASE)
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?:[^/@\s]*@)?(?P<rest>[^?\s]*)(?:\?\S*)?", re.IGNORECASE)
# An absolute path inside a longer text: not the slashes of a URL, of a share such as 1/2, or of owner/name.
_PATH_INSIDE = re.compile(r"(?<![\w/.~])(?<!:(?=//))~?/(?:[^\s,;:'\"\])}/]+/)*([^\s,;:'\"\])}/]+)/?")
_NAMED_PATH = re.compile(r"(?P<name>[\w.@-]+:)(?P<path>~?/(?!/)[^\s,]*)")
_LOCK = ".lock"


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
    """The commit of this code, whether it was changed since, and a hash of its files, which tells two changed states apart.

    `commit` and `dirty` are None outside a git checkout.
    """
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    digest = source_sha256(here)
    # An installed copy may lie inside somebody else's checkout (a .venv): their commit is not ours.
    if git("ls-files", "--error-unmatch", "manifest.py") is None:
        return {"commit": None, "dirty": None, "sha256": digest}
    dirty = bool(git("status", "--porcelain", "--", "."))
    return {"commit": git("rev-parse", "HEAD"), "dirty": dirty, "sha256": digest}


def source_sha256(folder: Path) -> str:
    """One SHA-256 over the names and contents of all Python files under a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def platform_facts() -> dict[str, str]:
    """The kind of machine."""
    return {"system": platform.system(), "machine": platform.machine(), "processor": _processor()}


def _processor() -> str:
    """The name of the processor, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> int | None:
    """The most bytes of memory that this process ever held; None where the system does not tell."""
    try:
        import resource  # loaded here: Windows has none
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


@contextlib.contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add the time that a block takes to a part of the work.

    >>> seconds: dict[str, float] = {}
    >>> with timed(seconds, "loading"):
    ...     pass
    >>> list(seconds)
    ['loading']
    """
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[part] = round(seconds.get(part, 0.0) + time.perf_counter() - started, 3)


def without_paths(value: Any) -> Any:
    """A copy without places and secrets.

    A string that is an absolute path, or a relative one to something that exists, keeps only its last part, also after a name (`a:/home/me/y`) or
    `file://`; a URL loses user, password and query; text under the name of a secret (`hub_token`, `api_keys`, `Authorization`) is withheld, however deep it
    lies there.
    """
    if isinstance(value, Mapping):
        return {
            key: WITHHELD if _holds_text(inner) and _is_secret(str(key)) else without_paths(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_paths(inner) for inner in value]
    if isinstance(value, str) and "\n" not in value and len(value) < 4096:
        value = _AUTHORIZATION.sub(rf"\1 {WITHHELD}", value)
        if _URL.match(value):
            return _bare_urls(value)
        named = [_NAMED_PATH.fullmatch(part) for part in value.split(",")]
        if all(named):
            return ",".join(one["name"] + Path(one["path"]).name for one in named if one)
        path = Path(value).expanduser()
        if path.is_absolute() or ("/" in value and path.exists()):
            return path.name
    return value


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_text, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_text, value))
    return isinstance(value, str)


def _is_secret(name: str, text: str = "") -> bool:
    """Whether what stands under a name is a secret: not a count, which stands under a plural."""
    found = _SECRET.search(name.strip(" \"'"))
    return found is not None and not (found["many"] and _COUNTS.fullmatch(text))


def _bare_urls(text: str) -> str:
    """Every URL in a text without user, password and query, and one of a file reduced to its last part."""

    def bare(found: re.Match[str]) -> str:
        if found["scheme"].casefold() == "file://":
            return Path(found["rest"]).name
        return found["scheme"] + found["rest"]

    return _URL.sub(bare, text)


def plain_text(text: str) -> str:
    """A sentence, such as an error, with every absolute path in it reduced to its last part, and its URLs bare.

    >>> plain_text("needed a file at /home/me/data.jsonl; got 1/2 of owner/name")
    'needed a file at data.jsonl; got 1/2 of owner/name'
    """
    return _PATH_INSIDE.sub(r"\1", _bare_urls(_AUTHORIZATION.sub(rf"\1 {WITHHELD}", text)))


def plain_command(words: Sequence[str]) -> list[str]:
    """The words of a command line without places and secrets.

    A table is withheld whole, for its text is no word under a name; the settings of the record have it, cleaned.

    >>> plain_command(["train", "--data=/home/me/a.jsonl", "--set", "trainer.hub_token=hf_abc", "--api-key", "abc"])
    ['train', '--data=a.jsonl', '--set', 'trainer.hub_token=withheld', '--api-key', 'withheld']
    >>> plain_command(["--set", 'trainer={hub_token="hf_abc"}', "--header", "X-Api-Key: abc"])
    ['--set', 'trainer=withheld', '--header', 'X-Api-Key: withheld']
    """
    found: list[str] = []
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        name, equals, value = word.partition("=")
        header, colon, content = word.partition(":")
        if before.startswith("--") and "=" not in before and _is_secret(before, word):
            found.append(WITHHELD)
        elif colon and _is_secret(header, content):
            found.append(f"{header}: {WITHHELD}")
        elif name.startswith("--") and "=" in value:  # --set=key=value
            found.append(f"{name}={plain_command([value])[0]}")
        elif equals and "://" not in name:
            withheld = "{" in value or _is_secret(name, value)
            found.append(f"{name}={WITHHELD if withheld else plain_text(str(without_paths(value)))}")
        else:
            found.append(plain_text(str(without_paths(word))))
    return found


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
        self._opened: float | None = None

    @property
    def state(self) -> State:
        """The outcome, or "killed" where the record says that it is running and no process holds its folder.

        A run holds the lock of its folder for as long as it lives, and the system takes the lock away with the process, so that this needs no process number
        (which is another process's after a while, and another machine's on a shared disk).
        """
        outcome: State = self.document.get("outcome", "running")
        return "killed" if outcome == "running" and not is_held(self.path.parent) else outcome

    @classmethod
    def open(cls, path: Path, *, verb: str, settings: Mapping[str, Any], **facts: Any) -> Manifest:
        """Start a record with outcome "running" and write it.

        Code, versions and device are those of this start. Where it goes on from a checkpoint (`resumed_from`), earlier starts have had their part in what
        comes out, and those under other code, versions or device are kept under `starts`.
        """
        document = {
            "format_version": FORMAT_VERSION,
            "tool": "rewardsmith",
            "verb": verb,
            "outcome": "running",
            "started": _now(),
            "settings": without_paths(dict(settings)),
            "code": code_state(),
            "versions": package_versions(),
            "platform": platform_facts(),
            **facts,
        }
        earlier = cls.read(path) if facts.get("resumed_from") is not None else None
        if earlier is not None and (starts := _other_starts(earlier.document, document)):
            document["starts"] = starts
        manifest = cls(path, document)
        manifest._opened = time.perf_counter()
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

    def check_version(self) -> None:
        """Refuse a record of a later format, whose keys may mean something else.

        Raises:
            DataError: naming both versions.
        """
        found = self.document.get("format_version", FORMAT_VERSION)
        if not isinstance(found, int) or found > FORMAT_VERSION:
            raise DataError(
                f"a manifest of format {FORMAT_VERSION} or earlier at {self.path}",
                f"format {found!r}",
                "Read it with the version of rewardsmith that wrote it, or a later one.",
            )

    def note(self, **facts: Any) -> None:
        """Add or replace facts."""
        self.document |= facts
        self.write()

    def close(self, outcome: Outcome, **facts: Any) -> None:
        """End the record, with what the whole took and held. A disk too full for it must not hide the error that is on its way."""
        if self._opened is not None:
            facts["seconds"] = round(time.perf_counter() - self._opened, 3)
            facts["peak_memory"] = {"process": peak_memory()} | facts.get("peak_memory", {})
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
            self.close("failed", error=plain_text(f"{type(error).__name__}: {error}")[:500])
            raise

    def write(self) -> None:
        """Write the record, whole or not at all."""
        write_json(self.path, self.document)


def _other_starts(earlier: Mapping[str, Any], document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The starts before this one, each with its place, that were made elsewhere than this one."""
    here = {key: document.get(key) for key in _WHERE}
    kept = ("started", "resumed_from", *_WHERE)
    starts = [*earlier.get("starts", []), {key: earlier[key] for key in kept if key in earlier}]
    return [start for start in starts if {key: start.get(key) for key in _WHERE} != here]


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder, or of the folder that it lies in (a model folder in its run)."""
    return any(_is_locked(place / _LOCK) for place in (folder, folder.parent))


def _is_locked(path: Path) -> bool:
    """Whether somebody holds a file lock; it is asked for, shared, for an instant, and the file is not changed."""
    try:
        import fcntl  # loaded here: Windows has none
    except ImportError:
        return path.exists()  # there the file goes with its holder
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a disk that knows no locks
        return False
    finally:
        os.close(file)
    return False
