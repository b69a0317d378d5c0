"""`winrate` end to end: files or drawn answers, several judges, a detector, what is written and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rewardsmith.auditing.shift import measure_shift
from rewardsmith.config import ScoringSettings
from rewardsmith.data.schema import Preference
from rewardsmith.model.features import FrozenEncoder

ROOT = Path(__file__).resolve().parents[1]
JUDGES = """
def longer(prompt, answer): return len(answer)
def shorter(prompt, answer): return -len(answer)
def even(prompt, answer): return 0.0
"""


@pytest.fixture
def judges(tmp_path):
    path = tmp_path / "judges.py"
    path.write_text(JUDGES)
    return f"{path}:"


@pytest.fixture
def sides(write_rows):
    """Forty prompts; A's answer is the longer one on 30 of them."""
    rng = np.random.default_rng(0)
    rows_a, rows_b = [], []
    for i in range(40):
        long, short = "word " * int(rng.integers(9, 16)) + f"{i}", "word " * int(rng.integers(2, 8)) + f"{i}"
        a, b = (long, short) if i < 30 else (short, long)
        rows_a.append({"prompt": f"How do I mend item {i}?", "answer": a, "topic": "early" if i < 20 else "late"})
        rows_b.append({"prompt": [{"role": "user", "content": f"How do I mend item {i}?"}], "answer": b})
    return write_rows(rows_a, "a.jsonl"), write_rows(rows_b[::-1], "b.jsonl")


def test_two_files_are_compared_and_kept(cli, judges, sides, tmp_path):
    out = tmp_path / "compared"
    code, printed, err = cli("winrate", judges + "longer", "--a", sides[0], "--b", sides[1], "--out", out, "--json")
    assert code == 0, err
    document = json.loads(printed)
    assert document["verb"] == "winrate" and document["winner"] == "A"
    assert document["win_rate"]["value"] == 0.75 and document["win_rate"]["n"] == 40
    assert document["ties"]["value"] == 0 and document["num_prompts"] == 40
    assert document["by"]["topic"]["early"]["value"] == 1 and document["by"]["topic"]["late"]["value"] == 0.5
    assert document["data"]["a"]["source"] == "a.jsonl" and "length_controlled_win_rate" in document
    assert json.loads((out / "report.json").read_text()) == document
    rows = [json.loads(line) for line in (out / "comparisons.jsonl").read_text().splitlines()]
    assert np.mean([row["scores_a"][0] > row["scores_b"][0] for row in rows]) == 0.75
    assert (out / "margins.png").read_bytes().startswith(b"\x89PNG")
    code, printed, _ = cli("winrate", judges + "longer", "--a", sides[1], "--b", sides[0], "--json")
    assert json.loads(printed)["win_rate"]["value"] == 0.25
    # A folder of an earlier comparison is replaced when that is asked for; nothing else is.
    assert cli("winrate", judges + "even", "--a", sides[0], "--b", sides[1], "--out", out)[0] == 2
    code, printed, err = cli("winrate", judges + "even", "--a", sides[0], "--b", sides[1], "--out", out, "--overwrite")
    assert code == 0 and "does not tell the policies apart" in printed and "A wins (ties one half)" in err


def test_further_judges_are_set_beside_each_other(cli, judges, sides):
    words = ["--a", sides[0], "--b", sides[1], "--also", judges + "shorter", "--also", judges + "longer"]
    code, printed, err = cli("winrate", judges + "longer", *words, "--json")
    assert code == 0, err
    agreement = json.loads(printed)["agreement"]
    assert [one["win_rate"]["value"] for one in agreement["judges"]] == [0.75, 0.25, 0.75]
    assert [one["name"] for one in agreement["judges"]] == ["longer (1)", "shorter", "longer (3)"]
    # Against its opposite a judge agrees nowhere, with itself everywhere: shares 0, 1, 0.
    assert [one["share"]["value"] for one in agreement["pairs"]] == [0, 1, 0]
    assert agreement["pairs"][1]["kappa"]["value"] == 1 and agreement["pairs"][0]["kappa"]["value"] < 0
    assert (agreement["winner"], agreement["all_agree"]) == ("undecided", False)
    code, printed, err = cli(
        "winrate", judges + "longer", "--a", sides[0], "--b", sides[1], "--also", judges + "longer"
    )
    assert code == 0 and "same winner: longer (1) and longer (2)" in err


def test_a_model_judges_with_its_temperature_and_its_domain(cli, tiny_rm, sides, tmp_path):
    """The detector's reference is of one kind of prompt; both policies answer another, and most answers are flagged."""
    folder = tiny_rm("bert")
    reference = [
        Preference(str(i), f"Name a colour, number {i}.", f"Red, blue or green {i}.", f"Not sure {i}.")
        for i in range(120)
    ]
    encoder = FrozenEncoder(folder, settings=ScoringSettings())
    files = json.loads((folder / "rewardsmith.json").read_text())["files"]
    made_by = {"name": folder.name, "max_length": encoder.max_length, "files": files}
    new = [f"How do I mend item {i}?" for i in range(60)]
    measure_shift(reference, new, features=encoder, made_by=made_by).save_detector(tmp_path / "domain")
    words = ["--a", sides[0], "--b", sides[1], "--domain", tmp_path / "domain"]
    code, printed, err = cli("winrate", folder, *words, "--json")
    assert code == 0, err
    document = json.loads(printed)
    assert document["domain"]["outside_a"]["value"] > 0.5 and document["domain"]["outside_a"]["n"] == 40
    assert any("lie outside of the domain" in line for line in document["warnings"])
    # The tiny model reads 64 tokens, and a word is several of them.
    assert document["counts"]["truncated"] > 0 and document["temperature"] is None
    assert any("of 80 texts were cut before they were scored" in line for line in document["warnings"])
    other = tiny_rm("electra")
    code, _, err = cli("winrate", other, *words)
    assert code == 2 and "a domain detector of" in err
    assert cli("winrate", folder, "--a", sides[0], "--b", sides[1], "--domain", tmp_path / "nothing")[0] == 2


def test_policies_answer_by_numbers_of_their_own(cli, judges, write_rows, tmp_path):
    """One policy against itself: other draws, so hardly a tie; what is cut is said; what was drawn is kept and can be compared again."""
    from tests.tiny_models import save_causal

    policy = save_causal("llama", tmp_path / "policy", chat=True)
    prompts = write_rows([{"prompt": f"Say {i}", "topic": "odd" if i % 2 else "even"} for i in range(12)], "p.jsonl")
    out = tmp_path / "drawn"
    words = [
        "--prompts",
        prompts,
        "--policy-a",
        policy,
        "--policy-b",
        policy,
        "--num-answers",
        2,
        "--max-new-tokens",
        6,
    ]
    code, printed, err = cli("winrate", judges + "longer", *words, "--by", "topic", "--out", out, "--json")
    assert code == 0, err
    document = json.loads(printed)
    assert document["num_comparisons"] == 48 and document["counts"]["same_answers"] < 5
    assert document["data"]["a"]["seed"] != document["data"]["b"]["seed"]
    assert document["data"]["a"]["cut"] > 12 and any(
        "answers of A were cut at 6 tokens" in one for one in document["warnings"]
    )
    assert set(document["by"]["topic"]) == {"even", "odd"}
    code, printed, _ = cli("winrate", judges + "longer", "--a", out / "a.jsonl", "--b", out / "b.jsonl", "--json")
    assert json.loads(printed)["win_rate"] == document["win_rate"]


def test_the_implicit_reward_of_a_dpo_policy_judges_beside_the_model(cli, judges, sides, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rewardsmith.model.implicit_reward import ImplicitReward
    from tests.tiny_models import save_causal

    reference = save_causal("llama", tmp_path / "reference", chat=True)
    model = AutoModelForCausalLM.from_pretrained(reference)
    torch.manual_seed(1)
    with torch.no_grad():
        model.lm_head.weight.add_(0.05 * torch.randn_like(model.lm_head.weight))
    policy = str(tmp_path / "policy")
    model.save_pretrained(policy)
    AutoTokenizer.from_pretrained(reference).save_pretrained(policy)
    words = ["--a", sides[0], "--b", sides[1]]
    code, printed, err = cli(
        "winrate", judges + "longer", *words, "--implicit", policy, "--reference", reference, "--beta", 0.3, "--json"
    )
    assert code == 0, err
    document = json.loads(printed)
    a, b = ([json.loads(line) for line in Path(side).read_text().splitlines()] for side in sides)
    scorer = ImplicitReward(policy, reference, beta=0.3)
    margins = scorer.score([(r["prompt"], r["answer"]) for r in a]) - scorer.score(
        [(r["prompt"], r["answer"]) for r in b[::-1]]
    )
    assert document["implicit"]["win_rate"]["value"] == pytest.approx((margins > 0).mean())
    assert document["implicit"]["mean_margin"]["value"] == pytest.approx(margins.mean(), abs=1e-4)
    assert document["implicit"]["beta"] == 0.3 and document["implicit"]["policy"] == "policy"
    # The implicit reward is a judge like others, but no reward model that must agree.
    assert document["agreement"]["all_agree"] is True and len(document["agreement"]["judges"]) == 2


def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(cli, judges, sides, write_rows, tmp_path):
    a, b = sides
    nowhere = str(tmp_path / "no-such-model")
    foreign = write_rows([{"prompt": "other", "answer": "x"}], "c.jsonl")
    for words, needed in (
        ([], "--a with --b"),
        (["--a", a], "--a with --b"),
        (["--a", a, "--b", b, "--prompts", a], "--a with --b"),
        (["--prompts", a, "--policy-a", nowhere], "--a with --b"),
        (["--a", a, "--b", foreign], "none in common"),
        (["--a", a, "--b", b, "--by", "colour"], "colour"),
        (["--a", a, "--b", b, "--implicit", nowhere], "--implicit with --reference"),
        (["--a", a, "--b", b, "--implicit", nowhere, "--reference", nowhere], "twice"),
        (["--a", a, "--b", b, "--beta", "0"], "--beta above 0"),
        (["--a", a, "--b", b, "--domain", tmp_path / "none"], "detector"),
        (["--a", a, "--b", b, "--out", a], "--out"),
    ):
        code, printed, err = cli("winrate", nowhere, *words, "--json")
        assert code == 2 and needed in err, (words, err)
        assert "error" in json.loads(printed)


def test_nothing_is_drawn_before_all_that_is_needed_is_there(cli, judges, write_rows, tmp_path):
    """A is a folder that cannot answer: whoever asked it first would say so."""
    prompts = write_rows([{"prompt": "Say 1"}], "p.jsonl")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text('{"model_type": "llama"}')
    drawing = ["--prompts", prompts, "--policy-a", tmp_path / "a", "--policy-b"]
    nowhere = f"{tmp_path}/nowhere"
    for judge, words, needed in (
        (judges + "nobody", [*drawing, tmp_path / "a"], "a function `nobody`"),
        (judges + "longer", [*drawing, tmp_path / "a", "--also", judges + "nobody"], "a function `nobody`"),
        (judges + "longer", [*drawing, nowhere], f"a model folder at {nowhere}"),
        (judges + "longer", [*drawing, tmp_path / "a", "--implicit", tmp_path / "a", "--reference", nowhere], nowhere),
        (judges + "longer", [*drawing, tmp_path / "a", "--temperature", "0"], "--temperature above 0"),
        (judges + "longer", [*drawing, tmp_path / "a", "--beta", "inf"], "--beta above 0"),
        (judges + "longer", [*drawing, tmp_path / "a"], "a causal language model"),
    ):
        code, _, err = cli("winrate", judge, *words)
        assert code == 2 and needed in " ".join(err.split()), (words, err)


def test_the_example_says_what_is_wrong_with_its_inputs(write_rows):
    plain = write_rows([{"prompt": "p", "chosen": "x", "rejected": "y"}], "plain.jsonl")
    for words, needed in (([plain, "nowhere"], "chosen_model"), ([plain, "nowhere", "--pairs", "0"], "--pairs")):
        command = [sys.executable, str(ROOT / "examples" / "win_rates_rmb.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and needed in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_the_example_compares_win_rates_with_labels(write_rows, tmp_path):
    """Model x wins 24 of 30 by the labels. The scorer reads quality out of the text, wrongly on the first six prompts of 30."""
    rows = []
    for i in range(30):
        x_wins, seen = i >= 6, i >= 12
        x, y = f"{'good' if seen else 'poor'} answer of x {i}", f"fair answer of y number {i}"
        chosen, rejected, models = (x, y, ("x", "y")) if x_wins else (y, x, ("y", "x"))
        rows.append(
            {
                "prompt": f"p {i}",
                "chosen": chosen,
                "rejected": rejected,
                "chosen_model": models[0],
                "rejected_model": models[1],
            }
        )
    rows.append({"prompt": "rare", "chosen": "u", "rejected": "v", "chosen_model": "x", "rejected_model": "z"})
    judge = tmp_path / "judge.py"
    judge.write_text('def score(prompt, answer): return {"good": 2, "fair": 1}.get(answer[:4], 0)\n')
    words = [write_rows(rows), f"{judge}:score", "--pairs", "1", "--write", str(tmp_path / "files")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "win_rates_rmb.py"), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (row,) = document["rows"]
    assert (row["model_a"], row["model_b"], row["num_prompts"]) == ("x", "y", 30)
    # Labels: 24 of 30. Scorer: 18 of 30. They differ on the six prompts from 6 to 11. y's answers are always the longer ones.
    assert row["labels"]["value"] == pytest.approx(0.8) and row["win_rate"]["value"] == pytest.approx(0.6)
    assert row["agrees_with_labels"]["value"] == pytest.approx(0.8)
    assert row["minus_labels"]["value"] == pytest.approx(-0.2)
    assert row["longer_answer"]["value"] == 0 and row["same_side"] and not row["longer_same_side"]
    assert not row["labels_within_interval"] and row["winner_by_labels"] == "A"
    assert len((tmp_path / "files" / "x_y.a.jsonl").read_text().splitlines()) == 30


def test_flags_of_drawing_are_refused_beside_files(cli, judges, sides):
    for flag, value in (("--num-answers", "2"), ("--max-new-tokens", "8"), ("--temperature", "0.7")):
        code, _, err = cli("winrate", judges + "longer", "--a", sides[0], "--b", sides[1], flag, value)
        assert code == 2 and flag in err
