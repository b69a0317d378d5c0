"""The verb that repeats a run from its manifest: `reproduce`. Heavy imports come after parsing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rewardsmith.cli.base import Json, Overwrite, app, finish, stderr_console
from rewardsmith.config import Device


@app.command()
def reproduce(
    run: Annotated[Path, typer.Argument(help="The folder of a finished train or demo.")],
    data: Annotated[str | None, typer.Option(help="Its training data; found beside the run by default.")] = None,
    dev_data: Annotated[str | None, typer.Option(help="Its dev data, if it was given some.")] = None,
    eval_data: Annotated[str | None, typer.Option(help="Its eval data, if it was given some.")] = None,
    model: Annotated[str | None, typer.Option(help="The model that it started from.")] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder; RUN-reproduced by default.")] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Go on with other data or another base model, and say what moved.")
    ] = False,
    overwrite: Overwrite = False,
    device: Annotated[Device | None, typer.Option(help="Where to train; as the run did by default.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; those of the run by default.")] = None,
    as_json: Json = False,
) -> None:
    """Repeat a run from its manifest and compare weights and metrics: bit-equal at the same place, else within a stated tolerance. Exits 1 beyond it."""
    from rewardsmith import reproducing

    document = reproducing.reproduce(
        run,
        data=data,
        dev_data=dev_data,
        eval_data=eval_data,
        model=model,
        out=out,
        anyway=anyway,
        overwrite=overwrite,
        device=device,
        threads=threads,
        command=sys.argv[1:],
        quiet=as_json,
        console=stderr_console(),
    )
    finish(document, as_json, reproducing.verdict_line(document))
    if not document["ok"]:
        raise typer.Exit(1)
