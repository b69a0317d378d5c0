"""One training run, from settings to a proven model folder. Settings are judged before the data, the data before the model."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_callback import ProgressCallback as TqdmCallback

from rewardsmith import metrics
from rewardsmith.config import DEFAULT_TEMPLATE, TrainSettings
from rewardsmith.data import io, row_hashes
from rewardsmith.data.examples import Example
from rewardsmith.data.faults import COLLAPSED, OVER_LENGTH
from rewardsmith.data.schema import prompt_key
from rewardsmith.data.split import sample_by_prompt
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.manifest import FILE_NAME, Manifest, plain_command, timed
from rewardsmith.model import artefact, processes, streamed
from rewardsmith.model.adapters import has_adapters, merge, save_adapters
from rewardsmith.model.attributes import AttributeHeads, reduce_head
from rewardsmith.model.batching import Batch
from rewardsmith.model.batching_choice import BatchingChoice, choose_batching
from rewardsmith.model.callbacks import (
    DEV_HISTORY,
    AverageCallback,
    DevHistory,
    DevPoint,
    GradientCallback,
    ProgressCallback,
    SelectionCallback,
)
from rewardsmith.model.card import model_card
from rewardsmith.model.checkpoints import step_of
from rewardsmith.model.clock import pinned_date
from rewardsmith.model.examples import ExampleCollator, ExampleTable, example_table
from rewardsmith.model.feature_cache import FeatureReader
from rewardsmith.model.frozen_features import HeadLearner, choose_learner
from rewardsmith.model.head_fit import Learned, solve_on_features
from rewardsmith.model.head_solver import check_head
from rewardsmith.model.learner import Learner
from rewardsmith.model.losses import LOSSES, Objective, PairObjective, SquaredError
from rewardsmith.model.moving_average import WeightAverage
from rewardsmith.model.network import (
    Network,
    build_network,
    check_vocabulary,
    load_tokenizer,
    position_capacity,
    quiet_loading,
    read_config,
    source_folder,
)
from rewardsmith.model.optimiser import OBJECTIVE, Rates
from rewardsmith.model.packing import PackedBatch
from rewardsmith.model.padding import give_pad_token
from rewardsmith.model.pooling import reads_left_to_right
from rewardsmith.model.precision import Format, PrecisionChoice, choose_device, choose_precision, prepare_process
from rewardsmith.model.provenance import base_files, device_facts, device_memory
from rewardsmith.model.render import Renderer, RenderSpec, TokenTable, resolve_encoding, with_end_token
from rewardsmith.model.run_folder import Say, check_out, differences, run_folder, run_identity
from rewardsmith.model.saving import measure_saving
from rewardsmith.model.scoring import batches, head_outputs
from rewardsmith.model.sharding import Sharding, asked_by_launcher, check_sharding, shard
from rewardsmith.model.token_cache import default_folder
from rewardsmith.model.train_counts import TrainCounts, unlearnable
from rewardsmith.model.trained_parts import choose_trained, prepare_head
from rewardsmith.model.trainer import PreferenceTrainer, unroute
from rewardsmith.model.trainer_arguments import build_arguments, check_trainer_table, with_twins
from rewardsmith.model.training_data import TrainingData, is_made, read_data
from rewardsmith.model.windows import SAMPLE, WindowCollator, WindowLearner, Windows
from rewardsmith.stats import Estimate, Floats, cluster_codes
from rewardsmith.storage import file_sha256, text_sha256, write_text

# A new head that ranks the dev part this well before its first step has seen the labels.
_LEAK_ACCURACY = 0.95
_LEAK_PAIRS = 50
# Shared beginnings that save less are not worth the copies of their keys.
_LEAST_SAVING = 1.05
# A run of fewer steps is over before it is worth while to measure what sharing saves it.
_MEASURED_STEPS = 50
# Examples of the dev part that a loss is shown at once.
_DEV_PART = 256


@dataclass
class Trained:
    """A finished run.

    Args:
        manifest: still open.
        model_folder: of the kept checkpoint.
        history: log lines of the Trainer (loss, accuracy, ... by step).
        dev_points: the dev part at each checkpoint.
        kept_step: the step whose weights were kept.
        data: what was trained on.
        train_accuracy: of the kept model on a sample of the training pairs, float32; None if all of them are labelled ties.
        facts: counts, choices and timings for the report.
        timings: seconds by part of the work; whoever goes on adds to it (see `manifest.timed`).
        device: that it ran on.
    """

    manifest: Manifest
    model_folder: Path
    history: list[dict[str, Any]]
    dev_points: list[DevPoint]
    kept_step: int
    data: TrainingData
    train_accuracy: Estimate | None
    facts: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    device: torch.device = torch.device("cpu")


def check_settings(settings: TrainSettings, *, overwrite: bool) -> list[str]:
    """Everything about settings that can be judged without data or weights; returns what is to be printed.

    Raises:
        SettingsError: at the first thing that cannot be meant.
        OutputError: if `out` holds something that is not a run of ours, or a finished one.
    """
    notes = check_trainer_table(settings)
    device = choose_device(settings.device)
    choose_precision(settings.precision, device, "")
    build_arguments(settings, Path(settings.out) / "checkpoints", precision="float32", device=device)
    _check_swap(settings)
    check_head(settings)
    check_sharding(settings)
    streamed.check_stream(with_twins(settings))
    if settings.patience and settings.trainer.get("save_strategy") == "no":
        raise SettingsError(
            "checkpoints, at which the dev part is scored, for patience",
            'trainer.save_strategy = "no"',
            "Remove one of the two.",
        )
    if settings.patience and not (settings.dev_data or settings.dev_share):
        raise SettingsError("a dev part for patience", "dev_share = 0 and no dev_data", "Give one, or no patience.")
    if settings.dev_data and settings.dev_share != TrainSettings.model_fields["dev_share"].default:
        raise SettingsError("dev_data or dev_share", "both", "Remove one of them.")
    if processes.is_first():
        check_out(Path(settings.out), overwrite)
    return notes


def _check_swap(settings: TrainSettings) -> None:
    """Refuse extra pairs that the loss cannot use, or that would teach it what is not so."""
    swap, name = settings.prompt_swap, settings.loss.name
    kind = LOSSES[name]
    if (swap.off_topic or swap.neutral) and (kind.data != "pairs" or name == "vote_share"):
        raise SettingsError("a loss of pairs without votes for prompt_swap", name, "Remove one of the two.")
    if swap.neutral and kind.models_ties:
        raise SettingsError(
            f"ties that people gave, for the loss {name} learns how likely they are",
            f"prompt_swap.neutral = {swap.neutral:g}, which makes ties up",
            "Set prompt_swap.off_topic alone.",
        )


@contextlib.contextmanager
def training_run(
    settings: TrainSettings, *, overwrite: bool, command: Sequence[str], console: Console, day: str | None = None
) -> Iterator[Trained | None]:
    """Train a reward model and save it; the block judges it while the run folder is still held, and closes the manifest when all is well.

    Of several processes only the first gets something to judge: the others take part in the steps, write nothing, and get None.

    Args:
        settings: of the run.
        overwrite: delete a run that stands in `out`.
        command: the words of the command line.
        console: where progress goes.
        day: that a chat template which writes the date is to read, of a run that is to be repeated; that of the first start where None.

    Raises:
        RewardsmithError: of the kind that says what was wrong; the last good checkpoint is kept.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    if not processes.is_first():
        console = Console(quiet=True)
    settings = asked_by_launcher(settings)
    processes.join(choose_device(settings.device), seconds=float(settings.trainer.get("ddp_timeout", 1800)))
    for note in check_settings(settings, overwrite=overwrite):
        say(note)
    settings = with_twins(settings)
    prepare_process(threads=settings.threads, seed=settings.seed)
    timings: dict[str, float] = {}
    with timed(timings, "reading"):
        data = read_data(settings)
    for note in data.notes:
        say(note)
    out, source = Path(settings.out), source_folder(settings.model)
    device = choose_device(settings.device)
    prepared = _prepare(settings, data, source, device, say, timings, overwrite=overwrite, day=day)
    identity = run_identity(
        settings, {n: facts["sha256"] for n, facts in data.facts.items() if "sha256" in facts}, source
    )
    if "cut_sha256" in data.facts["data"]:
        identity["shards"] = data.facts["data"]["cut_sha256"]
    with processes.losing_none():
        _check_same(identity | {"render": prepared.facts["render"]})
    if not processes.is_first():
        with processes.losing_none():
            _fit(settings, data, prepared, out, None, processes.share(None), console, say, timings)
        yield None
        return
    with run_folder(out, identity, overwrite=overwrite, say=say) as resume_from:
        manifest = Manifest.open(
            out / FILE_NAME,
            verb="train",
            settings=settings.model_dump(),
            command=plain_command(command),
            identity=identity,
            base={
                "source": Path(settings.model).name,
                "files": base_files(source, known=identity["base"] | _known_hash(identity)),
            },
            data=data.facts,
            dropped=data.dropped.as_dict(),
            seeds={"head, split and order": settings.seed, "intervals": settings.seed},
            device=device_facts(device),
            resumed_from=None if resume_from is None else resume_from.name,
            timings=timings,
            **prepared.facts,
        )
        row_hashes.write(data.rows, out / row_hashes.FILE_NAME)
        with manifest.until_closed():
            with processes.losing_none():
                trained = _fit(
                    settings, data, prepared, out, manifest, processes.share(resume_from), console, say, timings
                )
            yield trained


def _check_same(identity: dict[str, Any]) -> None:
    """Refuse processes that read different things: a file that has not yet reached every machine, say.

    Raises:
        DataError: naming what differs from the first process.
    """
    if others := differences(processes.share(identity), identity):
        raise DataError(
            "the same settings, data and base model in every process",
            f"others in process {processes.place()} ({', '.join(others)})",
            "Let all machines see the same files.",
        )


def _known_hash(identity: Mapping[str, Any]) -> dict[str, str]:
    """The hash of the weights that an identity holds already; none where it has but the model's name."""
    return {artefact.WEIGHTS: identity["model"]} if len(identity["model"]) == 64 else {}


@dataclass
class _Prepared:
    """Model and ids, ready to train."""

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
    facts: dict[str, Any]
    kind: str


def _prepare(
    settings: TrainSettings,
    data: TrainingData,
    source: str,
    device: torch.device,
    say: Say,
    timings: dict[str, float],
    *,
    overwrite: bool,
    day: str | None,
) -> _Prepared:
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
    used, unread = dict(counts.used), dict(counts.unread)
    kind = LOSSES[settings.loss.name].data
    for text in (
        *notes,
        f"head: {network.head}; pooling: {network.pooling} ({network.reason})",
        *([f"also new: {', '.join(network.new_modules)}"] if network.new_modules else []),
        f"precision: {precision.name} ({precision.reason})",
        f"batches: {batching.name} ({batching.reason})",
        f"loss: {settings.loss.name}; label columns in use: {_columns(used)}",
        *([f"warning: label columns that this loss does not read: {_columns(unread)}"] if unread else []),
        *(
            [f"{kind}: made of answers to other prompts: {data.facts['prompt_swap']}"]
            if "prompt_swap" in data.facts
            else []
        ),
        f"{kind}: {counts.examples:,} to train, {len(data.dev):,} dev; {len(data.eval):,} eval pairs; token cache: {cached}",
        *([streamed.describe(data, settings)] if data.stream is not None else []),
        *([f"dropped from training: {data.dropped.describe()}"] if data.dropped.counts else []),
        f"cut to {spec.max_length} tokens ({spec.truncation}): {counts.examples_cut / max(1, counts.examples):.1%} of the {kind}",
        *([f"warning: {warning}"] if warning else []),
    ):
        say(text)
    if "margin" in used and not counts.margins:
        say("warning: the column `margin` is 0 in every row")
    facts = {
        "model": {
            "source": Path(settings.model).name,
            "architecture": network.backbone_type,
            "head": network.head,
            "pooling": network.pooling,
            "pooling_reason": network.reason,
            "own_class": not network.native,
            "trained_parameters": sum(p.numel() for p in network.model.parameters() if p.requires_grad),
        },
        "render": spec.as_dict(),
        "template_sha256": text_sha256(str(tokenizer.chat_template) if spec.encoding == "chat" else spec.template),
        "precision": {"name": precision.name, "reason": precision.reason},
        "batching": {"name": batching.name, "reason": batching.reason},
        "label_columns": used,
        "label_columns_unread": unread,
        "counts": {
            f"dev_{kind}": len(data.dev),
            "eval_pairs": len(data.eval),
            **counts.facts(kind, share=batching.share),
        },
    }
    return _Prepared(
        network, renderer, precision, device, batching, table, counts, dev_table, objective, offset, facts, kind
    )


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


def _fit(
    settings: TrainSettings,
    data: TrainingData,
    prepared: _Prepared,
    out: Path,
    manifest: Manifest | None,
    resume_from: Path | None,
    console: Console,
    say: Say,
    timings: dict[str, float],
) -> Trained | None:
    network, checkpoints = prepared.network, out / "checkpoints"
    pad_id, with_types = prepared.renderer.tokenizer.pad_token_id or 0, prepared.renderer.uses_types
    # What the loss learns is a part of the model while it trains: optimiser, checkpoints and devices then know it.
    network.model.add_module(OBJECTIVE, prepared.objective)
    sharding = None
    if settings.shard:
        sharding = shard(network, prepared.device, precision=prepared.precision.name)
        say(f"shard: weights, gradients and optimiser are dealt out over {processes.count()} processes")
    else:
        network.model.to(prepared.device)
    reader = FeatureReader(
        network, prepared.renderer, prepared.device, prepared.batching, default_folder() if settings.cache else None
    )
    learner: Learner
    if isinstance(prepared.table, Windows):
        learner = WindowLearner(network, prepared.table, prepared.dev_table, reader)
        if isinstance(settings.freeze, int):
            say("frozen layers: run at every step, for their states of a stream are not kept")
    else:
        learner = choose_learner(
            reader, prepared.table, prepared.dev_table, settings, precision=prepared.precision.name, say=say
        )
    average = WeightAverage(learner.network.model, settings.ema_decay) if settings.ema_decay else None

    def score_dev() -> tuple[float, float]:
        assert learner.dev_table is not None
        # The choice among checkpoints is made at the precision of the steps; every reported number is float32.
        with average.in_place() if average is not None else contextlib.nullcontext():
            return dev_numbers(
                learner.network,
                learner.dev_table,
                prepared.objective,
                pad_id=pad_id,
                with_types=with_types,
                device=prepared.device,
                precision=prepared.precision.name,
                batching=learner.batching,
                sharding=sharding,
            )

    def warn_of_leak(start: DevPoint) -> None:
        if network.head.startswith("new") and len(data.dev) >= _LEAK_PAIRS and start.accuracy > _LEAK_ACCURACY:
            say(f"warning: accuracy {start.accuracy:.2f} before the first step: do the texts give the labels away?")

    measure = "squared error" if isinstance(prepared.objective, SquaredError) else "log-loss"
    history = DevHistory.read(checkpoints / DEV_HISTORY, up_to_step=step_of(resume_from))
    selection = None
    if learner.dev_table is not None:
        selection = SelectionCallback(
            history, score_dev, say, at_start=warn_of_leak, patience=settings.patience, measure=measure
        )
    with timed(timings, "training"):
        if settings.head.solver == "lbfgs":
            assert isinstance(learner, HeadLearner) and isinstance(prepared.objective, PairObjective)
            learned = solve_on_features(learner, prepared.objective, data.train, data.dev, settings, selection, say=say)
        else:
            learned = _take_steps(
                settings, prepared, learner, checkpoints, average, selection, resume_from, console, say, sharding
            )
    if sharding is not None:
        sharding.dissolve(prepared.device)
    processes.leave()
    if manifest is None:
        return None
    objective_facts, attributes = _take_out_objective(settings, prepared)
    for name, value in objective_facts.items():
        say(f"learned with the loss: {name} = {value}")
    if isinstance(prepared.table, Windows):
        _close_stream(data, prepared, manifest, say)
    sample = _training_sample(data)
    sample_table = example_table(sample, prepared.renderer, settings.loss, cache=None)[0]
    sample_scores = learner.score(sample_table.tokens).astype(np.float64)
    normaliser = artefact.Normaliser(
        float(sample_scores.mean()), float(sample_scores.std()), sample_scores.size, io.fingerprint(sample)
    )
    facts = {
        "kept_step": learned.kept_step,
        "steps": learned.steps,
        "train_seconds": round(learned.seconds, 1),
        "pairs_per_second": round(learned.pairs_per_second, 2),
        "tokens_per_second": _tokens_per_second(learner, learned, prepared),
        "dev_precision": prepared.precision.name,
        "stopped_early": learned.stopped_early,
        "learned": objective_facts,
        **learner.facts(),
        **learned.facts,
    }
    if has_adapters(network):
        spec = prepared.renderer.spec.as_dict()
        save_adapters(
            network,
            prepared.renderer,
            out / "adapter",
            base=settings.model,
            contract={"render": spec, "pooling": network.pooling},
        )
        facts["merge_difference"] = merge(network, prepared.renderer)
        say(
            f"adapter: {out / 'adapter'}; merged into the model: scores differ by at most {facts['merge_difference']:.1e}"
        )
    manifest.note(training=facts, dev_points=[vars(point) for point in history.points], timings=timings)
    folder = out / "model"
    with timed(timings, "saving"):
        artefact.save(
            network,
            prepared.renderer,
            folder,
            training_dtype=prepared.precision.name,
            manifest=manifest.document,
            normaliser=normaliser,
            objective={"loss": settings.loss.name, **objective_facts},
            attributes=attributes,
            card=model_card(manifest.document),
        )
    say(f"saved and proven: {folder}")
    train_accuracy = _sample_accuracy(sample, sample_table, sample_scores)
    return Trained(
        manifest,
        folder,
        learned.history,
        history.points,
        learned.kept_step,
        data,
        train_accuracy,
        facts,
        timings,
        prepared.device,
    )


def _close_stream(data: TrainingData, prepared: _Prepared, manifest: Manifest, say: Say) -> None:
    """What a stream of the hub turned out to be joins the record."""
    assert isinstance(prepared.table, Windows)
    found = streamed.close(data, prepared.table)
    if found is None:
        return
    prepared.counts, notes = found
    facts = prepared.facts["counts"] | prepared.counts.facts(prepared.kind, share=prepared.batching.share)
    prepared.facts["counts"] = facts | {"eval_pairs": len(data.eval)}
    columns = {"label_columns": dict(prepared.counts.used), "label_columns_unread": dict(prepared.counts.unread)}
    manifest.note(data=data.facts, dropped=data.dropped.as_dict(), counts=prepared.facts["counts"], **columns)
    for note in notes:
        say(note)


def _training_sample(data: TrainingData) -> list[Example]:
    """The same texts whatever the run's seed: runs of several seeds then have comparable normalisers."""
    if data.stream is not None:
        return data.sample
    people = [example for example in data.train if not is_made(example)]
    return sample_by_prompt(people, min(SAMPLE, len(people)), seed=0)


def _tokens_per_second(learner: Learner, learned: Learned, prepared: _Prepared) -> float | None:
    """Tokens that the network read a second, by the mean of an example; None where a head was trained on features that were read before."""
    if isinstance(learner, HeadLearner):
        return None
    counts = prepared.counts
    return round(learned.pairs_per_second * counts.tokens_read(share=learner.batching.share) / counts.examples, 1)


def _take_steps(
    settings: TrainSettings,
    prepared: _Prepared,
    learner: Learner,
    checkpoints: Path,
    average: WeightAverage | None,
    selection: SelectionCallback | None,
    resume_from: Path | None,
    console: Console,
    say: Say,
    sharding: Sharding | None,
) -> Learned:
    """Train with the Trainer, and leave the weights of the kept checkpoint in the network."""
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


def dev_numbers(
    network: Network,
    table: ExampleTable,
    objective: Objective,
    *,
    pad_id: int,
    with_types: bool,
    device: torch.device,
    precision: Format,
    batching: BatchingChoice | None = None,
    sharding: Sharding | None = None,
) -> tuple[float, float]:
    """(mean of the objective's dev losses, accuracy on the comparisons that the labels imply, ties one half) of a network as it is.

    The accuracy is 0.5 where the labels compare nothing.
    """
    batching = batching or choose_batching(network, device)

    def first_text() -> Batch | PackedBatch:
        _, batch = next(
            batches(table.tokens, np.array([0]), 1, batching, pad_id=pad_id, with_types=with_types),
        )
        return batch.to(device)

    def read(tokens: TokenTable) -> NDArray[np.float32]:
        with contextlib.nullcontext(network) if sharding is None else sharding.reader(first_text) as reading:
            return head_outputs(
                reading,
                tokens,
                pad_id=pad_id,
                with_types=with_types,
                device=device,
                precision=precision,
                batching=batching,
            )

    outputs = torch.from_numpy(
        processes.read_in_shares(table.tokens, read, width=network.head_module.out_features),
    )
    with torch.inference_mode():
        on_cpu = copy.deepcopy(objective).to("cpu")
        scores = on_cpu.score(outputs).double().numpy()
        # By parts, for a loss may compare every answer with every other of what it is given.
        parts = [
            on_cpu.dev_losses(outputs[table.starts[rows[0]] : table.starts[rows[-1] + 1]], table.labels_of(rows))
            for rows in np.split(np.arange(len(table)), range(_DEV_PART, len(table), _DEV_PART))
        ]
        losses = torch.cat(parts)
    margins = scores[table.better[:, 0]] - scores[table.better[:, 1]]
    return float(losses.double().mean()), float(metrics.wins(margins).mean()) if len(margins) else 0.5


def _take_out_objective(settings: TrainSettings, prepared: _Prepared) -> tuple[dict[str, Any], AttributeHeads | None]:
    """Take what the loss learned out of the model again, and reduce several heads to the one score."""
    network, objective = prepared.network, prepared.objective
    delattr(network.model, OBJECTIVE)
    facts: dict[str, Any] = dict(objective.learned())
    if prepared.offset.any():
        weights = torch.tensor(list(settings.loss.attributes.values()) or [1.0])
        facts["rating_minus_score"] = float((weights * prepared.offset).sum())
    if not settings.loss.attributes:
        return facts, None
    heads = reduce_head(network, settings.loss.attributes, prepared.offset)
    return facts | {"attributes": settings.loss.attributes}, heads


def finish(trained: Trained, metrics_of_parts: dict[str, Any]) -> None:
    """Close the manifest, and bring the copy in the model folder and the card made from it up to date."""
    weights = file_sha256(trained.model_folder / artefact.WEIGHTS)
    # The run's own last: what says that it is finished must not stand beside a model folder that says otherwise.
    copy_in_model = copy.copy(trained.manifest)
    copy_in_model.path = trained.model_folder / FILE_NAME
    copy_in_model.close(
        "finished",
        metrics=metrics_of_parts,
        timings=trained.timings,
        weights_sha256=weights,
        peak_memory=device_memory(trained.device),
    )
    write_text(trained.model_folder / "README.md", model_card(copy_in_model.document))
    trained.manifest.write()


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


def _sample_accuracy(sample: Sequence[Example], table: ExampleTable, scores: Floats) -> Estimate | None:
    """Accuracy on the comparisons inside some training examples; None where their labels compare nothing."""
    if not len(table.better):
        return None
    prompts = [prompt_key(sample[i].prompt) for i in np.searchsorted(table.starts, table.better[:, 0], "right") - 1]
    return metrics.accuracy(scores[table.better[:, 0]] - scores[table.better[:, 1]], cluster_codes(prompts))
