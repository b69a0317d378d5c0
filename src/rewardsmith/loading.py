"""What MODEL and DATA arguments name: a folder, the address of a running server or a Python function as a scorer with its papers; a source as pairs with theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from rewardsmith.config import ScoringSettings
from rewardsmith.data import io
from rewardsmith.data.schema import Preference
from rewardsmith.data.sources import source_name
from rewardsmith.functions import is_function, load_function
from rewardsmith.manifest import package_versions
from rewardsmith.remote import RemoteModel, connect, is_url, without_credentials
from rewardsmith.scores import Scorer

_SWAP_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Source:
    """A scorer with its papers.

    Args:
        name: of its folder, or the server's address without credentials.
        scorer: scores.
        files: SHA-256 by file name (of a function, of the file that defines it); of a server that does not tell, its address, so that two servers are never taken for one model.
        precision: how it computes, for documents; empty where a server does not tell.
        temperature: of calibrated probabilities; None where none was fitted, or is known.
        tolerance: how far, times max(1, |s|), the company of a batch may move a score.
    """

    name: str
    scorer: Scorer
    files: Mapping[str, str]
    precision: Mapping[str, object] = field(default_factory=dict)
    temperature: float | None = None
    tolerance: float = _SWAP_TOLERANCE


@dataclass(frozen=True)
class Running:
    """How models are to run.

    Args:
        settings: device and precision.
        threads: of the CPU; None for all cores.
        seed: of everything random.
    """

    settings: ScoringSettings
    threads: int | None
    seed: int

    def load(self, model: str) -> Source:
        """The scorer of a MODEL argument; see `load_source`."""
        return load_source(model, self.settings, threads=self.threads, seed=self.seed)


def load_source(model: str, settings: ScoringSettings, *, threads: int | None, seed: int) -> Source:
    """The scorer of a MODEL argument; torch is loaded only for a folder.

    Raises:
        RewardsmithError: (one of its kinds) if it cannot be loaded or reached.
    """
    if is_url(model):
        return _remote(model)
    if is_function(model):
        function, files = load_function(model)
        return Source(model.rpartition(":")[2], function, files)
    from rewardsmith.model import exported
    from rewardsmith.model.precision import prepare_process
    from rewardsmith.model.reward_model import RewardModel

    prepare_process(threads=threads, seed=seed)
    scorer = RewardModel.load(model, settings)
    return Source(
        name=Path(model).name,
        scorer=scorer,
        # A folder of another tool has no contract that names its files.
        files=scorer.contract.files or exported.identity(model),
        precision=scorer.precision_record(),
        temperature=scorer.contract.temperature,
        tolerance=scorer.tolerance,
    )


def _remote(url: str) -> Source:
    scorer = connect(url)
    name = without_credentials(url)
    if not isinstance(scorer, RemoteModel):
        return Source(name, scorer, {"url": name})
    document = scorer.contract()
    precision = {
        key: document[key] for key in ("backend", "precision", "precision_max_difference") if document.get(key)
    }
    return Source(
        name=name,
        scorer=scorer,
        files=document.get("files") or {"url": name},
        precision=precision,
        temperature=document.get("temperature"),
        tolerance=float(document.get("tolerance", _SWAP_TOLERANCE)),
    )


def described(source: Source) -> dict[str, Any]:
    """The key `model` of documents."""
    return {"name": source.name, "files": dict(source.files)}


def read_labelled(data: str, *, skip_bad: bool, console: Console) -> tuple[dict[str, Any], list[Preference]]:
    """What documents say of a source of pairs, and the pairs; how it was read is printed.

    Raises:
        DataError: (or RowError) saying which row, which field, and how to mend it.
    """
    reading = io.read(data, skip_bad=skip_bad)
    pairs = io.preferences(reading.rows, data)
    console.print(reading.describe(data), highlight=False, markup=False, soft_wrap=True)
    facts = {
        "source": source_name(data),
        "sha256": io.fingerprint(pairs),
        "rows": reading.num_rows,
        "formats": dict(reading.formats),
        "without": reading.without,
        "skipped_bad": dict(reading.skipped),
    }
    return facts, pairs


def papers(data: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Where the numbers of a document come from."""
    return {"data": dict(data), "seed": seed, "versions": package_versions()}
