"""The report page of audits: attached to the model that they are of, drawn from their JSON alone, whole without any part, safe for hostile texts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rewardsmith.errors import DataError
from rewardsmith.evaluation.pages import verdicts
from rewardsmith.evaluation.pages.audit import audits_of
from rewardsmith.evaluation.pages.charts import optimisation_charts
from rewardsmith.evaluation.pages.folders import Report, read_report
from rewardsmith.evaluation.pages.page import render_report, write_report
from rewardsmith.evaluation.pages.parts import parts
from rewardsmith.evaluation.pages.probes import probes_table
from tests.evaluation.test_report_page import HOSTILE, ROWS, Page, estimate, evaluation, folder, training, unpacked

FILES = {"model.safetensors": "ab" * 32}  # those of `evaluation()`


def example(**more: Any) -> dict[str, Any]:
    return {
        "id": "p1",
        "prompt": "What is the tallest mountain?",
        "prompt_before": None,
        "original": "It is Everest.",
        "edited": "Yes! It is Everest.",
        "score_original": 0.25,
        "score_edited": 1.5,
        "score_rival": 0.75,
    } | more


def probe(name: str, value: float, *, flagged: bool = False, half: float = 0.1, **more: Any) -> dict[str, Any]:
    """A result as `ProbeResult.as_dict` writes it; the adjusted interval is twice as wide as the other."""
    return {
        "name": name,
        "family": "openings",
        "kind": "bias",
        "direction": "up",
        "says": f"{name} before the answer",
        "effect_sd": estimate(value, value - half, value + half, 120),
        "effect_sd_adjusted": estimate(value, value - 2 * half, value + 2 * half, 120),
        "p_value": 0.001,
        "p_adjusted": 0.004,
        "movement_sd": estimate(0.7, 0.6, 0.8, 120),
        "flip_rate": estimate(0.3, 0.2, 0.4, 60),
        "flip_rate_reference": estimate(0.06, 0.02, 0.1, 60),
        "win_rate": estimate(0.8, 0.7, 0.9, 120),
        "flagged": flagged,
        "num_contrasts": 120,
        "num_subjects": 125,
        "num_unseen": 3,
        "reading": f"{name}: raises the score by {value:.2f} sd",
        "examples": [example()],
    } | more


def curve(*gains: tuple[float, float]) -> list[dict[str, Any]]:
    """Own score and gold at n = 1, 2, 4; the KL distances are log n - (n - 1) / n, rounded."""
    return [
        {"n": n, "kl": kl, "proxy": estimate(own, own - 0.1, own + 0.1), "gold": estimate(gold, gold - 0.1, gold + 0.1)}
        for (n, kl), (own, gold) in zip(((1, 0.0), (2, 0.19), (4, 0.64)), gains, strict=True)
    ]


def selector(name: str, role: str, *gains: tuple[float, float]) -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "curve": curve(*gains),
        "n_star": estimate(2, 2, 4),
        "gold_at_n_star": estimate(0.5, 0.4, 0.6),
        "gold_at_n_max": estimate(0.2, 0.1, 0.3),
        "decline": estimate(-0.3, -0.4, -0.2),
        "decline_p_adjusted": 0.001,
        "over_optimised": role == "proxy",
    }


def change(name: str, value: float, p_adjusted: float, *flags: bool) -> dict[str, Any]:
    return {
        "name": name,
        "before_sd": 0.5,
        "after_sd": 0.5 + value,
        "change_sd": estimate(value, value - 0.1, value + 0.1, 110),
        "p_adjusted": p_adjusted,
        "flagged_before": flags[0],
        "flagged_after": flags[1],
    }


def audit(**more: Any) -> dict[str, Any]:
    """A document of `audit`, by hand."""
    return {
        "verb": "audit",
        "model": {"name": "minilm-bt", "files": FILES},
        "data": {"source": "pairs.jsonl", "sha256": "cd" * 32, "rows": 900},
        "seed": 3,
        "versions": {"rewardsmith": "0.1.0"},
        "num_pairs": 120,
        "num_prompts": 118,
        "accuracy": estimate(0.7, 0.62, 0.78, 120),
        "score_sd": 0.5721,
        "probes": [
            probe("opening_yes", 0.62, flagged=True),
            probe("opening_colon", 0.04),
            probe("typos", -0.3, flagged=True, family="invariance", kind="invariance", direction="either"),
            probe("padding", 0.15, family="length", flip_rate=None, flip_rate_reference=None, num_unseen=0),
        ],
        "coverage": {
            "num_rows": 900,
            "left_out": {"labelled_tie": 7},
            "num_pairs": 120,
            "num_prompts": 118,
            "num_texts": 840,
            "conversations": 17,
            "scripts": {"Latin": 110, "Han": 10},
        },
        "not_covered": ["shift: no other prompts were given", "emoji: it applied to 6 of 120 answers"],
        "verdict": {
            "num_probes": 4,
            "flagged": ["opening_yes", "typos"],
            "largest": {"name": "opening_yes", "effect_sd": 0.62},
            "limits": [
                {"limit": "openings", "probe": "opening_yes", "limit_sd": 0.3, "effect_sd": 0.62, "ok": False},
                {"limit": "openings", "probe": "bare_yes", "limit_sd": 0.3, "effect_sd": None, "ok": False},
                {"limit": "length", "probe": "padding", "limit_sd": 0.2, "effect_sd": 0.15, "ok": True},
            ],
            "ok": False,
            "text": "2 of 4 probes were flagged.",
        },
        "changes": {
            "probes": [change("padding", 0.05, 0.6, False, False), change("opening_yes", 0.4, 0.0004, False, True)],
            "grown": ["opening_yes"],
            "shrunk": [],
            "no_longer_flagged": [],
            "newly_flagged": ["opening_yes"],
            "text": "Effects that certainly shrank: none; that certainly grew: opening_yes.",
        },
        "length": {"num_pairs": 120, "pooled": {"pearson": estimate(0.592, 0.443, 0.791), "spearman": None}},
        "prompt_use": {
            "accuracy_wrong_prompt": estimate(0.558, 0.469, 0.644),
            "why_not": {"index": "the accuracy is not told from one half"},
            "reading": "With other prompts it is right on 0.558 of the pairs.",
        },
        "truncation": {
            "limits": [{"max_length": 128, "own": False, "accuracy": estimate(0.6, 0.5, 0.7)}],
            "advice": ["Raise max_length."],
        },
        "search": {
            "triggers": [probe("trigger_1", 1.2, flagged=True, family="search", text="Yes! !", found_by="words")],
            "control": probe("trigger_1", 0.1, family="search", text="x y"),
            "over_control_sd": estimate(1.1, 0.9, 1.3, 60),
            "vocabulary": {"num_words": 5},
            "not_covered": ["perplexity of the triggers: no language model was given"],
            "reading": "1 of 1 triggers raises scores.",
        },
        "over_optimisation": {
            "n_max": 4,
            "selectors": [
                selector("small-rm", "proxy", (0.0, 0.0), (0.8, 0.5), (1.6, 0.2)),
                selector("gold", "gold", (0.0, 0.0), (0.9, 0.9), (1.8, 1.8)),
                selector("random", "control", (0.0, 0.0), (0.8, 0.0), (1.6, 0.05)),
            ],
            "comparisons": [
                {
                    "family": "controls",
                    "first": "small-rm",
                    "second": "random",
                    "at": "n_max",
                    "difference_sd": estimate(0.15, 0.05, 0.25),
                    "p_adjusted": 0.02,
                }
            ],
            "traits": {
                "changes": [
                    {
                        "selector": "small-rm",
                        "trait": "exclamation_marks",
                        "change_sd": estimate(0.9, 0.8, 1.0),
                        "excess_over_gold_sd": estimate(0.7, 0.6, 0.8),
                        "p_adjusted": 0.0004,
                        "flagged": True,
                    }
                ],
                "constant": ["emoji"],
            },
            "probes": [{"selector": "small-rm", "num_groups": 9, "probes": [change("bold", 0.2, 0.3, False, False)]}],
            "reading": "Gold falls from n = 2 on.",
        },
        "shift": {
            "prompts": {"classifier": {"auc": estimate(0.93, 0.91, 0.95)}, "words": {"of_new": [{"word": "joke"}]}},
            "reading": "The prompts are told apart.",
        },
    } | more


def of_audits(*documents: dict[str, Any], report: dict[str, Any] | None = None) -> Report:
    """A report of one model with these audits."""
    audits = [{"name": f"data {i}", "report": one, "manifest": None} for i, one in enumerate(documents, start=1)]
    model = {"name": "model", "report": report or {"verb": "audit"}, "manifest": None, "audits": audits}
    pairs = {"num_rows": 0, "num_by_model": [0], "without_scores": 0}
    return Report({"verb": "report", "models": [model], "comparisons": [], "pairs": pairs}, [])


def text_of(report: Report) -> str:
    return Page(render_report(report)).text.replace("\u00a0", " ")


def audit_names(report: Report) -> dict[str, list[str]]:
    return {model["name"]: [one["name"] for one in model.get("audits", [])] for model in report.models}


def test_an_audit_alone_is_a_page_of_its_own():
    page = Page(render_report(of_audits(audit())))
    assert page.sections == ["verdict", "audit", "provenance"]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False) if after < 6)
    assert len(page.named("caption")) == len(page.named("table"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        assert not {"src", "style"} & attributes.keys()
        for reference in ("aria-labelledby", "aria-describedby"):
            assert set(str(attributes.get(reference) or "").split()) <= set(ids)


@pytest.fixture(scope="module")
def shown() -> str:
    return text_of(of_audits(audit()))


@pytest.mark.parametrize(
    "number",
    [
        "2 of 4 probes flagged: the largest moves the score by 0.62 sd.",
        "2 of 4 probes are flagged: an effect of at least 0.1 sd, beyond what looking at so many explains. The largest: opening_yes: raises",
        "2 of 3 probes with a limit are over it: opening_yes (+0.62 sd, limit 0.3 sd); bare_yes (not measured, limit 0.3 sd).",
        "Effects that certainly shrank: none; that certainly grew: opening_yes.",
        "pairs 120 of 900",
        "accuracy on these pairs 70.0 % [62.0, 78.0]",
        "scripts Latin 110, Han 10",
        "not eligible labelled tie 7",
        "opening_yes over its limit openings 0.3 +0.62",
        "Probes within their limits: 1",
        "padding length 0.2 +0.15",
        # Effect, interval, edited wins, overtakes beside the meaning kept, n, not seen.
        "opening_yes flagged +0.62 [+0.52, +0.72] 80.0 % 30.0 % (6.0 %) 120 3",
        "padding +0.15 [+0.05, +0.25] 80.0 % 120 0",
        "openings 1 of 2 flagged",
        "interval adjusted for the number of probes [+0.42, +0.82]",
        "overtakes 30.0 % [20.0, 40.0] of 60 that were behind",
        "p1 ; the preferred answer scores 0.750",
        "opening_yes newly flagged grew no -> yes +0.50 +0.90 +0.40 [+0.30, +0.50] < 0.001 110",
        "padding no +0.50 +0.55 +0.05 [-0.05, +0.15] 0.600 110",
        "pooled: pearson 0.592 [0.443, 0.791] 200",
        "accuracy wrong prompt 0.558 [0.469, 0.644] 200",
        "index: the accuracy is not told from one half",
        "limits: max length 128: accuracy 0.600",
        "Raise max_length.",
        "trigger_1 flagged +1.20",
        "over control, sd +1.10 [+0.90, +1.30] 60",
        "vocabulary: num words 5",
        "small-rm over-optimised proxy +1.60 [+1.50, +1.70] +0.20 [+0.10, +0.30] 2 [2, 4] +0.50 [+0.40, +0.60] -0.30 [-0.40, -0.20] 200",
        "small-rm less random at the largest n +0.15 [+0.05, +0.25] 0.020 200",
        "exclamation marks flagged small-rm +0.90 [+0.80, +1.00] +0.70 [+0.60, +0.80] < 0.001 200",
        "Probes that are not newly flagged: 1",
        "4 0.64 +1.60 [+1.50, +1.70] +0.20 [+0.10, +0.30] +1.80 +0.05",
        "prompts: classifier: AUC 0.930 [0.910, 0.950] 200",
        "prompts: words: of new joke",
        "Not covered shift: no other prompts were given emoji: it applied to 6 of 120 answers",
        "audited on: sha256 " + "cd" * 32,
    ],
)
def test_the_section_shows_numbers_as_given(shown, number):
    assert number in shown


def test_no_sentence_of_the_page_calls_a_model_robust():
    quiet = audit(probes=[probe("opening_colon", 0.04)])
    quiet["verdict"] = {"num_probes": 1, "flagged": [], "largest": None, "limits": [], "ok": True}
    for document in (audit(), quiet):
        assert "robust" not in text_of(of_audits(document)).lower()


@pytest.mark.parametrize(
    ("verdict", "changes", "expected"),
    [
        ({"num_probes": 9, "flagged": []}, {}, [("unclear", "Audit", "None of 9 probes was flagged.")]),
        ({"num_probes": 9, "flagged": ["typos"]}, {}, [("bad", "Audit", "1 of 9 probes is flagged")]),
        (
            {"num_probes": 9, "flagged": [], "limits": [{"ok": True}]},
            {},
            [("unclear", "Audit", ""), ("good", "Limits", "Probes with a limit, all within it: 1.")],
        ),
        ({}, {"text": "It shrank.", "shrunk": ["a"]}, [("good", "Changes", "It shrank.")]),
        ({}, {"text": "It moved.", "shrunk": ["a"], "grown": ["b"]}, [("bad", "Changes", "It moved.")]),
        ({}, {"text": "Nothing."}, [("plain", "Changes", "Nothing.")]),
    ],
)
def test_sentences_are_as_good_as_their_news(verdict, changes, expected):
    found = verdicts.verdicts(of_audits({"verb": "audit", "verdict": verdict, "changes": changes}))[0].sentences
    assert [(one.tone, one.subject) for one in found] == [(tone, subject) for tone, subject, _ in expected]
    assert all(text in one.text for one, (_, _, text) in zip(found, expected, strict=True))


def test_what_is_flagged_is_said_in_words_and_nothing_else_is():
    page = Page(render_report(of_audits({"verb": "audit", "probes": audit()["probes"]})))
    rows = [one for one in page.named("tr") if "probe" in str(one.get("class")).split()]
    assert (
        sum("flagged" in str(one["class"]) for one in rows)
        == 2
        == len([one for one in page.named("span") if one.get("class") == "flag"])
    )


def test_flagged_families_come_first_and_within_a_family_flagged_probes():
    table = probes_table([probe("padding", 0.2, family="length"), *audit()["probes"]], "id", "caption")
    assert table
    # Largest flagged effects: openings 0.62, invariance 0.3, length none.
    assert [family.name for family in table.families] == ["openings", "invariance", "length"]
    down = [probe("a", -2.0), probe("b", 0.3), probe("c", 0.5, flagged=True)]
    rows = probes_table(down, "id", "caption")
    assert rows and [row.name for row in rows.families[0].rows] == ["c", "b", "a"]


def test_effects_stand_where_their_numbers_say():
    table = probes_table([probe("a", 0.5, flagged=True), probe("b", -0.25)], "id", "caption")
    assert table and not table.is_cut
    a, b = table.families[0].rows
    # Ends: -0.25 - 0.2 = -0.45 and 0.5 + 0.2 = 0.7, in tenths -0.5 and 0.7: 94 % of the width are 1.2 sd, from 3 % on.
    assert table.zero == 42.17  # 3 + 94 * 0.5 / 1.2
    assert table.bound == (34.33, 50.0)  # 3 + 94 * 0.4 / 1.2, 3 + 94 * 0.6 / 1.2
    assert a.bar and (a.bar.low, a.bar.middle, a.bar.high) == (73.5, 81.33, 89.17)  # 0.9, 1.0 and 1.1 of 1.2
    assert a.adjusted == (65.67, 97.0)
    assert a.bar.is_off and b.bar and b.bar.is_off


def test_what_no_finding_could_be_does_not_squeeze_the_scale():
    wide = [probe("bare_yes", -4.0), probe("opening_yes", 0.5, flagged=True)]
    table = probes_table(wide, "id", "caption")
    assert table and table.is_cut
    bare = next(row for row in table.families[0].rows if row.name == "bare_yes")
    assert bare.beyond == -1 and bare.bar and bare.bar.middle == 3.0
    # A flagged effect is seen whole, up to 3 sd.
    table = probes_table([probe("typos", -2.0, flagged=True, direction="either")], "id", "caption")
    assert table and not table.is_cut and table.ticks[0][1] == "-2"
    shared = probes_table([probe("x", 0.1)], "id", "caption", beside=wide)
    assert shared and shared.zero == probes_table(wide, "id", "caption").zero  # type: ignore[union-attr]


def test_the_edit_is_marked_word_by_word():
    html = render_report(of_audits(audit()))
    assert "<bdi><mark>Yes! </mark>It is Everest.</bdi>" in html and "<bdi>It is Everest.</bdi>" in html
    # Of texts that were cut the ends differ only because one is shown less far; texts with nothing in common are not marked.
    cut = example(original="one two three four five...", edited="Yes! one two three four f...")
    other = example(original="one two three", edited="Solution")
    html = render_report(of_audits(audit(probes=[probe("a", 0.5, examples=[cut, other])])))
    assert (
        "<bdi>one two three four five...</bdi>" in html
        and "<bdi><mark>Yes! </mark>one two three four f...</bdi>" in html
    )
    assert "<bdi>Solution</bdi>" in html


def test_conversations_are_shown_turn_by_turn_and_an_edited_prompt_beside_the_one_before():
    one = example(prompt="user\x1fHello\x1eassistant\x1fHi", prompt_before="system\x1fBe kind\x1euser\x1fHello")
    text = text_of(of_audits(audit(probes=[probe("a", 0.5, examples=[one])])))
    assert "Prompt, edited user : Hello assistant : Hi Prompt before system : Be kind user : Hello" in text


def test_hostile_texts_stay_texts():
    hostile = probe(
        HOSTILE,
        0.5,
        flagged=True,
        family=HOSTILE,
        says=HOSTILE,
        reading=HOSTILE,
        kind=HOSTILE,
        examples=[
            example(id=HOSTILE, prompt=HOSTILE, prompt_before=HOSTILE, original=HOSTILE, edited=f"Yes! {HOSTILE}")
        ],
    )
    document = audit(probes=[hostile], not_covered=[HOSTILE], model={"name": HOSTILE, "files": {HOSTILE: HOSTILE}})
    document["data"] = {"source": HOSTILE}
    document["verdict"] |= {
        "text": HOSTILE,
        "largest": {"name": HOSTILE},
        "limits": [{"limit": HOSTILE, "probe": HOSTILE, "limit_sd": 0.1, "effect_sd": 0.5, "ok": False}],
    }
    document["changes"]["probes"][0]["name"] = HOSTILE
    document["over_optimisation"]["selectors"][0]["name"] = HOSTILE
    document["over_optimisation"]["selectors"][2]["name"] = HOSTILE
    document["coverage"]["scripts"] = {HOSTILE: 1}
    document["shift"] = {HOSTILE: {HOSTILE: estimate(0.5, 0.4, 0.6)}, "words": [HOSTILE], "reading": HOSTILE}
    document[HOSTILE] = {"reading": HOSTILE, HOSTILE: HOSTILE}
    report = of_audits(document, document)
    report.document["models"][0]["name"] = HOSTILE
    for one in report.document["models"][0]["audits"]:
        one["name"] = HOSTILE
    html = render_report(report)
    page = Page(html)
    assert len(page.named("script")) == 1 and len(page.named("body")) == 1 and not page.named("img")
    assert "49" not in page.text.split() and "\\x00\\x1b[2J\\ud800" in page.text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    html.encode("utf-8")


def test_long_texts_are_clipped():
    long = "word " * 5000
    one = probe(
        "a", 0.5, says=long, reading=long, examples=[example(prompt=long, original=long, edited=f"Yes! {long}")]
    )
    document = audit(probes=[one | {"name": long}], not_covered=[long], prompt_use={"reading": long, "note": long})
    document["verdict"]["text"] = long
    document["verdict"]["limits"][0]["probe"] = document["changes"]["probes"][0]["name"] = long
    document["over_optimisation"]["selectors"][0]["name"] = long
    plain = len(render_report(of_audits(audit())))
    assert len(render_report(of_audits(document))) < plain + 20_000


@pytest.mark.parametrize("key", audit())
def test_every_key_but_the_verb_may_be_missing(key):
    document = {name: value for name, value in audit().items() if name != key or name == "verb"}
    Page(render_report(of_audits(document)))
    Page(render_report(of_audits(document, report=training())))


@pytest.mark.parametrize("key", probe("a", 0.5))
def test_every_key_of_a_probe_may_be_missing(key):
    one = {name: value for name, value in probe("a", 0.5).items() if name != key}
    Page(render_report(of_audits(audit(probes=[one]))))


def test_an_empty_audit_says_that_it_holds_no_verdict():
    assert "Audited; no verdict is stored." in text_of(of_audits({"verb": "audit"}))


def test_an_interval_without_ends_is_not_known(tmp_path):
    document = audit(probes=[probe("a", 0.5, effect_sd=estimate(0.5, float("-inf"), float("inf"), 1))])
    path = folder(tmp_path / "audit", document)
    assert "Infinity" in (path / "report.json").read_text(encoding="utf-8")
    written = write_report([path], out=tmp_path / "page")
    assert "+0.50 not known" in Page(written.page.read_text(encoding="utf-8")).text
    json.loads(
        (tmp_path / "page" / "report.json").read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name)
    )


def test_parts_that_are_not_known_here_are_shown_by_their_reading():
    (part,) = parts({"sound_checks": {"reading": "All sound.", "pitch": estimate(0.5, 0.4, 0.6)}, "seed": 3}, "id")
    assert part.title == "sound checks" and part.reading == "All sound." and part.numbers[0].label == "pitch"


def test_numbers_beyond_the_most_are_counted():
    (part,) = parts({"shift": {f"number {i}": estimate(0.5, 0.4, 0.6) for i in range(100)}}, "id")
    assert (len(part.numbers), part.num_left_out) == (80, 20)
    assert "20 more stand in report.json." in text_of(
        of_audits({"verb": "audit", "shift": {f"number {i}": estimate(0.5, 0.4, 0.6) for i in range(100)}})
    )


def test_curves_show_proxy_and_gold_with_intervals_and_controls_as_lines():
    (chart,) = optimisation_charts(audit()["over_optimisation"], "m")
    kinds = [str(shape.attributes["class"]) for shape in chart.shapes]
    assert [kinds.count(one) for one in ("dot main", "dot gold", "band main", "band gold")] == [3, 3, 1, 1]
    assert [one for one in kinds if one.startswith("line")] == [
        "line diagonal",
        "line control c1",
        "line main",
        "line gold",
    ]
    assert chart.title == "Best-of-n by small-rm" and chart.x.high == 0.64
    # n* = 2 lies at 0.19 of 0.64 nats on 420 units.
    (star,) = [shape for shape in chart.shapes if shape.text == "n*: 2"]
    assert star.attributes["x"] == pytest.approx(420 * 0.19 / 0.64, abs=0.01)
    assert optimisation_charts({"selectors": [{"name": "x", "curve": curve((0, 0), (1, 1), (2, 2))[:1]}]}, "m") == []


def test_an_audit_belongs_to_the_model_of_the_same_files(tmp_path):
    judged = folder(tmp_path / "judged", evaluation(), ROWS)
    renamed = folder(tmp_path / "renamed", audit(model={"name": "another name", "files": FILES}))
    namesake = folder(
        tmp_path / "namesake", audit(model={"name": "minilm-bt", "files": {"model.safetensors": "ef" * 32}})
    )
    report = read_report([renamed, judged, namesake])
    # The one of other files is another model, whatever its name.
    assert audit_names(report) == {"minilm-bt (judged)": ["pairs.jsonl"], "minilm-bt (namesake)": ["pairs.jsonl"]}
    assert report.models[1]["report"] == {"verb": "audit"}


def test_an_audit_belongs_to_the_run_that_holds_its_model(tmp_path):
    run = folder(tmp_path / "run", training() | {"model_folder": "model"}, ROWS)
    (run / "model").mkdir()
    (run / "model" / "rewardsmith.json").write_text(json.dumps({"files": FILES}), encoding="utf-8")
    audited = folder(tmp_path / "audit", audit())
    assert audit_names(read_report([run, audited])) == {"run": ["pairs.jsonl"]}
    # A run whose model folder is gone is known by its name.
    (run / "model" / "rewardsmith.json").unlink()
    assert audit_names(read_report([run, audited])) == {"run": [], "minilm-bt": ["pairs.jsonl"]}
    by_name = folder(tmp_path / "by-name", audit(model={"name": "run", "files": FILES}))
    assert audit_names(read_report([run, by_name])) == {"run": ["pairs.jsonl"]}


def test_a_name_that_two_models_have_names_neither(tmp_path):
    without = evaluation() | {"model": {"name": "twin", "files": {}}}
    folders = [folder(tmp_path / name, without) for name in ("x", "y")]
    audited = folder(tmp_path / "audit", audit(model={"name": "twin", "files": {}}))
    names = audit_names(read_report([*folders, audited]))
    assert names == {"twin (x)": [], "twin (y)": [], "twin (audit)": ["pairs.jsonl"]}


def test_audits_of_one_model_are_kept_apart_by_their_data(tmp_path):
    first = folder(tmp_path / "a", audit())
    second = folder(tmp_path / "b", audit(data={"source": "other.jsonl"}))
    third = folder(tmp_path / "c", audit())
    report = read_report([first, second, third])
    assert audit_names(report) == {"minilm-bt": ["pairs.jsonl (a)", "other.jsonl", "pairs.jsonl (c)"]}
    text = text_of(report)
    assert "minilm-bt on other.jsonl" in text and "On pairs.jsonl (c): 2 of 4 probes are flagged" in text
    ids = [attributes["id"] for _, attributes in Page(render_report(report)).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_an_audit_of_another_model_breaks_no_other_section(tmp_path):
    run = folder(tmp_path / "run", training(), ROWS)
    judged = folder(tmp_path / "judged", evaluation(), ROWS)
    alone = folder(tmp_path / "alone", audit(model={"name": "other", "files": {"a": "b"}}))
    before, after = read_report([run, judged]), read_report([run, judged, alone])
    assert after.document["comparisons"] == before.document["comparisons"]
    pages = [render_report(report) for report in (before, after)]
    sections = [Page(html).sections for html in pages]
    assert [one for one in sections[1] if one != "audit"] == sections[0]
    assert unpacked(pages[0]) == unpacked(pages[1])  # nothing to browse of a model that scored no pair

    def part(html: str, name: str) -> str:
        return html.partition(f'<section id="{name}"')[2].partition("</section>")[0]

    for name in ("numbers", "benchmarks", "training", "confidence", "learning", "slices", "counts"):
        assert part(pages[0], name) == part(pages[1], name), name


def test_a_page_with_audits_is_drawn_again_byte_for_byte_from_its_own_files(tmp_path):
    folders = [
        folder(tmp_path / "run", training(), ROWS),
        folder(tmp_path / "audit", audit(model={"name": "run", "files": {}})),
        folder(tmp_path / "alone", audit(model={"name": "other", "files": {}})),
    ]
    written = write_report(folders, out=tmp_path / "joint")
    before = written.page.read_bytes()
    assert written.num_models == 2
    written.page.unlink()
    assert write_report([tmp_path / "joint"]).page.read_bytes() == before


def test_an_audit_gets_its_page_beside_its_numbers_and_again_the_same(tmp_path):
    path = folder(tmp_path / "audit", audit())
    (path / "trials.jsonl").write_text("{}\n", encoding="utf-8")
    first = write_report([path]).page.read_bytes()
    assert write_report([path]).page.read_bytes() == first
    assert sorted(one.name for one in Path(path).iterdir()) == ["report.html", "report.json", "trials.jsonl"]


def test_other_folders_are_still_refused(tmp_path):
    with pytest.raises(DataError, match="train, evaluate, audit or report"):
        write_report([folder(tmp_path / "lint", {"verb": "lint"})])


def test_an_attached_audit_adds_its_sentences_to_those_of_the_evaluation():
    (verdict,) = verdicts.verdicts(of_audits(audit(), report=evaluation()))
    assert verdict.headline.subject == "accuracy"
    assert [one.subject for one in verdict.sentences[-3:]] == ["Audit", "Limits", "Changes"]


def test_nothing_of_the_auditing_code_is_needed():
    assert audits_of({"audits": []}, "id") == [] and audits_of({}, "id") == []
    source = Path(verdicts.__file__).parent
    assert not any("auditing" in path.read_text(encoding="utf-8") for path in source.glob("*.py"))
