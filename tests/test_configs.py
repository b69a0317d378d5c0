"""The recipes of the guide's encoders, run on tiny random models of their kind."""

import json
import os
from pathlib import Path

import pytest
from rich.console import Console

import rewardsmith
from rewardsmith.config import read_recipe

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.mark.parametrize(
    ("name", "family", "pooling"),
    [
        ("distilbert", "distilbert", "mean"),
        ("deberta-v3-small", "deberta-v2", "pooler"),
        ("minilm-rmb", "bert", "mean"),
        ("minilm-frozen", "bert", "mean"),
    ],
)
def test_a_recipe_trains_a_tiny_model_of_its_kind(name, family, pooling, tiny, toy_pairs, tmp_path):
    recipe = read_recipe(CONFIGS / f"{name}.toml")
    settings = {
        **recipe,
        "model": tiny(family),
        "data": toy_pairs,
        "eval_data": toy_pairs,
        "out": str(tmp_path / "run"),
    }
    with open(os.devnull, "w") as file:
        report = rewardsmith.train(settings, console=Console(file=file))
    assert report["eval"]["num_pairs"] == 48
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["model"]["pooling"] == pooling
    assert manifest["render"]["encoding"] == "text"
