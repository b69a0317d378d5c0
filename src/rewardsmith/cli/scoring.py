"""The verbs that score and judge: `score`, `evaluate`, `compare`, `calibrate`, `audit`, `report`. Heavy imports come after parsing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewardsmith.cli.base import (
    DeviceOption,
    Json,
    Overwrite,
    ScoringPrecision,
    Seed,
    SkipBad,
    Threads,
    app,
    finish,
    load_source,
    names,
    numbers,
    running,
    stderr_console,
)
from rewardsmith.config import AuditSettings, build, merge
from rewardsmith.errors import OutputError, SettingsError
from rewardsmith.storage import check_result_file, check_result_folder

if TYPE_CHECKING:
    from rewardsmith.loading import Running


@app.command()
def score(
    model: str,
    data: str,
    out: Annotated[
        Path, typer.Option(help="The file to write, one JSON row an input row; with --ray the folder of Parquet files.")
    ],
    ray: Annotated[
        str | None, typer.Option(metavar="local|ADDRESS", help="Score on Ray, here or on a cluster; docs/bulk.md.")
    ] = None,
    actors: Annotated[int | None, typer.Option(min=1, help="With --ray: processes that each load the model.")] = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    device: DeviceOption = "auto",
    precision: ScoringPrecision = "float32",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score pairs, groups or single answers; memory stays bounded, an interrupted run goes on where it stopped."""
    if ray is not None:
        _score_on_ray(
            model, data, out, ray, actors, skip_bad, overwrite, running(device, precision, threads, seed), as_json
        )
        return
    if actors is not None:
        raise SettingsError("--ray with --actors", "--actors alone", "Add --ray local, or leave --actors out.")
    if out.exists() and not overwrite:
        raise OutputError("a new file for --out", f"{out}, which exists", "Choose another --out, or --overwrite.")
    from rewardsmith.data.sources import refuse_among, source_identity
    from rewardsmith.manifest import timed
    from rewardsmith.streaming import per_second, score_file

    refuse_among(out, data)
    _say_left_aside(data)
    seconds: dict[str, float] = {}
    with timed(seconds, "starting"):
        source = load_source(model, device, precision, threads, seed)
    identity = {
        "model": dict(source.files),
        "data": source_identity(data),
        "precision": source.precision.get("precision"),
        "skip_bad": skip_bad,
    }
    console = stderr_console()
    with console.status("scoring") as status, timed(seconds, "scoring"):
        done = score_file(
            source.scorer,
            data,
            out,
            identity=identity,
            skip_bad=skip_bad,
            on_window=lambda n: status.update(f"scored {n:,} rows"),
        )
    speed = {"seconds": seconds, "per_second": per_second(done, seconds["scoring"])}
    document = {"verb": "score", "model": source.name, **source.precision, **done.as_dict(), **speed}
    resumed = f" (went on after {done.resumed_from:,})" if done.resumed_from else ""
    skipped = f", skipped {dict(done.skipped)}" if done.skipped else ""
    cut = "unknown" if done.truncated is None else f"{done.truncated:,}"
    finish(document, as_json, f"{done.num_rows:,} rows{resumed} -> {out}; truncated answers: {cut}{skipped}")


def _score_on_ray(
    model: str,
    data: str,
    out: Path,
    address: str,
    actors: int | None,
    skip_bad: bool,
    overwrite: bool,
    run: Running,
    as_json: bool,
) -> None:
    from rewardsmith.bulk import score_folder

    _say_left_aside(data)
    with stderr_console().status("starting") as status:
        document = score_folder(
            model,
            data,
            out,
            running=run,
            address=address,
            actors=actors,
            skip_bad=skip_bad,
            overwrite=overwrite,
            on_part=lambda n: status.update(f"scored {n:,} rows"),
        )
    resumed = f" (went on after {document['resumed_from']:,})" if document["resumed_from"] else ""
    skipped = f", skipped {document['skipped']}" if document["skipped"] else ""
    cut = "unknown" if document["truncated"] is None else f"{document['truncated']:,}"
    speed = ", ".join(f"{count:,.0f} {name}/s" for name, count in document["per_second"].items())
    pool = document["pool"]
    by = f"; {pool['actors']} actors x {pool['threads']} threads: {speed}" if pool else ""
    restarts = f"; started again: {document['restarts']}" if document["restarts"] else ""
    line = f"{document['num_rows']:,} rows{resumed} -> {out}; truncated answers: {cut}{skipped}{by}{restarts}"
    finish(document, as_json, line)


def _say_left_aside(data: str) -> None:
    from rewardsmith.data.sources import aside_note, source_name

    if aside := aside_note(data):
        stderr_console().print(f"{source_name(data)}: {aside}", highlight=False, markup=False, soft_wrap=True)


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
            run=running(device, precision, threads, seed),
            skip_bad=skip_bad,
            quiet=as_json,
            console=stderr_console(),
        )
        finish(document, as_json, f"written to {out}" if out else "")
        return
    from rewardsmith import evaluations

    curve = None
    if train_data is not None:
        parts = numbers(shares, "--shares")
        curve = evaluations.Curve(train_data, dev_data, base_model, shares=parts, repeats=repeats)
    document = evaluations.on_pairs(
        model,
        data,
        out,
        by=names(by) or None,
        attributions=attributions,
        curve=curve,
        run=running(device, precision, threads, seed),
        skip_bad=skip_bad,
        quiet=as_json,
        console=stderr_console(),
    )
    finish(document, as_json, f"written to {out}" if out else "")


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

    facts, pairs = read_labelled(data, skip_bad=skip_bad, console=stderr_console())
    sources = [load_source(model, device, precision, threads, seed) for model in (model_a, model_b)]
    found = judge(
        (sources[0].scorer, sources[1].scorer),
        pairs,
        names=(sources[0].name, sources[1].name),
        by=names(by) or None,
        temperatures=(sources[0].temperature, sources[1].temperature),
        seed=seed,
    )
    document = {"verb": "compare", **papers(facts, seed), **found.document}
    document["files_a"], document["files_b"] = dict(sources[0].files), dict(sources[1].files)
    document["precision_a"], document["precision_b"] = dict(sources[0].precision), dict(sources[1].precision)
    if out is not None:
        write_json(out, document)
    if not as_json:
        stderr_console().print(comparison_table(document, f"A = {document['model_a']}, B = {document['model_b']}"))
    finish(document, as_json, document["verdict"])


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

    facts, pairs = read_labelled(data, skip_bad=skip_bad, console=stderr_console())
    folder = None
    if not dry_run:  # whether there is a contract to keep it in is said before anything is scored
        from rewardsmith.model.exported import contract_folder

        folder = contract_folder(model)
    source = load_source(model, device, precision, threads, seed)
    found = fit(source.scorer, pairs, by=by or None, fit_share=fit_share, false_alarms=shares, seed=seed)
    kept = {**papers(facts, seed), **source.precision, **found.document}
    document = {"verb": "calibrate", "model": source.name, "written": not dry_run, **kept}
    if folder is not None:
        from rewardsmith.model.artefact import store_calibration

        store_calibration(folder, found.temperature.value, without_curves(kept))
    console = stderr_console()
    if not as_json:
        for table in calibration_tables(document):
            console.print(table)
        for name, reason in document["no_thresholds"].items():
            console.print(f"no threshold ({name}): {reason}", highlight=False, markup=False, soft_wrap=True)
    finish(document, as_json, document["verdict"])


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
        "probes": names(probes) or None,
        "without": names(without) or None,
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
        running=running(device, precision, threads, seed),
        skip_bad=skip_bad,
        quiet=as_json,
        console=stderr_console(),
    )
    finish(document, as_json, document["verdict"]["text"] + (f"\nwritten to {out}" if out else ""))
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
    finish(
        {"verb": "report", **written.as_dict()},
        as_json,
        f"models: {written.num_models:,}, pairs: {written.num_pairs:,} -> {written.page}",
    )


def _rates(text: str) -> list[float]:
    """Shares between 0 and 1, comma-separated."""
    rates = numbers(text, "--false-alarms")
    if not all(0 < rate < 1 for rate in rates):
        raise SettingsError("--false-alarms between 0 and 1", repr(text), "Write for example 0.01,0.05.")
    return rates
