"""One training run, from settings to a proven model folder. Settings are judged before the data, the data before the model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from rewardsmith import launched, metrics
from rewardsmith.config import TrainSettings
from rewardsmith.data import io, row_hashes
from rewardsmith.data.examples import Example
from rewardsmith.data.schema import prompt_key
from rewardsmith.data.split import sample_by_prompt
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.manifest import FILE_NAME, Manifest, plain_command, timed
from rewardsmith.model import artefact, processes, streamed
from rewardsmith.model.adapters import has_adapters, merge, save_adapters
from rewardsmith.model.attributes import AttributeHeads, reduce_head
from rewardsmith.model.callbacks import DEV_HISTORY, DevHistory, DevPoint, SelectionCallback
from rewardsmith.model.card import model_card
from rewardsmith.model.checkpoints import step_of
from rewardsmith.model.dev_part import dev_numbers
from rewardsmith.model.examples import ExampleTable, example_table
from rewardsmith.model.feature_cache import FeatureReader
from rewardsmith.model.frozen_features import HeadLearner, choose_learner
from rewardsmith.model.head_fit import Learned, solve_on_features
from rewardsmith.model.head_solver import check_head
from rewardsmith.model.learner import Learner
from rewardsmith.model.losses import LOSSES, PairObjective, SquaredError
from rewardsmith.model.moving_average import WeightAverage
from rewardsmith.model.network import source_folder
from rewardsmith.model.optimiser import OBJECTIVE
from rewardsmith.model.precision import choose_device, choose_precision, prepare_process
from rewardsmith.model.preparation import Prepared, prepare
from rewardsmith.model.provenance import base_files, device_facts, device_memory
from rewardsmith.model.run_folder import Say, check_out, differences, run_folder, run_identity
from rewardsmith.model.sharding import asked_by_launcher, check_sharding, shard
from rewardsmith.model.steps import take_steps
from rewardsmith.model.token_cache import default_folder
from rewardsmith.model.trainer_arguments import build_arguments, check_trainer_table, with_twins
from rewardsmith.model.training_data import TrainingData, is_made, read_data
from rewardsmith.model.windows import SAMPLE, WindowLearner, Windows
from rewardsmith.stats import Estimate, Floats, cluster_codes
from rewardsmith.storage import file_sha256, write_text

# A new head that ranks the dev part this well before its first step has seen the labels.
_LEAK_ACCURACY = 0.95
_LEAK_PAIRS = 50


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
    if launched.is_first():
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

    if not launched.is_first():
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
    prepared = prepare(settings, data, source, device, say=say, timings=timings, overwrite=overwrite, day=day)
    identity = run_identity(
        settings, {n: facts["sha256"] for n, facts in data.facts.items() if "sha256" in facts}, source
    )
    if "cut_sha256" in data.facts["data"]:
        identity["shards"] = data.facts["data"]["cut_sha256"]
    with processes.losing_none():
        _check_same(identity | {"render": prepared.facts["render"]})
    if not launched.is_first():
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
            f"others in process {launched.place()} ({', '.join(others)})",
            "Let all machines see the same files.",
        )


def _known_hash(identity: Mapping[str, Any]) -> dict[str, str]:
    """The hash of the weights that an identity holds already; none where it has but the model's name."""
    return {artefact.WEIGHTS: identity["model"]} if len(identity["model"]) == 64 else {}


def _fit(
    settings: TrainSettings,
    data: TrainingData,
    prepared: Prepared,
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
        say(f"shard: weights, gradients and optimiser are dealt out over {launched.count()} processes")
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
            learned = take_steps(
                settings,
                prepared,
                learner,
                checkpoints=checkpoints,
                average=average,
                selection=selection,
                resume_from=resume_from,
                console=console,
                say=say,
                sharding=sharding,
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


def _close_stream(data: TrainingData, prepared: Prepared, manifest: Manifest, say: Say) -> None:
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


def _tokens_per_second(learner: Learner, learned: Learned, prepared: Prepared) -> float | None:
    """Tokens that the network read a second, by the mean of an example; None where a head was trained on features that were read before."""
    if isinstance(learner, HeadLearner):
        return None
    counts = prepared.counts
    return round(learned.pairs_per_second * counts.tokens_read(share=learner.batching.share) / counts.examples, 1)


def _take_out_objective(settings: TrainSettings, prepared: Prepared) -> tuple[dict[str, Any], AttributeHeads | None]:
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


def _sample_accuracy(sample: Sequence[Example], table: ExampleTable, scores: Floats) -> Estimate | None:
    """Accuracy on the comparisons inside some training examples; None where their labels compare nothing."""
    if not len(table.better):
        return None
    prompts = [prompt_key(sample[i].prompt) for i in np.searchsorted(table.starts, table.better[:, 0], "right") - 1]
    return metrics.accuracy(scores[table.better[:, 0]] - scores[table.better[:, 1]], cluster_codes(prompts))
