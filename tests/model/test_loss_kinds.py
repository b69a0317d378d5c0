"""Every loss through a whole run: what it learns reaches the contract, and data of another kind are refused before any model is looked for."""

import io
import json
from typing import get_args

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import rewardsmith
from rewardsmith.config import LossName, TrainSettings
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.model import dev_part
from rewardsmith.model.artefact import verify
from rewardsmith.model.losses import LOSSES
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.trainer import PreferenceTrainer
from rewardsmith.model.training_data import read_data

QUIET = Console(file=io.StringIO())


def prompt(i):
    return {"id": f"r{i}", "prompt": f"How do I mend item {i}?"}


def pair(i, **labels):
    return prompt(i) | {"chosen": f"Gladly: glue {i}.", "rejected": f"Go away, {i}."} | labels


def answers(i, number=3):
    return [f"Gladly: glue {i}.", f"Some glue, {i}.", f"Go away, {i}.", f"No {i}."][:number]


def rated(i, ratings):
    return prompt(i) | {"answers": answers(i, len(ratings)), "ratings": list(ratings)}


def with_attributes(i, **columns):
    return prompt(i) | {"candidates": answers(i, 2), "per_answer": columns}


TIES = [pair(i, tie=i % 3 == 0) for i in range(16)]
ROWS = {
    "bradley_terry": [pair(i) for i in range(16)],
    "rao_kupper": TIES,
    "davidson": TIES,
    "vote_share": [pair(i, votes=[2 + i % 3, i % 2]) for i in range(16)],
    "flip_noise": TIES,
    "plackett_luce": [prompt(i) | {"ranked": answers(i, 2 + i % 3)} for i in range(16)],
    "regression": [rated(i, (3.0, 2.0 + i % 2, 1.0)) for i in range(16)],
    "ordinal": [rated(i, (3, 1 + i % 3, 1)) for i in range(16)],
    "attributes": [with_attributes(i, help=[4, 1 + i % 2], brief=[1.5, 2]) for i in range(16)],
}
WEIGHTS = {"help": 1.0, "brief": 0.5}


def loss(name):
    return {"name": name, "attributes": WEIGHTS} if name == "attributes" else {"name": name}


def recipe(base, data, out, **more):
    trainer = {"max_steps": 2, "save_steps": 1, "save_total_limit": 9, "warmup_steps": 0} | more.pop("trainer", {})
    shared = {"max_length": 64, "batch_size": 4, "dev_share": 0.25, "precision": "float32", "device": "cpu"}
    shared |= {"learning_rate": 1e-2}
    return {"model": base, "data": data, "out": str(out), **shared, **more, "trainer": trainer}


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")

    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(folder / name)

    return write


@pytest.fixture(scope="module")
def run_of(tiny, file_of, tmp_path_factory):
    """run_of("ordinal") is (run folder, report) of two steps with that loss, judged on pairs of other prompts."""
    made, folder = {}, tmp_path_factory.mktemp("runs")
    held_out = file_of("held_out.jsonl", [pair(100 + i) for i in range(6)])

    def run(name):
        if name not in made:
            data = file_of(f"{name}.jsonl", ROWS[name])
            settings = recipe(tiny("bert"), data, folder / name, loss=loss(name), eval_data=held_out)
            made[name] = folder / name, rewardsmith.train(settings, console=QUIET)
        return made[name]

    return run


def test_every_loss_is_tried_here():
    assert set(ROWS) == set(get_args(LossName)) == set(LOSSES)


@pytest.mark.parametrize("name", ROWS)
def test_a_run_leaves_a_proven_model_judged_on_pairs(name, run_of):
    out, report = run_of(name)
    assert all(check.ok for check in verify(str(out / "model")))
    assert report["eval"]["num_pairs"] == 6
    assert [point["step"] for point in report["dev_points"]] == [0, 1, 2]
    assert len({point["log_loss"] for point in report["dev_points"]}) == 3  # the steps moved the model
    kind = LOSSES[name].data
    manifest = json.loads((out / "manifest.json").read_text())
    counts = manifest["counts"][f"train_{kind}"], manifest["counts"][f"dev_{kind}"]
    # Ties of the dev part are left out, and counted, where the loss has no likelihood for them.
    assert sum(counts) + manifest["data"]["dev_left_out"]["ties_or_empty"] == 16
    assert (out / "model" / "README.md").is_file()


@pytest.mark.parametrize(
    ("name", "keys"), [("rao_kupper", {"threshold"}), ("davidson", {"nu"}), ("ordinal", {"levels", "thresholds"})]
)
def test_what_a_loss_learned_has_moved_and_is_in_the_contract(name, keys, run_of, tiny, file_of, tmp_path):
    out, report = run_of(name)
    objective = RewardModel.load(out).contract.objective
    assert objective == {"loss": name} | report["training"]["learned"] and set(objective) == keys | {"loss"}
    settings = TrainSettings(**recipe(tiny("bert"), file_of(f"{name}.jsonl", ROWS[name]), tmp_path, loss=loss(name)))
    start = LOSSES[name].build(settings.loss, read_data(settings).train).learned()
    moving = (keys - {"levels"}).pop()
    steps = np.abs(np.atleast_1d(objective[moving]) - np.atleast_1d(start[moving]))
    # Two steps of Adam at the rate 1e-2, the smallest that such numbers have, move what it sees by about 2e-2.
    assert np.all(steps > 1e-4) and np.all(steps < 0.1)
    if name == "ordinal":
        assert objective["levels"] == [1, 2, 3] and objective["thresholds"][0] < objective["thresholds"][1]


@pytest.mark.parametrize("name", ["bradley_terry", "vote_share", "flip_noise", "plackett_luce", "regression"])
def test_a_loss_that_learns_nothing_beside_the_network_says_its_name(name, run_of):
    assert RewardModel.load(run_of(name)[0]).contract.objective == {"loss": name}


def test_the_weights_hold_nothing_of_the_loss(run_of):
    for name in ("rao_kupper", "ordinal", "attributes"):
        weights = load_file(run_of(name)[0] / "model" / "model.safetensors")
        assert not [key for key in weights if "objective" in key]
        stored = load_file(run_of(name)[0] / "checkpoints" / "checkpoint-1" / "model.safetensors")
        assert [key for key in stored if key.startswith("objective.")]  # a run that goes on needs it


def test_only_losses_that_see_the_level_of_scores_train_the_bias(run_of):
    """Ratings have a level, and the bias starts at their mean; pairs, lists and thresholds have none."""
    for name in ROWS:
        bias = RewardModel.load(run_of(name)[0]).network.head_module.bias
        assert (bias.item() != 0) == (name in ("regression", "attributes")), name


def test_a_decoder_states_what_its_head_cannot_hold(tiny, file_of, tmp_path):
    """The classes of decoders have no bias: the mean rating of what was trained on is left out of the score, and said."""
    data = file_of("regression.jsonl", ROWS["regression"])
    settings = recipe(tiny("llama"), data, tmp_path / "run", loss="regression", dev_share=0)
    rewardsmith.train(settings, console=QUIET)
    # Ratings 3, 2 or 3, 1: (3 + 2.5 + 1) / 3 in the mean.
    objective = RewardModel.load(tmp_path / "run").contract.objective
    assert objective["rating_minus_score"] == pytest.approx(6.5 / 3)


def test_ratings_go_on_from_the_level_that_a_reward_model_has(tiny, file_of, tmp_path):
    """Its head cannot move by six units: what the first run took off the ratings, the second one takes off, too."""
    rows = [rated(i, (9.0, 8.0 + i % 2, 7.0)) for i in range(16)]
    data = file_of("high.jsonl", rows)
    first = recipe(tiny("llama"), data, tmp_path / "first", loss="regression")
    rewardsmith.train(first, console=QUIET)
    more = recipe(str(tmp_path / "first"), data, tmp_path / "second", loss="regression")
    report = rewardsmith.train(more, console=QUIET)
    assert report["dev_points"][0]["log_loss"] < 4  # ratings of 8 against scores near 0 would be 64
    before, after = (RewardModel.load(tmp_path / name).contract.objective for name in ("first", "second"))
    assert before["rating_minus_score"] == pytest.approx(after["rating_minus_score"])


def test_single_answers_stay_elements_of_their_own_and_are_compared_by_prompt(tiny, file_of, tmp_path):
    """Sixty answers to three prompts: sixty elements of a batch, and dev accuracy from those that share a prompt."""
    rows = [{"prompt": f"q{i % 3}", "answer": f"Answer {i}.", "rating": i % 5, "weight": 2} for i in range(60)]
    console = Console(file=io.StringIO(), width=200)
    settings = recipe(tiny("bert"), file_of("single.jsonl", rows), tmp_path / "run", loss="regression", dev_share=0.3)
    report = rewardsmith.train(settings, console=console)
    said = console.file.getvalue()
    # One prompt of three is the dev part: 20 answers, in groups of eight.
    assert "ratings: 40 to train, 3 dev" in said
    assert "label columns that this loss does not read: weight (40 rows)" in said
    assert report["overfitting"]["dev"]["n"] > 0 and "train" not in report["overfitting"]


def test_the_dev_loss_is_the_same_in_parts(monkeypatch, tiny, file_of, tmp_path):
    data = file_of("plackett_luce.jsonl", ROWS["plackett_luce"])
    points = []
    for part in (256, 1):
        monkeypatch.setattr(dev_part, "_AT_ONCE", part)
        settings = recipe(tiny("bert"), data, tmp_path / f"run{part}", loss="plackett_luce")
        points.append([point["log_loss"] for point in rewardsmith.train(settings, console=QUIET)["dev_points"]])
    assert points[0] == pytest.approx(points[1], rel=1e-6)


def test_attributes_need_no_dev_part_and_an_attribute_that_is_null_everywhere_is_named(tiny, file_of, tmp_path):
    data = file_of("attributes.jsonl", ROWS["attributes"])
    rewardsmith.train(recipe(tiny("bert"), data, tmp_path / "a", loss=loss("attributes"), dev_share=0), console=QUIET)
    rows = [prompt(i) | {"answer": f"a{i}", "help": i % 3} for i in range(16)]
    with pytest.raises(DataError, match="none named brief"):
        rewardsmith.train(
            recipe("/no/such", file_of("misspelt.jsonl", rows), tmp_path / "b", loss=loss("attributes")), console=QUIET
        )
    rows = [with_attributes(i, help=[1, i % 3], brief=[None, None]) for i in range(16)]
    with pytest.raises(DataError, match=r"per_answer\.brief.*null everywhere"):
        rewardsmith.train(
            recipe("/no/such", file_of("null.jsonl", rows), tmp_path / "c", loss=loss("attributes")), console=QUIET
        )


def test_made_up_pairs_are_trained_on_and_reported_nowhere(tiny, file_of, tmp_path):
    """The normaliser and the training accuracy are of people's pairs."""
    data = file_of("bradley_terry.jsonl", ROWS["bradley_terry"])
    swap = {"off_topic": 0.5, "neutral": 0.5}
    report = rewardsmith.train(recipe(tiny("bert"), data, tmp_path / "run", prompt_swap=swap), console=QUIET)
    # 16 pairs, 4 of them dev; 12 + 6 + 6 are trained on.
    document = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert document["counts"]["train_pairs"] == 24
    assert report["overfitting"]["train"]["n"] == 12
    assert RewardModel.load(tmp_path / "run").contract.normaliser.n == 24


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"loss": "plackett_luce", "prompt_swap": {"off_topic": 1}}, "a loss of pairs without votes"),
        ({"loss": "vote_share", "prompt_swap": {"off_topic": 1}}, "a loss of pairs without votes"),
        ({"loss": "rao_kupper", "prompt_swap": {"neutral": 1}}, "ties that people gave"),
        ({"patience": 1, "trainer": {"save_strategy": "no"}}, "checkpoints, at which the dev part is scored"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(more, said, file_of, tmp_path):
    data = file_of("bradley_terry.jsonl", ROWS["bradley_terry"])
    with pytest.raises(SettingsError, match=said):
        rewardsmith.train(recipe("/no/such/model", data, tmp_path / "run", **more), console=QUIET)


@pytest.mark.parametrize("name", ["ordinal", "attributes"])
def test_an_interrupted_run_goes_on_with_what_the_loss_has_learned(name, run_of, tiny, file_of, tmp_path, monkeypatch):
    original = PreferenceTrainer.compute_loss

    def breaks(self, *arguments, **more):
        if self.state.global_step == 1:
            raise KeyboardInterrupt
        return original(self, *arguments, **more)

    whole, _ = run_of(name)
    held_out = file_of("held_out.jsonl", [pair(100 + i) for i in range(6)])
    data = file_of(f"{name}.jsonl", ROWS[name])
    settings = recipe(tiny("bert"), data, tmp_path / "cut", loss=loss(name), eval_data=held_out)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PreferenceTrainer, "compute_loss", breaks)
        rewardsmith.train(settings, console=QUIET)
    rewardsmith.train(settings, console=QUIET)
    contract = RewardModel.load(tmp_path / "cut").contract
    assert contract.objective == RewardModel.load(whole).contract.objective
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, tmp_path / "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)


SINGLE = [prompt(i) | {"answer": "Gladly."} for i in range(4)]
UNORDERED = [prompt(i) | {"candidates": answers(i)} for i in range(4)]
REFUSED = {
    "bradley_terry": [SINGLE, UNORDERED],
    "rao_kupper": [SINGLE, ROWS["bradley_terry"], [pair(i, tie=True) for i in range(4)]],
    "davidson": [SINGLE, ROWS["bradley_terry"], [pair(i, tie=True) for i in range(4)]],
    "vote_share": [SINGLE, ROWS["bradley_terry"], [*ROWS["vote_share"], pair(99)]],
    "flip_noise": [SINGLE, UNORDERED],
    "plackett_luce": [SINGLE, UNORDERED, ROWS["bradley_terry"], TIES, [rated(i, (2, 2, 2)) for i in range(4)]],
    "regression": [SINGLE, ROWS["bradley_terry"], UNORDERED, [rated(i, (2, 2, 2)) for i in range(4)]],
    "ordinal": [SINGLE, ROWS["bradley_terry"], [rated(i, (i, i + 0.3)) for i in range(16)]],
    "attributes": [
        SINGLE,
        ROWS["bradley_terry"],
        ROWS["regression"],
        [with_attributes(i, help=[1, 2]) for i in range(4)],
    ],
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_data_are_refused_before_a_model_is_looked_for(name, file_of, tmp_path):
    """The model's path leads nowhere: were it looked at first, the error would be of the model."""
    for i, rows in enumerate(REFUSED[name]):
        data = file_of(f"refused-{i}.jsonl", rows)
        settings = recipe("/no/such/model", data, tmp_path / "run", loss=loss(name), dev_share=0)
        with pytest.raises(DataError):
            rewardsmith.train(settings, console=QUIET)
        assert not (tmp_path / "run").exists()


def test_a_dev_part_of_another_kind_is_refused_too(file_of, tmp_path):
    for name, rows in (("vote_share", ROWS["bradley_terry"]), ("regression", ROWS["bradley_terry"])):
        more = {"dev_data": file_of("dev.jsonl", rows), "loss": loss(name)}
        settings = recipe("/no/such/model", file_of(f"{name}.jsonl", ROWS[name]), tmp_path / "run", **more)
        del settings["dev_share"]
        with pytest.raises(DataError):
            rewardsmith.train(settings, console=QUIET)


def test_labels_that_a_loss_leaves_unread_are_said(tiny, file_of, tmp_path):
    console = Console(file=io.StringIO(), width=300)
    data = file_of("margins.jsonl", [pair(i, tie=i % 3 == 0, margin=1.0) for i in range(16)])
    settings = recipe(tiny("bert"), data, tmp_path / "run", loss="davidson", dev_share=0)
    report = rewardsmith.train(settings, console=console)
    assert "label columns that this loss does not read: margin (16 rows)" in console.file.getvalue()
    assert report["training"]["learned"]["nu"] > 0
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["label_columns_unread"] == {"margin": 16}
