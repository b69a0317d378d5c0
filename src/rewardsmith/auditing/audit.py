"""The audit: a sample of pairs, every probe and every section on it, and one document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewardsmith.auditing.draws import draw_key
from rewardsmith.auditing.effects import ScoreUnit
from rewardsmith.auditing.scorecard import Limit, held, verdict
from rewardsmith.auditing.trials import Plan, Probe, ProbeResult, Scored, score_all, subjects_of
from rewardsmith.data.faults import content_fault
from rewardsmith.data.schema import Preference, prompt_key
from rewardsmith.data.traits import script
from rewardsmith.errors import DataError
from rewardsmith.scores import Scorer
from rewardsmith.stats import Floats, cluster_codes, proportion

NUM_PROMPTS = 200
"""Prompts of an audit where nothing else is asked: effects of about 0.2 sd are seen, in minutes on two cores."""


@dataclass(frozen=True)
class Sample:
    """The pairs of an audit.

    Args:
        pairs: decided ones without a fault of content, prompt by prompt.
        num_rows: pairs that were offered.
        left_out: how many were not eligible, by reason.
    """

    pairs: list[Preference]
    num_rows: int
    left_out: dict[str, int]


def sample(
    pairs: Sequence[Preference], *, num_prompts: int = NUM_PROMPTS, per_prompt: int = 1, seed: int = 0
) -> Sample:
    """Draw prompts, and pairs of each; the draw depends on the seed and the texts, not on the order of the file.

    Args:
        pairs: labelled pairs.
        num_prompts: at most so many prompts.
        per_prompt: at most so many pairs of each.
        seed: of the draw.

    Raises:
        DataError: if fewer than two prompts have an eligible pair.
    """
    left_out: Counter[str] = Counter()
    by_prompt: dict[str, list[Preference]] = {}
    for pair in pairs:
        fault = "labelled_tie" if pair.tie else content_fault(pair)
        if fault is not None:
            left_out[fault] += 1
            continue
        by_prompt.setdefault(prompt_key(pair.prompt), []).append(pair)
    if len(by_prompt) < 2:
        raise DataError(
            "decided pairs of at least two prompts",
            f"{len(by_prompt)} prompts with an eligible pair among {len(pairs):,} pairs",
            "An audit compares prompts; give pairs of more prompts.",
        )
    order = sorted(by_prompt, key=lambda key: draw_key(seed, key))[:num_prompts]
    taken = [
        pair
        for key in order
        for pair in sorted(by_prompt[key], key=lambda one: draw_key(seed, one.chosen, one.rejected))[:per_prompt]
    ]
    return Sample(taken, len(pairs), dict(left_out))


@dataclass(frozen=True)
class Scores:
    """Everything that was scored, and the pairs' own scores among it.

    Args:
        plan: of the texts.
        scored: their scores.
        chosen: (n,) of the sample's chosen answers, float64.
        rejected: (n,) of its rejected ones.
    """

    plan: Plan
    scored: Scored
    chosen: Floats
    rejected: Floats

    @property
    def margins(self) -> Floats:
        """Score of chosen minus score of rejected, (n,)."""
        return self.chosen - self.rejected


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        document: of `rewardsmith audit --json`, without what is known of the model and the data.
        results: of the probes.
        sample: the pairs.
        unit: of effects.
    """

    document: dict[str, Any]
    results: list[ProbeResult] = field(repr=False)
    sample: Sample = field(repr=False)
    unit: ScoreUnit = field(repr=False)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a contrast, so that every number can be computed again and two audits compared pair by pair."""
        for result in self.results:
            for k, contrast in enumerate(result.contrasts):
                rival = float(result.rival_scores[k])
                yield {
                    "probe": result.probe.name,
                    "id": contrast.id,
                    "cluster": draw_key(0, contrast.cluster).hex(),
                    "stratum": contrast.stratum,
                    "effect_sd": float(result.differences[k]) / self.unit.sd,
                    "score_edited": float(result.edited_scores[k]),
                    "score_original": float(result.original_scores[k]),
                    "score_rival": None if rival != rival else rival,
                }


Section = Callable[[Sample, Scores, Sequence[ProbeResult]], dict[str, Any]]
"""A part of the document beside the probes, made from what was scored (and what it scores itself)."""


def _no_progress(texts_done: int, num_texts: int) -> None:
    pass


def run_audit(
    scorer: Scorer,
    drawn: Sample,
    probes: Sequence[Probe],
    *,
    sections: Mapping[str, Section] | None = None,
    limits: Sequence[Limit] = (),
    seed: int = 0,
    on_texts: Callable[[int, int], None] = _no_progress,
) -> Audit:
    """Put probes to a scorer, and make the document.

    Args:
        scorer: anything that scores.
        drawn: the pairs; see `sample`.
        probes: see `registry.chosen_probes`.
        sections: further parts of the document, by key.
        limits: that the verdict holds effects to.
        seed: of edits and bootstraps.
        on_texts: called with the texts scored and the number of all.

    Raises:
        ScoreError: if a score is missing or not finite, or the scorer tells no two answers apart.
    """
    plan = Plan(probes, subjects_of(drawn.pairs), seed=seed)
    chosen_rows = plan.add([pair.chosen_pair for pair in drawn.pairs])
    rejected_rows = plan.add([pair.rejected_pair for pair in drawn.pairs])
    scored = score_all(scorer, plan.pairs, on_texts=lambda done: on_texts(done, len(plan.pairs)))
    scores = Scores(
        plan,
        scored,
        scored.scores[chosen_rows].astype(np.float64),
        scored.scores[rejected_rows].astype(np.float64),
    )
    names = [prompt_key(pair.prompt) for pair in drawn.pairs]
    unit = ScoreUnit.of(scores.margins, names)
    results = plan.measured(scored.scores, unit, digests=scored.digests, truncated=scored.truncated)
    outcomes = 0.5 + 0.5 * np.sign(scores.margins)
    document: dict[str, Any] = {
        "num_pairs": len(drawn.pairs),
        "num_prompts": len(set(names)),
        "accuracy": proportion(outcomes, cluster_codes(names), seed=seed).as_dict(),
        "score_sd": unit.sd,
        "probes": [result.as_dict() for result in results],
    }
    for key, section in (sections or {}).items():
        document[key] = section(drawn, scores, results)
    document["coverage"] = _coverage(drawn, plan, results, document)
    document["verdict"] = verdict(results, held(limits, results, probes))
    return Audit(document, results, drawn, unit)


def _coverage(drawn: Sample, plan: Plan, results: Sequence[ProbeResult], document: dict[str, Any]) -> dict[str, Any]:
    """What was looked at."""
    scripts = Counter(script(pair.rejected) or "too short to tell" for pair in drawn.pairs)
    turns = [pair.prompt for pair in drawn.pairs]
    return {
        "num_rows": drawn.num_rows,
        "left_out": drawn.left_out,
        "num_pairs": len(drawn.pairs),
        "num_prompts": document["num_prompts"],
        "num_texts": len(plan.pairs),
        "conversations": sum(isinstance(prompt, list) and len(prompt) > 1 for prompt in turns),
        "scripts": dict(scripts.most_common()),
        "probes": {
            result.probe.name: {
                "offered": result.num_subjects,
                "applied": result.num_made,
                "unseen": result.num_unseen,
            }
            for result in results
        },
    }


def not_covered(
    document: dict[str, Any], asked: Sequence[Probe], known: Sequence[Probe], absent: dict[str, str]
) -> list[str]:
    """What was not looked at, one sentence each.

    Args:
        document: of the audit.
        asked: the probes of the audit.
        known: all probes.
        absent: sections that were not run, and why.
    """
    edited = {probe.name for probe in asked if probe.edits_answers}
    names, ran = {probe.name for probe in asked}, {probe["name"] for probe in document["probes"]}
    coverage = document["coverage"]
    lines = [f"{name}: {why}" for name, why in absent.items()]
    left = [probe.name for probe in known if probe.name not in names]
    if left:
        lines.append(f"probes that were not asked: {', '.join(left)}")
    lines += [
        f"{name}: it applied to fewer than two prompts, or to answers that are cut before the edit"
        for name in sorted(names - ran)
    ]
    lines += [
        f"{name}: it applied to {facts['applied']} of {facts['offered']} answers"
        for name, facts in coverage["probes"].items()
        if facts["offered"] and facts["applied"] < 0.1 * facts["offered"]
    ]
    lines += [
        f"{name}: the edit was cut away in {facts['unseen']} of {facts['applied']} answers; "
        + ("its effect is that of the others" if name in edited else "these count as ties")
        for name, facts in coverage["probes"].items()
        if facts["unseen"] and facts["unseen"] > 0.25 * facts["applied"]
    ]
    if coverage["num_rows"] > coverage["num_pairs"]:
        lines.append(
            f"{coverage['num_rows'] - coverage['num_pairs']:,} of the {coverage['num_rows']:,} pairs were not in the sample"
        )
    return lines
