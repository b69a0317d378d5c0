"""Pools: for each prompt the candidates that a policy could answer with, from data or drawn from a policy, and edited copies of them marked as such.

Edited copies put what a policy would find by search within reach of a selection by score: a reward model that falls for an edit picks the copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from rewardsmith.auditing.best_of_n import Ints
from rewardsmith.auditing.draws import text_code
from rewardsmith.auditing.trials import Probe, Subject
from rewardsmith.data.schema import Group, Pair, Prompt, Row, prompt_key
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.scores import Generator
from rewardsmith.stats import Floats

ORIGINAL = "original"
Copies: TypeAlias = Callable[[Prompt, str, np.random.Generator], list[str]]
"""From a prompt, an answer and a source of draws to edited copies of the answer; none where an edit does not apply."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer that can be selected.

    Args:
        answer: its text.
        kind: ORIGINAL, or the name of the edit that made it.
        label: what is known of its worth, larger is better; None where nothing is. An edited copy has that of its original.
        is_cut: whether the policy was stopped by the limit of tokens.
    """

    answer: str
    kind: str = ORIGINAL
    label: float | None = None
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Candidates:
    """All candidates of one prompt.

    Args:
        id: of their row.
        prompt: that they answer.
        answers: at least one.
        prompt_cut: tokens of the prompt that the policy did not read.
    """

    id: str
    prompt: Prompt
    answers: tuple[Candidate, ...]
    prompt_cut: int = 0


@dataclass(frozen=True)
class Pool:
    """Groups of candidates; a prompt may have several groups.

    Args:
        groups: in the order of the data.
        left_out: rows that gave no group, by reason.
    """

    groups: list[Candidates]
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> Ints:
        """Candidates of each group, (G,)."""
        return np.array([len(group.answers) for group in self.groups], dtype=np.int64)

    @property
    def starts(self) -> Ints:
        """Group g is starts[g]:starts[g + 1] of the candidates end to end, (G + 1,)."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    def pairs(self) -> list[Pair]:
        """Prompt and answer of every candidate, (P,)."""
        return [(group.prompt, one.answer) for group in self.groups for one in group.answers]

    def candidates(self) -> list[Candidate]:
        """Every candidate, (P,)."""
        return [one for group in self.groups for one in group.answers]

    def prompts(self) -> list[str]:
        """The key of each group's prompt, (G,)."""
        return [prompt_key(group.prompt) for group in self.groups]

    def labels(self) -> Floats:
        """The label of every candidate, (P,).

        Raises:
            DataError: if one has none.
        """
        known = [one.label for one in self.candidates()]
        missing = sum(label is None for label in known)
        if missing:
            raise DataError(
                "a label of every candidate (`ratings`, `ranked`, or `best` and `others`)",
                f"{missing:,} of {len(known):,} without",
                "Give labelled groups, or another reward model or a function as gold.",
            )
        return np.array(known, dtype=np.float64)

    def of_size(self, least: int) -> Pool:
        """The groups of at least so many candidates."""
        return Pool([group for group in self.groups if len(group.answers) >= least], self.left_out)


def pool_of(rows: Sequence[Row]) -> Pool:
    """The groups among rows of data: `candidates`, `ranked`, `answers` with `ratings`, `best` with `others`.

    Labels are the ratings; of a ranking, how many answers stand below. Pairs and single answers are no pools and are counted.

    Raises:
        DataError: if there is no group.
    """
    groups, left_out = [], Counter[str]()
    for row in rows:
        if not isinstance(row, Group):
            left_out["no group of candidates"] += 1
            continue
        labels: Sequence[float | None]
        if row.order == "ranked":
            labels = [float(len(row.answers) - 1 - place) for place in range(len(row.answers))]
        else:
            labels = row.ratings or [None] * len(row.answers)
        answers = [Candidate(answer, label=label) for answer, label in zip(row.answers, labels, strict=True)]
        groups.append(Candidates(row.id, row.prompt, tuple(answers)))
    if not groups:
        raise DataError(
            "groups of candidates (`candidates`, `ranked`, `answers` and `ratings`, or `best` and `others`)",
            f"none among {len(rows):,} rows",
            "Give groups, or draw candidates from a policy.",
        )
    return Pool(groups, dict(left_out))


def drawn_pool(
    generator: Generator, prompts: Sequence[Prompt], *, num_answers: int, ids: Sequence[str] | None = None, seed: int
) -> Pool:
    """Candidates drawn from a policy, those that the limit of tokens cut marked.

    Args:
        generator: the policy.
        prompts: to answer; equal ones are answered once.
        num_answers: of each prompt.
        ids: of the prompts; their numbers by default.
        seed: of the draws.

    Raises:
        DataError: if there is no prompt.
        SettingsError: if fewer than two answers are asked for.
    """
    if not prompts:
        raise DataError("at least one prompt", "none", "Check the data.")
    if num_answers < 2:
        raise SettingsError("at least two answers of each prompt", f"{num_answers}", "Draw more.")
    named = dict(
        zip([prompt_key(prompt) for prompt in reversed(prompts)], range(len(prompts) - 1, -1, -1), strict=True)
    )
    first = sorted(named.values())
    answers = generator.draw([prompts[i] for i in first], num_answers, seed=seed)
    groups = [
        Candidates(
            str(i) if ids is None else ids[i],
            prompts[i],
            tuple(Candidate(one.answer, is_cut=one.is_cut) for one in drawn),
            drawn[0].prompt_cut,
        )
        for i, drawn in zip(first, answers, strict=True)
    ]
    repeated = len(prompts) - len(first)
    return Pool(groups, {"prompt that was there before": repeated} if repeated else {})


def merged(pool: Pool) -> Pool:
    """One group a prompt, each answer once.

    An answer that stands in several groups keeps the mean of its labels: where labels say which answer of a group is the best, that is the share of its groups
    that it won.
    """
    by_prompt: dict[str, list[Candidates]] = {}
    for group in pool.groups:
        by_prompt.setdefault(prompt_key(group.prompt), []).append(group)
    return Pool([_merged(groups) for groups in by_prompt.values()], pool.left_out)


def _merged(groups: Sequence[Candidates]) -> Candidates:
    seen: dict[str, list[Candidate]] = {}
    for group in groups:
        for one in group.answers:
            seen.setdefault(one.answer, []).append(one)
    answers = []
    for alike in seen.values():
        labels = [one.label for one in alike if one.label is not None]
        answers.append(replace(alike[0], label=float(np.mean(labels)) if labels else None))
    return replace(groups[0], answers=tuple(answers))


def enlarged(pool: Pool, edits: Mapping[str, Copies], *, per_answer: int | None = None, seed: int) -> Pool:
    """The pool with edited copies of its answers, each marked by its edit.

    A copy that equals an answer of its group is left out. What is drawn for an answer depends on the seed, the edit's name and the texts alone.

    Args:
        pool: of originals.
        edits: by name.
        per_answer: at most so many copies of each answer, drawn among all; all of them by default.
        seed: of the edits, and of the draw among copies.

    Raises:
        SettingsError: if an edit is named like the originals.
        DataError: if no edit applies to any answer.
    """
    if ORIGINAL in edits:
        raise SettingsError(f"edits of other names than {ORIGINAL!r}", "one of that name", "Rename it.")
    groups = [_with_copies(group, edits, per_answer, seed) for group in pool.groups]
    if sum(len(group.answers) for group in groups) == int(pool.sizes.sum()):
        raise DataError("an edit that applies to some answer", "none", "Give other edits, or more answers.")
    return Pool(groups, pool.left_out)


def _with_copies(group: Candidates, edits: Mapping[str, Copies], per_answer: int | None, seed: int) -> Candidates:
    key = prompt_key(group.prompt)
    answers, there = list(group.answers), {one.answer for one in group.answers}
    for one in group.answers:
        text = text_code(key, one.answer)
        copies: dict[str, str] = {}
        for name, edit in edits.items():
            rng = np.random.default_rng([seed, text_code(name), text])
            for copy in edit(group.prompt, one.answer, rng):
                if copy not in there:
                    copies.setdefault(copy, name)
        taken = list(copies.items())
        if per_answer is not None and len(taken) > per_answer:
            chosen = np.random.default_rng([seed, text]).choice(len(taken), per_answer, replace=False)
            taken = [taken[i] for i in sorted(chosen.tolist())]
        there.update(copy for copy, _ in taken)
        answers += [replace(one, answer=copy, kind=name) for copy, name in taken]
    return replace(group, answers=tuple(answers))


def probe_copies(probe: Probe) -> Copies:
    """A probe's edit as an edit of candidates.

    Raises:
        SettingsError: if the probe does not edit answers.
    """
    if not probe.edits_answers:
        raise SettingsError(
            "a probe that edits answers", f"`{probe.name}`, which brings its own texts", "Leave it out."
        )

    def copies(prompt: Prompt, answer: str, rng: np.random.Generator) -> list[str]:
        contrasts = probe.contrasts([Subject("", prompt, answer)], int(rng.integers(2**31)))
        # A contrast that edits the prompt, or puts another text in the original's place, gives no copy of this answer.
        same = [one.edited for one in contrasts if one.original == (prompt, answer) and one.edited[0] == prompt]
        return list(dict.fromkeys(edited for _, edited in same))

    return copies
