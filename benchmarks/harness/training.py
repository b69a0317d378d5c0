"""Rounds of training, for any two tools that ride on transformers.Trainer: both are driven through their own `train()`."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness.processes import Channel

Use = Callable[[Trainer, float], Any]
"""What is done with a trainer; the number is the time at which the tool had loaded its model and tokenised its texts."""
Drive = Callable[[int, Use], Any]
"""Does it with a fresh trainer for so many epochs, and returns its result."""


class Rounds(TrainerCallback):
    """Stops a training at the beginning of each round until the driver wants it, and tells how long it took: `epochs` epochs of all steps, data and log lines."""

    def __init__(self, channel: Channel, epochs: int, work: Mapping[str, Any], started: Mapping[str, Any]) -> None:
        """Keep whom to ask; `started` is the request that the training was started for."""
        self.channel, self.epochs, self.work = channel, epochs, dict(work)
        self.request: Mapping[str, Any] | None = started
        self.begun = self.steps = 0
        self.start = 0.0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait here: no batch has been made yet."""
        if self.begun % self.epochs == 0:
            if self.request is None:
                self.channel.wait()
            self.request, self.steps = None, state.global_step
            self.start = clock()
        self.begun += 1

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimiser has made its last step of this epoch."""
        if self.begun % self.epochs == 0:
            seconds = clock() - self.start
            work = self.work | {"optimiser_steps": state.global_step - self.steps}
            self.channel.answer({"seconds": seconds, "work": work, "peak_bytes": peak_bytes()})


def serve(
    channel: Channel,
    drive: Drive,
    *,
    ids: Sequence[str],
    tokens: int,
    rounds: int,
    epochs: int,
    what: str = "pairs",
    examples_of: Callable[[Mapping[str, Any]], list[str]] | None = None,
) -> None:
    """Answer the driver's requests: a check of the losses if it asks for one, then rounds inside one long training.

    Args:
        channel: after it was told the facts.
        drive: makes the tool's trainer, always from the same start.
        ids: of the examples, in the order of the trainer's data set.
        tokens: real tokens of all of them.
        rounds: how many will be asked for, the warm-up included.
        epochs: of a round.
        what: the examples are, in the plural.
        examples_of: the ids of the examples in a batch, where the tool can tell.
    """
    request = channel.wait()
    if request["do"] == "check":
        channel.answer(losses(drive, ids=ids, order=request.get("order"), examples_of=examples_of))
        request = channel.wait()
    work = {what: len(ids) * epochs, "tokens": tokens * epochs}

    def train(trainer: Trainer, _: float) -> None:
        trainer.add_callback(Rounds(channel, epochs, work, request))
        trainer.train()

    drive(rounds * epochs, train)
    channel.wait()


def serve_anew(
    channel: Channel,
    drive: Drive,
    *,
    ids: Sequence[str],
    tokens: int,
    epochs: int,
    examples_of: Callable[[Mapping[str, Any]], list[str]] | None = None,
) -> None:
    """The same where each round is a training of its own, whose time begins when the model is loaded and the texts are tokenised."""

    def train(trainer: Trainer, begun: float) -> tuple[int, float]:
        trainer.train()
        return trainer.state.global_step, clock() - begun

    while True:
        request = channel.wait()
        if request["do"] == "check":
            channel.answer(losses(drive, ids=ids, order=request.get("order"), examples_of=examples_of))
            continue
        steps, seconds = drive(epochs, train)
        work = {"pairs": len(ids) * epochs, "tokens": tokens * epochs, "optimiser_steps": steps}
        channel.answer({"seconds": seconds, "work": work, "peak_bytes": peak_bytes()})


def losses(
    drive: Drive,
    *,
    ids: Sequence[str],
    order: Sequence[str] | None,
    examples_of: Callable[[Mapping[str, Any]], list[str]] | None,
) -> dict[str, Any]:
    """Train one epoch; the loss of every optimiser step, and the examples in the order they were seen, where the tool can tell.

    Args:
        drive: see `serve`.
        ids: see `serve`.
        order: the examples in the order they are to be seen; the tool's own where None.
        examples_of: see `serve`.
    """
    places = {name: place for place, name in enumerate(ids)}
    found: dict[int, float] = {}
    seen: list[str] = []

    def watch(trainer: Trainer, _: float) -> None:
        step = trainer.training_step

        def watched(model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            if examples_of is not None:
                seen.extend(examples_of(inputs))
            loss = step(model, inputs, *rest, **named)
            at = trainer.state.global_step
            found[at] = found.get(at, 0.0) + float(loss)
            return loss

        trainer.training_step = watched
        if order is not None:
            trainer._get_train_sampler = lambda *_: [places[name] for name in order]
        trainer.train()

    drive(1, watch)
    return {"losses": [found[at] for at in sorted(found)], "order": seen if examples_of is not None else order}


def clock() -> float:
    """Seconds; a GPU has done all that it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes() -> int:
    """The most memory that this process has held; of a GPU, if it works on one."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
