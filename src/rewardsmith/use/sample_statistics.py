"""What one step's answers look like, as numbers that a watch keeps: rewards, lengths, repetition, variety.

Legend: `n` samples of a step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from rewardsmith.errors import DataError
from rewardsmith.scores import DomainDetector
from rewardsmith.stats import Floats, cluster_codes
from rewardsmith.use.repetition import repeated_share
from rewardsmith.use.samples import Rewards, Sample

# A sign is a word of its own, so that "!!!!" repeats itself; so is a character of a script without spaces.
_WORD = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|[^\\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]+|[^\\w\\s]"
)
_REPEATED = 4
# Longer answers have fewer distinct n-grams by Zipf's law alone: only so many words of each are counted.
_COUNTED_WORDS = 50


@dataclass(frozen=True)
class StepRow:
    """One step of a run. None where a number cannot be had: nobody counted, or nothing varies.

    Args:
        step: of the trainer.
        num_samples: answers of the step.
        num_groups: prompts with several answers among them.
        reward: mean, after shaping.
        score: mean, raw.
        terms: what each step of shaping added on average.
        length: mean characters.
        tokens: mean tokens of the policy.
        finished: share of answers that the policy ended itself.
        kl: mean nats an answer.
        length_correlation: Spearman's, of reward and characters, over the answers of the step.
        outside_domain: share of texts outside of the reward model's domain.
        distinct_1: distinct words over words, of the first 50 words of each answer.
        distinct_2: the same of neighbouring words.
        repetition: mean over answers of `repeated_share` of runs of four words, signs being words of their own.
        equal_groups: of the groups, the share with equal rewards: nothing is learned from them.
        counts: what shaping counted.
    """

    step: int
    num_samples: int
    num_groups: int
    reward: float
    score: float
    terms: dict[str, float]
    length: float
    tokens: float | None
    finished: float | None
    kl: float | None
    length_correlation: float | None
    outside_domain: float | None
    distinct_1: float | None
    distinct_2: float | None
    repetition: float
    equal_groups: float | None
    counts: dict[str, int] = field(default_factory=dict)

    def value(self, name: str) -> float | None:
        """One number by its name; a term as "terms/NAME"."""
        if name.startswith("terms/"):
            return self.terms.get(name.removeprefix("terms/"))
        found = getattr(self, name)
        return None if found is None else float(found)

    def scalars(self) -> dict[str, float]:
        """All numbers that there are, for a trainer's log."""
        plain = {name: self.value(name) for name in NUMBERS}
        found = {name: value for name, value in plain.items() if value is not None}
        return found | {f"terms/{name}": value for name, value in self.terms.items()}


NUMBERS = (
    "reward", "score", "length", "tokens", "finished", "kl", "length_correlation", "outside_domain", "distinct_1", "distinct_2",
    "repetition", "equal_groups",
)  # fmt: skip
"""The numbers of a row but for the terms."""


def step_row(
    step: int, samples: Sequence[Sample], rewards: Rewards, *, domain: DomainDetector | None = None
) -> StepRow:
    """Look at the answers of one step.

    Args:
        step: of the trainer.
        samples: at least one.
        rewards: theirs, in their order.
        domain: of the reward model; None for none.

    Raises:
        DataError: if there is no sample, there are not as many rewards, or one is not finite.
    """
    n = len(samples)
    value, score = np.asarray(rewards.value, np.float64), np.asarray(rewards.score, np.float64)
    if n == 0 or value.shape != (n,) or score.shape != (n,):
        came = f"{n} samples, rewards of shape {value.shape} and scores of shape {score.shape}"
        raise DataError("samples with a reward and a score each", came, "Hand over what the reward function was given.")
    if not (np.isfinite(value).all() and np.isfinite(score).all()):
        raise DataError("finite rewards", f"others at step {step}", "Mend the reward function.")
    groups = cluster_codes([sample.group for sample in samples])
    sizes = np.bincount(groups)
    lengths = np.array([len(sample.answer) for sample in samples], np.float64)
    words = [words_of(sample.answer) for sample in samples]
    outside = None
    if domain is not None:
        outside = float(np.mean([flag.outside for flag in domain.flags([sample.pair for sample in samples])]))
    return StepRow(
        step=step,
        num_samples=n,
        num_groups=int((sizes > 1).sum()),
        reward=float(value.mean()),
        score=float(score.mean()),
        terms={name: float(np.asarray(one, np.float64).mean()) for name, one in rewards.terms.items()},
        length=float(lengths.mean()),
        tokens=_mean([sample.num_tokens for sample in samples]),
        finished=_mean([sample.is_finished for sample in samples]),
        kl=_mean([sample.kl for sample in samples]),
        length_correlation=rank_correlation(value, lengths),
        outside_domain=outside,
        distinct_1=distinct(words, 1),
        distinct_2=distinct(words, 2),
        repetition=float(np.mean([repeated_share(" ".join(one), _REPEATED) for one in words])),
        equal_groups=_equal_groups(value, groups, sizes),
        counts=dict(rewards.counts),
    )


def words_of(text: str) -> list[str]:
    """Words in lower case, signs by themselves.

    >>> words_of("Wow!! It works.")
    ['wow', '!', '!', 'it', 'works', '.']
    """
    return _WORD.findall(text.lower())


def distinct(answers: Sequence[Sequence[str]], size: int) -> float | None:
    """Distinct-n (Li et al. 2016, "A diversity-promoting objective function"), of the first 50 words of each answer; None where there is no such n-gram.

    >>> distinct([["a", "b"], ["a", "c"]], 1)  # a, b and c of 4 words
    0.75
    """
    found = [gram for words in answers for gram in _grams(words[:_COUNTED_WORDS], size)]
    return len(set(found)) / len(found) if found else None


def rank_correlation(first: Floats, second: Floats) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one of the two does not vary."""
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (first, second)]
    spread = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum()) / spread if spread else None


def joined(parts: Sequence[tuple[Sequence[Sample], Rewards]]) -> tuple[list[Sample], Rewards]:
    """Parts of one step as one; a term that a part does not have added nothing there, and counts are added."""
    samples = [sample for some, _ in parts for sample in some]
    names = dict.fromkeys(name for _, rewards in parts for name in rewards.terms)
    terms: dict[str, Any] = {
        name: np.concatenate([rewards.terms.get(name, np.zeros(len(some))) for some, rewards in parts])
        for name in names
    }
    counts: dict[str, int] = {}
    for _, rewards in parts:
        for name, count in rewards.counts.items():
            counts[name] = counts.get(name, 0) + count
    values = np.concatenate([rewards.value for _, rewards in parts])
    scores = np.concatenate([rewards.score for _, rewards in parts])
    return samples, Rewards(values, scores, terms, counts)


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _equal_groups(values: Floats, groups: NDArray[np.int64], sizes: NDArray[np.int64]) -> float | None:
    several = sizes > 1
    if not several.any():
        return None
    high, low = np.full(len(sizes), -np.inf), np.full(len(sizes), np.inf)
    np.maximum.at(high, groups, values)
    np.minimum.at(low, groups, values)
    return float((high == low)[several].mean())
