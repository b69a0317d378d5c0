"""What a tokenizer, a template and a policy cut from pairs at several limits: the model's side of `rewardsmith lint --tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from rewardsmith.config import Truncation
from rewardsmith.data.schema import Pair, Preference, prompt_key
from rewardsmith.data.truncation import Bools, Counts, Cut
from rewardsmith.model.artefact import CONTRACT, read_contract
from rewardsmith.model.clock import pinned_date
from rewardsmith.model.network import load_tokenizer, source_folder
from rewardsmith.model.render import Renderer, RenderSpec, TokenTable, resolve_encoding

# Longer than any text; the renderer then cuts nothing.
_UNCUT = 1 << 30


class TokenizerCutter:
    """A `Cutter` of rewardsmith.data.truncation: the one renderer, at several values of max_length.

    Args:
        tokenizer: with a Rust backend.
        name: for the report.
        limits: values of max_length, ascending.
        spec: template, encoding and policy; its max_length is not used.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, name: str, limits: Sequence[int], spec: RenderSpec
    ) -> None:
        """Prepare one renderer a limit, and one that cuts nothing."""
        self.tokenizer, self.policy, self.limits = name, str(spec.truncation), tuple(limits)
        self._whole = Renderer(tokenizer, replace(spec, max_length=_UNCUT, truncation="keep_answer"))
        self._renderers = [Renderer(tokenizer, replace(spec, max_length=limit)) for limit in limits]
        self._tail = self._tail_tokens()

    @classmethod
    def load(cls, source: str, *, limits: Sequence[int], truncation: Truncation) -> TokenizerCutter:
        """Of a model folder, with the template that it was trained with where it carries one; of any other source, with the default.

        Raises:
            ModelError: (or a subclass) saying what is wrong with the source.
            LengthError: if a limit leaves no room beside the template.
        """
        folder = source_folder(source)
        tokenizer = load_tokenizer(folder)
        if (Path(folder) / CONTRACT).is_file():
            spec = read_contract(Path(folder)).render
        else:
            encoding = resolve_encoding("auto", tokenizer)[0]
            spec = RenderSpec(
                encoding=encoding, date=pinned_date(tokenizer, date.today()) if encoding == "chat" else None
            )
        return cls(tokenizer, name=Path(source).name, limits=limits, spec=replace(spec, truncation=truncation))

    def cut(self, pairs: Sequence[Preference]) -> list[Cut]:
        """One Cut a limit, for pairs of one prompt each."""
        sides: list[Pair] = [p.chosen_pair for p in pairs] + [p.rejected_pair for p in pairs]
        whole = self._whole.encode(sides)
        answer_tokens = whole.lengths - self._frame_lengths(sides)
        first_difference = self._first_differences(whole, answer_tokens)
        return [self._cut_at(renderer, sides, whole, answer_tokens, first_difference) for renderer in self._renderers]

    def _cut_at(
        self,
        renderer: Renderer,
        sides: Sequence[Pair],
        whole: TokenTable,
        answer_tokens: Counts,
        first_difference: Counts,
    ) -> Cut:
        n = len(sides) // 2
        longer = whole.lengths > renderer.spec.max_length
        digests, lost = whole.digests(), np.zeros(2 * n, dtype=np.int64)
        places = np.flatnonzero(longer)
        if len(places):  # only what is longer is rendered again
            table = renderer.encode([sides[int(i)] for i in places])
            digests = digests.copy()
            digests[places], lost[places] = table.digests(), table.answer_cut
        kept = answer_tokens - lost
        unseen = (lost > 0) & (kept <= np.concatenate([first_difference, first_difference]))
        return Cut(
            longer=_either(longer),
            answer_cut=_either(lost > 0),
            answer_tokens=answer_tokens[:n] + answer_tokens[n:],
            answer_tokens_lost=lost[:n] + lost[n:],
            identical=digests[:n] == digests[n:],
            difference_beyond=unseen[:n] & unseen[n:],
        )

    def _frame_lengths(self, sides: Sequence[Pair]) -> Counts:
        """Tokens of each text without its answer; every prompt is counted once."""
        keys = [prompt_key(prompt) for prompt, _ in sides]
        prompts = {key: prompt for key, (prompt, _) in zip(keys, sides, strict=True)}
        lengths = self._whole.encode([(prompt, "") for prompt in prompts.values()]).lengths
        by_key = dict(zip(prompts, lengths, strict=True))
        return np.array([by_key[key] for key in keys], dtype=np.int64)

    def _first_differences(self, whole: TokenTable, answer_tokens: Counts) -> Counts:
        """For each pair the place, in tokens of the answer, where its two sides differ first; (n,)."""
        n = len(whole) // 2
        found = np.zeros(n, dtype=np.int64)
        for i in range(n):
            a, b = whole.row(i), whole.row(i + n)
            shorter = min(len(a), len(b))
            differ = np.flatnonzero(a[:shorter] != b[:shorter])
            first = int(differ[0]) if len(differ) else shorter
            found[i] = max(0, first - (len(a) - self._tail - int(answer_tokens[i])))
        return found

    def _tail_tokens(self) -> int:
        """Tokens after every answer: the template's end and the special tokens."""
        table = self._whole.encode([("a", "one"), ("a", "two three")])
        a, b = table.row(0)[::-1], table.row(1)[::-1]
        shorter = min(len(a), len(b))
        return int(np.argmax(a[:shorter] != b[:shorter]))


def _either(sides: Bools) -> Bools:
    return sides[: len(sides) // 2] | sides[len(sides) // 2 :]
