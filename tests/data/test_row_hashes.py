"""When the rows of a file are not those that a run was given, it is said which."""

import numpy as np
import pytest

from rewardsmith.data import io, row_hashes
from rewardsmith.data.row_hashes import Place, RowHashes, changes
from rewardsmith.errors import DataError


def hashes(*rows, ids=None):
    """Rows of these contents (whole numbers), numbered where no ids are given."""
    names = [str(i) for i in range(1, len(rows) + 1)] if ids is None else list(ids)
    return RowHashes(names, np.array(rows, dtype=np.uint64))


def test_the_same_rows_are_no_change():
    assert not changes(hashes(1, 2, 3), hashes(1, 2, 3))
    assert not changes(hashes(), hashes())


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (hashes(1, 9, 3), {"changed": [Place(2, "2")]}),
        (hashes(1, 2, 3, 4), {"added": [Place(4, "4")]}),
        (hashes(1, 2), {"missing": [Place(3, "3")]}),
        # A row that is taken out shifts the numbers of all others, and none of them is changed.
        (hashes(2, 3), {"missing": [Place(1, "1")]}),
        (hashes(9, 1, 2, 3), {"added": [Place(1, "1")]}),
        # A second copy is a row more.
        (hashes(1, 2, 2, 3), {"added": [Place(3, "3")]}),
        (hashes(), {"missing": [Place(1, "1"), Place(2, "2"), Place(3, "3")]}),
    ],
)
def test_numbered_rows_are_found(now, expected):
    found = changes(hashes(1, 2, 3), now)
    assert {kind: getattr(found, kind) for kind in ("changed", "added", "missing") if getattr(found, kind)} == expected
    assert found.moved is None


def test_ids_join_what_changed_with_what_it_was():
    # c changed and stands first; b went; d came.
    found = changes(hashes(1, 2, 3, ids="abc"), hashes(9, 1, 4, ids="cad"))
    assert (found.changed, found.missing, found.added) == ([Place(1, "c")], [Place(2, "b")], [Place(3, "d")])


def test_another_order_alone_is_said_as_that():
    found = changes(hashes(1, 2, 3, ids="abc"), hashes(1, 3, 2, ids="acb"))
    assert found and found.lines() == ["the same rows in another order, from row 2 (id c) on"]


def test_the_first_ten_are_listed_and_all_are_counted():
    found = changes(hashes(*range(12)), hashes(*range(100, 112)))
    assert found.lines()[0].startswith("12 changed: row 1 (id 1), row 2 (id 2), ")
    assert found.lines()[0].endswith("row 10 (id 10), ...")
    assert found.as_dict()["changed"]["count"] == 12 and len(found.as_dict()["changed"]["first"]) == 10


def test_the_hash_is_of_content_alone(write_rows):
    row = {"id": "a", "prompt": "p", "chosen": "c", "rejected": "r"}
    variants = [row, row | {"id": "b", "topic": "x"}, row | {"margin": 2.0}, row | {"chosen": "c "}]
    pairs = io.preferences(io.read(write_rows(variants)).rows, "rows")
    found = RowHashes.of(pairs).hashes
    assert found[0] == found[1] and len(set(found.tolist())) == 3
    assert found.dtype == np.uint64


def test_written_hashes_come_back_in_few_bytes(tmp_path):
    rng = np.random.default_rng(0)
    many = RowHashes([str(i) for i in range(1, 1001)], rng.integers(0, 2**63, 1000).astype(np.uint64))
    named = RowHashes(["x", "line\nbreak", "\u00fc"], np.array([1, 2, 3], dtype=np.uint64))
    row_hashes.write({"data": many, "eval_data": named}, tmp_path / "rows.npz")
    found = row_hashes.read(tmp_path / "rows.npz")
    assert set(found) == {"data", "eval_data"}
    assert list(found["data"].ids) == list(many.ids) and (found["data"].hashes == many.hashes).all()
    assert list(found["eval_data"].ids) == list(named.ids)
    # 8 bytes a row, and less than 2 kB around them: ids that are row numbers take none.
    assert (tmp_path / "rows.npz").stat().st_size < 8 * 1000 + 2000


def test_hashes_that_are_missing_are_none_and_damaged_ones_are_refused(tmp_path):
    path = tmp_path / "rows.npz"
    assert row_hashes.read(path) == {}
    row_hashes.write({"data": hashes(*range(1000), ids=[f"id {i * i}" for i in range(1000)])}, path)
    whole = path.read_bytes()
    at = whole.index(b"data.hashes.npy") + 200  # within what is compressed
    damaged = (b"", whole[: len(whole) // 2], whole[:at] + b"spoiled" + whole[at + 7 :], b'{"no": "archive"}')
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"needed the hashes of a run's rows at .*rows\.npz; got a file that"):
            row_hashes.read(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").rename(path)  # of numpy, and no archive
    with pytest.raises(DataError):
        row_hashes.read(path)


@pytest.mark.parametrize("ids", [["a", "b", "ü"], ["1", "2", "3"]])
def test_hashes_that_were_written_as_they_came_are_read_like_others(ids, tmp_path):
    values = [2**64 - 1, 7, 0]
    with row_hashes.HashWriter(tmp_path) as writer:
        writer.add(ids[:2], values[:2])
        writer.add(ids[2:], values[2:])
    whole = RowHashes(ids, np.array(values, dtype=np.uint64))
    loaded = writer.stored.load()
    assert list(loaded.ids) == ids and loaded.hashes.tolist() == values
    assert not changes(whole, writer.stored)
    row_hashes.write({"data": writer.stored, "eval_data": whole}, tmp_path / "rows.npz")
    found = row_hashes.read(tmp_path / "rows.npz")
    for one in (found["data"], found["eval_data"]):
        assert list(one.ids) == ids and one.hashes.dtype == np.uint64 and one.hashes.tolist() == values
    # Eight bytes a row, and nothing for ids that are row numbers.
    assert writer.stored.hashes.stat().st_size == 24
    assert writer.stored.ids.stat().st_size == (0 if ids[0] == "1" else len('["a", "b", "ü"]'.encode()))
