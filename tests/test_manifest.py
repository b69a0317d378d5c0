"""A record that says how a result came to be and nothing about the machine's owner."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from rewardsmith.manifest import Manifest, code_state, plain_command, source_sha256, timed, without_paths
from rewardsmith.storage import folder_lock


def test_paths_keep_only_their_last_part(tmp_path):
    (tmp_path / "data.jsonl").write_text("")
    found = without_paths({"data": str(tmp_path / "data.jsonl"), "list": ["/usr/share/x", "owner/name"], "n": 3})
    assert found == {"data": "data.jsonl", "list": ["x", "owner/name"], "n": 3}


def test_opened_noted_closed_and_read_back(tmp_path):
    manifest = Manifest.open(tmp_path / "manifest.json", verb="train", settings={"out": str(tmp_path)}, seed=3)
    assert Manifest.read(tmp_path / "manifest.json").document["outcome"] == "running"
    manifest.note(counts={"pairs": 4})
    manifest.close("finished", metrics={"accuracy": 0.5})
    text = (tmp_path / "manifest.json").read_text()
    document = json.loads(text)
    assert (document["outcome"], document["seed"], document["counts"]) == ("finished", 3, {"pairs": 4})
    assert {"python", "torch", "transformers", "tokenizers", "numpy"} <= set(document["versions"])
    assert str(tmp_path) not in text and os.environ["PATH"] not in text


def test_what_is_not_ours_is_not_read(tmp_path):
    path = tmp_path / "manifest.json"
    assert Manifest.read(path) is None
    for text in ("{half", "[]", '{"name": "a web app manifest"}'):
        path.write_text(text)
        assert Manifest.read(path) is None


def test_secrets_are_withheld_wherever_they_stand(tmp_path):
    settings = {"trainer": {"hub_token": "hf_abc", "save_steps": 5}, "url": "http://me:pw@host:80/v1?key=abc"}
    assert without_paths(settings) == {
        "trainer": {"hub_token": "withheld", "save_steps": 5},
        "url": "http://host:80/v1",
    }
    words = ["train", "--set", "trainer.hub_token=hf_abc", "--api-key", "abc", f"--out={tmp_path}", str(tmp_path)]
    words += ["http://me:pw@host/?a=b", "loss.name=odin", "owner/name"]
    assert plain_command(words) == [
        *("train", "--set", "trainer.hub_token=withheld", "--api-key", "withheld"),
        *(f"--out={tmp_path.name}", tmp_path.name, "http://host/", "loss.name=odin", "owner/name"),
    ]


def test_an_error_in_a_record_names_no_place(tmp_path):
    manifest = Manifest.open(tmp_path / "manifest.json", verb="train", settings={})
    with pytest.raises(OSError, match="no room"), manifest.until_closed():
        raise OSError(f"no room in {tmp_path}/model, 1/2 of it is full")
    found = json.loads((tmp_path / "manifest.json").read_text())
    assert (found["outcome"], found["error"]) == ("failed", "OSError: no room in model, 1/2 of it is full")


def test_a_closed_record_says_what_the_run_took(tmp_path):
    manifest = Manifest.open(tmp_path / "manifest.json", verb="train", settings={})
    seconds: dict[str, float] = {}
    for _ in range(2):
        with timed(seconds, "sleeping"):
            time.sleep(0.02)
    manifest.close("finished", peak_memory={"cuda": 7})
    # Two naps of 0.02 s add up; the whole took at least that, and a Python with numpy more than 10 MB.
    assert 0.04 <= seconds["sleeping"] <= manifest.document["seconds"] + 0.001
    assert manifest.document["peak_memory"]["cuda"] == 7
    assert manifest.document["peak_memory"]["process"] > 10_000_000


def test_the_hash_of_the_code_follows_its_files(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    before = source_sha256(tmp_path)
    (tmp_path / "notes.txt").write_text("no code")
    assert source_sha256(tmp_path) == before
    (tmp_path / "a.py").write_text("x = 2\n")
    assert source_sha256(tmp_path) != before
    assert code_state()["sha256"] == code_state()["sha256"] != before


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_run_that_was_killed_is_told_from_one_that_runs(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from rewardsmith.manifest import Manifest; from rewardsmith.storage import folder_lock\n"
        "run = Path(sys.argv[1])\n"
        "with folder_lock(run):\n"
        "    Manifest.open(run / 'manifest.json', verb='train', settings={})\n"
        "    print('open', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "open\n"
            assert Manifest.read(tmp_path / "manifest.json").state == "running"
            (tmp_path / "model").mkdir()
            shutil.copy(
                tmp_path / "manifest.json", tmp_path / "model"
            )  # the copy in the model folder asks the same lock
            assert Manifest.read(tmp_path / "model" / "manifest.json").state == "running"
        finally:
            process.kill()
    found = Manifest.read(tmp_path / "manifest.json")
    assert (found.document["outcome"], found.state) == ("running", "killed")
    # To look at a lock is not to take it.
    with folder_lock(tmp_path):
        assert found.state == "running"
