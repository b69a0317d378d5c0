"""The guardrail as a route: decisions of the saved or stored rule on the served scores, and no default that lets anything pass."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from rewardsmith import service
from rewardsmith.config import ScoringSettings, ServeSettings, build, merge
from rewardsmith.errors import ContractError, SettingsError
from rewardsmith.stats import Estimate
from rewardsmith.use.guard_rule import Rule
from rewardsmith.use.guardrail import Guardrail
from tests.serving.conftest import Reader, served
from tests.serving.test_native import LONG, LongAnswersAreOutside, inputs

RULE = Rule(Estimate(5.0, 4.0, 6.0, 100, "bootstrap"), target_rate=0.05, temperature=2.0)


def ask(client, *answers, **more):
    return client.post("/v1/guard", json={"inputs": inputs(*answers), **more})


def test_every_answer_gets_its_decision_with_reason_score_and_threshold(inside):
    response = ask(inside(served(Reader(), guardrail=RULE)), "answer 7", "answer 5", "answer 3", "", LONG)
    assert response.status_code == 200
    document = response.json()
    found = document.pop("results")
    assert document == {
        "model": "reader", "precision": "float32", "target_rate": 0.05,
        "threshold": 5.0, "threshold_low": 4.0, "threshold_high": 6.0,
    }  # fmt: skip
    # LONG scores 7 but has 65 characters, of which 64 are read.
    assert [(one["decision"], one["cause"]) for one in found] == [
        ("allow", "above threshold"),
        ("abstain", "within the threshold's interval"),
        ("refuse", "below threshold"),
        ("refuse", "empty"),
        ("abstain", "truncated"),
    ]
    # sigmoid((7 - 5) / 2) = sigmoid(1) = 0.7311
    assert found[0]["probability"] == pytest.approx(0.7310585786, rel=1e-9) and found[0]["bad_probability"] is None
    assert found[0]["score"] == 7.0 and found[0]["threshold"] == 5.0 and "not below the threshold" in found[0]["reason"]
    assert [one["truncated"] for one in found] == [False, False, False, False, True]


def test_an_empty_answer_is_refused_though_the_model_has_a_score_for_it(inside):
    found = ask(inside(served(Reader(lambda text: 99.0), guardrail=RULE)), " \u200b").json()["results"][0]
    assert (found["decision"], found["score"]) == ("refuse", None)


def test_the_servers_domain_detector_is_heard(inside):
    detector = LongAnswersAreOutside()
    found = ask(inside(served(Reader(), guardrail=RULE, domain=detector)), "9", "a long answer 9").json()["results"]
    assert [one["cause"] for one in found] == ["above threshold", "outside the domain"] and detector.asked


def test_without_a_guardrail_there_is_a_typed_error_and_no_score(inside):
    reader = Reader()
    client = inside(served(reader), served(Reader(), name="guarded", guardrail=RULE))
    response = ask(client, "answer 9", model="reader")
    assert response.status_code == 404 and response.json()["error"]["type"] == "NoGuardrail"
    assert "--set guardrail" in response.json()["error"]["message"] and not reader.batches
    assert ask(client, "answer 9", model="guarded").json()["results"][0]["decision"] == "allow"
    assert ask(client, "answer 9", model="else").json()["error"]["type"] == "UnknownModel"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": [{"prompt": "p"}]},
        {"inputs": [{"prompt": "p", "answer": 3}]},
        {"inputs": [{"prompt": [], "answer": "3"}]},
        {"inputs": [{"prompt": "p", "answer": "3"}], "threshold": -100},
        {"inputs": "3"},
    ],
)
def test_a_bad_body_is_refused_and_nothing_in_it_moves_the_threshold(inside, body):
    reader = Reader()
    response = inside(served(reader, guardrail=RULE)).post("/v1/guard", json=body)
    assert response.status_code == 400 and response.json()["error"]["type"] == "InvalidRequest" and not reader.batches


def test_a_score_that_is_no_number_is_an_error_and_never_an_allowance(inside):
    response = ask(inside(served(Reader(lambda text: float("nan")), guardrail=RULE)), "answer 9", "answer 8")
    assert response.status_code == 500 and response.json()["error"]["type"] == "ScoreError"
    assert "results" not in response.json()


def test_no_inputs_have_no_results(inside):
    assert ask(inside(served(Reader(), guardrail=RULE))).json()["results"] == []


def test_the_rule_is_published_with_the_model(inside):
    assert inside(served(Reader(), guardrail=RULE)).get("/v1/model").json()["guardrail"] == json.loads(
        json.dumps(RULE.as_dict())
    )
    assert "guardrail" not in inside(served(Reader())).get("/v1/model").json()


@pytest.mark.parametrize(("text", "value"), [("0.05", 0.05), ("guardrail.json", "guardrail.json")])
def test_the_setting_is_a_rate_or_a_file(text, value):
    assert build(ServeSettings, merge({}, {}, [f"guardrail={text}"])).guardrail == value


@pytest.fixture
def published(tiny_rm):
    """A tiny model whose contract has a threshold for 5 %."""
    from rewardsmith.model.published import publish
    from rewardsmith.model.reward_model import RewardModel

    folder = str(tiny_rm("bert"))
    found = publish(RewardModel.load(folder, ScoringSettings(device="cpu")), folder)
    one = {"scale": "score", "wished_false_alarms": 0.05, "threshold": RULE.threshold.as_dict()}
    one |= {name: Estimate(0.1, 0.0, 0.2, 50, "m").as_dict() for name in ("false_alarms", "caught")}
    found.model.contract = replace(found.model.contract, temperature=2.0, calibration={"thresholds": [one]})
    return found


def test_a_rate_takes_the_stored_threshold_and_another_rate_names_the_command(published):
    rule = service.guard_rule(0.05, published)
    assert rule.threshold == RULE.threshold and rule.temperature == 2.0
    assert rule.model["files"] == published.model.contract.files
    with pytest.raises(SettingsError, match=r"0\.05.*rewardsmith calibrate"):
        service.guard_rule(0.1, published)


def test_a_saved_guardrail_is_served_with_the_model_that_it_belongs_to(published, tiny_rm, tmp_path, inside):
    from rewardsmith.model.published import publish
    from rewardsmith.model.reward_model import RewardModel

    Guardrail(published.model, target_rate=0.05).save(tmp_path / "g.json")
    rule = service.read_guardrail(str(tmp_path / "g.json"))
    own = service.guard_rule(rule, published)
    assert own is not None and own.threshold == RULE.threshold
    other = str(tiny_rm("bert", pooling="mean"))
    theirs = publish(RewardModel.load(other, ScoringSettings(device="cpu")), other)
    assert service.guard_rule(rule, theirs) is None
    settings = ServeSettings(guardrail=str(tmp_path / "g.json"))
    client = inside(service.served("own", published, settings, guardrail=own))
    found = ask(client, "Hello there.").json()["results"][0]
    # The decision on the served score is that of the function.
    assert found["decision"] == Guardrail(published.model, rule=own)("p", "Hello there.").decision
    score = float(published.model.score([("p", "Hello there.")])[0])
    assert found["score"] == pytest.approx(score, abs=1e-5)


def test_a_guardrail_that_cannot_be_served_stops_the_server_before_it_listens(
    published, tiny_rm, tmp_path, monkeypatch
):
    monkeypatch.setattr(service, "Server", lambda *arguments, **more: pytest.fail("it listens"))
    Guardrail(lambda prompt, answer: 0.0, threshold=1.0, files={"other.py": "0" * 64}).save(tmp_path / "g.json")
    cases = [
        (str(tmp_path / "g.json"), ContractError, "another model"),
        (str(tmp_path / "nowhere.json"), SettingsError, "guardrail=0.05"),
        ("5%", SettingsError, "guardrail=0.05"),
        ("", SettingsError, "guardrail=0.05"),
        (0.05, SettingsError, "calibrate"),
        (5.0, SettingsError, "between 0 and 1"),
    ]
    for guardrail, kind, words in cases:
        with pytest.raises(kind, match=words):
            service.serve(
                {"m": str(tiny_rm("bert"))},
                ServeSettings(guardrail=guardrail),
                ScoringSettings(device="cpu"),
                console=Console(quiet=True),
                on_started=lambda _: None,
            )
