"""The evaluator judged by scorers whose numbers are known (trap 22)."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from rewardsmith.data.schema import Preference
from rewardsmith.errors import DataError, ScoreError
from rewardsmith.evaluation.pairwise import evaluate, markdown_marks
from rewardsmith.evaluation.report import evaluation_table, hardest_table, slices_table
from rewardsmith.model.reward_model import RewardModel
from tests.fakes import ForgetfulScorer, FunctionScorer, by_table, constant, likes_long_answers, pair


def test_a_constant_scorer_gets_exactly_one_half():
    with pytest.warns(UserWarning, match="constant"):
        found = evaluate(constant(), [pair(i) for i in range(50)]).document
    assert found["accuracy"]["value"] == 0.5
    assert found["ties"]["value"] == 1.0
    assert found["auc"]["value"] == 0.5
    assert found["log_loss"]["value"] == pytest.approx(math.log(2))
    assert found["brier"]["value"] == 0.25


def test_a_known_table_gives_known_numbers():
    scores = {"good 0": 2.0, "bad 0": 0.0, "good 1": 0.0, "bad 1": 1.0, "good 2": 3.0, "bad 2": 3.0}
    pairs = [pair(i, metadata={"goal": "odd" if i == 1 else "even"}) for i in range(3)]
    with pytest.warns(UserWarning, match="exact ties"):
        found = evaluate(by_table(scores), pairs)
    assert found.accuracy.value == 0.5  # right, wrong, tie
    assert found.document["mean_margin"]["value"] == pytest.approx(1 / 3)
    assert found.document["by"]["goal"]["even"]["value"] == 0.75
    assert found.document["by"]["goal"]["odd"] == {
        "value": 0.0,
        "low": 0.0,
        "high": pytest.approx(0.793, abs=1e-3),
        "n": 1,
        "method": "wilson",
    }
    texts = {"id": "p0", "prompt": "prompt 0", "chosen": "good 0", "rejected": "bad 0", "metadata": {"goal": "even"}}
    assert found.rows()[0] == texts | {"score_chosen": 2.0, "score_rejected": 0.0}


def test_every_number_can_be_recomputed_from_the_rows():
    pairs = [
        pair(i, "good" * (i % 5 + 1), "bad" * (i % 3 + 1), metadata={"score_chosen": "not ours"}) for i in range(40)
    ]
    found = evaluate(likes_long_answers(), pairs)
    rows = found.rows()
    again = by_table({row[side]: row[f"score_{side}"] for row in rows for side in ("chosen", "rejected")})
    read = [
        Preference(row["id"], row["prompt"], row["chosen"], row["rejected"], metadata=row["metadata"]) for row in rows
    ]
    assert evaluate(again, read).document == found.document


def test_the_hardest_pairs_are_named_the_most_wrong_first():
    scores = {f"{side} {i}": (i - 3.0 if side == "good" else 0.0) for i in range(30) for side in ("good", "bad")}
    with pytest.warns(UserWarning, match="exact ties"):  # pair 3
        found = evaluate(by_table(scores), [pair(i) for i in range(30)]).document["hardest"]
    assert found["most_wrong"] == [{"row": i, "id": f"p{i}", "margin": i - 3.0} for i in range(3)]
    assert [one["id"] for one in found["closest"][:3]] == ["p3", "p2", "p4"]


def test_what_a_reviewer_asks_for_is_there():
    rng = np.random.default_rng(0)
    scores = {f"{side} {i}": float(rng.normal(side == "good", 1)) for i in range(200) for side in ("good", "bad")}
    pairs = [pair(i, metadata={"goal": "a" if i % 2 else "b"}) for i in range(200)]
    found = evaluate(by_table(scores), pairs, temperature=2.0).document
    assert {one["value"] for one in found["slices"] if one["column"] == "goal"} == {"a", "b"}
    assert found["temperature_here"]["low"] < found["temperature_here"]["value"]
    assert found["selective"][-1]["accuracy"]["value"] == pytest.approx(found["accuracy"]["value"])
    assert len(found["reliability"]) == len(found["calibrated"]["reliability"]) == 15
    assert found["ece_excess"] == pytest.approx(found["ece"]["value"] - found["ece_null"]["value"])
    assert sum(found["margins"]["counts"]) == 200
    # (1.95996 + 0.84162) * sqrt(0.2 / 200)
    assert found["detectable_difference"]["difference"] == pytest.approx(0.0886, abs=1e-4)


def test_the_swapped_set_has_the_complement():
    rng = np.random.default_rng(0)
    pairs = [Preference(str(i), f"p{i % 30}", "x" * rng.integers(1, 50), "y" * rng.integers(1, 50)) for i in range(120)]
    swapped = [Preference(p.id, p.prompt, p.rejected, p.chosen) for p in pairs]
    first, second = (evaluate(likes_long_answers(), some) for some in (pairs, swapped))
    assert first.accuracy.value + second.accuracy.value == pytest.approx(1)
    swap = first.document["swap_test"]
    assert swap["accuracy"] + swap["swapped_accuracy"] == 1 and swap["rescored_pairs"] == 32


def test_a_planted_length_lover_does_no_better_than_its_baseline():
    pairs = [pair(i, "good" * (i % 5 + 1), "bad" * (i % 3 + 1)) for i in range(60)]
    found = evaluate(likes_long_answers(), pairs).document
    assert found["accuracy"]["value"] == found["baselines"]["longer"]["value"]
    assert found["baselines"]["longer"]["value"] + found["baselines"]["shorter"]["value"] == pytest.approx(1)
    assert found["over_baselines"]["longer"]["value"] == 0.0


def test_shuffled_labels_leave_nothing():
    rng = np.random.default_rng(3)
    pairs = [
        pair(i) if rng.random() < 0.5 else Preference(f"p{i}", f"prompt {i}", f"bad {i}", f"good {i}")
        for i in range(400)
    ]
    found = evaluate(FunctionScorer(lambda prompt, answer: float("good" in answer)), pairs).document["accuracy"]
    assert found["low"] <= 0.5 <= found["high"]


def test_a_scorer_that_is_no_function_of_the_pair_is_refused():
    with pytest.raises(ScoreError, match="either side"):
        evaluate(ForgetfulScorer(), [pair(i) for i in range(40)])


def test_a_small_bonus_for_the_first_half_is_found():
    """Scores of order 0.001 and 0.09 more for whatever stands among the chosen: accuracy 1, and worth nothing."""

    class Partial:
        def score(self, pairs):
            scores = np.array([len(answer) / 1e5 for _, answer in pairs], dtype=np.float32)
            scores[: len(pairs) // 2] += 0.09
            return scores

    with pytest.raises(ScoreError, match="either side"):
        evaluate(Partial(), [pair(i) for i in range(40)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_number_that_is_none_is_an_error(bad):
    class Broken:
        def score(self, pairs):
            return [bad] * len(pairs)

    with pytest.raises(ScoreError, match="finite"):
        evaluate(Broken(), [pair(1)])


def test_nothing_to_judge_is_an_error():
    with pytest.raises(DataError, match="two answers and a winner"):
        evaluate(constant(), [Preference("1", "p", "a", "b", tie=True)])
    with pytest.raises(DataError, match="to slice by"):
        evaluate(likes_long_answers(), [pair(1)], by=["nope"])


def test_a_model_reports_cuts_and_collapses(tiny_rm):
    """Two answers that differ only beyond the cut are the same to the model: a tie, counted as collapsed."""
    model = RewardModel.load(tiny_rm("bert"))
    long = "word " * 80
    pairs = [Preference("cut", "p", long + "good", long + "bad"), Preference("same", "p2", "x", "x"), pair(1)]
    with pytest.warns(UserWarning, match="exact ties"):
        found = evaluate(model, pairs)
    document = found.document
    assert (document["truncated"], document["collapsed"], document["num_pairs"]) == (1, 2, 3)
    assert document["ties"]["value"] == pytest.approx(2 / 3)
    assert "longer_tokens" in document["baselines"]
    assert found.rows()[0]["truncated_chosen"] is True
    assert document["swap_test"]["max_difference"] <= 1e-5


def test_calibrated_numbers_stand_beside_the_raw_ones():
    pairs = [pair(i, "good" * (i % 5 + 1), "bad" * (i % 3 + 1)) for i in range(30)]
    raw = evaluate(likes_long_answers(), pairs)
    assert raw.document["calibrated"] is None
    found = evaluate(likes_long_answers(), pairs, temperature=2.0).document
    assert found["log_loss"] == raw.document["log_loss"]
    assert found["calibrated"]["log_loss"]["value"] != found["log_loss"]["value"]


def test_markdown_marks_are_counted():
    assert markdown_marks("plain text, 3 * 4 - 2") == 0
    assert markdown_marks("# Title\n- one\n- two\n1. three\n**bold** and `code`") == 1 + 2 + 1 + 2 + 2


def test_values_that_look_like_markup_are_shown_as_they_are():
    pairs = [pair(i, metadata={"tag": ["[/INST]", "[code]"][i % 2]}) for i in range(60)]
    found = evaluate(FunctionScorer(lambda prompt, answer: float(len(answer) % 5 + answer.startswith("good"))), pairs)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(evaluation_table(found.document, "[a title]"))
    console.print(slices_table(found.document) or "none")
    text = console.export_text()
    assert "tag = [/INST]" in text and "tag = [code]" in text and "[a title]" in text


def test_pairs_of_one_id_keep_their_own_texts():
    scores = {"good 0": 0.0, "bad 0": 1.0, "good 1": 0.0, "bad 1": 2.0, "good 2": 1.0, "bad 2": 0.0}
    pairs = [pair(2, tie=True), *(replace(pair(i), id="same") for i in range(3))]
    found = evaluate(by_table(scores), pairs)
    assert [one["row"] for one in found.document["hardest"]["most_wrong"]] == [2, 1]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(hardest_table(found.document, found.rows()))
    text = console.export_text()
    assert "good 0" in text and "good 1" in text and "good 2" not in text
