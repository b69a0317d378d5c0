"""New texts against a reference: what is told apart, what is not, what it costs, and what is said of it. No model: texts are drawn from two vocabularies."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from rewardsmith.auditing.domain import domain_of
from rewardsmith.auditing.domain_words import tell_apart
from rewardsmith.auditing.outliers import load_detector
from rewardsmith.auditing.shift import measure_shift
from rewardsmith.auditing.text_features import TextFeatures
from rewardsmith.data.schema import Group, Preference, Single, prompt_key
from rewardsmith.data.texts import read_texts
from rewardsmith.errors import DataError, RowError, SettingsError
from tests.conftest import real_data
from tests.fakes import FunctionScorer

KITCHEN = "stir the soup add salt bake bread slowly onion until golden then serve with butter and herbs".split()
COURT = "the judge heard the appeal of a tenant whose contract was void under law before any claim".split()


def text(rng, vocabulary):
    return " ".join(rng.choice(vocabulary, size=rng.integers(5, 12)))


def pairs(count, vocabulary=KITCHEN, seed=0, **columns):
    """Pairs of distinct prompts; the chosen answer is the longer one in two thirds of them."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        long, short = sorted((text(rng, vocabulary), text(rng, vocabulary)), key=len, reverse=True)
        if rng.random() < 1 / 3:
            long, short = short, long
        columns_of = {key: values[i % len(values)] for key, values in columns.items()}
        rows.append(
            Preference(f"{seed}-{i}", f"{text(rng, vocabulary)} {rng.integers(10)}", long, short, metadata=columns_of)
        )
    return rows


LENGTH = FunctionScorer(lambda prompt, answer: len(answer) / 20)


@pytest.fixture(scope="module")
def cooks_and_courts():
    stages = []
    found = measure_shift(
        pairs(150),
        pairs(120, COURT, seed=1),
        scorer=LENGTH,
        progress=lambda *told: stages.append(told),
    )
    return found, stages


@pytest.fixture(scope="module")
def cooks_and_cooks():
    return measure_shift(pairs(150), pairs(150, seed=2), scorer=LENGTH)


def test_texts_of_other_words_are_told_apart(cooks_and_courts):
    found, _ = cooks_and_courts
    document = found.as_dict()
    for part in ("prompts", "answers"):
        assert document[part]["shifted"] and document[part]["classifier"]["auc"]["low"] > 0.9
        assert document[part]["mmd"]["p_adjusted"] < 0.05
        assert document[part]["outliers"]["auroc"]["low"] > 0.6
    assert document["known_prompts"]["value"] == 0
    assert document["representation"]["kind"] == "tf-idf"
    json.dumps(document, allow_nan=False)


def test_two_halves_of_one_set_are_not(cooks_and_cooks):
    document = cooks_and_cooks.as_dict()
    for part in ("prompts", "answers", "pairs"):
        auc = document[part]["classifier"]["auc"]
        assert not document[part]["shifted"] and auc["low"] < 0.5 < auc["high"]
    for part in ("prompts", "answers"):
        assert document[part]["outliers"]["outside"]["low"] < 0.05
        assert document[part]["words"]["of_new"] == document[part]["words"]["of_reference"] == []


def test_p_values_are_adjusted_over_all_tests_of_the_document(cooks_and_courts):
    """Six tests of 500 permutations: the least p-value is 6 / 501."""
    document = cooks_and_courts[0].as_dict()
    tests = [document[part][test] for part in ("prompts", "answers", "pairs") for test in ("classifier", "mmd")]
    assert min(one["p_value"] for one in tests) == pytest.approx(1 / 501)
    assert min(one["p_adjusted"] for one in tests) == pytest.approx(6 / 501)
    assert all(one["p_adjusted"] >= one["p_value"] for one in tests)


def test_the_words_that_tell_the_domains_apart_are_named(cooks_and_courts):
    words = cooks_and_courts[0].parts["answers"].words
    new, reference = ({word.word for word in side} for side in (words.of_new, words.of_reference))
    assert new and new <= set(COURT) and "the" not in new  # both vocabularies have it
    assert reference and reference <= set(KITCHEN)
    assert words.num_new == 120 and all(word.num_reference == 0 for word in words.of_new)


def test_the_farthest_prompts_come_with_their_nearest_reference_prompts():
    new = [*pairs(60, seed=1), Preference("odd", "onion soup " * 200, "add salt", "add")]
    found = measure_shift(pairs(150), new)
    first = found.parts["prompts"].farthest[0]
    assert first.prompt.startswith("onion soup") and first.p_value < 0.05
    assert len(first.nearest) == 3 and {"onion", "soup"} & set(first.nearest[0][0].split())
    assert first.nearest[0][1] >= first.nearest[1][1] > -1


def test_what_is_foretold_stands_beside_what_came(cooks_and_cooks):
    predicted = cooks_and_cooks.predicted
    assert predicted.is_fitted and predicted.realised.n == 150
    for forecast in (predicted.atc, predicted.doc):
        assert forecast.low < predicted.realised.high and predicted.realised.low < forecast.high
    assert predicted.doc_error.low < 0 < predicted.doc_error.high
    outliers = cooks_and_cooks.parts["answers"].outliers
    assert [row["accuracy"]["n"] for row in outliers.accuracy_by_distance] == [30] * 5


def test_what_the_new_rows_lack_is_not_measured_and_said_so():
    prompts = [pair.prompt for pair in pairs(60, seed=1)]
    found = measure_shift(pairs(150), prompts, scorer=LENGTH)
    assert set(found.parts) == {"prompts"} and found.predicted is None and found.pairs is None
    assert "answers to 0 prompts" in found.not_measured["answers"]
    assert "two answers to 0 prompts" in found.not_measured["predicted_accuracy"]
    singles = [Single(f"s{i}", prompt, "stir the soup") for i, prompt in enumerate(prompts)]
    answered = measure_shift(pairs(150), singles)
    assert set(answered.parts) == {"prompts", "answers"}
    assert answered.not_measured == {"predicted_accuracy": "no scorer"}


def test_answers_without_labels_are_foretold_and_not_judged():
    groups = [Group(pair.id, pair.prompt, (pair.chosen, pair.rejected), "none") for pair in pairs(60, seed=1)]
    found = measure_shift(pairs(150), groups, scorer=LENGTH)
    assert found.predicted.realised is None and 0 < found.predicted.doc.value < 1
    assert "pairs" in found.not_measured and "realised" not in found.reading


def test_each_value_of_a_column_is_foretold_from_the_others():
    found = measure_shift(pairs(180, topic=["a", "b", "c"]), pairs(60, seed=1), scorer=LENGTH, by="topic")
    assert set(found.slices.predictions) == {"a", "b", "c"}
    # New prompts without answers take nothing from what the reference can show by itself.
    prompts = [pair.prompt for pair in pairs(60, seed=1)]
    same = measure_shift(pairs(180, topic=["a", "b", "c"]), prompts, scorer=LENGTH, by="topic")
    assert same.slices.atc_error == found.slices.atc_error


def test_features_that_are_handed_in_are_those_that_are_used(tmp_path):
    class Vowels:
        def features(self, texts):
            joined = [prompt + answer for prompt, answer in texts]
            return np.array([[sum(c in "aeiou" for c in one), len(one)] for one in joined], dtype=np.float32)

    told = {"name": "vowels", "max_length": 7, "files": {}, "encoder": "/somewhere"}
    found = measure_shift(pairs(150), pairs(60, seed=1), features=Vowels(), made_by=told)
    assert found.as_dict()["representation"] == {"kind": "features", "name": "vowels", "max_length": 7}
    assert found.parts["prompts"].outliers.num_features == 2
    unnamed = measure_shift(pairs(150), pairs(60, seed=1), features=Vowels())
    with pytest.raises(SettingsError, match=r"what computes the features again.*got nothing"):
        unnamed.save_detector(tmp_path / "domain")
    found.save_detector(tmp_path / "domain")
    Vowels.features = lambda self, texts: np.ones(len(texts))
    with pytest.raises(DataError, match="finite features of shape"):
        measure_shift(pairs(150), pairs(60), features=Vowels())


def test_the_saved_detector_flags_what_the_audit_called_outside(cooks_and_courts, tmp_path):
    found, _ = cooks_and_courts
    found.save_detector(tmp_path / "domain")
    loaded = load_detector(tmp_path / "domain", lambda made_by: pytest.fail("it needs no model"))
    own = pairs(100, seed=5)
    inside = [flag.outside for flag in loaded.flags([pair.chosen_pair for pair in own])]
    outside = [flag.outside for flag in loaded.flags([pair.chosen_pair for pair in pairs(100, COURT, seed=6)])]
    assert np.mean(inside) < 0.15 and np.mean(outside) > 0.5
    rows = found.texts()
    assert {row["part"] for row in rows} == {"prompts", "answers"} and len(rows) == 120 + 240
    assert np.mean([row["outside"] for row in rows if row["part"] == "prompts"]) == pytest.approx(
        found.parts["prompts"].outliers.outside.value
    )


def test_a_small_reference_gives_tests_and_no_distances(tmp_path):
    found = measure_shift(pairs(40), pairs(40, COURT, seed=1))
    assert found.parts["prompts"].tests.is_shifted and found.parts["prompts"].outliers is None
    assert "at least 80 reference prompts" in found.not_measured["outliers"] and found.texts() == []
    with pytest.raises(DataError, match="a detector to save"):
        found.save_detector(tmp_path / "domain")
    with pytest.raises(DataError, match="at least 20 prompts in the new texts"):
        measure_shift(pairs(40), pairs(19))


def test_the_reading_and_the_table_say_what_was_found(cooks_and_courts, cooks_and_cooks):
    other, same = cooks_and_courts[0].reading, cooks_and_cooks.reading
    assert (
        "The prompts come from another domain than the reference's (AUC" in other
        and "p = 0.012; MMD p = 0.012)" in other
    )
    assert "Words of the new prompts:" in other and "by ATC" in other and "realised" in other
    assert "The answers are not told apart from the reference's" in same
    console = Console(record=True, width=160, quiet=False, file=io.StringIO())
    console.print(cooks_and_courts[0].table())
    told = console.export_text()
    assert "prompts: AUC of telling them apart" in told and "realised on the new pairs" in told


def test_stages_are_told_in_order(cooks_and_courts):
    stages = cooks_and_courts[1]
    assert [done for _, done, _ in stages] == list(range(8)) and {total for _, _, total in stages} == {7}
    assert stages[0][0] == "features" and stages[-1][0] == "done"


def test_the_same_seed_finds_the_same_and_the_cap_is_said():
    first, second = (measure_shift(pairs(150), pairs(80, COURT), max_texts=60, seed=3).as_dict() for _ in range(2))
    assert first == second
    assert first["reference"]["num_prompts"] == 60 and first["reference"]["of"]["num_prompts"] == 150
    assert first["max_texts"] == 60


# Domains


def test_whole_prompts_are_drawn_and_everything_is_counted():
    rows = [
        *pairs(30),
        Group("g", "a group", ("best", "middle", "worst"), "ranked"),
        Group("u", "no order", ("one", "two", "three"), "none"),
        Single("s", "alone", " "),
        Preference("t", "a tie", "x", "y", tie=True),
        Preference("e", "empty", "x", ""),
        "a bare prompt",
        [{"role": "user", "content": "a bare prompt"}],  # the same one
    ]
    found = domain_of(rows)
    assert found.num_prompts == 36 and found.num_empty == 3  # the blank answer, the empty one and its pair
    assert found.num_answers == 60 + 3 + 3 + 2 + 1 and found.num_pairs == 30 + 3 + 1 + 1
    labels = {pair.id: is_labelled for pair, is_labelled in zip(found.pairs, found.labelled, strict=True)}
    assert labels["g#0-1"] and not labels["u#0"] and not labels["t"]
    few = domain_of(rows, max_texts=20, seed=1)
    assert len(few.prompts) == 20 and len(few.answers) <= 20 and len(few.pairs) <= 10
    # One pair each before any prompt has two, and the answers of all of them.
    assert len({pair.prompt for pair in few.pairs}) == len(few.pairs) == 10
    assert {answer for _, answer in few.answers} >= {a for pair in few.pairs for a in (pair.chosen, pair.rejected)}
    kept = {prompt_key(prompt) for prompt in few.prompts}
    assert {prompt_key(prompt) for prompt, _ in few.answers} <= kept
    with pytest.raises(DataError, match="at least one row"):
        domain_of([])


def test_a_file_may_hold_bare_prompts_beside_rows_of_any_kind(write_rows):
    path = write_rows(
        [
            {"prompt": "alone"},
            {"prompt": [{"role": "user", "content": "a turn"}], "source": "log"},
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            {"prompt": "q", "answer": "c"},
        ]
    )
    rows = read_texts(path)
    assert [row for row in rows if isinstance(row, str | list)] == ["alone", [{"role": "user", "content": "a turn"}]]
    assert {type(row) for row in rows} == {str, list, Preference, Single}
    bad = write_rows([{"prompt": "p"}, {"prompt": 3}, {"text": "x"}], "bad.jsonl")
    with pytest.raises(RowError, match="bad.jsonl:2"):
        read_texts(bad)
    assert read_texts(bad, skip_bad=True) == ["p"]


# Words and text features


def test_log_odds_by_hand():
    """10 new texts say "apple", 10 reference texts say "pear", all say "the": y = (10, 0, 10) of n = 20, and the prior is a tenth of both sides, (1, 1, 2)."""
    found = tell_apart(["the pear"] * 10, ["the apple"] * 10)
    apple = found.of_new[0]
    own, other, total = 10 + 1, 0 + 1, 20 + 4
    log_odds = np.log(own / (total - own)) - np.log(other / (total - other))
    assert apple.word == "apple" and (apple.num_new, apple.num_reference) == (10, 0)
    assert apple.log_odds == pytest.approx(log_odds)
    assert apple.z == pytest.approx(log_odds / np.sqrt(1 / own + 1 / other))


def test_a_word_counts_once_a_text_and_chance_names_none():
    rng = np.random.default_rng(0)
    bursts = [*(text(rng, KITCHEN) for _ in range(60)), "torte " * 500]
    assert "torte" not in {word.word for word in tell_apart([text(rng, KITCHEN) for _ in range(60)], bursts).of_new}
    named = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found = tell_apart(*([text(rng, KITCHEN) for _ in range(80)] for _ in range(2)))
        named += bool(found.of_new or found.of_reference)
    assert named <= 6  # 2 with a standard deviation of 1.4
    assert tell_apart(["a"], ["b"]).num_tested == 0


def test_text_features_of_a_text_do_not_depend_on_the_others():
    rng = np.random.default_rng(0)
    texts = [(text(rng, KITCHEN), "") for _ in range(30)]
    fitted = TextFeatures.fit(texts)
    whole = fitted.features(texts)
    assert whole.shape == (30, 30) and whole.dtype == np.float32  # 29 components of 30 texts, and the length
    assert whole[7] == pytest.approx(fitted.features([texts[7]])[0], abs=1e-6)
    assert whole[:, -1] == pytest.approx(np.log1p([len(one) for one, _ in texts]))
    assert fitted.features([]).shape == (0, 30)
    with pytest.raises(DataError, match="words"):
        TextFeatures.fit([("", ""), (" ", "")])


# Real data


def test_real_prompts_of_two_benchmarks_are_told_apart():
    """HH-RLHF's harmless prompts against RMB's, 400 of each, by words alone; by MiniLM's features see docs/shift.md."""
    rmb, hh = (read_texts(real_data(name)) for name in ("rmb_eval.jsonl.gz", "hh_harmless_test.jsonl.gz"))
    prompts = [[row.prompt for row in rows] for rows in (rmb, hh)]
    found = measure_shift(*prompts, max_texts=400)
    auc = found.parts["prompts"].tests.classifier.auc
    assert auc.low > 0.9 and found.parts["prompts"].tests.is_shifted, auc
    keys = sorted({prompt_key(row.prompt) for row in rmb})
    halves = measure_shift(keys[::2], keys[1::2])
    assert halves.parts["prompts"].tests.classifier.auc.low < 0.5 < halves.parts["prompts"].tests.classifier.auc.high
