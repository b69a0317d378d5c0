"""Scores from a server: a Scorer that asks over HTTP. Nothing is ever made up: a score that did not come is an error."""

from __future__ import annotations

import json
import os
import random
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import numpy as np

from rewardsmith.data.schema import Pair
from rewardsmith.errors import MissingExtraError, RemoteError
from rewardsmith.scores import Scores, ScoreTable, checked

if TYPE_CHECKING:
    import httpx

KEY = "REWARDSMITH_API_KEY"
"""The environment variable with the key that is sent, where none is given."""
# Answers after which trying again may help: too busy, or on its way up or down.
_TRY_AGAIN = (408, 429, 502, 503, 504)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
_FLAGS = ("prompt_cut", "answer_cut", "special_strings")


def is_url(source: str) -> bool:
    """Whether a MODEL argument is a running server."""
    return source.startswith(("http://", "https://"))


def without_credentials(url: str) -> str:
    """A URL that may be shown: without user and password.

    >>> without_credentials("http://x:secret@127.0.0.1:8000/")
    'http://127.0.0.1:8000'
    """
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")


class Connection:
    """POST and GET of JSON documents, with a pool of connections, a time limit, and bounded retries.

    Args:
        url: of the server, without a path.
        key: sent as a bearer token; the password in the URL, or the environment variable REWARDSMITH_API_KEY, where None.
        timeout: seconds of one try.
        tries: of one request.

    Raises:
        RemoteError: if the address is none.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 120.0, tries: int = 5) -> None:
        """Nothing is sent yet."""
        try:
            password, _ = urlsplit(url).password, urlsplit(url).port
        except ValueError as error:  # without the address itself, in which a key may stand
            raise RemoteError("an address like http://127.0.0.1:8000", "one that is none", "Check it.") from error
        self.url, self.timeout, self.tries = without_credentials(url), timeout, tries
        self._key = key if key is not None else unquote(password or "") or os.environ.get(KEY)
        self._client: httpx.Client | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the pool, so that a scorer can be sent to another process."""
        return {**vars(self), "_client": None}

    def close(self) -> None:
        """Close the pool; the next request opens another. Without it, the pool closes with the object."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def post(self, path: str, body: Any) -> Any:
        """The JSON document that comes back.

        Raises:
            RemoteError: if the server cannot be reached, refuses, or answers with no JSON.
        """
        return self._send("POST", path, body)

    def get(self, path: str) -> Any:
        """Likewise."""
        return self._send("GET", path, None)

    def _send(self, method: str, path: str, body: Any) -> Any:
        import httpx

        if self._client is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._client = httpx.Client(timeout=self.timeout, headers=headers)
            weakref.finalize(self, self._client.close)
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        came, pause = "", 0.0
        for attempt in range(self.tries):
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.5)
            try:
                response = self._client.request(
                    method, f"{self.url}{path}", content=content, headers={"Content-Type": "application/json"}
                )
            except httpx.HTTPError as error:
                came = f"{type(error).__name__}: {error}"
                continue
            if response.status_code in _TRY_AGAIN:
                came = _told(response)
                pause = max(pause, _seconds(response.headers.get("retry-after", "")))
                continue
            return self._document(path, response)
        raise RemoteError(
            f"an answer from {self.url}{path}",
            f"none in {self.tries} tries; the last: {came}",
            "Check that the server runs and has room.",
        )

    def _document(self, path: str, response: httpx.Response) -> Any:
        if not response.is_success:
            raise RemoteError(
                f"a server that takes this request at {self.url}{path}",
                _told(response),
                f"Give its key in {KEY}." if response.status_code == 401 else "Mend what it says.",
                status=response.status_code,
            )
        try:
            return json.loads(response.content)
        except ValueError as error:
            raise RemoteError(f"JSON from {self.url}{path}", str(error), "Check the address.") from error


class RemoteScorer:
    """A Scorer behind `POST /v1/score`; it needs no more of a server than `results[].score`.

    >>> RemoteScorer("http://127.0.0.1:8000").score([("What is 2 + 2?", "4.")])  # doctest: +SKIP
    array([1.52], dtype=float32)

    Args:
        url: of the server, or of its route `/v1/score`.
        model: by name, where the server has several.
        key: see `Connection`.
        timeout: see `Connection`.
        tries: see `Connection`.
        texts_a_request: more are split.
        requests: at the same time.

    Raises:
        MissingExtraError: if httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        timeout: float = 120.0,
        tries: int = 5,
        texts_a_request: int = 64,
        requests: int = 4,
    ) -> None:
        """Nothing is sent yet."""
        try:
            import httpx  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtraError("scores from a server", "httpx", "serve") from error
        self.connection = Connection(url.removesuffix("/v1/score"), key=key, timeout=timeout, tries=tries)
        self.model, self.texts_a_request, self.requests = model, texts_a_request, requests

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """Raw float32 scores of (prompt, answer) pairs, shape (n,), in the order given.

        Raises:
            RemoteError: if one of them does not come.
            ScoreError: if one is no finite number.
        """
        return checked([result.get("score") for result in self._results(pairs, {})], len(pairs))  # type: ignore[misc]

    def close(self) -> None:
        """Close its connections; a later call opens others."""
        self.connection.close()

    def _results(self, pairs: Sequence[Pair], more: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """One result an input, in their order."""
        chunks = [pairs[i : i + self.texts_a_request] for i in range(0, len(pairs), self.texts_a_request)]
        named = {} if self.model is None else {"model": self.model}

        def ask(chunk: Sequence[Pair]) -> list[Mapping[str, Any]]:
            body = {**named, "inputs": [{"prompt": prompt, "answer": answer} for prompt, answer in chunk], **more}
            document = self.connection.post("/v1/score", body)
            results = document.get("results") if isinstance(document, dict) else None
            if not isinstance(results, list) or len(results) != len(chunk) or not all(map(_is_scored, results)):
                raise RemoteError(
                    f"{len(chunk)} results with a score from {self.connection.url}",
                    f"{len(results)} results" if isinstance(results, list) else "a document without results",
                    "Check that it speaks POST /v1/score.",
                )
            return results

        with ThreadPoolExecutor(max_workers=self.requests) as pool:
            return [result for results in pool.map(ask, chunks) for result in results]


class RemoteModel(RemoteScorer):
    """A rewardsmith server: it also says what it read of each answer, and what its model is."""

    def contract(self) -> dict[str, Any]:
        """What the server publishes of the model.

        Raises:
            RemoteError: if it does not, with status 404 where what it publishes is no contract.
        """
        name = "" if self.model is None else f"?name={quote(self.model, safe='')}"
        document = self.connection.get(f"/v1/model{name}")
        if not isinstance(document, dict) or "render" not in document:
            raise RemoteError(
                f"the contract of a model from {self.connection.url}",
                "another document",
                "Check that it is a server of rewardsmith.",
                status=404,
            )
        return document

    def table(self, pairs: Sequence[Pair]) -> ScoreTable:
        """Scores with token counts and cuts; see `ScoreTable`."""
        results = self._results(pairs, {"include": ["flags"]})
        try:
            flags = [result["flags"] for result in results]
            cuts = {name: np.array([int(one[name]) for one in flags], dtype=np.int64) for name in _FLAGS}
            tokens = np.array([int(result["tokens"]) for result in results], dtype=np.int64)
            truncated = np.array([bool(result["truncated"]) for result in results], dtype=np.bool_)
            digest = np.array([int(one["digest"], 16) for one in flags], dtype=np.uint64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RemoteError(
                f"results with tokens, truncated and flags from {self.connection.url}",
                f"others ({error!r})",
                "Name its route /v1/score to take the scores alone.",
            ) from error
        return ScoreTable(
            score=checked([result["score"] for result in results], len(pairs)),
            tokens=tokens,
            full_tokens=tokens + cuts["prompt_cut"] + cuts["answer_cut"],
            truncated=truncated,
            **cuts,
            digest=digest,
        )


def connect(url: str, *, model: str | None = None) -> RemoteScorer:
    """A scorer of a running server: with all that a rewardsmith server says, or with scores alone where it is another's.

    Raises:
        RemoteError: if it cannot be reached, or refuses.
    """
    scorer = RemoteModel(url, model=model)
    if url.endswith("/v1/score"):
        return RemoteScorer(url, model=model)
    try:
        scorer.contract()
    except RemoteError as error:
        if error.status not in (404, 405, 501):
            raise
        return RemoteScorer(url, model=model)
    return scorer


def _is_scored(result: Any) -> bool:
    score = result.get("score") if isinstance(result, dict) else None
    return isinstance(score, int | float) and not isinstance(score, bool)


def _told(response: httpx.Response) -> str:
    """Status and words of an answer that is no success."""
    try:
        error = json.loads(response.content).get("error")
        words = error.get("message") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        words = None
    return f"{response.status_code} {words or response.reason_phrase}"


def _seconds(text: str) -> float:
    """A Retry-After header in seconds, bounded; dates are not waited for."""
    return min(_LONGEST_PAUSE, float(text)) if text.isdecimal() else 0.0
