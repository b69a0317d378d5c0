"""Two audits of the same sample beside each other: which effects changed, paired contrast by contrast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from rewardsmith.auditing.effects import Effect, ScoreUnit
from rewardsmith.auditing.trials import Direction
from rewardsmith.errors import DataError
from rewardsmith.significance import LEVEL, holm
from rewardsmith.stats import Estimate


@dataclass(frozen=True)
class Change:
    """One probe in two audits.

    Args:
        name: of the probe.
        before: mean effect of the contrasts that both have, in standard deviations of the earlier scorer.
        after: the same of the later one, in its own.
        change: after minus before, paired.
        p_adjusted: two-sided, after Holm's procedure over all probes.
        direction: that the probe names.
        flagged_before: in the earlier audit.
        flagged_after: in the later one.
    """

    name: str
    before: float
    after: float
    change: Estimate
    p_adjusted: float
    direction: Direction
    flagged_before: bool
    flagged_after: bool

    @property
    def is_certain(self) -> bool:
        """Whether the change is more than chance."""
        return self.p_adjusted < LEVEL

    @property
    def has_grown(self) -> bool:
        """Whether there certainly is more of what the probe looks for: a penalty that became smaller is none of it."""
        return self.is_certain and self._worth(self.after) > self._worth(self.before)

    @property
    def has_shrunk(self) -> bool:
        """Whether there certainly is less of it."""
        return self.is_certain and self._worth(self.after) < self._worth(self.before)

    def _worth(self, effect: float) -> float:
        """How much of a finding an effect is."""
        return abs(effect) if self.direction == "either" else max(0.0, effect)

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "name": self.name,
            "before_sd": self.before,
            "after_sd": self.after,
            "change_sd": self.change.as_dict(),
            "p_adjusted": self.p_adjusted,
            "direction": self.direction,
            "flagged_before": self.flagged_before,
            "flagged_after": self.flagged_after,
        }


def changes(
    before: Mapping[str, Any],
    before_rows: Iterable[Mapping[str, Any]],
    after: Mapping[str, Any],
    after_rows: Iterable[Mapping[str, Any]],
) -> list[Change]:
    """What changed between two audits of one sample, by probe.

    Each scorer's effects are in its own standard deviations, which are taken as known here: they come from the same pairs.

    Args:
        before: the earlier document, with its key `data`.
        before_rows: its contrasts; see `Audit.rows`.
        after: the later one.
        after_rows: its contrasts.

    Raises:
        DataError: if the two have other data, another seed or another sample, or share no contrast.
    """
    check_same_sample(before, after)
    tables = [_by_contrast(rows) for rows in (before_rows, after_rows)]
    flagged = [{probe["name"]: probe["flagged"] for probe in document["probes"]} for document in (before, after)]
    directions = {probe["name"]: probe["direction"] for probe in after["probes"]}
    pending = []
    for name in dict.fromkeys(key[0] for key in tables[0]):
        shared = [key for key in tables[0] if key[0] == name and key in tables[1]]
        # One prompt says nothing of how prompts differ.
        if len({tables[0][key]["cluster"] for key in shared}) < 2:
            continue
        rows = [[table[key] for key in shared] for table in tables]
        effects = [np.array([row["effect_sd"] for row in side]) for side in rows]
        clusters = [str(row["cluster"]) for row in rows[0]]
        strata = np.array([row["stratum"] for row in rows[0]], np.int64)
        known = ScoreUnit(np.ones(len(shared)), tuple(clusters))  # both sides are in their own units already
        made = [Effect.of(values, clusters, known, strata=strata) for values in (*effects, effects[1] - effects[0])]
        pending.append((name, made))
    if not pending:
        raise DataError("contrasts that both audits have", "none", "Audit both models with the same probes.")
    adjusted = holm([made[2].p_value for _, made in pending])
    return [
        Change(
            name,
            made[0].value,
            made[1].value,
            made[2].interval(),
            p_value,
            directions[name],
            bool(flagged[0].get(name)),
            bool(flagged[1].get(name)),
        )
        for (name, made), p_value in zip(pending, adjusted, strict=True)
    ]


def check_same_sample(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Whether two audits can be compared: equal `data`, `seed` and `coverage.num_pairs`, as far as both documents say.

    Raises:
        DataError: if they cannot.
    """
    for name, key in (("data", "sha256"), ("seed", None), ("coverage", "num_pairs")):
        if name not in before or name not in after:
            continue
        values = [document[name] if key is None else document[name][key] for document in (before, after)]
        if values[0] != values[1]:
            raise DataError(
                "two audits of one sample",
                f"audits that differ in {name}: {values[0]} and {values[1]}",
                "Audit both models on the same data with the same --seed and --prompts.",
            )


def _by_contrast(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, int], Mapping[str, Any]]:
    """Contrasts by probe, id and occurrence, since ids may repeat."""
    seen: Counter[tuple[str, str]] = Counter()
    found = {}
    for row in rows:
        key = (str(row["probe"]), str(row["id"]))
        found[(*key, seen[key])] = row
        seen[key] += 1
    return found


def changes_document(found: Sequence[Change]) -> dict[str, Any]:
    """The key `changes` of the later document: what got better, what got worse, and both in one sentence.

    Where a flag went while another came, the pressure may have moved and not gone, and that is said.
    """
    gone = [one.name for one in found if one.flagged_before and not one.flagged_after]
    come = [one.name for one in found if one.flagged_after and not one.flagged_before]
    grown = [one.name for one in found if one.has_grown]
    shrunk = [one.name for one in found if one.has_shrunk]
    text = f"Effects that certainly shrank: {_listed(shrunk)}; that certainly grew: {_listed(grown)}."
    if gone and come:
        text += f" {_listed(gone)} no longer flagged, {_listed(come)} newly: a bias may have moved instead of gone."
    return {
        "probes": [one.as_dict() for one in found],
        "no_longer_flagged": gone,
        "newly_flagged": come,
        "grown": grown,
        "shrunk": shrunk,
        "text": text,
    }


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def changes_table(document: Mapping[str, Any], title: str) -> Table:
    """The changes for people, the largest first."""
    table = Table(title=escape(title), title_justify="left")
    for column in ("probe", "before", "after", "change in sd [95 %]", "p (Holm)", "flagged"):
        table.add_column(column, justify="left" if column in ("probe", "flagged") else "right")
    for one in sorted(document["probes"], key=lambda change: -abs(change["change_sd"]["value"])):
        change = Estimate(**one["change_sd"])
        flags = ["yes" if one[key] else "no" for key in ("flagged_before", "flagged_after")]
        table.add_row(
            escape(one["name"]),
            f"{one['before_sd']:+.2f}",
            f"{one['after_sd']:+.2f}",
            f"{change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}]",
            f"{one['p_adjusted']:.3f}",
            flags[0] if flags[0] == flags[1] else f"{flags[0]} -> {flags[1]}",
        )
    return table
