"""A part of an audit beside its probes -> its numbers with readable names, whatever its keys are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rewardsmith.evaluation.pages import numbers
from rewardsmith.evaluation.pages.charts import Chart, optimisation_charts
from rewardsmith.evaluation.pages.grids import Grid
from rewardsmith.evaluation.pages.numbers import EFFECT, LONGEST_LABEL, LONGEST_TEXT, PLAIN, mapping, scalar, words
from rewardsmith.evaluation.pages.optimisation import KEYS as OPTIMISATION
from rewardsmith.evaluation.pages.optimisation import optimisation_grids
from rewardsmith.evaluation.pages.probes import Probes, probes_table
from rewardsmith.pages.text import clipped
from rewardsmith.stats import Estimate

Path: TypeAlias = tuple[str, ...]
"""The keys that lead to a value."""
_TITLES = {
    "length": "Length",
    "prompt_use": "Does it read the prompt?",
    "truncation": "Truncation",
    "search": "Attack search",
    "over_optimisation": "Over-optimisation",
    "shift": "Domain shift",
}
_MOST_ROWS = 80
# Keys by which an item of a list is called, the first that it has with a text.
_NAMES = ("name", "text", "word", "column", "value", "scorer", "stage")
# Keys of sentences: lists of them, or {what: why}.
_NOTES = ("advice", "not_measured", "why_not")
# Keys of which the content is shown in another place; what a part did not cover stands among what the audit did not.
_ELSEWHERE = ("reading", "text", "examples", "not_covered", *_NOTES)


@dataclass(frozen=True, slots=True)
class Number:
    """An estimate among the numbers of a part."""

    label: str
    value: str
    interval: str
    n: int
    method: str


@dataclass(frozen=True, slots=True)
class Part:
    """A part beside the probes."""

    id: str
    title: str
    reading: str
    charts: list[Chart]
    grids: list[Grid]
    probes: list[Probes]
    numbers: list[Number]
    num_left_out: int
    facts: list[tuple[str, str]]
    notes: list[str]


def parts(document: Mapping[str, Any], id: str) -> list[Part]:
    """The parts of an audit that are known here, in one order; then any other that has a reading.

    Args:
        document: of the audit.
        id: that the anchors of its parts begin with.
    """
    others = [key for key in document if key not in _TITLES and "reading" in mapping(document[key])]
    found = [(key, mapping(document.get(key))) for key in (*_TITLES, *others)]
    return [_part(key, content, f"{id}-part-{number}") for number, (key, content) in enumerate(found) if content]


def _part(key: str, content: Mapping[str, Any], id: str) -> Part:
    is_optimisation = key == "over_optimisation"
    rest = {name: value for name, value in content.items() if not (is_optimisation and name in OPTIMISATION)}
    leaves = list(_leaves(rest))
    written = [
        Number(_label(path), *_written(path, one), one.n, one.method)
        for path, one in leaves
        if isinstance(one, Estimate)
    ]
    results = list(_probe_lists(rest))
    every = [one for _, documents in results for one in documents]
    tables = [
        probes_table(documents, f"{id}-probes-{number}", _label(path), beside=every)
        for number, (path, documents) in enumerate(results, start=1)
    ]
    return Part(
        id=id,
        title=_TITLES.get(key, clipped(words(key), LONGEST_LABEL)),
        reading=clipped(str(content.get("reading") or ""), LONGEST_TEXT),
        charts=optimisation_charts(content, id) if is_optimisation else [],
        grids=optimisation_grids(content) if is_optimisation else [],
        probes=[table for table in tables if table is not None],
        numbers=written[:_MOST_ROWS],
        num_left_out=max(0, len(written) - _MOST_ROWS),
        facts=[(_label(path), one) for path, one in leaves if isinstance(one, str)][:_MOST_ROWS],
        notes=[clipped(line, LONGEST_TEXT) for key in _NOTES for line in _sentences(content.get(key))],
    )


def _sentences(content: Any) -> list[str]:
    if isinstance(content, list):
        return [str(line) for line in content]
    return [f"{words(what)}: {why}" for what, why in mapping(content).items()]


def _is_probe(value: Any) -> bool:
    return isinstance(value, Mapping) and "effect_sd" in value and "win_rate" in value


def _probe_lists(content: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, list[Mapping[str, Any]]]]:
    """Results of probes anywhere in a part, list by list."""
    for key, value in content.items():
        here = (*path, str(key))
        if _is_probe(value):
            yield here, [value]
        elif isinstance(value, Mapping):
            yield from _probe_lists(value, here)
        elif isinstance(value, list) and value and all(_is_probe(one) for one in value):
            yield here, value


def _leaves(content: Any, path: Path = ()) -> Iterator[tuple[Path, Estimate | str]]:
    """Every estimate of a part with the keys that lead to it, and every other short value as text; results of probes have tables of their own."""
    if isinstance(content, Mapping):
        one = numbers.estimate(content)
        if one is not None:
            yield path, one
        elif not _is_probe(content):
            for key, value in content.items():
                if key not in _ELSEWHERE:
                    yield from _leaves(value, (*path, str(key)))
    elif isinstance(content, list):
        yield from _leaves_of_list(content, path)
    elif content is not None:
        yield path, scalar(content)


def _leaves_of_list(content: Sequence[Any], path: Path) -> Iterator[tuple[Path, Estimate | str]]:
    if not content or all(_is_probe(one) for one in content):
        return
    if not any(_holds_estimate(one) for one in content):
        yield path, clipped(", ".join(_item_name(one, "") or scalar(one) for one in content), LONGEST_TEXT)
        return
    for number, one in enumerate(content, start=1):
        yield from _leaves(one, (*path, _item_name(one, str(number))))


def _holds_estimate(value: Any) -> bool:
    if isinstance(value, Mapping):
        return numbers.estimate(value) is not None or any(map(_holds_estimate, value.values()))
    return isinstance(value, list) and any(map(_holds_estimate, value))


def _item_name(item: Any, otherwise: str) -> str:
    """What an item of a list is called: by one of the usual keys, else by its first plain values."""
    values = mapping(item)
    for key in _NAMES:
        if isinstance(values.get(key), str):
            return scalar(values[key])
    plain = [
        f"{words(key)} {scalar(value)}"
        for key, value in values.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
    return " ".join(plain[:2]) or otherwise


def _written(path: Path, one: Estimate) -> tuple[str, str]:
    form = EFFECT if path and path[-1].endswith("_sd") else PLAIN
    return form.value(one), form.interval(one)


def _label(path: Sequence[str]) -> str:
    """Keys for people: `("by_length", "effect_sd")` as "by length: effect, sd"."""
    *parents, last = map(words, path)
    if last.endswith(" sd"):
        last = f"{last.removesuffix(' sd')}, sd"
    return clipped(": ".join([*parents, last]), LONGEST_LABEL)
