"""A watch keeps a right row of every step, tells what was planted into a run within so many steps, and stays quiet where nothing was."""

import json
import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest

from rewardsmith.errors import DataError, ScoreError, SettingsError
from rewardsmith.scores import DomainFlag
from rewardsmith.use.sample_statistics import (
    StepRow,
    distinct,
    joined,
    rank_correlation,
    step_row,
    words_of,
)
from rewardsmith.use.samples import Rewards, Sample
from rewardsmith.use.watch import Watch, read_rows
from rewardsmith.use.watch_probes import SampleProbes

WORDS = [
    f"{a}{b}" for a in ("ka", "lo", "mi", "ne", "ru", "so", "ta", "vi") for b in ("ba", "do", "fe", "gu", "ja", "po")
]


def rewards_of(values, **terms):
    """Rewards whose score is what the terms leave."""
    value = np.array(values, np.float64)
    arrays = {name: np.array(one, np.float64) for name, one in terms.items()}
    return Rewards(value, (value - sum(arrays.values(), np.zeros(len(value)))).astype(np.float32), arrays)


def test_a_row_by_hand():
    samples = [
        Sample("p", "ab cd", True, 3, 1.0),
        Sample("p", "ab cd ef", False, 5, None),
        Sample("q", "ab", None, None, 4.0),
        Sample("q", "cd ab", True, None, None),
    ]
    found = step_row(7, samples, rewards_of([1.0, 2.0, 0.5, 0.5], length=[-1.0, 0.0, 0.0, 0.0]))
    # Characters 5, 8, 2, 5: mean 5; tokens 3 and 5; finished of the three that are known: 2; KL of the two: 2.5.
    assert (found.step, found.num_samples, found.num_groups) == (7, 4, 2)
    assert (found.length, found.tokens, found.finished, found.kl) == (5.0, 4.0, 2 / 3, 2.5)
    # Rewards 1, 2, 0.5, 0.5; scores 2, 2, 0.5, 0.5, of which the term takes 1 from the first.
    assert (found.reward, found.score, found.terms) == (1.0, 1.25, {"length": -0.25})
    # Words: ab cd | ab cd ef | ab | cd ab: 3 distinct of 8; pairs: ab-cd twice, cd-ef, cd-ab: 3 distinct of 4.
    assert (found.distinct_1, found.distinct_2) == (3 / 8, 3 / 4)
    # Of the groups p {1, 2} and q {0.5, 0.5} one has equal rewards.
    assert found.equal_groups == 0.5 and found.repetition == 0.0 and found.outside_domain is None
    # Ranks of rewards 3, 4, 1.5, 1.5 and of lengths 2.5, 4, 1, 2.5, less 2.5: products 0 + 2.25 + 1.5 + 0 = 3.75; squares 0.25 + 2.25 + 1 + 1 = 4.5 and 4.5.
    assert found.length_correlation == pytest.approx(3.75 / 4.5)


def test_what_cannot_be_had_is_none_and_not_a_number():
    found = step_row(1, [Sample("p", "a")], rewards_of([1.0]))
    assert found.kl is found.tokens is found.finished is found.length_correlation is found.distinct_2 is None
    assert found.equal_groups is None
    assert set(found.scalars()) == {"reward", "score", "length", "distinct_1", "repetition"}
    assert step_row(1, [Sample("p", "")], rewards_of([1.0])).distinct_1 is None


def test_rewards_that_do_not_belong_to_the_samples_are_refused():
    one = Sample("p", "a")
    for samples, rewards in (([], rewards_of([])), ([one], rewards_of([1.0, 2.0]))):
        with pytest.raises(DataError, match="a reward and a score each"):
            step_row(1, samples, rewards)
    with pytest.raises(DataError, match="finite"):
        step_row(1, [one], rewards_of([float("nan")]))


def test_repetition_and_variety_see_signs_and_scripts_without_spaces():
    assert words_of("It's 5!!") == ["it", "'", "s", "5", "!", "!"]
    assert words_of("\u4f60\u597dab") == ["\u4f60", "\u597d", "ab"]
    shout = step_row(1, [Sample("p", "!" * 13)], rewards_of([0.0]))
    # 13 signs have 10 runs of four, all the same: 1 - 1 / 10.
    assert shout.repetition == pytest.approx(0.9)
    # Longer answers alone do not lower it: words past the fiftieth are not counted.
    long = [str(i) for i in range(50)] + ["x"] * 1000
    assert distinct([long], 1) == 1.0


def test_rank_correlation_is_scipys():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, 40).astype(float), rng.normal(size=40)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert rank_correlation(first, np.ones(40)) is None


def test_parts_of_a_step_become_one():
    first = ([Sample("p", "a")], replace(rewards_of([1.0], kl=[-0.5]), counts={"cut": 1}))
    second = ([Sample("q", "b")], replace(rewards_of([2.0], length=[-1.0]), counts={"cut": 2, "odd": 1}))
    samples, rewards = joined([first, second])
    assert [one.answer for one in samples] == ["a", "b"] and rewards.value.tolist() == [1.0, 2.0]
    assert {name: values.tolist() for name, values in rewards.terms.items()} == {
        "kl": [-0.5, 0.0],
        "length": [0.0, -1.0],
    }
    assert rewards.counts == {"cut": 3, "odd": 1} and rewards.score.tolist() == [1.5, 3.0]


class Run:
    """A policy that stands still: 8 prompts x 2 answers of 15 to 25 drawn words, rewards drawn beside them; `plant` changes its answers from a step on."""

    def __init__(self, seed, plant=None, at=60):
        """Nothing is drawn yet."""
        self.rng, self.plant, self.at = np.random.default_rng(seed), plant, at

    def step(self, step):
        """The samples and rewards of a step."""
        rng, changed = self.rng, step >= self.at
        samples, values = [], []
        for i in range(16):
            num_words = int(rng.integers(15, 26))
            kl = float(rng.gamma(2.0, 0.5))
            words = [WORDS[k] for k in rng.integers(0, len(WORDS), num_words)]
            value = float(rng.normal())
            if changed and self.plant == "length":
                words = words + [WORDS[k] for k in rng.integers(0, len(WORDS), 15)]
            if changed and self.plant == "repetition":
                words = words[:4] * 5
            if changed and self.plant == "length_correlation":
                value = 0.4 * num_words + 0.5 * value
            if changed and self.plant == "kl":
                kl += 20.0
            if changed and self.plant == "equal_groups":
                value = 1.0
            samples.append(Sample(f"prompt {i // 2} of {step}", " ".join(words), True, num_words, kl))
            values.append(value)
        return samples, rewards_of(values)

    def through(self, watch, num_steps):
        """Let a watch see a whole run."""
        for step in range(num_steps):
            watch.observe(step, *self.step(step))
        return watch


@pytest.mark.parametrize("plant", ["length", "repetition", "length_correlation", "kl", "equal_groups"])
def test_a_planted_change_is_told_within_a_few_steps_with_when_it_began(plant):
    watch = Run(seed=3, plant=plant).through(Watch(100), 100)
    by_name = {(one.name, one.side): one for one in watch.alarms}
    alarm = by_name[plant, "up"]
    # A window of steps that are clear of the baseline; noise may break the first ones.
    assert 60 <= alarm.since <= 70 and alarm.step <= 60 + 2 * watch.rule.window + 2
    assert all(one.step >= 60 for one in watch.alarms), "nothing was told before the change"
    assert alarm.cause and alarm.todo and f"step {alarm.since}" in alarm.message


def test_a_collapse_to_one_answer_is_told_as_lost_variety():
    class Collapsed(Run):
        def step(self, step):
            samples, rewards = super().step(step)
            return [replace(one, answer=" ".join(WORDS[:20])) for one in samples] if step >= 60 else samples, rewards

    watch = Collapsed(seed=1).through(Watch(100), 100)
    assert ("distinct_2", "down") in {(one.name, one.side) for one in watch.alarms}


@pytest.mark.slow
def test_runs_without_a_change_have_alarms_no_more_often_than_promised():
    """400 runs of 60 steps with the least changes at 0, so that chance alone is asked about: at most 5 % may have an alarm."""
    least = dict.fromkeys(["reward", "score", "length", "kl", "length_correlation", "distinct_2", "repetition"], 0.0)
    runs = [Run(seed=seed, at=10**9).through(Watch(60, least=least, baseline_steps=10), 60) for seed in range(400)]
    assert runs[0].rule is not None and runs[0].rule.bound <= 0.05
    # 20 of 400, and 1.645 sd of a binomial count (4.4) above.
    assert sum(bool(run.alarms) for run in runs) <= 20 + 7


def test_steps_come_once_and_in_order():
    watch, run = Watch(100), Run(0)
    watch.observe(5, *run.step(5))
    for step in (5, 4):
        with pytest.raises(DataError, match="a step after 5"):
            watch.observe(step, *run.step(step))


def test_what_was_recorded_in_parts_is_one_step_and_an_evaluation_none():
    whole, parts, run = Watch(100), Watch(100), Run(0)
    samples, rewards = run.step(1)
    whole.observe(1, samples, rewards)
    for half in (slice(0, 8), slice(8, 16)):
        parts.record(samples[half], Rewards(rewards.value[half], rewards.score[half], {}))
    assert parts.flush(1) == [] and parts.rows == whole.rows
    assert parts.flush(2) == [] and len(parts.rows) == 1  # nothing was recorded
    parts.record(samples, rewards)
    parts.forget()
    parts.flush(3)
    assert len(parts.rows) == 1


def test_alarms_are_handed_on_as_they_come():
    heard = []
    watch = Run(3, plant="kl").through(Watch(100, on_alarm=heard.append), 100)
    assert heard == watch.alarms and heard


class LongIsOutside:
    """Answers of more than 150 characters, 30 words, lie outside."""

    def flags(self, pairs):
        return [DomainFlag(1.0, 0.5, len(answer) > 150, "answers") for _, answer in pairs]


def test_texts_that_leave_the_domain_are_told():
    watch = Run(3, plant="length").through(Watch(100, domain=LongIsOutside()), 100)
    assert "outside_domain" in {one.name for one in watch.alarms}
    assert watch.rows[0].outside_domain == 0.0 and watch.rows[-1].outside_domain > 0.2
    quiet = Run(3, at=10**9).through(Watch(100, domain=LongIsOutside()), 100)
    assert quiet.alarms == []


def test_a_short_run_says_that_no_alarm_can_come():
    watch = Run(0).through(Watch(6), 6)
    assert not watch.can_alarm and "No alarm will come" in watch.promise and watch.alarms == []
    assert "of runs of 500 steps without a change at most" in Watch(500).promise


def test_wrong_settings_are_said_before_anything_is_watched():
    for more in ({"least": {"kill": 1.0}}, {"false_alarm_rate": 1.5}, {"baseline_steps": 1}):
        with pytest.raises(SettingsError):
            Watch(100, **more)
    with pytest.raises(SettingsError, match="between 0 and 1"):  # though a half of it would be a rate
        Watch(100, false_alarm_rate=1.5, probes=SampleProbes(likes_bold, names=["bold"]))
    for more in ({"names": ["nothing"]}, {"every": 0}, {"num_samples": 1}, {"names": ["wrong_prompt"]}):
        with pytest.raises(SettingsError):
            SampleProbes(lambda prompt, answer: 0.0, **more)


def test_the_document_the_rows_and_the_plot_are_written_and_rows_read_back(tmp_path):
    from rewardsmith.use.watch_plots import watch_panels

    watch = Run(3, plant="kl").through(Watch(100), 100)
    watch.write(tmp_path)
    assert read_rows(tmp_path / "watch.jsonl") == watch.rows
    assert [row.step for row in read_rows(tmp_path / "watch.jsonl", up_to_step=9)] == list(range(10))
    document = json.loads((tmp_path / "watch.json").read_text())
    assert document["verb"] == "watch" and document["rule"]["window"] == watch.rule.window
    assert "kl" in {one["name"] for one in document["alarms"]}
    first, last = (document["summary"]["kl"][key] for key in ("first", "last"))
    # Gamma(2, 0.5) has mean 1; 20 are added.
    assert first["low"] <= 1.0 <= first["high"] and last["low"] <= 21.0 <= last["high"] and last["n"] == 20
    assert (tmp_path / "watch.png").read_bytes().startswith(b"\x89PNG")
    titles = watch_panels(watch.rows, watch.alarms, tmp_path / "other.png")
    assert "KL, nats an answer" in titles and "outside the domain" not in titles
    (tmp_path / "watch.jsonl").write_text("{")
    with pytest.raises(DataError, match="watch.jsonl"):
        read_rows(tmp_path / "watch.jsonl")


def test_a_resumed_watch_goes_on_as_if_it_had_never_stopped(tmp_path):
    straight = Run(3, plant="kl").through(Watch(100), 100)
    for cut in (30, 66, 90):  # before the change, within the window, after the alarm
        first, second, run = Watch(100), Watch(100), Run(3, plant="kl")
        for step in range(cut):
            first.observe(step, *run.step(step))
        first.write_rows(tmp_path / "watch.jsonl")
        second.restore(read_rows(tmp_path / "watch.jsonl"))
        for step in range(cut, 100):
            second.observe(step, *run.step(step))
        assert second.alarms == straight.alarms and second.rows == straight.rows
    with pytest.raises(DataError, match="seen nothing"):
        straight.restore([])


def test_a_term_of_the_reward_can_be_watched():
    from rewardsmith.use.alarms import Series

    term = Series("terms/length", ("down",), 0.5, "the penalty", {"down": "c"}, {"down": "t"})
    watch, rng = Watch(100, series=[term]), np.random.default_rng(0)
    for step in range(100):
        penalty = rng.normal(-1 if step < 60 else -9, 0.1, 2)
        watch.observe(step, [Sample("p", "a"), Sample("q", "b")], rewards_of([0.0, 0.0], length=penalty))
    assert [(one.name, one.since) for one in watch.alarms] == [("terms/length", 60)]
    with pytest.raises(SettingsError, match="terms/NAME"):
        Watch(100, series=[replace(term, name="lenght")])


# Probes on the samples of a run.


def likes_bold(prompt, answer):
    """Length is a little liked, bold only in answers with "Sure"."""
    return len(answer.replace("*", "")) / 1000 + (5.0 if "Sure" in answer and "**" in answer else 0.0)


def texts(step, opening=""):
    rng = np.random.default_rng(step)
    answers = [opening + " ".join(rng.choice(WORDS, int(rng.integers(8, 16)))) + "." for _ in range(24)]
    return [Sample(f"prompt {i} of {step}", answer) for i, answer in enumerate(answers)]


def test_an_edit_that_begins_to_raise_scores_is_told_once_and_what_always_did_is_not():
    probes = SampleProbes(likes_bold, every=10, names=["bold", "padding"], num_samples=24)
    watch, scored = Watch(200, probes=probes), []
    for step in range(50):
        samples = texts(step, "Sure " if step >= 20 else "")
        scored += watch.observe(step, samples, rewards_of(np.zeros(24)))
    assert [one.step for one in probes.rounds] == [0, 10, 20, 30, 40]
    # Padding makes an answer longer, which this scorer likes from the first step on: known, and not told.
    assert "padding" in probes.rounds[0].raising and "bold" not in probes.rounds[0].raising
    assert [(one.name, one.step) for one in scored] == [("probe/bold", 20)]
    assert "raises the score of the present samples" in scored[0].message and "audit" in scored[0].todo
    document = json.loads(json.dumps(watch.as_dict(), allow_nan=False))
    assert document["probes"][2]["raising"] and document["probes"][0]["unit"] == "over prompts"


def test_probes_stay_quiet_where_edits_do_nothing():
    rng = np.random.default_rng(0)
    noise = {}

    def random(prompt, answer):
        return noise.setdefault((prompt, answer), float(rng.normal()))

    probes = SampleProbes(random, every=1)
    watch, told = Watch(40, probes=probes), []
    for step in range(20):
        told += watch.observe(step, texts(step), rewards_of(np.zeros(24)))
    assert told == [] and len(probes.rounds) == 20 and all(len(one.probes) > 20 for one in probes.rounds)


def test_the_rate_is_shared_between_series_and_probes():
    alone, both = Watch(500), Watch(500, probes=SampleProbes(likes_bold, every=100, names=["bold"]))
    assert both.rule.bound <= 0.025 and alone.rule.bound <= 0.05
    # What is promised is the whole rate, not that of the series alone.
    assert (
        both.promise.endswith("Of probes, at most 2.5% of such runs have an alarm.") and "probes" not in alone.promise
    )
    assert "rate of 0.025" in Watch(6, probes=SampleProbes(likes_bold, names=["bold"])).promise
    # Five rounds (0, 100, ..., 400) share the other half.
    assert both._probe_level == pytest.approx(0.025 / 5)


def test_an_edit_whose_effect_stands_still_is_no_change_though_one_round_finds_it_and_another_does_not():
    """Bold adds 0.9 to scores that are N(0, 1) text by text: over 24 prompts t = 0.9 / sqrt(2 / 24) = 3.1, about what a round of level 0.0025 asks for.

    So about one round in two finds it. If its difference from the first round were not asked for, nearly half of the runs would have an alarm; 2.5 % may.
    """

    def bold(prompt, answer):
        noise = np.random.default_rng(zlib.crc32(f"{prompt} {answer}".encode())).normal()
        return noise + (0.9 if "**" in answer else 0.0)

    found, wrong = [], 0
    for run in range(40):
        watch = Watch(100, probes=SampleProbes(bold, every=10, names=["bold"], num_samples=24))
        for step in range(0, 100, 10):
            watch.observe(step, texts(1000 * run + step), rewards_of(np.zeros(24)))
        found += ["bold" in one.raising for one in watch.probes.rounds]
        wrong += any(one.name == "probe/bold" for one in watch.alarms)
    assert 0.2 < np.mean(found) < 0.8
    # Of 40 runs at a rate of 2.5 % more than 4 are wrong once in 300 times.
    assert wrong <= 4


def test_rounds_that_say_nothing_say_why():
    probes = SampleProbes(lambda prompt, answer: 1.0, every=1, names=["bold"])
    watch = Watch(100, probes=probes)
    assert watch.observe(0, texts(0), rewards_of(np.zeros(24))) == []
    assert "one score" in probes.rounds[0].reason
    few = [Sample("p", "An answer."), Sample("p", "Another."), Sample("q", " ")]
    assert watch.observe(1, few, rewards_of(np.zeros(3))) == []
    assert "1 prompts" in probes.rounds[1].reason


def test_within_prompts_is_the_unit_where_prompts_have_several_answers():
    samples = [Sample(f"p{i // 2}", one.answer) for i, one in enumerate(texts(0))]
    probes = SampleProbes(likes_bold, every=1, names=["padding"], num_samples=24)
    probes.look(0, samples, level=0.05)
    assert probes.rounds[0].unit == "within prompts"


def test_a_failing_scorer_of_the_probes_is_an_error():
    watch = Watch(100, probes=SampleProbes(lambda prompt, answer: float("nan"), names=["bold"]))
    with pytest.raises(ScoreError):
        watch.observe(0, texts(0), rewards_of(np.zeros(24)))


def test_a_row_is_json():
    row = step_row(1, [Sample("p", "a b")], rewards_of([1.0]))
    assert StepRow(**json.loads(json.dumps(asdict(row)))) == row
