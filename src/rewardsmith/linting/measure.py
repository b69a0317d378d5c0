"""What a chunk of rows becomes: columns of numbers. Everything that later compares rows compares these, so texts never pile up in memory.

This is the part that runs in worker processes; it sees one chunk and knows nothing of the rest.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from rewardsmith.data import io, near, traits
from rewardsmith.data.faults import folded, folded_words
from rewardsmith.data.near import Hashes
from rewardsmith.data.pairing import preferences_of
from rewardsmith.data.schema import Group, Preference, Prompt, Row, Single, prompt_key
from rewardsmith.errors import RowError
from rewardsmith.linting.mending import MENDS, mended
from rewardsmith.linting.overlap import Grams

Bools = NDArray[np.bool_]
Table = TypeVar("Table", "RowTable", "PairTable")

# Text damage and leftovers, looked for in every text of a row.
TEXT_RULES: dict[str, Callable[[str], bool]] = {
    "replacement_character": traits.has_replacement_character,
    "template_token": traits.has_template_token,
}
# Rules that one row alone decides, as bits of `Columns.rules`.
ROW_RULES = (
    "schema",
    "empty_answer",
    "degenerate_answer",
    "equal_answers",
    "prompt_mismatch",
    "empty_prompt",
    "role_order",
    "role_marker",
    *MENDS,
    *TEXT_RULES,
    "mixed_language",
    "label_disagreement",
    "labelled_tie",
    "benchmark_overlap",
)
BIT = {name: np.uint32(1 << i) for i, name in enumerate(ROW_RULES)}
KINDS = ("malformed", "pair", "group", "candidates", "single")
MAX_SLICES = 20
"""A metadata column with more values than this names rows rather than kinds of rows."""
PART_MINIMA = 32
"""Of a pair's parts half of the minima is kept: whether they are related at all is a coarser question than how near the pairs are."""
_TAGS = {"prompt": 0, "chosen": 1, "rejected": 2}


@dataclass(frozen=True)
class Measuring:
    """What a worker is told.

    Args:
        mends: the rules that mend; the texts are examined as these leave them.
        format: see `io.parse`.
        near: whether to prepare for near duplicates.
        benchmarks: n-grams of the benchmarks, by name.
    """

    mends: frozenset[str] = frozenset()
    format: str | None = None
    near: bool = True
    benchmarks: tuple[tuple[str, Grams], ...] = ()


@dataclass
class RowTable:
    """One entry a parsed row; all arrays (r,).

    Args:
        number: raw row in the source, from 1, int64; the same for all rows that one raw row holds.
        span: raw rows that it was read from, int64; more than one where a format joins rows.
        kind: place in KINDS, uint8.
        rules: bits of ROW_RULES, uint32.
        benchmark: bits of the benchmarks that the row overlaps, uint32.
        prompt: hash of the folded prompt, uint64.
        content: a hash of prompt and answers in their order, uint64.
    """

    number: NDArray[np.int64]
    span: NDArray[np.int64]
    kind: NDArray[np.uint8]
    rules: NDArray[np.uint32]
    benchmark: NDArray[np.uint32]
    prompt: Hashes
    content: Hashes


@dataclass
class PairTable:
    """One entry a pair; all arrays begin with (p,). Hashes are of folded text.

    Args:
        row: place of the pair's row in the RowTable, int64.
        prompt, chosen, rejected: hashes, uint64.
        prompt_length, chosen_length, rejected_length: characters, int32.
        turns: messages of the prompt, int32.
        markdown: marks of Markdown, chosen minus rejected, int32.
        lists, apologies, refusals: 1 chosen has one, -1 rejected, 0 both or none, int8.
        shown_first: 1 chosen, -1 rejected, 0 unknown, int8.
        votes: for chosen and for rejected, int64 (p, 2); 0 and 0 where none were counted.
        margin: NaN without one, float64.
        tie: labelled as a tie.
        bands: keys of the pair's MinHash, uint32 (p, bands); (p, 0) where near duplicates are not asked for.
        sketch: of the pair, uint8 (p, minima); (p, 0) likewise.
        part_sketches: of its prompt, its chosen and its rejected answer, uint8 (p, 3, PART_MINIMA); (p, 0, 0) likewise.
    """

    row: NDArray[np.int64]
    prompt: Hashes
    chosen: Hashes
    rejected: Hashes
    prompt_length: NDArray[np.int32]
    chosen_length: NDArray[np.int32]
    rejected_length: NDArray[np.int32]
    turns: NDArray[np.int32]
    markdown: NDArray[np.int32]
    lists: NDArray[np.int8]
    apologies: NDArray[np.int8]
    refusals: NDArray[np.int8]
    shown_first: NDArray[np.int8]
    votes: NDArray[np.int64]
    margin: NDArray[np.float64]
    tie: Bools
    bands: near.Keys
    sketch: NDArray[np.uint8]
    part_sketches: NDArray[np.uint8]


@dataclass
class Columns:
    """All that lint keeps of a source.

    Args:
        rows: one entry a parsed row.
        pairs: one entry a pair.
        ids: of the parsed rows, an array of texts.
        faults: (raw row, field, message) of the malformed ones.
        slices: for each metadata column of few values, the place of each pair's value (int16 (p,), -1 without one) and the values.
        formats: raw rows by the name of their format.
        num_rows: raw rows read.
    """

    rows: RowTable
    pairs: PairTable
    ids: Any
    faults: list[tuple[int, str, str]]
    slices: dict[str, tuple[NDArray[np.int16], list[str]]]
    formats: Counter[str]
    num_rows: int

    @classmethod
    def join(cls, parts: list[Columns]) -> Columns:
        """The columns of consecutive chunks as one; `parts` is emptied on the way, so that memory does not double."""
        offsets = np.cumsum([0, *(len(part.ids) for part in parts)])
        for part, offset in zip(parts, offsets, strict=False):
            part.pairs.row += offset
        ids = [identity for part in parts for identity in part.ids]
        faults = [fault for part in parts for fault in part.faults]
        slices = _joined_slices(parts)
        formats = sum((part.formats for part in parts), Counter[str]())
        num_rows = sum(part.num_rows for part in parts)
        rows = _joined_table(RowTable, [part.rows for part in parts])
        pairs = _joined_table(PairTable, [part.pairs for part in parts])
        parts.clear()
        # Short strings take 16 bytes in this type, and 60 as Python's own.
        return cls(rows, pairs, np.array(ids, dtype=np.dtypes.StringDType()), faults, slices, formats, num_rows)


def _joined_table(kind: type[Table], parts: Sequence[Table]) -> Table:
    columns = {}
    for name in [one.name for one in fields(kind)]:
        columns[name] = np.concatenate([getattr(part, name) for part in parts])
        for part in parts:
            setattr(part, name, None)  # freed column by column
    return kind(**columns)


def _joined_slices(parts: Sequence[Columns]) -> dict[str, tuple[NDArray[np.int16], list[str]]]:
    """Columns that have few values in every chunk and in all of them together."""
    values: dict[str, dict[str, int]] = {}
    dead = set()
    for part in parts:
        for name, (_, found) in part.slices.items():
            known = values.setdefault(name, {})
            for value in found:
                known.setdefault(value, len(known))
            if not found or len(known) > MAX_SLICES:  # a chunk says "too many" by an empty list
                dead.add(name)
    joined = {}
    for name in values.keys() - dead:
        codes = []
        for part in parts:
            missing = np.full(len(part.pairs.row), -1, dtype=np.int16)
            local, found = part.slices.get(name, (missing, []))
            places = np.array([*(values[name][value] for value in found), -1], dtype=np.int16)
            codes.append(places[local])
        joined[name] = (np.concatenate(codes), list(values[name]))
    return dict(sorted(joined.items()))


@dataclass(frozen=True, slots=True)
class _Text:
    """What is kept of one prompt or answer."""

    place: int
    hash: int
    length: int
    rules: int
    traits: traits.Traits | None = None
    script: str | None = None
    turns: int = 1


class _Chunk:
    """Measures the rows of one chunk; every distinct prompt and answer is looked at once."""

    def __init__(self, told: Measuring) -> None:
        self.told = told
        self.bits = {name: int(BIT[name]) for name in ROW_RULES}
        self.prompts: dict[str, _Text] = {}
        self.answers: dict[str, _Text] = {}
        self.prompt_texts: list[str] = []
        self.answer_texts: list[str] = []
        self.slices: dict[str, tuple[list[tuple[int, int]], dict[str, int]]] = {}
        self.rows: list[tuple[int, ...]] = []
        self.pairs: list[tuple[Any, ...]] = []
        self.texts_of_pairs: list[tuple[int, int, int]] = []
        self.ids: list[str] = []
        self.formats: Counter[str] = Counter()
        self.span = 1
        self.faults: list[tuple[int, str, str]] = []

    def damage(self, text: str) -> tuple[str, int]:
        """The text after its mends, and the bits of what was or is wrong with it."""
        text, names = mended(text, self.told.mends)
        found = 0
        for name in names:
            found |= self.bits[name]
        for name, (test, _) in MENDS.items():
            if name not in self.told.mends and test(text):
                found |= self.bits[name]
        for name, test in TEXT_RULES.items():
            if test(text):
                found |= self.bits[name]
        return text, found

    def prompt(self, prompt: Prompt) -> _Text:
        key = prompt_key(prompt)
        known = self.prompts.get(key)
        if known is None:
            known = self.prompts[key] = self._new_prompt(prompt, key)
        return known

    def _new_prompt(self, prompt: Prompt, key: str) -> _Text:
        turns = 1
        if isinstance(prompt, str):
            text, rules = self.damage(prompt)
            empty, length = traits.is_blank(text), len(text)
        else:
            turned = [(message["role"], *self.damage(message["content"])) for message in prompt]
            rules = 0
            for _, _, bits in turned:
                rules |= bits
            if rules:
                key = prompt_key([{"role": role, "content": content} for role, content, _ in turned])
            text, turns, length = key, len(turned), sum(len(content) for _, content, _ in turned)
            empty = traits.is_blank(turned[-1][1])
            if _out_of_order([role for role, _, _ in turned]):
                rules |= self.bits["role_order"]
        if empty:
            rules |= self.bits["empty_prompt"]
        self.prompt_texts.append(text)
        return _Text(
            len(self.prompt_texts) - 1, _hash(folded(text)), length, rules, script=traits.script(text), turns=turns
        )

    def answer(self, answer: str) -> _Text:
        known = self.answers.get(answer)
        if known is None:
            known = self.answers[answer] = self._new_answer(answer)
        return known

    def _new_answer(self, answer: str) -> _Text:
        text, rules = self.damage(answer)
        words = folded_words(text)
        if traits.is_blank(text):
            rules |= self.bits["empty_answer"]
        elif traits.is_loop(words) or traits.is_bare_signs(text):
            rules |= self.bits["degenerate_answer"]
        if traits.has_role_marker(text):
            rules |= self.bits["role_marker"]
        self.answer_texts.append(text)
        return _Text(
            len(self.answer_texts) - 1,
            _hash(" ".join(words)),
            len(text),
            rules,
            traits.traits(text),
            traits.script(text),
        )

    def add(self, parsed: io.Parsed) -> None:
        """What became of one raw row, or of several that are read together."""
        if parsed.format is not None:
            self.formats[parsed.format.name] += parsed.num_raw
        self.span = parsed.num_raw
        for row in parsed.rows:
            self._add(parsed.number, row)

    def _add(self, number: int, row: Row | RowError) -> None:
        if isinstance(row, RowError):
            self.faults.append((number, row.field, str(row)))
            self._row(number, f"row {number}", "malformed", self.bits["schema"], [], 0, 0)
        elif isinstance(row, Preference):
            rules, pair = self._pair(row)
            self.pairs.append((len(self.rows), *pair))
            texts = [row.prompt, row.chosen, row.rejected]
            self._row(number, row.id, "pair", rules, texts, pair[0], hash((*pair[:3], row.tie)))
        elif isinstance(row, Group):
            self._group(number, row)
        else:
            self._texts_only(number, row.id, "single", row, [row.answer])

    def _group(self, number: int, group: Group) -> None:
        if group.order == "none":
            self._texts_only(number, group.id, "candidates", group, list(group.answers))
            return
        prompt = self.prompt(group.prompt)
        rules = prompt.rules  # a group of equal ratings makes no pair that would bring them
        for preference in preferences_of(group):
            bits, pair = self._pair(preference)
            rules |= bits
            self.pairs.append((len(self.rows), *pair))
        measured = [self.answer(answer) for answer in group.answers]
        for one in measured:
            rules |= one.rules
        # Numbers alone: the hash of None differs from process to process.
        content = hash((prompt.hash, len(measured), *(group.ratings or ()), *(one.hash for one in measured)))
        self._row(number, group.id, "group", rules, [group.prompt, *group.answers], prompt.hash, content)

    def _texts_only(self, number: int, identity: str, kind: str, row: Group | Single, answers: list[str]) -> None:
        prompt = self.prompt(row.prompt)
        measured = [self.answer(answer) for answer in answers]
        rules = prompt.rules
        for one in measured:
            rules |= one.rules
        content = hash((prompt.hash, *(one.hash for one in measured)))
        self._row(number, identity, kind, rules, [row.prompt, *answers], prompt.hash, content)

    def _row(
        self, number: int, identity: str, kind: str, rules: int, texts: Sequence[Prompt], prompt: int, content: int
    ) -> None:
        overlaps = 0
        for i, (_, grams) in enumerate(self.told.benchmarks):
            if texts and grams.overlap(_texts(texts[0]), [text for part in texts[1:] for text in _texts(part)]):
                overlaps |= 1 << i
        if overlaps:
            rules |= self.bits["benchmark_overlap"]
        self.ids.append(identity)
        self.rows.append((number, self.span, KINDS.index(kind), rules, overlaps, prompt, content & 0xFFFFFFFFFFFFFFFF))

    def _pair(self, pair: Preference) -> tuple[int, tuple[Any, ...]]:
        prompt, chosen, rejected = self.prompt(pair.prompt), self.answer(pair.chosen), self.answer(pair.rejected)
        rules = prompt.rules | chosen.rules | rejected.rules
        if chosen.hash == rejected.hash and not rules & self.bits["empty_answer"]:
            rules |= self.bits["equal_answers"]
        if pair.rejected_prompt is not None:
            other = self.prompt(pair.rejected_prompt)
            rules |= other.rules
            if other.hash != prompt.hash:
                rules |= self.bits["prompt_mismatch"]
        if chosen.script and rejected.script and chosen.script != rejected.script:
            rules |= self.bits["mixed_language"]
        if _label_disagrees(pair):
            rules |= self.bits["label_disagreement"]
        if pair.tie:
            rules |= self.bits["labelled_tie"]
        a, b = chosen.traits, rejected.traits
        assert a is not None and b is not None
        for name, value in pair.metadata.items():
            self._slice(name, value)
        self.texts_of_pairs.append((prompt.place, chosen.place, rejected.place))
        return rules, (
            prompt.hash,
            chosen.hash,
            rejected.hash,
            prompt.length,
            a.length,
            b.length,
            prompt.turns,
            a.markdown - b.markdown,
            a.has_list - b.has_list,
            a.has_apology - b.has_apology,
            a.has_refusal - b.has_refusal,
            _SHOWN.get(str(pair.metadata.get("shown_first")), 0),
            pair.votes or (0, 0),
            np.nan if pair.margin is None else pair.margin,
            pair.tie,
        )

    def _slice(self, name: str, value: Any) -> None:
        codes, values = self.slices.setdefault(name, ([], {}))
        if len(values) > MAX_SLICES or not isinstance(value, str | bool | int):
            return
        # A lone surrogate can be in a metadata column, and in no report.
        name_of_value = str(value).encode("utf-8", "backslashreplace").decode()
        codes.append((len(self.pairs), values.setdefault(name_of_value, len(values))))

    def columns(self, num_rows: int) -> Columns:
        """What was found, as arrays."""
        kinds = (np.int64, np.int64, np.uint8, np.uint32, np.uint32, np.uint64, np.uint64)
        rows = RowTable(*(np.array([row[i] for row in self.rows], dtype=kind) for i, kind in enumerate(kinds)))
        pairs: list[Any] = [
            np.array([pair[i] for pair in self.pairs], dtype=kind).reshape(-1, *shape)
            for i, (kind, shape) in enumerate(_PAIR_KINDS)
        ]
        pairs += self._near()
        return Columns(rows, PairTable(*pairs), self.ids, self.faults, self._slices(), self.formats, num_rows)

    def _slices(self) -> dict[str, tuple[NDArray[np.int16], list[str]]]:
        found = {}
        for name, (codes, values) in self.slices.items():
            column = np.full(len(self.pairs), -1, dtype=np.int16)
            if len(values) <= MAX_SLICES and codes:
                places, local = np.array(codes).T
                column[places] = local
                found[name] = (column, list(values))
            else:
                found[name] = (column, [])
        return found

    def _near(self) -> list[Any]:
        n = len(self.pairs)
        if not self.told.near:
            return [np.zeros((n, 0), np.uint32), np.zeros((n, 0), np.uint8), np.zeros((n, 0, 0), np.uint8)]
        if not n:
            shapes = ((0, near.NUM_BANDS), (0, near.NUM_MINIMA), (0, 3, PART_MINIMA))
            return [np.zeros(shape, kind) for shape, kind in zip(shapes, (np.uint32, np.uint8, np.uint8), strict=True)]
        places = np.array(self.texts_of_pairs).T  # (3, p)
        texts = (self.prompt_texts, self.answer_texts, self.answer_texts)
        parts = [
            near.minima(text, tag=tag)[place] for text, tag, place in zip(texts, _TAGS.values(), places, strict=True)
        ]
        whole = np.minimum(np.minimum(parts[0], parts[1]), parts[2])  # the MinHash of the union of all three
        of_parts = np.stack([near.sketch(one, size=PART_MINIMA) for one in parts], axis=1)
        return [near.band_keys(whole), near.sketch(whole), of_parts]


_SHOWN = {"chosen": 1, "rejected": -1}
_PAIR_KINDS: tuple[tuple[Any, tuple[int, ...]], ...] = (
    (np.int64, ()),
    *((np.uint64, ()),) * 3,
    *((np.int32, ()),) * 5,
    *((np.int8, ()),) * 4,
    (np.int64, (2,)),
    (np.float64, ()),
    (np.bool_, ()),
)


def measure(chunk: io.Chunk, told: Measuring) -> Columns:
    """The columns of one chunk of a source."""
    measured = _Chunk(told)
    for parsed in io.parse_units(chunk, format=told.format):
        measured.add(parsed)
    return measured.columns(len(chunk.rows))


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _texts(part: Prompt) -> Iterable[str]:
    return [part] if isinstance(part, str) else [message["content"] for message in part]


def _out_of_order(roles: list[str]) -> bool:
    """A system message after the beginning, an assistant who speaks first, or one side twice in a row."""
    talk = [role for role in roles if role in ("user", "assistant")]
    doubled = any(a == b for a, b in itertools.pairwise(talk))
    return "system" in roles[1:] or doubled or talk[:1] == ["assistant"]


def _label_disagrees(pair: Preference) -> bool:
    """Whether votes or ratings say that the rejected answer is the better one, and the label does not call it a tie."""
    if pair.tie:
        return False
    if pair.votes is not None and pair.votes[1] > pair.votes[0]:
        return True
    chosen, rejected = pair.metadata.get("rating_chosen"), pair.metadata.get("rating_rejected")
    return isinstance(chosen, int | float) and isinstance(rejected, int | float) and chosen < rejected
