"""A thin subclass of transformers.Trainer: all answers of an example go through the same forward pass; checkpoints are whole or absent."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from rewardsmith.errors import OutputError
from rewardsmith.model.batching import Batch, training_order
from rewardsmith.model.batching_choice import BatchingChoice
from rewardsmith.model.examples import ExampleCollator, ExampleRows, ExampleTable, Part
from rewardsmith.model.guards import GradientGuard, StuckGuard, check_finite
from rewardsmith.model.losses import Objective, batch_loss
from rewardsmith.model.moving_average import WeightAverage
from rewardsmith.model.network import Network
from rewardsmith.model.optimiser import Rates, parameter_groups
from rewardsmith.model.packing import PackedBatch
from rewardsmith.storage import write_json

COMPLETE = "complete.json"


class ExampleSampler(Sampler[int]):
    """The order of `batching.training_order`, one epoch after the other; a function of (seed, epoch), so that a run can be resumed."""

    def __init__(
        self, table: ExampleTable, batch_size: int, seed: int, *, batching: BatchingChoice, ranks: int = 1
    ) -> None:
        """Keep what the order depends on: where nothing is padded, lengths have no part in which examples meet."""
        self.lengths = table.costs(share=batching.share) if batching.packed else table.longest
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self.sort, self.ranks = not batching.packed, ranks

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """How many examples an epoch has."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Row numbers."""
        order = training_order(
            self.lengths, self.batch_size, seed=self.seed, epoch=self.epoch, sort=self.sort, ranks=self.ranks
        )
        return iter(order.tolist())


class StepStatistics:
    """Sums over the steps since the last log line."""

    def __init__(self) -> None:
        """Start at zero."""
        self.comparisons = self.answers = 0
        self.correct = self.margin = self.total = self.squares = 0.0

    def add(self, scores: Tensor, margins: Tensor) -> None:
        """Add a batch: its scores (N,) and its margins (m,), better minus worse of every comparison."""
        scores, margins = scores.detach().double(), margins.detach().double()
        self.comparisons += len(margins)
        self.answers += len(scores)
        self.correct += float(((torch.sign(margins) + 1) / 2).sum())
        self.margin += float(margins.sum())
        self.total += float(scores.sum())
        self.squares += float((scores**2).sum())

    def means(self) -> dict[str, float]:
        """Mean and standard deviation of the scores, and where there were comparisons accuracy (ties one half) and mean margin."""
        mean = self.total / self.answers
        variance = max(0.0, self.squares / self.answers - mean * mean)
        means = {"score_mean": mean, "score_std": float(np.sqrt(variance))}
        if self.comparisons:
            means |= {"accuracy": self.correct / self.comparisons, "margin": self.margin / self.comparisons}
        return means


class PreferenceTrainer(Trainer):
    """transformers.Trainer for preference data.

    Args:
        network: to train.
        table: the training examples.
        objective: the loss; what it learns itself is trained along, as a part of the network's model.
        args: TrainingArguments.
        collator: makes batches of it.
        dtype: the number format of the steps, for diagnoses.
        rates: learning rates by place in the network.
        average: of the weights, or None; it is saved with every checkpoint and loaded with it.
    """

    def __init__(
        self,
        network: Network,
        table: ExampleTable,
        objective: Objective,
        args: TrainingArguments,
        *,
        collator: ExampleCollator,
        dtype: str,
        rates: Rates,
        average: WeightAverage | None,
        callbacks: list[Any],
    ) -> None:
        """Hand everything that is the Trainer's to the Trainer."""
        self.network, self.table, self.objective, self.dtype_name, self.rates = network, table, objective, dtype, rates
        self.average, self.collator = average, collator
        self._margins: list[Tensor] = []  # of the parts of the step that is going on
        route(network)
        self.statistics, self.gradient_guard, self.stuck_guard = StepStatistics(), GradientGuard(), StuckGuard()
        super().__init__(
            model=network.model,
            args=args,
            train_dataset=ExampleRows(table),
            data_collator=collator,
            callbacks=callbacks,
        )
        # The batch loss is a mean over examples: the Trainer divides it by the accumulated steps.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return ExampleSampler(
            self.table,
            self.args.per_device_train_batch_size,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            batching=self.collator.batching,
            ranks=self.args.world_size,
        )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one batch, part by part: its gradient is that of the whole, its memory that of the largest part."""
        parts: list[Part] = inputs["parts"]
        losses, self._margins = [], []
        for part in parts:
            # Ranks exchange gradients once, when the batch is complete.
            waits = contextlib.nullcontext() if part is parts[-1] else self.accelerator.no_sync(model)
            with waits:
                losses.append(super().training_step(model, {"part": part}, num_items_in_batch))
        self.stuck_guard.after_step(torch.cat(self._margins), step=self.state.global_step + 1)
        return torch.stack(losses).sum()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one part, weighted by its share of the batch; its scores are watched by the guards."""
        part: Part = inputs["part"]
        # accelerate puts its autocast around the model's forward, which most paths go around.
        with self.accelerator.autocast():
            outputs = part.in_order([model(batch=batch) for batch, _ in part.batches])  # (N, A)
        losses = self.objective(outputs, part.labels)  # (B,)
        loss = batch_loss(losses, part.labels.weight) * part.weight
        step = self.state.global_step + 1
        rows = [self.table.ids[i] for i in part.rows.tolist()]
        check_finite(loss.detach(), outputs.detach(), part.labels.sizes, step=step, rows=rows, dtype=self.dtype_name)
        scores = self.objective.score(outputs.detach())  # (N, A) -> (N,)
        margins = scores[part.better[:, 0]] - scores[part.better[:, 1]]
        self._margins.append(margins)
        self.statistics.add(scores, margins)
        return (loss, {"scores": scores}) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """The Trainer's estimate, six a weight and token, from the tokens that are really read."""
        tokens = sum(part.num_tokens for part in inputs["parts"])
        return 6 * tokens * int(self.model.num_parameters(exclude_embeddings=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy, margin and the spread of the scores to the Trainer's own line."""
        if self.statistics.answers:
            logs |= self.statistics.means()
            self.statistics = StepStatistics()
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's own optimiser over groups by rate and decay; see `optimiser.parameter_groups`."""
        if self.optimizer is None:  # type: ignore[has-type]
            model = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            decayed = set(self.get_decay_parameter_names(model))
            self.optimizer = kind(parameter_groups(self.network, self.rates, decayed), **options)
        return self.optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The Trainer's own, and the average of the weights with it."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.load(Path(resume_from_checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The backbone's weights that are not trained are those of the source: a checkpoint leaves them out."""
        inner = f"{self.network.model.base_model_prefix}."
        frozen = {n for n, p in self.model.named_parameters() if not p.requires_grad and n.startswith(inner)}
        if frozen:
            whole = self.model.state_dict() if state_dict is None else state_dict
            state_dict = {name: tensor for name, tensor in whole.items() if name not in frozen}
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                if self.average is not None:
                    self.average.save(folder)
                write_json(folder / COMPLETE, {"step": self.state.global_step})
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise OutputError(
                f"room to write {folder.name}",
                str(error),
                "Free some disk space and run the same command again: it goes on from the last good checkpoint.",
            ) from error
        except BaseException:  # Ctrl-C in the middle of a save: half a checkpoint is none
            if not (folder / COMPLETE).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise


def route(network: Network) -> None:
    """Let the network's model take whole batches: what wraps it (to exchange gradients between processes, say) acts on its forward, and must see every pass."""
    plain = network.model.forward

    def forward(*arguments: Any, batch: Batch | PackedBatch | None = None, **inputs: Any) -> Any:
        return plain(*arguments, **inputs) if batch is None else network.outputs(batch)

    network.model.forward = forward


def unroute(network: Network) -> None:
    """The model as its class made it."""
    vars(network.model).pop("forward", None)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def remove_incomplete(folder: Path) -> list[str]:
    """Delete half-written checkpoints (of a killed run); returns their names."""
    broken = [path for path in folder.glob("checkpoint-*") if not (path / COMPLETE).is_file()]
    for path in broken:
        shutil.rmtree(path)
    return [path.name for path in broken]
