"""Which characters of the prompt and the answer each token of an input stands for, after the length policy has had its way.

The renderer cuts lists of ids. Here the ids that it cuts remember where they came from, so that there is no second copy of its rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rewardsmith.data.schema import Pair, Prompt
from rewardsmith.model.render import Ids, Renderer

ANSWER = -2
"""The slot of the answer, as the renderer numbers it; turns of the prompt are 0, 1, 2, ..."""


class Place(NamedTuple):
    """Characters start:end of the answer (`slot` is ANSWER) or of a turn of the prompt."""

    slot: int
    start: int
    end: int


@dataclass(frozen=True)
class PlacedText:
    """One input as the model reads it.

    Args:
        ids: with all special tokens.
        places: of each id; None for the template and special tokens.
        ends: where reading of a slot ends, in characters, for each slot of which something was cut.
    """

    ids: list[int]
    places: list[Place | None]
    ends: dict[int, int]


class _PlacedId(int):
    """A token id that knows its place."""

    place: Place | None


class _PlacedTokens(NamedTuple):
    """What the renderer asks of the tokens of one part."""

    ids: Ids
    offsets: list[tuple[int, int]]


class PlacedRenderer(Renderer):
    """A renderer that says where its ids came from; the ids are those of the renderer that it is made of."""

    def placed(self, pair: Pair) -> PlacedText:
        """One (prompt, answer) as the model reads it.

        Raises:
            LengthError: with the policy "error", if it is too long.
            ModelError: if the chat template alters it.
        """
        prompt, answer = pair
        plan = self._plan(prompt, answer, 0)
        encoded = self._tokenise([plan])[0]
        whole = bodies = self._bodies(encoded)
        length = sum(map(len, bodies)) + self._num_special(bodies)
        if length > self.spec.max_length:
            bodies = self._shorten(prompt, answer, plan, encoded, length).bodies
        ids, _ = self._assemble(bodies)
        shifts = self._shifts(prompt, answer)
        places = [_moved(place, shifts) for place in map(_place_of, ids)]
        full = _ends([_moved(_place_of(token), shifts) for body in whole for token in body])
        read = _ends(places)
        return PlacedText(
            [int(token) for token in ids],
            places,
            {slot: read.get(slot, 0) for slot, end in full.items() if read.get(slot, 0) < end},
        )

    def _tokenise(self, plans: Sequence[list[list[Any]]]) -> list[list[list[Any]]]:
        """The renderer's own, with ids that know their places in their segments."""
        placed = []
        for plan, encoded in zip(plans, super()._tokenise(plans), strict=True):
            done: dict[
                int, int
            ] = {}  # characters of a slot before the part at hand: content may be tokenised in pieces
            bodies = []
            for parts, tokens_of_parts in zip(plan, encoded, strict=True):
                body = []
                for part, tokens in zip(parts, tokens_of_parts, strict=True):
                    ids = [_placed_id(*one, part.spans, done) for one in zip(tokens.ids, tokens.offsets, strict=True)]
                    body.append(_PlacedTokens(ids, tokens.offsets))
                    for start, end, slot in part.spans:
                        done[slot] = done.get(slot, 0) + end - start
                bodies.append(body)
            placed.append(bodies)
        return placed

    def _shifts(self, prompt: Prompt, answer: str) -> dict[int, tuple[int, int]]:
        """Of each slot: what to add to a place in its segment for the place in its content, and the length of the content.

        A segment is its content, the content with a role before it, or what a chat template left of the content's outer white space.
        """
        contents = dict(enumerate(_turns(prompt))) | {ANSWER: answer}
        found = {}
        for body in self._segments(prompt, answer, 0):
            for segment, slot in body:
                if slot in contents:
                    content = contents[slot]
                    shift = content.find(segment)
                    found[slot] = (shift if shift >= 0 else len(content) - len(segment), len(content))
        return found


def _turns(prompt: Prompt) -> list[str]:
    return [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]


def _placed_id(token: int, offset: tuple[int, int], spans: list[tuple[int, int, int]], done: dict[int, int]) -> int:
    """A token of a part with its place: the content that most of its characters are of, as the renderer's templates may end in the middle of a token."""
    start, end = offset
    placed, most = _PlacedId(token), 0
    placed.place = None
    for first, last, slot in spans:
        low, high = max(start, first), min(end, last)
        if (slot >= 0 or slot == ANSWER) and high - low > most:
            before = done.get(slot, 0) - first
            placed.place, most = Place(slot, low + before, high + before), high - low
    return placed


def _place_of(token: int) -> Place | None:
    return token.place if isinstance(token, _PlacedId) else None


def _moved(place: Place | None, shifts: dict[int, tuple[int, int]]) -> Place | None:
    """The place in the content; None for a token of what the template wrote before it."""
    if place is None:
        return None
    shift, length = shifts[place.slot]
    start, end = max(0, place.start + shift), min(length, place.end + shift)
    return Place(place.slot, start, end) if start < end else None


def _ends(places: Sequence[Place | None]) -> dict[int, int]:
    ends: dict[int, int] = {}
    for place in places:
        if place is not None:
            ends[place.slot] = max(ends.get(place.slot, 0), place.end)
    return ends
