"""The data of a run, read, checked and split before a model is touched: training examples, the dev part, the eval pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rewardsmith.config import TrainSettings
from rewardsmith.data import io
from rewardsmith.data.examples import Example, Kind, example_fault, implied_pairs, together, told_examples
from rewardsmith.data.faults import EMPTY, Dropped, drop_faults
from rewardsmith.data.prompt_swap import ExtraKind, swapped_pairs
from rewardsmith.data.row_hashes import RowHashes, StoredHashes
from rewardsmith.data.schema import Preference
from rewardsmith.data.sources import is_hub_name, source_name
from rewardsmith.data.split import apart, split_by_prompt
from rewardsmith.errors import DataError
from rewardsmith.model.first_pass import Contents, contents_of, nothing_told
from rewardsmith.model.hub_windows import HubStream
from rewardsmith.model.losses import LOSSES
from rewardsmith.storage import text_sha256


@dataclass
class TrainingData:
    """Everything read and checked before a model is touched.

    Args:
        train: what is trained on, of the kind that the loss needs.
        dev: what chooses the checkpoint, of the same kind.
        eval: pairs that are scored once, at the end.
        dropped: training examples left out, by reason.
        facts: counts and hashes of each source.
        notes: what is to be printed.
        rows: a hash of every row of each source, as it was read.
        stream: where the training examples come from, if they are not in `train`.
        sample: of a stream some training examples, once it was tokenised.
    """

    train: list[Example]
    dev: list[Example]
    eval: list[Preference]
    dropped: Dropped
    facts: dict[str, Any]
    notes: list[str]
    rows: dict[str, RowHashes | StoredHashes] = field(default_factory=dict)
    stream: Contents | HubStream | None = None
    sample: list[Example] = field(default_factory=list)

    @property
    def dev_pairs(self) -> list[Preference]:
        """The pairs that the dev part says something about, labelled ties aside."""
        return [pair for example in self.dev for pair in implied_pairs(example) if not pair.tie]


def read_data(settings: TrainSettings) -> TrainingData:
    """Read, check and split all data of a run.

    Raises:
        DataError: (or RowError) at the first fault that stops a run.
        SettingsError: if the loss does not read what is set.
    """
    facts: dict[str, Any] = {}
    rows: dict[str, RowHashes | StoredHashes] = {}
    if settings.stream:
        return _read_streamed(settings, facts, rows)
    kind = LOSSES[settings.loss.name]
    everything = _read_examples(settings, settings.data, "data", kind.data, facts, rows)
    kept, dropped = drop_faults(everything, example_fault)
    dropped.check(settings.max_dropped_share)
    dev: list[Example] = []
    if settings.dev_data:
        dev = _read_examples(settings, settings.dev_data, "dev_data", kind.data, facts, rows)
    elif settings.dev_share > 0:
        kept, dev = split_by_prompt(kept, settings.dev_share, seed=settings.seed)
    kind.check(settings.loss, kept)
    evaluated = _read_eval(settings, facts, rows)
    dev, evaluated, notes = _judging(settings, dev, evaluated, everything, facts)
    kept += _swapped(settings, kept, facts)
    return TrainingData(kept, dev, evaluated, dropped, facts, notes, rows)


def _read_streamed(
    settings: TrainSettings, facts: dict[str, Any], rows: dict[str, RowHashes | StoredHashes]
) -> TrainingData:
    """The same where the training examples are read window by window: they stay where they are."""
    evaluated = _read_eval(settings, facts, rows)
    dev: list[Example] = []
    if settings.dev_data:
        dev = _read_examples(settings, settings.dev_data, "dev_data", LOSSES[settings.loss.name].data, facts, rows)
    stream: Contents | HubStream
    seen: list[Example] = []
    if is_hub_name(settings.data):
        stream, dropped = HubStream(settings, evaluated), Dropped(0)
        # Of rows that nobody has read there is no hash but that of their name.
        facts["data"] = {"source": settings.data, "sha256": text_sha256(settings.data), "sha256_of": "the name"}
    else:
        stream = contents_of(settings, evaluated)
        facts["data"], rows["data"], dropped, seen = stream.facts, stream.rows, stream.dropped, stream.seen
        if not settings.dev_data:
            dev = stream.dev
        if settings.dev_share and not dev:
            raise DataError(
                f"a prompt in the dev part of a share of {settings.dev_share:g}",
                "none: prompts are dealt by their hash, and here are too few",
                "Raise dev_share, give --dev-data, or set dev_share = 0.",
            )
    dev, evaluated, notes = _judging(settings, dev, evaluated, seen, facts)
    return TrainingData([], dev, evaluated, dropped, facts, notes, rows, stream)


def _judging(
    settings: TrainSettings,
    dev: list[Example],
    evaluated: list[Preference],
    everything: Sequence[Example],
    facts: dict[str, Any],
) -> tuple[list[Example], list[Preference], list[str]]:
    """What is judged by: the dev part and the eval pairs without what cannot judge or was trained on, and what is to be said."""
    kind = LOSSES[settings.loss.name]
    dev = together(dev)
    if dev:
        kind.check_rows(settings.loss, dev)
    evaluated, notes = held_out(evaluated, [*together(everything), *dev], facts)
    decided = [one for one in dev if example_fault(one) != EMPTY and (kind.models_ties or not _is_tie(one))]
    facts["dev_left_out"] = {"ties_or_empty": len(dev) - len(decided)}
    tests = [pair for pair in evaluated if not pair.tie and example_fault(pair) != EMPTY]
    for name, found, usable in (("dev", len(dev), decided), ("eval", len(evaluated), tests)):
        if found and not usable:
            raise DataError(
                f"at least one {name} pair with two answers and a winner",
                f"{found} pairs without",
                "Check the data.",
            )
    read_as = [part["read_as"] for part in facts.values() if "read_as" in part]
    return decided, evaluated, [*read_as, *notes]


def _read_examples(
    settings: TrainSettings,
    source: str,
    name: str,
    kind: Kind,
    facts: dict[str, Any],
    rows: dict[str, RowHashes | StoredHashes],
) -> list[Example]:
    """The examples in one source, with its facts and the hashes of its rows; groups whose answers are all rated alike say nothing to a loss of lists and are left out, counted."""
    loss = settings.loss
    reading = io.read(source, skip_bad=settings.skip_bad, allow_negative_margin=loss.allow_negative_margin)
    told, equal = told_examples(reading.rows, kind, source, rating=loss.rating, attributes=loss.attributes)
    if not told:
        raise nothing_told(source, kind, equal)
    facts[name] = {
        "source": source_name(source),
        "rows": reading.num_rows,
        "formats": dict(reading.formats),
        "read_as": reading.describe(source),
        "without": reading.without,
        kind: len(told),
        "equal_ratings": equal,
        "skipped_bad": dict(reading.skipped),
        "skipped_examples": reading.examples,
        "sha256": io.fingerprint(told),
    }
    rows[name] = RowHashes.of(told)
    return told


def _read_eval(
    settings: TrainSettings, facts: dict[str, Any], rows: dict[str, RowHashes | StoredHashes]
) -> list[Preference]:
    """The eval pairs: whatever the loss, a reward model is judged by pairs."""
    if not settings.eval_data:
        return []
    found = _read_examples(settings, settings.eval_data, "eval_data", "pairs", facts, rows)
    return [example for example in found if isinstance(example, Preference)]


def is_made(example: Example) -> bool:
    """Whether `prompt_swap` made an example."""
    return isinstance(example.metadata.get("augmented"), ExtraKind)


def _is_tie(example: Example) -> bool:
    return isinstance(example, Preference) and example.tie


def _swapped(settings: TrainSettings, kept: list[Example], facts: dict[str, Any]) -> list[Example]:
    """The extra pairs of `prompt_swap`."""
    swap = settings.prompt_swap
    pairs = [example for example in kept if isinstance(example, Preference)]
    if not (swap.off_topic or swap.neutral):
        return []
    extra = swapped_pairs(pairs, off_topic=swap.off_topic, neutral=swap.neutral, seed=settings.seed)
    facts["prompt_swap"] = {"extra_pairs": len(extra), "neutral": sum(pair.tie for pair in extra)}
    return list(extra)


def held_out(
    evaluated: list[Preference], seen: Sequence[Example], facts: dict[str, Any]
) -> tuple[list[Preference], list[str]]:
    """The eval pairs that no other example holds, and what is to be said: a pair that was trained on is no test."""
    clean, leaked = apart(evaluated, [pair for example in seen for pair in implied_pairs(example)])
    if not leaked:
        return evaluated, []
    facts["eval_data"]["leaked"] = {"count": len(leaked), "ids": [pair.id for pair in leaked[:20]]}
    if not clean:
        return evaluated, [
            "warning: every eval pair is a training or dev pair; what is reported as eval is no held-out number"
        ]
    first = ", ".join(pair.id for pair in leaked[:3])
    return clean, [
        f"warning: {len(leaked):,} of {len(evaluated):,} eval pairs are training or dev pairs (first: {first}); they are left out of the eval"
    ]
