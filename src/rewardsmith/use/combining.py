"""Several reward models as one scorer: a weighted sum of standardised scores, or their mean less what they disagree by.

Members are standardised by statistics that were measured once, since a member whose scores are spread out twice as wide would count twice as much.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rewardsmith.auditing.ensembles import Ensemble, Standard
from rewardsmith.data.schema import Pair
from rewardsmith.errors import SettingsError
from rewardsmith.functions import Function, as_scorer
from rewardsmith.scores import Scorer, Scores, checked
from rewardsmith.storage import write_json


def standards_of(members: Mapping[str, Scorer | Function], pairs: Sequence[Pair]) -> dict[str, Standard]:
    """What each member's scores are standardised by, measured on the same (prompt, answer) pairs.

    Raises:
        ScoreError: if a member gives all of them one score.
    """
    return {
        name: Standard.of(checked(as_scorer(member).score(pairs), len(pairs)).astype(np.float64), name)
        for name, member in members.items()
    }


def save_standards(standards: Mapping[str, Standard], path: str | Path) -> None:
    """Write them as JSON, whole or not at all: with other statistics, members would make another reward."""
    write_json(Path(path), {name: standard.as_dict() for name, standard in standards.items()})


def load_standards(path: str | Path) -> dict[str, Standard]:
    """Read what `save_standards` wrote.

    Raises:
        SettingsError: if it is no such file.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {name: Standard(float(one["mean"]), float(one["sd"])) for name, one in document.items()}
        if not all(np.isfinite(one.mean) and 0 < one.sd < np.inf for one in found.values()):
            raise ValueError("finite means, and standard deviations above 0, are wanted")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"saved standards at {path}", str(error), "Save them again.") from error
    return found


class WeightedSum:
    """sum over members of weight * (score - mean) / sd: a scorer.

    Args:
        members: by name, at least one.
        weights: of each of them; below 0 for what is to be low, such as a score of verbosity.
        standards: of each of them; see `standards_of`.

    Raises:
        SettingsError: if the three do not name the same members, or a weight is no finite number.
    """

    def __init__(
        self,
        members: Mapping[str, Scorer | Function],
        weights: Mapping[str, float],
        *,
        standards: Mapping[str, Standard],
    ) -> None:
        """Keep the members."""
        _check_named(members, standards, least=1)
        if set(weights) != set(members) or not all(np.isfinite(weight) for weight in weights.values()):
            raise SettingsError("a finite weight of each member", f"{dict(weights)}", f"Name {sorted(members)}.")
        self.members = {name: as_scorer(member) for name, member in members.items()}
        self.weights, self.standards = dict(weights), dict(standards)

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """Each text scored by every member, and summed."""
        total = np.zeros(len(pairs))
        for name, member in self.members.items():
            raw = checked(member.score(pairs), len(pairs)).astype(np.float64)
            total += self.weights[name] * self.standards[name].apply(raw)
        return checked(total, len(pairs))


def lower_confidence(
    members: Mapping[str, Scorer | Function], *, standards: Mapping[str, Standard], k: float = 1.0
) -> Ensemble:
    """A scorer that is the members' mean less k of their standard deviations (Coste et al. 2023; see `auditing.ensembles`).

    Raises:
        SettingsError: at fewer than two members, members without statistics, or a k below 0.
    """
    _check_named(members, standards, least=2)
    if not (np.isfinite(k) and k >= 0):
        raise SettingsError("k of at least 0", f"{k}", "Take 1, the default.")
    scorers = {name: as_scorer(member) for name, member in members.items()}
    return Ensemble(scorers, standards, "lower confidence", k=k)


def _check_named(members: Mapping[str, object], standards: Mapping[str, Standard], *, least: int) -> None:
    if len(members) < least:
        raise SettingsError(f"at least {least} members", f"{len(members)}", "Give another model.")
    without = sorted(set(members) - set(standards))
    if without:
        raise SettingsError(
            "the standard of each member",
            f"none of {', '.join(without)}",
            "Measure them: standards_of(members, pairs).",
        )
