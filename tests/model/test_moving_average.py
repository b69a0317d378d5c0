"""Care during a run: the moving average of the weights is what is judged and saved, and patience ends a run that gets no better."""

import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

import rewardsmith
from rewardsmith.errors import SettingsError
from rewardsmith.model import training
from rewardsmith.model.moving_average import FILE_NAME, WeightAverage
from rewardsmith.model.network import build_network
from rewardsmith.model.trainer import PreferenceTrainer

QUIET = Console(file=io.StringIO())
KEY = "classifier.weight"


def number(start):
    """A model of one trained number, beside one that is not."""
    values = {"value": torch.tensor([float(start)]), "fixed": torch.tensor([7.0])}
    return nn.ParameterDict({name: nn.Parameter(v, requires_grad=name == "value") for name, v in values.items()})


def averaged(start, weights, decay):
    """The model at the last of some weights, and the average over all of them."""
    model = number(start)
    average = WeightAverage(model, decay)
    for weight in weights:
        model.value.data.fill_(weight)
        average.update()
    return model, average


def test_the_recursion_by_hand():
    """k_t = min(0.2, (1 + t) / (10 + t)): 2/11, then 1/5 (3/12 is more). 2/11 x 1 + 9/11 x 2 = 20/11; 1/5 x 20/11 + 4/5 x 3 = 152/55."""
    _, average = averaged(1, [2], 0.2)
    assert average.average["value"].item() == pytest.approx(20 / 11)
    _, average = averaged(1, [2, 3], 0.2)
    assert average.average["value"].item() == pytest.approx(152 / 55)


def test_the_early_factor_forgets_the_start():
    """With decay 0.99 only the early factors count: k = 2/11, 3/12, 4/13; of the start 2/11 x 3/12 x 4/13 = 2/143 is left."""
    _, average = averaged(1, [0, 0, 0], 0.99)
    assert average.average["value"].item() == pytest.approx(2 / 143)


def test_only_trained_parameters_are_averaged():
    _, average = averaged(1, [2], 0.9)
    assert set(average.average) == {"value"}


def test_a_model_holds_the_average_only_inside_the_block():
    model, average = averaged(1, [2], 0.2)
    with pytest.raises(KeyError), average.in_place():
        assert model.value.item() == pytest.approx(20 / 11)
        raise KeyError
    assert model.value.item() == 2 and model.fixed.item() == 7
    average.put()
    assert model.value.item() == pytest.approx(20 / 11)


def test_a_saved_average_goes_on(tmp_path):
    _, average = averaged(1, [2], 0.2)
    average.save(tmp_path)
    model = number(5)
    again = WeightAverage(model, 0.2)
    again.load(tmp_path)
    model.value.data.fill_(3)
    again.update()
    assert (again.average["value"].item(), again.steps) == (pytest.approx(152 / 55), 2)


def train(base, data, out, **more):
    recipe = {"model": base, "data": data, "out": str(out), "max_length": 64, "dev_share": 0.2, "batch_size": 8}
    recipe |= {"precision": "float32", "device": "cpu", "learning_rate": 1e-2}
    trainer = {"max_steps": 3, "save_steps": 1, "save_total_limit": 9, "warmup_steps": 0} | more.pop("trainer", {})
    return rewardsmith.train({**recipe, **more, "trainer": trainer}, console=QUIET)


def checkpoint(out, step, file="model.safetensors"):
    return load_file(out / "checkpoints" / f"checkpoint-{step}" / file)


def saved(out):
    return load_file(out / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    rows = [{"prompt": f"q {i}", "chosen": f"Gladly {i}.", "rejected": f"Go away {i}."} for i in range(30)]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def runs(tiny, pairs, tmp_path_factory):
    """(folder of a run with an average, of one without, the head's weight at each look at the dev part of the former)."""
    folder, heads, original = tmp_path_factory.mktemp("runs"), [], training.dev_numbers

    def watched(network, *arguments, **more):
        heads.append(network.head_module.weight.detach().clone())
        return original(network, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "dev_numbers", watched)
        train(tiny("bert"), pairs, folder / "with", ema_decay=0.2)
    train(tiny("bert"), pairs, folder / "without", ema_decay=0.0)
    return folder / "with", folder / "without", heads


def test_training_goes_on_from_the_raw_weights(runs):
    """To the bit those of a run that keeps no average."""
    out, plain, _ = runs
    for step in (1, 2, 3):
        one, other = checkpoint(out, step), checkpoint(plain, step)
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list(plain.rglob(FILE_NAME))


def test_the_average_follows_the_checkpoints(runs, tiny):
    """The factors 2/11, 1/5, 1/5 over the raw weights of the three steps."""
    out, _, _ = runs
    network = build_network(tiny("bert"), pooling="auto", seed=0, dropout=False)
    for name in (KEY, "bert.encoder.layer.0.output.dense.weight"):
        expected = dict(network.model.named_parameters())[name].detach()
        for step, k in ((1, 2 / 11), (2, 0.2), (3, 0.2)):
            expected = k * expected + (1 - k) * checkpoint(out, step)[name]
            assert torch.allclose(checkpoint(out, step, FILE_NAME)[name], expected, atol=1e-6)


def test_the_dev_part_is_scored_with_the_average(runs, tiny):
    out, _, heads = runs
    start = build_network(tiny("bert"), pooling="auto", seed=0, dropout=False).head_module.weight
    averages = [checkpoint(out, step, FILE_NAME)[KEY] for step in (1, 2, 3)]
    assert len(heads) == 4 and all(torch.equal(*two) for two in zip(heads, [start, *averages], strict=True))


def test_the_saved_model_is_the_average(runs):
    out, plain, _ = runs
    kept = json.loads((out / "report.json").read_text())["training"]["kept_step"]
    average = checkpoint(out, kept, FILE_NAME)
    assert average.pop("steps").item() == kept
    assert KEY in average and all(torch.equal(saved(out)[name], average[name]) for name in average)
    assert not torch.equal(saved(out)[KEY], checkpoint(out, kept)[KEY])
    kept = json.loads((plain / "report.json").read_text())["training"]["kept_step"]
    assert torch.equal(saved(plain)[KEY], checkpoint(plain, kept)[KEY])


def scripted(losses, monkeypatch):
    """Dev losses as told, in turn; the first is that before the first step."""
    told = iter(losses)
    monkeypatch.setattr(training, "dev_numbers", lambda *arguments, **more: (next(told), 0.5))


def test_the_average_of_the_kept_checkpoint_is_saved(tiny, pairs, tmp_path, monkeypatch):
    scripted([0.7, 0.5, 0.2, 0.6], monkeypatch)
    report = train(tiny("bert"), pairs, tmp_path, ema_decay=0.5)
    assert report["training"]["kept_step"] == 2
    assert torch.equal(saved(tmp_path)[KEY], checkpoint(tmp_path, 2, FILE_NAME)[KEY])


def test_an_interrupted_run_restores_the_average_bit_for_bit(runs, tiny, pairs, tmp_path, monkeypatch):
    original = PreferenceTrainer.compute_loss

    def breaks(self, *arguments, **more):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PreferenceTrainer, "compute_loss", breaks)
        train(tiny("bert"), pairs, tmp_path / "cut", ema_decay=0.2)
    train(tiny("bert"), pairs, tmp_path / "cut", ema_decay=0.2)
    one, other = (checkpoint(out, 3, FILE_NAME) for out in (runs[0], tmp_path / "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    one, other = saved(runs[0]), saved(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_patience_stops_after_so_many_checkpoints_without_a_new_best(tiny, pairs, tmp_path, monkeypatch):
    """Best at step 2, then 0.5 and 0.4 are no better: two in a row, at step 4 of 8."""
    scripted([0.7, 0.6, 0.3, 0.5, 0.4], monkeypatch)
    report = train(tiny("bert"), pairs, tmp_path / "run", patience=2, epochs=5, trainer={"max_steps": 8})
    facts = report["training"]
    assert (facts["steps"], facts["kept_step"], facts["stopped_early"]) == (4, 2, True)
    assert torch.equal(saved(tmp_path / "run")[KEY], checkpoint(tmp_path / "run", 2)[KEY])


@pytest.mark.parametrize("scored", [True, False])
def test_a_run_that_was_cut_after_it_had_stopped_does_not_train_on(scored, tiny, pairs, tmp_path, monkeypatch):
    """Killed while it saved, or between its last checkpoint and the scoring of the dev part: the same model as without the kill."""
    from rewardsmith.model import artefact

    out, settings = tmp_path / "run", {"patience": 1, "epochs": 5, "trainer": {"max_steps": 8}}
    scripted([0.7, 0.3, 0.5, 0.1, 0.1, 0.1, 0.1], monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(artefact, "save", lambda *arguments, **more: (_ for _ in ()).throw(KeyboardInterrupt))
        train(tiny("bert"), pairs, out, **settings)
    if not scored:
        scripted([0.5, 0.1, 0.1, 0.1], monkeypatch)
        points = (out / "checkpoints" / "dev.jsonl").read_text().splitlines(keepends=True)
        (out / "checkpoints" / "dev.jsonl").write_text("".join(points[:-1]))
    facts = train(tiny("bert"), pairs, out, **settings)["training"]
    assert (facts["steps"], facts["kept_step"], facts["stopped_early"]) == (2, 1, True)
    assert torch.equal(saved(out)[KEY], checkpoint(out, 1)[KEY])


def test_a_run_that_comes_to_its_end_is_not_called_stopped(runs):
    for out in runs[:2]:
        assert json.loads((out / "report.json").read_text())["training"]["stopped_early"] is False


def test_patience_without_a_dev_part_is_refused(tiny, tmp_path):
    with pytest.raises(SettingsError, match="a dev part for patience"):
        train(tiny("bert"), "absent.jsonl", tmp_path / "run", patience=2, dev_share=0)
