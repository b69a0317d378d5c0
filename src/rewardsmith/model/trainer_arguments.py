"""Settings -> transformers.TrainingArguments: our root keys, the `[trainer]` table over them, and what may not stand there."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from rewardsmith import launched
from rewardsmith.config import TrainSettings, build, near_miss
from rewardsmith.errors import SettingsError
from rewardsmith.model.precision import Format

# Root key -> its name in TrainingArguments.
TWINS = {
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "epochs": "num_train_epochs",
    "seed": "seed",
}
_OURS = {
    "output_dir": "out",
    "per_device_train_batch_size": "batch_size (pairs an optimiser step, over all devices)",
    "eval_strategy": "dev_share or dev_data",
    "load_best_model_at_end": "dev_share or dev_data",
    "metric_for_best_model": "dev_share or dev_data: the lowest log-loss is kept",
    "remove_unused_columns": "nothing: pairs have no such columns",
    "label_smoothing_factor": "loss.label_smoothing",
    "train_sampling_strategy": "nothing: the order is a shuffle by the seed, and what is padded is of like length",
    "auto_find_batch_size": "batch_size and trainer.gradient_accumulation_steps",
    "bf16": "precision",
    "fp16": "precision",
    "use_cpu": "device",
    "save_only_model": "nothing: a checkpoint holds all that an exact resume needs",
    "save_on_each_node": "nothing: the first process writes, on storage that all machines see",
    "ignore_data_skip": "nothing: a run goes on at the very step where it stopped",
    "accelerator_config": "nothing: processes are dealt their shares of each step",
    "hub_token": "the environment variable HF_TOKEN: a run folder holds no secret",
    "push_to_hub_token": "the environment variable HF_TOKEN: a run folder holds no secret",
}


# What shards a model over processes in other ways than `shard`, by its name in TrainingArguments and by how `accelerate launch` asks for it.
_SHARDED = ("fsdp", "fsdp_config", "deepspeed", "parallelism_config")
_SHARDED_BY_LAUNCHER = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_PARALLELISM_CONFIG")
_COMPILED_BY_LAUNCHER = "ACCELERATE_DYNAMO_BACKEND"


def check_trainer_table(settings: TrainSettings) -> list[str]:
    """Refuse unknown names and names that rewardsmith owns; return a sentence for each twin that wins.

    Raises:
        SettingsError: naming the key and what to set instead.
    """
    sharded = [f"trainer.{name}" for name in _SHARDED if settings.trainer.get(name)]
    sharded += [name for name in _SHARDED_BY_LAUNCHER if os.environ.get(name, "").lower() in ("1", "true", "yes")]
    if sharded:
        raise SettingsError(
            "processes that each hold the whole model, or shard = true",
            f"{sharded[0]}, which shards it another way",
            "Leave it out; shard = true deals weights, gradients and optimiser out as FSDP2 and ZeRO-3 do.",
        )
    if (compiler := os.environ.get(_COMPILED_BY_LAUNCHER, "no").lower()) != "no":
        raise SettingsError(
            "a launcher that does not compile the model",
            f"{_COMPILED_BY_LAUNCHER} = {compiler}",
            "Start with --dynamo_backend no, and set trainer.torch_compile where the model is to be compiled.",
        )
    known = [f.name for f in dataclasses.fields(TrainingArguments) if f.init]
    for name in settings.trainer:
        if name in _OURS:
            raise SettingsError(
                "only fields of TrainingArguments that rewardsmith does not set itself",
                f"trainer.{name}",
                f"Set {_OURS[name]} instead.",
            )
        if name == "save_strategy" and settings.trainer[name] == "best":
            raise SettingsError(
                "checkpoints by steps or epochs, at which the dev part is scored",
                'trainer.save_strategy = "best"',
                "Leave it out: the best checkpoint is kept whatever stands here.",
            )
        if name not in known:
            raise SettingsError(
                "fields of transformers.TrainingArguments in [trainer]",
                f"unknown key `trainer.{name}`",
                near_miss(name, known)
                if len(near_miss(name, known)) < 200
                else "See the documentation of transformers.",
            )
    return [
        f"trainer.{twin} = {settings.trainer[twin]} wins over {root} = {getattr(settings, root)}"
        for root, twin in TWINS.items()
        if twin in settings.trainer
    ]


def with_twins(settings: TrainSettings) -> TrainSettings:
    """The settings with every name of `[trainer]` that has a twin at the root in its place, for all that reads the root."""
    values = settings.model_dump()
    twins = {root: values["trainer"][twin] for root, twin in TWINS.items() if twin in values["trainer"]}
    return build(TrainSettings, values | twins)


def build_arguments(
    settings: TrainSettings, folder: Path, *, precision: Format, device: torch.device
) -> TrainingArguments:
    """The arguments of one run.

    Raises:
        SettingsError: if a value is refused, or batch_size cannot be divided over devices and accumulation steps.
    """
    accumulation = int(settings.trainer.get("gradient_accumulation_steps", 1))
    visible = torch.cuda.device_count() if device.type == "cuda" and launched.count() == 1 else 1
    if visible > 1:
        raise SettingsError(
            "one process for each GPU",
            f"one process that sees {visible} GPUs",
            f"Start it with torchrun --nproc-per-node {visible} -m rewardsmith ..., or let it see one: CUDA_VISIBLE_DEVICES=0.",
        )
    parts = accumulation * launched.count()
    if settings.batch_size % parts:
        raise SettingsError(
            f"a batch_size that divides by {parts} ({accumulation} accumulation steps x {launched.count()} processes)",
            f"batch_size = {settings.batch_size}",
            "Change batch_size or trainer.gradient_accumulation_steps.",
        )
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.batch_size // parts,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "num_train_epochs": settings.epochs,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": device.type == "cpu",
        "warmup_steps": 0.05,
        "logging_steps": 10,
        "logging_first_step": True,
        "save_steps": 0.25,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": device.type == "cuda",
        # It would wait for the others at every forward pass, and for one step processes may need different numbers of them.
        "ddp_broadcast_buffers": False,
        # A NaN must reach the guard, not be averaged away.
        "logging_nan_inf_filter": False,
    }
    # `accelerate launch` writes its own into the environment, where it would win over `precision` without a word.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return TrainingArguments(**(values | settings.trainer))
    except (TypeError, ValueError, ImportError) as error:
        raise SettingsError(
            "values that transformers.TrainingArguments takes",
            (str(error).splitlines() or [type(error).__name__])[0],
            "Change the [trainer] table.",
        ) from error
