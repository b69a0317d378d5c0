"""Low-rank adapters: only they and the new parts are trained, the head stays whole, and what is saved scores the same wherever it is loaded."""

import io
import json
import logging
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import rewardsmith
from rewardsmith.config import TrainSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.errors import HeadError, MissingExtraError, ModelError, NoGradientError, SettingsError
from rewardsmith.model import training
from rewardsmith.model.adapters import check_head, has_adapters, load_adapters, merge, save_adapters
from rewardsmith.model.artefact import golden_scores, verify
from rewardsmith.model.importing import import_folder
from rewardsmith.model.network import build_network, load_tokenizer
from rewardsmith.model.padding import give_pad_token
from rewardsmith.model.render import Renderer, RenderSpec
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.trained_parts import choose_trained
from rewardsmith.model.trainer import PreferenceTrainer

FAMILIES = ("llama", "gpt2", "bert", "deberta-v2", "modernbert", "distilbert")
# Families whose folder is of transformers' own class; the other two are of ours.
NATIVE = ("llama", "gpt2", "bert", "deberta-v2")
QUIET = Console(file=io.StringIO())


def settings(**more):
    return TrainSettings(model="m", data="d", out="o", **{"lora": {"rank": 4, "alpha": 8}} | more)


def adapted(base, **more):
    """A network with adapters as a run begins with it, and its text side."""
    network = build_network(base, pooling="auto", seed=0, dropout=False)
    tokenizer = load_tokenizer(base)
    give_pad_token(network, tokenizer)
    choose_trained(network, settings(**more), pins_level=False)
    return network, Renderer(tokenizer, RenderSpec("text", max_length=64))


def disturb(network):
    """Adapters and head as if they had been trained: the second factors are no longer 0."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def one_by_one(network, renderer):
    return golden_scores(network, renderer, one_by_one=True)[1]


def far_apart(one, other):
    """The largest |difference| / max(1, |s|)."""
    return float(np.max(np.abs(one - other) / np.maximum(1, np.abs(one))))


def recipe(base, data, out, **more):
    return {
        "model": base,
        "data": data,
        "out": str(out),
        "max_length": 64,
        "learning_rate": 1e-2,
        "batch_size": 8,
        "dev_share": 0,
        "precision": "float32",
        "device": "cpu",
        "lora": {"rank": 4, "alpha": 8},
        **more,
        "trainer": {"max_steps": 3, "save_steps": 3, "warmup_steps": 0} | more.get("trainer", {}),
    }


def train(*arguments, **more):
    return rewardsmith.train(recipe(*arguments, **more), console=QUIET)


@pytest.fixture(scope="module")
def kind_pairs(tmp_path_factory):
    rows = [
        {"prompt": f"How do I mend item {i}?", "chosen": f"Gladly: use glue {i}.", "rejected": f"Go away, {i}."}
        for i in range(24)
    ]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def trained_run(tiny, kind_pairs, tmp_path_factory):
    """trained_run("bert") is (the run folder, the golden scores in memory before the adapters were merged); DoRA where the family's name has an even length."""
    made = {}

    def run(family):
        if family not in made:
            seen = []

            def watched(network, renderer):
                seen.append(one_by_one(network, renderer))
                return merge(network, renderer)

            out = tmp_path_factory.mktemp("run") / family
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(training, "merge", watched)
                lora = {"rank": 4, "alpha": 8, "dora": len(family) % 2 == 0}
                train(tiny(family), kind_pairs, out, lora=lora)
            made[family] = out, seen[0]
        return made[family]

    return run


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_adapters_the_head_and_new_parts_are_trained(family, dora, tiny):
    network, _ = adapted(tiny(family), lora={"rank": 4, "dora": dora})
    new = (network.head_name, *network.new_modules)
    trained = {name for name, p in network.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name or name.rpartition(".")[0] in new for name in trained)
    assert {f"{part}.weight" for part in new} <= trained
    lora = {name for name, _ in network.model.named_parameters() if "lora_" in name}
    assert lora <= trained and any("lora_magnitude" in name for name in lora) == dora
    assert not any(name.startswith(f"{part}.") for name in lora for part in new)
    assert network.head_module.weight.dtype == torch.float32
    # Every linear layer of the two layers has one: each base weight of a matrix inside the stack lies under `base_layer`.
    inside = [n for n, p in network.model.named_parameters() if p.ndim == 2 and ".0." in n and "lora_" not in n]
    assert inside and all(".base_layer." in name for name in inside)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_before_the_first_step_are_those_without_adapters(family, dora, tiny):
    network, renderer = adapted(tiny(family), lora={"rank": 4, "dora": dora})
    plain = build_network(tiny(family), pooling="auto", seed=0, dropout=False)
    before, after = one_by_one(plain, renderer), one_by_one(network, renderer)
    # LoRA adds exactly 0; DoRA divides by the norm that it multiplies with, which rounds.
    assert far_apart(before, after) <= (1e-5 if dora else 0)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_merging_moves_no_score_and_leaves_no_trace(family, dora, tiny):
    network, renderer = adapted(tiny(family), lora={"rank": 4, "dora": dora})
    start = one_by_one(network, renderer)
    disturb(network)
    before = one_by_one(network, renderer)
    assert far_apart(start, before) > 1e-3
    names = set(build_network(tiny(family), pooling="auto", seed=0, dropout=False).model.state_dict())
    assert merge(network, renderer) <= 1e-5
    assert far_apart(before, one_by_one(network, renderer)) <= 1e-5
    assert not has_adapters(network) and not hasattr(network.model, "peft_config")
    assert set(network.model.state_dict()) == names
    assert not [n for n, module in network.model.named_modules() if type(module).__module__.startswith("peft")]


def test_a_merge_that_moves_the_scores_is_refused(tiny, monkeypatch):
    network, renderer = adapted(tiny("bert"))
    disturb(network)
    from peft.tuners.lora import Linear

    monkeypatch.setattr(Linear, "merge", lambda self, safe_merge: None)
    with pytest.raises(ModelError, match="merged scores"):
        merge(network, renderer)


@pytest.mark.parametrize(("family", "head"), [("llama", "score"), ("bert", "classifier")])
def test_targets_that_name_the_head_are_refused(family, head, tiny):
    """Trap 18."""
    with pytest.raises(SettingsError, match=f"got {head}.*the head is always trained") as caught:
        adapted(tiny(family), lora={"targets": [head]})
    known = {"llama": "q_proj", "bert": "query"}[family]
    assert known in caught.value.mend


def test_targets_choose_the_layers(tiny):
    network, _ = adapted(tiny("llama"), lora={"targets": ["q_proj", "mlp.up_proj"]})
    layers = {n.partition(".lora_")[0] for n, _ in network.model.named_parameters() if ".lora_" in n}
    assert layers == {f"model.layers.{i}.{part}" for i in (0, 1) for part in ("self_attn.q_proj", "mlp.up_proj")}
    # A part of a name is no name: no layer is called "proj".
    with pytest.raises(SettingsError, match=r"got proj\b"):
        adapted(tiny("llama"), lora={"targets": ["q_proj", "proj"]})


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("freeze", [1, -1])
def test_frozen_layers_get_no_adapter(freeze, family, tiny):
    """Of two layers both settings leave the upper one."""
    network, _ = adapted(tiny(family), freeze=freeze)
    names = [name for name, _ in network.model.named_parameters() if "lora_" in name]
    assert names and not any(".0." in name.partition("lora_")[0] for name in names)
    assert any(".1." in name.partition("lora_")[0] for name in names)


def test_lora_under_a_frozen_encoder_is_refused(tiny):
    with pytest.raises(SettingsError, match="Remove one of the two"):
        adapted(tiny("bert"), freeze="encoder")


def test_a_new_pooler_inside_the_backbone_is_trained_in_full_and_not_adapted(tiny, tmp_path):
    """A BERT saved from its masked language model has no pooler: the new one is random, so an adapter could not mend it."""
    AutoModel.from_pretrained(tiny("bert"), add_pooling_layer=False).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny("bert")).save_pretrained(tmp_path / "base")
    network, renderer = adapted(str(tmp_path / "base"))
    assert network.new_modules == ("bert.pooler.dense",)
    pooler = {n: p.requires_grad for n, p in network.model.named_parameters() if "pooler" in n}
    assert pooler == {"bert.pooler.dense.weight": True, "bert.pooler.dense.bias": True}
    disturb(network)
    expected = one_by_one(network, renderer)
    save_adapters(network, renderer, tmp_path / "adapter", base=str(tmp_path / "base"), contract={})
    # Another seed makes another random pooler: the saved one must take its place.
    again = build_network(str(tmp_path / "base"), pooling="auto", seed=5, dropout=False)
    load_adapters(again, tmp_path / "adapter")
    assert np.array_equal(one_by_one(again, renderer), expected)


def test_a_head_that_is_wrapped_or_untrained_is_refused(tiny):
    """Trap 18: asserted, not assumed."""
    network, _ = adapted(tiny("bert"))
    check_head(network)
    network.head_module.weight.requires_grad = False
    with pytest.raises(HeadError, match="trained: False"):
        check_head(network)
    network.head_module.weight.requires_grad = True
    network.head_module.to(torch.bfloat16)
    with pytest.raises(HeadError, match="bfloat16"):
        check_head(network)


def test_without_peft_the_extra_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"rewardsmith\[lora\]"):
        adapted(tiny("bert"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_leaves_a_merged_model_and_an_adapter(family, trained_run):
    out, unmerged = trained_run(family)
    assert all(check.ok for check in verify(str(out / "model")))
    model = RewardModel.load(out)
    assert far_apart(unmerged, golden_scores(model.network, model.renderer, one_by_one=True)[1]) <= 1e-5
    names = set(load_file(out / "model" / "model.safetensors"))
    assert not [name for name in names if "lora_" in name or "base_layer" in name]
    assert not (out / "model" / "adapter_config.json").exists()
    stored = load_file(out / "adapter" / "adapter_model.safetensors")
    whole = {name for name in stored if "lora_" not in name}
    assert f"base_model.model.{model.contract.head['key']}" in whole
    # The second factors start at 0: the run has moved every one of them.
    assert all(bool(tensor.any()) for name, tensor in stored.items() if "lora_B" in name)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["training"]["merge_difference"] <= 1e-5


@pytest.mark.parametrize("family", NATIVE)
def test_plain_transformers_loads_the_merged_model(family, trained_run):
    out, _ = trained_run(family)
    plain, info = AutoModelForSequenceClassification.from_pretrained(out / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    model = RewardModel.load(out)
    table = model.renderer.encode(INPUTS)
    with torch.inference_mode():
        rows = [torch.tensor(table.row(i).astype(np.int64))[None] for i in range(len(table))]
        scores = [plain.eval()(input_ids=row, attention_mask=torch.ones_like(row)).logits.item() for row in rows]
    assert far_apart(model.score(INPUTS), np.array(scores)) <= 1e-5


LOADER = """
    import json, sys
    from pathlib import Path
    import numpy as np
    import peft, torch
    from transformers import AutoModelForSequenceClassification
    from rewardsmith.data.golden import INPUTS
    from rewardsmith.model.adapters import load_adapters
    from rewardsmith.model.artefact import golden_scores
    from rewardsmith.model.network import build_network, load_tokenizer
    from rewardsmith.model.padding import give_pad_token
    from rewardsmith.model.render import Renderer, RenderSpec

    scores = {}
    for family, adapter, base, native in json.loads(sys.argv[1]):
        spec = RenderSpec(**json.loads((Path(adapter) / "rewardsmith.json").read_text())["render"])
        network, tokenizer = build_network(base, pooling="auto", seed=99, dropout=False), load_tokenizer(base)
        give_pad_token(network, tokenizer)
        load_adapters(network, Path(adapter))
        renderer = Renderer(tokenizer, spec)
        scores[family] = {"ours": golden_scores(network, renderer, one_by_one=True)[1].tolist()}
        if native:
            plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
            plain = peft.PeftModel.from_pretrained(plain, adapter).eval()
            table = renderer.encode(INPUTS)
            with torch.inference_mode():
                rows = [torch.tensor(table.row(i).astype(np.int64))[None] for i in range(len(table))]
                logits = [plain(input_ids=row, attention_mask=torch.ones_like(row)).logits.item() for row in rows]
            scores[family]["peft"] = logits
    print(json.dumps(scores))
"""


def test_a_new_process_gives_the_scores_of_the_run(trained_run, tiny):
    """Trap 16: difference 0 with our loader, from another random head; and peft, which knows nothing of us, reads the same folder."""
    jobs = [(family, str(trained_run(family)[0] / "adapter"), tiny(family), family in NATIVE) for family in FAMILIES]
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(LOADER), json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for family in FAMILIES:
        unmerged = trained_run(family)[1]
        assert found[family]["ours"] == unmerged.tolist(), family
        if family in NATIVE:
            assert far_apart(unmerged, np.array(found[family]["peft"])) <= 1e-5, family


@pytest.mark.parametrize("family", FAMILIES)
def test_an_imported_adapter_gives_the_merged_scores(family, trained_run, tiny, tmp_path, cli):
    out, unmerged = trained_run(family)
    code, _, errors = cli("import", out / "adapter", "--out", tmp_path / "imported", "--base", tiny(family))
    assert code == 0, errors
    imported, merged = RewardModel.load(tmp_path / "imported"), RewardModel.load(out)
    assert imported.renderer.spec == merged.renderer.spec and imported.contract.pooling == merged.contract.pooling
    assert far_apart(merged.score(INPUTS), imported.score(INPUTS)) <= 1e-5
    assert far_apart(unmerged, imported.score(INPUTS)) <= 1e-5


def without(folder, out, part):
    """A copy of an adapter folder whose tensors of this name are gone."""
    shutil.copytree(folder, out)
    weights = load_file(out / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if part not in name}
    assert len(kept) < len(weights)
    save_file(kept, out / "adapter_model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize(("family", "head"), [("llama", "score.weight"), ("bert", "classifier.weight")])
def test_an_adapter_without_its_head_names_the_file(family, head, trained_run, tiny, tmp_path):
    """Trap 16."""
    broken = without(trained_run(family)[0] / "adapter", tmp_path / "broken", f"model.{head}")
    network = build_network(tiny(family), pooling="auto", seed=0, dropout=False)
    with pytest.raises(HeadError, match=r"broken/adapter_model\.safetensors.*cannot be recovered"):
        load_adapters(network, broken)
    with pytest.raises(HeadError, match=r"adapter_model\.safetensors.*cannot be recovered"):
        import_folder(str(broken), tmp_path / "out", base=tiny(family))


def test_an_adapter_that_lacks_anything_else_is_refused(trained_run, tiny, tmp_path):
    adapter = trained_run("deberta-v2")[0] / "adapter"
    for i, part in enumerate(("pooler.dense.bias", "layer.1.output.dense.lora_A")):
        broken = without(adapter, tmp_path / f"broken{i}", part)
        network = build_network(tiny("deberta-v2"), pooling="auto", seed=0, dropout=False)
        with pytest.raises(ModelError, match=part):
            load_adapters(network, broken)


def test_an_adapter_of_another_base_is_refused(trained_run, tiny, tmp_path):
    from tests.tiny_models import save_tiny

    # Another architecture, other sizes, and fewer layers than the adapter has.
    wider = str(save_tiny("llama", tmp_path / "wider", intermediate_size=96))
    lower = str(save_tiny("llama", tmp_path / "lower", num_hidden_layers=1))
    for base in (tiny("gpt2"), wider, lower):
        network = build_network(base, pooling="auto", seed=0, dropout=False)
        with pytest.raises(ModelError, match="another base model"):
            load_adapters(network, trained_run("llama")[0] / "adapter")


def interrupted_at(step, monkeypatch):
    original = PreferenceTrainer.compute_loss

    def breaks(self, *arguments, **more):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *arguments, **more)

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", breaks)
    return lambda: monkeypatch.setattr(PreferenceTrainer, "compute_loss", original)


def test_an_interrupted_run_goes_on_bit_for_bit_from_small_checkpoints(tiny, kind_pairs, tmp_path, monkeypatch):
    """Dropout in the adapters makes the steps random: the generator's state goes on too."""
    more = {
        "lora": {"rank": 2, "alpha": 8, "dropout": 0.2},
        "epochs": 2,
        "trainer": {"max_steps": 4, "save_steps": 2},
    }
    train(tiny("llama"), kind_pairs, tmp_path / "whole", **more)
    restore = interrupted_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(tiny("llama"), kind_pairs, tmp_path / "cut", **more)
    restore()
    train(tiny("llama"), kind_pairs, tmp_path / "cut", **more)
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        first, second = (load_file(tmp_path / name / file) for name in ("whole", "cut"))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    stored = load_file(tmp_path / "whole/checkpoints/checkpoint-2/model.safetensors")
    assert {"lora_" in name for name in stored} == {True, False}
    # The adapters and the head (32 numbers, no bias) are in it; of the backbone, 500 x 32 embeddings and more, nothing is.
    assert {name for name in stored if "lora_" not in name} == {"score.weight"}
    trained = sum(tensor.numel() for tensor in stored.values())
    size = (tmp_path / "whole/checkpoints/checkpoint-2/model.safetensors").stat().st_size
    assert size < 4 * trained + 16_000 < (tmp_path / "whole/model/model.safetensors").stat().st_size


@pytest.mark.parametrize("family", ["gpt2", "distilbert"])
def test_the_kept_checkpoint_is_the_one_that_is_saved(family, tiny, kind_pairs, tmp_path, monkeypatch, caplog):
    """Checkpoints without the backbone are loaded over it, and in silence: that it is not in them is no fault."""
    out, losses = tmp_path / "run", iter([0.7, 0.2, 0.5])
    monkeypatch.setattr(training, "dev_numbers", lambda *arguments, **more: (next(losses), 0.5))
    transformers_log = logging.getLogger("transformers")  # it hands nothing on to the root, where pytest listens
    transformers_log.addHandler(caplog.handler)
    try:
        report = train(tiny(family), kind_pairs, out, dev_share=0.2, trainer={"max_steps": 2, "save_steps": 1})
    finally:
        transformers_log.removeHandler(caplog.handler)
    assert report["training"]["kept_step"] == 1
    stored = load_file(out / "checkpoints" / "checkpoint-1" / "model.safetensors")
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    # peft leaves the adapter's own name out of the names that it saves.
    plain = {f"base_model.model.{name.replace('.default', '')}": tensor for name, tensor in stored.items()}
    assert {name for name in plain if "lora_" in name} == {name for name in adapter if "lora_" in name}
    assert all(torch.equal(plain[name], adapter[name]) for name in adapter)
    assert "missing keys" not in caplog.text


def losses_of(report):
    return [line["loss"] for line in report["history"]]


REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}


def test_recomputed_activations_train_the_same_adapters(tiny, kind_pairs, tmp_path):
    """Trap 20: reentrant too, for transformers gives the output of the frozen embeddings a gradient, without which no layer would have one."""
    plain = losses_of(train(tiny("llama"), kind_pairs, tmp_path / "a", trainer={"logging_steps": 1}))
    assert len(set(plain)) == 3
    for name, more in (("b", {"activation_checkpointing": True}), ("c", REENTRANT)):
        report = train(tiny("llama"), kind_pairs, tmp_path / name, trainer={"logging_steps": 1, **more})
        assert losses_of(report) == pytest.approx(plain, abs=1e-5)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_without_gradients_stops_by_step_three(tiny, kind_pairs, tmp_path, monkeypatch):
    """Trap 20: as in versions of transformers that leave the embeddings alone."""
    monkeypatch.setattr(PreTrainedModel, "enable_input_require_grads", lambda self: None)
    with pytest.raises(NoGradientError, match=r"within 3 steps.*lora_.*use_reentrant = false"):
        train(tiny("llama"), kind_pairs, tmp_path / "run", trainer=REENTRANT)
    state = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert state["outcome"] == "failed" and not (tmp_path / "run" / "model").exists()


def test_a_warm_up_from_zero_trips_no_guard(tiny, kind_pairs, tmp_path):
    """The rate of step 1 is 0, so the first factors have no gradient before step 3."""
    report = train(tiny("llama"), kind_pairs, tmp_path / "run", trainer={"warmup_steps": 3})
    assert report["training"]["steps"] == 3
    stored = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(bool(tensor.any()) for name, tensor in stored.items() if "lora_B" in name)


def test_factors_that_no_step_has_moved_are_refused(tiny, kind_pairs, tmp_path, monkeypatch):
    """Trap 20: an optimiser that never got the adapters trains a head on the base model, and must not be saved as more."""
    from rewardsmith.model import trainer

    original = trainer.parameter_groups

    def forgets(network, rates, decayed):
        lora = {id(p) for n, p in network.model.named_parameters() if "lora_" in n}
        groups = original(network, rates, decayed)
        return [group | {"params": [p for p in group["params"] if id(p) not in lora]} for group in groups]

    monkeypatch.setattr(trainer, "parameter_groups", forgets)
    with pytest.raises(NoGradientError, match="lora_"):
        train(tiny("llama"), kind_pairs, tmp_path / "run")


def test_a_learning_rate_of_zero_is_refused(tiny, kind_pairs, tmp_path):
    """Trap 20; before the data are read, at the root as in the trainer table."""
    for more in ({"learning_rate": 0.0}, {"trainer": {"learning_rate": 0.0}}):
        with pytest.raises(SettingsError, match="learning_rate"):
            train(tiny("llama"), "absent.jsonl", tmp_path / "run", **more)


def test_peft_reads_the_config_of_the_folder(trained_run, tiny):
    config = peft.PeftConfig.from_pretrained(str(trained_run("gpt2")[0] / "adapter"))
    assert (config.task_type, config.base_model_name_or_path) == ("SEQ_CLS", tiny("gpt2"))
    assert config.modules_to_save == ["score"] and config.fan_in_fan_out and config.inference_mode
    assert Path(trained_run("gpt2")[0] / "adapter" / "tokenizer.json").is_file()
