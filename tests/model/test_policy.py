"""Answers drawn from a tiny random language model: by the policy's own probabilities, the same for the same seed, whatever shares a batch."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rewardsmith.config import ScoringSettings
from rewardsmith.errors import LengthError, ModelError, SettingsError
from rewardsmith.model.policy import Policy, _Draws
from rewardsmith.scores import Generator
from tests.tiny_models import save_causal

PROMPTS = [
    "Hi?",
    "How do I mend item 3, which is old and has <|end|> written on it?",
    [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4."},
        {"role": "user", "content": "Are you sure?"},
    ],
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_causal("llama", tmp_path_factory.mktemp("policy") / "llama", chat=True)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return save_causal("gpt2", tmp_path_factory.mktemp("policy") / "gpt2")


def answers(policy, prompts, count, seed=0):
    return [[one.answer for one in drawn] for drawn in policy.draw(prompts, count, seed=seed)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_answer_depends_on_seed_prompt_and_number_alone(family, request):
    """Alone, beside longer prompts (padded on the left), in another order, in one batch or in many."""
    folder = request.getfixturevalue(family)
    policy = Policy(folder, max_new_tokens=12)
    assert isinstance(policy, Generator)
    together = answers(policy, PROMPTS, 3)
    assert [answers(policy, [prompt], 3)[0] for prompt in PROMPTS] == together
    assert answers(policy, PROMPTS[::-1], 2)[::-1] == [drawn[:2] for drawn in together]
    singly = Policy(folder, max_new_tokens=12, settings=ScoringSettings(batch_tokens=1))
    assert answers(singly, PROMPTS, 3) == together
    assert all(len(set(drawn)) == 3 for drawn in together)
    assert answers(policy, PROMPTS, 3, seed=1) != together


def test_tokens_are_drawn_by_the_probabilities_of_the_policy():
    """Numbers spread evenly over 0..1 fall on each token as often as its probability says; temperature 2 halves the logits."""
    logits = torch.tensor([2.0, 0.0, -torch.inf, 1.0, 5.0])
    numbers = torch.arange(0.00005, 1, 0.0001, dtype=torch.float64)[:, None]  # (10000, 1)
    for temperature, top_p, kept in ((1.0, 1.0, [0, 1, 3]), (2.0, 1.0, [0, 1, 3]), (1.0, 0.85, [0, 3])):
        draws = _Draws(numbers, num_read=1, num_tokens=4, temperature=temperature, top_p=top_p)
        out = draws(torch.zeros(10_000, 1, dtype=torch.long), logits.repeat(10_000, 1))
        assert ((out == 0).sum(dim=1) == 1).all()
        found = np.bincount(out.argmax(dim=1).numpy(), minlength=5) / 10_000
        expected = np.zeros(5)  # the last is an id that no text has
        expected[kept] = np.exp(logits.numpy()[kept] / temperature)
        assert found == pytest.approx(expected / expected.sum(), abs=2e-4)


def test_the_text_is_that_of_the_chat_template_with_the_answer_opened(llama):
    policy = Policy(llama, max_new_tokens=4)
    ids = policy.renderer.encode([(PROMPTS[1], "")]).row(0).tolist()
    text = policy.tokenizer.decode(ids)
    assert text == f"<s><|start|>user\n{PROMPTS[1]}<|end|>\n<|start|>assistant\n"
    # What looks like a control token in a prompt is plain text: one <|end|> is real.
    end = policy.tokenizer.convert_tokens_to_ids("<|end|>")
    assert ids.count(end) == 1 and end in policy.stop_ids and policy.tokenizer.eos_token_id in policy.stop_ids


def test_without_a_chat_template_the_default_text_is_opened(gpt2):
    policy = Policy(gpt2, max_new_tokens=4)
    ids = policy.renderer.encode([("Hi?", "")]).row(0).tolist()
    assert policy.tokenizer.decode(ids) == "### Prompt:\nHi?\n\n### Answer:\n"


def test_answers_end_where_they_end_and_cut_ones_are_flagged(llama):
    """The output rows of the end token are made to win at about one place in ten: of 60 answers of at most 8 tokens some end and some are cut."""
    policy = Policy(llama, max_new_tokens=8)
    end = policy.tokenizer.convert_tokens_to_ids("<|end|>")
    with torch.no_grad():
        policy.model.lm_head.weight[end] *= 3
    drawn = policy.draw(["Hi?"], 60, seed=0)[0]
    cut = [one for one in drawn if one.is_cut]
    ended = [one for one in drawn if not one.is_cut]
    assert cut and ended
    assert not any("<|end|>" in one.answer or "</s>" in one.answer for one in drawn)
    read = [len(policy.tokenizer(one.answer, add_special_tokens=False).input_ids) for one in ended]
    assert min(read) < 4  # the padding after an end is no part of the answer


def test_prompts_that_do_not_fit_are_cut_and_counted(llama):
    policy = Policy(llama, max_new_tokens=8, max_length=40)
    long, short = policy.draw(["word " * 100, "Hi?"], 1, seed=0)
    assert long[0].prompt_cut > 60 and short[0].prompt_cut == 0
    assert policy.renderer.encode([("word " * 100, "")]).lengths[0] == 32


def test_the_checkpoints_own_advice_on_sampling_is_not_taken(tmp_path):
    folder = save_causal("llama", tmp_path / "advised")
    plain = answers(Policy(folder, max_new_tokens=6), ["Hi?"], 4)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.update(do_sample=True, top_k=1, repetition_penalty=5.0, temperature=0.1)
    model.generation_config.save_pretrained(folder)
    assert answers(Policy(folder, max_new_tokens=6), ["Hi?"], 4) == plain


def test_progress_is_told(llama):
    told = []
    policy = Policy(llama, max_new_tokens=2, on_answers=lambda done, total: told.append((done, total)))
    policy.draw(PROMPTS, 2, seed=0)
    assert told[-1] == (6, 6)


def test_what_cannot_be_drawn_is_refused(llama, tiny):
    for settings in ({"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"max_new_tokens": 0}):
        with pytest.raises(SettingsError):
            Policy(llama, **settings)
    with pytest.raises(LengthError):
        Policy(llama, max_new_tokens=60, max_length=64)
    with pytest.raises(ModelError, match="all weights"):
        Policy(tiny("llama"))  # a base model, without an output layer
