"""How a run of PPO goes on: everything that changes while it runs, whole or absent."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewardsmith.model.checkpoints import complete_checkpoints, fault, seal
from rewardsmith.model.ppo.trainer import PPOTrainer
from rewardsmith.storage import atomic_folder, write_json

_TRAINED, _WITHIN, _OPTIMISER, _STATE = "trained.safetensors", "within.safetensors", "optimiser.pt", "state.json"
_KEPT = 2


def save_checkpoint(
    trainer: PPOTrainer, folder: Path, *, step: int, within: Mapping[str, Tensor] | None, facts: Mapping[str, Any]
) -> None:
    """Write what the next step depends on, and remove all but the two newest checkpoints.

    Args:
        trainer: after a step.
        folder: of the checkpoints.
        step: that was the last.
        within: the last policy that was within its KL budget, where there is one.
        facts: of the run, as JSON.
    """
    scaler = trainer.accelerator.scaler
    with atomic_folder(folder / f"checkpoint-{step}") as new:
        save_file(trainer.trained(), new / _TRAINED)
        if within is not None:
            save_file(dict(within), new / _WITHIN)
        torch.save(
            {
                "optimiser": trainer.optimiser.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "random": _random_state(),
            },
            new / _OPTIMISER,
        )
        write_json(new / _STATE, {"step": step, "trainer": trainer.state(), "facts": dict(facts)})
        seal(new, step)
    for old in complete_checkpoints(folder)[:-_KEPT]:
        shutil.rmtree(old)


@dataclass(frozen=True)
class _Content:
    """What lies in a checkpoint, read."""

    document: dict[str, Any]
    trained: dict[str, Tensor]
    within: dict[str, Tensor] | None
    kept: dict[str, Any]


def _content(checkpoint: Path) -> _Content:
    return _Content(
        document=json.loads((checkpoint / _STATE).read_text(encoding="utf-8")),
        trained=load_file(checkpoint / _TRAINED),
        within=load_file(checkpoint / _WITHIN) if (checkpoint / _WITHIN).is_file() else None,
        kept=torch.load(checkpoint / _OPTIMISER, map_location="cpu", weights_only=True),
    )


def last_readable(folder: Path, say: Callable[[str], object]) -> Path | None:
    """The newest checkpoint that holds what was written; newer ones, which a disk has spoilt, are removed, and that is said."""
    for checkpoint in reversed(complete_checkpoints(folder)):
        wrong = fault(checkpoint)
        if wrong is None:
            return checkpoint
        say(f"warning: {checkpoint.name} is {wrong}; it was removed, and the one before is tried")
        shutil.rmtree(checkpoint)
    return None


def load_checkpoint(trainer: PPOTrainer, checkpoint: Path) -> tuple[int, dict[str, Tensor] | None, dict[str, Any]]:
    """Put a trainer where it was; returns the step, the last policy within the budget, and the facts of the run."""
    content = _content(checkpoint)
    document, kept = content.document, content.kept
    trainer.put(content.trained)
    trainer.optimiser.load_state_dict(kept["optimiser"])
    if trainer.accelerator.scaler is not None and kept["scaler"] is not None:
        trainer.accelerator.scaler.load_state_dict(kept["scaler"])
    trainer.restore(document["trainer"])
    _restore_random(kept["random"])
    return int(document["step"]), content.within, document["facts"]


def _random_state() -> dict[str, Any]:
    """The generators that are global. Nothing of ours draws from them once the model stands; a reward function may."""
    name, keys, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": [version, list(words), gauss],
    }


def _restore_random(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
