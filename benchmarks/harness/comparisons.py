"""Rows of training that several scripts share: rewardsmith beside TRL, and rewardsmith with shared prompts beside itself without."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.checks import Check, same_count, same_losses
from harness.processes import Process
from harness.record import Row, row
from harness.rounds import Report, in_turns, ratios, same_work, speed
from harness.script import PACKAGES, process

# The same for both; what they do not name is each tool's own.
LEARNING_RATE, WARMUP = 5e-5, 0.05


@dataclass(frozen=True)
class Measured:
    """What a comparison found.

    Args:
        reports: of the rounds, by tool.
        checks: by (one of ours, another tool).
        facts: what each tool said of itself.
    """

    reports: dict[str, list[Report]]
    checks: dict[tuple[str, str], list[Check]]
    facts: dict[str, dict[str, Any]]


def recipe(**more: Any) -> dict[str, Any]:
    """Settings of ours for a comparison."""
    return {"learning_rate": LEARNING_RATE, **more}


def arguments(*, max_length: int | None, **more: Any) -> dict[str, Any]:
    """Arguments of TRL for a comparison: the same schedule, and texts of the same length."""
    return {
        "learning_rate": LEARNING_RATE,
        "warmup_steps": WARMUP,
        "weight_decay": 0.0,
        "max_length": max_length,
        **more,
    }


def compare(
    asked: argparse.Namespace,
    folder: Path,
    tools: Mapping[str, tuple[str, dict[str, Any]]],
    versus: Sequence[tuple[str, str]],
) -> Measured:
    """Run training tools in turns.

    Args:
        asked: options of the script.
        folder: for files.
        tools: name -> (job, its settings).
        versus: (one of ours, another tool): whose work is compared.
    """
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(process(asked, folder, name, job, **settings))
            for name, (job, settings) in tools.items()
        }
        checks = _checks(running, versus)
        reports = in_turns(running, asked.rounds)
        facts = {name: tool.facts for name, tool in running.items()}
    for (ours, theirs), found in checks.items():
        found += same_work({ours: reports[ours], theirs: reports[theirs]})
    return Measured(reports, checks, facts)


def _checks(running: Mapping[str, Process], versus: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[Check]]:
    """The other tool follows the order in which ours sees the data."""
    curves: dict[str, dict[str, Any]] = {}
    found = {}
    for ours, theirs in versus:
        own, other = running[ours], running[theirs]
        precision = "bf16" if "bf16" in (own.facts["precision"], other.facts["precision"]) else "float32"
        counts = [
            same_count(what, {ours: own.facts[key], theirs: other.facts[key]})
            for key, what in (("examples", "examples"), ("tokens", "real tokens"), ("ids", "hash of all token ids"))
        ]
        if ours not in curves:
            curves[ours] = own.check()
        curve = curves[ours]
        losses = other.check(order=curve["order"])["losses"]
        found[ours, theirs] = [*counts, same_losses(curve["losses"], losses, precision=precision)]
    return found


def against(
    name: str,
    *,
    work: str,
    target: float,
    measured: Measured,
    ours: str,
    theirs: str,
    what: str = "pairs",
    note: Mapping[str, Any] | None = None,
) -> Row:
    """The row of one of ours beside another tool."""
    reports, facts = measured.reports, measured.facts
    precisions = [str(facts[tool]["precision"]) for tool in (ours, theirs)]
    return row(
        name,
        work=work,
        ratios=ratios(reports[ours], reports[theirs]),
        target=target,
        ours={**speed(reports[ours], what), "tool": ours},
        theirs={**speed(reports[theirs], what), "tool": theirs, **(note or {})},
        checks=measured.checks[ours, theirs],
        precision=precisions[0] if precisions[0] == precisions[1] else f"{precisions[0]} / {precisions[1]}",
        packages=PACKAGES,
    )


def sharing(
    name: str,
    *,
    work: str,
    target: float,
    measured: Measured,
    ours: str,
    unshared: str,
    ceiling: float,
    what: str = "pairs",
    **more: Any,
) -> Row:
    """The row of shared prompts beside the same without: the measured saving over what the tokens allow."""
    reports = measured.reports
    saved = ratios(reports[ours], reports[unshared])
    return row(
        name,
        work=work,
        ratios=[one / ceiling for one in saved],
        target=target,
        ours={**speed(reports[ours], what), "tool": ours},
        theirs={**speed(reports[unshared], what), "tool": unshared},
        checks=measured.checks[ours, unshared],
        precision=str(measured.facts[ours]["precision"]),
        packages=PACKAGES,
        token_ceiling=round(ceiling, 3),
        saving=[round(one, 3) for one in saved],
        **more,
    )
