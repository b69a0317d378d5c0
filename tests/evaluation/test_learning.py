"""The learning curve, against recipes whose accuracy is a known function of the number of pairs."""

import io
from dataclasses import dataclass, field

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import norm

from rewardsmith.data.schema import Preference, prompt_key
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.evaluation.learning import (
    calibrated_losses,
    learning_curve,
    learning_table,
    nested_subsets,
    reading,
    verdict,
)
from rewardsmith.evaluation.overfitting import gap, run_gap
from rewardsmith.evaluation.power_law import Forecast, Measured, fit_power_laws, mean_draws
from rewardsmith.scores import Retrained, Trainable
from rewardsmith.stats import Estimate, wilson
from tests.fakes import pair

SHARES = np.array([0.125, 0.25, 0.5, 1.0])
EASINESS = np.random.default_rng(0).normal(size=20_000)


@dataclass
class FakeRecipe:
    """Its models answer a share of the pairs right that is a function of the pairs that they saw; what is hard for one is hard for all.

    Args:
        accuracy: of the number of training pairs.
        luck: standard deviation of the accuracy between trainings.
        size: of a margin.
        dropped: pairs that it drops of any.
    """

    accuracy: object
    luck: float = 0.0
    size: float = 1.0
    dropped: int = 0
    pairs: list[Preference] = field(default_factory=lambda: [pair(i, prompt=f"train {i // 2}") for i in range(800)])
    seen: list[tuple[int, int]] = field(default_factory=list)

    def training_pairs(self):
        return list(self.pairs)

    def train_on(self, pairs, *, seed):
        self.seen.append((len(pairs), seed))
        rng = np.random.default_rng([seed, len(pairs)])
        wanted = float(self.accuracy(len(pairs) - self.dropped)) + self.luck * rng.normal()
        return Retrained(FakeModel(norm.ppf(wanted), self.size, rng), len(pairs) - self.dropped)


@dataclass
class FakeModel:
    """Right about a pair where its level, the pair's easiness (70 % of the variance) and chance add up to more than 0."""

    level: float
    size: float
    rng: np.random.Generator

    def score(self, pairs):
        good = np.array([answer.startswith("good") for _, answer in pairs])
        easy = EASINESS[[int(answer.split()[-1]) for _, answer in pairs]]
        chance = self.rng.normal(size=len(pairs))
        scores = self.size * (self.level + np.sqrt(0.7) * easy + np.sqrt(0.3) * chance)
        return np.where(good, scores, 0).astype(np.float32)


def held_out(n=600):
    return [pair(i, prompt=f"eval {i // 2}") for i in range(10_000, 10_000 + n)]


RISING = FakeRecipe(lambda n: 0.85 - 0.25 * (n / 100) ** -0.5)
FLAT = FakeRecipe(lambda n: 0.70)


def test_subsets_are_nested_hold_whole_prompts_and_reach_their_share():
    pairs = [pair(i, prompt=f"prompt {i % 37}") for i in range(300)]
    found = nested_subsets(pairs, (0.1, 0.25, 0.5, 1), seed=5)
    for share, subset, larger in zip((0.1, 0.25, 0.5), found, found[1:], strict=False):
        ids, prompts = {one.id for one in subset}, {one.prompt for one in subset}
        assert ids < {one.id for one in larger}
        assert ids == {one.id for one in pairs if one.prompt in prompts}
        # 37 prompts of 8 or 9 pairs: at least the share, at most one prompt more.
        assert share * 300 <= len(subset) < share * 300 + 9
        assert [one.id for one in subset] == [one.id for one in pairs if one.id in ids]
    assert found[-1] == pairs
    assert nested_subsets(pairs, (0.1, 1), seed=5)[0] == found[0]
    assert nested_subsets(pairs, (0.1, 1), seed=6)[0] != found[0]
    with pytest.raises(DataError, match="these shares take 1, 1, 3"):
        nested_subsets([pair(i) for i in range(3)], (0.1, 0.2, 1), seed=0)


def test_the_same_seed_gives_the_same_curve_and_trainings():
    first, second = (FakeRecipe(RISING.accuracy) for _ in range(2))
    assert isinstance(first, Trainable)
    curve = learning_curve(first, held_out(), repeats=2, seed=7)
    assert curve == learning_curve(second, held_out(), repeats=2, seed=7)
    assert first.seen == second.seen
    assert first.seen == [(n, seed) for n in (100, 200, 400, 800) for seed in (7, 8)]
    assert curve["points"] != learning_curve(FakeRecipe(RISING.accuracy), held_out(), repeats=2, seed=8)["points"]


def test_a_rising_curve_says_that_more_data_helps_and_hits_what_twice_the_data_would_give():
    curve = learning_curve(FakeRecipe(RISING.accuracy), held_out(4000), repeats=1)
    assert [point["num_pairs"] for point in curve["points"]] == [100, 200, 400, 800]
    forecast = curve["forecast"]
    assert forecast["num_pairs"] == 1600 and curve["further"][0]["num_pairs"] == 3200
    # 0.85 - 0.25 / 4 = 0.7875, from 0.85 - 0.25 / sqrt(8) = 0.7616 with all pairs.
    assert forecast["accuracy"]["low"] < 0.7875 < forecast["accuracy"]["high"]
    assert forecast["accuracy_change"]["low"] < 0.7875 - 0.7616 < forecast["accuracy_change"]["high"]
    assert curve["verdict"] == "helps" and "more data helps." in curve["reading"]
    assert "from 800 to 1,600" in curve["reading"] and "trained once" in curve["reading"]


def test_a_flat_curve_says_that_more_data_does_not_help():
    curve = learning_curve(FakeRecipe(FLAT.accuracy), held_out(4000), repeats=1)
    assert curve["verdict"] == "does not help"
    assert "more data of this kind does not help (less than 1 points)" in curve["reading"]
    assert curve["forecast"]["accuracy_change"]["high"] < 0.01
    falling = learning_curve(FakeRecipe(lambda n: 0.80 - 0.02 * np.log2(n / 100)), held_out(), repeats=1)
    assert falling["fit"]["accuracy"]["flat"] and falling["fit"]["accuracy"]["c"] is None
    assert falling["forecast"]["accuracy_change"]["value"] == 0 and falling["verdict"] != "helps"


def test_few_eval_pairs_cannot_tell_and_say_so():
    curve = learning_curve(FakeRecipe(lambda n: 0.70 + 0.01 * np.log2(n / 100)), held_out(150), repeats=1)
    assert curve["verdict"] == "cannot tell" and "these pairs cannot tell" in curve["reading"]


def test_points_off_any_such_curve_give_no_forecast():
    """Up, down, and up again by ten points: no law that falls all along goes through these."""
    steps = {100: 0.60, 200: 0.72, 400: 0.60, 800: 0.72}
    curve = learning_curve(FakeRecipe(lambda n: steps[n]), held_out(4000), repeats=1)
    assert not curve["fit"]["accuracy"]["fits"] and curve["verdict"] == "cannot tell"
    assert "worth nothing" in curve["reading"]


def test_the_luck_of_trainings_widens_the_forecast():
    lucky = learning_curve(FakeRecipe(RISING.accuracy, luck=0.03), held_out(2000), repeats=3)
    steady = learning_curve(FakeRecipe(RISING.accuracy), held_out(2000), repeats=3)
    alone = learning_curve(FakeRecipe(RISING.accuracy), held_out(2000), repeats=1)
    # Between trainings the accuracies differ by their luck and by chance on the pairs, which is small.
    assert lucky["spread"]["degrees"] == 8 and 0.015 < lucky["spread"]["accuracy"] < 0.06
    assert steady["spread"]["accuracy"] < 0.01 and alone["spread"]["accuracy"] is None

    def width(curve):
        return curve["forecast"]["accuracy"]["high"] - curve["forecast"]["accuracy"]["low"]

    assert width(lucky) > 1.5 * width(steady)
    assert "trained once" not in lucky["reading"]


def test_the_model_at_hand_is_not_trained_again():
    recipe = FakeRecipe(RISING.accuracy)
    own = recipe.train_on(recipe.pairs, seed=99)
    told = []
    curve = learning_curve(recipe, held_out(), repeats=2, whole=own, progress=told.append)
    assert recipe.seen == [(800, 99), *((n, seed) for n in (100, 200, 400) for seed in (0, 1))]
    assert [point["trainings"] for point in curve["points"]] == [2, 2, 2, 1]
    assert len(told) == 7 and "1/7, share 0.125: training on 100 pairs" in told[0]


def test_pairs_are_counted_after_drops_and_what_stands_aside_is_told():
    recipe = FakeRecipe(RISING.accuracy, dropped=3)
    odd = [pair(1, prompt="a tie", tie=True), Preference("empty", "an empty one", "", "bad"), *recipe.pairs[:5]]
    curve = learning_curve(recipe, [*held_out(), *odd], repeats=1)
    assert [point["num_pairs"] for point in curve["points"]] == [97, 197, 397, 797]
    assert curve["left_out"] == {"empty_answer": 1, "labelled_ties": 1, "trained_on": 5}
    assert (curve["num_eval_pairs"], curve["num_eval_prompts"]) == (600, 300)


def test_what_cannot_be_a_curve_is_refused_before_anything_is_trained():
    recipe = FakeRecipe(RISING.accuracy)
    for shares in ((0.5, 1), (0.5, 0.25, 1), (0, 0.5, 1), (0.25, 0.5, 0.9)):
        with pytest.raises(SettingsError, match="at least 3 shares"):
            learning_curve(recipe, held_out(), shares=shares)
    with pytest.raises(SettingsError, match="at least 1 repeat"):
        learning_curve(recipe, held_out(), repeats=0)
    with pytest.raises(DataError, match="at least 30 eval prompts"):
        learning_curve(recipe, held_out(40))
    with pytest.raises(DataError, match="5 trained_on"):
        learning_curve(recipe, recipe.pairs[:5])
    assert recipe.seen == []


def test_log_losses_are_taken_at_the_temperature_of_the_other_half():
    """A model ten times too sure of itself is judged by what it knows; the factor cancels."""
    rng = np.random.default_rng(0)
    margins, clusters = rng.normal(0.7, 1.2, size=400), np.arange(400)
    halves = np.arange(400) % 2
    losses = calibrated_losses(margins, clusters, halves)
    assert np.allclose(losses, calibrated_losses(10 * margins, clusters, halves), rtol=1e-6)
    assert losses.mean() < np.log(2) < np.logaddexp(0, -10 * margins).mean()
    # Worse than chance: no certainty at all, ln 2 for every pair. Always right: nothing asks for a temperature.
    assert np.allclose(calibrated_losses(-margins, clusters, halves), np.log(2))
    sure = np.abs(margins) + 1
    assert np.allclose(calibrated_losses(sure, clusters, halves), np.logaddexp(0, -sure))


def test_a_law_is_found_again_and_its_bounds_hold():
    truth = 0.2 + 0.1 * SHARES**-0.5
    law = fit_power_laws(SHARES, truth[None])
    assert np.allclose(law.at(np.array([2.0, 4.0])), 0.2 + 0.1 * np.array([[2.0, 4.0]]) ** -0.5, atol=2e-3)
    noisy = truth + np.random.default_rng(0).normal(0, 0.1, size=(3000, 4))
    wild = fit_power_laws(SHARES, np.maximum(noisy, 0))
    assert (wild.a >= 0).all() and (wild.b >= 0).all()
    # The best under the bounds: no corner or line of the grid through these points is nearer.
    rival = fit_power_laws(SHARES, np.full((1, 4), 0.3))
    assert rival.b[0] == 0 and np.isclose(rival.a[0], 0.3)
    for a, b, c in ((0.0, 0.3, 0.2), (0.25, 0.1, 0.5), (0.3, 0.0, 1.0)):
        other = ((np.maximum(noisy, 0) - a - b * SHARES**-c) ** 2).sum(axis=1)
        assert ((wild.residuals**2).sum(axis=1) <= other + 1e-3).all()


@pytest.mark.parametrize(("a", "b", "c"), [(0.20, 0.10, 0.3), (0.25, 0.05, 0.5), (0.25, 0.02, 1.0), (0.30, 0.0, 1.0)])
def test_intervals_of_the_forecast_cover_what_twice_the_data_would_give(a, b, c):
    """80 simulated curves each; binomial chance at 95 % leaves 89 % or more but once in a hundred."""
    rng, covered, changes = np.random.default_rng(1), 0, 0
    for _ in range(80):
        level = norm.ppf(1 - a - b * SHARES**-c)
        easy, chance = rng.normal(size=(300, 1)), rng.normal(size=(300, 4))
        wrong = (level + np.sqrt(0.7) * easy + np.sqrt(0.3) * chance < 0).astype(float)
        draws = mean_draws(wrong, np.arange(300), seed=0, resamples=400)
        measured = Measured.of([[column.mean()] for column in wrong.T], draws, seed=0)
        found, last = Forecast.fit(SHARES, measured), a + b * 2.0**-c
        level_at, change = found.level(2, np.arange(300)), found.change(2, np.arange(300))
        covered += level_at.low <= last <= level_at.high
        changes += change.low - 1e-9 <= last - a - b <= change.high + 1e-9
    assert covered >= 0.87 * 80 and changes >= 0.87 * 80


def test_verdicts_go_by_the_interval():
    def change(value, low, high):
        return Estimate(value, low, high, 400, "by hand")

    assert verdict(change(0.02, 0.004, 0.04), 0.01) == "helps"
    assert verdict(change(0.02, 0.0, 0.04), 0.01) == "cannot tell"
    assert verdict(change(0.002, 0.0, 0.009), 0.01) == "does not help"
    assert verdict(change(0.002, 0.001, 0.009), 0.01) == "does not help"
    assert verdict(change(0.002, 0.001, 0.009), 0.005) == "helps"
    assert verdict(change(0.02, 0.004, 0.04), 0.01, fits=False) == "cannot tell"


def test_the_reading_and_the_table_show_the_numbers_of_the_document():
    curve = learning_curve(FakeRecipe(RISING.accuracy, luck=0.01), held_out(), repeats=2)
    ahead, last = curve["forecast"], curve["points"][-1]
    assert f"{100 * ahead['accuracy_change']['value']:+.1f} points" in curve["reading"] == reading(curve)
    console = Console(width=200, file=io.StringIO())
    console.print(learning_table(curve))
    text = console.file.getvalue()
    console.file = io.StringIO()
    console.print(learning_table(curve), width=80)
    assert "\N{HORIZONTAL ELLIPSIS}" not in console.file.getvalue()  # nothing is cut on a narrow terminal
    for one in (last["accuracy"], ahead["accuracy"], ahead["log_loss"]):
        assert f"{one['value']:.3f}" in text and f"[{one['low']:.3f}, {one['high']:.3f}]" in text
    assert f"{ahead['accuracy']['value']:.3f}" in text and "3,200" in text and "2 x" in text


def test_steps_are_paired_and_the_band_goes_through_the_forecast():
    curve = learning_curve(FakeRecipe(RISING.accuracy), held_out(), repeats=1)
    for step, before, after in zip(curve["steps"], curve["points"], curve["points"][1:], strict=False):
        rise = after["accuracy"]["value"] - before["accuracy"]["value"]
        assert np.isclose(step["accuracy"]["value"], rise)
        unpaired = np.hypot(*(one["accuracy"]["high"] - one["accuracy"]["low"] for one in (before, after)))
        assert step["accuracy"]["high"] - step["accuracy"]["low"] < 0.8 * unpaired
    band = curve["band"]
    assert band[0]["num_pairs"] == 100 and band[-1]["num_pairs"] == 3200
    assert band[-1]["accuracy"] == curve["further"][0]["accuracy"]
    assert all(one["accuracy"]["low"] <= one["accuracy"]["value"] <= one["accuracy"]["high"] for one in band)


def test_the_gap_is_the_difference_of_two_independent_samples():
    # Newcombe (1998), table II, method 10: 56/70 against 48/80 gives 0.2 [0.0524, 0.3339].
    found = gap(wilson(56, 70), wilson(48, 80))
    assert (round(found.value, 4), round(found.low, 4), round(found.high, 4)) == (0.2, 0.0524, 0.3339)
    assert found.n == 150


def test_the_gap_of_a_run_is_against_eval_or_else_dev():
    parts = {"train": wilson(450, 500).as_dict(), "dev": wilson(60, 80).as_dict(), "eval": wilson(280, 400).as_dict()}
    found = run_gap(parts)
    assert found.against == "eval" and np.isclose(found.accuracy.value, 0.2)
    assert "by heart" in found.reading() and "+20.0 points" in found.reading()
    del parts["eval"]
    assert run_gap(parts).against == "dev"
    assert run_gap({"train": parts["train"]}) is None and run_gap({"dev": parts["dev"]}) is None
    even = run_gap({"train": wilson(70, 100).as_dict(), "eval": wilson(71, 100).as_dict()})
    assert "no overfitting that these pairs can show" in even.reading()
    easier = run_gap({"train": wilson(300, 500).as_dict(), "eval": wilson(400, 500).as_dict()})
    assert "the eval pairs are easier" in easier.reading()


def test_prompts_of_the_fakes_never_meet():
    """What the other tests rest on."""
    assert not {prompt_key(one.prompt) for one in RISING.pairs} & {prompt_key(one.prompt) for one in held_out()}
