"""Settings: what is refused, and that every shipped recipe is one."""

from pathlib import Path

import pytest

from rewardsmith.config import TrainSettings, build, merge, parse_set, read_recipe
from rewardsmith.errors import SettingsError

NEEDED = {"model": "m", "data": "d", "out": "o"}
CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.toml"))


def test_defaults_are_the_guides():
    settings = build(TrainSettings, NEEDED)
    assert (settings.learning_rate, settings.weight_decay, settings.batch_size) == (2e-5, 0.01, 16)
    assert (settings.epochs, settings.max_length, settings.truncation, settings.dev_share) == (
        1,
        512,
        "keep_answer",
        0.05,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learnig_rate": 1}, "unknown key `learnig_rate`.*Did you mean `learning_rate`"),
        ({"loss": {"centering": 0.1}}, "loss.centering.*Did you mean `centring`"),
        ({"max_length": 4}, "max_length"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"template": "{prompt}"}, "answer} exactly once"),
        ({"template": "{answer}{prompt}"}, "before"),
        ({"loss": "hinge"}, "bradley_terry"),
        ({"loss": {"label_smoothing": 0.5}}, "label_smoothing"),
        ({"truncation": "left"}, "keep_answer"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_key(change, message):
    with pytest.raises(SettingsError, match=message):
        build(TrainSettings, {**NEEDED, **change})


def test_a_missing_key_is_named_with_its_flag():
    with pytest.raises(SettingsError, match="no `data`.*--data"):
        build(TrainSettings, {"model": "m", "out": "o"})


def test_an_output_that_is_an_input_is_refused(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("")
    for data in (tmp_path, tmp_path / "pairs.jsonl"):
        with pytest.raises(SettingsError, match="is or holds data"):
            build(TrainSettings, {**NEEDED, "data": str(data), "out": str(tmp_path)})


def test_recipe_then_flags_then_sets():
    recipe = {"learning_rate": 1e-5, "batch_size": 8, "trainer": {"save_steps": 10}, "loss": "bradley_terry"}
    sets = ["trainer.save_steps=50", "loss.centring=0.01", "batch_size=4", "precision=bf16"]
    merged = merge(recipe, {"learning_rate": 3e-5, "seed": None}, sets)
    assert merged["learning_rate"] == 3e-5 and merged["batch_size"] == 4 and merged["precision"] == "bf16"
    assert merged["trainer"] == {"save_steps": 50}
    assert build(TrainSettings, {**NEEDED, **merged}).loss.centring == 0.01
    assert recipe["trainer"] == {"save_steps": 10}


def test_values_of_set_are_toml_or_text():
    assert parse_set("a.b=[1, 2]") == (["a", "b"], [1, 2])
    assert parse_set("a=true") == (["a"], True)
    assert parse_set("a=plain words") == (["a"], "plain words")
    with pytest.raises(SettingsError, match="key=value"):
        parse_set("lonely")


def test_an_error_of_the_settings_as_a_whole_does_not_show_them_all(tmp_path):
    values = {"model": str(tmp_path), "data": "d", "out": str(tmp_path), "trainer": {"hub_token": "hf_SECRETX"}}
    with pytest.raises(SettingsError, match="got settings: ") as caught:
        build(TrainSettings, values)
    assert "SECRETX" not in str(caught.value) and "learning_rate" not in str(caught.value)


def test_recipes_in_yaml_and_broken_ones(tmp_path):
    (tmp_path / "r.yaml").write_text("learning_rate: 1.0e-4\nloss:\n  centring: 0.01\n")
    assert read_recipe(tmp_path / "r.yaml")["loss"] == {"centring": 0.01}
    (tmp_path / "r.toml").write_text("learning_rate = = 1")
    for path, message in ((tmp_path / "r.toml", "r.toml"), (tmp_path / "absent.toml", "absent.toml")):
        with pytest.raises(SettingsError, match=message):
            read_recipe(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path):
    from rewardsmith.model.trainer_arguments import build_arguments, check_trainer_table

    settings = build(TrainSettings, {**NEEDED, **read_recipe(path)})
    check_trainer_table(settings)
    import torch

    arguments = build_arguments(settings, Path("x"), precision="float32", device=torch.device("cpu"))
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    assert batch == settings.batch_size == 16
