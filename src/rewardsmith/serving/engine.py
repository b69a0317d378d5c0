"""Batches across requests: whoever asks, texts wait in one line and the model reads as many at once as its token budget takes.

The model runs in a thread of its own and the texts are tokenised in another, so that the event loop is always free to answer. While the model is busy,
requests pile up and make the next batch; when it is idle, a request starts at once. A long request gives way after its share of a batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rewardsmith.errors import RewardsmithError
from rewardsmith.scores import EncodedText, Input, ScoreTable, TextScorer
from rewardsmith.serving.memory import Reclaimer

_LONGEST_RETRY = 60


class Refused(Exception):
    """A request that is not served; it may well be later."""


class QueueFull(Refused):
    """As many texts wait as may; `retry_after` is a guess in whole seconds of when there is room."""

    def __init__(self, retry_after: int) -> None:
        """Keep the guess."""
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class Stopping(Refused):
    """The server finishes what it has accepted and takes no more."""


class DeadlinePassed(Refused):
    """The request waited longer than it may."""


@dataclass(frozen=True)
class Limits:
    """What one engine may hold and do.

    Args:
        batch_tokens: tokens of one batch; one text alone may have more.
        queue_texts: texts that may be held, from all requests: read, waiting or being scored.
        max_wait: seconds for which a batch that is not full waits for more, while several clients are active.
    """

    batch_tokens: int
    queue_texts: int
    max_wait: float


@dataclass(frozen=True)
class Batch:
    """What the model read at once, for the metrics."""

    num_texts: int
    num_tokens: int
    num_requests: int
    seconds: float


@dataclass(eq=False)
class _Request:
    """Texts of one request, those that are not in a batch yet, and the scores so far."""

    texts: list[EncodedText]
    result: asyncio.Future[ScoreTable]
    taken: int = 0
    parts: list[ScoreTable] = field(default_factory=list)

    def take(self, share: int, room: int, *, alone: bool) -> tuple[list[EncodedText], int]:
        """The next texts, at least one: up to `share` tokens and within `room`, unless the batch is theirs alone; with their tokens."""
        stop, tokens = self.taken, 0
        while stop < len(self.texts):
            more = self.texts[stop].num_tokens
            first = stop == self.taken
            if (not first and tokens + more > share) or (tokens + more > room and not (first and alone)):
                break
            stop, tokens = stop + 1, tokens + more
        texts, self.taken = self.texts[self.taken : stop], stop
        return texts, tokens

    def give(self, table: ScoreTable) -> None:
        """Scores of the texts that were taken first and had none yet."""
        self.parts.append(table)
        if sum(map(len, self.parts)) == len(self.texts) and not self.result.done():
            self.result.set_result(ScoreTable.join(self.parts))

    def fail(self, error: BaseException) -> None:
        """End the request; the rest of its texts is not scored."""
        if not self.result.done():
            self.result.set_exception(error)


@dataclass(frozen=True)
class _Share:
    """What one request has in a batch."""

    request: _Request
    texts: list[EncodedText]


class Engine:
    """Scores requests of one model; all methods are called on one event loop.

    Args:
        scorer: reads and scores.
        limits: see there.
        runner: the thread in which models run; engines that share it take turns.
        on_batch: is told of every batch.
        reclaimer: gives memory back between batches; engines of one process share it.
    """

    def __init__(
        self,
        scorer: TextScorer,
        limits: Limits,
        *,
        runner: ThreadPoolExecutor,
        on_batch: Callable[[Batch], None] | None = None,
        reclaimer: Reclaimer | None = None,
    ) -> None:
        """Nothing runs before `start`."""
        self.scorer, self.limits, self._reclaimer = scorer, limits, reclaimer
        self._runner, self._on_batch = runner, on_batch
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read")
        self._queue: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._texts_a_second = 0.0
        self.texts_held = 0

    def start(self) -> None:
        """Begin to score."""
        self._worker = asyncio.create_task(self._work())

    @property
    def alive(self) -> bool:
        """Whether requests are being scored; false before `start`, after `stop`, and if our own code broke."""
        return self._worker is not None and not self._worker.done()

    async def stop(self) -> None:
        """Refuse new requests, finish those that were accepted, and end."""
        self._stopping = True
        await self._idle.wait()
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        self._reader.shutdown()

    async def score(self, inputs: Sequence[Input], *, deadline: float) -> ScoreTable:
        """Scores of the inputs, in their order; cancelled, the request leaves the queue.

        Args:
            inputs: any number of them.
            deadline: seconds.

        Raises:
            Refused: (one of its kinds) if the queue is full, the engine stops or the deadline passes.
            RewardsmithError: if an input cannot be read or its score is not finite.
        """
        if self._stopping:
            raise Stopping("the server is stopping")
        if self.texts_held and self.texts_held + len(inputs) > self.limits.queue_texts:
            raise QueueFull(self._retry_after())
        if not inputs:
            return ScoreTable.empty()
        self.texts_held += len(inputs)
        self._idle.clear()
        try:
            async with asyncio.timeout(deadline):
                loop = asyncio.get_running_loop()
                texts = await loop.run_in_executor(self._reader, self.scorer.encode, inputs)
                request = _Request(texts, loop.create_future())
                self._queue.append(request)
                self._arrived.set()
                return await request.result
        except TimeoutError as error:
            raise DeadlinePassed(f"no score within {deadline:g} s") from error
        finally:
            self.texts_held -= len(inputs)
            if not self.texts_held:
                self._idle.set()

    def _retry_after(self) -> int:
        rate = self._texts_a_second or 1.0
        return max(1, min(_LONGEST_RETRY, math.ceil(self.texts_held / rate)))

    async def _work(self) -> None:
        crowded = False
        while True:
            await self._arrived.wait()
            if crowded and self._tokens_waiting() < self.limits.batch_tokens:
                await asyncio.sleep(self.limits.max_wait)
            batch = self._next_batch()
            if not batch:
                self._arrived.clear()
                crowded = False
                continue
            crowded = len({id(share.request) for share in batch}) > 1
            await self._run(batch)
            if self._reclaimer is not None and self._reclaimer.due:
                await asyncio.get_running_loop().run_in_executor(self._runner, self._reclaimer)

    def _tokens_waiting(self) -> int:
        """Tokens of the texts that wait, counted until they fill a batch."""
        tokens = 0
        for request in self._queue:
            for text in request.texts[request.taken :]:
                tokens += text.num_tokens
                if tokens >= self.limits.batch_tokens:
                    return tokens
        return tokens

    def _next_batch(self) -> list[_Share]:
        """Requests in their order, each with an even share of the budget; what is left of it goes round again."""
        self._queue = deque(request for request in self._queue if not request.result.done())
        room = self.limits.batch_tokens
        share = room // max(1, len(self._queue))
        batch: list[_Share] = []
        while self._queue:
            texts, tokens = self._queue[0].take(share, room, alone=not batch)
            if not texts:
                break
            request = self._queue.popleft()
            batch.append(_Share(request, texts))
            room -= tokens
            if request.taken < len(request.texts):
                self._queue.append(request)
        return batch

    async def _run(self, batch: list[_Share]) -> None:
        texts = [text for share in batch for text in share.texts]
        start = time.perf_counter()
        try:
            table = await self._scored(texts)
        except Exception as error:
            await self._run_apart(batch, error)
            return
        seconds = time.perf_counter() - start
        self._texts_a_second = len(texts) / max(seconds, 1e-9)
        first = 0
        for share in batch:
            share.request.give(table.take(slice(first, first + len(share.texts))))
            first += len(share.texts)
        if self._on_batch is not None:
            tokens = sum(text.num_tokens for text in texts)
            self._on_batch(Batch(len(texts), tokens, len({id(share.request) for share in batch}), seconds))

    async def _run_apart(self, batch: list[_Share], error: Exception) -> None:
        """Only the request whose text is at fault fails: each is tried alone where several were read together."""
        if len(batch) == 1:
            batch[0].request.fail(error)
            return
        for share in batch:
            try:
                share.request.give(await self._scored(share.texts))
            except Exception as own:
                share.request.fail(own)

    async def _scored(self, texts: list[EncodedText]) -> ScoreTable:
        table = await asyncio.get_running_loop().run_in_executor(self._runner, self.scorer.score_encoded, texts)
        if len(table) != len(texts):
            raise RewardsmithError(f"{len(texts)} scores", str(len(table)), "Mend the scorer.")
        return table
