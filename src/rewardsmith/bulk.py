"""Bulk scoring on Ray Data: a pool of actors, each with the model, takes one part of a source after the other (`parts` says what a part is).

The folder of results is the only record of what is done: a part's file stands there whole or not at all, and is the same whoever wrote it. So a worker that dies costs
what it had in hand, a part that is done twice is there once, and the same command over an unfinished folder does what is missing.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rewardsmith.data import io
from rewardsmith.data.sources import files_of, refuse_among, source_identity, source_name
from rewardsmith.errors import (
    MissingExtraError,
    ModelError,
    OutputError,
    RewardsmithError,
    RowError,
    SettingsError,
    WorkerError,
)
from rewardsmith.functions import is_function
from rewardsmith.loading import Running, load_source
from rewardsmith.manifest import Manifest
from rewardsmith.parts import Part, RawRows, added, counts, kind_of, plan, read_counts, score_part
from rewardsmith.remote import is_url
from rewardsmith.storage import folder_lock
from rewardsmith.streaming import WINDOW, Scored, per_second

LOCAL = "local"
RECORD = "_manifest.json"
"""Its name begins like those that readers of Parquet folders leave out."""
SMALLEST_BLOCK = 256
_PARTS_AN_ACTOR = 16
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


class _Actor:
    """Loads the model once. An error of ours is its answer and not its end, for it would come again.

    That Ray restarts a dead actor, and gives it its part again, is Ray Data's own habit.
    """

    def __init__(self, job: Job) -> None:
        import ray

        self._job, self._rows = job, RawRows()
        self._report = Report(actor=str(ray.get_runtime_context().get_actor_id()), process=uuid.uuid4().hex)
        if not Path(job.out).is_dir():
            needed, mend = "a folder --out that every machine sees", "Choose one on a disk that all share."
            self._report = replace(
                self._report, error=OutputError(needed, f"a machine without {Path(job.out).name}", mend)
            )
            return
        self._loading = Path(job.out) / f".tries-{self._report.actor}"
        if _count_try(self._loading) > _TRIES:
            error = _dies(
                "while it loads the model", "Give each actor more memory: fewer --actors, or larger machines."
            )
            self._report = replace(self._report, error=error)
            return
        # The tokenizer's threads are as many as torch's, or the actors of one machine would fight.
        os.environ.setdefault("RAYON_NUM_THREADS", str(job.running.threads))
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.filterwarnings("default", category=UserWarning, module="rewardsmith")
                self._source = job.running.load(job.model)
        except RewardsmithError as error:
            self._report = replace(self._report, error=error)
            return
        if self._source.files and job.files and dict(self._source.files) != dict(job.files):
            other = f"another {self._source.name} on one of them"
            different = ModelError("the same model on every machine", other, "Copy the folder there again.")
            self._report = replace(self._report, error=different)
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
                rows = f"raw rows {part.first + 1:,} to {part.until:,} of {Path(part.file).name}"
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


def score_folder(
    model: str,
    data: str,
    out: Path,
    *,
    running: Running,
    address: str = LOCAL,
    actors: int | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    block: int | None = None,
    on_part: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Score a source into a folder of Parquet files, one row an input row; an unfinished folder of the same work is gone on with.

    Args:
        model: a folder, the URL of a server, or FILE.py:FUNCTION.
        data: a file, a folder or glob of files, or a dataset by its name.
        out: the folder, which is whole when its record says `finished`.
        running: how the model runs; its threads are those of each actor.
        address: of a Ray cluster, or "local": on this machine, for this call. A Ray that this process is connected to is used as it is.
        actors: see `share_out`.
        skip_bad: count malformed rows instead of stopping at one.
        overwrite: delete what an earlier call left.
        block: raw rows that are scored together; by the size of the source where None.
        on_part: is told the rows done so far.

    Returns:
        The document of `score --json`.

    Raises:
        RewardsmithError: (one of its kinds) saying what is wrong with settings, data, model, folder or cluster.
    """
    require_ray()
    check_address(address)
    check_folder(out, data, overwrite=overwrite)
    model = _absolute(model)
    files = [(_absolute(file), io.num_raw_rows(file)) for file in files_of(data)]
    kind = _first_kind(data, skip_bad)
    known = _model_identity(model, running)
    identity = {
        "model": known,
        "data": source_identity(data),
        "precision": running.settings.precision,
        "skip_bad": skip_bad,
    }
    rows = sum(count for _, count in files)
    if block is None:
        block = min(WINDOW, max(SMALLEST_BLOCK, -(-rows // (_PARTS_AN_ACTOR * (actors or 2)))))
    with _held(out), contextlib.ExitStack() as stack:
        earlier = None if overwrite else Manifest.read(out / RECORD)
        if earlier is not None:
            block = _same_work(out, earlier, identity)
        parts = plan(files, block=block)
        standing = [] if overwrite else [part for part in parts if (out / part.name).exists()]
        missing = sorted(set(parts) - set(standing), key=lambda part: part.number)
        facts = Facts(precision=dict(earlier.document.get("precision") or {}) if earlier else {})
        if missing:
            stack.enter_context(_connected(address))
            facts.pool = _pool(running, actors, len(missing))
        # Only from here on, where nothing is refused any more, is what an earlier call left touched.
        _clear(out, overwrite)
        record = Manifest.open(
            out / RECORD,
            verb="score",
            settings={"model": model, "data": data, "skip_bad": skip_bad, **running.settings.model_dump(mode="json")},
            identity=identity,
            rows_a_block=block,
            kind=kind,
            parts=len(parts),
            precision=facts.precision,
        )
        with record.until_closed():
            job = Job(model, known, running, str(out.resolve()), kind, block, skip_bad)
            before = added([read_counts(out / part.name) for part in standing])
            num_done = before.num_rows
            for report in _reports(job, missing, facts):
                if not facts.done:
                    record.note(precision=dict(report.precision or {}))
                num_done += facts.add(report)
                if on_part is not None:
                    on_part(num_done)
            total = added([read_counts(out / part.name) for part in parts])
            if not total.num_rows:
                io.read(data, skip_bad=skip_bad)  # says why there is nothing
            _sweep(out)
            here = added(facts.done)
            document = {
                **counts(total),
                "precision": facts.precision,
                "parts": len(parts),
                "resumed_from": before.num_rows,
                **facts.speed(here),
            }
            record.close("finished", **document)
    precision = document.pop("precision")
    return {"verb": "score", "model": _name(model), "data": source_name(data), **precision, **document}


@dataclass
class Facts:
    """What a call learns while parts come in.

    Args:
        precision: how the model computes.
        pool: the actors.
        done: counts of the parts.
        lives: of each actor, the processes that it was.
        asked_at: when the actors were asked for.
        began_at: when the first part began, by the actors' clocks: what they say comes in late, and in bundles.
        ended_at: when the last one ended, likewise.
    """

    precision: dict[str, object] = field(default_factory=dict)
    pool: Pool | None = None
    done: list[Scored] = field(default_factory=list)
    lives: dict[str, set[str]] = field(default_factory=dict)
    asked_at: float = 0.0
    began_at: float = float("inf")
    ended_at: float = float("-inf")

    def add(self, report: Report) -> int:
        """Take in one part that is done; returns its rows."""
        assert report.done is not None
        self.began_at, self.ended_at = min(self.began_at, report.began), max(self.ended_at, report.ended)
        if not self.done:
            self.precision = dict(report.precision or {})
            for text in report.warnings:
                warnings.warn(text, stacklevel=2)
        self.done.append(report.done)
        self.lives.setdefault(report.actor, set()).add(report.process)
        return report.done.num_rows

    def speed(self, here: Scored) -> dict[str, Any]:
        """Actors, their restarts, seconds and work a second, of this call."""
        if self.pool is None or not self.done:
            return {"pool": None, "restarts": {}, "seconds": {}, "per_second": {}}
        scoring = self.ended_at - self.began_at
        return {
            "pool": asdict(self.pool),
            "restarts": {actor: len(lives) - 1 for actor, lives in enumerate(self.lives.values(), 1) if len(lives) > 1},
            "seconds": {"starting": round(self.began_at - self.asked_at, 3), "scoring": round(scoring, 3)},
            "per_second": per_second(here, scoring),
        }


def _pool(running: Running, actors: int | None, parts: int) -> Pool:
    """The actors for so many parts on the Ray that this process is connected to.

    Raises:
        SettingsError: if they do not fit.
    """
    import ray

    machines = [
        (node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in ray.nodes() if node["Alive"]
    ]
    pool = share_out(machines, actors=actors, threads=running.threads, device=running.settings.device)
    return replace(pool, actors=min(pool.actors, parts))


def _reports(job: Job, parts: Sequence[Part], facts: Facts) -> Iterator[Report]:
    """Have the parts scored by the pool of `facts`; what is said of each, in the order in which they are done.

    Raises:
        RewardsmithError: the first that an actor answers with.
        WorkerError: if actors cannot be kept alive.
    """
    pool = facts.pool
    if pool is None:
        return
    import ray
    import ray.data

    facts.asked_at = time.time()
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
def _connected(address: str) -> Iterator[None]:
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


def check_folder(out: Path, data: str, *, overwrite: bool) -> None:
    """A new or empty folder, or one that an earlier call left: unfinished, or to be overwritten. Never the place of the data.

    Raises:
        OutputError: if it is something else.
        DataError: if there are no data.
    """
    refuse_among(out, data)
    refuse_among(out / "part-00000.parquet", data)  # a pattern may name the parts and not their folder
    if not out.exists() or (out.is_dir() and all(one.name == ".lock" for one in out.iterdir())):
        return
    record = Manifest.read(out / RECORD)
    if record is None or record.document.get("verb") != "score":
        raise OutputError("a new folder for --out", f"{out}, which holds something else", "Choose another --out.")
    if record.document.get("outcome") == "finished" and not overwrite:
        raise OutputError(
            "a new folder for --out", f"{out}, which is finished", "Choose another --out, or --overwrite."
        )


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    """The folder, made and held."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"to make the folder {out.name}", str(error), "Choose a folder that can be written."
        ) from error
    with folder_lock(out):
        yield


def _clear(out: Path, overwrite: bool) -> None:
    """Remove what killed workers left, and everything where it is to be overwritten; never are parts missing beside a record that says "finished"."""
    if overwrite:
        if (old := Manifest.read(out / RECORD)) is not None:
            old.note(outcome="running")
        for one in [*out.glob("part-*.parquet"), out / RECORD]:
            one.unlink(missing_ok=True)
    _sweep(out)


def _sweep(out: Path) -> None:
    """Remove what killed workers left half-written."""
    for one in [*out.glob(".part-*.tmp"), *out.glob(".tries-*")]:
        one.unlink(missing_ok=True)


def _same_work(out: Path, earlier: Manifest, identity: Mapping[str, Any]) -> int:
    """The block size of an unfinished folder.

    Raises:
        OutputError: if it is of another model, other data or settings.
    """
    before = earlier.document.get("identity") or {}
    others = [name for name in identity if before.get(name) != identity[name]]
    if others:
        raise OutputError(
            f"in {out} the unfinished work of the same model, data and settings",
            f"another {' and '.join(others)}",
            "Choose another --out, or --overwrite, which deletes the parts that are done.",
        )
    return int(earlier.document["rows_a_block"])


def _first_kind(data: str, skip_bad: bool) -> str:
    for row in io.iterate(data):
        if not isinstance(row, RowError):
            return kind_of(row)
        if not skip_bad:
            raise row
    io.read(data, skip_bad=skip_bad)
    raise AssertionError("a source without rows was read")


def _model_identity(model: str, running: Running) -> dict[str, str]:
    if is_url(model) or is_function(model):
        return dict(load_source(model, running.settings, threads=None, seed=running.seed).files)
    from rewardsmith.model import artefact, exported
    from rewardsmith.model.network import source_folder

    known = exported.identity(model)
    folder = Path(model) if exported.is_exported(model) else Path(source_folder(model))
    if (folder / artefact.CONTRACT).is_file():  # else they are the hashes of the files themselves
        artefact.check_files(folder, artefact.read_contract(folder), names=tuple(known))
    return known


def _absolute(place: str) -> str:
    """A path as it is called from another folder; a name stays one."""
    if is_url(place):
        return place
    file, colon, name = place.rpartition(":") if is_function(place) else (place, "", "")
    return f"{Path(file).resolve()}{colon}{name}" if Path(file).exists() else place


def _name(model: str) -> str:
    from rewardsmith.remote import without_credentials

    if is_url(model):
        return without_credentials(model)
    return model.rpartition(":")[2] if is_function(model) else Path(model).name
