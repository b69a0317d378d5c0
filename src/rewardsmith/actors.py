"""Actors on Ray, each with the model, that take one part of a source after the other (`parts` says what a part is): how many there are, what they are told and what they say."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rewardsmith.errors import (
    MissingExtraError,
    ModelError,
    OutputError,
    RewardsmithError,
    SettingsError,
    WorkerError,
)
from rewardsmith.loading import Running
from rewardsmith.parts import Part, RawRows, score_part
from rewardsmith.streaming import Scored

LOCAL = "local"
"""The address of a Ray on this machine, for one call."""
_PATIENCE = 5.0
# Ray starts dead actors again without end. A process that dies so often in a row while it loads the model, or with the same part in hand, would die once more.
_TRIES = 4


@dataclass(frozen=True)
class Pool:
    """How many actors there are and what each gets.

    Args:
        actors: processes with a model.
        threads: processor threads of each.
        gpus: of each, 0 or 1.
    """

    actors: int
    threads: int
    gpus: int


def share_out(machines: Sequence[tuple[float, float]], *, actors: int | None, threads: int | None, device: str) -> Pool:
    """Actors and their threads, by (cores, GPUs) of each machine: as many threads as there are cores for every actor on its machine.

    Unless it is said, one actor a GPU where there are any and they may be used, else two a machine.

    Raises:
        SettingsError: if so many do not fit.

    >>> share_out([(16, 0), (8, 0)], actors=3, threads=None, device="auto")
    Pool(actors=3, threads=8, gpus=0)
    """
    every_gpu = sum(int(gpus) for _, gpus in machines)
    per_actor = int(device == "cuda" or (device == "auto" and every_gpu > 0))

    def fitting(each: int) -> int:
        return sum(min(int(cores // each), int(gpus) if per_actor else int(cores)) for cores, gpus in machines)

    most = fitting(threads or 1)
    wanted = actors or (every_gpu if per_actor else min(2 * len(machines), most))
    if not 0 < wanted <= most:
        each = f"{threads or 1} core(s)" + (" and a GPU" if per_actor else "")
        raise SettingsError(
            f"room for {max(1, wanted)} actor(s) of {each} each",
            f"machines with (cores, GPUs) of {[(int(cores), int(gpus)) for cores, gpus in machines]}, which hold {most}",
            "Ask for fewer --actors or --threads" + (", or --device cpu." if per_actor else "."),
        )
    if threads is None:
        threads = next(
            each for each in range(int(max(cores for cores, _ in machines)), 0, -1) if fitting(each) >= wanted
        )
    return Pool(wanted, threads, per_actor)


@dataclass(frozen=True)
class Job:
    """What every actor is told; all paths are absolute, because its working folder is another one.

    Args:
        model: a MODEL argument.
        files: what the model's files must hash to, as far as it says so itself.
        running: how it runs.
        out: the folder of results.
        kind: of rows.
        block: raw rows that are scored together.
        skip_bad: count malformed rows.
    """

    model: str
    files: Mapping[str, str]
    running: Running
    out: str
    kind: str
    block: int
    skip_bad: bool


@dataclass(frozen=True)
class Report:
    """What an actor says of a part.

    Args:
        actor: its lasting name.
        process: of its present life.
        began: by the clock of its machine.
        ended: likewise.
        precision: how the model computes.
        warnings: that loading the model gave.
        done: counts.
        error: instead of them.
    """

    actor: str
    process: str
    began: float = 0.0
    ended: float = 0.0
    precision: Mapping[str, object] | None = None
    warnings: Sequence[str] = ()
    done: Scored | None = None
    error: RewardsmithError | None = None


def require_ray() -> None:
    """Raise MissingExtraError where Ray is not installed."""
    if find_spec("ray") is None:
        raise MissingExtraError("scoring on a cluster", "ray", "ray")


def check_address(address: str) -> None:
    """Refuse an address at which nothing listens; Ray itself would try for two minutes.

    Raises:
        SettingsError: saying what came.
    """
    if address in (LOCAL, "auto"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    try:
        if not (host and colon and port.isdecimal()):
            raise ValueError("no HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, came: str) -> SettingsError:
    return SettingsError(
        "--ray local, --ray auto on a machine of a running cluster, or its address HOST:PORT",
        f"{address!r} ({came})",
        "Start one with `ray start --head`, or write --ray local.",
    )


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Ray for the block; it tells nobody that it is used, and is left alone if it was there before. Its news of dead workers go to stderr."""
    import logging
    import sys

    # Ray's own noise; whoever wants it sets these.
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    for logger in ("ray", "ray.data"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):
        if ray.is_initialized():
            yield
        else:
            with _started(address):
                yield


@contextlib.contextmanager
def _started(address: str) -> Iterator[None]:
    import logging

    import ray

    own: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, (str(error).splitlines() or [type(error).__name__])[0]) from error
    try:
        yield
    finally:
        ray.shutdown()


def pool_for(running: Running, *, actors: int | None, parts: int) -> Pool:
    """As many actors as so many parts need on the Ray that this process is connected to.

    Args:
        running: how the model runs; its threads are those of each actor.
        actors: see `share_out`.
        parts: that are to be scored.

    Raises:
        SettingsError: if they do not fit.
    """
    import ray

    machines = [
        (node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in ray.nodes() if node["Alive"]
    ]
    pool = share_out(machines, actors=actors, threads=running.threads, device=running.settings.device)
    return replace(pool, actors=min(pool.actors, parts))


def reports(job: Job, parts: Sequence[Part], pool: Pool) -> Iterator[Report]:
    """Have the parts scored by a pool; what is said of each, in the order in which they are done.

    Args:
        job: what every actor is told.
        parts: to be scored.
        pool: how many actors, of what size.

    Raises:
        RewardsmithError: the first that an actor answers with.
        WorkerError: if actors cannot be kept alive.
    """
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a part of a large model may take longer than any limit
    items = [{"part": pickle.dumps(part)} for part in parts]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Actor,
        fn_constructor_args=[replace(job, running=replace(job.running, threads=pool.threads))],
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=pool.actors),
        num_cpus=pool.threads,
        num_gpus=pool.gpus,
    )
    try:
        for row in dataset.iter_rows():
            report: Report = pickle.loads(row["report"])
            if report.error is not None:
                raise report.error
            yield report
    except ray.exceptions.RayError as error:
        raise WorkerError(
            "a cluster that goes on",
            f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            "The same command goes on with what is missing.",
        ) from error


class _Actor:
    """Loads the model once. An error of ours is its answer and not its end, for it would come again.

    That Ray restarts a dead actor, and gives it its part again, is Ray Data's own habit.
    """

    def __init__(self, job: Job) -> None:
        import ray

        self._job, self._rows = job, RawRows()
        self._report = Report(actor=str(ray.get_runtime_context().get_actor_id()), process=uuid.uuid4().hex)
        self._loading = Path(job.out) / f".tries-{self._report.actor}"
        try:
            self._load()
        except RewardsmithError as error:
            self._report = replace(self._report, error=error)
        except Exception as error:  # left to Ray, its cause would be lost
            came, mend = (
                f"{type(error).__name__}: {error}",
                "Mend it, or give each actor more memory: it would fail again.",
            )
            self._report = replace(self._report, error=WorkerError("a model that loads", came, mend))

    def _load(self) -> None:
        job = self._job
        if not Path(job.out).is_dir():
            came, mend = f"a machine without {Path(job.out).name}", "Choose one on a disk that all share."
            raise OutputError("a folder --out that every machine sees", came, mend)
        if _count_try(self._loading) > _TRIES:
            raise _dies("while it loads the model", "Give each actor more memory: fewer --actors, or larger machines.")
        # The tokenizer's threads are as many as torch's, or the actors of one machine would fight.
        os.environ.setdefault("RAYON_NUM_THREADS", str(job.running.threads))
        with warnings.catch_warnings(record=True) as told:
            warnings.filterwarnings("default", category=UserWarning, module="rewardsmith")
            self._source = job.running.load(job.model)
        if self._source.files and job.files and dict(self._source.files) != dict(job.files):
            came = f"another {self._source.name} on one of them"
            raise ModelError("the same model on every machine", came, "Copy the folder there again.")
        said = [str(one.message) for one in told if "rewardsmith" in one.filename]
        self._report = replace(self._report, precision=dict(self._source.precision), warnings=said)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"report": [pickle.dumps(self._scored(pickle.loads(part))) for part in batch["part"]]}

    def _scored(self, part: Part) -> Report:
        if self._report.error is not None:
            return self._report
        began, job = time.time(), self._job
        self._loading.unlink(missing_ok=True)
        tries = Path(job.out) / f".tries-{part.number:05d}"
        try:
            if _count_try(tries) > _TRIES:
                # Its real ends lie a little further on, behind the prompts that these rows would cut.
                rows = f"raw rows {part.first + 1:,} to {part.until:,} of {Path(part.file).name}, or what follows of their last prompt,"
                raise _dies(f"with {rows} in hand", "Look at these rows; else give each actor more memory.")
            done = score_part(
                self._source.scorer,
                part,
                self._rows,
                Path(job.out),
                kind=job.kind,
                block=job.block,
                skip_bad=job.skip_bad,
            )
        except RewardsmithError as error:
            return replace(self._report, error=error)
        except Exception as error:  # of the scorer's own code: left to Ray, its cause would be lost
            came, mend = f"{type(error).__name__}: {error}", "Mend it; it would fail again."
            return replace(self._report, error=WorkerError("a scorer that answers", came, mend))
        tries.unlink(missing_ok=True)
        return replace(self._report, done=done, began=began, ended=time.time())


def _count_try(place: Path) -> int:
    """How often this was begun, this time included, without coming to its end."""
    with open(place, "ab") as file:
        file.write(b".")
        return file.tell()


def _dies(when: str, mend: str) -> WorkerError:
    return WorkerError("workers that live", f"{_TRIES} that died {when}", mend)
