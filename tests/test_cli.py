"""Exit codes, one JSON document on stdout, and the verbs end to end on a tiny model."""

import json

import pytest

from rewardsmith.cli.base import finish
from rewardsmith.showcase import question_from


def test_an_unknown_key_names_the_near_miss(cli, tmp_path):
    code, out, err = cli(
        "train", "--set", "lerning_rate=1", "--model", "m", "--data", "d", "--out", tmp_path / "o", "--json"
    )
    assert code == 2
    assert "learning_rate" in err
    assert json.loads(out)["error"]["mend"] == "Did you mean `learning_rate`?"
    assert not (tmp_path / "o").exists()


def test_usage_errors_exit_with_2(cli):
    for words in (["train", "--nope"], ["nonsense"], ["score"]):
        assert cli(*words)[0] == 2


def test_a_malformed_row_exits_with_2_and_names_the_line(cli, tiny, write_rows, tmp_path):
    data = write_rows([{"prompt": "p", "chosen": "a", "rejected": "b", "margin": float("nan")}])
    code, out, err = cli("train", "--model", tiny("bert"), "--data", data, "--out", tmp_path / "o", "--json")
    assert code == 2 and "pairs.jsonl:1" in err
    assert json.loads(out)["error"]["field"] == "margin"
    assert not (tmp_path / "o").exists()


def test_train_score_evaluate_verify(cli, tiny, tiny_rm, toy_pairs, tmp_path):
    sets = ["max_length=64", "batch_size=8", "learning_rate=0.003", "epochs=4", "dev_share=0.2"]
    flat = [word for one in sets for word in ("--set", one)]
    run = tmp_path / "run"
    code, out, err = cli(
        "train", "--model", tiny("bert"), "--data", toy_pairs, "--eval-data", toy_pairs, "--out", run, "--json", *flat
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["eval"]["num_pairs"] == 48
    code, out, _ = cli("evaluate", run, toy_pairs, "--out", tmp_path / "judged", "--by", "topic", "--json")
    document = json.loads(out)
    assert code == 0
    wanted = "num_pairs accuracy ties auc pooled_auc log_loss brier ece ece_null mean_margin baselines by dropped truncated collapsed"
    assert set(wanted.split()) | {"labelled_ties", "calibrated"} <= set(document)
    assert document["accuracy"] == report["eval"]["accuracy"]
    assert set(document["by"]["topic"]) == {"even", "odd"}
    assert json.loads((tmp_path / "judged" / "report.json").read_text()) == document
    assert len((tmp_path / "judged" / "pairs.jsonl").read_text().splitlines()) == 48
    assert cli("evaluate", run, toy_pairs, "--out", tmp_path / "judged")[0] == 2
    assert cli("evaluate", run, toy_pairs, "--out", tmp_path / "judged", "--overwrite")[0] == 0
    code, out, _ = cli("score", run, toy_pairs, "--out", tmp_path / "scores.jsonl", "--json")
    assert (code, json.loads(out)["num_rows"]) == (0, 48)
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    judged = [json.loads(line) for line in (tmp_path / "judged" / "pairs.jsonl").read_text().splitlines()]
    assert [row["score_chosen"] for row in rows] == pytest.approx([row["score_chosen"] for row in judged], abs=1e-5)
    assert cli("score", run, toy_pairs, "--out", tmp_path / "scores.jsonl")[0] == 2
    assert cli("score", run, toy_pairs, "--out", toy_pairs, "--overwrite")[0] == 2
    # Neither --overwrite nor a report.json makes a run or a model something that may be replaced.
    for verb in (["evaluate", run, toy_pairs], ["import", run]):
        for place in (run, run / "model"):
            assert cli(*verb, "--out", place, "--overwrite")[0] == 2
    assert cli("evaluate", tiny_rm("bert"), toy_pairs, "--out", run, "--overwrite")[0] == 2
    assert cli("import", tiny_rm("bert"), "--out", run, "--overwrite")[0] == 2
    assert (run / "checkpoints").exists() and (run / "model").exists()
    code, out, _ = cli("evaluate", run, toy_pairs, "--precision", "bf16", "--json")
    assert code == 0 and 0 < json.loads(out)["precision_max_difference"] < 0.5
    code, out, _ = cli("verify", run, "--json")
    assert (code, json.loads(out)["ok"]) == (0, True)
    code, _, err = cli("evaluate", run, toy_pairs, "--by", "colour")
    assert code == 2 and "colour" in err


def test_the_table_shows_what_the_document_holds(cli, tiny_rm, toy_pairs):
    code, out, err = cli("evaluate", tiny_rm("bert"), toy_pairs)
    assert code == 0 and out == ""
    for text in (
        "accuracy (ties one half)",
        "baseline: the longer answer",
        "minus the best of them",
        "topic = odd",
        "swap test",
    ):
        assert text in err


def test_demo_on_a_tiny_model_and_on_own_data(cli, tiny, toy_pairs, tmp_path):
    sets = ["max_length=48", "learning_rate=0.003", "epochs=1", "precision=float32"]
    flat = [word for one in sets for word in ("--set", one)]
    question = ["--prompt", "q", "--answer-a", "Gladly.", "--answer-b", "No."]
    code, out, err = cli(
        "demo", "--model", tiny("bert"), "--out", tmp_path / "demo", "--data", toy_pairs, "--json", *flat, *question
    )
    assert code == 0, err
    document = json.loads(out)
    assert set(document["beats_baselines"]) == {"longer", "shorter", "markdown", "longer_tokens"}
    assert document["answers"]["prompt"] == "q" and 0 < document["answers"]["probability_a"] < 1
    assert (tmp_path / "demo" / "demo.png").read_bytes()[:4] == b"\x89PNG"
    held_out = [json.loads(line) for line in (tmp_path / "demo-data" / "eval.jsonl").read_text().splitlines()]
    trained = [json.loads(line) for line in (tmp_path / "demo-data" / "train.jsonl").read_text().splitlines()]
    assert not {row["prompt"] for row in held_out} & {row["prompt"] for row in trained}
    assert cli("demo", "--out", tmp_path / "d", "--prompt", "q")[0] == 2
    # Its own input is never written over, nor the data of a finished run that is refused.
    before = (tmp_path / "demo-data" / "train.jsonl").read_text()
    own = ["--out", tmp_path / "demo", "--data", tmp_path / "demo-data" / "train.jsonl", "--model", tiny("bert")]
    assert cli("demo", *own, "--overwrite")[0] == 2
    assert cli("demo", "--out", tmp_path / "demo", "--data", toy_pairs, "--model", tiny("bert"))[0] == 2
    assert (tmp_path / "demo-data" / "train.jsonl").read_text() == before


def test_a_question_is_whole_or_absent():
    assert question_from(None, None, None) is None
    assert question_from("p", "a", "b").answer_b == "b"


def lint_rows(count=60):
    return [
        {
            "id": f"r{i}",
            "prompt": f"prompt {i} about {'xyz'[i % 3]}",
            "chosen": f"good {i} " * 3,
            "rejected": f"bad {i} " * 4,
        }
        for i in range(count)
    ]


def test_lint_exits_with_1_at_errors_and_strictly_at_warnings(cli, write_rows):
    rows = lint_rows()
    assert cli("lint", write_rows(rows), "--ignore", "longer_wins")[0] == 0
    doubled = write_rows([*rows, rows[0]])
    assert cli("lint", doubled, "--ignore", "longer_wins")[0] == 0
    assert cli("lint", doubled, "--ignore", "longer_wins", "--strict")[0] == 1
    code, out, err = cli("lint", write_rows([*rows, {"prompt": "p", "chosen": "", "rejected": "r"}]), "--json")
    document = json.loads(out)
    assert code == 1 and document["severity"]["error"] == 1
    assert {"rule", "severity", "count", "share", "examples", "fix"} <= set(document["findings"][0])
    assert set(document["statistics"]["longer_wins"]) == {"value", "low", "high", "n", "method"}


def test_lint_shows_the_place_where_two_prompts_part(cli, write_rows):
    """Trap 9, on the terminal."""
    sides = {
        side: [{"role": "user", "content": f"How many {thing}?"}, {"role": "assistant", "content": side}]
        for side, thing in (("chosen", "apples"), ("rejected", "pears"))
    }
    code, _, err = cli("lint", write_rows([*lint_rows(10), {"id": "odd", **sides}]))
    assert code == 1 and "odd: the prompts differ from character" in err and "+ user: How many pears?" in err


def test_lint_writes_the_page_and_the_cleaned_set_once(cli, write_rows, tmp_path):
    data = write_rows([*lint_rows(), *lint_rows(3)])
    words = ("lint", data, "--ignore", "longer_wins", "--html", tmp_path / "page.html", "--fix", tmp_path / "out")
    assert cli(*words)[0] == 0
    assert (
        "<html" in (tmp_path / "page.html").read_text()
        and len((tmp_path / "out/clean.jsonl").read_text().splitlines()) == 60
    )
    code, _, err = cli(*words)
    assert code == 2 and "exists" in err
    assert cli(*words, "--overwrite")[0] == 0
    assert cli("lint", data, "--html", data, "--overwrite")[0] == 2
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    assert cli("lint", data, "--html", tmp_path / "mine.html", "--overwrite")[0] == 2
    assert cli("lint", data, "--fix", tmp_path / "new", "--html", tmp_path / "new" / "page.html")[0] == 2
    assert cli("lint", data, "--fix", tmp_path, "--overwrite")[0] == 2


def test_lint_measures_truncation_and_judges_with_models(cli, tiny, tiny_rm, write_rows):
    data = write_rows(lint_rows())
    words = ("lint", data, "--ignore", "longer_wins", "--json")
    code, out, err = cli(*words, "--tokenizer", tiny("bert"), "--max-length", "32", "--suspects", tiny("bert"))
    document = json.loads(out)
    assert code == 0, err
    assert [one["max_length"] for one in document["truncation"]["limits"]] == [32, 256, 512, 1024, 2048]
    assert document["suspects"]["num_pairs"] == 60 and document["suspects"]["by"] == "bert"
    code, out, _ = cli(*words, "--suspects", tiny_rm("bert"))
    assert code == 0 and json.loads(out)["suspects"]["noise_rate"]["n"] == 60


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["{data}", "--rules", "exact_duplicat"], "exact_duplicat"),
        (["{data}", "--benchmark", "x=missing.jsonl"], "missing.jsonl"),
        (["{data}", "--eval-data", "missing.jsonl"], "missing.jsonl"),
        (["{data}", "--from", "nectarr"], "nectarr"),
        (["{empty}"], "at least one row"),
    ],
)
def test_lint_refuses_what_cannot_be_meant(cli, write_rows, words, said):
    paths = {"data": write_rows(lint_rows(5)), "empty": write_rows([], "empty.jsonl")}
    code, out, err = cli("lint", *(word.format(**paths) for word in words), "--json")
    assert code == 2 and said in err and "error" in json.loads(out)


def test_split_by_the_command_line(cli, write_rows, tmp_path):
    data = write_rows(lint_rows(100))
    code, out, err = cli("split", data, "--out", tmp_path / "parts", "--parts", "a=0.7,b=0.3", "--json")
    document = json.loads(out)
    assert code == 0, err
    assert document["parts"]["a"]["rows"] + document["parts"]["b"]["rows"] == 100
    assert len((tmp_path / "parts" / "b.jsonl").read_text().splitlines()) == document["parts"]["b"]["rows"]
    for wrong in ("a=0.7", "a=0.7,a=0.3", "a,b", "../a=0.5,b=0.5"):
        assert cli("split", data, "--out", tmp_path / "other", "--parts", wrong)[0] == 2
    assert not (tmp_path / "other").exists()


def test_one_of_several_processes_is_refused_by_every_verb_that_is_not_shared(cli, tmp_path, monkeypatch):
    out = tmp_path / "run"
    for rank in ("0", "1"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        for words in (
            ["demo", "--out", out],
            ["reproduce", tmp_path],
            ["diff", tmp_path, tmp_path],
            ["lint", tmp_path],
        ):
            code, _, err = cli(*words)
            assert code == 2 and f"one process for {words[0]}; got 2 processes" in err
        code, _, err = cli("train", "--data", "x.jsonl", "--out", out, "--sweep", "seed=0,1")
        assert code == 2 and "one process for train --sweep" in err
        # These are shared between processes, and are asked for what they lack.
        for verb in ("train", "ppo"):
            code, _, err = cli(verb, "--out", out)
            assert code == 2 and "settings that can be meant" in err
    assert not out.exists()


@pytest.mark.parametrize(
    "variables", [{"RANK": "1"}, {"RANK": ""}, {"RANK": "1", "WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}]
)
def test_a_rank_alone_silences_nobody(variables, cli, write_rows, monkeypatch):
    data = write_rows([{"prompt": "p", "chosen": "yes", "rejected": "no"}])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, text, err = cli("lint", data, "--json")
    assert code == 0, err
    assert json.loads(text)


def test_of_several_processes_the_first_one_speaks(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", '{"a": 1}\n'), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        finish({"a": 1}, True, "a line")
        assert capsys.readouterr().out == said
