"""Rounds: each tool does the same piece of work in its turn, and a ratio is taken inside a round, so that a machine that slows down slows both sides."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from harness.checks import Check, same_count
from harness.record import spread
from rewardsmith.errors import SettingsError

FEWEST_ROUNDS = 5
Report = dict[str, Any]


class Tool(Protocol):
    """Something that can be told to do its round."""

    def round(self) -> Report:
        """Do one round of work: `seconds` that it took, and `work`, counts of what was done."""
        ...


def say(text: str) -> None:
    """A line of progress, on standard error: standard output holds the results alone."""
    print(text, file=sys.stderr, flush=True)


def in_turns(tools: Mapping[str, Tool], rounds: int, *, tell: Callable[[str], None] = say) -> dict[str, list[Report]]:
    """The reports of every tool, one a round, in the order of the rounds; a first round warms up and is not among them.

    Raises:
        SettingsError: if there would be fewer than five rounds.
    """
    check_rounds(rounds)
    reports: dict[str, list[Report]] = {name: [] for name in tools}
    for number in range(rounds + 1):
        for name, tool in tools.items():
            report = tool.round()
            tell(f"{'warm-up' if number == 0 else f'round {number}'}: {name} {report['seconds']:.2f} s")
            if number:
                reports[name].append(report)
    return reports


def check_rounds(rounds: int) -> None:
    """Refuse too few of them.

    Raises:
        SettingsError: if there would be fewer than five.
    """
    if rounds < FEWEST_ROUNDS:
        raise SettingsError(f"at least {FEWEST_ROUNDS} rounds", str(rounds), "Make a round shorter instead.")


def ratios(ours: Sequence[Report], theirs: Sequence[Report]) -> list[float]:
    """How many times as long the other tool took in each round.

    >>> ratios([{"seconds": 2.0}, {"seconds": 4.0}], [{"seconds": 6.0}, {"seconds": 4.0}])
    [3.0, 1.0]
    """
    return [other["seconds"] / own["seconds"] for own, other in zip(ours, theirs, strict=True)]


def fastest(reports: Mapping[str, Sequence[Report]], names: Sequence[str]) -> str:
    """The tool whose rounds took the least time in all."""
    return min(names, key=lambda name: sum(report["seconds"] for report in reports[name]))


def same_work(reports: Mapping[str, Sequence[Report]]) -> list[Check]:
    """One check a count that the tools report: it is the same in all rounds of all tools."""
    counts: dict[str, dict[str, Any]] = {}
    for name, own in reports.items():
        for number, report in enumerate(own, start=1):
            for what, count in report["work"].items():
                counts.setdefault(what, {})[f"{name}, round {number}"] = count
    expected = sum(map(len, reports.values()))
    found = []
    for what, by_round in counts.items():
        check = same_count(f"{what} a round", by_round)
        whole = check.ok and len(by_round) == expected
        found.append(Check(check.name, whole, next(iter(by_round.values())) if whole else check.found))
    return found


def speed(reports: Sequence[Report], what: str) -> dict[str, Any]:
    """Work a second over the rounds, of the kind `what`, and the seconds of the rounds."""
    rates = [report["work"][what] / report["seconds"] for report in reports]
    seconds = spread([report["seconds"] for report in reports])
    return {f"{what}_per_second": spread(rates)["median"], "seconds": seconds}
