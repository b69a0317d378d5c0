"""From folders to served models: their names, what is published of them, and the golden scores that they must have."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.special import expit

import tests.serving.conftest as serving
from rewardsmith import service
from rewardsmith.config import ScoringSettings, ServeSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.errors import SettingsError
from rewardsmith.model.published import Published, publish
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.storage import file_sha256

inside = serving.inside
CPU = ScoringSettings(device="cpu")


def published(folder: Path, settings: ScoringSettings = CPU) -> Published:
    return publish(RewardModel.load(folder, settings), str(folder))


def with_contract(source: Path, out: Path, **changes: Any) -> Path:
    """A copy of a folder whose contract says something else."""
    shutil.copytree(source, out)
    contract = json.loads((out / "rewardsmith.json").read_text())
    (out / "rewardsmith.json").write_text(json.dumps({**contract, **changes}))
    return out


def strings_in(document: Any) -> list[str]:
    """Every string of a JSON document, keys included."""
    if isinstance(document, dict):
        return [text for key, value in document.items() for text in [key, *strings_in(value)]]
    if isinstance(document, list):
        return [text for value in document for text in strings_in(value)]
    return [document] if isinstance(document, str) else []


# Names


def test_a_model_is_named_after_its_folder_or_as_it_is_told(in_folder):
    (in_folder / "runs" / "demo").mkdir(parents=True)
    assert service.named(["runs/demo", "safe=runs/b", "org/name"]) == {
        "demo": "runs/demo",
        "safe": "runs/b",
        "name": "org/name",
    }
    assert service.named(["runs/demo/"]) == {"demo": "runs/demo/"}
    assert service.named(["./runs/../runs/demo"]) == {"demo": "./runs/../runs/demo"}
    assert list(service.named(["."]).values()) == ["."]
    assert list(service.named(["."])) == [in_folder.resolve().name]


def test_a_folder_with_an_equals_sign_in_its_name_is_a_folder(in_folder):
    (in_folder / "lr=1e-5").mkdir()
    assert service.named(["lr=1e-5"]) == {"lr=1e-5": "lr=1e-5"}
    assert service.named(["best=lr=1e-5"]) == {"best": "lr=1e-5"}
    assert service.named(["lr=2e-5"]) == {"lr": "2e-5"}  # there is no such folder


@pytest.mark.parametrize(
    "sources", [["a/model", "b/model"], ["x=a", "x=b"], ["x=a", "b/x"], ["a", "a"]], ids=lambda two: " ".join(two)
)
def test_two_models_of_one_name_are_refused(sources):
    with pytest.raises(SettingsError, match=r"twice.*NAME=MODEL"):
        service.named(sources)


@pytest.mark.parametrize("source", ["=runs/a", "name="])
def test_a_name_without_a_model_and_a_model_without_a_name_are_refused(source):
    with pytest.raises(SettingsError):
        service.named([source])


def test_models_of_one_name_end_the_command_line_before_anything_is_loaded(cli, monkeypatch):
    monkeypatch.setattr(RewardModel, "load", lambda *arguments: pytest.fail("a model was loaded"))
    code, out, _ = cli("serve", "m=nowhere", "m=nowhere", "--json")
    assert code == 2 and json.loads(out)["error"]["type"] == "SettingsError"


def test_keys_are_asked_for_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(RewardModel, "load", lambda *arguments: pytest.fail("a model was loaded"))
    with pytest.raises(SettingsError, match="keys"):
        service.serve(
            {"m": "nowhere"}, ServeSettings(host="0.0.0.0"), CPU, console=Console(), on_started=lambda _: None
        )


# What is published


@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_the_published_contract_has_every_hash_and_no_path_or_text(tiny_rm, pooling):
    folder = tiny_rm("bert", pooling=pooling)
    found = published(folder)
    document = json.loads(json.dumps(found.contract))
    names = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    names |= {"modeling_rewardsmith.py"} if pooling == "mean" else set()
    assert document["files"] == {name: file_sha256(folder / name) for name in names}
    assert len(document["render_sha256"]) == 64
    assert (document["precision"], document["tolerance"]) == ("float32", 1e-5)
    texts = strings_in(document)
    assert len(texts) > 30
    places = {str(folder), folder.name, str(Path.home()), str(Path.cwd())}
    assert not [text for text in texts if text.startswith("/") or any(place in text for place in places)]
    golden = {text for _, answer in INPUTS for text in [answer]}
    assert not [text for text in texts if any(one in text for one in golden)]


def test_golden_scores_are_those_of_the_file(tiny_rm):
    folder = tiny_rm("bert")
    found = published(folder)
    rows = [json.loads(line) for line in (folder / "golden.jsonl").read_text().splitlines()]
    assert found.inputs == [(row["prompt"], row["answer"]) for row in rows] and len(rows) == 16
    assert found.scores.tolist() == np.array([row["score"] for row in rows], dtype=np.float32).tolist()
    assert found.tolerance == 1e-4


def test_a_model_in_bf16_is_held_to_the_tolerance_of_bf16(tiny_rm, inside):
    found = published(tiny_rm("bert"), ScoringSettings(device="cpu", precision="bf16"))
    assert found.tolerance == 5e-2 and found.contract["precision"] == "bf16"
    client = inside(service.served("m", found, ServeSettings()))
    assert client.get("/ready").status_code == 200
    answer = client.post("/v1/score", json={"inputs": [{"prompt": "p", "answer": "a"}]}).json()
    assert answer["precision"] == "bf16"


def test_a_model_that_refuses_long_texts_is_held_to_the_golden_inputs_that_fit(tiny_rm, tmp_path, inside):
    from dataclasses import replace

    from rewardsmith.model.artefact import load, save
    from rewardsmith.model.render import Renderer

    loaded = load(str(tiny_rm("bert")))
    renderer = Renderer(loaded.renderer.tokenizer, replace(loaded.renderer.spec, truncation="error"))
    save(loaded.network, renderer, tmp_path / "strict", training_dtype="float32", manifest={})
    found = published(tmp_path / "strict")
    fitting = [i for i, pair in enumerate(INPUTS) if renderer_fits(renderer, pair)]
    assert 0 < len(fitting) < 16
    assert found.inputs == [INPUTS[i] for i in fitting] and len(found.scores) == len(fitting)
    client = inside(service.served("strict", found, ServeSettings()))
    assert client.get("/ready").status_code == 200
    response = client.post("/v1/score", json={"inputs": [{"prompt": "long " * 100, "answer": "a"}]})
    assert response.status_code == 413 and response.json()["error"]["type"] == "LengthError"


def renderer_fits(renderer: Any, pair: Any) -> bool:
    from rewardsmith.errors import LengthError

    try:
        renderer.encode([pair])
    except LengthError:
        return False
    return True


def test_a_folder_of_another_tool_is_served_as_one_that_nothing_proves(tiny_rm, tmp_path, inside):
    folder = Path(shutil.copytree(tiny_rm("bert"), tmp_path / "plain"))
    (folder / "rewardsmith.json").unlink()
    with pytest.warns(UserWarning, match=r"carries no rewardsmith\.json"):
        found = published(folder)
    assert found.contract["assumed"] is True and found.inputs == []
    client = inside(service.served("plain", found, ServeSettings()))
    document = client.get("/v1/model").json()
    assert document["assumed"] is True and document["golden_reproduced"] is False
    assert client.get("/ready").status_code == 200


# What is served


def test_a_served_model_has_the_temperature_and_centre_of_its_contract(tiny_rm, tmp_path, inside):
    normaliser = {"mean": 0.5, "std": 2.0, "n": 100, "data_sha256": "0" * 64}
    folder = with_contract(tiny_rm("bert"), tmp_path / "m", temperature=2.0, normaliser=normaliser)
    model = service.served("m", published(folder), ServeSettings(templated_texts=True))
    assert (model.temperature, model.centre, model.max_length) == (2.0, 0.5, 64)
    assert model.templated_texts and model.precision == "float32" and model.golden is not None
    body = {"inputs": [{"prompt": "p", "answer": "use glue"}], "include": ["probability"]}
    client = inside(model)
    document = client.post("/v1/score", json=body).json()
    (result,) = document["results"]
    # sigmoid((score - mean) / T)
    assert result["probability"] == pytest.approx(expit((result["score"] - 0.5) / 2.0), abs=1e-6)
    assert document["calibrated"] is True
    two = client.post("/v1/compare", json={"prompt": "p", "answer_a": "use glue", "answer_b": "go away"}).json()
    # The mean is of both and falls out: sigmoid(margin / T).
    assert two["probability"] == pytest.approx(expit((two["score_a"] - two["score_b"]) / 2.0), abs=1e-6)


def test_a_served_model_without_them_says_so(tiny_rm, inside):
    model = service.served("m", published(tiny_rm("bert")), ServeSettings())
    assert (model.temperature, model.centre, model.templated_texts) == (None, 0.0, False)
    document = inside(model).post("/v1/compare", json={"prompt": "p", "answer_a": "a", "answer_b": "b"}).json()
    assert document["calibrated"] is False


@pytest.mark.parametrize("family", ["bert", "qwen2"])
def test_a_server_is_ready_once_the_golden_scores_are_reproduced_and_shows_what_it_serves(tiny_rm, inside, family):
    folder = tiny_rm(family)
    client = inside(service.served("tiny", published(folder), ServeSettings()))
    assert client.get("/ready").json() == {"ready": True, "reason": "ready"}
    document = client.get("/v1/model").json()
    assert document["name"] == "tiny" and document["golden_reproduced"] is True
    assert document["files"]["model.safetensors"] == file_sha256(folder / "model.safetensors")
    assert document["files"]["tokenizer.json"] == file_sha256(folder / "tokenizer.json")
    contract = json.loads((folder / "rewardsmith.json").read_text())
    assert document["render_sha256"] == contract["render_sha256"] and document["render"] == contract["render"]
    assert client.get("/info").json()["rewardsmith"]["files"] == document["files"]
    # And the path that proved it is the one that requests take: the same numbers as the file's.
    rows = [json.loads(line) for line in (folder / "golden.jsonl").read_text().splitlines()]
    inputs = [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows]
    results = client.post("/v1/score", json={"inputs": inputs}).json()["results"]
    for row, result in zip(rows, results, strict=True):
        assert abs(result["score"] - row["score"]) <= 1e-4 * max(1, abs(row["score"]))


def test_two_models_are_asked_for_by_name(tiny_rm, inside):
    folders = {"first": tiny_rm("bert"), "second": tiny_rm("bert", pooling="mean")}
    client = inside(*(service.served(name, published(folder), ServeSettings()) for name, folder in folders.items()))
    pair = ("How do I mend it?", "Use glue.")
    body = {"inputs": [{"prompt": pair[0], "answer": pair[1]}]}
    found = {}
    for name, folder in folders.items():
        response = client.post("/v1/score", json={**body, "model": name}).json()
        found[name] = response["results"][0]["score"]
        expected = float(RewardModel.load(folder, CPU).score([pair])[0])
        assert response["model"] == name and abs(found[name] - expected) <= 1e-5 * max(1, abs(expected))
        assert client.get("/v1/model", params={"name": name}).json()["name"] == name
    assert abs(found["first"] - found["second"]) > 1e-3
    for response in (client.post("/v1/score", json=body), client.get("/v1/model")):
        assert response.status_code == 404 and "first, second" in response.json()["error"]["message"]


def test_what_is_served_is_said_before_it_listens(tiny_rm, monkeypatch):
    made: list[tuple[Any, ...]] = []

    class Told:
        def __init__(self, models, settings, keys, *, on_started):
            """Keep what came."""
            made.append((models, keys))

        def serve_until_stopped(self):
            """At once."""

    monkeypatch.setattr(service, "Server", Told)
    monkeypatch.setenv("REWARDSMITH_API_KEYS", "correct-horse-battery")
    console = Console(record=True, width=200, quiet=False, stderr=True)
    service.serve({"tiny": str(tiny_rm("bert"))}, ServeSettings(), CPU, console=console, on_started=lambda _: None)
    told = console.export_text()
    assert "tiny: float32, encoding text, max_length 64, 16 golden scores" in told and "1 keys let in" in told
    ((models, keys),) = made
    assert [model.name for model in models] == ["tiny"] and keys == ["correct-horse-battery"]
    assert "correct-horse" not in told
