"""A run of reinforcement learning, watched: a row of numbers a step, alarms where they change, and the audit's probes on what the policy says.

    watch = Watch(num_steps=500, on_alarm=print)
    train_ppo(settings, reward, prompts, on_step=watch.observe)
    watch.write(Path("runs/ppo"))

A reward function that a trainer calls tells the watch by `on_rewards=watch.record`, and `watch.flush(step)` ends a step; `rewardsmith.model.watching` does that for TRL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rewardsmith.data import io
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.scores import DomainDetector
from rewardsmith.stats import mean
from rewardsmith.storage import write_json
from rewardsmith.use.alarms import FALSE_ALARM_RATE, SERIES, Alarm, Alarms, Series, alarm_rule, num_sides, with_least
from rewardsmith.use.sample_statistics import NUMBERS, StepRow, joined, step_row
from rewardsmith.use.samples import Rewards, Sample
from rewardsmith.use.watch_probes import SampleProbes

LOG, DOCUMENT, PLOT = "watch.jsonl", "watch.json", "watch.png"


class Watch:
    """Watches one run.

    Of the runs in which nothing changes, at most a share `false_alarm_rate` has any alarm within `num_steps` steps; see `alarms` for how, and for what is assumed. Where
    there are probes, one half of the rate is theirs. In a longer run the rate grows in proportion.

    Args:
        num_steps: of the run.
        false_alarm_rate: of a run.
        baseline_steps: that later ones are compared with; by default 20, fewer in a short run.
        least: the least changes that are told, by the name of the series, instead of those of `alarms.SERIES`.
        domain: of the reward model.
        probes: of the audit, put to samples every so many steps.
        on_alarm: is told of each alarm, e.g. `print`.
        series: what alarms look at.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        false_alarm_rate: float = FALSE_ALARM_RATE,
        baseline_steps: int | None = None,
        least: Mapping[str, float] | None = None,
        domain: DomainDetector | None = None,
        probes: SampleProbes | None = None,
        on_alarm: Callable[[Alarm], object] | None = None,
        series: Sequence[Series] = SERIES,
    ) -> None:
        """Nothing has been seen.

        Raises:
            SettingsError: if a number is out of its range, or a series unknown.
        """
        unknown = [one.name for one in series if one.name not in NUMBERS and not one.name.startswith("terms/")]
        if unknown:
            raise SettingsError(f"series among {', '.join(NUMBERS)} or terms/NAME", f"{unknown}", "Mend the name.")
        if not 0 < false_alarm_rate < 1:
            raise SettingsError(
                "a false-alarm rate between 0 and 1", f"{false_alarm_rate:g}", "Write for example 0.05."
            )
        chosen = with_least(series, least or {})
        share = false_alarm_rate / 2 if probes is not None else false_alarm_rate
        self.num_steps, self.false_alarm_rate = num_steps, false_alarm_rate
        self.domain, self.probes, self.on_alarm = domain, probes, on_alarm
        rule = alarm_rule(num_steps, num_sides=num_sides(chosen), rate=share, baseline_steps=baseline_steps)
        self.rule = rule
        self._alarms = Alarms(rule, chosen)
        self._probe_rate = share if probes is not None else 0.0
        self._probe_level = share / probes.num_rounds(num_steps) if probes is not None else 0.0
        self._probes_told: set[str] = set()
        self._parts: list[tuple[list[Sample], Rewards]] = []
        self.rows: list[StepRow] = []
        self.alarms: list[Alarm] = []

    def observe(self, step: int, samples: Sequence[Sample], rewards: Rewards) -> list[Alarm]:
        """Take in one step; returns its alarms.

        Raises:
            DataError: if there is no sample, a reward is missing or not finite, or the step is not after the last one.
            ScoreError: if the probes' scorer fails.
        """
        if self.rows and step <= self.rows[-1].step:
            raise DataError(
                f"a step after {self.rows[-1].step}", f"{step}", "Hand over each step once, all its samples together."
            )
        row = step_row(step, samples, rewards, domain=self.domain)
        self.rows.append(row)
        found = self._look(row)
        if self.probes is not None and self.probes.is_due(step):
            seen = self.probes.look(step, samples, level=self._probe_level)
            found += self.probes.alarms(seen, self._probes_told, level=self._probe_level)
        self.alarms += found
        for alarm in found:
            if self.on_alarm is not None:
                self.on_alarm(alarm)
        return found

    def record(self, samples: Sequence[Sample], rewards: Rewards) -> None:
        """Keep a part of a step until `flush`; what reward functions call as `on_rewards`."""
        self._parts.append((list(samples), rewards))

    def flush(self, step: int) -> list[Alarm]:
        """Take in what was recorded as one step; nothing happens where nothing was (a step that learned from earlier samples)."""
        if not self._parts:
            return []
        samples, rewards = joined(self._parts)
        self._parts = []
        return self.observe(step, samples, rewards)

    def forget(self) -> None:
        """Leave out what was recorded and not flushed: samples of an evaluation."""
        self._parts = []

    def _look(self, row: StepRow) -> list[Alarm]:
        return self._alarms.look(row.step, {one.name: row.value(one.name) for one in self._alarms.series})

    @property
    def can_alarm(self) -> bool:
        """Whether the run is long enough for an alarm of a series at the promised rate."""
        return self.rule is not None

    @property
    def alarm_names(self) -> list[str]:
        """The names that an alarm of this watch can have."""
        probes = [] if self.probes is None else [f"probe/{one.name}" for one in self.probes.probes]
        return [one.name for one in self._alarms.series] + probes

    @property
    def promise(self) -> str:
        """What the alarms promise, a sentence for the series and, where there are probes, one for them."""
        parts = []
        if self.rule is not None:
            parts.append(
                f"An alarm means {self.rule.window} steps in a row beyond all of the first {self.rule.baseline_steps}; of runs of "
                f"{self.num_steps} steps without a change at most {self.rule.bound:.1%} have one."
            )
        else:
            rate = self.false_alarm_rate - self._probe_rate
            parts.append(f"No alarm will come: {self.num_steps} steps are too few for a false-alarm rate of {rate:g}.")
        if self.probes is not None:
            parts.append(f"Of probes, at most {self._probe_rate:.1%} of such runs have an alarm.")
        return " ".join(parts)

    def restore(self, rows: Sequence[StepRow]) -> None:
        """Go on from the rows of an interrupted run, as if it had been watched here; alarms that were told are not told again.

        Probes begin anew: rows do not hold their rounds, so the next one is their first.

        Raises:
            DataError: if something has been seen already.
        """
        if self.rows:
            raise DataError("a watch that has seen nothing", f"{len(self.rows)} steps", "Make another one.")
        for row in rows:
            self.rows.append(row)
            self.alarms += self._look(row)

    def summary(self) -> dict[str, Any]:
        """Each number over the baseline and over the last steps, as Estimates of its mean over steps; what too few steps have is left out."""
        size = self.rule.baseline_steps if self.rule else max(1, len(self.rows) // 4)
        found = {}
        for name in (*NUMBERS, *(f"terms/{name}" for name in dict.fromkeys(n for row in self.rows for n in row.terms))):
            values = np.array([value for row in self.rows if (value := row.value(name)) is not None], np.float64)
            if len(values) < 2 * size:
                continue
            parts = {"first": values[:size], "last": values[-size:]}
            found[name] = {key: mean(part, np.arange(len(part))).as_dict() for key, part in parts.items()}
        return found

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "num_steps": self.num_steps,
            "num_rows": len(self.rows),
            "false_alarm_rate": self.false_alarm_rate,
            "rule": None if self.rule is None else asdict(self.rule),
            "promise": self.promise,
            "alarms": [alarm.as_dict() for alarm in self.alarms],
            "summary": self.summary(),
            "probes": [] if self.probes is None else [one.as_dict() for one in self.probes.rounds],
        }

    def write(self, folder: Path) -> None:
        """Write watch.jsonl (a row a step), watch.json (the document) and, where matplotlib is there and a row is, watch.png.

        Raises:
            OutputError: if the system refuses.
        """
        from rewardsmith.errors import MissingExtraError
        from rewardsmith.use.watch_plots import watch_panels

        self.write_rows(folder / LOG)
        write_json(folder / DOCUMENT, {"verb": "watch", **self.as_dict()})
        if self.rows:
            baseline = None if self.rule is None else self.rule.baseline_steps
            try:
                watch_panels(self.rows, self.alarms, folder / PLOT, baseline_steps=baseline)
            except MissingExtraError:
                return  # a plot is no reason to lose a run's numbers

    def write_rows(self, path: Path) -> None:
        """Write the rows alone, whole or not at all."""
        io.write_rows(path, [asdict(row) for row in self.rows])


def read_rows(path: Path, *, up_to_step: int | None = None) -> list[StepRow]:
    """The rows that `Watch.write_rows` wrote.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        rows = [StepRow(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"a readable {path.name}", f"{error}", "Remove it; the watch then begins anew.") from error
    return [row for row in rows if up_to_step is None or row.step <= up_to_step]
