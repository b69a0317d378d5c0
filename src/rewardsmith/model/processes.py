"""Several processes that train one model: how they meet, what they tell each other, and what is said when one of them is lost.

`torchrun` and `accelerate launch` start the processes and tell each its place by the environment; alone, every function here does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from rewardsmith import launched
from rewardsmith.errors import SettingsError, TrainingStopped
from rewardsmith.model.render import TokenTable

Shared = TypeVar("Shared")
# What torch's transports say when the other end is gone; they have no error class of their own for it.
_LOST = (
    "closed by peer",
    "Connection reset",
    "Connection refused",
    "Broken pipe",
    "Socket Timeout",
    "Timed out waiting",
    "remote process exited",
    "NCCL communicator was aborted",
    "failed to recv",
    "store->get",
)


def join(device: torch.device, *, seconds: float) -> None:
    """Meet the other processes, if there are any.

    Args:
        device: what this process computes on; of several GPUs it takes the one of its place on this machine.
        seconds: how long it waits for the others before it gives up.
    """
    if launched.count() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    except ValueError as error:  # a name that torchrun sets is not there
        raise SettingsError(
            f"the environment that torchrun gives each of {launched.count()} processes",
            str(error).splitlines()[0][:200],
            "Start all of them with torchrun or accelerate launch.",
        ) from error
    except dist.DistError as error:
        raise TrainingStopped(
            f"all {launched.count()} processes to meet within {seconds:g} s",
            f"process {launched.place()} waited for others in vain ({str(error).splitlines()[0][:200]})",
            "Look for the first error among the others' messages; trainer.ddp_timeout sets how long is waited.",
        ) from error


def leave() -> None:
    """Part from the other processes: what follows is for the first one alone."""
    if launched.count() > 1 and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


@contextlib.contextmanager
def losing_none() -> Iterator[None]:
    """Turn a broken connection into words: its own text names sockets, not what happened.

    Raises:
        TrainingStopped: if another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_loss(error):
            raise
        raise TrainingStopped(
            f"all {launched.count()} processes to the end",
            f"none of at least one: process {launched.place()} lost its connection ({str(error).splitlines()[0][:200]})",
            "Look for the first error among the others' messages (killed for memory?); the same command goes on from the last good checkpoint.",
        ) from error


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    return launched.count() > 1 and isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST)


def wait() -> None:
    """Until all are here."""
    if launched.count() > 1:
        dist.barrier()


def share(value: Shared) -> Shared:
    """The first process's value."""
    if launched.count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sums(numbers: Sequence[float]) -> list[float]:
    """Each number summed over the processes, in float64: a mean over all is a sum over a sum, never a mean of means."""
    return _reduced(numbers, dist.ReduceOp.SUM)


def _reduced(numbers: Sequence[float], how: Any) -> list[float]:
    if launched.count() == 1:
        return list(numbers)
    total = torch.tensor(numbers, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        total = total.cuda()
    dist.all_reduce(total, how)
    return [float(x) for x in total.tolist()]


def largest(numbers: Sequence[float]) -> list[float]:
    """The largest of each number over the processes."""
    return _reduced(numbers, dist.ReduceOp.MAX)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Make the gradients of parameters that every process holds whole their mean over the processes. What was averaged before may have been added to."""
    if launched.count() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= launched.count()


def share_of(rows: NDArray[np.int64], *, rank: int, ranks: int) -> NDArray[np.int64]:
    """The rows of a step that one process reads: neighbours, and at most one more than any other process.

    >>> [share_of(np.arange(5), rank=rank, ranks=2).tolist() for rank in (0, 1)]
    [[0, 1, 2], [3, 4]]
    """
    return np.array_split(rows, ranks)[rank]


def read_in_shares(
    table: TokenTable, read: Callable[[TokenTable], NDArray[np.float32]], *, width: int
) -> NDArray[np.float32]:
    """What `read` says of each text, float32 (n, width): every process reads its share, and all get the whole, by row.

    Texts of equal ids are read once, by one process, and so stay an exact tie.

    Args:
        table: the texts, the same in every process.
        read: some texts -> (their number, width).
        width: numbers a text.
    """
    if launched.count() == 1:
        return read(table)
    _, first, copies = np.unique(table.digests(), return_index=True, return_inverse=True)
    order = np.argsort(first)  # neighbours may share a prompt
    costs = np.cumsum(table.lengths[first[order]], dtype=np.float64)
    # Cuts where the tokens before them are a rank's share of all.
    cuts = np.searchsorted(costs, costs[-1] * np.arange(1, launched.count()) / launched.count())
    mine = np.split(order, cuts)[launched.place()]
    found = read(table.take(first[mine]))
    shares: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = [None] * launched.count()  # type: ignore[list-item]
    dist.all_gather_object(shares, (mine, found))
    return _placed(shares, len(first), width)[copies]


def _placed(
    shares: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]], total: int, width: int
) -> NDArray[np.float32]:
    places = np.concatenate([rows for rows, _ in shares])
    assert np.array_equal(np.sort(places), np.arange(total)), "a text was read twice, or not at all"
    outputs = np.zeros((total, width), dtype=np.float32)
    outputs[places] = np.concatenate([found for _, found in shares])
    return outputs


def mean(number: float) -> float:
    """The mean over the processes of a number that each of them has."""
    return sums([number])[0] / launched.count()
