"""What a server does when something breaks: a client that dies or drips, a body that is none, a signal under load, a folder that is not what was saved."""

import contextlib
import hashlib
import json
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from rewardsmith import remote
from rewardsmith.config import ScoringSettings, ServeSettings
from rewardsmith.errors import ContractError
from rewardsmith.scores import checked
from tests.serving.conftest import Reader, served, told

ROOT = Path(__file__).resolve().parents[2]
ROUTES = (
    "/v1/score",
    "/v1/compare",
    "/v1/rank",
    "/score",
    "/classify",
    "/v1/classify",
    "/pooling",
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/predict",
    "/",
    "/get_reward",
    "/v1/score/evaluation",
)
# Text Embeddings Inference calls everything that is wrong with an input "Validation", 422.
TEI = ("/predict", "/")


def body(*numbers: int) -> dict[str, Any]:
    return {"inputs": [{"prompt": "p", "answer": f"answer {number}"} for number in numbers]}


def scores(response: httpx.Response) -> list[float]:
    assert response.status_code == 200, response.text
    return [result["score"] for result in response.json()["results"]]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until it holds, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds a model back; open at the end of a test whatever happens."""
    event = threading.Event()
    yield event
    event.set()


class Checked(Reader):
    """A reader that finds its own numbers faulty where they are not finite, as models do."""

    def score_encoded(self, texts: Any) -> Any:
        table = super().score_encoded(texts)
        checked(table.score, len(texts))
        return table


# Clients that go


@dataclass
class Noting(Reader):
    """A reader that keeps what it was given to read, whether or not it is scored later."""

    read: list[str] = field(default_factory=list)

    def encode(self, inputs: Any) -> Any:
        texts = super().encode(inputs)
        self.read += [text.tokens for text in texts]
        return texts


def test_the_texts_of_a_client_that_is_killed_leave_the_line(listening, gate):
    reader = Noting(gate=gate)
    url = listening(served(reader), queue_texts=11)
    script = "import httpx, json, sys; httpx.post(sys.argv[1], json=json.loads(sys.argv[2]), timeout=60)"
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/v1/score", json=body(1))
        assert reader.running.wait(30)
        words = [sys.executable, "-c", script, f"{url}/v1/score", json.dumps(body(*range(100, 110)))]
        with subprocess.Popen(words) as doomed:
            until(lambda: len(reader.read) == 11)
            # One text is being scored and ten wait: as many as may.
            assert client.post("/v1/score", json=body(0)).status_code == 429
            doomed.send_signal(signal.SIGKILL)
        second = pool.submit(ask_until_let_in, client, body(*range(20, 30)))
        until(lambda: len(reader.read) == 21)
        gate.set()
        assert scores(first.result(30)) == [1.0]
        assert scores(second.result(30)) == list(range(20, 30))
        assert scores(client.post("/v1/score", json=body(5))) == [5.0]
    # None of the ten texts of the client that died was scored.
    assert reader.batches == [1, 10, 1]


def ask_until_let_in(client: httpx.Client, document: dict[str, Any]) -> httpx.Response:
    for _ in range(500):
        response = client.post("/v1/score", json=document)
        if response.status_code != 429:
            break
        time.sleep(0.02)
    return response


def test_a_client_that_left_is_not_counted_as_waiting(listening, gate):
    reader = Reader(gate=gate)
    url = listening(served(reader))
    with httpx.Client(base_url=url) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/score", json=body(*range(10)), timeout=0.2)
        # The model still reads them, but nobody waits.
        until(lambda: 'rewardsmith_texts_held{model="reader"} 0.0' in client.get("/metrics").text, 5)


# Load that is too much


def test_a_full_queue_says_when_to_come_back_while_the_accepted_are_answered(listening, gate):
    reader = Reader(gate=gate)
    url = listening(served(reader), queue_texts=10)
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(client.post, "/v1/score", json=body(*range(8)))
        assert reader.running.wait(30)
        texts = ["answer 1", "answer 2", "answer 3"]
        refused = {
            "/v1/score": body(1, 2, 3),
            "/v1/rank": {"prompt": "p", "answers": texts},
            "/score": {"text_1": "p", "text_2": texts},
            "/classify": {"input": texts},
            "/rerank": {"query": "p", "texts": texts},
            "/predict": {"inputs": [[text] for text in texts]},
            "/get_reward": {"query": texts},
        }
        for path, document in refused.items():
            response = client.post(path, json=document)
            assert response.status_code == 429, path
            assert 1 <= int(response.headers["retry-after"]) <= 60
            assert "full" in response.text
        gate.set()
        assert scores(accepted.result(30)) == list(range(8))
        assert scores(client.post("/v1/score", json=body(1, 2, 3))) == [1.0, 2.0, 3.0]


def test_a_scorer_waits_as_long_as_a_full_queue_asks(listening, gate, monkeypatch):
    reader, pauses = Reader(gate=gate), []

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        if seconds:
            gate.set()
            time.sleep(0.05)

    scorer = remote.RemoteScorer(listening(served(reader), queue_texts=10), tries=20)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(scorer.score, [("p", f"answer {number}") for number in range(8)])
        assert reader.running.wait(30)
        monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=wait))
        found = scorer.score([("p", "answer 21"), ("p", "answer 22"), ("p", "answer 23")])
        assert first.result(30).tolist() == list(range(8)) and found.tolist() == [21.0, 22.0, 23.0]
    scorer.close()
    # Nothing was scored yet, and a text a second is guessed: 8 texts, 8 s.
    assert pauses[:2] == [0.0, 8.0]


def test_a_deadline_that_passes_is_504_and_the_next_request_is_served(inside, gate):
    client = inside(served(Reader(gate=gate)), deadline=0.05)
    response = client.post("/v1/score", json=body(1))
    assert response.status_code == 504 and response.json()["error"]["type"] == "DeadlinePassed"
    response = client.post("/predict", json={"inputs": "answer 1"})
    assert response.status_code == 504 and "error" in response.json()
    gate.set()
    until(lambda: client.post("/v1/score", json=body(2)).status_code == 200)
    assert scores(client.post("/v1/score", json=body(3))) == [3.0]


def test_a_score_that_is_not_finite_fails_its_own_request_alone(listening, gate):
    reader = Checked(lambda text: float("nan") if "13" in text else told(text), gate=gate)
    url = listening(served(reader))
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(16) as pool:
        first = pool.submit(client.post, "/v1/score", json=body(0))
        assert reader.running.wait(30)
        sent = {number: pool.submit(client.post, "/v1/score", json=body(number, 50)) for number in range(8, 20)}
        time.sleep(0.2)  # so that they are read together
        gate.set()
        assert scores(first.result(30)) == [0.0]
        for number, response in sent.items():
            if number == 13:
                assert response.result(30).status_code == 500
                assert response.result(30).json()["error"]["type"] == "ScoreError"
            else:
                assert scores(response.result(30)) == [float(number), 50.0]


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v1/score", body(13)),
        ("/v1/compare", {"prompt": "p", "answer_a": "answer 13", "answer_b": "answer 1"}),
        ("/v1/rank", {"prompt": "p", "answers": ["answer 1", "answer 13"]}),
        ("/score", {"text_1": "p", "text_2": "answer 13"}),
        ("/classify", {"input": "answer 13"}),
        ("/classify", {"text": "answer 13"}),
        ("/pooling", {"input": "answer 13"}),
        ("/rerank", {"query": "p", "documents": ["answer 13"]}),
        ("/rerank", {"query": "p", "texts": ["answer 13"]}),
        ("/predict", {"inputs": "answer 13"}),
        ("/", {"messages": ["answer 13"]}),
        ("/get_reward", {"query": ["answer 13"]}),
    ],
)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_no_protocol_has_a_number_for_a_score_that_is_not_finite(inside, path, document, number):
    client = inside(served(Checked(lambda text: number if "13" in text else told(text))))
    response = client.post(path, json=document)
    assert response.status_code == 500 and "error" in response.json()
    assert not {"score", "scores", "results", "data", "rewards", "probability"} & set(response.json())


def test_a_model_that_gives_nan_is_an_error_of_its_type_and_never_ready(inside, tiny_rm):
    import torch

    from rewardsmith import service
    from rewardsmith.model.published import publish
    from rewardsmith.model.reward_model import RewardModel

    folder = str(tiny_rm("bert"))
    model = RewardModel.load(folder, ScoringSettings(device="cpu"))
    proven = service.served("broken", publish(model, folder), ServeSettings())
    with torch.no_grad():
        model.network.head_module.weight.fill_(float("nan"))
    # Where there is nothing to prove it by, the score itself is found out.
    response = inside(replace(proven, golden=None)).post("/v1/score", json=body(1))
    assert response.status_code == 500 and response.json()["error"]["type"] == "ScoreError"
    client = inside(proven)
    ready = client.get("/ready")
    assert ready.status_code == 503 and "golden" in ready.json()["reason"]
    assert client.get("/health").status_code == 200


# Bodies that are none

BAD = {
    "empty": b"",
    "white space": b" \n",
    "an array": b'[{"inputs": []}]',
    "a string": b'"inputs"',
    "a number": b"1",
    "null": b"null",
    "half": b'{"inputs": [{"prompt": "p", "answer": "a"}',
    "two": b'{"inputs": []}{"inputs": []}',
    "no UTF-8": b'{"inputs": [{"prompt": "\xff\xfe", "answer": "a"}]}',
    "UTF-16": '{"inputs": []}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"inputs": []}',
    "half a surrogate pair": b'{"inputs": [{"prompt": "\\ud800", "answer": "a"}], "text": "\\udc00"}',
    "a surrogate in UTF-8": b'{"inputs": [{"prompt": "\xed\xa0\x80", "answer": "a"}]}',
    "NaN": b'{"inputs": [], "x": NaN}',
    "Infinity": b'{"inputs": [], "x": Infinity}',
    "-Infinity": b'{"inputs": [], "x": -Infinity}',
    "nested lists": b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested objects": b'{"inputs": ' * 100_000 + b"1" + b"}" * 100_000,
    "brackets alone": b"[" * 100_000,
    "a control character": b'{"inputs": [{"prompt": "\x00", "answer": "a"}]}',
    "single quotes": b"{'inputs': []}",
}


@pytest.mark.parametrize("name", BAD)
def test_a_body_that_is_no_json_object_is_refused_with_a_type_on_every_route(inside, name):
    reader = Reader()
    client = inside(served(reader))
    for path in ROUTES:
        response = client.post(path, content=BAD[name], headers={"Content-Type": "application/json"})
        assert response.status_code == (422 if path in TEI else 400), (path, response.text)
        document = response.json()
        kind = document["error_type"] if path in TEI else document["error"]["type"]
        assert kind in ("Validation", "InvalidJson", "InvalidRequest"), path
        assert len(response.content) < 2000  # the fault, and not the body again
    assert not reader.batches


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"inputs": None},
        {"inputs": {"prompt": "p", "answer": "a"}},
        {"inputs": [["p", "a"]]},
        {"inputs": [{"prompt": "p"}]},
        {"inputs": [{"prompt": "p", "answer": None}]},
        {"inputs": [{"prompt": "p", "answer": 3}]},
        {"inputs": [{"prompt": "p", "answer": "a", "more": 1}]},
        {"inputs": [{"prompt": [], "answer": "a"}]},
        {"inputs": [{"prompt": [{"role": "poet", "content": "c"}], "answer": "a"}]},
        {"inputs": [{"prompt": [{"role": "user", "content": ["c"]}], "answer": "a"}]},
        {"inputs": [], "include": ["everything"]},
        {"inputs": [], "model": 7},
        {"inputs": [], "text_1": "p", "text_2": "a"},
    ],
)
def test_a_body_of_another_shape_is_refused_by_its_field(inside, document):
    response = inside().post("/v1/score", json=document)
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "InvalidRequest"
    field = next((name for name in ("include", "model", "text_1") if name in document), "inputs")
    assert field in error["message"]


@pytest.mark.parametrize("number", ["1e400", "1" + "0" * 5000, "-1", "0.5", "true"])
def test_a_number_that_no_field_can_hold_is_refused(inside, number):
    content = f'{{"prompt": "p", "answers": ["answer 1"], "top_n": {number}}}'.encode()
    response = inside().post("/v1/rank", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and "type" in response.json()["error"]


# Bodies that are too large, over a real connection to another process

_SERVER = """
import sys
from rewardsmith.config import ServeSettings
from rewardsmith.serving.server import Server
from tests.serving.conftest import Reader, served
print_url = lambda url: print(url, flush=True)
Server([served(Reader())], ServeSettings(port=0), on_started=print_url).serve_until_stopped()
"""


@contextlib.contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process in the root of the project, dead in the end."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=environment,
        # A shell that starts tests in the background tells its children to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as one:
        try:
            yield one
        finally:
            one.kill()


@pytest.fixture(scope="module")
def other_process() -> Iterator[tuple[str, int]]:
    """(address, process id) of a server over the written scorer; it ends with exit code 0."""
    with process("-c", _SERVER) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip(), server.pid
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


def peak(pid: int) -> int:
    """The most memory that a process has had, bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def connection(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(**headers: str) -> bytes:
    lines = {"Host": "127.0.0.1", "Content-Type": "application/json", **headers}
    return ("POST /v1/score HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode()


def answer_of(one: socket.socket) -> bytes:
    """What comes until the other side ends the response or the connection."""
    parts = b""
    with contextlib.suppress(ConnectionError):
        while more := one.recv(65536):
            parts += more
            if b"\r\n\r\n" in parts and parts.rstrip().endswith(b"}"):
                break
    return parts


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("way", ["declared", "chunked"])
def test_a_hundred_megabytes_are_refused_and_never_held(other_process, way):
    url, pid = other_process
    before = peak(pid)
    block = b'"' + b"x" * (2**20 - 1)
    with connection(url) as sender:
        try:
            if way == "declared":
                sender.sendall(head(**{"Content-Length": str(100 * 2**20)}))
                for _ in range(100):
                    sender.sendall(block)
            else:
                sender.sendall(head(**{"Transfer-Encoding": "chunked"}))
                for _ in range(100):
                    sender.sendall(b"100000\r\n" + block + b"\r\n")
                sender.sendall(b"0\r\n\r\n")
        except ConnectionError:
            pass  # cut off while it was still sending
        came = answer_of(sender)
    assert came == b"" or b" 413 " in came.partition(b"\r\n")[0]
    # 16 MiB may be held, some of it twice.
    assert peak(pid) - before < 64 * 2**20
    assert scores(httpx.post(f"{url}/v1/score", json=body(4))) == [4.0]


def test_a_declared_size_is_refused_before_a_byte_of_it_came(other_process):
    with connection(other_process[0]) as sender:
        sender.sendall(head(**{"Content-Length": str(100 * 2**20)}))
        came = answer_of(sender)
    assert b" 413 " in came.partition(b"\r\n")[0] and b"BodyTooLarge" in came


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\n\r\n",
        b"\r\n" * 10 + b"\x00\r\n\r\n",
    ],
    ids=["version", "TLS", "negative", "two lengths", "encoding", "endless header", "no host", "no HTTP"],
)
def test_what_is_no_http_is_refused_and_the_server_goes_on(other_process, content):
    with connection(other_process[0]) as sender:
        with contextlib.suppress(OSError):  # refused before all of it was sent
            sender.sendall(content)
            sender.shutdown(socket.SHUT_WR)
        status = answer_of(sender).partition(b"\r\n")[0]
    assert not status or 400 <= int(status.split()[1]) < 600
    assert status.split()[1:2] != [b"500"]
    assert scores(httpx.post(f"{other_process[0]}/v1/score", json=body(4))) == [4.0]


# Clients that drip


def drip(one: socket.socket, content: bytes, seconds: float) -> bytes:
    """Send a byte every 20 ms until the other side answers or ends; what it said."""
    one.setblocking(False)
    end = time.monotonic() + seconds
    for i in range(10_000):
        assert time.monotonic() < end, "the server still waits"
        with contextlib.suppress(BlockingIOError):
            try:
                one.send(content[i % len(content) : i % len(content) + 1])
            except ConnectionError:
                return b""
        with contextlib.suppress(BlockingIOError):
            try:
                return one.recv(65536)
            except ConnectionError:
                return b""
        time.sleep(0.02)
    raise AssertionError("the server still waits")


ENDLESS_HEAD = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X-More: 1\r\n" * 1000


def test_a_head_that_drips_is_cut_off_and_others_are_served(listening):
    url = listening(header_seconds=0.5, body_seconds=60)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connection(url)) for _ in range(20)]
        for one in slow[1:]:
            one.sendall(ENDLESS_HEAD[:40])
        assert scores(httpx.post(f"{url}/v1/score", json=body(1))) == [1.0]
        assert drip(slow[0], ENDLESS_HEAD, 10) == b""
        for one in slow[1:]:
            assert answer_of(one) == b""


def test_a_connection_that_sends_nothing_is_cut_off(listening):
    with connection(listening(header_seconds=0.3)) as one:
        assert one.recv(100) == b""


def test_the_second_head_of_a_connection_may_not_drip_either(listening):
    with connection(listening(header_seconds=0.5)) as one:
        one.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b" 200 " in answer_of(one)
        assert drip(one, ENDLESS_HEAD, 10) == b""


def test_a_request_that_is_waited_for_longer_than_a_head_may_take_is_answered(listening, gate):
    reader = Reader(gate=gate)
    url = listening(served(reader), header_seconds=0.2, body_seconds=0.2)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(httpx.post, f"{url}/v1/score", json=body(1), timeout=60)
        assert reader.running.wait(30)
        time.sleep(0.5)
        gate.set()
        assert scores(sent.result(30)) == [1.0]


def test_a_body_that_drips_is_408_and_then_cut_off(listening):
    url = listening(header_seconds=0.5, body_seconds=0.3)
    with connection(url) as one:
        one.sendall(head(**{"Content-Length": "10000"}))
        came = drip(one, b" ", 10)
        assert b" 408 " in came.partition(b"\r\n")[0] and b"BodyTooSlow" in came
        while came:
            came = drip(one, b" ", 10)
    with connection(url) as one:  # one that sends nothing more at all
        one.sendall(head(**{"Content-Length": "10"}) + b"{")
        assert b" 408 " in answer_of(one)
    assert scores(httpx.post(f"{url}/v1/score", json=body(1))) == [1.0]


# Signals


@contextlib.contextmanager
def real_server(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(process, address) of `rewardsmith serve`."""
    with process("-m", "rewardsmith", "serve", str(folder), "--port", "0", "--json", *words) as server:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        with httpx.Client(base_url=url) as client:
            until(lambda: client.get("/ready").status_code == 200)
        yield server, url


def long_pairs(client: int, count: int) -> list[tuple[str, str]]:
    return [(f"How do I mend item {i}? " * 6, f"Client {client}: gladly use glue number {i}.") for i in range(count)]


def posted(url: str, pairs: list[tuple[str, str]]) -> httpx.Response:
    document = {"inputs": [{"prompt": prompt, "answer": answer} for prompt, answer in pairs]}
    return httpx.post(f"{url}/v1/score", json=document, timeout=60)


def under_load(folder: Path, number: signal.Signals) -> int:
    """The exit code of a server that is sent a signal while it works; on the way all that it accepted must be answered."""
    from rewardsmith.model.reward_model import RewardModel

    asked = [long_pairs(client, 100) for client in range(8)]
    expected = RewardModel.load(folder, ScoringSettings(device="cpu")).score([pair for one in asked for pair in one])
    with real_server(folder, "--set", "batch_tokens=64") as (server, url), ThreadPoolExecutor(8) as pool:
        sent: list[Future[httpx.Response]] = [pool.submit(posted, url, pairs) for pairs in asked]
        time.sleep(0.5)  # by now all are accepted
        assert not all(one.done() for one in sent), "the load was too light to show anything"
        server.send_signal(number)
        time.sleep(0.3)
        refused = 0
        for _ in range(20):
            try:
                refused += posted(url, long_pairs(99, 1)).status_code == 503
            except httpx.TransportError:
                refused += 1
        assert refused == 20
        found = np.array([score for one in sent for score in scores(one.result(60))])
        assert np.all(np.abs(found - expected) <= 1e-5 * np.maximum(1, np.abs(expected)))
        return server.wait(30)


def test_sigterm_ends_with_success_once_all_that_was_accepted_is_answered(tiny_rm):
    assert under_load(tiny_rm("bert"), signal.SIGTERM) == 0


def test_ctrl_c_ends_with_130_once_all_that_was_accepted_is_answered(tiny_rm):
    assert under_load(tiny_rm("bert"), signal.SIGINT) == 130


# Folders that are not what was saved


@pytest.fixture
def poisoned(tiny_rm, tmp_path) -> Callable[..., Path]:
    """poisoned(pooling="mean") is a copy of a tiny model's folder, to be spoilt."""

    def copy(pooling: str = "auto") -> Path:
        return Path(shutil.copytree(tiny_rm("bert", pooling=pooling), tmp_path / "poisoned"))

    return copy


@pytest.fixture
def refusal(cli, monkeypatch) -> Callable[[Path], dict[str, str]]:
    """refusal(folder) is the typed error with which `serve` ends; nothing may have listened before."""
    from rewardsmith import service

    def forbidden(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a server was made")

    monkeypatch.setattr(service, "Server", forbidden)

    def serve(folder: Path) -> dict[str, str]:
        code, out, err = cli("serve", folder, "--port", "0", "--json")
        assert code == 2, err
        (line,) = out.splitlines()
        return json.loads(line)["error"]

    return serve


def reseal(folder: Path, *names: str) -> None:
    """Write the hashes of changed files into the contract, as somebody who means harm would."""
    contract = json.loads((folder / "rewardsmith.json").read_text())
    for name in names:
        contract["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "rewardsmith.json").write_text(json.dumps(contract))


def weights_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def write_weights(folder: Path, weights: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_other_weights_are_refused(poisoned, refusal):
    folder = poisoned()
    weights = weights_of(folder)
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][7, 7] += 1e-3  # one number of all
    write_weights(folder, weights)
    error = refusal(folder)
    assert error["type"] == "ContractError" and "model.safetensors" in error["needed"] and "hash" in error["came"]


@pytest.mark.parametrize("sealed", [False, True], ids=["as it came", "with its hash put right"])
def test_weights_without_their_head_are_refused(poisoned, refusal, sealed):
    folder = poisoned()
    weights = weights_of(folder)
    contract = json.loads((folder / "rewardsmith.json").read_text())
    del weights[contract["head"]["key"]]
    write_weights(folder, weights)
    if sealed:
        reseal(folder, "model.safetensors")
    error = refusal(folder)
    assert error["type"] == "HeadError" and contract["head"]["key"] in error["needed"]


@dataclass
class Bomb:
    """Something whose pickle writes a file when it is read."""

    place: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.place, "it went off")


@pytest.mark.parametrize("contract", [True, False], ids=["with a contract", "a plain folder"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_refused_and_never_read(poisoned, refusal, tmp_path, name, contract):
    folder = poisoned()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "crater")))
    if contract:
        reseal(folder, name)
    else:
        (folder / "rewardsmith.json").unlink()
    assert refusal(folder)["type"] in ("ModelError", "ContractError")
    assert not (tmp_path / "crater").exists()
    pickle.loads((folder / name).read_bytes())
    assert (tmp_path / "crater").exists()  # it would have been seen


def test_code_in_a_folder_is_refused_by_its_hash_and_never_run(poisoned, refusal, tmp_path):
    folder = poisoned(pooling="mean")
    code = folder / "modeling_rewardsmith.py"
    code.write_text(code.read_text() + f"\nopen({str(tmp_path / 'crater')!r}, 'w').close()\n")
    error = refusal(folder)
    assert error["type"] == "ContractError" and "modeling_rewardsmith.py" in error["needed"]
    assert not (tmp_path / "crater").exists()


def test_code_with_its_hash_put_right_is_not_run_either(poisoned, inside, tmp_path):
    folder = poisoned(pooling="mean")
    code = folder / "modeling_rewardsmith.py"
    code.write_text(code.read_text() + f"\nopen({str(tmp_path / 'crater')!r}, 'w').close()\n")
    reseal(folder, "modeling_rewardsmith.py")
    client = inside(model_of(folder))
    assert client.get("/ready").status_code == client.post("/v1/score", json=body(1)).status_code == 200
    assert not (tmp_path / "crater").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(poisoned, refusal, name):
    folder = poisoned()
    (folder / name).unlink()
    assert refusal(folder)["type"] in ("ModelError", "ContractError")


def edited(**changes: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Changes the third golden row."""
    return lambda rows: [*rows[:2], {**rows[2], **changes}, *rows[3:]]


@pytest.mark.parametrize(
    "change",
    [
        edited(score="high"),
        edited(score=None),
        edited(score=float("nan")),
        edited(prompt=5),
        edited(answer=None),
        edited(prompt=[{"role": "user"}]),
        lambda rows: [{"prompt": "p", "answer": "a"}],
        lambda rows: [[1, 2, 3]],
        lambda rows: [],
    ],
    ids=["words", "null", "NaN", "prompt", "answer", "message", "no score", "list", "none"],
)
def test_golden_scores_that_cannot_be_read_are_refused(poisoned, refusal, change):
    folder = poisoned()
    rewrite_golden(folder, change)
    assert refusal(folder)["type"] in ("ContractError", "ScoreError")


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", None], ids=["empty", "no UTF-8", "no JSON", "missing"])
def test_a_golden_file_that_is_none_is_refused(poisoned, refusal, content):
    folder = poisoned()
    if content is None:
        (folder / "golden.jsonl").unlink()
    else:
        (folder / "golden.jsonl").write_bytes(content)
    assert refusal(folder)["type"] == "ContractError"


def rewrite_golden(folder: Path, change: Callable[[list[dict[str, Any]]], list[Any]]) -> None:
    path = folder / "golden.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)), encoding="utf-8")


def model_of(folder: Path) -> Any:
    from rewardsmith import service
    from rewardsmith.model.published import publish
    from rewardsmith.model.reward_model import RewardModel

    model = RewardModel.load(folder, ScoringSettings(device="cpu"))
    return service.served("poisoned", publish(model, str(folder)), ServeSettings())


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: edited(score=rows[2]["score"] + 0.01)(rows),
        edited(answer="Another answer than that whose score was saved."),
    ],
    ids=["another score", "another text"],
)
def test_a_model_without_its_golden_scores_is_never_ready_and_gives_no_score(poisoned, inside, change):
    folder = poisoned()
    rewrite_golden(folder, change)
    client = inside(model_of(folder))
    ready = client.get("/ready")
    assert ready.status_code == 503 and ready.json()["ready"] is False
    assert "poisoned" in ready.json()["reason"] and "golden" in ready.json()["reason"]
    assert client.get("/v1/model").json()["golden_reproduced"] is False
    assert client.get("/health").status_code == 200
    # docs/serve.md: 503 where it is not ready.
    response = client.post("/v1/score", json=body(1))
    assert response.status_code == 503 and "golden" in response.json()["error"]["message"]


def test_weights_whose_hash_was_put_right_are_found_out_by_their_golden_scores(poisoned, inside):
    folder = poisoned()
    weights = weights_of(folder)
    head = json.loads((folder / "rewardsmith.json").read_text())["head"]["key"]
    weights[head] = -weights[head]  # the worst answers first
    write_weights(folder, weights)
    reseal(folder, "model.safetensors")
    ready = inside(model_of(folder)).get("/ready")
    assert ready.status_code == 503 and "golden scores" in ready.json()["reason"]


def test_one_poisoned_model_of_two_keeps_the_server_from_starting(poisoned, tiny_rm, cli, refusal):
    folder = poisoned()
    (folder / "model.safetensors").write_bytes(b"")
    code, out, _ = cli("serve", f"good={tiny_rm('bert')}", f"bad={folder}", "--port", "0", "--json")
    assert code == 2 and json.loads(out)["error"]["type"] == "ModelError"


def test_an_edited_contract_is_refused(poisoned, refusal):
    folder = poisoned()
    contract = json.loads((folder / "rewardsmith.json").read_text())
    contract["render"]["max_length"] = 32
    (folder / "rewardsmith.json").write_text(json.dumps(contract))
    error = refusal(folder)
    assert error["type"] == ContractError.__name__ and "edited" in error["came"]


def test_a_server_that_starts_closes_no_log_of_the_process(listening):
    """The configuration of uvicorn itself would close every handler there is, and with absl's the stream behind it."""

    class Watched(logging.NullHandler):
        closed = False

        def close(self):
            self.closed = True
            super().close()

    handler = Watched()
    logging.getLogger("somebody").addHandler(handler)
    try:
        listening()
        assert not handler.closed
    finally:
        logging.getLogger("somebody").removeHandler(handler)
