"""Import: a reward model of another tool becomes a model folder with the same scores, or an error that says why not (traps 16, 17, 18).

The checkpoints are written as each tool writes them, and the expected scores are computed without rewardsmith: the language model's last hidden state at
the last token of each text, times the head, by hand.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rewardsmith.data.golden import INPUTS
from rewardsmith.errors import (
    ContractError,
    HeadError,
    MissingExtraError,
    ModelError,
    OutputError,
    RewardsmithError,
    SettingsError,
)
from rewardsmith.model.artefact import verify
from rewardsmith.model.importing import import_folder, recognise
from rewardsmith.model.network import build_network
from rewardsmith.model.padding import PAD_TOKEN
from rewardsmith.model.render import RenderSpec
from rewardsmith.model.reward_model import RewardModel

DECODERS = ("llama", "qwen2", "gpt2", "gpt_neox", "gemma2")
VALUE_WEIGHT, VALUE_BIAS = "v_head.summary.weight", "v_head.summary.bias"
CONSTANT = 0.37


def random_head():
    return torch.randn(1, 32, generator=torch.Generator().manual_seed(5)) * 0.4


def save_language_model(base, out, **options):
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(out, **options)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return out


def save_openrlhf(base, out, head, *, prefix="value_head", facts=None, dtype=torch.float32):
    """As OpenRLHF does: a class made on the fly from the base's own, and facts in config.json."""
    backbone = AutoModel.from_pretrained(base)

    class RewardModel(type(backbone).__base__):
        def __init__(self, config):
            super().__init__(config)
            setattr(self, self.base_model_prefix, backbone)
            setattr(self, prefix, nn.Linear(config.hidden_size, 1, bias=False))

    model = RewardModel(backbone.config)
    getattr(model, prefix).weight.data = head.clone()
    model.config.update({"value_head_prefix": prefix} if facts is None else facts)
    model.to(dtype).save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    assert json.loads((out / "config.json").read_text())["architectures"] == ["RewardModel"]
    return out


def save_llama_factory(base, out, head, *, constant=CONSTANT, **options):
    save_language_model(base, out, **options)
    save_value_head(out, head, constant)
    return out


def save_value_head(out, head, constant):
    tensors = {VALUE_WEIGHT: head.clone(), VALUE_BIAS: torch.tensor([constant])}
    save_file(tensors, out / "value_head.safetensors", metadata={"format": "pt"})


def save_adapter(base, out, *, task="SEQ_CLS", steps=2, **options):
    """Two real steps of training with peft; returns the model as it was when it was saved."""
    torch.manual_seed(3)
    if task == "CAUSAL_LM":
        model = AutoModelForCausalLM.from_pretrained(base)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    transposed = "gpt2" in type(model).__name__.lower()
    settings = {"r": 4, "target_modules": "all-linear", "fan_in_fan_out": transposed} | options
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type=task, **settings))
    optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    ids = torch.randint(10, 90, (2, 12), generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        outputs = [adapted(input_ids=row[None], attention_mask=torch.ones(1, 12)).logits for row in ids]
        loss = -torch.nn.functional.logsigmoid(outputs[0].mean() - outputs[1].mean())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(adapted.parameters(), 1.0)
        optimiser.step()
    assert any(p.abs().max() > 0 for n, p in adapted.named_parameters() if "lora_B" in n)
    adapted.save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return adapted.eval()


def rows_of(folder):
    """Token ids of the golden inputs, as the imported folder renders them."""
    table = RewardModel.load(folder).renderer.encode(INPUTS)
    return [torch.tensor(table.row(i).astype(np.int64))[None] for i in range(len(INPUTS))]


def scores_by_hand(model, rows, head, constant=0.0):
    """One text at a time, so that padding has no part: h(last token) . w + b in float32."""
    model = model.float().eval()
    scores = []
    with torch.inference_mode():
        for row in rows:
            states = model(input_ids=row, attention_mask=torch.ones_like(row), output_hidden_states=True).hidden_states
            scores.append((states[-1][0, -1] @ head[0].float()).item() + constant)
    return np.array(scores)


def own_scores(model, rows):
    """The scores of a sequence classifier, one text at a time."""
    with torch.inference_mode():
        return np.array([model(input_ids=row, attention_mask=torch.ones_like(row)).logits.item() for row in rows])


def agree(found, expected, tolerance=1e-5):
    assert len(set(np.round(expected, 4).tolist())) > len(expected) // 2  # scores that tell texts apart
    return bool(np.all(np.abs(found - expected) <= tolerance * np.maximum(1, np.abs(expected))))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "imported"


@pytest.mark.parametrize("family", ["bert", "distilbert", "qwen2", "gpt2"])
def test_a_sharded_sequence_classifier_keeps_its_scores(family, tiny, tmp_path, out):
    torch.manual_seed(4)
    source = AutoModelForSequenceClassification.from_pretrained(tiny(family), num_labels=1)
    source.save_pretrained(tmp_path / "trl", max_shard_size="40KB")
    AutoTokenizer.from_pretrained(tiny(family)).save_pretrained(tmp_path / "trl")
    assert (tmp_path / "trl" / "model.safetensors.index.json").is_file()
    imported = import_folder(str(tmp_path / "trl"), out)
    assert imported.recognised.kind == "sequence_classifier"
    assert imported.recognised.found["architecture"] == type(source).__name__
    assert agree(RewardModel.load(out).score(INPUTS), own_scores(source.eval(), rows_of(out)))
    assert all(check.ok for check in verify(str(out)))


@pytest.mark.parametrize("family", DECODERS)
def test_openrlhf_keeps_its_scores(family, tiny, tmp_path, out):
    head = random_head()
    source = save_openrlhf(tiny(family), tmp_path / "orlhf", head)
    imported = import_folder(str(source), out)
    assert (imported.recognised.kind, imported.recognised.found["head"]) == ("openrlhf", "value_head.weight")
    expected = scores_by_hand(AutoModel.from_pretrained(tiny(family)), rows_of(out), head)
    assert agree(RewardModel.load(out).score(INPUTS), expected)
    assert all(check.ok for check in verify(str(out)))
    assert imported.head_bias is None and not imported.left_out


@pytest.mark.parametrize("facts", [{"value_head_prefix": "score"}, {}])
def test_openrlhf_heads_named_score_or_not_named_at_all(facts, tiny, tmp_path, out):
    """With the usual prefix, and by an older version that kept no prefix: then the only tensor of one row is the head."""
    head = random_head()
    source = save_openrlhf(tiny("llama"), tmp_path / "orlhf", head, prefix="score", facts=facts)
    import_folder(str(source), out)
    expected = scores_by_hand(AutoModel.from_pretrained(tiny("llama")), rows_of(out), head)
    assert agree(RewardModel.load(out).score(INPUTS), expected)


def test_half_precision_weights_are_scored_as_they_stand(tiny, tmp_path, out):
    source = save_openrlhf(tiny("llama"), tmp_path / "orlhf", random_head(), dtype=torch.bfloat16)
    import_folder(str(source), out)
    backbone = AutoModel.from_pretrained(source, dtype=torch.float32)
    head = load_file(source / "model.safetensors")["value_head.weight"]
    assert head.dtype == torch.bfloat16
    assert agree(RewardModel.load(out).score(INPUTS), scores_by_hand(backbone, rows_of(out), head))


def test_the_mean_and_std_of_openrlhf_are_told_and_never_applied(tiny, tmp_path, out):
    head = random_head()
    facts = {"value_head_prefix": "value_head", "mean": 3.0, "std": 2.0, "normalize_reward": True}
    imported = import_folder(str(save_openrlhf(tiny("llama"), tmp_path / "orlhf", head, facts=facts)), out)
    assert imported.source_normaliser == {"mean": 3.0, "std": 2.0}
    assert imported.contract.normaliser is None
    assert any("mean 3 and std 2" in note for note in imported.notes)
    expected = scores_by_hand(AutoModel.from_pretrained(tiny("llama")), rows_of(out), head)
    assert agree(RewardModel.load(out).score(INPUTS), expected)
    config = json.loads((out / "config.json").read_text())
    assert not {"value_head_prefix", "mean", "std", "normalize_reward"} & set(config)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_llama_factory_keeps_its_scores_with_the_constant_of_its_head(family, tiny, tmp_path, out):
    head = random_head()
    source = save_llama_factory(tiny(family), tmp_path / "lf", head, max_shard_size="60KB")
    imported = import_folder(str(source), out)
    assert imported.recognised.kind == "llama_factory"
    expected = scores_by_hand(AutoModelForCausalLM.from_pretrained(source), rows_of(out), head, CONSTANT)
    assert agree(RewardModel.load(out).score(INPUTS), expected)
    assert imported.head_bias == pytest.approx(CONSTANT) and not imported.bias_left_out
    assert all(check.ok for check in verify(str(out)))
    with pytest.raises(ValueError, match="trust_remote_code"):  # promise 5: elsewhere it fails to load
        AutoModelForSequenceClassification.from_pretrained(out, trust_remote_code=False)


def test_the_constant_can_be_left_out_and_no_margin_moves(tiny, tmp_path, out):
    head = random_head()
    source = save_llama_factory(tiny("qwen2"), tmp_path / "lf", head)
    imported = import_folder(str(source), out, drop_bias=True)
    assert imported.bias_left_out and imported.head_bias == pytest.approx(CONSTANT)
    assert any("+0.37" in note for note in imported.notes)
    found = RewardModel.load(out).score(INPUTS)
    # h . w + b - b = h . w
    assert agree(found, scores_by_hand(AutoModelForCausalLM.from_pretrained(source), rows_of(out), head))
    plain, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert agree(own_scores(plain.eval(), rows_of(out)), found)


def test_a_constant_of_zero_needs_no_class_of_ours(tiny, tmp_path, out):
    source = save_llama_factory(tiny("llama"), tmp_path / "lf", random_head(), constant=0.0)
    imported = import_folder(str(source), out)
    assert imported.head_bias is None
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]


@pytest.mark.parametrize(("family", "left_out"), [("gpt_neox", ("embed_out.weight", "lm_head.weight")), ("gpt2", ())])
def test_the_output_layer_is_left_out_knowingly(family, left_out, tiny, tmp_path, out):
    """GPT-2's is tied to its embeddings and not in the file; GPT-NeoX has one of its own."""
    imported = import_folder(str(save_llama_factory(tiny(family), tmp_path / "lf", random_head())), out)
    assert set(imported.left_out) <= set(left_out) and bool(imported.left_out) == bool(left_out)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", {}),
        ("llama", {"use_dora": True}),
        ("llama", {"use_rslora": True, "lora_alpha": 2, "r": 1}),
        ("gpt2", {}),
        ("bert", {"use_dora": True}),
    ],
)
def test_a_lora_folder_keeps_its_scores(family, kind, tiny, tmp_path, out):
    """Trap 16: trained for two steps, saved, loaded and merged; the base is found by the name in its config."""
    adapted = save_adapter(tiny(family), tmp_path / "lora", **kind)
    imported = import_folder(str(tmp_path / "lora"), out)
    assert imported.recognised.kind == "lora" and "head" in imported.recognised.found
    assert imported.merge_difference <= 1e-5
    rows = rows_of(out)
    assert agree(RewardModel.load(out).score(INPUTS), own_scores(adapted, rows))
    base = AutoModelForSequenceClassification.from_pretrained(tiny(family), num_labels=1).eval()
    assert not np.allclose(own_scores(base, rows), own_scores(adapted, rows), atol=1e-3)


def test_a_merged_folder_scores_the_same_in_a_fresh_process(tiny, tmp_path, out):
    save_adapter(tiny("qwen2"), tmp_path / "lora")
    import_folder(str(tmp_path / "lora"), out, base=tiny("qwen2"))
    command = [sys.executable, "-m", "rewardsmith", "verify", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["ok"]


def test_a_head_that_peft_was_told_to_save_is_found(tiny, tmp_path, out):
    """As TRL asks its users to: no task, modules_to_save = ["score"]."""
    adapted = save_adapter(tiny("llama"), tmp_path / "lora", task=None, modules_to_save=["score"])
    names = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert "base_model.model.score.weight" in names
    import_folder(str(tmp_path / "lora"), out)
    assert agree(RewardModel.load(out).score(INPUTS), own_scores(adapted, rows_of(out)))


def test_an_adapter_over_a_reward_model_takes_the_head_of_its_base(tiny, tiny_rm, tmp_path, out):
    """Nothing of it was trained but the adapter: the head is the base's, and complete."""
    base = str(tiny_rm("qwen2"))
    adapted = save_adapter(base, tmp_path / "lora", task=None, target_modules=["q_proj", "v_proj"])
    imported = import_folder(str(tmp_path / "lora"), out)
    assert "head" not in imported.recognised.found
    assert agree(RewardModel.load(out).score(INPUTS), own_scores(adapted, rows_of(out)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_lora_folder_of_llama_factory_keeps_its_scores(family, tiny, tmp_path, out):
    base = save_language_model(tiny(family), tmp_path / "lm")
    adapted = save_adapter(base, tmp_path / "lf", task="CAUSAL_LM")
    head = random_head()
    save_value_head(tmp_path / "lf", head, CONSTANT)
    imported = import_folder(str(tmp_path / "lf"), out)
    assert imported.recognised.kind == "llama_factory_lora" and imported.merge_difference <= 1e-5
    rows = rows_of(out)
    expected = scores_by_hand(adapted, rows, head, CONSTANT)
    assert agree(RewardModel.load(out).score(INPUTS), expected)
    assert not np.allclose(scores_by_hand(AutoModelForCausalLM.from_pretrained(base), rows, head, CONSTANT), expected)


def test_a_decoder_gets_a_pad_token_of_its_own_and_is_read_alike_elsewhere(tiny, tmp_path, out):
    """The tiny Mistral pads with its end token, as many a reward model does; padded on the right, transformers must find the same token."""
    head = random_head()
    source = save_openrlhf(tiny("mistral"), tmp_path / "orlhf", head)
    imported = import_folder(str(source), out)
    assert any(PAD_TOKEN in note for note in imported.notes)
    rows, model = rows_of(out), AutoModelForSequenceClassification.from_pretrained(out).eval()
    longest, pad = max(row.shape[1] for row in rows), model.config.pad_token_id
    assert pad not in (None, model.config.eos_token_id)
    ids = torch.cat([nn.functional.pad(row, (0, longest - row.shape[1]), value=pad) for row in rows])
    mask = torch.cat([nn.functional.pad(torch.ones_like(row), (0, longest - row.shape[1])) for row in rows])
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=mask).logits[:, 0].numpy()
    assert agree(found, scores_by_hand(AutoModel.from_pretrained(tiny("mistral")), rows, head))


def test_a_text_that_ends_with_the_pad_token_of_its_source_is_told(tiny, tmp_path, out):
    """Trap 1: transformers' own class would skip it and read the token before."""
    source = AutoModelForSequenceClassification.from_pretrained(tiny("qwen2"), num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(tiny("qwen2"))
    tokenizer.chat_template = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}"
    tokenizer.pad_token = "<|end|>"
    tokenizer.eos_token = "<|end|>"
    source.config.pad_token_id = source.config.eos_token_id = tokenizer.pad_token_id
    source.save_pretrained(tmp_path / "trl")
    tokenizer.save_pretrained(tmp_path / "trl")
    imported = import_folder(str(tmp_path / "trl"), out)
    assert any(note.startswith("caution: 16 of 16 golden texts end with '<|end|>'") for note in imported.notes)


@pytest.mark.parametrize("constant", [0.0, CONSTANT])
def test_going_on_from_an_imported_model_starts_at_its_scores(constant, tiny, tmp_path, out):
    """Trap 18: before step 1 the scores equal the source's, in transformers' class and in ours."""
    head = random_head()
    source = save_llama_factory(tiny("llama"), tmp_path / "lf", head, constant=constant)
    import_folder(str(source), out)
    loaded = RewardModel.load(out)
    network = build_network(str(out), pooling="auto", seed=99, dropout=False)
    model = RewardModel(network, loaded.renderer, loaded.contract)
    assert model.network.head == "loaded"
    expected = scores_by_hand(AutoModelForCausalLM.from_pretrained(source), rows_of(out), head, constant)
    assert agree(model.score(INPUTS), expected, tolerance=1e-5)


def test_going_on_says_so_and_saves_what_it_went_on_from(tiny, toy_pairs, tmp_path, out, cli):
    """Trap 18 through the command line: one step of a learning rate near 0 leaves the source's scores."""
    head = random_head()
    import_folder(str(save_openrlhf(tiny("qwen2"), tmp_path / "orlhf", head)), out)
    words = ["train", "--model", out, "--data", toy_pairs, "--out", tmp_path / "run", "--device", "cpu"]
    sets = ["max_length=64", "epochs=1", "dev_share=0", "trainer.max_steps=1", "learning_rate=1e-12"]
    code, _, err = cli(*words, *(word for one in sets for word in ("--set", one)))
    assert code == 0 and "head: loaded" in err.replace("\n", " "), err
    # The same texts under another length limit are other texts: compare those that both read whole.
    texts = [pair for pair in INPUTS if len(str(pair)) < 60]
    before, after = RewardModel.load(out).score(texts), RewardModel.load(tmp_path / "run").score(texts)
    assert np.abs(after - before).max() <= 1e-5 * max(1, np.abs(before).max())


def test_an_adapter_folder_that_says_how_texts_are_rendered_is_believed(tiny, tmp_path, out):
    """As a run of rewardsmith leaves it beside its merged model."""
    save_adapter(tiny("llama"), tmp_path / "adapter")
    spec = RenderSpec("text", "{prompt} -> {answer}", 40, "right")
    (tmp_path / "adapter" / "rewardsmith.json").write_text(json.dumps({"render": spec.as_dict(), "pooling": "last"}))
    assert import_folder(str(tmp_path / "adapter"), out).contract.render == spec


def test_a_chat_template_that_reads_the_clock_is_pinned(tiny, tmp_path, out):
    """Trap 14: the scores of an imported model are the same tomorrow."""
    source = save_openrlhf(tiny("qwen2"), tmp_path / "orlhf", random_head())
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    tokenizer.save_pretrained(source)
    imported = import_folder(str(source), out)
    day = imported.contract.render.date
    assert day is not None and any(f"pinned to {day}" in note for note in imported.notes)
    assert "strftime_now(" not in RewardModel.load(out).renderer.render("Why?", "Because.")
    assert all(check.ok for check in verify(str(out)))


def test_a_length_limit_can_be_set_and_is_kept_within_the_positions(tiny, tmp_path, out):
    source = save_openrlhf(tiny("gpt2"), tmp_path / "orlhf", random_head())
    with pytest.raises(SettingsError, match="at most 256"):  # n_positions of the tiny GPT-2
        import_folder(str(source), out, max_length=300)
    assert import_folder(str(source), out, max_length=100).contract.render.max_length == 100


# What is refused, with the reason.


def refused(source, match, error=HeadError, **options):
    with pytest.raises(error, match=match) as caught:
        import_folder(str(source), source.parent / "never", **options)
    assert not (source.parent / "never").exists()
    return caught.value


def edit(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_an_adapter_without_its_head_is_refused_by_name(tiny, tmp_path):
    """Trap 16."""
    save_adapter(tiny("llama"), tmp_path / "lora")
    edit(tmp_path / "lora" / "adapter_model.safetensors", lambda t: t.pop("base_model.model.score.weight"))
    refused(tmp_path / "lora", r"Reward head missing in adapter_model\.safetensors; it cannot be recovered")
    save_adapter(tiny("llama"), tmp_path / "bare", task=None, target_modules=["q_proj"])
    refused(tmp_path / "bare", r"Reward head missing in adapter_model\.safetensors; it cannot be recovered")


@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json"])
def test_a_missing_head_of_openrlhf_names_the_file(file, tiny, tmp_path):
    source = save_openrlhf(tiny("llama"), tmp_path / "orlhf", random_head())
    edit(source / "model.safetensors", lambda t: t.pop("value_head.weight"))
    if file.endswith("index.json"):
        names = load_file(source / "model.safetensors")
        (source / "model.safetensors").rename(source / "model-00001-of-00001.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        (source / file).write_text(json.dumps(index))
    refused(source, rf"value_head\.weight.*Reward head missing in {file}; it cannot be recovered")


def test_a_value_head_file_without_its_weight_is_refused(tiny, tmp_path):
    source = save_llama_factory(tiny("llama"), tmp_path / "lf", random_head())
    edit(source / "value_head.safetensors", lambda t: t.pop(VALUE_WEIGHT))
    refused(source, r"Reward head missing in value_head\.safetensors")
    edit(
        source / "value_head.safetensors",
        lambda t: t.update({VALUE_WEIGHT: random_head(), "v_head.gate": torch.ones(1)}),
    )
    refused(source, "v_head.gate")


def test_a_language_model_without_a_head_is_refused_by_class(tiny, tmp_path):
    """Trap 17."""
    refused(save_language_model(tiny("llama"), tmp_path / "lm"), "LlamaForCausalLM in 'lm'")
    AutoModel.from_pretrained(tiny("llama")).save_pretrained(tmp_path / "base")
    refused(tmp_path / "base", "LlamaModel in 'base'")


def test_two_labels_are_refused(tiny, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny("llama"), num_labels=2)
    model.save_pretrained(tmp_path / "two")
    refused(tmp_path / "two", "LlamaForSequenceClassification in 'two' with 2 labels")


@pytest.mark.parametrize("name", ["model.norm.weight", "value_head.weight"])
def test_tensors_of_shape_0_ask_for_consolidation(name, tiny, tmp_path):
    """Trap 17: what ZeRO-3 leaves when it was not told to gather."""
    source = save_openrlhf(tiny("llama"), tmp_path / "orlhf", random_head())
    edit(source / "model.safetensors", lambda t: t.update({name: torch.zeros(0)}))
    refused(source, rf"shape \[0\].*{name}.*Consolidate", ModelError)


def test_two_candidates_for_the_head_are_refused(tiny, tmp_path):
    source = save_openrlhf(tiny("llama"), tmp_path / "orlhf", random_head(), prefix="score")
    save_value_head(source, random_head(), 0.0)
    refused(source, "2 in 'orlhf'.*score.weight, v_head.summary.weight")
    (source / "value_head.safetensors").unlink()
    edit(source / "model.safetensors", lambda t: t.update({"value_head.weight": random_head()}))
    refused(source, "2 in 'orlhf'.*score.weight, value_head.weight")
    save_adapter(tiny("llama"), tmp_path / "lora")
    save_value_head(tmp_path / "lora", random_head(), 0.0)
    refused(tmp_path / "lora", "2 in 'lora'")


def test_a_tensor_without_a_place_is_refused(tiny, tmp_path):
    """A head of two layers, say, or a backbone with more layers than its config."""
    source = save_openrlhf(tiny("llama"), tmp_path / "orlhf", random_head())
    edit(source / "model.safetensors", lambda t: t.update({"value_head_hidden.weight": torch.ones(32, 32)}))
    refused(source, "left over.*value_head_hidden")
    source = save_llama_factory(tiny("llama"), tmp_path / "lf", random_head())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    refused(source, r"left over.*layers\.1")
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    refused(source, r"missing.*layers\.2", ModelError)


def test_a_head_of_another_width_is_refused(tiny, tmp_path):
    source = save_llama_factory(tiny("llama"), tmp_path / "lf", torch.ones(1, 16))
    refused(source, r"shape \[1, 32\]")


@pytest.mark.parametrize("pickled", [True, False])
def test_deepspeed_chat_is_recognised_and_refused(pickled, tiny, tmp_path):
    """Its loss reads every token after the two answers part: the last one alone is another score."""
    backbone = AutoModel.from_pretrained(tiny("llama"))
    source = tmp_path / "ds"
    backbone.config.save_pretrained(source)
    tensors = {f"rwtransformer.{name}": tensor for name, tensor in backbone.state_dict().items()}
    tensors["v_head.weight"] = random_head()
    if pickled:
        torch.save(tensors, source / "pytorch_model.bin")
    else:
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    refused(source, "DeepSpeed-Chat.*every token")


def test_weights_that_are_no_safetensors_are_refused(tiny, tmp_path):
    source = save_openrlhf(tiny("llama"), tmp_path / "orlhf", random_head())
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    refused(source, r"safetensors; got pytorch_model\.bin", ModelError)
    source = save_llama_factory(tiny("llama"), tmp_path / "lf", random_head())
    torch.save(load_file(source / "value_head.safetensors"), source / "value_head.bin")
    (source / "value_head.safetensors").unlink()
    refused(source, r"safetensors; got value_head\.bin", ModelError)


def test_a_critic_is_no_reward_model(tiny, tmp_path):
    source = save_openrlhf(tiny("llama"), tmp_path / "critic", random_head())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["CriticModel"]}))
    refused(source, "CriticModel in 'critic', which scores every token")


def test_an_adapter_of_another_base_is_refused(tiny, tmp_path):
    save_adapter(tiny("llama"), tmp_path / "lora")
    refused(tmp_path / "lora", "--base", ModelError, base=tiny("gpt2"))
    edit(
        tmp_path / "lora" / "adapter_model.safetensors",
        lambda t: t.pop(next(name for name in t if "layers.1" in name and "lora_B" in name)),
    )
    refused(tmp_path / "lora", r"missing: .*lora_B", ModelError)


def test_a_base_that_cannot_be_reached_asks_for_one(tiny, tmp_path, out):
    adapted = save_adapter(tiny("llama"), tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_config.json"
    config = json.loads(file.read_text())
    for named, match in (("/elsewhere/llama", "names \\('llama'\\).*--base"), (None, "names none.*--base")):
        file.write_text(json.dumps(config | {"base_model_name_or_path": named}))
        refused(tmp_path / "lora", match, ModelError)
    import_folder(str(tmp_path / "lora"), out, base=tiny("llama"))
    assert agree(RewardModel.load(out).score(INPUTS), own_scores(adapted, rows_of(out)))


def test_a_quantised_base_and_other_adapters_are_refused(tiny, tmp_path):
    save_adapter(tiny("llama"), tmp_path / "lora")
    base = shutil.copytree(tiny("llama"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_4bit": True}}))
    refused(tmp_path / "lora", "full precision.*the quantised 'base'", ModelError, base=str(base))
    file = tmp_path / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "IA3"}))
    refused(tmp_path / "lora", "IA3", ModelError)


def test_an_adapter_on_the_head_is_refused(tiny, tiny_rm, tmp_path):
    """Promise 3: the head carries no adapter."""
    save_adapter(str(tiny_rm("qwen2")), tmp_path / "lora", task=None, target_modules=["q_proj", "score"])
    refused(tmp_path / "lora", "an adapter on the head")


def test_without_peft_the_extra_is_named(tiny, tmp_path, monkeypatch):
    save_adapter(tiny("llama"), tmp_path / "lora")
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(tmp_path / "lora", r"rewardsmith\[lora\]", MissingExtraError)


def test_what_is_no_source_is_refused(tiny, tiny_rm, tmp_path, out):
    with pytest.raises(ContractError, match="has a rewardsmith.json"):
        import_folder(str(tiny_rm("bert")), out)
    with pytest.raises(SettingsError, match="--base"):
        import_folder(str(save_llama_factory(tiny("llama"), tmp_path / "lf", random_head())), out, base=tiny("llama"))
    out.mkdir()
    with pytest.raises(OutputError, match="exists"):
        import_folder(str(tmp_path / "lf"), out)
    with pytest.raises(OutputError, match="neither is nor holds"):
        import_folder(str(tmp_path / "lf"), tmp_path)
    for source in (tmp_path / "absent", "no-such/model"):
        with pytest.raises(ModelError):
            import_folder(str(source), tmp_path / "never")


def test_recognising_builds_nothing_and_gives_the_reason(tiny, tmp_path):
    source = save_llama_factory(tiny("llama"), tmp_path / "lf", random_head())
    found = recognise(source)
    assert found.kind == "llama_factory"
    assert found.reason == "LLaMA-Factory: a value_head.safetensors beside LlamaForCausalLM"
    assert found.found == {
        "architecture": "LlamaForCausalLM",
        "head": VALUE_WEIGHT,
        "file": "value_head.safetensors",
    }


def test_the_command_tells_what_it_found(tiny, tmp_path, out, cli):
    source = save_llama_factory(tiny("gpt_neox"), tmp_path / "lf", random_head())
    code, text, err = cli("import", source, "--out", out, "--json")
    document = json.loads(text)
    assert code == 0 and document["verb"] == "import"
    assert document["recognised"]["kind"] == "llama_factory"
    assert document["head_bias"] == pytest.approx(CONSTANT)
    assert document["contract"]["pooling"] == "last"
    assert "LLaMA-Factory" in err
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recognised"] == document["recognised"] and manifest["notes"] == document["notes"]
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    code, text, _ = cli(
        "import", save_language_model(tiny("llama"), tmp_path / "lm"), "--out", tmp_path / "x", "--json"
    )
    assert code == RewardsmithError.exit_code and json.loads(text)["error"]["type"] == "HeadError"
