"""The length policies, and what is said to be cut."""

import pytest

from rewardsmith.errors import DataError, LengthError, ModelError, SettingsError
from rewardsmith.model.network import load_tokenizer
from rewardsmith.model.render import Renderer, RenderSpec, resolve_encoding

PROMPT = " ".join(f"alpha{i}" for i in range(120))
ANSWER = " ".join(f"beta{i}" for i in range(120))


@pytest.fixture(scope="module")
def tokenizer(minilm):
    """The real WordPiece tokenizer: its pieces can be counted by hand."""
    return load_tokenizer(minilm)


def count(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def decoded(tokenizer, table, i=0):
    return tokenizer.decode(table.row(i), skip_special_tokens=True)


def test_keep_answer_cuts_the_end_of_a_single_prompt_and_no_answer(tokenizer):
    answer = "the answer stays whole to its very last word"
    renderer = Renderer(tokenizer, RenderSpec(max_length=64))
    table = renderer.encode([(PROMPT, answer)])
    text = decoded(tokenizer, table)
    assert len(table.row(0)) == 64
    assert text.startswith(
        "# # # prompt : alpha0 alpha1 "
    )  # the beginning, where the guide tells people to put what matters
    assert text.endswith("# # # answer : " + answer)
    frame = count(tokenizer, "### Prompt:\n\n\n### Answer:\n") + 2
    assert table.answer_cut[0] == 0
    # Every token that is not frame or answer is prompt: 64 - frame - answer were kept.
    assert table.prompt_cut[0] == count(tokenizer, PROMPT) - (64 - frame - count(tokenizer, answer))


def test_keep_answer_leaves_the_prompt_its_quarter(tokenizer):
    renderer = Renderer(tokenizer, RenderSpec(max_length=64))
    table = renderer.encode([(PROMPT, ANSWER), ("short one", ANSWER)])
    frame = count(tokenizer, "### Prompt:\n\n\n### Answer:\n") + 2
    assert table.lengths.tolist() == [64, 64]
    assert table.prompt_cut[0] == count(tokenizer, PROMPT) - 64 // 4
    assert table.answer_cut[0] == count(tokenizer, ANSWER) - (64 - frame - 64 // 4)
    # A prompt shorter than its quarter is kept whole.
    assert table.prompt_cut[1] == 0
    assert table.answer_cut[1] == count(tokenizer, ANSWER) - (64 - frame - count(tokenizer, "short one"))


def test_a_conversation_loses_its_oldest_turns_first(tokenizer):
    turns = [
        {"role": "user", "content": "first " * 30},
        {"role": "assistant", "content": "second " * 90},
        {"role": "user", "content": "third question"},
    ]
    renderer = Renderer(tokenizer, RenderSpec(max_length=64))
    text = decoded(tokenizer, renderer.encode([(turns, "fine")]))
    assert "first" not in text
    assert text.startswith("# # # prompt : assistant : second second ")  # what is left of it begins with its role
    assert text.endswith("user : third question # # # answer : fine")
    # When even the last turn is too long it keeps its beginning.
    turns[-1] = {"role": "user", "content": PROMPT}
    text = decoded(tokenizer, renderer.encode([(turns, "fine")]))
    assert text.startswith("# # # prompt : user : alpha0 alpha1")
    assert text.endswith("# # # answer : fine")


def test_pair_encoding_keeps_the_answer_too(tokenizer):
    renderer = Renderer(tokenizer, RenderSpec(encoding="pair", max_length=32))
    table = renderer.encode([(PROMPT, "fine and whole")])
    assert len(table.row(0)) == 32
    assert decoded(tokenizer, table).endswith("fine and whole")
    assert table.second[0] == 32 - count(tokenizer, "fine and whole") - 1


def test_right_is_the_naive_cut(tokenizer):
    renderer = Renderer(tokenizer, RenderSpec(max_length=64, truncation="right"))
    table = renderer.encode([(PROMPT, "lost"), (PROMPT, "gone")])
    assert table.row(0).tolist() == table.row(1).tolist()  # the collapse that this policy is known for
    assert table.answer_cut.tolist() == [1, 1]
    naive = tokenizer(renderer.render(PROMPT, "lost"), truncation=True, max_length=64)["input_ids"]
    assert table.row(0).tolist() == naive


def test_drop_marks_and_error_stops(tokenizer):
    table = Renderer(tokenizer, RenderSpec(max_length=64, truncation="drop")).encode([(PROMPT, "x"), ("p", "x")])
    assert table.truncated.tolist() == [True, False]
    renderer = Renderer(tokenizer, RenderSpec(max_length=64, truncation="error"))
    renderer.encode([("p", "x")])
    with pytest.raises(LengthError, match="keep_answer, right or drop"):
        renderer.encode([(PROMPT, "x")])


def test_a_template_that_leaves_no_room_is_refused(tokenizer):
    with pytest.raises(LengthError, match="at least"):
        Renderer(tokenizer, RenderSpec(max_length=10))
    Renderer(tokenizer, RenderSpec(max_length=16))


def test_the_frame_of_a_chat_template_is_never_cut(tiny):
    tokenizer = load_tokenizer(tiny("qwen2"))
    renderer = Renderer(tokenizer, RenderSpec(encoding="chat", max_length=64))
    long = [{"role": "user", "content": "one two three " * 20}, {"role": "assistant", "content": "four " * 20}]
    table = renderer.encode([([*long, {"role": "user", "content": "five"}], "six")])
    text = tokenizer.decode(table.row(0))
    assert text.endswith("<|start|>user\nfive<|end|>\n<|start|>assistant\nsix<|end|>\n")
    assert text.startswith("<|start|>assistant\nfour")
    assert len(table.row(0)) <= 64


def test_a_chat_template_that_alters_an_answer_is_refused(tiny):
    tokenizer = load_tokenizer(tiny("qwen2"))
    tokenizer.chat_template = (
        "{% for m in messages %}<|start|>{{ m['content'].split('</think>')[-1] }}<|end|>{% endfor %}"
    )
    renderer = Renderer(tokenizer, RenderSpec(encoding="chat", max_length=64))
    renderer.encode([("Hi", "Hello.")])
    with pytest.raises(ModelError, match="leaves the texts as they are"):
        renderer.encode([("Hi", "<think>hm</think>Hello.")])


def test_encodings_that_the_tokenizer_cannot_do_are_refused(tiny):
    with pytest.raises(SettingsError, match="chat template"):
        resolve_encoding("chat", load_tokenizer(tiny("bert")))
    with pytest.raises(SettingsError, match="separates two segments"):
        resolve_encoding("pair", load_tokenizer(tiny("qwen2")))
    assert resolve_encoding("auto", load_tokenizer(tiny("qwen2")))[0] == "chat"
    assert resolve_encoding("auto", load_tokenizer(tiny("bert")))[0] == "text"


def test_half_a_surrogate_pair_is_named_with_its_input(tokenizer):
    renderer = Renderer(tokenizer, RenderSpec(max_length=64))
    with pytest.raises(DataError, match=r"U\+D83D\) in input 1"):
        renderer.encode([("fine", "fine"), ("fine", "half \ud83d of it")])
