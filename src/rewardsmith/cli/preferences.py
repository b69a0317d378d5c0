"""The verbs of preference data: `lint`, `convert`, `split`. Heavy imports come after parsing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    load_source,
    names,
    stderr_console,
)
from rewardsmith.config import Device, LintSettings, ScoringSettings, build
from rewardsmith.errors import OutputError, SettingsError

if TYPE_CHECKING:
    from rewardsmith.data.truncation import Cutter
    from rewardsmith.linting.doctor import Judge


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
            "rules": names(rules),
            "ignore": names(ignore),
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
    console = stderr_console()
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
    finish(document, as_json, f"written to {', '.join(written)}" if written else "")
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
    console = stderr_console()
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
    finish(document, as_json, f"{done.written:,} rows ({done.pairs:,} pairs) -> {out}")


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
    finish(document, as_json, f"{', '.join(counts)} -> {out}")


def _named_file(text: str) -> tuple[str, str]:
    """NAME=FILE, or a file that is its own name."""
    name, equals, file = text.partition("=")
    return (name, file) if equals and not Path(text).exists() else (Path(text).name.partition(".")[0], text)


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
        source = load_source(model, device, "float32", threads, seed)
        return ScorerJudge(source.name, source.scorer)
    from rewardsmith.model.exported import is_exported
    from rewardsmith.model.features import FrozenEncoder
    from rewardsmith.model.network import is_reward_model, read_config, source_folder

    if is_exported(model) or is_reward_model(read_config(source_folder(model))):
        source = load_source(model, device, "float32", threads, seed)
        return ScorerJudge(source.name, source.scorer)
    from rewardsmith.model.precision import prepare_process

    prepare_process(threads=threads, seed=seed)
    return FeatureJudge(Path(model).name, FrozenEncoder(model, settings=build(ScoringSettings, {"device": device})))
