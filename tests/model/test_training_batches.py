"""How a step's examples are batched changes its time and its memory, never what is learned: whole runs, compared weight by weight."""

import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.utils.data._utils.pin_memory import pin_memory

import rewardsmith
from rewardsmith.config import LossSettings
from rewardsmith.data.schema import Preference
from rewardsmith.errors import SettingsError
from rewardsmith.model.batching import Batch
from rewardsmith.model.batching_choice import BatchingChoice
from rewardsmith.model.examples import ExampleCollator, example_table
from rewardsmith.model.network import load_tokenizer
from rewardsmith.model.render import Renderer, RenderSpec
from rewardsmith.model.saving import measure_saving


def train(model, data, out, **more):
    """A run whose every step sees all 48 pairs, so that no order of batches has a part in it; with all it printed."""
    console = Console(file=io.StringIO(), width=500)
    settings = {
        "model": model,
        "data": data,
        "out": str(out),
        "max_length": 64,
        "learning_rate": 0.1,
        "batch_size": 48,
        "epochs": 4,
        "dev_share": 0,
        "precision": "float32",
        "device": "cpu",
        **more,
    }
    # Plain gradient steps: AdamW divides by the size of the gradient, and where that is near 0 a rounding turns its step round.
    settings["trainer"] = {"optim": "sgd", **more.get("trainer", {})}
    rewardsmith.train(settings, console=console)
    return load_file(out / "model" / "model.safetensors"), console.file.getvalue()


def apart(one, other):
    """The largest difference of any weight."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("family", ["bert", "qwen2", "deberta-v2"])
def test_parts_of_a_step_sum_up_to_the_step(family, tiny, toy_pairs, tmp_path):
    whole, _ = train(tiny(family), toy_pairs, tmp_path / "whole", batch_tokens=100_000)
    parts, _ = train(tiny(family), toy_pairs, tmp_path / "parts", batch_tokens=150)
    assert apart(whole, parts) <= 1e-5
    other, _ = train(tiny(family), toy_pairs, tmp_path / "other", learning_rate=0.2)
    assert apart(whole, other) > 1e-3, "the comparison could not fail"


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", {}),
        ("modernbert", {}),
        ("qwen2", {}),
        ("qwen2", {"share_prompts": False}),
        ("qwen2", {"lora": {"rank": 4}}),
    ],
)
def test_packed_and_padded_runs_learn_the_same(family, settings, tiny, toy_pairs, tmp_path):
    packed, said = train(tiny(family), toy_pairs, tmp_path / "packed", **settings)
    padding = {name: value for name, value in settings.items() if name != "share_prompts"}
    padded, _ = train(tiny(family), toy_pairs, tmp_path / "padded", batching="padded", **padding)
    shares = family == "qwen2" and "share_prompts" not in settings
    assert ("batches: packed, shared prompts" in said) is shares
    assert "batches: packed" in said
    assert apart(packed, padded) <= 1e-5


def test_ranked_lists_learn_the_same_with_shared_prompts(tiny, write_rows, tmp_path):
    rows = [
        {
            "prompt": f"How do I mend item {i}, which has been broken for a long time?",
            "ranked": [f"use glue {i} {w}" for w in ("gladly", "well", "not", "never")],
        }
        for i in range(12)
    ]
    data, settings = write_rows(rows), {"loss": "plackett_luce", "batch_size": 12}
    shared, said = train(tiny("llama"), data, tmp_path / "shared", **settings)
    padded, _ = train(tiny("llama"), data, tmp_path / "padded", batching="padded", **settings)
    assert "shared prompts" in said
    assert apart(shared, padded) <= 1e-5
    counts = json.loads((tmp_path / "shared" / "manifest.json").read_text())["counts"]
    assert counts["train_tokens_read"] < 0.6 * counts["train_tokens"]


def test_sharing_that_saves_nothing_is_left_out_and_says_so(tiny, write_rows, tmp_path):
    """Prompts of one word under a template of a few tokens: nearly all tokens are those of the answers."""
    words = [f"{a} {b} glue number use mend item Gladly" for a in "abcdefghij" for b in "klmnopqrst"]
    rows = [
        {"prompt": "q", "chosen": " ".join(words[i : i + 6]), "rejected": " ".join(words[i + 50 : i + 56])}
        for i in range(20)
    ]
    _, said = train(
        tiny("llama"),
        write_rows(rows),
        tmp_path / "run",
        max_length=250,
        epochs=1,
        batch_size=20,
        template="{prompt}{answer}",
    )
    assert "batches: packed (" in said and "not worth it" in said


def test_batches_made_by_another_process_are_the_same(tiny, toy_pairs, tmp_path):
    here, _ = train(tiny("qwen2"), toy_pairs, tmp_path / "here")
    there, _ = train(tiny("qwen2"), toy_pairs, tmp_path / "there", trainer={"dataloader_num_workers": 1})
    assert apart(here, there) == 0


@pytest.mark.parametrize("packed", [True, False])
def test_every_tensor_of_a_batch_is_pinned_for_a_gpu(packed, tiny, monkeypatch):
    """The data loader calls `pin_memory` of what has it; without a GPU its effect is stood in for by a mark."""
    base = tiny("bert")
    renderer = Renderer(load_tokenizer(base), RenderSpec(max_length=64, encoding="pair"))
    pairs = [Preference(f"r{i}", f"Item {i}?", "Use glue." * (i + 1), "No.", weight=2.0) for i in range(3)]
    table, _ = example_table(pairs, renderer, LossSettings(), cache=None)
    batching = BatchingChoice(packed, False, "a test wants it so")
    collate = ExampleCollator(table, pad_id=0, with_types=True, batching=batching, batch_tokens=4096)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1000)
    (plain,) = collate([0, 1, 2])["parts"]
    (pinned,) = pin_memory(collate([0, 1, 2]))["parts"]
    seen, numbers = [0, 0], [0, 0]
    for place, part in enumerate((plain, pinned)):
        for batch, places in part.batches:
            tensors = batch if isinstance(batch, Batch) else vars(batch).values()
            every = [*tensors, places, part.better, part.rows, part.labels.weight, part.labels.sizes]
            seen[place] += sum(int(tensor.sum()) for tensor in every if isinstance(tensor, torch.Tensor))
            numbers[place] += sum(tensor.numel() for tensor in every if isinstance(tensor, torch.Tensor))
    assert numbers[1] == numbers[0] and seen[1] == seen[0] + 1000 * numbers[0]


def test_what_cannot_be_packed_is_refused_before_training_or_padded(tiny, toy_pairs, tmp_path):
    with pytest.raises(SettingsError, match="packing is not proven for deberta-v2"):
        train(tiny("deberta-v2"), toy_pairs, tmp_path / "run", batching="packed")
    _, said = train(tiny("bert"), toy_pairs, tmp_path / "dropout", dropout=True, epochs=1)
    assert "batches: padded (auto: dropout is on)" in said


def test_a_long_run_measures_what_sharing_saves(tiny, toy_pairs, tmp_path):
    _, said = train(tiny("qwen2"), toy_pairs, tmp_path / "run", batch_size=8, epochs=9)
    assert "times fewer tokens; measured on" in said
    facts = json.loads((tmp_path / "run" / "manifest.json").read_text())["training"]["sharing"]
    assert facts["ceiling"] > 1.05 and facts["measured"] > 0 and facts["num_examples"] > 0


def test_measuring_leaves_no_gradient_and_no_weight_changed(tiny):
    from rewardsmith.config import LossSettings
    from rewardsmith.data.schema import Preference
    from rewardsmith.model.examples import example_table
    from rewardsmith.model.network import build_network, load_tokenizer
    from rewardsmith.model.render import Renderer, RenderSpec

    network = build_network(tiny("qwen2"), pooling="auto", seed=0, dropout=False)
    renderer = Renderer(load_tokenizer(tiny("qwen2")), RenderSpec(max_length=64))
    pairs = [Preference(str(i), "a question that is long enough to be shared", "yes", "no") for i in range(3)]
    table, _ = example_table(pairs, renderer, LossSettings(), cache=None)
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    collator = ExampleCollator(table, 0, False, BatchingChoice(True, True, "as set"), 8192)
    saving = measure_saving(network, collator, precision="float32", device=torch.device("cpu"))
    assert saving.ceiling == pytest.approx(table.costs(share=False).sum() / table.costs(share=True).sum())
    assert saving.num_examples == 3 and saving.measured_ceiling == saving.ceiling
    assert all(torch.equal(value, before[name]) for name, value in network.model.state_dict().items())
    assert all(parameter.grad is None for parameter in network.model.parameters())
