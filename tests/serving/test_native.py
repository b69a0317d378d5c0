"""Our own API: raw scores and what is said beside them, comparisons, rankings, models by name, and when a server calls itself ready."""

import threading
from dataclasses import dataclass, field, replace

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from rewardsmith.config import ScoringSettings, ServeSettings
from rewardsmith.errors import LengthError
from rewardsmith.scores import DomainFlag
from rewardsmith.serving.app import create_app
from rewardsmith.serving.served import Golden
from tests.serving.conftest import MAX_LENGTH, Reader, served, told, wait_until_ready

LONG = "7".rjust(MAX_LENGTH + 1)  # one character, which is one token of the Reader, over its limit


def inputs(*answers):
    return [{"prompt": "p", "answer": answer} for answer in answers]


@dataclass
class Keeper(Reader):
    """A Reader that keeps what it was asked."""

    asked: list = field(default_factory=list)

    def encode(self, inputs):
        self.asked += inputs
        return super().encode(inputs)


class Flagged(Reader):
    """A Reader whose columns all differ: the i-th text has 10 + i, 20 + i and 30 + i cut or odd, and its own digest."""

    digests = np.array([0, 255, 2**64 - 1], dtype=np.uint64)

    def score_encoded(self, texts):
        rows = np.arange(len(texts))
        return replace(
            super().score_encoded(texts),
            prompt_cut=10 + rows,
            answer_cut=20 + rows,
            special_strings=30 + rows,
            digest=self.digests[rows],
        )


def test_a_score_comes_raw_with_its_tokens_and_whether_it_was_cut(inside):
    response = inside().post("/v1/score", json={"inputs": inputs("answer 30", LONG, "-2")})
    # A token is a character: "answer 30" has 9 and fits; LONG has 65, of which 64 are read; "-2" is told as 2.
    assert response.json() == {
        "model": "reader",
        "precision": "float32",
        "calibrated": False,
        "results": [
            {"score": 30.0, "tokens": 9, "truncated": False},
            {"score": 7.0, "tokens": 64, "truncated": True},
            {"score": 2.0, "tokens": 2, "truncated": False},
        ],
    }


def test_no_inputs_have_no_results_and_trouble_no_model(inside):
    reader = Reader()
    assert inside(served(reader)).post("/v1/score", json={"inputs": []}).json()["results"] == []
    assert not reader.batches


def test_the_probability_is_that_of_beating_an_average_answer(inside):
    client = inside(served(Reader(), temperature=2.0, centre=3.0, precision="bf16"))
    body = {"inputs": inputs("answer 7", "answer 3", "answer 0"), "include": ["probability"]}
    answer = client.post("/v1/score", json=body).json()
    # sigmoid((7 - 3) / 2) = sigmoid(2) = 0.8808; sigmoid((3 - 3) / 2) = 0.5; sigmoid((0 - 3) / 2) = sigmoid(-1.5) = 0.1824
    expected = [0.8807970779778823, 0.5, 0.18242552380635635]
    assert [result["probability"] for result in answer["results"]] == pytest.approx(expected, rel=1e-12)
    assert [result["score"] for result in answer["results"]] == [7, 3, 0]
    assert all("flags" not in result for result in answer["results"])
    assert answer["calibrated"] is True and answer["precision"] == "bf16"


def test_without_a_fitted_temperature_the_probability_says_that_it_is_not_calibrated(inside):
    client = inside(served(Reader(), centre=1.0))
    answer = client.post("/v1/score", json={"inputs": inputs("answer 2"), "include": ["probability"]}).json()
    # T = 1: sigmoid(2 - 1) = 0.7311
    assert answer["results"][0]["probability"] == pytest.approx(0.7310585786300049, rel=1e-12)
    assert answer["calibrated"] is False


def test_flags_are_those_of_each_input(inside):
    client = inside(served(Flagged(lambda text: 0.0)))
    body = {"inputs": inputs("one", " \n", ""), "include": ["flags"]}
    results = client.post("/v1/score", json=body).json()["results"]
    # 64 bits are 16 hexadecimal digits: 255 is ff, 2**64 - 1 is sixteen f.
    assert [result["flags"] for result in results] == [
        {
            "prompt_cut": 10 + i,
            "answer_cut": 20 + i,
            "special_strings": 30 + i,
            "empty_answer": i > 0,
            "digest": ["0" * 16, "0" * 14 + "ff", "f" * 16][i],
        }
        for i in range(3)
    ]
    assert all("probability" not in result for result in results)


def test_equal_digests_are_equal_texts_to_the_model(inside):
    body = {"inputs": inputs("answer 1", "answer 2", "answer 1"), "include": ["flags", "probability"]}
    first, other, same = (
        result["flags"]["digest"] for result in inside().post("/v1/score", json=body).json()["results"]
    )
    assert first == same != other


def test_a_prompt_may_be_messages_and_reaches_the_model_as_it_came(inside):
    messages = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "t"},
    ]
    keeper = Keeper()
    client = inside(served(keeper))
    body = {"inputs": [{"prompt": messages, "answer": "answer 3"}, *inputs("answer 4")]}
    scored = client.post("/v1/score", json=body).json()["results"]
    compared = client.post("/v1/compare", json={"prompt": messages, "answer_a": "5", "answer_b": "6"}).json()
    ranked = client.post("/v1/rank", json={"prompt": messages, "answers": ["7", "8"]}).json()["results"]
    answers = ["answer 3", "5", "6", "7", "8"]
    assert keeper.asked == [(messages, answers[0]), ("p", "answer 4"), *((messages, answer) for answer in answers[1:])]
    assert [result["score"] for result in scored] == [3, 4]
    assert compared["margin"] == -1 and ranked[0]["index"] == 1


ONE = {"prompt": "p", "answer": "answer 3"}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/score", {"inputs": [ONE], "max_length": 3}, "max_length"),
        ("/v1/score", {"inputs": [ONE | {"system": "s"}]}, "inputs.0.system"),
        ("/v1/score", {"inputs": [{"prompt": "p"}]}, "inputs.0.answer"),
        ("/v1/score", {"inputs": [ONE, {"prompt": 3, "answer": "a"}]}, "inputs.1.prompt"),
        ("/v1/score", {"inputs": [{"prompt": [], "answer": "a"}]}, "inputs.0.prompt"),
        ("/v1/score", {"inputs": [{"prompt": [{"role": "human", "content": "c"}], "answer": "a"}]}, "role"),
        ("/v1/score", {"inputs": [{"prompt": [{"role": "user", "content": "c", "name": "n"}], "answer": "a"}]}, "name"),
        ("/v1/score", {"inputs": [ONE], "include": ["rank"]}, "include.0"),
        ("/v1/score", {"inputs": ONE}, "inputs"),
        ("/v1/score", {"input": "text"}, "inputs or text_1"),
        ("/v1/compare", {"prompt": "p", "answer_a": "1", "answer_b": "2", "top_n": 1}, "top_n"),
        ("/v1/compare", {"prompt": "p", "answer_a": "1"}, "answer_b"),
        ("/v1/rank", {"prompt": "p", "answers": ["1"], "temperature": 1}, "temperature"),
        ("/v1/rank", {"prompt": "p", "answers": []}, "answers"),
        ("/v1/rank", {"prompt": "p", "answers": ["1"], "top_n": 0}, "top_n"),
        ("/v1/rank", {"prompt": "p", "answers": "12"}, "answers"),
        ("/v1/rank", ["12"], "body"),
    ],
)
def test_what_is_not_meant_is_refused_and_the_field_is_named(inside, path, body, field):
    reader = Reader()
    response = inside(served(reader)).post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "InvalidRequest"
    assert field in error["message"]
    assert not reader.batches


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"inputs": [', "InvalidJson"),
        (b'{"inputs": [], "include": NaN}', "InvalidJson"),
        (b'{"inputs": [{"prompt": "\\ud800", "answer": ""}]}', "InvalidJson"),
        (b'{"inputs": [{"prompt": "\xff", "answer": ""}]}', "InvalidJson"),
        (b"[" * 1000 + b"]" * 1000, "InvalidJson"),
        (b"", "InvalidRequest"),
    ],
    ids=["cut", "NaN", "lone surrogate", "no UTF-8", "deep", "none"],
)
def test_a_body_that_is_no_json_of_the_standard_is_refused(inside, content, kind):
    response = inside().post("/v1/score", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["type"] == kind


def test_an_input_that_the_model_refuses_is_told_with_what_to_do(inside):
    class Strict(Reader):
        def encode(self, inputs):
            raise LengthError("texts of at most 4 tokens", "one of 9", "Send a shorter text.")

    response = inside(served(Strict())).post("/v1/score", json={"inputs": inputs("answer 30")})
    assert response.status_code == 413
    assert response.json()["error"] == {
        "type": "LengthError",
        "needed": "texts of at most 4 tokens",
        "came": "one of 9",
        "mend": "Send a shorter text.",
        "message": "needed texts of at most 4 tokens; got one of 9. Send a shorter text.",
    }


def test_a_comparison_is_the_sigmoid_of_the_margin_over_the_temperature(inside):
    client = inside(served(Reader(), temperature=2.0, centre=100.0))
    answer = client.post("/v1/compare", json={"prompt": "p", "answer_a": "answer 7", "answer_b": LONG[:-1] + "4"})
    # The margin is 7 - 4 = 3 and the centre falls out of it: sigmoid(3 / 2) = 0.8176
    assert answer.json() == {
        "model": "reader",
        "precision": "float32",
        "calibrated": True,
        "probability": pytest.approx(0.8175744761936437, rel=1e-12),
        "margin": 3.0,
        "score_a": 7.0,
        "score_b": 4.0,
        "indistinguishable": False,
        "truncated": True,
    }


def test_a_comparison_and_its_mirror_image_add_up_to_one(inside):
    client = inside()
    one, other = (
        client.post("/v1/compare", json={"prompt": "p", "answer_a": a, "answer_b": b}).json()
        for a, b in (("2", "1"), ("1", "2"))
    )
    # Without a temperature: sigmoid(1) = 0.7311 and sigmoid(-1) = 0.2689
    assert one["probability"] == pytest.approx(0.7310585786300049, rel=1e-12)
    assert other["probability"] == pytest.approx(0.2689414213699951, rel=1e-12)
    assert one["margin"] == -other["margin"] == 1 and one["calibrated"] is one["truncated"] is False


@pytest.mark.parametrize(("other", "indistinguishable"), [("answer 4.", True), ("answer 4!", False)])
def test_indistinguishable_are_equal_texts_and_not_equal_scores(inside, other, indistinguishable):
    body = {"prompt": "p", "answer_a": "answer 4.", "answer_b": other}
    answer = inside().post("/v1/compare", json=body).json()
    assert answer["margin"] == 0 and answer["probability"] == 0.5
    assert answer["indistinguishable"] is indistinguishable


@pytest.mark.parametrize("top_n", [None, 1, 2, 4, 5, 100])
def test_a_ranking_has_the_best_first_and_ties_in_their_order(inside, top_n):
    body = {"prompt": "p", "answers": ["answer 3", "answer 9", "3 again", LONG, "third 3"], "top_n": top_n}
    answer = inside().post("/v1/rank", json=body).json()
    # 9 > 7 (LONG, which is cut) > 3 = 3 = 3
    ranking = [(1, 9.0, False), (3, 7.0, True), (0, 3.0, False), (2, 3.0, False), (4, 3.0, False)]
    assert answer == {
        "model": "reader",
        "precision": "float32",
        "results": [{"index": i, "score": score, "truncated": cut} for i, score, cut in ranking[:top_n]],
    }


def test_many_ties_keep_their_order(inside):
    # numpy's own sort is stable by luck up to 16 numbers; 40 answers show it. Ten of each of the scores 0, 1, 2, 3.
    answers = [f"{i % 4}" for i in range(40)]
    results = inside().post("/v1/rank", json={"prompt": "p", "answers": answers}).json()["results"]
    expected = [i for score in (3, 2, 1, 0) for i in range(score, 40, 4)]
    assert [result["index"] for result in results] == expected


def test_the_model_is_published_as_its_contract_says(inside):
    contract = {"format_version": 3, "files": {"model.safetensors": "sha256:00"}}
    golden = Golden([("p", "answer 3")], np.array([3], np.float32), tolerance=1e-3)
    client = inside(served(Reader(), contract=contract, golden=golden), served(Reader(), name="bare"))
    assert client.get("/v1/model", params={"name": "reader"}).json() == {
        "name": "reader",
        **contract,
        "golden_reproduced": True,
    }
    # Nothing was there to reproduce: that is not a proof.
    assert client.get("/v1/model", params={"name": "bare"}).json() == {"name": "bare", "golden_reproduced": False}


def test_models_are_listed_with_their_limits(inside):
    listed = inside(served(Reader(), name="helpful"), served(Reader(), name="safe")).get("/v1/models").json()
    entry = {"object": "model", "owned_by": "rewardsmith", "max_model_len": 64}
    assert listed == {"object": "list", "data": [{"id": "helpful", **entry}, {"id": "safe", **entry}]}


BODIES = {
    "/v1/score": {"inputs": [ONE]},
    "/v1/compare": {"prompt": "p", "answer_a": "answer 3", "answer_b": "answer 1"},
    "/v1/rank": {"prompt": "p", "answers": ["answer 3"]},
}


@pytest.mark.parametrize("path", BODIES)
def test_of_several_models_the_one_that_is_named_scores(inside, path):
    client = inside(served(Reader(), name="helpful"), served(Reader(lambda text: 10 * told(text)), name="safe"))
    for name, expected in {"helpful": 3, "safe": 30}.items():
        answer = client.post(path, json={"model": name, **BODIES[path]}).json()
        score = answer["score_a"] if path == "/v1/compare" else answer["results"][0]["score"]
        assert (answer["model"], score) == (name, expected)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("named", [{}, {"model": None}, {"model": "Safe"}, {"model": ""}])
def test_of_several_models_none_is_guessed(inside, path, named):
    readers = [Reader(), Reader()]
    client = inside(served(readers[0], name="helpful"), served(readers[1], name="safe"))
    response = client.post(path, json=named | BODIES[path])
    assert response.status_code == 404
    assert response.json()["error"] == {
        "type": "UnknownModel",
        "message": "needed `model`, one of helpful, safe",
    }
    assert client.get("/v1/model", params={"name": "Safe"}).status_code == client.get("/info").status_code == 404
    assert not readers[0].batches and not readers[1].batches


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("named", [{}, {"model": None}, {"model": "gpt-4"}])
def test_one_model_answers_to_any_name_and_tells_its_own(inside, path, named):
    client = inside(served(Reader(), name="only"))
    assert client.post(path, json=named | BODIES[path]).json()["model"] == "only"
    assert client.get("/v1/model", params={"name": "gpt-4"}).json()["name"] == "only"


def test_the_server_is_healthy_only_while_its_engines_run():
    app = create_app([served(Reader())], ServeSettings())
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        for path in ("/health", "/ping"):
            response = client.get(path)
            assert response.status_code == 200 and response.json() == {"alive": True}
    # A client outside of `with` reaches the application after its lifespan.
    stopped = TestClient(app, base_url="http://127.0.0.1:8000")
    assert stopped.get("/health").status_code == 503 and stopped.get("/health").json() == {"alive": False}
    assert stopped.get("/ready").status_code == 503
    assert stopped.get("/ready").json() == {"ready": False, "reason": "stopping"}


def test_a_server_is_ready_only_once_its_golden_scores_were_reproduced():
    gate = threading.Event()
    reader = Reader(gate=gate)
    golden = Golden([("p", "answer 3"), ("p", "answer 5")], np.array([3, 5], np.float32), tolerance=0)
    app = create_app([served(reader, golden=golden)], ServeSettings())
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        assert reader.running.wait(30)
        response = client.get("/ready")
        assert response.status_code == 503 and response.json() == {"ready": False, "reason": "warming up"}
        assert client.get("/v1/model").json()["golden_reproduced"] is False
        assert client.get("/health").status_code == 200
        gate.set()
        wait_until_ready(client)
        response = client.get("/ready")
        assert response.status_code == 200 and response.json() == {"ready": True, "reason": "ready"}
        assert client.get("/v1/model").json()["golden_reproduced"] is True
    assert sum(reader.batches) == 2


def broken(text):
    raise RuntimeError("out of paper")


@pytest.mark.parametrize(
    ("number", "scores", "reason"),
    [
        # |5.5 - 5| / max(1, 5.5) = 0.0909
        (told, [3, 5.5], "reader does not have its golden scores: 9.1e-02 apart"),
        # Below one the difference stands as it is: |0.125 - 0.375| / max(1, 0.125) = 0.25
        (lambda text: 0.375 if "3" in text else 5, [0.125, 5], "does not have its golden scores: 2.5e-01 apart"),
        (broken, [3, 5], "reader cannot score its golden inputs: out of paper"),
        (lambda text: float("nan"), [3, 5], "reader does not have its golden scores"),
    ],
    ids=["apart", "small and apart", "raises", "no number"],
)
def test_a_model_that_does_not_reproduce_its_golden_scores_is_never_ready(inside, number, scores, reason):
    golden = Golden([("p", "answer 3"), ("p", "answer 5")], np.array(scores, np.float32), tolerance=0.05)
    client = inside(served(Reader(), name="good"), served(Reader(number), golden=golden))
    for _ in range(2):
        client.post("/v1/score", json={"model": "good", "inputs": [ONE]})  # whatever it is told, it proves nothing
        response = client.get("/ready")
        assert response.status_code == 503 and response.json()["ready"] is False
        assert reason in response.json()["reason"]
    assert client.get("/v1/model", params={"name": "reader"}).json()["golden_reproduced"] is False


def test_golden_scores_may_differ_by_the_tolerance_times_their_size(inside):
    # 1000 against 1001 is 1 / 1000 = 1e-3 of its size, within 2e-3.
    golden = Golden([("p", "answer 1001")], np.array([1000], np.float32), tolerance=2e-3)
    assert inside(served(Reader(), golden=golden)).get("/ready").json() == {"ready": True, "reason": "ready"}


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2/score", 404), ("GET", "/v1/score", 405)])
def test_paths_that_are_not_there_are_told_in_our_words(inside, method, path, status):
    response = inside().request(method, path)
    kinds = {404: "NotFound", 405: "MethodNotAllowed"}
    assert response.status_code == status and response.json()["error"]["type"] == kinds[status]


# How far texts lie from a reference


@dataclass
class LongAnswersAreOutside:
    """A detector to which an answer of more than ten characters is odd; keeps what it was asked."""

    asked: list = field(default_factory=list)

    def flags(self, pairs):
        self.asked += pairs
        return [DomainFlag(len(a) / 10, 0.01 if len(a) > 10 else 0.5, len(a) > 10, "answers") for _, a in pairs]


def test_a_server_with_a_detector_flags_each_text_and_one_without_says_nothing(inside):
    detector = LongAnswersAreOutside()
    body = {
        "inputs": [*inputs("answer 3"), {"prompt": [{"role": "user", "content": "q"}], "answer": "a long answer 4"}]
    }
    results = inside(served(Reader(), domain=detector)).post("/v1/score", json=body).json()["results"]
    assert [result["domain"] for result in results] == [
        {"distance": 0.8, "p_value": 0.5, "outside": False, "part": "answers"},
        {"distance": 1.5, "p_value": 0.01, "outside": True, "part": "answers"},
    ]
    assert [result["score"] for result in results] == [3, 4]
    # The detector reads what the model reads.
    assert detector.asked == [("p", "answer 3"), ([{"role": "user", "content": "q"}], "a long answer 4")]
    plain = inside().post("/v1/score", json=body).json()["results"]
    assert all("domain" not in result for result in plain)


def test_a_detector_is_asked_by_no_other_route(inside):
    detector = LongAnswersAreOutside()
    client = inside(served(Reader(), domain=detector))
    assert client.post("/v1/compare", json={"prompt": "p", "answer_a": "1", "answer_b": "2"}).status_code == 200
    assert client.post("/v1/rank", json={"prompt": "p", "answers": ["1", "2"]}).status_code == 200
    assert client.post("/score", json={"text_1": "p", "text_2": "1"}).status_code == 200
    assert detector.asked == [] and client.get("/ready").status_code == 200


def kitchen_rows(count, seed):
    """Prompts and answers of one small vocabulary."""
    from rewardsmith.data.schema import Single

    rng, words = np.random.default_rng(seed), "stir the soup add salt bake bread slowly onion golden".split()
    texts = [[" ".join(rng.choice(words, size=6)) for _ in range(2)] for _ in range(count)]
    return [Single(str(i), prompt, answer) for i, (prompt, answer) in enumerate(texts)]


@pytest.mark.parametrize("kind", ["tf-idf", "features"])
def test_a_saved_detector_is_served_with_the_model_that_it_belongs_to(tiny_rm, tmp_path, inside, kind):
    """Both kinds: features of the served model itself, and those that need no model."""
    from rewardsmith import service
    from rewardsmith.auditing.shift import measure_shift
    from rewardsmith.model.features import FrozenEncoder
    from rewardsmith.model.published import publish
    from rewardsmith.model.reward_model import RewardModel

    scoring = ScoringSettings(device="cpu")
    folders = {"own": str(tiny_rm("bert")), "other": str(tiny_rm("bert", pooling="mean"))}
    published = {name: publish(RewardModel.load(folder, scoring), folder) for name, folder in folders.items()}
    features, made_by = None, None
    if kind == "features":
        features = FrozenEncoder(folders["own"], max_length=32, settings=scoring)
        made_by = {"name": "own", "files": dict(published["own"].model.contract.files), "max_length": 32}
    found = measure_shift(kitchen_rows(120, 0), kitchen_rows(30, 1), features=features, made_by=made_by)
    found.save_detector(tmp_path / "domain")
    settings = ServeSettings(domain=str(tmp_path / "domain"))
    detectors = {
        name: service.domain_detector(settings.domain, published[name], folder, scoring)
        for name, folder in folders.items()
    }
    assert (detectors["other"] is None) == (kind == "features")  # of another model the features mean nothing
    client = inside(service.served("own", published["own"], settings, domain=detectors["own"]))
    usual, odd = found.new.answers[0], ("x", "!? " * 60)
    body = {"inputs": [{"prompt": prompt, "answer": answer} for prompt, answer in (usual, odd)]}
    results = client.post("/v1/score", json=body).json()["results"]
    flags = found.detector.flags([usual, odd])
    for result, flag in zip(results, flags, strict=True):
        assert result["domain"]["distance"] == pytest.approx(flag.distance, rel=1e-3)
        assert result["domain"]["p_value"] == pytest.approx(flag.p_value, abs=0.03)
    assert results[1]["domain"]["outside"] and results[1]["domain"]["distance"] > results[0]["domain"]["distance"]


def test_a_detector_of_none_of_the_served_models_stops_the_server_before_it_listens(tiny_rm, tmp_path, monkeypatch):
    from rich.console import Console

    from rewardsmith import service
    from rewardsmith.auditing.shift import measure_shift
    from rewardsmith.errors import ContractError
    from tests.auditing.test_outliers import Lengths

    made_by = {"name": "elsewhere", "files": {"model.safetensors": "0" * 64}, "max_length": 32}
    found = measure_shift(kitchen_rows(120, 0), kitchen_rows(30, 1), features=Lengths(), made_by=made_by)
    found.save_detector(tmp_path / "domain")
    monkeypatch.setattr(service, "Server", lambda *arguments, **more: pytest.fail("it listens"))
    for place in (tmp_path / "domain", tmp_path / "nowhere"):
        with pytest.raises(ContractError, match="detector"):
            service.serve(
                {"m": str(tiny_rm("bert"))},
                ServeSettings(domain=str(place)),
                ScoringSettings(device="cpu"),
                console=Console(quiet=True),
                on_started=lambda _: None,
            )


def test_a_detector_that_takes_its_time_does_not_hold_up_the_server(listening):
    reading, go_on = threading.Event(), threading.Event()

    class Slow(LongAnswersAreOutside):
        def flags(self, pairs):
            reading.set()
            assert go_on.wait(30)
            return super().flags(pairs)

    url, found = listening(served(Reader(), domain=Slow())), []
    asked = {"inputs": inputs("3")}
    ask = threading.Thread(target=lambda: found.append(httpx.post(f"{url}/v1/score", json=asked, timeout=60)))
    ask.start()
    assert reading.wait(30)
    assert httpx.get(f"{url}/health", timeout=5).status_code == 200
    go_on.set()
    ask.join(30)
    assert found[0].json()["results"][0]["domain"]["part"] == "answers"
