"""Where a run over data that do not fit memory differs from one that holds them: what it refuses, what it counts, and where its examples come from."""

from __future__ import annotations

from typing import Any

from rewardsmith import launched
from rewardsmith.config import TrainSettings
from rewardsmith.data.sources import is_hub_name
from rewardsmith.errors import SettingsError
from rewardsmith.model.batching_choice import BatchingChoice
from rewardsmith.model.first_pass import Contents
from rewardsmith.model.hub_windows import HubStream, HubWindows
from rewardsmith.model.render import Renderer
from rewardsmith.model.train_counts import TrainCounts
from rewardsmith.model.training_data import TrainingData, held_out
from rewardsmith.model.windows import Measured, ShardWindows, Windows, measure

FROM_ROWS = frozenset({"bradley_terry", "flip_noise", "plackett_luce"})
"""Losses that take nothing from the data as a whole; the others begin at shares, means or levels of all labels."""


def check_stream(settings: TrainSettings) -> None:
    """Refuse what needs all examples at once, before anything is read.

    Raises:
        SettingsError: saying what to do instead.
    """
    if not settings.stream:
        return
    came = f"stream = {settings.stream}"
    if settings.loss.name not in FROM_ROWS:
        raise SettingsError(
            f"a loss that reads row by row ({', '.join(sorted(FROM_ROWS))}) for {came}",
            f"{settings.loss.name}, which begins at numbers of all the data",
            "Choose one of these losses, or leave stream out.",
        )
    if settings.prompt_swap.off_topic or settings.prompt_swap.neutral:
        raise SettingsError(
            f"no prompt_swap with {came}",
            "extra pairs of answers to other prompts, which may lie anywhere in the data",
            "Leave one of the two out.",
        )
    if settings.freeze == "encoder":
        raise SettingsError(
            f"a trained encoder with {came}",
            'freeze = "encoder", which keeps the features of all texts',
            "Leave stream out, or freeze layers by number.",
        )
    if not is_hub_name(settings.data):
        return
    if int(settings.trainer.get("max_steps", -1)) <= 0:
        raise SettingsError(
            "trainer.max_steps for a stream of the hub, whose rows nobody has counted: the learning rate goes by it",
            "none",
            "Set it, as in --set trainer.max_steps=10000.",
        )
    if settings.dev_share and not settings.dev_data:
        raise SettingsError(
            "a dev part that is known before the first step",
            f"dev_share = {settings.dev_share:g} of a stream of the hub",
            "Give --dev-data, or set dev_share = 0.",
        )
    if int(settings.trainer.get("dataloader_num_workers", 0)):
        raise SettingsError(
            "a stream of the hub to be read where faults are counted",
            f"trainer.dataloader_num_workers = {settings.trainer['dataloader_num_workers']}",
            "Leave it out.",
        )


def window_size(settings: TrainSettings) -> int:
    """Examples of a window: `stream`, rounded up to whole steps."""
    return -(-settings.stream // settings.batch_size) * settings.batch_size


def count(data: TrainingData, renderer: Renderer, *, share: bool) -> tuple[TrainCounts, Measured | None]:
    """What the examples come to as ids, and where they lie; nothing yet of a stream of the hub. What is dropped joins the count in `data`.

    Raises:
        DataError: if too much is dropped.
    """
    if not isinstance(data.stream, Contents):
        return TrainCounts(), None
    measured = measure(data.stream, renderer, share=share)
    data.dropped, data.sample = measured.dropped, measured.sample
    return measured.counts, measured


def windows(
    data: TrainingData, measured: Measured | None, renderer: Renderer, settings: TrainSettings, batching: BatchingChoice
) -> Windows:
    """The examples behind their slots."""
    ranks = launched.count()
    parts = int(settings.trainer.get("gradient_accumulation_steps", 1)) * ranks
    data_seed = settings.trainer.get("data_seed")
    plan: dict[str, Any] = {
        "size": window_size(settings),
        "seed": settings.seed if data_seed is None else int(data_seed),
        "batching": batching,
        "batch_size": settings.batch_size // parts,
        "ranks": ranks,
    }
    if measured is not None:
        assert isinstance(data.stream, Contents)
        return ShardWindows(data.stream, measured, renderer, **plan)
    assert isinstance(data.stream, HubStream)
    steps = int(settings.trainer["max_steps"])
    return HubWindows(data.stream, renderer, share=batching.share, num_examples=steps * settings.batch_size, **plan)


def describe(data: TrainingData, settings: TrainSettings) -> str:
    """How the examples come, for people."""
    size = f"windows of {window_size(settings):,} examples"
    if isinstance(data.stream, Contents):
        shards = len(data.stream.shards)
        return f"stream: {size} over {shards:,} shard{'' if shards == 1 else 's'}"
    return f"stream: {size} over the hub, counted as they come"


def close(data: TrainingData, table: Windows) -> tuple[TrainCounts, list[str]] | None:
    """What is known of a stream of the hub when the last step was taken, and what is to be said; None of shards, of which all was known before.

    Raises:
        DataError: if too much was dropped.
    """
    if not isinstance(table, HubWindows):
        return None
    if not table.read.dropped.total:  # a run that was killed after its last step has read nothing in this start
        table.window(0, (len(table) - 1) // table.size)
    read = table.read
    read.dropped.check(table.stream.settings.max_dropped_share)
    data.facts["data"] |= table.facts()
    data.dropped, data.sample = read.dropped, read.sample.examples()
    data.eval, notes = held_out(data.eval, list(read.leaks.seen.values()), data.facts)
    if read.dropped.counts:
        notes.append(f"dropped from training: {read.dropped.describe()}")
    return read.counts, notes
