"""What training did to a policy: its answers to the same prompts before and after, drawn by the same numbers, so that differences are paired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from rewardsmith.errors import DataError
from rewardsmith.stats import Estimate, Floats, cluster_codes, mean
from rewardsmith.use.repetition import repeated_share
from rewardsmith.use.samples import Rewards, Sample

_OF_SAMPLES: dict[str, Callable[[Sample], float]] = {
    "characters": lambda sample: len(sample.answer),
    "tokens": lambda sample: float("nan") if sample.num_tokens is None else sample.num_tokens,
    "finished": lambda sample: float("nan") if sample.is_finished is None else float(sample.is_finished),
    "repetition": lambda sample: repeated_share(sample.answer),
}


def policy_change(
    before: tuple[Sequence[Sample], Rewards],
    after: tuple[Sequence[Sample], Rewards],
    kl: Floats,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Means before and after, and their paired difference, clustered by prompt.

    Args:
        before: answers with their rewards.
        after: likewise, answers to the same prompts in the same order.
        kl: nats of each answer after, from the policy before.
        seed: of the bootstraps.

    Returns:
        num_prompts, num_answers, kl (an Estimate), and for reward, score, characters, tokens, finished and repetition {before, after, difference}, each an Estimate.

    Raises:
        DataError: if the two answer other prompts.
    """
    (samples, rewards), (later, later_rewards) = before, after
    groups = [sample.group for sample in samples]
    if not samples or groups != [sample.group for sample in later]:
        raise DataError("answers to the same prompts before and after", "others", "Draw both for one list of prompts.")
    clusters = cluster_codes(groups)
    numbers = {
        "reward": (rewards.value, later_rewards.value),
        "score": (rewards.score, later_rewards.score),
        **{name: ([of(s) for s in samples], [of(s) for s in later]) for name, of in _OF_SAMPLES.items()},
    }
    found: dict[str, Any] = {"num_prompts": int(clusters.max()) + 1, "num_answers": len(samples)}
    found["kl"] = mean(np.asarray(kl, np.float64), clusters, seed=seed).as_dict()
    for name, sides in numbers.items():
        first, second = (np.asarray(side, np.float64) for side in sides)
        if np.isnan(first).any() or np.isnan(second).any():  # nobody counted
            continue
        parts = {"before": first, "after": second, "difference": second - first}
        found[name] = {key: mean(part, clusters, seed=seed).as_dict() for key, part in parts.items()}
    return found


def change_table(document: Mapping[str, Any]) -> Table:
    """The document of `policy_change` for people."""
    prompts, answers = document["num_prompts"], document["num_answers"]
    table = Table(title=f"{answers:,} answers to {prompts:,} held-out prompts", title_justify="left")
    table.add_column("")
    for column in ("before", "after", "difference", "95 % interval"):
        table.add_column(column, justify="right")
    for name, one in document.items():
        if not isinstance(one, Mapping) or "difference" not in one:
            continue
        change = Estimate(**one["difference"])
        values = [f"{one[side]['value']:.3f}" for side in ("before", "after", "difference")]
        table.add_row(name, *values, rf"\[{change.low:.3f}, {change.high:.3f}]")
    kl = Estimate(**document["kl"])
    table.add_row("KL, nats an answer", "0.000", f"{kl.value:.3f}", "", rf"\[{kl.low:.3f}, {kl.high:.3f}]")
    return table
