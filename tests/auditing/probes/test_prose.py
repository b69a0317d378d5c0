"""What counts as prose: the mask, the lines, the ends of sentences."""

import pytest

from rewardsmith.auditing.probes.prose import appended, last_request, prose_of, replaced


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("See `x` or ``y``.", "See  or ."),
        ("a\n```py\ncode\n```\nb", "a\n\n\n\nb"),
        ("a\n~~~\nopen\nto the end", "a\n\n\n"),
        ("It costs $5 and $10, but $x + y$ is free.", "It costs $5 and $10, but  is free."),
        ("\\(a\\) and \\[b\\] and $$c$$ and \\frac{1}{2}", " and  and  and "),
        ("Mail me@example.com or see https://a.example/b?c=d now", "Mail  or see  now"),
        ("A [link](http://a.example) and ![image](b.png)", "A  and "),
        ("<b>bold</b> 3 < 4 and 5 > 2", "bold 3 < 4 and 5 > 2"),
        ("Open /usr/local/bin or C:\\Users\\me, and/or not", "Open  or , and/or not"),
        ("| a | b |\n|---|---|\nend", "\n\nend"),
        ("total = 5\nHere it is.", "\nHere it is."),
        ("for i in range(3):\n    print(i)\n# done", "\n\n"),
        ("SELECT a FROM b;\nIn total that is more than enough for all of us.", "\nIn total that is more than enough for all of us."),
        ("In total (all of it), that is enough for us: it is so;", "In total (all of it), that is enough for us: it is so;"),
    ],
)  # fmt: skip
def test_what_is_no_prose_is_hidden(text, left):
    prose = prose_of(text)
    assert prose.mask.replace("\0", "") == left
    assert len(prose.mask) == len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        (
            "Dr. Who saw J. Smith at 5 p.m. on Monday, i.e. then.",
            ["Dr. Who saw J. Smith at 5 p.m. on Monday, i.e. then."],
        ),
        ("It was 5 p.m. Then it rained.", ["It was 5 p.m.", "Then it rained."]),
        ('He said "no." Then 3.5 came.', ['He said "no."', "Then 3.5 came."]),
        ("一。二！三", ["一。", "二！", "三"]),
        ("1. One. Two.", ["One.", "Two."]),
        ("Wait... what? Yes.", ["Wait... what?", "Yes."]),
    ],
)
def test_sentences(text, expected):
    prose = prose_of(text)
    assert [text[start:end] for start, end in prose.sentences(prose.lines[0])] == expected


def test_lines_and_blocks():
    text = "# Top\n\n- a\n* b\n3) c\n\nplain\n> quoted\n`code`\n\n  \nend"
    prose = prose_of(text)
    assert [(text[line.start : line.end], line.kind) for line in prose.lines] == [
        ("Top", "heading"), ("a", "bullet"), ("b", "bullet"), ("c", "number"), ("plain", "plain"), ("quoted", "plain"), ("`code`", "protected"), ("end", "plain"),
    ]  # fmt: skip
    assert [len(block) for block in prose.blocks()] == [1, 3, 2, 1, 1]


def test_changes_may_come_in_any_order():
    assert replaced("abcdef", [(4, 5, "X"), (0, 1, ""), (2, 2, "--")]) == "b--cdXf"


def test_nothing_is_appended_inside_an_open_fence():
    assert appended("a\r\nb", "c") == "a\r\nb\r\n\r\nc"
    assert appended("```\nx\n```", "c") == "```\nx\n```\n\nc"
    assert appended("```\nx", "c") is None and appended("\n", "c") is None


def test_the_last_request_is_the_last_of_the_user():
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "system", "content": "c"}]
    assert last_request(turns) == "b" and last_request("d") == "d" and last_request(turns[2:]) == ""
