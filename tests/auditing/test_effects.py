"""Effects in standard deviations: values by hand, intervals by simulation, and Holm's intervals beside Holm's p-values."""

import numpy as np
import pytest

from rewardsmith.auditing.effects import Effect, ScoreUnit, holm_confidences
from rewardsmith.errors import DataError, ScoreError
from rewardsmith.significance import holm


def test_the_unit_is_the_standard_deviation_within_a_prompt():
    # Margins 2 and 4: squares 4 / 2 = 2 and 16 / 2 = 8, mean 5.
    assert ScoreUnit.of(np.array([2.0, -4.0]), ["a", "b"]).sd == pytest.approx(5**0.5)


def test_the_unit_estimates_the_spread_of_independent_scores():
    scores = np.random.default_rng(0).normal(3, 1.7, size=(20_000, 2))
    unit = ScoreUnit.of(scores[:, 0] - scores[:, 1], [str(i) for i in range(len(scores))])
    assert unit.sd == pytest.approx(1.7, rel=0.02)


def test_a_scorer_that_tells_nothing_apart_has_no_unit():
    with pytest.raises(ScoreError, match="equal scores in all 2 pairs"):
        ScoreUnit.of(np.zeros(2), ["a", "b"])


def test_no_pairs_and_no_differences_are_errors():
    with pytest.raises(DataError):
        ScoreUnit.of(np.zeros(0), [])
    with pytest.raises(DataError):
        Effect.of(np.zeros(0), [], ScoreUnit.of(np.ones(2), ["a", "b"]))


def test_effect_and_error_by_hand():
    # The unit does not vary (squares 2, 2: sd = 2 ** 0.5), so only the mean's own error is left.
    unit = ScoreUnit.of(np.array([2.0, 2.0]), ["a", "b"])
    # Prompt a: 1 and 3, prompt b: 5. Mean 3; deviations -2, 0 | 2; sums of prompts over n = -2/3 and 2/3.
    effect = Effect.of(np.array([1.0, 3.0, 5.0]), ["a", "a", "b"], unit)
    assert effect.value == pytest.approx(3 / 2**0.5)
    # sqrt(2 / (2 - 1) * (4/9 + 4/9)) = 4/3, over the sd.
    assert effect.error == pytest.approx(4 / 3 / 2**0.5)
    assert (effect.n, effect.num_clusters) == (3, 2)


def test_strata_count_alike_however_large_they_are():
    unit = ScoreUnit.of(np.full(4, 2.0**0.5), list("abcd"))  # sd 1
    effect = Effect.of(np.array([1.0, 1.0, 1.0, -1.0]), list("abcd"), unit, strata=np.array([0, 0, 0, 1]))
    assert effect.value == pytest.approx(0.0)  # (1 - 1) / 2


def test_a_scorer_that_only_follows_the_labels_has_no_effect_across_strata():
    rng = np.random.default_rng(0)
    margins = rng.normal(1.0, 0.5, size=400)
    strata = (rng.random(400) < 0.3).astype(np.int64)
    names = [str(i) for i in range(400)]
    effect = Effect.of(np.where(strata == 1, -margins, margins), names, ScoreUnit.of(margins, names), strata=strata)
    assert effect.interval().low < 0 < effect.interval().high


def test_one_prompt_gives_no_interval():
    effect = Effect.of(np.array([1.0, 2.0]), ["a", "a"], ScoreUnit.of(np.ones(2), ["a", "b"]))
    assert effect.p_value == 1.0
    assert np.isinf(effect.interval().high)


@pytest.mark.parametrize(("differences", "p_value"), [([0.0, 0.0, 0.0], 1.0), ([1.0, 1.0, 1.0], 0.0)])
def test_effects_without_any_spread(differences, p_value):
    effect = Effect.of(np.array(differences), list("abc"), ScoreUnit.of(np.ones(3), list("abc")))
    assert effect.p_value == p_value


@pytest.mark.parametrize("copies", [1, 4])
def test_intervals_cover_the_planted_effect(copies):
    """40 prompts, effect 0.5 sd with noise of its own; with copies, the prompts' differences come four at a time."""
    rng = np.random.default_rng(copies)
    covered = 0
    names = [str(i) for i in range(40)]
    for _ in range(600):
        scores = rng.normal(0, 2, size=(40, 2))
        unit = ScoreUnit.of(scores[:, 0] - scores[:, 1], names)
        differences = np.repeat(1.0 + rng.normal(0, 1, size=40), copies)  # 1.0 is half of the sd of 2
        estimate = Effect.of(differences, np.repeat(names, copies).tolist(), unit).interval()
        covered += estimate.low <= 0.5 <= estimate.high
    assert 0.925 <= covered / 600 <= 0.975


def test_an_interval_after_holm_excludes_nothing_exactly_when_holm_rejects():
    rng = np.random.default_rng(0)
    for _ in range(200):
        m = int(rng.integers(1, 12))
        effects = [Effect(float(rng.normal(0, 3)), 1.0, 30, 30, 29.0) for _ in range(m)]
        p_values = [effect.p_value for effect in effects]
        for effect, confidence, adjusted in zip(effects, holm_confidences(p_values), holm(p_values), strict=True):
            interval = effect.interval(confidence)
            assert (interval.low > 0 or interval.high < 0) == (adjusted < 0.05)
