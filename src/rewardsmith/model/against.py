"""`verify --against`: whether another way to the score gives the same number, on the golden inputs and on the user's own pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rewardsmith.config import ScoringSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.data.schema import Pair, Preference
from rewardsmith.errors import HeadError, ModelError, ScoreError, SettingsError
from rewardsmith.model.agreement import Comparison, compare_golden, compare_pairs, pairs_to_compare
from rewardsmith.model.artefact import Check, golden_table
from rewardsmith.model.other_paths import (
    CrossEncoderPath,
    FolderPath,
    OtherPath,
    PipelinePath,
    exported_path,
    plain_folder,
)
from rewardsmith.model.other_servers import server_path
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.remote import is_url

KINDS = ("transformers", "crossencoder", "onnx", "openvino")
MIN_AGREEMENT = 0.99


@dataclass(frozen=True)
class Against:
    """What the comparison came to."""

    checks: list[Check]
    document: dict[str, Any]


def verify_against(
    source: str, against: str, *, data: str | None = None, precision: str = "float32", seed: int = 0
) -> Against:
    """Score the golden inputs and the pairs of `data` by the model itself in float32 and by another path, and hold one against the other.

    Args:
        source: the model: a model folder, run folder or exported folder.
        against: a URL, one of `KINDS`, or KIND:FOLDER for a folder other than the model's own.
        data: of the user: pairs with two answers and a winner.
        precision: of a server that does not say what it computes in; it decides the tolerance.
        seed: of the intervals.

    Raises:
        SettingsError: if there is no such path, or it cannot read what this model reads.
        RemoteError: if a server does not answer.
        ModelError: if the model itself cannot be loaded.
        DataError: if no pair of `data` has two answers and a winner.
    """
    pairs, record = pairs_to_compare(data) if data else ([], {})
    model = RewardModel.load(source, ScoringSettings(device="cpu"))
    try:
        path = open_path(against, source, model, precision=precision)
    except HeadError as error:
        return _failed(against, "head", error)
    found = compare(model, path, pairs=pairs, seed=seed)
    if found.document["data"] is not None:
        found.document["data"] |= record
    return found


def open_path(against: str, source: str, model: RewardModel, *, precision: str) -> OtherPath:
    """The path that a user names; see `verify_against`."""
    if is_url(against):
        return server_path(against, model.renderer, precision=precision)
    kind, _, folder = against.partition(":")
    if kind not in KINDS:
        raise SettingsError(f"a URL or one of {', '.join(KINDS)} for --against", repr(against), "Choose one.")
    if kind == "transformers":
        return PipelinePath(plain_folder(folder or source), model.renderer)
    if kind == "crossencoder":
        return CrossEncoderPath(plain_folder(folder or source), model.renderer)
    return FolderPath(kind, folder) if folder else exported_path(kind, source)


def compare(model: RewardModel, path: OtherPath, *, pairs: Sequence[Preference] = (), seed: int = 0) -> Against:
    """Hold a path against the model. Where it reads otherwise than the model, only texts are asked that both read alike: that fit, and hold no string of a special token."""
    golden = _comparable(model, path, INPUTS)
    if len(golden) < 2:
        came = f"{len(golden)} of {len(INPUTS)} that {path.name} reads like the model"
        return _failed(path.name, "inputs", ModelError("at least two golden inputs", came, "Give --data."))
    sides = [pair.chosen_pair for pair in pairs] + [pair.rejected_pair for pair in pairs]
    fitting = set(_comparable(model, path, sides))
    kept = [i for i in range(len(pairs)) if i in fitting and i + len(pairs) in fitting]
    if pairs and not kept:
        came = f"none of {len(pairs)} that {path.name} reads like the model"
        return _failed(path.name, "inputs", ModelError("pairs that fit", came, "Give shorter ones."))
    inputs = [INPUTS[i] for i in golden]
    of_data = [sides[i] for i in kept] + [sides[i + len(pairs)] for i in kept]
    expected = model.score([*inputs, *of_data])
    try:
        found = path.score([*inputs, *of_data])
    except ScoreError as error:
        return _failed(path.name, "scores", error)
    bounds: dict[str, Any] = {"precision": path.precision, "min_agreement": MIN_AGREEMENT}
    on_golden = compare_golden(expected[: len(inputs)], found[: len(inputs)], **bounds)
    checks = _named(path, on_golden, f"{len(inputs)} of {len(INPUTS)} golden inputs")
    document: dict[str, Any] = {
        "name": path.name,
        "precision": path.precision,
        "golden": {**on_golden.document, "num_inputs": len(inputs), "left_out": len(INPUTS) - len(inputs)},
        "data": None,
    }
    if kept:
        used = [pairs[i] for i in kept]
        on_data = compare_pairs(used, expected[len(inputs) :], found[len(inputs) :], seed=seed, **bounds)
        checks += _named(path, on_data, f"{len(used)} of {len(pairs)} pairs")
        document["data"] = {**on_data.document, "left_out": len(pairs) - len(used)}
    return Against(checks, document)


def _comparable(model: RewardModel, path: OtherPath, inputs: Sequence[Pair]) -> list[int]:
    """The inputs that may be asked for."""
    table = golden_table(model.renderer, inputs)
    asked = np.ones(len(table), dtype=bool)
    if not path.reads_alike or model.renderer.spec.truncation == "error":
        asked &= ~table.truncated
    if not path.reads_alike:
        asked &= table.special_strings == 0
    return np.flatnonzero(asked).tolist()


def _named(path: OtherPath, found: Comparison, of: str) -> list[Check]:
    return [
        replace(check, name=f"{path.name}: {check.name}", detail=f"{check.detail} ({of})") for check in found.checks
    ]


def _failed(name: str, what: str, error: Exception) -> Against:
    """A finding, not a fault of the call: the path gives no score that could be trusted."""
    return Against([Check(f"{name}: {what}", False, str(error))], {"name": name, "golden": None, "data": None})
