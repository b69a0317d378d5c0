"""Simulated scorers with one habit: quality is noise that an edit does not touch, the habit is read from the text, and its strength is known in standard deviations."""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from rewardsmith.auditing.effects import ScoreUnit
from rewardsmith.auditing.registry import PROBES
from rewardsmith.auditing.trials import LEAST_EFFECT, Plan, ProbeResult, Subject, run_probes, subjects_of, unit_of
from rewardsmith.data.schema import Prompt, prompt_key
from tests.fakes import FunctionScorer, pair

STRENGTHS = (0.3, 1.0, 3.0)
_NAME = re.compile(r"\b(?:good|bad) \d+\b")


def pairs_of(count: int = 200):
    """Pairs of a prompt each; an answer holds its own name, "good 7" or "bad 7", whatever is put around it."""
    return [
        pair(
            i,
            "A plain reply, namely good",
            "A plain reply, namely bad",
            prompt=f"How do I mend thing {i} of kind {i % 7}?",
        )
        for i in range(count)
    ]


def number_of(text: str) -> str:
    """The number of a prompt or an answer of `pairs_of`; empty in other texts."""
    found = re.search(r"(?:thing|good|bad) (\d+)", text)
    return found[1] if found else ""


@cache
def noise(name: str) -> float:
    """A standard normal number for a name, always the same."""
    return float(np.random.default_rng(zlib.crc32(name.encode())).normal())


def quality(answer: str) -> float:
    """Noise of the answer's own name; of the whole text where it has none."""
    found = _NAME.search(answer)
    return noise(found[0] if found else answer)


def with_habit(habit: Callable[[Prompt, str], float], strength: float, of: Callable[[str], float] = quality):
    """Quality with a standard deviation of 1 within a prompt, and so many times the habit on top."""
    return FunctionScorer(lambda prompt, answer: of(answer) + strength * habit(prompt, answer))


def put(name: str, scorer, pairs=None) -> ProbeResult:
    """One probe put to a scorer, on 200 pairs unless others are given."""
    pairs = pairs or pairs_of()
    (result,) = run_probes(scorer, subjects_of(pairs), [PROBES[name]], unit_of(scorer, pairs), seed=0)
    return result


def assert_found(result: ProbeResult, planted: float) -> None:
    """Flagged, and the 95 % interval holds the planted effect."""
    estimate = result.effect.interval()
    assert result.flagged
    assert estimate.low <= planted <= estimate.high, estimate


def edited(name: str, *answers: str, prompt: Prompt = "How do I mend it?", seed: int = 0) -> list[str]:
    """What a probe makes of answers that it applies to."""
    subjects = [Subject(str(i), prompt, answer, "rival") for i, answer in enumerate(answers)]
    return [one.edited[1] for one in PROBES[name].contrasts(subjects, seed)]


@dataclass(frozen=True)
class Shares:
    """Of some simulated audits, in how many a probe is flagged, and in how many its 95 % interval holds the planted effect."""

    flagged: float
    covered: float


def over_qualities(
    name: str, habit: Callable[[Prompt, str], float], strength: float, planted: float, *, rounds: int = 100
) -> Shares:
    """A probe whose two texts differ in quality, put to scorers with one habit and qualities that are drawn anew; an answer has one quality under every prompt."""
    pairs = pairs_of()
    plan = Plan([PROBES[name]], subjects_of(pairs), seed=0)
    chosen, rejected = (plan.add(side) for side in zip(*((p.chosen_pair, p.rejected_pair) for p in pairs), strict=True))
    answers, codes = np.unique([answer for _, answer in plan.pairs], return_inverse=True)
    habits = np.array([habit(prompt, answer) for prompt, answer in plan.pairs], dtype=np.float64)
    rng, flagged, covered = np.random.default_rng(1), 0, 0
    for _ in range(rounds):
        scores = (rng.normal(size=len(answers))[codes] + strength * habits).astype(np.float32)
        (result,) = plan.measured(scores, _unit(scores[chosen], scores[rejected], pairs))
        estimate = result.effect.interval()
        flagged += result.flagged
        covered += estimate.low <= planted <= estimate.high
    return Shares(flagged / rounds, covered / rounds)


def _unit(chosen, rejected, pairs) -> ScoreUnit:
    return ScoreUnit.of(chosen.astype(np.float64) - rejected, [prompt_key(one.prompt) for one in pairs])


def shares_of_false_alarms(
    names: Sequence[str], pairs, *, rounds: int = 200, label: float = 1.0
) -> tuple[float, dict[str, float]]:
    """How many of some simulated audits flag anything, and how often each probe would be flagged alone.

    All scores are drawn anew, and only the preferred answer to a prompt's own gets more.
    """
    plan = Plan([PROBES[name] for name in names], subjects_of(pairs), seed=0)
    chosen, rejected = (plan.add(side) for side in zip(*((p.chosen_pair, p.rejected_pair) for p in pairs), strict=True))
    rng, flagged, alone = np.random.default_rng(0), 0, dict.fromkeys(names, 0)
    for _ in range(rounds):
        scores = rng.normal(size=len(plan.pairs)).astype(np.float32)
        scores[chosen] += label
        results = plan.measured(scores, _unit(scores[chosen], scores[rejected], pairs))
        flagged += any(result.flagged for result in results)
        for result in results:
            alone[result.probe.name] += result.effect.interval().low > 0 and result.effect.value >= LEAST_EFFECT
    return flagged / rounds, {name: count / rounds for name, count in alone.items()}
