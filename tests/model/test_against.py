"""`verify --against`: it passes where another way gives the same score, and catches each way in which other tools are known to give another one."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewardsmith.config import ScoringSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.errors import SettingsError
from rewardsmith.model.against import compare, open_path, verify_against
from rewardsmith.model.other_paths import PipelinePath
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.scores import checked
from tests.fakes import pair
from tests.tiny_models import save_reward_model

LENGTH = 120
WAYS = [
    ("transformers", "bert", "auto", "text"),
    ("transformers", "bert", "auto", "pair"),
    ("transformers", "distilbert", "auto", "text"),
    ("transformers", "deberta-v2", "auto", "text"),
    ("transformers", "modernbert", "native", "text"),
    ("transformers", "qwen2", "auto", "chat"),
    ("crossencoder", "bert", "auto", "pair"),
    ("crossencoder", "roberta", "native", "pair"),
    ("onnx", "bert", "auto", "text"),
    ("openvino", "qwen2", "auto", "chat"),
]


def failed(found):
    return {check.name.partition(": ")[2] for check in found.checks if not check.ok}


@pytest.mark.parametrize(("kind", "family", "pooling", "encoding"), WAYS)
def test_ways_that_agree_pass_and_say_on_how_much(kind, family, pooling, encoding, tiny_rm):
    if kind in ("onnx", "openvino"):
        pytest.importorskip({"onnx": "onnxruntime"}.get(kind, kind), reason=f"the extra `{kind}` is not installed")
    if kind == "crossencoder":
        pytest.importorskip("sentence_transformers", reason="the extra `bench` is not installed")
    found = verify_against(str(tiny_rm(family, pooling, encoding, LENGTH)), kind)
    assert not failed(found) and len(found.checks) == 2
    golden = found.document["golden"]
    assert golden["max_difference"] <= 1e-5 and golden["agreement"]["value"] == 1
    # Through our own renderer every input is asked for; other tools are spared the long ones and the one that speaks of special tokens.
    assert golden["left_out"] == 0 if kind in ("onnx", "openvino") else 1 <= golden["left_out"] <= 6
    assert golden["num_inputs"] + golden["left_out"] == len(INPUTS)


class Faulty:
    """How a tool scores a model of ours with one mistake, in padded batches."""

    name, precision, reads_alike = "a tool", "float32", False

    def __init__(self, folder, fault, renderer):
        """Load as the tool would, then make the mistake."""
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.fault, self.renderer = fault, renderer
        if fault == "left padding":
            self.tokenizer.padding_side = "left"
        if fault == "pad token is the end token":
            self.tokenizer.pad_token = self.tokenizer.eos_token
            self.model.config.pad_token_id = self.tokenizer.eos_token_id
        if fault == "head drawn at random":
            torch.manual_seed(3)
            torch.nn.init.normal_(self.model.get_submodule("classifier").weight)

    def score(self, pairs):
        texts = [self.renderer.render(prompt, answer) for prompt, answer in pairs]
        if self.fault == "special tokens doubled":
            texts = [f"[CLS]{text}[SEP]" for text in texts]
        if self.fault == "cut to 24 tokens":
            self.tokenizer.model_max_length = 24
        special = self.fault != "special tokens missing" and self.renderer.spec.encoding != "chat"
        batch = self.tokenizer(
            texts,
            padding=True,
            truncation=self.fault == "cut to 24 tokens",
            add_special_tokens=special,
            return_tensors="pt",
        )
        with torch.inference_mode():
            scores = self.model(**batch).logits[:, 0]
        if self.fault == "squashed":
            scores = scores.sigmoid()
        if self.fault == "one number for all":
            scores = torch.ones_like(scores)
        if self.fault == "not a number":
            scores = torch.where(torch.arange(len(scores)) == 3, torch.nan, scores)
        return checked(scores.tolist(), len(pairs))


FAULTS = [
    ("bert", "text", "squashed", {"golden scores"}),
    ("bert", "text", "left padding", {"golden scores"}),
    ("bert", "text", "special tokens doubled", {"golden scores"}),
    ("bert", "text", "special tokens missing", {"golden scores"}),
    ("bert", "text", "cut to 24 tokens", {"golden scores"}),
    ("bert", "text", "head drawn at random", {"golden scores", "golden agreement"}),
    ("bert", "text", "one number for all", {"golden scores", "golden agreement"}),
    ("bert", "text", "not a number", {"scores"}),
    ("qwen2", "chat", "squashed", {"golden scores"}),
]


@pytest.mark.parametrize(("family", "encoding", "fault", "least"), FAULTS)
def test_each_known_fault_is_caught(family, encoding, fault, least, tiny_rm):
    folder = tiny_rm(family, "auto", encoding, LENGTH)
    model = RewardModel.load(folder, ScoringSettings(device="cpu"))
    found = failed(compare(model, Faulty(folder, fault, model.renderer)))
    assert least <= found


def test_a_pad_token_that_is_the_end_token_is_caught(tiny, tmp_path):
    """Transformers reads the last token that is no pad token: here the one before the end token that the model was trained to be read at."""
    base = tiny("qwen2")
    template = "{prompt}\n\n{answer}<|endoftext|>"
    folder = save_reward_model(
        base, tmp_path / "rm", pooling="auto", encoding="text", max_length=LENGTH, template=template
    )
    model = RewardModel.load(folder, ScoringSettings(device="cpu"))
    assert not failed(compare(model, Faulty(folder, "none", model.renderer)))
    assert "golden scores" in failed(compare(model, Faulty(folder, "pad token is the end token", model.renderer)))


@pytest.mark.parametrize(("family", "encoding"), [("bert", "text"), ("qwen2", "chat")])
def test_the_same_tool_without_its_fault_passes(family, encoding, tiny_rm):
    folder = tiny_rm(family, "auto", encoding, LENGTH)
    model = RewardModel.load(folder, ScoringSettings(device="cpu"))
    assert not failed(compare(model, Faulty(folder, "none", model.renderer)))


def test_bf16_is_held_to_its_own_tolerance(tiny_rm):
    """A shift by 0.01 is past 1e-4 and within 5e-2."""
    folder = tiny_rm("bert", "auto", "text", LENGTH)
    model = RewardModel.load(folder, ScoringSettings(device="cpu"))

    class Shifted(Faulty):
        def score(self, pairs):
            return super().score(pairs) + np.float32(0.01)

    path = Shifted(folder, "none", model.renderer)
    assert failed(compare(model, path)) == {"golden scores"}
    path.precision = "bf16"
    assert not failed(compare(model, path))


@pytest.fixture
def altered(tiny_rm, tmp_path):
    """altered(change) is a copy of a tiny folder with one file changed, and the folder itself."""

    def build(change, family="bert", encoding="text"):
        source = tiny_rm(family, "auto", encoding, LENGTH)
        copy = tmp_path / "copy"
        shutil.copytree(source, copy)
        change(copy)
        return str(source), str(copy)

    return build


def edit_config(folder, **changes):
    document = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        document.pop(name, None) if value is None else document.update({name: value})
    (folder / "config.json").write_text(json.dumps(document))


def test_a_folder_that_another_tool_would_squash_is_caught(altered):
    source, copy = altered(lambda folder: edit_config(folder, problem_type=None))
    assert "golden scores" in failed(verify_against(source, f"transformers:{copy}"))


def test_a_pair_folder_that_crossencoder_would_squash_is_caught(altered):
    pytest.importorskip("sentence_transformers", reason="the extra `bench` is not installed")
    source, copy = altered(lambda folder: edit_config(folder, sentence_transformers=None), encoding="pair")
    assert "golden scores" in failed(verify_against(source, f"crossencoder:{copy}"))


def test_a_folder_without_its_head_is_caught_and_not_scored(altered):
    def behead(folder):
        weights = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    source, copy = altered(behead)
    found = verify_against(source, f"transformers:{copy}")
    assert failed(found) == {"head"} and "classifier.weight" in found.checks[0].detail
    assert found.document["golden"] is None


def test_users_pairs_are_compared_beside_the_golden_inputs(tiny_rm, write_rows):
    long = "word " * 400
    rows = [{"prompt": f"q {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(6)]
    rows += [
        {"prompt": "too long", "chosen": long, "rejected": "short"},
        {"prompt": "p", "chosen": "[SEP]", "rejected": "b"},
    ]
    found = verify_against(str(tiny_rm("bert", "auto", "text", LENGTH)), "transformers", data=write_rows(rows))
    assert not failed(found)
    data = found.document["data"]
    assert (data["num_pairs"], data["left_out"]) == (6, 2)
    assert data["source"] == "pairs.jsonl" and data["difference"]["value"] == 0


def test_pairs_of_which_none_can_be_compared_are_a_finding(tiny_rm):
    model = RewardModel.load(tiny_rm("bert", "auto", "text", LENGTH), ScoringSettings(device="cpu"))
    path = PipelinePath(str(tiny_rm("bert", "auto", "text", LENGTH)), model.renderer)
    assert failed(compare(model, path, pairs=[pair(0, chosen="word " * 400)])) == {"inputs"}


@pytest.mark.parametrize(
    ("against", "encoding", "words"),
    [
        ("crossencoder", "text", 'encoding = "pair"'),
        ("vllm", "text", "one of transformers"),
        ("http://127.0.0.1:9/predict", "pair", "'text' for TEI's /predict"),
        ("http://127.0.0.1:9/rerank", "text", "'pair' for TEI's /rerank"),
        ("http://127.0.0.1:9/classify", "pair", "for vLLM's /classify"),
        ("http://127.0.0.1:9/score", "text", "'pair' for vLLM's /score"),
        ("http://127.0.0.1:9/v2/rerank", "pair", "ends in"),
    ],
)
def test_what_a_way_cannot_read_is_refused_with_the_reason(against, encoding, words, tiny_rm):
    folder = str(tiny_rm("bert", "auto", encoding, LENGTH))
    model = RewardModel.load(folder, ScoringSettings(device="cpu"))
    with pytest.raises(SettingsError, match=words):
        open_path(against, folder, model, precision="float32")


def test_a_class_of_ours_is_not_run_from_its_folder(tiny_rm):
    folder = str(tiny_rm("bert", "mean", "pair", LENGTH))
    with pytest.raises(SettingsError, match="never run"):
        open_path("crossencoder", folder, RewardModel.load(folder), precision="float32")
    assert not failed(verify_against(folder, "transformers"))


def test_the_command_exits_with_1_and_names_what_differs(altered, cli):
    source, copy = altered(lambda folder: edit_config(folder, problem_type=None))
    code, out, err = cli("verify", source, "--against", f"transformers:{copy}", "--json")
    document = json.loads(out)
    assert code == 1 and document["ok"] is False
    assert [check["name"] for check in document["checks"] if not check["ok"]][0] == "transformers: golden scores"
    assert document["against"]["golden"]["max_difference"] > 1e-4
    assert cli("verify", source, "--against", "transformers")[0] == 0
    code, _, err = cli("verify", source, "--data", "pairs.jsonl")
    assert code == 2 and "--against" in err
    code, _, err = cli("verify", source, "--against", "http://127.0.0.1:9/predict")
    assert code == 2 and "127.0.0.1:9/predict" in err
