"""The command line: one short function a verb that parses, calls and prints. Heavy imports come after parsing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rewardsmith.config import (
    AuditSettings,
    Device,
    ExportSettings,
    LintSettings,
    ScoringSettings,
    ServeSettings,
    TrainSettings,
    build,
    merge,
    read_recipe,
)
from rewardsmith.errors import OutputError, RewardsmithError, SettingsError
from rewardsmith.storage import check_result_file, check_result_folder, refuse_inside

if TYPE_CHECKING:
    from rich.console import Console

    from rewardsmith.data.truncation import Cutter
    from rewardsmith.linting.doctor import Judge
    from rewardsmith.loading import Running, Source
    from rewardsmith.model.artefact import Check

_INTERRUPTED = 130

app = typer.Typer(
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
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Train, prove and put to work reward models for RLHF."""
    if version:
        from rewardsmith import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(help="A recipe, TOML or YAML.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder, Hugging Face name, or `minilm`.")] = None,
    data: Annotated[str | None, typer.Option(help="Preference pairs to train on.")] = None,
    dev_data: Annotated[str | None, typer.Option(help="Pairs that choose the checkpoint.")] = None,
    eval_data: Annotated[str | None, typer.Option(help="Pairs to judge the result by, once, at the end.")] = None,
    out: Annotated[str | None, typer.Option(help="The run folder.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. trainer.save_steps=50.")] = None,
    sweeps: Annotated[
        list[str] | None, typer.Option("--sweep", help="key=value,value: a run each; may be repeated.")
    ] = None,
    overwrite: Overwrite = False,
    skip_bad: Annotated[bool | None, typer.Option("--skip-bad", help="Count malformed rows.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep no token ids on disk.")] = False,
    device: Annotated[Device | None, typer.Option(help="Where to train.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32, bf16 or fp16.")] = None,
    threads: Threads = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    as_json: Json = False,
) -> None:
    """Train a reward model on preference pairs and judge it on held-out ones."""
    flags = {
        "model": model,
        "data": data,
        "dev_data": dev_data,
        "eval_data": eval_data,
        "out": out,
        "skip_bad": skip_bad,
        "cache": False if no_cache else None,
        "device": device,
        "precision": precision,
        "threads": threads,
        "seed": seed,
    }
    recipe = merge(read_recipe(config) if config else {}, flags, sets or [])
    if sweeps:
        from rewardsmith.sweeping import sweep

        document = sweep(recipe, sweeps, overwrite=overwrite, command=sys.argv[1:], console=_console())
        _finish(document, as_json, f"sweep: {recipe['out']}; chosen: {', '.join(document['chosen']['runs'])}")
        return
    settings = build(TrainSettings, recipe)
    from rewardsmith import runs

    report = runs.train(settings, overwrite=overwrite, command=sys.argv[1:], console=_console())
    _finish(report, as_json, f"run folder: {settings.out}")


@app.command()
def score(
    model: str,
    data: str,
    out: Annotated[Path, typer.Option(help="The file to write, one JSON row an input row.")],
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    device: DeviceOption = "auto",
    precision: ScoringPrecision = "float32",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score pairs, groups or single answers; memory stays bounded, an interrupted run goes on where it stopped."""
    if out.exists() and not overwrite:
        raise OutputError("a new file for --out", f"{out}, which exists", "Choose another --out, or --overwrite.")
    refuse_inside(out, data)
    from rewardsmith.data.io import source_identity
    from rewardsmith.streaming import score_file

    source = _load(model, device, precision, threads, seed)
    identity = {
        "model": dict(source.files),
        "data": source_identity(data),
        "precision": source.precision.get("precision"),
        "skip_bad": skip_bad,
    }
    console = _console()
    with console.status("scoring") as status:
        done = score_file(
            source.scorer,
            data,
            out,
            identity=identity,
            skip_bad=skip_bad,
            on_window=lambda n: status.update(f"scored {n:,} rows"),
        )
    document = {"verb": "score", "model": source.name, **source.precision, **done.as_dict()}
    resumed = f" (went on after {done.resumed_from:,})" if done.resumed_from else ""
    skipped = f", skipped {dict(done.skipped)}" if done.skipped else ""
    cut = "unknown" if done.truncated is None else f"{done.truncated:,}"
    _finish(document, as_json, f"{done.num_rows:,} rows{resumed} -> {out}; truncated answers: {cut}{skipped}")


@app.command()
def evaluate(
    model: str,
    data: str,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and pairs.jsonl.")] = None,
    by: Annotated[str | None, typer.Option(help="Metadata columns to slice by, comma-separated.")] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="Score DATA by the rule of this public benchmark; docs/public_benchmarks.md.")
    ] = None,
    attributions: Annotated[
        int, typer.Option(min=0, help="Pairs of lowest margin whose scores are shared out among their words.")
    ] = 0,
    learning_curve: Annotated[
        bool, typer.Option("--learning-curve", help="Train a run's recipe on shares of its data: would more data help?")
    ] = False,
    train_data: Annotated[str | None, typer.Option(help="Learning curve: what the run was trained on.")] = None,
    dev_data: Annotated[str | None, typer.Option(help="Learning curve: the run's dev data, where it had any.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Learning curve: what the run started from, where its name leads nowhere.")
    ] = None,
    shares: Annotated[str, typer.Option(help="Learning curve: shares of the training pairs, the last one 1.")] = (
        "0.125,0.25,0.5,1"
    ),
    repeats: Annotated[int, typer.Option(min=1, help="Learning curve: trainings of each share but the last.")] = 3,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    device: DeviceOption = "auto",
    precision: ScoringPrecision = "float32",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Judge a reward model on labelled pairs: accuracy with its interval, baselines, calibration, slices; or by the rule of a public benchmark."""
    if out is not None:
        check_result_folder(out, "evaluate", model, data, overwrite=overwrite)
    if attributions and out is None:
        raise SettingsError("--out with --attributions", "--attributions alone", "Give a folder for pairs.jsonl.")
    if learning_curve != (train_data is not None):
        raise SettingsError("--learning-curve with --train-data", "one of the two", "Give both, or neither.")
    if not learning_curve and (dev_data is not None or base_model is not None):
        raise SettingsError(
            "--learning-curve with --dev-data or --base-model", "one of these alone", "They are for it; leave them out."
        )
    if benchmark is not None:
        if by is not None or attributions or learning_curve:
            raise SettingsError(
                "--benchmark without --by, --attributions and --learning-curve",
                "both",
                "A benchmark has sections of its own; leave them out.",
            )
        from rewardsmith import evaluations

        document = evaluations.on_benchmark(
            benchmark,
            model,
            data,
            out,
            run=_run(device, precision, threads, seed),
            skip_bad=skip_bad,
            quiet=as_json,
            console=_console(),
        )
        _finish(document, as_json, f"written to {out}" if out else "")
        return
    from rewardsmith import evaluations

    curve = None
    if train_data is not None:
        parts = _numbers(shares, "--shares")
        curve = evaluations.Curve(train_data, dev_data, base_model, shares=parts, repeats=repeats)
    document = evaluations.on_pairs(
        model,
        data,
        out,
        by=_names(by) or None,
        attributions=attributions,
        curve=curve,
        run=_run(device, precision, threads, seed),
        skip_bad=skip_bad,
        quiet=as_json,
        console=_console(),
    )
    _finish(document, as_json, f"written to {out}" if out else "")


@app.command()
def compare(
    model_a: str,
    model_b: str,
    data: str,
    out: Annotated[Path | None, typer.Option(help="File for the document, JSON.")] = None,
    by: Annotated[str | None, typer.Option(help="Metadata columns to slice by, comma-separated.")] = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    device: DeviceOption = "auto",
    precision: ScoringPrecision = "float32",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Which of two reward models is right more often on the same pairs, and could that be chance?"""
    if out is not None:
        check_result_file(out, "compare", model_a, model_b, data, overwrite=overwrite)
    from rewardsmith.evaluation.comparison import compare as judge
    from rewardsmith.evaluation.comparison import comparison_table
    from rewardsmith.loading import papers, read_labelled
    from rewardsmith.storage import write_json

    facts, pairs = read_labelled(data, skip_bad=skip_bad, console=_console())
    sources = [_load(model, device, precision, threads, seed) for model in (model_a, model_b)]
    found = judge(
        (sources[0].scorer, sources[1].scorer),
        pairs,
        names=(sources[0].name, sources[1].name),
        by=_names(by) or None,
        temperatures=(sources[0].temperature, sources[1].temperature),
        seed=seed,
    )
    document = {"verb": "compare", **papers(facts, seed), **found.document}
    document["files_a"], document["files_b"] = dict(sources[0].files), dict(sources[1].files)
    document["precision_a"], document["precision_b"] = dict(sources[0].precision), dict(sources[1].precision)
    if out is not None:
        write_json(out, document)
    if not as_json:
        _console().print(comparison_table(document, f"A = {document['model_a']}, B = {document['model_b']}"))
    _finish(document, as_json, document["verdict"])


@app.command()
def calibrate(
    model: str,
    data: str,
    by: Annotated[
        str | None, typer.Option(help="A metadata column whose values get temperatures of their own.")
    ] = None,
    fit_share: Annotated[float, typer.Option(min=0.05, max=0.95, help="Share of the pairs to fit on.")] = 0.5,
    false_alarms: Annotated[
        str, typer.Option(help="Shares of good answers that a guardrail may stop, comma-separated.")
    ] = "0.01,0.05,0.1",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing into the model folder.")] = False,
    skip_bad: SkipBad = False,
    device: DeviceOption = "auto",
    precision: ScoringPrecision = "float32",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit the temperature that makes probabilities of margins, and thresholds of guardrails; show both on other prompts; keep them in the model folder."""
    shares = _rates(false_alarms)
    from rewardsmith.remote import is_url

    if is_url(model) and not dry_run:
        raise SettingsError(
            "a model folder to keep the temperature in", "the address of a server", "Add --dry-run, or give the folder."
        )
    from rewardsmith.evaluation.calibration import calibrate as fit
    from rewardsmith.evaluation.calibration import calibration_tables, without_curves
    from rewardsmith.loading import papers, read_labelled

    facts, pairs = read_labelled(data, skip_bad=skip_bad, console=_console())
    folder = None
    if not dry_run:  # whether there is a contract to keep it in is said before anything is scored
        from rewardsmith.model.exported import contract_folder

        folder = contract_folder(model)
    source = _load(model, device, precision, threads, seed)
    found = fit(source.scorer, pairs, by=by or None, fit_share=fit_share, false_alarms=shares, seed=seed)
    kept = {**papers(facts, seed), **source.precision, **found.document}
    document = {"verb": "calibrate", "model": source.name, "written": not dry_run, **kept}
    if folder is not None:
        from rewardsmith.model.artefact import store_calibration

        store_calibration(folder, found.temperature.value, without_curves(kept))
    console = _console()
    if not as_json:
        for table in calibration_tables(document):
            console.print(table)
        for name, reason in document["no_thresholds"].items():
            console.print(f"no threshold ({name}): {reason}", highlight=False, markup=False, soft_wrap=True)
    _finish(document, as_json, document["verdict"])


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="A folder, the URL of a server, or FILE.py:FUNCTION.")],
    data: str,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and trials.jsonl.")] = None,
    probes: Annotated[str | None, typer.Option(help="Only these probes or families, comma-separated.")] = None,
    without: Annotated[str | None, typer.Option(help="Not these probes or families, comma-separated.")] = None,
    extend: Annotated[
        list[str] | None, typer.Option(help="A Python file with further probes; may be repeated.")
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=2, help="Prompts of the sample; 200.")] = None,
    fail_over: Annotated[
        list[str] | None, typer.Option(help="NAME=NUMBERsd: exit 1 beyond this effect, e.g. padding=0.2sd.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Folder of an earlier audit on the same data.")] = None,
    search: Annotated[bool | None, typer.Option("--search", help="Look for the words that raise scores most.")] = None,
    pool: Annotated[str | None, typer.Option(help="Candidates, for over-optimisation by best-of-n.")] = None,
    policy: Annotated[str | None, typer.Option(help="A language model that draws the candidates instead.")] = None,
    gold: Annotated[str | None, typer.Option(help="The better judge of candidates: a MODEL, or `labels`.")] = None,
    ensemble: Annotated[
        list[str] | None, typer.Option(help="A further member of an ensemble; may be repeated.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="New prompts to compare the data with.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. search_texts=5000.")] = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    device: DeviceOption = "auto",
    precision: ScoringPrecision = "float32",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What would a policy exploit in this reward model? Effects of edits in standard deviations, use of the prompt, truncation, shift. Exits 1 beyond a limit."""
    flags = {
        "probes": _names(probes) or None,
        "without": _names(without) or None,
        "extend": extend,
        "prompts": prompts,
        "fail_over": fail_over,
        "baseline": baseline,
        "search": search,
        "pool": pool,
        "policy": policy,
        "gold": gold,
        "ensemble": ensemble,
        "against": against,
    }
    settings = build(AuditSettings, merge({}, flags, sets or []))
    if out is not None:
        inputs = [one for one in (data, pool, against, baseline, model) if one is not None]
        check_result_folder(out, "audit", *inputs, overwrite=overwrite)
    from rewardsmith import audits

    document = audits.run(
        model,
        data,
        out,
        settings,
        running=_run(device, precision, threads, seed),
        skip_bad=skip_bad,
        quiet=as_json,
        console=_console(),
    )
    _finish(document, as_json, document["verdict"]["text"] + (f"\nwritten to {out}" if out else ""))
    if not document["verdict"]["ok"]:
        raise typer.Exit(1)


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run folders, folders of `evaluate --out` or `audit --out`, or one earlier report."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page with its numbers; needed for several runs.")
    ] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw results as one HTML page that needs nothing else: verdict, numbers, curves, slices, every pair. Loads no model."""
    from rewardsmith.evaluation.pages.page import write_report

    written = write_report(folders, out=out, overwrite=overwrite, seed=seed)
    _finish(
        {"verb": "report", **written.as_dict()},
        as_json,
        f"models: {written.num_models:,}, pairs: {written.num_pairs:,} -> {written.page}",
    )


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
    _print_checks(checks)
    _finish({**document, "ok": ok, "checks": [one.as_dict() for one in checks]}, as_json, "")
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
    _print_checks(done.checks)
    console = _console()
    for line in comparison_lines(done.document):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    _finish(done.document, as_json, f"exported to {out}" if done.ok else "refused: nothing was written")
    if not done.ok:
        raise typer.Exit(1)


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
    console = _console()

    def started(address: str) -> None:
        console.print(f"docs at {address}/docs; stop with Ctrl-C", highlight=False, soft_wrap=True)
        _finish({"verb": "serve", "url": address, "models": list(sources)}, as_json, f"serving at {address}")

    service.serve(sources, settings, scoring, console=console, on_started=started)


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
    console = _console()
    for line in (imported.recognised.reason, *imported.notes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    _finish({"verb": "import", **imported.as_dict()}, as_json, f"model folder: {out}")


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

    console, pairs = _console(), None
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
    _finish(document, as_json, f"model folder: {out}")


@app.command()
def lint(
    data: str,
    eval_data: Annotated[str | None, typer.Option(help="Pairs that the data must share no prompt with.")] = None,
    benchmark: Annotated[list[str] | None, typer.Option(help="NAME=FILE of a benchmark; may be repeated.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Model whose tokenizer measures truncation.")] = None,
    max_length: Annotated[int, typer.Option(min=8, help="The limit of the rule truncated_equal.")] = 512,
    truncation: Annotated[Literal["keep_answer", "right"], typer.Option(help="The length policy.")] = "keep_answer",
    suspects: Annotated[
        str | None, typer.Option(help="Reward model, or encoder to be frozen, that judges the labels.")
    ] = None,
    max_suspect_pairs: Annotated[int, typer.Option(min=20, help="Judge at most so many pairs.")] = 20_000,
    rules: Annotated[str | None, typer.Option(help="Only these rules, comma-separated.")] = None,
    ignore: Annotated[str | None, typer.Option(help="All rules but these, comma-separated.")] = None,
    no_near: Annotated[bool, typer.Option("--no-near", help="Look for no near duplicates.")] = False,
    format_: Annotated[
        str | None, typer.Option("--from", help="Format of the rows, where it is not recognised.")
    ] = None,
    fix: Annotated[Path | None, typer.Option(help="Folder for the cleaned and the removed rows.")] = None,
    html: Annotated[Path | None, typer.Option(help="File for the report as a page.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 at warnings too.")] = False,
    overwrite: Overwrite = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; all cores by default.")] = None,
    device: DeviceOption = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Examine preference data before it is trained on. Exits 1 when a rule of severity error fires."""
    settings = build(
        LintSettings,
        {
            "data": data,
            "eval_data": eval_data,
            "benchmarks": [_named_file(text) for text in benchmark or []],
            "format": format_,
            "rules": _names(rules),
            "ignore": _names(ignore),
            "near": not no_near,
            "jobs": jobs,
            "max_length": max_length,
            "max_suspect_pairs": max_suspect_pairs,
            "seed": seed,
        },
    )
    sources = [data, *([eval_data] if eval_data else []), *(file for _, file in settings.benchmarks)]
    from rewardsmith.linting import doctor, repair, tables
    from rewardsmith.linting.page import check_output, write_page
    from rewardsmith.linting.progress import progress_bar

    if html is not None:
        check_output(html, *sources, overwrite=overwrite)
        if fix is not None and html.resolve().is_relative_to(fix.resolve()):
            raise OutputError("--html outside the folder of --fix", f"{html} in {fix}", "Choose another --html.")
    if fix is not None:
        repair.check_output(fix, *sources, overwrite=overwrite)
    cutter = _cutter(tokenizer, max_length, truncation) if tokenizer else None
    judge = _judge(suspects, device, threads, seed) if suspects else None
    console = _console()
    with progress_bar(console, data) as progress:
        examination = doctor.lint(settings, cutter=cutter, judge=judge, progress=progress)
        document = examination.document
        if fix is not None:
            document["fixed"] = repair.repair(examination, fix, overwrite=overwrite, progress=progress)
    if html is not None:
        write_page(document, html)
    if not as_json:
        for part in tables.lint_tables(document):
            console.print(part, highlight=False)
    written = [str(path) for path in (fix, html) if path is not None]
    _finish(document, as_json, f"written to {', '.join(written)}" if written else "")
    if examination.has("error", *(["warning"] if strict else [])):
        raise typer.Exit(1)


@app.command()
def convert(
    source: str,
    to: Annotated[str, typer.Option(help="The format to write; docs/formats.md lists them.")],
    out: Annotated[Path, typer.Option(help="The file to write: .jsonl, .jsonl.gz, .json or .parquet.")],
    format_: Annotated[
        str | None, typer.Option("--from", help="Format of the rows, where it is not recognised.")
    ] = None,
    pairs: Annotated[
        Literal["all", "best", "adjacent"] | None,
        typer.Option(help="Which pairs of a group; groups stay groups without it."),
    ] = None,
    min_gap: Annotated[
        float | None, typer.Option(min=0, help="Least difference of ratings or places in a pair.")
    ] = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write preference data in the format of another tool; what the format cannot hold is counted or refused."""
    from rewardsmith.conversion import convert as run
    from rewardsmith.data.pairing import PairRule

    rule = None if pairs is None and min_gap is None else PairRule(pairs or "all", min_gap or 0.0)
    console = _console()
    with console.status("converting") as status:
        done = run(
            source,
            out,
            to=to,
            format=format_,
            rule=rule,
            skip_bad=skip_bad,
            overwrite=overwrite,
            on_rows=lambda n: status.update(f"converted {n:,} rows"),
        )
    console.print(done.reading.describe(source), highlight=False, markup=False, soft_wrap=True)
    for name, count in done.losses().items():
        console.print(f"{name}: {count:,}", highlight=False, markup=False)
    document = {"verb": "convert", "source": Path(source).name, "out": out.name, "to": to, **done.as_dict()}
    _finish(document, as_json, f"{done.written:,} rows ({done.pairs:,} pairs) -> {out}")


@app.command()
def split(
    data: str,
    out: Annotated[Path, typer.Option(help="Folder for one file a part.")],
    parts: Annotated[str, typer.Option(help="name=share, comma-separated.")] = "train=0.9,dev=0.05,eval=0.05",
    stratify: Annotated[str | None, typer.Option(help="Column whose values keep their shares.")] = None,
    no_near: Annotated[bool, typer.Option("--no-near", help="Let near copies of a prompt stand on two sides.")] = False,
    format_: Annotated[
        str | None, typer.Option("--from", help="Format of the rows, where it is not recognised.")
    ] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Cut a source into parts by prompt: no prompt, nor a near copy of one, stands on two sides."""
    shares = _shares(parts)
    from rewardsmith.splitting import split_source

    document = split_source(
        data,
        out,
        shares,
        stratify=stratify,
        keep_near=not no_near,
        seed=seed,
        format=format_,
        overwrite=overwrite,
    )
    counts = (f"{name} {part['rows']:,} rows ({part['prompts']:,} prompts)" for name, part in document["parts"].items())
    _finish(document, as_json, f"{', '.join(counts)} -> {out}")


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="The run folder.")] = "runs/demo",
    model: Annotated[str, typer.Option(help="Folder, Hugging Face name, or `minilm`.")] = "minilm",
    data: Annotated[str | None, typer.Option(help="Your own pairs instead of the embedded set.")] = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt of yours, to score two answers.")] = None,
    answer_a: Annotated[str | None, typer.Option(help="The first answer.")] = None,
    answer_b: Annotated[str | None, typer.Option(help="The second answer.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value, as for train.")] = None,
    overwrite: Overwrite = False,
    device: DeviceOption = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bf16 or fp16.")] = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The whole path in minutes: train on the embedded set, beat the baselines on unseen prompts, score two answers."""
    from rewardsmith import showcase

    flags = {"model": model, "out": out, "device": device, "precision": precision, "threads": threads, "seed": seed}
    document = showcase.run(
        flags,
        data=data,
        sets=sets or [],
        question=showcase.question_from(prompt, answer_a, answer_b),
        overwrite=overwrite,
        command=sys.argv[1:],
        console=_console(),
    )
    answers = document["answers"]
    how = "uncalibrated" if answers["temperature"] is None else f"temperature {answers['temperature']:.2f}"
    line = (
        f"prompt:   {answers['prompt']}\n"
        f"answer A: {answers['score_a']:+.3f}  {answers['answer_a']}\n"
        f"answer B: {answers['score_b']:+.3f}  {answers['answer_b']}\n"
        f"probability that A is better: {answers['probability_a']:.3f} ({how})"
    )
    _finish(document, as_json, line)


def _run(device: Device, precision: str, threads: int | None, seed: int) -> Running:
    """How models run, by the flags."""
    from rewardsmith.loading import Running

    return Running(build(ScoringSettings, {"device": device, "precision": precision}), threads, seed)


def _load(model: str, device: Device, precision: str, threads: int | None, seed: int) -> Source:
    """The scorer of a MODEL argument: a folder, a URL or a function."""
    return _run(device, precision, threads, seed).load(model)


def _print_checks(checks: Sequence[Check]) -> None:
    """One line a check, on stderr."""
    console = _console()
    for one in checks:
        worst = "" if one.max_difference is None else f" (max difference {one.max_difference:.1e})"
        line = f"{'ok  ' if one.ok else 'FAIL'}  {one.name}: {one.detail}{worst}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _named_file(text: str) -> tuple[str, str]:
    """NAME=FILE, or a file that is its own name."""
    name, equals, file = text.partition("=")
    return (name, file) if equals and not Path(text).exists() else (Path(text).name.partition(".")[0], text)


def _rates(text: str) -> list[float]:
    """Shares between 0 and 1, comma-separated."""
    rates = _numbers(text, "--false-alarms")
    if not all(0 < rate < 1 for rate in rates):
        raise SettingsError("--false-alarms between 0 and 1", repr(text), "Write for example 0.01,0.05.")
    return rates


def _numbers(text: str, flag: str) -> list[float]:
    """Numbers, comma-separated."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise SettingsError(f"{flag} as numbers", repr(text), "Write for example 0.1,0.5.") from error


def _names(text: str | None) -> list[str]:
    """Names, comma-separated."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _shares(text: str) -> dict[str, float]:
    """name=share, comma-separated."""
    try:
        named = [part.split("=") for part in text.split(",")]
        shares = {name.strip(): float(share) for name, share in named}
    except ValueError as error:
        raise SettingsError("--parts as name=share,name=share", repr(text), "Write train=0.9,dev=0.1.") from error
    if len(shares) < len(named) or not all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in shares):
        raise SettingsError("parts of different plain names", repr(text), "Write train=0.9,dev=0.1.")
    return shares


def _cutter(model: str, max_length: int, truncation: Literal["keep_answer", "right"]) -> Cutter:
    """What measures truncation: the tokenizer of a model, at the usual limits and the one asked for."""
    from rewardsmith.model.truncation import TokenizerCutter

    limits = sorted({256, 512, 1024, 2048, max_length})
    return TokenizerCutter.load(model, limits=limits, truncation=truncation)


def _judge(model: str, device: Device, threads: int | None, seed: int) -> Judge:
    """What judges labels: a reward model by its own scores, any other model by a linear model on its frozen features."""
    from rewardsmith.linting.judges import FeatureJudge, ScorerJudge
    from rewardsmith.remote import is_url

    if is_url(model):
        source = _load(model, device, "float32", threads, seed)
        return ScorerJudge(source.name, source.scorer)
    from rewardsmith.model.exported import is_exported
    from rewardsmith.model.features import FrozenEncoder
    from rewardsmith.model.network import is_reward_model, read_config, source_folder

    if is_exported(model) or is_reward_model(read_config(source_folder(model))):
        source = _load(model, device, "float32", threads, seed)
        return ScorerJudge(source.name, source.scorer)
    from rewardsmith.model.precision import prepare_process

    prepare_process(threads=threads, seed=seed)
    return FeatureJudge(Path(model).name, FrozenEncoder(model, settings=build(ScoringSettings, {"device": device})))


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _finish(document: Mapping[str, Any], as_json: bool, line: str) -> None:
    """The end of every verb: one JSON document on stdout, or one line for people."""
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False, allow_nan=False))
    elif line:
        typer.echo(line)


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
        resumes = words[:1] in (["train"], ["demo"], ["score"])
        print(
            "interrupted" + ("; the same command goes on from the last good checkpoint" if resumes else ""),
            file=sys.stderr,
        )
    return code


def entry_point() -> None:
    """The installed command `rewardsmith`."""
    sys.exit(main())


if __name__ == "__main__":
    entry_point()
