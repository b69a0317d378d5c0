"""The data of a run, read, checked and split before a model is touched: training examples, the dev part, the eval pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rewardsmith.config import TrainSettings
from rewardsmith.data import io
from rewardsmith.data.examples import Example, Kind, example_fault, examples_of, implied_pairs, together
from rewardsmith.data.faults import EMPTY, Dropped, drop_faults
from rewardsmith.data.pairing import equal_rating_pairs
from rewardsmith.data.prompt_swap import ExtraKind, swapped_pairs
from rewardsmith.data.row_hashes import RowHashes
from rewardsmith.data.schema import Group, Preference
from rewardsmith.data.split import apart, split_by_prompt
from rewardsmith.errors import DataError
from rewardsmith.model.losses import LOSSES


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
    """

    train: list[Example]
    dev: list[Example]
    eval: list[Preference]
    dropped: Dropped
    facts: dict[str, Any]
    notes: list[str]
    rows: dict[str, RowHashes] = field(default_factory=dict)

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
    rows: dict[str, RowHashes] = {}
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
    dev = together(dev)
    if dev:
        kind.check_rows(settings.loss, dev)
    evaluated = _read_eval(settings, facts, rows)
    seen = [pair for example in (*together(everything), *dev) for pair in implied_pairs(example)]
    evaluated, notes = _held_out(evaluated, seen, facts)
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
    kept += _swapped(settings, kept, facts)
    read_as = [part["read_as"] for part in facts.values() if "read_as" in part]
    return TrainingData(kept, decided, evaluated, dropped, facts, [*read_as, *notes], rows)


def _read_examples(
    settings: TrainSettings, source: str, name: str, kind: Kind, facts: dict[str, Any], rows: dict[str, RowHashes]
) -> list[Example]:
    """The examples in one source, with its facts and the hashes of its rows; groups whose answers are all rated alike say nothing to a loss of lists and are left out, counted."""
    loss = settings.loss
    reading = io.read(source, skip_bad=settings.skip_bad, allow_negative_margin=loss.allow_negative_margin)
    examples = examples_of(reading.rows, kind, source, rating=loss.rating, attributes=loss.attributes)
    told = examples if kind != "lists" else [example for example in examples if implied_pairs(example)]
    if not told:
        raise DataError(
            f"at least one row for a loss of {kind} in {io.source_name(source)}",
            "lists whose answers are all rated alike" if examples else "none",
            "Check the data.",
        )
    equal = [row for row in reading.rows if isinstance(row, Group)] if kind == "pairs" else []
    facts[name] = {
        "source": io.source_name(source),
        "rows": reading.num_rows,
        "formats": dict(reading.formats),
        "read_as": reading.describe(source),
        "without": reading.without,
        kind: len(told),
        "equal_ratings": sum(map(equal_rating_pairs, equal)) + len(examples) - len(told),
        "skipped_bad": dict(reading.skipped),
        "skipped_examples": reading.examples,
        "sha256": io.fingerprint(told),
    }
    rows[name] = RowHashes.of(told)
    return told


def _read_eval(settings: TrainSettings, facts: dict[str, Any], rows: dict[str, RowHashes]) -> list[Preference]:
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


def _held_out(
    evaluated: list[Preference], seen: Sequence[Preference], facts: dict[str, Any]
) -> tuple[list[Preference], list[str]]:
    """The eval pairs that no other part holds, and what is to be said: a pair that was trained on is no test."""
    clean, leaked = apart(evaluated, seen)
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
