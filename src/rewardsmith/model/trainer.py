"""A thin subclass of transformers.Trainer: all answers of an example go through the same forward pass; checkpoints are whole or absent."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer import SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from rewardsmith.errors import OutputError
from rewardsmith.model import processes
from rewardsmith.model.batching import Batch, training_order
from rewardsmith.model.batching_choice import BatchingChoice
from rewardsmith.model.callbacks import ContinueCallback
from rewardsmith.model.checkpoints import STAGING, publish, rotate, seal
from rewardsmith.model.examples import ExampleCollator, ExampleRows, ExampleTable, Part
from rewardsmith.model.guards import GradientGuard, StuckGuard, check_finite
from rewardsmith.model.losses import Objective, batch_loss
from rewardsmith.model.moving_average import WeightAverage
from rewardsmith.model.network import Network
from rewardsmith.model.optimiser import OBJECTIVE, Rates, parameter_groups
from rewardsmith.model.packing import PackedBatch
from rewardsmith.model.sharding import Sharding
from rewardsmith.model.windows import WindowCollator, Windows, WindowSampler
from rewardsmith.storage import write_json

PROGRESS = "progress.json"
"""In a checkpoint: what was summed up since the last log line."""


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

    def __init__(self, sums: Sequence[float] = (0,) * 6) -> None:
        """Start at zero, or where `sums` left off."""
        self.comparisons, self.answers, self.correct, self.margin, self.total, self.squares = sums

    def sums(self) -> list[float]:
        """All six of them, over all processes."""
        own = [self.comparisons, self.answers, self.correct, self.margin, self.total, self.squares]
        return processes.sums(own)

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


@dataclass(frozen=True)
class ShareCollator:
    """Row numbers of a whole step -> the batch of one process's share of them, weighted so that the mean over the processes is the mean over the step.

    A process for which the last, short step has nothing reads its first example with a weight of 0: the others wait for its gradient.

    Args:
        collator: makes the batch.
        rank: of the process.
        ranks: how many there are.
    """

    collator: ExampleCollator | WindowCollator
    rank: int
    ranks: int

    def __call__(self, rows: Sequence[int]) -> dict[str, list[Part]]:
        """The batch."""
        step = np.asarray(rows, dtype=np.int64)
        mine = processes.share_of(step, rank=self.rank, ranks=self.ranks)
        factor = self.ranks * len(mine) / len(step)
        parts = self.collator((mine if len(mine) else step[:1]).tolist())["parts"]
        return {"parts": [replace(part, weight=part.weight * factor) for part in parts]}


class PreferenceTrainer(Trainer):
    """transformers.Trainer for preference data.

    Args:
        network: to train.
        table: the training examples, all of them or window by window.
        objective: the loss; what it learns itself is trained along, as a part of the network's model.
        args: TrainingArguments.
        collator: makes batches of it.
        dtype: the number format of the steps, for diagnoses.
        rates: learning rates by place in the network.
        average: of the weights, or None; it is saved with every checkpoint and loaded with it.
        sharding: of the network, where its weights are dealt out over the processes.
    """

    def __init__(
        self,
        network: Network,
        table: ExampleTable | Windows,
        objective: Objective,
        args: TrainingArguments,
        *,
        collator: ExampleCollator | WindowCollator,
        dtype: str,
        rates: Rates,
        average: WeightAverage | None,
        callbacks: list[Any],
        sharding: Sharding | None = None,
    ) -> None:
        """Hand everything that is the Trainer's to the Trainer."""
        self.network, self.table, self.objective, self.dtype_name, self.rates = network, table, objective, dtype, rates
        self.average, self.collator, self.sharding = average, collator, sharding
        self._margins: list[Tensor] = []  # of the parts of the step that is going on
        self._staging: Path | None = None  # where a checkpoint is being made
        self._checkpoint: Path | None = None  # that was loaded
        self._progress: dict[str, Any] = {}  # of it
        route(network)
        self.statistics, self.gradient_guard, self.stuck_guard = StepStatistics(), GradientGuard(), StuckGuard()
        super().__init__(
            model=network.model,
            args=args,
            train_dataset=ExampleRows(table),
            data_collator=collator
            if args.world_size == 1
            else ShareCollator(collator, args.process_index, args.world_size),
            callbacks=[ContinueCallback(self._continue), *callbacks],
        )
        if args.world_size > 1:
            # The loss is outside the forward that DDP watches: what it learns is averaged by the step itself.
            learned = [f"{OBJECTIVE}.{name}" for name, _ in objective.named_parameters()]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network.model, learned)
        # The batch loss is a mean over examples: the Trainer divides it by the accumulated steps.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        # The Trainer's own name for weights that nobody has to wrap any more.
        self.is_distributed_loading_by_transformers = sharding is not None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        if isinstance(self.table, Windows):
            return WindowSampler(self.table)
        return ExampleSampler(
            self.table,
            self.args.per_device_train_batch_size,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            batching=self.collator.batching,
            ranks=self.args.world_size,
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Every process goes through the same whole steps and reads its share of each: none is repeated to fill up the last one, none left out."""
        loader = self._get_dataloader(
            self.train_dataset,
            "Training",
            self._train_batch_size * self.args.world_size,
            self._get_train_sampler,
            is_training=True,
        )
        if self.args.world_size > 1:
            # accelerate would deal whole steps to the processes in turn, and fill up the last one with the first examples.
            steps = loader.batch_sampler
            steps.num_processes, steps.process_index, steps.even_batches = 1, 0, False
        if self.args.dataloader_persistent_workers:
            # A loader whose workers stay draws their seed once, one that is made anew after a resume again: not from dropout's generator.
            loader.base_dataloader.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one batch, part by part: its gradient is that of the whole, its memory that of the largest part."""
        if "error" in inputs:
            raise inputs["error"]
        parts: list[Part] = inputs["parts"] if self.sharding is None else self.sharding.even(inputs["parts"])
        losses, self._margins = [], []
        for part in parts:
            # Ranks exchange gradients once, when the batch is complete.
            waits = contextlib.nullcontext() if part is parts[-1] else self.accelerator.no_sync(model)
            with waits:
                losses.append(super().training_step(model, {"part": part}, num_items_in_batch))
        processes.average_gradients(self.objective.parameters())
        self.stuck_guard.after_step(self._all_margins(), step=self.state.global_step + 1)
        return torch.stack(losses).sum()

    def _all_margins(self) -> Tensor:
        """The margins of the step; of several processes one number that is 0 where all margins of all of them are."""
        margins = torch.cat(self._margins or [torch.zeros(0)])
        if self.args.world_size == 1:
            return margins
        found, moved = processes.sums([len(margins), int((margins != 0).sum())])
        return torch.full((int(found > 0),), float(moved > 0))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one part, weighted by its share of the batch; its scores are watched by the guards."""
        part: Part = inputs["part"]
        # accelerate puts its autocast around the model's forward, which most paths go around.
        with self.accelerator.autocast():
            outputs = part.in_order([model(batch=batch) for batch, _ in part.batches])  # (N, A)
            spare = [model(batch=batch).sum() for batch in part.spare]
        losses = self.objective(outputs, part.labels)  # (B,)
        loss = batch_loss(losses, part.labels.weight) * part.weight
        step = self.state.global_step + 1
        sizes = part.labels.sizes
        check_finite(loss.detach(), outputs.detach(), sizes, step=step, rows=part.ids, dtype=self.dtype_name)
        loss = loss + 0.0 * sum(spare)
        scores = self.objective.score(outputs.detach())  # (N, A) -> (N,)
        margins = scores[part.better[:, 0]] - scores[part.better[:, 1]]
        if part.weight:
            self._margins.append(margins)
            self.statistics.add(scores, margins)
        return (loss, {"scores": scores}) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """The Trainer's estimate, six a weight and token, from the tokens that are really read."""
        tokens = sum(part.num_tokens for part in inputs["parts"])
        return 6 * tokens * int(self.model.num_parameters(exclude_embeddings=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy, margin and the spread of the scores to the Trainer's own line."""
        summed = StepStatistics(self.statistics.sums())
        if summed.answers:
            logs |= summed.means()
            self.statistics = StepStatistics()
        if (
            "train_loss" in logs
        ):  # the Trainer's own is a sum over the run divided by the steps since it was last started
            logs["train_loss"] = self._total_loss_scalar / max(1, self.state.global_step)
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's own optimiser over groups by rate and decay; see `optimiser.parameter_groups`."""
        if self.optimizer is None:  # type: ignore[has-type]
            model = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            decayed = set(self.get_decay_parameter_names(model))
            self.optimizer = kind(parameter_groups(self.network, self.rates, decayed), **options)
        return self.optimizer

    def _defer_fsdp_gradient_reduction(self) -> contextlib.AbstractContextManager[None]:
        """Called when weights are dealt out: not deferred over accumulated steps, for whole gradients are what there is no room for."""
        return contextlib.nullcontext()

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Called when weights are dealt out: what the loss learns is not, and is averaged at the end of each step."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The Trainer's own, and with it the average of the weights and what stood between two log lines."""
        if self.sharding is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.sharding.load(Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)
        if self.average is not None:
            self.average.load(Path(resume_from_checkpoint))
        self._checkpoint = Path(resume_from_checkpoint)
        self._progress = json.loads((self._checkpoint / PROGRESS).read_text(encoding="utf-8"))
        if isinstance(self.table, Windows):
            self.table.expect(self._progress.get("stream"))

    def _continue(self) -> None:
        """Right before the first step of a start: log lines go on as if there had been no other."""
        if self.state.global_step:
            self._tr_loss.fill_(self._progress["loss"])
            self._total_loss_scalar = self._progress["loss_before"]
            self._globalstep_last_logged = self._progress["last_logged"]
            self.statistics = (
                StepStatistics(self._progress["sums"]) if self.args.process_index == 0 else StepStatistics()
            )
        rank, ranks = self.args.process_index, self.args.world_size
        known = self._checkpoint is not None and (self._checkpoint / f"rng_state_{rank}.pth").is_file()
        if ranks > 1 and not known:
            # With the same seed in all of them, the processes would drop the same places of different texts.
            torch.manual_seed(self.args.seed + self.state.global_step * ranks + rank)

    def _get_output_dir(self, trial: Any) -> str:
        return str(super()._get_output_dir(trial) if self._staging is None else self._staging)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The backbone's weights that are not trained are those of the source: a checkpoint leaves them out."""
        inner = f"{self.network.model.base_model_prefix}."
        frozen = {n for n, p in self.model.named_parameters() if not p.requires_grad and n.startswith(inner)}
        if self.sharding is not None:
            state_dict = self.sharding.gather()
            if not self.args.should_save:
                return
        if frozen:
            whole = self.model.state_dict() if state_dict is None else state_dict
            state_dict = {name: tensor for name, tensor in whole.items() if name not in frozen}
        super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The Trainer's own, but where every process holds a part of the optimiser's state."""
        if self.sharding is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        self.sharding.save_optimiser(self.optimizer.optimizer, Path(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Likewise."""
        if self.sharding is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        self.sharding.load_optimiser(self.optimizer.optimizer, Path(checkpoint))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Made beside the others, sealed, given its name; only then are older ones removed. At every moment the last good one is there."""
        folder, step = Path(self.args.output_dir), self.state.global_step
        self._staging = folder / STAGING
        try:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            processes.wait()
            # It also removes what is too old, but finds nothing of that kind here.
            super()._save_checkpoint(model, trial)
            progress = {
                "loss": processes.mean(float(self._tr_loss)),
                "loss_before": self._total_loss_scalar,
                "last_logged": self._globalstep_last_logged,
                "sums": self.statistics.sums(),  # which all processes come to when they have written their generators
            }
            made = self._staging / f"checkpoint-{step}"
            if self.average is not None:
                self.average.save(made)
            if isinstance(self.table, Windows):
                steps = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
                progress["stream"] = self.table.mark(self.state.global_step * steps)
            if self.args.should_save:
                write_json(made / PROGRESS, progress)
                seal(made, step, processes=self.args.world_size)
                publish(made, folder / made.name)
                best = self.state.best_global_step
                rotate(folder, self.args.save_total_limit, keep=[] if best is None else [best])
        except (OSError, SafetensorError, RuntimeError, CheckpointException) as error:
            # torch tells of a disk that is full by a RuntimeError of its writer; others are no matter of room.
            if processes.is_loss(error) or (isinstance(error, RuntimeError) and "write" not in str(error).lower()):
                raise
            raise OutputError(
                f"room to write checkpoint-{step}",
                str(error),
                "Free some disk space and run the same command again: it goes on from the last good checkpoint.",
            ) from error
        finally:  # also at Ctrl-C in the middle of a save: half a checkpoint is none
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None


def route(network: Network) -> None:
    """Let the network's model take whole batches: what wraps it (to exchange gradients between processes, say) acts on its forward, and must see every pass."""
    plain = network.model.forward

    def forward(*arguments: Any, batch: Batch | PackedBatch | None = None, **inputs: Any) -> Any:
        return plain(*arguments, **inputs) if batch is None else network.outputs(batch)

    network.model.forward = forward


def unroute(network: Network) -> None:
    """The model as its class made it."""
    vars(network.model).pop("forward", None)
