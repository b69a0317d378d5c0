"""The command line: one short function a verb that parses, calls and prints. Heavy imports come after parsing."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from rewardsmith.cli import bestofn, diff, folders, ppo, preferences, reproduce, scoring, serving, training, winrate  # noqa: F401 (each adds its verbs to `app`)
from rewardsmith.cli.base import app
from rewardsmith.errors import RewardsmithError

_INTERRUPTED = 130
_GOES_ON = dict.fromkeys(("train", "demo", "ppo"), "from the last good checkpoint") | {
    "score": "after the rows that it wrote"
}


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings of ours as one line on stderr, each once."""

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", category=UserWarning, module=r"rewardsmith|__main__|contextlib")
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 success, 2 bad input, 1 a check or a guard failed, 130 Ctrl-C."""
    # A tokenizer that was used before a data loader forks would warn on every start.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _plain_warnings():
            result = app(args=words, standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except RewardsmithError as error:
        print(f"error: {error}", file=sys.stderr)
        if "--json" in words:
            typer.echo(json.dumps({"error": error.as_dict()}, ensure_ascii=False))
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    except Exception as error:
        # Typer's own usage errors know how to show themselves; anything else is a bug of ours and keeps its traceback.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        raise
    if code == _INTERRUPTED:  # typer turns Ctrl-C into this code itself
        goes_on = _GOES_ON.get(words[0] if words else "")
        print("interrupted" + (f"; the same command goes on {goes_on}" if goes_on else ""), file=sys.stderr)
    return code


def entry_point() -> None:
    """The installed command `rewardsmith`."""
    sys.exit(main())
