"""Estimates -> bars on a scale that they share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rewardsmith.evaluation.pages.numbers import Form
from rewardsmith.pages.drawing import Bar, Scale, bar_scale
from rewardsmith.stats import Estimate

Ticks = list[tuple[float, str]]


def bar(name: str, one: Estimate, scale: Scale, form: Form, *, reference: float | None, kind: str = "") -> Bar:
    """One estimate as a bar.

    Args:
        name: what it is of.
        one: the estimate.
        scale: that it is drawn on.
        form: how it is written.
        reference: the value that means nothing; where there is none, the point is filled.
        kind: class of the row.
    """
    return Bar(
        name=name,
        value=form.value(one),
        interval=form.interval(one),
        num_pairs=one.n,
        method=one.method,
        low=scale(one.low),
        high=scale(one.high),
        middle=scale(one.value),
        is_off=reference is None or one.low > reference or one.high < reference,
        kind=kind,
    )


def share_scale(found: Sequence[Estimate], *, reference: float) -> tuple[Scale, Ticks]:
    """The narrowest scale of whole tens of percent that holds all intervals and the reference, with its ticks."""
    bounds = [bound for one in found for bound in (one.low, one.high)] + [reference]
    low = max(0, math.floor(min(bounds) * 10 + 1e-9))
    high = min(10, math.ceil(max(bounds) * 10 - 1e-9))
    high = max(high, low + 1)
    scale = bar_scale(low / 10, high / 10)
    step = 1 if high - low <= 5 else 2
    return scale, [(scale(tick / 10), f"{10 * tick} %") for tick in range(low, high + 1, step)]


def points_scale(found: Sequence[Estimate]) -> tuple[Scale, Ticks]:
    """A scale for differences of shares: as far to both sides of 0, in whole tens of points."""
    furthest = max(max(abs(one.low), abs(one.high)) for one in found)
    reach = max(1, math.ceil(furthest * 10 - 1e-9)) / 10
    scale = bar_scale(-reach, reach)
    return scale, [(scale(mark), f"{100 * mark:+.0f}" if mark else "0") for mark in (-reach, 0.0, reach)]
