"""Alarms of a run, with a false-alarm rate that holds whatever the numbers are distributed like.

The rule: an alarm is raised when each of the last w values of a series lies beyond *all* values of its first B steps (its baseline). If nothing changes, and steps
are independent, every order of B + w values is as likely as any other, so the w last ones are the w highest with probability w! B! / (B + w)! = 1 / C(B + w, w):
for B = 20 and w = 7 one in 888,030. A run looks that many times as it has steps after its baseline, for each series and each side of it, and the probabilities of
all looks add up to at most the promised rate (Boole). Of the w that keep the promise the least is taken.

What it costs: a change is told only when it has lasted w steps and stands clear of the baseline's whole range; what changes inside the baseline is taken for usual.
And learning *is* change: so that an alarm says more than "the policy moved", the change must also be at least as large as `Series.least`, which only lowers the
rate of false alarms.

What is assumed: with no change, steps are exchangeable. That holds for batches of prompts drawn at random and a policy that stands still; where a series drifts slowly
by itself (a curriculum, prompts sorted by length) its alarms tell that drift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from rewardsmith.errors import SettingsError

Side: TypeAlias = Literal["up", "down"]
FALSE_ALARM_RATE = 0.05
BASELINE_STEPS = 20
_LEAST_BASELINE = 5


@dataclass(frozen=True, slots=True)
class Series:
    """A number of every step that alarms look at.

    Args:
        name: of the number; see `StepRow`.
        sides: on which a change is worth an alarm.
        least: the least change of the mean that is told.
        says: what the number is, for a sentence that begins with it.
        cause: what usually is behind it, by side.
        todo: what to do, by side.
        is_relative: whether `least` is a share of the baseline's median.
    """

    name: str
    sides: tuple[Side, ...]
    least: float
    says: str
    cause: Mapping[Side, str]
    todo: Mapping[Side, str]
    is_relative: bool = False


SERIES: tuple[Series, ...] = (
    Series(
        "reward", ("down",), 0.0, "the mean reward",
        {"down": "the policy has become worse at its own aim: a learning rate that is too high, or penalties that outweigh the score"},
        {"down": "look at which term fell; lower the learning rate, or go back to an earlier checkpoint"},
    ),
    Series(
        "score", ("down",), 0.0, "the mean score of the reward model",
        {"down": "a penalty is what the policy follows, or it has broken"},
        {"down": "read some answers; lower the coefficients of the shaping"},
    ),
    Series(
        "length", ("up", "down"), 0.2, "the mean length in characters",
        {
            "up": "the reward pays for length",
            "down": "a length penalty, or a reward model that likes short answers, pays for saying less",
        },
        {
            "up": "audit the reward model's length probes; add a length penalty, or compare length-controlled win rates",
            "down": "read some answers; weaken the length penalty",
        },
        is_relative=True,
    ),
    Series(
        "finished", ("down",), 0.05, "the share of answers that the policy ended itself",
        {"down": "answers run into the limit of tokens: length is paid for, or the end token is unlearned"},
        {"down": "penalise a missing end, or raise the limit of tokens"},
    ),
    Series(
        "kl", ("up",), 5.0, "the KL to the reference in nats an answer",
        {"up": "the policy leaves its reference: the reward model is asked about texts that it was not trained on"},
        {"up": "raise the KL coefficient or lower the learning rate; compare samples with those of the first steps"},
    ),
    Series(
        "length_correlation", ("up",), 0.2, "the rank correlation of reward and length",
        {"up": "among the answers of a step the longer ones are rewarded more and more"},
        {"up": "length is being learned: add a length penalty, or a reward model whose length probes are quiet"},
    ),
    Series(
        "outside_domain", ("up",), 0.1, "the share of texts outside of the reward model's domain",
        {"up": "answers have become unlike those that the reward model is known to judge well"},
        {"up": "do not trust the reward there; label some of these samples and train on them"},
    ),
    Series(
        "distinct_2", ("down",), 0.1, "distinct-2, the variety of word pairs",
        {"down": "answers have become alike: the policy has found one phrase, or one answer, that is paid for"},
        {"down": "read some answers; raise the KL coefficient or the entropy"},
    ),
    Series(
        "repetition", ("up",), 0.1, "the share of an answer that it has said before",
        {"up": "the reward pays for saying things twice"},
        {"up": "add a repetition penalty; audit the reward model's repetition probes"},
    ),
    Series(
        "equal_groups", ("up",), 0.25, "the share of prompts whose answers all have one reward",
        {"up": "the answers to a prompt have become the same, or the reward is at its bound"},
        {"up": "nothing is learned from such prompts: raise the temperature of the rollouts, or loosen clipping"},
    ),
)  # fmt: skip
"""What a watch looks at, with the changes that it tells."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A change that is more than chance and large enough to be told.

    Args:
        name: of the series, or of the probe.
        side: in which direction.
        step: at which it was told.
        since: the first step of the run of values beyond the baseline.
        before: median of the baseline.
        after: mean of the last values.
        probability: of such a run of values, if nothing had changed, at one look.
        message: what changed, since when, in numbers, in one sentence.
        cause: what usually is behind it.
        todo: what to do.
    """

    name: str
    side: Side
    step: int
    since: int
    before: float
    after: float
    probability: float
    message: str
    cause: str
    todo: str

    def __str__(self) -> str:
        """All of it, as it is printed."""
        return f"{self.message} Likely cause: {self.cause}. What to do: {self.todo}."

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class AlarmRule:
    """How long a run of values beyond the baseline has to be.

    Args:
        num_steps: of the run that the rate is promised for.
        baseline_steps: B.
        window: w.
        num_looks: series times sides times windows: how often a run may be wrong.
        bound: num_looks / C(B + w, w): at most so many runs without a change have any alarm.
    """

    num_steps: int
    baseline_steps: int
    window: int
    num_looks: int
    bound: float

    @property
    def probability(self) -> float:
        """Of one look, if nothing has changed."""
        return 1 / math.comb(self.baseline_steps + self.window, self.window)


def alarm_rule(
    num_steps: int, *, num_sides: int, rate: float = FALSE_ALARM_RATE, baseline_steps: int | None = None
) -> AlarmRule | None:
    """The shortest window that keeps the promise; None where the run is too short to keep it by any.

    Args:
        num_steps: of the run.
        num_sides: series, one that is looked at on both sides counted twice.
        rate: promised share of runs without a change that have any alarm.
        baseline_steps: B; by default 20, or a fifth of a run of fewer than 100 steps, but 5 at least.

    Raises:
        SettingsError: if a number is out of its range.

    >>> alarm_rule(500, num_sides=12).window  # (500 - 20 - 6 + 1) * 12 / C(26, 6) = 0.025
    6
    """
    if not 0 < rate < 1:
        raise SettingsError("a false-alarm rate between 0 and 1", f"{rate:g}", "Write for example 0.05.")
    if num_steps < 1 or num_sides < 1:
        raise SettingsError("at least one step and one series", f"{num_steps} and {num_sides}", "Raise them.")
    if baseline_steps is None:
        baseline_steps = min(BASELINE_STEPS, max(_LEAST_BASELINE, num_steps // 5))
    if baseline_steps < _LEAST_BASELINE:
        raise SettingsError(
            f"a baseline of at least {_LEAST_BASELINE} steps", f"{baseline_steps}", "Raise baseline_steps."
        )
    for window in range(1, num_steps - baseline_steps + 1):
        num_looks = num_sides * (num_steps - baseline_steps - window + 1)
        bound = num_looks / math.comb(baseline_steps + window, window)
        if bound <= rate:
            return AlarmRule(num_steps, baseline_steps, window, num_looks, bound)
    return None


class Alarms:
    """Looks at the series of a run as it goes; each side of each series is told once.

    Args:
        rule: how long a run of values has to be; None: no alarm is ever raised.
        series: what is looked at.
    """

    def __init__(self, rule: AlarmRule | None, series: Sequence[Series] = SERIES) -> None:
        """Nothing has been seen."""
        self.rule, self.series = rule, tuple(series)
        self._values: dict[str, list[float]] = {one.name: [] for one in self.series}
        self._steps: dict[str, list[int]] = {one.name: [] for one in self.series}
        self._told: set[tuple[str, Side]] = set()

    def look(self, step: int, values: Mapping[str, float | None]) -> list[Alarm]:
        """Take in the numbers of a step; what is to be told of them.

        Args:
            step: of the run.
            values: by the name of the series; a series that has none is not looked at in this step.
        """
        found = []
        for series in self.series:
            value = values.get(series.name)
            if value is None:
                continue
            self._values[series.name].append(float(value))
            self._steps[series.name].append(step)
            if self.rule is None or len(self._values[series.name]) < self.rule.baseline_steps + self.rule.window:
                continue
            for side in series.sides:
                if (series.name, side) not in self._told and (alarm := self._alarm(series, side, self.rule)):
                    self._told.add((series.name, side))
                    found.append(alarm)
        return found

    def _alarm(self, series: Series, side: Side, rule: AlarmRule) -> Alarm | None:
        sign = 1.0 if side == "up" else -1.0
        values = np.array(self._values[series.name])
        baseline, window = values[: rule.baseline_steps], values[-rule.window :]
        reach = float((sign * baseline).max())
        # Not `>=`: equal values are no evidence of a change, and a series that never moves must never be told.
        if not (sign * window > reach).all():
            return None
        before, after = float(np.median(baseline)), float(window.mean())
        change = sign * (after - before)
        if series.is_relative:
            change = change / abs(before) if before else math.inf
        if change < series.least:
            return None
        later = values[rule.baseline_steps :]
        first = len(later) - int(np.argmin((sign * later > reach)[::-1])) if (sign * later <= reach).any() else 0
        steps = self._steps[series.name]
        step, since = steps[-1], steps[rule.baseline_steps + first]
        verb = "rose" if side == "up" else "fell"
        message = (
            f"Step {step}: {series.says} {verb} from {before:.3g} to {after:.3g}: since step {since} every step lies "
            f"{'above' if side == 'up' else 'below'} all of the first {rule.baseline_steps} "
            f"(by chance once in {1 / rule.probability:,.0f} looks)."
        )
        return Alarm(
            name=series.name,
            side=side,
            step=step,
            since=since,
            before=before,
            after=after,
            probability=rule.probability,
            message=message,
            cause=series.cause[side],
            todo=series.todo[side],
        )


def num_sides(series: Sequence[Series]) -> int:
    """Series, one that is looked at on both sides counted twice."""
    return sum(len(one.sides) for one in series)


def with_least(series: Sequence[Series], least: Mapping[str, float]) -> tuple[Series, ...]:
    """The series with other least changes, by name; `math.inf` is never told.

    Raises:
        SettingsError: at a name that is none, or a number that is not at least 0.
    """
    names = [one.name for one in series]
    for name, value in least.items():
        if name not in names or not value >= 0:
            raise SettingsError(
                f"least changes of at least 0 of {', '.join(names)}", f"{name}: {value!r}", "Mend `least`."
            )
    return tuple(replace(one, least=least.get(one.name, one.least)) for one in series)
