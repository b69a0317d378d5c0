"""The verbs of model folders: `verify`, `export`, `import`, `average`. Heavy imports come after parsing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rewardsmith.cli.base import (
    DeviceOption,
    Json,
    Overwrite,
    Seed,
    SkipBad,
    Threads,
    app,
    finish,
    print_checks,
    stderr_console,
)
from rewardsmith.config import ExportSettings, build
from rewardsmith.errors import SettingsError


@app.command()
def verify(
    model: str,
    against: Annotated[
        str | None,
        typer.Option(
            help="Another way to the score: a URL, transformers, crossencoder, onnx, openvino, or one of these as KIND:FOLDER."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Pairs to compare on, beside the golden inputs.")] = None,
    precision: Annotated[
        Literal["float32", "bf16"], typer.Option(help="What a server that does not say it computes in.")
    ] = "float32",
    device: DeviceOption = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Recompute what a model folder claims: hashes, head, golden ids and scores; and whether another way gives the same. Exits 1 with what differs."""
    if data is not None and against is None:
        raise SettingsError("--against with --data", "--data alone", "Say what to compare with.")
    from rewardsmith.model import artefact, exported
    from rewardsmith.model.network import source_folder
    from rewardsmith.model.precision import prepare_process

    prepare_process(threads=threads, seed=seed)
    if exported.is_exported(model):
        checks = exported.verify(model)
    else:
        checks = artefact.verify(source_folder(model), device=device)
    document: dict[str, Any] = {"verb": "verify"}
    if against is not None:
        from rewardsmith.model.against import verify_against

        found = verify_against(model, against, data=data, precision=precision, seed=seed)
        checks += found.checks
        document["against"] = found.document
    ok = all(one.ok for one in checks)
    print_checks(checks)
    finish({**document, "ok": ok, "checks": [one.as_dict() for one in checks]}, as_json, "")
    if not ok:
        raise typer.Exit(1)


@app.command()
def export(
    model: str,
    to: Annotated[Literal["onnx", "openvino", "hf"], typer.Option(help="The program that is to run it.")],
    out: Annotated[str, typer.Option(help="The folder to make.")],
    precision: Annotated[
        Literal["float32", "bf16", "int8"], typer.Option(help="Of the linear layers; the head stays float32.")
    ] = "float32",
    data: Annotated[str | None, typer.Option(help="Pairs to compare order and accuracy on.")] = None,
    min_agreement: Annotated[float, typer.Option(help="Share of pairs that must keep their order.")] = 0.99,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make a folder that ONNX Runtime, OpenVINO or plain transformers runs. Exits 1, and writes nothing, where it does not score like the model."""
    settings = build(
        ExportSettings,
        {
            "model": model,
            "to": to,
            "out": out,
            "precision": precision,
            "data": data,
            "min_agreement": min_agreement,
            "skip_bad": skip_bad,
        },
    )
    from rewardsmith.model.export import comparison_lines, export_model
    from rewardsmith.model.precision import prepare_process

    prepare_process(threads=threads, seed=seed)
    done = export_model(settings, overwrite=overwrite, seed=seed)
    print_checks(done.checks)
    console = stderr_console()
    for line in comparison_lines(done.document):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    finish(done.document, as_json, f"exported to {out}" if done.ok else "refused: nothing was written")
    if not done.ok:
        raise typer.Exit(1)


@app.command("import")
def import_(
    source: str,
    out: Annotated[Path, typer.Option(help="The model folder to make.")],
    base: Annotated[str | None, typer.Option(help="Base model of an adapter, if not as its config says.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=8, help="Tokens of one input; 512, or less where the model's positions end.")
    ] = None,
    drop_bias: Annotated[
        bool, typer.Option("--drop-bias", help="Leave out a head's constant that other tools have no place for.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a model folder, with contract and golden scores, of a reward model of another tool."""
    from rewardsmith.model.importing import import_folder

    imported = import_folder(source, out, base=base, max_length=max_length, drop_bias=drop_bias, overwrite=overwrite)
    console = stderr_console()
    for line in (imported.recognised.reason, *imported.notes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    finish({"verb": "import", **imported.as_dict()}, as_json, f"model folder: {out}")


@app.command()
def average(
    members: Annotated[list[str], typer.Argument(help="Two or more run or model folders.")],
    out: Annotated[Path, typer.Option(help="The model folder to make.")],
    data: Annotated[
        str | None, typer.Option(help="Pairs to judge members and average on, and to align scores on where needed.")
    ] = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    device: DeviceOption = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Average the weights of reward models that were fine-tuned from one start, their scores put on one scale first."""
    from rewardsmith.data import io
    from rewardsmith.model.averaging import accuracy_table, average_folders
    from rewardsmith.model.precision import prepare_process

    console, pairs = stderr_console(), None
    if data:
        reading = io.read(data, skip_bad=skip_bad)
        pairs = io.preferences(reading.rows, data)
        console.print(reading.describe(data), highlight=False, markup=False, soft_wrap=True)
    prepare_process(threads=threads, seed=seed)
    document = average_folders(members, out, pairs=pairs, device=device, overwrite=overwrite, seed=seed)
    said = [f"start: {document['start']['checked']}", *(f"warning: {w}" for w in document["start"]["warnings"])]
    for line in (*said, f"aligned on the texts {document['aligned_on']['texts']}, n={document['aligned_on']['n']:,}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if "accuracy" in document and not as_json:
        console.print(accuracy_table(document))
    finish(document, as_json, f"model folder: {out}")
