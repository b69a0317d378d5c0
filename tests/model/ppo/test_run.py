"""A whole run: resuming, the KL budget, what is saved, what is refused; and in slow tests, problems whose answer is known."""

import io
import json
import os
import random
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewardsmith.config import PPOSettings, ScoringSettings, build
from rewardsmith.errors import DataError, OutputError, ScoreError, SettingsError
from rewardsmith.model.policy import Policy
from rewardsmith.model.ppo import ppo_run, train_ppo
from rewardsmith.model.ppo import run as ppo_run_module
from rewardsmith.use import Reward, Shaping
from rewardsmith.use.samples import Rewards
from rewardsmith.use.terms import Clip, GroupZScore, KLPenalty, LengthPenalty
from tests.model.ppo.word_policies import save_word_policy

WORDS = ["yes", "no", "good", "bad", "so", "it"]
PROMPTS = ["go", "one two three four five", "a b c"]
HELD = ["what then", "and now"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return save_word_policy(tmp_path_factory.mktemp("words") / "policy", WORDS)


@pytest.fixture(autouse=True)
def without_curves(request, monkeypatch):
    """Drawing takes longer than a tiny run: one test looks at the figure, the others leave it out."""
    if request.node.name != "test_what_a_step_leaves_behind":
        monkeypatch.setattr(ppo_run_module, "_draw", lambda *arguments: None)


def settings_of(policy, out, **changes):
    values = {
        "policy": policy,
        "out": str(out),
        "steps": 6,
        "prompts_per_step": 4,
        "max_new_tokens": 5,
        "learning_rate": 1e-2,
        "save_every": 2,
        "samples_every": 3,
        "device": "cpu",
    }
    return build(PPOSettings, values | changes)


def bads(prompt, answer):
    """About one word in six is `bad` at first, so that every step has something to learn from."""
    return float(answer.count("bad"))


def run(settings, reward=bads, prompts=PROMPTS, **more):
    return train_ppo(settings, Reward(reward), prompts, console=Console(file=io.StringIO()), **more)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(row):
    return {key: value for key, value in row.items() if "seconds" not in key and key != "tokens_per_second"}


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_resumed_run_equals_the_uninterrupted_one(lora, words, tmp_path):
    """To the bit: weights, every number of every step, every answer; with an adaptive KL coefficient, running reward statistics and a KL budget to be carried over."""
    changes = {"lora": lora, "kl_target": 0.05, "kl_horizon": 20, "normalise_rewards": True, "kl_budget": 50.0}
    changes["schedule"] = "linear"
    whole = run(settings_of(words, tmp_path / "whole", **changes), eval_prompts=HELD)

    def stops_at_5(step, samples, rewards):
        if step == 5:
            raise KeyboardInterrupt

    cut = settings_of(words, tmp_path / "cut", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(cut, eval_prompts=HELD, on_step=stops_at_5)
    assert json.loads((tmp_path / "cut" / "manifest.json").read_text())["outcome"] == "interrupted"
    assert not (tmp_path / "cut" / "policy").exists() and len(rows_of(tmp_path / "cut" / "log.jsonl")) == 5
    with open(tmp_path / "cut" / "log.jsonl", "a") as file:
        file.write('{"step": 6, "rew')  # killed while it wrote
    np.random.seed(99)  # the resumed process is another one
    torch.manual_seed(99)
    seen = []
    resumed = run(cut, eval_prompts=HELD, on_step=lambda step, *_: seen.append(step))
    assert seen == [5, 6]  # from the checkpoint of step 4
    assert list(map(timeless, resumed.rows)) == list(map(timeless, whole.rows))
    for name in ("log.jsonl", "samples.jsonl", "eval_before.jsonl", "eval_after.jsonl"):
        first, second = (list(map(timeless, rows_of(tmp_path / side / name))) for side in ("whole", "cut"))
        assert first == second and first, name
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    assert (resumed.policy_folder / weights).read_bytes() == (whole.policy_folder / weights).read_bytes()
    assert resumed.report["eval"] == whole.report["eval"]
    coefficients = [row["kl_coefficient"] for row in whole.rows]
    assert len(set(coefficients)) == 6  # what was carried over had changed


def test_a_run_ends_at_its_kl_budget_and_keeps_the_last_policy_within(words, tmp_path):
    """The step at which the KL is found beyond the budget learns nothing; the policy kept is the one that answered the step before."""
    budget = 0.3
    slow = {"kl_coefficient": 0.0, "learning_rate": 5e-4}
    free = run(settings_of(words, tmp_path / "free", steps=20, **slow))
    over = next(row["step"] for row in free.rows if row["kl"] > budget)
    assert 3 <= over <= 20
    held = run(settings_of(words, tmp_path / "held", steps=20, kl_budget=budget, **slow))
    assert held.rows[-1]["step"] == over and "policy_loss" not in held.rows[-1] and "budget" in held.reason
    assert held.report["kept"] == {"updates": over - 2, "kl": held.rows[-2]["kl"]} and held.rows[-2]["kl"] <= budget
    manifest = json.loads((tmp_path / "held" / "manifest.json").read_text())
    assert manifest["outcome"] == "finished" and "budget" in manifest["reason"]
    # A free run of so many updates ends with the same weights.
    same = run(settings_of(words, tmp_path / "same", steps=over - 2, **slow))
    first, second = ((one.policy_folder / "model.safetensors").read_bytes() for one in (held, same))
    assert first == second


def test_the_last_update_is_looked_at_too(words, tmp_path):
    """A budget that only the policy after the last step breaks: that one is not kept."""
    free = run(settings_of(words, tmp_path / "free", steps=8, kl_coefficient=0.0))
    kls = [row["kl"] for row in free.rows]
    last = next(i for i in range(3, 8) if kls[i] > max(kls[:i]))
    budget = (kls[last] + max(kls[:last])) / 2
    found = run(settings_of(words, tmp_path / "held", steps=last, kl_coefficient=0.0, kl_budget=budget))
    assert "after the last step" in found.reason and found.report["kept"]["updates"] == last - 1


@pytest.mark.parametrize(("lora", "merge"), [(None, False), ({"rank": 4}, False), ({"rank": 4}, True)])
def test_the_saved_policy_is_the_trained_one(lora, merge, words, tmp_path):
    """Loaded by transformers or peft, it answers the held-out prompts as the run says it did; its log-probabilities moved from the checkpoint's."""
    done = run(settings_of(words, tmp_path / "run", lora=lora, merge=merge), eval_prompts=HELD)
    folder = done.policy_folder
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "adapter_config.json").is_file() == (lora is not None and not merge)
    base = AutoModelForCausalLM.from_pretrained(words if lora and not merge else folder)
    model = PeftModel.from_pretrained(base, folder) if lora and not merge else base
    tokenizer = AutoTokenizer.from_pretrained(folder)
    untouched = AutoModelForCausalLM.from_pretrained(words)
    reader = Policy(words, max_new_tokens=5, max_length=64)
    for sample, kl in zip(done.after.samples, done.after.kl, strict=True):
        prompt = np.asarray(reader.renderer.encode([(sample.prompt, "")]).row(0)).tolist()
        answer = tokenizer(sample.answer).input_ids
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            own, other = (one(ids).logits[0, len(prompt) - 1 :].log_softmax(-1) for one in (model.eval(), untouched))
        places = sample.num_tokens  # without the end token's own place where it ended: that is the last one
        exact = (own.exp() * (own - other)).sum(-1)[:places].sum()
        assert kl == pytest.approx(float(exact), abs=1e-4) and kl > 1e-3, sample
    if lora is None or merge:
        again = Policy(folder, max_new_tokens=5, max_length=261, settings=ScoringSettings(device="cpu"))
        assert again.draw(HELD, 1, seed=0) is not None


def test_before_and_after_are_drawn_by_the_same_numbers_and_compared(words, tmp_path):
    settings = settings_of(words, tmp_path / "run", steps=1, learning_rate=1e-12, value_learning_rate=1e-12)
    done = run(settings, eval_prompts=[*HELD, PROMPTS[0]])
    assert [s.answer for s in done.before.samples] == [s.answer for s in done.after.samples]  # nothing was learned
    document = done.report["eval"]
    assert document["num_prompts"] == 3 and document["reward"]["difference"]["value"] == 0
    assert document["kl"]["value"] == pytest.approx(0, abs=1e-6)
    learned = run(
        settings_of(words, tmp_path / "more", steps=12, prompts_per_step=8),
        eval_prompts=[f"a {i}" * (i + 1) for i in range(12)],
    )
    change = learned.report["eval"]["reward"]
    assert change["difference"]["low"] > 0 and change["after"]["value"] > change["before"]["value"]
    # Held-out prompts are left out of training.
    prompts = {row["prompt"] for row in rows_of(tmp_path / "run" / "samples.jsonl")}
    assert prompts == set(PROMPTS[1:])


def test_what_a_step_leaves_behind(words, tmp_path):
    """Rewards in log and samples are those that the reward function gave, term by term."""
    shaping = Shaping([Clip(low=-1.5, high=1.5), LengthPenalty(cost=0.1, unit="tokens")])
    seen = {}
    settings = settings_of(words, tmp_path / "run")
    done = train_ppo(
        settings,
        Reward(bads, shaping),
        PROMPTS,
        console=Console(file=io.StringIO()),
        on_step=lambda step, samples, rewards: seen.update({step: (samples, rewards)}),
    )
    for row in done.rows:
        samples, rewards = seen[row["step"]]
        assert row["score"] == pytest.approx(np.mean([bads(*s.pair) for s in samples]))
        assert row["terms/length"] == pytest.approx(-0.1 * np.mean([s.num_tokens for s in samples]))
        assert row["reward"] == pytest.approx(row["score"] + row["terms/clip"] + row["terms/length"])
        assert row["finished"] == np.mean([s.is_finished for s in samples])
    kept = rows_of(tmp_path / "run" / "samples.jsonl")
    assert {row["step"] for row in kept} == {1, 3, 6}
    assert [row["answer"] for row in kept if row["step"] == 3] == [s.answer for s in seen[3][0]]
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report == done.report and report["verb"] == "ppo"
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoints == ["checkpoint-2", "checkpoint-4"]


def test_kl_that_would_count_twice_is_refused(words, tmp_path):
    settings = settings_of(words, tmp_path / "run")
    with pytest.raises(SettingsError, match="count twice"):
        train_ppo(settings, Reward(bads, Shaping([KLPenalty(coefficient=0.1)])), PROMPTS)
    with pytest.raises(SettingsError, match="answers_per_prompt"):
        train_ppo(settings, Reward(bads, Shaping([GroupZScore()])), PROMPTS)
    settings = settings_of(words, tmp_path / "run", answers_per_prompt=2)
    with pytest.raises(SettingsError, match="eval_answers"):  # else the answers before the run are drawn for nothing
        train_ppo(settings, Reward(bads, Shaping([GroupZScore()])), PROMPTS, eval_prompts=HELD)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(words, tmp_path):
    for changes in (
        {"lora": {"dropout": 0.1}},
        {"merge": True},
        {"minibatches": 5},
        {"kl_target": 1.0, "kl_coefficient": 0.0},
        {"policy": str(tmp_path / "run" / "policy"), "out": str(tmp_path)},
        {"reward_model": f"{tmp_path / 'judge.py'}:score", "out": str(tmp_path)},
        {"steps": 0},
        {"kl_budget": -1.0},
        {"max_prompt_tokens": 4},
    ):
        (tmp_path / "judge.py").touch()
        (tmp_path / "run" / "policy").mkdir(parents=True, exist_ok=True)
        with pytest.raises(SettingsError):
            settings_of(**({"policy": words, "out": tmp_path / "other"} | changes))
    with pytest.raises(DataError, match="all held out"):
        run(settings_of(words, tmp_path / "other"), eval_prompts=PROMPTS)
    with pytest.raises(SettingsError, match="lora.targets"):
        run(settings_of(words, tmp_path / "other", lora={"targets": ["q_proj"]}))
    assert not (tmp_path / "other").exists()


def test_a_finished_run_and_another_one_are_not_overwritten(words, tmp_path):
    run(settings_of(words, tmp_path / "run", steps=1))
    with pytest.raises(OutputError, match="finished"):
        run(settings_of(words, tmp_path / "run", steps=1))
    manifest = tmp_path / "run" / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(document | {"outcome": "interrupted"}))
    with pytest.raises(OutputError, match="settings.steps"):
        run(settings_of(words, tmp_path / "run", steps=2))
    shaped = Reward(bads, Shaping([Clip(low=0, high=1)]))
    with pytest.raises(OutputError, match=r"reward\.shaping"):
        train_ppo(settings_of(words, tmp_path / "run", steps=1), shaped, PROMPTS, console=Console(file=io.StringIO()))
    assert run(settings_of(words, tmp_path / "run", steps=2), overwrite=True).rows[-1]["step"] == 2
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="other things"):
        run(settings_of(words, tmp_path / "theirs"), overwrite=True)
    assert (tmp_path / "theirs" / "thesis.txt").is_file()


def test_a_reward_that_fails_ends_the_run_as_failed_and_never_as_0(words, tmp_path):
    def broken(prompt, answer):
        return float("nan")

    with pytest.raises(ScoreError):
        run(settings_of(words, tmp_path / "run"), reward=broken)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["outcome"] == "failed"


class Given:
    """A reward function that gives what it is made of, whatever it is asked."""

    def __init__(self, value, score, short=0):
        """`short` rewards too few."""
        self.value, self.score, self.short = value, score, short

    def rewards(self, samples):
        size = len(samples) - self.short
        return Rewards(np.full(size, self.value), np.full(size, self.score, np.float32), {})


@pytest.mark.parametrize("given", [Given(np.nan, 0.0), Given(0.0, np.nan), Given(0.0, 0.0, short=1)])
@pytest.mark.parametrize("held", [[], HELD])
def test_rewards_of_others_are_checked_in_steps_and_evaluations(given, held, words, tmp_path):
    with pytest.raises(ScoreError, match=f"{len(held) or 4} finite"):
        train_ppo(
            settings_of(words, tmp_path / "run"), given, PROMPTS, eval_prompts=held, console=Console(file=io.StringIO())
        )
    assert not (tmp_path / "run" / "log.jsonl").exists() or not rows_of(tmp_path / "run" / "log.jsonl")


@pytest.mark.parametrize(
    "spoilt", [["trained.safetensors"], ["optimiser.pt"], ["state.json"], ["optimiser.pt", "both"]]
)
def test_a_checkpoint_that_a_disk_has_spoilt_is_left_out(spoilt, words, tmp_path):
    """The run goes on from the one before, or begins anew, and ends with the same weights as one that was never interrupted."""
    whole = run(settings_of(words, tmp_path / "whole"))

    def stops_at_5(step, samples, rewards):
        if step == 5:
            raise KeyboardInterrupt

    settings = settings_of(words, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(settings, on_step=stops_at_5)
    for number in (4, 2) if "both" in spoilt else (4,):
        path = tmp_path / "run" / "checkpoints" / f"checkpoint-{number}" / spoilt[0]
        path.write_bytes(path.read_bytes()[:50])
    seen, said = [], io.StringIO()
    resumed = train_ppo(
        settings, Reward(bads), PROMPTS, on_step=lambda step, *_: seen.append(step), console=Console(file=said)
    )
    assert seen == ([1, 2, 3, 4, 5, 6] if "both" in spoilt else [3, 4, 5, 6])
    assert "checkpoint-4 is corrupt" in said.getvalue()
    first, second = ((one.policy_folder / "model.safetensors").read_bytes() for one in (whole, resumed))
    assert first == second


def test_a_reward_function_that_draws_goes_on_with_its_generators(words, tmp_path):
    """Torch's, numpy's and Python's: the resumed run is told the same rewards."""

    def noisy(prompt, answer):
        return float(torch.rand(())) + float(np.random.random()) + random.random()

    def begins():
        random.seed(0)
        np.random.seed(0)

    begins()
    whole = run(settings_of(words, tmp_path / "whole"), reward=noisy)

    def stops_at_5(step, samples, rewards):
        if step == 5:
            raise KeyboardInterrupt

    begins()
    with pytest.raises(KeyboardInterrupt):
        run(settings_of(words, tmp_path / "run"), reward=noisy, on_step=stops_at_5)
    resumed = run(settings_of(words, tmp_path / "run"), reward=noisy)
    assert [row["reward"] for row in resumed.rows] == [row["reward"] for row in whole.rows]


def test_answers_of_before_that_are_gone_are_told_when_a_run_goes_on(words, tmp_path):
    def stops_at_3(step, samples, rewards):
        if step == 3:
            raise KeyboardInterrupt

    settings = settings_of(words, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(settings, eval_prompts=HELD, on_step=stops_at_3)
    (tmp_path / "run" / "eval_before.jsonl").unlink()
    with pytest.raises(DataError, match="2 answers in eval_before"):
        run(settings, eval_prompts=HELD)


def test_no_password_is_written_down(words, tmp_path):
    """Of a server's address, in settings and in the words of the command."""
    url = "http://me:secret@127.0.0.1:9/"
    settings = settings_of(words, tmp_path / "run", reward_model=url, steps=1)
    words_of = [
        "ppo",
        "--reward-model",
        url,
        f"--reward-model={url}",
        "--set",
        f"reward_model={url}",
        "--set",
        "steps=1",
    ]
    with ppo_run(settings, Reward(bads), PROMPTS, console=Console(file=io.StringIO()), command=words_of):
        pass
    text = (tmp_path / "run" / "manifest.json").read_text()
    document = json.loads(text)
    assert "secret" not in text and document["settings"]["reward_model"] == "http://127.0.0.1:9"
    assert document["command"][-2:] == ["--set", "steps=1"]


def test_a_checkpoint_that_cannot_be_finished_is_none(words, tmp_path, monkeypatch):
    """What was half-written is removed, and the run goes on from the one before."""
    settings = settings_of(words, tmp_path / "run")

    def full(trainer, folder, *, step, **more):
        if step == 4:
            (folder / ".checkpoint-4.1.tmp").mkdir()
            raise OutputError("room", "none", "Free some.")
        return real(trainer, folder, step=step, **more)

    real = ppo_run_module.save_checkpoint
    monkeypatch.setattr(ppo_run_module, "save_checkpoint", full)
    with pytest.raises(OutputError):
        run(settings)
    monkeypatch.setattr(ppo_run_module, "save_checkpoint", real)
    seen = []
    run(settings, on_step=lambda step, *_: seen.append(step))
    assert seen == [3, 4, 5, 6] and not list((tmp_path / "run" / "checkpoints").glob(".*"))


def distribution(folder, prompt="go"):
    """The policy and its exact probabilities of the first token."""
    policy = Policy(folder, max_new_tokens=1)
    ids = torch.from_numpy(np.asarray(policy.renderer.encode([(prompt, "")]).row(0)).astype(np.int64))
    with torch.no_grad():
        logits = policy.model(ids[None]).logits[0, -1].double()
    return policy, logits.softmax(-1).numpy()


@pytest.mark.slow
def test_the_optimum_of_a_bandit_is_the_reference_times_exp_reward_over_beta(words, tmp_path):
    """E[r] - beta KL(pi || ref) is largest at pi(a) = ref(a) exp(r(a) / beta) / Z (Rafailov et al. 2023, eq. 4), with k1 in the reward and gamma = lambda = 1.

    Answers of one token, eight of them; beta = 0.3. The reference lies 0.6 in total variation from the optimum.
    """
    beta, values = 0.3, {"yes": 1.0, "no": 0.0, "good": 0.5, "bad": -0.5, "so": 0.8, "it": 0.2}
    policy, reference = distribution(words)
    rewards = np.array([values.get(policy.read_answer([i])[0], 0.0) for i in range(len(reference))])
    optimum = reference * np.exp(rewards / beta)
    optimum /= optimum.sum()
    assert np.abs(optimum - reference).sum() / 2 > 0.4
    settings = settings_of(
        words,
        tmp_path / "run",
        steps=100,
        prompts_per_step=1,
        answers_per_prompt=256,
        epochs=2,
        minibatches=1,
        max_new_tokens=1,
        kl_coefficient=beta,
        gae_lambda=1.0,
        learning_rate=3e-3,
        value_learning_rate=3e-2,
        schedule="linear",
        whiten_advantages=False,
        value_clip=None,
        detach_value=True,
        save_every=1000,
        batch_tokens=100_000,
    )
    done = run(settings, reward=lambda prompt, answer: values.get(answer, 0.0), prompts=["go"])
    _, found = distribution(done.policy_folder)
    assert np.abs(found - optimum).sum() / 2 < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 8}])
def test_a_tiny_policy_reaches_the_optimum_within_a_kl_budget(lora, tmp_path):
    """An answer of at most eight words is worth 1 if `good` is among them, else 0. The policy must come to 0.95 within 5 nats.

    At first a share of about 0.2 has it, so that 0.95 costs at least 0.95 ln(0.95 / 0.2) + 0.05 ln(0.05 / 0.8) = 1.34 nats.
    """
    folder = save_word_policy(tmp_path / "policy", WORDS, hidden=32, layers=2)
    settings = settings_of(
        folder,
        tmp_path / "run",
        lora=lora,
        steps=100 if lora else 60,
        prompts_per_step=32,
        max_new_tokens=8,
        learning_rate=5e-3 if lora else 3e-3,
        schedule="linear",
        kl_budget=5.0,
        save_every=1000,
    )
    prompts = [f"{'word ' * (i % 7)}{i}" for i in range(64)]
    held = [f"{'other ' * (i % 5)}{i}" for i in range(200)]
    done = run(
        settings, reward=lambda prompt, answer: float("good" in answer.split()), prompts=prompts, eval_prompts=held
    )
    document = done.report["eval"]
    assert document["reward"]["before"]["value"] < 0.4
    assert document["reward"]["after"]["value"] >= 0.95 and document["kl"]["value"] <= 5.0
    assert max(row["kl"] for row in done.rows) <= 5.0


@pytest.mark.slow
def test_two_processes_learn_what_one_does(words, tmp_path):
    """Each answers half of the prompts; one minibatch a pass, so that both ways add up the same gradient. Weights agree to rounding, answers to the letter."""
    changes = {"minibatches": 1, "steps": 3, "learning_rate": 1e-3, "kl_budget": 50.0, "kl_target": 1.0}
    alone = run(settings_of(words, tmp_path / "alone", **changes), eval_prompts=HELD)
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from rewardsmith.config import PPOSettings\n"
        "from rewardsmith.model.ppo import train_ppo\n"
        "from rewardsmith.use import Reward\n"
        f"settings = PPOSettings(**{settings_of(words, tmp_path / 'two', **changes).model_dump()!r})\n"
        f"train_ppo(settings, Reward(lambda prompt, answer: answer.count('bad')), {PROMPTS!r}, eval_prompts={HELD!r})\n"
    )
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(program)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    first, second = (load_file(tmp_path / side / "policy" / "model.safetensors") for side in ("alone", "two"))
    for name, tensor in first.items():
        if name.endswith(
            "c_attn.bias"
        ):  # softmax does not see the bias of keys, so that AdamW makes steps of its rounding
            continue
        torch.testing.assert_close(second[name], tensor, atol=1e-5, rtol=1e-3)
    assert (
        first["transformer.wte.weight"]
        .sub(load_file(f"{words}/model.safetensors")["transformer.wte.weight"])
        .abs()
        .max()
        > 1e-3
    )
    # A step's answers come in the order of the processes.
    kept = [sorted(row["answer"] for row in rows_of(tmp_path / side / "samples.jsonl")) for side in ("alone", "two")]
    assert kept[0] == kept[1]
    assert rows_of(tmp_path / "two" / "log.jsonl")[-1]["kl"] == pytest.approx(alone.rows[-1]["kl"], abs=1e-4)
