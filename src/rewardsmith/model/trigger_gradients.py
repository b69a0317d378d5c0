"""Which words, put in the place of others, would raise the scores of a torch network: HotFlip's first-order guess.

    gain(w) = (e_w - e_c) . mean over texts of d score / d embedding at the place of c

(Ebrahimi et al. 2018, "HotFlip", equation 4; over many texts as in Wallace et al. 2019, "Universal adversarial triggers", equation 2), with e_c the embedding
of the word that stands there and e_w that of any other. One backward pass a text ranks the whole vocabulary, and every guess is to be checked by a score.

The search is among words, not ids: what is put in is text, and a word counts only where the renderer reads the text with it as the same ids but for one.
Tokens that are no words of their own (pieces inside a word, bytes of a character, control tokens) are left out and counted.

Legend: `N` texts, `K` places, `T` tokens, `E` numbers of an embedding, `W` words.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewardsmith.data.schema import Pair
from rewardsmith.errors import ModelError
from rewardsmith.model.batching import collate, scoring_plan
from rewardsmith.model.gradient_reading import GradientReader
from rewardsmith.model.render import TokenTable
from rewardsmith.model.token_places import ANSWER, PlacedText
from rewardsmith.scores import Flips, PlainWords, Span

_ROWS_AT_ONCE = 8192
# So many times as many words as are asked for are looked at before a place is left with fewer.
_SPARE = 8
Where: TypeAlias = Literal["first", "inner", "last"]
# A neighbour on either side: a byte-level token holds the blank before it, and an answer begins without one.
_NEIGHBOURS: dict[Where, tuple[str, str]] = {"inner": ("a ", " a"), "first": ("", " a"), "last": ("a ", "")}


class TriggerGradients(GradientReader):
    """The `TokenGradients` of a torch network."""

    def words(self) -> PlainWords:
        """The words that can be put in; see `PlainWords`."""
        return self._words

    def flips(self, pairs: Sequence[Pair], spans: Sequence[Sequence[Span]], *, top: int) -> list[Flips]:
        """The best words for each of K places; see `TokenGradients`.

        A place whose word is more than one token in all texts has no gradient, and no words. Of the others a text counts if it holds each as one token
        that was read: what is cut away has no gradient either.

        Raises:
            LengthError: with the policy "error", at a text that is too long.
            ModelError: if the network does not read its tokens through one table.
        """
        table = self.renderer.encode(pairs)
        placed = [self._placed.placed(pair) for pair in pairs]
        for i, text in enumerate(placed):
            assert text.ids == table.row(i).tolist(), "the ids with their places are not the renderer's ids"
        tokens = np.array(
            [[_token_at(text, span) for span in one] for text, one in zip(placed, spans, strict=True)], dtype=np.int64
        )  # (N, K), -1 for none
        single = np.flatnonzero((tokens >= 0).any(axis=0))
        rows = np.flatnonzero((tokens[:, single] >= 0).all(axis=1))
        found = [Flips([], np.zeros(0), 0, 0) for _ in spans[0]]
        if not len(single) or not len(rows):
            return found
        places = tokens[rows][:, single]
        gradients = self._gradients(table, rows, places)
        kept, read = rows.tolist(), table.take(rows)
        for k, slot in enumerate(single.tolist()):
            texts = _Texts([pairs[i] for i in kept], [spans[i][slot] for i in kept], read, places[:, k])
            found[slot] = self._best(texts, gradients[k], top)
        return found

    def _best(self, texts: _Texts, gradient: Tensor, top: int) -> Flips:
        """The words of largest gain at one place that leave all other ids of all texts as they are."""
        ids = self._ids[texts.where()]
        own = int(texts.table.row(0)[texts.tokens[0]])
        others = np.flatnonzero((ids >= 0) & (ids != own))
        gains = self._products(ids[others], gradient) - self._products(np.array([own]), gradient)[0]
        best: list[int] = []
        num_retokenised = 0
        for i in np.argsort(-gains, kind="stable")[: top * _SPARE].tolist():
            if len(best) == top:
                break
            if self._changes_one_id(texts, self._words.words[others[i]], int(ids[others[i]])):
                best.append(i)
            else:
                num_retokenised += 1
        words = [self._words.words[others[i]] for i in best]
        return Flips(words, gains[best], len(texts.pairs), num_retokenised)

    def _changes_one_id(self, texts: _Texts, word: str, token: int) -> bool:
        """Whether the renderer reads each text with the word put in as its ids with that one token in their place."""
        found = self.renderer.encode(texts.with_word(word))
        if not np.array_equal(found.starts, texts.table.starts):
            return False
        expected = texts.table.ids.copy()
        expected[texts.table.starts[:-1] + texts.tokens] = token
        return np.array_equal(found.ids, expected)

    # -- words and their tokens --------------------------------------------------------------------------------------

    @cached_property
    def _words(self) -> PlainWords:
        return self._vocabulary[0]

    @property
    def _ids(self) -> dict[Where, NDArray[np.int64]]:
        return self._vocabulary[1]

    @cached_property
    def _vocabulary(self) -> tuple[PlainWords, dict[Where, NDArray[np.int64]]]:
        """The words, and the id of each where it is first in an answer, inside it and last, int64 (W,); -1 where it is more than one token there."""
        backend = self.renderer.tokenizer.backend_tokenizer
        added = backend.get_added_tokens_decoder()
        left_out = {"special": 0, "no plain text": 0, "the same word": 0, "not one token as a word": 0}
        found: dict[str, None] = {}
        for token in sorted(backend.get_vocab().values()):
            word = backend.decode([token], skip_special_tokens=False).strip()
            if token in added:
                left_out["special"] += 1
            elif not word or not word.isprintable() or "\ufffd" in word or " " in word:
                left_out["no plain text"] += 1
            elif word in found:
                left_out["the same word"] += 1
            else:
                found[word] = None
        words = list(found)
        inside = self._single_ids(words, "inner")
        words = [word for word, token in zip(words, inside.tolist(), strict=True) if token >= 0]
        left_out["not one token as a word"] = len(found) - len(words)
        first, last = self._single_ids(words, "first"), self._single_ids(words, "last")
        openers = [word for word, token in zip(words, first.tolist(), strict=True) if token >= 0]
        return PlainWords(words, openers, left_out), {"first": first, "inner": inside[inside >= 0], "last": last}

    def _single_ids(self, words: Sequence[str], where: Where) -> NDArray[np.int64]:
        """The id of each word between neighbours, -1 where it is not one token there or changes its neighbours; int64 (W,)."""
        before, after = _NEIGHBOURS[where]
        found = np.full(len(words), -1, dtype=np.int64)
        table = self.renderer.encode([("a", f"{before}{word}{after}") for word in words])
        # A word of one token, for its neighbours' ids: it is among the shortest texts.
        for i in np.argsort(table.lengths, kind="stable").tolist():
            text = self._placed.placed(("a", f"{before}{words[i]}{after}"))
            place = _token_at(text, (len(before), len(before) + len(words[i])))
            if place >= 0:
                break
        else:
            return found
        alike = np.flatnonzero(table.lengths == len(text.ids))
        ids = table.ids[table.starts[alike][:, None] + np.arange(len(text.ids))].astype(np.int64)  # (W, T)
        others = np.delete(np.arange(len(text.ids)), place)
        same = (ids[:, others] == np.array(text.ids)[others]).all(axis=1)
        found[alike[same]] = ids[same, place]
        return found

    # -- gradients ---------------------------------------------------------------------------------------------------

    def _products(self, ids: NDArray[np.int64], gradient: Tensor) -> NDArray[np.float64]:
        """The product of gradient and embedding of each id, float64 (W,); through the module, which may scale its rows."""
        parts = [np.zeros(0)]
        with torch.no_grad():
            for start in range(0, len(ids), _ROWS_AT_ONCE):
                part = torch.from_numpy(ids[None, start : start + _ROWS_AT_ONCE]).to(self.device)
                parts.append((self._embedding(part)[0].float() @ gradient).double().cpu().numpy())
        return np.concatenate(parts)

    def _gradients(self, table: TokenTable, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> Tensor:
        """The mean over the texts of some rows of d score / d embedding at some of their tokens, (N, K); float32 (K, E)."""
        pad_id = self.renderer.tokenizer.pad_token_id or 0
        sums: Tensor | None = None
        with self._in_float32():
            for part in scoring_plan(table.lengths[rows], self.batch_tokens):
                batch = collate(table, rows[part], pad_id=pad_id, with_types=self.renderer.uses_types)
                batch = batch.to(self.device)
                states = self._embedding(batch.input_ids).detach().float().requires_grad_(True)  # (N, T, E)
                hook = self._embedding.register_forward_hook(lambda *_, states=states: states)
                try:
                    scores = self.network.scores(batch)
                finally:
                    hook.remove()
                (gradient,) = torch.autograd.grad(scores.sum(), states, allow_unused=True)
                if gradient is None:
                    raise ModelError(
                        "a network that reads its tokens through its table of input embeddings",
                        f"a {self.network.backbone_type} that does not",
                        "Search without gradients.",
                    )
                at = torch.from_numpy(tokens[part]).to(self.device)
                # (N, T, E) -> (N, K, E) -> (K, E)
                found = gradient[torch.arange(len(part), device=self.device)[:, None], at].sum(0)
                sums = found if sums is None else sums + found
        assert sums is not None
        return sums / len(rows)


class _Texts(NamedTuple):
    """Texts that all hold one word, each as one token that was read.

    Args:
        pairs: prompts with answers.
        spans: of the word in each answer.
        table: the ids of each text.
        tokens: which of its tokens is the word, int64 (N,).
    """

    pairs: list[Pair]
    spans: list[Span]
    table: TokenTable
    tokens: NDArray[np.int64]

    def where(self) -> Where:
        """Where in its answer the word stands."""
        (_, answer), (start, end) = self.pairs[0], self.spans[0]
        return "first" if start == 0 else "last" if end == len(answer) else "inner"

    def with_word(self, word: str) -> list[Pair]:
        """The texts with another word in its place."""
        return [
            (prompt, answer[:start] + word + answer[end:])
            for (prompt, answer), (start, end) in zip(self.pairs, self.spans, strict=True)
        ]


def _token_at(text: PlacedText, span: Span) -> int:
    """The one token that stands for these characters of the answer, or for them and the blank before them; -1 where there is none."""
    start, end = span
    found = [
        (i, place)
        for i, place in enumerate(text.places)
        if place is not None and place.slot == ANSWER and place.start < end and place.end > start
    ]
    if len(found) != 1:
        return -1
    [(i, place)] = found
    return i if start - 1 <= place.start <= start and place.end == end else -1
