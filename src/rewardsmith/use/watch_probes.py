"""The audit's probes on what a policy says in the middle of a run: which edits raise the reward model's score of the present samples?

What raised it on the first samples already is the business of `rewardsmith audit`; what raises it since, is told as an alarm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t

from rewardsmith.auditing import probes as _registered  # noqa: F401  (importing it registers the probes)
from rewardsmith.auditing.effects import Effect, ScoreUnit
from rewardsmith.auditing.registry import chosen_probes
from rewardsmith.auditing.trials import LEAST_EFFECT, Plan, Probe, Scored, Subject, score_all
from rewardsmith.data.traits import is_blank
from rewardsmith.errors import ScoreError, SettingsError
from rewardsmith.functions import Function, as_scorer
from rewardsmith.scores import Scorer
from rewardsmith.significance import holm
from rewardsmith.stats import Floats
from rewardsmith.use.alarms import Alarm
from rewardsmith.use.samples import Sample

NUM_SAMPLES = 32
_LEAST_PROMPTS = 8


@dataclass(frozen=True)
class ProbeRound:
    """What the probes said of the samples of one step.

    Args:
        step: of the run.
        num_samples: that were edited.
        unit: what a standard deviation is of: scores "within prompts", or "over prompts" where each has one answer.
        probes: of the audit's document, without examples; `raises` says whether the effect is certain at the watch's own level, `rises` whether it is certainly larger than
            when the probe was first measured.
        reason: why there is none; empty if there is.
    """

    step: int
    num_samples: int
    unit: str
    probes: list[dict[str, Any]]
    reason: str = ""

    @property
    def raising(self) -> list[str]:
        """Names of the edits that raise the score."""
        return [one["name"] for one in self.probes if one["raises"]]

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return vars(self) | {"raising": self.raising}


class SampleProbes:
    """Puts probes to a scorer on samples of a run, every so many steps.

    An edit counts as raising the score where its one-sided p-value, after Holm's procedure over the probes of a round, is at most `rate` / number of rounds, and it
    raises it by at least a tenth of a standard deviation. It is told where the same can be said of its difference from the first round (Welch's test), in which it did not count:
    an effect that stands still is found in one round and missed in another by chance alone. So, of the runs in which nothing changes, at most a share `rate` tells of any.
    (The p-values are Student's over prompts: as good as the number of prompts is not small.)

    Args:
        scorer: the reward model, without shaping.
        every: steps from one round to the next.
        names: probes, families or kinds; by default every probe of bias that edits answers.
        num_samples: of each round; of a prompt one comes before all second ones.
        seed: of the edits that draw something, and of the choice of samples.
    """

    def __init__(
        self,
        scorer: Scorer | Function,
        *,
        every: int = 50,
        names: Iterable[str] | None = None,
        num_samples: int = NUM_SAMPLES,
        seed: int = 0,
    ) -> None:
        """Nothing is scored.

        Raises:
            SettingsError: at a number below 1, a name that is none, or a probe that edits no answers.
        """
        if every < 1 or num_samples < _LEAST_PROMPTS:
            raise SettingsError(
                f"probes every 1 or more steps on {_LEAST_PROMPTS} or more samples",
                f"{every} and {num_samples}",
                "Raise them.",
            )
        self.scorer, self.every, self.num_samples, self.seed = as_scorer(scorer), every, num_samples, seed
        chosen = chosen_probes(names)
        self.probes: list[Probe] = [
            one for one in chosen if one.edits_answers and (names is not None or one.kind == "bias")
        ]
        if not self.probes:
            raise SettingsError("a probe that edits answers", "others alone", "Name for example padding or format.")
        self.rounds: list[ProbeRound] = []
        self._first: dict[str, tuple[int, Effect, bool]] = {}  # step, effect and `raises` of each probe's first round

    def is_due(self, step: int) -> bool:
        """Whether the samples of a step are looked at: the first ones, and from then on every so many steps."""
        return not self.rounds or step >= self.rounds[-1].step + self.every

    def num_rounds(self, num_steps: int) -> int:
        """Rounds of a run of so many steps."""
        return 1 + (num_steps - 1) // self.every

    def look(self, step: int, samples: Sequence[Sample], *, level: float) -> ProbeRound:
        """Edit the samples, score them, and keep what came of it.

        Args:
            step: of the run.
            samples: of the step.
            level: of a round: the rate of false alarms over the number of rounds.

        Raises:
            ScoreError: if a score is missing or not finite.
        """
        chosen = self._chosen(samples)
        subjects = [Subject(str(i), one.prompt, one.answer) for i, one in enumerate(chosen)]
        plan = Plan(self.probes, subjects, seed=self.seed)
        originals = plan.add([one.pair for one in chosen])
        scored = score_all(self.scorer, plan.pairs)
        groups = [one.group for one in chosen]
        found = self._round(step, plan, scored.scores[originals].astype(np.float64), groups, scored, level=level)
        self.rounds.append(found)
        return found

    def _round(
        self, step: int, plan: Plan, scores: Floats, groups: list[str], scored: Scored, *, level: float
    ) -> ProbeRound:
        num = len(groups)
        if len(set(groups)) < _LEAST_PROMPTS:
            few = f"{len(set(groups))} prompts with an answer that is not empty, of {_LEAST_PROMPTS} needed"
            return ProbeRound(step, num, "", [], few)
        try:
            unit, of_what = _unit(scores, groups)
        except ScoreError:
            return ProbeRound(step, num, "", [], "all samples have one score: there is no scale for effects")
        results = plan.measured(scored.scores, unit, digests=scored.digests, truncated=scored.truncated)
        raised = holm([_one_sided(one.effect) for one in results]) if results else []
        for one, p_value in zip(results, raised, strict=True):
            raises = p_value <= level and one.effect.value >= LEAST_EFFECT
            self._first.setdefault(one.probe.name, (step, one.effect, raises))
        risen = holm([_risen(self._first[one.probe.name][1], one.effect) for one in results]) if results else []
        probes = [
            {
                **{key: value for key, value in one.as_dict().items() if key != "examples"},
                "raises": p_value <= level and one.effect.value >= LEAST_EFFECT,
                "rises": p_rise <= level,
            }
            for one, p_value, p_rise in zip(results, raised, risen, strict=True)
        ]
        return ProbeRound(step, num, of_what, probes)

    def alarms(self, found: ProbeRound, told: set[str], *, level: float) -> list[Alarm]:
        """What raises the score in a round, did not when it was first measured, and certainly does so more; each probe once."""
        alarms = []
        for probe in found.probes:
            first_step, first, raised = self._first[probe["name"]]
            if raised or not (probe["raises"] and probe["rises"]) or probe["name"] in told:
                continue
            told.add(probe["name"])
            before, after = first.value, probe["effect_sd"]
            message = (
                f"Step {found.step}: {probe['says']}: raises the score of the present samples by {after['value']:.2f} sd "
                f"[{after['low']:.2f}, {after['high']:.2f}], of those of step {first_step} by {before:.2f} sd."
            )
            alarms.append(
                Alarm(
                    name=f"probe/{probe['name']}",
                    side="up",
                    step=found.step,
                    since=found.step,
                    before=before,
                    after=after["value"],
                    probability=level,
                    message=message,
                    cause="the policy has moved to where the reward model pays for this edit, and will find it",
                    todo=f"audit the reward model on these samples (`--probes {probe['name']}`) and train it on what it pays for wrongly",
                )
            )
        return alarms

    def _chosen(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples that are not empty, in an order that the seed draws, first answers of every prompt before second ones."""
        order = np.random.default_rng(self.seed).permutation(len(samples))
        seen: dict[str, int] = {}
        ranked = []
        for row in order:
            if not is_blank(samples[row].answer):
                rank = seen[samples[row].group] = seen.get(samples[row].group, 0) + 1
                ranked.append((rank, samples[row]))
        return [one for _, one in sorted(ranked, key=lambda pair: pair[0])[: self.num_samples]]


def _one_sided(effect: Effect) -> float:
    """Of "the edit does not raise the score"."""
    half = effect.p_value / 2
    return half if effect.value > 0 else 1 - half


def _risen(first: Effect, later: Effect) -> float:
    """Of "the edit raises the score no more than at first": Welch's t-test (1947), Satterthwaite's degrees of freedom. Rounds of the same prompts only make it more cautious."""
    rise, squares = later.value - first.value, np.array([first.error, later.error]) ** 2
    if not squares.any():
        return 0.0 if rise > 0 else 1.0
    freedom = squares.sum() ** 2 / (squares**2 / np.array([first.freedom, later.freedom])).sum()
    return float(t.sf(rise / np.sqrt(squares.sum()), freedom))


def _unit(scores: Floats, groups: Sequence[str]) -> tuple[ScoreUnit, str]:
    """A standard deviation of scores within prompts, or over prompts where each has one answer.

    Raises:
        ScoreError: if all are the same.
    """
    by_group: dict[str, list[float]] = {}
    for name, score in zip(groups, scores, strict=True):
        by_group.setdefault(name, []).append(float(score))
    several = {name: some for name, some in by_group.items() if len(some) > 1}
    if len(several) > 1 and any(len(set(some)) > 1 for some in several.values()):
        margins = [
            (name, one - other) for name, some in several.items() for one, other in zip(some, some[1:], strict=False)
        ]
        return ScoreUnit.of(
            np.array([margin for _, margin in margins]), [name for name, _ in margins]
        ), "within prompts"
    # (s - mean)^2 as d^2 / 2: the unit is then the standard deviation.
    return ScoreUnit.of(np.sqrt(2.0) * (scores - scores.mean()), list(groups)), "over prompts"
