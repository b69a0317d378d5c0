"""An alarm's promised rate of false alarms holds, whatever the numbers are distributed like; what changes is told, once, with when it began."""

import math
from itertools import permutations

import numpy as np
import pytest

from rewardsmith.errors import SettingsError
from rewardsmith.use.alarms import SERIES, AlarmRule, Alarms, Series, alarm_rule, num_sides, with_least

PLAIN = Series("x", ("up", "down"), 0.0, "x", {"up": "c", "down": "d"}, {"up": "t", "down": "u"})


def told(values, rule, series=PLAIN):
    """All alarms of a run of one series."""
    alarms = Alarms(rule, [series])
    return [one for step, value in enumerate(values) for one in alarms.look(step, {series.name: value})]


def rule_of(baseline, window, num_steps=1000):
    return AlarmRule(num_steps, baseline, window, 0, 0.0)


def test_one_look_is_wrong_for_exactly_the_orders_that_it_should_be():
    # Of the 5! orders of B = 3 and w = 2 values, those with the two highest last are 3! 2! = 12: 1 / C(5, 2) = 1 / 10; as many have the two lowest last.
    orders = list(permutations(range(5)))
    found = [told(order, rule_of(3, 2)) for order in orders]
    ups = sum(any(one.side == "up" for one in some) for some in found)
    downs = sum(any(one.side == "down" for one in some) for some in found)
    assert ups == downs == 12 and len(orders) == 120
    assert rule_of(3, 2).probability == 1 / 10


@pytest.mark.parametrize(("num_steps", "sides"), [(100, 1), (500, 12), (2000, 12), (10_000, 12)])
def test_the_window_is_the_shortest_that_keeps_the_promise(num_steps, sides):
    rule = alarm_rule(num_steps, num_sides=sides)
    baseline, window = rule.baseline_steps, rule.window
    # Boole: sides x looks / C(B + w, w).
    bound = sides * (num_steps - baseline - window + 1) / math.comb(baseline + window, window)
    shorter = sides * (num_steps - baseline - window + 2) / math.comb(baseline + window - 1, window - 1)
    assert rule.bound == bound <= 0.05 < shorter


def test_a_run_that_is_too_short_for_the_promise_has_no_rule_and_no_alarm():
    # B = 5 and w = 2 at most: 1 / C(7, 2) = 0.048 a look, over 0.05 for two sides.
    assert alarm_rule(7, num_sides=2) is None
    assert told([0.0] * 10 + [99.0] * 90, None) == []
    for bad in ({"rate": 0.0}, {"rate": 1.0}, {"baseline_steps": 4}):
        with pytest.raises(SettingsError):
            alarm_rule(500, num_sides=2, **bad)
    with pytest.raises(SettingsError, match="at least one step"):
        alarm_rule(0, num_sides=2)


def draws(kind, size, rng):
    """Values of very different shapes, ties among them."""
    match kind:
        case "normal":
            return rng.normal(size=size)
        case "heavy tails":
            return rng.standard_cauchy(size=size)
        case "skewed":
            return rng.lognormal(0, 2, size=size)
        case _:
            return rng.integers(0, 3, size=size).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "skewed", "three values"])
def test_runs_without_a_change_have_alarms_no_more_often_than_promised(kind):
    """400 runs of 200 steps of ten independent series, any change being large enough to be told."""
    series = with_least(SERIES, {one.name: 0.0 for one in SERIES})
    rng, names = np.random.default_rng(0), [one.name for one in series]
    for rate in (0.05, 0.5):
        rule = alarm_rule(200, num_sides=num_sides(series), rate=rate)
        wrong = 0
        for _ in range(400):
            values, alarms = draws(kind, (200, len(series)), rng), Alarms(rule, series)
            wrong += any(alarms.look(t, dict(zip(names, row, strict=True))) for t, row in enumerate(values.tolist()))
        # 95 % of binomial counts of a rate at its bound lie below bound * 400 + 1.645 sd.
        assert wrong <= 400 * rule.bound + 1.645 * math.sqrt(400 * rule.bound * (1 - rule.bound))


@pytest.mark.slow
def test_a_shorter_window_would_break_the_promise():
    """The same simulation finds a rule that is wrong too often: with w = 2, 200 steps have an alarm in most runs."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(200):
        wrong += bool(told(rng.normal(size=200).tolist(), rule_of(20, 2)))
    assert wrong > 0.2 * 200


def test_a_change_is_told_after_the_window_with_its_first_step_and_once():
    rng = np.random.default_rng(1)
    rule = alarm_rule(300, num_sides=1)
    values = rng.normal(size=300)
    values[100:] += 20
    (alarm,) = told(values.tolist(), rule)
    # The first of w values beyond the baseline is step 100, the last one step 100 + w - 1.
    assert (alarm.since, alarm.step, alarm.side) == (100, 100 + rule.window - 1, "up")
    assert alarm.before == pytest.approx(np.median(values[: rule.baseline_steps]))
    assert alarm.after == pytest.approx(values[100 : 100 + rule.window].mean())
    assert "rose from" in alarm.message and "since step 100" in alarm.message
    assert str(alarm).endswith("Likely cause: c. What to do: t.")


def test_a_value_back_in_the_range_begins_the_count_anew():
    rule = rule_of(5, 3)
    quiet = [0.0, 1.0, 0.5, 0.2, 0.9]
    assert told([*quiet, 2, 2, 1.0, 2, 2], rule) == []  # 1.0 equals the highest of the baseline: not beyond it
    (alarm,) = told([*quiet, 2, 2, 1.0, 2, 2, 2], rule)
    assert (alarm.since, alarm.step) == (8, 10)


def test_a_change_that_is_certain_but_small_is_not_told():
    quiet, rule = [1.0, 1.01, 1.02, 1.03, 1.04], rule_of(5, 3)
    series = with_least([PLAIN], {"x": 0.5})[0]
    # The median of the baseline is 1.02; 1.4 is 0.38 above it, 1.6 is 0.58.
    assert told([*quiet, *[1.4] * 5], rule, series) == []
    assert len(told([*quiet, *[1.6] * 5], rule, series)) == 1
    relative = Series("x", ("up",), 0.5, "x", {"up": "c"}, {"up": "t"}, is_relative=True)
    # 0.5 of 1.02: from 1.53 on.
    assert told([*quiet, *[1.5] * 5], rule, relative) == []
    assert len(told([*quiet, *[1.55] * 5], rule, relative)) == 1


def test_equal_values_are_never_told():
    assert told([0.0] * 500, alarm_rule(500, num_sides=2)) == []


def test_a_side_that_is_not_asked_for_is_not_told_and_both_sides_once_each():
    one_sided = Series("x", ("down",), 0.0, "x", {"down": "c"}, {"down": "t"})
    quiet, rule = [0.0, 0.1, 0.2, 0.3, 0.4], rule_of(5, 3)
    assert told([*quiet, *[9.0] * 5], rule, one_sided) == []
    both = told([*quiet, *[9.0] * 9, *[-9.0] * 9], rule)
    assert [one.side for one in both] == ["up", "down"]


def test_steps_without_a_number_are_passed_over():
    alarms = Alarms(rule_of(5, 3), [PLAIN])
    values = [0.0, None, 0.1, 0.2, None, 0.3, 0.4, None, 9.0, None, 9.0, 9.0]
    found = [one for step, value in enumerate(values) for one in alarms.look(step, {"x": value})]
    assert [(one.since, one.step) for one in found] == [(8, 11)]


def test_least_changes_are_checked():
    assert with_least(SERIES, {"kl": 1.0})[4].least == 1.0
    for bad in ({"nothing": 1.0}, {"kl": -1.0}, {"kl": float("nan")}):
        with pytest.raises(SettingsError, match="least changes"):
            with_least(SERIES, bad)


def test_every_series_says_what_it_means_on_each_of_its_sides():
    for one in SERIES:
        assert set(one.cause) == set(one.todo) == set(one.sides) and one.says.startswith(("the ", "distinct"))
