"""What the frozen layers of a network make of each token of each text, computed once and kept on disk.

The network stays what it is: its own forward makes embeddings, masks, positions and whatever else its layers share, and only the frozen layers are passed through. The last of them
gives the states that are known instead of what it would compute. So every architecture whose layers hand on one tensor of states is served alike.

Legend: `n` texts, `N` texts of a batch, `T` tokens of a row, `H` hidden, `m` tokens of a batch that are of a text.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rewardsmith.errors import ModelError, OutputError
from rewardsmith.model.batching import Batch, runs_within
from rewardsmith.model.feature_cache import FeatureReader, Rows
from rewardsmith.model.layers import LayerStack
from rewardsmith.model.network import Network
from rewardsmith.model.packing import PackedBatch
from rewardsmith.model.precision import Format, running
from rewardsmith.model.render import TokenTable
from rewardsmith.model.row_files import Kind, load_rows, write_rows
from rewardsmith.model.scoring import BATCH_TOKENS, batches

FOLDER = "states"
"""Of the cache folder: where files of states lie."""
# Of one block while the file grows.
_BLOCK_BYTES = 1 << 26


@dataclass(frozen=True)
class Trunk:
    """The frozen layers of a network, counted from below.

    Args:
        layers: all of the network's.
        count: how many of them are frozen.
        size: numbers a state has, H.
        dtype: of the states.
        parts: how many things a layer returns, of which the states are the first; None where it returns the states alone.
        trained_below: whether a part that is trained has a say in the states.
    """

    layers: tuple[nn.Module, ...]
    count: int
    size: int
    dtype: torch.dtype
    parts: int | None
    trained_below: bool

    @contextlib.contextmanager
    def given(self, states: Tensor) -> Iterator[None]:
        """The network with known states, (1, T, H) of a packed row or (N, T, H) of a padded batch, in the place of its frozen layers."""
        known = states.to(self.dtype)
        with (
            self._through(self.layers[: self.count - 1]),
            self._through(self.layers[self.count - 1 : self.count], known),
        ):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[list[Tensor]]:
        """The network without the layers above; a list that its last pass leaves the states in. What it says then means nothing."""
        found: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            found[:] = [_states_of(output)]

        hook = self.layers[self.count - 1].register_forward_hook(keep)
        try:
            with self._through(self.layers[self.count :]):
                yield found
        finally:
            hook.remove()

    @contextlib.contextmanager
    def _through(self, layers: Sequence[nn.Module], known: Tensor | None = None) -> Iterator[None]:
        """Layers that hand on what they get, or what is known."""

        def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
            states = hidden_states if known is None else known
            return states if self.parts is None else (states, *[None] * (self.parts - 1))

        for layer in layers:
            layer.forward = forward
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


def _states_of(output: Any) -> Tensor:
    states = output[0] if isinstance(output, tuple) else output
    assert isinstance(states, Tensor)
    return states


def look_at(network: Network, stack: LayerStack, count: int, batch: Batch | PackedBatch, *, precision: Format) -> Trunk:
    """The first `count` layers of a network, by what they do to one small batch in the precision of the steps.

    That a trained part has no say in the states is not read off names: the pass is made with gradients, and states that no trained number went into ask for none.
    """
    found: list[Any] = []
    layers = tuple(network.model.get_submodule(stack.prefix.removesuffix(".")).children())
    hook = layers[count - 1].register_forward_hook(lambda _, __, output: found.append(output))
    was_training = network.model.training
    network.model.eval()
    dtype = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    try:
        with torch.enable_grad(), torch.autocast(batch.input_ids.device.type, dtype=dtype, enabled=dtype is not None):
            network.outputs(batch)
    finally:
        hook.remove()
        network.model.train(was_training)
    (output,) = found
    states = _states_of(output)
    parts = len(output) if isinstance(output, tuple) else None
    return Trunk(layers, count, states.shape[-1], states.dtype, parts, states.requires_grad)


@dataclass(frozen=True)
class BatchTexts:
    """The texts of a batch, found again in its tensors.

    Args:
        table: their ids and token types.
        places: where their tokens, end to end, stand among all of the batch, int64 (m,); what several texts share stands in one place.
        shape: of the batch's ids: (1, T) of a packed row, (N, T) of a padded batch.
    """

    table: TokenTable
    places: Tensor
    shape: tuple[int, ...]


def texts_of(batch: Batch | PackedBatch) -> BatchTexts:
    """See `BatchTexts`."""
    if isinstance(batch, PackedBatch):
        real = batch.mask.bool()
        places = batch.tokens[real]
    else:
        real = batch.attention_mask.bool()
        places = real.reshape(-1).nonzero()[:, 0]
    lengths = real.sum(1).cpu().numpy()
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    second = lengths
    if batch.token_type_ids is not None:
        types = batch.token_type_ids.reshape(-1)[places].cpu().numpy()
        second = lengths - np.add.reduceat(types, starts[:-1])
    ids = batch.input_ids.reshape(-1)[places].cpu().numpy().astype(np.int32)
    none = np.zeros(len(lengths), dtype=np.int32)
    table = TokenTable(ids, starts, second.astype(np.int32), none, none, none)
    return BatchTexts(table, places, tuple(batch.input_ids.shape))


@dataclass(frozen=True)
class TrunkStates:
    """States of n distinct texts.

    Args:
        digests: of the texts' ids, rising, uint64 (n,).
        firsts: the row of the first token of each of them, int64 (n,).
        values: (all tokens, H), longest text first; on disk.
        origin: "hit" (they were there) or "miss" (they were computed and written).
        seconds: that it took.
    """

    digests: NDArray[np.uint64]
    firsts: Rows
    values: NDArray[Any]
    origin: str
    seconds: float

    def of(self, batch: Batch | PackedBatch) -> Tensor | None:
        """The states of a batch, (1, T, H) or (N, T, H), 0 where it has no text; None if one of its texts is not among these."""
        if isinstance(batch, PackedBatch) and batch.inserts:
            return None
        found = texts_of(batch)
        table = found.table
        digests = table.digests()
        at = np.searchsorted(self.digests, digests).clip(max=len(self.digests) - 1)
        if not np.array_equal(self.digests[at], digests):
            return None
        rows = self.firsts[at]
        states = np.zeros((int(np.prod(found.shape)), self.values.shape[1]), dtype=self.values.dtype)
        places = found.places.cpu().numpy()
        for row, start, stop in zip(rows.tolist(), table.starts[:-1].tolist(), table.starts[1:].tolist(), strict=True):
            states[places[start:stop]] = self.values[row : row + stop - start]
        return torch.from_numpy(states).view(*found.shape, -1).to(batch.input_ids.device)


@dataclass(frozen=True)
class TrunkPlan:
    """What there is to be read of the texts of a run.

    Args:
        reader: of the whole network's texts.
        trunk: its frozen layers.
        stack: all its layers.
        texts: distinct ones, longest first, equal lengths by digest: neither the order of the data nor its split matters.
        digests: of the texts, rising.
        firsts: see `TrunkStates`.
        precision: of the steps, and so of the states.
    """

    reader: FeatureReader
    trunk: Trunk
    stack: LayerStack
    texts: TokenTable
    digests: NDArray[np.uint64]
    firsts: Rows
    precision: Format

    @property
    def kind(self) -> Kind:
        """Of the numbers in the file: float32, whatever the precision, for between its layers a network keeps no less."""
        return np.float64 if self.trunk.dtype == torch.float64 else np.float32

    @property
    def shape(self) -> tuple[int, int]:
        """Of all states."""
        return len(self.texts.ids), self.trunk.size

    @property
    def num_bytes(self) -> int:
        """Of the file."""
        return self.shape[0] * self.shape[1] * np.dtype(self.kind).itemsize

    @cached_property
    def path(self) -> Path:
        """Of the file, whether it is there or not; its name is a hash of all that the states depend on."""
        assert self.reader.folder is not None
        key = self.reader.key_of(
            self.texts,
            ["states", self.trunk.count, self.precision, np.dtype(self.kind).name],
            of=lambda name: self.stack.depth_of(name) <= self.trunk.count,
        )
        return self.reader.folder / FOLDER / f"{key}.npy"

    def read(self) -> TrunkStates | None:
        """The states, from the file or into it; None, after a warning, if it cannot be written.

        Raises:
            ModelError: if a state is not finite.
        """
        started, path, origin = time.monotonic(), self.path, "hit"
        values = load_rows(path, self.shape, self.kind, what="states") if path.exists() else None
        if values is None:
            origin = "miss"
            try:
                write_rows(path, self.shape, self.kind, self._computed())
            except OutputError as error:
                warnings.warn(f"states not written: {error}", stacklevel=2)
                return None
            values = load_rows(path, self.shape, self.kind, what="states")
        if values is None:  # a disk that does not give back what it took
            return None
        return TrunkStates(self.digests, self.firsts, values, origin, time.monotonic() - started)

    def _computed(self) -> Iterator[NDArray[Any]]:
        """Blocks of states, end to end those of all texts."""
        network = self.reader.network
        budget = max(BATCH_TOKENS, _BLOCK_BYTES // (self.shape[1] * np.dtype(self.kind).itemsize))
        was_training = network.model.training
        network.model.eval()
        try:
            for run in runs_within(self.texts.lengths, budget):
                block = self._block(self.texts.take(np.arange(run.start, run.stop)))
                if not np.isfinite(block).all():
                    raise ModelError(
                        "finite states from the frozen layers",
                        f"NaN or infinite ones in {self.precision}",
                        'Set precision = "float32", or check the weights.',
                    )
                yield block
        finally:
            network.model.train(was_training)

    def _block(self, texts: TokenTable) -> NDArray[Any]:
        pad_id, with_types = self.reader.padding
        values = np.empty((len(texts.ids), self.shape[1]), dtype=self.kind)
        everything = np.arange(len(texts))
        with running(self.precision, self.reader.device), self.trunk.alone() as found:
            for rows, batch in batches(
                texts, everything, BATCH_TOKENS, self.reader.batching, pad_id=pad_id, with_types=with_types
            ):
                on_device = batch.to(self.reader.device)
                self.reader.network.outputs(on_device)
                states = found[0].reshape(-1, self.shape[1])[texts_of(on_device).places]
                into = np.concatenate([np.arange(texts.starts[row], texts.starts[row + 1]) for row in rows])
                values[into] = states.to(torch.float64 if self.kind is np.float64 else torch.float32).cpu().numpy()
        return values


def plan_states(
    reader: FeatureReader, tokens: TokenTable, stack: LayerStack, count: int, *, precision: Format
) -> TrunkPlan:
    """What reading the states after the first `count` layers would take.

    Args:
        reader: of the network, which is on its device.
        tokens: of all texts that are to be read.
        stack: the network's layers.
        count: of them that are frozen, at least one.
        precision: of the steps.
    """
    pad_id, with_types = reader.padding
    if not with_types:  # what batches do not carry cannot tell their texts apart
        tokens = replace(tokens, second=tokens.lengths.astype(np.int32))
    digests, first = np.unique(tokens.digests(), return_index=True)
    order = np.argsort(-tokens.lengths[first], kind="stable")
    texts = tokens.take(first[order])
    firsts = np.empty(len(order), dtype=np.int64)
    firsts[order] = texts.starts[:-1]
    shortest = np.array([len(texts) - 1])
    _, batch = next(batches(texts, shortest, BATCH_TOKENS, reader.batching, pad_id=pad_id, with_types=with_types))
    trunk = look_at(reader.network, stack, count, batch.to(reader.device), precision=precision)
    return TrunkPlan(reader, trunk, stack, texts, digests, firsts, precision)
