"""What a decoder has read before and may not need to read again: the states of beginnings that several texts had in common, least recently used ones dropped.

A server sees the answers to one prompt one by one, in different batches. The first text is only noted; a second one that begins alike shows how far the prompt goes, and leaves its
states behind; from the third on they are used, as far as a text begins like them. So nothing is kept of a text that was alone. Scores move no further than by any other batch: 1e-5 x max(1, |s|) in float32.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict, deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewardsmith.model.packing import LEAST_PREFIX, Recall, States, common_beginning

LEAST_GAIN = 32
"""A beginning is kept where it spares at least so many tokens more than a kept one does."""
_MOST_NOTED = 1024
Ids = NDArray[np.int32]


class PromptStates:
    """A bounded memory of beginnings; for one model and one thread.

    Args:
        max_bytes: of all keys and values together.
    """

    def __init__(self, max_bytes: int) -> None:
        """Nothing is known yet."""
        self.max_bytes = max_bytes
        self._kept: OrderedDict[bytes, States] = OrderedDict()
        self._sorted = _Sorted()  # of what is kept
        self._awaited: dict[bytes, States] = {}
        self._noted = _Sorted()
        self._order: deque[bytes] = deque()  # of what was noted

    @property
    def num_bytes(self) -> int:
        """Of all that is kept."""
        return sum(map(_size, self._kept.values()))

    def recall(self, texts: Sequence[Ids], prefix: int) -> Recall:
        """See `packing.Memory`; what is to be remembered can be used after `settle`."""
        shortest = min(texts, key=len)
        beginning = shortest if len(texts) == 1 else shortest[:prefix]
        known = self._longest(beginning[: len(shortest) - 1])
        common = [self._note(_bytes(text)) for text in texts]
        worth = common[0] if len(texts) == 1 else prefix
        if worth - (known.length if known else 0) < LEAST_GAIN:
            return Recall(known)
        keep = self._awaited[_bytes(shortest[:worth])] = States(worth)
        return Recall(known, keep)

    def settle(self) -> None:
        """Take in what the last row has filled, and drop what was not used for longest until the rest has room."""
        for key, states in self._awaited.items():
            if states.layers and key not in self._kept:
                self._kept[key] = states
                self._sorted.add(key)
        self._awaited.clear()
        size = self.num_bytes
        while size > self.max_bytes:
            key, oldest = self._kept.popitem(last=False)
            self._sorted.remove(key)
            size -= _size(oldest)

    def _longest(self, text: Ids) -> States | None:
        """As much of a text's beginning as is known; what it is a part of is thereby the most recently used."""
        key, common = self._sorted.nearest(_bytes(text))
        if common < LEAST_PREFIX:
            return None
        self._kept.move_to_end(key)
        return _first(self._kept[key], common)

    def _note(self, text: bytes) -> int:
        """Remember that a text came; the tokens that it begins with like another one."""
        _, common = self._noted.nearest(text, but_itself=True)
        if self._noted.add(text):
            self._order.append(text)
            if len(self._order) > _MOST_NOTED:
                self._noted.remove(self._order.popleft())
        return common


class _Sorted:
    """Texts in order, so that the one with the longest common beginning is a neighbour."""

    def __init__(self) -> None:
        self._texts: list[bytes] = []

    def add(self, text: bytes) -> bool:
        """Whether it was not there."""
        place = bisect.bisect_left(self._texts, text)
        if self._texts[place : place + 1] == [text]:
            return False
        self._texts.insert(place, text)
        return True

    def remove(self, text: bytes) -> None:
        """It must be there."""
        del self._texts[bisect.bisect_left(self._texts, text)]

    def nearest(self, text: bytes, *, but_itself: bool = False) -> tuple[bytes, int]:
        """The text that begins most alike, and how many tokens it does."""
        place = bisect.bisect_left(self._texts, text)
        after = place + (but_itself and self._texts[place : place + 1] == [text])
        neighbours = self._texts[max(0, place - 1) : place] + self._texts[after : after + 1]
        found = [(other, common_beginning(_ids(text), _ids(other))) for other in neighbours]
        return max(found, key=lambda one: one[1], default=(b"", 0))


def _first(states: States, length: int) -> States:
    """Views of the states of the first tokens: nothing after a token has a part in them."""
    return States(length, {layer: (k[:, :length], v[:, :length]) for layer, (k, v) in states.layers.items()})


def _size(states: States) -> int:
    return sum(part.numel() * part.element_size() for pair in states.layers.values() for part in pair)


def _bytes(ids: Ids) -> bytes:
    """Ids as bytes that sort and begin as they do."""
    return ids.astype(">i4").tobytes()


def _ids(text: bytes) -> NDArray[np.int32]:
    return np.frombuffer(text, dtype=">i4")
