"""Other tools' protocols, field for field: OpenRLHF, LLaMA-Factory, vLLM, SGLang, Text Embeddings Inference; and what of a request reaches the scorer."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from rewardsmith.errors import LengthError
from rewardsmith.scores import RawIds, RawText
from tests.serving.conftest import Reader, served, told
from tests.serving.test_native import LONG, Keeper

# 1 / (1 + exp(-x)) of -3, 1, 2, 3
SIGMOID = {-3: 0.04742587317756678, 1: 0.7310585786300049, 2: 0.8807970779778823, 3: 0.9525741268224334}
CLASSIFY = ("/classify", "/v1/classify")
RERANK = ("/rerank", "/v1/rerank", "/v2/rerank")
CONVERSATION = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "answer 3"},
]
PAIR = (CONVERSATION[:2], "answer 3")


def about(number):
    return pytest.approx(number, rel=1e-12)


def payload(response, kind, *, tokens):
    """`data` of one of vLLM's lists, whose other fields must be as they should."""
    assert response.status_code == 200, response.text
    document = response.json()
    assert document.pop("id").startswith(f"{kind}-")
    created = document.pop("created")
    assert type(created) is int and abs(created - time.time()) < 60
    data = document.pop("data")
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    assert document == {"object": "list", "model": "reader", "usage": usage}
    return data


# OpenRLHF


@pytest.mark.parametrize(
    "query", [["answer 7"], "answer 7", ["answer 7", "answer 3", LONG]], ids=["one", "a text", "many"]
)
def test_get_reward_has_raw_rewards_and_probabilities_as_scores(inside, query):
    answer = inside(served(Reader(), temperature=2.0, centre=3.0)).post("/get_reward", json={"query": query}).json()
    # sigmoid((7 - 3) / 2) = sigmoid(2); sigmoid((3 - 3) / 2) = 0.5; LONG is told as 7, and 64 of its 65 characters are read.
    n = 1 if isinstance(query, str) else len(query)
    assert answer == {
        "rewards": [7.0, 3.0, 7.0][:n],
        "scores": [about(SIGMOID[2]), 0.5, about(SIGMOID[2])][:n],
        "extra_logs": {"tokens": [8.0, 8.0, 64.0][:n], "truncated": [0.0, 0.0, 1.0][:n]},
    }
    # OpenRLHF makes tensors of them: `true` would be another type.
    assert {type(value) for values in answer["extra_logs"].values() for value in values} == {float}


def test_get_reward_of_nothing_is_empty_lists(inside):
    reader = Reader()
    response = inside(served(reader)).post("/get_reward", json={"query": [], "prompts": [], "labels": []})
    assert response.status_code == 200
    assert response.json() == {"rewards": [], "scores": [], "extra_logs": {"tokens": [], "truncated": []}}
    assert not reader.batches


@pytest.mark.parametrize(
    "others", [{"prompts": ["answer 1"], "labels": [None]}, {"prompts": "x"}, {"labels": {"a": 1}}]
)
def test_get_reward_looks_at_the_query_alone(inside, others):
    keeper = Keeper()
    answer = inside(served(keeper)).post("/get_reward", json={"query": ["answer 9"], **others}).json()
    assert answer["rewards"] == [9.0]
    assert keeper.asked == [RawText("answer 9", control=True)]


def test_scores_of_get_reward_stay_between_0_and_1(inside):
    client = inside(served(Reader(lambda text: 1e30 if text == "+" else -1e30)))
    answer = client.post("/get_reward", json={"query": ["+", "-"]}).json()
    assert answer["scores"] == [1, 0] and answer["rewards"] == [about(np.float32(1e30)), about(np.float32(-1e30))]


# LLaMA-Factory


@pytest.mark.parametrize("path", ["/", "/v1/score/evaluation"])
@pytest.mark.parametrize("messages", [["<s>answer 3</s>", "answer 2"], []])
def test_llama_factory_reads_raw_scores_of_whole_texts(inside, path, messages):
    answer = inside(served(Reader(), centre=3.0)).post(path, json={"model": "model", "messages": messages}).json()
    assert answer.pop("id").startswith("scoreval-")
    assert answer == {"object": "score.evaluation", "model": "reader", "scores": [3.0, 2.0][: len(messages)]}


# vLLM


@pytest.mark.parametrize("path", CLASSIFY)
def test_classify_has_one_class_whose_prob_is_the_score(inside, path):
    response = inside().post(path, json={"input": ["answer 3", "answer 20"]})
    assert payload(response, "classify", tokens=8 + 9) == [
        {"index": 0, "label": "LABEL_0", "probs": [3.0], "num_classes": 1},
        {"index": 1, "label": "LABEL_0", "probs": [20.0], "num_classes": 1},
    ]


@pytest.mark.parametrize("more", [{}, {"task": "classify"}, {"task": None, "encoding_format": "float"}])
def test_pooling_has_the_score_as_its_data(inside, more):
    response = inside().post("/pooling", json={"input": ["answer 3", "answer 20"], **more})
    assert payload(response, "pool", tokens=8 + 9) == [
        {"index": 0, "object": "pooling", "data": [3.0]},
        {"index": 1, "object": "pooling", "data": [20.0]},
    ]


@pytest.mark.parametrize("path", [*CLASSIFY, "/pooling"])
def test_input_may_be_texts_or_ids_one_or_many(inside, path):
    client = inside()
    # The Reader writes ids one after the other: 1, 2 is told as 12.
    for given, numbers in [("answer 3", [3]), (["4"], [4]), ([1, 2], [12]), ([[1, 2], [3]], [12, 3]), ([], [])]:
        data = client.post(path, json={"input": given}).json()["data"]
        assert [one.get("probs", one.get("data")) for one in data] == [[number] for number in numbers], given


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")],
)
def test_score_takes_pairs_under_four_names(inside, path, first, second):
    for firsts, seconds, pairs in [
        ("q", "answer 3", [("q", "answer 3")]),
        ("q", ["answer 3", "20"], [("q", "answer 3"), ("q", "20")]),
        (["q"], ["answer 3", "20"], [("q", "answer 3"), ("q", "20")]),
        (["q", "r"], ["answer 3", "20"], [("q", "answer 3"), ("r", "20")]),
        ("q", [], []),
    ]:
        keeper = Keeper()
        response = inside(served(keeper)).post(path, json={first: firsts, second: seconds})
        data = payload(response, "score", tokens=sum(len(answer) for _, answer in pairs))
        assert data == [{"index": i, "object": "score", "score": told(answer)} for i, (_, answer) in enumerate(pairs)]
        assert keeper.asked == pairs


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_score_refuses_texts_that_are_no_pairs(inside, path):
    reader = Reader()
    client = inside(served(reader))
    for body, words in [
        ({"queries": ["q", "r"], "documents": ["1", "2", "3"]}, "2 and 3"),
        ({"queries": ["q", "r"], "documents": "1"}, "2 and 1"),
        ({"queries": [], "documents": ["1"]}, "0 and 1"),
        ({"queries": "q", "documents": "1", "text_1": "q", "text_2": "2"}, "2 of them"),
        ({"data_1": "q", "text_2": "1"}, "0 of them"),
        ({"text_1": "q"}, "text_1 + text_2"),
        ({"text_1": "q", "text_2": [1]}, "text_2"),
    ]:
        response = client.post(path, json=body)
        assert response.status_code == 400 and words in response.json()["error"]["message"], body
    assert not reader.batches


@pytest.mark.parametrize("path", RERANK)
def test_rerank_has_the_best_first_and_ties_in_their_order(inside, path):
    client = inside()
    documents = ["answer 3", "answer 20", "doc 3", LONG]
    for top_n in (None, 0, 1, 3, 4, 100):
        more = {} if top_n is None else {"top_n": top_n}
        document = client.post(path, json={"query": "q", "documents": documents, **more}).json()
        assert document.pop("id").startswith("rerank-")
        # 20 > 7 (LONG) > 3 = 3; all were read, whatever is shown: 8 + 9 + 5 + 64 = 86 tokens. top_n = 0 is all.
        ranking = [(1, 20.0), (3, 7.0), (0, 3.0), (2, 3.0)][: top_n or None]
        assert document == {
            "model": "reader",
            "usage": {"prompt_tokens": 86, "total_tokens": 86},
            "results": [
                {"index": i, "document": {"text": documents[i], "multi_modal": None}, "relevance_score": score}
                for i, score in ranking
            ],
        }


@pytest.mark.parametrize(
    ("path", "body", "numbers"),
    [
        *((path, {"input": "answer 2"}, lambda a: a["data"][0]["probs"]) for path in CLASSIFY),
        ("/pooling", {"input": "answer 2"}, lambda a: a["data"][0]["data"]),
        *(
            (path, {"text_1": "q", "text_2": "answer 2"}, lambda a: [a["data"][0]["score"]])
            for path in ("/score", "/v1/score")
        ),
        *(
            (path, {"query": "q", "documents": ["answer 2"]}, lambda a: [a["results"][0]["relevance_score"]])
            for path in RERANK
        ),
    ],
)
def test_scores_are_squashed_only_where_use_activation_asks(inside, path, body, numbers):
    # Neither the temperature nor the centre is any of vLLM's business.
    client = inside(served(Reader(), temperature=2.0, centre=3.0))
    assert numbers(client.post(path, json=body).json()) == [2]
    for activation, expected in {None: 2, False: 2, True: SIGMOID[2]}.items():
        answer = client.post(path, json=body | {"use_activation": activation}).json()
        assert numbers(answer) == [about(expected)], activation


@pytest.mark.parametrize(
    ("path", "body", "index"),
    [
        *((path, {"query": "q", "documents": ["800", "900"], "use_activation": True}, 1) for path in RERANK),
        ("/rerank", {"query": "q", "texts": ["800", "900"]}, 1),
        ("/", {"query": "q", "texts": ["800", "900"]}, 1),
    ],
)
def test_scores_that_are_equal_when_squashed_are_still_ranked(inside, path, body, index):
    # sigmoid(800) and sigmoid(900) are both 1 in float64.
    answer = inside().post(path, json=body).json()
    ranks = answer["results"] if isinstance(answer, dict) else answer
    assert [rank["index"] for rank in ranks] == [index, 0]
    assert [rank.get("relevance_score", rank.get("score")) for rank in ranks] == [1.0, 1.0]


def test_fields_that_mean_nothing_here_are_let_pass(inside):
    more = {"user": "u", "request_id": "r", "priority": 3, "mm_processor_kwargs": {}, "continue_final_message": False}
    response = inside().post("/classify", json={"input": "answer 3", "model": "any", **more})
    assert payload(response, "classify", tokens=8)[0]["probs"] == [3.0]


@pytest.mark.parametrize("path", [*CLASSIFY, "/pooling"])
def test_texts_that_cannot_be_meant_are_refused_in_vllms_words(inside, path):
    reader = Reader()
    client = inside(served(reader))
    for body, words in [
        ({"input": "1", "messages": CONVERSATION}, "either"),
        ({"input": None}, "either"),
        ({"input": ["1", 2]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": 1}, "input"),
        ({"messages": [{"role": "user", "content": "2"}]}, "roles user"),
        ({"messages": [{"role": "assistant", "content": "2"}]}, "roles assistant"),
        ({"messages": []}, "messages"),
        ({"messages": ["<s>2</s>"]}, "messages"),
        ({"input": "1", "chat_template": "{{ messages }}"}, "chat_template"),
        ({"input": "1", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"input": "1", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"input": "1", "truncation_side": "middle"}, "truncation_side"),
    ]:
        response = client.post(path, json=body)
        error = response.json()["error"]
        assert response.status_code == error["code"] == 400 and error["param"] is None, body
        assert words in error["message"], body
    assert not reader.batches


@pytest.mark.parametrize("more", [{"task": "embed"}, {"encoding_format": "base64"}])
def test_pooling_refuses_what_it_would_answer_otherwise(inside, more):
    response = inside().post("/pooling", json={"input": "1", **more})
    assert response.status_code == 400 and next(iter(more)) in response.json()["error"]["message"]


@pytest.mark.parametrize("path", RERANK)
def test_rerank_refuses_a_negative_top_n(inside, path):
    response = inside().post(path, json={"query": "q", "documents": ["1"], "top_n": -1})
    assert response.status_code == 400 and "top_n" in response.json()["error"]["message"]


# SGLang


@pytest.mark.parametrize("text", ["answer 3", ["answer 3"], ["answer 3", "answer 20"], []])
def test_classify_with_text_has_embeddings_of_one_raw_number(inside, text):
    answer = inside(served(Reader(), centre=3.0)).post("/classify", json={"model": "any", "text": text}).json()
    n = 1 if isinstance(text, str) else len(text)
    assert answer == [{"embedding": [3.0]}, {"embedding": [20.0]}][:n]


# Text Embeddings Inference


@pytest.mark.parametrize(("raw", "one", "two", "three"), [(True, 1, 2, 3), (None, *(SIGMOID[i] for i in (1, 2, 3)))])
def test_predict_answers_one_input_with_a_list_and_many_with_lists(inside, raw, one, two, three):
    client = inside(served(Reader(), temperature=2.0, centre=3.0))
    one, two, three = ([{"score": about(score), "label": "LABEL_0"}] for score in (one, two, three))
    for given, expected in [
        ("answer 1", one),
        (["answer 1", "answer 2"], two),  # one pair: the second is the answer
        (["answer 3"], three),
        ([["answer 1"], ["q 9", "answer 3"]], [one, three]),
        ([["answer 2"]], [two]),
    ]:
        body = {"inputs": given} | ({} if raw is None else {"raw_scores": raw})
        assert client.post("/predict", json=body).json() == expected, given


@pytest.mark.parametrize(("raw", "expected"), [(False, SIGMOID[-3]), (True, -3)])
def test_predict_squashes_unless_raw_scores_are_asked_for(inside, raw, expected):
    client = inside(served(Reader(lambda text: -told(text))))
    response = client.post("/predict", json={"inputs": "answer 3", "raw_scores": raw})
    assert response.json() == [{"score": about(expected), "label": "LABEL_0"}]


@pytest.mark.parametrize("given", [["1", "2", "3"], [["1", "2", "3"]], [[]], [["1"], "2"], 1, [[1]], None])
def test_predict_refuses_what_is_neither_a_text_nor_a_pair(inside, given):
    reader = Reader()
    response = inside(served(reader)).post("/predict", json={"inputs": given})
    answer = response.json()
    assert response.status_code == 422 and answer.pop("error_type") == "Validation"
    assert set(answer) == {"error"} and "inputs" in answer["error"]
    assert not reader.batches


@pytest.mark.parametrize("path", ["/rerank", "/"])
def test_tei_rerank_has_the_best_first_and_ties_in_their_order(inside, path):
    client = inside(served(Reader(), centre=3.0))
    texts = ["answer 1", "answer 3", "doc 1", "answer 2"]
    for raw, shown in itertools.product((None, False, True), repeat=2):
        flags = {"raw_scores": raw, "return_text": shown}
        body = {"query": "q 9", "texts": texts} | {name: flag for name, flag in flags.items() if flag is not None}
        # 3 > 2 > 1 = 1
        expected = [(1, 3), (3, 2), (0, 1), (2, 1)]
        assert client.post(path, json=body).json() == [
            {"index": i, "score": about(score if raw else SIGMOID[score])} | ({"text": texts[i]} if shown else {})
            for i, score in expected
        ], flags


TEI_LONG = [
    ("/predict", {"inputs": LONG}),
    ("/predict", {"inputs": ["q", LONG]}),
    ("/predict", {"inputs": [["answer 3"], [LONG]]}),
    ("/rerank", {"query": "q", "texts": ["answer 3", LONG]}),
    ("/", {"query": "q", "texts": ["answer 3", LONG]}),
]


@pytest.mark.parametrize(("path", "body"), TEI_LONG)
def test_tei_refuses_to_cut_where_truncate_is_false(inside, path, body):
    client = inside()
    response = client.post(path, json=body | {"truncate": False})
    assert response.status_code == 422
    # LONG has 65 tokens, one more than the limit of 64.
    assert response.json() == {
        "error": "needed inputs that fit; got one of 65 tokens. Shorten it or set `truncate` to true.",
        "error_type": "Validation",
    }
    for truncate in (True, None):
        response = client.post(path, json=body | {"truncate": truncate})
        assert response.status_code == 200 and response.headers["x-rewardsmith-truncated"] == "1"


def test_tei_truncate_false_lets_pass_what_fits(inside):
    response = inside().post("/predict", json={"inputs": LONG[1:], "truncate": False, "raw_scores": True})
    assert response.json() == [{"score": 7.0, "label": "LABEL_0"}]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/predict", {"inputs": "1", "truncation_direction": "up"}, "truncation_direction"),
        ("/predict", {"inputs": ["q", "1"], "truncation_direction": "left"}, "left"),
        ("/predict", {"inputs": [["1"], ["q", "1"]], "truncation_direction": "Left"}, "left"),
        ("/rerank", {"query": "q", "texts": ["1"], "truncation_direction": "left"}, "left"),
        ("/", {"query": "q", "texts": ["1"], "truncation_direction": "Left"}, "left"),
    ],
)
def test_tei_refuses_a_direction_that_it_would_not_keep_to(inside, path, body, words):
    response = inside().post(path, json=body)
    assert response.status_code == 422 and response.json()["error_type"] == "Validation"
    assert words in response.json()["error"]


def test_info_describes_a_reranker_with_the_limits_of_this_server(inside):
    contract = {"format_version": 3}
    client = inside(
        served(Reader(), precision="bf16", contract=contract), max_requests=7, batch_tokens=1000, max_texts=5
    )
    info = client.get("/info").json()
    assert info.pop("version") == client.get("/openapi.json").json()["info"]["version"]
    assert info == {
        "model_id": "reader",
        "model_sha": None,
        "model_dtype": "bf16",
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_concurrent_requests": 7,
        "max_input_length": 64,
        "max_batch_tokens": 1000,
        "max_batch_requests": None,
        "max_client_batch_size": 5,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "sha": None,
        "docker_label": None,
        "rewardsmith": contract,
    }


# What reaches the scorer


@pytest.mark.parametrize("path", [*CLASSIFY, "/pooling"])
def test_texts_reach_the_scorer_as_vllm_means_them(inside, path):
    keeper = Keeper()
    client = inside(served(keeper))
    cases = [
        ({"input": [1, 2]}, [RawIds((1, 2), max_tokens=None, keep="first")]),
        ({"input": [[1], [2, 3]]}, [RawIds((1,)), RawIds((2, 3))]),
        (
            {"input": [1, 2], "truncate_prompt_tokens": 1, "truncation_side": "left"},
            [RawIds((1, 2), max_tokens=1, keep="last")],
        ),
        ({"messages": CONVERSATION}, [PAIR]),
        ({"messages": CONVERSATION[1:]}, [(CONVERSATION[1:2], "answer 3")]),
    ]
    for more, text in [
        ({}, RawText("a 1", control=False, special=True, max_tokens=None, keep="first")),
        ({"add_special_tokens": None}, RawText("a 1", special=True)),
        ({"add_special_tokens": True}, RawText("a 1", special=True)),
        ({"add_special_tokens": False}, RawText("a 1", special=False)),
        ({"truncate_prompt_tokens": 5}, RawText("a 1", max_tokens=5, keep="first")),
        ({"truncate_prompt_tokens": 5, "truncation_side": "left"}, RawText("a 1", max_tokens=5, keep="last")),
        ({"truncate_prompt_tokens": 5, "truncation_side": "right"}, RawText("a 1", max_tokens=5, keep="first")),
        ({"truncate_prompt_tokens": -1, "truncation_side": "left"}, RawText("a 1", max_tokens=None, keep="last")),
        ({"truncate_prompt_tokens": None}, RawText("a 1", max_tokens=None)),
    ]:
        cases.append(({"input": "a 1", **more}, [text]))
        cases.append(({"input": ["b 2", "a 1"], **more}, [replace(text, text="b 2"), text]))
    for body, expected in cases:
        keeper.asked.clear()
        assert client.post(path, json=body).status_code == 200
        assert keeper.asked == expected, body


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/get_reward", {"query": "a 1"}, [RawText("a 1", control=True, special=True)]),
        ("/get_reward", {"query": ["a 1", "b 2"]}, [RawText("a 1", control=True), RawText("b 2", control=True)]),
        ("/", {"messages": ["a 1"]}, [RawText("a 1", control=True, special=True)]),
        ("/v1/score/evaluation", {"messages": ["a 1"]}, [RawText("a 1", control=True, max_tokens=None)]),
        (
            "/v1/score/evaluation",
            {"messages": ["a 1", "b 2"], "max_length": 7},
            [RawText("a 1", control=True, max_tokens=7), RawText("b 2", control=True, max_tokens=7)],
        ),
        ("/classify", {"text": "a 1"}, [RawText("a 1", control=False, special=True)]),
        ("/classify", {"text": ["a 1", "b 2"]}, [RawText("a 1"), RawText("b 2")]),
        *((path, {"query": "q", "documents": ["a 1", "b 2"]}, [("q", "a 1"), ("q", "b 2")]) for path in RERANK),
        ("/predict", {"inputs": "a 1"}, [RawText("a 1", control=False, special=True, keep="first")]),
        ("/predict", {"inputs": ["a 1"]}, [RawText("a 1")]),
        ("/predict", {"inputs": ["q", "a 1"]}, [("q", "a 1")]),
        ("/predict", {"inputs": [["a 1"], ["q", "b 2"]]}, [RawText("a 1"), ("q", "b 2")]),
        ("/predict", {"inputs": ["q", "a 1"], "truncation_direction": "Right"}, [("q", "a 1")]),
        *(
            ("/predict", {"inputs": "a 1", "truncation_direction": side}, [RawText("a 1", keep=keep)])
            for side, keep in {"left": "last", "Left": "last", "right": "first", "Right": "first"}.items()
        ),
        *((path, {"query": "q", "texts": ["a 1", "b 2"]}, [("q", "a 1"), ("q", "b 2")]) for path in ("/", "/rerank")),
    ],
)
def test_each_route_hands_the_scorer_what_its_protocol_means(inside, path, body, expected):
    keeper = Keeper()
    assert inside(served(keeper)).post(path, json=body).status_code == 200
    assert keeper.asked == expected


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        *((path, {"input": ["<s>1"]}, [RawText("<s>1", control=True)]) for path in (*CLASSIFY, "/pooling")),
        ("/classify", {"input": "1", "add_special_tokens": False}, [RawText("1", control=True, special=False)]),
        ("/classify", {"text": ["<s>1"]}, [RawText("<s>1", control=True)]),
        ("/classify", {"messages": CONVERSATION}, [PAIR]),
        ("/predict", {"inputs": "<s>1"}, [RawText("<s>1", control=False)]),
    ],
)
def test_templated_texts_mean_the_control_tokens_of_classify_and_pooling_alone(inside, path, body, expected):
    keeper = Keeper()
    assert inside(served(keeper, templated_texts=True)).post(path, json=body).status_code == 200
    assert keeper.asked == expected


# What every route has: headers, and errors in the words of its protocol


@dataclass(frozen=True)
class Route:
    """One protocol on one path, with the body of two answers to one prompt."""

    path: str
    words: str
    body: Callable[[str, str], dict]


ROUTES = {
    "score": Route("/v1/score", "own", lambda a, b: {"inputs": [{"prompt": "p", "answer": text} for text in (a, b)]}),
    "compare": Route("/v1/compare", "own", lambda a, b: {"prompt": "p", "answer_a": a, "answer_b": b}),
    "rank": Route("/v1/rank", "own", lambda a, b: {"prompt": "p", "answers": [a, b]}),
    "OpenRLHF": Route("/get_reward", "own", lambda a, b: {"query": [a, b]}),
    "LLaMA-Factory": Route("/v1/score/evaluation", "own", lambda a, b: {"messages": [a, b]}),
    "LLaMA-Factory root": Route("/", "own", lambda a, b: {"messages": [a, b]}),
    **{f"vLLM {path}": Route(path, "vllm", lambda a, b: {"input": [a, b]}) for path in (*CLASSIFY, "/pooling")},
    **{
        f"vLLM {path}": Route(path, "vllm", lambda a, b: {"text_1": "q", "text_2": [a, b]})
        for path in ("/score", "/v1/score")
    },
    **{f"vLLM {path}": Route(path, "vllm", lambda a, b: {"query": "q", "documents": [a, b]}) for path in RERANK},
    "SGLang": Route("/classify", "vllm", lambda a, b: {"text": [a, b]}),
    "TEI /predict": Route("/predict", "tei", lambda a, b: {"inputs": [[a], ["q", b]]}),
    **{f"TEI {path}": Route(path, "tei", lambda a, b: {"query": "q", "texts": [a, b]}) for path in ("/", "/rerank")},
}
every_route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)


def complaint(response, words, status, kind):
    """The sentence of an error, whose form must be that of the protocol; status and kind are those of our own words."""
    document = response.json()
    if words == "tei":
        # Whatever is wrong with an input is "Validation", 422.
        kind, status = {429: ("Overloaded", 429)}.get(status, ("Validation", {400: 422, 413: 422}.get(status, status)))
        assert set(document) == {"error", "error_type"} and document["error_type"] == kind
        message = document["error"]
    elif words == "vllm":
        message = document["error"]["message"]
        assert document == {"error": {"message": message, "type": kind, "param": None, "code": status}}
    else:
        message = document["error"]["message"]
        assert document["error"]["type"] == kind and "code" not in document["error"]
    assert response.status_code == status
    return message


@every_route
def test_two_texts_of_which_one_is_cut_are_counted_in_a_header(inside, route):
    client = inside()
    for texts, count in [(("answer 3", LONG), "1"), ((LONG, LONG), "2"), (("answer 3", "answer 4"), None)]:
        response = client.post(route.path, json=route.body(*texts))
        assert response.status_code == 200 and response.headers.get("x-rewardsmith-truncated") == count


@every_route
def test_strings_that_look_like_control_tokens_are_counted_in_a_header(inside, route):
    class Counting(Reader):
        def score_encoded(self, texts):
            counts = np.array([text.tokens.count("[SEP]") for text in texts], dtype=np.int64)
            return replace(super().score_encoded(texts), special_strings=counts)

    client = inside(served(Counting()))
    response = client.post(route.path, json=route.body("[SEP] 3 [SEP]", "4 [SEP]"))
    assert response.headers.get("x-rewardsmith-special-strings") == "3"
    response = client.post(route.path, json=route.body("3", "4"))
    assert response.status_code == 200 and "x-rewardsmith-special-strings" not in response.headers


@every_route
def test_a_field_of_the_wrong_type_is_refused_in_the_words_of_the_protocol(inside, route):
    reader = Reader()
    response = inside(served(reader)).post(route.path, json=route.body("1", "2") | {"model": 3})
    assert "model" in complaint(response, route.words, 400, "InvalidRequest")
    assert not reader.batches


@every_route
def test_an_unknown_model_is_refused_in_the_words_of_the_protocol(inside, route):
    client = inside(served(Reader(), name="helpful"), served(Reader(), name="safe"))
    for named in ({"model": "other"}, {}):
        response = client.post(route.path, json=route.body("1", "2") | named)
        assert complaint(response, route.words, 404, "UnknownModel") == "needed `model`, one of helpful, safe"
    assert client.post(route.path, json=route.body("1", "2") | {"model": "safe"}).status_code == 200


@every_route
def test_too_much_of_a_request_is_refused_in_the_words_of_the_protocol(inside, route):
    client = inside(max_texts=1)
    message = complaint(client.post(route.path, json=route.body("1", "2")), route.words, 413, "TooManyTexts")
    assert message == "a request may have 1 texts; this has 2"
    client = inside(max_characters=9)
    message = complaint(client.post(route.path, json=route.body("1", "answer 200")), route.words, 413, "TextTooLong")
    assert message.startswith("a text may have 9 characters; one has 1")


@every_route
def test_a_text_that_the_policy_refuses_is_told_in_the_words_of_the_protocol(inside, route):
    class Strict(Reader):
        def encode(self, inputs):
            raise LengthError("texts of at most 4 tokens", "one of 9", "Send a shorter text.")

    response = inside(served(Strict())).post(route.path, json=route.body("1", "2"))
    message = complaint(response, route.words, 413, "LengthError")
    assert message == "needed texts of at most 4 tokens; got one of 9. Send a shorter text."


@every_route
def test_a_full_queue_is_told_in_the_words_of_the_protocol(inside, route):
    client = inside(queue_texts=30)
    engine = client.app.state.service.engines["reader"]
    engine.texts_held = 29  # two more than that are 31
    response = client.post(route.path, json=route.body("1", "2"))
    # Before the first batch one text a second is guessed.
    assert response.headers["retry-after"] == "29"
    assert "try again in 29 s" in complaint(response, route.words, 429, "QueueFull")
    engine.texts_held = 0
    assert client.post(route.path, json=route.body("1", "2")).status_code == 200


# Before a body is read only the path can tell the protocol.
PATHS = {
    "/v1/score": "own",
    "/v1/compare": "own",
    "/v1/rank": "own",
    "/get_reward": "own",
    "/v1/score/evaluation": "own",
    **dict.fromkeys([*CLASSIFY, "/pooling", "/score", *RERANK], "vllm"),
    "/predict": "tei",
    "/": "tei",
}


@pytest.mark.parametrize(("path", "words"), PATHS.items())
def test_a_missing_key_is_told_in_the_words_of_the_path(inside, path, words):
    key = "correct-horse-battery"
    client = inside(keys=[key])
    response = client.post(path, json={}, headers={"Authorization": f"Bearer {key}!"})
    assert "Authorization: Bearer" in complaint(response, words, 401, "Unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    response = client.post(path, json={}, headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == (422 if words == "tei" else 400)


@pytest.mark.parametrize(("path", "words"), PATHS.items())
def test_a_body_that_is_too_large_or_no_json_is_told_in_the_words_of_the_path(inside, path, words):
    client = inside(max_body_bytes=20)
    assert "20 bytes" in complaint(client.post(path, json={"x": "y" * 20}), words, 413, "BodyTooLarge")
    response = client.post(path, content=b"{", headers={"Content-Type": "application/json"})
    assert "no JSON" in complaint(response, words, 400, "InvalidJson")


# Paths of two protocols


@pytest.mark.parametrize(
    ("path", "body", "words", "needed"),
    [
        ("/classify", {"inputs": "1"}, "vllm", "input or text"),
        ("/rerank", {"query": "q"}, "vllm", "documents or texts"),
        ("/v1/score", {"text": "1"}, "own", "inputs or text_1"),
        ("/", {"query": "q"}, "tei", "texts or messages"),
        ("/", ["1"], "tei", "texts or messages"),
    ],
)
def test_a_body_of_neither_protocol_is_told_the_fields_of_both(inside, path, body, words, needed):
    response = inside().post(path, json=body)
    assert needed in complaint(response, words, 400, "InvalidRequest")


@pytest.mark.parametrize(
    ("path", "one", "other"),
    [
        ("/classify", {"input": ["answer 2"]}, {"text": ["answer 2"]}),
        ("/rerank", {"query": "q", "documents": ["answer 2"]}, {"query": "q", "texts": ["answer 2"]}),
        ("/v1/score", {"text_1": "q", "text_2": "answer 2"}, {"inputs": [{"prompt": "q", "answer": "answer 2"}]}),
        ("/", {"messages": ["answer 2"]}, {"query": "q", "texts": ["answer 2"]}),
    ],
)
def test_the_fields_of_a_body_choose_between_the_protocols_of_a_path(inside, path, one, other):
    client = inside()
    found = [client.post(path, json=body).json() for body in (one, other)]
    expected = {
        "/classify": [lambda a: a["data"][0]["probs"][0] == 2, lambda a: a == [{"embedding": [2.0]}]],
        "/rerank": [
            lambda a: a["results"][0]["relevance_score"] == 2,
            lambda a: a == [{"index": 0, "score": about(SIGMOID[2])}],
        ],
        "/v1/score": [lambda a: a["data"][0]["score"] == 2, lambda a: a["results"][0]["score"] == 2],
        "/": [lambda a: a["scores"] == [2.0], lambda a: a == [{"index": 0, "score": about(SIGMOID[2])}]],
    }[path]
    for answer, fits in zip(found, expected, strict=True):
        assert fits(answer), answer


@pytest.mark.parametrize(
    ("path", "body"),
    [("/predict", {"inputs": []}), ("/rerank", {"query": "q", "texts": []}), ("/", {"query": "q", "texts": []})],
)
def test_tei_refuses_no_inputs_by_its_own_name_for_it(inside, path, body):
    response = inside().post(path, json=body)
    assert response.status_code == 400 and response.json()["error_type"] == "Empty"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {"input": "answer 3", "text": "answer 4"}),
        ("/rerank", {"query": "q", "documents": ["answer 3"], "texts": ["answer 4"]}),
        ("/v1/score", {"inputs": [{"prompt": "p", "answer": "answer 3"}], "text_1": "p", "text_2": "answer 4"}),
        ("/", {"query": "q", "texts": ["answer 3"], "messages": ["answer 4"]}),
    ],
)
def test_a_body_of_two_protocols_is_refused_and_not_guessed_at(inside, path, body):
    response = inside().post(path, json=body)
    assert response.status_code in (400, 422) and "not both" in response.text
