"""Shaping: a chain of steps that turns raw scores into rewards, as an object that can be saved, shown and applied anywhere.

Each step takes running values to other values; what it added is the difference, so that reward = score + sum of what the steps added, to rounding. Nothing is
made up: what a step needs and does not get is a typed error, and so is a value that is not finite.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewardsmith.config import build, near_miss
from rewardsmith.errors import DataError, ScoreError, SettingsError
from rewardsmith.scores import Scores, checked
from rewardsmith.stats import Floats, cluster_codes
from rewardsmith.storage import write_json
from rewardsmith.use.references import References
from rewardsmith.use.samples import Rewards, Sample
from rewardsmith.use.terms import STEPS, Batch, KLPenalty, Need, Step, ZScore

FORMAT_VERSION = 1
_KEYS = {"format_version", "steps", "references", "state"}
_OWN = ("reward", "score")  # what `Rewards.means` calls its other parts


class Shaping:
    """Steps in their order; without any, the reward is the score.

    >>> from rewardsmith.use.terms import Clip, LengthPenalty
    >>> shaping = Shaping([Clip(low=-1.0, high=1.0), LengthPenalty(cost=0.01, unit="characters")])
    >>> rewards = shaping.apply(np.array([3.0], np.float32), [Sample("Hi?", "Hello.")])
    >>> rewards.value.round(2).tolist(), {name: part.round(2).tolist() for name, part in rewards.terms.items()}
    ([0.94], {'clip': [-2.0], 'length': [-0.06]})
    """

    def __init__(self, terms: Sequence[Step] = (), *, references: References | None = None) -> None:
        """Keep the steps.

        Args:
            terms: in the order in which they are applied.
            references: scores of reference answers, for the steps that compare with them.

        Raises:
            SettingsError: if something is no step, two steps share a label, a step that compares with references does not stand first, or has none.
        """
        if not all(isinstance(step, Step) for step in terms):  # one step alone yields its fields
            raise SettingsError(
                "a list of steps of shaping", type(terms).__name__, "For tables of settings there is shaping_from."
            )
        self.terms, self.references = tuple(terms), references
        keys = [step.key for step in self.terms]
        twice = sorted({key for key in keys if keys.count(key) > 1 or key in _OWN})
        if twice:
            raise SettingsError(
                "steps of shaping with labels of their own, none of them reward or score",
                f"the label {twice[0]!r} taken",
                'Give `label` to one of them, e.g. label = "second clip".',
            )
        late = [step.key for step in self.terms[1:] if step.compares]
        if late:
            raise SettingsError(
                "a step that compares with reference answers in the first place, where values are still raw scores",
                f"`{late[0]}` after `{keys[0]}`",
                "Put it first, and what clips or penalises after it.",
            )
        if "references" in self.needs and references is None:
            raise SettingsError(
                f"scores of reference answers, for the step `{keys[0]}`",
                "none",
                "Measure them: References.measured(scorer, pairs, source=...), several answers to each prompt.",
            )
        self._controllers = {step.key: step.controller() for step in self.terms if isinstance(step, KLPenalty)}

    @property
    def needs(self) -> frozenset[Need]:
        """What its steps ask for beside the score."""
        return frozenset[Need]().union(*(step.needs for step in self.terms))

    def apply(self, scores: Scores, samples: Sequence[Sample]) -> Rewards:
        """The rewards of some samples; a pure function of its arguments and `state`.

        Args:
            scores: raw, (n,) in the order of `samples`.
            samples: at least one.

        Raises:
            DataError: if a sample lacks what a step needs, or there is none.
            ScoreError: if a score, or what a step makes of it, is not finite.
        """
        raw = checked(scores, len(samples))
        if not len(raw):
            raise DataError("at least one answer to reward", "none", "Check what calls the reward function.")
        batch = self._batch(samples)
        values = raw.astype(np.float64)
        terms: dict[str, Floats] = {}
        counts: dict[str, int] = {}
        for step in self.terms:
            after, counted = step.apply(values, batch)
            _check_finite(after, values, step.key)
            terms[step.key] = after - values
            values = after
            for name, count in counted.items():
                counts[name] = counts.get(name, 0) + count
        if "groups" not in counts:  # a step that normalises them has counted those that it saw
            counts |= _equal_groups(values, samples)
        return Rewards(values, raw, terms, counts)

    def update(self, samples: Sequence[Sample]) -> None:
        """Let adaptive KL coefficients follow what was seen; called once after each batch that is trained on."""
        batch = self._batch(samples)
        for step in self.terms:
            if isinstance(step, KLPenalty):
                self._controllers[step.key].update(float(step.estimates(batch).mean()), len(samples))

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        coefficients = {key: controller.coefficient for key, controller in self._controllers.items()}
        return Batch(samples, self.references, coefficients)

    def state(self) -> dict[str, Any]:
        """What changes while a run goes on, for its checkpoints."""
        return {key: controller.state() for key, controller in self._controllers.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            SettingsError: if it is of another shaping.
        """
        if set(state) != set(self._controllers):
            raise SettingsError(
                f"the state of the steps {sorted(self._controllers)}",
                f"that of {sorted(state)}",
                "Use its own shaping.",
            )
        for key, controller in self._controllers.items():
            controller.restore(state[key])

    def as_dict(self) -> dict[str, Any]:
        """The document of `save`."""
        return {
            "format_version": FORMAT_VERSION,
            "steps": [step.model_dump(exclude_none=True) for step in self.terms],
            "references": None if self.references is None else self.references.as_dict(),
            "state": self.state(),
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_json(Path(path), self.as_dict())

    @classmethod
    def load(cls, path: str | Path) -> Shaping:
        """Read what `save` wrote.

        Raises:
            SettingsError: if it is no such file, of a newer version, or was edited into what cannot be meant.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SettingsError(f"a saved shaping at {path}", str(error), "Check the path.") from error
        return cls.from_dict(document)

    @classmethod
    def from_dict(cls, document: Any) -> Shaping:
        """Read the document of `as_dict`.

        Raises:
            SettingsError: see `load`.
        """
        if not isinstance(document, dict) or set(document) != _KEYS:
            came = sorted(document) if isinstance(document, dict) else type(document).__name__
            raise SettingsError(f"a saved shaping with the keys {sorted(_KEYS)}", f"{came}", "Save it again.")
        version = document["format_version"]
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise SettingsError(
                f"a shaping of format version {FORMAT_VERSION} or older", f"{version!r}", "Install a newer rewardsmith."
            )
        references = document["references"]
        try:
            if references is not None:
                scores = {key: tuple(values) for key, values in references["scores"].items()}
                references = References(scores, references["source"])
            found = shaping_from(document["steps"], references=references)
            found.restore(document["state"])
        except (KeyError, TypeError, AttributeError) as error:
            raise SettingsError("a whole saved shaping", f"{error!r}", "Save it again.") from error
        return found


def shaping_from(tables: Sequence[Mapping[str, Any]], *, references: References | None = None) -> Shaping:
    """A shaping from tables of settings, as `[[shaping]]` of a recipe holds them.

    Args:
        tables: {"name": of a step, its settings}, in their order.
        references: see `Shaping`.

    Raises:
        SettingsError: at an unknown name or key, with the nearest known one, or a value that cannot be meant.

    >>> shaping_from([{"name": "clip", "low": -5, "high": 5}]).terms[0].high
    5.0
    """
    if isinstance(tables, Mapping) or not all(isinstance(table, Mapping) for table in tables):
        raise SettingsError(
            "a list of tables of settings, one a step", repr(tables)[:60], "Write [[shaping]] above each."
        )
    steps = []
    for table in tables:
        values = dict(table)
        name = values.pop("name", None)
        kind = STEPS.get(name) if isinstance(name, str) else None
        if kind is None:
            mend = near_miss(str(name), list(STEPS)).replace("Known keys", "Known steps")
            raise SettingsError("a step of shaping with a known `name`", repr(name), mend)
        if kind is ZScore and not {"mean", "sd", "n", "source"} <= set(values):
            raise SettingsError(
                "stored statistics for the step `z_score`: mean, sd, n and source",
                f"only {sorted(values) or 'its name'}",
                "Measure them (ZScore.measured), or take those of a model folder (ZScore.from_contract).",
            )
        steps.append(build(kind, values))
    return Shaping(steps, references=references)


def _equal_groups(rewards: Floats, samples: Sequence[Sample]) -> dict[str, int]:
    """How many prompts have several answers in this call, and of how many of them all rewards are equal, so that nothing is learned; nothing where none has."""
    codes = cluster_codes([sample.group for sample in samples])
    several = [code for code, size in enumerate(np.bincount(codes)) if size > 1]
    if not several:
        return {}
    equal = sum(float(np.ptp(rewards[codes == code])) == 0 for code in several)
    return {"groups": len(several), "equal_groups": equal}


def _check_finite(after: Floats, before: Floats, key: str) -> None:
    bad = np.flatnonzero(~np.isfinite(after))
    if len(bad):
        raise ScoreError(
            f"finite rewards after the step `{key}`",
            f"{len(bad)} that are not, first at row {int(bad[0])} ({before[bad[0]]:g} became {after[bad[0]]})",
            "Check the step's settings, and the fields of the samples that it reads.",
        )
