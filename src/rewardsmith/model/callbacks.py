"""What watches a training run: progress for people, the dev part for the choice of the checkpoint, the gradient guard."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewardsmith import launched
from rewardsmith.model.guards import GradientGuard, StuckGuard
from rewardsmith.model.moving_average import WeightAverage
from rewardsmith.storage import write_text

DEV_HISTORY = "dev.jsonl"
_LINE_SECONDS = 30.0


class ContinueCallback(TrainerCallback):
    """Calls back when the Trainer stands where its first step begins: at 0, or at the step of the checkpoint that it goes on from."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        """Keep whom to call."""
        self.go_on = go_on

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The state is loaded, and what the Trainer sums up stands at 0."""
        self.go_on()


class AverageCallback(TrainerCallback):
    """Takes every step's weights into their moving average."""

    def __init__(self, average: WeightAverage) -> None:
        """Keep the average."""
        self.average = average

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The optimiser has stepped, and nothing has been saved or scored since."""
        self.average.update()


class GradientCallback(TrainerCallback):
    """Shows the guard the gradients before each optimiser step."""

    def __init__(self, guard: GradientGuard, stuck: StuckGuard) -> None:
        """Keep the guard, and the one that knows whether the margins were 0."""
        self.guard, self.stuck = guard, stuck

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gradients are whole here: accumulated and clipped."""
        self.guard.after_backward(kwargs["model"], step=state.global_step + 1, margins_are_zero=self.stuck.steps > 0)


@dataclass(frozen=True)
class DevPoint:
    """The dev part at one step; `log_loss` is the mean of what the loss is judged by (of ratings the squared error)."""

    step: int
    log_loss: float
    accuracy: float


@dataclass
class DevHistory:
    """The dev part over a run, on disk beside the checkpoints, so that a resumed run remembers its best one."""

    path: Path
    points: list[DevPoint] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, *, up_to_step: int | None = None) -> DevHistory:
        """What a run knew when it had done `up_to_step` steps; all that is there where None."""
        points = []
        if path.exists():
            points = [DevPoint(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        return cls(path, [point for point in points if up_to_step is None or point.step <= up_to_step])

    def add(self, point: DevPoint) -> None:
        """Remember a point, on disk at once; one of the same step, of a start that was cut off, makes room for it."""
        self.points = [p for p in self.points if p.step != point.step] + [point]
        if not launched.is_first():
            return
        write_text(self.path, "".join(json.dumps(vars(p)) + "\n" for p in self.points))

    def best(self) -> DevPoint | None:
        """The point of the lowest log-loss after at least one step; the earlier one on a tie."""
        trained = [point for point in self.points if point.step > 0]
        return min(trained, key=lambda point: point.log_loss, default=None)

    def best_step(self, step: int) -> int | None:
        """The step of the point that was the best one when `step` had been done; None before the first."""
        best = DevHistory(self.path, [point for point in self.points if point.step <= step]).best()
        return None if best is None else best.step

    def since_best(self) -> int:
        """How many points came after the best one."""
        trained = [point for point in self.points if point.step > 0]
        best = self.best()
        return 0 if best is None else len(trained) - 1 - trained.index(best)


class SelectionCallback(TrainerCallback):
    """Scores the dev part whenever a checkpoint was saved, whatever `save_steps` is, and protects the best one from rotation."""

    def __init__(
        self,
        history: DevHistory,
        score_dev: Callable[[], tuple[float, float]],
        say: Callable[[str], None],
        *,
        at_start: Callable[[DevPoint], None],
        patience: int | None = None,
        measure: str = "log-loss",
    ) -> None:
        """Keep how to score and when to stop.

        Args:
            history: gets every point.
            score_dev: returns (log-loss, accuracy) of the model as it is.
            say: prints a line.
            at_start: looks at the point before the first step.
            patience: so many checkpoints in a row without a new best end the run.
            measure: what the first number of `score_dev` is, for the log.
        """
        self.history, self.score_dev, self.say, self.at_start = history, score_dev, say, at_start
        self.patience, self.measure = patience, measure

    def _point(self, state: TrainerState) -> DevPoint:
        log_loss, accuracy = self.score_dev()
        point = DevPoint(state.global_step, log_loss, accuracy)
        self.history.add(point)
        self.say(f"step {point.step}: dev {self.measure} {log_loss:.4f}, accuracy {accuracy:.3f}")
        return point

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The dev part before the first step: the start of the curve, and a look for leaked labels; after a resume, what the kill cut off."""
        if state.global_step == 0:
            self.at_start(self._point(state))
            return
        self._protect_best(args, state)

    def is_over(self, state: TrainerState) -> bool:
        """Whether a run that is resumed had already stopped for want of patience; scores what the kill kept from being scored."""
        # The checkpoint's own state was written before its dev part was scored.
        if all(point.step != state.global_step for point in self.history.points):
            self._point(state)
        return self._has_waited(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Score, and tell the Trainer which checkpoint must not be rotated away."""
        self._point(state)
        self._protect_best(args, state)
        if self._has_waited(state):
            control.should_training_stop = True

    def _has_waited(self, state: TrainerState) -> bool:
        waited = self.history.since_best()
        if self.patience is None or waited < self.patience or state.global_step >= state.max_steps:
            return False
        self.say(f"stopped at step {state.global_step}: no better on the dev part for {waited} checkpoints")
        return True

    def _protect_best(self, args: TrainingArguments, state: TrainerState) -> None:
        best = self.history.best()
        if best is not None:
            state.best_global_step = best.step
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{best.step}")


class ProgressCallback(TrainerCallback):
    """A bar with loss, accuracy, pairs a second and time left; plain lines where there is no terminal."""

    def __init__(self, console: Console, pairs_per_step: int) -> None:
        """Start nothing yet."""
        self.console, self.pairs_per_step = console, pairs_per_step
        self.progress: Progress | None = None
        self.task: Any = None
        self.step_started = self.stepping = self.last_line = (
            0.0  # seconds; `stepping` leaves out dev scoring and saving
        )
        self.first_step = 0
        self.numbers = "loss -"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self.last_line = time.monotonic()
        self.first_step = state.global_step
        if self.console.is_terminal:
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self.progress = Progress(*columns, console=self.console)
            self.task = self.progress.add_task(
                "training", total=state.max_steps, completed=state.global_step, numbers=self.numbers
            )
            self.progress.start()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the step's clock."""
        self.step_started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar, or say a line now and then."""
        self.stepping += time.monotonic() - self.step_started
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step, numbers=self.numbers)
        elif time.monotonic() - self.last_line > _LINE_SECONDS:
            self.last_line = time.monotonic()
            done = max(1, state.global_step - self.first_step)
            left = self.stepping / done * (state.max_steps - state.global_step)
            self.console.print(
                f"step {state.global_step}/{state.max_steps}  {self.numbers}  about {left / 60:.0f} min left",
                highlight=False,
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the newest numbers."""
        if logs and "loss" in logs:
            rate = (state.global_step - self.first_step) * self.pairs_per_step / max(self.stepping, 1e-9)
            self.numbers = f"loss {logs['loss']:.3f}  accuracy {logs.get('accuracy', 0):.2f}  {rate:.1f} pairs/s"

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the bar."""
        self.stop()

    def stop(self) -> None:
        """Stop the bar; also called when the run ends with an error."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
