"""Ensembles: the three rules by hand, members on one scale, and what disagreement is worth when errors are independent."""

import numpy as np
import pytest

from rewardsmith.auditing.ensembles import Ensemble, Standard, combined
from rewardsmith.auditing.over_optimisation import AVERAGE, over_optimise
from rewardsmith.errors import ScoreError, SettingsError
from tests.auditing.simulated_pools import Simulated, heavy_tailed
from tests.fakes import FunctionScorer


def test_the_three_rules_by_hand():
    """Members say 1, 2 and 6: mean 3, least 1, sd sqrt((4 + 1 + 9) / 2) = 2.6458."""
    said = np.array([[1.0], [2.0], [6.0]])
    assert combined(said, "mean") == pytest.approx([3.0])
    assert combined(said, "worst case") == pytest.approx([1.0])
    assert combined(said, "lower confidence") == pytest.approx([3 - 2.6458], abs=1e-4)
    assert combined(said, "lower confidence", k=0) == pytest.approx([3.0])
    assert combined(said, "lower confidence", k=2) == pytest.approx([3 - 5.2915], abs=1e-4)


def test_members_are_put_on_one_scale_by_standards_that_stay():
    """The second member speaks in hundreds; its standard is of 100 and 300, mean 200 and sd sqrt(20000) = 141.42."""
    first = FunctionScorer(lambda prompt, answer: len(answer))
    second = FunctionScorer(lambda prompt, answer: 100 * len(answer))
    standards = {"a": Standard.of(np.array([1.0, 3.0]), "a"), "b": Standard.of(np.array([100.0, 300.0]), "b")}
    assert standards["b"].as_dict() == pytest.approx({"mean": 200.0, "sd": 141.4214})
    ensemble = Ensemble({"a": first, "b": second}, standards, "mean")
    # 5 characters: (5 - 2) / 1.4142 = (500 - 200) / 141.42 = 2.1213, whoever is asked
    assert ensemble.score([("?", "12345"), ("?", "12")]) == pytest.approx([2.1213, 0.0], abs=1e-4)
    assert ensemble.as_dict()["members"]["a"] == standards["a"].as_dict() and ensemble.as_dict()["k"] is None


@pytest.fixture(scope="module")
def independent():
    simulated = Simulated(heavy_tailed(4, freedom=1.2), num_groups=80, num_candidates=48, seed=3)
    return over_optimise(simulated.proxies, simulated.pool, simulated.gold)


def test_lower_confidence_beats_members_whose_errors_are_independent(independent):
    against = {
        (one.first, one.second, one.at): one
        for one in independent.differences
        if one.family.startswith("ensemble against")
    }
    for at in ("n_star", "n_max"):
        found = against["lower confidence", AVERAGE, at]
        assert found.difference.low > 0 and found.p_adjusted < 0.01
    assert all(against["lower confidence", f"m{k}", "n_star"].difference.low > 0 for k in range(4))
    # The average member's gain is the mean of the members' own.
    members = np.mean([independent[f"m{k}"].gold_at_n_star.value for k in range(4)])
    difference = independent["lower confidence"].gold_at_n_star.value - members
    assert against["lower confidence", AVERAGE, "n_star"].difference.value == pytest.approx(difference)
    assert independent["m0"].is_over_optimised and not independent["lower confidence"].is_over_optimised
    assert "the lower-confidence ensemble's gold at its n* is +" in independent.reading


def test_errors_that_all_members_share_are_not_seen():
    def shared(rng, shape):
        return np.repeat(heavy_tailed(1)(rng, shape), 3, axis=0) + 1e-3 * rng.normal(size=(3, *shape))

    simulated = Simulated(shared, num_groups=40, num_candidates=16, seed=4)
    found = over_optimise(simulated.proxies, simulated.pool, simulated.gold)
    differences = [
        one.difference for one in found.differences if one.first == "lower confidence" and one.second == "m0"
    ]
    assert all(abs(one.value) < 0.1 for one in differences)


def test_each_member_counts_alike_whatever_its_scale():
    simulated = Simulated(heavy_tailed(2, scale=0.8, freedom=3), num_groups=20, num_candidates=8, seed=5)
    m0, m1 = simulated.proxy(0), simulated.proxy(1)
    plain = over_optimise({"m0": m0, "m1": m1}, simulated.pool, simulated.gold)
    scaled = over_optimise(
        {"m0": m0, "m1": lambda prompt, answer: 7 + 50 * m1(prompt, answer)}, simulated.pool, simulated.gold
    )
    for rule in ("mean", "worst case", "lower confidence"):
        assert scaled[rule].gold[-1].value == pytest.approx(plain[rule].gold[-1].value, abs=1e-6)


def test_what_is_no_ensemble_is_refused():
    with pytest.raises(SettingsError, match="two members"):
        combined(np.ones((1, 3)), "mean")
    with pytest.raises(SettingsError, match="k of at least 0"):
        combined(np.ones((2, 3)), "lower confidence", k=-1)
    with pytest.raises(ScoreError, match="that differ"):
        Standard.of(np.ones(4), "constant")
