"""What the numbers say, in sentences: first one for whoever decides, then one a subject with its interval. Nothing is said that no number shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rewardsmith.evaluation.pages.folders import AUDIT, Report, evaluation_of
from rewardsmith.evaluation.pages.numbers import (
    LONGEST_TEXT,
    baseline_name,
    best_baseline,
    equal,
    estimate,
    estimates,
    mapping,
    percent,
    points,
    points_interval,
    share,
)
from rewardsmith.evaluation.pages.probes import LEAST_EFFECT
from rewardsmith.pages.text import clipped
from rewardsmith.significance import LEVEL

Tone = Literal["good", "unclear", "bad", "plain"]
WORDS: dict[Tone, str] = {"good": "good", "unclear": "not shown", "bad": "watch", "plain": "note"}
"""The tone in one word, so that colour is not the only sign of it."""
_NAMED_SLICES = 3


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence and how good its news are; `subject` names what it is about."""

    tone: Tone
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first sentence of a model, and those that bear it out."""

    name: str
    headline: Sentence
    sentences: list[Sentence]


def verdicts(report: Report) -> list[Verdict]:
    """One verdict a model."""
    return [
        Verdict(model["name"], _headline(model), [*_sentences(model["report"]), *_audits(model)])
        for model in report.models
    ]


def comparisons(report: Report) -> list[tuple[Sentence, str]]:
    """One short sentence a comparison, and the whole one with its interval."""
    return [_compared(one) for one in report.document["comparisons"]]


def _compared(one: Mapping[str, Any]) -> tuple[Sentence, str]:
    names = one["model_a"], one["model_b"]
    if not one["num_pairs"]:
        text = f"{names[0]} and {names[1]} share no pair, so nothing compares them."
        return Sentence("unclear", "comparison", text), "Evaluate both on the same data, with the texts stored."
    difference = estimate(one["difference"])
    assert difference is not None
    text = f"{points(difference)} points of accuracy, p {equal(one['p_value'])}, on {one['num_pairs']:,} shared pairs of {one['num_prompts']:,} prompts"
    least = one.get("detectable_difference")
    if least and least["difference"]:
        text += f"; these would show a difference of {100 * least['difference']:.1f} points in {100 * least['power']:.0f} of 100 tries"
    if one["p_value"] >= LEVEL or difference.value == 0:
        return Sentence(
            "unclear", "comparison", f"These pairs do not tell {names[0]} and {names[1]} apart."
        ), f"{text}."
    better, worse = names if difference.value > 0 else names[::-1]
    said = f"{better} is right more often than {worse}, by {abs(100 * difference.value):.1f} points."
    return Sentence("good", "comparison", said), f"{text}."


def _headline(model: Mapping[str, Any]) -> Sentence:
    if model["report"]["verb"] == AUDIT:
        return _audit_headline(model["audits"])
    evaluation = evaluation_of(model["report"])
    accuracy = estimate(evaluation.get("accuracy"))
    if accuracy is None:
        return _benchmark_headline(evaluation)
    right = f"Right on {100 * accuracy.value:.0f} of 100 pairs"
    best = best_baseline(evaluation)
    over = estimate((evaluation.get("over_baselines") or {}).get(best[0])) if best else None
    if accuracy.high < 0.5:
        return Sentence("bad", "accuracy", f"{right}: worse than tossing a coin.")
    if accuracy.low <= 0.5:
        return Sentence("unclear", "accuracy", f"{right}: not shown to be better than tossing a coin.")
    if best is None or over is None:
        return Sentence("plain", "accuracy", f"{right}; a coin is right on 50.")
    rule = f"choosing {baseline_name(best[0])}"
    if over.low > 0:
        return Sentence("good", "accuracy", f"{right}, against {100 * best[1].value:.0f} for {rule}.")
    if over.high < 0:
        return Sentence("bad", "accuracy", f"{right}: fewer than the {100 * best[1].value:.0f} of {rule}.")
    return Sentence("unclear", "accuracy", f"{right}: not shown to be better than {rule}.")


def _benchmark_headline(evaluation: Mapping[str, Any]) -> Sentence:
    benchmark = evaluation.get("benchmark")
    if not benchmark:
        return Sentence("plain", "accuracy", "Trained, and judged on no held-out pairs.")
    headline = benchmark.get("headline") or {}
    if not isinstance(headline.get("value"), int | float):
        return Sentence("plain", "benchmark", f"Judged by {benchmark['name']}.")
    return Sentence(
        "plain", "benchmark", f"{benchmark['name']}, {headline.get('name', 'score')}: {headline['value']:.3f}."
    )


def _audit_headline(audits: Sequence[Mapping[str, Any]]) -> Sentence:
    """Of a model of which there are only audits: that of the most flagged probes."""
    found = [mapping(audit["report"].get("verdict")) for audit in audits]
    worst = max(found, key=lambda verdict: len(verdict.get("flagged") or ()))
    if worst.get("num_probes") is None:
        return Sentence("plain", "audit", "Audited; no verdict is stored.")
    flagged, num_probes = len(worst.get("flagged") or ()), worst["num_probes"]
    if not flagged:
        text = f"None of {num_probes:,} probes was flagged; smaller effects could have been missed."
        return Sentence("unclear", "audit", text)
    largest = mapping(worst.get("largest")).get("effect_sd")
    by = f": the largest moves the score by {abs(largest):.2f} sd" if isinstance(largest, int | float) else ""
    return Sentence("bad", "audit", f"{flagged:,} of {num_probes:,} probes flagged{by}.")


def _audits(model: Mapping[str, Any]) -> list[Sentence]:
    """Of each audit what was flagged, whether limits were kept, and what changed."""
    audits = model.get("audits") or ()
    found = []
    for audit in audits:
        on = f"On {audit['name']}: " if len(audits) > 1 else ""
        for one in (_probes(audit["report"]), _limits(audit["report"]), _changes(audit["report"])):
            if one is not None:
                found.append(Sentence(one.tone, one.subject, clipped(f"{on}{one.text}", LONGEST_TEXT)))
    return found


def _probes(audit: Mapping[str, Any]) -> Sentence | None:
    verdict = mapping(audit.get("verdict"))
    num_probes = verdict.get("num_probes")
    if num_probes is None:
        return None
    flagged = verdict.get("flagged") or ()
    if not flagged:
        return Sentence("unclear", "Audit", verdict.get("text") or f"None of {num_probes:,} probes was flagged.")
    name = mapping(verdict.get("largest")).get("name", flagged[0])
    readings = {one.get("name"): one.get("reading") for one in audit.get("probes") or ()}
    reading = readings.get(name) or name
    are = "is" if len(flagged) == 1 else "are"
    text = (
        f"{len(flagged):,} of {num_probes:,} probes {are} flagged: an effect of at least {LEAST_EFFECT} sd, beyond what looking at so many explains. "
        f"The largest: {reading}."
    )
    return Sentence("bad", "Audit", text)


def _limits(audit: Mapping[str, Any]) -> Sentence | None:
    limits = mapping(audit.get("verdict")).get("limits")
    if not limits:
        return None
    over = [one for one in limits if not one.get("ok")]
    if not over:
        return Sentence("good", "Limits", f"Probes with a limit, all within it: {len(limits):,}.")
    named = "; ".join(_limit(one) for one in over[:_NAMED_SLICES])
    more = f"; and {len(over) - _NAMED_SLICES:,} more" if len(over) > _NAMED_SLICES else ""
    are = "is" if len(over) == 1 else "are"
    return Sentence(
        "bad", "Limits", f"{len(over):,} of {len(limits):,} probes with a limit {are} over it: {named}{more}."
    )


def _limit(one: Mapping[str, Any]) -> str:
    effect = one.get("effect_sd")
    found = f"{effect:+.2f} sd" if isinstance(effect, int | float) else "not measured"
    return f"{one.get('probe')} ({found}, limit {one.get('limit_sd')} sd)"


def _changes(audit: Mapping[str, Any]) -> Sentence | None:
    changes = mapping(audit.get("changes"))
    if not changes.get("text"):
        return None
    worse, better = (
        any(changes.get(key) for key in keys) for keys in (("newly_flagged", "grown"), ("no_longer_flagged", "shrunk"))
    )
    return Sentence("bad" if worse else "good" if better else "plain", "Changes", str(changes["text"]))


def _sentences(report: Mapping[str, Any]) -> list[Sentence]:
    evaluation = evaluation_of(report)
    found = [
        _accuracy(evaluation),
        _over_baseline(evaluation),
        _calibration(evaluation),
        _slices(evaluation),
        _overfitting(report),
        _learning(evaluation),
        _truncation(evaluation),
        _ties(evaluation),
        _detectable(evaluation),
    ]
    return [one for one in found if one is not None]


def _accuracy(evaluation: Mapping[str, Any]) -> Sentence | None:
    accuracy = estimate(evaluation.get("accuracy"))
    if accuracy is None:
        return None
    prompts = evaluation.get("num_prompts")
    of = f" of {prompts:,} prompts" if prompts is not None else ""
    text = f"The preferred answer scores higher on {share(accuracy)} of {accuracy.n:,} held-out pairs{of}; a tie counts one half."
    tone: Tone = "good" if accuracy.low > 0.5 else "bad" if accuracy.high < 0.5 else "unclear"
    return Sentence(tone, "Accuracy", text)


def _over_baseline(evaluation: Mapping[str, Any]) -> Sentence | None:
    best = best_baseline(evaluation)
    over = estimate((evaluation.get("over_baselines") or {}).get(best[0])) if best else None
    if best is None or over is None:
        return None
    tone: Tone = "good" if over.low > 0 else "bad" if over.high < 0 else "unclear"
    way = "above" if over.value >= 0 else "below"
    text = (
        f"{abs(100 * over.value):.1f} points {way} the best rule that never reads the answers, choosing {baseline_name(best[0])}: "
        f"{share(best[1])}. The difference on the same pairs is {100 * over.value:+.1f} points {points_interval(over)}."
    )
    return Sentence(tone, "Content", text)


def _calibration(evaluation: Mapping[str, Any]) -> Sentence | None:
    calibrated = evaluation.get("calibrated")
    numbers = calibrated or evaluation
    error, null = estimate(numbers.get("ece")), estimate(numbers.get("ece_null"))
    if error is None or null is None:
        return None
    at = (
        f" at the stored temperature {calibrated['temperature']:.2f}"
        if calibrated
        else " (raw, no temperature is stored)"
    )
    perfect = f"a perfectly calibrated model would show {100 * null.low:.1f} to {100 * null.high:.1f} % on these pairs"
    if error.value <= null.high:
        text = f"Nothing here shows its probabilities{at} to be off: calibration error {share(error)}, and {perfect}."
        return Sentence("good", "Confidence", text)
    here = estimate(evaluation.get("temperature_here"))
    lean = ""
    if here is not None and (here.low > 1 or here.high < 1) and not calibrated:
        lean = f" It is too {'sure' if here.low > 1 else 'unsure'} of itself: the temperature that fits here is {here.value:.2f} [{here.low:.2f}, {here.high:.2f}]."
    text = (
        f"Its probabilities{at} cannot be taken at their word: calibration error {share(error)}, and {perfect}.{lean}"
    )
    return Sentence("bad", "Confidence", text)


def _slices(evaluation: Mapping[str, Any]) -> Sentence | None:
    slices = evaluation.get("slices")
    if not slices:
        return None
    flagged = [one for one in slices if one.get("flagged")]
    if not flagged:
        text = f"None of {len(slices):,} slices is worse than the rest beyond what looking at so many explains."
        return Sentence("good", "Weak spots", text)
    named = "; ".join(_slice(one) for one in flagged[:_NAMED_SLICES])
    more = "; ..." if len(flagged) > _NAMED_SLICES else ""
    are = "slices is" if len(flagged) == 1 else "slices are"
    text = f"{len(flagged):,} of {len(slices):,} {are} worse than the rest beyond chance, with so many looked at: {named}{more}."
    return Sentence("bad", "Weak spots", text)


def _slice(one: Mapping[str, Any]) -> str:
    accuracy = estimate(one["accuracy"])
    return f"{one['column']} = {one['value']} ({share(accuracy)})" if accuracy else f"{one['column']} = {one['value']}"


def _overfitting(report: Mapping[str, Any]) -> Sentence | None:
    parts = estimates(report.get("overfitting"))
    if "train" not in parts or not {"dev", "eval"} & parts.keys():
        return None
    name = "eval" if "eval" in parts else "dev"
    unseen = parts[name]
    kind = "held-out" if name == "eval" else "dev"
    gap = estimate(report.get("overfitting_gap"))
    text = f"{share(parts['train'])} on pairs it was trained on, {share(unseen)} on {kind} pairs."
    if gap is None:
        return Sentence("plain", "Learned by heart", text)
    tone: Tone = "bad" if gap.low > 0 else "plain"
    return Sentence(
        tone, "Learned by heart", f"{text} The gap is {100 * gap.value:+.1f} points {points_interval(gap)}."
    )


def _learning(evaluation: Mapping[str, Any]) -> Sentence | None:
    reading = (evaluation.get("learning_curve") or {}).get("reading")
    if not reading:
        return None
    return Sentence("plain", "More data", f"{reading[:1].upper()}{reading[1:]}{'' if reading.endswith('.') else '.'}")


def _truncation(evaluation: Mapping[str, Any]) -> Sentence | None:
    cut, pairs = evaluation.get("truncated"), evaluation.get("num_pairs")
    if cut is None or not pairs:
        return None
    # Labelled ties are cut and counted too, though they stand outside accuracy.
    total = pairs + (evaluation.get("labelled_ties") or 0)
    collapsed = evaluation.get("collapsed") or 0
    same = (
        f" {collapsed:,} {'pair reads' if collapsed == 1 else 'pairs read'} the same to the model on both sides."
        if collapsed
        else ""
    )
    if not cut:
        return Sentence("bad" if collapsed else "good", "Length", f"No answer was cut.{same}")
    text = f"{cut:,} of {total:,} pairs ({percent(cut / total)}) were longer than the model reads, and were cut.{same}"
    return Sentence("bad" if collapsed or cut / total > 0.05 else "plain", "Length", text)


def _ties(evaluation: Mapping[str, Any]) -> Sentence | None:
    ties = estimate(evaluation.get("ties"))
    if ties is None or ties.value <= 0.01:
        return None
    return Sentence("bad", "Ties", f"Both answers have exactly the same score on {share(ties)} of the pairs.")


def _detectable(evaluation: Mapping[str, Any]) -> Sentence | None:
    least = evaluation.get("detectable_difference")
    if not least:
        return None
    text = (
        f"With {least['num_pairs']:,} pairs, another model must differ by {100 * least['difference']:.1f} points or more "
        f"to be told apart in {100 * least['power']:.0f} of 100 tries."
    )
    return Sentence("plain", "Resolution", text)
