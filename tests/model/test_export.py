"""An exported model is the same reward model in another program, or it is not written."""

import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rewardsmith import Preference
from rewardsmith.config import ExportSettings, ScoringSettings, build
from rewardsmith.data.golden import INPUTS
from rewardsmith.errors import ContractError, MissingExtraError, ModelError, OutputError, SettingsError
from rewardsmith.model import artefact, exported
from rewardsmith.model import export as export_module
from rewardsmith.model.agreement import compare_golden, compare_pairs, golden_agreement
from rewardsmith.model.export import export_model
from rewardsmith.model.graphs import eight_bits, holds_numbers
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.model.runtimes import PACKAGES

MODELS = [
    ("bert", "auto", "text"),
    ("bert", "cls", "pair"),
    ("distilbert", "auto", "text"),
    ("electra", "last", "text"),
    ("roberta", "native", "text"),
    ("modernbert", "auto", "text"),
    ("qwen2", "auto", "chat"),
    ("qwen2", "mean", "text"),
]
SAME = [("onnx", *model) for model in MODELS] + [("openvino", *model) for model in (*MODELS[1:4], *MODELS[-2:])]
PAIRS = [*INPUTS, ("How?", "Like this."), ("How?", "Like that, and then some more words."), ("How?", "Like this.")]


def need(backend):
    for name in PACKAGES.get(backend, ()):
        pytest.importorskip(name, reason=f"the extra `{backend}` is not installed")


def settings_for(model, out, to="onnx", **values):
    need(to)
    return build(ExportSettings, {"model": str(model), "out": str(out), "to": to, **values})


def worst(expected, found):
    return float(np.max(np.abs(expected - found) / np.maximum(1.0, np.abs(expected))))


@pytest.fixture
def make(tiny_rm, tmp_path):
    """make("onnx", family="bert") is an exported folder of a tiny model."""

    def build_one(to, *, family="bert", pooling="auto", encoding="text", **values):
        model, out = tiny_rm(family, pooling, encoding), tmp_path / f"{family}-{to}"
        done = export_model(settings_for(model, out, to, **values))
        assert done.ok, done.checks
        return out

    return build_one


@pytest.mark.parametrize(("backend", "family", "pooling", "encoding"), SAME)
def test_an_exported_model_reads_the_same_ids_and_gives_the_same_scores(
    backend, family, pooling, encoding, make, tiny_rm
):
    """On texts of many lengths, in batches that the tracer has not seen."""
    there = RewardModel.load(make(backend, family=family, pooling=pooling, encoding=encoding))
    here = RewardModel.load(tiny_rm(family, pooling, encoding))
    expected, found = here.table(PAIRS), there.table(PAIRS)
    assert np.std(expected.score) > 0.01, "a constant scorer would pass this test"
    assert np.array_equal(expected.digest, found.digest) and np.array_equal(expected.tokens, found.tokens)
    assert worst(expected.score, found.score) <= 1e-4
    assert found.score[-1] == found.score[-3]  # equal texts, read once
    assert worst(found.score, np.concatenate([there.score([pair]) for pair in PAIRS])) <= 1e-5
    assert there.precision_record() == {"backend": backend, "precision": "float32"}


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@pytest.mark.parametrize(("family", "pooling", "encoding"), [("distilbert", "auto", "text"), ("qwen2", "auto", "chat")])
def test_eight_bits_leave_the_head_and_do_not_let_company_move_a_score(
    backend, family, pooling, encoding, make, tiny_rm
):
    """Tiny random layers lose their order easily, so the bound is low here; that the layers were lowered shows in the scores."""
    out = make(backend, family=family, pooling=pooling, encoding=encoding, precision="int8", min_agreement=0.6)
    there, here = RewardModel.load(out), RewardModel.load(tiny_rm(family, pooling, encoding))
    assert holds_numbers(out, here.network.head_module.weight.detach().numpy())
    found = there.score(PAIRS)
    assert np.array_equal(found, np.concatenate([there.score([pair]) for pair in PAIRS]))
    assert 1e-5 < worst(here.score(PAIRS), found)
    assert there.precision == "int8"
    assert there.precision_record()["precision_max_difference"] > 1e-5


def test_bf16_is_computed_by_openvino_where_the_processor_has_it(make, tiny_rm, tmp_path):
    need("openvino")
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(SettingsError, match="a processor with bf16 arithmetic"):
            export_model(settings_for(tiny_rm("bert"), tmp_path / "out", "openvino", precision="bf16"))
        return
    out = make("openvino", precision="bf16", min_agreement=0.9)
    there, here = RewardModel.load(out), RewardModel.load(tiny_rm("bert"))
    assert 1e-5 < worst(here.score(PAIRS), there.score(PAIRS)) <= 5e-2
    assert there.tolerance == 5e-2
    assert holds_numbers(out, here.network.head_module.weight.detach().numpy())


def test_float32_stays_float32_where_the_processor_has_bf16(make, tiny_rm):
    """OpenVINO would take bf16 by itself: differences of 1e-3 would show."""
    there = RewardModel.load(make("openvino"))
    assert worst(RewardModel.load(tiny_rm("bert")).score(PAIRS), there.score(PAIRS)) <= 1e-5


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_graph_of_other_weights_is_refused_and_nothing_is_written(backend, tiny_rm, tmp_path, monkeypatch, cli):
    need(backend)
    whole = export_module._fresh_network

    def corrupt(source):
        network = whole(source)
        with torch.no_grad():
            network.model.get_input_embeddings().weight[7:200].mul_(-1)
        return network

    monkeypatch.setattr(export_module, "_fresh_network", corrupt)
    place = tmp_path / "place"
    place.mkdir()
    code, out, err = cli("export", tiny_rm("bert"), "--to", backend, "--out", place / "rm", "--json")
    document = json.loads(out)
    assert code == 1 and document["ok"] is False
    failed = [check["name"] for check in document["checks"] if not check["ok"]]
    assert "golden scores" in failed and "golden ids" not in failed and "head" not in failed
    assert "FAIL  golden scores" in err
    assert list(place.iterdir()) == []


def test_a_graph_without_the_head_is_refused(tiny_rm, tmp_path, monkeypatch):
    whole = export_module._fresh_network

    def other_head(source):
        network = whole(source)
        with torch.no_grad():
            network.head_module.weight.mul_(1 + 1e-6)
        return network

    monkeypatch.setattr(export_module, "_fresh_network", other_head)
    done = export_model(settings_for(tiny_rm("bert"), tmp_path / "out"))
    assert [check.name for check in done.checks if not check.ok] == ["head"]  # the scores alone would not show it
    assert not (tmp_path / "out").exists()


def test_the_order_of_golden_inputs_is_counted_by_hand():
    """Scores 0, 1, 2, 2: the last two differ by nothing, so 5 of 6 pairs have an order. Found 0, 2, 1, 1: (0,1) (0,2) (0,3) stay, (1,2) (1,3) turn."""
    reference = np.array([0, 1, 2, 2], np.float32)
    estimate = golden_agreement(reference, np.array([0, 2, 1, 1], np.float32))
    assert (estimate.value, estimate.n) == (pytest.approx(3 / 5), 5)
    tied = golden_agreement(reference, np.array([0, 1, 1, 3], np.float32))
    assert tied.value == pytest.approx((4 + 0.5) / 5)  # (1,2) is a tie now: one half
    assert golden_agreement(np.ones(4, np.float32), reference) is None
    (scores, agreement) = compare_golden(np.ones(4, np.float32), reference, precision="int8", min_agreement=0.5).checks
    assert scores.ok and not agreement.ok


def test_accuracies_and_their_paired_difference_are_counted_by_hand():
    """Margins of the reference 1, 2, -1, 0.5 (accuracy 3/4), of the export 1, -2, -1, 0 (ties one half: 1.5/4). Orders agree in 1 + 0 + 1 + 0.5 of 4."""
    pairs = [Preference(id=str(i), prompt=f"p{i}", chosen="a", rejected="b") for i in range(4)]
    rejected = np.zeros(4, np.float32)
    reference = np.concatenate([np.array([1, 2, -1, 0.5], np.float32), rejected])
    found = np.concatenate([np.array([1, -2, -1, 0], np.float32), rejected])
    compared = compare_pairs(pairs, reference, found, precision="int8", min_agreement=0.7)
    values = {name: compared.document[name]["value"] for name in ("agreement", "accuracy_reference", "accuracy")}
    assert values == {"agreement": 2.5 / 4, "accuracy_reference": 3 / 4, "accuracy": 1.5 / 4}
    assert compared.document["difference"]["value"] == pytest.approx(-1.5 / 4)
    assert [check.ok for check in compared.checks] == [True, False]
    # The largest difference is 4 at a score of 2: 4 / 2.
    assert compared.document["max_difference"] == pytest.approx(2.0)


def test_eight_bit_numbers_are_within_half_a_step():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 5)).astype(np.float32)
    weight[2] = 0
    numbers, scale = eight_bits(weight, axis=1)
    assert numbers.dtype == np.int8 and scale.shape == (6, 1)
    assert np.all(np.abs(numbers * scale - weight) <= scale / 2 * (1 + 1e-5))
    assert np.all(np.abs(numbers).max(axis=1)[[0, 1, 3, 4, 5]] == 127)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_the_command_line_takes_an_exported_folder_where_it_takes_a_model(backend, tiny_rm, toy_pairs, tmp_path, cli):
    need(backend)
    out = tmp_path / "exported"
    code, text, err = cli("export", tiny_rm("bert"), "--to", backend, "--out", out, "--data", toy_pairs, "--json")
    document = json.loads(text)
    assert code == 0 and document["ok"], err
    assert document["data"]["num_pairs"] == 48 and document["data"]["num_prompts"] == 24
    assert document["data"]["difference"]["value"] == 0
    assert "difference, paired" in err
    assert cli("verify", out)[0] == 0
    code, text, _ = cli("evaluate", out, toy_pairs, "--json")
    ours, theirs = json.loads(text), json.loads(cli("evaluate", tiny_rm("bert"), toy_pairs, "--json")[1])
    assert ours["accuracy"] == theirs["accuracy"] and ours["backend"] == backend
    assert cli("score", out, toy_pairs, "--out", tmp_path / "scores.jsonl")[0] == 0
    first = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])
    assert (
        worst(
            RewardModel.load(out).score([("How do I mend item 0?", "Gladly, here is how: use glue number 0.")]),
            np.array([first["score_chosen"]]),
        )
        <= 1e-5
    )
    code, _, err = cli("score", out, toy_pairs, "--out", tmp_path / "more.jsonl", "--precision", "bf16")
    assert code == 2 and "Leave --precision away" in err
    # A temperature goes into the contract of the export, and the export still proves itself.
    artefact.store_calibration(exported.contract_folder(str(out)), 1.5, {"fitted_on": "this test"})
    assert json.loads(cli("evaluate", out, toy_pairs, "--json")[1])["calibrated"]["temperature"] == 1.5
    assert cli("verify", out)[0] == 0


def test_an_export_replaces_only_an_export(tiny_rm, make, tmp_path):
    out = make("onnx")
    with pytest.raises(OutputError, match="which exists"):
        export_model(settings_for(tiny_rm("bert"), out))
    assert export_model(settings_for(tiny_rm("bert"), out), overwrite=True).ok
    with pytest.raises(OutputError):
        export_model(settings_for(tiny_rm("bert"), tiny_rm("bert")), overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(OutputError):
        export_model(settings_for(tiny_rm("bert"), other), overwrite=True)


def test_verify_notices_a_changed_graph_and_changed_scores(make, cli):
    out = make("onnx")
    golden = (out / "golden.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in golden.splitlines()]
    rows[3]["score"] += 0.01
    (out / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [check.name for check in exported.verify(out) if not check.ok] == ["saved scores"]
    rows[3]["ids"] = "0" * 16
    (out / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [check.name for check in exported.verify(out) if not check.ok] == ["golden ids", "saved scores"]
    (out / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:9]), encoding="utf-8")
    with_fewer = [check for check in exported.verify(out) if not check.ok]
    assert [check.name for check in with_fewer] == ["load"] and "9" in with_fewer[0].detail
    (out / "golden.jsonl").write_text(golden, encoding="utf-8")
    content = bytearray((out / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "model.onnx").write_bytes(bytes(content))
    assert cli("verify", out)[0] == 1
    with pytest.raises(ContractError, match=r"model\.onnx"):
        RewardModel.load(out)


def test_a_missing_package_is_named_with_the_line_that_installs_it(tiny_rm, tmp_path, monkeypatch):
    settings = build(ExportSettings, {"model": str(tiny_rm("bert")), "out": str(tmp_path / "out"), "to": "openvino"})
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rewardsmith\[openvino\]'"):
        export_model(settings)
    assert not (tmp_path / "out").exists()


def test_precisions_that_bring_nothing_are_refused_before_work_starts():
    for values, reason in (
        ({"to": "onnx", "precision": "bf16"}, "ONNX Runtime"),
        ({"to": "hf", "precision": "int8"}, "hf is float32"),
        ({"to": "hf", "data": "pairs.jsonl"}, "leave it out"),
    ):
        with pytest.raises(SettingsError, match=reason):
            build(ExportSettings, {"model": "m", "out": "o", **values})


def test_nobody_mistakes_an_exported_folder_for_a_checkpoint(make):
    out = make("onnx")
    with pytest.raises(ValueError, match="Unrecognized model"):
        AutoModelForSequenceClassification.from_pretrained(out)
    model = RewardModel.load(out)
    with pytest.raises(ModelError, match="weights that torch can read"):
        _ = model.network
    with pytest.raises(ModelError, match="exported"):
        model.attributes([("a", "b")])
    with pytest.raises(SettingsError, match="on the cpu"):
        RewardModel.load(out, ScoringSettings(device="cuda"))


def test_a_plain_checkpoint_is_nothing_but_a_checkpoint(tiny_rm, tmp_path):
    out = tmp_path / "plain"
    assert export_model(settings_for(tiny_rm("bert"), out, "hf")).ok
    assert not (out / "rewardsmith.json").exists() and not (out / "golden.jsonl").exists()
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    here = RewardModel.load(tiny_rm("bert"))
    table = here.renderer.encode(INPUTS)
    with torch.inference_mode():
        found = [float(model(torch.from_numpy(table.row(i).astype(np.int64))[None]).logits) for i in range(len(table))]
    assert worst(here.score(INPUTS), np.array(found)) <= 1e-5


def test_a_plain_checkpoint_of_our_class_says_that_it_needs_its_code(tiny_rm, tmp_path):
    out = tmp_path / "plain"
    done = export_model(settings_for(tiny_rm("distilbert"), out, "hf"))
    assert done.ok and done.document["loads"] == "with trust_remote_code=True"
    assert "trust_remote_code" in (out / "README.md").read_text() and (out / "modeling_rewardsmith.py").is_file()


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        ("onnx", "float32"),
        pytest.param("openvino", "float32", marks=pytest.mark.slow),
        pytest.param("openvino", "int8", marks=pytest.mark.slow),
    ],
)
def test_the_real_encoder_keeps_its_order(backend, precision, minilm, tmp_path):
    """With a random head over real weights, of which some golden inputs are nearly tied: for 8 bits the bound is lower than the default."""
    need(backend)
    from tests.tiny_models import save_reward_model

    model = save_reward_model(minilm, tmp_path / "rm", pooling="mean", encoding="text", max_length=128)
    done = export_model(settings_for(model, tmp_path / "out", backend, precision=precision, min_agreement=0.9))
    assert done.ok, done.checks
    names = {check.name for check in exported.verify(tmp_path / "out") if not check.ok}
    assert names == set()
