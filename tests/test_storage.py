"""Whole or not at all."""

import os
import subprocess
import sys
import textwrap

import pytest

from rewardsmith.errors import OutputError
from rewardsmith.storage import atomic_file, atomic_folder, folder_lock, remove_abandoned, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write("half")
        raise RuntimeError
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    out = tmp_path / "out"
    with atomic_folder(out) as folder:
        (folder / "x").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(out) as folder:
        (folder / "x").write_text("new")
        raise RuntimeError
    assert (out / "x").read_text() == "old"
    with atomic_folder(out) as folder:
        (folder / "x").write_text("new")
    assert (out / "x").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"a\.json"):
        write_json(tmp_path / "file" / "a.json", {})


def test_a_held_folder_is_refused(tmp_path):
    with folder_lock(tmp_path):
        code = textwrap.dedent(f"""
            from pathlib import Path
            from rewardsmith.storage import folder_lock
            from rewardsmith.errors import OutputError
            try:
                with folder_lock(Path({str(tmp_path)!r})):
                    print("entered")
            except OutputError as error:
                print("refused", error)
        """)
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert found.startswith("refused") and "other run" in found
    with folder_lock(tmp_path):
        pass


def test_only_what_nobody_wrote_to_for_a_day_and_we_would_have_renamed_is_removed(tmp_path):
    names = (".states.npy.17.tmp", ".states.npy.18.tmp", ".vimrc.old", ".notes.tmp", "states.npy.17.tmp", "states.npy")
    for name in names:
        (tmp_path / name).write_text("x")
        if name != ".states.npy.18.tmp":  # somebody may be at it still
            os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".folder.17.tmp").mkdir()
    os.utime(tmp_path / ".folder.17.tmp", (0, 0))
    remove_abandoned(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([*names[1:], ".folder.17.tmp"])
    remove_abandoned(tmp_path / "nowhere")
