"""What a scorer is to everything that does not load a model: a thing that turns (prompt, answer) pairs into float32 numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rewardsmith.data.schema import Pair, Preference, Prompt
from rewardsmith.errors import ScoreError

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class ScoreTable:
    """One row an answer, in the order asked. All arrays have shape (n,).

    Args:
        score: raw and unsquashed, float32.
        tokens: tokens the model read, special tokens included, int64.
        full_tokens: tokens before any cut, int64.
        truncated: whether something was cut, bool.
        prompt_cut: tokens of the prompt that were cut, int64.
        answer_cut: tokens of the answer that were cut, int64.
        special_strings: special-token strings found in the content and read as plain text, int64.
        digest: a hash of the token ids, uint64: two answers with equal digests are the same to the model.
    """

    score: Scores
    tokens: NDArray[np.int64]
    full_tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    prompt_cut: NDArray[np.int64]
    answer_cut: NDArray[np.int64]
    special_strings: NDArray[np.int64]
    digest: NDArray[np.uint64]

    def __len__(self) -> int:
        """How many answers."""
        return len(self.score)

    def take(self, rows: slice) -> ScoreTable:
        """Some of the rows."""
        return ScoreTable(*(getattr(self, column.name)[rows] for column in fields(self)))

    @classmethod
    def empty(cls) -> ScoreTable:
        """No rows."""
        counts = np.zeros(0, np.int64)
        return cls(
            score=np.zeros(0, np.float32),
            tokens=counts,
            full_tokens=counts,
            truncated=np.zeros(0, np.bool_),
            prompt_cut=counts,
            answer_cut=counts,
            special_strings=counts,
            digest=np.zeros(0, np.uint64),
        )

    @classmethod
    def join(cls, tables: Sequence[ScoreTable]) -> ScoreTable:
        """Tables one after the other, at least one."""
        return cls(*(np.concatenate([getattr(table, column.name) for table in tables]) for column in fields(cls)))


@dataclass(frozen=True)
class RawText:
    """A text that its sender has rendered: it is read as it stands, without the model's template.

    Args:
        text: the whole of it.
        control: strings of special tokens in it are control tokens; else they are plain text like any other.
        special: the tokenizer's own special tokens stand around it; one that the text brings itself (`control`) is not doubled.
        max_tokens: a limit below the model's own; None for that.
        keep: the end of a text over the limit that is kept.
    """

    text: str
    control: bool = False
    special: bool = True
    max_tokens: int | None = None
    keep: Literal["first", "last"] = "first"


@dataclass(frozen=True)
class RawIds:
    """Token ids that are read as they stand; see `RawText` for the limit."""

    ids: tuple[int, ...]
    max_tokens: int | None = None
    keep: Literal["first", "last"] = "first"


Input: TypeAlias = Pair | RawText | RawIds
"""What a server is asked to score."""


@dataclass(frozen=True)
class EncodedText:
    """One text as a scorer reads it.

    Args:
        num_tokens: that the model reads.
        tokens: for the scorer that made it, and nobody else.
    """

    num_tokens: int
    tokens: Any


@runtime_checkable
class Scorer(Protocol):
    """Anything that scores."""

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """Raw float32 scores, shape (n,), in the order of `pairs`."""
        ...


@runtime_checkable
class TableScorer(Scorer, Protocol):
    """A scorer that also says what it read of each answer."""

    def table(self, pairs: Sequence[Pair]) -> ScoreTable:
        """Scores with token counts and cuts."""
        ...


class TextScorer(TableScorer, Protocol):
    """A scorer whose two steps can be taken apart: reading texts, and scoring what was read, of whichever requests it came."""

    def encode(self, inputs: Sequence[Input]) -> list[EncodedText]:
        """Each input as the model reads it, in their order.

        Raises:
            RewardsmithError: at an input that cannot be read: too long under the policy "error", ids outside the vocabulary.
        """
        ...

    def score_encoded(self, texts: Sequence[EncodedText]) -> ScoreTable:
        """Scores of encoded texts, in their order; at least one.

        Raises:
            ScoreError: if a score is not finite.
        """
        ...


@runtime_checkable
class Features(Protocol):
    """Anything that describes texts by numbers, for a linear model of a data set."""

    def features(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """One row of float32 features a pair, shape (n, H), in the order of `pairs`."""
        ...


Piece: TypeAlias = tuple[str, float | None]
"""A word of a text and what it is worth, in units of the score; None where the scorer did not read it, or was not asked."""


@dataclass(frozen=True)
class Attribution:
    """One score, shared out among the words of its text: score = baseline + sum + gap.

    Args:
        method: in words, with what it compares to.
        score: of the text, by the scorer.
        baseline: the score that the values start from.
        tokens: words of the answer in order; joined, they are the answer.
        prompt_tokens: words of the prompt; joined, they are `data.words.prompt_text`.
        frame: what falls to the template and to special tokens.
        num_readings: how many texts, or points of a path, were scored.
    """

    method: str
    score: float
    baseline: float
    tokens: list[Piece]
    prompt_tokens: list[Piece]
    frame: float = 0.0
    num_readings: int = 0

    @property
    def sum(self) -> float:
        """All values together."""
        return self.frame + sum(value or 0.0 for _, value in (*self.tokens, *self.prompt_tokens))

    @property
    def gap(self) -> float:
        """What the values do not account for; the method is complete where it is 0."""
        return self.score - self.baseline - self.sum

    def as_dict(self) -> dict[str, Any]:
        """The document in pairs.jsonl; a piece is [text, value]."""
        return {
            "method": self.method,
            "score": self.score,
            "baseline": self.baseline,
            "sum": self.sum,
            "gap": self.gap,
            "tokens": [list(piece) for piece in self.tokens],
            "prompt_tokens": [list(piece) for piece in self.prompt_tokens],
            "frame": self.frame,
            "num_readings": self.num_readings,
        }


@runtime_checkable
class Attributions(Protocol):
    """Anything that says which words moved a score."""

    def attribute(self, pairs: Sequence[Pair]) -> list[Attribution]:
        """The score of each pair, shared out among its words, in the order of `pairs`."""
        ...


@dataclass(frozen=True)
class Retrained:
    """A scorer that a recipe gave on some training pairs.

    Args:
        scorer: of the checkpoint that the recipe keeps; it needs nothing on disk.
        num_pairs: that it was trained on, after what the recipe drops.
    """

    scorer: Scorer
    num_pairs: int


@runtime_checkable
class Trainable(Protocol):
    """A recipe that can be followed again on a part of its training pairs."""

    def training_pairs(self) -> list[Preference]:
        """What the recipe trained on: without the dev part and without pairs that have a fault of content."""
        ...

    def train_on(self, pairs: Sequence[Preference], *, seed: int) -> Retrained:
        """Follow the recipe on some of its training pairs, the dev part being the same whatever they are.

        Args:
            pairs: of `training_pairs`, in their order.
            seed: of the head and of the order of the pairs.

        Raises:
            RewardsmithError: of the kind that says what was wrong.
        """
        ...


def checked(scores: Sequence[float] | NDArray[np.floating], num_pairs: int) -> Scores:
    """Scores as a float32 array of the right length.

    Raises:
        ScoreError: if one is missing, None, NaN or infinite.
    """
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and said to be
            array = np.asarray(scores, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ScoreError("one finite number a pair", f"{error}", "Mend the scorer; None is no score.") from error
    if array.shape != (num_pairs,):
        raise ScoreError(f"{num_pairs} scores", f"an array of shape {array.shape}", "Return one number a pair.")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ScoreError(
            "finite scores",
            f"{len(bad)} that are not, first at row {int(bad[0])} ({array[bad[0]]})",
            "Check the weights (`rewardsmith verify`) and the precision.",
        )
    return array


Span: TypeAlias = tuple[int, int]
"""Characters start:end of an answer."""


@dataclass(frozen=True)
class PlainWords:
    """The words that a scorer reads as one token each where they stand between blanks.

    Args:
        words: in the order of their tokens.
        openers: those that are one token at the beginning of an answer too, where no blank stands before them.
        left_out: how many other tokens there are, by reason.
    """

    words: list[str]
    openers: list[str]
    left_out: dict[str, int]


@dataclass(frozen=True)
class Flips:
    """What other words would do in the place of one, to first order.

    Args:
        words: the best ones, best first.
        gains: float64, one a word: the change of the mean score that the gradient foretells.
        num_texts: that the gradient is the mean of; 0 where no text holds the word as one token that was read.
        num_retokenised: better words that were passed over, since a text with them is not read as the same ids but for that one.
    """

    words: list[str]
    gains: NDArray[np.float64]
    num_texts: int
    num_retokenised: int


@runtime_checkable
class TokenGradients(Protocol):
    """Anything that says, from gradients, which words in place of others would raise scores."""

    def words(self) -> PlainWords:
        """The words that can be put in."""
        ...

    def flips(self, pairs: Sequence[Pair], spans: Sequence[Sequence[Span]], *, top: int) -> list[Flips]:
        """The best words for each of K places, which all texts have.

        Args:
            pairs: prompts with answers.
            spans: of each answer the K places of its words to be replaced, left to right.
            top: words a place.
        """
        ...


@runtime_checkable
class Perplexity(Protocol):
    """Anything that says how unlikely an answer is."""

    def perplexities(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """exp(mean over the answer's tokens of -log p(token | prompt and what stands before it)), float64 (n,); NaN where no token of the answer is read."""
        ...


@dataclass(frozen=True)
class DomainFlag:
    """How far one text lies from the data that a model is known to work on.

    Args:
        distance: of the part below, in standard deviations of the features.
        p_value: how rare a text at such a distance, or a more unusual one, is among those data.
        outside: rarer than the detector's level.
        part: "prompts" or "answers": the more unusual one.
    """

    distance: float
    p_value: float
    outside: bool
    part: str


@runtime_checkable
class DomainDetector(Protocol):
    """Anything that says of a text whether it lies outside of a domain."""

    def flags(self, pairs: Sequence[Pair]) -> list[DomainFlag]:
        """One flag a (prompt, answer), in the order of `pairs`."""
        ...


@runtime_checkable
class LengthLimited(Protocol):
    """Anything that scores, and can be read at other limits of length."""

    @property
    def max_length(self) -> int:
        """Tokens of one text at which it is read otherwise."""
        ...

    @property
    def longest(self) -> int:
        """The highest limit that it can be read at."""
        ...

    def at_max_length(self, tokens: int) -> TableScorer:
        """The same scorer with another limit.

        Raises:
            RewardsmithError: if it cannot be read so.
        """
        ...


@runtime_checkable
class SpecialTokens(Protocol):
    """Anything that tells the strings which it would read as control tokens, were they not part of a text."""

    def special_tokens(self) -> tuple[str, ...]:
        """Each once."""
        ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """An answer that a policy drew.

    Args:
        answer: its text, without special tokens.
        is_cut: whether the limit of tokens ended it.
        prompt_cut: tokens of its prompt that did not fit and were not read.
    """

    answer: str
    is_cut: bool
    prompt_cut: int = 0


@runtime_checkable
class Generator(Protocol):
    """Anything that answers prompts by chance: a policy."""

    def draw(self, prompts: Sequence[Prompt], num_answers: int, *, seed: int) -> list[list[Drawn]]:
        """So many answers to each prompt, in the order of `prompts`; the same for the same prompts and seed."""
        ...
