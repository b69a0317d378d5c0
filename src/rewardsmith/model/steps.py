"""The steps of a run, by the Trainer of transformers, from the first or from a checkpoint to the weights that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_callback import ProgressCallback as TqdmCallback

from rewardsmith.config import TrainSettings
from rewardsmith.model.callbacks import AverageCallback, GradientCallback, ProgressCallback, SelectionCallback
from rewardsmith.model.checkpoints import step_of
from rewardsmith.model.examples import ExampleCollator
from rewardsmith.model.head_fit import Learned
from rewardsmith.model.learner import Learner
from rewardsmith.model.moving_average import WeightAverage
from rewardsmith.model.network import quiet_loading
from rewardsmith.model.optimiser import Rates
from rewardsmith.model.preparation import Prepared
from rewardsmith.model.run_folder import Say
from rewardsmith.model.saving import measure_saving
from rewardsmith.model.sharding import Sharding
from rewardsmith.model.trainer import PreferenceTrainer, unroute
from rewardsmith.model.trainer_arguments import build_arguments
from rewardsmith.model.windows import WindowCollator

# A run of fewer steps is over before it is worth while to measure what sharing saves it.
_MEASURED_STEPS = 50


def take_steps(
    settings: TrainSettings,
    prepared: Prepared,
    learner: Learner,
    *,
    checkpoints: Path,
    average: WeightAverage | None,
    selection: SelectionCallback | None,
    resume_from: Path | None,
    console: Console,
    say: Say,
    sharding: Sharding | None,
) -> Learned:
    """Train with the Trainer, and leave the weights of the kept checkpoint in the network.

    Args:
        settings: of the run.
        prepared: of the run; its network is where the learner's weights are.
        learner: what is trained, on which examples.
        checkpoints: the folder for them.
        average: of the weights, where one is kept.
        selection: chooses the checkpoint by the dev part; None where there is no dev part.
        resume_from: the checkpoint to go on from.
        console: where progress goes.
        say: prints a line.
        sharding: of the network over the processes, where it is dealt out.

    Raises:
        TrainingStopped: by a guard; the last good checkpoint stays.
    """
    arguments = build_arguments(settings, checkpoints, precision=prepared.precision.name, device=prepared.device)
    collator: ExampleCollator | WindowCollator = learner.collator(settings.batch_tokens)
    facts: dict[str, Any] = {}
    long_enough = len(learner.table) * settings.epochs >= _MEASURED_STEPS * settings.batch_size
    if sharding is None and learner.batching.share and long_enough:
        shown = collator if isinstance(collator, ExampleCollator) else collator.first()
        saving = measure_saving(learner.network, shown, precision=prepared.precision.name, device=prepared.device)
        say(saving.describe())
        facts["sharing"] = vars(saving)
    progress = ProgressCallback(console, settings.batch_size)
    callbacks: list[Any] = [progress]
    if average is not None:
        callbacks.append(AverageCallback(average))
    if selection is not None:
        callbacks.append(selection)
    trainer = PreferenceTrainer(
        learner.network,
        learner.table,
        prepared.objective,
        arguments,
        collator=collator,
        dtype=prepared.precision.name,
        average=average,
        rates=Rates(arguments.learning_rate, arguments.weight_decay, settings.head_learning_rate, settings.layer_decay),
        callbacks=callbacks,
        sharding=sharding,
    )
    trainer.add_callback(GradientCallback(trainer.gradient_guard, trainer.stuck_guard))
    for noisy in (PrinterCallback, TqdmCallback):
        trainer.remove_callback(noisy)
    try:
        with quiet_loading():
            trained_for = _train(trainer, selection, resume_from)
    finally:
        progress.stop()
        # accelerate leaves its autocast around the model's forward: a score taken through it would be bf16 and say float32.
        trainer.accelerator.unwrap_model(learner.network.model, keep_fp32_wrapper=False)
        unroute(learner.network)
    seconds = float(trained_for.get("train_runtime", 0.0))
    return Learned(
        history=trainer.state.log_history,
        kept_step=_load_kept(trainer, selection, checkpoints, say),
        steps=trainer.state.global_step,
        seconds=seconds,
        pairs_per_second=_examples_taken(trainer, resume_from) / seconds if seconds else 0.0,
        stopped_early=trainer.state.global_step < trainer.state.max_steps,
        facts=facts,
    )


def _examples_taken(trainer: PreferenceTrainer, resume_from: Path | None) -> float:
    """Examples of the steps since this start. The Trainer's own speed counts all epochs, also those of an earlier start or after an early stop."""
    state = trainer.state
    since = (state.global_step - step_of(resume_from)) / max(1, state.global_step)
    return since * float(state.epoch or 0.0) * len(trainer.train_dataset)


def _train(trainer: PreferenceTrainer, selection: SelectionCallback | None, resume_from: Path | None) -> dict[str, Any]:
    """Train to the end, from a checkpoint where there is one, unless the run had stopped there; returns the Trainer's own measures."""
    if resume_from is None:
        return trainer.train().metrics
    trainer._load_from_checkpoint(str(resume_from))
    trainer.state = TrainerState.load_from_json(str(resume_from / TRAINER_STATE_NAME))
    over = selection is not None and selection.is_over(trainer.state)
    # After its last step the Trainer would take another one where that is not the end of an epoch.
    if over or trainer.state.global_step >= trainer.state.max_steps:
        return {}
    return trainer.train(resume_from_checkpoint=str(resume_from)).metrics


def _load_kept(trainer: PreferenceTrainer, selection: SelectionCallback | None, checkpoints: Path, say: Say) -> int:
    """Put the weights of the best checkpoint into the model, or their average where one is kept; returns its step."""
    last, best = trainer.state.global_step, None if selection is None else selection.history.best()
    kept = last if best is None else best.step
    if best is not None and kept != last:
        with quiet_loading():  # of a frozen backbone the checkpoint holds nothing, which is no fault
            trainer._load_from_checkpoint(str(checkpoints / f"checkpoint-{kept}"))
        measure = selection.measure if selection is not None else ""
        say(f"kept checkpoint: step {kept} (dev {measure} {best.log_loss:.4f}), not the last one ({last})")
    if trainer.average is not None:
        trainer.average.put()
        say(f"saved is the moving average of the weights, over {trainer.average.steps} steps")
    return kept
