"""Many clients at once, in every protocol and some of them leaving: each answer has the number that its own text has."""

import asyncio
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest

from rewardsmith.config import ScoringSettings, ServeSettings
from rewardsmith.scores import RawText
from tests.serving.conftest import Reader, served

NUM_CLIENTS = 64


@dataclass(frozen=True)
class Question:
    """A request, and the scores that must come back, by how they are found in the response."""

    path: str
    document: dict[str, Any]
    expected: list[float]
    found: Callable[[Any], list[float]]


def in_results(document: Any) -> list[float]:
    return [one["score"] for one in document["results"]]


def in_data(document: Any) -> list[float]:
    assert [one["index"] for one in document["data"]] == list(range(len(document["data"])))
    return [one["score"] for one in document["data"]]


def in_probs(document: Any) -> list[float]:
    return [one["probs"][0] for one in document["data"]]


def in_ranks(score: str) -> Callable[[Any], list[float]]:
    """Of a ranking, in the order of what was ranked; it must be one."""

    def found(document: Any) -> list[float]:
        ranks = document["results"] if isinstance(document, dict) else document
        assert [one[score] for one in ranks] == sorted((one[score] for one in ranks), reverse=True)
        return [one[score] for one in sorted(ranks, key=lambda one: one["index"])]

    return found


def of_pairs(prompt: str, texts: list[str], expected: list[float], kind: int) -> Question:
    """The same pairs in one of six protocols."""
    match kind % 6:
        case 0:
            document = {"inputs": [{"prompt": prompt, "answer": text} for text in texts]}
            return Question("/v1/score", document, expected, in_results)
        case 1:
            return Question("/score", {"text_1": prompt, "text_2": texts}, expected, in_data)
        case 2:
            document = {"inputs": [[prompt, text] for text in texts], "raw_scores": True}
            return Question("/predict", document, expected, lambda rows: [row[0]["score"] for row in rows])
        case 3:
            return Question("/rerank", {"query": prompt, "documents": texts}, expected, in_ranks("relevance_score"))
        case 4:
            document = {"query": prompt, "texts": texts, "raw_scores": True}
            return Question("/rerank", document, expected, in_ranks("score"))
        case _:
            return Question("/v1/rank", {"prompt": prompt, "answers": texts}, expected, in_ranks("score"))


def of_texts(texts: list[str], expected: list[float], kind: int) -> Question:
    """The same whole texts in one of two protocols."""
    if kind % 2:
        return Question("/get_reward", {"query": texts}, expected, lambda document: document["rewards"])
    return Question("/classify", {"input": texts}, expected, in_probs)


@dataclass
class Tally:
    """What became of the questions."""

    answered: int = 0
    left: int = 0


async def ask_all(
    url: str, questions: list[Question], *, tolerance: float, leaving: random.Random | None = None
) -> Tally:
    """Ask from many clients at once, each with its own connection; some leave before they are answered where `leaving` draws so."""
    context, tally, waiting = ssl.create_default_context(), Tally(), iter(questions)

    async def ask(client: httpx.AsyncClient, question: Question) -> None:
        response = await client.post(question.path, json=question.document)
        assert response.status_code == 200, response.text
        found, expected = np.array(question.found(response.json())), np.array(question.expected)
        assert found.shape == expected.shape, question.path
        assert np.all(np.abs(found - expected) <= tolerance * np.maximum(1, np.abs(expected))), question
        tally.answered += 1

    async def be_a_client() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=90, verify=context) as client:
            for question in waiting:
                if leaving is not None and leaving.random() < 0.3:
                    try:
                        async with asyncio.timeout(leaving.random() * 0.05):
                            await ask(client, question)
                    except TimeoutError:
                        tally.left += 1
                else:
                    await ask(client, question)

    async with asyncio.timeout(300), asyncio.TaskGroup() as group:
        for _ in range(NUM_CLIENTS):
            group.create_task(be_a_client())
    return tally


def asked_of_the_reader(count: int) -> list[Question]:
    """Requests of one to four texts; no two texts of them all have the same number."""
    questions, number = [], 0
    for i in range(count):
        numbers = [float(number + k) for k in range(1 + (i % 5 == 0) * 3)]
        number += len(numbers)
        texts = [f"{'x' * (i * 7 % 50)} answer {n:.0f}" for n in numbers]
        questions.append(of_pairs("prompt", texts, numbers, i) if i % 4 else of_texts(texts, numbers, i // 4))
    return questions


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_answer_is_mixed_up_among_many_clients(listening, count):
    reader = Reader()
    url = listening(served(reader))
    questions = asked_of_the_reader(count)
    # Numbers to 2^24 are exact in float32.
    assert asyncio.run(ask_all(url, questions, tolerance=0)).answered == count
    assert sum(reader.batches) == sum(len(question.expected) for question in questions)
    assert max(reader.batches) > 4  # several requests were read together
    assert len({question.path for question in questions}) == 7


def test_a_real_model_gives_every_client_its_own_score_whoever_leaves(listening, tiny_rm):
    from rewardsmith import service
    from rewardsmith.model.published import publish
    from rewardsmith.model.reward_model import RewardModel

    folder, draw, num_texts = str(tiny_rm("bert")), random.Random(0), 512
    model = RewardModel.load(folder, ScoringSettings(device="cpu"))
    questions = []
    for i in range(600):
        prompt = f"How do I mend item {i}? " * draw.randint(1, 12)
        texts = [f"Gladly use glue number {draw.randint(0, 999)}. " * draw.randint(1, 12) for _ in range(1 + i % 4)]
        if i % 4:
            questions.append(of_pairs(prompt, texts, model.score([(prompt, text) for text in texts]).tolist(), i))
        else:
            kind = i // 4
            raw = [RawText(text, control=kind % 2 == 1) for text in texts]  # /get_reward means its control tokens
            questions.append(of_texts(texts, model.score_encoded(model.encode(raw)).score.tolist(), kind))
    assert np.std([score for question in questions for score in question.expected]) > 0.1
    url = listening(
        service.served("tiny", publish(model, folder), ServeSettings()), queue_texts=num_texts, batch_tokens=1024
    )
    tally = asyncio.run(ask_all(url, questions, tolerance=1e-5, leaving=random.Random(1)))
    assert tally.answered + tally.left == len(questions)
    assert tally.left > 20 and tally.answered > 300
    # As many texts as may be held are let in only where none is held.
    inputs = [{"prompt": "p", "answer": f"answer {n}"} for n in range(num_texts)]
    response = httpx.post(f"{url}/v1/score", json={"inputs": inputs}, timeout=90)
    assert response.status_code == 200 and len(response.json()["results"]) == num_texts
    assert httpx.get(f"{url}/ready").status_code == 200
