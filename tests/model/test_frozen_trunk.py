"""Frozen layers are run once: scores, gradients and whole runs above their states are those of the whole network, and where that would not be so it is said."""

import io
import json
import os

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

import rewardsmith
from rewardsmith.config import TrainSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.model import frozen_trunk, trunk_states
from rewardsmith.model.artefact import verify
from rewardsmith.model.batching import collate
from rewardsmith.model.batching_choice import PADDED, choose_batching
from rewardsmith.model.examples import example_table
from rewardsmith.model.feature_cache import FeatureReader
from rewardsmith.model.frozen_features import choose_learner
from rewardsmith.model.frozen_trunk import TRUNK_FAMILIES, TrunkNetwork, num_reads, obstacle
from rewardsmith.model.layers import layer_stack
from rewardsmith.model.network import build_network, load_tokenizer
from rewardsmith.model.packing import pack
from rewardsmith.model.pooling import reads_left_to_right
from rewardsmith.model.render import Renderer, RenderSpec
from rewardsmith.model.trained_parts import choose_trained
from rewardsmith.model.trunk_states import plan_states, texts_of
from tests.invariants.test_packed import exact
from tests.tiny_models import save_tiny

CPU = torch.device("cpu")
GROUP = [(INPUTS[1][0], answer) for answer in ("yes indeed", "no", "no", "no way", "maybe so " * 5)]
TEXTS = [*INPUTS[:4], *GROUP]
# Three layers, of which two are frozen; windows shorter than the texts; DeBERTa as version 3 has it: the norm of its relative positions is used in every layer.
LAYERS = {"distilbert": "n_layers", "gpt2": "n_layer"}
V3 = {"norm_rel_ebd": "layer_norm", "position_buckets": 8, "share_att_key": True}
CHANGES = {
    "mistral": {"sliding_window": 24},
    "gemma2": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 24},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 24},
    "deberta-v2": V3,
}


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REWARDSMITH_CACHE", str(tmp_path / "cache"))


def settings_of(**more):
    return TrainSettings(**{"model": "m", "data": "d", "out": "o", "freeze": 2, "epochs": 3, **more})


def built(family, folder, *, freeze=2, layers=3, changes=None, encoding="text"):
    """(network whose first layers are frozen, its reader, texts)."""
    found = CHANGES.get(family, {}) if changes is None else changes
    base = str(save_tiny(family, folder / family, **{LAYERS.get(family, "num_hidden_layers"): layers}, **found))
    network = build_network(base, pooling="auto", seed=0, dropout=False)
    choose_trained(network, settings_of(freeze=freeze), pins_level=False)
    renderer = Renderer(load_tokenizer(base), RenderSpec(max_length=90, encoding=encoding))
    reader = FeatureReader(network, renderer, CPU, choose_batching(network, CPU), folder / "cache")
    return network, reader, renderer.encode(TEXTS)


def above(reader, tokens, count=2):
    """The network over states that were read into a file."""
    network = reader.network
    plan = plan_states(reader, tokens, layer_stack(network), count, precision="float32")
    assert not plan.trunk.trained_below
    return TrunkNetwork(**vars(network), trunk=plan.trunk, states=plan.read()), plan


def batches_of(reader, tokens):
    rows = np.arange(len(tokens))
    pad_id, with_types = reader.padding
    yield "padded", collate(tokens, rows, pad_id=pad_id, with_types=with_types)
    if reader.batching.packed:
        yield reader.batching.name, pack(tokens, rows, share=reader.batching.share, with_types=with_types)


def passed(network, batch):
    """(outputs, gradients) under a loss that gives every text a weight of its own."""
    network.model.train()
    network.model.zero_grad()
    outputs = network.outputs(batch)[:, 0]
    (outputs * torch.arange(1, len(outputs) + 1)).sum().backward()
    return outputs.detach(), {n: p.grad.clone() for n, p in network.model.named_parameters() if p.grad is not None}


def agree(network, over_states, reader, tokens, bound):
    ways = []
    for name, batch in batches_of(reader, tokens):
        (whole, of_whole), (known, of_known) = passed(network, batch), passed(over_states, batch)
        assert float(whole.std()) > 0.01 and len(of_whole) > 4
        assert float(((whole - known).abs() / whole.abs().clamp(min=1)).max()) <= bound, name
        assert of_whole.keys() == of_known.keys()
        for one, gradient in of_whole.items():
            assert float((gradient - of_known[one]).abs().max() / gradient.abs().max().clamp(min=1)) <= bound, one
        ways.append(name)
    return ways


# Gemma 2's attention is of float32 whatever the weights are.
@pytest.mark.parametrize("family", sorted(TRUNK_FAMILIES - {"gemma2"}))
def test_scores_and_gradients_above_known_states_are_those_of_the_whole_network_in_float64(
    family, tmp_path, monkeypatch
):
    network, reader, tokens = built(family, tmp_path)
    exact(network, monkeypatch)
    over_states, plan = above(reader, tokens)
    assert over_states.states.values.dtype == np.float64 and plan.shape == (plan.texts.lengths.sum(), 32)
    ways = agree(network, over_states, reader, tokens, 1e-9)
    packed = "packed, shared prompts" if reads_left_to_right(family) else "packed"
    assert ways == (["padded"] if family == "deberta-v2" else ["padded", packed])


@pytest.mark.parametrize(
    "family", ["bert", "distilbert", "roberta", "electra", "deberta-v2", "modernbert", "llama", "gemma2"]
)
def test_the_same_in_float32(family, tmp_path):
    network, reader, tokens = built(family, tmp_path)
    over_states, _ = above(reader, tokens)
    assert over_states.states.values.dtype == np.float32
    agree(network, over_states, reader, tokens, 1e-5)


@pytest.mark.parametrize("freeze", [1, 2])
def test_a_convolution_after_the_first_layer_is_frozen_with_it(freeze, tmp_path, monkeypatch):
    """DeBERTa-v2's large models have one: after layer 1 of frozen ones, so that above one frozen layer it still reads the embeddings."""
    network, reader, tokens = built("deberta-v2", tmp_path, freeze=freeze, changes={**V3, "conv_kernel_size": 3})
    trained = {name for name, p in network.model.named_parameters() if p.requires_grad}
    assert not any("encoder.conv." in name or "encoder.LayerNorm" in name for name in trained)
    exact(network, monkeypatch)
    agree(network, above(reader, tokens, freeze)[0], reader, tokens, 1e-9)


def test_a_batch_says_which_texts_it_holds(tmp_path):
    """Ids and token types, of padded batches, of rows, and of rows whose texts share their beginnings."""
    for family, encoding in (("bert", "pair"), ("bert", "text"), ("llama", "text")):
        _, reader, tokens = built(family, tmp_path / family / encoding, encoding=encoding)
        assert reader.padding[1] == (encoding == "pair")
        for name, batch in batches_of(reader, tokens):
            found = texts_of(batch)
            assert np.array_equal(found.table.ids, tokens.ids), name
            assert np.array_equal(found.table.starts, tokens.starts)
            assert np.array_equal(found.table.second, tokens.second if encoding == "pair" else tokens.lengths)
            assert torch.equal(batch.input_ids.reshape(-1)[found.places], torch.from_numpy(tokens.ids).long())


def test_frozen_layers_are_not_run_on_known_texts_and_are_on_others(tmp_path):
    network, reader, tokens = built("bert", tmp_path)
    over_states, plan = above(reader, tokens.take(np.arange(4)))
    ran = []
    for i, layer in enumerate(plan.trunk.layers):
        layer.attention.register_forward_hook(lambda *_, i=i: ran.append(i))
    known, unknown = (pack(tokens, np.array(rows), share=False, with_types=False) for rows in ([0, 2], [0, 5]))
    with torch.no_grad():
        over_states.outputs(known)
        assert ran == [2]
        ran.clear()
        expected = network.outputs(unknown)
        assert ran == [0, 1, 2]
        assert torch.equal(over_states.outputs(unknown), expected)
        assert torch.equal(network.outputs(known), network.outputs(known)) and ran[-3:] == [0, 1, 2]
    assert not any("forward" in vars(layer) for layer in plan.trunk.layers)


def path_of(reader, tokens, count=2, precision="float32"):
    return plan_states(reader, tokens, layer_stack(reader.network), count, precision=precision).path.name


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "deberta-v2", "modernbert", "llama", "gpt2"])
def test_the_key_is_of_the_weights_that_the_states_depend_on(family, tmp_path):
    """All others may change: then the states are the same to the bit."""
    network, reader, tokens = built(family, tmp_path)
    stack, (states, plan) = layer_stack(network), above(reader, tokens)
    before, name = np.array(states.states.values), plan.path.name
    with torch.no_grad():
        for parameter_name, parameter in network.model.named_parameters():
            if stack.depth_of(parameter_name) > 2:
                nn.init.normal_(parameter)
    assert path_of(reader, tokens) == name
    plan.path.unlink()
    again = plan.read()
    assert again.origin == "miss" and np.array_equal(again.values, before)
    for parameter_name, parameter in network.model.named_parameters():
        if stack.depth_of(parameter_name) <= 2:
            with torch.no_grad():
                kept = parameter.clone()
                parameter.view(-1)[0] += 0.5
                assert path_of(reader, tokens) != name, parameter_name
                parameter.copy_(kept)
    assert path_of(reader, tokens) == name


def test_the_key_is_of_depth_precision_and_texts_and_not_of_their_order(tmp_path):
    _, reader, tokens = built("bert", tmp_path)
    name = path_of(reader, tokens)
    assert path_of(reader, tokens.take(np.arange(len(tokens))[::-1])) == name
    others = {
        path_of(reader, tokens, count=1),
        path_of(reader, tokens, precision="bf16"),
        path_of(reader, tokens.take(np.arange(3))),
    }
    assert len(others | {name}) == 4


def test_a_part_that_is_trained_below_is_found(tmp_path):
    """Not by its name: whatever asks for a gradient below the states."""
    network, reader, tokens = built("deberta-v2", tmp_path)
    network.model.deberta.encoder.LayerNorm.weight.requires_grad = True
    plan = plan_states(reader, tokens, layer_stack(network), 2, precision="float32")
    assert plan.trunk.trained_below
    assert "trained acts below" in frozen_trunk.objection(plan, settings_of(), reads=3)


def test_what_cannot_be_kept_is_said(tmp_path, monkeypatch):
    network, _, _ = built("bert", tmp_path)
    stack = layer_stack(network)

    def reason(count=2, **more):
        return obstacle(network, stack, count, settings_of(**more))

    assert reason() is None
    assert reason(count=0) == "only the embeddings are frozen"
    assert "dropout" in reason(dropout=True)
    assert reason(cache=False) == "cache = false"
    assert reason(frozen_cache_gb=0) == "frozen_cache_gb = 0"
    assert "torch_compile" in reason(trainer={"torch_compile": True})
    # 1 of 6 layers: 1 / (1 + 3 x 5) = 6 %
    six, _, _ = built("bert", tmp_path / "six", layers=6, freeze=1)
    assert "they are 6% of a step" in obstacle(six, layer_stack(six), 1, settings_of())
    monkeypatch.setattr(frozen_trunk, "TRUNK_FAMILIES", frozenset())
    assert reason() == "passing them over is not proven for bert"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "several processes" in reason()


def test_how_often_a_text_is_read():
    assert num_reads(settings_of(epochs=1.5), 100) == 1.5
    # 50 steps of 16 examples over 100
    assert num_reads(settings_of(trainer={"max_steps": 50}), 100) == 8


def run(model, data, out, **more):
    """(report, what was printed) of a short run with the first of two layers frozen."""
    console = Console(file=io.StringIO(), width=400)
    settings = {
        **{"model": model, "data": data, "out": str(out), "max_length": 48, "freeze": 1, "device": "cpu"},
        **{"precision": "float32", "learning_rate": 1e-3, "epochs": 2, "batch_size": 10, "dev_share": 0.2},
        **more,
    }
    settings["trainer"] = {"logging_steps": 1, "save_steps": 3} | more.get("trainer", {})
    return rewardsmith.train(settings, console=console), console.file.getvalue()


def same_runs(fast, slow, tmp_path, bound=1e-5):
    assert [line["step"] for line in fast["history"]] == [line["step"] for line in slow["history"]]
    for name in ("loss", "score_mean", "score_std", "grad_norm"):
        ours, theirs = ([line[name] for line in one["history"]] for one in (fast, slow))
        assert ours == pytest.approx(theirs, abs=bound, rel=bound)
    assert len(fast["dev_points"]) > 2
    for one, other in zip(fast["dev_points"], slow["dev_points"], strict=True):
        assert one == pytest.approx(other, abs=bound, rel=bound)
    assert fast["training"]["kept_step"] == slow["training"]["kept_step"]
    folders = [tmp_path / name / "model" for name in ("states", "whole")]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in folders)
    assert ours.keys() == theirs.keys()
    for name in ours:
        # A key's bias moves all logits of a query alike: its gradient is 0 but for the last bits, and Adam makes whole steps of these.
        if not name.endswith(("key.bias", "k_proj.bias")):
            assert torch.allclose(ours[name], theirs[name], atol=10 * bound, rtol=10 * bound), name
    assert {path.name for path in folders[0].iterdir()} == {path.name for path in folders[1].iterdir()}
    normal = [json.loads((folder / "rewardsmith.json").read_text())["normaliser"] for folder in folders]
    assert normal[0]["mean"] == pytest.approx(normal[1]["mean"], abs=bound, rel=bound)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("bert", {"ema_decay": 0.8, "layer_decay": 0.9}),
        pytest.param("bert", {"batching": "padded", "batch_tokens": 200}, marks=pytest.mark.slow),
        ("bert", {"encoding": "pair", "trainer": {"gradient_checkpointing": True}}),
        ("qwen2", {"lora": {"rank": 4}}),
        pytest.param("deberta-v2", {}, marks=pytest.mark.slow),
        pytest.param("modernbert", {}, marks=pytest.mark.slow),
    ],
)
def test_a_run_above_states_is_the_run_of_the_whole_network(family, more, tiny, toy_pairs, tmp_path):
    """Steps, dev points, kept step, saved weights and normaliser; float32."""
    if "lora" in more:
        pytest.importorskip("peft", reason="the extra `lora` is not installed")
    fast, said = run(tiny(family), toy_pairs, tmp_path / "states", **more)
    assert "frozen layers: computed in" in said and "layers 1 to 1 of 2 are 25% of its arithmetic" in said
    assert said.index("on disk, of at most 10 GB") < said.index("frozen layers: computed")
    slow, said = run(tiny(family), toy_pairs, tmp_path / "whole", frozen_cache_gb=0, **more)
    assert "frozen layers: run at every step, for frozen_cache_gb = 0" in said
    same_runs(fast, slow, tmp_path)
    base = load_file(f"{tiny(family)}/model.safetensors")
    ours = load_file(tmp_path / "states" / "model" / "model.safetensors")
    first = [name for name in base if "layer.0." in name or "layers.0." in name]
    assert first and all(torch.equal(base[n], next(v for k, v in ours.items() if k.endswith(n))) for n in first)
    assert all(check.ok for check in verify(str(tmp_path / "states" / "model")))
    facts = fast["training"]["frozen_layers"]
    assert facts["layers"] == 1 and facts["cache"] == "miss" and facts["bytes"] == facts["tokens"] * 32 * 4


@pytest.mark.slow
def test_in_bf16_the_states_are_what_the_layers_hand_on(tiny, toy_pairs, tmp_path):
    """Kept in float32, as the layers keep them: no digit is lost that the whole network has."""
    fast, said = run(tiny("bert"), toy_pairs, tmp_path / "states", precision="bf16")
    assert "frozen layers: computed" in said and fast["training"]["frozen_layers"]["precision"] == "bf16"
    slow, _ = run(tiny("bert"), toy_pairs, tmp_path / "whole", precision="bf16", frozen_cache_gb=0)
    same_runs(fast, slow, tmp_path, bound=1e-3)
    # What is reported is of float32 all the same: the normaliser's scores are those of the saved model.
    ours, theirs = (
        json.loads((tmp_path / n / "model" / "rewardsmith.json").read_text())["normaliser"] for n in ("states", "whole")
    )
    assert ours["mean"] == pytest.approx(theirs["mean"], abs=1e-6) and ours["std"] == pytest.approx(
        theirs["std"], abs=1e-6
    )


def test_bytes_that_are_no_rows_are_made_again(tmp_path):
    from rewardsmith.model.row_files import load_rows, write_rows

    path = tmp_path / "rows.npy"
    write_rows(path, (2, 3), "float32", [np.ones((2, 3), dtype=np.float32)])
    assert np.array_equal(load_rows(path, (2, 3), "float32", what="rows"), np.ones((2, 3)))
    whole = path.read_bytes()
    archive = io.BytesIO()
    np.savez(archive, rows=np.ones((2, 3)))
    for content in (whole[:-1], whole.replace(b"(2, 3)", b"(-2,3)"), archive.getvalue(), b""):
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="making them again"):
            assert load_rows(path, (2, 3), "float32", what="rows") is None


def files():
    from rewardsmith.model.token_cache import default_folder

    return sorted((default_folder() / trunk_states.FOLDER).glob("*.npy"))


def test_a_second_run_runs_no_frozen_layer_and_is_equal_to_the_bit(tiny, toy_pairs, tmp_path, monkeypatch):
    run(tiny("bert"), toy_pairs, tmp_path / "first")
    assert len(files()) == 1
    monkeypatch.setattr(trunk_states.TrunkPlan, "_computed", None)  # whoever calls it fails
    report, said = run(tiny("bert"), toy_pairs, tmp_path / "again")
    assert "frozen layers: cache hit in" in said and report["training"]["frozen_layers"]["cache"] == "hit"
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("first", "again"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_file_that_is_there_is_of_use_for_one_epoch_too(toy_pairs, tmp_path):
    _, reader, _ = built("bert", tmp_path)
    chosen(reader, toy_pairs)
    assert "cache hit" in chosen(reader, toy_pairs, epochs=1)[1]


def test_an_interrupted_run_goes_on_from_its_states(tiny, toy_pairs, tmp_path, monkeypatch):
    from rewardsmith.model.trainer import PreferenceTrainer

    run(tiny("bert"), toy_pairs, tmp_path / "whole")
    loss = PreferenceTrainer.compute_loss

    def breaks(self, *arguments, **more):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return loss(self, *arguments, **more)

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(tiny("bert"), toy_pairs, tmp_path / "cut")
    monkeypatch.setattr(PreferenceTrainer, "compute_loss", loss)
    _, said = run(tiny("bert"), toy_pairs, tmp_path / "cut")
    assert "going on from checkpoint-3" in said
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def chosen(reader, data, **more):
    """(what is trained, what was said) of a network whose first layers are frozen."""
    settings, said = settings_of(**more), []
    table, _ = example_table(rewardsmith.read_pairs(data), reader.renderer, settings.loss, cache=None)
    learner = choose_learner(reader, table, None, settings, precision="float32", say=said.append)
    return learner, "\n".join(said)


def test_texts_that_are_read_once_write_nothing(toy_pairs, tmp_path):
    _, reader, _ = built("bert", tmp_path)
    learner, said = chosen(reader, toy_pairs, epochs=1)
    assert learner.network is reader.network
    assert said == (
        "frozen layers: run at every step, for each text is read 1 times, and writing its states pays from 2 on"
    )
    assert not list(tmp_path.rglob("*.npy"))


def test_the_disk_has_a_limit_that_earlier_files_count_for(toy_pairs, tmp_path, monkeypatch):
    _, reader, _ = built("bert", tmp_path)
    learner, said = chosen(reader, toy_pairs)
    # 96 texts, no two alike; 32 numbers of 4 bytes a token.
    table, _ = example_table(rewardsmith.read_pairs(toy_pairs), reader.renderer, settings_of().loss, cache=None)
    size = int(table.tokens.lengths.sum()) * 32 * 4
    assert learner.facts()["frozen_layers"]["bytes"] == size and learner.facts()["frozen_layers"]["texts"] == 96
    (path,) = (tmp_path / "cache" / trunk_states.FOLDER).iterdir()
    assert size < path.stat().st_size < size + 200
    # Of twice the size of the numbers, not of the file, two do not fit: of the first of three layers, 1 / 7 of a step.
    limit = 2 * size / 1e9
    choose_trained(reader.network, settings_of(freeze=1), pins_level=False)
    other, said = chosen(reader, toy_pairs, freeze=1, frozen_cache_gb=limit)
    assert other.network is reader.network
    half_written = path.with_name(f".{path.name}.1.tmp")  # by somebody who may be at it still
    half_written.write_bytes(bytes(3 * size))
    _, said_beside_it = chosen(reader, toy_pairs, freeze=1, frozen_cache_gb=limit)
    assert "2 MB of earlier" in said_beside_it
    os.utime(half_written, (0, 0))
    assert chosen(reader, toy_pairs, freeze=1, frozen_cache_gb=limit)[1] == said and not half_written.exists()
    assert "1 MB of earlier runs in states/ of the cache folder, more than frozen_cache_gb" in said
    choose_trained(reader.network, settings_of(freeze=2), pins_level=False)
    _, said = chosen(reader, toy_pairs, frozen_cache_gb=limit)
    assert "cache hit" in said
    path.unlink()
    _, said = chosen(reader, toy_pairs, frozen_cache_gb=0.9 * size / 1e9)
    assert "more than frozen_cache_gb" in said and "earlier runs" not in said
    # Half of what is free may be taken.
    monkeypatch.setattr(frozen_trunk, "_free", lambda _: 2 * size - 2)
    _, said = chosen(reader, toy_pairs)
    assert "more than half of the" in said and not path.exists()
    monkeypatch.setattr(frozen_trunk, "_free", lambda _: 2 * size)
    _, said = chosen(reader, toy_pairs)
    assert "computed" in said and path.exists()


def test_a_file_that_is_not_whole_is_made_again(tmp_path):
    _, reader, tokens = built("bert", tmp_path)
    over_states, plan = above(reader, tokens)
    fresh, path = np.array(over_states.states.values), plan.path
    assert np.array_equal(np.load(path), fresh)  # any reader of .npy reads it
    assert plan.read().origin == "hit"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-40] ^= 1
    for broken in (bytes(flipped), whole[: len(whole) // 2], b"no array at all"):
        path.write_bytes(broken)
        with pytest.warns(UserWarning, match=r"states .* making them again"):
            again = plan.read()
        assert again.origin == "miss" and np.array_equal(again.values, fresh)
        del again


def test_a_cache_that_cannot_be_written_costs_a_warning(toy_pairs, tmp_path):
    _, reader, _ = built("bert", tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / trunk_states.FOLDER).write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="states not written"):
        learner, said = chosen(reader, toy_pairs)
    assert learner.network is reader.network
    assert "frozen layers: run at every step, for the states could not be written" in said


def test_blocks_of_texts_make_one_file(tmp_path, monkeypatch):
    """Also where padded batches take them in another order than the file."""
    _, reader, tokens = built("bert", tmp_path)
    whole, _ = above(reader, tokens)
    monkeypatch.setattr(trunk_states, "BATCH_TOKENS", 60)
    monkeypatch.setattr(trunk_states, "_BLOCK_BYTES", 1)
    padded = FeatureReader(reader.network, reader.renderer, CPU, PADDED, tmp_path / "other")
    parts, _ = above(padded, tokens)
    assert np.array_equal(whole.states.firsts, parts.states.firsts)
    assert np.allclose(whole.states.values, parts.states.values, atol=1e-5)


def test_states_that_are_not_finite_stop_the_run(tmp_path):
    network, reader, tokens = built("bert", tmp_path)
    with torch.no_grad():
        network.model.get_input_embeddings().weight[int(tokens.ids[3])] = float("nan")
    with pytest.raises(rewardsmith.errors.ModelError, match="finite states from the frozen layers"):
        above(reader, tokens)
