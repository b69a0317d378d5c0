"""Results of probes -> a table on one scale, family by family, and the worked examples of each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, TypeAlias

from rewardsmith.evaluation.pages import numbers
from rewardsmith.evaluation.pages.bars import Ticks, bar
from rewardsmith.evaluation.pages.numbers import EFFECT, LONGEST_LABEL, LONGEST_TEXT
from rewardsmith.pages.drawing import Bar, Scale, bar_scale, round_ticks
from rewardsmith.pages.text import clipped

LEAST_EFFECT = 0.1
"""In standard deviations, as audits have it: a smaller effect is not flagged, however certain."""
# Ends of the scale of effects, in standard deviations: it reaches at least and, but for what is flagged, at most so far; what is flagged is seen within the widest.
_LEAST_REACH, _USUAL_REACH, _MOST_REACH = 0.3, 1.0, 3.0
_LONGEST_EXAMPLE = 600  # characters
# Two texts that share less are not compared word by word.
_LEAST_COMMON = 0.3
_CUT = "..."
_WORD = re.compile(r"\s+|\w+|[^\w\s]")


Marked: TypeAlias = list[tuple[str, bool]]
"""A text in pieces, each with whether it differs from the other text."""


@dataclass(frozen=True, slots=True)
class Example:
    """A worked example of a probe.

    Args:
        id: of the pair.
        prompts: (title, [(role, text)]) of the prompt, and of the one before the edit where that was edited.
        sides: (title, text, score) of the original and the edited answer.
        rival: score of the preferred answer, if there is one.
    """

    id: str
    prompts: list[tuple[str, list[tuple[str, str]]]]
    sides: list[tuple[str, Marked, str]]
    rival: str | None


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """One probe as the table shows it.

    Args:
        adjusted: ends of the interval after Holm's procedure, in percent of the bar.
        beyond: -1 or 1 where the effect lies beyond that end of the scale, else 0.
        size: of the effect, whatever its sign.
        order: what goes the way of a finding is greater.
    """

    name: str
    says: str
    is_flagged: bool
    bar: Bar | None
    adjusted: tuple[float, float] | None
    beyond: int
    wins: str
    overtakes: str
    overtakes_reference: str
    unseen: str
    reading: str
    facts: list[tuple[str, str]]
    examples: list[Example]
    size: float
    order: float


@dataclass(frozen=True, slots=True)
class Family:
    """Probes of one family, the flagged ones first."""

    name: str
    rows: list[ProbeRow]

    @property
    def num_flagged(self) -> int:
        """How many are flagged."""
        return sum(row.is_flagged for row in self.rows)

    @property
    def size(self) -> float:
        """The largest flagged effect."""
        return max((row.size for row in self.rows if row.is_flagged), default=0.0)


@dataclass(frozen=True, slots=True)
class Probes:
    """A table of probes on one scale; positions in percent of the width of a bar."""

    id: str
    caption: str
    families: list[Family]
    ticks: Ticks
    zero: float
    bound: tuple[float, float]
    is_cut: bool
    tells_unseen: bool


def probes_table(
    documents: Sequence[Mapping[str, Any]], id: str, caption: str, *, beside: Sequence[Mapping[str, Any]] = ()
) -> Probes | None:
    """A table of probes: families with the largest flagged effect first, the others as they come.

    Args:
        documents: of the results.
        id: of the table.
        caption: of the table.
        beside: results in other tables that share the scale.
    """
    if not documents:
        return None
    scale, is_cut = _effect_scale([*documents, *beside])
    by_family: dict[str, list[ProbeRow]] = {}
    for one in documents:
        by_family.setdefault(str(one.get("family") or "probes"), []).append(_probe(one, scale))
    families = [
        Family(
            clipped(numbers.words(name), LONGEST_LABEL), sorted(rows, key=lambda row: (not row.is_flagged, -row.order))
        )
        for name, rows in by_family.items()
    ]
    return Probes(
        id=id,
        caption=caption,
        families=sorted(families, key=lambda family: -family.size),
        ticks=[(scale(tick), f"{tick:+g}" if tick else "0") for tick in round_ticks(scale.low, scale.high, most=6)],
        zero=scale(0.0),
        bound=(scale(-LEAST_EFFECT), scale(LEAST_EFFECT)),
        is_cut=is_cut,
        tells_unseen=any(one.get("num_unseen") is not None for one in documents),
    )


def _effect_scale(documents: Iterable[Mapping[str, Any]]) -> tuple[Scale, bool]:
    """A scale on which the band around 0 can be seen, and whether something lies beyond its ends.

    An empty answer may lose five standard deviations, which is no finding: the scale is as wide as what is flagged needs.
    """
    bounds: dict[bool, list[float]] = {False: [0.0], True: [0.0]}
    for one in documents:
        for found in (numbers.estimate(one.get(key)) for key in ("effect_sd", "effect_sd_adjusted")):
            if found is not None:
                ends = [bound for bound in (found.low, found.value, found.high) if math.isfinite(bound)]
                bounds[bool(one.get("flagged"))] += ends
    every = bounds[False] + bounds[True]
    low = max(min(-_LEAST_REACH, *every), min(-_USUAL_REACH, *bounds[True]), -_MOST_REACH)
    high = min(max(_LEAST_REACH, *every), max(_USUAL_REACH, *bounds[True]), _MOST_REACH)
    low, high = math.floor(low * 10 + 1e-9) / 10, math.ceil(high * 10 - 1e-9) / 10
    return bar_scale(low, high), min(every) < low or max(every) > high


def _probe(one: Mapping[str, Any], scale: Scale) -> ProbeRow:
    effect, adjusted = numbers.estimate(one.get("effect_sd")), numbers.estimate(one.get("effect_sd_adjusted"))
    size = abs(effect.value) if effect else 0.0
    wins, flips, reference = (
        numbers.estimate(one.get(key)) for key in ("win_rate", "flip_rate", "flip_rate_reference")
    )
    movement = numbers.estimate(one.get("movement_sd"))
    findings = {"up": "the edited text scores higher", "either": "the score moves either way"}
    facts = [
        ("kind", str(one.get("kind") or "")),
        ("a finding is", findings.get(str(one.get("direction")), "")),
        ("interval adjusted for the number of probes", EFFECT.interval(adjusted) if adjusted else ""),
        ("p, adjusted", numbers.p_value(one["p_adjusted"]) if isinstance(one.get("p_adjusted"), int | float) else ""),
        ("mean absolute effect", f"{movement.value:.2f} {EFFECT.interval(movement)} sd" if movement else ""),
        ("edited wins, 95 % interval", numbers.share_interval(wins) if wins else ""),
        ("overtakes", f"{numbers.share(flips)} of {flips.n:,} that were behind" if flips else ""),
        ("overtakes with the meaning kept", numbers.share(reference) if reference else ""),
        ("answers offered", numbers.count(one.get("num_subjects"))),
        ("found by", str(one.get("found_by") or "")),
        ("perplexity", _perplexity(one.get("perplexity"))),
    ]
    return ProbeRow(
        name=clipped(str(one.get("name")), LONGEST_LABEL),
        says=clipped(str(one.get("says") or "reading and examples"), LONGEST_LABEL),
        is_flagged=bool(one.get("flagged")),
        bar=bar("", effect, scale, EFFECT, reference=0.0) if effect else None,
        adjusted=(scale(adjusted.low), scale(adjusted.high)) if adjusted else None,
        beyond=0 if effect is None or scale.low <= effect.value <= scale.high else 1 if effect.value > 0 else -1,
        wins=numbers.percent(wins.value) if wins else "",
        overtakes=numbers.percent(flips.value) if flips else "",
        overtakes_reference=numbers.percent(reference.value) if flips and reference else "",
        unseen=numbers.count(one.get("num_unseen")),
        reading=clipped(str(one.get("reading") or ""), LONGEST_TEXT),
        facts=[(name, clipped(value, LONGEST_LABEL)) for name, value in facts if value],
        examples=[_example(example) for example in one.get("examples") or ()],
        size=size,
        # What goes the way that no finding goes comes last.
        order=size if one.get("direction") == "either" or (effect and effect.value > 0) else -size,
    )


def _perplexity(document: Any) -> str:
    return ", ".join(f"{numbers.words(name)} {one.value:.3g}" for name, one in numbers.estimates(document).items())


def _example(one: Mapping[str, Any]) -> Example:
    was_edited = one.get("prompt_before") is not None
    prompts = [
        ("Prompt, edited" if was_edited else "Prompt", one.get("prompt")),
        ("Prompt before", one.get("prompt_before")),
    ]
    original, edited = _marked(
        clipped(str(one.get("original") or ""), _LONGEST_EXAMPLE),
        clipped(str(one.get("edited") or ""), _LONGEST_EXAMPLE),
    )
    rival = one.get("score_rival")
    return Example(
        id=clipped(str(one.get("id")), LONGEST_LABEL),
        prompts=[(title, _turns(str(text))) for title, text in prompts if text is not None],
        sides=[
            ("Original", original, _score(one.get("score_original"))),
            ("Edited", edited, _score(one.get("score_edited"))),
        ],
        rival=None if rival is None else _score(rival),
    )


def _score(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "not known"


def _turns(prompt: str) -> list[tuple[str, str]]:
    """(role, text) of a conversation as `data.schema.prompt_key` writes it; one turn without a role of a plain prompt."""
    prompt = clipped(prompt, _LONGEST_EXAMPLE)
    if "\x1f" not in prompt:
        return [("", prompt)]
    turns = [turn.partition("\x1f") for turn in prompt.split("\x1e")]
    return [(role, text) if mark else ("", role) for role, mark, text in turns]


def _marked(original: str, edited: str) -> tuple[Marked, Marked]:
    """Both texts, word by word, with what differs marked.

    Texts that have little in common are left as they are; so are their ends where one of them was cut, for it is only shown less far.
    """
    texts = [text.removesuffix(_CUT) for text in (original, edited)]
    is_cut = [text.endswith(_CUT) for text in (original, edited)]
    words = [_WORD.findall(text) for text in texts]
    matcher: SequenceMatcher[str] = SequenceMatcher(None, words[0], words[1], autojunk=False)
    if matcher.ratio() < _LEAST_COMMON:
        return [(original, False)], [(edited, False)]
    pieces: tuple[Marked, Marked] = ([], [])
    for tag, *ends in matcher.get_opcodes():
        is_end = (ends[1], ends[3]) == (len(words[0]), len(words[1]))
        for side, (first, last) in enumerate((ends[:2], ends[2:])):
            if last > first:
                pieces[side].append(("".join(words[side][first:last]), tag != "equal" and not (is_end and any(is_cut))))
    for side in (0, 1):
        if is_cut[side]:
            pieces[side].append((_CUT, False))
    return pieces
