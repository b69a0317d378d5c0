"""Several reward models as one: their mean, the worst of them, or their mean less what they disagree by.

Members are standardised first, since a member whose scores are spread out twice as wide would count twice as much (Coste et al. 2023, "Reward model ensembles
help mitigate overoptimization"; Eisenstein et al. 2023, "Helping or herding?"). Errors that all members share are not seen by any of the three.

Legend: `K` members, `n` texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from rewardsmith.data.schema import Pair
from rewardsmith.errors import ScoreError, SettingsError
from rewardsmith.scores import Scorer, Scores, checked
from rewardsmith.stats import Floats

Rule: TypeAlias = Literal["mean", "worst case", "lower confidence"]
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True, slots=True)
class Standard:
    """What a member's scores are standardised by, (score - mean) / sd; both taken over the candidates of a pool.

    Args:
        mean: of the raw scores.
        sd: of the raw scores.
    """

    mean: float
    sd: float

    @classmethod
    def of(cls, scores: Floats, name: str) -> Standard:
        """The standard of some scores.

        Raises:
            ScoreError: if they are all equal.
        """
        if len(scores) < 2 or scores.min() == scores.max():
            raise ScoreError(
                f"scores of {name!r} that differ", "one score for all candidates", "Leave this member out."
            )
        return cls(float(scores.mean()), float(scores.std(ddof=1)))

    def apply(self, scores: Floats) -> Floats:
        """Scores in standard deviations from the mean."""
        return (scores - self.mean) / self.sd

    def as_dict(self) -> dict[str, float]:
        """The document."""
        return asdict(self)


def combined(standardised: Floats, rule: Rule, *, k: float = 1.0) -> Floats:
    """The score of an ensemble: the mean over members, the least of them, or mean - k * sd over members (divided by K - 1).

    Args:
        standardised: one row a member, (K, n).
        rule: see `RULES`.
        k: of "lower confidence".

    Raises:
        SettingsError: at fewer than two members, or a k below 0.

    >>> combined(np.array([[1.0, 0.0], [3.0, 0.0]]), "lower confidence").round(3).tolist()
    [0.586, 0.0]
    """
    if rule not in RULES:
        raise SettingsError(f"a rule among {', '.join(RULES)}", repr(rule), "Take one of these.")
    if len(standardised) < 2:
        raise SettingsError("at least two members of an ensemble", f"{len(standardised)}", "Give another model.")
    if not k >= 0:
        raise SettingsError("k of at least 0 for the lower confidence of an ensemble", f"{k}", "Take 1, the default.")
    if rule == "worst case":
        return np.asarray(standardised.min(axis=0))
    means = standardised.mean(axis=0)
    return np.asarray(means if rule == "mean" else means - k * standardised.std(axis=0, ddof=1))


class Ensemble:
    """Several scorers as one `Scorer`, by members' standards that stay as they were measured."""

    def __init__(
        self, members: Mapping[str, Scorer], standards: Mapping[str, Standard], rule: Rule, *, k: float = 1.0
    ) -> None:
        """Keep the members.

        Args:
            members: by name, at least two.
            standards: of each of them.
            rule: see `combined`.
            k: see `combined`.
        """
        self.members, self.standards, self.rule, self.k = dict(members), dict(standards), rule, k

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """Each text scored by every member, and combined."""
        rows = [
            self.standards[name].apply(checked(member.score(pairs), len(pairs)).astype(np.float64))
            for name, member in self.members.items()
        ]
        return combined(np.stack(rows), self.rule, k=self.k).astype(np.float32)

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        standards = {name: self.standards[name].as_dict() for name in self.members}
        return {"rule": self.rule, "k": self.k if self.rule == "lower confidence" else None, "members": standards}
