"""The one renderer: (prompt, answer) -> token ids, and what was cut. Training, scoring, evaluation and serving all come through here.

A text is a list of *segments*. Each belongs to the frame (template text, role markers), to one turn of the prompt, or to the answer. The whole text is
tokenised at once, so that the ids of a text that fits are exactly what any other tool gets for the rendered text; a text that is too long is cut by
segment, at token bounds, and its frame is never cut.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding as Tokens
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from rewardsmith.config import DEFAULT_TEMPLATE, SLOTS, Encoding, Truncation, check_template
from rewardsmith.data.schema import Message, Pair, Prompt
from rewardsmith.errors import DataError, LengthError, ModelError, SettingsError
from rewardsmith.model.clock import is_day, with_pinned_clock
from rewardsmith.scores import RawIds, RawText

# Slots of segments; 0, 1, 2, ... are the turns of the prompt.
_FRAME, _ANSWER = -1, -2
_CHUNK = 1024
# Endings that tokenisers treat each in its own way; what stands after all of them stands after every answer.
_ENDINGS = ("word", "1", ".", "?!", " ", "\n", "\n\n", "#", "\u00e9", "\u4e2d", "\U0001f600")
_EXCERPT = 60
Ids = list[int]
Segment = tuple[str, int]


@dataclass(frozen=True)
class RenderSpec:
    """How texts become ids, as the model folder stores it.

    Args:
        encoding: "text" (template), "chat" (the tokenizer's chat template) or "pair" (prompt and answer as two segments).
        template: of "text".
        max_length: tokens of one input, special tokens included.
        truncation: what happens to longer ones; see `config.TrainSettings`.
        date: the day (YYYY-MM-DD) that a chat template which writes today's date is given, always the same; see `pinned_date`.

    Raises:
        SettingsError: if `date` is none.
    """

    encoding: Literal["text", "chat", "pair"] = "text"
    template: str = DEFAULT_TEMPLATE
    max_length: int = 512
    truncation: Truncation = "keep_answer"
    date: str | None = None

    def __post_init__(self) -> None:
        """Refuse a date that is none before anything is rendered with it."""
        if self.date is not None and not is_day(self.date):
            raise SettingsError("a date as YYYY-MM-DD", repr(self.date), "Write it like 2024-07-26.")

    def as_dict(self) -> dict[str, Any]:
        """The document in rewardsmith.json; without a date that nothing asks for, so that hashes of specs do not depend on the field."""
        return {name: value for name, value in asdict(self).items() if name != "date" or value is not None}


@dataclass(frozen=True)
class SpecialRule:
    """The special tokens that the tokenizer puts around one text (and between two)."""

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    second_type_from: int
    """How many of `middle` belong to the first segment."""

    @classmethod
    def of(cls, backend: Tokenizer, *, pair: bool) -> SpecialRule:
        """Read the rule off a probe; whatever the post-processor adds is kept, once."""
        probe = backend.encode("a", "b") if pair else backend.encode("a")
        parts: list[list[int]] = [[], [], []]
        types: list[int] = []
        place, seen = 0, None
        for token, sequence, kind in zip(probe.ids, probe.sequence_ids, probe.type_ids, strict=True):
            if sequence is None:
                if place == 0 and seen is not None:
                    place = 1 if pair else 2
                elif place == 1 and seen == 1:
                    place = 2
                parts[place].append(token)
                if place == 1:
                    types.append(kind)
            else:
                seen = sequence
        return cls(tuple(parts[0]), tuple(parts[1]), tuple(parts[2]), types.count(0))

    def count(self) -> int:
        """How many special tokens the rule adds."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)


@dataclass(frozen=True)
class TokenTable:
    """Token ids of n texts, end to end.

    Args:
        ids: all ids, int32.
        starts: text i is ids[starts[i]:starts[i + 1]], int64 (n + 1,).
        second: where token type 1 begins in each text (its length where there is none), int32 (n,).
        prompt_cut: tokens of the prompt that were cut, int32 (n,).
        answer_cut: tokens of the answer that were cut, int32 (n,).
        special_strings: special-token strings in the content, read as plain text, int32 (n,).
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    second: NDArray[np.int32]
    prompt_cut: NDArray[np.int32]
    answer_cut: NDArray[np.int32]
    special_strings: NDArray[np.int32]

    def __len__(self) -> int:
        """How many texts."""
        return len(self.second)

    def row(self, i: int) -> NDArray[np.int32]:
        """The ids of text i."""
        return self.ids[self.starts[i] : self.starts[i + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, int64 (n,)."""
        return np.diff(self.starts)

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """Whether something was cut, bool (n,)."""
        return (self.prompt_cut > 0) | (self.answer_cut > 0)

    def digests(self) -> NDArray[np.uint64]:
        """A hash of each text's ids and token types, uint64 (n,)."""
        values = [
            hashlib.blake2b(self.row(i).tobytes() + int(self.second[i]).to_bytes(4, "little"), digest_size=8).digest()
            for i in range(len(self))
        ]
        return np.frombuffer(b"".join(values), dtype=np.uint64)

    def take(self, rows: NDArray[np.int64]) -> TokenTable:
        """Some of the texts, in the order given."""
        lengths = self.lengths[rows]
        return TokenTable(
            np.concatenate([self.row(int(i)) for i in rows]) if len(rows) else np.zeros(0, np.int32),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            self.second[rows],
            self.prompt_cut[rows],
            self.answer_cut[rows],
            self.special_strings[rows],
        )

    @classmethod
    def join(cls, tables: Sequence[TokenTable]) -> TokenTable:
        """Tables one after the other."""
        lengths = np.concatenate([table.lengths for table in tables]) if tables else np.zeros(0, np.int64)

        def all_of(name: str) -> Any:
            return np.concatenate([getattr(table, name) for table in tables]) if tables else np.zeros(0, np.int32)

        return cls(
            all_of("ids"),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            all_of("second"),
            all_of("prompt_cut"),
            all_of("answer_cut"),
            all_of("special_strings"),
        )


@dataclass
class _Part:
    """A piece of text that is tokenised on its own, with the spans of its slots."""

    text: str
    spans: list[tuple[int, int, int]]  # start, end, slot
    plain: bool  # special-token strings are plain text


@dataclass
class _Cut:
    """A text after the policy."""

    bodies: list[Ids]
    prompt_cut: int = 0
    answer_cut: int = 0


def resolve_encoding(
    wanted: Encoding, tokenizer: PreTrainedTokenizerBase
) -> tuple[Literal["text", "chat", "pair"], str]:
    """The encoding to use and why.

    Raises:
        SettingsError: if the tokenizer cannot do what was asked.
    """
    if wanted == "chat" and not tokenizer.chat_template:
        raise SettingsError("a tokenizer with a chat template", "one without", 'Set encoding = "text" or "pair".')
    if wanted == "pair" and not SpecialRule.of(_backend_of(tokenizer), pair=True).middle:
        raise SettingsError(
            'a tokenizer that separates two segments, for encoding = "pair"',
            "one that joins them with nothing between",
            'Set encoding = "text".',
        )
    if wanted != "auto":
        return wanted, "as set"
    if tokenizer.chat_template:
        return "chat", "the tokenizer has a chat template"
    return "text", "the tokenizer has no chat template"


def with_end_token(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A text template that ends with the tokenizer's end token, so that the last token, where a decoder is read, is the same in every text.

    Unchanged where the tokenizer ends every text by itself, has no end token that it reads as one id, or the template has it already.

    >>> with_end_token("{prompt} {answer}", gpt2_tokenizer)  # doctest: +SKIP
    '{prompt} {answer}<|endoftext|>'
    """
    backend, end = _backend_of(tokenizer), tokenizer.eos_token
    if end is None or template.endswith(end) or SpecialRule.of(backend, pair=False).suffix:
        return template
    token = backend.get_added_tokens_decoder().get(tokenizer.eos_token_id)
    return template + end if token is not None and token.special and token.content == end else template


def _backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            "a tokenizer with a tokenizer.json (the Rust kind, which knows where each token came from)",
            type(tokenizer).__name__,
            "Convert the tokenizer, or choose a model that ships tokenizer.json.",
        )
    return backend


class Renderer:
    """Turns (prompt, answer) into ids; the same object, or one of the same spec, on every path.

    Args:
        tokenizer: with a Rust backend; it is copied, never changed. `Renderer.tokenizer` is the one to save: its chat template reads no clock.
        spec: see `RenderSpec`.

    Raises:
        ModelError: if the tokenizer has no Rust backend, or the chat template writes today's date and the spec pins none, or leaves a turn open.
        LengthError: if max_length leaves no room beside the template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: RenderSpec) -> None:
        """Copy the tokenizer's backend twice: one parses special tokens, the other reads them as plain text."""
        if spec.encoding == "chat" and tokenizer.chat_template:
            tokenizer = with_pinned_clock(tokenizer, spec.date)
        self.tokenizer, self.spec = tokenizer, spec
        serialised = _backend_of(tokenizer).to_str()
        self._parsing, self._plain = Tokenizer.from_str(serialised), Tokenizer.from_str(serialised)
        for backend in (self._parsing, self._plain):
            backend.no_truncation()
            backend.no_padding()
        self._plain.encode_special_tokens = True
        self.rule = SpecialRule.of(self._parsing, pair=spec.encoding == "pair")
        self.uses_types = spec.encoding == "pair" and "token_type_ids" in tokenizer.model_input_names
        added = self._parsing.get_added_tokens_decoder()
        specials = {token.content for token in added.values() if token.special}
        unknown = tokenizer.unk_token_id
        self._control_ids = {i for i, token in added.items() if token.special and i != unknown}
        self._special = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or r"(?!)")
        self._frames: dict[tuple[str, ...], list[str]] = {}
        self._refused: set[tuple[str, ...]] = set()
        if spec.encoding == "text":
            check_template(spec.template)
        if spec.encoding == "chat":
            self._check_closed()
        self._serialised = serialised
        self._check_room()

    def fingerprint(self) -> str:
        """A SHA-256 of all that the ids depend on: tokenizer, chat template, spec, this file's own code."""
        digest = hashlib.sha256()
        code = Path(__file__).read_bytes()
        for part in (self._serialised, self.tokenizer.chat_template or "", json.dumps(self.spec.as_dict())):
            digest.update(str(part).encode() + b"\0")
        digest.update(code + version("tokenizers").encode())
        return digest.hexdigest()

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids that every text ends with unless its end was cut (`truncation = "right"`); empty where it ends as its answer happens to.

        The special tokens that the tokenizer puts at the end and what the template writes after the answer, without tokens that may merge with it.
        """
        tables = [self._assemble(self._bodies(tokens))[0][::-1] for tokens in self._tokenise(self._endings())]
        return tuple(reversed(os.path.commonprefix(tables)))

    def _endings(self) -> list[list[list[_Part]]]:
        return [self._plan("a", f"a{ending}", 0) for ending in _ENDINGS]

    def encode(self, pairs: Sequence[Pair]) -> TokenTable:
        """The ids of each (prompt, answer), a function of that pair alone.

        Raises:
            LengthError: with the policy "error", at the first text that is too long.
            ModelError: if the chat template alters a text.
        """
        return TokenTable.join(
            [self._encode_chunk(pairs[start : start + _CHUNK]) for start in range(0, len(pairs), _CHUNK)]
        )

    def encode_raw(self, texts: Sequence[RawText | RawIds]) -> TokenTable:
        """The ids of texts that their senders have rendered, each a function of that text alone.

        Raises:
            LengthError: with the policy "error", at the first text that is too long.
            DataError: if the model reads prompt and answer as two segments, ids lie outside its vocabulary, or nothing is left to read.
        """
        if texts and self.spec.encoding == "pair":
            raise DataError(
                "a prompt and an answer, which this model reads as two segments",
                "one text",
                "Send them apart, to a route that takes pairs.",
            )
        plans = [
            self._plan_of([[(text.text, _FRAME if text.control else _ANSWER)]]) if isinstance(text, RawText) else []
            for text in texts
        ]
        rows, cuts, strings = [], [], []
        for text, tokens in zip(texts, self._tokenise(plans), strict=True):
            if isinstance(text, RawText):
                body, framed = self._bodies(tokens)[0], text.control or text.special
                strings.append(0 if text.control else len(self._special.findall(text.text)))
                if text.control:
                    body = _without(body, self.rule.prefix, self.rule.suffix)
            else:
                body, framed = self._checked_ids(text.ids), False
                strings.append(0)
            ids, cut = self._framed(body, text, framed=framed)
            rows.append(ids)
            cuts.append(cut)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        return TokenTable(
            np.concatenate([np.array(row, dtype=np.int32) for row in rows]) if rows else np.zeros(0, np.int32),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            lengths.astype(np.int32),
            np.zeros(len(rows), np.int32),
            np.array(cuts, dtype=np.int32),
            np.array(strings, dtype=np.int32),
        )

    def _framed(self, body: Ids, text: RawText | RawIds, *, framed: bool) -> tuple[Ids, int]:
        """(ids with the special tokens if `framed`, how many were cut so that they fit)."""
        prefix, suffix = (list(self.rule.prefix), list(self.rule.suffix)) if framed else ([], [])
        limit = min(self.spec.max_length, text.max_tokens or self.spec.max_length)
        room = limit - len(prefix) - len(suffix)
        if room < 1 or not (prefix or body or suffix):
            needed = f"a text, and a limit of at least {limit - room + 1} tokens"
            raise DataError(needed, f"{len(body)} tokens and a limit of {limit}", "Send more, or raise the limit.")
        cut = max(0, len(body) - room)
        if cut and self.spec.truncation == "error":
            length = len(prefix) + len(body) + len(suffix)
            raise LengthError(f"texts of at most {limit} tokens", f"one of {length} tokens", "Send a shorter text.")
        kept = body[cut:] if text.keep == "last" else body[: len(body) - cut]
        return [*prefix, *kept, *suffix], cut

    def _checked_ids(self, ids: Sequence[int]) -> Ids:
        outside = next((token for token in ids if not 0 <= token <= self._highest_id), None)
        if outside is not None:
            raise DataError(f"token ids from 0 to {self._highest_id}", str(outside), "Use this model's tokenizer.")
        return list(ids)

    @cached_property
    def _highest_id(self) -> int:
        return max(self._parsing.get_vocab().values())

    def render(self, prompt: Prompt, answer: str) -> str:
        """The text that a (prompt, answer) becomes before tokenisation and cutting; for "pair", the two segments joined by a blank line."""
        return "\n\n".join(self.texts(prompt, answer))

    def texts(self, prompt: Prompt, answer: str) -> list[str]:
        """The same as other tools' tokenizers take it: one text, or for "pair" two."""
        return ["".join(text for text, _ in part) for part in self._joined(self._segments(prompt, answer, 0))]

    def _encode_chunk(self, pairs: Sequence[Pair]) -> TokenTable:
        plans = [self._plan(prompt, answer, 0) for prompt, answer in pairs]
        tokens = self._tokenise(plans)
        rows: list[Ids] = []
        second: list[int] = []
        prompt_cut, answer_cut = [], []
        for (prompt, answer), plan, encoded in zip(pairs, plans, tokens, strict=True):
            bodies = self._bodies(encoded)
            cut = _Cut(bodies)
            length = sum(map(len, bodies)) + self._num_special(bodies)
            if length > self.spec.max_length:
                cut = self._shorten(prompt, answer, plan, encoded, length)
            ids, start = self._assemble(cut.bodies)
            rows.append(ids)
            second.append(start)
            prompt_cut.append(cut.prompt_cut)
            answer_cut.append(cut.answer_cut)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        flat = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(lengths.sum()))
        return TokenTable(
            flat,
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.array(second, dtype=np.int32),
            np.array(prompt_cut, dtype=np.int32),
            np.array(answer_cut, dtype=np.int32),
            np.array([self._special_strings(prompt, answer) for prompt, answer in pairs], dtype=np.int32),
        )

    # -- text -> segments ------------------------------------------------------------------------------------------

    def _segments(self, prompt: Prompt, answer: str, first: int) -> list[list[Segment]]:
        """The segments of a text without its `first` oldest turns; "pair" gives two lists, the others one."""
        if self.spec.encoding == "chat":
            return [self._chat_segments(prompt, answer, first)]
        turns = _prompt_turns(prompt, first)
        if self.spec.encoding == "pair":
            return [turns, [(answer, _ANSWER)]]
        before, rest = self.spec.template.split(SLOTS[0])
        between, after = rest.split(SLOTS[1])
        return [[(before, _FRAME), *turns, (between, _FRAME), (answer, _ANSWER), (after, _FRAME)]]

    def _chat_segments(self, prompt: Prompt, answer: str, first: int) -> list[Segment]:
        messages = [*_messages(prompt)[first:], {"role": "assistant", "content": answer}]
        rendered = self._apply_chat_template(messages)
        frames = self._chat_frames(tuple(message["role"] for message in messages))
        contents = [message["content"] for message in messages]
        written = _written(rendered, frames, contents)
        if written is None:
            kept = [content if content in rendered else content.strip() for content in contents]
            expected = frames[0] + "".join(text + frame for text, frame in zip(kept, frames[1:], strict=True))
            raise ModelError(
                "a chat template that leaves the texts as they are (outer white space aside)",
                f"one that {_changes(expected, rendered)}",
                'Change the chat template, or set encoding = "text".',
            )
        segments: list[Segment] = [(frames[0], _FRAME)]
        for i, (text, frame) in enumerate(written):
            segments += [(text, _ANSWER if i == len(written) - 1 else first + i), (frame, _FRAME)]
        return segments

    def _chat_frames(self, roles: tuple[str, ...]) -> list[str]:
        """What the template writes around each message of these roles; found once with contents that occur nowhere else."""
        if roles not in self._frames:
            marks = [f"\ue000rewardsmith{i}\ue001" for i in range(len(roles))]
            messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
            rest, frames = self._apply_chat_template(messages), []
            for mark in marks:
                if rest.count(mark) != 1:
                    raise ModelError(
                        "a chat template that writes every message once",
                        f"{rest.count(mark)} copies of a message of role {roles[marks.index(mark)]!r}",
                        'Change the chat template, or set encoding = "text".',
                    )
                frame, rest = rest.split(mark)
                frames.append(frame)
            self._frames[roles] = [*frames, rest]
        return self._frames[roles]

    def _takes(self, prompt: Prompt, first: int) -> bool:
        """Whether the template takes this prompt without its `first` oldest turns: some want a user's turn first, and turns that alternate."""
        if self.spec.encoding != "chat" or first == 0:
            return True
        roles = (*(message["role"] for message in _messages(prompt)[first:]), "assistant")
        if roles not in self._refused:
            try:
                self._chat_frames(roles)
            except ModelError:
                self._refused.add(roles)
        return roles not in self._refused

    def _check_closed(self) -> None:
        """Refuse a template that opens the assistant's next turn after the answer: its score would be read off the wrong turn."""
        roles = ("user", "assistant", "user", "assistant")
        try:
            _, to_assistant, to_user, _, end = self._chat_frames(roles)
        except ModelError:
            return  # it takes one exchange alone; what is wrong with that is said where a text is rendered
        shared = len(os.path.commonprefix([to_assistant, to_user]))
        header = to_assistant[shared:].strip()
        if any(letter.isalnum() for letter in header) and header in end:
            raise ModelError(
                "a chat template that ends with the answer's own turn",
                f"one that goes on with {_excerpt(end)} after it (an open generation prompt)",
                "Let the template write it only if add_generation_prompt is set.",
            )

    def _apply_chat_template(self, messages: list[Message]) -> str:
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        except Exception as error:  # a template raises jinja2's errors, with the author's own words
            raise ModelError(
                "a chat template that takes these roles",
                f"{error} for {[m['role'] for m in messages]}",
                'Set encoding = "text".',
            ) from error
        assert isinstance(text, str)
        return text

    # -- segments -> ids -------------------------------------------------------------------------------------------

    def _joined(self, segments: list[list[Segment]]) -> list[list[Segment]]:
        return [[segment for segment in part if segment[0]] for part in segments]

    def _plan(self, prompt: Prompt, answer: str, first: int) -> list[list[_Part]]:
        """What is tokenised of a text without its `first` oldest turns."""
        return self._plan_of(self._segments(prompt, answer, first))

    def _plan_of(self, segments: list[list[Segment]]) -> list[list[_Part]]:
        """One list of parts for each body; a body is more than one part only where control tokens and look-alikes meet."""
        plan = []
        for part in self._joined(segments):
            frame_special = any(slot == _FRAME and self._special.search(text) for text, slot in part)
            content_special = any(slot != _FRAME and self._special.search(text) for text, slot in part)
            if frame_special and content_special:
                plan.append([piece for text, slot in part for piece in self._pieces(text, slot)])
                continue
            spans, end = [], 0
            for text, slot in part:
                spans.append((end, end + len(text), slot))
                end += len(text)
            whole = _Part("".join(text for text, _ in part), spans, plain=not frame_special)
            if content_special and self._control_ids.intersection(
                self._plain.encode(whole.text, add_special_tokens=False).ids
            ):
                plan.append([piece for text, slot in part for piece in self._pieces(text, slot)])
            else:
                plan.append([whole])
        return plan

    def _pieces(self, text: str, slot: int) -> list[_Part]:
        """A segment as parts of its own; content is broken inside every look-alike of a control token.

        Reading them as plain text is not always enough: a Unigram model (DeBERTa) has its control tokens among its ordinary pieces.
        """
        if slot == _FRAME:
            return [_Part(text, [(0, len(text), slot)], plain=False)]
        bounds = [0, *(match.start() + 1 for match in self._special.finditer(text)), len(text)]
        pieces = [text[start:end] for start, end in itertools.pairwise(bounds) if start < end]
        return [_Part(piece, [(0, len(piece), slot)], plain=True) for piece in pieces]

    def _tokenise(self, plans: Sequence[list[list[_Part]]]) -> list[list[list[Tokens]]]:
        """Tokens of every part of every body of every plan, in two batched calls that use all cores."""
        done: list[list[list[Tokens | None]]] = [[[None] * len(body) for body in plan] for plan in plans]
        for plain, backend in ((True, self._plain), (False, self._parsing)):
            places = [
                (i, j, k)
                for i, plan in enumerate(plans)
                for j, body in enumerate(plan)
                for k, part in enumerate(body)
                if part.plain is plain
            ]
            texts = [plans[i][j][k].text for i, j, k in places]
            try:
                encoded = backend.encode_batch(texts, add_special_tokens=False)
            except TypeError as error:  # what tokenizers says of half a surrogate pair
                raise _not_unicode([(i, plans[i][j][k].text) for i, j, k in places]) from error
            for (i, j, k), tokens in zip(places, encoded, strict=True):
                done[i][j][k] = tokens
        return done  # type: ignore[return-value]

    @staticmethod
    def _bodies(encoded: list[list[Tokens]]) -> list[Ids]:
        return [[token for tokens in body for token in tokens.ids] for body in encoded]

    @staticmethod
    def _slots(plan: list[list[_Part]], encoded: list[list[Tokens]]) -> list[NDArray[np.int64]]:
        """The slot of every token of every body; a token that reaches over a bound belongs to the frame."""
        bodies = []
        for parts, tokens_of_parts in zip(plan, encoded, strict=True):
            slots = [np.zeros(0, np.int64)]
            for part, tokens in zip(parts, tokens_of_parts, strict=True):
                offsets = np.array(tokens.offsets, dtype=np.int64).reshape(-1, 2)
                spans = np.array(part.spans, dtype=np.int64).reshape(-1, 3)
                at = np.searchsorted(spans[:, 0], offsets[:, 0], side="right") - 1
                inside = offsets[:, 1] <= spans[at, 1]
                slots.append(np.where(inside, spans[at, 2], _FRAME))
            bodies.append(np.concatenate(slots))
        return bodies

    def _num_special(self, bodies: list[Ids]) -> int:
        """Special tokens that are still to be added: those that a chat template has written already are not doubled."""
        return len(self._missing_prefix(bodies)) + len(self.rule.middle) + len(self._missing_suffix(bodies))

    def _missing_prefix(self, bodies: list[Ids]) -> tuple[int, ...]:
        prefix = self.rule.prefix
        return () if prefix and tuple(bodies[0][: len(prefix)]) == prefix and self._frame_parsed else prefix

    def _missing_suffix(self, bodies: list[Ids]) -> tuple[int, ...]:
        suffix = self.rule.suffix
        return () if suffix and tuple(bodies[-1][-len(suffix) :]) == suffix and self._frame_parsed else suffix

    @property
    def _frame_parsed(self) -> bool:
        """Only a frame can have written control tokens; in content they are plain text and never look like one."""
        return self.spec.encoding == "chat" or bool(self._special.search(self.spec.template))

    def _assemble(self, bodies: list[Ids]) -> tuple[Ids, int]:
        """(all ids with the special tokens once, where token type 1 begins)."""
        prefix, suffix = self._missing_prefix(bodies), self._missing_suffix(bodies)
        if len(bodies) == 1:
            ids = [*prefix, *bodies[0], *suffix]
            return ids, len(ids)
        ids = [*prefix, *bodies[0], *self.rule.middle, *bodies[1], *suffix]
        return ids, len(prefix) + len(bodies[0]) + self.rule.second_type_from

    # -- the length policies ---------------------------------------------------------------------------------------

    def _shorten(
        self, prompt: Prompt, answer: str, plan: list[list[_Part]], encoded: list[list[Tokens]], length: int
    ) -> _Cut:
        if self.spec.truncation == "error":
            raise LengthError(
                f"texts of at most {self.spec.max_length} tokens",
                f"one of {length} tokens, which begins {self.render(prompt, answer)[:80]!r}",
                "Raise max_length, or set truncation to keep_answer, right or drop.",
            )
        if self.spec.truncation == "right":
            return self._cut_right(plan, encoded)
        # `drop` leaves such rows out of training; where a score is asked for all the same, the text is cut like keep_answer.
        return self._keep_answer(prompt, answer, plan, encoded)

    def _cut_right(self, plan: list[list[_Part]], encoded: list[list[Tokens]]) -> _Cut:
        bodies, slots = self._bodies(encoded), self._slots(plan, encoded)
        room = self.spec.max_length - self.rule.count()
        cut = _Cut([])
        for body, slot in zip(bodies, slots, strict=True):
            cut.bodies.append(body[: max(0, room)])
            lost = slot[max(0, room) :]
            cut.answer_cut += int((lost == _ANSWER).sum())
            cut.prompt_cut += int((lost >= 0).sum())
            room -= len(body)
        return cut

    def _keep_answer(self, prompt: Prompt, answer: str, plan: list[list[_Part]], encoded: list[list[Tokens]]) -> _Cut:
        """Oldest turns go first, then the end of the oldest one left; the answer loses its end only to the prompt's quarter."""
        bodies, slots = self._bodies(encoded), self._slots(plan, encoded)
        all_prompt = sum(int((slot >= 0).sum()) for slot in slots)
        all_answer = sum(int((slot == _ANSWER).sum()) for slot in slots)
        floor = min(all_prompt, self.spec.max_length // 4)
        num_turns = len(_messages(prompt))
        starts = [first for first in range(num_turns) if self._takes(prompt, first)]
        for first in starts:
            if first:
                plan = self._plan(prompt, answer, first)
                encoded = self._tokenise([plan])[0]
                bodies, slots = self._bodies(encoded), self._slots(plan, encoded)
            frame = sum(int((slot == _FRAME).sum()) for slot in slots)
            room = self.spec.max_length - frame - self._num_special(bodies)
            if room < 1 and first != starts[-1]:
                continue
            answer_kept = min(all_answer, max(1, room - floor))
            excess = sum(int((slot >= 0).sum()) for slot in slots) - (room - answer_kept)
            oldest = sum(int((slot == first).sum()) for slot in slots)
            if excess < oldest or first == starts[-1]:
                break
        if room < 1:
            raise LengthError(
                f"max_length of at least {self.spec.max_length - room + 1} for the template around this text",
                f"max_length = {self.spec.max_length}",
                "Raise max_length or take a shorter template.",
            )
        limits = {}
        for turn in range(first, num_turns):
            tokens = sum(int((slot == turn).sum()) for slot in slots)
            limits[turn] = max(0, tokens - max(0, excess))
            excess -= tokens - limits[turn]
        kept_prompt = sum(limits.values())
        limits[_ANSWER] = answer_kept
        kept_bodies = [_keep_first(body, slot, limits) for body, slot in zip(bodies, slots, strict=True)]
        return _Cut(kept_bodies, all_prompt - kept_prompt, all_answer - answer_kept)

    def _check_room(self) -> None:
        """The frame around the shortest conversation, and one token of each side, must fit."""
        bodies = self._bodies(self._tokenise([self._plan("a", "b", 0)])[0])
        least = sum(map(len, bodies)) + self._num_special(bodies)
        if least > self.spec.max_length:
            raise LengthError(
                f"max_length of at least {least} (the template and special tokens alone take {least - 2})",
                f"max_length = {self.spec.max_length}",
                "Raise max_length or take a shorter template.",
            )

    def _special_strings(self, prompt: Prompt, answer: str) -> int:
        texts = [message["content"] for message in _messages(prompt)] + [answer]
        return sum(len(self._special.findall(text)) for text in texts)


def _without(body: Ids, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> Ids:
    """A body without the special tokens that it brings itself, so that they can be put around what is left of it."""
    if prefix and tuple(body[: len(prefix)]) == prefix:
        body = body[len(prefix) :]
    if suffix and tuple(body[-len(suffix) :]) == suffix:
        body = body[: len(body) - len(suffix)]
    return body


def _messages(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _prompt_turns(prompt: Prompt, first: int) -> list[Segment]:
    """A single user message is its content; a longer conversation is `Role: content` turns joined by a blank line."""
    messages = _messages(prompt)
    if len(messages) == 1 and messages[0]["role"] == "user":
        return [(messages[0]["content"], 0)]
    segments: list[Segment] = []
    for turn, message in list(enumerate(messages))[first:]:
        if segments:
            segments.append(("\n\n", _FRAME))
        segments.append((f"{message['role'].capitalize()}: {message['content']}", turn))
    return segments


def _keep_first(body: Ids, slots: NDArray[np.int64], limits: dict[int, int]) -> Ids:
    """The body with at most limits[slot] tokens of each named slot, the first ones."""
    keep = np.ones(len(body), dtype=bool)
    for slot, limit in limits.items():
        keep[np.flatnonzero(slots == slot)[limit:]] = False
    return [token for token, kept in zip(body, keep, strict=True) if kept]


def _written(rendered: str, frames: list[str], contents: list[str]) -> list[tuple[str, str]] | None:
    """Each text as the template wrote it (some trim them) and the frame after it; None where a text was altered.

    The frame before the answer may end early: Qwen3 opens with an empty block of thought unless the answer brings its own.
    """
    if not rendered.startswith(frames[0]):
        return None
    at, written = len(frames[0]), []
    for content, frame in zip(contents[:-2], frames[1:-2], strict=True):
        text = next((text for text in _trims(content) if rendered.startswith(text + frame, at)), None)
        if text is None:
            return None
        written.append((text, frame))
        at += len(text) + len(frame)
    rest, before, end = rendered[at:], frames[-2], frames[-1]
    for text, answer in itertools.product(_trims(contents[-2]), _trims(contents[-1])):
        length = len(rest) - len(text) - len(answer) - len(end)
        if 0 <= length <= len(before) and rest == text + before[:length] + answer + end:
            return [*written, (text, before[:length]), (answer, end)]
    return None


def _trims(text: str) -> list[str]:
    """A text and what is left of it when a template takes white space off its ends."""
    ways = (text, text.strip(), text.lstrip(), text.rstrip(), text.strip("\n"), text.lstrip("\n"), text.rstrip("\n"))
    return list(dict.fromkeys(ways))


def _changes(expected: str, rendered: str) -> str:
    """What a template lost and added, in words."""
    start = len(os.path.commonprefix([expected, rendered]))
    expected, rendered = expected[start:], rendered[start:]
    end = len(os.path.commonprefix([expected[::-1], rendered[::-1]]))
    expected, rendered = expected[: len(expected) - end], rendered[: len(rendered) - end]
    lost, added = [expected], [rendered]
    if len(expected) + len(rendered) <= 2000:  # the comparison takes time in the square of the lengths
        steps = difflib.SequenceMatcher(None, expected, rendered, autojunk=False).get_opcodes()
        lost = [expected[a:b] for kind, a, b, _, _ in steps if kind != "equal"]
        added = [rendered[a:b] for kind, _, _, a, b in steps if kind != "equal"]
    losses, additions = (" ".join(_excerpt(piece) for piece in pieces if piece) for pieces in (lost, added))
    said = [f"loses {losses}"] if losses else []
    return " and ".join([*said, f"adds {additions}"] if additions else said)


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _EXCERPT else text[:_EXCERPT] + "...")


def _not_unicode(texts: Sequence[tuple[int, str]]) -> DataError:
    """The error of the first text that UTF-8 cannot hold; `texts` are (place in the call, text)."""
    for place, text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return DataError(
                "texts that are valid Unicode",
                f"half a surrogate pair (U+{ord(text[error.start]):X}) in input {place}",
                "Decode the source as UTF-16, or replace the character.",
            )
    return DataError("texts that the tokenizer reads", "one that it refuses", "Give the prompt and the answer as str.")
