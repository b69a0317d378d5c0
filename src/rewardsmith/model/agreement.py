"""How near an exported model stays to its reference: its scores, the order it puts answers in, its accuracy. Plain numbers, no model: another program or server may have given them.

Legend: `n` texts or pairs; `reference` and `found` are float32 scores of the same texts by the network in float32 and by the exported model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardsmith import metrics
from rewardsmith.data import io
from rewardsmith.data.faults import EMPTY, content_fault
from rewardsmith.data.schema import Preference, prompt_key
from rewardsmith.data.sources import source_name
from rewardsmith.errors import DataError
from rewardsmith.model.artefact import TOLERANCE_ACROSS, TOLERANCE_BF16, Check, difference
from rewardsmith.scores import Scores
from rewardsmith.stats import Estimate, cluster_codes, mean, proportion, wilson

SCORE_BOUNDS = {"float32": TOLERANCE_ACROSS, "bf16": TOLERANCE_BF16}
"""The largest |difference| / max(1, |s|) to the reference by precision; int8 is bound by the order of answers alone."""


@dataclass(frozen=True)
class Comparison:
    """What was compared, whether it keeps its bounds, and the numbers for the record."""

    checks: list[Check]
    document: dict[str, Any]


def pairs_to_compare(source: str, *, skip_bad: bool = False) -> tuple[list[Preference], dict[str, Any]]:
    """The pairs of a source with two answers and a winner, and what is recorded of it.

    Raises:
        DataError: if there is none.
    """
    reading = io.read(source, skip_bad=skip_bad)
    found = io.preferences(reading.rows, source)
    usable = [pair for pair in found if not pair.tie and content_fault(pair) != EMPTY]
    if not usable:
        raise DataError(
            "at least one pair with two answers and a winner", f"{len(found)} rows without", "Check the data."
        )
    return usable, {
        "source": source_name(source),
        "sha256": io.fingerprint(usable),
        "without_winner": len(found) - len(usable),
        "skipped_bad": dict(reading.skipped),
    }


def compare_golden(reference: Scores, found: Scores, *, precision: str, min_agreement: float) -> Comparison:
    """Compare on the golden inputs: all pairs of texts whose reference scores differ by more than float noise."""
    agreement = golden_agreement(reference, found)
    worst = difference(reference, found)
    checks = _score_checks("golden", worst, precision)
    if agreement is None:
        checks.append(
            Check("golden agreement", False, "the reference gives all golden inputs one score: no order to keep")
        )
    else:
        detail = f"{_told(agreement)} pairs of {len(reference)} texts, a small sample; needed {min_agreement:g}"
        checks.append(Check("golden agreement", agreement.value >= min_agreement, detail))
    document = {"max_difference": worst, "agreement": None if agreement is None else agreement.as_dict()}
    return Comparison(checks, document)


def golden_agreement(reference: Scores, found: Scores) -> Estimate | None:
    """The share of pairs of texts in one order by both, ties of the exported model one half; None where no two reference scores differ.

    The interval is that of as many examples as there are texts, for pairs that share a text stand and fall together.

    >>> golden_agreement(np.array([0.0, 1.0, 2.0], np.float32), np.array([0.0, 2.0, 1.0], np.float32)).value
    0.6666666666666666
    """
    first, second = np.triu_indices(len(reference), 1)
    margins = (reference[first] - reference[second]).astype(np.float64)
    noise = 2 * TOLERANCE_ACROSS * np.maximum(1.0, np.maximum(np.abs(reference[first]), np.abs(reference[second])))
    told = np.abs(margins) > noise
    if not told.any():
        return None
    again = (found[first] - found[second]).astype(np.float64)[told]
    share = float((1 - np.abs(metrics.wins(margins[told]) - metrics.wins(again))).mean())
    wide = wilson(share * len(reference), len(reference))
    return Estimate(share, wide.low, wide.high, int(told.sum()), f"wilson on {len(reference)} texts")


def compare_pairs(
    pairs: Sequence[Preference],
    reference: Scores,
    found: Scores,
    *,
    precision: str,
    min_agreement: float,
    seed: int = 0,
) -> Comparison:
    """Compare on preference pairs; the scores are (2n,): those of all chosen answers, then those of all rejected ones."""
    n = len(pairs)
    clusters = cluster_codes([prompt_key(pair.prompt) for pair in pairs])
    before, after = (scores[:n].astype(np.float64) - scores[n:] for scores in (reference, found))
    won_before, won_after = metrics.wins(before), metrics.wins(after)
    agreement = proportion(1 - np.abs(won_before - won_after), clusters, seed=seed)
    worst = difference(reference, found)
    checks = _score_checks("data", worst, precision)
    detail = f"{_told(agreement)} pairs; needed {min_agreement:g}"
    checks.append(Check("data agreement", agreement.value >= min_agreement, detail))
    document = {
        "num_pairs": n,
        "num_prompts": int(clusters.max()) + 1,
        "max_difference": worst,
        "agreement": agreement.as_dict(),
        "accuracy_reference": metrics.accuracy(before, clusters, seed=seed).as_dict(),
        "accuracy": metrics.accuracy(after, clusters, seed=seed).as_dict(),
        "difference": mean(won_after - won_before, clusters, seed=seed).as_dict(),
    }
    return Comparison(checks, document)


def _score_checks(name: str, worst: float, precision: str) -> list[Check]:
    bound = SCORE_BOUNDS.get(precision)
    if bound is None:
        return [Check(f"{name} scores", bool(np.isfinite(worst)), f"{precision} is bound by the order alone", worst)]
    return [Check(f"{name} scores", worst <= bound, f"within {bound:g} x max(1, |s|) of the reference", worst)]


def _told(estimate: Estimate) -> str:
    return f"same order in {estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}] of {estimate.n:,}"
