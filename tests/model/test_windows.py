"""Data that do not fit memory are the same data: each example once an epoch, faults and counts as in memory, whatever the window."""

import functools
import gzip
import io
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from rich.console import Console
from torch.utils.data import DataLoader

import rewardsmith
from rewardsmith.config import LossSettings, TrainSettings, build
from rewardsmith.data import shards
from rewardsmith.data.schema import prompt_key
from rewardsmith.errors import DataError, OutputError, RowError, SettingsError
from rewardsmith.model import first_pass, hub_windows, streamed, windows
from rewardsmith.model.batching_choice import PADDED
from rewardsmith.model.examples import ExampleRows, example_table
from rewardsmith.model.losses import LOSSES
from rewardsmith.model.network import load_tokenizer
from rewardsmith.model.render import Renderer, RenderSpec
from rewardsmith.model.streamed import FROM_ROWS, check_stream
from rewardsmith.model.training_data import read_data
from rewardsmith.model.windows import ShardWindows, WindowCollator, WindowSampler, measure
from rewardsmith.sweeping import make_plan

FAULTY = [
    {"id": "empty", "prompt": "p", "chosen": " ", "rejected": "b"},
    {"id": "equal", "prompt": "p", "chosen": "a b", "rejected": "a  b"},
    {"id": "cut", "prompt": "p", "chosen": "a " * 90 + "x", "rejected": "a " * 90 + "y"},
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(shards, "BLOCK_ROWS", 5)


@pytest.fixture
def sharded(toy_pairs, tmp_path):
    """The toy pairs in five shards of different sizes, one of them empty, one compressed."""
    rows = Path(toy_pairs).read_text().splitlines(keepends=True)
    folder = tmp_path / "shards"
    folder.mkdir()
    for i, (start, end) in enumerate([(0, 3), (3, 3), (3, 20), (20, 41)]):
        (folder / f"{i}.jsonl").write_text("".join(rows[start:end]))
    (folder / "4.jsonl.gz").write_bytes(gzip.compress("".join(rows[41:]).encode()))
    return str(folder)


def recipe(model, data, out, **more):
    return {
        "model": model,
        "data": data,
        "out": str(out),
        "max_length": 64,
        "learning_rate": 3e-3,
        "batch_size": 8,
        "dev_share": 0,
        "precision": "float32",
        "device": "cpu",
        **more,
    }


def train(settings):
    said = io.StringIO()
    report = rewardsmith.train(settings, console=Console(file=said, width=400))
    return report, said.getvalue()


def renderer_of(model, **more):
    return Renderer(load_tokenizer(model), RenderSpec(max_length=64, **more))


def windows_of(model, data, out, *, size=16, batch_size=8, ranks=1, **more):
    settings = build(TrainSettings, recipe(model, data, out, stream=size, **more))
    contents = read_data(settings).stream
    renderer = renderer_of(model)
    measured = measure(contents, renderer, share=False)
    plan = {"size": size, "seed": 0, "batching": PADDED, "batch_size": batch_size, "ranks": ranks}
    return ShardWindows(contents, measured, renderer, **plan)


def epoch_of(found, epoch):
    """The ids of an epoch, in the order of its steps."""
    slots = range(epoch * len(found), (epoch + 1) * len(found))
    ids = []
    for slot in slots:
        table, (row,) = found.behind([slot])
        ids.append(table.ids[row])
    return ids


@pytest.mark.parametrize("size", [8, 16, 24, 48])
def test_an_epoch_holds_every_example_once_in_an_order_of_its_own(size, tiny, sharded, tmp_path):
    found = windows_of(tiny("bert"), sharded, tmp_path / "run", size=size)
    first, second = epoch_of(found, 0), epoch_of(found, 1)
    assert sorted(first) == sorted(second) == sorted(f"toy-{i}" for i in range(48))
    assert first != second
    if size < 48:
        assert found.window(0, 0)[1].tolist() != found.window(0, 1)[1].tolist()
    # A run that goes on in the second epoch, or in the middle of one, finds the same examples behind its slots.
    again = windows_of(tiny("bert"), sharded, tmp_path / "run", size=size)
    table, rows = again.behind(range(48 + 40, 48 + 48))
    assert [table.ids[row] for row in rows] == second[40:]
    assert epoch_of(again, 0) == first


def test_a_window_is_filled_by_neighbours_and_shards_come_in_another_order_each_epoch(tiny, sharded, tmp_path):
    found = windows_of(tiny("bert"), sharded, tmp_path / "run", size=8)
    shard_of = {f"toy-{i}": k for k, (a, b) in enumerate([(0, 3), (3, 20), (20, 41), (41, 48)]) for i in range(a, b)}
    orders = []
    for epoch in range(6):
        ids = epoch_of(found, epoch)
        met = [shard_of[one] for start in range(0, 48, 8) for one in sorted(ids[start : start + 8])]
        orders.append(tuple(dict.fromkeys(met)))
    assert len(set(orders)) > 1


def test_a_window_as_large_as_the_data_is_the_data(tiny, toy_pairs, tmp_path):
    """One shard, one window: the order is that of a run in memory, and so are the weights, to the bit."""
    more = {"epochs": 2, "trainer": {"gradient_accumulation_steps": 2}}
    whole, _ = train(recipe(tiny("bert"), toy_pairs, tmp_path / "whole", **more))
    stream, said = train(recipe(tiny("bert"), toy_pairs, tmp_path / "stream", stream=48, **more))
    assert "stream: windows of 48 examples over 1 shard" in said
    first, second = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "stream"))
    assert first == second
    assert stream["history"] == whole["history"] and stream["counts"] == whole["counts"]
    documents = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("whole", "stream")]
    assert documents[0]["counts"] == documents[1]["counts"]
    assert documents[0]["identity"]["data"] == documents[1]["identity"]["data"]
    of_stream = {k: v for k, v in documents[1]["data"]["data"].items() if k not in ("shards", "cut_sha256")}
    assert documents[0]["data"]["data"] == of_stream


def test_faults_are_dropped_and_counted_as_in_memory(tiny, toy_pairs, tmp_path):
    data = tmp_path / "faulty.jsonl"
    data.write_text(Path(toy_pairs).read_text() + "".join(json.dumps(row) + "\n" for row in FAULTY))
    more = {"max_dropped_share": 0.1, "epochs": 1, "truncation": "right"}
    whole, _ = train(recipe(tiny("bert"), str(data), tmp_path / "whole", **more))
    stream, said = train(recipe(tiny("bert"), str(data), tmp_path / "stream", stream=8, **more))
    assert stream["dropped"] == whole["dropped"]
    assert stream["dropped"]["ids"] == {
        "empty_answer": ["empty"],
        "equal_answers": ["equal"],
        "truncated_equal": ["cut"],
    }
    assert "dropped from training: 1 empty_answer (first: empty); 1 equal_answers" in said
    # 3 of 51 are more than 5 %: refused before the first step, whether they are seen as texts or as ids.
    with pytest.raises(DataError, match=r"at most 5% of the rows to be dropped; got 3 of 51"):
        train(recipe(tiny("bert"), str(data), tmp_path / "no", stream=8, truncation="right"))
    assert not (tmp_path / "no").exists()


def test_too_many_faults_stop_a_pass_before_its_end(tiny, write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(first_pass, "ENOUGH_ROWS", 20)
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "a" if i < 4 else "b"} for i in range(400)]
    data = write_rows(rows)
    with pytest.raises(DataError, match="got 4 of 20"):
        train(recipe(tiny("bert"), data, tmp_path / "run", stream=8))


def test_a_malformed_row_stops_with_its_place_or_is_counted(tiny, sharded, tmp_path):
    with open(f"{sharded}/2.jsonl", "a") as file:
        file.write('{"prompt": "p", "chosen": 3, "rejected": "b"}\n')
    with pytest.raises(RowError, match=r"2\.jsonl:18: field `chosen`"):
        train(recipe(tiny("bert"), sharded, tmp_path / "run", stream=8))
    train(recipe(tiny("bert"), sharded, tmp_path / "run", stream=8, skip_bad=True))
    facts = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]["data"]
    assert facts["skipped_bad"] == {"chosen": 1} and facts["rows"] == 49 and facts["pairs"] == 48


def test_rows_of_a_prompt_stand_on_one_side(tiny, sharded, tmp_path):
    """24 prompts of two rows each. Which are dev is told by their hashes, so the window does not matter."""
    settings = functools.partial(recipe, tiny("bert"), sharded, dev_share=0.3)
    data = read_data(build(TrainSettings, settings(tmp_path / "run", stream=8)))
    trained = windows_of(tiny("bert"), sharded, tmp_path / "run", size=8, dev_share=0.3)
    ids = epoch_of(trained, 0)
    dev = [one.id for one in data.dev]
    assert 0 < len(dev) < 30 and sorted(ids + dev) == sorted(f"toy-{i}" for i in range(48))
    prompts = {prompt_key(one.prompt) for one in data.dev}
    assert all((f"How do I mend item {int(one[4:]) % 24}?" in prompts) == (one in dev) for one in ids + dev)
    assert dev == sorted(dev, key=lambda one: int(one[4:]))  # in the order of the rows
    other = read_data(build(TrainSettings, settings(tmp_path / "run", stream=48, seed=1)))
    assert [one.id for one in other.dev] != dev


def test_a_dev_part_is_bounded_and_what_it_has_no_room_for_is_trained_on(tiny, sharded, tmp_path, monkeypatch):
    monkeypatch.setattr(first_pass, "MOST_DEV", 7)
    data = read_data(build(TrainSettings, recipe(tiny("bert"), sharded, tmp_path / "run", stream=8, dev_share=0.9)))
    # Whole prompts of two rows: three of them fit, and they are those of the smallest hashes.
    assert len(data.dev) == 6
    trained = windows_of(tiny("bert"), sharded, tmp_path / "run", size=8, dev_share=0.9)
    assert sorted(epoch_of(trained, 0) + [one.id for one in data.dev]) == sorted(f"toy-{i}" for i in range(48))
    everything = [one for i in (0, 2, 3, 4) for one in rewardsmith.read_pairs(str(next(Path(sharded).glob(f"{i}.*"))))]
    places = sorted({first_pass.prompt_place(one, 0) for one in everything})
    assert {first_pass.prompt_place(one, 0) for one in data.dev} == set(places[:3])


def test_no_prompt_for_the_dev_part_is_an_error(tiny, write_rows, tmp_path):
    data = write_rows([{"prompt": "one", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(9)])
    with pytest.raises(DataError, match="here are too few"):
        train(recipe(tiny("bert"), data, tmp_path / "run", stream=8, dev_share=0.01))


def test_eval_pairs_that_are_trained_on_are_left_out_of_the_eval(tiny, sharded, write_rows, toy_pairs, tmp_path):
    rows = [json.loads(line) for line in Path(toy_pairs).read_text().splitlines()]
    swapped = {
        "id": "swapped",
        "prompt": rows[9]["prompt"],
        "chosen": rows[9]["rejected"],
        "rejected": rows[9]["chosen"],
    }
    fresh = [
        {"id": f"new-{i}", "prompt": rows[i]["prompt"], "chosen": rows[i]["chosen"], "rejected": "?"} for i in range(4)
    ]
    evals = write_rows([rows[30], swapped, *fresh], "eval.jsonl")
    settings = functools.partial(recipe, tiny("bert"), eval_data=evals)
    stream = read_data(build(TrainSettings, settings(sharded, tmp_path / "run", stream=8)))
    whole = read_data(build(TrainSettings, settings(toy_pairs, tmp_path / "run")))
    assert stream.facts["eval_data"]["leaked"] == whole.facts["eval_data"]["leaked"] == {
        "count": 2,
        "ids": ["toy-30", "swapped"],
    }  # fmt: skip
    assert [one.id for one in stream.eval] == [f"new-{i}" for i in range(4)]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_the_same_examples(workers, tiny, toy_pairs, write_rows, tmp_path):
    """Rows so long that a file is not read in one go: what was begun here, where it is open and half read, is not gone on with there."""
    rows = [json.loads(line) | {"note": "x" * 3000} for line in Path(toy_pairs).read_text().splitlines()]
    data = write_rows(rows)
    expected = epoch_of(windows_of(tiny("bert"), data, tmp_path / "run", size=16), 0)
    found = windows_of(tiny("bert"), data, tmp_path / "run", size=16)
    found.window(0, 0)
    collator = WindowCollator(found, 0, False, PADDED, 10_000)
    loader = DataLoader(
        ExampleRows(found), batch_size=8, sampler=WindowSampler(found), collate_fn=collator, num_workers=workers
    )
    ids = [one for batch in loader for part in batch["parts"] for one in part.ids]
    assert ids == expected


def test_tables_joined_are_the_table_of_all(tiny, toy_pairs, tmp_path):
    pairs = rewardsmith.read_pairs(toy_pairs)
    renderer, loss = renderer_of(tiny("bert")), LossSettings()
    whole, _ = example_table(pairs, renderer, loss, cache=None, used={"margin": 1})
    parts = [
        example_table(pairs[i : i + 7], renderer, loss, cache=None, used={"margin": 1})[0] for i in range(0, 48, 7)
    ]
    joined = type(whole).join(parts)
    assert joined.ids == whole.ids
    for ours, theirs in (
        (joined.tokens.ids, whole.tokens.ids),
        (joined.tokens.starts, whole.tokens.starts),
        (joined.starts, whole.starts),
        (joined.better, whole.better),
        (joined.labels["margin"], whole.labels["margin"]),
    ):
        assert np.array_equal(ours, theirs)


def test_changed_rows_stop_a_run_that_reads_them_again(tiny, sharded, tmp_path):
    """The same size and time, so that the cache of the first pass answers; one letter differs."""
    path = Path(sharded) / "3.jsonl"
    found = windows_of(tiny("bert"), sharded, tmp_path / "run", size=16)
    time = os.stat(path).st_mtime_ns
    path.write_text(path.read_text().replace("glue number 33", "glue lumber 33"))
    os.utime(path, ns=(time, time))
    with pytest.raises(DataError, match=r"in 3\.jsonl the rows that the run began with; got others from row 11 on"):
        epoch_of(found, 0)
    # The next start looks again, and finds other data.
    again = read_data(build(TrainSettings, recipe(tiny("bert"), sharded, tmp_path / "run", stream=16)))
    assert again.facts["data"]["sha256"] != found.contents.facts["sha256"]


def test_reproduce_and_diff_name_a_changed_row(tiny, sharded, toy_pairs, tmp_path, cli):
    run = tmp_path / "run"
    train(recipe(tiny("bert"), sharded, run, stream=8, cache=False))
    code, out, _ = cli("reproduce", run, "--data", sharded, "--model", tiny("bert"), "--json")
    assert code == 0 and json.loads(out)["verdict"] == "bit-equal"
    code, out, _ = cli("diff", run, tmp_path / "run-reproduced", "--json")
    assert code == 0 and json.loads(out)["data"] == {}
    Path(f"{sharded}/1b.jsonl").write_text("")  # the order goes by files
    code, _, error = cli("reproduce", run, "--data", sharded, "--model", tiny("bert"), "--out", tmp_path / "dealt")
    assert code == 2 and "the same rows, dealt otherwise over the shards" in error
    Path(f"{sharded}/1b.jsonl").unlink()
    with open(f"{sharded}/2.jsonl", "a") as file:
        file.write('{"id": "more", "prompt": "p", "chosen": "a", "rejected": "b"}\n')
    code, _, error = cli("reproduce", run, "--data", sharded, "--model", tiny("bert"), "--out", tmp_path / "other")
    assert code == 2 and "1 added: row 21 (id more)" in error
    with pytest.raises(OutputError, match="others \\(data.data, shards\\)"):
        interrupted = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps(interrupted | {"outcome": "interrupted"}))
        train(recipe(tiny("bert"), sharded, run, stream=8, cache=False))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"loss": "davidson"}, "begins at numbers of all the data"),
        ({"prompt_swap": {"off_topic": 1}}, "may lie anywhere"),
        ({"freeze": "encoder"}, "keeps the features of all texts"),
        ({"data": "owner/name", "dev_share": 0}, "trainer.max_steps"),
        ({"data": "owner/name", "dev_share": 0.1, "trainer": {"max_steps": 9}}, "known before the first step"),
        ({"data": "owner/name", "trainer": {"max_steps": 9, "dataloader_num_workers": 1}}, "where faults are counted"),
    ],
)
def test_what_needs_all_examples_at_once_is_refused(more, message, tmp_path):
    values = recipe("nowhere", "pairs.jsonl", tmp_path / "run", stream=8) | more
    with pytest.raises(SettingsError, match=message):
        check_stream(build(TrainSettings, values))


def test_a_sweep_over_a_stream_is_refused(tmp_path):
    base = recipe("nowhere", "pairs.jsonl", tmp_path / "run", stream=8, dev_share=0.1)
    with pytest.raises(SettingsError, match="which a sweep splits once"):
        make_plan(base, ["learning_rate=1e-3,1e-4"])


def test_a_shard_in_the_run_folder_is_refused(sharded):
    """--overwrite would delete it; a glob is no path that the settings could look at."""
    with pytest.raises(OutputError, match="neither is nor holds an input"):
        read_data(build(TrainSettings, recipe("nowhere", f"{sharded}/*.jsonl", sharded, stream=8)))


def test_losses_that_read_row_by_row_are_those_that_take_nothing_from_the_data():
    for name, kind in LOSSES.items():
        settings = LossSettings(name=name, attributes={"helpful": 1.0} if name == "attributes" else {})
        if name in FROM_ROWS:
            kind.build(settings, [])
        else:
            with pytest.raises((ZeroDivisionError, ValueError, IndexError, RuntimeWarning)):
                kind.build(settings, [])


def test_lists_are_trained_on_window_by_window(tiny, write_rows, tmp_path):
    rows = [{"prompt": f"p{i}", "ranked": [f"good {i}", f"fair {i}", f"bad {i}"][: 2 + (i == 17)]} for i in range(20)]
    found = windows_of(tiny("bert"), write_rows(rows), tmp_path / "run", size=8, loss="plackett_luce")
    assert sorted(map(int, epoch_of(found, 0))) == list(range(1, 21))
    places = range(20)
    sizes = {
        found.behind([i])[0].ids[found.behind([i])[1][0]]: found.behind([i])[0].sizes[found.behind([i])[1][0]]
        for i in places
    }
    assert [name for name, size in sizes.items() if size == 3] == ["18"]
    two = write_rows([{**row, "ranked": row["ranked"][:2]} for row in rows], "two.jsonl")
    with pytest.raises(DataError, match="at least one list of three"):
        train(recipe(tiny("bert"), two, tmp_path / "no", stream=8, loss="plackett_luce"))


@pytest.fixture
def hub(toy_pairs, monkeypatch):
    """A stream of 48 pairs and two faulty ones in four shards, in place of the hub; `hub.rows` may be changed."""
    rows = [json.loads(line) for line in Path(toy_pairs).read_text().splitlines()]
    rows[10:10], rows[30:30] = [{**FAULTY[0], "topic": "odd"}], [{**FAULTY[2], "topic": "odd"}]

    class Hub:
        pass

    hub = Hub()
    hub.rows = rows
    monkeypatch.setattr(
        shards, "open_hub", lambda name, split: datasets.Dataset.from_list(hub.rows).to_iterable_dataset(num_shards=4)
    )
    return hub


def hub_recipe(model, out, steps, **more):
    table = {"max_steps": steps, "save_steps": 3, "logging_steps": 1, **more.pop("trainer", {})}
    return recipe(model, "owner/name", out, stream=16, truncation="right", trainer=table, **more)


def test_a_hub_stream_gives_each_row_once_a_pass_and_counts_as_it_goes(hub, tiny, tmp_path, monkeypatch):
    met = []
    behind = windows.Windows.behind

    def watched(self, slots):
        table, rows = behind(self, slots)
        met.extend(table.ids[row] for row in rows)
        return table, rows

    monkeypatch.setattr(windows.Windows, "behind", watched)
    report, said = train(hub_recipe(tiny("bert"), tmp_path / "run", 8))
    assert "stream: windows of 16 examples over the hub, counted as they come" in said
    # 8 steps of 8: one pass of 48, whose last window is whole, and 16 of the next.
    assert sorted(met[:48]) == sorted(f"toy-{i}" for i in range(48)) and len(met) == 64
    assert report["counts"] == {"data": 50}
    assert report["dropped"]["counts"] == {"empty_answer": 1, "truncated_equal": 1}
    document = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert document["counts"]["train_pairs"] == 48 and document["data"]["data"]["read_to_its_end"]
    assert document["dropped"] == report["dropped"]
    hub.rows[:] = [FAULTY[0]] * 4
    with pytest.raises(DataError, match="none left"):
        train(hub_recipe(tiny("bert"), tmp_path / "empty", 8))


def test_a_run_over_a_hub_stream_goes_on_or_sees_that_the_rows_are_others(hub, tiny, tmp_path, monkeypatch):
    from rewardsmith.model.trainer import PreferenceTrainer

    train(hub_recipe(tiny("bert"), tmp_path / "whole", 8, dropout=True))
    loss = PreferenceTrainer.compute_loss

    class Cut(Exception):
        pass

    def breaks(self, *arguments, **more):
        if self.state.global_step == 7:
            raise Cut
        return loss(self, *arguments, **more)

    for name in ("cut", "changed"):
        with monkeypatch.context() as patch:
            patch.setattr(PreferenceTrainer, "compute_loss", breaks)
            with pytest.raises(Cut):
                train(hub_recipe(tiny("bert"), tmp_path / name, 8, dropout=True))
    _, said = train(hub_recipe(tiny("bert"), tmp_path / "cut", 8, dropout=True))
    assert "going on from checkpoint-6" in said
    first, second = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert first == second
    hub.rows[3] = {**hub.rows[3], "chosen": "other"}
    with pytest.raises(DataError, match="from owner/name the rows that the run began with"):
        train(hub_recipe(tiny("bert"), tmp_path / "changed", 8, dropout=True))


def test_a_run_over_a_hub_stream_that_was_killed_after_its_last_step_is_finished(hub, tiny, tmp_path, monkeypatch):
    """No step is left that would read the stream: it is read for its counts alone."""
    whole, _ = train(hub_recipe(tiny("bert"), tmp_path / "whole", 6))

    class Cut(Exception):
        pass

    def killed(*_):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(streamed, "close", killed)
        with pytest.raises(Cut):
            train(hub_recipe(tiny("bert"), tmp_path / "cut", 6))
    report, said = train(hub_recipe(tiny("bert"), tmp_path / "cut", 6))
    assert "going on from checkpoint-6" in said
    assert report["counts"] == whole["counts"] and report["dropped"] == whole["dropped"]
    first, second = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert first == second


def test_what_was_read_for_a_measurement_is_held_against_the_mark_too(hub, tiny, tmp_path, monkeypatch):
    """Shared beginnings are measured on the first window, before a run goes on from a step that lies in it."""
    from rewardsmith.model import steps
    from rewardsmith.model.trainer import PreferenceTrainer

    monkeypatch.setattr(steps, "_MEASURED_STEPS", 1)
    monkeypatch.setattr(hub_windows, "BLOCK_ROWS", 5)
    step = PreferenceTrainer.training_step

    class Cut(Exception):
        pass

    def breaks(self, *arguments, **more):
        if self.state.global_step == 1:
            raise Cut
        return step(self, *arguments, **more)

    settings = hub_recipe(tiny("qwen3"), tmp_path / "cut", 3, share_prompts=True, trainer={"save_steps": 1})
    with monkeypatch.context() as patch:
        patch.setattr(PreferenceTrainer, "training_step", breaks)
        with pytest.raises(Cut):
            train(settings)
    assert "going on from checkpoint-1" in train(settings)[1]
    train({**settings, "out": str(tmp_path / "whole")})
    first, second = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert first == second


def test_an_error_of_a_worker_that_reads_arrives_as_what_it_was(tiny, sharded, tmp_path):
    """Torch would make a RuntimeError of it."""
    from rewardsmith.model.trainer import PreferenceTrainer

    found = windows_of(tiny("bert"), sharded, tmp_path / "run", size=16)
    for shard in Path(sharded).iterdir():
        shard.write_text("")
    collator = WindowCollator(found, 0, False, PADDED, 10_000)
    loader = DataLoader(
        ExampleRows(found), batch_size=8, sampler=WindowSampler(found), collate_fn=collator, num_workers=1
    )
    batch = next(iter(loader))
    with pytest.raises(DataError, match="the rows that the run began with"):
        PreferenceTrainer.training_step(None, None, batch)
    with pytest.raises(DataError, match="the rows that the run began with"):
        collator(range(8))


def test_what_the_first_pass_found_is_of_its_own_settings(tiny, sharded, write_rows, toy_pairs, tmp_path):
    """Another share for the dev part, or other eval pairs, over the same shards: nothing stale is taken from the cache."""
    rows = [json.loads(line) for line in Path(toy_pairs).read_text().splitlines()]
    settings = functools.partial(recipe, tiny("bert"), sharded, tmp_path / "run", stream=16)

    def found(**more):
        return read_data(build(TrainSettings, settings(**more)))

    assert len(found(dev_share=0.1).dev) < len(found(dev_share=0.6).dev)
    for start in (3, 7):
        leaked = found(eval_data=write_rows([*rows[start : start + 2], {**rows[0], "prompt": "new"}]))
        assert leaked.facts["eval_data"]["leaked"]["ids"] == [f"toy-{start}", f"toy-{start + 1}"]


def test_the_order_is_that_of_data_seed_where_it_is_set(tiny, sharded, tmp_path):
    renderer, orders = renderer_of(tiny("bert")), []
    for seed in (0, 1):
        values = recipe(tiny("bert"), sharded, tmp_path / "run", stream=16, trainer={"data_seed": seed})
        settings = build(TrainSettings, values)
        data = read_data(settings)
        _, measured = streamed.count(data, renderer, share=False)
        orders.append(epoch_of(streamed.windows(data, measured, renderer, settings, PADDED), 0))
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
