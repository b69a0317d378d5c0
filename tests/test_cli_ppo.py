"""`ppo` end to end with a tiny policy: a function or a reward model folder, a recipe with shaping, a watch, what is written and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rewardsmith.config import PPOSettings, build, read_recipe
from rewardsmith.manifest import Manifest
from tests.model.ppo.word_policies import save_word_policy

ROOT = Path(__file__).resolve().parents[1]
REWARD = "def bads(prompt, answer): return float(answer.count('bad'))\n"
RECIPE = """
steps = 4
prompts_per_step = 4
max_new_tokens = 5
learning_rate = 1e-2
save_every = 2
[lora]
rank = 4
[[shaping]]
name = "clip"
low = -1
high = 1
[[shaping]]
name = "missing_end"
penalty = 0.5
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return save_word_policy(tmp_path_factory.mktemp("words") / "policy", ["yes", "no", "good", "bad", "so", "it"])


@pytest.fixture
def asked(words, write_rows, tmp_path):
    """The words of a command, without --out."""
    (tmp_path / "judge.py").write_text(REWARD)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    prompts = write_rows([{"prompt": f"say {i}"} for i in range(6)], "prompts.jsonl")
    held = write_rows([{"prompt": f"tell {i}", "chosen": "a", "rejected": "b"} for i in range(3)], "held.jsonl")
    paths = {"--policy": words, "--reward-model": f"{tmp_path / 'judge.py'}:bads", "--prompts": prompts}
    paths |= {"--eval-prompts": held, "--config": tmp_path / "recipe.toml", "--device": "cpu"}
    return [word for pair in paths.items() for word in pair]


def test_a_run_by_a_recipe_leaves_its_evidence(cli, asked, tmp_path):
    out = tmp_path / "run"
    code, printed, err = cli("ppo", *asked, "--out", out, "--watch", "--json")
    assert code == 0, err
    report = json.loads(printed)
    assert report["verb"] == "ppo" and report == json.loads((out / "report.json").read_text())
    assert report["eval"]["num_prompts"] == 3 and {"before", "after", "difference"} == set(report["eval"]["score"])
    assert (
        report["reward_model"]["files"].keys() == {"judge.py"} and report["papers"]["data"]["prompts"]["prompts"] == 6
    )
    assert report["watch"]["alarms"] == [] and (out / "watch.json").is_file()
    assert (out / "policy" / "adapter_config.json").is_file() and (out / "curves.png").is_file()
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:  # answers without an end cost one half
        assert row["terms/missing_end"] == pytest.approx(-0.5 * (1 - row["finished"]))
        assert row["reward"] == pytest.approx(row["score"] + row["terms/clip"] + row["terms/missing_end"])
    watched = [json.loads(line) for line in (out / "watch.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in watched] == pytest.approx([row["reward"] for row in rows])
    manifest = Manifest.read(out / "manifest.json")
    assert manifest.document["outcome"] == "finished" and manifest.document["settings"]["steps"] == 4
    assert str(tmp_path) not in (out / "manifest.json").read_text() + (out / "report.json").read_text()
    code, _, err = cli("ppo", *asked, "--out", out, "--watch")
    assert code == 2 and "finished" in err


def test_an_interrupted_run_goes_on_with_its_watch(cli, asked, tmp_path):
    judge = tmp_path / "judge.py"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli("ppo", *asked, "--out", whole, "--watch")[0] == 0
    # The third step's rewards do not come: a file of that name stands beside the judge, which is no part of its code.
    broken = (
        "from pathlib import Path\ncalls = []\n"
        f"def bads(prompt, answer):\n    calls.append(1)\n    assert len(calls) < 13 or not Path({str(tmp_path / 'stop')!r}).exists()\n"
        "    return float(answer.count('bad'))\n"
    )
    judge.write_text(broken)
    (tmp_path / "stop").touch()
    code, _, err = cli("ppo", *asked, "--out", cut, "--watch")
    assert code == 2 and "returns a number" in err
    assert Manifest.read(cut / "manifest.json").document["outcome"] == "failed"
    (tmp_path / "stop").unlink()
    code, _, err = cli("ppo", *asked, "--out", cut, "--watch")
    assert code == 0 and "going on from checkpoint-2" in err, err
    first, second = (
        [json.loads(line) for line in (side / "watch.jsonl").read_text().splitlines()] for side in (whole, cut)
    )
    assert first == second and len(first) == 4
    assert (whole / "policy/adapter_model.safetensors").read_bytes() == (
        cut / "policy/adapter_model.safetensors"
    ).read_bytes()


def test_a_reward_model_of_another_vocabulary_reads_texts(cli, asked, tiny_rm, tmp_path):
    at = asked.index("--reward-model")
    asked[at + 1] = tiny_rm("bert")
    code, printed, err = cli(
        "ppo", *asked, "--out", tmp_path / "run", "--set", "steps=1", "--set", "shaping=[]", "--json"
    )
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    from rewardsmith.model.reward_model import RewardModel

    scores = RewardModel.load(str(tiny_rm("bert"))).score([(row["prompt"], row["answer"]) for row in rows])
    assert [row["score"] for row in rows] == pytest.approx(scores.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "words_of_error"),
    [
        (["--set", 'shaping=[{name = "kl", coefficient = 0.1}]'], "count twice"),
        (["--set", 'shaping=[{name = "clipp"}]'], "clip"),
        (["--set", "kl_budgett=1"], "kl_budget"),
        (["--set", "lora.dropout=0.1"], "dropout"),
        (["--reward-model", "nowhere.py:score"], "nowhere.py"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_meant_ends_with_exit_code_2(cli, asked, tmp_path, changes, words_of_error):
    code, _, err = cli("ppo", *asked, "--out", tmp_path / "run", *changes)
    assert code == 2 and words_of_error in err, err
    assert not (tmp_path / "run").exists()


def test_malformed_prompts_are_counted(cli, asked, tmp_path):
    with open(asked[asked.index("--prompts") + 1], "a") as file:
        file.write('{"prompt": 7}\n')
    assert cli("ppo", *asked, "--out", tmp_path / "none")[0] == 2
    code, printed, err = cli("ppo", *asked, "--out", tmp_path / "run", "--skip-bad", "--set", "steps=1", "--json")
    assert code == 0 and "left out of prompts.jsonl" in err, err
    facts = json.loads(printed)["papers"]["data"]["prompts"]
    assert facts["skipped_bad"] == {"prompt": 1} and facts["prompts"] == 6


def test_without_prompts_or_a_reward_model_nothing_runs(cli, words, tmp_path):
    code, _, err = cli("ppo", "--policy", words, "--out", tmp_path / "run")
    assert code == 2 and "--reward-model" in err


def test_the_recipe_for_smollm2_can_be_meant(tmp_path):
    recipe = read_recipe(ROOT / "examples" / "ppo_smollm2.toml")
    assert build(PPOSettings, recipe | {"out": str(tmp_path / "run")}).kl_budget == 10


def test_help_and_settings_load_no_torch():
    code = "import sys; from rewardsmith.cli import main; main(['ppo', '--help']); import rewardsmith.ppo_runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_watch_puts_the_probes_to_the_reward_model_on_what_the_policy_says(cli, asked, tmp_path):
    out = tmp_path / "probed"
    code, _, err = cli("ppo", *asked, "--out", out, "--set", "watch_probes=2")
    assert code == 2 and "--watch" in err and not out.exists()
    code, _, err = cli(
        "ppo", *asked, "--out", out, "--watch", "--set", "watch_probes=2", "--set", "prompts_per_step=16"
    )
    assert code == 0, err
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    rounds = json.loads((out / "watch.json").read_text())["probes"]
    assert [one["step"] for one in rounds] == steps[::2]  # the first step, and every second from there
