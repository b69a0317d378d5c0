"""The verdict of an audit: what was flagged, what was looked at and what was not, and the limits that a user sets for CI."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from rewardsmith.auditing.trials import ProbeResult
from rewardsmith.errors import SettingsError
from rewardsmith.stats import Estimate

_LIMIT = re.compile(r"\s*([A-Za-z0-9_ -]+?)\s*=\s*([0-9]*\.?[0-9]+)\s*sd\s*")


@dataclass(frozen=True, slots=True)
class Limit:
    """How large an effect may be.

    Args:
        name: of a probe, a family or a kind; of a family each probe is held to it.
        sd: the largest effect in the probe's direction, in standard deviations.
    """

    name: str
    sd: float


def limit_from(text: str, known: Sequence[str]) -> Limit:
    """Read NAME=NUMBERsd, for example `padding=0.2sd`.

    Args:
        text: as the user wrote it.
        known: names of the probes that are asked, their families and kinds.

    Raises:
        SettingsError: if it is none, or of a name that no probe of this audit has: a limit that cannot be checked must not look kept.
    """
    read = _LIMIT.fullmatch(text)
    if read is None:
        raise SettingsError("a limit as NAME=NUMBERsd", repr(text), "Write for example padding=0.2sd.")
    if read[1] not in known:
        raise SettingsError(
            "a limit on a probe or a family of this audit",
            repr(read[1]),
            f"Known here: {', '.join(sorted(known))}.",
        )
    return Limit(read[1], float(read[2]))


@dataclass(frozen=True, slots=True)
class Kept:
    """One limit and one probe.

    Args:
        limit: the name that the user gave.
        probe: that it is held against.
        limit_sd: the largest effect allowed.
        effect_sd: what was found, in the probe's direction; None where the probe applied to no answer.
        ok: whether it is within; an effect that was not measured is not.
    """

    limit: str
    probe: str
    limit_sd: float
    effect_sd: float | None
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return asdict(self)


def held(limits: Sequence[Limit], results: Sequence[ProbeResult], asked: Sequence[Any]) -> list[Kept]:
    """Each limit against each probe that it names.

    Args:
        limits: see `limit_from`.
        results: of the probes that applied to something.
        asked: every probe of the audit.
    """
    found = {result.probe.name: result for result in results}
    kept = []
    for limit in limits:
        for probe in asked:
            if limit.name not in (probe.name, probe.family, probe.kind):
                continue
            result = found.get(probe.name)
            if result is None:
                kept.append(Kept(limit.name, probe.name, limit.sd, None, False))
                continue
            effect = abs(result.effect.value) if probe.direction == "either" else result.effect.value
            kept.append(Kept(limit.name, probe.name, limit.sd, effect, effect <= limit.sd))
    return kept


def verdict(results: Sequence[ProbeResult], kept: Sequence[Kept]) -> dict[str, Any]:
    """The key `verdict` of the document: flagged probes by effect, limits, and two sentences."""
    flagged = sorted((one for one in results if one.flagged), key=lambda one: -abs(one.effect.value))
    failed = [one for one in kept if not one.ok]
    return {
        "num_probes": len(results),
        "flagged": [one.probe.name for one in flagged],
        "largest": {"name": flagged[0].probe.name, "effect_sd": flagged[0].effect.value} if flagged else None,
        "limits": [one.as_dict() for one in kept],
        "ok": not failed,
        "text": _text(results, flagged, failed),
    }


def _text(results: Sequence[ProbeResult], flagged: Sequence[ProbeResult], failed: Sequence[Kept]) -> str:
    if not flagged:
        text = (
            f"None of {len(results)} probes was flagged. That is no proof of absence: effects below"
            f" {_largest_hidden(results):.2f} sd could have been missed here, and what was not covered is listed."
        )
    else:
        worst = "; ".join(one.reading for one in flagged[:3])
        text = f"{len(flagged)} of {len(results)} probes were flagged. The largest: {worst}."
    if failed:
        names = ", ".join(
            f"{one.probe} ({'not measured' if one.effect_sd is None else f'{one.effect_sd:.2f} sd'}, limit {one.limit_sd:g} sd)"
            for one in failed
        )
        text += f" Over their limits: {names}."
    return text


def _largest_hidden(results: Sequence[ProbeResult]) -> float:
    """The effect that the least certain probe would have needed to be flagged: half the width of its adjusted interval, at least 0.1."""
    widths = [(one.adjusted.high - one.adjusted.low) / 2 for one in results]
    finite = [width for width in widths if width < float("inf")]
    return max([0.1, *finite])


def probes_table(document: Mapping[str, Any], title: str) -> Table:
    """The probes for people, family by family, the largest effect first; narrow enough for 80 columns, flagged ones marked by a star."""
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, caption="* flagged; effects in sd, 95 %")
    for column in ("probe", "effect", "interval", "wins", "overtakes", "n"):
        table.add_column(column, justify="left" if column == "probe" else "right", no_wrap=True)
    for family in dict.fromkeys(probe["family"] for probe in document["probes"]):
        table.add_row(f"[bold]{escape(family.replace('_', ' '))}[/bold]")
        found = [probe for probe in document["probes"] if probe["family"] == family]
        for probe in sorted(found, key=lambda one: -abs(one["effect_sd"]["value"])):
            effect, flips = Estimate(**probe["effect_sd"]), probe["flip_rate"]
            table.add_row(
                f"{'*' if probe['flagged'] else ' '} {escape(probe['name'])}",
                f"{effect.value:+.2f}",
                escape(f"[{effect.low:+.2f}, {effect.high:+.2f}]"),
                f"{probe['win_rate']['value']:.0%}",
                "" if flips is None else f"{flips['value']:.0%}",
                f"{effect.n:,}",
            )
    return table
