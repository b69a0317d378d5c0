"""Reward functions in TRL's real trainers, over tiny models: the policy's vocabulary is not the reward model's, and only texts pass between them."""

import asyncio
import pickle
import socket
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from rewardsmith.errors import DataError, RemoteError, RowError, SettingsError
from rewardsmith.remote import RemoteScorer
from rewardsmith.use import Shaping, trl_async_reward_function, trl_reward_function
from rewardsmith.use.terms import Clip, GroupZScore, KLPenalty, LengthPenalty, MissingEnd
from rewardsmith.use.trl import Ends
from tests.fakes import FunctionScorer, by_table, constant, likes_long_answers

MESSAGES = [{"prompt": [{"role": "user", "content": f"How do I mend item {i}?"}], "topic": "glue"} for i in range(8)]
TEXTS = [{"prompt": f"How do I mend item {i}?"} for i in range(8)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A decoder with a byte-level vocabulary; its end token also stands in every rendered prompt, and is its pad token."""
    from tests.tiny_models import save_causal

    return save_causal("qwen3", tmp_path_factory.mktemp("policy"), chat=True)


@pytest.fixture(scope="module")
def tokenizer(policy):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(policy)


@pytest.fixture(scope="module")
def reward_model(tiny_rm):
    from rewardsmith import RewardModel

    return RewardModel.load(tiny_rm("bert"))


def train(kind, policy, tokenizer, function, rows, out, **more):
    """Two steps of one of TRL's trainers; what it logged."""
    import trl
    from datasets import Dataset

    trainer, config = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
    settings = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 6,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    args = config(output_dir=str(out), **(settings | more))
    data = Dataset.from_list(rows)
    made = trainer(model=policy, reward_funcs=function, args=args, train_dataset=data, processing_class=tokenizer)
    made.train()
    return made.state.log_history


@dataclass
class Seen:
    """What a reward function was asked and answered."""

    samples: list = field(default_factory=list)
    rewards: list = field(default_factory=list)

    def __call__(self, samples, rewards):
        self.samples.append(list(samples))
        self.rewards.append(rewards)


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
@pytest.mark.parametrize("rows", [MESSAGES, TEXTS], ids=["messages", "texts"])
def test_a_trainer_gets_the_scores_of_its_texts(kind, rows, policy, tokenizer, reward_model, tmp_path):
    seen = Seen()
    shaping = Shaping([LengthPenalty(cost=0.1), Clip(low=-1, high=1)])
    function = trl_reward_function(reward_model, shaping, tokenizer=tokenizer, on_rewards=seen)
    logs = train(kind, policy, tokenizer, function, rows, tmp_path)
    assert len(seen.samples) == 2
    for step, (samples, rewards) in enumerate(zip(seen.samples, seen.rewards, strict=True)):
        asked = [row["prompt"] for row in rows]
        assert all(sample.prompt in asked for sample in samples)
        # The reward model reads the texts by its own tokenizer: asked afresh, it says the same.
        fresh = reward_model.score([sample.pair for sample in samples])
        assert np.allclose(rewards.score, fresh, atol=1e-5)
        tokens = np.array([sample.num_tokens for sample in samples])
        assert np.allclose(rewards.value, np.clip(fresh - 0.1 * tokens, -1, 1), atol=1e-5)
        assert logs[step]["reward"] == pytest.approx(rewards.value.mean(), abs=1e-5)
        assert logs[step]["rewards/reward_model/mean"] == pytest.approx(rewards.value.mean(), abs=1e-5)
        # What each term added is in the trainer's own logs.
        for name, part in {"score": rewards.score, **rewards.terms}.items():
            assert logs[step][f"reward_model/{name}"] == pytest.approx(part.mean(), abs=1e-5)
        assert logs[step]["reward_model/num_clipped"] == rewards.counts["clipped"]


def test_the_vocabularies_differ_and_ids_of_one_are_other_words_in_the_other(tokenizer, reward_model):
    ids = tokenizer("Gladly, use glue.", add_special_tokens=False)["input_ids"]
    assert reward_model.renderer.tokenizer.decode(ids, skip_special_tokens=True) != "Gladly, use glue."


def test_a_coroutine_gives_the_same_rewards(policy, tokenizer, reward_model, tmp_path):
    plain, coroutine = Seen(), Seen()
    function = trl_reward_function(reward_model, tokenizer=tokenizer, on_rewards=plain)
    one = train("GRPO", policy, tokenizer, function, MESSAGES, tmp_path)
    function = trl_async_reward_function(reward_model, tokenizer=tokenizer, on_rewards=coroutine)
    other = train("GRPO", policy, tokenizer, function, MESSAGES, tmp_path)
    assert [step.get("reward") for step in one] == [step.get("reward") for step in other]
    assert coroutine.samples == plain.samples


def test_whether_an_answer_was_finished_is_what_the_trainer_itself_counts(policy, tokenizer, tmp_path):
    # A random policy ends one token in 500 by chance: among 2 x 32 answers of 64 tokens some end, most do not.
    seen = Seen()
    function = trl_reward_function(constant(), tokenizer=tokenizer, on_rewards=seen)
    more = {"max_completion_length": 64, "per_device_train_batch_size": 32}
    logs = train("GRPO", policy, tokenizer, function, MESSAGES * 4, tmp_path, **more)
    shares = []
    for step, samples in enumerate(seen.samples):
        finished = [sample.is_finished for sample in samples]
        assert logs[step]["completions/clipped_ratio"] == pytest.approx(1 - np.mean(finished))
        assert logs[step]["completions/mean_length"] == pytest.approx(np.mean([one.num_tokens for one in samples]))
        shares.append(np.mean(finished))
    assert 0 < max(shares) < 1


def test_online_dpo_gets_its_padded_answers_right(policy, tokenizer, reward_model, tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    seen = Seen()
    args = OnlineDPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=16,
        max_new_tokens=48,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = OnlineDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy),
        reward_funcs=trl_reward_function(reward_model, tokenizer=tokenizer, on_rewards=seen),
        args=args,
        train_dataset=Dataset.from_list(MESSAGES * 4),
        processing_class=tokenizer,
    )
    trainer.train()
    samples = [one for batch in seen.samples for one in batch]
    assert {len(batch) for batch in seen.samples} == {32}
    # An answer that ended early is shorter than the limit although its ids come filled up to it.
    assert all(one.num_tokens == 48 for one in samples if not one.is_finished)
    assert any(one.is_finished and one.num_tokens < 48 for one in samples)


def test_groups_without_a_difference_are_counted_and_teach_nothing(policy, tokenizer, tmp_path):
    seen = Seen()
    shaping = Shaping([GroupZScore()])
    function = trl_reward_function(constant(), shaping, tokenizer=tokenizer, on_rewards=seen)
    logs = train("GRPO", policy, tokenizer, function, MESSAGES, tmp_path)
    assert [rewards.counts for rewards in seen.rewards] == [{"groups": 2, "equal_groups": 2}] * 2
    assert logs[0]["reward_model/num_equal_groups"] == 2
    assert logs[0]["reward"] == 0.0


def test_a_dead_server_ends_the_run_within_its_tries(policy, tokenizer, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scorer = RemoteScorer(f"http://127.0.0.1:{port}", tries=2)
    for function in (
        trl_reward_function(scorer, tokenizer=tokenizer),
        trl_async_reward_function(scorer, tokenizer=tokenizer),
    ):
        start = time.monotonic()
        with pytest.raises(RemoteError, match="none in 2 tries"):
            train("GRPO", policy, tokenizer, function, MESSAGES, tmp_path)
        assert time.monotonic() - start < 10


def test_ids_in_the_place_of_texts_are_refused(tokenizer):
    function = trl_reward_function(likes_long_answers(), tokenizer=tokenizer)
    ids = tokenizer("Hello.")["input_ids"]
    torch_ids = tokenizer("Hello.", return_tensors="pt")["input_ids"][0]
    for completion in (ids, np.array(ids), torch_ids):
        with pytest.raises(SettingsError, match="token ids"):
            function(prompts=["Hi?"], completions=[completion], completion_ids=[ids])
        with pytest.raises(SettingsError, match="token ids"):
            function(prompts=[completion], completions=["Hello."], completion_ids=[ids])
    with pytest.raises(SettingsError, match="completion_ids"):
        function(prompts=["Hi?"], completions=["Hello."], completion_ids=["Hello."])


def test_the_end_is_looked_for_in_the_completion_and_at_its_end_alone(tokenizer):
    seen = Seen()
    function = trl_reward_function(constant(), tokenizer=tokenizer, end_token_ids=[7], on_rewards=seen)
    end = tokenizer.eos_token_id
    # A prompt that shows the end token as a text, and an end token in the middle (of an answer in several turns), end nothing.
    prompts = ["<|end|>", "Hi?", "Hi?", "Hi?", "Hi?", "Hi?"]
    completion_ids = [[5, 6], [5, end], [end, 5], [5, 7], [5, end, end, end], []]
    function(prompts=prompts, completions=["x"] * 6, completion_ids=completion_ids)
    found = [(sample.is_finished, sample.num_tokens) for sample in seen.samples[0]]
    assert found == [(False, 2), (True, 2), (False, 2), (True, 2), (True, 2), (False, 0)]
    # A pad token of its own: [5, end, pad, pad] is finished, [5, 6, pad] is not.
    ends = Ends(frozenset({1}), pad_id=0)
    assert ends.read([5, 1, 0, 0]) == (True, 2)
    assert ends.read([5, 6, 0]) == (False, 2)
    # Ended by another token than the one that fills up: the first of the pads is none of the answer.
    assert Ends(frozenset({1, 7}), pad_id=1).read([5, 7, 1, 1]) == (True, 2)


def test_where_no_end_is_known_nobody_says_that_one_is_missing():
    seen = Seen()
    trl_reward_function(constant(), on_rewards=seen)(prompts=["Hi?"], completions=["x"], completion_ids=[[5, 6]])
    assert seen.samples[0][0].is_finished is None
    for step in (MissingEnd(penalty=1), LengthPenalty(cost=1)):
        with pytest.raises(SettingsError, match="tokenizer"):
            trl_reward_function(constant(), Shaping([step]))
    with pytest.raises(SettingsError, match="beta"):
        trl_reward_function(constant(), Shaping([KLPenalty(coefficient=0.1)]), end_token_ids=[1])
    with pytest.raises(SettingsError, match="ends an answer"):
        trl_reward_function(constant(), end_token_ids=[])


def test_conversations_of_several_turns_are_read_and_what_cannot_be_is_refused():
    asked = []
    scorer = FunctionScorer(lambda prompt, answer: asked.append((prompt, answer)) or 1.0)  # type: ignore[func-returns-value]
    function = trl_reward_function(scorer)
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Glue?"},
    ]
    tools = [
        {"role": "assistant", "content": "Let me look."},
        {"role": "tool", "content": "glue: yes"},
        {"role": "assistant", "content": "Yes."},
    ]
    function(prompts=[prompt, prompt], completions=[[{"role": "assistant", "content": "Yes."}], tools])
    assert asked == [(prompt, "Yes."), ([*prompt, *tools[:-1]], "Yes.")]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look"}}]}
    for completion in (
        [call, tools[1], tools[2]],
        tools[:2],
        [{"role": "assistant", "content": [{"type": "image"}]}],
        [{"role": "assistant", "content": None}],
        [],
    ):
        with pytest.raises(RowError):
            function(prompts=[prompt], completions=[completion])
    with pytest.raises(RowError):  # nothing is left to answer
        function(prompts=[tools[2:]], completions=["Yes."])
    with pytest.raises(DataError, match="1 prompts, 2 completions"):
        function(prompts=[prompt], completions=["a", "b"])


def test_functions_travel_to_other_processes_with_their_model(tokenizer, reward_model):
    shaping = Shaping([MissingEnd(penalty=2)])
    for make in (trl_reward_function, trl_async_reward_function):
        function = make(reward_model, shaping, tokenizer=tokenizer, name="mine")
        copy = pickle.loads(pickle.dumps(function))
        assert copy.__name__ == "mine"
        asked = {"prompts": ["Hi?"], "completions": ["Hello."], "completion_ids": [[5, 6]]}
        values = [
            asyncio.run(one(**asked)) if make is trl_async_reward_function else one(**asked) for one in (function, copy)
        ]
        expected = float(reward_model.score([("Hi?", "Hello.")])[0]) - 2
        assert values[0] == values[1] == pytest.approx([expected], abs=1e-5)


def test_no_reward_is_ever_none_or_nan():
    from rewardsmith.errors import ScoreError

    function = trl_reward_function(by_table({"a": float("nan"), "b": 1.0}))
    with pytest.raises(ScoreError):
        function(prompts=["Hi?", "Hi?"], completions=["b", "a"])
