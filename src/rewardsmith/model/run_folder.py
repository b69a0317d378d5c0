"""The run folder: whose it is, whether it may be written, and from which checkpoint a run goes on."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rewardsmith import launched
from rewardsmith.config import TrainSettings
from rewardsmith.errors import OutputError
from rewardsmith.manifest import FILE_NAME, Manifest, without_paths
from rewardsmith.model.artefact import WEIGHTS
from rewardsmith.model.callbacks import DEV_HISTORY, DevHistory
from rewardsmith.model.checkpoints import last_good, processes_of
from rewardsmith.model.provenance import base_files
from rewardsmith.storage import folder_lock, is_leftover

# Settings that say where and how fast, not what.
_NOT_IDENTITY = {"out", "device", "threads", "cache", "frozen_cache_gb", "model", "data", "dev_data", "eval_data"}
# Likewise of [trainer]: how batches are made ready, what is kept and what is shown.
_NOT_IDENTITY_OF_TRAINER = {
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "ddp_timeout",
    "disable_tqdm",
    "report_to",
    "run_name",
    "save_total_limit",
}

Say = Callable[[str], None]


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse a folder that may not be written, before anything is read.

    Raises:
        OutputError: if `out` is a file, holds other things, or holds a finished run that may not be replaced.
    """
    if out.is_file():
        raise OutputError("a folder for --out", f"the file {out.name}", "Choose another --out.")
    if not out.is_dir() or all(path.name == ".lock" or is_leftover(path) for path in out.iterdir()):
        return
    found = Manifest.read(out / FILE_NAME)
    if found is None:
        raise OutputError(
            "an empty or new folder, or a run of rewardsmith, for --out",
            f"{out}, which holds other things",
            "Choose another --out; --overwrite deletes only folders with a manifest of rewardsmith.",
        )
    if found.document.get("outcome") == "finished" and not overwrite:
        raise OutputError(
            "a run to start or to go on with", f"a finished one in {out}", "Choose another --out, or --overwrite."
        )


def run_identity(settings: TrainSettings, data_hashes: Mapping[str, str], model: str) -> dict[str, Any]:
    """What makes two commands the same run: settings and content, not places."""
    files = base_files(model)
    values = {k: v for k, v in settings.model_dump().items() if k not in _NOT_IDENTITY}
    if "trainer" in values:
        values["trainer"] = {k: v for k, v in values["trainer"].items() if k not in _NOT_IDENTITY_OF_TRAINER}
    return {
        "settings": without_paths(values),
        "data": dict(data_hashes),
        "model": files.pop(WEIGHTS, None) or Path(model).name,
        "base": files,
    }


@contextlib.contextmanager
def run_folder(out: Path, identity: dict[str, Any], *, overwrite: bool, say: Say) -> Iterator[Path | None]:
    """Hold the run folder; yields the checkpoint to go on from, or None for a fresh start.

    Raises:
        OutputError: if the folder is in use, or of another run.
    """
    fresh = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"to create {out}", error.strerror or str(error), "Choose another --out.") from error
    with folder_lock(out):
        for path in [*out.glob(".*"), *out.glob("checkpoints/.*")]:
            if is_leftover(path):
                _remove(path)
        found = None if fresh else Manifest.read(out / FILE_NAME)
        if found is not None and overwrite:
            # The manifest last: without it the folder would be nobody's, and a kill in between could not be mended.
            for path in sorted(out.iterdir(), key=lambda path: path.name == FILE_NAME):
                if path.name != ".lock":
                    _remove(path)
            found = None
        if found is None:
            yield None
            return
        if found.document.get("identity") != identity:
            raise OutputError(
                "the settings, data and model of the run that stands there",
                f"others ({', '.join(differences(found.document.get('identity'), identity))})",
                "Choose another --out, or --overwrite to delete that run.",
            )
        checkpoints = out / "checkpoints"
        history = DevHistory.read(checkpoints / DEV_HISTORY)
        start = last_good(checkpoints, say, best_at=history.best_step)
        if start is not None:
            say(f"going on from {start.name}")
            if (made_by := processes_of(start)) != launched.count():
                say(
                    f"warning: {start.name} is of {made_by} processes and goes on with {launched.count()}: the order of the data stays, dropout differs"
                )
        yield start


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def differences(old: Any, new: dict[str, Any]) -> list[str]:
    """The names of what differs between two identities."""
    if not isinstance(old, dict):
        return ["another verb"]
    names = []
    for part in new:
        before, after = old.get(part), new[part]
        if isinstance(before, dict) and isinstance(after, dict):
            names += [f"{part}.{k}" for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
        elif before != after:
            names.append(part)
    return names
