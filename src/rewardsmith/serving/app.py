"""The application: which path takes which body, and what happens between a body and its answer."""

# No `from __future__ import annotations`: FastAPI reads the types of the endpoints that are made here.

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, NamedTuple, Union

import pydantic_core
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Discriminator, Tag
from starlette.exceptions import HTTPException

from rewardsmith.config import ServeSettings
from rewardsmith.manifest import package_versions
from rewardsmith.scores import Input, RawIds, RawText, ScoreTable
from rewardsmith.serving import guardrail, native, tei, templated, vllm
from rewardsmith.serving.complaints import TAG, Complaint, complain
from rewardsmith.serving.engine import Engine, Limits
from rewardsmith.serving.guard import Guard, Rules
from rewardsmith.serving.memory import Reclaimer
from rewardsmith.serving.observed import Observed
from rewardsmith.serving.protocol import Body
from rewardsmith.serving.served import ServedModel

_ERRORS = (400, 401, 404, 408, 413, 415, 421, 422, 429, 500, 503, 504)


class _Choice(NamedTuple):
    """A body, known by a field that only it has."""

    fields: tuple[str, ...]
    body: type[Body]
    answer: Any

    @property
    def tag(self) -> str:
        """By which pydantic tells bodies apart; `complaints` leaves it out of what a client reads."""
        return f"{TAG}{self.body.protocol} {self.body.__name__}"


# One path may be spoken to in several protocols.
_POST: dict[str, list[_Choice]] = {
    "/v1/score": [
        _Choice(("inputs",), native.Score, native.ScoreAnswer),
        _Choice(("text_1", "data_1", "queries"), vllm.PairScore, vllm.ScoreAnswer),
    ],
    "/v1/compare": [_Choice((), native.Compare, native.CompareAnswer)],
    "/v1/rank": [_Choice((), native.Rank, native.RankAnswer)],
    "/v1/guard": [_Choice((), guardrail.Guard, guardrail.GuardAnswer)],
    "/score": [_Choice((), vllm.PairScore, vllm.ScoreAnswer)],
    "/classify": [
        _Choice(("input", "messages"), vllm.Classify, vllm.ClassifyAnswer),
        _Choice(("text",), vllm.SglangClassify, list[vllm.Embedded]),
    ],
    "/v1/classify": [_Choice((), vllm.Classify, vllm.ClassifyAnswer)],
    "/pooling": [_Choice((), vllm.Pooling, vllm.PoolingAnswer)],
    "/rerank": [
        _Choice(("documents",), vllm.Rerank, vllm.RerankAnswer),
        _Choice(("texts",), tei.Rerank, list[tei.Rank]),
    ],
    "/v1/rerank": [_Choice((), vllm.Rerank, vllm.RerankAnswer)],
    "/v2/rerank": [_Choice((), vllm.Rerank, vllm.RerankAnswer)],
    "/predict": [_Choice((), tei.Predict, list[tei.Prediction] | list[list[tei.Prediction]])],
    "/": [
        _Choice(("texts",), tei.Rerank, list[tei.Rank]),
        _Choice(("messages",), templated.Evaluation, templated.EvaluationAnswer),
    ],
    "/get_reward": [_Choice((), templated.GetReward, templated.RewardAnswer)],
    "/v1/score/evaluation": [_Choice((), templated.Evaluation, templated.EvaluationAnswer)],
}


class _StrictRequest(Request):
    """A request whose body is JSON as the standard has it: no NaN, no lone surrogate, UTF-8."""

    async def json(self) -> Any:
        try:
            return pydantic_core.from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body is no JSON: {error}") from error


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strictly


class Service:
    """The models of one server with their engines: what the routes share.

    Args:
        models: at least one, under different names.
        settings: limits and times.
    """

    def __init__(self, models: Sequence[ServedModel], settings: ServeSettings) -> None:
        """Nothing runs before `running`."""
        self.models = {model.name: model for model in models}
        self.settings, self.observed = settings, Observed()
        self.engines: dict[str, Engine] = {}
        self.warm, self.ready, self.reason = False, False, "warming up"
        self.unproven: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Engines that run and end with what they have accepted; the warm-up goes on meanwhile."""
        limits = Limits(self.settings.batch_tokens, self.settings.queue_texts, self.settings.max_wait)
        # One thread for all models: two at once would fight for the same cores.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="model") as runner:
            reclaimer = Reclaimer()
            for name, model in self.models.items():
                on_batch = partial(self.observed.batch, name)
                self.engines[name] = Engine(model.scorer, limits, runner=runner, on_batch=on_batch, reclaimer=reclaimer)
                self.engines[name].start()
                self.observed.hold(name, self.engines[name])
            warming = asyncio.create_task(self._warm_up())
            yield
            self.ready, self.reason = False, "stopping"
            warming.cancel()
            await asyncio.gather(*(engine.stop() for engine in self.engines.values()))

    async def _warm_up(self) -> None:
        """Score the golden inputs on the path that requests take; a model that scores them otherwise is never served."""
        for name, model in self.models.items():
            fault = await self._fault_of(model)
            if fault:
                self.unproven[name] = f"{name} {fault}"
        self.ready = not self.unproven
        self.reason = "; ".join(self.unproven.values()) or "ready"
        self.warm = True

    async def _fault_of(self, model: ServedModel) -> str:
        """What is wrong with a model's scores; empty if nothing is, or it has no golden scores."""
        if model.golden is None:
            return ""
        try:
            table = await self.engines[model.name].score(model.golden.inputs, deadline=math.inf)
        except Exception as error:
            return f"cannot score its golden inputs: {error}"
        worst = model.golden.difference(table.score)
        # Not `>`: a NaN is no proof either.
        return "" if worst <= model.golden.tolerance else f"does not have its golden scores: {worst:.1e} apart"

    @property
    def alive(self) -> bool:
        """Whether all engines work."""
        return bool(self.engines) and all(engine.alive for engine in self.engines.values())

    def find(self, name: str | None) -> ServedModel:
        """The model that a request asks for.

        Raises:
            Complaint: 404 if there is none of that name and several others.
        """
        if len(self.models) == 1:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Complaint(404, "UnknownModel", f"needed `model`, one of {', '.join(self.models)}")
        return self.models[name]

    def check_size(self, inputs: Sequence[Input]) -> None:
        """Refuse more or longer texts than a request may have.

        Raises:
            Complaint: 413.
        """
        most_texts, most_characters = self.settings.max_texts, self.settings.max_characters
        if len(inputs) > most_texts:
            raise Complaint(413, "TooManyTexts", f"a request may have {most_texts} texts; this has {len(inputs)}")
        longest = max(map(_characters, inputs), default=0)
        if longest > most_characters:
            raise Complaint(413, "TextTooLong", f"a text may have {most_characters} characters; one has {longest}")

    async def score(self, request: Request, model: ServedModel, inputs: Sequence[Input]) -> ScoreTable:
        """Scores for a client, as long as it is there.

        Raises:
            Complaint: 503 until the models are proven, and for good if this one is not what its folder says.
        """
        if not self.warm or model.name in self.unproven:
            raise Complaint(503, "NotReady", self.unproven.get(model.name, self.reason), retry_after=1)
        engine = self.engines[model.name]
        scoring = asyncio.ensure_future(engine.score(inputs, deadline=self.settings.deadline))
        leaving = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({scoring, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not scoring.done():
                raise Complaint(499, "ClientLeft", "the client closed the connection")
            return scoring.result()
        finally:
            scoring.cancel()
            leaving.cancel()


def create_app(models: Sequence[ServedModel], settings: ServeSettings, keys: Sequence[str] = ()) -> FastAPI:
    """The server as an ASGI application: routes, guard and engines, which start with its lifespan. `app.state.service` is its `Service`."""
    service = Service(models, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="rewardsmith",
        version=package_versions()["rewardsmith"],
        description="Scores of reward models. Raw and unsquashed unless a protocol asks for the other.",
        lifespan=lifespan,
        responses={status: {"description": "An error, in the words of the protocol."} for status in _ERRORS},
        dependencies=[Depends(HTTPBearer(auto_error=False))] if keys else [],
    )
    app.state.service = service
    app.router.route_class = _StrictRoute
    for path, choices in _POST.items():
        app.add_api_route(
            path,
            _endpoint(service, path, _body_of(choices)),
            methods=["POST"],
            response_model=None,
            responses={200: {"model": _one_of([choice.answer for choice in choices])}},
            name=path.strip("/").replace("/", "_") or "root",
        )
    _add_pages(app, service)
    _add_handlers(app)
    app.add_middleware(Guard, rules=Rules.of(settings, keys), on_refused=service.observed.refused)
    return app


def _endpoint(service: Service, path: str, kind: Any) -> Callable[..., Coroutine[Any, Any, Response]]:
    async def endpoint(request: Request, body: kind) -> Response:
        start = time.perf_counter()
        response = await _answer(service, request, path, body)
        service.observed.request(path, response.status_code, time.perf_counter() - start)
        return response

    return endpoint


async def _answer(service: Service, request: Request, path: str, body: Body) -> Response:
    try:
        model = service.find(body.model)
        inputs = body.inputs(model)
        service.check_size(inputs)
        table = await service.score(request, model, inputs)
        # A detector reads the texts once more: not on the event loop.
        answer = (
            body.answer(model, table) if model.domain is None else await asyncio.to_thread(body.answer, model, table)
        )
        # In here, for a number that JSON has no form of is an error of ours like any other.
        return JSONResponse(answer, headers=_warnings(service, model, table))
    except Exception as error:
        return complain(path, Complaint.of(error), protocol=body.protocol)


def _warnings(service: Service, model: ServedModel, table: ScoreTable) -> dict[str, str]:
    """What protocols without a field for it are told in headers: how many texts were cut, how many strings look like control tokens."""
    counts = {"truncated": int(table.truncated.sum()), "special-strings": int(table.special_strings.sum())}
    service.observed.truncated.labels(model.name).inc(counts["truncated"])
    return {f"X-Rewardsmith-{name}": str(count) for name, count in counts.items() if count}


def _add_pages(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    @app.get("/ping", include_in_schema=False)
    async def health() -> Response:
        """Whether the server works."""
        return JSONResponse({"alive": service.alive}, status_code=200 if service.alive else 503)

    @app.get("/ready")
    async def ready() -> Response:
        """Whether the models are loaded, warm, and score their golden inputs as they must."""
        status = 200 if service.ready else 503
        return JSONResponse({"ready": service.ready, "reason": service.reason}, status_code=status)

    @app.get("/v1/model")
    async def model(name: str | None = None) -> Response:
        """What the model is: its contract, the hashes of its files, whether its golden scores were reproduced."""
        found = service.find(name)
        document = {
            "name": found.name,
            **found.contract,
            "golden_reproduced": service.warm and found.golden is not None and found.name not in service.unproven,
            **({} if found.guardrail is None else {"guardrail": found.guardrail.as_dict()}),
        }
        return JSONResponse(document)

    @app.get("/v1/models")
    async def models() -> Response:
        """The names of the served models."""
        data = [
            {"id": one.name, "object": "model", "owned_by": "rewardsmith", "max_model_len": one.max_length}
            for one in service.models.values()
        ]
        return JSONResponse({"object": "list", "data": data})

    @app.get("/info")
    async def info(model: str | None = None) -> Response:
        """What Text Embeddings Inference says of its model."""
        settings = service.settings
        return JSONResponse(
            tei.info(
                service.find(model),
                max_requests=settings.max_requests,
                batch_tokens=settings.batch_tokens,
                max_texts=settings.max_texts,
                version=app.version,
            )
        )

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.observed.page(), media_type=CONTENT_TYPE_LATEST)


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def of_body(request: Request, error: RequestValidationError) -> Response:
        body = _body_meant(request.url.path, error.body)
        protocol = None if body is None else body.protocol
        return complain(request.url.path, Complaint.of_body(error), protocol=protocol)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        kinds = {400: "InvalidJson", 404: "NotFound", 405: "MethodNotAllowed"}
        complaint = Complaint(error.status_code, kinds.get(error.status_code, "Refused"), str(error.detail))
        return complain(request.url.path, complaint)

    @app.exception_handler(Complaint)
    async def of_ours(request: Request, error: Complaint) -> Response:
        return complain(request.url.path, error)


async def _left(request: Request) -> None:
    """Ends when the client does."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _characters(one: Input) -> int:
    """Characters of a text; of ids their number."""
    match one:
        case RawText():
            return len(one.text)
        case RawIds():
            return len(one.ids)
    prompt, answer = one
    parts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    return sum(map(len, parts)) + len(answer)


def _fitting(choices: Sequence[_Choice], value: Any) -> list[_Choice]:
    """The bodies of one path that a document may be meant as, by the fields that only they have."""
    given = value if isinstance(value, dict) else {}
    return [one for one in choices if any(field in given for field in one.fields)]


def _body_meant(path: str, value: Any) -> type[Body] | None:
    """The body that a faulty document is meant as; None where it does not tell."""
    choices = _POST.get(path, [])
    fitting = choices if len(choices) == 1 else _fitting(choices, value)
    return fitting[0].body if len(fitting) == 1 else None


def _body_of(choices: list[_Choice]) -> Any:
    """The type of a path's body; several are told apart by their fields, and one that has those of two is refused."""
    if len(choices) == 1:
        return choices[0].body

    def tell(value: Any) -> str | None:
        fitting = _fitting(choices, value)
        return fitting[0].tag if len(fitting) == 1 else None

    wanted = " or ".join(choice.fields[0] for choice in choices)
    kinds = [Annotated[choice.body, Tag(choice.tag)] for choice in choices]
    return Annotated[
        _one_of(kinds),
        Discriminator(
            tell,
            custom_error_type="unknown_body",
            custom_error_message=f"needed an object with the field {wanted}, and not both",
        ),
    ]


def _one_of(kinds: list[Any]) -> Any:
    return Union[tuple(kinds)]  # noqa: UP007
