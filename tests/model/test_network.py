"""What is accepted as a model, what is refused, and what is chosen with which reason (traps 3 and 17)."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rewardsmith.errors import HeadError, ModelError, OutputError, SettingsError
from rewardsmith.model.artefact import verify
from rewardsmith.model.importing import import_folder
from rewardsmith.model.network import build_network, check_vocabulary, load_tokenizer, position_capacity
from rewardsmith.model.reward_model import RewardModel
from tests.conftest import ENCODERS, FAMILIES


@pytest.fixture
def copied(tiny, tmp_path):
    """A copy of a tiny base model that a test may change."""

    def copy(family):
        return shutil.copytree(tiny(family), tmp_path / family)

    return copy


def save_classifier(base, out, labels, **options):
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, **options)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return model


def test_auto_pooling_by_family(tiny):
    found = {family: build_network(tiny(family), pooling="auto", seed=0, dropout=False) for family in FAMILIES}
    assert {family: (n.pooling, n.native) for family, n in found.items()} == {
        "bert": ("pooler", True),
        "deberta-v2": ("pooler", True),
        "distilbert": ("mean", False),
        "roberta": ("mean", False),
        "electra": ("mean", False),
        "modernbert": ("mean", False),
        "qwen2": ("last", True),
    }
    assert all(n.head == "new (seed 0)" and n.reason for n in found.values())


def test_poolers_that_nobody_reads_are_not_built(tiny):
    for family in ("bert", "roberta"):
        network = build_network(tiny(family), pooling="mean", seed=0, dropout=False)
        assert not [name for name, _ in network.model.named_parameters() if "pooler" in name]


def test_positions_are_capped_where_they_are_absolute(tiny):
    capacities = {
        f: position_capacity(build_network(tiny(f), pooling="auto", seed=0, dropout=False).model) for f in FAMILIES
    }
    # RoBERTa counts from padding_idx + 1 = 2: 130 rows hold 128 positions. Relative and rotary positions have no cap.
    assert capacities == {
        "bert": 128,
        "distilbert": 128,
        "roberta": 128,
        "electra": 128,
        "deberta-v2": None,
        "modernbert": None,
        "qwen2": None,
    }


@pytest.mark.parametrize("family", ENCODERS)
def test_the_longest_text_that_fits_is_scored(family, tiny_rm):
    """Exactly at the cap: off by one would be an index error."""
    model = RewardModel.load(tiny_rm(family, "auto", "text", 128))
    table = model.table([("word " * 500, "answer " * 500)])
    assert table.tokens.tolist() == [128]


def test_a_pooler_is_refused_where_there_is_none(tiny):
    with pytest.raises(SettingsError, match="pooler"):
        build_network(tiny("distilbert"), pooling="pooler", seed=0, dropout=False)


@pytest.mark.parametrize("verb", ["score", "evaluate"])
def test_a_causal_lm_or_two_labels_are_no_reward_model(verb, tiny, toy_pairs, tmp_path, cli):
    causal = AutoModelForCausalLM.from_pretrained(tiny("qwen2"))
    causal.save_pretrained(tmp_path / "lm")
    AutoTokenizer.from_pretrained(tiny("qwen2")).save_pretrained(tmp_path / "lm")
    save_classifier(tiny("bert"), tmp_path / "two", 2)
    for name, found in (("lm", "Qwen2ForCausalLM"), ("two", "with 2 labels"), (tiny("bert"), "BertModel")):
        code, out, err = cli(verb, tmp_path / name, toy_pairs, "--out", tmp_path / "o", "--json")
        assert code == 2 and found in err
        assert json.loads(out)["error"]["type"] == "HeadError"
        assert not (tmp_path / "o").exists()


def test_train_accepts_a_causal_lm_and_gives_it_a_new_head(tiny, tmp_path):
    causal = AutoModelForCausalLM.from_pretrained(tiny("qwen2"))
    causal.save_pretrained(tmp_path / "lm")
    network = build_network(str(tmp_path / "lm"), pooling="auto", seed=4, dropout=False)
    assert (network.head, network.pooling) == ("new (seed 4)", "last")


def test_a_classifier_of_three_labels_gives_its_backbone(tiny, tmp_path):
    save_classifier(tiny("bert"), tmp_path / "nli", 3)
    network = build_network(str(tmp_path / "nli"), pooling="auto", seed=0, dropout=False)
    assert network.head == "new (seed 0)" and network.head_module.weight.shape == (1, 32)


def test_pad_tokens_out_of_range_missing_or_shared(tiny):
    """Trap 3; nothing reaches a forward pass."""
    network, tokenizer = (
        build_network(tiny("bert"), pooling="auto", seed=0, dropout=False),
        load_tokenizer(tiny("bert")),
    )
    assert check_vocabulary(network, tokenizer) is None
    tokenizer.add_special_tokens({"pad_token": "[NEW]"})
    tokenizer.add_tokens([f"extra{i}" for i in range(20)])
    with pytest.raises(ModelError, match="rows of the embedding table"):
        check_vocabulary(network, tokenizer)
    tokenizer = load_tokenizer(tiny("bert"))
    tokenizer.pad_token = None
    assert "attention mask alone" in check_vocabulary(network, tokenizer)
    decoder, tokenizer = (
        build_network(tiny("qwen2"), pooling="auto", seed=0, dropout=False),
        load_tokenizer(tiny("qwen2")),
    )
    for pad in (None, tokenizer.eos_token):
        tokenizer.pad_token = pad
        with pytest.raises(ModelError, match="pad token of its own"):
            check_vocabulary(decoder, tokenizer)


def test_import_writes_a_contract_of_a_plain_folder(tiny, tmp_path, cli):
    model = save_classifier(tiny("distilbert"), tmp_path / "plain", 1)
    with pytest.warns(UserWarning, match="carries no rewardsmith.json"):
        foreign = RewardModel.load(tmp_path / "plain")
    pair = ("What is up?", "The sky.")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "plain")(foreign.renderer.render(*pair), return_tensors="pt")
    with torch.inference_mode():
        expected = model.eval()(**tokens).logits.item()
    assert foreign.score([pair])[0] == pytest.approx(expected, abs=1e-6)
    code, _, _ = cli("import", tmp_path / "plain", "--out", tmp_path / "rm")
    assert code == 0
    assert all(check.ok for check in verify(str(tmp_path / "rm")))
    assert RewardModel.load(tmp_path / "rm").score([pair])[0] == pytest.approx(expected, abs=1e-6)
    assert RewardModel.load(tmp_path / "rm").contract.pooling == "native"
    with pytest.raises(OutputError, match="exists"):
        import_folder(str(tmp_path / "plain"), tmp_path / "rm")
    with pytest.raises(HeadError):
        import_folder(tiny("bert"), tmp_path / "no")


def test_a_foreign_folder_with_a_chat_template_uses_it(tiny, tmp_path):
    save_classifier(tiny("qwen2"), tmp_path / "plain", 1)
    with pytest.warns(UserWarning, match="'chat'"):
        assert RewardModel.load(tmp_path / "plain").renderer.spec.encoding == "chat"


def test_bin_weights_are_for_base_models_only(copied, tmp_path):
    """A base model's .bin is read with weights_only; a reward model must be safetensors."""
    folder = copied("bert")
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert build_network(str(folder), pooling="auto", seed=0, dropout=False).pooling == "pooler"
    save_classifier(str(folder), tmp_path / "rm", 1)
    torch.save(load_file(tmp_path / "rm" / "model.safetensors"), tmp_path / "rm" / "pytorch_model.bin")
    (tmp_path / "rm" / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        RewardModel.load(tmp_path / "rm")


def test_code_in_a_folder_is_never_run(tiny_rm, tmp_path):
    folder = shutil.copytree(tiny_rm("distilbert"), tmp_path / "rm")
    (folder / "modeling_rewardsmith.py").write_text("raise SystemExit('ran')")
    RewardModel.load(folder)


def test_places_that_are_no_models(tmp_path):
    for source in (tmp_path, tmp_path / "absent", "no-such-model"):
        with pytest.raises(ModelError):
            RewardModel.load(source)


def test_a_cut_weights_file_is_an_error(tiny_rm, tmp_path):
    folder = shutil.copytree(tiny_rm("bert"), tmp_path / "rm")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError):
        RewardModel.load(folder)
