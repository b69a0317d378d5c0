"""Heads of several attributes: trained side by side, saved as one ordinary head, and kept beside it for those who ask."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import rewardsmith
from rewardsmith.data.golden import INPUTS
from rewardsmith.errors import ContractError, ModelError
from rewardsmith.model.artefact import verify
from rewardsmith.model.attributes import FILE_NAME, AttributeHeads, reduce_head
from rewardsmith.model.network import build_network
from rewardsmith.model.reward_model import RewardModel

FAMILIES = ("bert", "llama")
WEIGHTS = {"help": 0.75, "length": -0.5}
QUIET = Console(file=io.StringIO())
# Ratings of the two answers to each of 12 prompts; `help` is not known of every fourth first answer.
HELP = [(None if i % 4 == 0 else 3 + i % 2, 1) for i in range(12)]
LENGTH = [(2.0 + i % 3, 0.5) for i in range(12)]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """trained("bert") is the run folder of a model with two attributes."""
    rows = [
        {
            "prompt": f"How do I mend item {i}?",
            "candidates": [f"Gladly: use glue {i}, then wait.", f"No {i}."],
            "per_answer": {"help": list(HELP[i]), "length": list(LENGTH[i])},
        }
        for i in range(12)
    ]
    folder = tmp_path_factory.mktemp("attributes")
    data = folder / "rated.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {}

    def run(family):
        if family not in made:
            recipe = {"model": tiny(family), "data": str(data), "out": str(folder / family), "max_length": 64}
            recipe |= {"loss": {"name": "attributes", "attributes": WEIGHTS}, "dev_share": 0, "batch_size": 4}
            recipe |= {"precision": "float32", "device": "cpu", "learning_rate": 1e-2}
            rewardsmith.train(recipe | {"trainer": {"max_steps": 4, "warmup_steps": 0}}, console=QUIET)
            made[family] = folder / family
        return made[family]

    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_an_ordinary_one_with_one_score(family, trained):
    folder = trained(family) / "model"
    assert all(check.ok for check in verify(str(folder)))
    assert "file attributes.safetensors" in {check.name for check in verify(str(folder))}
    config = json.loads((folder / "config.json").read_text())
    assert len(config.get("id2label", [0])) == 1
    plain, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and plain.config.num_labels == 1
    model = RewardModel.load(folder)
    table = model.renderer.encode(INPUTS)
    with torch.inference_mode():
        rows = [torch.tensor(table.row(i).astype(np.int64))[None] for i in range(len(table))]
        scores = [plain.eval()(input_ids=row, attention_mask=torch.ones_like(row)).logits.item() for row in rows]
    assert np.allclose(scores, model.score(INPUTS), atol=1e-5)


def weighted_sum(found):
    return sum(WEIGHTS[name] * values.astype(np.float64) for name, values in found.items())


def test_the_score_is_the_weighted_sum_of_the_attributes(trained):
    model = RewardModel.load(trained("bert"))
    found = model.attributes(INPUTS)
    assert list(found) == list(WEIGHTS)
    assert all(values.shape == (len(INPUTS),) and values.dtype == np.float32 for values in found.values())
    assert not np.allclose(found["help"], found["length"])
    assert np.allclose(model.score(INPUTS), weighted_sum(found), atol=1e-5)


def test_a_head_without_bias_leaves_a_stated_constant_out_of_the_score(trained):
    """Mean of help: over its 21 known values 9 x 3 or 4 first answers (6 odd: 4, 3 even: 3) and 12 x 1; of length 2, 3, 4 in turn and 0.5."""
    model = RewardModel.load(trained("llama"))
    heads = model.attribute_heads
    means = {"help": (6 * 4 + 3 * 3 + 12 * 1) / 21, "length": (12 * 3 + 12 * 0.5) / 24}
    assert heads.bias.tolist() == pytest.approx(list(means.values()))
    # 0.75 x 45/21 - 0.5 x 1.75
    constant = sum(WEIGHTS[name] * mean for name, mean in means.items())
    found = model.attributes(INPUTS)
    assert np.allclose(model.score(INPUTS) + constant, weighted_sum(found), atol=1e-5)


def test_the_constant_of_a_head_without_bias_is_in_the_contract(trained):
    means = ((6 * 4 + 3 * 3 + 12 * 1) / 21, (12 * 3 + 12 * 0.5) / 24)
    stated = RewardModel.load(trained("llama")).contract.objective.get("rating_minus_score")
    assert stated == pytest.approx(0.75 * means[0] - 0.5 * means[1])
    assert "rating_minus_score" not in RewardModel.load(trained("bert")).contract.objective


@pytest.mark.parametrize("family", FAMILIES)
def test_asking_for_attributes_leaves_the_score_alone(family, trained):
    model = RewardModel.load(trained(family))
    before = model.score(INPUTS)
    model.attributes(INPUTS)
    assert np.array_equal(model.score(INPUTS), before)
    assert model.network.head_module.out_features == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_contract_names_the_attributes(family, trained):
    contract = RewardModel.load(trained(family)).contract
    assert contract.objective["loss"] == "attributes" and contract.objective["attributes"] == WEIGHTS
    assert list(contract.objective["attributes"]) == list(WEIGHTS)
    assert contract.files[FILE_NAME] and contract.head["shape"] == [1, 32]


def test_the_heads_have_learned_their_attributes(trained):
    """Apart from one another, and with biases that start at the means, 45/21 and 1.75, and are trained."""
    model = RewardModel.load(trained("bert"))
    assert not torch.equal(model.attribute_heads.weight[0], model.attribute_heads.weight[1])
    assert model.attribute_heads.bias.tolist() == pytest.approx([45 / 21, 1.75], abs=0.1)
    assert model.attribute_heads.bias.tolist() != pytest.approx([45 / 21, 1.75], abs=1e-6)


def test_a_folder_that_lost_its_heads_is_refused(trained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained("bert") / "model", folder)
    (folder / FILE_NAME).write_bytes(b"no tensors")
    with pytest.raises(ContractError, match=r"attributes\.safetensors"):
        RewardModel.load(folder)
    save_file({"weight": torch.zeros(2, 32)}, folder / FILE_NAME)
    with pytest.raises(ContractError, match=r"attributes\.safetensors"):
        RewardModel.load(folder)
    for weight, bias in (((1, 32), 1), ((2, 32), 1), ((2,), 2)):
        save_file({"weight": torch.zeros(*weight), "bias": torch.zeros(bias)}, folder / FILE_NAME)
        with pytest.raises(ContractError, match=r"attributes\.safetensors"):
            RewardModel.load(folder)
    (folder / FILE_NAME).unlink()
    with pytest.raises(ContractError, match=r"attributes\.safetensors"):
        RewardModel.load(folder)


def test_a_plain_model_has_no_attributes(tiny_rm):
    with pytest.raises(ModelError, match="trained on several attributes"):
        RewardModel.load(tiny_rm("bert")).attributes(INPUTS)


def test_reducing_heads_by_hand(tiny, tmp_path):
    """2 x row 0 - row 1 and 2 x 0.5 - 0.25; the offset stays with the heads."""
    network = build_network(tiny("bert"), pooling="auto", seed=0, dropout=False)
    weight = torch.stack([torch.arange(32.0), torch.ones(32)])
    network.set_head(weight, torch.tensor([0.5, 0.25]))
    heads = reduce_head(network, {"a": 2.0, "b": -1.0}, torch.tensor([10.0, 20.0]))
    assert torch.equal(network.head_module.weight[0], 2 * torch.arange(32.0) - 1)
    assert network.head_module.bias.item() == 0.75 and network.model.config.num_labels == 1
    assert heads.bias.tolist() == [10.5, 20.25] and torch.equal(heads.weight, weight)
    heads.save(tmp_path)
    again = AttributeHeads.load(tmp_path, {"a": 2.0, "b": -1.0})
    assert torch.equal(again.weight, weight) and again.bias.tolist() == [10.5, 20.25]
    assert set(load_file(tmp_path / FILE_NAME)) == {"weight", "bias"}
