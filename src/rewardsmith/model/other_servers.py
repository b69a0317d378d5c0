"""Scores from servers in the protocols that they speak: the path of the URL tells which. They are asked as their own clients ask them, for raw scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rewardsmith.data.schema import Pair
from rewardsmith.errors import RemoteError, SettingsError
from rewardsmith.model.render import Renderer
from rewardsmith.remote import Connection, RemoteModel, connect, without_credentials
from rewardsmith.scores import Scores, checked

# Text Embeddings Inference takes no more at a time.
_BATCH = 32


class _Route(NamedTuple):
    """How a route is asked for the scores of some pairs, and what it can read.

    Args:
        tool: whose route it is.
        encodings: of models that read there what they were trained to read.
        batch: pairs of one request.
        body: of the request.
        scores: in the response.
    """

    tool: str
    encodings: tuple[str, ...]
    batch: int
    body: Callable[[Renderer, Sequence[Pair]], dict[str, Any]]
    scores: Callable[[Any], list[Any]]


def _texts(renderer: Renderer, pairs: Sequence[Pair]) -> list[str]:
    return [renderer.render(prompt, answer) for prompt, answer in pairs]


def _whole_texts(renderer: Renderer, pairs: Sequence[Pair]) -> list[str]:
    """With the special tokens that stand around them: these routes add none."""
    names = renderer.tokenizer.convert_ids_to_tokens
    before, after = "".join(names(list(renderer.rule.prefix))), "".join(names(list(renderer.rule.suffix)))
    # What a chat template has written already is not written twice.
    return [
        f"{'' if text.startswith(before) else before}{text}{'' if text.endswith(after) else after}"
        for text in _texts(renderer, pairs)
    ]


def _classified(renderer: Renderer, pairs: Sequence[Pair]) -> dict[str, Any]:
    """vLLM: a conversation goes through the server's chat template, any other text is sent as it stands."""
    if renderer.spec.encoding != "chat":
        return {"input": _texts(renderer, pairs), "use_activation": False}
    ((prompt, answer),) = pairs
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"messages": [*before, {"role": "assistant", "content": answer}], "use_activation": False}


def _segments(renderer: Renderer, pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    both = [renderer.texts(prompt, answer) for prompt, answer in pairs]
    return [first for first, _ in both], [second for _, second in both]


def _pair_score(renderer: Renderer, pairs: Sequence[Pair]) -> dict[str, Any]:
    first, second = _segments(renderer, pairs)
    return {"text_1": first, "text_2": second, "use_activation": False}


def _rerank(renderer: Renderer, pairs: Sequence[Pair]) -> dict[str, Any]:
    (first,), (second,) = _segments(renderer, pairs)
    return {"query": first, "texts": [second], "raw_scores": True, "truncate": False}


def _predict(renderer: Renderer, pairs: Sequence[Pair]) -> dict[str, Any]:
    return {"inputs": [[text] for text in _texts(renderer, pairs)], "raw_scores": True, "truncate": False}


_CLASSIFY = _Route("vLLM", ("text", "chat"), 1, _classified, lambda found: [one["probs"][-1] for one in found["data"]])
_ROUTES = {
    "/classify": _CLASSIFY,
    "/v1/classify": _CLASSIFY,
    "/pooling": _CLASSIFY._replace(scores=lambda found: [one["data"][-1] for one in found["data"]]),
    "/score": _Route("vLLM", ("pair",), _BATCH, _pair_score, lambda found: [one["score"] for one in found["data"]]),
    "/rerank": _Route("TEI", ("pair",), 1, _rerank, lambda found: [one["score"] for one in found]),
    "/predict": _Route("TEI", ("text",), _BATCH, _predict, lambda found: [one[0]["score"] for one in found]),
    "/get_reward": _Route(
        "OpenRLHF",
        ("text", "chat"),
        1,
        lambda renderer, pairs: {"query": _whole_texts(renderer, pairs)},
        lambda found: found["rewards"],
    ),
    "/v1/score/evaluation": _Route(
        "LLaMA-Factory",
        ("text", "chat"),
        _BATCH,
        lambda renderer, pairs: {"model": "model", "messages": _whole_texts(renderer, pairs)},
        lambda found: found["scores"],
    ),
}


class RoutePath:
    """A route of another tool's server as an `OtherPath`.

    Raises:
        SettingsError: if what the model reads cannot be sent there.
    """

    reads_alike = False

    def __init__(self, url: str, path: str, renderer: Renderer, precision: str) -> None:
        """Nothing is sent yet."""
        self._route, self._path, self._renderer, self.precision = _ROUTES[path], path, renderer, precision
        if renderer.spec.encoding not in self._route.encodings:
            reads = " or ".join(repr(one) for one in self._route.encodings)
            others = [name for name, route in _ROUTES.items() if renderer.spec.encoding in route.encodings]
            raise SettingsError(
                f"a model of encoding {reads} for {self._route.tool}'s {path}",
                f"encoding = {renderer.spec.encoding!r}",
                f"Compare with {', '.join(others)}.",
            )
        self._connection = Connection(url.removesuffix(path))
        self.name = f"{self._route.tool} {path}"

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """See `OtherPath`."""
        found: list[Any] = []
        for start in range(0, len(pairs), self._route.batch):
            chunk = pairs[start : start + self._route.batch]
            document = self._connection.post(self._path, self._route.body(self._renderer, chunk))
            try:
                scores = self._route.scores(document)
            except (KeyError, TypeError, IndexError) as error:
                raise RemoteError(
                    f"scores in the protocol of {self._route.tool}'s {self._path}",
                    f"a document without {error}",
                    "Check the address.",
                ) from error
            if len(scores) != len(chunk):
                raise RemoteError(f"{len(chunk)} scores from {self._path}", str(len(scores)), "Check the address.")
            found += scores
        return checked(found, len(pairs))


class ServerPath:
    """A server that speaks `POST /v1/score`."""

    reads_alike = True

    def __init__(self, url: str, precision: str) -> None:
        """Ask it what it is."""
        self._scorer = connect(url)
        self.name = without_credentials(url)
        self.precision = precision
        if isinstance(self._scorer, RemoteModel):
            self.precision = str(self._scorer.contract().get("precision", precision))

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """See `OtherPath`."""
        return self._scorer.score(pairs)


def server_path(url: str, renderer: Renderer, *, precision: str) -> RoutePath | ServerPath:
    """What a URL names: one of the routes known here, or a server of ours.

    Raises:
        SettingsError: if the model cannot be read there.
        RemoteError: if the server cannot be reached.
    """
    path = urlsplit(url).path.rstrip("/")
    # vLLM has a /v1/score too; that of this project has the same path and another body.
    if path in _ROUTES:
        return RoutePath(url.rstrip("/"), path, renderer, precision)
    if path.endswith(tuple(_ROUTES)) and not path.endswith("/v1/score"):
        raise SettingsError(
            f"the address of a server of ours, or one that ends in {', '.join(_ROUTES)}", path, "Name one of these."
        )
    return ServerPath(url.rstrip("/"), precision)
