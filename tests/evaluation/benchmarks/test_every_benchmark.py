"""What holds for every benchmark, on a small file of its published format: chance, the maximum, the tie rule, order, storage, wrong files."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from rewardsmith.errors import DataError, RowError, ScoreError, SettingsError
from rewardsmith.evaluation.benchmarks import BENCHMARKS, benchmark_table, judge, recompute
from tests.conftest import real_data
from tests.evaluation.benchmarks.published import FILES
from tests.fakes import FunctionScorer, constant, likes_long_answers

# A perfect scorer: 1, but for the tie-break that lifts the Ties score of RewardBench 2 to 1.01 where correct answers have one score.
MAXIMUM = {"rewardbench2": (5 + 1.01) / 6}
# A constant scorer, by the authors' rule: (5 * 1/4 + 0) / 6; B>A is right in a quarter of the pairs; half. Everything else is strict: 0.
CONSTANT = {"rewardbench2": 1.25 / 6, "judgebench": 0.25, "llmbar": 0.5}
# And honestly: lists of four share one credit; the four bounded Ties terms are ties themselves. Everything else is one half.
CONSTANT_HONEST = {"rewardbench2": (1.25 + 0.5) / 6, "rmb-best-of-n": 0.25}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in FILES.items()}


def worth(prompt, answer):
    return {"right": 1.0, "wrong": 0.0, "draw": 0.5}[answer.split()[0]]


def by_lot(seed):
    """Scores that have nothing to do with the answers."""
    rng, drawn = np.random.default_rng(seed), {}
    return FunctionScorer(lambda prompt, answer: drawn.setdefault((str(prompt), answer), rng.standard_normal()))


def headline(result):
    key = result.document["headline"]["key"]
    return result.document["published"][key], result.document["honest"][key], result.document["chance"][key]


def test_every_benchmark_has_a_file_here():
    assert set(FILES) == set(BENCHMARKS)


@pytest.mark.parametrize("name", FILES)
def test_a_perfect_scorer_gets_the_maximum(name, files):
    result = judge(name, FunctionScorer(worth), files[name])
    published, honest, _ = headline(result)
    assert published == pytest.approx(MAXIMUM.get(name, 1.0))
    assert honest["value"] == pytest.approx(1.0) and honest["low"] < 1.0  # never certain
    assert result.document["exact_ties"] == sum(row["gold"] == [0.5, 0.5] for row in result.rows)


@pytest.mark.parametrize("name", FILES)
def test_a_constant_scorer_gets_what_the_tie_rule_says(name, files):
    result = judge(name, constant(), files[name])
    published, honest, _ = headline(result)
    assert published == pytest.approx(CONSTANT.get(name, 0.0))
    assert honest["value"] == pytest.approx(CONSTANT_HONEST.get(name, 0.5))
    assert result.document["exact_ties"] == result.document["num_items"]


@pytest.mark.parametrize("name", FILES)
def test_a_random_scorer_gets_chance_within_its_intervals(name, files):
    covered = inside = numbers = 0
    for seed in range(5):
        document = judge(name, by_lot(seed), files[name], seed=seed).document
        key = document["headline"]["key"]
        covered += document["honest"][key]["low"] <= document["chance"][key] <= document["honest"][key]["high"]
        for other, found in document["honest"].items():
            if other in document["chance"]:
                inside += found["low"] <= document["chance"][other] <= found["high"]
                numbers += 1
    assert covered >= 4
    assert inside >= 0.88 * numbers  # of all its numbers, over five scorers


@pytest.mark.parametrize("name", FILES)
def test_the_order_of_the_rows_does_not_matter(name, files):
    result = judge(name, by_lot(7), files[name])
    mixed = [result.rows[i] for i in np.random.default_rng(1).permutation(len(result.rows))]
    found = recompute(name, mixed).document
    assert found["published"] == pytest.approx(result.document["published"], abs=1e-12)
    for key, estimate in result.document["honest"].items():
        for bound in ("value", "low", "high"):
            assert found["honest"][key][bound] == pytest.approx(estimate[bound], abs=1e-9), key


@pytest.mark.parametrize("name", FILES)
def test_stored_rows_give_the_same_numbers_without_a_model(name, files, tmp_path):
    result = judge(name, by_lot(3), files[name], seed=5)
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in result.rows), encoding="utf-8")
    again = recompute(name, path, seed=5)
    for key in ("published", "honest", "chance", "headline", "exact_ties", "num_prompts", "missing", "curves"):
        assert again.document[key] == result.document[key], key
    assert again.rows == result.rows


@pytest.mark.parametrize("name", FILES)
def test_a_document_is_json_and_a_table_for_people(name, files):
    document = judge(name, by_lot(0), files[name]).document
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(benchmark_table(document))
    text = console.export_text()
    assert document["rule"] in " ".join(text.split()) and f"{document['headline']['value']:.3f}" in text


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_benchmark_is_refused_with_what_was_needed(name, files, write_rows):
    other = write_rows([{"prompt": "p", "answer": "one answer"}])
    with pytest.raises(DataError, match=f"the benchmark {name} "):
        judge(name, constant(), other)


@pytest.mark.parametrize("name", FILES)
def test_part_of_a_benchmark_is_never_called_the_whole(name, files):
    document = judge(name, constant(), files[name]).document
    assert document["complete"] is False or name in ("prior-sets", "rmb-pairs")  # whose sizes are not known
    assert not document["headline"]["is_published"]
    if document["complete"]:
        assert "not checked" in document["headline"]["name"]
    else:
        assert "NOT the published number" in document["headline"]["name"] and document["other_size"]


@pytest.mark.parametrize(("name", "size"), [("judgebench", 350), ("rm-bench", None), ("llmbar", None)])
def test_a_whole_benchmark_is_called_so(name, size):
    subsets = BENCHMARKS[name].subsets
    counts = {subset: size // len(subsets) if size else number for subset, number in subsets.items()}
    counts[next(iter(counts))] += size - sum(counts.values()) if size else 0
    gold = [1, 1, 1, 0, 0, 0] if name == "rm-bench" else [1, 0]
    rows = [
        {
            "id": f"{subset}{i}",
            "subset": subset,
            "cluster": f"{subset}{i}",
            "gold": gold,
            "scores": gold,
            "metadata": {},
        }
        for subset, count in counts.items()
        for i in range(count)
    ]
    document = recompute(name, rows).document
    assert document["complete"] and document["headline"] == {
        "name": BENCHMARKS[name].headline,
        "value": 1.0,
        "key": BENCHMARKS[name].headline,
        "is_published": True,
    }
    assert not recompute(name, rows[1:]).document["complete"]


def test_missing_subsets_are_named_and_their_sums_withheld(write_rows):
    rows = [
        {"prompt": f"p{i}", "chosen": "right", "rejected": "wrong", "subset": "alpacaeval-easy", "id": i}
        for i in range(3)
    ] + [{"prompt": "q", "chosen": "right", "rejected": "wrong", "subset": "of my own"}]
    document = judge("rewardbench", FunctionScorer(worth), write_rows(rows)).document
    assert len(document["missing"]) == 22 and "hep-rust" in document["missing"]
    assert document["published"] == {"alpacaeval-easy": 1.0}
    assert document["headline"]["value"] is None and "leaderboard" in document["withheld"]
    assert document["left_out"] == {"subset 'of my own' is not of this benchmark": 1}


def test_each_text_is_scored_once(files):
    scorer = likes_long_answers()
    result = judge("rmb-pairs", scorer, real_data("rmb_eval.jsonl.gz"))
    assert len(scorer.calls) == 1 and scorer.calls[0] < result.document["num_answers"] == 4390


def test_the_real_files_of_rmb_are_read():
    pairs = judge("rmb-pairs", likes_long_answers(), real_data("rmb_eval.jsonl.gz")).document
    lists = judge("rmb-best-of-n", likes_long_answers(), real_data("rmb_bon_eval.jsonl.gz")).document
    assert (pairs["num_items"], pairs["num_prompts"], len(pairs["missing"])) == (2195, 402, 4)
    assert (lists["num_items"], len(lists["missing"]), lists["left_out"]) == (600, 3, {})
    assert pairs["honest"]["all items"]["method"] == "bootstrap over 402 prompts"


def test_a_split_that_is_not_read_is_named(tmp_path):
    import datasets

    row = {"prompt": "p", "chosen": "right", "rejected": "wrong", "subset": "donotanswer", "id": 1}
    whole = datasets.DatasetDict({split: datasets.Dataset.from_list([row]) for split in ("raw", "filtered")})
    whole.save_to_disk(str(tmp_path / "reward-bench"))
    document = judge("rewardbench", constant(), str(tmp_path / "reward-bench")).document
    assert document["num_items"] == 1 and document["splits_not_read"] == ["reward-bench/raw"]


def test_faults_are_typed(files, tmp_path, write_rows):
    with pytest.raises(SettingsError, match="rewardbench"):
        judge("rewardbenh", constant(), files["rewardbench"])
    with pytest.raises(ScoreError, match="finite"):
        judge("llmbar", FunctionScorer(lambda prompt, answer: float("nan")), files["llmbar"])
    with pytest.raises(DataError, match=r"dataset\.json"):
        judge("llmbar", constant(), str(tmp_path))
    bad = write_rows(
        [
            {"prompt": 3, "chosen": "a", "rejected": "b", "subset": "donotanswer"},
            {"prompt": "p", "answers": ["a", "b"], "ratings": [1, 0]},
            {"prompt": "p", "chosen": "right", "rejected": "wrong", "subset": "donotanswer"},
        ]
    )
    with pytest.raises(RowError, match="prompt"):
        judge("rewardbench", constant(), bad)
    left = judge("rewardbench", constant(), bad, skip_bad=True).document["left_out"]
    assert left == {"malformed: field `prompt`": 1, "a row of the format native that is a group": 1}
    with pytest.raises(RowError, match="the keys"):
        recompute("llmbar", [{"id": "x"}])
    with pytest.raises(DataError, match="stored row"):
        recompute("llmbar", [])
