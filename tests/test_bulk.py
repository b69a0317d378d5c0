"""Bulk scoring on Ray: each row once whatever dies, an unfinished folder is gone on with, errors are sentences."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet as pq
import pytest

from rewardsmith import actors, bulk
from rewardsmith.config import ScoringSettings
from rewardsmith.errors import MissingExtraError, ModelError, OutputError, RowError, SettingsError, WorkerError
from rewardsmith.loading import Running
from rewardsmith.manifest import Manifest
from rewardsmith.parts import Part, RawRows
from tests.fakes import FunctionScorer

pytest.importorskip("ray", reason="the extra `ray` is not installed")

# The score is a hundredth of the answer's length; some answers kill whoever reads them, once or always.
SCORER = """
import os, signal
from pathlib import Path

def score(prompt, answer):
    if answer == "always" or (answer == "once" and not Path(prompt).exists()):
        if answer == "once":
            Path(prompt).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return len(answer) / 100
"""


@pytest.fixture
def scorer(tmp_path):
    (tmp_path / "scorer.py").write_text(SCORER)
    return f"{tmp_path / 'scorer.py'}:score"


@pytest.fixture(scope="module")
def cluster():
    """A Ray of two cores that the tests of this module share."""
    import ray

    with actors._started("local"):
        yield ray


def run(model, data, out, **more):
    running = Running(ScoringSettings(), threads=None, seed=0)
    return bulk.score_folder(model, str(data), Path(out), running=running, **{"actors": 2, "block": 16, **more})


def shards(folder, count, change=lambda i, row: row):
    """Rows in files of 100, every two of one prompt."""
    folder.mkdir()
    rows = [change(i, {"id": f"r{i}", "prompt": f"p{i // 2}", "answer": "x" * (i % 90)}) for i in range(count)]
    for start in range(0, count, 100):
        lines = "".join(json.dumps(row) + "\n" for row in rows[start : start + 100])
        (folder / f"shard-{start // 100:03d}.jsonl").write_text(lines)
    return folder


def rows_of(out):
    return pq.read_table(out).to_pylist()


def test_a_killed_worker_costs_nothing_but_time(cluster, scorer, tmp_path):
    marker = str(tmp_path / "killed")
    data = shards(
        tmp_path / "data", 400, lambda i, row: {**row, "prompt": marker, "answer": "once"} if i == 210 else row
    )
    told = []
    document = run(scorer, data, tmp_path / "out", on_part=told.append)
    assert Path(marker).exists() and sum(document["restarts"].values()) == 1
    found = rows_of(tmp_path / "out")
    # Each row once, in the order of the source; the score is the length / 100 and "once" has 4 characters.
    assert [row["id"] for row in found] == [f"r{i}" for i in range(400)]
    expected = [0.04 if i == 210 else (i % 90) / 100 for i in range(400)]
    assert [row["score"] for row in found] == pytest.approx(expected)
    # Of each file of 100 rows ceil(100 / 16) = 7 parts.
    assert document["parts"] == 28 and document["num_rows"] == told[-1] == 400
    record = Manifest.read(tmp_path / "out" / bulk.RECORD)
    assert record.state == "finished" and str(tmp_path) not in json.dumps(record.document)
    assert sorted(one.name for one in (tmp_path / "out").iterdir() if one.name.startswith(".")) == [".lock"]

    # A finished folder is refused; an unfinished one is gone on with: only what is missing is scored.
    with pytest.raises(OutputError, match="finished"):
        run(scorer, data, tmp_path / "out")
    record.note(outcome="running")
    for number in (3, 4, 20):
        (tmp_path / "out" / f"part-{number:05d}.parquet").unlink()
    kept = (tmp_path / "out" / "part-00005.parquet").stat()
    again = run(scorer, data, tmp_path / "out", block=50)  # the size of the earlier call holds
    # Seven parts of 100 rows, two rows a prompt: the borders 14, 28, 42, 57, 71, 85 become 14, 28, 42, 58, 72, 86. Parts 3, 4 and 20, the last of the third file, hold 16, 14 and 14 rows.
    assert (again["num_rows"], again["resumed_from"]) == (400, 400 - 44)
    assert rows_of(tmp_path / "out") == found
    assert (tmp_path / "out" / "part-00005.parquet").stat() == kept


def test_a_malformed_row_ends_the_command_or_is_counted(cluster, scorer, tmp_path):
    data = shards(tmp_path / "data", 200, lambda i, row: {"id": "bad", "prompt": "p"} if i == 150 else row)
    with pytest.raises(RowError, match=r"shard-001.jsonl:51"):
        run(scorer, data, tmp_path / "out")
    assert Manifest.read(tmp_path / "out" / bulk.RECORD).state == "failed"
    with pytest.raises(OutputError, match="another skip_bad"):
        run(scorer, data, tmp_path / "out", skip_bad=True)
    document = run(scorer, data, tmp_path / "out", skip_bad=True, overwrite=True)
    assert (document["num_rows"], document["skipped"]) == (199, {"chosen": 1})


def test_a_model_that_a_worker_cannot_load_ends_the_command(cluster, tmp_path):
    scorer = tmp_path / "scorer.py"
    scorer.write_text(f"import os\nassert os.getpid() == {os.getpid()}, 'not here'\ndef score(p, a): return 0.0\n")
    with pytest.raises(SettingsError, match="not here"):
        run(f"{scorer}:score", shards(tmp_path / "data", 20), tmp_path / "out")


def command(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "rewardsmith", "score", *map(str, words), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process):
    for _ in range(3000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("nothing happened in five minutes")


def workers_of(process):
    """Process numbers of the actors that a command started, however far below it."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()]
    family = {str(process.pid)}
    while grown := {pid for pid, parent, _ in rows if parent in family} - family:
        family |= grown
    return [int(pid) for pid, _, name in rows if pid in family and name.startswith("ray::MapWorker")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_200_000_rows_with_a_worker_killed_and_the_command_killed(tiny_rm, tmp_path):
    model = tiny_rm("bert")
    words = ["use", "glue", "number", "how", "do", "mend", "item", "gladly"]
    data, count = tmp_path / "data", 200_000
    data.mkdir()
    for start in range(0, count, 20_000):
        rows = [
            {"id": f"r{i}", "prompt": f"item {i // 2}", "answer": " ".join(words[i // 8**k % 8] for k in range(6))}
            for i in range(start, start + 20_000)
        ]
        pq.write_table(pyarrow.Table.from_pylist(rows), data / f"shard-{start:06d}.parquet")
    asked = (model, data, "--threads", 1, "--ray", "local", "--actors", 2, "--out", tmp_path / "out")

    def part(number):
        return (tmp_path / "out" / f"part-{number:05d}.parquet").exists

    first = command(*asked)
    wait_for(part(6), first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert Manifest.read(tmp_path / "out" / bulk.RECORD).state == "killed"
    second = command(*asked)
    wait_for(part(25), second)
    os.kill(workers_of(second)[0], signal.SIGKILL)
    out, _ = second.communicate()
    document = json.loads(out)  # nothing of Ray's beside it
    assert second.returncode == 0 and sum(document["restarts"].values()) == 1
    assert document["num_rows"] == count and document["resumed_from"] > 0

    plain = command(model, data, "--threads", 1, "--out", tmp_path / "plain.jsonl")
    plain.communicate()
    assert plain.returncode == 0
    expected = [json.loads(line) for line in (tmp_path / "plain.jsonl").read_text().splitlines()]
    found = rows_of(tmp_path / "out")
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    assert len({row["id"] for row in found}) == count
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)


@pytest.mark.slow
def test_no_running_cluster_is_a_sentence(scorer, tmp_path):
    # Blind to the Ray of the other tests, which "auto" would find on this machine.
    blind = "import functools, ray._private.services as s; s._cached_find_gcs_addresses = functools.cache(set)"
    script = f"{blind}; import sys; from rewardsmith.cli import main; sys.exit(main())"
    words = ["score", scorer, shards(tmp_path / "data", 3), "--ray", "auto", "--out", tmp_path / "out", "--json"]
    done = subprocess.run([sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 2 and "ray start --head" in done.stderr and "error" in json.loads(done.stdout)


@pytest.mark.slow
def test_rows_that_kill_whoever_reads_them_end_the_command(cluster, scorer, tmp_path):
    data = shards(tmp_path / "data", 100, lambda i, row: {**row, "answer": "always"} if i == 70 else row)
    # r70 stands in the fifth of seven parts of 100 rows.
    with pytest.raises(WorkerError, match="raw rows 58 to 71 of shard-000.jsonl"):
        run(scorer, data, tmp_path / "out")


def test_what_is_no_folder_of_ours_is_refused(scorer, tmp_path):
    data = shards(tmp_path / "data", 3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    for out, overwrite in ((tmp_path / "other", True), (data, True), (data / "scores", False), (data.parent, True)):
        with pytest.raises(OutputError):
            run(scorer, data, out, overwrite=overwrite)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_unfinished_work_of_another_model_is_refused(scorer, tmp_path):
    data = shards(tmp_path / "data", 3)
    out = tmp_path / "out"
    Manifest.open(out / bulk.RECORD, verb="score", settings={}, identity={"model": {"a": "b"}}, rows_a_block=16)
    with pytest.raises(OutputError, match="another model and data"):
        run(scorer, data, out)


def test_unfinished_work_whose_rows_were_cut_otherwise_is_refused(cluster, scorer, tmp_path, monkeypatch):
    data, out = shards(tmp_path / "data", 100), tmp_path / "out"

    def earlier_plan(files, *, block):
        """Whole blocks and a rest: as many parts of the same names, with other borders."""
        ((file, rows),) = files
        firsts = range(0, rows, block)
        return [Part(i, file, first, min(first + block, rows), 0) for i, first in enumerate(firsts)]

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "plan", earlier_plan)
        run(scorer, data, out)
    record = Manifest.read(out / bulk.RECORD)
    record.note(outcome="running")
    (out / "part-00001.parquet").unlink()
    with pytest.raises(OutputError, match="cut the rows otherwise"):
        run(scorer, data, out)
    assert (out / "part-00000.parquet").exists()


def test_errors_before_anything_is_started(cli, scorer, tmp_path, monkeypatch):
    data = shards(tmp_path / "data", 3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        for address in (f"127.0.0.1:{taken.getsockname()[1]}", "nonsense"):
            code, out, err = cli("score", scorer, data, "--ray", address, "--out", tmp_path / "out", "--json")
            assert code == 2 and "ray start --head" in err and json.loads(out)["error"]["type"] == "SettingsError"
    code, _, err = cli("score", scorer, data, "--actors", 2, "--out", tmp_path / "scores.jsonl")
    assert code == 2 and "--ray" in err
    monkeypatch.setattr(actors, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rewardsmith\[ray\]'"):
        run(scorer, data, tmp_path / "out")


def finished(out):
    """A folder that an earlier call left."""
    record = Manifest.open(out / bulk.RECORD, verb="score", settings={}, identity={})
    (out / "part-00000.parquet").write_bytes(b"PAR1")
    record.close("finished")
    return out


def test_what_is_refused_deletes_nothing(cluster, scorer, tmp_path):
    data = shards(tmp_path / "data", 3)
    out = finished(tmp_path / "out")
    with pytest.raises(SettingsError, match="--actors"):
        run(scorer, data, out, overwrite=True, actors=99)
    assert (out / "part-00000.parquet").exists() and Manifest.read(out / bulk.RECORD).state == "finished"


def test_no_part_is_deleted_beside_a_record_that_says_finished(tmp_path, monkeypatch):
    out = finished(tmp_path / "out")

    def die(self, missing_ok):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", die)
    with pytest.raises(KeyboardInterrupt):
        bulk._clear(out, overwrite=True)
    assert Manifest.read(out / bulk.RECORD).document["outcome"] == "running"
    monkeypatch.undo()
    bulk._clear(out, overwrite=True)
    assert not list(out.glob("[!.]*"))


def test_parts_that_would_become_data_are_refused(tmp_path):
    (tmp_path / "g" / "a").mkdir(parents=True)
    (tmp_path / "g" / "a" / "rows.parquet").touch()
    for pattern in ("**/*.parquet", "*/*.parquet"):
        with pytest.raises(OutputError, match="data files later"):
            bulk.check_folder(tmp_path / "g" / "scores", f"{tmp_path}/g/{pattern}", overwrite=False)
    bulk.check_folder(tmp_path / "g" / "scores", f"{tmp_path}/g/a/*.parquet", overwrite=False)


def test_a_folder_that_holds_only_its_lock_is_new(write_rows, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    bulk.check_folder(tmp_path / "out", write_rows([{"prompt": "p", "answer": "a"}]), overwrite=False)


def test_what_a_scorer_fails_with_is_told(write_rows, tmp_path):
    class Failing(FunctionScorer):
        def score(self, pairs):
            raise RuntimeError("no table of words")

    source = write_rows([{"prompt": "p", "answer": "a"}])
    actor = object.__new__(actors._Actor)  # its constructor asks Ray for its name
    actor._job = actors.Job("m", {}, Running(ScoringSettings(), None, 0), str(tmp_path), "single answers", 1, False)
    actor._rows, actor._report, actor._loading = RawRows(), actors.Report("a", "b"), tmp_path / ".tries-a"
    actor._source = SimpleNamespace(scorer=Failing(None))
    error = actor._scored(Part(0, source, 0, 1, 0)).error
    assert isinstance(error, WorkerError) and "RuntimeError: no table of words" in str(error)
    assert not list(tmp_path.glob("*part-*"))


def test_what_a_model_fails_to_load_with_is_told(tmp_path, monkeypatch):
    class Breaking(Running):
        def load(self, model):
            raise RuntimeError("libwords.so: cannot open shared object file")

    context = SimpleNamespace(get_actor_id=lambda: "a")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get_runtime_context=lambda: context))
    running = Breaking(ScoringSettings(), threads=1, seed=0)
    actor = actors._Actor(actors.Job("m", {}, running, str(tmp_path), "single answers", 1, False))
    error = actor._scored(Part(0, "no file", 0, 1, 0)).error
    assert isinstance(error, WorkerError) and "RuntimeError: libwords.so" in str(error)


def test_a_model_that_is_not_what_its_contract_says_is_refused(tiny_rm, tmp_path):
    folder = shutil.copytree(tiny_rm("bert"), tmp_path / "model")
    running = Running(ScoringSettings(), threads=None, seed=0)
    assert "model.safetensors" in bulk._model_identity(str(folder), running)
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="model.safetensors"):
        bulk._model_identity(str(folder), running)


def test_files_of_a_folder_that_are_not_scored_are_named(cli, scorer, tmp_path):
    data = shards(tmp_path / "data", 3)
    (data / "README.md").touch()
    for out, more in (("scores.jsonl", ()), ("data", ("--ray", "local"))):  # the latter is refused before Ray starts
        said = cli("score", scorer, data, "--out", tmp_path / out, *more)[2]
        assert "data: other files, not read: README.md" in said


@pytest.mark.parametrize(
    ("machines", "asked", "expected"),
    [
        # Two a machine; each gets half of the smallest machine that holds one: 2 * (16 // 8) >= 4.
        ([(16, 0), (16, 0)], {}, (4, 8, 0)),
        # 16 // 6 + 8 // 6 = 3 actors of 6 threads; of 7: 2 + 1 = 3, of 8: 2 + 1 = 3, of 9: 1 + 0.
        ([(16, 0), (8, 0)], {"actors": 3}, (3, 8, 0)),
        ([(1, 0)], {}, (1, 1, 0)),
        ([(8, 0)], {"threads": 3}, (2, 3, 0)),
        # One a GPU, unless the GPUs are not to be used.
        ([(16, 4), (16, 0)], {}, (4, 4, 1)),
        ([(16, 4)], {"device": "cpu"}, (2, 8, 0)),
    ],
)
def test_how_cores_and_gpus_are_shared_out(machines, asked, expected):
    pool = actors.share_out(machines, **{"actors": None, "threads": None, "device": "auto", **asked})
    assert (pool.actors, pool.threads, pool.gpus) == expected


@pytest.mark.parametrize(
    ("machines", "asked"),
    [
        ([(2, 0)], {"actors": 3}),
        ([(4, 0)], {"actors": 2, "threads": 3}),
        ([(8, 1)], {"actors": 2}),
        ([(8, 0)], {"device": "cuda"}),
    ],
)
def test_actors_that_do_not_fit_are_refused(machines, asked):
    with pytest.raises(SettingsError, match="--actors"):
        actors.share_out(machines, **{"actors": None, "threads": None, "device": "auto", **asked})
