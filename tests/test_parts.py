"""Parts of a bulk scoring: together they are the rows of a plain `score`, each once, whoever makes them and in whatever order."""

import json
import random

import pyarrow.parquet as pq
import pytest

from rewardsmith import parts, streaming
from rewardsmith.data import io
from rewardsmith.data.sources import files_of
from rewardsmith.errors import DataError, OutputError, RowError
from rewardsmith.model.reward_model import RewardModel
from tests.data.test_formats import STEER
from tests.fakes import FunctionScorer, likes_long_answers


def single(i, prompt):
    return {"id": f"row-{i}", "prompt": f"prompt {prompt}", "answer": f"answer {'x' * (i % 7)} {i}"}


def planned(source, block):
    return parts.plan([(file, io.num_raw_rows(file)) for file in files_of(source)], block=block)


def scored(scorer, source, out, *, block, order=None, kind="single answers", **more):
    """All parts, made in some order by one worker; their rows in the order of the source."""
    every, rows = planned(source, block), parts.RawRows()
    for part in order(every) if order else every:
        more = {"skip_bad": False, **more}
        parts.score_part(scorer, part, rows, out, kind=kind, block=block, **more)
    return [row for part in every for row in pq.read_table(out / part.name).to_pylist()]


def plain(scorer, source, folder):
    streaming.score_file(scorer, source, folder / "plain.jsonl", identity={})
    return [json.loads(line) for line in (folder / "plain.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("block", [1, 3, 4, 7, 100])
def test_parts_hold_the_rows_of_a_plain_score_in_their_order(write_rows, tmp_path, block):
    (tmp_path / "data").mkdir()
    for shard, count in (("a", 10), ("b", 0), ("c", 13)):
        # Runs of 1, 2, 3, 4, ... rows of one prompt, and rows without an id of their own: those are numbered through the shards.
        rows = [single(i, int((2 * i) ** 0.5)) for i in range(count)]
        write_rows([row if i % 2 else {**row, "id": None} for i, row in enumerate(rows)], f"data/{shard}.jsonl")
    source = str(tmp_path / "data")
    found = scored(likes_long_answers(), source, tmp_path, block=block)
    assert found == plain(likes_long_answers(), source, tmp_path)
    assert [row["id"] for row in found][:3] + [found[10]["id"]] == ["1", "row-1", "3", "11"]


def test_a_part_is_the_same_to_the_byte_whoever_makes_it(tiny_rm, write_rows, tmp_path):
    model = RewardModel.load(tiny_rm("bert"))
    source = write_rows([single(i, i // 3) for i in range(40)])
    for name, order in (("one", None), ("other", lambda every: random.Random(0).sample(every, len(every)))):
        (tmp_path / name).mkdir()
        scored(model, source, tmp_path / name, block=7, order=order)
    for part in planned(source, 7):
        assert (tmp_path / "one" / part.name).read_bytes() == (tmp_path / "other" / part.name).read_bytes()


def test_scores_are_those_of_a_plain_score(tiny_rm, write_rows, tmp_path):
    model = RewardModel.load(tiny_rm("bert"))
    source = write_rows([single(i, i) for i in range(24)])
    # The same rows in the same batches: equal to the bit. In other batches: within the promise.
    streaming.score_file(model, source, tmp_path / "s.jsonl", identity={}, window=6)
    expected = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert scored(model, source, tmp_path, block=6) == expected
    other = scored(model, source, tmp_path, block=5)
    assert [row["score"] for row in other] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    assert [(row["id"], row["tokens"]) for row in other] == [(row["id"], row["tokens"]) for row in expected]


def test_rows_of_a_prompt_are_scored_in_one_call(write_rows, tmp_path):
    seen = []

    class Watched(FunctionScorer):
        def score(self, pairs):
            seen.append({prompt for prompt, _ in pairs})
            return super().score(pairs)

    prompts = [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]
    source = write_rows([single(i, prompt) for i, prompt in enumerate(prompts)])
    scored(Watched(lambda prompt, answer: 0.0), source, tmp_path, block=4)
    # Three equal parts would be 000 | 011 | 1223. The rule moves each border behind the prompt that it cuts.
    assert seen == [{"prompt 0"}, {"prompt 1"}, {"prompt 2", "prompt 3"}]


def test_one_endless_prompt_is_cut(write_rows, tmp_path):
    scorer = likes_long_answers()
    source = write_rows([single(i, 0) for i in range(20)])
    assert scored(scorer, source, tmp_path, block=4) == plain(likes_long_answers(), source, tmp_path)
    # No border within reach: each is where it was planned; the last one, within reach of the end, is not needed.
    assert scorer.calls == [4, 4, 4, 8]


def test_rows_that_a_format_reads_together_are_never_cut(write_rows, tmp_path):
    rows = [{"prompt": f"p{i // 2}", "response": f"r{i}", "helpfulness": i % 2, **STEER} for i in range(10)]
    source = write_rows(rows)
    expected = plain(likes_long_answers(), source, tmp_path)
    assert len(expected) == 5
    for block in (1, 3, 4):
        assert scored(likes_long_answers(), source, tmp_path, block=block, kind="groups") == expected


def test_parquet_and_lines_give_the_same_parts(write_rows, tmp_path):
    import pyarrow as pa

    rows = [single(i, i // 2) for i in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=8)
    backwards = lambda every: every[::-1]  # noqa: E731
    lines = scored(likes_long_answers(), write_rows(rows), tmp_path, block=3)
    for order in (None, backwards, lambda every: every[::3] + every[1::3] + every[2::3]):
        assert scored(likes_long_answers(), str(tmp_path / "a.parquet"), tmp_path, block=3, order=order) == lines


@pytest.mark.parametrize(
    ("row", "kind", "columns"),
    [
        ({"prompt": "p", "chosen": "ab", "rejected": "abcd"}, "pairs", {"score_chosen": 0.02, "score_rejected": 0.04}),
        ({"prompt": "p", "candidates": ["ab", "abc"]}, "groups", {"scores": [0.02, 0.03]}),
    ],
)
def test_pairs_and_groups_have_the_columns_of_score(row, kind, columns, write_rows, tmp_path):
    source = write_rows([row])
    (found,) = scored(likes_long_answers(), source, tmp_path, block=2, kind=kind)
    assert found == plain(likes_long_answers(), source, tmp_path)[0]
    assert found.pop("id") == "1" and found == {name: pytest.approx(value) for name, value in columns.items()}


def test_a_malformed_row_leaves_no_file_or_is_counted(write_rows, tmp_path):
    source = write_rows([single(0, 0), {"nothing": 1}, single(2, 1)])
    with pytest.raises(RowError, match="pairs.jsonl:2"):
        scored(likes_long_answers(), source, tmp_path, block=3)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
    found = scored(likes_long_answers(), source, tmp_path, block=3, skip_bad=True)
    assert [row["id"] for row in found] == ["row-0", "row-2"]
    assert dict(parts.read_counts(tmp_path / "part-00000.parquet").skipped) == {"chosen": 1}


def test_rows_of_two_kinds_are_refused(write_rows, tmp_path):
    source = write_rows([single(0, 0), {"id": "two", "prompt": "p", "candidates": ["a", "b"]}])
    with pytest.raises(DataError, match="'two'.*groups"):
        scored(likes_long_answers(), source, tmp_path, block=3)


def test_counts_are_read_from_the_parts(tiny_rm, write_rows, tmp_path):
    model = RewardModel.load(tiny_rm("bert"))
    source = write_rows([{**single(i, i), "answer": "word " * (80 if i == 4 else 2)} for i in range(9)])
    rows = scored(model, source, tmp_path, block=4)
    total = parts.added([parts.read_counts(tmp_path / part.name) for part in planned(source, 4)])
    assert (total.num_rows, total.num_answers, total.truncated) == (9, 9, 1)
    assert total.num_tokens == sum(row["tokens"] for row in rows)
    (tmp_path / "part-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(OutputError, match="part-00001.parquet"):
        parts.read_counts(tmp_path / "part-00001.parquet")


def test_the_number_of_parts_has_a_bound():
    # 25,000 blocks of 2 rows: three blocks a part are the fewest that give at most 10,000 parts. 50,000 / 6 = 8,333.3
    found = parts.plan([("a", 50_000)], block=2)
    assert len(found) == 8334 and {part.until - part.first for part in found} == {5, 6}
    assert [found[0].first, *(part.until for part in found)] == [0, *(part.first for part in found[1:]), 50_000]


def test_a_part_of_many_blocks_holds_few_of_its_rows_at_once(write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "MOST_PARTS", 1)
    source = write_rows([single(i, i // 2) for i in range(80)])
    (part,) = planned(source, 4)
    held, rows = [], parts.RawRows()

    class Watching(FunctionScorer):
        def score(self, pairs):
            held.append(len(rows._held))
            return super().score(pairs)

    scorer = Watching(likes_long_answers().function)
    parts.score_part(scorer, part, rows, tmp_path, kind="single answers", block=4, skip_bad=False)
    assert pq.read_table(tmp_path / part.name).to_pylist() == plain(likes_long_answers(), source, tmp_path)
    # A block, the row before it, and the first row of the next prompt.
    assert len(scorer.calls) == 20 and max(held) <= 6


def test_a_file_that_shrinks_is_noticed(write_rows, tmp_path):
    source = write_rows([single(i, i) for i in range(9)])
    late = planned(source, 3)[2]
    write_rows([single(0, 0)])
    with pytest.raises(DataError, match="fewer rows"):
        parts.score_part(
            likes_long_answers(), late, parts.RawRows(), tmp_path, kind="single answers", block=3, skip_bad=False
        )
