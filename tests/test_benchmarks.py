"""What the benchmarks promise of their own arithmetic: turns, ratios inside a round, no ratio without the same work, a page that is made from the results."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import tables
from harness import checks, record, rounds, script
from harness.checks import Check
from harness.processes import BrokenTool, Process
from rewardsmith.errors import MissingExtraError, SettingsError


@dataclass
class Clockwork:
    """A tool whose rounds take the seconds given, and that notes when it was its turn."""

    name: str
    seconds: Iterator[float]
    turns: list[str]
    pairs: int = 8

    def round(self):
        self.turns.append(self.name)
        return {"seconds": next(self.seconds), "work": {"pairs": self.pairs}}


def in_turns(ours, theirs, *, rounds_asked=5, **options):
    turns = []
    tools = {
        "ours": Clockwork("ours", iter(ours), turns),
        "theirs": Clockwork("theirs", iter(theirs), turns, **options),
    }
    return rounds.in_turns(tools, rounds_asked, tell=lambda text: None), turns


def a_row(checks_of, ratios=(1.0, 2.0, 9.0), **more):
    return record.row(
        "speed",
        work="8 pairs",
        ratios=ratios,
        target=2.5,
        ours={"pairs_per_second": 8.0, "tool": "rewardsmith"},
        theirs={"pairs_per_second": 4.0, "tool": "another"},
        checks=checks_of,
        precision="float32",
        packages=("numpy",),
        **more,
    )


def test_tools_take_turns_and_the_first_round_does_not_count():
    reports, turns = in_turns([100, 1, 2, 3, 4, 5], [100, 2, 2, 9, 4, 10])
    assert turns == ["ours", "theirs"] * 6
    assert [report["seconds"] for report in reports["ours"]] == [1, 2, 3, 4, 5]
    # 2/1, 2/2, 9/3, 4/4, 10/5
    assert rounds.ratios(reports["ours"], reports["theirs"]) == [2, 1, 3, 1, 2]


def test_a_ratio_is_of_one_round_and_the_median_is_taken_over_rounds():
    # A machine at half its speed from the third round on: every ratio stays 2, the medians of the seconds alone would say the same only by luck.
    reports, _ = in_turns([1, 1, 1, 2, 2, 2], [2, 2, 2, 4, 4, 4])
    assert record.spread(rounds.ratios(reports["ours"], reports["theirs"])) == {"median": 2, "min": 2, "max": 2}
    # 1, 2, 9: the median is 2, the mean would be 4
    assert record.spread([9.0, 1.0, 2.0]) == {"median": 2, "min": 1, "max": 9}


def test_fewer_than_five_rounds_are_refused():
    with pytest.raises(SettingsError, match="at least 5 rounds"):
        in_turns([1] * 5, [1] * 5, rounds_asked=4)


def test_speed_is_work_over_seconds():
    reports, _ = in_turns([1, 2, 2, 2, 4, 4], [1] * 6)
    # 8 pairs in 2, 2, 2, 4, 4 seconds: 4, 4, 4, 2, 2 a second
    assert rounds.speed(reports["ours"], "pairs") == {
        "pairs_per_second": 4,
        "seconds": {"median": 2, "min": 2, "max": 4},
    }


def test_the_faster_of_two_tools_is_the_one_of_the_least_seconds():
    reports = {"a": [{"seconds": 3}, {"seconds": 3}], "b": [{"seconds": 1}, {"seconds": 4}], "c": [{"seconds": 0}]}
    assert rounds.fastest(reports, ("a", "b")) == "b"


def test_a_round_of_other_work_is_seen():
    same, _ = in_turns([1] * 6, [1] * 6)
    other, _ = in_turns([1] * 6, [1] * 6, pairs=7)
    assert rounds.same_work(same) == [Check("pairs a round", True, 8)]
    assert [check.ok for check in rounds.same_work(other)] == [False]


def test_a_count_that_one_tool_does_not_report_is_no_agreement():
    reports, _ = in_turns([1] * 6, [1] * 6)
    for report in reports["theirs"]:
        report["work"] = {}
    assert [check.ok for check in rounds.same_work(reports)] == [False]


def test_no_ratio_without_the_same_work(tmp_path, capsys):
    good, bad = a_row([Check("tokens", True, 5)]), a_row([Check("tokens", True, 5), Check("losses", False, None)])
    assert (good["same_work"], good["ratio"]["median"]) == (True, 2)
    assert (bad["same_work"], bad["ratio"]) == (False, None)
    out = tmp_path / "rows.json"
    assert script.finish([good, bad], out) == 1
    assert not out.exists()
    printed = capsys.readouterr()
    assert [json.loads(line)["same_work"] for line in printed.out.splitlines()] == [True, False]
    assert "speed: not the same work: losses; no ratio" in printed.err
    assert script.finish([good], out) == 0
    assert record.read(out) == [good]


def test_a_row_has_what_other_programs_read():
    found = a_row([])
    assert {"benchmark", "ratio", "target", "ours", "theirs", "same_work", "precision", "machine", "versions"} <= set(
        found
    )
    assert set(found["ratio"]) == {"median", "min", "max"}


def test_loss_curves_agree_step_by_step():
    assert checks.same_losses([0.7, 0.9], [0.70005, 0.9], precision="float32").ok
    # 0.001 is more than float32 may differ, and less than bf16 may
    assert not checks.same_losses([0.7, 0.9], [0.701, 0.9], precision="float32").ok
    assert checks.same_losses([0.7, 0.9], [0.701, 0.9], precision="bf16").ok
    assert not checks.same_losses([0.7, 0.9], [0.7], precision="bf16").ok
    assert not checks.same_losses([], [], precision="bf16").ok
    # Before the first update, no gradient has been used.
    assert not checks.same_losses([0.7], [0.7], precision="bf16").ok


def test_flat_loss_curves_are_no_evidence():
    # They differ by 0.01, and vary by no more than that.
    assert not checks.same_losses([0.69, 0.70], [0.70, 0.69], precision="bf16").ok


def test_losses_that_are_not_finite_do_not_agree():
    assert not checks.same_losses([math.nan, 0.1], [0.7, 0.1], precision="bf16").ok


def test_scores_agree_relative_to_their_size():
    # 1e-3 / 100 = 1e-5
    assert checks.same_scores("s", [100.0], [100.001], tolerance=2e-5).ok
    assert not checks.same_scores("s", [1.0], [1.001], tolerance=2e-5).ok
    assert not checks.same_scores("s", [], [], tolerance=2e-5).ok
    assert not checks.same_scores("s", [1.0], [math.nan], tolerance=2e-5).ok


def test_pair_agreement_counts_pairs_ordered_alike():
    # ordered alike, reversed, tie against an order, tie against a tie
    assert checks.pair_agreement([2, 1, 2, 1, 1, 1, 3, 3], [9, 8, 1, 2, 2, 1, 5, 5]) == 0.5


def test_the_hash_of_ids_depends_on_where_texts_end():
    assert checks.digest([[1, 2], [3]]) != checks.digest([[1], [2, 3]])
    assert checks.digest([[1, 2], [3]]) == checks.digest([(1, 2), (3,)])


def test_a_missing_peer_is_named_with_the_line_that_installs_it():
    with pytest.raises(MissingExtraError, match=r"pip install 'rewardsmith\[bench\]'"):
        script.require("no-such-package", "the comparison with it")


def test_a_tool_that_breaks_is_no_round(tmp_path):
    with pytest.raises(BrokenTool, match="the end of its process"):
        Process("broken", "nowhere.job", {}, threads=1, cache=tmp_path)


def test_the_page_is_up_to_date_with_the_results():
    page = tables.PAGE.read_text(encoding="utf-8")
    assert page == tables.with_table(page, tables.rows_of(tables.RESULTS)), "run: python benchmarks/tables.py"


def test_the_table_says_what_the_rows_say():
    machine = {"cores": 2, "processor": "P", "bf16": "AMX", "system": "Linux"}
    same = a_row([]) | {"machine": machine, "versions": {"numpy": "2"}}
    different = a_row([Check("losses", False, None)]) | {"machine": machine, "versions": {"numpy": "3"}}
    lines = tables.table([same, different]).splitlines()
    assert lines[2] == (
        "| `speed` | 8 pairs | float32 | 8 pairs per second | 4 pairs per second (another) | 2 [1, 9] | 2.5 | 1 |"
    )
    assert "none: not the same work" in lines[3]
    assert lines[5:] == ["1. 2 cores of P, AMX, Linux; numpy 2", "2. 2 cores of P, AMX, Linux; numpy 3"]


def test_a_row_that_a_machine_cannot_run_says_why(capsys):
    row = record.skipped("gpu", "no CUDA GPU on this machine", target=2.5, packages=())
    assert script.finish([row], None) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == "no CUDA GPU on this machine"
    assert "not measured: no CUDA GPU on this machine" in tables.table([row])


def test_every_script_is_on_the_page_and_says_how_it_is_run():
    names = (
        "encoder_training",
        "decoder_training",
        "ranked_groups",
        "frozen_encoder",
        "frozen_trunk",
        "scoring",
        "best_of_n",
        "growth",
        "gpu",
    )
    page = tables.PAGE.read_text(encoding="utf-8")
    for name in names:
        assert f"`{name}.py`" in page
        assert f"Run: python benchmarks/{name}.py" in (tables.PAGE.parents[1] / "benchmarks" / f"{name}.py").read_text(
            encoding="utf-8"
        )
