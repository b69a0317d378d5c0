"""Plans in plain integers: which texts share a forward pass, and in which order examples are seen. Then, and only then, tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewardsmith.model.render import TokenTable

# Examples are sorted by length inside windows of this many batches: long enough to cut padding, short enough to keep the order random.
WINDOW_BATCHES = 64
# Texts of a step that are padded together may grow by this share of their tokens.
MAX_PADDING = 0.05


class Batch(NamedTuple):
    """A padded batch: `N` sequences of at most `T` tokens; `token_type_ids` only where the encoding is "pair"."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each of its tensors changed: moved, pinned."""
        return Batch(*(None if tensor is None else change(tensor) for tensor in self))

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return self.map(lambda tensor: tensor.to(device))


def scoring_plan(lengths: NDArray[np.int64], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Batches of texts of like length, longest first, whose padded size stays within a token budget.

    >>> [list(map(int, batch)) for batch in scoring_plan(np.array([5, 9, 4, 9]), 18)]
    [[1, 3], [0, 2]]
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, int(batch_tokens // max(1, lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def runs_within(costs: NDArray[np.int64], budget: int) -> list[slice]:
    """Runs of neighbours whose costs sum to at most `budget`; what alone costs more goes alone.

    >>> runs_within(np.array([3, 4, 9, 1]), 8)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    runs, start, total = [], 0, 0
    for i, cost in enumerate(costs.tolist()):
        if i > start and total + cost > budget:
            runs.append(slice(start, i))
            start, total = i, 0
        total += cost
    return [*runs, slice(start, len(costs))] if len(costs) else []


def like_lengths(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The texts of a step as few parts of like length, longest first: padding adds at most 5 % to the tokens of each.

    >>> [list(map(int, part)) for part in like_lengths(np.array([100, 50, 99, 51]))]
    [[0, 2], [3, 1]]
    """
    order = np.argsort(-lengths, kind="stable")
    parts, start = [], 0
    while start < len(order):
        rest = lengths[order[start:]]
        padded = rest[0] * np.arange(1, len(rest) + 1)
        # The share of padding grows with every shorter text.
        size = int(np.searchsorted(padded / np.cumsum(rest), 1 + MAX_PADDING, side="right"))
        parts.append(order[start : start + max(1, size)])
        start += max(1, size)
    return parts


def training_order(
    lengths: NDArray[np.int64],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    sort: bool = True,
    ranks: int = 1,
    window: int = 0,
) -> NDArray[np.int64]:
    """The order of examples in one epoch, or in one window of it: shuffled; the incomplete batch comes last.

    A function of its arguments alone, so that a run can be resumed.

    Args:
        lengths: what each example costs: the tokens of its longest answer where batches are padded, of all its answers where they are not, (n,).
        batch_size: examples of one rank's batch.
        seed: of the shuffling.
        epoch: likewise.
        sort: give each batch examples of like length, which saves padding.
        ranks: processes that take batches in turn; what they read at the same time is made even between them, and no example changes its step.
        window: the number of the window, of data that are read in windows.
    """
    rng = np.random.default_rng([seed, epoch, window] if window else [seed, epoch])
    order = rng.permutation(len(lengths))
    together = batch_size * ranks
    whole = len(order) - len(order) % together
    rest, order = order[whole:], order[:whole]
    if sort:
        window = WINDOW_BATCHES * together
        steps = [
            piece
            for start in range(0, whole, window)
            for piece in _sorted_by(order[start : start + window], lengths).reshape(-1, together)
        ]
        steps = [steps[i] for i in rng.permutation(len(steps))]
    else:
        steps = list(order.reshape(-1, together))
    if ranks > 1:
        steps = [_even(step, lengths, ranks) for step in steps]
    return np.concatenate([*steps, rest]).astype(np.int64)


def _sorted_by(items: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return items[np.argsort(lengths[items], kind="stable")]


def _even(step: NDArray[np.int64], lengths: NDArray[np.int64], ranks: int) -> NDArray[np.int64]:
    """One step's examples dealt to the ranks: the longest that is left goes to the rank with the fewest tokens that still has room."""
    size = len(step) // ranks
    hands: list[list[int]] = [[] for _ in range(ranks)]
    totals = [0] * ranks
    for item in step[np.argsort(-lengths[step], kind="stable")].tolist():
        rank = min((r for r in range(ranks) if len(hands[r]) < size), key=lambda r: totals[r])
        hands[rank].append(item)
        totals[rank] += int(lengths[item])
    return np.array(hands, dtype=np.int64).reshape(-1)


def collate(table: TokenTable, rows: Sequence[int] | NDArray[np.int64], *, pad_id: int, with_types: bool) -> Batch:
    """Right-padded tensors of some texts, (N, T); the mask is 1 for real tokens."""
    texts = [table.row(int(i)) for i in rows]
    longest = max(map(len, texts))
    ids = np.full((len(texts), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(texts), longest), dtype=np.int64)
    for k, text in enumerate(texts):
        ids[k, : len(text)] = text
        mask[k, : len(text)] = 1
    types = None
    if with_types:
        after = np.arange(longest)[None, :] >= table.second[np.asarray(rows, dtype=np.int64)][:, None]
        types = torch.from_numpy((after & (mask == 1)).astype(np.int64))
    return Batch(torch.from_numpy(ids), torch.from_numpy(mask), types)
