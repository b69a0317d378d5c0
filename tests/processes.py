"""Processes that train together, as `torchrun` starts them, and what tests have them do."""

import contextlib
import io
import multiprocessing
import os
import signal
import socket

from rich.console import Console
from torch.nn import functional

import rewardsmith
from rewardsmith.errors import TrainingStopped
from rewardsmith.model.network import Network
from rewardsmith.model.trainer import PreferenceTrainer

KEPT: list[object] = []
"""Alive until the process ends, which forgets it without its destructor: torch's waits for gloo's thread with the interpreter's lock held, which that thread may want."""


def free_port():
    with contextlib.closing(socket.socket()) as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def one_of(work, rank, ranks, port, arguments):
    """A process as `torchrun` starts it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    work(rank, *arguments)


def together(work, *arguments, ranks=2):
    """The exit codes of processes that do `work(rank, *arguments)` together."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["rewardsmith.model.training", "rewardsmith.model.reward_model"])
    port = free_port()
    all_of_them = [server.Process(target=one_of, args=(work, r, ranks, port, arguments)) for r in range(ranks)]
    for one in all_of_them:
        one.start()
    for one in all_of_them:
        one.join(timeout=60)
    codes = [one.exitcode for one in all_of_them]
    for one in all_of_them:
        one.kill()
    return codes


def recipe(model, data, out, **more):
    trainer = {"save_steps": 4, "logging_steps": 1, **more.pop("trainer", {})}
    return {
        "model": model,
        "data": data,
        "out": str(out),
        "max_length": 64,
        "learning_rate": 1e-3,
        "batch_size": 8,
        "dev_share": 0.2,
        "epochs": 2,
        "precision": "float32",
        "device": "cpu",
        "trainer": trainer,
        **more,
    }


def trains(rank, settings, folder):
    said = io.StringIO()
    report = rewardsmith.train(settings, console=Console(file=said, width=200))
    (folder / f"said-{rank}").write_text(said.getvalue() + ("report" if report else "no report"))


class Doubled(Network):
    """A network all of whose arithmetic is in float64; ours is not, for the head is float32."""

    def outputs(self, batch):
        states = self.model.bert(input_ids=batch.input_ids, attention_mask=batch.attention_mask).pooler_output
        return functional.linear(states, self.head_module.weight, self.head_module.bias)


def is_killed(rank, settings, folder):
    """The second one dies in its fourth step; the first one says what it has noticed."""
    if rank == 1:
        step = PreferenceTrainer.training_step

        def dies(self, *arguments, **more):
            if self.state.global_step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *arguments, **more)

        PreferenceTrainer.training_step = dies
    try:
        rewardsmith.train(settings, console=Console(quiet=True))
    except TrainingStopped as error:
        (folder / "error").write_text(str(error))
