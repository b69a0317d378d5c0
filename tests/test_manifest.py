"""A record that says how a result came to be and nothing about the machine's owner."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from rewardsmith.errors import DataError
from rewardsmith.manifest import Manifest, code_state, plain_command, plain_text, source_sha256, timed, without_paths
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


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ('trainer={"hub_token"="hf_SECRETX","save_steps"=3}', "trainer=withheld"),
        ('x=[{token="hf_SECRETX"}]', "x=withheld"),
        ('--set=trainer={hub_token="hf_SECRETX"}', "--set=trainer=withheld"),
        ("--set=trainer.hub_token=hf_SECRETX", "--set=trainer.hub_token=withheld"),
        ('trainer."hub_token" = hf_SECRETX', 'trainer."hub_token" =withheld'),
        ("trainer.hub_tokens=hf_SECRETX,hf_SECRETX", "trainer.hub_tokens=withheld"),
        ("--apikey=SECRETX", "--apikey=withheld"),
        ("Authorization: Bearer SECRETX", "Authorization: withheld"),
        ("--header=Authorization: Basic SECRETX", "--header=Authorization: withheld"),
        ("X-Api-Key: SECRETX", "X-Api-Key: withheld"),
        ("data=file:///home/SECRETX/x.jsonl", "data=x.jsonl"),
        ("file:///home/SECRETX/x.jsonl", "x.jsonl"),
        ("a:/home/SECRETX/y", "a:y"),
        ("--models=a:/home/SECRETX/y,b:~/SECRETX/z", "--models=a:y,b:z"),
        # What counts is no secret, and what only looks like a path is no place.
        ("batch_tokens=4096", "batch_tokens=4096"),
        ("batch_tokens=[2048, 4096]", "batch_tokens=[2048, 4096]"),
        ("http://host:80/v1/x", "http://host:80/v1/x"),
    ],
)
def test_no_word_of_a_command_gives_a_secret_or_a_place_away(word, kept):
    assert plain_command(["train", "--set", word])[2] == kept
    assert "SECRETX" not in kept


def test_a_secret_under_a_flag_of_its_own_is_withheld_and_a_count_is_not():
    words = ["--hub-tokens", "hf_a,hf_b", "--batch-tokens", "4096", "--password", "1234"]
    assert plain_command(words) == ["--hub-tokens", "withheld", "--batch-tokens", "4096", "--password", "withheld"]


def test_a_secret_is_withheld_however_deep_it_lies():
    settings = {
        "token": {"value": ["SECRETX"]},
        "hub_tokens": ["SECRETX"],
        "headers": {"Authorization": "Bearer SECRETX"},
        "lines": ["Authorization: Bearer SECRETX", "file:///home/SECRETX/x", "a:/home/SECRETX/y"],
        "batch_tokens": 4096,
        "template": "</s>{prompt} / {answer}</s>",
    }
    assert without_paths(settings) == {
        "token": "withheld",
        "hub_tokens": "withheld",
        "headers": {"Authorization": "withheld"},
        "lines": ["Authorization: withheld", "x", "a:y"],
        "batch_tokens": 4096,
        "template": "</s>{prompt} / {answer}</s>",
    }
    said = plain_text("no a:/home/me/y at file:///home/me/x; sent Authorization: Bearer SECRETX")
    assert said == "no a:y at x; sent Authorization: withheld"


def test_an_interrupted_record_is_not_a_failed_one(tmp_path):
    manifest = Manifest.open(tmp_path / "manifest.json", verb="train", settings={})
    with pytest.raises(KeyboardInterrupt), manifest.until_closed():
        raise KeyboardInterrupt
    found = json.loads((tmp_path / "manifest.json").read_text())
    assert found["outcome"] == "interrupted" and "error" not in found


@pytest.mark.parametrize("version", [99, "2"])
def test_a_record_of_a_later_format_is_refused(version, tmp_path):
    Manifest.open(tmp_path / "manifest.json", verb="train", settings={}).check_version()
    manifest = Manifest(tmp_path / "manifest.json", {"tool": "rewardsmith", "format_version": version})
    with pytest.raises(DataError, match=f"got format {version!r}"):
        manifest.check_version()


def test_a_run_that_goes_on_keeps_where_it_was_before(tmp_path):
    path = tmp_path / "manifest.json"

    def start(threads, resumed_from):
        return Manifest.open(
            path, verb="train", settings={}, device={"threads": threads}, resumed_from=resumed_from
        ).document

    start(1, None)
    # At the same place nothing needs to be kept.
    assert "starts" not in start(1, "checkpoint-3")
    found = start(2, "checkpoint-6")
    assert found["device"] == {"threads": 2}
    assert [(one["device"], one["resumed_from"]) for one in found["starts"]] == [({"threads": 1}, "checkpoint-3")]
    assert {"code", "versions", "platform", "started"} <= set(found["starts"][0])
    # Back at the first place, the one in between is the other one; a third keeps it.
    assert [one["device"] for one in start(1, "checkpoint-9")["starts"]] == [{"threads": 2}]
    assert [one["device"]["threads"] for one in start(3, "checkpoint-9")["starts"]] == [2, 1]
    # From the beginning again: nothing of the earlier starts is in what comes out.
    assert "starts" not in start(4, None)


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
