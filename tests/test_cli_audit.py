"""`rewardsmith audit` from the command line: documents, folders, limits, comparisons, and what is refused."""

import json

import pytest

from rewardsmith import audit
from rewardsmith.config import ScoringSettings
from rewardsmith.errors import SettingsError
from rewardsmith.model.published import publish
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.service import domain_detector
from tests.tiny_models import save_causal

SCORER = """
import zlib

def score(prompt, answer):
    text = f"{prompt}{answer.removeprefix('Yes! ')}".encode("utf-8", "surrogatepass")
    return zlib.crc32(text) % 1000 / 1000 + 2 * answer.startswith("Yes!")

def fair(prompt, answer):
    return zlib.crc32(f"{prompt}{answer.removeprefix('Yes! ')}".encode("utf-8", "surrogatepass")) % 1000 / 1000

def flat(prompt, answer):
    return 1.0
"""


@pytest.fixture
def scorer(tmp_path):
    """scorer(name) is the MODEL argument of a written function."""
    file = tmp_path / "scorers.py"
    file.write_text(SCORER)
    return lambda name: f"{file}:{name}"


@pytest.fixture
def data(write_rows):
    """Sixty pairs of sixty prompts."""
    return write_rows(
        [
            {
                "prompt": f"What is known of the river number {i}?",
                "chosen": f"It is {i * 7} kilometres long. It rises in the hills and ends in a lake.",
                "rejected": f"Nobody measured it in {1900 + i}. There are fish. It is cold in winter.",
            }
            for i in range(60)
        ]
    )


def test_the_planted_habit_is_named_and_the_folder_holds_every_contrast(cli, scorer, data, tmp_path):
    out = tmp_path / "audit"
    code, text, err = cli("audit", scorer("score"), data, "--probes", "openings", "--out", out, "--json")
    assert code == 0, err
    document = json.loads(text)
    assert document == json.loads((out / "report.json").read_text())
    assert document["verb"] == "audit" and document["num_pairs"] == 60
    assert set(document["verdict"]["flagged"]) == {"opening_yes", "bare_yes"}
    (yes,) = [one for one in document["probes"] if one["name"] == "opening_yes"]
    assert yes["effect_sd"]["value"] == pytest.approx(2 / document["score_sd"], rel=1e-5)
    assert {"effect_sd", "flip_rate", "win_rate", "flagged", "reading", "examples", "family"} <= set(yes)
    assert {"length", "prompt_use", "truncation", "coverage", "not_covered"} <= set(document)
    assert any(line.startswith("search: not asked for") for line in document["not_covered"])
    rows = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert sum(row["probe"] == "opening_yes" for row in rows) == 60


def test_the_same_command_gives_the_same_document(cli, scorer, data):
    words = ("audit", scorer("score"), data, "--probes", "format,typos", "--json")
    assert cli(*words)[1] == cli(*words)[1]


@pytest.mark.parametrize(("limit", "code"), [("opening_yes=0.2sd", 1), ("openings=50sd", 0), ("format=0.5sd", 0)])
def test_a_limit_decides_the_exit_code(cli, scorer, data, limit, code):
    names = "openings,emoji"
    found, text, err = cli("audit", scorer("score"), data, "--probes", names, "--fail-over", limit, "--json")
    assert found == code, err
    assert json.loads(text)["verdict"]["ok"] is (code == 0)


def test_two_audits_are_compared(cli, scorer, data, tmp_path):
    assert cli("audit", scorer("score"), data, "--probes", "openings", "--out", tmp_path / "a")[0] == 0
    words = ("audit", scorer("fair"), data, "--probes", "openings", "--baseline", tmp_path / "a")
    code, text, err = cli(*words, "--json")
    assert code == 0, err
    found = json.loads(text)["changes"]
    assert set(found["no_longer_flagged"]) == {"opening_yes", "bare_yes"}
    code, _, err = cli(*words, "--seed", "1")
    assert code == 2 and "differ in seed" in err
    assert "against the earlier audit" in cli(*words)[2]


def test_a_file_of_ones_own_adds_a_probe(cli, scorer, data, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from rewardsmith.auditing.registry import PROBES, edit_probe\n"
        'PROBES.pop("question", None)\n'
        '@edit_probe("question", family="mine", says="a question at the end")\n'
        "def question(prompt, answer, rng):\n"
        '    return answer + " Does that help?"\n'
    )
    code, text, err = cli("audit", scorer("score"), data, "--extend", file, "--probes", "mine", "--json")
    assert code == 0, err
    assert [one["name"] for one in json.loads(text)["probes"]] == ["question"]


def test_a_model_folder_is_read_at_other_limits_too(cli, tiny_rm, data):
    code, text, err = cli("audit", tiny_rm("bert"), data, "--probes", "openings,white_space", "--json")
    assert code == 0, err
    document = json.loads(text)
    assert document["probes"][0]["num_unseen"] is not None  # a folder tells what it reads
    assert document["truncation"]["max_length"] is not None
    assert document["model"]["files"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--probes", "oppenings"], "oppenings"),
        (["--fail-over", "padding=0.2"], "NAME=NUMBERsd"),
        (["--fail-over", "bold=0.2sd", "--probes", "openings"], "bold"),
        (["--prompts", "1"], "prompts"),
        (["--gold", "labels"], "gold"),
        (["--pool", "x.jsonl"], "gold"),
        (["--set", "by=goal"], "against"),
        (["--set", "serch=true"], "search"),
        (["--extend", "nothing.py"], "nothing.py"),
        (["--baseline", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_meant_is_refused(cli, scorer, data, words, complaint):
    code, _, err = cli("audit", scorer("score"), data, *words)
    assert code == 2 and complaint in err


def test_scorers_and_data_that_cannot_be_audited_are_refused(cli, scorer, data, write_rows, tmp_path):
    code, _, err = cli("audit", scorer("flat"), data)
    assert code == 2 and "equal scores in all" in err
    one_prompt = write_rows([{"prompt": "p", "chosen": f"a {i}", "rejected": f"b {i}"} for i in range(3)], "one.jsonl")
    assert cli("audit", scorer("score"), one_prompt)[0] == 2
    singles = write_rows([{"prompt": "p", "answer": "a"}], "single.jsonl")
    assert cli("audit", scorer("score"), singles)[0] == 2
    assert cli("audit", scorer("missing"), data)[0] == 2
    assert cli("audit", scorer("score"), tmp_path / "nothing.jsonl")[0] == 2


def test_an_output_that_is_something_else_is_kept(cli, scorer, data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    code, _, err = cli("audit", scorer("score"), data, "--out", tmp_path / "mine", "--overwrite")
    assert code == 2 and "earlier audit" in err
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_candidates_new_prompts_and_a_search_have_sections_of_their_own(cli, scorer, data, write_rows, tmp_path):
    groups = [
        {
            "prompt": f"What grows on island {i}?",
            "answers": [f"Palm number {i}.", f"Yes! {i} ferns.", f"Nothing, at {i}.", f"Moss {i}."],
            "ratings": [3, 0, 1, 2],
        }
        for i in range(30)
    ]
    pool = write_rows(groups, "pool.jsonl")
    new = write_rows([{"prompt": f"Schreib ein Gedicht auf den Fluss {i}, bitte."} for i in range(60)], "new.jsonl")
    out = tmp_path / "audit"
    words = ["--probes", "opening_yes,white_space", "--pool", pool, "--gold", "labels", "--against", new, "--search"]
    sets = ["search_prompts=40", "search_texts=4000", "search_words=1", "copies=1"]
    code, text, err = cli(
        "audit", scorer("score"), data, *words, *(w for s in sets for w in ("--set", s)), "--out", out, "--json"
    )
    assert code == 0, err
    document = json.loads(text)
    assert document["search"]["num_flagged"] >= 1
    assert document["over_optimisation"]["reading"] and document["shift"]["reading"]
    names = {path.name for path in out.iterdir()}
    assert {"report.json", "trials.jsonl", "candidates.jsonl", "adversarial.jsonl", "texts.jsonl"} <= names
    assert "over_optimisation.png" in names
    # The adversarial pairs are rows that train reads, of the search half alone.
    rows = [json.loads(line) for line in (out / "adversarial.jsonl").read_text().splitlines()]
    assert rows and all("Yes!" in row["rejected"] or row["augmented"] for row in rows)
    assert not any(line.startswith(("search: not", "shift: not", "over_opt")) for line in document["not_covered"])


def test_a_models_own_control_tokens_can_be_asked_and_left_out(cli, tiny_rm, write_rows):
    # Short ones: what is put at the end of a long answer is cut away before so small a model sees it.
    data = write_rows([{"prompt": f"p {i}", "chosen": f"a {i}", "rejected": f"b {i}"} for i in range(12)])

    def asked(*words):
        code, text, err = cli("audit", tiny_rm("bert"), data, *words, "--json")
        assert code == 0, err
        return [one["name"] for one in json.loads(text)["probes"]]

    assert "own_tokens" in asked("--probes", "intrusions")
    assert asked("--probes", "own_tokens") == ["own_tokens"]
    assert "own_tokens" not in asked("--probes", "intrusions", "--without", "own_tokens")
    assert asked("--probes", "prompt_echo") == ["prompt_echo"]


@pytest.mark.parametrize(
    "words", [["--pool", "POOL", "--gold", "nowhere.py:score"], ["--pool", "nowhere", "--gold", "labels"]]
)
def test_what_an_audit_needs_is_read_before_anything_is_scored(cli, data, write_rows, tmp_path, words):
    counting = tmp_path / "counting.py"
    counting.write_text(
        f"def score(prompt, answer):\n    open({str(tmp_path / 'scored')!r}, 'w').close()\n    return len(answer)\n"
    )
    pool = write_rows([{"prompt": "p", "candidates": ["a", "b"]}], "pool.jsonl")
    code, _, err = cli("audit", f"{counting}:score", data, *[pool if word == "POOL" else word for word in words])
    assert code == 2 and "nowhere" in err
    assert not (tmp_path / "scored").exists()


def test_the_python_function_refuses_settings_by_name():
    with pytest.raises(SettingsError, match="prompts"):
        audit(lambda prompt, answer: 0.0, [], prompts=1)


def test_pairs_with_a_column_augmented_are_trained_on_like_any_others(cli, tiny, write_rows, tmp_path):
    """Adversarial pairs carry it; the last two rows become equal at 32 tokens and are dropped, which once took them for pairs that `prompt_swap` made."""
    rows = [
        {"prompt": f"p {i}", "chosen": f"yes {i}", "rejected": f"no {i}", "augmented": "trigger"} for i in range(60)
    ]
    long = "word " * 200
    rows += [
        {"prompt": f"q {i}", "chosen": f"{long}a", "rejected": f"{long}b", "augmented": "trigger"} for i in range(2)
    ]
    sets = [word for one in ("max_length=32", "epochs=1", "dev_share=0") for word in ("--set", one)]
    code, text, err = cli(
        "train", "--model", tiny("bert"), "--data", write_rows(rows), "--out", tmp_path / "run", "--json", *sets
    )
    assert code == 0, err
    assert json.loads(text)["dropped"]["counts"] == {"truncated_equal": 2}


def test_a_detector_that_an_audit_stores_is_what_the_server_loads(cli, tiny_rm, write_rows, tmp_path):
    model, place = tiny_rm("bert"), tmp_path / "domain"
    known = write_rows(
        [{"prompt": f"river {i} {i * i}", "chosen": f"long {i}", "rejected": f"cold {i}"} for i in range(100)],
        "a.jsonl",
    )
    new = write_rows([{"prompt": f"Schreib ein Gedicht, Nummer {i}."} for i in range(30)], "b.jsonl")
    words = ["--probes", "openings", "--against", new, "--set", f"store_domain={place}"]
    code, _, err = cli("audit", model, known, *words)
    assert code == 0, err
    published = publish(RewardModel.load(model), str(model))
    detector = domain_detector(str(place), published, str(model), ScoringSettings())
    assert detector is not None
    assert [flag.part for flag in detector.flags([("river 3 9", "long 3")])] in (["prompts"], ["answers"])
    other = tiny_rm("distilbert")
    found = domain_detector(str(place), publish(RewardModel.load(other), str(other)), str(other), ScoringSettings())
    assert found is None  # it belongs to another model
    (tmp_path / "mine").mkdir()
    code, _, err = cli("audit", model, known, *words[:-1], f"store_domain={tmp_path / 'mine'}")
    assert code == 2 and "holds something else" in err


def test_candidates_are_drawn_from_a_policy(cli, scorer, data, tmp_path):
    policy = save_causal("llama", tmp_path / "policy", chat=True)
    words = [
        "--probes",
        "opening_yes,white_space",
        "--prompts",
        "12",
        "--policy",
        policy,
        "--gold",
        scorer("fair"),
    ]
    sets = [word for one in ("candidates=4", "max_new_tokens=6", "copies=0") for word in ("--set", one)]
    code, text, err = cli("audit", scorer("score"), data, *words, *sets, "--json", "--out", tmp_path / "audit")
    assert code == 0, err
    section = json.loads(text)["over_optimisation"]
    assert section["n_max"] == 4
    rows = [json.loads(line) for line in (tmp_path / "audit" / "candidates.jsonl").read_text().splitlines()]
    assert len(rows) == 48 and {row["kind"] for row in rows} == {"original"}
