"""The jobs of rewardsmith: training by its own trainer, scoring by `RewardModel.score`. Each is what a user runs, less the reading of files and the evidence."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from transformers import Trainer

from harness import checks, training
from harness.processes import Channel
from harness.training import Use, clock, peak_bytes
from rewardsmith.config import ScoringSettings, TrainSettings
from rewardsmith.data import io
from rewardsmith.data.schema import Group, Preference
from rewardsmith.model import steps
from rewardsmith.model import training as product
from rewardsmith.model.precision import choose_device, prepare_process
from rewardsmith.model.preparation import prepare
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.training_data import read_data

# What takes a side of its own in a comparison: the engine without shared prompts. Everything else of it stays as it comes.
UNSHARED = {"share_prompts": False}


def train(settings: dict[str, Any], channel: Channel) -> None:
    """Train on `data` from `start`, every round inside one long training; see `training.serve`.

    `settings` holds data, start, precision, batch_size, rounds, epochs, threads, device, shared, and under `recipe` any other setting of the product.
    """
    run = _Run(settings)
    channel.answer(run.facts())
    table = run.prepared.table
    training.serve(
        channel,
        run.drive,
        ids=table.ids,
        tokens=int(table.tokens.lengths.sum()),
        rounds=settings["rounds"],
        epochs=settings["epochs"],
        what=settings.get("what", "pairs"),
        examples_of=run.examples_of,
    )


def train_anew(settings: dict[str, Any], channel: Channel) -> None:
    """The same where each round is a training of its own, from the start, with an empty cache or, if `keep_cache`, with that of the round before.

    With `primed` the cache is filled before anything else, and the check of the losses finds it so: its one epoch alone would fill none.
    """
    run = _Run(settings)
    if settings.get("primed"):
        run.drive(settings["epochs"], lambda *_: None)
    channel.answer(run.facts())
    table, cache = run.prepared.table, os.environ["REWARDSMITH_CACHE"]

    def drive(epochs: int, use: Use) -> Any:
        with tempfile.TemporaryDirectory(dir=cache) as fresh:
            checked = settings.get("primed") and epochs < settings["epochs"]
            os.environ["REWARDSMITH_CACHE"] = cache if settings["keep_cache"] or checked else fresh
            return run.drive(epochs, use)

    training.serve_anew(
        channel,
        drive,
        ids=table.ids,
        tokens=int(table.tokens.lengths.sum()),
        epochs=settings["epochs"],
        examples_of=run.examples_of,
    )


class _Run:
    """One run of the product up to its trainer."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Read the data and load the model."""
        self.folder = tempfile.TemporaryDirectory()
        self.settings = TrainSettings(
            model=settings["start"],
            data=settings["data"],
            out=str(Path(self.folder.name) / "run"),
            precision=settings["precision"],
            batch_size=settings["batch_size"],
            device=settings["device"],
            threads=settings["threads"],
            dev_share=0,
            weight_decay=0,
            trainer={"save_strategy": "no"},
            **({} if settings.get("shared", True) else UNSHARED),
            **settings.get("recipe", {}),
        )
        self.notes: list[str] = []
        prepare_process(threads=self.settings.threads, seed=self.settings.seed)
        self.data = read_data(self.settings)
        self.prepared = self._prepare()
        self.used = False

    def _prepare(self) -> Any:
        device = choose_device(self.settings.device)
        return prepare(
            self.settings,
            self.data,
            self.settings.model,
            device,
            say=self.notes.append,
            timings={},
            overwrite=True,
            day=None,
        )

    def facts(self) -> dict[str, Any]:
        """What was read and what will be done with it, for comparison."""
        table = self.prepared.table
        by_id = sorted(range(len(table)), key=lambda row: table.ids[row])
        answers = [answer for row in by_id for answer in range(table.starts[row], table.starts[row + 1])]
        return {
            "examples": len(table),
            "tokens": int(table.tokens.lengths.sum()),
            "ids": checks.digest(table.tokens.row(answer).tolist() for answer in answers),
            "precision": self.prepared.precision.name,
            "notes": self.notes,
        }

    def examples_of(self, inputs: Mapping[str, Any]) -> list[str]:
        """The ids of the examples in a batch."""
        return [self.prepared.table.ids[row] for part in inputs["parts"] for row in part.rows.tolist()]

    def drive(self, epochs: int, use: Use) -> Any:
        """Do something with a fresh trainer, from the start: the product's own, at the place where it would train."""
        if self.used:
            self.prepared = self._prepare()
        self.used = True
        begun = clock()
        settings = self.settings.model_copy(update={"epochs": epochs})
        console, out = Console(quiet=True), Path(self.folder.name) / "run"

        def instead(trainer: Trainer, *_: Any) -> None:
            raise _Done(use(trainer, begun))

        try:
            with mock.patch.object(steps, "_train", instead):
                product._fit(settings, self.data, self.prepared, out, None, None, console, self.notes.append, {})  # type: ignore[arg-type]
        except _Done as done:
            return done.result
        raise AssertionError("the product trained in another place")


class _Done(Exception):
    """Leaves the product when what was to be done is done: what follows is evidence, not training."""

    def __init__(self, result: Any) -> None:
        self.result = result


def score(settings: dict[str, Any], channel: Channel) -> None:
    """Score all texts of `data` with the model folder `model`, from strings to numbers.

    `settings` holds data, model, precision, device, threads, shared, batching.
    """
    prepare_process(threads=settings["threads"], seed=0)
    model = RewardModel.load(
        settings["model"],
        ScoringSettings(
            device=settings["device"],
            precision=settings["precision"],
            batching=settings.get("batching", "auto"),
            **({} if settings.get("shared", True) else UNSHARED),
        ),
    )
    pairs = texts_of(settings["data"])
    table = model.renderer.encode(pairs)
    tokens = int(table.lengths.sum())
    channel.answer({"texts": len(pairs), "tokens": tokens})
    while True:
        if channel.wait()["do"] == "check":
            uncut = (~table.truncated).nonzero()[0].tolist()
            scores = [float(score) for score in model.score(pairs)]
            ids = checks.digest(table.row(i).tolist() for i in uncut)
            channel.answer({"scores": scores, "uncut": uncut, "ids": ids})
            continue
        start = clock()
        model.score(pairs)
        seconds = clock() - start
        channel.answer(
            {"seconds": seconds, "work": {"texts": len(pairs), "tokens": tokens}, "peak_bytes": peak_bytes()}
        )


def texts_of(path: str) -> list[Any]:
    """The (prompt, answer) pairs of a file: of a pair chosen, then rejected; of a group all its answers."""
    found: list[Any] = []
    for row in io.read(path).rows:
        if isinstance(row, Preference):
            found += [row.chosen_pair, row.rejected_pair]
        elif isinstance(row, Group):
            found += [(row.prompt, answer) for answer in row.answers]
    return found
