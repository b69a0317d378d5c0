"""The watch in TRL's own trainer: every step has its row, the trainer's log its numbers, and a run ends where it was told to."""

import numpy as np
import pytest

from rewardsmith.errors import SettingsError
from rewardsmith.use.alarms import Alarm
from rewardsmith.use.samples import Rewards, Sample
from rewardsmith.use.watch import Watch, read_rows
from rewardsmith.use.watch_probes import SampleProbes

trl = pytest.importorskip("trl", reason="the extra `rl` is not installed")


@pytest.fixture
def trainer(tiny_policy, tmp_path):
    """trainer(watch, callback, ...) is a GRPOTrainer of a tiny policy whose reward is the number of characters."""

    def build(watch, callback, max_steps=3, **more):
        def reward(prompts, completions, **_):
            values = np.array([len(one) for one in completions], np.float64)
            samples = [Sample(*pair) for pair in zip(prompts, completions, strict=True)]
            watch.record(samples, Rewards(values, values.astype(np.float32), {"nothing": np.zeros(len(values))}))
            return values.tolist()

        from datasets import Dataset

        settings = {
            "output_dir": str(tmp_path / "grpo"), "max_steps": max_steps, "per_device_train_batch_size": 4,
            "num_generations": 2, "max_completion_length": 4, "report_to": "none", "logging_steps": 1, "use_cpu": True,
            "save_strategy": "no", "seed": 0, "bf16": False, "disable_tqdm": True, **more,
        }  # fmt: skip
        rows = Dataset.from_list([{"prompt": f"How do I mend item {i}?"} for i in range(8)])
        return trl.GRPOTrainer(
            tiny_policy,
            reward,
            args=trl.GRPOConfig(**settings),
            train_dataset=rows,
            eval_dataset=rows.select(range(2)),
            callbacks=[callback],
        )

    return build


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory):
    """The folder of a tiny random policy with its tokenizer."""
    from tests.tiny_models import save_causal

    return save_causal("qwen2", tmp_path_factory.mktemp("policy"))


def callback_of(watch, *arguments, **more):
    """A WatchCallback; imported here, for it loads transformers."""
    from rewardsmith.model.watching import WatchCallback

    return WatchCallback(watch, *arguments, **more)


def test_every_step_of_grpo_has_its_row_and_its_line_in_the_log(trainer, tmp_path):
    watch, said = Watch(3), []
    grpo = trainer(watch, callback_of(watch, tmp_path / "out", say=said.append))
    grpo.train()
    assert [row.step for row in watch.rows] == [1, 2, 3]
    assert [row.num_samples for row in watch.rows] == [4, 4, 4] and [row.num_groups for row in watch.rows] == [2, 2, 2]
    lines = [one for one in grpo.state.log_history if "watch/reward" in one]
    # The reward is the number of characters: TRL's own mean reward, the watch's reward and its length are one number.
    assert [one["watch/reward"] for one in lines] == pytest.approx([one["reward"] for one in lines], abs=1e-4)
    assert [one["watch/length"] for one in lines] == [row.length for row in watch.rows]
    assert all(one["watch/terms/nothing"] == 0.0 for one in lines) and len(lines) == 3
    assert read_rows(tmp_path / "out" / "watch.jsonl") == watch.rows
    assert (tmp_path / "out" / "watch.png").exists() and (tmp_path / "out" / "watch.json").exists()
    assert said == [watch.promise] and "No alarm will come" in said[0]


def test_evaluations_are_no_steps_and_lines_over_several_steps_are_means(trainer):
    watch = Watch(4)
    more = {"eval_strategy": "steps", "eval_steps": 1, "logging_steps": 2, "per_device_eval_batch_size": 2}
    grpo = trainer(watch, callback_of(watch, say=lambda line: None), max_steps=4, **more)
    grpo.train()
    assert [(row.step, row.num_samples) for row in watch.rows] == [(step, 4) for step in (1, 2, 3, 4)]
    lines = [one["watch/length"] for one in grpo.state.log_history if "watch/length" in one]
    lengths = [row.length for row in watch.rows]
    assert lines == [pytest.approx(np.mean(lengths[:2])), pytest.approx(np.mean(lengths[2:]))]


class Nervous(Watch):
    """A watch that has a KL alarm to tell at step 2."""

    def observe(self, step, samples, rewards):
        super().observe(step, samples, rewards)
        told = [Alarm("kl", "up", step, step, 0.0, 9.0, 0.001, "Step 2: KL rose.", "c", "t")] if step == 2 else []
        self.alarms += told
        return told


def test_a_run_ends_at_an_alarm_that_it_was_told_to_stop_on_and_at_no_other(trainer):
    for stop_on, last in ((("kl",), 2), (("length",), 3)):
        watch, said = Nervous(3), []
        callback = callback_of(watch, stop_on=stop_on, say=said.append)
        grpo = trainer(watch, callback)
        grpo.train()
        assert grpo.state.global_step == last and watch.rows[-1].step == last
        assert sum("Step 2: KL rose." in line for line in said) == 1
        assert (callback.stopped_by is not None) == (last == 2) == ("told to stop on kl" in said[-1])
    # A number that is kept and not looked at, a term or a probe that nobody asked for: a run told to stop on these would never stop.
    for never in ("kill", "tokens", "distinct_1", "terms/length", "probe/bold"):
        with pytest.raises(SettingsError, match="stop on"):
            callback_of(Watch(3), stop_on=("kl", never))
    callback_of(Watch(3, probes=SampleProbes(lambda prompt, answer: 0.0, names=["bold"])), stop_on=("probe/bold",))


def test_a_resumed_run_keeps_the_rows_of_its_checkpoint(trainer, tmp_path):
    first = Watch(4)
    more = {"save_strategy": "steps", "save_steps": 2}
    trainer(first, callback_of(first, tmp_path / "out", say=lambda line: None), max_steps=3, **more).train()
    second = Watch(4)
    grpo = trainer(second, callback_of(second, tmp_path / "out", say=lambda line: None), max_steps=4, **more)
    grpo.train(resume_from_checkpoint=str(tmp_path / "grpo" / "checkpoint-2"))
    # Steps 1 and 2 are those of the first run, whose third step came after the checkpoint and is left out.
    assert [row.step for row in second.rows] == [1, 2, 3, 4] and second.rows[:2] == first.rows[:2]


def test_a_watch_in_front_of_the_reporters_is_in_their_lines(trainer, tmp_path):
    from transformers import TrainerCallback

    heard = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            heard.append(dict(logs))

    watch = Watch(2)
    grpo = trainer(watch, Reporter(), max_steps=2)
    grpo.callback_handler.callbacks.insert(0, callback_of(watch, say=lambda line: None))
    grpo.train()
    assert [one["watch/reward"] for one in heard if "loss" in one] == [row.reward for row in watch.rows]


def test_our_ppo_hands_over_what_observe_takes():
    """`on_step(step, samples, rewards)`, by place."""
    watch = Watch(100)
    on_step = watch.observe
    rewards = Rewards(np.ones(1), np.ones(1, np.float32), {})
    assert on_step(1, [Sample("p", "a", kl=0.5)], rewards) == [] and watch.rows[0].kl == 0.5
