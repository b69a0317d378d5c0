"""Does a scorer read the prompt? The same answers under another prompt and under none, and answers to other prompts under this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from rewardsmith.auditing.draws import draw_key
from rewardsmith.auditing.registry import register
from rewardsmith.auditing.trials import Contrast, Probe, Subject
from rewardsmith.data.faults import folded
from rewardsmith.data.near import words
from rewardsmith.data.schema import Prompt, prompt_key
from rewardsmith.data.words import prompt_text

NEARLY_THE_SAME = 0.8
"""TF-IDF cosine of two prompts from which on an answer to the one may well answer the other."""
NO_PROMPT = ""
# So many steps around the circle are tried for a partner that fits.
_STEPS = 20
# So many similar prompts are looked at for one that fits, and so often may each be lent.
_NEIGHBOURS, _MOST_LENT = 50, 3
# Cosines of one block of prompts with all others; bounds their memory to some tens of MB.
_BLOCK_CELLS = 4_000_000


@dataclass(frozen=True)
class Partners:
    """For each subject a subject of another prompt, of which an answer or the prompt is borrowed; both arrays have shape (n,).

    Args:
        rows: of the partners, int64; -1 where none fits.
        cosines: of the two prompts, NaN where none fits.
    """

    rows: NDArray[np.int64]
    cosines: NDArray[np.float64]


class Prompts:
    """The prompts of some subjects, and which of them may stand in for which.

    A partner's prompt is neither the same nor nearly the same (`NEARLY_THE_SAME`), and its preferred answer is none of the subject's two. What is found is a
    function of the seed and of the texts; the order of different prompts does not matter.
    """

    def __init__(self, subjects: Sequence[Subject], seed: int) -> None:
        """Put the prompts in a circle.

        Args:
            subjects: with rivals.
            seed: of their order in the circle.
        """
        self.num_subjects = len(subjects)
        members: dict[str, list[int]] = {}
        for row, subject in enumerate(subjects):
            members.setdefault(prompt_key(subject.prompt), []).append(row)
        self._members = list(members.values())
        self._lendable = [folded(subject.rival or "") for subject in subjects]
        self._own = [{folded(subject.answer), folded(subject.rival or "")} for subject in subjects]
        self._vectors = _vectors([prompt_text(subjects[rows[0]].prompt) for rows in self._members])
        draws = [draw_key(seed, key) for key in members]
        self._circle = np.array(sorted(range(len(draws)), key=draws.__getitem__), dtype=np.int64)

    def others(self) -> Partners:
        """Any other prompt for each: the first one after it in the circle that fits, so that every prompt is lent about equally often."""
        found = Partners(np.full(self.num_subjects, -1, np.int64), np.full(self.num_subjects, np.nan))
        for step in range(1, min(_STEPS, len(self._members))):
            following = np.roll(self._circle, -step)
            products = self._vectors[self._circle].multiply(self._vectors[following])
            cosines = np.asarray(products.sum(axis=1)).ravel()
            for place, candidate, cosine in zip(
                self._circle.tolist(), following.tolist(), cosines.tolist(), strict=True
            ):
                if cosine < NEARLY_THE_SAME:
                    self._take(place, candidate, cosine, found)
        return found

    def similar(self) -> Partners:
        """A prompt with words in common for each, where there is one.

        The most similar pairs of prompts come first, and no prompt lends twice before those that are left have looked for one that has not lent: answers that
        are lent to everyone would be one observation that counts as many.
        """
        found = Partners(np.full(self.num_subjects, -1, np.int64), np.full(self.num_subjects, np.nan))
        rank = np.empty(len(self._circle), np.int64)
        rank[self._circle] = np.arange(len(self._circle))
        places, candidates, cosines = _neighbours(self._vectors)
        # Equal cosines, which may differ by rounding, in the order of the circle.
        order = np.lexsort((rank[candidates], rank[places], -cosines.round(9)))
        in_order = list(zip(places[order].tolist(), candidates[order].tolist(), cosines[order].tolist(), strict=True))
        lent = [0] * len(rank)
        for most in range(1, _MOST_LENT + 1):
            for place, candidate, cosine in in_order:
                if lent[candidate] < most:
                    lent[candidate] += self._take(place, candidate, cosine, found)
        return found

    def _take(self, place: int, candidate: int, cosine: float, found: Partners) -> bool:
        """Give every subject of a prompt that has no partner yet one of the candidate prompt's, if its answer is another one; returns whether any got one."""
        lenders, taken = self._members[candidate], False
        for k, row in enumerate(self._members[place]):
            lender = lenders[k % len(lenders)]
            if found.rows[row] < 0 and self._lendable[lender] not in self._own[row]:
                found.rows[row], found.cosines[row], taken = lender, cosine, True
        return taken


def _neighbours(vectors: csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """(prompt, one of its most similar others, their cosine), those without a word in common and those that are nearly the same left out."""
    num_prompts = vectors.shape[0]
    block = max(1, _BLOCK_CELLS // max(1, num_prompts))
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for start in range(0, num_prompts, block):
        near = (vectors[start : start + block] @ vectors.T).toarray()
        near[near >= NEARLY_THE_SAME] = 0.0  # the prompt itself has the cosine 1
        columns = np.argpartition(-near, min(_NEIGHBOURS, num_prompts - 1), axis=1)[:, :_NEIGHBOURS]
        cosines = np.take_along_axis(near, columns, axis=1)
        rows, there = np.nonzero(cosines > 0)
        found.append((rows + start, columns[rows, there].astype(np.int64), cosines[rows, there]))
    places, candidates, cosines = (np.concatenate(part) for part in zip(*found, strict=True))
    return places, candidates, cosines


def _vectors(texts: Sequence[str]) -> csr_matrix:
    """Rows of length 1 whose products are cosines; a text without a word is all zeros."""
    lists = [words(text.encode("utf-8", "replace").decode()) for text in texts]
    if not any(lists):
        return csr_matrix((len(texts), 1))
    return TfidfVectorizer(analyzer=lambda found: found, sublinear_tf=True).fit_transform(lists).tocsr()


def _with_rivals(subjects: Sequence[Subject]) -> list[Subject]:
    return [subject for subject in subjects if subject.rival is not None]


def _wrong_prompt(subjects: Sequence[Subject], seed: int) -> list[Contrast]:
    subjects = _with_rivals(subjects)
    return [
        _under(subject, subjects[lender].prompt)
        for subject, lender in zip(subjects, Prompts(subjects, seed).others().rows.tolist(), strict=True)
        if lender >= 0
    ]


def _no_prompt(subjects: Sequence[Subject], seed: int) -> list[Contrast]:
    return [_under(subject, NO_PROMPT) for subject in _with_rivals(subjects) if prompt_key(subject.prompt) != NO_PROMPT]


def _off_topic(subjects: Sequence[Subject], seed: int) -> list[Contrast]:
    subjects = _with_rivals(subjects)
    return _lent(subjects, Prompts(subjects, seed).others())


def _hard_negative(subjects: Sequence[Subject], seed: int) -> list[Contrast]:
    subjects = _with_rivals(subjects)
    return _lent(subjects, Prompts(subjects, seed).similar())


def _under(subject: Subject, prompt: Prompt) -> Contrast:
    """The preferred answer against the other one, both under a prompt that is not theirs."""
    assert subject.rival is not None
    return Contrast(subject.id, prompt_key(subject.prompt), (prompt, subject.rival), (prompt, subject.answer))


def _lent(subjects: Sequence[Subject], lenders: Partners) -> list[Contrast]:
    """Another prompt's preferred answer against the rejected one of this prompt."""
    contrasts = []
    for subject, lender in zip(subjects, lenders.rows.tolist(), strict=True):
        lent = subjects[lender].rival if lender >= 0 else None
        if lent is not None and subject.rival is not None:
            prompt = subject.prompt
            contrasts.append(
                Contrast(
                    subject.id, prompt_key(prompt), (prompt, lent), (prompt, subject.answer), (prompt, subject.rival)
                )
            )
    return contrasts


_UNDER = "the preferred answer in place of the rejected one, both"
for _name, _says, _contrasts in (
    ("wrong_prompt", f"{_UNDER} under a prompt that is not theirs", _wrong_prompt),
    ("no_prompt", f"{_UNDER} without their prompt", _no_prompt),
    ("off_topic", "the preferred answer to some other prompt in place of the rejected one", _off_topic),
    ("hard_negative", "the preferred answer to a similar prompt in place of the rejected one", _hard_negative),
):
    register(Probe(_name, "prompt_use", "prompt use", "up", _says, _contrasts, edits_answers=False))
