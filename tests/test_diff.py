"""Two runs side by side: only what differs is said, which rows, and whether the same eval pairs tell the results apart."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from rewardsmith.data import row_hashes
from rewardsmith.data.row_hashes import RowHashes
from rewardsmith.errors import DataError
from rewardsmith.evaluation.run_difference import RunFolder, difference, difference_lines, estimates

SCORERS = """
def longer(prompt, answer):
    return float(len(answer))

def shorter(prompt, answer):
    return -float(len(answer))
"""


def estimate(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 40, "method": "wilson"}


def run(folder, *, margins=None, rows=None, report=None, **facts):
    """A folder of `train`, as its manifest, report, pairs and row hashes would lie in it."""
    folder.mkdir()
    manifest = {
        "tool": "rewardsmith",
        "verb": "train",
        "outcome": "finished",
        "settings": {"out": folder.name, "model": "base", "loss": {"name": "bradley_terry"}, "seed": 0},
        "code": {"commit": "a" * 40, "dirty": False, "sha256": "1" * 64},
        "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
        "platform": {"processor": "one"},
        "device": {"type": "cpu", "threads": 2},
        "identity": {"model": "f" * 64},
        "base": {"files": {"model.safetensors": "f" * 64, "tokenizer.json": "e" * 64}},
        "data": {"data": {"source": "train.jsonl", "rows": 3, "sha256": "c" * 64, "read_as": "words"}},
        "dropped": {"counts": {}},
        **facts,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    report = {"verb": "train", "eval": {"accuracy": estimate(0.6)}, "history": [{"loss": 1.0}], **(report or {})}
    (folder / "report.json").write_text(json.dumps(report))
    if rows is not None:
        hashes = RowHashes([str(i) for i in range(1, len(rows) + 1)], np.array(rows, dtype=np.uint64))
        row_hashes.write({"data": hashes}, folder / "rows.npz")
    if margins is not None:
        lines = [
            json.dumps(
                {
                    "id": str(i),
                    "prompt": f"p{i}",
                    "chosen": "yes",
                    "rejected": "no",
                    "metadata": {},
                    "score_chosen": float(margin),
                    "score_rejected": 0.0,
                }
            )
            for i, margin in margins.items()
        ]
        (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return RunFolder.read(folder)


def test_a_run_beside_itself_differs_in_nothing(tmp_path):
    margins = {i: 1.0 for i in range(20)}
    a, b = (run(tmp_path / name, margins=margins, rows=[1, 2]) for name in "ab")
    document = difference(a, b)
    for part in ("settings", "data", "model", "code", "versions", "device"):
        assert document[part] == {}, part
    assert document["results"] == {"same": 1, "differing": {}}
    assert document["paired"]["largest_score_difference"] == 0
    lines = "\n".join(difference_lines(document))
    assert "the same: settings, data, model, code, versions, device" in lines and "equal bit for bit" in lines


def test_only_what_differs_is_said(tmp_path):
    a = run(tmp_path / "a", rows=[1, 2, 3])
    b = run(
        tmp_path / "b",
        rows=[1, 9, 3],
        settings={"out": "b", "model": "base", "loss": {"name": "odin"}, "seed": 0},
        versions={"torch": "2.14.0", "numpy": "2.4.6"},
        device={"type": "cpu", "threads": 1},
        base={"files": {"model.safetensors": "f" * 64, "tokenizer.json": "0" * 64}},
        data={"data": {"source": "other.jsonl", "rows": 3, "sha256": "d" * 64, "read_as": "other words"}},
        report={"eval": {"accuracy": estimate(0.7), "auc": estimate(0.5)}},
        code={"commit": "b" * 40, "dirty": True, "sha256": "2" * 64},
    )
    document = difference(a, b)
    assert document["settings"] == {"loss.name": {"a": "bradley_terry", "b": "odin"}}
    assert document["versions"] == {"torch": {"a": "2.13.0", "b": "2.14.0"}}
    assert document["device"] == {"threads": {"a": 2, "b": 1}}
    assert document["model"] == {"model.tokenizer.json": {"a": "e" * 64, "b": "0" * 64}}
    assert set(document["code"]) == {"commit", "dirty", "sha256"}
    assert set(document["data"]) == {"data"}
    assert document["data"]["data"]["facts"] == {"sha256": {"a": "c" * 64, "b": "d" * 64}}
    assert document["data"]["data"]["lines"] == ["1 changed: row 2 (id 2)"]
    assert document["results"]["differing"] == {
        "eval.accuracy": {"a": estimate(0.6), "b": estimate(0.7)},
        "eval.auc": {"a": None, "b": estimate(0.5)},
    }
    assert document["paired"] is None and "pairs.jsonl" in document["paired_why_not"]


def test_a_commit_that_leaves_the_code_as_it_is_is_no_difference(tmp_path):
    a = run(tmp_path / "a")
    b = run(tmp_path / "b", code={"commit": "b" * 40, "dirty": True, "sha256": "1" * 64})
    assert difference(a, b)["code"] == {}
    c = run(tmp_path / "c", code={"commit": "b" * 40, "dirty": False})
    assert set(difference(a, c)["code"]) == {"commit", "sha256"}


def test_results_are_paired_on_the_pairs_that_both_scored(tmp_path):
    # A scored the pairs 0..59 and is right on all of them; B scored 20..79 and is wrong on 40..59.
    a = run(tmp_path / "a", margins={i: 1.0 for i in range(60)})
    b = run(tmp_path / "b", margins={i: -1.0 if 40 <= i < 60 else 2.0 for i in range(20, 80)})
    found = difference(a, b)["paired"]
    # Common: 20..59, 40 pairs, of which B gets 40..59 wrong: 1 - 0.5.
    assert (found["num_pairs"], found["pairs_a"], found["pairs_b"]) == (40, 60, 60)
    assert found["difference"]["value"] == pytest.approx(0.5) and found["difference"]["low"] > 0.3
    assert found["discordant"] == {"only_a": 20, "only_b": 0}
    # |1 - -1| over max(1, 1).
    assert found["largest_score_difference"] == 2.0
    assert "a is right more often than b, by 50.0 points" in difference_lines(difference(a, b))[-1]


def test_a_pair_that_stands_twice_is_common_twice_only_where_both_hold_it_twice(tmp_path):
    a, b = run(tmp_path / "a", margins={0: 1.0, 1: 1.0}), run(tmp_path / "b", margins={0: 1.0, 1: 1.0})
    twice = RunFolder(a.name, a.verb, a.state, a.manifest, a.report, a.rows, [*a.pairs, a.pairs[0]])
    assert difference(twice, b)["paired"]["num_pairs"] == 2
    assert difference(twice, twice)["paired"]["num_pairs"] == 3


def test_labelled_ties_are_common_and_not_judged(tmp_path):
    a, b = (run(tmp_path / name, margins={i: 1.0 for i in range(6)}) for name in "ab")
    tied = [replace(one, pairs=[row | {"tie": i < 4} for i, row in enumerate(one.pairs)]) for one in (a, b)]
    # Of six pairs four are ties.
    assert difference(*tied)["paired"]["num_pairs"] == 2
    only = [replace(one, pairs=one.pairs[:4]) for one in tied]
    document = difference(*only)
    assert document["paired"] is None
    assert document["paired_why_not"].startswith("of 4 common eval pairs none has a winner")


def test_each_side_is_read_at_its_own_temperature(tmp_path):
    margins = {i: 1.0 for i in range(30)}
    a, b = (
        run(tmp_path / name, margins=margins, report={"eval": {"calibrated": {"temperature": temperature}}})
        for name, temperature in (("a", 1.0), ("b", 4.0))
    )
    # All pairs are right by a margin of 1: log-loss is log(1 + e^-1) = 0.3133 at temperature 1, log(1 + e^-0.25) = 0.5759 at 4.
    found = difference(a, b)["paired"]["log_loss_difference"]
    assert found["value"] == pytest.approx(0.3133 - 0.5759, abs=1e-3)


@pytest.mark.parametrize(
    ("spoiled", "named"),
    [
        ('{"id": "2", "prompt": "p", "chos', "line 3"),
        ("[1]", "line 3"),
        ('{"id": "2"}', "line 3"),
        (b"\xff", "line 3"),
    ],
)
def test_pairs_that_are_cut_are_named_by_file_and_line(cli, tmp_path, spoiled, named):
    for name in "ab":
        run(tmp_path / name, margins={0: 1.0, 1: 1.0})
    with open(tmp_path / "b" / "pairs.jsonl", "ab") as file:
        file.write(spoiled if isinstance(spoiled, bytes) else spoiled.encode())
    code, _, err = cli("diff", tmp_path / "a", tmp_path / "b")
    assert code == 2 and "pairs.jsonl" in err and named in err


def test_a_folder_that_is_damaged_or_of_a_later_format_is_refused(cli, tmp_path):
    run(tmp_path / "a", rows=[1, 2, 3])
    run(tmp_path / "b", rows=[1, 2, 3])
    rows = tmp_path / "b" / "rows.npz"
    rows.write_bytes(rows.read_bytes()[:-30])
    code, _, err = cli("diff", tmp_path / "a", tmp_path / "b")
    assert code == 2 and "rows.npz" in err
    rows.unlink()
    assert cli("diff", tmp_path / "a", tmp_path / "b")[0] == 0
    path = tmp_path / "b" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    code, _, err = cli("diff", tmp_path / "a", tmp_path / "b")
    assert code == 2 and "format 99" in err


def test_a_run_that_began_elsewhere_says_so(tmp_path):
    earlier = {"versions": {"torch": "2.12.0", "numpy": "2.4.6"}, "resumed_from": None}
    same = {"code": {"sha256": "1" * 64}, "platform": {"processor": "one"}, "device": {"type": "cpu", "threads": 2}}
    a = run(tmp_path / "a")
    b = run(tmp_path / "b", starts=[earlier | same, earlier | same], resumed_from="checkpoint-3")
    document = difference(a, b)
    assert document["run_a"]["other_starts"] == []
    assert document["run_b"]["other_starts"] == ["versions: torch: 2.12.0 (the last start: 2.13.0)"]
    said = "B was resumed; an earlier start had versions: torch: 2.12.0 (the last start: 2.13.0)"
    assert difference_lines(document).count(said) == 1


def test_no_common_pair_is_no_comparison(tmp_path):
    a = run(tmp_path / "a", margins={i: 1.0 for i in range(5)})
    b = run(tmp_path / "b", margins={i: 1.0 for i in range(5, 9)})
    document = difference(a, b)
    assert document["paired"] is None and "no eval pair" in document["paired_why_not"]


def test_a_killed_run_is_called_killed_and_a_failed_one_says_why(tmp_path):
    killed = run(tmp_path / "killed", outcome="running")
    failed = run(tmp_path / "failed", outcome="failed", error="StuckError: margins of 0")
    lines = difference_lines(difference(killed, failed))
    assert lines[:2] == ["A: killed (killed)", "B: failed (failed): StuckError: margins of 0"]


def test_estimates_are_found_by_path_and_name():
    document = {"probes": [{"name": "length", "effect": estimate(1.0)}, {"effect": estimate(2.0)}], "x": {"y": 1}}
    assert list(estimates(document)) == [("probes.length.effect", estimate(1.0))]


def test_folders_of_evaluate_and_audit_are_compared_and_no_model_library_is_loaded(cli, write_rows, tmp_path):
    (tmp_path / "scorers.py").write_text(SCORERS)
    rows = [
        {"prompt": f"p {i}", "chosen": f"a long answer {i}" if i % 4 else "short", "rejected": f"brief {i}"}
        for i in range(48)
    ]
    data = write_rows(rows)
    for name in ("longer", "shorter"):
        scorer = f"{tmp_path / 'scorers.py'}:{name}"
        assert cli("evaluate", scorer, data, "--out", tmp_path / f"e-{name}")[0] == 0
        assert cli("audit", scorer, data, "--probes", "openings", "--out", tmp_path / f"a-{name}")[0] == 0
    code = (
        "import sys; from rewardsmith.cli import main\n"
        "codes = [main(['diff', *words]) for words in (sys.argv[1:3], sys.argv[3:5], [sys.argv[1], sys.argv[3]])]\n"
        "print(codes, [m for m in ('torch', 'transformers') if m in sys.modules])\n"
    )
    folders = [tmp_path / f"{kind}-{name}" for kind in "ea" for name in ("longer", "shorter")]
    done = subprocess.run([sys.executable, "-c", code, *map(str, folders)], capture_output=True, text=True, check=True)
    # An evaluation beside an audit is refused.
    assert done.stdout.splitlines()[-1] == "[0, 0, 2] []"
    assert "`rewardsmith compare` compares two models" in done.stderr
    found = json.loads(cli("diff", *folders[:2], "--json", "--out", tmp_path / "diff.json")[1])
    # Of 48 pairs the longer answer is right on 36 (3/4), the shorter on 12: 0.75 - 0.25.
    assert found["paired"]["difference"]["value"] == pytest.approx(0.5)
    assert {"accuracy", "auc"} <= set(found["results"]["differing"]) and found["data"] == {}
    assert json.loads((tmp_path / "diff.json").read_text()) == found
    assert cli("diff", *folders[:2], "--out", tmp_path / "diff.json")[0] == 2
    audits = json.loads(cli("diff", *folders[2:], "--json")[1])
    assert any(key.startswith("probes.opening_yes.") for key in audits["results"]["differing"])


def test_folders_of_ppo_are_compared_by_settings_and_report(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        run(
            tmp_path / name,
            verb="ppo",
            settings={"out": name, "policy": "p", "seed": seed},
            identity={"policy": "f" * 64, "reward": {"model.safetensors": "a" * 64}},
            data={"prompts": {"source": "p.jsonl", "sha256": "c" * 64, "prompts": 9}},
            report={"verb": "ppo", "eval": {"reward": {"after": estimate(seed)}}},
        )
    document = difference(RunFolder.read(tmp_path / "a"), RunFolder.read(tmp_path / "b"))
    assert document["settings"] == {"seed": {"a": 0, "b": 1}} and document["data"] == {}
    assert set(document["results"]["differing"]) == {"eval.reward.after"}


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "report.json").write_text('{"verb": "lint"}')
    with pytest.raises(DataError, match="one of lint"):
        RunFolder.read(tmp_path)
    with pytest.raises(DataError, match="nothing there"):
        RunFolder.read(tmp_path / "nothing")
