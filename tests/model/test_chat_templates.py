"""Chat templates as they are found: with a clock, with thoughts, with rules about roles, with and without a start token (traps 12, 13 and 14)."""

import datetime
import json

import numpy as np
import pytest
import torch
from transformers.utils import chat_template_utils

from rewardsmith.config import DEFAULT_TEMPLATE
from rewardsmith.data.golden import INPUTS
from rewardsmith.errors import ModelError, SettingsError
from rewardsmith.model.artefact import save
from rewardsmith.model.clock import pinned_date
from rewardsmith.model.network import build_network, load_tokenizer
from rewardsmith.model.padding import give_pad_token
from rewardsmith.model.render import Renderer, RenderSpec, with_end_token
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.token_cache import encode_cached

DAY, OTHER_DAY = "2024-07-26", "2025-12-01"
TURNS = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
# Each asks for the date in another way: as Llama 3.2, inside a macro as gpt-oss, without a zero and behind a first line of white space.
CLOCKS = {
    "default": "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}Today: {{ date_string }}\n"
    + TURNS,
    "macro": "{% macro head() %}{% for i in [1] %}Date: {{ strftime_now('%Y-%m-%d') }}{% endfor %}{% endmacro %}{{ head() }}\n"
    + TURNS,
    "branch": "\n   {% if strftime_now('%Y')|int > 2024 %}late, {% else %}early, {% endif %}{{ strftime_now('%-d. %B %y (%A)') }}\n"
    + TURNS,
    "generation": "{{ strftime_now('%H:%M %d/%m') }}{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
    "<|start|>{{ m.role }}\n{% generation %}{{ m.content }}<|end|>\n{% endgeneration %}{% endfor %}",
}
NO_CLOCKS = {
    "fixed date": "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
    + TURNS,
    "comment": "{# no strftime_now here #}" + TURNS,
    "own": "{% macro strftime_now(format) %}2020{% endmacro %}{{ strftime_now('%Y') }}" + TURNS,
}
# As Qwen3: thoughts of the last answer are put into a form of their own, and an empty block stands for none.
THOUGHTS = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' %}"
    "{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
)
# As Gemma: no system role, and turns that alternate.
STRICT = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}{% endfor %}"
)


@pytest.fixture
def tokenizer(tiny):
    """tokenizer(template, family) is a tokenizer with that chat template."""

    def build(template, family="qwen2"):
        loaded = load_tokenizer(tiny(family))
        loaded.chat_template = template
        return loaded

    return build


@pytest.fixture
def clock(monkeypatch):
    """clock("2024-07-26") sets the day that transformers reads."""

    def set_to(day):
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls.fromisoformat(day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return set_to


def chat(tokenizer, **options):
    return Renderer(tokenizer, RenderSpec(encoding="chat", **{"max_length": 512, **options}))


def ids_of(renderer, pair):
    return renderer.encode([pair]).row(0).tolist()


def conversation(prompt, answer):
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*messages, {"role": "assistant", "content": answer}]


def plain_ids(tokenizer, prompt, answer):
    """What any other tool gets from the tokenizer's own chat template."""
    return tokenizer.apply_chat_template(conversation(prompt, answer), tokenize=True, return_dict=False)


def save_chat_model(base, tokenizer, out, **options):
    """A reward model over a tiny base, with this tokenizer and its chat template."""
    network = build_network(base, pooling="auto", seed=1, dropout=False)
    give_pad_token(network, tokenizer)
    with torch.no_grad():
        network.head_module.weight.mul_(3)
    save(network, chat(tokenizer, max_length=128, **options), out, training_dtype="float32", manifest={})
    return RewardModel.load(out)


# -- the clock -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOCKS)
def test_a_template_that_writes_todays_date_needs_a_pinned_one(name, tokenizer):
    found = tokenizer(CLOCKS[name])
    assert pinned_date(found, datetime.date(2024, 7, 26)) == DAY
    with pytest.raises(ModelError, match="needed a pinned date"):
        chat(found)
    chat(found, date=DAY)


@pytest.mark.parametrize("name", NO_CLOCKS)
def test_a_template_that_reads_no_clock_gets_no_date(name, tokenizer, tiny):
    found = tokenizer(NO_CLOCKS[name])
    assert pinned_date(found, datetime.date(2024, 7, 26)) is None
    renderer = chat(found)
    assert renderer.tokenizer is found and "date" not in renderer.spec.as_dict()
    assert pinned_date(load_tokenizer(tiny("bert")), datetime.date(2024, 7, 26)) is None


@pytest.mark.parametrize("name", CLOCKS)
def test_a_pinned_template_writes_what_the_clock_of_that_day_would(name, tokenizer, clock):
    found = tokenizer(CLOCKS[name])
    for day in (DAY, OTHER_DAY):
        clock(day)
        expected = found.apply_chat_template(conversation("Hi", "Hello."), tokenize=False)
        clock("2031-01-01")
        assert chat(found, date=day).render("Hi", "Hello.") == expected
    assert found.chat_template == CLOCKS[name], "the tokenizer that came is left as it was"


def test_scores_are_equal_on_two_days_here_and_in_other_tools(tiny, tokenizer, clock, tmp_path):
    source = tokenizer(CLOCKS["default"])
    model = save_chat_model(tiny("qwen2"), source, tmp_path / "rm", date=DAY)
    assert model.renderer.spec.date == DAY
    assert json.loads((tmp_path / "rm" / "rewardsmith.json").read_text())["render"]["date"] == DAY
    pairs = [("Hi", "Hello."), ("Hi", "Go away.")]
    seen = []
    for day in ("2026-01-01", "2027-05-05"):
        clock(day)
        fresh = RewardModel.load(tmp_path / "rm")
        ids = [ids_of(fresh.renderer, pair) for pair in pairs]
        assert ids == [plain_ids(load_tokenizer(str(tmp_path / "rm")), *pair) for pair in pairs]
        seen.append((ids, fresh.score(pairs).tolist(), plain_ids(source, *pairs[0])))
    assert seen[0][:2] == seen[1][:2]
    assert "Today: 26 Jul 2024\n" in model.renderer.render(*pairs[0])
    assert seen[0][2] != seen[1][2], "the template without a pin moves, or this test shows nothing"


def test_another_pinned_date_gives_other_ids(tokenizer):
    found = tokenizer(CLOCKS["default"])
    one, other = chat(found, date=DAY), chat(found, date=OTHER_DAY)
    assert ids_of(one, ("Hi", "Hello.")) != ids_of(other, ("Hi", "Hello."))
    assert one.fingerprint() != other.fingerprint()


def test_a_pinned_template_keeps_its_date(tokenizer):
    """A reward model that goes on is rendered with the date it was trained with, and with no other."""
    pinned = chat(tokenizer(CLOCKS["default"]), date=DAY)
    assert pinned_date(pinned.tokenizer, datetime.date(2030, 1, 1)) == DAY
    again = chat(pinned.tokenizer, date=DAY)
    assert ids_of(again, INPUTS[0]) == ids_of(pinned, INPUTS[0])
    for date in (None, OTHER_DAY):
        with pytest.raises(ModelError, match="the date 2024-07-26, to which this chat template is pinned"):
            chat(pinned.tokenizer, date=date)


def test_named_templates_lose_none_to_the_pin(tokenizer):
    found = tokenizer({"default": CLOCKS["default"], "tool_use": "tools" + TURNS})
    kept = chat(found, date=DAY).tokenizer.chat_template
    assert kept["tool_use"] == "tools" + TURNS and kept["default"].endswith(CLOCKS["default"])


def test_a_spec_without_a_date_is_written_as_before(tokenizer):
    assert RenderSpec().as_dict() == {
        "encoding": "text",
        "template": DEFAULT_TEMPLATE,
        "max_length": 512,
        "truncation": "keep_answer",
    }
    assert RenderSpec(date=DAY).as_dict()["date"] == DAY
    for date in ("yesterday", "20240726", "2024-02-30"):
        with pytest.raises(SettingsError, match="YYYY-MM-DD"):
            RenderSpec(date=date)


def test_a_template_that_cannot_be_parsed_is_said_to_be_so(tokenizer):
    with pytest.raises(ModelError, match="can be parsed"):
        pinned_date(tokenizer("{% if strftime_now('%Y') %}" + TURNS), datetime.date(2024, 7, 26))


# -- altered texts ---------------------------------------------------------------------------------------------------


def test_what_a_template_takes_from_an_answer_is_shown(tokenizer):
    renderer = chat(
        tokenizer("{% for m in messages %}<|start|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}")
    )
    renderer.encode([("Hi", "Hello.")])
    with pytest.raises(ModelError, match=r"leaves the texts as they are.*one that loses '<think>hm</think>'\."):
        renderer.encode([("Hi", "<think>hm</think>Hello.")])


def test_what_a_template_adds_to_an_answer_is_shown(tokenizer):
    renderer = chat(tokenizer(TURNS.replace("m.content", "m.content.replace('Hello', 'Hello there')")))
    with pytest.raises(ModelError, match="one that adds ' there'"):
        renderer.encode([("Hi", "Hello, friend.")])
    # A long text is shown by its changed part alone, and shortened: 60 characters and three dots.
    renderer = chat(tokenizer(TURNS.replace("m.content", "m.content.replace('word', 'WORD')")))
    with pytest.raises(ModelError) as caught:
        renderer.encode([("Hi", "word " * 1000)])
    assert f"loses {('word ' * 12 + '...')!r}" in str(caught.value) and len(str(caught.value)) < 500


def test_thoughts_are_read_as_the_template_writes_them_or_refused(tokenizer):
    """A block of thought that stands in the answer as the template writes it is no change; one that is put in another form is."""
    found = tokenizer(THOUGHTS)
    renderer = chat(found)
    for answer in ("Hello.", "<think>\nhm\n</think>\n\nHello."):
        assert answer in renderer.render("Hi", answer)
        assert ids_of(renderer, ("Hi", answer)) == plain_ids(found, "Hi", answer)
    with pytest.raises(ModelError, match="loses '<think>hm</think>' and adds 'hm'"):
        renderer.encode([("Hi", "<think>hm</think>Hello.")])
    # Thoughts of earlier turns are dropped by the template: the prompt is altered.
    earlier = [*conversation("Hi", "<think>\nhm\n</think>\n\nHello."), {"role": "user", "content": "And?"}]
    with pytest.raises(ModelError, match=r"loses '<think>\\nhm\\n</think>\\n\\n'"):
        renderer.encode([(earlier, "So.")])


@pytest.mark.parametrize("way", ["trim", "rstrip", "only the answer", "line breaks"])
def test_templates_that_trim_are_fine(way, tokenizer):
    text = {
        "trim": "m.content | trim",
        "rstrip": "m.content.rstrip()",
        "only the answer": "(m.content | trim if m.role == 'assistant' else m.content)",
        "line breaks": "m.content.strip('\n')",
    }[way]
    found = tokenizer(TURNS.replace("m.content", text))
    renderer = chat(found)
    for pair in ((" Hi ", "\n Hello. \n"), ("\n\nHi", "Hello.  "), ("", " ")):
        assert ids_of(renderer, pair) == plain_ids(found, *pair)


@pytest.mark.parametrize(
    "template",
    [
        TURNS + "<|start|>assistant\n",
        TURNS + "<|start|>assistant\n<think>\n",
        "{% for m in messages %}{{ m.role.upper() }}: {{ m.content }}</s> {% endfor %}ASSISTANT:",
    ],
)
def test_a_template_that_leaves_a_generation_prompt_open_is_refused(template, tokenizer):
    with pytest.raises(ModelError, match="open generation prompt"):
        chat(tokenizer(template))


@pytest.mark.parametrize(
    "template",
    [
        TURNS + "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}",
        "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|eot|>\n{% endfor %}",
        "{% if messages|length > 2 %}{{ raise_exception('one exchange') }}{% endif %}" + TURNS,
    ],
)
def test_a_closed_template_is_not_taken_for_an_open_one(template, tokenizer):
    found = tokenizer(template)
    assert ids_of(chat(found), ("Hi", "Hello.")) == plain_ids(found, "Hi", "Hello.")


# -- roles -----------------------------------------------------------------------------------------------------------


def test_a_refused_role_is_named_with_the_templates_own_words(tokenizer):
    renderer = chat(tokenizer(STRICT, "gemma"))
    system = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    with pytest.raises(ModelError, match=r"System role not supported for \['system', 'user', 'assistant'\]"):
        renderer.encode([(system, "Hello.")])
    with pytest.raises(ModelError, match="Roles must alternate"):
        renderer.encode([([{"role": "user", "content": "Hi"}] * 2, "Hello.")])


def test_a_role_that_is_left_out_in_silence_is_refused(tokenizer):
    renderer = chat(tokenizer(TURNS.replace("messages %}", "messages if m.role != 'system' %}")))
    with pytest.raises(ModelError, match="0 copies of a message of role 'system'"):
        renderer.encode([([{"role": "system", "content": "x"}, {"role": "user", "content": "Hi"}], "Hello.")])


def test_a_default_system_message_is_part_of_the_frame(tokenizer):
    """As SmolLM2: it is never cut, and a system message of the prompt takes its place."""
    default = "{% if messages[0].role != 'system' %}<|start|>system\nYou are kind.<|end|>\n{% endif %}"
    found = tokenizer(default + TURNS)
    renderer = chat(found, max_length=96)
    system = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    for prompt in ("Hi", system):
        assert ids_of(renderer, (prompt, "Hello.")) == plain_ids(found, prompt, "Hello.")
    cut = found.decode(ids_of(renderer, ("word " * 300, "Hello.")))
    assert cut.startswith("<|start|>system\nYou are kind.<|end|>\n<|start|>user\nword word")


def test_a_cut_conversation_begins_with_a_turn_that_the_template_takes(tokenizer):
    """Without its first turn this conversation would begin with the assistant's, which the template refuses: both go."""
    renderer = chat(tokenizer(STRICT, "gemma"), max_length=64)
    turns = [*conversation("one " * 60, "two " * 60), {"role": "user", "content": "three"}]
    table = renderer.encode([(turns, "four")])
    assert renderer.tokenizer.decode(table.row(0)) == "<bos>[user]three<eos>[assistant]four<eos>"
    assert table.prompt_cut[0] > 0 and table.answer_cut[0] == 0


def test_where_no_turn_can_go_the_oldest_texts_are_cut(tokenizer):
    """[user, assistant, tool] cannot begin elsewhere: first the user's text goes, then the end of the assistant's."""
    template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    renderer = chat(tokenizer(template, "gemma"), max_length=64)
    turns = [*conversation("one " * 60, "two " * 60), {"role": "tool", "content": "three"}]
    table = renderer.encode([(turns, "four")])
    text = renderer.tokenizer.decode(table.row(0))
    assert table.lengths[0] == 64 and table.answer_cut[0] == 0
    assert text.startswith("<bos>[user]<eos>[assistant]two two ")
    assert text.endswith("<eos>[tool]three<eos>[assistant]four<eos>")


# -- one start token -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma", "mistral"])
def test_one_start_token_on_every_path(family, tiny, tokenizer, tmp_path):
    """Trap 12: the tokenizer puts a start token before every text, and the template writes one as well."""
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    model = save_chat_model(tiny(family), tokenizer(template, family), tmp_path / "rm")
    pairs = [pair for pair in INPUTS if len(str(pair)) < 120 and isinstance(pair[0], str)]
    table = model.renderer.encode(pairs)
    loaded = load_tokenizer(str(tmp_path / "rm"))
    cold, first = encode_cached(model.renderer, pairs, tmp_path)  # what training reads
    warm, second = encode_cached(model.renderer, pairs, tmp_path)
    assert (first, second) == ("miss", "hit")
    digests = model.table(pairs).digest
    for i, pair in enumerate(pairs):
        ids = table.row(i).tolist()
        assert ids[0] == loaded.bos_token_id and ids.count(loaded.bos_token_id) == 1
        assert ids == cold.row(i).tolist() == warm.row(i).tolist()
        # A look-alike of a control token is plain text here, and the token itself in transformers.
        assert table.special_strings[i] or ids == plain_ids(loaded, *pair)
        assert digests[i] == table.digests()[i]
    assert np.count_nonzero(table.special_strings == 0) > 4


@pytest.mark.parametrize("family", ["qwen3", "phi", "olmo2"])
def test_no_start_token_is_invented(family, tokenizer):
    found = tokenizer("{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}", family)
    assert found.bos_token_id is None
    assert ids_of(chat(found), ("Hi", "Hello.")) == plain_ids(found, "Hi", "Hello.")


def test_the_tokenizers_own_start_token_stays_where_the_template_writes_none(tokenizer):
    """As for the rendered text in any other tool that tokenises it."""
    found = tokenizer("{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}", "llama")
    renderer = chat(found)
    ids = ids_of(renderer, ("Hi", "Hello."))
    assert ids == found(renderer.render("Hi", "Hello."))["input_ids"] and ids.count(found.bos_token_id) == 1


# -- the end of a text -----------------------------------------------------------------------------------------------


def ends_with(table, tokens):
    return [table.row(i)[len(table.row(i)) - len(tokens) :].tolist() == list(tokens) for i in range(len(table))]


@pytest.mark.parametrize(
    ("family", "encoding", "template", "expected"),
    [
        ("qwen2", "chat", TURNS, "<|end|>\n"),
        ("qwen2", "chat", "{% for m in messages %}{{ m.content }}{% endfor %}", ""),
        ("llama", "chat", "{% for m in messages %}{{ m.content }} </s>{% endfor %}", "</s>"),
        ("bert", "text", DEFAULT_TEMPLATE, "[SEP]"),
        ("bert", "text", "{prompt} {answer} [SEP]", "[SEP]"),
        ("bert", "pair", DEFAULT_TEMPLATE, "[SEP]"),
        ("roberta", "text", DEFAULT_TEMPLATE + "\nThe end", "\nThe end</s>"),
        ("gpt2", "text", DEFAULT_TEMPLATE, ""),
        ("gpt2", "text", DEFAULT_TEMPLATE + "<|endoftext|>", "<|endoftext|>"),
    ],
)
def test_every_text_ends_with_the_stated_tokens(family, encoding, template, expected, tiny):
    """Trap 13, also where the text was cut; what may merge with the end of an answer is not promised."""
    tokenizer = load_tokenizer(tiny(family))
    spec = RenderSpec(encoding=encoding, max_length=96, **({} if encoding == "chat" else {"template": template}))
    if encoding == "chat":
        tokenizer.chat_template = template
    renderer = Renderer(tokenizer, spec)
    assert tokenizer.decode(renderer.end_tokens).strip(" ") == expected
    table = renderer.encode(INPUTS)
    assert table.truncated.any() and all(ends_with(table, renderer.end_tokens))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "qwen3"])
def test_a_decoder_without_a_chat_template_gets_its_end_token_written(family, tiny):
    tokenizer = load_tokenizer(tiny(family))
    template = with_end_token(DEFAULT_TEMPLATE, tokenizer)
    assert template == DEFAULT_TEMPLATE + tokenizer.eos_token == with_end_token(template, tokenizer)
    renderer = Renderer(tokenizer, RenderSpec(template=template, max_length=96))
    assert renderer.end_tokens == (tokenizer.eos_token_id,)
    table = renderer.encode(INPUTS)
    assert table.truncated.any() and all(ends_with(table, renderer.end_tokens))
    plain = [i for i, whole in enumerate(~table.truncated & (table.special_strings == 0)) if whole]
    assert len(plain) > 4
    for i in plain:
        assert table.row(i).tolist() == tokenizer(renderer.render(*INPUTS[i]))["input_ids"]


def test_a_written_end_token_is_never_taken_from_the_content(tiny):
    """Look-alikes in a prompt or an answer stay plain text, are counted, and the end token of the frame outlives every cut."""
    tokenizer = load_tokenizer(tiny("gpt2"))
    end = tokenizer.eos_token
    renderer = Renderer(tokenizer, RenderSpec(template=DEFAULT_TEMPLATE + end, max_length=64))
    pairs = [
        ("Hi", "Hello."),
        (f"What is {end}?", f"An end token: {end}"),
        ("word " * 99, "Hello."),
        ("Hi", f"{end} word " * 99),
    ]
    table = renderer.encode(pairs)
    counts = [np.count_nonzero(table.row(i) == tokenizer.eos_token_id) for i in range(len(pairs))]
    assert counts == [1, 1, 1, 1] and all(ends_with(table, renderer.end_tokens))
    assert table.special_strings.tolist() == [0, 2, 0, 99]
    assert tokenizer.decode(table.row(1)[:-1]).endswith(f"An end token: {end}")


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_a_tokenizer_that_ends_its_texts_needs_no_end_token(family, tiny):
    tokenizer = load_tokenizer(tiny(family))
    tokenizer.eos_token = tokenizer.sep_token
    assert with_end_token(DEFAULT_TEMPLATE, tokenizer) == DEFAULT_TEMPLATE


def test_an_end_token_that_is_no_single_special_token_is_not_written(tiny):
    tokenizer = load_tokenizer(tiny("gpt2"))
    tokenizer.eos_token = "."  # an ordinary piece: answers end so, too
    assert tokenizer.eos_token == "." and with_end_token(DEFAULT_TEMPLATE, tokenizer) == DEFAULT_TEMPLATE
