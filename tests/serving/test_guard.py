"""Who may ask, and how much: what is turned away, with which status, and that nothing of it reaches a model."""

import base64

import pytest

from rewardsmith.config import ServeSettings
from rewardsmith.errors import SettingsError
from rewardsmith.serving.guard import read_keys
from tests.serving.conftest import Reader, served

KEY, OTHER = "correct-horse-battery", "staple-correct-horse"
BODY = {"inputs": [{"prompt": "p", "answer": "answer 3"}]}


def basic(key):
    return {"Authorization": "Basic " + base64.b64encode(f"x:{key}".encode()).decode()}


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer {OTHER}"}, basic(KEY)],
    ids=["bearer", "another key", "basic password"],
)
def test_each_key_lets_in(inside, headers):
    client = inside(keys=[KEY, OTHER])
    assert client.post("/v1/score", json=BODY, headers=headers).json()["results"][0]["score"] == 3


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": KEY},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": "Bearer "},
        basic("x"),
        {"Authorization": "Basic ???"},
    ],
    ids=["none", "no scheme", "nearly", "empty", "wrong password", "no base64"],
)
def test_without_a_key_nothing_is_told(inside, headers):
    reader = Reader()
    client = inside(served(reader), keys=[KEY])
    for path in ("/v1/score", "/get_reward", "/classify"):
        response = client.post(path, json=BODY, headers=headers)
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/model", "/metrics", "/info", "/docs", "/openapi.json", "/v1/models"):
        assert client.get(path, headers=headers).status_code == 401, path
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    assert not reader.batches


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:8000"])
def test_a_page_that_points_its_name_at_loopback_is_refused(inside, host):
    assert inside().post("/v1/score", json=BODY, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "model.internal"])
def test_names_of_loopback_and_allowed_ones_are_served(inside, host):
    client = inside(allowed_hosts=("model.internal",))
    assert client.post("/v1/score", json=BODY, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""])
def test_what_a_browser_sends_without_asking_is_refused(inside, kind):
    response = inside().post("/v1/score", content='{"inputs": []}', headers={"Content-Type": kind})
    assert response.status_code == 415 and "application/json" in response.json()["error"]["message"]


def test_the_json_content_type_may_name_its_charset(inside):
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert inside().post("/v1/score", content='{"inputs": []}', headers=headers).json()["results"] == []


def test_sizes_are_limited_with_the_limit_in_the_words(inside):
    client = inside(max_body_bytes=1000, max_texts=2, max_characters=10)
    one = {"prompt": "p", "answer": "answer 3"}
    assert client.post("/v1/score", json={"inputs": [one] * 2}).status_code == 200
    cases = {
        "2 texts; this has 3": {"inputs": [one] * 3},
        "10 characters; one has 12": {"inputs": [{"prompt": "long", "answer": "answer 3"}]},
        "1000 bytes": {"inputs": [one] * 40},
    }
    for words, body in cases.items():
        response = client.post("/v1/score", json=body)
        assert response.status_code == 413 and words in response.json()["error"]["message"]


def test_keys_come_from_a_file_and_from_the_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n\n{OTHER}\n")
    settings = ServeSettings(keys_file=str(file))
    assert read_keys(settings, {"REWARDSMITH_API_KEYS": "third-of-the-keys,fourth-of-the-keys"}) == [
        "third-of-the-keys",
        "fourth-of-the-keys",
        KEY,
        OTHER,
    ]
    assert read_keys(ServeSettings(), {}) == []


@pytest.mark.parametrize(
    ("settings", "content", "words"),
    [
        ({"host": "0.0.0.0"}, None, "none"),
        ({}, "short\n", "at least 16"),
        ({}, "\n", "none in"),
        ({"keys_file": "nowhere"}, None, "No such file"),
        ({}, "ключ-из-кириллицы-длинный\n", "ASCII"),
    ],
)
def test_an_open_door_is_refused_before_anything_listens(tmp_path, settings, content, words):
    if content is not None:
        settings = {**settings, "keys_file": str(tmp_path / "keys")}
        (tmp_path / "keys").write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=words):
        read_keys(ServeSettings(**settings), {})


def test_insecure_opens_it_knowingly():
    assert read_keys(ServeSettings(host="0.0.0.0", insecure=True), {}) == []


def test_more_requests_than_may_be_open_are_told_to_come_back(inside):
    client = inside(max_requests=1)
    guard = client.app.middleware_stack.app  # below starlette's own outermost layer
    while not hasattr(guard, "num_inside"):
        guard = guard.app
    guard.num_inside = 1
    response = client.post("/v1/score", json=BODY)
    assert response.status_code == 429 and response.headers["retry-after"] == "1"
    assert client.get("/health").status_code == 200
    guard.num_inside = 0
    assert client.post("/v1/score", json=BODY).status_code == 200


def test_metrics_and_logs_carry_no_text_of_a_client(inside, caplog):
    secret = "sesame-4711"

    def broken(text):
        raise RuntimeError(text)

    client = inside(served(Reader(broken)))
    response = client.post("/v1/score", json={"model": secret, "inputs": [{"prompt": secret, "answer": secret}]})
    assert response.status_code == 500 and response.json()["error"]["type"] == "InternalError"
    client.post(f"/{secret}", json={})
    client.post("/v1/score", json={secret: secret})
    assert "RuntimeError" in caplog.text
    assert secret not in client.get("/metrics").text + caplog.text + response.text


def test_a_score_that_is_not_finite_is_an_error_and_never_a_number(inside):
    from rewardsmith.errors import ScoreError
    from rewardsmith.scores import checked

    class Checked(Reader):
        def score_encoded(self, texts):
            table = super().score_encoded(texts)
            checked(table.score, len(texts))
            return table

    response = inside(served(Checked(lambda text: float("nan")))).post("/v1/score", json=BODY)
    assert response.status_code == 500 and response.json()["error"]["type"] == ScoreError.__name__
