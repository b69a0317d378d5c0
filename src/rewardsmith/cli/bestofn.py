"""The verb that chooses among answers: `bestofn`. Heavy imports come after parsing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

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
    running,
    stderr_console,
)
from rewardsmith.errors import OutputError, SettingsError
from rewardsmith.storage import refuse_inside

_NUM_ANSWERS, _MAX_NEW_TOKENS, _POLICY_TEMPERATURE = 16, 256, 1.0


@app.command()
def bestofn(
    model: Annotated[str, typer.Argument(help="The judge: a folder, the URL of a server, or FILE.py:FUNCTION.")],
    data: Annotated[str, typer.Argument(help='Groups of candidates, rows {"prompt", "answer"}, or prompts.')],
    out: Annotated[Path | None, typer.Option(help="The file to write, one JSON row a group: answer, ranking.")] = None,
    policy: Annotated[str | None, typer.Option(help="A language model that answers the prompts of DATA.")] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=2, help=f"Answers of the policy to each prompt; {_NUM_ANSWERS} by default.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help=f"Where a drawn answer is cut; {_MAX_NEW_TOKENS} by default.")
    ] = None,
    policy_temperature: Annotated[
        float | None, typer.Option(help=f"Of the policy's softmax; {_POLICY_TEMPERATURE:g} by default.")
    ] = None,
    save_candidates: Annotated[
        Path | None, typer.Option(help="File of the drawn answers, groups that bestofn and audit --pool read.")
    ] = None,
    ensemble: Annotated[list[str] | None, typer.Option(help="A further judge of the same answers; repeatable.")] = None,
    rule: Annotated[
        Literal["mean", "worst-case", "lower-confidence"] | None,
        typer.Option(help="How several judges score; mean by default."),
    ] = None,
    k: Annotated[
        float | None, typer.Option("--k", help="Standard deviations that lower-confidence takes off; 1 by default.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Soft best-of-n: draw by exp(score / temperature).")] = None,
    abstain_below: Annotated[
        float | None, typer.Option(help="Abstain where the best beats the runner-up with less than this probability.")
    ] = None,
    abstain_margin: Annotated[
        float | None, typer.Option(help="Abstain where the two best differ by less than this score.")
    ] = None,
    sft: Annotated[Path | None, typer.Option(help='File of the taken answers, {"prompt", "answer"}.')] = None,
    pairs: Annotated[
        Path | None, typer.Option(help='File of best and worst answers, {"prompt", "chosen", "rejected"}.')
    ] = None,
    min_margin: Annotated[float, typer.Option(min=0.0, help="Of --pairs: least difference of the two scores.")] = 0.0,
    messages: Annotated[
        bool, typer.Option("--messages", help="Write --sft and --pairs as lists of messages, as TRL reads chats.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="File of the curve, a PNG.")] = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    device: DeviceOption = "auto",
    precision: ScoringPrecision = "float32",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Take the best of several answers to each prompt: ranking, KL spent, what more answers would buy, abstention, rows for SFT and DPO."""
    of_policy = (n, max_new_tokens, policy_temperature, save_candidates)
    if policy is None and any(one is not None for one in of_policy):
        raise SettingsError(
            "--policy with --n, --max-new-tokens, --policy-temperature and --save-candidates",
            "these alone",
            "Give the policy.",
        )
    if not ensemble and rule is not None:
        raise SettingsError("--ensemble with --rule", "--rule alone", "Give a further judge.")
    if k is not None and rule != "lower-confidence":
        raise SettingsError("--rule lower-confidence with --k", "--k alone", "Give the rule, or leave --k out.")
    if abstain_below is not None and abstain_margin is not None:
        raise SettingsError("--abstain-below or --abstain-margin", "both", "Leave one out.")
    if pairs is None and min_margin:
        raise SettingsError("--pairs with --min-margin", "--min-margin alone", "Give a file for --pairs.")
    if messages and sft is None and pairs is None:
        raise SettingsError("--sft or --pairs with --messages", "--messages alone", "Give a file.")
    outputs = {"--out": out, "--save-candidates": save_candidates, "--sft": sft, "--pairs": pairs, "--plot": plot}
    _check_files(outputs, [one for one in (model, data, policy, *(ensemble or ())) if one], overwrite=overwrite)
    from rewardsmith import selections
    from rewardsmith.auditing.ensembles import Rule
    from rewardsmith.use.best_answers import Abstention

    abstain = None
    if abstain_below is not None:
        abstain = Abstention("probability", abstain_below)
    elif abstain_margin is not None:
        abstain = Abstention("margin", abstain_margin)
    drawing = None
    if policy is not None:
        drawing = selections.Drawing(
            policy,
            num_answers=_NUM_ANSWERS if n is None else n,
            max_new_tokens=_MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens,
            temperature=_POLICY_TEMPERATURE if policy_temperature is None else policy_temperature,
        )
    rules: dict[str, Rule] = {
        "mean": "mean",
        "worst-case": "worst case",
        "lower-confidence": "lower confidence",
    }
    document = selections.run(
        model,
        data,
        selections.Outputs(out, save_candidates, sft, pairs, plot, min_margin, messages),
        drawing=drawing,
        choosing=selections.Choosing(
            ensemble or (), rules[rule or "mean"], 1.0 if k is None else k, temperature, abstain
        ),
        run=running(device, precision, threads, seed),
        skip_bad=skip_bad,
        quiet=as_json,
        console=stderr_console(),
    )
    written = [f"{flag} {path}" for flag, path in outputs.items() if path is not None]
    finish(document, as_json, f"written: {', '.join(written)}" if written else "")


def _check_files(outputs: dict[str, Path | None], inputs: list[str], *, overwrite: bool) -> None:
    """New files, each another one, or with `overwrite` any; never an input; in folders that can be written.

    Raises:
        OutputError: naming the file.
    """
    from rewardsmith.functions import is_function

    seen: dict[Path, str] = {}
    for flag, path in outputs.items():
        if path is None:
            continue
        refuse_inside(path, *inputs, *(one.rpartition(":")[0] for one in inputs if is_function(one)))
        if path.exists() and (path.is_dir() or not overwrite):
            raise OutputError(f"a new file for {flag}", f"{path}, which exists", "Choose another one, or --overwrite.")
        # Before anything is scored: a file that cannot be written would lose what was paid for.
        folder = next(one for one in path.resolve().parents if one.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise OutputError(f"a folder to write {flag} to", f"{folder}, which cannot be written", "Choose another.")
        if (other := seen.setdefault(path.resolve(), flag)) != flag:
            raise OutputError("a file for each of the outputs", f"one for {other} and {flag}", "Choose another one.")
