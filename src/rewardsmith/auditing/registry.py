"""Which probes there are, and how another one is added: a function of five lines with a decorator.

    from rewardsmith.auditing.registry import edit_probe

    @edit_probe("shouting", family="format", says="the last word in capitals")
    def shouting(prompt, answer, rng):
        head, _, last = answer.rpartition(" ")
        return f"{head} {last.upper()}" if head else None

`rewardsmith audit MODEL DATA --extend FILE.py` runs such a file before it begins.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from rewardsmith.auditing.draws import text_code
from rewardsmith.auditing.trials import Contrast, Direction, Kind, Probe, Subject
from rewardsmith.data.schema import Prompt, prompt_key
from rewardsmith.errors import SettingsError

Edit: TypeAlias = Callable[[Prompt, str, np.random.Generator], str | None]
"""From a prompt, an answer and a source of draws to the edited answer, or None where the edit does not apply."""

PROBES: dict[str, Probe] = {}


def register(probe: Probe) -> Probe:
    """Add a probe.

    Raises:
        SettingsError: if one of this name is there.
    """
    if probe.name in PROBES:
        raise SettingsError("a new name for a probe", f"`{probe.name}`, which is there", "Choose another name.")
    PROBES[probe.name] = probe
    return probe


def made_of(
    edit: Edit, name: str, *, family: str, says: str, kind: Kind = "bias", direction: Direction = "up"
) -> Probe:
    """An edit of answers as a probe that is not registered; see `edit_probe`."""

    def contrasts(subjects: Sequence[Subject], seed: int) -> list[Contrast]:
        made = (_edited(edit, name, subject, seed) for subject in subjects)
        return [one for one in made if one is not None]

    return Probe(name, family, kind, direction, says, contrasts)


def edit_probe(
    name: str, *, family: str, says: str, kind: Kind = "bias", direction: Direction = "up"
) -> Callable[[Edit], Edit]:
    """Register an edit of answers as a probe; the function itself stays as it is.

    The edit of a subject depends on the seed, the probe's name and the subject's text alone: never on what else is audited.

    Args:
        name: of the probe.
        family: what it is about.
        says: what is done to the answer, as a clause.
        kind: see `Probe`.
        direction: see `Probe`.

    Raises:
        SettingsError: if a probe of this name is there.
    """

    def registered(edit: Edit) -> Edit:
        register(made_of(edit, name, family=family, says=says, kind=kind, direction=direction))
        return edit

    return registered


def item_probe(
    name: str, *, family: str, says: str, kind: Kind = "bias", direction: Direction = "up"
) -> Callable[[Callable[[], list[Contrast]]], Callable[[], list[Contrast]]]:
    """Register a probe that brings its own texts: a function without arguments that returns contrasts; see `edit_probe`."""

    def registered(items: Callable[[], list[Contrast]]) -> Callable[[], list[Contrast]]:
        def contrasts(subjects: Sequence[Subject], seed: int) -> list[Contrast]:
            return items()

        register(Probe(name, family, kind, direction, says, contrasts, edits_answers=False))
        return items

    return registered


def _edited(edit: Edit, name: str, subject: Subject, seed: int) -> Contrast | None:
    key = prompt_key(subject.prompt)
    rng = np.random.default_rng([seed, text_code(name), text_code(key, subject.answer)])
    edited = edit(subject.prompt, subject.answer, rng)
    if edited is None or edited == subject.answer:
        return None
    rival = None if subject.rival is None else (subject.prompt, subject.rival)
    return Contrast(subject.id, key, (subject.prompt, edited), (subject.prompt, subject.answer), rival)


def chosen_probes(
    names: Iterable[str] | None = None, without: Iterable[str] = (), *, further: Sequence[Probe] = ()
) -> list[Probe]:
    """Probes by their names, families or kinds; all of them by default.

    Args:
        names: to take.
        without: not to take.
        further: probes that can be named beside the registered ones.

    Raises:
        SettingsError: at a name that is none of these.
    """
    known = PROBES | {probe.name: probe for probe in further}
    asked = None if names is None else _resolved(names, known)
    left_out = _resolved(without, known)
    found = [probe for name, probe in known.items() if (asked is None or name in asked) and name not in left_out]
    if not found:
        raise SettingsError("at least one probe", "none", "Name a probe or a family, or leave fewer out.")
    return found


def _resolved(names: Iterable[str], known: Mapping[str, Probe]) -> set[str]:
    found: set[str] = set()
    for name in names:
        those = {one for one, probe in known.items() if name in (one, probe.family, probe.kind)}
        if not those:
            families = sorted({probe.family for probe in known.values()})
            raise SettingsError(
                f"a probe, or a family ({', '.join(families)})",
                f"`{name}`",
                f"The probes are: {', '.join(sorted(known))}.",
            )
        found |= those
    return found


def extend(file: Path) -> list[Probe]:
    """Run a Python file that registers probes; returns those.

    Raises:
        SettingsError: if there is no such file, it fails, or it registers none.
    """
    if not file.is_file():
        raise SettingsError("a Python file with probes", f"no file {file}", "Check the path.")
    before = set(PROBES)
    try:
        runpy.run_path(str(file))
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(
            f"a Python file that runs, in {file.name}", f"{type(error).__name__}: {error}", "Mend the file."
        ) from error
    added = [probe for name, probe in PROBES.items() if name not in before]
    if not added:
        raise SettingsError(f"a probe in {file.name}", "none", "Put @edit_probe before a function.")
    return added
