"""The verb that compares two policies: `winrate`. Heavy imports come after parsing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

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
    names,
    running,
    stderr_console,
)
from rewardsmith.errors import SettingsError
from rewardsmith.storage import check_result_folder


@app.command()
def winrate(
    model: Annotated[str, typer.Argument(help="The judge: a folder, the URL of a server, or FILE.py:FUNCTION.")],
    a: Annotated[str | None, typer.Option("--a", help='Answers of policy A, rows {"prompt", "answer"}.')] = None,
    b: Annotated[str | None, typer.Option("--b", help="Answers of policy B; matched by prompt.")] = None,
    prompts: Annotated[str | None, typer.Option(help="Prompts that two policies are to answer instead.")] = None,
    policy_a: Annotated[str | None, typer.Option(help="A language model that answers them as A.")] = None,
    policy_b: Annotated[str | None, typer.Option(help="A language model that answers them as B.")] = None,
    num_answers: Annotated[
        int | None, typer.Option(min=1, help="Answers of each policy to each prompt; 1 by default.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Where a drawn answer is cut; 256 by default.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the policies' softmax; 1 by default.")] = None,
    by: Annotated[str | None, typer.Option(help="Metadata columns to slice by, comma-separated.")] = None,
    also: Annotated[list[str] | None, typer.Option(help="A further judge; may be repeated.")] = None,
    domain: Annotated[
        str | None, typer.Option(help="A detector that `audit --against --set store_domain=FOLDER` has saved.")
    ] = None,
    implicit: Annotated[str | None, typer.Option(help="A policy trained by DPO: its own reward judges, too.")] = None,
    reference: Annotated[str | None, typer.Option(help="What that policy was trained from.")] = None,
    beta: Annotated[float, typer.Option(help="Of the DPO training; moves no win.")] = 0.1,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json, comparisons.jsonl and margins.png.")] = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    device: DeviceOption = "auto",
    precision: ScoringPrecision = "float32",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Which of two policies answers better, by a reward model? Win rate with its interval, at equal length too, by slice, by several judges."""
    files, drawing = (a, b), (prompts, policy_a, policy_b)
    if not (all(files) and not any(drawing)) and not (all(drawing) and not any(files)):
        raise SettingsError(
            "--a with --b, or --prompts with --policy-a and --policy-b",
            "another choice of these",
            "Give two files of answers, or prompts with two policies.",
        )
    if (implicit is None) != (reference is None):
        raise SettingsError("--implicit with --reference", "one of the two", "Give both, or neither.")
    if not 0 < beta < math.inf:
        raise SettingsError("--beta above 0", f"{beta:g}", "Give the beta of the DPO training.")
    drawn = {"--num-answers": num_answers, "--max-new-tokens": max_new_tokens, "--temperature": temperature}
    if all(files) and (idle := [flag for flag, value in drawn.items() if value is not None]):
        raise SettingsError("--prompts with two policies, for " + ", ".join(idle), "files of answers", "Leave it out.")
    if temperature is not None and not 0 < temperature < math.inf:
        raise SettingsError("--temperature above 0", f"{temperature:g}", "Take 1, the policy as it is.")
    if out is not None:
        inputs = [one for one in (model, *files, *drawing, *(also or ()), domain, implicit, reference) if one]
        check_result_folder(out, "winrate", *inputs, overwrite=overwrite)
    from rewardsmith import policies_compared

    answers: policies_compared.AnswerFiles | policies_compared.Drawing
    if a is not None and b is not None:
        answers = policies_compared.AnswerFiles(a, b)
    else:
        assert prompts is not None and policy_a is not None and policy_b is not None
        answers = policies_compared.Drawing(
            prompts,
            policy_a,
            policy_b,
            num_answers=1 if num_answers is None else num_answers,
            max_new_tokens=256 if max_new_tokens is None else max_new_tokens,
            temperature=1.0 if temperature is None else temperature,
        )
    own = None
    if implicit is not None and reference is not None:
        own = policies_compared.Implicit(implicit, reference, beta)
    document = policies_compared.run(
        model,
        answers,
        out,
        by=names(by) or None,
        also=also or (),
        domain=domain,
        implicit=own,
        run=running(device, precision, threads, seed),
        skip_bad=skip_bad,
        quiet=as_json,
        console=stderr_console(),
    )
    finish(document, as_json, document["verdict"] + (f"\nwritten to {out}" if out else ""))
