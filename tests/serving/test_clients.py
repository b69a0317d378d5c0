"""Other tools' own clients, as they are, against the server: each gets the number that the folder gives."""

import json
import random
import time

import httpx
import numpy as np
import pytest

from rewardsmith.config import ScoringSettings, ServeSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.model.published import publish
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.remote import RemoteScorer
from rewardsmith.service import served

LENGTH = 120
ROUTES = {
    "text": [
        "",
        "/v1/score",
        "/classify",
        "/v1/classify",
        "/pooling",
        "/predict",
        "/get_reward",
        "/v1/score/evaluation",
    ],
    "chat": ["", "/classify", "/pooling", "/get_reward", "/v1/score/evaluation"],
    "pair": ["", "/score", "/rerank"],
}
WAYS = [
    (family, encoding)
    for family, encoding in (("bert", "text"), ("roberta", "text"), ("bert", "pair"), ("qwen2", "chat"))
]


@pytest.fixture
def behind(listening, tiny_rm):
    """behind("bert", "text") is (the folder, its model, the address of a server of it)."""

    def start(family, encoding, pooling="auto", *, keys=(), **settings):
        folder = tiny_rm(family, pooling, encoding, LENGTH)
        model = RewardModel.load(folder, ScoringSettings(device="cpu", prompt_states_mib=16))
        url = listening(served("rm", publish(model, str(folder)), ServeSettings(**settings)), keys=keys, **settings)
        return folder, RewardModel.load(folder, ScoringSettings(device="cpu")), url

    return start


def near(expected, found):
    expected, found = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    assert expected.shape == found.shape
    return float(np.max(np.abs(expected - found) / np.maximum(1, np.abs(expected)))) <= 1e-5


def fitting(model, plain=True):
    """Golden inputs that fit; without strings of special tokens where the client's own tokenizer reads the text."""
    table = model.table(INPUTS)
    return [
        INPUTS[i] for i in range(len(INPUTS)) if not table.truncated[i] and not (plain and table.special_strings[i])
    ]


@pytest.mark.parametrize(("family", "encoding"), WAYS)
def test_every_route_gives_the_score_of_the_folder(family, encoding, behind, cli):
    """Each protocol's client is `verify`'s own, which asks as that tool's clients do."""
    folder, _, url = behind(family, encoding)
    for route in ROUTES[encoding]:
        code, out, err = cli("verify", folder, "--against", url + route, "--json")
        document = json.loads(out)
        assert code == 0, (route, out, err)
        assert document["against"]["golden"]["max_difference"] <= 1e-5, route
        assert document["against"]["golden"]["num_inputs"] >= 10, route


@pytest.mark.parametrize(("family", "encoding"), WAYS)
def test_our_own_route_gives_the_score_of_the_folder_for_long_and_odd_texts_too(family, encoding, behind):
    _, model, url = behind(family, encoding)
    scorer = RemoteScorer(url, texts_a_request=3)
    expected = model.score(INPUTS)
    assert float(np.std(expected)) > 0.01, "a constant scorer would pass this test"
    assert near(expected, scorer.score(INPUTS))


def openrlhf_request(url, query):
    """`request_api_wrapper` of OpenRLHF, by its documented fields: the address as it is given, one query, five tries a second apart, every status checked."""
    data = {"query": [query], "prompts": ["the prompt"], "labels": [None]}
    for _ in range(5):
        try:
            response = httpx.post(url, json=data, timeout=180)
            response.raise_for_status()
            return response.json()
        except httpx.HTTPError:
            time.sleep(0.01)
    raise AssertionError("no answer in five tries")


@pytest.mark.parametrize(("family", "encoding"), [("bert", "text"), ("qwen2", "chat")])
def test_openrlhf_gets_the_score_of_a_text_with_its_special_tokens_and_of_one_without(family, encoding, behind):
    _, model, url = behind(family, encoding)
    for prompt, answer in fitting(model)[:5]:
        (expected,) = model.score([(prompt, answer)])
        text = model.renderer.render(prompt, answer)
        for query in {text, f"[CLS]{text}[SEP]" if family == "bert" else text}:
            found = openrlhf_request(f"{url}/get_reward", query)
            assert near([expected], found["rewards"]) and 0 <= found["scores"][0] <= 1
            assert all(isinstance(value, float) for values in found["extra_logs"].values() for value in values)


def test_openrlhf_gets_in_with_the_key_in_its_address(behind):
    """It has no setting for a header; a Basic password is what an address can carry."""
    key = "correct-horse-battery"
    _, model, url = behind("bert", "text", keys=[key])
    (expected,) = model.score([INPUTS[0]])
    text = model.renderer.render(*INPUTS[0])
    found = openrlhf_request(url.replace("http://", f"http://x:{key}@") + "/get_reward", text)
    assert near([expected], found["rewards"])
    assert httpx.post(f"{url}/get_reward", json={"query": [text]}).status_code == 401


def test_openrlhf_workers_that_have_nothing_to_ask_are_answered(behind):
    _, _, url = behind("bert", "text")
    found = httpx.post(f"{url}/get_reward", json={"query": [], "prompts": [], "labels": []})
    assert found.status_code == 200 and found.json()["rewards"] == found.json()["scores"] == []


def test_crossencoder_reads_the_folder_and_gets_what_the_rerank_routes_give(behind):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder, model, url = behind("bert", "pair")
    prompt = "How do I mend item 3?"
    answers = ["Use glue.", "No idea, go away.", "Gladly, here is how: use glue number 3.", "?"]
    expected = sentence_transformers.CrossEncoder(str(folder), device="cpu").predict([(prompt, one) for one in answers])
    assert near(model.score([(prompt, one) for one in answers]), expected)
    order = sorted(range(4), key=lambda i: -expected[i])
    found = httpx.post(f"{url}/rerank", json={"query": prompt, "texts": answers, "raw_scores": True}).json()
    assert [one["index"] for one in found] == order and near(expected[order], [one["score"] for one in found])
    found = httpx.post(f"{url}/v2/rerank", json={"query": prompt, "documents": answers}).json()["results"]
    assert [one["index"] for one in found] == order and near(expected[order], [one["relevance_score"] for one in found])
    found = httpx.post(f"{url}/v1/score", json={"text_1": prompt, "text_2": answers}).json()["data"]
    assert near(expected, [one["score"] for one in found])


def test_a_pipeline_of_transformers_gets_what_the_text_routes_give(behind):
    from transformers import pipeline

    folder, model, url = behind("bert", "text")
    pairs = fitting(model)
    texts = [model.renderer.render(prompt, answer) for prompt, answer in pairs]
    expected = [one["score"] for one in pipeline("text-classification", model=str(folder), device="cpu")(texts)]
    assert near(model.score(pairs), expected)
    found = httpx.post(f"{url}/predict", json={"inputs": [[text] for text in texts], "raw_scores": True}).json()
    assert near(expected, [one[0]["score"] for one in found])
    found = httpx.post(f"{url}/classify", json={"model": "any", "input": texts}).json()["data"]
    assert near(expected, [one["probs"][0] for one in found])


def test_strings_of_special_tokens_are_words_but_on_the_routes_of_rendered_texts(behind):
    """The same characters: plain text for /classify, an end token for /get_reward."""
    _, model, url = behind("bert", "text")
    text = model.renderer.render("a question", "an answer") + " [SEP] [SEP]"
    plain = httpx.post(f"{url}/classify", json={"input": text})
    meant = httpx.post(f"{url}/get_reward", json={"query": [text]}).json()
    assert plain.headers["x-rewardsmith-special-strings"] == "2"
    # "[", "sep", "]" twice are six tokens and more; two control tokens are two, and the last of them is not doubled.
    assert plain.json()["usage"]["prompt_tokens"] - meant["extra_logs"]["tokens"][0] >= 4 - 1
    templated = behind("bert", "text", templated_texts=True)[2]
    found = httpx.post(f"{templated}/classify", json={"input": text}).json()["data"][0]["probs"]
    assert near(meant["rewards"], found)


@pytest.mark.filterwarnings("default")  # of trl, transformers and torch about their own future
def test_grpo_of_trl_is_rewarded_by_the_server(behind, tiny, tmp_path):
    """TRL's trainer asks a function for the rewards of texts; the function asks the server; the trainer's own log holds the server's numbers."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    _, model, url = behind("bert", "text")
    scorer, given = RemoteScorer(url), []

    def reward(prompts, completions, **columns):
        scores = scorer.score(list(zip(prompts, completions, strict=True)))
        given.append((list(zip(prompts, completions, strict=True)), scores))
        return [float(score) for score in scores]

    base = tiny("qwen2")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    policy = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path / "grpo"),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        max_steps=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    data = Dataset.from_dict({"prompt": [f"How do I mend item {i}?" for i in range(4)]})
    trainer = trl.GRPOTrainer(
        model=policy, reward_funcs=reward, args=arguments, train_dataset=data, processing_class=tokenizer
    )
    trainer.train()
    logged = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert len(given) == len(logged) == 2
    for (pairs, scores), mean in zip(given, logged, strict=True):
        assert near(model.score(pairs), scores)
        assert abs(float(np.mean(scores)) - mean) <= 1e-4


def test_a_scorer_survives_a_server_that_is_busy_for_a_moment(behind, monkeypatch):
    """Requests over the limit are told to come back, and the client does."""
    import rewardsmith.remote as remote

    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.05)
    _, model, url = behind("bert", "text", queue_texts=8, max_requests=2)
    rng = random.Random(0)
    pairs = [(f"question {i}", "word " * rng.randrange(1, 20)) for i in range(64)]
    scorer = RemoteScorer(url, texts_a_request=4, requests=8, tries=30)
    assert near(model.score(pairs), scorer.score(pairs))
