"""What a server says of a model and holds it to: its contract, and the golden inputs that its folder has scores of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewardsmith.data.golden import INPUTS
from rewardsmith.data.schema import Pair
from rewardsmith.errors import ContractError, LengthError, ScoreError
from rewardsmith.model.artefact import (
    CONTRACT,
    GOLDEN,
    TOLERANCE_ACROSS,
    TOLERANCE_BF16,
    check_files,
    read_contract,
)
from rewardsmith.model.exported import is_exported
from rewardsmith.model.network import source_folder
from rewardsmith.model.reward_model import RewardModel
from rewardsmith.scores import Scores, checked


@dataclass(frozen=True)
class Published:
    """A model that may be served.

    Args:
        model: loaded.
        contract: for everybody to read: no path, no text.
        inputs: golden inputs that the model's length policy takes; none where the folder has no golden file.
        scores: theirs, as saved, float32 (n,).
        tolerance: of them, times max(1, |s|).
    """

    model: RewardModel
    contract: dict[str, Any]
    inputs: list[Pair]
    scores: Scores
    tolerance: float


def publish(model: RewardModel, source: str) -> Published:
    """Check every file of the folder against its contract, and read its golden scores.

    Raises:
        ContractError: if a file is not the one that was saved, or the golden file cannot be read.
    """
    path = Path(source) if is_exported(source) else Path(source_folder(source))
    document = {**model.contract.as_dict(), **model.precision_record(), "tolerance": model.tolerance}
    tolerance = TOLERANCE_ACROSS if model.precision == "float32" else TOLERANCE_BF16
    if not (path / CONTRACT).is_file():
        return Published(model, {**document, "assumed": True}, [], np.zeros(0, np.float32), tolerance)
    contract = read_contract(path)
    check_files(path, contract, names=tuple(contract.files))
    inputs, scores = _golden(path / GOLDEN)
    fitting = [i for i, pair in enumerate(inputs) if _fits(model, pair)]
    return Published(model, document, [inputs[i] for i in fitting], scores[fitting], tolerance)


def _golden(path: Path) -> tuple[list[Pair], Scores]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if len(rows) != len(INPUTS) or not all(_is_pair(row["prompt"], row["answer"]) for row in rows):
            raise ValueError(f"not the {len(INPUTS)} prompts and answers that were saved")
        return [(row["prompt"], row["answer"]) for row in rows], checked([row["score"] for row in rows], len(rows))
    except (OSError, ValueError, KeyError, TypeError, ScoreError) as error:
        raise ContractError(
            f"a readable {GOLDEN}", str(error), "Restore the folder, or save the model again."
        ) from error


def _is_pair(prompt: Any, answer: Any) -> bool:
    messages = [{"content": prompt}] if isinstance(prompt, str) else prompt
    return isinstance(answer, str) and all(isinstance(message["content"], str) for message in messages)


def _fits(model: RewardModel, pair: Pair) -> bool:
    """Whether the policy "error" lets it pass."""
    try:
        model.renderer.encode([pair])
    except LengthError:
        return False
    return True
