"""What the answers look like that best-of-n selects: a bias that a probe no longer finds in the data may still steer a selection.

On the data of an audit a bias that is gone, one that has moved elsewhere and one that was turned around look alike (arXiv 2605.27996). So every trait of the
surface is followed as n grows, within prompts and for all traits at once, and the probes are put to the selected answers as well.

Legend: `G` groups, `P` candidates, `T` traits, `L` values of n.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardsmith.auditing.best_of_n import best_of, chances, powers, within
from rewardsmith.auditing.changes import Change, changes
from rewardsmith.auditing.draws import text_code
from rewardsmith.auditing.effects import Effect, ScoreUnit, holm_confidences
from rewardsmith.auditing.pools import ORIGINAL, Pool
from rewardsmith.auditing.resampling import Resamples
from rewardsmith.auditing.trials import LEAST_EFFECT, Plan, Probe, ProbeResult, Scored, Subject
from rewardsmith.data.schema import Pair, prompt_key
from rewardsmith.data.traits import markdown_marks, traits
from rewardsmith.significance import holm
from rewardsmith.stats import Estimate, Floats

# Openings that agree, praise or announce, whatever was asked.
_OPENING = re.compile(
    r"\W*(?:yes\b|sure\b|certainly\b|absolutely\b|of course\b|definitely\b|great question|good question|great idea|i'?d be happy|happy to help|"
    r"thought process:|solution\b|answer:|here(?: is|'s| are)\b)",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")
_RUN = 3  # words


def opens_agreeably(answer: str) -> bool:
    """Whether an answer begins with words that would fit any prompt.

    >>> opens_agreeably("Yes! It is 4."), opens_agreeably("It is 4.")
    (True, False)
    """
    return _OPENING.match(answer) is not None


def repetition(answer: str) -> float:
    """The share of runs of three words that stood in the answer before; 0 for fewer than four words.

    >>> repetition("a b c a b c")  # abc bca cab abc
    0.25
    """
    words = _WORD.findall(answer.lower())
    runs = [tuple(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if len(runs) > 1 else 0.0


TRAITS: dict[str, Callable[[str], float]] = {
    "length": len,
    "markdown marks": markdown_marks,
    "has a list": lambda answer: traits(answer).has_list,
    "exclamation marks": lambda answer: answer.count("!"),
    "repetition": repetition,
    "opens agreeably": opens_agreeably,
    "apologises": lambda answer: traits(answer).has_apology,
    "refuses": lambda answer: traits(answer).has_refusal,
}
_ANY_COPY, _COPY = "edited copy", "copy: "


def trait_table(pool: Pool) -> tuple[list[str], Floats]:
    """Traits of every candidate and, where the pool has edited copies, whether it is one, of which edit and of any: names and (P, T)."""
    candidates = pool.candidates()
    columns = {name: [float(trait(one.answer)) for one in candidates] for name, trait in TRAITS.items()}
    kinds = sorted({one.kind for one in candidates} - {ORIGINAL})
    if kinds:
        columns[_ANY_COPY] = [float(one.kind != ORIGINAL) for one in candidates]
    columns |= {_COPY + kind: [float(one.kind == kind) for one in candidates] for kind in kinds}
    return list(columns), np.array(list(columns.values())).T


@dataclass(frozen=True)
class TraitChange:
    """One trait of what one scorer selects.

    Args:
        selector: whose selection it is.
        trait: its name.
        values: its mean at each n of `ns`, in its own unit: characters, marks, a share.
        ns: from 1 to n_max.
        change: from n = 1 to n_max, in standard deviations of the trait within prompts.
        excess: the same beyond what the gold scorer selects; None for gold itself.
        adjusted: the excess with its interval after Holm's procedure; None for gold and controls, which are not tested.
        p_adjusted: of the excess, two-sided.
    """

    selector: str
    trait: str
    values: list[Estimate]
    ns: list[int]
    change: Estimate
    excess: Estimate | None
    adjusted: Estimate | None
    p_adjusted: float | None

    @property
    def is_copy(self) -> bool:
        """Whether the trait is to be an edited copy."""
        return self.trait == _ANY_COPY or self.trait.startswith(_COPY)

    @property
    def flagged(self) -> bool:
        """Whether selection moves the trait further than gold does: the adjusted excess excludes 0, is at least 0.1 sd, and points the way of a certain change.

        An excess without such a change is a scorer that follows gold less closely, and no bias of its own. To pass edited copies by is no fault.
        """
        if self.adjusted is None or abs(self.adjusted.value) < LEAST_EFFECT:
            return False
        down = self.adjusted.high < 0 and self.change.high < 0 and not self.is_copy
        return down or (self.adjusted.low > 0 and self.change.low > 0)

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "selector": self.selector,
            "trait": self.trait,
            "by_n": [{"n": n, "value": value.as_dict()} for n, value in zip(self.ns, self.values, strict=True)],
            "change_sd": self.change.as_dict(),
            "excess_over_gold_sd": None if self.excess is None else self.excess.as_dict(),
            "excess_over_gold_sd_adjusted": None if self.adjusted is None else self.adjusted.as_dict(),
            "p_adjusted": self.p_adjusted,
            "flagged": self.flagged,
        }


def trait_changes(
    pool: Pool,
    scores: Mapping[str, Floats],
    resamples: Resamples,
    *,
    gold: str,
    tested: Sequence[str],
    n_max: int,
) -> tuple[list[TraitChange], list[str]]:
    """How the surface of the selected answer changes as n grows; and the traits that differ within no prompt, of which nothing can be said.

    Args:
        pool: groups of at least n_max candidates.
        scores: (P,) of each selector, by name, that of gold among them.
        resamples: of the groups' prompts.
        gold: the name of gold.
        tested: the selectors of which Holm's procedure is asked, over all of their traits at once.
        n_max: the end of the curve.
    """
    names, table = trait_table(pool)
    starts, ns = pool.starts, powers(n_max)
    squares = within(table, starts)
    there = np.asarray(squares.any(axis=0))
    constant = [name for name, differs in zip(names, there, strict=True) if not differs]
    names, table, squares = [one for one in names if one not in constant], table[:, there], squares[:, there]
    units = [ScoreUnit(squares[:, t], resamples.names) for t in range(len(names))]
    curves = {name: best_of(values, table, starts, ns) for name, values in scores.items()}  # (G, T, L)
    gains = {name: curve[:, :, -1] - curve[:, :, 0] for name, curve in curves.items()}  # (G, T)
    rows: list[tuple[str, str, list[Estimate], Effect, Effect | None]] = []
    for selector, curve in curves.items():
        means = resamples.estimates(curve.reshape(len(curve), -1))
        for t, name in enumerate(names):
            values = means[t * len(ns) : (t + 1) * len(ns)]
            change = Effect.of(gains[selector][:, t], resamples.names, units[t])
            beyond = gains[selector][:, t] - gains[gold][:, t]
            excess = None if selector == gold else Effect.of(beyond, resamples.names, units[t])
            rows.append((selector, name, values, change, excess))
    asked = [excess for selector, _, _, _, excess in rows if excess is not None and selector in tested]
    adjusted = iter(
        zip(
            holm_confidences([one.p_value for one in asked]),
            holm([one.p_value for one in asked]),
            strict=True,
        )
    )
    found = []
    for selector, name, values, change, excess in rows:
        interval, p_adjusted = None, None
        if excess is not None and selector in tested:
            confidence, p_adjusted = next(adjusted)
            interval = excess.interval(confidence)
        beyond_gold = None if excess is None else excess.interval()
        found.append(TraitChange(selector, name, values, ns, change.interval(), beyond_gold, interval, p_adjusted))
    return found, constant


def selected_subjects(pool: Pool, scores: Floats, n: int, *, groups: Sequence[int], seed: int) -> list[Subject]:
    """The answer that best-of-n selects in some groups, as subjects of probes; where n is below N, one drawn by its chance to be selected.

    Args:
        pool: of the candidates.
        scores: of the selector, (P,).
        n: of best-of-n; 1 is a candidate taken blindly, the same one for every selector.
        groups: which ones.
        seed: of the draws.
    """
    starts, subjects = pool.starts, []
    for g in groups:
        group = pool.groups[g]
        own = scores[starts[g] : starts[g + 1]]
        weights = chances(own[None, :], [n])[0, :, 0]
        key = text_code(prompt_key(group.prompt), group.id)
        place = np.random.default_rng([seed, key]).choice(len(own), p=weights / weights.sum())
        subjects.append(Subject(str(g), group.prompt, group.answers[place].answer))
    return subjects


@dataclass(frozen=True)
class ProbeChanges:
    """The probes put to blindly taken answers and to selected ones, by the scorer that selected them.

    Args:
        selector: its name.
        probes: one change a probe that applied to both answers of some prompt.
        num_groups: whose answers were probed.
    """

    selector: str
    probes: list[Change]
    num_groups: int

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "selector": self.selector,
            "num_groups": self.num_groups,
            "probes": [one.as_dict() for one in self.probes],
            "grown": [one.name for one in self.probes if one.has_grown],
            "shrunk": [one.name for one in self.probes if one.has_shrunk],
        }


def probe_changes(
    score: Callable[[Sequence[Pair]], Scored],
    selector: str,
    subjects: tuple[Sequence[Subject], Sequence[Subject]],
    *,
    probes: Sequence[Probe],
    unit: ScoreUnit,
    seed: int,
) -> ProbeChanges:
    """The effect of every probe on selected answers beside that on blindly taken ones, paired by prompt.

    Args:
        score: of the selector.
        selector: its name.
        subjects: answers taken blindly, and the selected ones of the same groups.
        probes: that edit answers.
        unit: of the selector's scores.
        seed: of the edits.
    """
    sides = []
    for side in subjects:
        plan = Plan([probe for probe in probes if probe.edits_answers], side, seed=seed)
        scored = score(plan.pairs)
        sides.append(plan.measured(scored.scores, unit, digests=scored.digests, truncated=scored.truncated))
    before, after = sides
    both = {result.probe.name for result in before} & {result.probe.name for result in after}
    documents = [
        {
            "probes": [
                {"name": result.probe.name, "flagged": result.flagged, "direction": result.probe.direction}
                for result in side
            ]
        }
        for side in sides
    ]
    rows = [_rows([result for result in side if result.probe.name in both], unit) for side in sides]
    there = {(row["probe"], row["id"]) for row in rows[0]}
    shared = {(row["probe"], row["cluster"]) for row in rows[1] if (row["probe"], row["id"]) in there}
    # One prompt says nothing of how prompts differ, and `changes` wants one probe at least.
    comparable = any(count > 1 for count in Counter(name for name, _ in shared).values())
    found = changes(documents[0], rows[0], documents[1], rows[1]) if comparable else []
    return ProbeChanges(selector, found, len(subjects[0]))


def _rows(results: Sequence[ProbeResult], unit: ScoreUnit) -> list[dict[str, Any]]:
    """What `changes` reads of a contrast."""
    return [
        {
            "probe": result.probe.name,
            "id": contrast.id,
            "cluster": contrast.cluster,
            "stratum": contrast.stratum,
            "effect_sd": float(difference) / unit.sd,
        }
        for result in results
        for contrast, difference in zip(result.contrasts, result.differences, strict=True)
    ]
