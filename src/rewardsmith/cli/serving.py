"""The verb `serve`. Heavy imports come after parsing."""

from __future__ import annotations

from typing import Annotated

import typer

from rewardsmith.cli.base import DeviceOption, Json, ScoringPrecision, Seed, Threads, app, finish, stderr_console
from rewardsmith.config import ScoringSettings, ServeSettings, build, merge


@app.command()
def serve(
    models: Annotated[list[str], typer.Argument(help="MODEL or NAME=MODEL, one or more.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on; another than loopback needs keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")] = None,
    keys_file: Annotated[str | None, typer.Option(help="Keys that let in, one a line.")] = None,
    insecure: Annotated[bool | None, typer.Option("--insecure", help="Serve other machines without keys.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. deadline=10.")] = None,
    device: DeviceOption = "auto",
    precision: ScoringPrecision = "float32",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Serve models over HTTP: our own API, and the protocols of OpenRLHF, vLLM, SGLang, TEI and LLaMA-Factory."""
    flags = {"host": host, "port": port, "keys_file": keys_file, "insecure": insecure}
    settings = build(ServeSettings, merge({}, flags, sets or []))
    shared = {name: getattr(settings, name) for name in ("batch_tokens", "prompt_states_mib")}
    scoring = build(ScoringSettings, {"device": device, "precision": precision, **shared})
    from rewardsmith import service
    from rewardsmith.model.precision import prepare_process

    sources = service.named(models)
    prepare_process(threads=threads, seed=seed)
    console = stderr_console()

    def started(address: str) -> None:
        console.print(f"docs at {address}/docs; stop with Ctrl-C", highlight=False, soft_wrap=True)
        finish({"verb": "serve", "url": address, "models": list(sources)}, as_json, f"serving at {address}")

    service.serve(sources, settings, scoring, console=console, on_started=started)
