"""What the engine promises whoever asks at the same time: every text its own score, no one starved, nothing held beyond the limits, no one waited for who has left."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rewardsmith.errors import LengthError, RewardsmithError
from rewardsmith.serving.engine import DeadlinePassed, Engine, Limits, QueueFull, Stopping
from rewardsmith.serving.memory import Reclaimer
from tests.serving.conftest import Reader


def run(scorer, use, *, batch_tokens=1000, queue_texts=1000, max_wait=0.0, seen=None):
    """What `use(engine)` returns on a loop of its own."""

    async def main():
        with ThreadPoolExecutor(1) as runner:
            limits = Limits(batch_tokens, queue_texts, max_wait)
            engine = Engine(scorer, limits, runner=runner, on_batch=None if seen is None else seen.append)
            engine.start()
            try:
                async with asyncio.timeout(60):
                    return await use(engine)
            finally:
                if isinstance(scorer, Reader) and scorer.gate is not None:
                    scorer.gate.set()
                await engine.stop()
                assert engine.texts_held == 0

    return asyncio.run(main())


def texts(*numbers, width=4):
    """Pairs whose answers hold these numbers, of `width` tokens each."""
    return [("prompt", f"{number:0{width}d}") for number in numbers]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_every_request_gets_its_own_scores_in_its_own_order():
    async def use(engine):
        asked = [list(range(100 * i, 100 * i + 1 + i % 7)) for i in range(50)]
        tables = await asyncio.gather(*(engine.score(texts(*numbers), deadline=60) for numbers in asked))
        return asked, tables

    asked, tables = run(Reader(), use, batch_tokens=40)
    assert [table.score.tolist() for table in tables] == [[float(n) for n in numbers] for numbers in asked]


def test_no_batch_has_more_tokens_than_the_budget_unless_one_text_alone_has():
    seen = []

    async def use(engine):
        await asyncio.gather(
            engine.score(texts(*range(25)), deadline=60), engine.score(texts(7, width=300), deadline=60)
        )

    run(Reader(), use, batch_tokens=40, seen=seen)
    assert sum(batch.num_texts for batch in seen) == 26
    assert all(batch.num_tokens <= 40 or batch.num_texts == 1 for batch in seen)
    assert max(batch.num_tokens for batch in seen) == 300


def test_what_arrives_while_the_model_is_busy_makes_one_batch():
    reader = Reader(gate=threading.Event())

    async def use(engine):
        first = asyncio.ensure_future(engine.score(texts(1), deadline=60))
        await until(reader.running.is_set)
        others = [asyncio.ensure_future(engine.score(texts(n), deadline=60)) for n in range(2, 12)]
        await until(lambda: engine.texts_held == 11 and len(engine._queue) == 10)
        reader.gate.set()
        return [await first, *await asyncio.gather(*others)]

    tables = run(reader, use)
    assert reader.batches == [1, 10]
    assert [table.score[0] for table in tables] == list(range(1, 12))


def test_a_long_request_does_not_hold_up_a_short_one():
    reader, order = Reader(gate=threading.Event()), []

    async def named(engine, name, inputs):
        await engine.score(inputs, deadline=60)
        order.append(name)

    async def use(engine):
        blocking = asyncio.ensure_future(named(engine, "blocking", texts(0)))
        await until(reader.running.is_set)
        long = asyncio.ensure_future(named(engine, "long", texts(*range(100))))
        await until(lambda: len(engine._queue) == 1)
        short = asyncio.ensure_future(named(engine, "short", texts(5)))
        await until(lambda: len(engine._queue) == 2)
        reader.gate.set()
        await asyncio.gather(blocking, long, short)

    run(reader, use, batch_tokens=40)
    assert order == ["blocking", "short", "long"]
    # Of the next batch of 40 tokens each may have a half: 5 texts of the long request, the one of the short request; 4 more of the long one fill it.
    assert reader.batches[1] == 10


def test_a_request_that_is_cancelled_leaves_the_line_and_blocks_nobody():
    reader = Reader(gate=threading.Event())

    async def use(engine):
        first = asyncio.ensure_future(engine.score(texts(1), deadline=60))
        await until(reader.running.is_set)
        leaving = asyncio.ensure_future(engine.score(texts(*range(10, 20)), deadline=60))
        staying = asyncio.ensure_future(engine.score(texts(2), deadline=60))
        await until(lambda: len(engine._queue) == 2)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert engine.texts_held == 2
        reader.gate.set()
        return await first, await staying

    first, staying = run(reader, use)
    assert (first.score.tolist(), staying.score.tolist()) == ([1.0], [2.0])
    assert reader.batches == [1, 1]  # nothing of the one that left was read


def test_a_full_queue_refuses_and_says_when_to_come_back():
    reader = Reader(gate=threading.Event())

    async def use(engine):
        first = asyncio.ensure_future(engine.score(texts(*range(8)), deadline=60))
        await until(reader.running.is_set)
        with pytest.raises(QueueFull) as caught:
            await engine.score(texts(1, 2, 3), deadline=60)
        assert 1 <= caught.value.retry_after <= 60
        fits = asyncio.ensure_future(engine.score(texts(1, 2), deadline=60))
        await until(lambda: engine.texts_held == 10)
        reader.gate.set()
        return await first, await fits

    first, fits = run(reader, use, queue_texts=10)
    assert (len(first), len(fits)) == (8, 2)


def test_a_request_larger_than_the_queue_is_served_when_nobody_else_waits():
    assert len(run(Reader(), lambda engine: engine.score(texts(*range(20)), deadline=60), queue_texts=10)) == 20


def test_a_deadline_ends_a_request_and_frees_its_place():
    reader = Reader(gate=threading.Event())

    async def use(engine):
        with pytest.raises(DeadlinePassed, match=r"0\.05 s"):
            await engine.score(texts(1), deadline=0.05)
        assert engine.texts_held == 0
        reader.gate.set()
        return await engine.score(texts(2), deadline=60)

    assert run(reader, use).score.tolist() == [2.0]


def test_stopping_answers_what_was_accepted_and_refuses_the_rest():
    reader = Reader(gate=threading.Event())

    async def use(engine):
        accepted = [asyncio.ensure_future(engine.score(texts(n), deadline=60)) for n in range(5)]
        await until(reader.running.is_set)
        stopping = asyncio.ensure_future(engine.stop())
        await asyncio.sleep(0)
        with pytest.raises(Stopping):
            await engine.score(texts(9), deadline=60)
        reader.gate.set()
        await stopping
        return [await one for one in accepted]

    assert [table.score[0] for table in run(reader, use)] == [0, 1, 2, 3, 4]


def test_only_the_request_whose_text_is_at_fault_fails():
    def number(text):
        if text == "0013":
            raise LengthError("texts that fit", "one that does not", "Cut it.")
        return float(text)

    reader = Reader(number, gate=threading.Event())

    async def use(engine):
        first = asyncio.ensure_future(engine.score(texts(1), deadline=60))
        await until(reader.running.is_set)
        others = [asyncio.ensure_future(engine.score(texts(n), deadline=60)) for n in (12, 13, 14)]
        await until(lambda: len(engine._queue) == 3)
        reader.gate.set()
        await first
        return await asyncio.gather(*others, return_exceptions=True)

    before, fault, after = run(reader, use)
    assert (before.score.tolist(), after.score.tolist()) == ([12.0], [14.0])
    assert isinstance(fault, LengthError)


def test_a_scorer_that_loses_a_text_is_an_error_and_not_a_shift_of_scores():
    class Losing(Reader):
        def score_encoded(self, texts):
            return super().score_encoded(texts[:-1] if len(texts) > 1 else texts)

    with pytest.raises(RewardsmithError, match="3 scores"):
        run(Losing(), lambda engine: engine.score(texts(1, 2, 3), deadline=60))


def test_no_inputs_give_no_scores():
    table = run(Reader(), lambda engine: engine.score([], deadline=60))
    assert len(table) == 0 and table.score.dtype == np.float32


def test_freed_memory_is_given_back_between_batches_in_the_thread_of_the_model():
    trimmed = []

    async def main(interval):
        reclaimer = Reclaimer(interval, lambda _: trimmed.append(threading.current_thread().name))
        with ThreadPoolExecutor(1, thread_name_prefix="model") as runner:
            engine = Engine(Reader(), Limits(1000, 1000, 0.0), runner=runner, reclaimer=reclaimer)
            engine.start()
            for number in range(3):
                await engine.score(texts(number), deadline=60)
            await engine.stop()

    asyncio.run(main(3600))
    assert not trimmed, "before its time"
    asyncio.run(main(0))
    # The last batch may be followed by the end of the engine first.
    assert len(trimmed) in (2, 3) and all(name.startswith("model") for name in trimmed)


def test_a_process_that_has_freed_memory_scattered_between_what_lives_on_shrinks():
    """200 MB in blocks of 4 KB of which every tenth lives on: glibc alone gives none of the rest back."""
    import psutil

    if not Reclaimer(0).due:
        pytest.skip("the C library is not glibc")
    blocks = [bytearray(4000) for _ in range(50_000)]
    del blocks[-1]
    held = blocks[::10]
    del blocks
    before = psutil.Process().memory_info().rss
    Reclaimer(0)()
    assert psutil.Process().memory_info().rss < before - 50 * 2**20 and len(held) == 5000
