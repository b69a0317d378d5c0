"""Every container holds the same rows; broken ones say what is broken."""

import csv
import gzip
import json
from datetime import date

import pytest

from rewardsmith.data import io
from rewardsmith.errors import DataError, RowError

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
