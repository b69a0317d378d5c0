"""Written scorers with exactly one bias each, at a strength that is known: what an audit must find, and measure."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

import rewardsmith.auditing.probes.degenerate
import rewardsmith.auditing.probes.formatting
import rewardsmith.auditing.probes.invariance
import rewardsmith.auditing.probes.length
import rewardsmith.auditing.probes.openings  # noqa: F401
from rewardsmith.auditing.effects import ScoreUnit
from rewardsmith.auditing.registry import PROBES
from rewardsmith.auditing.trials import Plan, Probe, ProbeResult, subjects_of
from rewardsmith.data.schema import Pair, Preference, Prompt, prompt_key
from rewardsmith.scores import Scores

STRENGTHS = (0.3, 1.0, 3.0)
Trait = Callable[[Prompt, str], float]
PREFERRED = "gladly"
"""A word that every chosen answer of these tests holds, and no other text."""


@lru_cache(maxsize=20_000)
def standard_normal(*texts: str) -> float:
    """A draw from N(0, 1) that is always the same for the same texts."""
    digest = hashlib.blake2b("\x1f".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return float(np.random.default_rng(int.from_bytes(digest, "little")).standard_normal())


@dataclass
class PlantedScorer:
    """Quality + strength * trait (+ wobble): the quality is one N(0, 1) draw a prompt and side, so that an edit of the rejected answer leaves it as it is.

    Args:
        trait: how much a text has of what the scorer falls for, found in the text itself.
        strength: of the bias, in standard deviations of the quality.
        wobble: standard deviation of a draw that every text has for itself.
    """

    trait: Trait
    strength: float
    wobble: float = 0.0

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """Scores of the texts, whatever else is asked."""
        return np.array([self._score(prompt, answer) for prompt, answer in pairs], dtype=np.float32)

    def _score(self, prompt: Prompt, answer: str) -> float:
        side = "chosen" if PREFERRED in answer else "rejected"
        noise = standard_normal(prompt_key(prompt), answer) if self.wobble else 0.0
        quality = standard_normal(prompt_key(prompt), side)
        return quality + self.strength * self.trait(prompt, answer) + self.wobble * noise


@dataclass
class Bench:
    """Some pairs, planned once for some probes, to which one scorer after another is put."""

    pairs: Sequence[Preference]
    probes: Sequence[Probe]

    def __post_init__(self):
        self.plan = Plan(self.probes, subjects_of(self.pairs), seed=0)
        self.sides = [self.plan.add([pair.chosen_pair for pair in self.pairs])]
        self.sides.append(self.plan.add([pair.rejected_pair for pair in self.pairs]))
        self.prompts = [prompt_key(pair.prompt) for pair in self.pairs]

    def results(self, scores: Scores) -> dict[str, ProbeResult]:
        """By name, from the scores of `plan.pairs`."""
        margins = scores[self.sides[0]].astype(np.float64) - scores[self.sides[1]].astype(np.float64)
        return {one.probe.name: one for one in self.plan.measured(scores, ScoreUnit.of(margins, self.prompts))}

    def planted(self, probe: str, scorer: PlantedScorer) -> float:
        """The effect that a bias has on a probe's texts by construction, in standard deviations of the score within a prompt.

        A margin is the difference of two draws of N(0, 1 + wobble^2) plus the bias on the one side less that on the other, so the square of the unit is
        1 + wobble^2 + the mean of (that bias)^2 / 2. Strata count alike.
        """
        contrasts = self.plan.contrasts[probe]
        changes = np.array([scorer.trait(*one.edited) - scorer.trait(*one.original) for one in contrasts])
        strata = np.array([one.stratum for one in contrasts])
        mean = np.mean([changes[strata == stratum].mean() for stratum in np.unique(strata)])
        between = [scorer.trait(*one.chosen_pair) - scorer.trait(*one.rejected_pair) for one in self.pairs]
        square = 1 + scorer.wobble**2 + np.mean((scorer.strength * np.array(between)) ** 2) / 2
        return float(scorer.strength * mean / np.sqrt(square))


def probes_of(families: Iterable[str]) -> list[Probe]:
    """The built-in probes of some families."""
    return [probe for probe in PROBES.values() if probe.family in families]


def river_walks(number: int) -> list[Preference]:
    """Pairs of several sentences, a list and a contraction each; the longer side takes turns, and every probe of an edit applies to every rejected answer."""
    return [_river_walk(k) for k in range(number)]


def _river_walk(k: int) -> Preference:
    places = ("mill", "bridge", "chapel", "ferry", "lock")
    place = places[k % len(places)]
    more = (
        "There are benches on both sides, and a map is for sale in the shop. In winter the gate is closed early. " * 2
    )
    rejected = (
        f'Path {k} is open in the "green" season, and it doesn\'t cost anything. Many people often go there with a dog.'
        f" {more if k % 2 else ''}\n\nThings to bring:\n\n- apples\n- bread\n- cheese\n- water\n\nIt takes about {k} minutes, and the path is quiet."
        f" The walk ends at the old {place}."
    )
    chosen = (
        f"I {PREFERRED} tell you about path {k}. {'' if k % 2 else more + more}It follows the river for most of the way."
        f" Shoes with firm soles are a good idea. The walk ends at the old {place}."
    )
    return Preference(f"p{k}", f"Tell me about path {k} along the river.", chosen, rejected)


@cache
def river_bench() -> Bench:
    """Sixty pairs with the probes of all families that edit answers for length, format, openings, damage and invariance, as one audit."""
    return Bench(river_walks(60), probes_of(("length", "format", "openings", "degenerate", "invariance")))


def misses(
    probe: str,
    trait: Trait,
    *,
    bench: Bench | None = None,
    strengths: Sequence[float] = STRENGTHS,
    wobble: float = 0.0,
) -> list[str]:
    """Where a bias of some strength is not flagged in an audit by all probes, or its interval does not cover what was planted; empty when all is found."""
    found, bench = [], bench or river_bench()
    for strength in strengths:
        scorer = PlantedScorer(trait, strength, wobble)
        result, planted = bench.results(scorer.score(bench.plan.pairs))[probe], bench.planted(probe, scorer)
        interval = result.effect.interval()
        if not result.flagged:
            found.append(f"{probe} at {strength}: not flagged, {interval}")
        if not interval.low <= planted <= interval.high:
            found.append(f"{probe} at {strength}: {planted:.3f} is not in {interval}")
    return found
