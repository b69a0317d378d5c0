"""A watch inside a trainer of TRL (GRPO, RLOO, OnlineDPO); `train_ppo` needs none: its `on_step` is `Watch.observe`.

watch = Watch(num_steps=500)
reward = trl_reward_function(scorer, on_rewards=watch.record)
trainer = GRPOTrainer(model, reward, ..., callbacks=[WatchCallback(watch, Path("runs/grpo"))])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewardsmith.errors import SettingsError
from rewardsmith.use.alarms import Alarm
from rewardsmith.use.watch import LOG, Watch, read_rows


class WatchCallback(TrainerCallback):
    """Ends a watch's steps with those of the trainer, logs its numbers as watch/NAME, says its alarms, and may end the run at one.

    The numbers go into the trainer's `log_history` and to the callbacks that come after this one. Reporters that transformers adds by itself (`report_to`) come before it: to
    have them told, put this one in front, `trainer.callback_handler.callbacks.insert(0, callback)`, instead of handing it to the trainer.

    Of several processes each sees its own samples; those of the first are watched.
    """

    def __init__(
        self,
        watch: Watch,
        folder: Path | None = None,
        *,
        stop_on: Sequence[str] = (),
        say: Callable[[str], object] = print,
    ) -> None:
        """Keep what to do.

        Args:
            watch: the reward function's `on_rewards` is its `record`.
            folder: for watch.jsonl (also with every checkpoint), watch.json and watch.png; None for none.
            stop_on: names of series, or probe/NAME, whose alarm ends the run.
            say: prints a line.

        Raises:
            SettingsError: at a name that no alarm of the watch can have.
        """
        wrong = [one for one in stop_on if one not in watch.alarm_names]
        if wrong:
            names = ", ".join(watch.alarm_names)
            raise SettingsError(f"alarms of this watch to stop on, of {names}", ", ".join(wrong), "Mend `stop_on`.")
        self.watch, self.folder, self.stop_on, self.say = watch, folder, tuple(stop_on), say
        self.stopped_by: Alarm | None = None
        self._logged = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say what the alarms promise; a resumed run goes on with the rows that its checkpoint knew."""
        if not state.is_world_process_zero:
            return
        if state.global_step and not self.watch.rows and self.folder is not None and (self.folder / LOG).is_file():
            self.watch.restore(read_rows(self.folder / LOG, up_to_step=state.global_step))
            self._logged = len(self.watch.rows)
        self.say(self.watch.promise)
        if state.max_steps > self.watch.num_steps:
            self.say(
                f"the run has {state.max_steps} steps, the watch was made for {self.watch.num_steps}: the rate grows"
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take in the samples of the step."""
        if not state.is_world_process_zero:
            return self.watch.forget()
        for alarm in self.watch.flush(state.global_step):
            self.say(str(alarm))
            if alarm.name in self.stop_on:
                self.stopped_by = self.stopped_by or alarm
                control.should_training_stop = True
                self.say(f"the run ends at step {state.global_step}: it was told to stop on {alarm.name}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """What an evaluation asked the reward function is no step of the run."""
        self.watch.forget()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """The means over the steps since the last line, as watch/NAME."""
        rows = self.watch.rows[self._logged :]
        if logs is None or not rows or any(name.startswith("eval_") for name in logs):
            return
        self._logged = len(self.watch.rows)
        values: dict[str, list[float]] = {}
        for row in rows:
            for name, value in row.scalars().items():
                values.setdefault(name, []).append(value)
        numbers = {f"watch/{name}": sum(some) / len(some) for name, some in values.items()}
        logs.update(numbers)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(numbers)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Rows as the checkpoint knows them, for a resume."""
        if self.folder is not None and state.is_world_process_zero:
            self.watch.write_rows(self.folder / LOG)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write everything."""
        if self.folder is not None and state.is_world_process_zero:
            self.watch.write(self.folder)
