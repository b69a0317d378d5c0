"""A run's recipe, followed again: the same numbers on the same pairs, refusals that say what to give, and nothing left behind."""

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from transformers import AutoTokenizer

import rewardsmith
from rewardsmith.config import ScoringSettings, TrainSettings
from rewardsmith.data.embedded import embedded_preferences
from rewardsmith.data.schema import as_row
from rewardsmith.errors import DataError, ModelError, SettingsError
from rewardsmith.evaluation.learning import learning_curve
from rewardsmith.evaluation.pairwise import evaluate
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.trainable import TrainableRun
from rewardsmith.scores import Trainable

CPU = ScoringSettings(device="cpu")
PAIRS = embedded_preferences()


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """The folder for temporary files, to see what is left in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def demo(write_rows):
    """32 pairs of the embedded demo set as a file."""
    return write_rows([as_row(pair) for pair in PAIRS[:32]], "demo.jsonl")


def train(model, data, out, **more):
    recipe = {"model": model, "data": data, "out": str(out), "max_length": 48, "learning_rate": 3e-3, "batch_size": 8}
    recipe |= {"dev_share": 0.2, "precision": "float32", "device": "cpu", "seed": 3, **more}
    for name in ("learning_rate", "batch_size") if "head" in more else ():  # a solver takes no steps
        del recipe[name]
    return rewardsmith.train(recipe, console=Console(file=io.StringIO()))


def scores_of(scorer, source):
    pairs = rewardsmith.read_pairs(source)
    return scorer.score([side for pair in pairs for side in (pair.chosen_pair, pair.rejected_pair)])


@pytest.mark.parametrize(
    "more",
    [
        {"epochs": 2, "trainer": {"save_steps": 2}, "learning_rate": 3e-2},
        {"freeze": "encoder", "head": {"solver": "lbfgs", "l2": 0.1}},
        {"prompt_swap": {"off_topic": 0.5}, "dev_share": 0, "trainer": {"seed": 3}, "seed": 8},
    ],
    ids=["a checkpoint before the last", "frozen", "made pairs, no dev part, seed of the trainer"],
)
def test_all_pairs_and_the_seed_of_the_run_give_the_scores_of_the_run(more, tiny, demo, tmp_path, scratch):
    """Bit for bit: the honest test that it is the same recipe."""
    base = tiny("distilbert" if "freeze" in more else "bert")
    train(base, demo, tmp_path / "run", **more)
    run = TrainableRun.open(tmp_path / "run", data=demo, model=base, scoring=CPU)
    assert isinstance(run, Trainable)
    pairs = run.training_pairs()
    again = run.train_on(pairs, seed=3)
    own = RewardModel.load(tmp_path / "run", CPU)
    assert np.array_equal(scores_of(again.scorer, demo), scores_of(own, demo))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    extra = manifest["data"].get("prompt_swap", {"extra_pairs": 0})["extra_pairs"]
    assert run.whole(own).num_pairs == again.num_pairs == len(pairs) == manifest["counts"]["train_pairs"] - extra
    assert list(scratch.iterdir()) == []


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """(run folder, its training data, the model that it started from) of one small run."""
    folder = tmp_path_factory.mktemp("finished")
    data = folder / "demo.jsonl"
    data.write_text("".join(json.dumps(as_row(pair)) + "\n" for pair in PAIRS[:32]))
    train(tiny("bert"), str(data), folder / "run")
    return folder / "run", str(data), tiny("bert")


def test_the_dev_part_is_the_same_for_every_share_and_no_pair_of_it_is_trained_on(finished, monkeypatch):
    from rewardsmith.model import trainable as module

    run_folder, data, base = finished
    run, seen = TrainableRun.open(run_folder, data=data, model=base, scoring=CPU), []
    original = module.training_run

    def watched(settings, **rest):
        seen.append(Path(settings.dev_data).read_text())
        return original(settings, **rest)

    monkeypatch.setattr(module, "training_run", watched)
    pairs = run.training_pairs()
    run.train_on(pairs[:9], seed=1)
    other = run.train_on(pairs, seed=2).scorer
    assert not np.array_equal(scores_of(other, data), scores_of(RewardModel.load(run_folder, CPU), data))
    dev = [json.loads(line) for line in seen[0].splitlines()]
    assert seen[0] == seen[1]
    assert len(dev) + len(pairs) == 32
    assert not {row["prompt"] for row in dev} & {pair.prompt for pair in pairs}


def test_a_run_of_other_data_or_another_model_is_refused_with_what_to_give(finished, tiny, write_rows, tmp_path):
    run_folder, data, base = finished
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    with pytest.raises(DataError, match=r"demo\.jsonl, 32 rows.*got pairs\.jsonl, 31 rows.*--train-data"):
        TrainableRun.open(run_folder, data=write_rows(rows[:-1]), model=base)
    rows[0]["chosen"] += "!"
    with pytest.raises(DataError, match="--train-data"):
        TrainableRun.open(run_folder, data=write_rows(rows), model=base)
    with pytest.raises(DataError, match="nowhere"):
        TrainableRun.open(run_folder, data="nowhere.jsonl", model=base)
    with pytest.raises(DataError, match="Leave --dev-data out"):
        TrainableRun.open(run_folder, data=data, dev_data=data, model=base)
    with pytest.raises(ModelError, match="--base-model"):
        TrainableRun.open(run_folder, data=data, model=tiny("electra"))
    with pytest.raises(ModelError):  # the manifest knows the last part of a path, which leads nowhere from here
        TrainableRun.open(run_folder, data=data)
    with pytest.raises(ModelError, match="finished `rewardsmith train`"):
        TrainableRun.open(base, data=data)
    manifest = json.loads((run_folder / "manifest.json").read_text())
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "manifest.json").write_text(json.dumps(manifest | {"outcome": "interrupted"}))
    with pytest.raises(ModelError, match="got train, interrupted"):
        TrainableRun.open(tmp_path / "half", data=data, model=base)
    # The same rows in another file, and the model folder in place of the run folder, are the same run.
    copy = tmp_path / "copy.jsonl"
    copy.write_text(Path(data).read_text())
    assert TrainableRun.open(run_folder / "model", data=str(copy), model=base).training_pairs()


def test_a_run_with_dev_data_asks_for_them(tiny, demo, write_rows, tmp_path):
    dev = write_rows([as_row(pair) for pair in PAIRS[60:80]], "dev.jsonl")
    default = TrainSettings.model_fields["dev_share"].default
    train(tiny("bert"), demo, tmp_path / "run", dev_data=dev, dev_share=default)
    with pytest.raises(DataError, match=r"dev\.jsonl.*--dev-data"):
        TrainableRun.open(tmp_path / "run", data=demo, model=tiny("bert"))
    with pytest.raises(DataError, match="--dev-data"):
        TrainableRun.open(tmp_path / "run", data=demo, dev_data=demo, model=tiny("bert"))
    run = TrainableRun.open(tmp_path / "run", data=demo, dev_data=dev, model=tiny("bert"), scoring=CPU)
    again = run.train_on(run.training_pairs(), seed=3).scorer
    assert np.array_equal(scores_of(again, demo), scores_of(RewardModel.load(tmp_path / "run", CPU), demo))


def test_a_loss_of_lists_is_refused(tiny, write_rows, tmp_path):
    rows = [{"prompt": f"prompt {i}", "ranked": [f"best {i}", f"fair {i}", f"worst {i}"]} for i in range(12)]
    data = write_rows(rows, "lists.jsonl")
    train(tiny("bert"), data, tmp_path / "run", loss="plackett_luce")
    with pytest.raises(SettingsError, match="plackett_luce"):
        TrainableRun.open(tmp_path / "run", data=data, model=tiny("bert"))


def test_nothing_is_left_on_disk_after_an_interrupt(finished, scratch, monkeypatch):
    from rewardsmith.model.trainer import PreferenceTrainer

    run_folder, data, base = finished
    run = TrainableRun.open(run_folder, data=data, model=base, scoring=CPU)
    before = {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}
    seen = []

    def breaks(self, *arguments, **more):
        seen.extend(scratch.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", breaks)
    with pytest.raises(KeyboardInterrupt):
        run.train_on(run.training_pairs(), seed=0)
    assert len(seen) == 1 and list(scratch.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")} == before


def test_a_chat_template_with_a_date_reads_the_day_of_the_run(tiny, demo, tmp_path, monkeypatch):
    """Else every model of the curve would read another text than the run did."""
    from tests.tiny_models import save_tiny

    base = save_tiny("qwen2", tmp_path / "dated")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (
        "{{ strftime_now('%Y-%m-%d') }} {% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    tokenizer.save_pretrained(base)
    train(str(base), demo, tmp_path / "run", encoding="chat")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["render"]["date"] = "2020-02-29"
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    run = TrainableRun.open(tmp_path / "run", data=demo, model=str(base), scoring=CPU)
    scorer = run.train_on(run.training_pairs()[:8], seed=0).scorer
    assert "2020-02-29" in scorer.renderer.render("Why?", "Because.")


def test_the_curve_of_a_frozen_encoder(tiny, demo, write_rows, tmp_path, scratch):
    """The whole way on a tiny model: numbers of pairs, and the model at hand for share 1."""
    train(tiny("distilbert"), demo, tmp_path / "run", freeze="encoder", head={"solver": "lbfgs", "l2": 0.1})
    run = TrainableRun.open(tmp_path / "run", data=demo, model=tiny("distilbert"), scoring=CPU)
    held_out = PAIRS[60::3]
    own = RewardModel.load(tmp_path / "run", CPU)
    told = []
    curve = learning_curve(run, held_out, shares=(0.25, 0.5, 1), repeats=1, whole=run.whole(own), progress=told.append)
    assert [point["num_pairs"] for point in curve["points"]] == [int(line.split()[-2]) for line in told[:2]] + [
        len(run.training_pairs())
    ]
    assert told[-1].endswith("the model at hand")
    assert curve["points"][-1]["accuracy"] == evaluate(own, held_out).document["accuracy"]
    assert list(scratch.iterdir()) == []
