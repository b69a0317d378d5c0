"""Estimates and other values of documents as a page shows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rewardsmith.pages.text import clipped
from rewardsmith.pages.text import percent as percent
from rewardsmith.stats import Estimate

BASELINES = {
    "longer": "the longer answer",
    "shorter": "the shorter answer",
    "markdown": "the answer with more Markdown",
    "longer_tokens": "the answer with more tokens",
}
"""Rules that never read the content, as the end of "choosing ..."."""


LONGEST_LABEL, LONGEST_TEXT = 160, 1200
"""Characters of a name, and of a few sentences, that a page shows."""
_ABBREVIATIONS = {"atc": "ATC", "auc": "AUC", "auroc": "AUROC", "doc": "DoC", "kl": "KL", "mmd": "MMD"}


def mapping(value: Any) -> Mapping[str, Any]:
    """A part of a document; an empty one where it holds none."""
    return value if isinstance(value, Mapping) else {}


def words(key: Any) -> str:
    """A key for people: `("prompt_use")` as "prompt use"."""
    return " ".join(_ABBREVIATIONS.get(word, word) for word in str(key).split("_"))


def scalar(value: Any) -> str:
    """A plain value, short.

    >>> scalar(12345), scalar(0.123456), scalar(True)
    ('12,345', '0.1235', 'yes')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return clipped(str(value), LONGEST_LABEL)


def count(value: Any) -> str:
    """A whole number, or nothing where none is known."""
    return f"{value:,}" if isinstance(value, int) else ""


def estimate(document: Any) -> Estimate | None:
    """The Estimate that a part of a document holds; None where it holds none. An end of the interval that is not known lies at infinity."""
    fields = ("value", "low", "high", "n", "method")
    if not isinstance(document, Mapping) or not all(field in document for field in fields):
        return None
    value, low, high, n, method = (document[field] for field in fields)
    if value is None:
        return None
    return Estimate(value, -math.inf if low is None else low, math.inf if high is None else high, n, method)


def estimates(documents: Any) -> dict[str, Estimate]:
    """The estimates among named parts."""
    found = {name: estimate(part) for name, part in (documents or {}).items()}
    return {name: one for name, one in found.items() if one is not None}


def share(one: Estimate) -> str:
    """`66.1 % [63.6, 68.4]`."""
    return f"{percent(one.value)} {share_interval(one)}"


def share_interval(one: Estimate) -> str:
    """`[63.6, 68.4]`, in percent."""
    return f"[{100 * one.low:.1f}, {100 * one.high:.1f}]"


def points(one: Estimate) -> str:
    """A difference of shares, in points with its sign: `+5.1 [+2.0, +8.1]`."""
    return f"{100 * one.value:+.1f} {points_interval(one)}"


def points_interval(one: Estimate) -> str:
    """`[+2.0, +8.1]`, in points."""
    return f"[{100 * one.low:+.1f}, {100 * one.high:+.1f}]"


def plain(one: Estimate) -> str:
    """`0.612 [0.580, 0.640]`."""
    return f"{one.value:.3f} {plain_interval(one)}"


def plain_interval(one: Estimate) -> str:
    """`[0.580, 0.640]`."""
    return f"[{one.low:.3f}, {one.high:.3f}]"


def effect_interval(one: Estimate) -> str:
    """`[+0.12, +0.31]`, in standard deviations."""
    if math.isinf(one.low) and math.isinf(one.high):
        return "not known"
    return f"[{one.low:+.2f}, {one.high:+.2f}]"


@dataclass(frozen=True, slots=True)
class Form:
    """How numbers of one kind are written: the value, and the interval beside it."""

    value: Callable[[Estimate], str]
    interval: Callable[[Estimate], str]


SHARE = Form(lambda one: percent(one.value), share_interval)
POINTS = Form(lambda one: f"{100 * one.value:+.1f}", points_interval)
PLAIN = Form(lambda one: f"{one.value:.3f}", plain_interval)
EFFECT = Form(lambda one: f"{one.value:+.2f}", effect_interval)
COUNT = Form(lambda one: f"{one.value:.0f}", lambda one: f"[{one.low:.0f}, {one.high:.0f}]")


def p_value(value: float | None) -> str:
    """A p-value, never 0.

    >>> p_value(0.00001), p_value(0.0312), p_value(None)
    ('< 0.001', '0.031', 'not tested')
    """
    if value is None:
        return "not tested"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def equal(value: float | None) -> str:
    """A p-value after the letter p: `= 0.031`, `< 0.001`."""
    text = p_value(value)
    return text if text.startswith(("<", "not")) else f"= {text}"


def best_baseline(evaluation: Mapping[str, Any]) -> tuple[str, Estimate] | None:
    """The baseline that is right most often, by its key."""
    found = estimates(evaluation.get("baselines"))
    return max(found.items(), key=lambda item: item[1].value) if found else None


def baseline_name(key: str) -> str:
    """A baseline for people."""
    return BASELINES.get(key, key.replace("_", " "))
