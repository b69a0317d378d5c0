"""The example of TRL's GRPO runs as it stands, with a tiny policy, and reports what it promises."""

import importlib.util
import json
from pathlib import Path

import pytest

from rewardsmith.use import References, Sample, Shaping
from rewardsmith.use.terms import GroupZScore, PreferenceAsReward

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "grpo_trl.py"


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("grpo_trl", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(example, tmp_path, tiny_rm, write_rows, capsys):
    """run(learning rate) is (the report, the rows of samples.jsonl)."""
    from tests.tiny_models import save_causal

    policy = save_causal("qwen3", tmp_path / "policy", chat=True)
    train = write_rows([{"prompt": f"How do I mend item {i}?"} for i in range(12)], "train.jsonl")
    held = write_rows([{"prompt": f"How do I mend item {i}?"} for i in range(10, 22)], "held.jsonl")
    words = ["--reward-model", tiny_rm("bert"), "--prompts", train, "--eval-prompts", held, "--out", tmp_path / "out"]
    words += ["--policy", policy, "--tiny", "--threads", 1]

    def once(rate):
        capsys.readouterr()
        assert example.main([*map(str, words), "--learning-rate", str(rate), "--overwrite"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document == json.loads((tmp_path / "out" / "report.json").read_text())
        return document, [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]

    return once


def test_the_example_reports_paired_differences_and_kl(run):
    document, rows = run(0.05)
    assert "/" not in "".join(str(value) for value in document["settings"].values())  # no place of this machine
    assert document["papers"]["data"] == {
        "prompts": 10,
        "eval_prompts": 12,
        "left_out": {"also_held_out": 2, "too_long": 0, "held_out_too_long": 0},
    }
    before, after, difference = (document[key]["reward"] for key in ("before", "after", "difference"))
    assert difference["value"] == pytest.approx(after["value"] - before["value"], abs=1e-6)
    assert difference["low"] < difference["value"] < difference["high"]
    assert difference["n"] == len(rows) == 12
    assert sum(row["reward_after"] - row["reward_before"] for row in rows) / 12 == pytest.approx(difference["value"])
    assert sum(row["kl"] for row in rows) / 12 == pytest.approx(document["kl"]["value"])
    # So high a rate moves even two steps far.
    assert all(row["before"] != row["after"] for row in rows)
    assert max(abs(row["kl"]) for row in rows) > 0.5
    assert document["kl_within_budget"] == (document["kl"]["high"] <= 10)
    assert [row["step"] for row in document["steps"]] == [1, 2]
    assert document["steps"][0]["reward_model/score"] == pytest.approx(document["steps"][0]["reward"], abs=1e-5)


def test_a_policy_that_did_not_learn_differs_by_nothing_from_itself(run):
    document, rows = run(0.0)
    assert all(row["before"] == row["after"] for row in rows)
    assert [document["difference"]["reward"][key] for key in ("low", "value", "high")] == [0.0, 0.0, 0.0]
    assert max(abs(row["kl"]) for row in rows) < 1e-3


def test_inputs_are_looked_at_before_a_model_is(example, tmp_path, write_rows, capsys):
    one = write_rows([{"prompt": "Hi?"}], "one.jsonl")
    words = ["--reward-model", "nowhere", "--policy", "nowhere", "--out", str(tmp_path / "out")]
    assert example.main([*words, "--prompts", one, "--eval-prompts", one]) == 2
    assert "others to measure on" in capsys.readouterr().err
    other = write_rows([{"prompt": "Ho?"}], "other.jsonl")
    assert example.main([*words, "--prompts", one, "--eval-prompts", other, "--shaping", "none.json"]) == 2
    assert "SettingsError" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert example.main([*words, "--prompts", one, "--eval-prompts", other]) == 2
    assert "OutputError" in capsys.readouterr().err


@pytest.mark.parametrize("change", [[], ["--steps", "0"], ["--generations", "1"], ["--prompts-per-step", "3"]])
def test_what_would_end_the_run_later_is_said_before_a_model_is_loaded(change, example, tmp_path, write_rows, capsys):
    """TRL groups no single answers, and trains on nothing, without a word, where a step wants more prompts than there are."""
    train = write_rows([{"prompt": "Hi?"}, {"prompt": "Hm?"}], "train.jsonl")
    held = write_rows([{"prompt": "Ho?"}], "held.jsonl")
    shaping = tmp_path / "shaping.json"
    Shaping([GroupZScore()] if not change else []).save(shaping)
    words = ["--reward-model", "nowhere", "--policy", "nowhere", "--out", tmp_path / "out", "--shaping", shaping]
    words += ["--prompts", train, "--eval-prompts", held, *change]
    assert example.main([str(word) for word in words]) == 2
    assert ([*change, "group_z_score"][0] if change != ["--prompts-per-step", "3"] else "fewer than the 3") in (
        capsys.readouterr().err
    )


def test_prompts_without_references_and_policies_without_a_template_are_refused_at_once(
    example, tmp_path, write_rows, capsys
):
    from tests.tiny_models import save_causal

    train, held = write_rows([{"prompt": "Hi?"}], "train.jsonl"), write_rows([{"prompt": "Ho?"}], "held.jsonl")
    plain = save_causal("gpt2", tmp_path / "plain")
    words = ["--reward-model", "nowhere", "--policy", plain, "--out", tmp_path / "out", "--prompts", train]
    words += ["--eval-prompts", held, "--prompts-per-step", 1]
    Shaping([PreferenceAsReward()], references=References({"Hi?": (0.0, 1.0)}, "x")).save(tmp_path / "s.json")
    assert example.main([*map(str, words), "--shaping", str(tmp_path / "s.json")]) == 2
    assert "'Ho?'" in capsys.readouterr().err
    assert example.main([*map(str, words)]) == 2
    assert "chat template" in capsys.readouterr().err


def test_kl_counts_the_end_that_a_policy_wrote_and_none_that_it_did_not(example, tmp_path):
    """The policy is its reference with another bias of the output layer, which moves the end token alone: KL lies in the end and nowhere else."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.tiny_models import save_causal

    reference = save_causal("qwen3", tmp_path / "reference", chat=True)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(reference), AutoTokenizer.from_pretrained(reference)
    torch.manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] += torch.randn(model.config.hidden_size)
    policy = tmp_path / "policy"
    model.save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    samples = [Sample("Hi?", answer, is_finished=end) for end in (True, False) for answer in ("Hello.", "")]
    finished, nothing_but_end, cut, nothing = example.log_ratios(samples, policy, reference)
    assert nothing == 0.0  # nothing was drawn
    assert abs(finished - cut) > 0.05 and abs(nothing_but_end) > 0.05
