"""What all built-in edits promise together: quiet where nothing is planted, the same edit of the same text, and no text that breaks them."""

import string
import time

import numpy as np
import pytest
from scipy.stats import binom

from rewardsmith.auditing.trials import Subject
from rewardsmith.data.schema import prompt_key
from tests.auditing.planted import PlantedScorer, misses, probes_of, river_bench, river_walks
from tests.auditing.probes import test_degenerate, test_formatting, test_invariance, test_length

FAMILIES = ("length", "format", "openings", "degenerate", "invariance")
PROBES = probes_of(FAMILIES)
EDITS = [probe for probe in PROBES if probe.edits_answers]
NAMES = [probe.name for probe in EDITS]


def test_a_fair_scorer_is_flagged_no_more_often_than_five_times_in_a_hundred():
    """200 audits by all these probes: every text has a score of its own from N(0, 1), chosen answers 0.3 more. Any flag at all counts."""
    bench, rng = river_bench(), np.random.default_rng(0)
    flagged = 0
    for _ in range(200):
        scores = rng.standard_normal(len(bench.plan.pairs)).astype(np.float32)
        scores[bench.sides[0]] += 0.3
        flagged += any(result.flagged for result in bench.results(scores).values())
    assert flagged <= binom.ppf(0.99, 200, 0.05)  # 18


def test_biases_are_found_and_measured_under_noise_that_every_text_has_for_itself():
    """With a wobble of 0.5 intervals miss what is planted now and then; at 95 % more than 4 of 24 have a chance of 1 %."""
    traits = {**test_length.TRAITS, **test_formatting.TRAITS, **test_degenerate.TRAITS, **test_invariance.TRAITS}
    found = [miss for name, trait in traits.items() for miss in misses(name, trait, strengths=[1.0], wobble=0.5)]
    assert not [miss for miss in found if "not flagged" in miss]
    assert len(found) <= binom.ppf(0.99, len(traits), 0.05)


SOME = [
    probe
    for probe in PROBES
    if probe.kind == "invariance" or probe.name in ("padding", "bold", "bare_colon", "gibberish")
]


@pytest.mark.parametrize("probe", SOME, ids=[probe.name for probe in SOME])
def test_a_dislike_is_a_finding_only_where_either_direction_is(probe):
    edited = {(prompt_key(one.edited[0]), one.edited[1]) for one in river_bench().plan.contrasts[probe.name]}
    scorer = PlantedScorer(lambda prompt, answer: -float((prompt_key(prompt), answer) in edited), 1.0)
    result = river_bench().results(scorer.score(river_bench().plan.pairs))[probe.name]
    assert result.adjusted.high < 0
    assert result.flagged == (probe.direction == "either")


def edits(subjects, seed=0):
    return {
        (probe.name, contrast.id): contrast.edited[1] for probe in EDITS for contrast in probe.contrasts(subjects, seed)
    }


def test_an_edit_depends_on_the_seed_and_its_text_alone():
    subjects = [Subject(pair.id, pair.prompt, pair.rejected, pair.chosen) for pair in river_walks(12)]
    every = edits(subjects)
    assert edits(subjects) == every
    assert edits(subjects[::-1]) == every
    assert edits(subjects[5:6]) == {key: text for key, text in every.items() if key[1] == "p5"}
    other = edits(subjects, seed=1)
    assert {name for name, _ in every if any(every[name, one.id] != other[name, one.id] for one in subjects)} == {
        "padding", "emoji", "link", "gibberish", "other_language", "typos", "white_space", "list_order"
    }  # fmt: skip


def test_edited_texts_are_not_the_original_and_keep_the_prompt():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me."}]
    subjects = [Subject("s", messages, river_walks(1)[0].rejected)]
    for probe in EDITS:
        (contrast,) = probe.contrasts(subjects, 0)
        assert contrast.edited[0] == messages and contrast.edited[1] != contrast.original[1] and contrast.rival is None


CODE = "```python\ndef often(x):\n    # don't begin\n    return \"it's\" - x\n```"
OTHERS = [
    "$\\frac{often}{don't} - 1$",
    'https://example.com/often/don\'t?x="1"',
    "[often don't](https://example.com/a)",
    "`often don't`",
    "| often | don't |\n|---|---|\n| assist | huge |",
    'usually = often["don\'t"]',
    "\\[ often - don't \\]",
    '<b class="often">',
]


@pytest.mark.parametrize(
    "name",
    [
        "bold",
        "bullets",
        "emoji",
        "exclamation",
        "all_capitals",
        "typos",
        "white_space",
        "unicode_variants",
        "contractions",
        "synonyms",
        "list_order",
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_code_formulas_links_and_tables_stay_as_they_are(name, newline):
    parts = [CODE, *OTHERS]
    between = 'People often don\'t know it. They often assist "others".'
    answer = f"\n\n{between}\n\n".join([between, *parts, "- apples\n- pears"]).replace("\n", newline)
    edited = edits([Subject("s", "p", answer)])[name, "s"]
    assert all(part.replace("\n", newline) in edited for part in parts)
    assert newline == "\n" or edited.count("\n") == edited.count("\r\n")


NASTY = [
    "", " ", "\n", "\r\n", "\t", "a", "A.", ".", "!", "-", "- ", "* \n* ", "#", "# ", ">", "> ", "1.", "1. ", "|", "||", "`", "```", "~~~", "$", "$$", "\\", "\\[", "[](", "**", "'", '"',
    "\0", "\ud800", "\udfff\ud800", "a\ud800 b. \ud83d", "\u200d", "\u0301", "e\u0301", "\ufeff", "👍", "👍🏽" * 50, "👨‍👩‍👧‍👦 🇩🇪", "😘👑", "ಠ\\_ಠ",
    "```\ncode\n```", "```\nopen", "x = 1", "def f():\n    pass", "- a\n- b", "-\n-\n-", "\r\r\r", "a\rb", "Ⅷ ② ½", "ß ŉ ǰ", "İ", "مرحبا بالعالم", "ไทย", "한국어입니다.", "。。。",
    "I" * 50_000, "a b " * 12_500, "word. " * 8_000, "<" * 50_000, "$" * 50_000, "`" * 50_000, "[" * 50_000, "\\[" * 25_000, "\n" * 50_000, "- a\n" * 12_500, "don't " * 8_000, "|" * 50_000,
    "{" * 50_000, "\\a" * 25_000, "a." * 25_000, "/a" * 25_000, "*" * 50_000, "「" * 50_000, "is " * 16_000 + "?", "x=" * 25_000, ". " * 25_000, "\\begin{a}" * 5_000, "a@" * 25_000, "''" * 25_000,
]  # fmt: skip


@pytest.mark.parametrize("answer", NASTY, ids=[f"{ascii(text[:12])}x{len(text)}" for text in NASTY])
def test_no_text_breaks_an_edit(answer):
    started = time.process_time()
    prompts = ("", answer, [{"role": "assistant", "content": answer}])
    for prompt in prompts if len(answer) < 1000 else prompts[1:2]:
        made = edits([Subject("s", prompt, answer)])
        assert all(isinstance(text, str) and text != answer for text in made.values())
        assert (("white_space", "s") in made) == (answer != "")
        assert ("empty_answer", "s") not in made or answer.strip()
    assert time.process_time() - started < 10


def test_no_mixture_of_signs_breaks_an_edit():
    rng = np.random.default_rng(0)
    pieces = [
        *string.punctuation,
        *" \n\n\t\r",
        "\r\n",
        "\n\n",
        "```",
        "**",
        "- ",
        "1. ",
        "# ",
        "don't",
        "Often ",
        "a",
        "Is it?",
        "e.g. ",
        "é",
        "茶。",
        "👍🏽",
        "\ud800",
        "\0",
        "$x$",
        "http://a.b/c",
    ]
    for k in range(300):
        answer = "".join(rng.choice(np.array(pieces, dtype=object), size=int(rng.integers(1, 40))))
        for (name, _), text in edits([Subject("s", f"p{k}", answer)]).items():
            assert isinstance(text, str) and text != answer, name


def test_two_hundred_answers_are_planned_in_about_a_second():
    subjects = [Subject(f"{pair.id}", pair.prompt, f"{pair.rejected} " * 4) for pair in river_walks(200)]
    started = time.process_time()
    edits(subjects)
    assert time.process_time() - started < 5  # about one on an idle core
