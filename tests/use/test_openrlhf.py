"""OpenRLHF's documented calls: one query at a time or a batch, rendered by the policy's template, and what its trainer does with the answer."""

import pickle
import socket
from dataclasses import dataclass, field

import pytest
import torch

from rewardsmith.errors import DataError, RemoteError, SettingsError
from rewardsmith.remote import RemoteScorer
from rewardsmith.use import Shaping, openrlhf_reward_function
from rewardsmith.use.rendered import TemplateReader
from rewardsmith.use.terms import Clip, GroupZScore, KLPenalty, LengthPenalty, MissingEnd
from tests.fakes import FunctionScorer, constant, likes_long_answers

CONVERSATIONS = [
    [{"role": "user", "content": "Hi?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?\n\nYou there?"}],
    [
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Glue?"},
        {"role": "assistant", "content": "Which?"},
        {"role": "user", "content": ""},
    ],
]
# Templates of the kinds that are about: ChatML, with a system turn of its own; Llama 2's; Llama 3's, which strips; Gemma's, without a system turn.
TEMPLATES = {
    "default system": (
        "{% if messages[0]['role'] != 'system' %}<|start|>system\nYou help.<|end|>\n{% endif %}"
        "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    ),
    "llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set s = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ s if loop.first else '' }}{{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
    ),
    "llama 3": (
        "{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
    ),
    "gemma": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "<bos>{% for m in messages %}<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] }}"
        "<end>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
    ),
}


@dataclass
class Asked:
    """A scorer that keeps what it is asked; the score is the number of characters / 100."""

    pairs: list = field(default_factory=list)

    def score(self, pairs):
        self.pairs.extend(pairs)
        return likes_long_answers().score(pairs)


@pytest.fixture(scope="module")
def tokenizer():
    from tests.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

    found = tiny_tokenizer("qwen3")  # its end token is <|end|>, and its pad token is the same
    found.chat_template = CHAT_TEMPLATE
    return found


def rendered(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_a_query_is_taken_apart_and_rendered_by_the_reward_model_itself(tokenizer):
    scorer = Asked()
    function = openrlhf_reward_function(scorer, as_tensor=torch.tensor, tokenizer=tokenizer)
    prompts = [rendered(tokenizer, messages) for messages in CONVERSATIONS]
    queries = [prompt + answer for prompt, answer in zip(prompts, ["Yes.<|end|>", "No", "Maybe."], strict=True)]
    found = function(queries, prompts, [None, "label", None])
    assert scorer.pairs == list(zip(CONVERSATIONS, ["Yes.", "No", "Maybe."], strict=True))
    assert torch.allclose(found["rewards"], torch.tensor([0.04, 0.02, 0.06]))
    assert found["rewards"].dtype == torch.float32
    assert torch.allclose(found["scores"], torch.sigmoid(torch.tensor([0.04, 0.02, 0.06])))
    assert set(found["extra_logs"]) == {"score"}


def test_one_query_at_a_time_gives_what_the_trainer_makes_tensors_of(tokenizer):
    # openrlhf/utils/agent.py and samples_generator.py: rewards = info["rewards"]; torch.tensor([rewards]); logs are flattened.
    function = openrlhf_reward_function(
        likes_long_answers(), Shaping([Clip(low=0, high=0.03)]), as_tensor=torch.tensor, tokenizer=tokenizer
    )
    prompt = rendered(tokenizer, CONVERSATIONS[0])
    info = function([prompt + "Hello.<|end|>"], [prompt], [None])
    assert torch.tensor([info["rewards"]]).tolist() == pytest.approx([0.03])
    logs = {name: value.flatten()[0].item() for name, value in info["extra_logs"].items()}
    assert logs == pytest.approx({"score": 0.06, "clip": -0.03})


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_templates_of_many_kinds_are_read_back(name, tokenizer):
    from copy import deepcopy

    other = deepcopy(tokenizer)
    other.chat_template = TEMPLATES[name]
    read = TemplateReader(other)
    for messages in CONVERSATIONS:
        if name == "gemma" and messages[0]["role"] == "system":
            continue
        assert read(rendered(other, messages)) == messages
    with pytest.raises(DataError, match="template"):
        read("Hi?")
    with pytest.raises(DataError, match="template"):
        read(rendered(other, CONVERSATIONS[0]) + "x")


def test_a_reading_that_the_template_would_write_otherwise_does_not_count(tokenizer):
    from copy import deepcopy

    other = deepcopy(tokenizer)
    other.chat_template = TEMPLATES["llama 3"]  # strips what it writes: it never wrote this
    with pytest.raises(DataError, match="template"):
        TemplateReader(other)(rendered(other, CONVERSATIONS[0]).replace("Hi?", " Hi? "))


def test_a_template_that_hides_turns_is_refused(tokenizer):
    from copy import deepcopy

    other = deepcopy(tokenizer)
    for template in ("{{ messages[-1]['content'] }}", "{% for m in messages %}{{ m['content'] }}{% endfor %}"):
        other.chat_template = template
        with pytest.raises(SettingsError, match="read_prompt"):
            TemplateReader(other)
    other.chat_template = None
    with pytest.raises(SettingsError, match="chat template"):
        TemplateReader(other)


def test_plain_prompts_are_taken_as_they_stand_and_rendered_ones_never():
    scorer = Asked()
    function = openrlhf_reward_function(scorer, as_tensor=list, end_tokens=["</s>"])
    function(["What is 2 + 2? 4.</s>"], ["What is 2 + 2?"], [None])
    assert scorer.pairs == [("What is 2 + 2?", " 4.")]
    with pytest.raises(SettingsError, match="rendered"):
        function(["[INST] Hi </s> Ho"], ["[INST] Hi </s>"], [None])
    read = openrlhf_reward_function(scorer, as_tensor=list, read_prompt=lambda text: text.removeprefix("Q: "))
    read(["Q: Hi?Ho"], ["Q: Hi?"], [None])
    assert scorer.pairs[-1] == ("Hi?", "Ho")


def test_the_end_is_looked_for_in_the_answer_alone(tokenizer):
    told = []
    function = openrlhf_reward_function(
        constant(),
        Shaping([MissingEnd(penalty=1)]),
        as_tensor=list,
        tokenizer=tokenizer,
        on_rewards=lambda samples, _: told.extend(samples),
    )
    prompt = rendered(tokenizer, CONVERSATIONS[0])  # an end token stands in it
    answers = ["Ho.<|end|>", "Ho.", "", "Ho.<|end|> more", "Ho.<|end|><|end|><|end|>"]
    found = function([prompt + answer for answer in answers], [prompt] * 5, [None] * 5)
    assert [one.is_finished for one in told] == [True, False, False, False, True]
    assert [one.answer for one in told] == ["Ho.", "Ho.", "", "Ho.<|end|> more", "Ho."]
    assert found["rewards"] == [0.25, -0.75, -0.75, -0.75, 0.25]
    unknown = openrlhf_reward_function(constant(), as_tensor=list, on_rewards=lambda samples, _: told.extend(samples))
    unknown(["Hi?Ho."], ["Hi?"], [None])
    assert told[-1].is_finished is None


def test_what_fills_up_whole_batches_is_no_part_of_a_text():
    told = []
    function = openrlhf_reward_function(
        constant(), as_tensor=list, tokenizer=_Plain(), on_rewards=lambda samples, _: told.extend(samples)
    )
    function(["[pad][pad]Hi?Ho.</s>[pad]", "Hi?Ho"], ["Hi?", "Hi?"], [None, None])
    assert [(one.prompt, one.answer, one.is_finished) for one in told] == [("Hi?", "Ho.", True), ("Hi?", "Ho", False)]


class _Plain:
    """A tokenizer without a chat template."""

    eos_token, pad_token, chat_template = "</s>", "[pad]", None
    all_special_tokens = ("</s>", "[pad]")


def test_what_cannot_be_taken_apart_is_refused(tokenizer):
    function = openrlhf_reward_function(constant(), as_tensor=list)
    with pytest.raises(DataError, match="begins with its prompt"):
        function(["i?Ho"], ["Hi?"], [None])
    with pytest.raises(DataError, match="2 queries, 1 prompts"):
        function(["Hi?Ho", "Hi?Ho"], ["Hi?"], [None])
    for query, prompt in (([1, 2], "Hi?"), ("Hi?Ho", [1, 2]), (torch.tensor([1, 2]), "Hi?")):
        with pytest.raises(SettingsError, match="token ids"):
            function([query], [prompt], [None])
    for step in (KLPenalty(coefficient=0.1), LengthPenalty(cost=1), GroupZScore(), MissingEnd(penalty=1)):
        with pytest.raises(SettingsError, match="does not tell"):
            openrlhf_reward_function(constant(), Shaping([step]), as_tensor=list)
    with pytest.raises(SettingsError, match="list of end tokens"):  # its letters would be cut off answers
        openrlhf_reward_function(constant(), as_tensor=list, end_tokens="</s>")
    with pytest.raises(SettingsError, match="list of queries"):
        function("Hi?Ho", "Hi?", [None] * 5)
    with pytest.raises(SettingsError, match="temperature"):
        openrlhf_reward_function(constant(), as_tensor=list, temperature=0.0)


def test_a_function_travels_to_other_processes(tokenizer):
    function = openrlhf_reward_function(FunctionScorer(_length), as_tensor=torch.tensor, tokenizer=tokenizer)
    copy = pickle.loads(pickle.dumps(function))
    prompt = rendered(tokenizer, CONVERSATIONS[2])
    asked = ([prompt + "Ho."], [prompt], [None])
    assert copy(*asked)["rewards"].tolist() == function(*asked)["rewards"].tolist() == [3.0]


def _length(prompt, answer):
    return float(len(answer))


def test_a_dead_server_is_an_error_within_its_tries():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    function = openrlhf_reward_function(RemoteScorer(f"http://127.0.0.1:{port}", tries=2), as_tensor=torch.tensor)
    with pytest.raises(RemoteError, match="none in 2 tries"):
        function(["Hi?Ho"], ["Hi?"], [None])
