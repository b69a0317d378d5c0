"""Every container holds the same rows; broken ones say what is broken."""

import csv
import gzip
import json
from datetime import date

import pyarrow
import pyarrow.parquet
import pytest

from rewardsmith.data import io
from rewardsmith.data.sources import files_of, left_aside, refuse_among, source_identity, source_name
from rewardsmith.errors import DataError, OutputError, RowError

ROWS = [
    {"id": "1", "prompt": "p", "chosen": "NA", "rejected": "no", "margin": 0.5, "goal": "x"},
    {"id": "2", "prompt": "42", "chosen": "Grüße\nzwei", "rejected": "日本", "goal": "y"},
]


def pairs(source):
    return io.preferences(io.read(str(source)).rows, str(source))


@pytest.fixture
def expected(write_rows):
    return pairs(write_rows(ROWS))


def test_gzip(expected, tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n")
    assert pairs(tmp_path / "a.jsonl.gz") == expected


def test_csv_keeps_texts_as_texts(expected, tmp_path):
    with open(tmp_path / "a.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "prompt", "chosen", "rejected", "margin", "goal"])
        writer.writeheader()
        writer.writerows(ROWS)
    assert pairs(tmp_path / "a.csv") == expected


def test_csv_of_other_programs(tmp_path):
    """A byte-order mark (Excel) and capitalised truth values (pandas); a line of too few cells is counted like any other."""
    text = "id,prompt,chosen,rejected,tie\n7,p,a,b,False\n8,p,a\n9,q,c,d,True\n"
    (tmp_path / "a.csv").write_text(text, encoding="utf-8-sig")
    with pytest.raises(RowError, match=r"a\.csv:3"):
        io.read(str(tmp_path / "a.csv"))
    reading = io.read(str(tmp_path / "a.csv"), skip_bad=True)
    assert [(row.id, row.tie) for row in reading.rows] == [("7", False), ("9", True)]
    assert dict(reading.skipped) == {"(line)": 1}


def test_parquet_and_saved_dataset(expected, tmp_path):
    import datasets

    dataset = datasets.Dataset.from_list(ROWS)
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    dataset.save_to_disk(str(tmp_path / "saved"))
    assert pairs(tmp_path / "a.parquet") == expected
    assert pairs(tmp_path / "saved") == expected


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + b"\n{not json}\n")
    with pytest.raises(RowError, match=r"a\.jsonl:2.*JSON object"):
        io.read(str(path))
    path.write_bytes(b'{"prompt": "\xff\xfe", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(RowError, match=r"a\.jsonl:1.*UTF-8"):
        io.read(str(path))
    path.write_text("[1, 2]\n")
    with pytest.raises(RowError, match="JSON object"):
        io.read(str(path))


def test_a_cut_archive_is_named(tmp_path):
    whole = gzip.compress(("".join(json.dumps(row) + "\n" for row in ROWS) * 50).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="after line"):
        io.read(str(tmp_path / "a.jsonl.gz"))


def test_nan_in_json_reaches_the_field_check(write_rows):
    with pytest.raises(RowError, match="field `margin`"):
        io.read(write_rows([{**ROWS[0], "margin": float("nan")}]))


def test_unknown_places_and_endings(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"a\.txt"):
        io.read(str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="Hugging Face dataset"):
        io.read("somebody/no-such-dataset")


def test_candidates_and_answers_are_no_preferences(write_rows):
    for row in ({"prompt": "p", "candidates": ["a", "b"]}, {"prompt": "p", "answer": "a"}):
        with pytest.raises(DataError, match="pairs or ranked groups"):
            pairs(write_rows([row]))


def test_groups_without_any_preference_are_an_error(write_rows):
    with pytest.raises(DataError, match="ratings are all equal"):
        pairs(write_rows([{"prompt": "p", "answers": ["a", "b"], "ratings": [1, 1]}]))


def test_the_fingerprint_is_of_the_content(write_rows, tmp_path):
    first = io.fingerprint(pairs(write_rows(ROWS)))
    assert first == io.fingerprint(pairs(write_rows(ROWS, "other.jsonl")))
    changed = [ROWS[0], {**ROWS[1], "chosen": "x"}]
    assert first != io.fingerprint(pairs(write_rows(changed, "third.jsonl")))


def test_rows_are_written_whatever_their_metadata_holds(tmp_path):
    """A date of a Parquet file, a number that is none and half a surrogate pair: none of them may cost the scores beside them."""
    rows = [
        {"score": 0.5, "metadata": {"day": date(2026, 1, 2), "rate": float("nan"), "text": "\ud800"}},
        {"score": 1.5},
    ]
    io.write_rows(tmp_path / "rows.jsonl", rows)
    read = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert read == [{"score": 0.5, "metadata": {"day": "2026-01-02", "rate": None, "text": "\ud800"}}, {"score": 1.5}]


def shard(path, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.name.endswith(".gz") else lines)


def test_a_folder_or_glob_is_read_as_one_source(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "id"} for row in ROWS]
    shard(tmp_path / "b.jsonl", rows[:1])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[1:]), tmp_path / "a.parquet")
    shard(tmp_path / "_hidden.jsonl", rows)
    (tmp_path / "about.json").write_text("{}")
    (tmp_path / "inside").mkdir()
    with pytest.raises(DataError, match="Parquet and JSONL"):  # perhaps the same data twice
        files_of(str(tmp_path))
    apart = tmp_path / "apart"
    apart.mkdir()
    shard(apart / "a.jsonl.gz", rows[1:])
    shard(apart / "b.ndjson", rows[:1])
    shard(apart / "_hidden.jsonl", rows)
    (apart / "about.json").write_text("{}")
    for source, names in (
        (f"{tmp_path}/[ab].*", ["a.parquet", "b.jsonl"]),
        (f"{tmp_path}/**/[ab].*json*", ["a.jsonl.gz", "b.ndjson", "b.jsonl"]),
        (str(apart), ["a.jsonl.gz", "b.ndjson"]),
    ):
        assert [source_name(one) for one in files_of(source)] == names
        if len(names) > 2:
            continue
        found = [row for row in io.iterate(source)]
        # In the order of the names; rows without an id are numbered through.
        assert [row.chosen for row in found] == [row["chosen"] for row in [*rows[1:], rows[0]]]
        assert [row.id for row in found] == [str(i) for i in range(1, len(rows) + 1)]
    said = io.read(str(apart)).describe(str(apart))
    assert said.startswith("apart: format") and said.endswith("; other files, not read: _hidden.jsonl, about.json")
    with pytest.raises(DataError, match="none"):
        files_of(f"{tmp_path}/*.csv")
    with pytest.raises(DataError, match="none"):
        files_of(str(tmp_path / "inside"))


def test_the_identity_of_many_files_is_of_names_and_contents(tmp_path):
    shard(tmp_path / "a.jsonl", ROWS)
    shard(tmp_path / "b.jsonl", ROWS[:1])
    first = source_identity(str(tmp_path))
    assert first == source_identity(f"{tmp_path}/*.jsonl") != source_identity(str(tmp_path / "a.jsonl"))
    shard(tmp_path / "b.jsonl", ROWS[1:2])
    assert source_identity(str(tmp_path)) != first


def test_the_identity_of_a_saved_dataset_is_of_its_contents(tmp_path):
    import datasets

    for name, rows in (("a", ROWS), ("same", ROWS), ("other", ROWS[:1])):
        datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / name))
    for state in tmp_path.glob("*/state.json"):
        state.write_text("{}")  # datasets writes a fingerprint of its own
    a, same, other = (source_identity(str(tmp_path / name)) for name in ("a", "same", "other"))
    assert a == same != other and str(tmp_path) not in a
    assert left_aside(str(tmp_path / "a")) == []


def test_a_shard_that_is_no_file_is_refused(tmp_path):
    shard(tmp_path / "a.jsonl", ROWS)
    lost = tmp_path / "b.jsonl"
    sources = (str(tmp_path), f"{tmp_path}/*.jsonl")
    for make, remove in ((lambda: lost.symlink_to("nowhere"), lost.unlink), (lost.mkdir, lost.rmdir)):
        make()
        for source in sources:
            with pytest.raises(DataError, match="b.jsonl"):
                files_of(source)
        remove()
    lost.mkdir()
    shard(lost / "c.jsonl", ROWS)
    assert [source_name(one) for one in files_of(f"{tmp_path}/**/*.jsonl")] == ["a.jsonl", "c.jsonl"]


def test_an_output_that_would_become_data_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    shard(tmp_path / "data" / "a.jsonl", ROWS)
    source = str(tmp_path / "data")
    for out, data in (
        ("data/scores.jsonl", source),
        ("data/scores", source),
        ("data", source),
        ("data", f"{source}/*.jsonl"),
        ("data/b.jsonl", f"{source}/*.jsonl"),
    ):
        with pytest.raises(OutputError):
            refuse_among(tmp_path / out, data)
    refuse_among(tmp_path / "data" / "b.txt", f"{source}/*.jsonl")
    refuse_among(tmp_path / "data" / "more" / "b.jsonl", f"{source}/*.jsonl")  # "*" stays within one folder
    for out in ("b.jsonl", "more/b.jsonl"):
        with pytest.raises(OutputError):
            refuse_among(tmp_path / "data" / out, f"{source}/**/*.jsonl")
    refuse_among(tmp_path / "scores", source)


@pytest.mark.parametrize("first", [0, 1, 4, 7, 8, 11, 12])
def test_rows_of_a_parquet_file_from_the_middle(tmp_path, first):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"n": n} for n in range(11)]), path, row_group_size=4)
    expected = [(f"a.parquet: row {n + 1}", {"n": n}) for n in range(11)]
    assert list(io.raw_rows(str(path), first=first)) == expected[first:]
    assert io.num_raw_rows(str(path)) == 11


def test_a_broken_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    for read in (io.read, io.num_raw_rows):
        with pytest.raises(DataError, match=r"a\.parquet"):
            read(str(tmp_path / "a.parquet"))
