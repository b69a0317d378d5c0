"""The verb that compares two finished runs by what their folders say: `diff`. Heavy imports come after parsing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardsmith.cli.base import Json, Overwrite, Seed, app, finish, stderr_console


@app.command()
def diff(
    run_a: Annotated[Path, typer.Argument(help="A folder of train, evaluate, audit or ppo.")],
    run_b: Annotated[Path, typer.Argument(help="Another of the same verb.")],
    out: Annotated[Path | None, typer.Option(help="The file to write the document to.")] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say what differs between two runs: settings, data and which rows, code, versions, device, results."""
    from rewardsmith.evaluation.run_difference import RunFolder, difference, difference_lines, difference_tables
    from rewardsmith.storage import check_result_file, write_json

    if out is not None:
        check_result_file(out, "diff", str(run_a), str(run_b), overwrite=overwrite)
    document = difference(RunFolder.read(run_a), RunFolder.read(run_b), seed=seed)
    if out is not None:
        write_json(out, document)
    if not as_json:
        console = stderr_console()
        for table in difference_tables(document):
            console.print(table)
    finish(document, as_json, "\n".join(difference_lines(document)))
