"""A written scorer behind the server, and the server around it: in this process, or on a real port in a thread."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from rewardsmith.config import ServeSettings
from rewardsmith.scores import EncodedText, Input, RawIds, RawText, ScoreTable
from rewardsmith.serving.app import create_app
from rewardsmith.serving.served import ServedModel
from rewardsmith.serving.server import Server

MAX_LENGTH = 64


def told(text: str) -> float:
    """The number in a text: that of "answer 17" is 17."""
    return float("".join(character for character in text if character.isdigit()) or "nan")


@dataclass
class Reader:
    """Scores an answer by the number in it; a token is a character. `gate` holds the model back until it is opened."""

    number: Callable[[str], float] = told
    gate: threading.Event | None = None
    batches: list[int] = field(default_factory=list)
    running: threading.Event = field(default_factory=threading.Event)

    def encode(self, inputs: Sequence[Input]) -> list[EncodedText]:
        return [EncodedText(len(text), text) for text in map(_text_of, inputs)]

    def score_encoded(self, texts: Sequence[EncodedText]) -> ScoreTable:
        self.running.set()
        if self.gate is not None:
            assert self.gate.wait(30)
        self.batches.append(len(texts))
        tokens = np.array([text.num_tokens for text in texts], dtype=np.int64)
        none = np.zeros(len(texts), dtype=np.int64)
        return ScoreTable(
            score=np.array([self.number(text.tokens) for text in texts], dtype=np.float32),
            tokens=np.minimum(tokens, MAX_LENGTH),
            full_tokens=tokens,
            truncated=tokens > MAX_LENGTH,
            prompt_cut=none,
            answer_cut=none,
            special_strings=none,
            digest=np.array([hash(text.tokens) % 2**32 for text in texts], dtype=np.uint64),
        )

    def table(self, pairs: Sequence[Input]) -> ScoreTable:
        return self.score_encoded(self.encode(pairs))

    def score(self, pairs: Sequence[Input]) -> np.ndarray:
        return self.table(pairs).score


def _text_of(one: Input) -> str:
    match one:
        case RawText(text=text):
            return text
        case RawIds(ids=ids):
            return "".join(str(token) for token in ids)
    return one[1]


def served(scorer: object, name: str = "reader", **more: object) -> ServedModel:
    """A model of the server around a scorer."""
    return ServedModel(name=name, scorer=scorer, max_length=MAX_LENGTH, **more)  # type: ignore[arg-type]


@pytest.fixture
def inside() -> Iterator[Callable[..., TestClient]]:
    """inside(model, ...) is a client of a server in this process, with its settings as keywords."""
    with contextlib.ExitStack() as stack:

        def start(*models: ServedModel, keys: Sequence[str] = (), **settings: object) -> TestClient:
            app = create_app(models or [served(Reader())], ServeSettings(**settings), keys)
            client = stack.enter_context(TestClient(app, base_url="http://127.0.0.1:8000"))
            wait_until_ready(client)
            return client

        yield start


@pytest.fixture
def listening() -> Iterator[Callable[..., str]]:
    """listening(model, ...) is the address of a server on a real port, in a thread."""
    servers: list[tuple[Server, threading.Thread]] = []

    def start(*models: ServedModel, keys: Sequence[str] = (), **settings: object) -> str:
        address: list[str] = []
        server = Server(
            models or [served(Reader())], ServeSettings(port=0, **settings), keys, on_started=address.append
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        servers.append((server, thread))
        while not address:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        with httpx.Client(base_url=address[0]) as client:
            wait_until_ready(client)
        return address[0]

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(30)


def wait_until_ready(client: httpx.Client) -> None:
    """Return once the models are warm, or fail with the server's reason."""
    for _ in range(1000):
        response = client.get("/ready")
        if response.status_code == 200 or response.json()["reason"] != "warming up":
            return
        time.sleep(0.01)
    raise AssertionError(response.text)
