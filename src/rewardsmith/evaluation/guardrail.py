"""Score thresholds for guardrails: below which score is an answer stopped, so that good answers are stopped no more often than wished?

Two scales. The raw score, which holds for prompts like those it was fitted on: Bradley-Terry leaves every prompt an offset of its own, so another mix of
prompts is another threshold. And the z-score within a prompt, (s - mean) / sd over answers to the same prompt, which has no such offset and needs several
answers a prompt, in use as well. Legend: `n` answers, `R` resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rewardsmith.data.schema import Preference, prompt_key
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.scores import Scores
from rewardsmith.stats import Estimate, Floats, cluster_bootstrap, cluster_codes, proportion

LEAST_ANSWERS = 3
"""Answers of a prompt that a z-score needs: of two, both are always 0.71 standard deviations from their mean."""
# Below so many good answers the tail that a threshold is read from holds next to nothing.
_FEW_GOOD = 20

Scale = Literal["score", "z within prompt"]


@dataclass(frozen=True)
class Answers:
    """Distinct answers with what the pairs say of them. All arrays (n,).

    Args:
        score: raw, float64.
        good: chosen somewhere and rejected nowhere, bool.
        bad: rejected somewhere and chosen nowhere, bool; an answer that was both is neither.
        prompt: codes of the prompts, 0..C-1.
    """

    score: Floats
    good: NDArray[np.bool_]
    bad: NDArray[np.bool_]
    prompt: NDArray[np.int64]

    def take(self, rows: NDArray[np.bool_]) -> Answers:
        """Some of the answers; prompts keep no gaps in their codes."""
        return Answers(self.score[rows], self.good[rows], self.bad[rows], cluster_codes(self.prompt[rows]))

    def within_prompt(self) -> Answers:
        """Answers of prompts with at least three, their scores as z-scores within the prompt; a prompt whose answers all score the same is left out."""
        counts = np.bincount(self.prompt)
        means = np.bincount(self.prompt, weights=self.score) / counts
        squares = np.bincount(self.prompt, weights=(self.score - means[self.prompt]) ** 2)
        deviations = np.sqrt(squares / np.maximum(1, counts - 1))
        rows = (counts >= LEAST_ANSWERS)[self.prompt] & (deviations > 0)[self.prompt]
        z = (self.score - means[self.prompt]) / np.where(deviations > 0, deviations, 1.0)[self.prompt]
        return Answers(z, self.good, self.bad, self.prompt).take(rows)


def answers_of(pairs: Sequence[Preference], chosen: Scores, rejected: Scores) -> Answers:
    """The distinct answers of pairs, each once.

    Args:
        pairs: none labelled as a tie.
        chosen: (n,) scores of the chosen answers.
        rejected: (n,) scores of the rejected answers.
    """
    found: dict[tuple[str, str], list[Any]] = {}
    for pair, score_chosen, score_rejected in zip(pairs, chosen, rejected, strict=True):
        for (prompt, answer), score, place in (
            (pair.chosen_pair, score_chosen, 1),
            (pair.rejected_pair, score_rejected, 2),
        ):
            key = (prompt_key(prompt), answer)
            found.setdefault(key, [float(score), False, False])[place] = True
    score, was_chosen, was_rejected = (np.array(column) for column in zip(*found.values(), strict=True))
    was_chosen, was_rejected = was_chosen.astype(bool), was_rejected.astype(bool)
    prompts = cluster_codes([prompt for prompt, _ in found])
    return Answers(score.astype(np.float64), was_chosen & ~was_rejected, was_rejected & ~was_chosen, prompts)


@dataclass(frozen=True)
class Threshold:
    """A score below which an answer is stopped.

    Args:
        scale: what is compared with it.
        wished: share of good answers that may be stopped.
        threshold: with the interval of a bootstrap over prompts.
        false_alarms: share of good answers stopped, on prompts that the threshold was not fitted on.
        caught: share of bad answers stopped, on the same prompts.
    """

    scale: Scale
    wished: float
    threshold: Estimate
    false_alarms: Estimate
    caught: Estimate

    def as_dict(self) -> dict[str, Any]:
        """The document that model folders and reports hold."""
        estimates = {name: getattr(self, name).as_dict() for name in ("threshold", "false_alarms", "caught")}
        return {"scale": self.scale, "wished_false_alarms": self.wished, **estimates}


def quantile_below(scores: Floats, clusters: NDArray[np.int64], share: float, *, seed: int = 0) -> Estimate:
    """The largest threshold with at most `share` of the scores strictly below it, with a bootstrap interval over clusters.

    Args:
        scores: (n,).
        clusters: (n,) codes 0..C-1.
        share: in [0, 1).
        seed: of the resamples.

    Raises:
        DataError: if there is no score.

    >>> quantile_below(np.arange(10.0), np.arange(10), 0.25).value
    2.0
    """
    order = np.argsort(scores, kind="stable")
    rising = scores[order]

    def statistic(weights: Floats) -> Floats:
        sorted_weights = weights[:, order]
        up_to = np.cumsum(sorted_weights, axis=1)  # (R, n) weight of each score and all below it
        # The first score that, were it stopped too, would make too many; of a score drawn 0 times nothing is stopped.
        beyond = up_to > share * up_to[:, -1:] + 1e-9
        return np.asarray(rising[beyond.argmax(axis=1)])

    return cluster_bootstrap(statistic, clusters, seed=seed)


def fit_threshold(fit: Answers, held_out: Answers, share: float, *, scale: Scale, seed: int = 0) -> Threshold | str:
    """The threshold for a wished false-alarm rate on one scale, or the reason why these answers give none.

    Args:
        fit: answers that the threshold is read from.
        held_out: answers of other prompts, for the rates that are reported.
        share: wished share of false alarms, 0 < share < 1.
        scale: of the scores.
        seed: of the resamples.

    Raises:
        SettingsError: if the share is no such number.
    """
    if not 0 < share < 1:
        raise SettingsError("a false-alarm rate between 0 and 1", f"{share:g}", "Write for example 0.05.")
    if scale == "z within prompt":
        fit, held_out = fit.within_prompt(), held_out.within_prompt()
    needed = max(_FEW_GOOD, int(np.ceil(1 / share)))
    if fit.good.sum() < needed:
        several = f" of prompts with at least {LEAST_ANSWERS} answers" if scale == "z within prompt" else ""
        return f"needs {needed} good answers{several} for a rate of {share:g}; there are {int(fit.good.sum())}"
    if not held_out.good.any() or not held_out.bad.any():
        return "no good and bad answers are held out, to see what the threshold does"
    good, bad = held_out.take(held_out.good), held_out.take(held_out.bad)
    reference = fit.take(fit.good)
    threshold = quantile_below(reference.score, reference.prompt, share, seed=seed)
    return Threshold(
        scale=scale,
        wished=share,
        threshold=threshold,
        false_alarms=proportion((good.score < threshold.value).astype(float), good.prompt, seed=seed),
        caught=proportion((bad.score < threshold.value).astype(float), bad.prompt, seed=seed),
    )


def thresholds(
    fit: Answers, held_out: Answers, shares: Sequence[float], *, seed: int = 0
) -> tuple[list[Threshold], dict[str, str]]:
    """Thresholds on both scales for every wished rate, and the reasons of those that cannot be had.

    Raises:
        SettingsError: if a share is not between 0 and 1.
        DataError: if no share is given.
    """
    if not shares:
        raise DataError("at least one false-alarm rate", "none", "Give one, for example 0.05.")
    found, missing = [], {}
    scales: tuple[Scale, ...] = ("score", "z within prompt")
    for scale in scales:
        for share in shares:
            one = fit_threshold(fit, held_out, share, scale=scale, seed=seed)
            if isinstance(one, Threshold):
                found.append(one)
            else:
                missing[f"{scale}, {share:g}"] = one
    return found, missing
