"""Bulk scoring on Ray Data into a folder: what is missing there is scored by actors (`actors`), part by part (`parts`).

The folder of results is the only record of what is done: a part's file stands there whole or not at all, and is the same whoever wrote it. So a worker that dies costs
what it had in hand, a part that is done twice is there once, and the same command over an unfinished folder does what is missing.
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rewardsmith.actors import LOCAL, Job, Pool, Report, check_address, connected, pool_for, reports, require_ray
from rewardsmith.data import io
from rewardsmith.data.sources import files_of, refuse_among, source_identity, source_name
from rewardsmith.errors import OutputError, RowError
from rewardsmith.functions import is_function
from rewardsmith.loading import Running, load_source
from rewardsmith.manifest import Manifest
from rewardsmith.parts import added, counts, kind_of, plan, read_counts
from rewardsmith.remote import is_url
from rewardsmith.storage import folder_lock, text_sha256
from rewardsmith.streaming import WINDOW, Scored, per_second

RECORD = "_manifest.json"
"""Its name begins like those that readers of Parquet folders leave out."""
SMALLEST_BLOCK = 256
# A part costs 5 to 25 ms beside its rows, and what a dead worker had in hand is a part.
_PARTS_AN_ACTOR = 8


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
        actors: see `actors.share_out`.
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
        borders = text_sha256(json.dumps([(part.first, part.until) for part in parts]))
        if earlier is not None and earlier.document.get("borders_sha256") != borders:
            raise _other_work(out, "another version, which cut the rows otherwise")
        standing = [] if overwrite else [part for part in parts if (out / part.name).exists()]
        missing = sorted(set(parts) - set(standing), key=lambda part: part.number)
        facts = Facts(precision=dict(earlier.document.get("precision") or {}) if earlier else {})
        if missing:
            stack.enter_context(connected(address))
            facts.pool = pool_for(running, actors=actors, parts=len(missing))
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
            borders_sha256=borders,
            precision=facts.precision,
        )
        with record.until_closed():
            job = Job(model, known, running, str(out.resolve()), kind, block, skip_bad)
            before = added([read_counts(out / part.name) for part in standing])
            num_done = before.num_rows
            facts.asked_at = time.time()
            for report in [] if facts.pool is None else reports(job, missing, facts.pool):
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
        raise _other_work(out, f"another {' and '.join(others)}")
    return int(earlier.document["rows_a_block"])


def _other_work(out: Path, came: str) -> OutputError:
    return OutputError(
        f"in {out} the unfinished work of the same model, data and settings",
        came,
        "Choose another --out, or --overwrite, which deletes the parts that are done.",
    )


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
