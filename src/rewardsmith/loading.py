"""What a MODEL argument names (a folder, the address of a running server, a Python function) as a scorer with what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewardsmith.config import ScoringSettings
from rewardsmith.functions import is_function, load_function
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
    from rewardsmith.model.precision import prepare_process
    from rewardsmith.model.reward_model import RewardModel

    prepare_process(threads=threads, seed=seed)
    scorer = RewardModel.load(model, settings)
    return Source(
        name=Path(model).name,
        scorer=scorer,
        files=scorer.contract.files,
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
