"""Two samples of one distribution are told apart as seldom as promised, two of different ones are; by hand where a hand can, by simulation where not."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from rewardsmith.auditing.two_samples import PENALTY, Samples, classifier_test, decisions, mmd_test
from rewardsmith.errors import DataError
from rewardsmith.stats import cluster_codes


def names(side, prompts):
    return [f"{side}{i}" for i in prompts]


def drawn(rng, num_prompts, num_features=6, *, shift=0.0, each=1):
    """Features of `each` texts of every prompt, half of whose variance is the prompt's; the first feature lies `shift` higher."""
    prompts = np.repeat(np.arange(num_prompts), each)
    own, common = rng.normal(size=(len(prompts), num_features)), rng.normal(size=(num_prompts, num_features))
    values = (own + common[prompts]) * np.sqrt(0.5)
    values[:, 0] += shift
    return values, prompts


def samples(rng, *, shift=0.0, each=1, num_prompts=40):
    reference, old = drawn(rng, num_prompts, each=each)
    new, fresh = drawn(rng, num_prompts, each=each, shift=shift)
    return Samples.of((reference, names("a", old)), (new, names("b", fresh)))


@pytest.mark.parametrize("each", [1, 3])
def test_two_halves_of_one_set_have_an_interval_that_covers_one_half(each):
    """100 sets at 95 %: 95 with a standard deviation of 2.2, so 88 is three of them below. Without the widening the variance is half of what it is: P(|z| < 1.96 / sqrt 2) = 83 of 100."""
    covered, unwidened = 0, 0
    for seed in range(100):
        found = classifier_test(samples(np.random.default_rng(seed), each=each), permutations=29, seed=seed)
        covered += found.auc.low <= 0.5 <= found.auc.high
        reach = (logit(found.auc.high) - logit(found.auc.value)) / found.widened
        low, high = expit(logit(found.auc.value) + np.array([-reach, reach]))
        unwidened += low <= 0.5 <= high
    assert covered >= 88
    assert unwidened < covered - 5


def test_p_values_are_as_small_as_promised_and_no_smaller():
    """Of 100 sets without a difference one in twenty has p <= 0.05: 5 with a standard deviation of 2.2; of 20 that differ by 1.2 sd all but a few have."""
    null = [samples(np.random.default_rng(seed), num_prompts=30) for seed in range(100)]
    for test in (classifier_test, mmd_test):
        p_values = np.array([test(one, permutations=19, seed=seed).p_value for seed, one in enumerate(null)])
        assert (p_values <= 0.05).sum() <= 12 and 0.35 <= (p_values <= 0.5).mean() <= 0.65
        shifted = [samples(np.random.default_rng(seed), num_prompts=30, shift=1.2) for seed in range(20)]
        assert sum(test(one, permutations=19, seed=3).p_value <= 0.05 for one in shifted) >= 15


def test_the_interval_covers_what_the_classifier_can_do_where_there_is_a_difference():
    """The target is the mean of the values themselves; 50 sets at 95 %: 47.5 with a standard deviation of 1.5."""
    found = [
        classifier_test(samples(np.random.default_rng(seed), shift=1.5), permutations=29, seed=seed).auc
        for seed in range(50)
    ]
    target = np.mean([one.value for one in found])
    assert 0.75 < target < 0.9
    assert sum(one.low <= target <= one.high for one in found) >= 43


def test_copies_of_a_prompt_never_stand_on_two_sides():
    """Five copies of each of 40 prompts in 40 features: whoever may learn a prompt knows the side of its copies, and would have an AUC near 1."""
    rng = np.random.default_rng(0)
    values, prompts = np.repeat(rng.normal(size=(80, 40)), 5, axis=0), np.repeat(np.arange(80), 5)
    found = classifier_test(
        Samples.of((values[:200], names("", prompts[:200])), (values[200:], names("", prompts[200:])))
    )
    assert found.auc.low < 0.5 < found.auc.high and found.auc.value < 0.7
    assert found.counts == {"num_reference": 200, "num_new": 200, "prompts_reference": 40, "prompts_new": 40}


def test_a_set_is_not_told_apart_from_itself():
    rng = np.random.default_rng(1)
    values, prompts = drawn(rng, 40)
    both = Samples.of((values, names("", prompts)), (values, names("", prompts)))
    assert classifier_test(both).p_value > 0.3
    assert mmd_test(both).mmd2.value == pytest.approx(0.0, abs=1e-6)


def test_sides_that_never_overlap_are_told_apart_without_exception_and_without_certainty():
    """AUC 1 on 40 prompts a side is Wilson's interval of 40 of 40: 1 / (1 + 1.96^2 / 40) = 0.912."""
    found = classifier_test(samples(np.random.default_rng(2), shift=50.0), permutations=99)
    assert (found.auc.value, found.auc.high) == (1.0, 1.0)
    assert found.auc.low == pytest.approx(0.912, abs=1e-3)
    assert found.p_value == 0.01 and found.widened < 1.2


def test_many_labellings_are_fitted_as_one_alone():
    """The batch of permutations has the optimum of scikit-learn's logistic regression: decisions that differ by little of their spread."""
    rng = np.random.default_rng(3)
    train, test, sides = rng.normal(size=(200, 5)), rng.normal(size=(50, 5)), rng.random((200, 4)) < 0.5
    sides[:, 0] = train[:, 0] + rng.normal(size=200) > 0
    found = decisions(train, sides, test)
    for k in range(4):
        alone = (
            LogisticRegression(C=1 / (PENALTY * len(train)), tol=1e-8).fit(train, sides[:, k]).decision_function(test)
        )
        assert np.abs(found[:, k] - alone).max() < 0.01 * alone.std()


def test_mmd_by_hand():
    """Over all pairs of texts of different prompts, with the kernel and the bandwidth written out."""
    rng = np.random.default_rng(4)
    both = samples(rng, shift=0.5, each=2, num_prompts=20)
    found = mmd_test(both, permutations=9)
    scaled = both.values / both.values.std(axis=0)
    squares = ((scaled[:, None] - scaled[None]) ** 2).sum(axis=2)
    upper = squares[np.triu_indices(len(squares), 1)]
    assert found.bandwidth == pytest.approx(np.sqrt(np.median(upper)), rel=1e-6)
    kernel = np.exp(-squares / (2 * found.bandwidth**2))

    def mean(rows, columns):
        apart = [(i, j) for i in rows for j in columns if both.prompts[i] != both.prompts[j]]
        return np.mean([kernel[i, j] for i, j in apart])

    old, new = np.flatnonzero(~both.is_new), np.flatnonzero(both.is_new)
    assert found.mmd2.value == pytest.approx(mean(old, old) + mean(new, new) - 2 * mean(old, new), abs=1e-6)
    assert found.mmd2.low <= found.mmd2.value <= found.mmd2.high


def test_the_mmd_sees_what_no_line_parts():
    """Equal means, one side twice as wide: a linear classifier has nothing to go by."""
    rng = np.random.default_rng(5)
    reference, new = rng.normal(size=(100, 3)), 2 * rng.normal(size=(100, 3))
    both = Samples.of((reference, names("a", range(100))), (new, names("b", range(100))))
    assert mmd_test(both).p_value == pytest.approx(1 / 501)
    assert classifier_test(both).p_value > 0.05


def test_permutations_move_all_texts_of_a_prompt_together():
    both = samples(np.random.default_rng(6), each=3, num_prompts=20)
    sides = both.shuffled(np.random.default_rng(0), 50)
    for prompt in range(40):
        assert np.ptp(sides[both.prompts == prompt].astype(int), axis=0).max() == 0
    assert (sides.sum(axis=0) == both.is_new.sum()).all() and np.ptp(sides.astype(int), axis=1).any()


def test_the_same_seed_finds_the_same():
    both = samples(np.random.default_rng(7), shift=0.5)
    assert classifier_test(both, permutations=29, seed=1) == classifier_test(both, permutations=29, seed=1)
    assert mmd_test(both, permutations=29, seed=1) == mmd_test(both, permutations=29, seed=1)


def test_texts_that_are_all_the_same_are_no_fault():
    same = Samples(np.ones((60, 3)), np.arange(60) >= 30, cluster_codes(list(map(str, range(60)))))
    assert classifier_test(same, permutations=19).auc.value == 0.5
    assert mmd_test(same, permutations=19).mmd2.value == 0.0


def test_too_few_prompts_and_broken_features_are_refused():
    values, prompts = drawn(np.random.default_rng(8), 20)
    with pytest.raises(DataError, match="at least 20 prompts in the new texts"):
        Samples.of((values, names("a", prompts)), (values[:19], names("b", prompts[:19])))
    with pytest.raises(DataError, match="finite"):
        Samples.of((values, names("a", prompts)), (values * np.nan, names("b", prompts)))
