"""A run over shards that was killed goes on to the same weights, to the bit, and reads again no more than the window that it stood in."""

import functools
from pathlib import Path

import pytest

from rewardsmith.data import shards
from rewardsmith.errors import OutputError
from rewardsmith.model import first_pass
from tests.invariants.test_resume import (
    EVERYTHING,
    cut,
    cut_at,
    is_saving,
    killed,
    newest_step,
    numbers,
    recipe,
    train,
    weights,
)

__all__ = ["cut_at"]  # a fixture


@pytest.fixture
def sharded(toy_pairs, tmp_path):
    """The toy pairs in four shards of 12."""
    rows = Path(toy_pairs).read_text().splitlines(keepends=True)
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.jsonl").write_text("".join(rows[i * 12 : i * 12 + 12]))
    return str(folder)


def test_a_run_over_shards_that_was_killed_ends_with_the_same_weights(tiny, sharded, tmp_path):
    """Killed in its first checkpoint, inside a window of a later epoch, and without what the first pass had left in the cache."""
    settings = functools.partial(recipe, tiny("bert"), sharded, threads=1, stream=16, dev_share=0.3)
    whole, said = train(settings(tmp_path / "whole"))
    assert "stream: windows of 16 examples over 4 shards" in said
    out = tmp_path / "cut"
    assert killed(settings(out), lambda: is_saving(out))
    # 34 to train / 8 = 5 steps an epoch, two in a window: step 9 lies in the last window of the second epoch.
    assert killed(settings(out, cache=False), lambda: newest_step(out) >= 9)
    report, said = train(settings(out))
    assert "going on from checkpoint-" in said
    assert weights(out) == weights(tmp_path / "whole")
    assert numbers(report) == numbers(whole)
    assert report["counts"] == whole["counts"] and report["dropped"] == whole["dropped"]


def test_a_run_that_goes_on_reads_from_the_window_that_it_stood_in(tiny, sharded, tmp_path, cut_at, monkeypatch):
    """48 pairs, blocks of 4, windows of 16: the checkpoint of step 9 stands in the second window of the second epoch, of six steps."""
    monkeypatch.setattr(shards, "BLOCK_ROWS", 4)
    more = {"dev_share": 0, "patience": None, "stream": 16, "epochs": 2}
    train(recipe(tiny("bert"), sharded, tmp_path / "whole", **more))
    out = tmp_path / "cut"
    cut(recipe(tiny("bert"), sharded, out, **more), 10, cut_at)
    read = []
    told_in = first_pass.told_in

    def watched(block, *arguments):
        read.append(block)
        return told_in(block, *arguments)

    monkeypatch.setattr(first_pass, "told_in", watched)
    table = {**EVERYTHING["trainer"], "dataloader_num_workers": 0}
    _, said = train(recipe(tiny("bert"), sharded, out, trainer=table, **more))
    assert "going on from checkpoint-9" in said
    # Slots 24 to 47 of the epoch are left: the windows of 16 to 31 and of 32 to 47, in eight blocks of four.
    assert len(read) == 8
    assert weights(out) == weights(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_over_shards_goes_on_with_another_number_of_workers(tiny, sharded, tmp_path, cut_at):
    more = {"dev_share": 0.3, "stream": 16}
    train(recipe(tiny("bert"), sharded, tmp_path / "whole", **more))
    out = tmp_path / "cut"
    cut(recipe(tiny("bert"), sharded, out, **more), 7, cut_at)
    table = {**EVERYTHING["trainer"], "dataloader_num_workers": 1}
    train(recipe(tiny("bert"), sharded, out, trainer=table, **more))
    assert weights(out) == weights(tmp_path / "whole")


def test_the_same_rows_dealt_otherwise_over_shards_are_another_run(tiny, sharded, tmp_path, cut_at):
    """One more file, without a row: the order goes by files, and some examples would come twice and others never."""
    settings = recipe(tiny("bert"), sharded, tmp_path / "run", stream=16, dev_share=0, patience=None)
    cut(settings, 4, cut_at)
    empty = Path(sharded) / "1b.jsonl"
    empty.write_text("")
    with pytest.raises(OutputError, match=r"others \(shards\)"):
        train(settings)
    empty.unlink()
    assert "going on from checkpoint-3" in train(settings)[1]


@pytest.mark.parametrize("name", ["contents.json", "blocks.npz", "hashes.bin", "kept.npy", "sample.jsonl"])
def test_a_cache_that_a_disk_has_spoilt_is_made_again(name, tiny, sharded, tmp_path, monkeypatch):
    monkeypatch.setenv("REWARDSMITH_CACHE", str(tmp_path / "cache"))
    settings = functools.partial(recipe, tiny("bert"), sharded, stream=16, dev_share=0.3, epochs=1)
    train(settings(tmp_path / "one"))
    (found,) = (tmp_path / "cache" / "streams").glob(f"*/{name}")
    found.write_bytes(found.read_bytes()[: found.stat().st_size // 2])
    with pytest.warns(UserWarning, match=f"corrupt: {name} .*; it is made again"):
        train(settings(tmp_path / "two"))
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    assert (tmp_path / "one" / "rows.npz").read_bytes() == (tmp_path / "two" / "rows.npz").read_bytes()
