"""What the head sees of each text, computed once by a network whose other weights stay as they are, and kept on disk.

Legend: `n` texts, `H` hidden.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rewardsmith.errors import ModelError, OutputError
from rewardsmith.model.batching_choice import BatchingChoice
from rewardsmith.model.modeling_rewardsmith import ScoreHead
from rewardsmith.model.network import Network
from rewardsmith.model.optimiser import OBJECTIVE
from rewardsmith.model.precision import Format
from rewardsmith.model.render import Renderer, TokenTable
from rewardsmith.model.row_files import load_rows, write_rows
from rewardsmith.model.scoring import head_outputs

Rows = NDArray[np.int64]

# Texts of one block: what is in memory at once while the file grows.
_BLOCK = 4096
# Of a configuration, what no feature depends on.
_NOT_OF_FEATURES = ("_name_or_path", "architectures", "id2label", "label2id", "num_labels", "problem_type")


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of n distinct texts.

    Args:
        digests: of the texts' ids, rising, uint64 (n,).
        places: the row of each of them, int64 (n,).
        values: float32 (n, H), longest text first; on disk where there is a cache.
        origin: "hit" (they were there), "miss" (they were computed and written) or "off" (they are in memory alone).
        seconds: that it took.
    """

    digests: NDArray[np.uint64]
    places: Rows
    values: NDArray[np.float32]
    origin: str
    seconds: float

    def has(self, tokens: TokenTable) -> bool:
        """Whether every text of a table is among these."""
        return bool(np.isin(tokens.digests(), self.digests).all())

    def rows_of(self, tokens: TokenTable) -> Rows:
        """The row of each text of a table, int64 (m,); all are among these."""
        return self.places[np.searchsorted(self.digests, tokens.digests())]


@dataclass(frozen=True)
class FeatureReader:
    """Reads the input of the head off a network whose other weights stay as they are.

    Args:
        network: on its device.
        renderer: what made the ids.
        device: of the network.
        batching: how the network reads texts.
        folder: of the cache; None keeps features in memory.
    """

    network: Network
    renderer: Renderer
    device: torch.device
    batching: BatchingChoice
    folder: Path | None

    @property
    def padding(self) -> tuple[int, bool]:
        """(the filler of padding, whether batches carry token types)."""
        return self.renderer.tokenizer.pad_token_id or 0, self.renderer.uses_types

    def read(self, tokens: TokenTable, *, precision: Format) -> FrozenFeatures:
        """The features of every distinct text of a table, computed in a number format, always kept in float32.

        A file that is broken or not ours is made again, with a warning; a folder that cannot be written costs a warning and the next run's time.

        Raises:
            ModelError: if a feature is not finite.
        """
        started = time.monotonic()
        digests, first = np.unique(tokens.digests(), return_index=True)
        # Longest first: what does not fit into memory fails at once. Equal lengths by digest, so that the order of the data does not matter.
        order = np.argsort(-tokens.lengths[first], kind="stable")
        texts = tokens.take(first[order])
        values, origin = self._values(texts, precision)
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order))
        return FrozenFeatures(digests, places, values, origin, time.monotonic() - started)

    def _values(self, texts: TokenTable, precision: Format) -> tuple[NDArray[np.float32], str]:
        shape = (len(texts), self.network.head_module.in_features)
        if self.folder is None:
            return self._in_memory(texts, shape, precision), "off"
        path = self.folder / "features" / f"{self._key(texts, precision)}.npy"
        if path.exists():
            stored = load_rows(path, shape, np.float32, what="features")
            if stored is not None:
                return stored, "hit"
        try:
            write_rows(path, shape, np.float32, self._computed(texts, precision))
        except OutputError as error:
            warnings.warn(f"features not written: {error}", stacklevel=2)
            return self._in_memory(texts, shape, precision), "miss"
        written = load_rows(path, shape, np.float32, what="features")
        if written is None:  # a disk that does not give back what it took
            return self._in_memory(texts, shape, precision), "miss"
        return written, "miss"

    def _in_memory(self, texts: TokenTable, shape: tuple[int, int], precision: Format) -> NDArray[np.float32]:
        values, start = np.empty(shape, dtype=np.float32), 0
        for block in self._computed(texts, precision):
            values[start : start + len(block)] = block
            start += len(block)
        return values

    def _computed(self, texts: TokenTable, precision: Format) -> Iterator[NDArray[np.float32]]:
        """Blocks of features, float32 (at most _BLOCK, H), in the order of the texts."""
        pad_id, with_types = self.padding
        for start in range(0, len(texts), _BLOCK):
            with _head_lets_through(self.network):
                block = head_outputs(
                    self.network,
                    texts.take(np.arange(start, min(start + _BLOCK, len(texts)))),
                    pad_id=pad_id,
                    with_types=with_types,
                    device=self.device,
                    precision=precision,
                    batching=self.batching,
                )
            if not np.isfinite(block).all():
                raise ModelError(
                    "finite features from the frozen encoder",
                    f"NaN or infinite ones in {precision}",
                    'Set precision = "float32", or check the weights.',
                )
            yield block

    def _key(self, texts: TokenTable, precision: Format) -> str:
        return self.key_of(
            texts,
            [self.network.pooling, precision],
            of=lambda name: not name.startswith((f"{self.network.head_name}.", f"{OBJECTIVE}.")),
        )

    def key_of(self, texts: TokenTable, facts: Sequence[object], *, of: Callable[[str], bool]) -> str:
        """A SHA-256 over all that something read off the network depends on: weights and their configuration, code, ids, batching, device, and what else.

        Args:
            texts: that are read.
            facts: what else; the number format is one of them.
            of: whether a weight counts, by its name.
        """
        digest = hashlib.sha256(self.renderer.fingerprint().encode())
        config = {k: v for k, v in self.network.backbone_config.to_dict().items() if k not in _NOT_OF_FEATURES}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        packages = [version(package) for package in ("torch", "transformers")]
        digest.update(json.dumps([*facts, self.batching.name, self.device.type, *packages]).encode())
        for name, tensor in sorted(self.network.model.state_dict().items()):
            if of(name):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        for column in (texts.ids, texts.starts, texts.second):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


class _HeadInput(ScoreHead):
    """In the place of a head: it says what the head would have read, (N, H) -> float32 (N, H)."""

    def __init__(self, size: int, device: torch.device) -> None:
        nn.Module.__init__(self)  # no weights of H x H that nobody reads
        self.in_features = self.out_features = size
        self.weight = nn.Parameter(torch.empty(0, size, device=device), requires_grad=False)
        self.register_parameter("bias", None)

    def forward(self, input: Tensor) -> Tensor:
        return input.float()


@contextlib.contextmanager
def _head_lets_through(network: Network) -> Iterator[None]:
    """The network with a `_HeadInput` in the place of its head, for as long as the block lasts."""
    head = network.head_module
    parent, _, child = network.head_name.rpartition(".")
    place = network.model.get_submodule(parent)
    setattr(place, child, _HeadInput(head.in_features, head.weight.device))
    try:
        yield
    finally:
        setattr(place, child, head)
