"""Every error a user can meet, as one tree.

    RewardsmithError                 exit code 2
    |-- SettingsError                a recipe, a flag or a `--set` that cannot be meant
    |-- DataError                    the data as a whole: empty, unreadable, too much dropped
    |   `-- RowError                 one row: file, line, field, mend
    |-- ModelError                   a checkpoint that is not what was asked for
    |   |-- HeadError                the score head is missing, of another shape, or more than one
    |   `-- ContractError            rewardsmith.json is broken, too new, or disagrees with the folder
    |-- LengthError                  a text that max_length and the policy do not allow
    |-- ScoreError                   a scorer returned something that is no finite number
    |-- RemoteError                  a server cannot be reached, refuses, or answers otherwise than it must
    |-- OutputError                  a place that may not or cannot be written
    |-- WorkerError                  a cluster's workers die faster than the work gets done, or fail
    |-- MissingExtraError            an optional package is not installed
    `-- TrainingStopped              exit code 1: a guard ended the run with a diagnosis
        |-- NonFiniteError           a loss, score or gradient that is NaN or infinite
        |-- NoGradientError          a trained tensor that no gradient reaches
        `-- StuckError               margins of exactly 0, step after step

Policy: an error says what was needed, what came, and what to do. Refuse rather than guess. `assert` is for our own bugs only.
"""

from __future__ import annotations

from typing import Any


class RewardsmithError(Exception):
    """A mistake that the user can mend.

    Args:
        needed: what the operation needs, as a clause ("a column `prompt`").
        came: what came instead.
        mend: what to do about it, as an imperative sentence.
    """

    exit_code = 2

    def __init__(self, needed: str, came: str, mend: str) -> None:
        """Keep the three parts and build the message from them."""
        self.needed, self.came, self.mend = needed, came, mend
        super().__init__(f"needed {needed}; got {came}. {mend}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Let an error travel between processes: kinds differ in what they are made of, not in what they hold."""
        return _rebuilt, (type(self), self.args, vars(self))

    def as_dict(self) -> dict[str, str]:
        """The error as the JSON document that `--json` prints."""
        return {"type": type(self).__name__, "needed": self.needed, "came": self.came, "mend": self.mend}


def _rebuilt(kind: type[RewardsmithError], args: tuple[Any, ...], held: dict[str, Any]) -> RewardsmithError:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(held)
    return error


class SettingsError(RewardsmithError):
    """A recipe, a flag or a `--set` that cannot be meant."""


class DataError(RewardsmithError):
    """The data as a whole is empty, unreadable, or loses too many rows."""


class RowError(DataError):
    """One row is malformed.

    Args:
        where: `file:line` (or `file: row n` where a format has no lines).
        field: the field at fault.
        needed: see `RewardsmithError`.
        came: see `RewardsmithError`.
        mend: see `RewardsmithError`.
        content: what the row holds, where it could not even be cut into columns.
    """

    def __init__(self, where: str, field: str, *, needed: str, came: str, mend: str, content: Any = None) -> None:
        """Prefix the message with the place."""
        self.where, self.field, self.content = where, field, content
        super().__init__(needed, came, mend)
        self.args = (f"{where}: field `{field}`: {self.args[0]}",)

    def as_dict(self) -> dict[str, str]:
        """The error with its place."""
        return super().as_dict() | {"where": self.where, "field": self.field}


class ModelError(RewardsmithError):
    """A checkpoint that is not what was asked for."""


class HeadError(ModelError):
    """The score head is missing, of another shape, or more than one."""


class ContractError(ModelError):
    """rewardsmith.json is broken, too new, or disagrees with the rest of its folder."""


class LengthError(RewardsmithError):
    """A text that max_length and the truncation policy do not allow."""


class ScoreError(RewardsmithError):
    """A scorer returned something that is no finite number."""


class RemoteError(RewardsmithError):
    """A server cannot be reached, refuses, or answers otherwise than it must.

    Args:
        needed: see `RewardsmithError`.
        came: see `RewardsmithError`.
        mend: see `RewardsmithError`.
        status: of its answer; None where none came.
    """

    def __init__(self, needed: str, came: str, mend: str, *, status: int | None = None) -> None:
        """Keep the status."""
        super().__init__(needed, came, mend)
        self.status = status


class OutputError(RewardsmithError):
    """A place that may not or cannot be written."""


class WorkerError(RewardsmithError):
    """A cluster's workers die faster than the work gets done, or fail at what nobody foresaw."""


class MissingExtraError(RewardsmithError):
    """An optional package is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        """Name the feature, the package and the line that installs it."""
        super().__init__(
            f"the package `{package}` for {feature}",
            "an environment without it",
            f"Install it: pip install 'rewardsmith[{extra}]'",
        )


class TrainingStopped(RewardsmithError):
    """A guard ended the run with a diagnosis; the last good checkpoint is kept."""

    exit_code = 1


class NonFiniteError(TrainingStopped):
    """A loss, score or gradient that is NaN or infinite."""


class NoGradientError(TrainingStopped):
    """A trained tensor that no gradient reaches."""


class StuckError(TrainingStopped):
    """Margins of exactly 0, step after step."""
