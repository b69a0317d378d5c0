"""A process for each tool: it loads once, then does a round whenever it is told to. JSON lines both ways.

Run as a program by `Process` alone: python -m harness.processes MODULE.FUNCTION
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rewardsmith.errors import ModelError, RewardsmithError

_BENCHMARKS = Path(__file__).resolve().parents[1]
_SOURCE = _BENCHMARKS.parent / "src"
_PATIENCE = 30


class BrokenTool(RewardsmithError):
    """A tool's process ended in the middle of its work."""


class Process:
    """The driver's side: a tool in a process of its own.

    Args:
        name: for messages.
        job: MODULE.FUNCTION in this package: takes settings and a `Channel`.
        settings: for the job, as JSON.
        threads: processor threads that it may use.
        cache: the folder that takes the place of the user's cache.
    """

    def __init__(self, name: str, job: str, settings: Mapping[str, Any], *, threads: int, cache: Path) -> None:
        """Start it, and wait until it has loaded; `facts` is what it says of itself."""
        self.name = name
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join([str(_BENCHMARKS), str(_SOURCE), os.environ.get("PYTHONPATH", "")]),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(cache / "hf"),
            "REWARDSMITH_CACHE": str(cache),
            "TOKENIZERS_PARALLELISM": "true",
        }
        command = [sys.executable, "-W", "ignore", "-m", "harness.processes", job]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=cache
        )
        try:
            self.facts = self.ask({"threads": threads, **settings})
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request, wait for its answer.

        Raises:
            ModelError: with the tool's own sentence, if it refused.
            BrokenTool: if the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BrokenTool(
                f"an answer of {self.name}", "the end of its process", "Look at what it printed to standard error."
            )
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise ModelError(*answer["refused"])
        return answer

    def check(self, **request: Any) -> dict[str, Any]:
        """What the tool finds on the data, for the comparison with others."""
        return self.ask({"do": "check", **request})

    def round(self) -> dict[str, Any]:
        """One round of work."""
        return self.ask({"do": "round"})

    def stop(self) -> None:
        """Close its input, which ends it; a process that does not end is killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Channel:
    """The tool's side of the two pipes. What libraries print goes to standard error."""

    def __init__(self) -> None:
        """Take standard output away from everybody else."""
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def wait(self) -> dict[str, Any]:
        """The next request; the process ends where there is none any more."""
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        request: dict[str, Any] = json.loads(line)
        return request

    def answer(self, document: Mapping[str, Any]) -> None:
        """Answer the last request."""
        self._answers.write(json.dumps(document) + "\n")
        self._answers.flush()


def main() -> None:
    """Do one job until the driver has had enough."""
    channel = Channel()
    module, _, function = sys.argv[1].rpartition(".")
    settings = channel.wait()
    try:
        getattr(importlib.import_module(f"harness.{module}"), function)(settings, channel)
    except RewardsmithError as error:
        channel.answer({"refused": [error.needed, error.came, error.mend]})
    except BrokenPipeError:  # the driver is gone
        raise SystemExit(1) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
