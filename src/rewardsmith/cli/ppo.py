"""The verb that trains a policy against a reward model: `ppo`. Heavy imports come after parsing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rewardsmith.cli.base import Json, Overwrite, Threads, app, finish, stderr_console
from rewardsmith.config import Device, PPOSettings, build, merge, read_recipe


@app.command()
def ppo(
    config: Annotated[Path | None, typer.Option(help="A recipe, TOML or YAML.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="The language model to train: a folder, a Hugging Face name, GGUF or `smollm2`.")
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(help="What scores: a folder, the URL of a server, or FILE.py:FUNCTION.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="Prompts to answer; rows of any kind that have some.")] = None,
    eval_prompts: Annotated[
        str | None, typer.Option(help="Held-out prompts, answered before and after; never trained on.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="The run folder.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. kl_budget=10.")] = None,
    watch: Annotated[bool | None, typer.Option("--watch", help="Raise alarms when the run changes its nature.")] = None,
    overwrite: Overwrite = False,
    skip_bad: Annotated[bool | None, typer.Option("--skip-bad", help="Count malformed rows.")] = None,
    device: Annotated[Device | None, typer.Option(help="Where the models run.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the policy: auto, float32, bf16 or fp16.")] = None,
    threads: Threads = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    as_json: Json = False,
) -> None:
    """Train a language model by PPO to please a reward model, under a KL penalty and within a KL budget."""
    flags = {
        "policy": policy,
        "reward_model": reward_model,
        "prompts": prompts,
        "eval_prompts": eval_prompts,
        "out": out,
        "watch": watch,
        "skip_bad": skip_bad,
        "device": device,
        "precision": precision,
        "threads": threads,
        "seed": seed,
    }
    settings = build(PPOSettings, merge(read_recipe(config) if config else {}, flags, sets or []))
    from rewardsmith import ppo_runs

    report = ppo_runs.run(settings, overwrite=overwrite, command=sys.argv[1:], quiet=as_json, console=stderr_console())
    finish(report, as_json, f"run folder: {settings.out}")
