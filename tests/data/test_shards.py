"""Shards are read from any block on as from their beginning, and listed by what can be meant."""

import csv
import gzip
import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from rewardsmith.data import io, shards
from rewardsmith.data.shards import BEGINNING, blocks, hub_rows, shards_of
from rewardsmith.data.sources import is_hub_name, left_aside
from rewardsmith.errors import DataError

ROWS = [{"prompt": f"p{i}", "chosen": f"good {i}\n" * (i % 3 + 1), "rejected": f"bad {i}"} for i in range(23)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(shards, "BLOCK_ROWS", 4)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path, rows=ROWS):
    """The rows in the container that the name says; JSONL with an empty line between any two rows, Parquet with row groups of 7."""
    if path.name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    elif path.name.endswith(".csv"):
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines(rows).encode()))
    else:
        path.write_text(lines(rows).replace("\n", "\n\n"), encoding="utf-8")
    return path


def rows_in(found):
    return [row for block in found for _, row in io.parse(block.chunk)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_blocks_of_long_rows_begin_where_they_began(name, tmp_path, monkeypatch):
    """Blocks end early where their rows are large: also the first row of a block counts, whether reading began there or before."""
    rows = [{**row, "chosen": "long " * (10 + i % 5)} for i, row in enumerate(ROWS)]
    monkeypatch.setattr(io, "_CHUNK_BYTES", 300)
    (shard,) = shards_of(str(write(tmp_path / name, rows)))
    whole = list(blocks(shard))
    assert any(len(block.chunk.rows) < 4 for block in whole[:-1])
    for i, block in enumerate(whole):
        assert list(blocks(shard, start=block.place)) == whole[i:]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.jsonl.gz", "a.csv"])
def test_reading_from_any_block_gives_the_rest_of_the_shard(name, tmp_path):
    (shard,) = shards_of(str(write(tmp_path / name)))
    whole = list(blocks(shard))
    assert [len(block.chunk.rows) for block in whole] == [4, 4, 4, 4, 4, 3]
    assert rows_in(whole) == io.read(str(tmp_path / name)).rows  # numbers, which are the ids, included
    for i, block in enumerate(whole):
        assert list(blocks(shard, start=block.place)) == whole[i:]
    # The places that errors name are those of the plain reader.
    named = [where for block in whole for where, _ in block.chunk.rows]
    assert named == [where for where, _ in io.raw_rows(str(tmp_path / name))]


def test_numbers_go_on_from_shard_to_shard(tmp_path):
    for i in range(2):
        write(tmp_path / f"{i}.jsonl", ROWS[i * 10 : i * 10 + 10])
    first, second = shards_of(str(tmp_path))
    found = rows_in(blocks(first)) + rows_in(blocks(second, rows_before=10))
    assert [row.id for row in found] == [str(i) for i in range(1, 21)]


def test_rows_that_are_read_together_lie_in_one_block(tmp_path):
    """UltraFeedback's and HelpSteer's kind: neighbours of one prompt make one row."""
    rows = [
        {"prompt": f"p{i // 3}", "response": f"a{i}", "helpfulness": i % 3, "correctness": 1, "coherence": 1,
         "complexity": 1, "verbosity": 1}
        for i in range(18)
    ]  # fmt: skip
    (shard,) = shards_of(str(write(tmp_path / "a.jsonl", rows)))
    whole = list(blocks(shard))
    assert [len(block.chunk.rows) for block in whole] == [6, 6, 6]
    assert rows_in(whole) == io.read(str(tmp_path / "a.jsonl")).rows
    assert list(blocks(shard, start=whole[1].place)) == whole[1:]


def test_a_source_is_a_file_a_folder_or_a_glob(tmp_path):
    for i in (2, 0, 1):
        write(tmp_path / f"part-{i}.parquet")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "dataset_infos.json").write_text("{}")
    names = [f"part-{i}.parquet" for i in range(3)]
    assert [shard.path.name for shard in shards_of(str(tmp_path))] == names
    assert [shard.path.name for shard in shards_of(f"{tmp_path}/*-[01].parquet")] == names[:2]
    assert [shard.path.name for shard in shards_of(f"{tmp_path}/part-2.parquet")] == names[2:]
    assert left_aside(str(tmp_path)) == ["README.md", "dataset_infos.json"]


def test_what_is_no_set_of_shards_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data files in the folder .* got none"):
        shards_of(str(tmp_path))
    with pytest.raises(DataError, match=r"files that match '\*\.jsonl'; got none"):
        shards_of(f"{tmp_path}/*.jsonl")
    with pytest.raises(DataError, match="where nothing lies"):
        shards_of(str(tmp_path / "absent.jsonl"))
    write(tmp_path / "a.jsonl")
    write(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="Parquet and JSONL"):
        shards_of(str(tmp_path))
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    with pytest.raises(DataError, match=r"b\.json, which is one JSON array"):
        shards_of(str(tmp_path / "b.json"))
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="save_to_disk wrote"):
        shards_of(str(tmp_path / "saved"))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and no more")
    (shard,) = shards_of(str(tmp_path / "c.parquet"))
    with pytest.raises(DataError, match=r"a readable parquet file c\.parquet"):
        list(blocks(shard, start=BEGINNING))


def test_hub_names_are_told_from_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    write(tmp_path / "owner" / "here")
    assert is_hub_name("owner/name") and is_hub_name("owner/name:test")
    for source in ("owner/here", "owner/*", "name", "./a/b", "/a/b", "a/b.jsonl", "a/b/c"):
        assert not is_hub_name(source), source


def test_a_hub_stream_comes_in_an_order_by_seed_and_epoch(monkeypatch):
    asked = []

    def load_dataset(name, *, split, streaming):
        asked.append((name, split, streaming))
        return datasets.Dataset.from_list(ROWS[:20]).to_iterable_dataset(num_shards=5)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    orders = [[row["prompt"] for _, row in hub_rows("owner/name:test", seed=3, epoch=epoch)] for epoch in (0, 1, 0)]
    assert asked[0] == ("owner/name", "test", True)
    assert sorted(orders[0]) == sorted(row["prompt"] for row in ROWS[:20])
    assert orders[0] == orders[2] != orders[1]

    def fails(name, *, split, streaming):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(DataError, match="ConnectionError: no route"):
        next(hub_rows("owner/name", seed=0, epoch=0))
