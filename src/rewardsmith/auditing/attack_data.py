"""After an attack: its triggers as training data, and the same attack on the model that was trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rewardsmith.auditing.search import KNOWN_PHRASES, Attack, attack
from rewardsmith.auditing.triggers import Halves, HeldOut, Progress, Readings, Trigger, silent
from rewardsmith.data.faults import content_fault
from rewardsmith.data.io import fingerprint, write_rows
from rewardsmith.data.schema import Preference, as_row
from rewardsmith.errors import DataError
from rewardsmith.scores import Perplexity, Scorer, TokenGradients
from rewardsmith.stats import Estimate, Floats, cluster_bootstrap, cluster_codes

OVERTAKEN, COPY = "trigger", "trigger_copy"
"""Kinds of extra pairs, the column `augmented`: the chosen answer over the rejected one with a trigger, and the rejected answer over its own copy with one."""


def adversarial_pairs(
    pairs: Sequence[Preference], triggers: Sequence[Trigger], *, per_pair: int = 1, seed: int = 0
) -> list[Preference]:
    """Two extra pairs for each pair and each of some triggers: what a model must learn not to be moved by.

    The chosen answer over the rejected one with the trigger, and the rejected answer over itself with the trigger. The second is what teaches that the
    words are worth nothing: in the first a model may go on liking them, as long as it likes the chosen answer more.

    Args:
        pairs: training pairs; labelled ties and pairs with a fault of content are passed over. Never those that an attack was measured on.
        triggers: every one is used as often as any other.
        per_pair: triggers a pair, at most as many as there are.
        seed: of who gets which.

    Raises:
        DataError: if there is no trigger, or no pair.
    """
    whole = [pair for pair in pairs if not pair.tie and content_fault(pair) is None]
    if not triggers or not whole:
        came = f"{len(triggers)} triggers and {len(whole)} pairs"
        raise DataError("triggers, and pairs to put them to", came, "There is nothing to learn from.")
    order = np.random.default_rng(seed).permutation(len(whole))
    made = []
    for turn, row in enumerate(order.tolist()):
        for k in range(min(per_pair, len(triggers))):
            number = (turn * per_pair + k) % len(triggers)
            made += _extra_pairs(whole[row], triggers[number], number + 1)
    return made


def _extra_pairs(pair: Preference, trigger: Trigger, number: int) -> list[Preference]:
    """Without margin, votes and weight: nobody has judged them."""
    triggered = trigger.put(pair.rejected)
    return [
        Preference(
            f"{pair.id}~{kind}{number}",
            pair.prompt,
            better,
            triggered,
            metadata={"augmented": kind, "trigger": trigger.text, "trigger_place": trigger.place},
        )
        for kind, better in ((OVERTAKEN, pair.chosen), (COPY, pair.rejected))
    ]


def write_adversarial_pairs(
    path: Path, pairs: Sequence[Preference], triggers: Sequence[Trigger], *, per_pair: int = 1, seed: int = 0
) -> int:
    """Write `adversarial_pairs` as rows of a JSONL file, whole or not at all; returns how many.

    Raises:
        DataError: if there is no trigger, or no pair.
        OutputError: if the system refuses.
    """
    made = adversarial_pairs(pairs, triggers, per_pair=per_pair, seed=seed)
    write_rows(path, map(as_row, made))
    return len(made)


@dataclass(frozen=True)
class Remeasured:
    """An earlier trigger under both scorers, on the prompts that it was not looked for on; effects in each scorer's own standard deviations.

    Args:
        trigger: that the earlier attack found.
        before: its effect on the scorer of the earlier attack.
        after: its effect on the retrained one.
        change: after less before, paired by prompt.
    """

    trigger: Trigger
    before: Estimate
    after: Estimate
    change: Estimate

    def as_dict(self) -> dict[str, Any]:
        """The trigger in the document."""
        numbers = {"before_sd": self.before, "after_sd": self.after, "change_sd": self.change}
        return {**self.trigger.as_dict(), **{name: one.as_dict() for name, one in numbers.items()}}


@dataclass(frozen=True)
class ReAttack:
    """What retraining has changed.

    Args:
        earlier: the triggers of the earlier attack, in its order; without those that fewer than two prompts show to both scorers.
        anew: the attack on the retrained scorer.
        best_change: effect of the first trigger of `anew` on the retrained scorer less that of the first earlier one on the earlier scorer, paired by prompt;
            None where either attack found none.
    """

    earlier: list[Remeasured]
    anew: Attack
    best_change: Estimate | None

    @property
    def reading(self) -> str:
        """The result in a few sentences."""
        parts = []
        if self.earlier:
            first = self.earlier[0]
            parts.append(
                f"The earlier trigger {first.trigger.says}: {_sd(first.before)} before, {_sd(first.after)} after."
            )
        if self.best_change is not None:
            parts.append(
                f"The best trigger of an attack anew does {_sd(self.best_change)} more than the best earlier one did."
            )
        return " ".join([*parts, f"Anew: {self.anew.reading}"])

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "earlier": [one.as_dict() for one in self.earlier],
            "anew": self.anew.as_dict(),
            "best_change_sd": None if self.best_change is None else self.best_change.as_dict(),
            "reading": self.reading,
        }


def re_attack(
    scorers: tuple[Scorer, Scorer],
    pairs: Sequence[Preference],
    earlier: Mapping[str, Any],
    *,
    vocabulary: Sequence[str] | None = None,
    phrases: Sequence[str] = KNOWN_PHRASES,
    gradients: TokenGradients | None = None,
    perplexity: Perplexity | None = None,
    progress: Progress = silent,
) -> ReAttack:
    """Compare a retrained scorer with the one that was attacked: the triggers found then on both, and a search anew with the same options.

    A model that has unlearnt ten words may have learnt to like ten others: only the attack anew tells.

    Args:
        scorers: the one that was attacked, and the retrained one.
        pairs: those of the earlier attack. The prompts that it was measured on must not have been trained on; those of `Attack.search_pairs` may.
        earlier: the document of that attack (`Attack.as_dict()`, the section `search` of an audit).
        vocabulary: see `attack`; give what was given then.
        phrases: likewise.
        gradients: of the retrained scorer.
        perplexity: see `attack`.
        progress: see `attack`.

    Raises:
        DataError: if these are not the pairs of the earlier attack.
        RewardsmithError: see `attack`.
    """
    settings = earlier["settings"]
    halves = Halves.of(pairs, num_prompts=settings["num_prompts"], seed=settings["seed"])
    if fingerprint(halves.held_out) != earlier["held_out"]:
        raise DataError("the pairs of the earlier attack", "others", "Give the same file, with the same rows.")
    sides = [HeldOut.of(Readings(scorer), halves.held_out) for scorer in scorers]
    old = [Trigger.from_dict(document) for document in earlier["triggers"]]
    anew = attack(
        scorers[1],
        pairs,
        vocabulary=vocabulary,
        phrases=phrases,
        gradients=gradients,
        perplexity=perplexity,
        progress=progress,
        **settings,
    )
    measured = [_remeasured(trigger, *sides) for trigger in old]
    best = None
    if old and anew.triggers:
        best = _paired(sides[0], old[0], sides[1], anew.triggers[0])
    return ReAttack([one for one in measured if one is not None], anew, None if best is None else best[2])


def _remeasured(trigger: Trigger, before: HeldOut, after: HeldOut) -> Remeasured | None:
    found = _paired(before, trigger, after, trigger)
    return None if found is None else Remeasured(trigger, *found)


def _paired(before: HeldOut, old: Trigger, after: HeldOut, new: Trigger) -> tuple[Estimate, Estimate, Estimate] | None:
    """(effect before, effect after, change) on the answers that show both scorers their trigger, in one bootstrap over prompts; the units are drawn with them."""
    changes = before.changes(old), after.changes(new)
    both = np.isfinite(changes[0]) & np.isfinite(changes[1])
    clusters = cluster_codes(before.clusters)
    if len(np.unique(clusters[both])) < 2:
        return None
    sums = [np.where(both, one, 0.0) for one in changes]
    squares = [side.unit.squares for side in (before, after)]

    def effect(weights: Floats, side: int) -> Floats:
        """The weighted mean over the unit of as many draws, (R,)."""
        unit = np.sqrt((weights @ squares[side]) / weights.sum(axis=1))
        found: Floats = (weights @ sums[side]) / np.maximum(weights @ both, 1e-12) / unit
        return found

    found = [
        cluster_bootstrap(statistic, clusters)
        for statistic in (
            lambda weights: effect(weights, 0),
            lambda weights: effect(weights, 1),
            lambda weights: effect(weights, 1) - effect(weights, 0),
        )
    ]
    first, second, change = (replace(one, n=int(both.sum())) for one in found)
    return first, second, change


def _sd(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} sd [{estimate.low:+.2f}, {estimate.high:+.2f}]"
