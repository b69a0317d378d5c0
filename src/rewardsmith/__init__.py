"""rewardsmith trains, proves and puts to work reward models for RLHF. Importing it loads neither torch nor transformers."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewardsmith.audits import audit
    from rewardsmith.config import LintSettings, TrainSettings
    from rewardsmith.data.schema import Preference
    from rewardsmith.errors import RewardsmithError
    from rewardsmith.evaluation.pairwise import evaluate
    from rewardsmith.linting.doctor import lint
    from rewardsmith.model.reward_model import RewardModel
    from rewardsmith.runs import read_pairs, train
    from rewardsmith.scores import Scorer, ScoreTable
    from rewardsmith.stats import Estimate

try:
    __version__ = _version("rewardsmith")
except PackageNotFoundError:
    __version__ = "0.0.0+source"

_HOMES = {
    "Estimate": "stats",
    "LintSettings": "config",
    "Preference": "data.schema",
    "RewardModel": "model.reward_model",
    "RewardsmithError": "errors",
    "ScoreTable": "scores",
    "Scorer": "scores",
    "TrainSettings": "config",
    "audit": "audits",
    "evaluate": "evaluation.pairwise",
    "lint": "linting.doctor",
    "read_pairs": "runs",
    "train": "runs",
}

__all__ = [
    "Estimate",
    "LintSettings",
    "Preference",
    "RewardModel",
    "RewardsmithError",
    "ScoreTable",
    "Scorer",
    "TrainSettings",
    "audit",
    "evaluate",
    "lint",
    "read_pairs",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rewardsmith' has no attribute {name!r}")
    return getattr(import_module(f"rewardsmith.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
