"""The OpenAPI description holds: whatever fits it or just misses it is answered with a documented status and a document that fits, and never with a fault."""

from collections import Counter

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup, ServerError
from schemathesis.openapi.checks import JsonSchemaError
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from rewardsmith.stats import Estimate
from rewardsmith.use.guard_rule import Rule
from tests.serving.conftest import Reader, served

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
POSTS = [
    "/v1/score",
    "/v1/compare",
    "/v1/rank",
    "/v1/guard",
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
]
GETS = ["/health", "/ready", "/v1/model", "/v1/models", "/info", "/metrics"]


TEXT = st.text(max_size=80)  # the Reader cuts at 64
TEXTS = st.lists(TEXT, max_size=4)
IDS = st.lists(st.integers(0, 99), max_size=4)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXT}),
    min_size=1,
    max_size=3,
)
SQUASHED = st.fixed_dictionaries({}, optional={"use_activation": st.none() | st.booleans()})
LIMITED = st.fixed_dictionaries(
    {},
    optional={
        "truncate_prompt_tokens": st.none() | st.integers(-1, 70),
        "truncation_side": st.sampled_from(["left", "right"]),
        "add_special_tokens": st.none() | st.booleans(),
    },
)
INPUTS = st.one_of(
    (TEXT | TEXTS | IDS | st.lists(IDS, max_size=3)).map(lambda given: {"input": given}),
    st.tuples(MESSAGES, TEXT).map(lambda parts: {"messages": [*parts[0], {"role": "assistant", "content": parts[1]}]}),
)
NAMES = st.sampled_from([("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")])
SIDES = st.tuples(TEXT, TEXT | TEXTS) | st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4).map(
    lambda pairs: tuple(map(list, zip(*pairs, strict=True)))
)
PAIRS = st.builds(lambda names, sides, more: dict(zip(names, sides, strict=True)) | more, NAMES, SIDES, SQUASHED)
TEXT_BODIES = st.builds(lambda given, limits, more: given | limits | more, INPUTS, LIMITED, SQUASHED)
MEANT = {
    "/score": PAIRS,
    "/v1/score": PAIRS
    | st.fixed_dictionaries(
        {"inputs": st.lists(st.fixed_dictionaries({"prompt": TEXT | MESSAGES, "answer": TEXT}), max_size=4)},
        optional={"include": st.lists(st.sampled_from(["probability", "flags"]), max_size=2)},
    ),
    "/v1/guard": st.fixed_dictionaries(
        {"inputs": st.lists(st.fixed_dictionaries({"prompt": TEXT | MESSAGES, "answer": TEXT}), max_size=4)}
    ),
    "/classify": TEXT_BODIES | st.fixed_dictionaries({"text": TEXT | TEXTS}),
    "/v1/classify": TEXT_BODIES,
    "/pooling": TEXT_BODIES,
}
"""Bodies that keep to what the description cannot say: one of two fields, messages that end with an answer, lists of equal length."""


RULE = Rule(Estimate(9.0, 5.0, 12.0, 100, "bootstrap"), target_rate=0.05, temperature=2.0)


def guarded(scorer, **more):
    """A model with a guardrail: without one, /v1/guard answers nobody."""
    return served(scorer, guardrail=RULE, **more)


def length(text):
    """A number for any text."""
    return float(len(text))


def fuzz(client, path, method, mode=GenerationMode.POSITIVE, bodies=None):
    """How often each status came back; the first response that breaks a promise is an error. Without `bodies` the description makes them."""
    operation = schemathesis.openapi.from_dict(client.get("/openapi.json").json())[path][method]
    statuses = Counter()
    if bodies is None:
        cases = operation.as_strategy(generation_mode=mode)
    else:
        cases = bodies.map(lambda body: operation.Case(body=body, media_type="application/json"))

    # derandomize: the same examples in every run.
    @hypothesis.settings(
        max_examples=50 if mode.is_positive else 25,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases)
    def run(case):
        asked = case.as_transport_kwargs()
        given = {"content": asked["data"]} if "data" in asked else {"json": asked["json"]} if "json" in asked else {}
        response = client.request(method, asked["url"], params=asked["params"], headers=asked["headers"], **given)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    run()
    return statuses


def test_every_path_is_described(inside):
    described = inside().get("/openapi.json").json()["paths"]
    assert {path: list(methods) for path, methods in described.items()} == {
        **{path: ["post"] for path in POSTS},
        **{path: ["get"] for path in GETS},
    }


@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_fits_the_description_is_answered_as_described(inside, path):
    statuses = fuzz(inside(guarded(Reader(length))), path, "POST")
    # What the description cannot say is refused; see MEANT.
    assert statuses[200] and set(statuses) <= {200, 400, 422}


@pytest.mark.parametrize("path", MEANT)
def test_a_body_that_means_one_thing_is_scored(inside, path):
    statuses = fuzz(inside(guarded(Reader(length))), path, "POST", bodies=MEANT[path])
    assert set(statuses) == {200}


@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_misses_the_description_is_refused(inside, path):
    reader = Reader(length)
    statuses = fuzz(inside(guarded(reader)), path, "POST", GenerationMode.NEGATIVE)
    assert statuses[422 if path in ("/predict", "/") else 400]
    assert set(statuses) <= {400, 422} and not reader.batches


@pytest.mark.parametrize("path", GETS)
def test_pages_are_as_described(inside, path):
    assert set(fuzz(inside(guarded(Reader(length))), path, "GET")) == {200}


@pytest.mark.parametrize(
    ("path", "bodies"), [*MEANT.items(), *dict.fromkeys(["/v2/rerank", "/predict", "/get_reward"]).items()]
)
def test_a_planted_fault_of_the_server_is_found_by_the_same_search(inside, path, bodies):
    def faulty(text):
        if len(text) > 3:
            raise RuntimeError("planted")
        return length(text)

    with pytest.raises(FailureGroup) as found:
        fuzz(inside(guarded(Reader(faulty))), path, "POST", bodies=bodies)
    (failure,) = found.value.exceptions
    assert isinstance(failure, ServerError) and failure.status_code == 500


def test_a_planted_document_that_is_not_as_described_is_found_by_the_same_search(inside):
    with pytest.raises(FailureGroup) as found:
        fuzz(inside(guarded(Reader(length), precision=32)), "/v1/compare", "POST")
    (failure,) = found.value.exceptions
    assert isinstance(failure, JsonSchemaError) and 'is not of type "string"' in str(failure)
