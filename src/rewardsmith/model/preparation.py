"""What a training run is made of before its first step: network, renderer, ids of the data, how to compute; and the lines that say what was chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardsmith.config import DEFAULT_TEMPLATE, TrainSettings
from rewardsmith.data.examples import Example
from rewardsmith.data.faults import COLLAPSED, OVER_LENGTH
from rewardsmith.errors import DataError
from rewardsmith.manifest import FILE_NAME, Manifest, timed
from rewardsmith.model import artefact, streamed
from rewardsmith.model.batching_choice import BatchingChoice, choose_batching
from rewardsmith.model.clock import pinned_date
from rewardsmith.model.examples import ExampleTable, example_table
from rewardsmith.model.losses import LOSSES, Objective
from rewardsmith.model.network import (
    Network,
    build_network,
    check_vocabulary,
    load_tokenizer,
    position_capacity,
    read_config,
)
from rewardsmith.model.padding import give_pad_token
from rewardsmith.model.pooling import reads_left_to_right
from rewardsmith.model.precision import PrecisionChoice, choose_precision
from rewardsmith.model.render import Renderer, RenderSpec, resolve_encoding, with_end_token
from rewardsmith.model.run_folder import Say
from rewardsmith.model.token_cache import default_folder
from rewardsmith.model.train_counts import TrainCounts, unlearnable
from rewardsmith.model.trained_parts import choose_trained, prepare_head
from rewardsmith.model.training_data import TrainingData, is_made
from rewardsmith.model.windows import Windows
from rewardsmith.storage import text_sha256

# Shared beginnings that save less are not worth the copies of their keys.
_LEAST_SAVING = 1.05


@dataclass
class Prepared:
    """A run before its first step.

    Args:
        network: with its head, on the CPU; what is not to be trained is frozen.
        renderer: of every text of the run.
        precision: of the steps.
        device: to train on.
        batching: of the steps.
        table: the examples to train on, as ids.
        counts: of these.
        dev_table: the dev part; None where there is none.
        objective: the loss.
        offset: taken off the ratings, one a score of the head.
        kind: of the examples: pairs, lists or ratings.
        facts: for the manifest.
    """

    network: Network
    renderer: Renderer
    precision: PrecisionChoice
    device: torch.device
    batching: BatchingChoice
    table: ExampleTable | Windows
    counts: TrainCounts
    dev_table: ExampleTable | None
    objective: Objective
    offset: Tensor
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)


def prepare(
    settings: TrainSettings,
    data: TrainingData,
    source: str,
    device: torch.device,
    *,
    say: Say,
    timings: dict[str, float],
    overwrite: bool,
    day: str | None,
) -> Prepared:
    """Load the model, render and count the data, decide what the settings leave open, and say it all.

    Args:
        settings: of the run, judged by `training.check_settings`.
        data: of the run; loses the examples that the length policy makes unlearnable.
        source: the folder of the base model.
        device: to train on.
        say: prints a line.
        timings: gains the seconds of loading and tokenising.
        overwrite: the run does not go on from an earlier one in its place.
        day: that a chat template which writes the date reads; None for that of the run's first start.

    Raises:
        RewardsmithError: of the kind that says what was wrong.
    """
    config = read_config(source)
    precision = choose_precision(settings.precision, device, str(config.get("model_type")))
    tokenizer = load_tokenizer(source)
    spec, notes = _render_spec(settings, source, tokenizer, config, overwrite=overwrite, day=day)
    with timed(timings, "loading"):
        network = build_network(source, pooling=settings.pooling, seed=settings.seed, dropout=settings.dropout)
    capacity = position_capacity(network.model)
    if capacity is not None and spec.max_length > capacity:
        notes.append(f"max_length {spec.max_length} -> {capacity}: the model has no more positions")
        spec = dataclasses.replace(spec, max_length=capacity)
    if note := give_pad_token(network, tokenizer):
        notes.append(note)
    warning = check_vocabulary(network, tokenizer)
    objective = LOSSES[settings.loss.name].build(settings.loss, data.train)
    offset = prepare_head(network, objective, source=source)
    notes += choose_trained(network, settings, pins_level=objective.pins_level)
    kind = LOSSES[settings.loss.name].data
    renderer = Renderer(tokenizer, spec)
    cache = default_folder() if settings.cache else None
    choice = choose_batching(
        network,
        device,
        wanted=settings.batching,
        share=settings.share_prompts,
        dropout=settings.dropout,
        compiled=bool(settings.trainer.get("torch_compile")),
    )
    table: ExampleTable | Windows
    with timed(timings, "tokenising"):
        if data.stream is None:
            table, cached = example_table(data.train, renderer, settings.loss, cache=cache)
            table, data.train = _drop_unlearnable(table, data, spec, settings)
            counts = TrainCounts()
            counts.add(table, data.train, settings.loss, share=choice.share)
            batching = _worth_sharing(choice, counts, settings)
        else:
            counts, measured = streamed.count(data, renderer, share=choice.share)
            batching = _worth_sharing(choice, counts, settings)
            table, cached = streamed.windows(data, measured, renderer, settings, batching), "off for a stream"
    if spec.truncation == "error":  # a fault of the eval texts must not wait for the end of the run
        renderer.encode([text for pair in data.eval for text in (pair.chosen_pair, pair.rejected_pair)])
    with timed(timings, "tokenising"):
        dev_table = example_table(data.dev, renderer, settings.loss, cache=cache)[0] if data.dev else None
    if offset.any():
        for one in (table, dev_table):
            if isinstance(one, ExampleTable):
                one.labels["rating"] = one.labels["rating"] - offset.numpy()
        notes.append(
            f"taken off the ratings, because the head keeps its level: {', '.join(f'{x:.4g}' for x in offset.tolist())}"
        )
    prepared = Prepared(
        network, renderer, precision, device, batching, table, counts, dev_table, objective, offset, kind
    )
    template = str(tokenizer.chat_template) if spec.encoding == "chat" else spec.template
    prepared.facts = _facts(settings, data, prepared, template)
    for text in (*notes, *_choices(settings, data, prepared, cached), *([f"warning: {warning}"] if warning else [])):
        say(text)
    return prepared


def _facts(settings: TrainSettings, data: TrainingData, prepared: Prepared, template: str) -> dict[str, Any]:
    """What joins the record of the run; the template as it was loaded, without the day that is pinned into it."""
    network, counts = prepared.network, prepared.counts
    return {
        "model": {
            "source": Path(settings.model).name,
            "architecture": network.backbone_type,
            "head": network.head,
            "pooling": network.pooling,
            "pooling_reason": network.reason,
            "own_class": not network.native,
            "trained_parameters": sum(p.numel() for p in network.model.parameters() if p.requires_grad),
        },
        "render": prepared.renderer.spec.as_dict(),
        "template_sha256": text_sha256(template),
        "precision": {"name": prepared.precision.name, "reason": prepared.precision.reason},
        "batching": {"name": prepared.batching.name, "reason": prepared.batching.reason},
        "label_columns": dict(counts.used),
        "label_columns_unread": dict(counts.unread),
        "counts": {
            f"dev_{prepared.kind}": len(data.dev),
            "eval_pairs": len(data.eval),
            **counts.facts(prepared.kind, share=prepared.batching.share),
        },
    }


def _choices(settings: TrainSettings, data: TrainingData, prepared: Prepared, cached: str) -> list[str]:
    """What was chosen and counted, a line each, as the run prints it."""
    network, counts, kind, spec = prepared.network, prepared.counts, prepared.kind, prepared.renderer.spec
    precision, batching = prepared.precision, prepared.batching
    lines = [f"head: {network.head}; pooling: {network.pooling} ({network.reason})"]
    if network.new_modules:
        lines.append(f"also new: {', '.join(network.new_modules)}")
    lines += [
        f"precision: {precision.name} ({precision.reason})",
        f"batches: {batching.name} ({batching.reason})",
        f"loss: {settings.loss.name}; label columns in use: {_columns(counts.used)}",
    ]
    if counts.unread:
        lines.append(f"warning: label columns that this loss does not read: {_columns(counts.unread)}")
    if "prompt_swap" in data.facts:
        lines.append(f"{kind}: made of answers to other prompts: {data.facts['prompt_swap']}")
    sizes = f"{counts.examples:,} to train, {len(data.dev):,} dev; {len(data.eval):,} eval pairs"
    lines.append(f"{kind}: {sizes}; token cache: {cached}")
    if data.stream is not None:
        lines.append(streamed.describe(data, settings))
    if data.dropped.counts:
        lines.append(f"dropped from training: {data.dropped.describe()}")
    cut = counts.examples_cut / max(1, counts.examples)
    lines.append(f"cut to {spec.max_length} tokens ({spec.truncation}): {cut:.1%} of the {kind}")
    if "margin" in counts.used and not counts.margins:
        lines.append("warning: the column `margin` is 0 in every row")
    return lines


def _worth_sharing(choice: BatchingChoice, counts: TrainCounts, settings: TrainSettings) -> BatchingChoice:
    """The choice, with sharing where that saves a part of the tokens worth the name, unless set."""
    if not choice.share or not counts.shared_tokens:  # of a stream of the hub nobody knows yet
        return choice
    ceiling = counts.ceiling
    saves = f"answers that begin alike save {1 - 1 / ceiling:.0%} of the tokens, a ceiling of {ceiling:.2f} on what that brings"
    if settings.share_prompts == "auto" and ceiling < _LEAST_SAVING:
        return dataclasses.replace(choice, share=False, reason=f"{choice.reason}; {saves}: not worth it")
    return dataclasses.replace(choice, reason=f"{choice.reason}; {saves}")


def _render_spec(
    settings: TrainSettings,
    source: str,
    tokenizer: Any,
    config: Mapping[str, Any],
    *,
    overwrite: bool,
    day: str | None,
) -> tuple[RenderSpec, list[str]]:
    """The spec of the settings; a reward model that goes on keeps the contract it was trained under."""
    contract_file = Path(source) / artefact.CONTRACT
    if contract_file.is_file():
        spec = artefact.read_contract(Path(source)).render
        return spec, ["template, encoding, max_length and truncation are those of the reward model that goes on"]
    encoding, reason = resolve_encoding(settings.encoding, tokenizer)
    notes = [f"encoding: {encoding} ({reason})"]
    template, pinned = settings.template, None
    if encoding == "text" and template == DEFAULT_TEMPLATE and reads_left_to_right(str(config.get("model_type"))):
        template = with_end_token(template, tokenizer)
    if template != settings.template:
        notes.append(f"end token: every text ends with {tokenizer.eos_token!r}, where the score is read")
    if encoding == "chat":
        # A run that goes on reads the day of its first start, not today.
        earlier = None if overwrite else Manifest.read(Path(settings.out) / FILE_NAME)
        render = {} if earlier is None else earlier.document.get("render", {})
        first = day or render.get("date")
        pinned = pinned_date(tokenizer, date.fromisoformat(first) if first else date.today())
    if pinned is not None:
        notes.append(f"date: the chat template writes today's date; it is pinned to {pinned} for this model")
    return RenderSpec(encoding, template, settings.max_length, settings.truncation, date=pinned), notes


def _columns(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count:,} rows)" for name, count in counts.items()) or "none"


def _drop_unlearnable(
    table: ExampleTable, data: TrainingData, spec: RenderSpec, settings: TrainSettings
) -> tuple[ExampleTable, list[Example]]:
    """Without the examples that the length policy made unlearnable; they join the count of what was dropped."""
    collapsed, over = unlearnable(table, drop_long=spec.truncation == "drop")
    made = np.array([is_made(example) for example in data.train], dtype=bool)
    for reason, mask in ((COLLAPSED, collapsed), (OVER_LENGTH, over)):
        data.dropped.add(reason, [table.ids[i] for i in np.flatnonzero(mask & ~made)])
    data.dropped.check(settings.max_dropped_share)
    gone = collapsed | over
    if made.any():
        data.facts["prompt_swap"]["dropped"] = int((gone & made).sum())
    if not gone.any():
        return table, data.train
    keep = np.flatnonzero(~gone)
    if not len(keep):
        raise DataError(
            "at least one example to train on", f"none left ({data.dropped.describe()})", "Raise max_length."
        )
    return table.take(keep), [data.train[i] for i in keep]
