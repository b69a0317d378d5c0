"""The report page in a real browser, from disk and offline: what it shows, what it finds, and what hostile texts cannot do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewardsmith.data import io
from rewardsmith.evaluation.pages.page import write_report
from tests.conftest import real_data
from tests.evaluation.test_audit_page import audit, example, probe
from tests.evaluation.test_report_page import HOSTILE, evaluation, folder, row, training

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `dev`)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NUM_PAIRS = 60


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        yield started
        started.close()


class Opened:
    """A page in a context of its own, offline; what it complained of, and what it asked for beside itself."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1280, scheme: str = "light", link: str = "") -> None:
        """Open and wait until the examples are unpacked."""
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("a dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri() + link)
        self.page.wait_for_selector("html[data-ready]")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    @property
    def found(self) -> str:
        return str(self.page.inner_text("#found"))

    @property
    def shown(self) -> str:
        return str(self.page.inner_text("#pair h3"))

    def search(self, text: str) -> str:
        before = self.page.evaluate("document.getElementById('found').textContent = ''")
        assert before == ""
        self.page.fill("#query", text)
        self.page.wait_for_selector(
            "#found:not(:empty)"
        )  # by selector: waiting for a function would need eval, which the page forbids
        return self.found

    def press(self, preset: str) -> str:
        self.page.click(f"[data-preset={preset}]")
        return self.found


def rows() -> list[dict[str, Any]]:
    """Sixty pairs: every fifth wrong, p7 a tie, p9 labelled as a tie, p11 cut, p13 hostile, p15 a conversation; margins of i / 10 + 0.1."""
    found = []
    for i in range(NUM_PAIRS):
        margin = (i / 10 + 0.1) * (-1 if i % 5 == 0 else 1)
        found.append(row(i, margin if i != 7 else 0.0, 0.0, truncated_chosen=i == 11, truncated_rejected=False))
    found[9]["tie"] = True
    found[13] |= {"prompt": HOSTILE, "chosen": HOSTILE, "rejected": HOSTILE, "metadata": {"topic": HOSTILE}}
    found[15]["prompt"] = [{"role": "system", "content": "Be BRIEF."}, {"role": "user", "content": "Ünïcode 今何時"}]
    found[17]["attributions"] = {
        side: {"method": "occlusion", "score": 1.0, "baseline": 0.25, "sum": 0.7, "gap": 0.05, "tokens": words}
        for side, words in (("chosen", [["good ", 0.5], ["17", -0.2]]), ("rejected", [["bad 17", 0.1]]))
    }
    return found


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([folder(tmp_path_factory.mktemp("report") / "run", training(), rows())]).page


def test_it_opens_from_disk_without_an_error_or_a_request(browser, page_file):
    with Opened(browser, page_file) as opened:
        assert opened.page.inner_text("h1") == "run"
        assert opened.found == "60 of 60 pairs" and opened.shown == "p0"
        assert opened.complaints == [] and opened.requests == [page_file.as_uri()]


def test_filters_show_the_pairs_that_they_name(browser, page_file):
    expected = [
        ("all", 60, "p0"),
        ("wrong", 12, "p0"),  # 0, 5, ..., 55
        ("confident", 12, "p55"),  # the lowest margin, -(5.5 + 0.1)
        ("closest", 60, "p7"),  # 0
        ("ties", 1, "p7"),
        ("cut", 1, "p11"),
        ("labelled", 1, "p9"),
        ("words", 1, "p17"),
    ]
    with Opened(browser, page_file) as opened:
        for preset, number, first in expected:
            assert opened.press(preset) == f"{number} of 60 pairs"
            assert opened.shown == first
            chip = opened.page.inner_text(f"[data-preset={preset}]")
            assert preset in ("closest", "confident") or chip.split()[-1] == str(number)


def test_search_finds_every_text_and_filters_by_columns_add_to_it(browser, page_file):
    with Opened(browser, page_file) as opened:
        # 1, 10 to 19, 21, 31, 41, 51 hold a 1; of these p13 and p15 do not hold the word.
        assert opened.search("prompt 1") == "13 of 60 pairs"
        assert opened.search("nowhere at all") == "0 of 60 pairs"
        assert "No pair is left" in opened.page.inner_text("#pair")
        assert opened.search("be brief") == "1 of 60 pairs" and opened.shown == "p15"
        assert opened.page.inner_text("mark").lower() == "be"
        assert opened.search("ÜNÏCODE 今何時") == "1 of 60 pairs"
        assert opened.search('"good 2"') == "11 of 60 pairs"  # 2 and 20 to 29
        opened.page.select_option("#column", "topic")
        opened.page.select_option("#value", "law")
        assert opened.found == "5 of 60 pairs"  # 21, 23, ..., 29
        assert opened.press("wrong") == "1 of 60 pairs" and opened.shown == "p25"
        opened.page.select_option("#order", "best")
        opened.page.fill("#query", "")
        # Odd multiples of five but p15, of which every text of ours is in place: 5, 15, ..., 55; the least wrong is p5.
        opened.page.wait_for_selector("#found:text-is('6 of 60 pairs')")
        opened.page.click("#list .item")
        assert opened.shown == "p5"
        assert opened.complaints == []


def test_hostile_texts_show_as_text_and_run_nothing(browser, page_file):
    with Opened(browser, page_file, link="#pair=p13") as opened:
        expected = HOSTILE.replace("\x00\x1b", "\\x00\\x1b").replace("\ud800", "\\ud800")
        texts = opened.page.eval_on_selector_all("#pair .text", "all => all.map(one => one.textContent)")
        assert texts == [expected] * 3
        assert (
            opened.page.eval_on_selector_all("#pair script, #pair img, #list script, #list img", "all => all.length")
            == 0
        )
        opened.search("<script> onerror=alert(2)")
        assert opened.found == "1 of 60 pairs"
        assert opened.complaints == [] and opened.requests == [page_file.as_uri()]


def test_a_link_leads_to_its_pair_and_a_choice_makes_a_link(browser, page_file):
    with Opened(browser, page_file, link="#pair=p42") as opened:
        assert opened.shown == "p42"
        assert opened.page.get_attribute("#item-42", "aria-selected") == "true"
        opened.press("wrong")
        opened.page.evaluate("location.hash = '#pair=p8'")  # right: the filter is taken away
        opened.page.wait_for_selector("#pair h3 bdi:text-is('p8')")
        assert opened.found == "60 of 60 pairs"
        opened.page.click("text=Next")
        assert opened.shown == "p9" and opened.page.evaluate("location.hash") == "#pair=p9"
        assert opened.page.evaluate("document.activeElement.textContent") == "Next"


def test_keys_move_through_the_pairs(browser, page_file):
    with Opened(browser, page_file) as opened:
        opened.page.focus("#list")
        for key, shown in (
            ("j", "p1"),
            ("ArrowDown", "p2"),
            ("k", "p1"),
            ("ArrowUp", "p0"),
            ("k", "p0"),
            ("End", "p59"),
            ("Home", "p0"),
        ):
            opened.page.keyboard.press(key)
            assert opened.shown == shown, key
        opened.page.keyboard.press("/")
        assert opened.page.evaluate("document.activeElement.id") == "query"
        opened.page.keyboard.type("jjj")  # letters, not steps
        assert opened.page.input_value("#query") == "jjj"
        # Only the rows in sight are drawn.
        opened.page.fill("#query", "")
        assert opened.page.eval_on_selector_all("#list .item", "all => all.length") < 40


def test_words_are_shaded_with_method_sum_and_gap(browser, page_file):
    with Opened(browser, page_file, link="#pair=p17") as opened:
        opened.page.click("text=Show which words moved the score")
        assert opened.page.eval_on_selector_all(
            ".side .word", "all => all.map(one => [one.textContent, one.className, one.title])"
        ) == [["good ", "word u5", "+0.500"], ["17", "word d2", "-0.200"], ["bad 17", "word u1", "+0.100"]]
        assert "method: occlusion, baseline +0.250, sum +0.700, gap +0.050" in opened.page.inner_text(".side.chosen")


def test_a_page_is_no_wider_than_a_phone(browser, page_file):
    for link in ("", "#pair=p13"):
        with Opened(browser, page_file, width=360, link=link) as opened:
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
            # Sentences use the width that there is.
            assert opened.page.query_selector(".said").bounding_box()["width"] > 300
            boxes = [opened.page.query_selector(f".side.{side}").bounding_box() for side in ("chosen", "rejected")]
            assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]  # stacked
    with Opened(browser, page_file) as opened:
        boxes = [opened.page.query_selector(f".side.{side}").bounding_box() for side in ("chosen", "rejected")]
        assert boxes[0]["y"] == boxes[1]["y"]  # side by side


_CONTRAST = """selectors => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = one => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return selectors.map(selector => {
    const one = document.querySelector(selector);
    const [a, b] = [light(getComputedStyle(one).color), light(ground(one))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_in_light_and_dark(browser, page_file, scheme):
    selectors = [".headline", ".said", ".tone", ".quiet", "nav a", ".number", ".flag", ".side.chosen .text"]
    selectors += [".side.rejected .text", ".side.rejected h4", ".facts-line", ".state", ".chips [aria-pressed=true]"]
    with Opened(browser, page_file, scheme=scheme) as opened:
        background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        contrasts = dict(zip(selectors, opened.page.evaluate(_CONTRAST, selectors), strict=True))
    # WCAG 2.2, 1.4.3: 4.5 to 1.
    assert min(contrasts.values()) >= 4.5, contrasts


def test_slices_can_be_found(browser, tmp_path):
    document = evaluation()
    document["slices"] = [document["slices"][0] | {"value": f"value {i}", "flagged": i == 19} for i in range(20)]
    path = write_report([folder(tmp_path / "run", document, rows())]).page
    visible = "all => all.filter(one => one.offsetParent !== null).length"
    with Opened(browser, path) as opened:
        # Twelve, and the flagged one.
        assert opened.page.eval_on_selector_all(".slice-table tbody tr", visible) == 13
        opened.page.fill(".find input", "VALUE 1")
        assert opened.page.inner_text(".find output") == "11 of 20"  # 1 and 10 to 19
        assert opened.page.eval_on_selector_all(".slice-table tbody tr", visible) == 11


def test_models_side_by_side_show_where_they_disagree(browser, tmp_path):
    # The second model is right on all: they part on the twelve that the first gets wrong and on its tie p7; p9 is labelled a tie.
    second = [one | {"score_chosen": 1.0, "score_rejected": 0.0} for one in rows()]
    runs = [folder(tmp_path / "a", training(), rows()), folder(tmp_path / "b", evaluation(), second[:50])]
    with Opened(browser, write_report(runs, out=tmp_path / "joint").page) as opened:
        assert opened.press("divided") == "11 of 60 pairs"  # without 50 and 55, which the second did not score
        assert opened.shown == "p45"  # -4.6 against 1
        assert "minilm-bt 1.000 0.000 +1.000" in " ".join(opened.page.inner_text(".by-model").split())
        opened.page.select_option("#model", label="minilm-bt")
        assert opened.found == "11 of 50 pairs"
        assert opened.press("wrong") == "0 of 50 pairs"
        assert opened.complaints == []
        opened.page.set_viewport_size({"width": 360, "height": 700})
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.fixture(scope="module")
def audit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its audit with a hostile probe and a hostile example, and the audit of another model."""
    place = tmp_path_factory.mktemp("audits")
    hostile = example(prompt=HOSTILE, original=HOSTILE, edited=f"Yes! {HOSTILE}")
    found = audit(probes=[*audit()["probes"], probe(HOSTILE, -0.4, says=HOSTILE, examples=[hostile, example()])])
    runs = [
        folder(place / "run", training(), rows()),
        folder(place / "audit", found | {"model": {"name": "run", "files": {}}}),
        folder(place / "other", audit(model={"name": "other", "files": {}})),
    ]
    return write_report(runs, out=place / "joint").page


def test_an_audit_opens_its_examples_and_hostile_texts_run_nothing(browser, audit_file):
    with Opened(browser, audit_file) as opened:
        assert not opened.page.is_visible("#audit .example")
        last = opened.page.locator("#audit .told details").nth(
            2
        )  # openings: opening_yes, opening_colon, the hostile one
        last.locator("summary").click()
        texts = last.locator(".version .text").all_text_contents()
        assert texts[1].startswith("Yes! <script>alert(1)</script>") and texts[3] == "Yes! It is Everest."
        assert last.locator("mark").all_text_contents() == ["Yes! ", "Yes! "]
        assert opened.page.locator("#audit script, #audit img").count() == 0
        # Two tables of probes of each audit: all bars of a table stand on one scale.
        lefts = opened.page.eval_on_selector_all(
            "#audit .probes",
            "all => all.map(table => new Set([...table.querySelectorAll('.half')].map(one => one.getBoundingClientRect().left)).size)",
        )
        assert lefts == [1] * 6
        assert opened.complaints == [] and opened.requests == [audit_file.as_uri()]


def test_audits_are_no_wider_than_a_phone_or_a_sheet(browser, audit_file):
    with Opened(browser, audit_file, width=360) as opened:
        opened.page.eval_on_selector_all("#audit details", "all => all.forEach(one => { one.open = true; })")
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
        assert opened.page.query_selector("#audit .probe .drawn").bounding_box()["width"] > 280
    with Opened(browser, audit_file, width=720) as opened:  # A4 without its margins
        opened.page.emulate_media(media="print")
        boxes = opened.page.eval_on_selector_all(
            "#audit table", "all => all.map(one => one.getBoundingClientRect().right)"
        )
        assert len(boxes) > 10 and max(boxes) <= 720


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_audits_can_be_read_in_light_and_dark(browser, audit_file, scheme):
    selectors = [
        "#audit .flag",
        ".probes th",
        ".probes .number",
        ".told summary",
        "#audit .legend",
        ".example mark",
        ".version h6",
    ]
    with Opened(browser, audit_file, scheme=scheme) as opened:
        contrasts = dict(zip(selectors, opened.page.evaluate(_CONTRAST, selectors), strict=True))
    assert min(contrasts.values()) >= 4.5, contrasts


def test_without_scripts_all_of_an_audit_is_there(browser, audit_file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(audit_file.as_uri())
    page.locator("#audit .told summary").first.click()
    assert page.locator("#audit .example").first.is_visible() and "Not covered" in page.inner_text("#audit")
    context.close()


def test_a_browser_that_cannot_unpack_says_so(browser, page_file):
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("delete globalThis.DecompressionStream")
    page.goto(page_file.as_uri())
    assert "This browser cannot unpack the examples" in page.inner_text("#packing")
    assert page.is_hidden("#browser") and "71.3" in page.inner_text("#numbers")
    context.close()


def test_without_scripts_all_but_the_examples_is_there(browser, page_file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert "scripts are off" in page.inner_text("noscript") and "topic = law" in page.inner_text("#slices")
    context.close()


def test_the_page_of_two_thousand_real_pairs_is_small_and_searchable(browser, tmp_path):
    source = real_data("rmb_eval.jsonl.gz")
    pairs = io.preferences(io.read(source).rows, source)
    found = [
        {
            "id": pair.id,
            "prompt": pair.prompt,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "metadata": pair.metadata,
            "score_chosen": len(pair.chosen) / 1000,
            "score_rejected": len(pair.rejected) / 1000,
        }
        for pair in pairs
    ]
    written = write_report([folder(tmp_path / "run", evaluation(), found)])
    assert written.num_pairs == 2195 and written.num_bytes < 5_000_000
    wrong = sum(len(pair.chosen) < len(pair.rejected) for pair in pairs)
    law = sum(
        "lawyer" in json.dumps([pair.prompt, pair.chosen, pair.rejected], ensure_ascii=False).lower() for pair in pairs
    )
    with Opened(browser, written.page) as opened:
        assert opened.press("wrong") == f"{wrong:,} of 2,195 pairs"
        opened.press("all")
        assert opened.search("lawyer") == f"{law:,} of 2,195 pairs"
        assert opened.complaints == [] and opened.requests == [written.page.as_uri()]
