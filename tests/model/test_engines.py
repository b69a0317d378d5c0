"""Which engines are named for which folder, and that a folder's own README says it."""

import json

import pytest

from rewardsmith.config import ExportSettings
from rewardsmith.model.engines import engine_section, engines
from rewardsmith.model.export import export_model
from tests.conftest import FAMILIES


def named(model_type, *, own_class=False, encoding="text"):
    found = engines(model_type=model_type, own_class=own_class, encoding=encoding, max_length=256)
    return {engine.name: engine for engine in found}


@pytest.mark.parametrize(
    ("model_type", "encoding", "own", "vllm", "tei"),
    [
        ("bert", "text", False, "8000/classify", "8080/predict"),
        ("bert", "pair", False, "8000/score", "8080/rerank"),
        ("deberta-v2", "text", False, None, "8080/predict"),
        ("modernbert", "text", False, "8000/classify", None),
        ("qwen2", "chat", False, "8000/classify", None),
        ("distilbert", "text", True, None, None),
    ],
)
def test_each_engine_is_named_with_the_route_that_reads_the_model_or_refused_with_a_reason(
    model_type, encoding, own, vllm, tei
):
    found = named(model_type, own_class=own, encoding=encoding)
    for name, route in (("vLLM", vllm), ("TEI", tei)):
        engine = found[name]
        if route is None:
            assert engine.command is None and engine.check is None and engine.note
        else:
            assert engine.check.endswith(f"http://127.0.0.1:{route}") and "FOLDER" in engine.command
    if vllm:
        assert "--runner pooling" in found["vLLM"].command and "--max-model-len 256" in found["vLLM"].command


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_line_for_both_engines(family):
    text = engine_section(engines(model_type=family, own_class=False, encoding="text", max_length=64))
    assert text.count("- vLLM:") == text.count("- TEI:") == 1


def test_a_plain_export_says_how_to_serve_it(tiny_rm, tmp_path):
    out = tmp_path / "plain"
    done = export_model(ExportSettings(model=str(tiny_rm("bert")), to="hf", out=str(out)))
    assert done.ok and [one["name"] for one in done.document["engines"]] == ["vLLM", "TEI"]
    readme = (out / "README.md").read_text()
    assert "vllm serve FOLDER --runner pooling" in readme and "text-embeddings-router" in readme
    assert json.loads((out / "manifest.json").read_text())["engines"][0]["command"].startswith("vllm serve")
