"""The verbs that train: `train` and `demo`. Heavy imports come after parsing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rewardsmith.cli.base import (
    DeviceOption,
    Json,
    Overwrite,
    Seed,
    Threads,
    app,
    finish,
    refuse_several,
    stderr_console,
)
from rewardsmith.config import Device, TrainSettings, build, merge, read_recipe


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
        refuse_several("train --sweep")
        from rewardsmith.sweeping import sweep

        document = sweep(recipe, sweeps, overwrite=overwrite, command=sys.argv[1:], console=stderr_console())
        finish(document, as_json, f"sweep: {recipe['out']}; chosen: {', '.join(document['chosen']['runs'])}")
        return
    settings = build(TrainSettings, recipe)
    from rewardsmith import runs

    report = runs.train(settings, overwrite=overwrite, command=sys.argv[1:], console=stderr_console())
    finish(report, as_json, f"run folder: {settings.out}")


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
        console=stderr_console(),
    )
    answers = document["answers"]
    how = "uncalibrated" if answers["temperature"] is None else f"temperature {answers['temperature']:.2f}"
    line = (
        f"prompt:   {answers['prompt']}\n"
        f"answer A: {answers['score_a']:+.3f}  {answers['answer_a']}\n"
        f"answer B: {answers['score_b']:+.3f}  {answers['answer_b']}\n"
        f"probability that A is better: {answers['probability_a']:.3f} ({how})"
    )
    finish(document, as_json, line)
