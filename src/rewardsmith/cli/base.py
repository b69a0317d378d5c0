"""What all verbs share: the application, its options, and how a verb begins and ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from rewardsmith import launched
from rewardsmith.config import Device, ScoringSettings, build
from rewardsmith.errors import SettingsError

if TYPE_CHECKING:
    from rich.console import Console

    from rewardsmith.loading import Running, Source
    from rewardsmith.model.artefact import Check

VERBS = (
    "demo", "lint", "convert", "split", "train", "score", "evaluate", "compare", "calibrate", "audit", "report",
    "reproduce", "diff", "bestofn", "winrate", "ppo", "serve", "verify", "export", "import", "average",
)  # fmt: skip
"""All verbs, in the order of the help."""
_OF_SEVERAL = ("train", "ppo")


class _InOrder(TyperGroup):
    """Verbs as `VERBS` has them, whichever module was imported first."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All that there are."""
        return sorted(super().list_commands(ctx), key=VERBS.index)


app = typer.Typer(
    cls=_InOrder,
    help="Train, prove and put to work reward models for RLHF.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
DeviceOption = Annotated[Device, typer.Option(help="Where the model runs.")]
ScoringPrecision = Annotated[
    Literal["float32", "bf16"], typer.Option(help="bf16 is faster, and is recorded with the result.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count malformed rows instead of stopping at the first.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result of rewardsmith.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Train, prove and put to work reward models for RLHF."""
    if context.invoked_subcommand not in (None, *_OF_SEVERAL):
        refuse_several(str(context.invoked_subcommand))
    if version:
        from rewardsmith import __version__

        typer.echo(__version__)
        raise typer.Exit


def refuse_several(verb: str) -> None:
    """Refuse to be one of several processes that would all do the same work in the same place.

    Raises:
        SettingsError: naming the verb and how many there are.
    """
    if launched.count() > 1:
        raise SettingsError(
            f"one process for {verb}",
            f"{launched.count()} processes (WORLD_SIZE)",
            f"Start it without torchrun or accelerate launch; {' and '.join(_OF_SEVERAL)} are shared between processes.",
        )


def running(device: Device, precision: str, threads: int | None, seed: int) -> Running:
    """How models run, by the flags."""
    from rewardsmith.loading import Running

    return Running(build(ScoringSettings, {"device": device, "precision": precision}), threads, seed)


def load_source(model: str, device: Device, precision: str, threads: int | None, seed: int) -> Source:
    """The scorer of a MODEL argument: a folder, a URL or a function."""
    return running(device, precision, threads, seed).load(model)


def print_checks(checks: Sequence[Check]) -> None:
    """One line a check, on stderr."""
    console = stderr_console()
    for one in checks:
        worst = "" if one.max_difference is None else f" (max difference {one.max_difference:.1e})"
        line = f"{'ok  ' if one.ok else 'FAIL'}  {one.name}: {one.detail}{worst}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def numbers(text: str, flag: str) -> list[float]:
    """Numbers, comma-separated."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise SettingsError(f"{flag} as numbers", repr(text), "Write for example 0.1,0.5.") from error


def names(text: str | None) -> list[str]:
    """Names, comma-separated."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def stderr_console() -> Console:
    """Where everything but results is printed."""
    from rich.console import Console

    return Console(stderr=True)


def finish(document: Mapping[str, Any], as_json: bool, line: str) -> None:
    """The end of every verb: one JSON document on stdout, or one line for people."""
    if not launched.is_first():
        return
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False, allow_nan=False))
    elif line:
        typer.echo(line)
