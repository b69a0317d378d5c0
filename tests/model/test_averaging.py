"""average: one scale before one model, what may not be averaged, and the same scores where nothing differs."""

import json
import shutil

import numpy as np
import pytest
import torch

from rewardsmith.data.golden import INPUTS
from rewardsmith.data.schema import Preference
from rewardsmith.errors import ContractError, DataError, ModelError, OutputError, SettingsError
from rewardsmith.model.artefact import Normaliser, load, read_contract, save
from rewardsmith.model.averaging import (
    Alignment,
    Head,
    Scale,
    aligned_heads,
    alignments,
    average,
    average_folders,
    compare,
    read_members,
    shared_start,
)
from rewardsmith.model.network import build_network, load_tokenizer
from rewardsmith.model.render import Renderer, RenderSpec
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.runs import read_pairs

DOUBLE = torch.float64
KINDS = [("bert", "mean"), ("bert", "auto"), ("roberta", "auto"), ("qwen2", "auto")]


def scale_of(scores):
    return Scale(float(scores.mean()), float(scores.std()))


def scores_of(head, features):
    """Scores of a linear model, (n,)."""
    return (features @ head.weight.T)[:, 0] + (0 if head.bias is None else head.bias)


def random_heads(count=3, size=5):
    generator = torch.Generator().manual_seed(1)
    heads = [
        Head(torch.randn(1, size, generator=generator, dtype=DOUBLE), torch.randn(1, generator=generator, dtype=DOUBLE))
        for _ in range(count)
    ]
    return heads, torch.randn(40, size, generator=generator, dtype=DOUBLE)


@pytest.fixture
def member(tiny, tmp_path):
    """member("a", noise=1) is a folder fine-tuned, as it were, from one start: noise on every weight; then factor * s + shift on its scores."""

    def build(
        name,
        *,
        family="bert",
        pooling="mean",
        noise=0,
        factor=1.0,
        shift=0.0,
        normaliser=None,
        start="sha",
        loss=None,
        **spec,
    ):
        network = build_network(tiny(family), pooling=pooling, seed=1, dropout=False)
        torch.manual_seed(noise)
        with torch.no_grad():
            for parameter in network.model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter) if noise else 0)
            head = network.head_module
            head.weight.mul_(3 * factor)
            if head.bias is not None:
                head.bias.mul_(factor).add_(shift)
        renderer = Renderer(load_tokenizer(tiny(family)), RenderSpec(**{"encoding": "text", "max_length": 64, **spec}))
        manifest = {"model": {"source": family, "head": "loaded"}, "identity": {"model": start}} if start else {}
        objective = {"loss": loss, "threshold": 0.5} if loss else None
        save(
            network,
            renderer,
            tmp_path / name,
            training_dtype="float32",
            manifest=manifest,
            normaliser=normaliser,
            objective=objective,
        )
        return str(tmp_path / name)

    return build


def test_alignment_by_hand():
    # Common mean (0 + 4) / 2 = 2, common deviation (1 + 3) / 2 = 2: 2 s + 2, and 2/3 s + (2 - 4 * 2/3) = 2/3 s - 2/3.
    first, second = alignments([Scale(0.0, 1.0), Scale(4.0, 3.0)])
    assert first == Alignment(2.0, 2.0)
    assert (second.factor, second.shift) == pytest.approx((2 / 3, -2 / 3))


def test_members_that_differ_by_an_affine_map_score_the_same_when_aligned():
    (head, _, _), features = random_heads()
    shouting = Head(7.0 * head.weight, 7.0 * head.bias - 3.0)
    scales = [scale_of(scores_of(one, features)) for one in (head, shouting)]
    first, second = aligned_heads([head, shouting], scales)
    torch.testing.assert_close(scores_of(first, features), scores_of(second, features))


def test_alignment_keeps_the_order_of_scores_and_puts_all_on_one_scale():
    heads, features = random_heads()
    before = [scores_of(head, features) for head in heads]
    after = [scores_of(head, features) for head in aligned_heads(heads, [scale_of(s) for s in before])]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old.argsort(), new.argsort())
        assert scale_of(new).mean == pytest.approx(np.mean([scale_of(s).mean for s in before]))
        assert scale_of(new).std == pytest.approx(np.mean([scale_of(s).std for s in before]))


def test_a_head_without_bias_is_only_stretched():
    heads, _ = random_heads(2)
    bare = [Head(head.weight, None) for head in heads]
    # Deviations 1 and 3 become 2: factors 2 and 2/3.
    first, second = aligned_heads(bare, [Scale(5.0, 1.0), Scale(-5.0, 3.0)])
    assert first.bias is None and second.bias is None
    torch.testing.assert_close(first.weight, 2 * heads[0].weight)
    torch.testing.assert_close(second.weight, heads[1].weight * 2 / 3)


def test_of_a_linear_model_the_average_is_the_mean_of_the_aligned_scores():
    heads, features = random_heads()
    aligned = aligned_heads(heads, [scale_of(scores_of(head, features)) for head in heads])
    found = average({"weight": head.weight, "bias": head.bias} for head in aligned)
    ensemble = torch.stack([scores_of(head, features) for head in aligned]).mean(dim=0)
    torch.testing.assert_close(scores_of(Head(found["weight"], found["bias"]), features), ensemble, rtol=1e-12, atol=0)


def test_weights_of_an_average_by_hand():
    states = [
        {"w": torch.tensor([1.0, 2.0]), "ids": torch.tensor([3])},
        {"w": torch.tensor([5.0, -2.0]), "ids": torch.tensor([3])},
    ]
    # (1 * 1 + 3 * 5) / 4 = 4, (1 * 2 - 3 * 2) / 4 = -1; whole numbers stay.
    found = average(states, [1.0, 3.0])
    assert found["w"].tolist() == [4.0, -1.0] and found["w"].dtype == DOUBLE
    assert found["ids"].tolist() == [3]
    assert states[0]["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "other",
    [{"v": torch.zeros(2)}, {"w": torch.zeros(3)}, {"w": torch.zeros(2), "more": torch.zeros(1)}, {}],
)
def test_weights_of_other_names_or_shapes_are_refused(other):
    with pytest.raises(ModelError, match="names and shapes"):
        average([{"w": torch.zeros(2)}, other])


def test_whole_numbers_that_differ_are_refused():
    with pytest.raises(ModelError, match="ids"):
        average([{"ids": torch.tensor([1])}, {"ids": torch.tensor([2])}])


def test_an_average_of_nothing_is_an_error():
    with pytest.raises(ModelError, match="none"):
        average([])


@pytest.mark.parametrize("scale", [Scale(1.0, 0.0), Scale(float("nan"), 1.0)])
def test_a_constant_member_has_no_scale(scale):
    with pytest.raises(ModelError, match="member 2"):
        alignments([Scale(0.0, 1.0), scale])


@pytest.mark.parametrize(("family", "pooling"), KINDS)
def test_a_model_averaged_with_itself_keeps_its_scores(family, pooling, tiny_rm):
    model = RewardModel.load(tiny_rm(family, pooling=pooling))
    before = model.score(INPUTS)
    state = model.network.model.state_dict()
    scale = scale_of(before.astype(np.float64))
    head = model.network.head_module
    (first, second) = aligned_heads([Head(head.weight.detach(), None)] * 2, [scale, scale])
    torch.testing.assert_close(first.weight, head.weight.detach().double())
    model.network.model.load_state_dict(average([state, state]))
    assert np.allclose(model.score(INPUTS), before, atol=1e-6, rtol=0)
    assert torch.equal(first.weight, second.weight)


@pytest.mark.parametrize(("family", "pooling"), KINDS)
def test_members_that_differ_by_an_affine_map_give_the_model_that_they_both_are(
    family, pooling, member, toy_pairs, tmp_path
):
    kind = {"family": family, "pooling": pooling}
    sources = [member("a", **kind, noise=3), member("b", **kind, noise=3, factor=4.0, shift=2.0)]
    pairs = read_pairs(toy_pairs)
    document = average_folders(sources, tmp_path / "out", pairs=pairs, device="cpu")
    texts = [pair.chosen_pair for pair in pairs] + [pair.rejected_pair for pair in pairs]
    first, second, found = (
        RewardModel.load(folder).score(texts).astype(float) for folder in (*sources, tmp_path / "out")
    )
    # Deviations d and 4 d become 2.5 d: 2.5 times the first member, up to a level.
    assert np.allclose(found - found.mean(), 2.5 * (first - first.mean()), atol=1e-4)
    if load(sources[0]).network.head_module.bias is not None:
        assert found.mean() == pytest.approx((first.mean() + second.mean()) / 2, abs=1e-4)
    values = {name: one["value"] for name, one in document["accuracy"].items()}
    assert set(values) == {"a", "b", "mean of the aligned scores", "average of the weights"}
    assert len(set(values.values())) == 1
    assert document["members"]["a"]["factor"] == pytest.approx(2.5)
    assert document["members"]["b"]["factor"] == pytest.approx(0.625)


def test_the_folder_is_the_mean_of_the_weights_with_provenance(member, toy_pairs, tmp_path, cli):
    sources = [member("a", noise=1), member("b", noise=2), member("c", noise=3)]
    pairs = read_pairs(toy_pairs)
    document = average_folders(sources, tmp_path / "out", pairs=pairs, device="cpu")
    states = [load(source).network.model.state_dict() for source in sources]
    found = load(str(tmp_path / "out"))
    name = "backbone.encoder.layer.0.output.dense.weight"
    expected = sum(state[name].double() for state in states) / 3
    torch.testing.assert_close(found.network.model.state_dict()[name], expected.float(), rtol=0, atol=0)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    hashes = [read_contract(tmp_path / one).files["model.safetensors"] for one in "abc"]
    assert [one["weights_sha256"] for one in manifest["members"].values()] == hashes
    assert str(tmp_path) not in json.dumps(manifest)
    normaliser = found.contract.normaliser
    texts = [pair.chosen_pair for pair in pairs] + [pair.rejected_pair for pair in pairs]
    assert normaliser.mean == pytest.approx(RewardModel.load(tmp_path / "out").score(texts).mean(), abs=1e-5)
    assert document["num_pairs"] == 48 and set(document["average_minus"]) == {
        "a",
        "b",
        "c",
        "mean of the aligned scores",
    }
    assert cli("verify", tmp_path / "out")[0] == 0


def test_the_order_of_members_changes_no_byte_of_the_weights(member, toy_pairs, tmp_path):
    sources = [member("a", noise=1), member("b", noise=2, factor=3.0), member("c", noise=3, shift=1.0)]
    pairs = read_pairs(toy_pairs)
    average_folders(sources, tmp_path / "one", pairs=pairs, device="cpu")
    average_folders(sources[::-1], tmp_path / "two", pairs=pairs, device="cpu")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_normalisers_of_the_same_data_align_and_others_ask_for_data(member, toy_pairs, tmp_path):
    same = [Normaliser(0.0, 1.0, 96, "d"), Normaliser(4.0, 3.0, 96, "d")]
    sources = [member(f"m{i}", noise=i + 1, normaliser=one) for i, one in enumerate(same)]
    document = average_folders(sources, tmp_path / "out", device="cpu")
    assert document["aligned_on"]["data_sha256"] == "d"
    assert [one["factor"] for one in document["members"].values()] == pytest.approx([2.0, 2 / 3])
    assert read_contract(tmp_path / "out").normaliser is None  # no text was scored
    # The head is the mean of the aligned heads: (2 w + 2/3 v) / 2.
    first, second, found = (load(str(folder)).network.head_module.weight for folder in (*sources, tmp_path / "out"))
    torch.testing.assert_close(found, first + second / 3)
    other = member("other", noise=5, normaliser=Normaliser(0.0, 1.0, 96, "another"))
    bare = member("bare", noise=6)
    for last in (other, bare):
        with pytest.raises(SettingsError, match="--data"):
            average_folders([sources[0], last], tmp_path / "more", device="cpu")
    document = average_folders([sources[0], other], tmp_path / "more", pairs=read_pairs(toy_pairs), device="cpu")
    assert document["aligned_on"]["n"] == 96 and "--data" in document["aligned_on"]["texts"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"family": "distilbert"}, "architecture"),
        ({"pooling": "cls"}, "pooling"),
        ({"max_length": 32}, r"render spec \(max_length\)"),
        ({"template": "{prompt} {answer}"}, r"render spec \(template\)"),
    ],
)
def test_members_that_read_or_compute_otherwise_are_refused_with_what_differs(change, said, member, tmp_path):
    with pytest.raises(ModelError, match=said):
        read_members([member("a", noise=1), member("b", noise=2, **change)])


def test_another_activation_of_the_same_shape_is_refused(member, tmp_path):
    first, second = member("a", noise=1), member("b", noise=2)
    config = json.loads((tmp_path / "b/config.json").read_text())
    config["backbone"]["hidden_act"] = "relu"
    (tmp_path / "b/config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="architecture"):
        read_members([first, second])


def test_members_of_other_losses_or_of_ratings_are_refused_and_what_a_loss_learned_is_left(member, tmp_path):
    """Ratings have units, which one scale for all would take away; a threshold is on the scale of its own run."""
    same = Normaliser(0.0, 1.0, 10, "data")
    ties = [member(name, noise=i, normaliser=same, loss="rao_kupper") for i, name in enumerate(("a", "b"))]
    average_folders(ties, tmp_path / "ties")
    assert read_contract(tmp_path / "ties").objective == {"loss": "rao_kupper"}
    other = member("c", noise=3, normaliser=same, loss="bradley_terry")
    with pytest.raises(ModelError, match=r"loss \(bradley_terry, rao_kupper\)"):
        average_folders([ties[0], other], tmp_path / "mixed")
    rated = [member(name, noise=i, normaliser=same, loss="regression") for i, name in enumerate(("d", "e"))]
    with pytest.raises(ModelError, match="the units of ratings"):
        average_folders(rated, tmp_path / "rated")


def test_one_member_or_one_twice_is_no_average(member, tmp_path):
    first = member("a", noise=1)
    shutil.copytree(first, tmp_path / "copy")
    with pytest.raises(SettingsError, match="two or more"):
        read_members([first])
    with pytest.raises(SettingsError, match="same weights"):
        read_members([first, member("b", noise=2), str(tmp_path / "copy")])


def test_changed_weights_and_a_folder_without_contract_are_refused(member, tmp_path):
    first, second = member("a", noise=1), member("b", noise=2)
    shutil.copy(f"{first}/model.safetensors", f"{second}/model.safetensors")
    with pytest.raises(ContractError, match="another one"):
        read_members([first, second])
    (tmp_path / "b/rewardsmith.json").unlink()
    with pytest.raises(ContractError, match="import"):
        read_members([first, second])


def test_what_is_known_of_the_start_is_said(member):
    first, second = member("a", noise=1), member("b", noise=2)
    assert shared_start(read_members([first, second]))["warnings"] == []
    assert "different weights" in shared_start(read_members([first, member("c", noise=3, start="x")]))["warnings"][0]
    assert "no record" in shared_start(read_members([first, member("d", noise=4, start=None)]))["warnings"][0]


def test_nothing_but_an_earlier_average_is_replaced(member, toy_pairs, tmp_path):
    sources, pairs = [member("a", noise=1), member("b", noise=2)], read_pairs(toy_pairs)
    out = tmp_path / "out"
    average_folders(sources, out, pairs=pairs, device="cpu")
    with pytest.raises(OutputError):
        average_folders(sources, out, pairs=pairs, device="cpu")
    average_folders(sources, out, pairs=pairs, device="cpu", overwrite=True)
    other = member("c", noise=3)
    for taken in (sources[0], other, str(tmp_path)):
        with pytest.raises(OutputError):
            average_folders(sources, tmp_path / taken, pairs=pairs, device="cpu", overwrite=True)


def test_the_comparison_by_hand():
    pairs = [Preference(str(i), f"p{i}", "c", "r") for i in range(4)]
    zero = np.zeros(4)

    def margins(*values):
        return np.array([np.array(values, float), zero])

    found = compare(
        pairs,
        {"a": margins(1, 1, -1, -1), "b": margins(1, 0, 1, 1)},
        average=margins(1, 1, 1, -1),
        ensemble=margins(1, 1, 1, 1),
    )
    values = {name: one["value"] for name, one in found["accuracy"].items()}
    # Wins 2, 3.5 (a tie is one half), 4 and 3 of 4.
    assert values == {"a": 0.5, "b": 0.875, "mean of the aligned scores": 1.0, "average of the weights": 0.75}
    paired = {name: one["value"] for name, one in found["average_minus"].items()}
    assert paired == {"a": 0.25, "b": -0.125, "mean of the aligned scores": -0.25}
    assert all(one["low"] <= one["value"] <= one["high"] for one in found["average_minus"].values())


def test_pairs_without_a_winner_judge_nothing(member, tmp_path):
    sources = [member("a", noise=1), member("b", noise=2)]
    with pytest.raises(DataError, match="winner"):
        average_folders(sources, tmp_path / "out", pairs=[Preference("1", "p", "c", "r", tie=True)], device="cpu")
    assert not (tmp_path / "out").exists()
