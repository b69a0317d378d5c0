"""verl's documented calls: one answer, a coroutine, a batch; the prompt comes through `extra_info`."""

import asyncio
import inspect
import pickle
import socket

import numpy as np
import pytest

from rewardsmith.errors import DataError, RemoteError, SettingsError
from rewardsmith.remote import RemoteScorer
from rewardsmith.use import Shaping, verl_async_compute_score, verl_batch_compute_score, verl_compute_score
from rewardsmith.use.terms import Clip, GroupZScore, LengthPenalty, MissingEnd
from tests.fakes import FunctionScorer, constant, likes_long_answers

MESSAGES = [{"role": "user", "content": "Hi?"}]


def _score(prompt, answer):
    return len(answer) + (100 if prompt == MESSAGES else 0)


SCORER = FunctionScorer(_score)


def test_one_answer_has_one_reward():
    function = verl_compute_score(SCORER)
    # verl/workers/reward_manager/naive.py and experimental/reward_loop: keywords, with what the data set and the manager add
    more = {"num_turns": None, "rollout_reward_scores": {}}
    found = function(data_source="x", solution_str="Ho.", ground_truth="", extra_info={"prompt": MESSAGES, **more})
    assert found == 103.0
    assert type(found) is float
    as_array = {"prompt": np.array(MESSAGES, dtype=object)}  # as Parquet files give it
    assert function("x", "Ho.", "", as_array, reward_router_address="x") == 103.0
    assert verl_compute_score(SCORER, prompt_key="question")("x", "Ho.", "", {"question": "Hi?"}) == 3.0


def test_what_each_term_added_stands_beside_the_score():
    function = verl_compute_score(SCORER, Shaping([Clip(low=0, high=2)]), with_terms=True)
    assert function("x", "Ho.", "", {"prompt": "Hi?"}) == {"score": 2.0, "rm_score": 3.0, "clip": -1.0}


def test_a_coroutine_is_one_to_verl_and_gives_the_same():
    function = verl_async_compute_score(SCORER)
    assert inspect.iscoroutinefunction(function)  # how verl tells

    async def several():
        asked = [
            function(data_source="x", solution_str="o" * n, ground_truth="", extra_info={"prompt": "Hi?"})
            for n in (1, 2)
        ]
        return await asyncio.gather(*asked)

    assert asyncio.run(several()) == [1.0, 2.0]


def test_a_batch_is_scored_in_one_call():
    scorer = likes_long_answers()
    function = verl_batch_compute_score(scorer, Shaping([GroupZScore(scale=False)]))
    answers = ["o" * 100, "o" * 300]
    found = function(
        data_sources=["x"] * 2, solution_strs=answers, ground_truths=[None] * 2, extra_infos=[{"prompt": "Hi?"}] * 2
    )
    assert found == pytest.approx([-1.0, 1.0])
    assert scorer.calls == [2]
    with pytest.raises(DataError, match="1 extra_infos"):
        function(["x"] * 2, answers, [None] * 2, [{"prompt": "Hi?"}])


def test_an_absent_prompt_is_an_error_and_never_an_empty_one():
    function = verl_compute_score(constant())
    for info in (None, {}, {"question": "Hi?"}, {"prompt": None}):
        with pytest.raises(DataError, match="prompt_key"):
            function("x", "Ho.", "", info)
    with pytest.raises(SettingsError, match="token ids"):
        function("x", [1, 2], "", {"prompt": "Hi?"})
    with pytest.raises(SettingsError, match="token ids"):
        function("x", "Ho.", "", {"prompt": [1, 2]})


def test_steps_that_ask_for_what_verl_does_not_tell_are_refused():
    for step in (LengthPenalty(cost=1), MissingEnd(penalty=1), GroupZScore()):
        with pytest.raises(SettingsError, match="does not tell"):
            verl_compute_score(constant(), Shaping([step]))


def test_functions_travel_to_other_processes():
    asked = {"data_source": "x", "solution_str": "Ho.", "ground_truth": "", "extra_info": {"prompt": MESSAGES}}
    assert pickle.loads(pickle.dumps(verl_compute_score(SCORER)))(**asked) == 103.0
    assert asyncio.run(pickle.loads(pickle.dumps(verl_async_compute_score(SCORER)))(**asked)) == 103.0


def test_a_dead_server_is_an_error_within_its_tries():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scorer = RemoteScorer(f"http://127.0.0.1:{port}", tries=2)
    with pytest.raises(RemoteError, match="none in 2 tries"):
        verl_compute_score(scorer)("x", "Ho.", "", {"prompt": "Hi?"})
    with pytest.raises(RemoteError, match="none in 2 tries"):
        asyncio.run(verl_async_compute_score(scorer)("x", "Ho.", "", {"prompt": "Hi?"}))
