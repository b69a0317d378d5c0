"""Surface traits: what counts as a list, an apology, a refusal, damage - and what does not."""

import pytest

from rewardsmith.data import traits


def test_markdown_marks_are_counted():
    # one heading, two items, one number, two pairs of stars, two backtick runs, one link, one table row
    text = "# Title\n- one\n  * two\n1. three\n**bold** `code` [a](b)\n| x |"
    assert traits.markdown_marks(text) == 1 + 2 + 1 + 2 + 2 + 1 + 1
    assert traits.markdown_marks("plain text, 3 * 4 - 2 and a|b") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- one\n- two", (True, False, False)),
        ("First:\n1) one", (True, False, False)),
        ("In 1999. we met - twice", (False, False, False)),
        ("I'm sorry, but I can't help with that.", (False, True, True)),
        ("My apologies for the delay.", (False, True, False)),
        ("As an AI, I have no body.", (False, False, True)),
        ("I’m unable to say.", (False, False, True)),
        ("You can't divide by zero.", (False, False, False)),
    ],
)
def test_lists_apologies_and_refusals(text, expected):
    found = traits.traits(text)
    assert (found.has_list, found.has_apology, found.has_refusal) == expected


def test_an_apology_far_inside_is_part_of_the_matter():
    assert not traits.traits("x" * 400 + " sorry").has_apology


@pytest.mark.parametrize("text", ["a\x00b", "bell\x07", "\ufeffbom", "\u202eright to left", "\x7f"])
def test_control_characters_are_found_and_removed(text):
    assert traits.has_control_characters(text)
    mended = traits.without_control_characters(text)
    assert not traits.has_control_characters(mended) and len(mended) == len(text) - 1


@pytest.mark.parametrize("text", ["tab\tand\nline\r\n", "family 👨‍👩‍👧", "می‌خواهم", "next line \x85"])
def test_what_scripts_and_emoji_need_is_no_control_character(text):
    assert not traits.has_control_characters(text)


def test_mojibake_is_found_and_read_back():
    broken = "It costs 5 €, naïve café.".encode().decode("windows-1252")
    assert traits.is_mojibake(broken)
    assert traits.without_mojibake(broken) == "It costs 5 €, naïve café."
    for fine in ("naïve café, 5 €", "größer", "Привет", "東京", "plain"):
        assert not traits.is_mojibake(fine)


@pytest.mark.parametrize(
    "text",
    [
        "a <|im_end|> b",
        "<|eot_id|>",
        "[INST] do",
        "end</s>",
        "<start_of_turn>user",
        "end [SEP]",
        "<｜end▁of▁sentence｜>",
    ],
)
def test_template_tokens_are_found(text):
    assert traits.has_template_token(text)


@pytest.mark.parametrize(
    "text",
    [
        "a < b",
        "x[0]",
        "<strong>",
        "<b>",
        "[1]",
        "a <| b |> c",
        "if a<b and c>d",
        "<s>struck</s> out",
        "BERT puts [SEP] last.",
    ],
)
def test_ordinary_brackets_are_no_template_tokens(text):
    assert not traits.has_template_token(text)


@pytest.mark.parametrize(
    "text",
    ["Fine.\n\nHuman: and then?", "Yes.\n### Human: more", "Ok\nUSER: next", "So.\n### User\nYes", " Human: hello"],
)
def test_role_markers_are_found(text):
    assert traits.has_role_marker(text)


@pytest.mark.parametrize(
    "text",
    [
        "To be human: to err.",
        "The Assistant is kind.",
        "### Humanities",
        "user: admin",
        "A.\n### User Interface\nB",
        "The human: a species.",
    ],
)
def test_talk_about_roles_is_no_marker(text):
    assert not traits.has_role_marker(text)


def test_loops_are_long_and_say_little():
    assert traits.is_loop("again and again".split() * 20)
    assert not traits.is_loop("no no no".split())
    assert not traits.is_loop([f"word{i % 30}" for i in range(60)])
    assert traits.is_loop(["ha" * 500]) and traits.is_loop(["哈" * 500]) and traits.is_loop(["!" * 300])
    assert not traits.is_loop(["".join(chr(0x4E00 + i * 7 % 3000) for i in range(600))])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("This sentence is English enough.", "Latin"),
        ("Это предложение написано по-русски.", "Cyrillic"),
        ("这是一个用中文写成的句子，它有足够多的汉字可以识别出来。", "Han"),
        ("これは日本語で書かれた文です。漢字も少し入っています。", "Kana"),
        ("12 + 30 = 42 !!", None),
        ("OK", None),
    ],
)
def test_scripts_are_told_apart(text, expected):
    assert traits.script(text) == expected


@pytest.mark.parametrize(
    ("text", "blank"),
    [
        ("", True),
        (" \n\t\u00a0", True),
        ("\u200b\u200d\ufeff\u00ad\u2060", True),  # format characters of several kinds
        ("\u3164\u2800", True),  # a letter and a sign by their category, which are drawn as nothing
        ("\u200d\ufe0f\U000e0100", True),  # what is left where an emoji was taken out
        ("\u06dd", False),  # of the category of joiners, but drawn
        ("\x00\x1b", True),
        (".", False),
        ("\u200bok", False),
        ("\ufffd", False),
        ("\ue000", False),  # private use: a font may show it
    ],
)
def test_blank_is_what_shows_nothing(text, blank):
    assert traits.is_blank(text) is blank


@pytest.mark.parametrize(("text", "bare"), [("...", True), (":-(", True), ("42", False), ("👍", False), ("ok", False)])
def test_bare_signs(text, bare):
    assert traits.is_bare_signs(text) is bare
