"""What a score from a server promises: the server's own number, in order, after a bounded number of tries, or a typed error; never a number made up."""

import http.server
import json
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tests.serving.conftest as serving
from rewardsmith import remote
from rewardsmith.config import ScoringSettings, ServeSettings
from rewardsmith.errors import MissingExtraError, RemoteError, RewardsmithError, ScoreError
from rewardsmith.loading import load_source
from rewardsmith.remote import RemoteModel, RemoteScorer, connect, is_url, without_credentials
from rewardsmith.scores import TableScorer
from rewardsmith.serving.served import ServedModel
from tests.serving.conftest import Reader, told

listening = serving.listening
KEY = "correct-horse-battery"


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


Answer = Callable[[Asked], tuple[int, dict[str, str], bytes | Any]]


@dataclass
class Bare:
    """A server of another program, and what it was asked."""

    url: str
    asked: list[Asked] = field(default_factory=list)

    def posted(self) -> list[Asked]:
        return [one for one in self.asked if one.method == "POST"]


def scored(asked: Asked) -> tuple[int, dict[str, str], Any]:
    """A server that knows POST /v1/score and its scores alone: each answer's is the number in it."""
    if (asked.method, asked.path) != ("POST", "/v1/score"):
        return 404, {}, {"error": "no such page"}
    return 200, {}, {"results": [{"score": told(one["answer"])} for one in asked.body["inputs"]]}


def then(*first: tuple[int, dict[str, str], Any]) -> Answer:
    """Answers with these, one a request, and then like `scored`."""
    left = list(first)
    return lambda asked: left.pop(0) if left else scored(asked)


def raw(text: str | bytes) -> Answer:
    """Answers every POST with these bytes."""
    content = text if isinstance(text, bytes) else text.encode()
    return lambda asked: (200, {}, content) if asked.method == "POST" else (404, {}, b"")


def bare_server(answer: Answer, port: int = 0) -> tuple[http.server.ThreadingHTTPServer, Bare]:
    """A server on loopback that is not running yet."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            one = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            bare.asked.append(one)
            status, headers, document = answer(one)
            content = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    bare = Bare(f"http://127.0.0.1:{server.server_address[1]}")
    return server, bare


@pytest.fixture
def answering() -> Iterator[Callable[..., Bare]]:
    """answering(answer) is a running server of another program; answering(answer, port) is one on that port."""
    running: list[tuple[http.server.ThreadingHTTPServer, threading.Thread]] = []

    def start(answer: Answer = scored, port: int = 0) -> Bare:
        server, bare = bare_server(answer, port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return bare

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join(30)


@pytest.fixture
def scorer_of() -> Iterator[Callable[..., RemoteScorer]]:
    """scorer_of(url, ...) is a RemoteScorer that is closed at the end of the test."""
    made: list[RemoteScorer] = []

    def make(url: str, kind: type[RemoteScorer] = RemoteScorer, **settings: Any) -> RemoteScorer:
        made.append(kind(url, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that are waited between tries; nobody waits them."""
    waited: list[float] = []
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=waited.append))
    return waited


def answers(*numbers: int) -> list[tuple[str, str]]:
    return [("prompt", f"answer {number}") for number in numbers]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


# Tries


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again_after_growing_pauses(answering, scorer_of, pauses, status):
    bare = answering(then(*[(status, {}, {"error": "busy"})] * 3))
    assert scorer_of(bare.url).score(answers(3)).tolist() == [3.0]
    assert len(bare.posted()) == 4
    # Nothing before the first try; then 0.25 s, 0.5 s and 1 s, each times 0.5 to 1.5.
    assert pauses[0] == 0
    for i, pause in enumerate(pauses[1:]):
        assert 0.5 * 0.25 * 2**i <= pause <= 1.5 * 0.25 * 2**i


def test_a_server_that_is_still_starting_is_waited_for(answering, scorer_of, monkeypatch):
    port, waited = free_port(), []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            answering(port=port)

    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=wait))
    assert scorer_of(f"http://127.0.0.1:{port}").score(answers(7)).tolist() == [7.0]
    assert len(waited) == 3


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("3", 3.0, 3.0),
        ("100000", 8.0, 8.0),  # bounded
        ("9" * 400, 8.0, 8.0),
        # Not whole seconds: as without it, 0.25 s times 0.5 to 1.5.
        ("Wed, 21 Oct 2099 07:28:00 GMT", 0.125, 0.375),
        ("-1", 0.125, 0.375),
        ("nan", 0.125, 0.375),
        ("1e9", 0.125, 0.375),
        ("", 0.125, 0.375),
    ],
)
def test_retry_after_is_waited_for_and_bounded(answering, scorer_of, pauses, header, least, most):
    bare = answering(then((429, {"Retry-After": header}, {})))
    assert scorer_of(bare.url).score(answers(1)).tolist() == [1.0]
    assert len(pauses) == 2 and least <= pauses[1] <= most


def test_tries_are_bounded_and_end_in_an_error_with_the_last_words(answering, scorer_of, pauses):
    bare = answering(lambda asked: (503, {}, {"error": {"type": "Stopping", "message": "the server is stopping"}}))
    with pytest.raises(RemoteError, match=r"none in 12 tries; the last: 503 the server is stopping"):
        scorer_of(bare.url, tries=12).score(answers(1))
    assert len(bare.posted()) == len(pauses) == 12  # no pause after the last
    assert max(pauses) <= 12.0  # 8 s times 1.5


def test_nobody_there_is_an_error_after_all_tries(scorer_of, pauses):
    with pytest.raises(RemoteError, match="none in 4 tries; the last: ConnectError"):
        scorer_of(f"http://127.0.0.1:{free_port()}", tries=4).score(answers(1))
    assert len(pauses) == 4


def test_a_server_that_breaks_off_is_asked_again(answering, scorer_of, pauses):
    # It promises more bytes than it sends.
    bare = answering(then((200, {"Content-Length": "1000"}, b"{")))
    assert scorer_of(bare.url).score(answers(4)).tolist() == [4.0]
    assert len(bare.posted()) == 2


def test_a_server_that_says_nothing_is_given_up(scorer_of, pauses):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RemoteError, match="ReadTimeout"):
            scorer_of(url, timeout=0.05, tries=2).score(answers(1))


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 405, 413, 415, 421, 422, 500])
def test_a_refusal_is_an_error_at_once(answering, scorer_of, pauses, status):
    other = answering()
    headers = {"Location": f"{other.url}/v1/score"}  # a key must not follow a redirect to somebody else
    bare = answering(lambda asked: (status, headers, {"error": {"message": "because of that"}}))
    with pytest.raises(RemoteError, match=f"{status} because of that") as caught:
        scorer_of(bare.url, key=KEY).score(answers(1))
    assert caught.value.status == status and caught.value.exit_code == 2
    assert len(bare.asked) == 1 and not other.asked
    assert ("REWARDSMITH_API_KEY" in str(caught.value)) is (status == 401)


@pytest.mark.parametrize("words", [b"", b"<html>", b"[1]", b'"no"', b'{"error": null}', b"\xff\xfe"])
def test_a_refusal_without_words_still_names_its_status(answering, scorer_of, words):
    bare = answering(lambda asked: (400, {}, words))
    with pytest.raises(RemoteError, match="got 400 Bad Request"):
        scorer_of(bare.url).score(answers(1))


# Answers that are none

GOOD = '{"score": 1.0}'


@pytest.mark.parametrize(
    "document",
    [
        f'{{"results": [{GOOD}]}}',
        f'{{"results": [{GOOD}, {GOOD}, {GOOD}]}}',
        '{"results": []}',
        '{"results": null}',
        '{"results": {"0": 1.0, "1": 1.0}}',
        '{"scores": [1.0, 1.0]}',
        f"[{GOOD}, {GOOD}]",
        "null",
        f'{{"results": [{GOOD}, {{}}]}}',
        f'{{"results": [{GOOD}, {{"score": null}}]}}',
        f'{{"results": [{GOOD}, {{"score": "1.0"}}]}}',
        f'{{"results": [{GOOD}, {{"score": [1.0]}}]}}',
        f'{{"results": [{GOOD}, {{"score": true}}]}}',
        f'{{"results": [{GOOD}, {{"score": NaN}}]}}',
        f'{{"results": [{GOOD}, {{"score": Infinity}}]}}',
        f'{{"results": [{GOOD}, {{"score": 1e999}}]}}',
        f'{{"results": [{GOOD}, {{"score": 1e39}}]}}',  # finite, but not in float32
        f'{{"results": [{GOOD}, {{"score": 1{"0" * 400}}}]}}',
        f'{{"results": [{GOOD}, 1.0]}}',
        f'{{"results": [{GOOD}, null]}}',
        f'{{"results": [{GOOD}, {GOOD}',
        "",
        "<html>welcome</html>",
        b'{"results": "\xff"}',
    ],
    ids=lambda document: str(document)[:60],
)
def test_an_answer_without_a_number_for_each_text_is_an_error_and_never_a_score(answering, scorer_of, document):
    bare = answering(raw(document))
    with pytest.raises((RemoteError, ScoreError)):
        scorer_of(bare.url).score(answers(0, 0))
    assert len(bare.asked) == 1


def test_one_bad_request_of_many_is_an_error_of_all(answering, scorer_of):
    def answer(asked: Asked) -> tuple[int, dict[str, str], Any]:
        status, headers, document = scored(asked)
        if asked.body["inputs"][0]["answer"] == "answer 8":
            document["results"].pop()
        return status, headers, document

    bare = answering(answer)
    with pytest.raises(RemoteError, match=r"needed 2 results .* got 1 results"):
        scorer_of(bare.url, texts_a_request=2).score(answers(*range(20)))


def test_a_whole_number_is_a_score_and_other_fields_do_not_matter(answering, scorer_of):
    bare = answering(raw('{"results": [{"score": 0, "x": 1}, {"score": -3}], "more": []}'))
    found = scorer_of(bare.url).score(answers(1, 2))
    assert found.tolist() == [0.0, -3.0] and found.dtype == np.float32


# Order and bodies


def test_the_order_is_kept_over_chunks_and_threads(answering, scorer_of):
    others = threading.Event()

    def answer(asked: Asked) -> tuple[int, dict[str, str], Any]:
        if asked.body["inputs"][0]["answer"] == "answer 0":
            assert others.wait(30)  # the first request is answered after another one: two are on the way at once
        else:
            others.set()
        return scored(asked)

    bare = answering(answer)
    numbers = [int(number) for number in np.random.default_rng(0).permutation(100)]
    numbers.insert(0, numbers.pop(numbers.index(0)))
    found = scorer_of(bare.url, texts_a_request=7, requests=4).score(answers(*numbers))
    assert found.tolist() == numbers
    # 100 texts in sevens: 14 requests of 7 and one of 2.
    assert sorted(len(one.body["inputs"]) for one in bare.posted()) == [2] + [7] * 14


def test_no_pairs_need_no_server(scorer_of):
    found = scorer_of(f"http://127.0.0.1:{free_port()}").score([])
    assert found.shape == (0,) and found.dtype == np.float32


def test_the_body_says_what_was_asked_and_the_model_where_one_is_named(answering, scorer_of):
    bare = answering()
    messages = [{"role": "user", "content": "Grüße, 東京 👩‍🚀"}]
    scorer_of(bare.url).score([(messages, "answer 1")])
    scorer_of(bare.url, model="a b").score([("p", "answer 2")])
    assert bare.asked[0].body == {"inputs": [{"prompt": messages, "answer": "answer 1"}]}
    assert bare.asked[1].body == {"model": "a b", "inputs": [{"prompt": "p", "answer": "answer 2"}]}
    assert all(one.headers["content-type"] == "application/json" for one in bare.asked)


@pytest.mark.parametrize("end", ["", "/", "/v1/score"])
def test_the_address_may_be_the_server_or_its_route(answering, scorer_of, end):
    bare = answering()
    assert scorer_of(bare.url + end).score(answers(5)).tolist() == [5.0]
    assert bare.asked[0].path == "/v1/score"


# Keys


def bearer(bare: Bare) -> str | None:
    return bare.asked[-1].headers.get("authorization")


def test_the_key_of_the_call_goes_before_that_of_the_address_and_that_before_the_environment(
    answering, scorer_of, monkeypatch
):
    bare = answering()
    with_password = bare.url.replace("//", "//x:key-of-the-address@")
    scorer_of(bare.url).score(answers(1))
    assert bearer(bare) is None
    monkeypatch.setenv("REWARDSMITH_API_KEY", "key-of-the-environment")
    scorer_of(bare.url).score(answers(1))
    assert bearer(bare) == "Bearer key-of-the-environment"
    scorer_of(with_password).score(answers(1))
    assert bearer(bare) == "Bearer key-of-the-address"
    scorer_of(with_password, key="key-of-the-call").score(answers(1))
    assert bearer(bare) == "Bearer key-of-the-call"


def test_a_key_in_an_address_is_written_as_addresses_write_it(answering, scorer_of):
    bare = answering()
    scorer_of(bare.url.replace("//", "//x:p%40ss%2Fword-of-mine@")).score(answers(1))
    assert bearer(bare) == "Bearer p@ss/word-of-mine"


@pytest.mark.parametrize(
    "answer",
    [
        lambda asked: (401, {}, {"error": "no"}),
        lambda asked: (503, {}, {}),
        raw("no json"),
        raw('{"results": []}'),
        raw('{"results": [{"score": NaN}]}'),
        lambda asked: (200, {"Content-Length": "1000"}, b"{"),
        None,
    ],
    ids=["refused", "busy", "no json", "too few", "NaN", "broken off", "nobody there"],
)
def test_no_error_shows_a_credential(answering, scorer_of, pauses, answer):
    address = answering(answer).url if answer else f"http://127.0.0.1:{free_port()}"
    url = address.replace("//", f"//somebody:{KEY}@")
    for use in (lambda: scorer_of(url).score(answers(1)), lambda: scorer_of(url, RemoteModel).contract()):
        with pytest.raises(RewardsmithError) as caught:
            use()
        told = f"{caught.value} {caught.value.as_dict()} {caught.value!r}"
        assert KEY not in told and "somebody" not in told


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://x:secret@127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("https://secret@host/path", "https://host/path"),
        ("http://x:a@b@host:1", "http://host:1"),
        ("http://u:p@[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_an_address_is_shown_without_its_credentials(url, shown):
    assert without_credentials(url) == shown
    assert is_url(url) and not is_url(shown.partition("//")[2])


# What a server is


def test_a_rewardsmith_server_says_what_it_read(listening, scorer_of):
    reader = Reader()
    scorer = connect(listening(ServedModel("m", reader, 64, contract={"render": {}})))
    assert type(scorer) is RemoteModel and isinstance(scorer, TableScorer)
    pairs = [*answers(*range(150)), ("p", f"answer 7 {'x' * 100}")]
    found, expected = scorer.table(pairs), reader.table(pairs)
    scorer.close()
    for name in ("score", "tokens", "truncated", "prompt_cut", "answer_cut", "special_strings", "digest"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.tolist() == theirs.tolist() and ours.dtype == theirs.dtype, name


# 501 is what Python's http.server says to a method that its handler does not have.
@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_that_knows_only_scores_is_enough(answering, status):
    bare = answering(lambda asked: scored(asked) if asked.method == "POST" else (status, {}, b""))
    scorer = connect(bare.url)
    assert type(scorer) is RemoteScorer and not isinstance(scorer, TableScorer)
    assert scorer.score(answers(2, 1)).tolist() == [2.0, 1.0]
    scorer.close()


@pytest.mark.parametrize("document", ['{"id": "another model"}', "[]", '"model"', "7", "null"])
def test_what_another_server_says_of_its_model_is_no_contract(answering, document):
    bare = answering(lambda asked: scored(asked) if asked.method == "POST" else (200, {}, document.encode()))
    scorer = connect(bare.url)
    assert type(scorer) is RemoteScorer
    scorer.close()


def test_a_route_as_address_is_taken_at_its_word(answering):
    bare = answering()
    scorer = connect(f"{bare.url}/v1/score")
    assert type(scorer) is RemoteScorer and not bare.asked
    scorer.close()


@pytest.mark.parametrize(
    ("status", "tries"), [(401, 1), (421, 1), (503, 5)], ids=["key wanted", "another name", "not up"]
)
def test_connecting_does_not_take_a_refusal_for_another_kind_of_server(answering, pauses, status, tries):
    bare = answering(lambda asked: (status, {}, {}))
    with pytest.raises(RemoteError, match=str(status)):
        connect(bare.url)
    assert len(bare.asked) == tries


def test_a_rewardsmith_server_that_leaves_out_what_it_read_is_an_error(answering, scorer_of):
    bare = answering()
    with pytest.raises(RemoteError):
        scorer_of(bare.url, RemoteModel).table(answers(1))


@pytest.mark.parametrize("url", ["http://", "http://[half", "http://127.0.0.1:99999", "http://127.0.0.1:port"])
def test_an_address_that_is_none_is_a_typed_error(cli, write_rows, tmp_path, pauses, url):
    data = write_rows([{"prompt": "p", "answer": "a"}])
    code, out, _ = cli("score", url, data, "--out", tmp_path / "o.jsonl", "--json")
    assert code == 2 and json.loads(out)["error"]["type"] in ("RemoteError", "SettingsError")


@pytest.mark.parametrize("name", ["a b", "a&b", "r/ü+%"])
def test_a_model_is_found_whatever_its_name(listening, scorer_of, name):
    url = listening(
        ServedModel("other", Reader(lambda text: -1.0), 64, contract={"render": "theirs"}),
        ServedModel(name, Reader(), 64, contract={"render": "ours"}),
    )
    scorer = scorer_of(url, RemoteModel, model=name)
    assert (scorer.contract()["name"], scorer.contract()["render"]) == (name, "ours")
    assert scorer.score(answers(6)).tolist() == [6.0]


# Life of a scorer


def test_a_scorer_travels_to_another_process(answering, scorer_of):
    bare = answering()
    first = scorer_of(bare.url, key=KEY, model="m", texts_a_request=2)
    first.score(answers(1))
    second = pickle.loads(pickle.dumps(first))
    assert second.score(answers(4, 5, 6)).tolist() == [4.0, 5.0, 6.0]
    second.close()
    assert bearer(bare) == f"Bearer {KEY}" and bare.asked[-1].body["model"] == "m"


def test_a_closed_scorer_scores_again(answering, scorer_of):
    bare = answering()
    scorer = scorer_of(bare.url)
    for number in (1, 2):
        assert scorer.score(answers(number)).tolist() == [float(number)]
        scorer.close()
        scorer.close()


def test_without_httpx_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtraError, match=r"rewardsmith\[serve\]"):
        RemoteScorer("http://127.0.0.1:1")


# The command line


@pytest.fixture
def tiny_server(tiny_rm, listening) -> tuple[str, str]:
    """(folder, address) of one tiny model."""
    from rewardsmith import service
    from rewardsmith.model.published import publish
    from rewardsmith.model.reward_model import RewardModel

    folder = str(tiny_rm("bert"))
    model = RewardModel.load(folder, ScoringSettings(device="cpu"))
    return folder, listening(service.served("tiny", publish(model, folder), ServeSettings()))


def rows_of(path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_same(found: list[float], expected: list[float], *, tolerance: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert abs(one - other) <= tolerance * max(1.0, abs(other))


def test_loading_an_address_takes_no_torch(answering):
    script = (
        "import sys\n"
        "from rewardsmith.config import ScoringSettings\n"
        "from rewardsmith.loading import load_source\n"
        "source = load_source(sys.argv[1], ScoringSettings(), threads=None, seed=0)\n"
        "print(source.scorer.score([('p', 'answer 9')]).tolist(), 'torch' in sys.modules)\n"
        "source.scorer.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, answering().url], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "[9.0] False\n", done.stderr


def test_the_papers_of_another_server_are_its_address(answering):
    bare = answering()
    source = load_source(bare.url.replace("//", f"//x:{KEY}@"), ScoringSettings(), threads=None, seed=0)
    source.scorer.close()
    assert (source.name, dict(source.files)) == (bare.url, {"url": bare.url})
    assert (source.temperature, dict(source.precision)) == (None, {})


def test_the_papers_of_a_rewardsmith_server_are_those_of_its_folder(tiny_server):
    folder, url = tiny_server
    near, far = (load_source(one, ScoringSettings(), threads=None, seed=0) for one in (folder, url))
    far.scorer.close()
    assert dict(far.files) == dict(near.files) and far.files["model.safetensors"]
    assert dict(far.precision) == dict(near.precision) == {"precision": "float32"}
    assert (far.temperature, far.tolerance) == (near.temperature, near.tolerance)
    assert far.name == url


PAIRS = [
    {"id": f"r{i}", "prompt": f"prompt {i // 2}", "chosen": f"answer {10 + i}", "rejected": f"answer {i}"}
    for i in range(20)
]


def test_score_over_another_server_writes_scores_alone(cli, answering, write_rows, tmp_path):
    url = answering().url.replace("//", f"//somebody:{KEY}@")
    rows = [*PAIRS[:3], {"id": "g", "prompt": "p", "answers": ["answer 1", "answer 2"], "ratings": [1, 2]}]
    rows += [{"id": "s", "prompt": "p", "answer": "answer 4"}]
    code, out, err = cli("score", url, write_rows(rows), "--out", tmp_path / "o.jsonl", "--json")
    assert code == 0, err
    # The chosen answer i is "answer 10 + i", the rejected one "answer i".
    assert rows_of(tmp_path / "o.jsonl") == [
        {"id": "r0", "score_chosen": 10.0, "score_rejected": 0.0},
        {"id": "r1", "score_chosen": 11.0, "score_rejected": 1.0},
        {"id": "r2", "score_chosen": 12.0, "score_rejected": 2.0},
        {"id": "g", "scores": [1.0, 2.0]},
        {"id": "s", "score": 4.0},
    ]
    document = json.loads(out)
    assert (document["num_rows"], document["num_answers"]) == (5, 9)
    assert document["truncated"] is None and document["special_strings"] is None
    assert KEY not in out + err and "somebody" not in out + err
    code, out, err = cli("score", url, write_rows(rows), "--out", tmp_path / "p.jsonl")
    assert code == 0 and "truncated answers: unknown" in out


def test_evaluate_over_another_server_says_what_is_not_known(cli, answering, write_rows, tmp_path):
    url = answering().url.replace("//", f"//somebody:{KEY}@")
    code, out, err = cli("evaluate", url, write_rows(PAIRS), "--out", tmp_path / "judged", "--json")
    assert code == 0, err
    document = json.loads(out)
    # Every chosen answer scores 10 more than its rejected one.
    assert (document["accuracy"]["value"], document["mean_margin"]["value"]) == (1.0, 10.0)
    assert document["truncated"] is document["collapsed"] is document["special_strings"] is None
    assert document["model"]["files"] == {"url": document["model"]["name"]}
    judged = rows_of(tmp_path / "judged" / "pairs.jsonl")
    assert not any("truncated" in name or "tokens" in name for row in judged for name in row)
    code, shown, _ = cli("evaluate", url, write_rows(PAIRS))
    assert code == 0
    files = [path.read_text() for path in (tmp_path / "judged").iterdir()]
    assert not [text for text in (out, err, shown, *files) if KEY in text or "somebody" in text]


def test_a_server_that_goes_away_ends_score_with_an_error_and_no_file(cli, answering, write_rows, tmp_path, pauses):
    bare = answering(lambda asked: (404, {}, b"") if asked.method == "GET" else (503, {}, {"error": "gone"}))
    code, out, err = cli("score", bare.url, write_rows(PAIRS), "--out", tmp_path / "o.jsonl", "--json")
    assert code == 2 and json.loads(out)["error"]["type"] == "RemoteError" and "gone" in err
    assert not (tmp_path / "o.jsonl").exists()


def test_score_over_a_rewardsmith_server_is_score_of_the_folder(cli, tiny_server, write_rows, tmp_path):
    folder, url = tiny_server
    rows = [
        {"id": "a", "prompt": "What is [CLS] and [SEP]?", "chosen": "Tokens [SEP] [SEP].", "rejected": "Grüße 🎉"},
        {"id": "b", "prompt": "a long one " * 40, "chosen": "glue " * 80, "rejected": "go away"},
        {
            "id": "c",
            "prompt": [{"role": "user", "content": "mend"}],
            "answers": ["use glue", "no", "use glue"],
            "ratings": [3, 1, 2],
        },
        {"id": "d", "prompt": "p", "answer": "a"},
        *({"id": f"e{i}", "prompt": f"item {i}", "answer": f"use glue number {i} " * (1 + i % 9)} for i in range(100)),
    ]
    data, documents = write_rows(rows), {}
    for name, source in (("near", folder), ("far", url)):
        code, out, err = cli("score", source, data, "--out", tmp_path / f"{name}.jsonl", "--json")
        assert code == 0, err
        documents[name] = json.loads(out)
        assert documents[name].pop("seconds")["scoring"] > 0 and documents[name].pop("per_second")["rows"] > 0
    assert documents["near"].pop("model") != documents["far"].pop("model")
    assert documents["near"] == documents["far"]
    assert documents["far"]["truncated"] > 0 and documents["far"]["special_strings"] > 0
    near, far = rows_of(tmp_path / "near.jsonl"), rows_of(tmp_path / "far.jsonl")
    numbers: dict[str, list[float]] = {"near": [], "far": []}
    for name, table in (("near", near), ("far", far)):
        for row in table:
            for column in [column for column in row if column.startswith("score")]:
                numbers[name] += np.atleast_1d(row.pop(column)).tolist()
    assert near == far  # ids, tokens, cuts
    # Two pairs, a group of three, 101 single answers.
    assert len(numbers["far"]) == 2 * 2 + 3 + 101 and np.std(numbers["far"]) > 0.01
    assert_same(numbers["far"], numbers["near"])


def test_evaluate_over_a_rewardsmith_server_is_evaluate_of_the_folder(cli, tiny_server, toy_pairs, tmp_path):
    documents, rows = [], []
    for name, source in zip(("near", "far"), tiny_server, strict=True):
        code, out, err = cli("evaluate", source, toy_pairs, "--out", tmp_path / name, "--json")
        assert code == 0, err
        documents.append(json.loads(out))
        rows.append(rows_of(tmp_path / name / "pairs.jsonl"))
    near, far = documents
    assert far["model"]["files"] == near["model"]["files"] and far["precision"] == near["precision"]
    for key in ("accuracy", "ties", "truncated", "collapsed", "special_strings", "baselines", "num_pairs"):
        assert far[key] == near[key], key
    for side in ("chosen", "rejected"):
        assert_same([row[f"score_{side}"] for row in rows[1]], [row[f"score_{side}"] for row in rows[0]])
        assert [row[f"tokens_{side}"] for row in rows[1]] == [row[f"tokens_{side}"] for row in rows[0]]


def test_a_key_of_the_environment_opens_the_command_line(cli, listening, write_rows, tmp_path, monkeypatch):
    url = listening(ServedModel("m", Reader(), 64, contract={"render": {}}), keys=[KEY])
    data = write_rows(PAIRS[:2])
    code, _, err = cli("score", url, data, "--out", tmp_path / "o.jsonl")
    assert code == 2 and "401" in err and "REWARDSMITH_API_KEY" in err
    monkeypatch.setenv("REWARDSMITH_API_KEY", KEY)
    assert cli("score", url, data, "--out", tmp_path / "o.jsonl")[0] == 0
    assert [row["score_chosen"] for row in rows_of(tmp_path / "o.jsonl")] == [10.0, 11.0]
