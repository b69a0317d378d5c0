"""Distances and their p-values: honest where the normal distribution is not, by hand, and the same after a detector was saved and loaded."""

import json

import numpy as np
import pytest

from rewardsmith.auditing.outliers import (
    FOLDS,
    Detector,
    DistanceFit,
    find_outliers,
    load_detector,
    with_accuracy,
)
from rewardsmith.auditing.text_features import TextFeatures
from rewardsmith.errors import ContractError, DataError
from rewardsmith.scores import DomainDetector


def heavy(rng, num_texts, num_features=8):
    """Features with the tails of Student's t at three degrees of freedom: far from normal, as features of texts are."""
    return rng.standard_t(3, size=(num_texts, num_features))


def named(side, num_prompts, each=1):
    return [f"{side}{i}" for i in range(num_prompts) for _ in range(each)]


def test_p_values_are_honest_where_chi_square_is_not():
    """60 references, each with 50 new texts of the same kind: 5 % have p < 0.05, where chi-square calls one in twelve rare; the share's interval covers 5 %."""
    shares, chi_square, alarms, covered, aucs = [], [], [], 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        fit = DistanceFit.fit(heavy(rng, 100), named("a", 100), seed=seed)
        found = find_outliers(fit, heavy(rng, 50), named("b", 50), named("a", 100))
        shares.append(found.outside.value)
        chi_square.append((found.judged.chi_square_p < 0.05).mean())
        alarms.append(found.chi_square_alarms.value)
        covered += found.outside.low <= 0.05 <= found.outside.high
        aucs += found.auroc.low <= 0.5 <= found.auroc.high
    assert 0.03 < np.mean(shares) < 0.06
    assert np.mean(chi_square) > 0.08 and np.mean(alarms) == pytest.approx(np.mean(chi_square), abs=0.02)
    # 60 sets at 95 %: 57 with a standard deviation of 1.7.
    assert covered >= 52 and aucs >= 52


def test_a_p_value_by_hand():
    """Twice (1 + sum over the prompts of their share of texts that lie as far out, or as near, by the fit which has not seen them) / (prompts + 1)."""
    rng = np.random.default_rng(0)
    prompts = named("a", 80, each=3)
    values, new = heavy(rng, 240), np.concatenate([heavy(rng, 4), np.zeros((1, 8))])
    fit = DistanceFit.fit(values, prompts, seed=1)

    def distance(text, k):
        centred = text - fit.means[k]
        return np.sqrt(centred @ fit.precisions[k] @ centred)

    judged = fit.judge(new)
    for j, text in enumerate(new):
        farther = dict.fromkeys(prompts, 0.0)
        for i, prompt in enumerate(prompts):
            farther[prompt] += (distance(values[i], fit.folds[i]) >= distance(text, fit.folds[i])) / 3
        tail = min(sum(farther.values()), 80 - sum(farther.values()))  # no two distances are equal
        assert judged.p_value[j] == pytest.approx(min(1, 2 * (1 + tail) / 81))
        assert judged.distance[j] == pytest.approx(np.mean([distance(text, k) for k in range(FOLDS)]))
        assert judged.rank[j] == pytest.approx(1 - sum(farther.values()) / 80)


def test_no_text_is_judged_by_a_fit_that_has_seen_a_text_of_its_prompt():
    values, prompts = heavy(np.random.default_rng(1), 320), named("a", 80, each=4)
    fit = DistanceFit.fit(values, prompts)
    for k in range(FOLDS):
        seen = fit.folds != k
        assert fit.means[k] == pytest.approx(values[seen].mean(axis=0))
        assert not {prompts[i] for i in np.flatnonzero(seen)} & {prompts[i] for i in np.flatnonzero(~seen)}


def test_texts_far_away_have_the_least_p_value_and_the_largest_distance():
    rng = np.random.default_rng(2)
    fit = DistanceFit.fit(heavy(rng, 80), named("a", 80))
    found = find_outliers(fit, heavy(rng, 30) + 40, named("b", 30), named("a", 80))
    assert found.judged.p_value == pytest.approx(np.full(30, 2 / 81))
    assert (found.auroc.value, found.outside.value, found.false_positive_rate.value) == (1.0, 1.0, 0.0)
    assert 0.8 < found.auroc.low < 1.0 and 0.8 < found.outside.low < 1.0
    json.dumps(found.as_dict(), allow_nan=False)


def test_texts_of_nothing_in_particular_are_outside_too():
    """In 40 normal features the distances of the reference lie around sqrt 40; what lies at the centre of all of them is as rare as what lies far out."""
    rng = np.random.default_rng(7)
    fit = DistanceFit.fit(rng.normal(size=(120, 40)), named("a", 120))
    found = find_outliers(fit, 0.05 * rng.normal(size=(30, 40)), named("b", 30), named("a", 120))
    assert found.outside.value == 1.0 and found.auroc.value == 0.0
    assert found.judged.chi_square_p.min() > 0.9


def test_auroc_is_the_mean_rank_and_passes_for_what_is_not_outside():
    rng = np.random.default_rng(3)
    fit = DistanceFit.fit(heavy(rng, 80), named("a", 80))
    found = find_outliers(fit, heavy(rng, 40) + 1, named("b", 20, each=2), named("a", 80))
    assert found.auroc.value == pytest.approx(found.judged.rank.mean())
    assert found.auroc.low < found.auroc.value < found.auroc.high
    assert found.false_positive_rate.value == pytest.approx(1 - found.outside.value)
    assert found.false_positive_rate.low == pytest.approx(1 - found.outside.high)


def test_accuracy_falls_where_it_was_made_to_fall_with_the_distance():
    """300 pairs, right on the 150 nearer ones and wrong on the others: five of ten bins of 30 are at 1, five at 0."""
    rng = np.random.default_rng(4)
    fit = DistanceFit.fit(heavy(rng, 80), named("a", 80))
    outliers = find_outliers(fit, heavy(rng, 10), named("b", 10), named("a", 80))
    distances = rng.permutation(np.arange(300.0))
    found = with_accuracy(outliers, distances, distances > 200, np.where(distances < 150, 1.0, -1.0), named("p", 300))
    assert [row["accuracy"]["value"] for row in found.accuracy_by_distance] == [1.0] * 5 + [0.0] * 5
    assert [row["accuracy"]["n"] for row in found.accuracy_by_distance] == [30] * 10
    assert found.accuracy_inside.value == pytest.approx(150 / 201) and found.accuracy_outside.value == 0.0


def test_a_reference_of_few_prompts_and_broken_features_are_refused():
    values = heavy(np.random.default_rng(5), 100)
    with pytest.raises(DataError, match="at least 80 reference prompts"):
        DistanceFit.fit(values, named("a", 50, each=2))
    with pytest.raises(DataError, match="finite"):
        DistanceFit.fit(values * np.nan, named("a", 100))


def test_texts_that_are_all_the_same_are_no_fault():
    fit = DistanceFit.fit(np.ones((90, 3)), named("a", 90))
    assert fit.judge(np.ones((2, 3))).p_value == pytest.approx(np.ones(2))


# Detectors


class Lengths:
    """Features of a text: the numbers of its vowels, consonants and other characters."""

    def features(self, pairs):
        texts = [(prompt if isinstance(prompt, str) else prompt[-1]["content"]) + answer for prompt, answer in pairs]
        vowels = [sum(c in "aeiou" for c in text) for text in texts]
        letters = [sum(c.isalpha() for c in text) for text in texts]
        rows = [[v, n - v, len(text) - n] for text, v, n in zip(texts, vowels, letters, strict=True)]
        return np.array(rows, dtype=np.float32).reshape(len(texts), 3)


def words(rng, vocabulary, num_texts):
    return [" ".join(rng.choice(vocabulary, size=rng.integers(4, 9))) for _ in range(num_texts)]


KITCHEN = ["stir", "the", "soup", "add", "salt", "bake", "bread", "slowly", "onion", "until", "golden"]


def detector(features, made_by=None):
    rng = np.random.default_rng(6)
    prompts, answers = words(rng, KITCHEN, 100), words(rng, KITCHEN, 100)
    own = features or TextFeatures.fit([(text, "") for text in words(rng, KITCHEN, 30)])
    fits = {
        "prompts": DistanceFit.fit(own.features([(text, "") for text in prompts]), named("a", 100)),
        "answers": DistanceFit.fit(own.features([("", text) for text in answers]), named("a", 100)),
    }
    return Detector(fits, own, made_by)


def test_a_flag_is_that_of_the_less_likely_part_and_pays_for_both():
    found = detector(Lengths())
    usual, odd = "stir the soup add salt", "!" * 300
    inside, prompt, answer = found.flags([(usual, usual), ([{"role": "user", "content": odd}], usual), (usual, odd)])
    assert not inside.outside and inside.p_value > 0.05
    assert (prompt.outside, prompt.part) == (True, "prompts") and (answer.outside, answer.part) == (True, "answers")
    # The least p-value of 100 prompts is 2 / 101; of two parts 4 / 101.
    assert answer.p_value == pytest.approx(4 / 101)
    assert found.flags([]) == [] and isinstance(found, DomainDetector)


def test_a_loaded_detector_says_what_the_saved_one_said(tmp_path):
    found, texts = detector(None), [("stir the soup", "add salt"), ("Ein Gesetz gilt", "!" * 50)]
    found.save(tmp_path / "domain")
    found.save(tmp_path / "domain")  # its own kind may be replaced
    loaded = load_detector(tmp_path / "domain", lambda made_by: pytest.fail("asked for a model"))
    for before, after in zip(found.flags(texts), loaded.flags(texts), strict=True):
        assert after.distance == pytest.approx(before.distance, rel=1e-4)
        assert (after.p_value, after.outside, after.part) == (before.p_value, before.outside, before.part)
    assert sorted(path.name for path in (tmp_path / "domain").iterdir()) == ["arrays.npz", "detector.json"]


def test_a_detector_of_model_features_asks_for_what_made_them(tmp_path):
    found = detector(Lengths(), {"name": "m", "max_length": 128, "files": {"model.safetensors": "0" * 64}})
    found.save(tmp_path / "domain")
    asked = []
    loaded = load_detector(tmp_path / "domain", lambda made_by: asked.append(made_by) or Lengths())
    assert asked == [found.made_by]
    assert loaded.flags([("a", "b")])[0].p_value == found.flags([("a", "b")])[0].p_value


def test_what_is_no_detector_is_refused(tmp_path):
    with pytest.raises(ContractError, match="nowhere"):
        load_detector(tmp_path / "nowhere", lambda made_by: Lengths())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="something else"):
        detector(None).save(tmp_path / "other")
    folder = tmp_path / "domain"
    detector(None).save(folder)
    document = json.loads((folder / "detector.json").read_text())
    (folder / "detector.json").write_text(json.dumps(document | {"format_version": 2}))
    with pytest.raises(ContractError, match="version 1"):
        load_detector(folder, lambda made_by: Lengths())
    (folder / "detector.json").write_text(json.dumps(document | {"parts": ["answers", "images"]}))
    with pytest.raises(ContractError, match="readable"):
        load_detector(folder, lambda made_by: Lengths())
    (folder / "detector.json").write_text(json.dumps(document | {"terms": {"words": [], "runs": []}}))
    with pytest.raises(ContractError, match="one representation"):
        load_detector(folder, lambda made_by: Lengths())
    (folder / "detector.json").write_text(json.dumps(document))
    for content in (b"", b"no zip", (folder / "arrays.npz").read_bytes()[:2000]):
        (folder / "arrays.npz").write_bytes(content)
        with pytest.raises(ContractError, match="readable"):
            load_detector(folder, lambda made_by: Lengths())


def test_no_pickle_is_read(tmp_path):
    folder = tmp_path / "domain"
    detector(None).save(folder)
    arrays = dict(np.load(folder / "arrays.npz"))
    np.savez(folder / "arrays.npz", **arrays | {"idf": np.array([object()], dtype=object)})
    with pytest.raises(ContractError, match="readable"):
        load_detector(folder, lambda made_by: Lengths())
