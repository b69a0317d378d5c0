"""The report page: drawn from stored numbers alone, whole without any part, safe for hostile texts, the same again from its own folder."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from rewardsmith.data.schema import Preference
from rewardsmith.errors import DataError, OutputError, SettingsError
from rewardsmith.evaluation.pages import charts, verdicts
from rewardsmith.evaluation.pages.examples import MOST_PAIRS, pack
from rewardsmith.evaluation.pages.folders import Report, read_report
from rewardsmith.evaluation.pages.page import render_report, write_report
from rewardsmith.evaluation.pairwise import evaluate
from rewardsmith.pages.drawing import round_ticks
from tests import fakes
from tests.linting.test_page import Page as PlainPage

HOSTILE = "<script>alert(1)</script>\"' onload=x </div></body> {{ 7 * 7 }} {% raw %} </script> <img src=x onerror=alert(2)> &amp; \x00\x1b[2J\ud800"


class Page(PlainPage):
    """A page of which the script and the packed pairs are no text."""

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "script":
            super().handle_data(data)


def estimate(value: float, low: float, high: float, n: int = 200) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n, "method": "wilson"}


def probabilistic(ece: float, null_high: float) -> dict[str, Any]:
    return {
        "log_loss": estimate(0.61, 0.58, 0.64),
        "brier": estimate(0.21, 0.2, 0.22),
        "ece": estimate(ece, ece - 0.01, ece + 0.01),
        "ece_null": estimate(0.02, 0.01, null_high),
        "ece_excess": ece - 0.02,
        "ece_p_value": 0.004,
        "reliability": [
            {"confidence": 0.6, "accuracy": estimate(0.55, 0.45, 0.65, 100)},
            {"confidence": 0.75, "accuracy": estimate(0.7, 0.6, 0.8, 100)},
        ],
    }


def evaluation() -> dict[str, Any]:
    """A document of `evaluate`, by hand."""
    return {
        "verb": "evaluate",
        "model": {"name": "minilm-bt", "files": {"model.safetensors": "ab" * 32}},
        "data": {"source": "held_out.jsonl", "sha256": "cd" * 32, "rows": 210},
        "precision": "float32",
        "seed": 5,
        "versions": {"rewardsmith": "0.1.0", "python": "3.12.4"},
        "num_pairs": 200,
        "num_prompts": 180,
        "accuracy": estimate(0.713, 0.68, 0.744),
        "ties": estimate(0.005, 0.001, 0.02),
        "auc": estimate(0.77, 0.74, 0.8),
        **probabilistic(0.08, 0.04),
        "calibrated": {"temperature": 1.6, **probabilistic(0.03, 0.05)},
        "temperature_here": estimate(1.71, 1.5, 1.95),
        "selective": [
            {"share": 0.5, "least_margin": 1.0, "accuracy": estimate(0.8, 0.7, 0.9, 100)},
            {"share": 1.0, "least_margin": 0.1, "accuracy": estimate(0.713, 0.68, 0.744)},
        ],
        "mean_margin": estimate(0.9, 0.8, 1.0),
        "margins": {"edges": [-1.0, 0.0, 1.0, 2.0], "counts": [50, 100, 50]},
        "baselines": {"longer": estimate(0.61, 0.57, 0.65), "shorter": estimate(0.39, 0.35, 0.43)},
        "over_baselines": {"longer": estimate(0.103, 0.06, 0.146), "shorter": estimate(0.323, 0.28, 0.366)},
        "by": {"topic": {"law": estimate(0.5, 0.4, 0.6, 90), "art": estimate(0.9, 0.83, 0.95, 110)}},
        "slices": [
            {
                "column": "topic",
                "value": "law",
                "accuracy": estimate(0.5, 0.4, 0.6, 90),
                "difference": estimate(-0.4, -0.5, -0.3, 90),
                "p_value": 0.0001,
                "p_adjusted": 0.0002,
                "flagged": True,
            },
            {
                "column": "topic",
                "value": "art",
                "accuracy": estimate(0.9, 0.83, 0.95, 110),
                "difference": None,
                "p_value": None,
                "p_adjusted": None,
                "flagged": False,
            },
        ],
        "detectable_difference": {
            "difference": 0.0885,
            "num_pairs": 200,
            "num_prompts": 180,
            "power": 0.8,
            "discordance": 0.2,
        },
        "learning_curve": {
            "points": [
                {
                    "share": 0.5,
                    "num_pairs": 1000,
                    "accuracy": estimate(0.65, 0.6, 0.7),
                    "log_loss": estimate(0.65, 0.6, 0.7),
                },
                {
                    "share": 1.0,
                    "num_pairs": 2000,
                    "accuracy": estimate(0.7, 0.65, 0.75),
                    "log_loss": estimate(0.6, 0.55, 0.65),
                },
            ],
            "forecast": {
                "num_pairs": 4000,
                "accuracy": estimate(0.72, 0.66, 0.78),
                "log_loss": estimate(0.58, 0.5, 0.66),
            },
            "reading": "twice the data would lower the log-loss by 0.02 [-0.06, 0.10]",
        },
        "dropped": {"empty_answer": 3},
        "truncated": 12,
        "collapsed": 1,
        "special_strings": None,
        "labelled_ties": 7,
        "swap_test": {"rescored_pairs": 32, "accuracy": 0.75, "swapped_accuracy": 0.25, "max_difference": 0.0},
    }


def training() -> dict[str, Any]:
    """A document of `train`, by hand."""
    judged = {key: value for key, value in evaluation().items() if key not in ("verb", "model", "data", "versions")}
    return {
        "verb": "train",
        "training": {"kept_step": 20, "steps": 40, "train_seconds": 61.0},
        "dropped": {"total": 500, "counts": {"equal_answers": 4}},
        "dev_points": [
            {"step": 0, "log_loss": 0.69, "accuracy": 0.5},
            {"step": 20, "log_loss": 0.6, "accuracy": 0.68},
            {"step": 40, "log_loss": 0.63, "accuracy": 0.67},
        ],
        "history": [{"step": 10, "loss": 0.66, "accuracy": 0.6}, {"step": 30, "loss": 0.55, "accuracy": 0.75}],
        "overfitting": {"train": estimate(0.82, 0.8, 0.84, 1500), "eval": evaluation()["accuracy"]},
        "eval": judged,
    }


def benchmark() -> dict[str, Any]:
    return {
        "verb": "evaluate",
        "model": {"name": "minilm-bt", "files": {}},
        "benchmark": {
            "name": "rm-bench",
            "rule": "a tie is wrong",
            "source": "rm_bench.json",
            "headline": {"name": "overall", "value": 0.612, "key": "overall"},
            "published": {"hard": 0.386, "overall": 0.612},
            "honest": {"overall": estimate(0.613, 0.58, 0.64, 1327)},
            "chance": {"overall": 0.5},
            "missing": ["math"],
            "left_out": {"no answer": 3},
            "num_items": 1327,
        },
    }


def row(number: int, chosen: float, rejected: float, **more: Any) -> dict[str, Any]:
    return {
        "id": f"p{number}",
        "prompt": f"prompt {number}",
        "chosen": f"good {number}",
        "rejected": f"bad {number}",
        "score_chosen": chosen,
        "score_rejected": rejected,
        "metadata": {"topic": "law" if number % 2 else "art"},
    } | more


ROWS = [
    row(0, 1.5, 0.5),
    row(1, 0.25, 0.75, truncated_chosen=True, tokens_chosen=512, tokens_rejected=40, truncated_rejected=False),
    row(2, 1.0, 1.0),
    row(3, 2.0, 0.0, tie=True),
]


def folder(path: Path, document: dict[str, Any], rows: list[dict[str, Any]] | None = None) -> Path:
    path.mkdir(parents=True)
    (path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    if rows is not None:
        (path / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def report_of(document: dict[str, Any], rows: list[dict[str, Any]] | None = None) -> Report:
    """A report of one model without a folder."""
    keys = ("score_chosen", "score_rejected", "truncated_chosen", "truncated_rejected", "tokens_chosen")
    joint = [one | {"models": [{key: one[key] for key in keys if key in one}]} for one in rows or []]
    model = {"name": "model", "report": document, "manifest": None}
    pairs = {"num_rows": len(joint), "num_by_model": [len(joint)], "without_scores": 0}
    return Report({"verb": "report", "models": [model], "comparisons": [], "pairs": pairs}, joint)


def unpacked(html: str) -> dict[str, Any]:
    """The examples that a page holds."""
    found = re.search(r'<script type="application/octet-stream" id="packed">([A-Za-z0-9+/=]*)</script>', html)
    assert found
    data = base64.b64decode(found[1])
    assert data[4:8] == bytes(4)  # no time of making (RFC 1952, 2.3.1): the same pairs give the same page
    return dict(json.loads(gzip.decompress(data)))


def test_the_page_is_well_formed_and_needs_nothing_from_outside():
    html = render_report(report_of(training(), ROWS))
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert not {"link", "img", "iframe", "form", "object"} & {tag for tag, _ in page.tags}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        assert not {"src", "style"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href") is None or str(attributes["href"])[1:] in ids
        for reference in ("aria-labelledby", "aria-describedby", "for"):
            assert set(str(attributes.get(reference) or "").split()) <= set(ids)
    assert "http" not in re.sub(r'id="packed">[^<]*', "", html).replace("http-equiv", "")
    assert "url(" not in html and "@import" not in html


def test_headings_go_down_one_at_a_time_and_tables_and_charts_are_named():
    page = Page(render_report(report_of(training(), ROWS)))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    # A figure without a model's heading above it stands below its section.
    assert all(after <= before + 2 for before, after in zip(levels, levels[1:], strict=False))
    assert len(page.named("caption")) == len(page.named("table"))
    drawn = [one for one in page.named("svg") if one.get("role") == "img"]
    # Two of training, two of reliability, selective, margins, two of learning.
    assert len(drawn) == 8 == len(page.named("desc"))


def test_only_the_style_and_script_of_the_page_itself_may_act():
    html = render_report(report_of(evaluation(), ROWS))
    policy = next(one for one in Page(html).named("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none'; ") and "unsafe" not in str(policy["content"])
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert text
        digest = base64.b64encode(hashlib.sha256(text[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in str(policy["content"])
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|fetch\(|XMLHttp|import\(", script[1]
    )


@pytest.mark.parametrize(
    ("keys", "section"),
    [
        (("accuracy", "baselines", "over_baselines"), "numbers"),
        (("reliability", "calibrated", "selective", "margins"), "confidence"),
        (("learning_curve",), "learning"),
        (("slices", "by"), "slices"),
        (("num_pairs",), "counts"),
    ],
)
def test_a_section_is_there_with_its_keys_and_not_without_them(keys, section):
    document = evaluation()
    assert section in Page(render_report(report_of(document))).sections
    for key in keys:
        document.pop(key)
    assert section not in Page(render_report(report_of(document))).sections


def test_training_benchmarks_and_examples_are_sections_of_their_own():
    assert {"training", "examples"} <= set(Page(render_report(report_of(training(), ROWS))).sections)
    assert not {"training", "examples"} & set(Page(render_report(report_of(evaluation()))).sections)
    assert Page(render_report(report_of(benchmark()))).sections == ["verdict", "benchmarks", "provenance"]


@pytest.mark.parametrize("make", [evaluation, training, benchmark])
def test_every_key_but_the_verb_may_be_missing(make):
    for key in make():
        document = {name: value for name, value in make().items() if name != key or name == "verb"}
        Page(render_report(report_of(document, ROWS)))
    Page(render_report(report_of({"verb": make()["verb"]})))


def test_a_run_without_held_out_pairs_says_so():
    text = Page(render_report(report_of(training() | {"eval": None}))).text
    assert "Trained, and judged on no held-out pairs." in text


@pytest.mark.parametrize(
    "number",
    [
        "Right on 71 of 100 pairs, against 61 for choosing the longer answer.",
        "71.3 % [68.0, 74.4] of 200 held-out pairs of 180 prompts",
        "10.3 points above the best rule",
        "+10.3 points [+6.0, +14.6]",
        # At the stored temperature 0.03 lies below 0.05, the top of what chance shows.
        "Nothing here shows its probabilities at the stored temperature 1.60 to be off: calibration error 3.0 % [2.0, 4.0]",
        "1 of 2 slices is worse than the rest beyond chance, with so many looked at: topic = law (50.0 % [40.0, 60.0])",
        "Twice the data would lower the log-loss by 0.02 [-0.06, 0.10].",
        # 12 of 200 pairs and 7 labelled ties: 12 / 207 = 5.8 %.
        "12 of 207 pairs (5.8 %) were longer than the model reads, and were cut. 1 pair reads the same",
        "must differ by 8.8 points or more to be told apart in 80 of 100 tries",
        "choosing the shorter answer 39.0 % [35.0, 43.0] 200",
        "log-loss 0.610 [0.580, 0.640] 200 0.693",
        "calibrated: calibration error 3.0 % [2.0, 4.0] 200",
        "mean margin 0.900 [0.800, 1.000]",
        "the calibration error is 8.0 % [7.0, 9.0]",
        "+6.0 points apart (p = 0.004)",
        "75.0 % 70.0 % [60.0, 80.0] 100",
        "50 % 1.000 80.0 % [70.0, 90.0] 100",
        "-1 to 0 50",
        "4,000 (forecast) 72.0 % [66.0, 78.0] 200",
        "topic = law flagged 50.0 % [40.0, 60.0] -40.0 [-50.0, -30.0] < 0.001 90",
        "topic = art 90.0 % [83.0, 95.0] not tested 110",
        "dropped: empty answer 3",
        "labelled as ties (outside accuracy) 7",
        "read as plain text) not known",
        "32 pairs: accuracy 0.750 + 0.250 = 1; the same scores",
        "model.safetensors " + "ab" * 32,
        "judged on: sha256 " + "cd" * 32,
    ],
)
def test_the_page_shows_numbers_as_given(number):
    assert number in Page(render_report(report_of(evaluation()))).text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    "number",
    [
        "82.0 % [80.0, 84.0] on pairs it was trained on, 71.3 % [68.0, 74.4] on held-out pairs.",
        "kept the weights of step 20",
        "dropped: equal answers 4 pairs",
        "20 0.6000",
        "30 0.5500",
    ],
)
def test_the_page_shows_how_training_went(number):
    assert number in Page(render_report(report_of(training()))).text.replace("\u00a0", " ")


def test_a_benchmark_stands_by_its_own_rule_and_with_its_interval():
    text = Page(render_report(report_of(benchmark()))).text
    assert "rm-bench, overall: 0.612." in text
    assert "overall 0.612 0.613 [0.580, 0.640] 1,327 0.500" in text and "hard 0.386" in text
    assert "missing: math" in text and "left out: 3 rows, no answer" in text


def test_a_document_without_tests_of_slices_shows_accuracies_the_lowest_first():
    document = evaluation()
    del document["slices"]
    document["by"]["topic"]["sport"] = estimate(0.7, 0.6, 0.8, 20)
    text = Page(render_report(report_of(document))).text
    places = [text.index(f"topic = {value}") for value in ("law", "sport", "art")]
    assert places == sorted(places) and "p, adjusted" not in text


@pytest.mark.parametrize(
    ("accuracy", "over", "tone", "words"),
    [
        ((0.7, 0.65, 0.75), (0.1, 0.05, 0.15), "good", "against 61 for choosing the longer answer"),
        ((0.62, 0.57, 0.67), (0.01, -0.03, 0.05), "unclear", "not shown to be better than choosing the longer answer"),
        ((0.55, 0.51, 0.59), (-0.06, -0.1, -0.02), "bad", "fewer than the 61 of choosing the longer answer"),
        ((0.52, 0.47, 0.57), (-0.09, -0.1, -0.02), "unclear", "not shown to be better than tossing a coin"),
        ((0.4, 0.35, 0.45), (-0.21, -0.3, -0.1), "bad", "worse than tossing a coin"),
    ],
)
def test_the_first_sentence_claims_only_what_the_intervals_show(accuracy, over, tone, words):
    document = evaluation() | {"accuracy": estimate(*accuracy)}
    document["over_baselines"]["longer"] = estimate(*over)
    headline = verdicts.verdicts(report_of(document))[0].headline
    assert headline.tone == tone and words in headline.text


def test_confidence_is_judged_at_the_stored_temperature_where_there_is_one():
    def sentence(document: dict[str, Any]) -> verdicts.Sentence:
        return next(one for one in verdicts.verdicts(report_of(document))[0].sentences if one.subject == "Confidence")

    assert sentence(evaluation()).tone == "good"  # 0.03 <= 0.05
    raw = sentence(evaluation() | {"calibrated": None})  # 0.08 > 0.04
    assert raw.tone == "bad" and "too sure of itself: the temperature that fits here is 1.71 [1.50, 1.95]" in raw.text


def test_charts_stand_where_their_numbers_say():
    raw, calibrated = charts.reliability_charts(evaluation(), "m")
    dots = [shape.attributes for shape in raw.shapes if shape.tag == "circle"]
    # x from 0.5 to 1 over 420: 0.6 -> 84, 0.75 -> 210. y from 0.4 (the lowest bound 0.45, in tens) to 1 over 240, upward:
    # 0.55 -> 240 * (1 - 0.15 / 0.6) = 180; 0.7 -> 120.
    assert [(dot["cx"], dot["cy"]) for dot in dots] == [(84.0, 180.0), (210.0, 120.0)]
    whiskers = [shape.attributes for shape in raw.shapes if "whisker" in str(shape.attributes["class"])]
    # 0.45 -> 220, 0.65 -> 140; 0.6 -> 160, 0.8 -> 80.
    assert [(one["y1"], one["y2"]) for one in whiskers] == [(220.0, 140.0), (160.0, 80.0)]
    assert calibrated.title == "At the stored temperature 1.60"
    margins = charts.margin_chart(evaluation(), "m")
    assert margins
    columns = [shape.attributes for shape in margins.shapes if shape.tag == "rect"]
    # Three bins of 140 each; 50 of 100 stands half up. Left of 0 the model is wrong.
    assert [(one["class"], one["x"], one["y"]) for one in columns] == [
        ("column wrong", 0.0, 120.0),
        ("column right", 140.0, 0.0),
        ("column right", 280.0, 120.0),
    ]


def test_every_drawn_estimate_has_its_interval():
    for chart in charts.learning_charts(evaluation(), "m"):
        kinds = [str(shape.attributes["class"]).split()[0] for shape in chart.shapes]
        assert kinds.count("dot") == kinds.count("whisker") == 3 and "band" in kinds
    selective = charts.selective_chart(evaluation(), "m")
    assert selective and [shape.attributes["class"] for shape in selective.shapes] == ["band main", "line main"]


def test_ticks_are_round_and_few():
    assert round_ticks(0.38, 0.83) == [0.4, 0.5, 0.6, 0.7, 0.8]
    assert round_ticks(-7, 1234) == [0.0, 500.0, 1000.0]
    assert round_ticks(2, 2) == [2]


def test_hostile_texts_stay_texts():
    document = training()
    document["eval"]["slices"][0].update(column=HOSTILE, value=HOSTILE)
    document["eval"]["learning_curve"]["reading"] = HOSTILE
    document["dropped"]["counts"] = {HOSTILE: 1}
    rows = [row(0, 1.0, 0.0) | dict.fromkeys(("id", "prompt", "chosen", "rejected"), HOSTILE)]
    rows[0]["metadata"] = {HOSTILE: HOSTILE}
    report = report_of(document, rows)
    report.document["models"][0] |= {
        "name": HOSTILE,
        "manifest": {"command": [HOSTILE], "settings": {HOSTILE: HOSTILE}},
    }
    html = render_report(report)
    page = Page(html)
    # The packed pairs and the script of ours.
    assert len(page.named("script")) == 2 and len(page.named("body")) == 1 and not page.named("img")
    assert "49" not in page.text.split()
    assert "\\x00\\x1b[2J\\ud800" in page.text
    html.encode("utf-8")
    held = unpacked(html)
    assert "alert(1)" not in html.partition('id="packed"')[2].partition("</script>")[0]
    # Kept word for word but for what no browser shows, which is written out.
    assert held["texts"] == [HOSTILE.replace("\x00\x1b", "\\x00\\x1b").replace("\ud800", "\\ud800")]


def test_the_examples_hold_every_pair_with_its_numbers_worked_out():
    held = unpacked(render_report(report_of(evaluation(), ROWS)))
    assert [one["id"] for one in held["rows"]] == ["p0", "p1", "p2", "p3"]
    # Margins 1, -0.5, 0, 2; at the stored temperature 1.6 the first is 1 / (1 + exp(-1 / 1.6)) = 0.6514.
    assert [one["s"][0][2] for one in held["rows"]] == [1.0, -0.5, 0.0, 2.0]
    assert held["rows"][0]["s"][0][3] == 0.6514 and held["temperatures"] == [1.6]
    assert held["rows"][1]["s"][0][4:] == [512, None, 1, 0]
    assert held["filters"] == {"topic": ["art", "law"]}
    assert [one.get("tie") for one in held["rows"]] == [None, None, None, 1]
    assert held["texts"][held["rows"][0]["c"]] == "good 0"


def test_attributions_are_shaded_by_their_share_of_the_largest():
    words = {"method": "occlusion", "score": 1.0, "baseline": 0.2, "sum": 0.75, "gap": 0.05}
    scores = {
        "score_chosen": 1.0,
        "score_rejected": 0.0,
        "attributions": {
            "chosen": words | {"tokens": [["a ", 0.5], ["b", -0.25]]},
            "rejected": words | {"tokens": [["c", 0.05]]},
        },
    }
    report = report_of(evaluation(), [row(0, 1.0, 0.0)])
    report.rows[0]["models"] = [scores]
    held = unpacked(render_report(report))["rows"][0]["a"][0]
    # Fifths of 0.5: 5; -2.5, which rounds to even; 0.5, to 0.
    assert held["chosen"]["tokens"] == [["a ", 0.5, 5], ["b", -0.25, -2]]
    assert held["rejected"]["tokens"] == [["c", 0.05, 0]] and held["chosen"]["gap"] == 0.05


def test_rows_without_texts_show_ids_and_scores(tmp_path):
    bare = [{"id": "a", "score_chosen": 1.0, "score_rejected": 0.0}]
    one = folder(tmp_path / "one", evaluation(), bare)
    html = Path(write_report([one]).page).read_text(encoding="utf-8")
    assert "Their texts were not stored" in html and unpacked(html)["rows"][0]["id"] == "a"
    two = folder(tmp_path / "two", evaluation(), bare)
    # Equal ids alone do not make two pairs the same.
    assert read_report([one, two]).document["comparisons"][0]["num_pairs"] == 0


def test_a_page_that_no_phone_would_open_shows_the_first_pairs_and_says_so():
    rows = [{"id": str(i), "models": [{"score_chosen": 1.0, "score_rejected": 0.0}]} for i in range(MOST_PAIRS + 5)]
    report = report_of(evaluation())
    html = render_report(Report(report.document, rows))
    assert "The first 20,000 of 20,005 pairs" in html and len(unpacked(html)["rows"]) == MOST_PAIRS


def test_two_models_are_compared_on_the_pairs_that_they_share(tmp_path):
    # Shared: 40 pairs of both; of p40 the texts differ; p41 is scored by one alone. A is right on all, B on every second.
    first = [row(i, 1.0, 0.0) for i in range(42)]
    second = [row(i, 1.0, 0.0 if i % 2 else 2.0) for i in range(40)] + [row(40, 1.0, 0.0) | {"chosen": "other"}]
    tie = row(50, 1.0, 0.0, tie=True)  # no winner, so no test of one
    a = folder(tmp_path / "a", training(), [*first, tie])
    b = folder(tmp_path / "b", evaluation(), [*second, tie])
    report = read_report([a, b])
    found = report.document["comparisons"][0]
    assert [model["name"] for model in report.models] == ["a", "minilm-bt"]
    assert found["num_pairs"] == 40 and found["difference"]["value"] == 0.5
    assert found["discordant"] == {"only_a": 20, "only_b": 0}
    # 42 of A, the other p40 of B, and the tie.
    assert len(report.rows) == 44 and report.document["pairs"]["num_by_model"] == [43, 42]
    text = Page(render_report(report)).text
    assert "a is right more often than minilm-bt, by 50.0 points." in text
    assert "Only a is right on 20, only minilm-bt on 0." in text


def test_models_of_one_name_are_told_apart(tmp_path):
    folders = [folder(tmp_path / name, evaluation(), ROWS) for name in ("x", "y")]
    assert [model["name"] for model in read_report(folders).models] == ["minilm-bt (x)", "minilm-bt (y)"]
    twice = [folders[0], folder(tmp_path / "deep" / "x", evaluation(), ROWS)]
    assert [model["name"] for model in read_report(twice).models] == ["minilm-bt (x) 1", "minilm-bt (x) 2"]


def test_a_report_folder_is_drawn_again_byte_for_byte_from_its_own_files(tmp_path):
    runs = [folder(tmp_path / "a", training(), ROWS), folder(tmp_path / "b", evaluation(), ROWS)]
    written = write_report(runs, out=tmp_path / "joint")
    assert sorted(path.name for path in (tmp_path / "joint").iterdir()) == ["pairs.jsonl", "report.html", "report.json"]
    before = written.page.read_bytes()
    for run in runs:  # nothing but the folder itself is needed
        for path in run.iterdir():
            path.unlink()
    written.page.unlink()
    again = write_report([tmp_path / "joint"])
    assert again.page == written.page and again.page.read_bytes() == before
    assert again.as_dict() == {
        "page": "report.html",
        "folder": "joint",
        "num_models": 2,
        "num_pairs": 4,
        "num_bytes": len(before),
    }


def test_a_run_gets_its_page_beside_its_numbers_and_again_the_same(tmp_path):
    run = folder(tmp_path / "run", training(), ROWS)
    numbers = (run / "report.json").read_bytes()
    first = write_report([run]).page.read_bytes()
    assert write_report([run]).page.read_bytes() == first
    assert (run / "report.json").read_bytes() == numbers and (run / "report.html").exists()


def test_what_is_not_ours_is_neither_read_nor_replaced(tmp_path):
    run = folder(tmp_path / "run", evaluation(), ROWS)
    with pytest.raises(SettingsError, match="--out"):
        write_report([run, run])
    with pytest.raises(DataError, match="holds none"):
        write_report([tmp_path])
    with pytest.raises(DataError, match="of lint"):
        write_report([folder(tmp_path / "lint", {"verb": "lint"})])
    with pytest.raises(OutputError, match="neither is nor holds an input"):
        write_report([run], out=tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="which exists"):
        write_report([run], out=tmp_path / "mine", overwrite=True)
    write_report([run], out=tmp_path / "report")
    with pytest.raises(OutputError, match="which exists"):
        write_report([run], out=tmp_path / "report")
    write_report([run], out=tmp_path / "report", overwrite=True)
    with pytest.raises(DataError, match="itself a report"):
        write_report([run, tmp_path / "report"], out=tmp_path / "both")
    (run / "report.html").write_text("my notes", encoding="utf-8")
    with pytest.raises(OutputError, match="no report made"):
        write_report([run])
    assert (run / "report.html").read_text(encoding="utf-8") == "my notes"


@pytest.mark.parametrize("line", ["{", "[1]", '{"id": "a", "score_chosen": NaN, "score_rejected": 0}'])
def test_a_broken_line_of_pairs_is_an_error_that_names_the_file(tmp_path, line):
    run = folder(tmp_path / "run", evaluation(), [])
    (run / "pairs.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs\.jsonl"):
        write_report([run])


def test_rows_without_two_scores_are_counted(tmp_path):
    run = folder(tmp_path / "run", evaluation(), [*ROWS, {"id": "group", "scores": [1.0, 2.0]}])
    assert "Rows without two scores, which are not shown: 1." in write_report([run]).page.read_text(encoding="utf-8")


def test_a_real_evaluation_makes_a_whole_page():
    # Lengths 20 to 59 against 10, 12, ..., 58, never the same parity where they could be equal: no ties; mostly the longer one is chosen.
    pairs = [
        Preference(
            f"p{i}", f"q{i % 40}", "x" * (21 + 2 * (i % 20)), "y" * (10 + 2 * (i % 25)), metadata={"k": str(i % 2)}
        )
        for i in range(120)
    ]
    found = evaluate(fakes.likes_long_answers(), pairs, temperature=1.5)
    rows = [
        {"id": pair.id, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} | scored
        for pair, scored in zip(pairs, found.rows(), strict=True)
    ]
    report = report_of({"verb": "evaluate", "model": {"name": "long", "files": {}}, **found.document}, rows)
    page = Page(render_report(report))
    assert {"numbers", "confidence", "slices", "counts", "examples", "provenance"} <= set(page.sections)
    assert "not shown to be better than choosing the longer answer" in page.text
    assert pack(report).num_shown == 120
