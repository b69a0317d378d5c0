"""Candidates that a choice is made among, and their scores: read from groups or from single answers, by one model or several.

A text that a group holds several times is scored once and stays as many candidates, for a policy that says it often is likelier to say it.

Legend: `P` candidates of all groups end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardsmith.auditing.ensembles import RULES, Rule, Standard, combined
from rewardsmith.auditing.pools import Candidate, Candidates, Pool, pool_of
from rewardsmith.data.schema import Group, Pair, Row, Single, prompt_key
from rewardsmith.errors import DataError, SettingsError
from rewardsmith.scores import Scorer, Scores, TableScorer, checked
from rewardsmith.stats import Floats

_BLOCK = 4096


def candidates_of(rows: Sequence[Row]) -> Pool:
    """Groups of candidates: those among the rows, and single answers put together by prompt, in the order of their first rows.

    A column `is_cut` (of a single answer, or in a group's `per_answer`) says which answers a limit of tokens ended.

    Raises:
        DataError: if there is neither a group nor a single answer, or `is_cut` holds something else than true and false.
    """
    groups: list[Candidates] = []
    singles: dict[str, int] = {}
    num_left_out = 0
    for row in rows:
        if isinstance(row, Group):
            (group,) = pool_of([row]).groups
            cut = row.metadata.get("per_answer", {}).get("is_cut", [False] * len(row.answers))
            answers = [_marked(one, is_cut, row.id) for one, is_cut in zip(group.answers, cut, strict=True)]
            groups.append(Candidates(group.id, group.prompt, tuple(answers)))
        elif isinstance(row, Single):
            one = _marked(Candidate(row.answer), row.metadata.get("is_cut", False), row.id)
            place = singles.setdefault(prompt_key(row.prompt), len(groups))
            if place == len(groups):
                groups.append(Candidates(row.id, row.prompt, (one,)))
            else:
                groups[place] = Candidates(groups[place].id, groups[place].prompt, (*groups[place].answers, one))
        else:
            num_left_out += 1
    if not groups:
        raise DataError(
            'candidates: groups (`candidates`, `ranked`, `answers` with `ratings`, `best` with `others`), or rows {"prompt", "answer"}',
            f"{len(rows):,} pairs",
            "Give answers to choose from, or prompts with --policy.",
        )
    return Pool(groups, {"pair": num_left_out} if num_left_out else {})


def candidate_rows(pool: Pool) -> list[dict[str, Any]]:
    """A pool of drawn answers as rows that `candidates_of` reads back: `{"id", "prompt", "candidates", "per_answer": {"is_cut"}}`."""
    return [
        {
            "id": group.id,
            "prompt": group.prompt,
            "candidates": [one.answer for one in group.answers],
            "per_answer": {"is_cut": [one.is_cut for one in group.answers]},
        }
        for group in pool.groups
    ]


def _marked(one: Candidate, is_cut: Any, identity: str) -> Candidate:
    if not isinstance(is_cut, bool):
        raise DataError("true or false in `is_cut`", f"{is_cut!r} in row {identity!r}", "Mend the row.")
    return Candidate(one.answer, label=one.label, is_cut=is_cut)


@dataclass(frozen=True)
class PoolScores:
    """The scores of a pool's candidates.

    Args:
        scores: raw, or of an ensemble, float64 (P,).
        truncated: whether a text was cut before it was scored, bool (P,); None where the scorer does not tell.
        digests: equal for texts that are the same to the model, uint64 (P,); None likewise.
        num_texts: that were scored, each once.
    """

    scores: Floats
    truncated: NDArray[np.bool_] | None
    digests: NDArray[np.uint64] | None
    num_texts: int


def score_pool(
    scorer: Scorer, pool: Pool, *, on_texts: Callable[[int, int], None] = lambda done, total: None
) -> PoolScores:
    """Score every distinct (prompt, answer) of a pool once.

    Args:
        scorer: scores.
        pool: of candidates.
        on_texts: called with the texts scored and the number of all.

    Raises:
        ScoreError: if a score is missing or not finite.
    """
    places: dict[tuple[str, str], int] = {}
    texts: list[Pair] = []
    rows = np.zeros(int(pool.sizes.sum()), np.int64)
    for i, (prompt, answer) in enumerate(pool.pairs()):
        rows[i] = places.setdefault((prompt_key(prompt), answer), len(texts))
        if rows[i] == len(texts):
            texts.append((prompt, answer))
    parts: list[Scores] = []
    cuts, digests = [], []
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        if isinstance(scorer, TableScorer):
            table = scorer.table(block)
            parts.append(checked(table.score, len(block)))
            cuts.append(table.truncated)
            digests.append(table.digest)
        else:
            parts.append(checked(scorer.score(block), len(block)))
        on_texts(start + len(block), len(texts))
    return PoolScores(
        np.concatenate(parts).astype(np.float64)[rows],
        np.concatenate(cuts)[rows] if cuts else None,
        np.concatenate(digests)[rows] if digests else None,
        len(texts),
    )


@dataclass(frozen=True)
class EnsembleScores:
    """Several members' scores as one.

    Args:
        scored: what is chosen by: standardised and combined; a text counts as cut where a member's was.
        members: raw scores by member, (P,) each.
        standards: of the members, over the candidates.
        rule: of combining.
        k: of "lower confidence".
    """

    scored: PoolScores
    members: dict[str, Floats]
    standards: dict[str, Standard]
    rule: Rule
    k: float


def score_together(
    members: Mapping[str, Scorer],
    pool: Pool,
    rule: Rule,
    *,
    k: float = 1.0,
    on_texts: Callable[[int, int], None] = lambda done, total: None,
) -> EnsembleScores:
    """Score a pool by several models and combine them (see `auditing.ensembles`).

    Raises:
        SettingsError: at fewer than two members, another rule, or a k that is not finite and at least 0.
        ScoreError: if a member gives all candidates one score, or one that is not finite.
    """
    if len(members) < 2:
        raise SettingsError("at least two members of an ensemble", f"{len(members)}", "Give another model.")
    if rule not in RULES:
        raise SettingsError(f"a rule of several models, one of {', '.join(RULES)}", f"{rule!r}", "Name one of them.")
    if not (np.isfinite(k) and k >= 0):
        raise SettingsError("a finite k of at least 0", f"{k}", "Take 1, the default.")
    found = {name: score_pool(one, pool, on_texts=on_texts) for name, one in members.items()}
    standards = {name: Standard.of(one.scores, name) for name, one in found.items()}
    rows = [standards[name].apply(one.scores) for name, one in found.items()]
    cuts = [one.truncated for one in found.values() if one.truncated is not None]
    first = next(iter(found.values()))
    scored = PoolScores(
        combined(np.stack(rows), rule, k=k), np.logical_or.reduce(cuts) if cuts else None, None, first.num_texts
    )
    return EnsembleScores(scored, {name: one.scores for name, one in found.items()}, standards, rule, k)
