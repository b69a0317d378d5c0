"""`rewardsmith bestofn` from the command line: documents, files, drawn candidates, and what is refused before anything is scored."""

import json

import pytest

from rewardsmith.data import io
from tests.tiny_models import save_causal

SCORER = """
def named(prompt, answer):
    return float(answer.split()[0])

def least(prompt, answer):
    return -float(answer.split()[0])

def length(prompt, answer):
    return len(answer)
"""
POWERS = [1, 2, 4, 8, 16, 32, 64]


@pytest.fixture
def scorer(tmp_path):
    """scorer(name) is the MODEL argument of a written function."""
    file = tmp_path / "scorers.py"
    file.write_text(SCORER)
    return lambda name="named": f"{file}:{name}"


@pytest.fixture
def data(write_rows):
    """Twelve rated groups of three, the best in the middle; the names of scores."""
    return write_rows(
        [
            {
                "id": f"r{i}",
                "prompt": f"question {i}",
                "answers": ["1 a", f"{4 + i % 2} b", "3.5 c"],
                "ratings": [0, 2, 1],
            }
            for i in range(12)
        ],
        "groups.jsonl",
    )


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_document_holds_the_curve_to_64_and_the_rows_the_rankings(cli, scorer, write_rows, tmp_path):
    """Scores i / 65, i = 1..64: the best of n is worth n / (n + 1), exactly; the runner-up stands 1 / 65 below."""
    answers = [f"{(7 * i % 64 + 1) / 65} x" for i in range(64)]
    rows = write_rows([{"id": f"r{g}", "prompt": f"q{g}", "candidates": answers} for g in range(2)])
    out = tmp_path / "best.jsonl"
    code, text, err = cli("bestofn", scorer(), rows, "--out", out, "--json")
    assert code == 0, err
    document = json.loads(text)
    assert document["verb"] == "bestofn" and document["num_prompts"] == 2 and document["num_candidates"] == 128
    assert [point["n"] for point in document["curve"]] == POWERS
    assert [point["score"]["value"] for point in document["curve"]] == pytest.approx(
        [n / (n + 1) for n in POWERS], abs=1e-6
    )
    assert document["kl"]["value"] == pytest.approx(3.174508, abs=1e-6) and not document["kl"]["is_upper_bound"]
    assert document["abstained"] is None and document["labels"] is None and document["soft"] is None
    (first, _) = lines(out)
    best = answers.index(max(answers, key=lambda answer: float(answer.split()[0])))
    assert first["answer"] == answers[best] and first["ranking"][0] == best and sorted(first["ranking"]) == [*range(64)]
    assert first["margin"] == pytest.approx(1 / 65, abs=1e-6) and first["probability"] is None
    assert not first["abstained"] and first["reason"] is None


def test_single_answers_are_candidates_of_their_prompt(cli, scorer, write_rows, tmp_path):
    rows = write_rows([{"prompt": f"q{i % 2}", "answer": f"{i} x"} for i in range(6)])
    out = tmp_path / "best.jsonl"
    assert cli("bestofn", scorer(), rows, "--out", out)[0] == 0
    assert [row["answer"] for row in lines(out)] == ["4 x", "5 x"]


def test_labels_abstention_and_exports_go_together(cli, scorer, data, tmp_path):
    """Margins 0.5 and 1.5 in turn: below 1 six of twelve are abstained from. The best and the worst: every group."""
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("sft", "pairs")}
    plot = tmp_path / "curve.png"
    words = ("bestofn", scorer(), data, "--abstain-margin", 1, "--sft", paths["sft"], "--pairs", paths["pairs"])
    code, text, err = cli(*words, "--plot", plot, "--json")
    assert code == 0, err
    document = json.loads(text)
    assert document["labels"]["accuracy"]["value"] == 1 and document["labels"]["chance"] == pytest.approx(1 / 3)
    assert document["curve"][-1]["label"]["value"] == 2
    assert document["abstained"]["value"] == 0.5 and document["abstention"]["accuracy_kept"]["n"] == 6
    assert document["exports"] == {
        "sft": {"rows": 6, "left_out": {"abstained": 6}},
        "pairs": {"rows": 12, "left_out": {}},
    }
    reading = io.read(str(paths["sft"]))
    assert reading.format == "native" and [row.answer for row in reading.rows] == ["5 b"] * 6
    pairs = io.preferences(io.read(str(paths["pairs"])).rows, "pairs")
    assert [(pair.chosen, pair.rejected, pair.margin) for pair in pairs] == [
        ("4 b", "1 a", None),
        ("5 b", "1 a", None),
    ] * 6
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert cli("lint", paths["pairs"], "--json", "--ignore", "longer_wins")[0] in (0, 1)
    table = cli(*words, "--overwrite")[2]
    assert "abstained: 0.500" in table and "best picked" in table and "6 abstained" in table


@pytest.mark.parametrize("written", ["sft", "pairs"])
def test_exports_as_messages_are_read_back(cli, scorer, data, tmp_path, written):
    path = tmp_path / "out.jsonl"
    assert cli("bestofn", scorer(), data, f"--{written}", path, "--messages")[0] == 0
    row = lines(path)[0]
    key = "messages" if written == "sft" else "chosen"
    assert row[key][-1] == {"role": "assistant", "content": "4 b"}
    if written == "pairs":
        (pair, *_) = io.preferences(io.read(str(path)).rows, "pairs")
        assert (pair.prompt, pair.chosen) == ([{"role": "user", "content": "question 0"}], "4 b")


def test_a_soft_choice_is_seeded_and_said(cli, scorer, data, tmp_path):
    def taken(name, *more):
        assert cli("bestofn", scorer(), data, "--temperature", 2, "--out", tmp_path / name, *more)[0] == 0
        return [row["answer"] for row in lines(tmp_path / name)]

    assert taken("a") == taken("b") != taken("c", "--seed", 1)
    code, text, _ = cli("bestofn", scorer(), data, "--temperature", 2, "--json")
    soft = json.loads(text)["soft"]
    assert code == 0 and soft["temperature"] == 2 and 0 < soft["kl_at_most"] < soft["kl"]["high"] + 1e-9


def test_an_ensemble_names_its_members_and_its_rule(cli, scorer, data):
    words = ("bestofn", scorer(), data, "--ensemble", scorer("least"), "--rule", "lower-confidence", "--json")
    code, text, err = cli(*words, "--k", 2)
    assert code == 0, err
    found = json.loads(text)["ensemble"]
    assert found["rule"] == "lower confidence" and found["k"] == 2 and [*found["members"]] == ["named", "least"]
    # One member's best is the other one's worst: they never agree.
    assert found["same_best"]["value"] == 0


def test_a_stored_temperature_gives_probabilities_of_one_model(cli, scorer, tiny_rm, data, tmp_path):
    """The folder says 0.5: P = sigmoid(margin / 0.5) in every row."""
    import math
    import shutil

    folder = shutil.copytree(tiny_rm("bert"), tmp_path / "rm")
    contract = json.loads((folder / "rewardsmith.json").read_text())
    (folder / "rewardsmith.json").write_text(json.dumps(contract | {"temperature": 0.5}))
    out = tmp_path / "best.jsonl"
    code, text, err = cli("bestofn", folder, data, "--abstain-below", 0.9, "--out", out, "--json")
    assert code == 0, err
    document, rows = json.loads(text), lines(out)
    assert document["temperature"] == 0.5 and document["truncated"] == 0
    for row in rows:
        assert row["probability"] == pytest.approx(1 / (1 + math.exp(-row["margin"] / 0.5)), rel=1e-6)
        assert row["abstained"] == (row["probability"] < 0.9)
    assert document["abstention"]["count"] == sum(row["abstained"] for row in rows)
    code, text, err = cli("bestofn", folder, data, "--ensemble", scorer(), "--json")
    assert code == 0, err
    assert json.loads(text)["temperature"] is None and len(json.loads(text)["ensemble"]["models"]) == 2


def test_drawn_candidates_are_kept_with_their_marks_and_can_be_chosen_from_again(cli, scorer, write_rows, tmp_path):
    policy = save_causal("qwen2", tmp_path / "policy", chat=True)
    prompts = write_rows([{"prompt": "How do I mend item 1?"}, {"prompt": "How do I mend item 2?", "answer": "No."}])
    first, again, kept = tmp_path / "first.jsonl", tmp_path / "again.jsonl", tmp_path / "kept.jsonl"
    words = ("bestofn", scorer("length"), prompts, "--policy", policy, "--n", 3, "--max-new-tokens", 4, "--threads", 1)
    code, text, err = cli(*words, "--out", first, "--save-candidates", kept, "--json")
    assert code == 0, err
    document, rows = json.loads(text), lines(first)
    assert document["num_candidates"] == 6 and document["data"]["num_answers"] == 3
    assert all(len(row["drawn"]) == 3 and row["drawn"][row["taken"]]["answer"] == row["answer"] for row in rows)
    assert document["cut"] == sum(one["is_cut"] for row in rows for one in row["drawn"]) > 0
    assert any("unfinished" in line for line in document["warnings"])
    # What was drawn is data like any other, and so are the answers that were taken.
    code, text, err = cli("bestofn", scorer("length"), kept, "--out", again, "--json")
    assert code == 0, err
    assert json.loads(text)["cut"] == document["cut"]
    assert [row["answer"] for row in lines(again)] == [row["answer"] for row in rows]
    assert [row.answer for row in io.read(str(first)).rows] == [row["answer"] for row in rows]


def test_drawn_candidates_are_kept_where_scoring_fails(cli, write_rows, tmp_path):
    policy = save_causal("qwen2", tmp_path / "policy", chat=True)
    (tmp_path / "bad.py").write_text("def score(prompt, answer):\n    return float('nan')\n")
    kept = tmp_path / "kept.jsonl"
    words = ("--policy", policy, "--n", 2, "--max-new-tokens", 2, "--threads", 1, "--save-candidates", kept)
    code, _, err = cli("bestofn", f"{tmp_path / 'bad.py'}:score", write_rows([{"prompt": "What is it?"}]), *words)
    assert code == 2 and "finite" in err and len(lines(kept)[0]["candidates"]) == 2


def test_nothing_to_train_on_is_an_error_and_no_file(cli, scorer, data, tmp_path):
    out, sft = tmp_path / "out.jsonl", tmp_path / "sft.jsonl"
    code, _, err = cli("bestofn", scorer(), data, "--abstain-margin", 99, "--sft", sft, "--out", out)
    assert code == 2 and "12 abstained" in err and not sft.exists()
    assert len(lines(out)) == 12  # what was paid for is kept


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--abstain-below", "0.6"], "rewardsmith calibrate"),
        (["--abstain-below", "0.6", "--ensemble", "{other}"], "several models"),
        (["--abstain-below", "0.4"], "above 0.5"),
        (["--abstain-below", "0.6", "--abstain-margin", "1"], "both"),
        (["--abstain-margin", "-1"], "margin above 0"),
        (["--temperature", "0"], "above 0"),
        (["--temperature", "nan"], "above 0"),
        (["--n", "4"], "--policy"),
        (["--max-new-tokens", "4"], "--policy"),
        (["--save-candidates", "{new}"], "--policy"),
        (["--policy", "nowhere", "--policy-temperature", "nan"], "--policy-temperature"),
        (["--rule", "mean"], "--ensemble"),
        (["--ensemble", "{other}", "--k", "1"], "lower-confidence"),
        (["--ensemble", "{other}", "--rule", "lower-confidence", "--k", "nan"], "k of at least 0"),
        (["--min-margin", "1"], "--pairs"),
        (["--pairs", "{new}", "--min-margin", "inf"], "--min-margin"),
        (["--messages"], "--sft or --pairs"),
        (["--out", "{data}", "--overwrite"], "an input"),
        (["--out", "{file}", "--overwrite"], "an input"),
        (["--sft", "{old}"], "exists"),
        (["--out", "{old}/best.jsonl"], "cannot be written"),
        (["--plot", "{old}/deeper/best.png"], "cannot be written"),
        (["--sft", "{new}", "--pairs", "{new}"], "each of the outputs"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_scored(cli, scorer, data, tmp_path, words, said):
    file = tmp_path / "never.py"
    file.write_text("def score(prompt, answer):\n    raise AssertionError('scored')\n")
    old = tmp_path / "old.jsonl"
    old.write_text("{}\n")
    paths = {"data": data, "file": str(file), "old": str(old), "new": str(tmp_path / "new.jsonl"), "other": scorer()}
    code, text, err = cli("bestofn", f"{file}:score", data, *(word.format(**paths) for word in words), "--json")
    assert code == 2 and said in err and "error" in json.loads(text), err
    assert old.read_text() == "{}\n" and not (tmp_path / "new.jsonl").exists()


def test_pairs_alone_are_no_candidates(cli, scorer, toy_pairs):
    code, _, err = cli("bestofn", scorer(), toy_pairs)
    assert code == 2 and "48 pairs" in err
