"""Frozen features: what the head sees of each text is computed once, and training goes on without the encoder.

The head and what the loss learns are then trained by the same trainer, losses and order as ever: for it a text is one token, the number of its row of features.
Legend: `n` texts, `H` hidden, `N` answers of a batch, `A` outputs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardsmith.config import TrainSettings
from rewardsmith.errors import ModelError, OutputError, SettingsError
from rewardsmith.model.batching import Batch
from rewardsmith.model.batching_choice import PADDED, BatchingChoice
from rewardsmith.model.examples import ExampleCollator, ExampleTable, Part
from rewardsmith.model.modeling_rewardsmith import ScoreHead
from rewardsmith.model.network import Network
from rewardsmith.model.optimiser import OBJECTIVE
from rewardsmith.model.packing import PackedBatch
from rewardsmith.model.precision import Format
from rewardsmith.model.render import Renderer, TokenTable
from rewardsmith.model.scoring import head_outputs, score_tokens
from rewardsmith.scores import Scores, checked
from rewardsmith.storage import atomic_file

Say = Callable[[str], None]
Rows = NDArray[np.int64]

# Texts of one block: what is in memory at once while the file grows.
_BLOCK = 4096
_DIGEST_BYTES = 32
# Of a configuration, what no feature depends on.
_NOT_OF_FEATURES = ("_name_or_path", "architectures", "id2label", "label2id", "num_labels", "problem_type")


# ---------------------------------------------------------------- features of texts, kept on disk


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
            stored = _load(path, shape)
            if stored is not None:
                return stored, "hit"
        try:
            _write(path, shape, self._computed(texts, precision))
        except OutputError as error:
            warnings.warn(f"features not written: {error}", stacklevel=2)
            return self._in_memory(texts, shape, precision), "miss"
        written = _load(path, shape)
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
        """A SHA-256 over all that the features depend on: weights and their configuration, code, ids, pooling, number format and device."""
        digest = hashlib.sha256(self.renderer.fingerprint().encode())
        config = {k: v for k, v in self.network.backbone_config.to_dict().items() if k not in _NOT_OF_FEATURES}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        packages = [version(package) for package in ("torch", "transformers")]
        digest.update(json.dumps([self.network.pooling, precision, self.device.type, *packages]).encode())
        for name, tensor in sorted(self.network.model.state_dict().items()):
            if not name.startswith((f"{self.network.head_name}.", f"{OBJECTIVE}.")):
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


def _write(path: Path, shape: tuple[int, int], blocks: Iterator[NDArray[np.float32]]) -> None:
    """A .npy file of float32 with a SHA-256 of everything before it at its end, where readers of .npy do not look."""
    with atomic_file(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
        )
        digest = hashlib.sha256(json.dumps(shape).encode())
        for block in blocks:
            content = np.ascontiguousarray(block)
            digest.update(content.data)
            file.write(content)
        file.write(digest.digest())


def _load(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """The memory-mapped rows of a file, or None after a warning."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        with open(path, "rb") as file:
            file.seek(-_DIGEST_BYTES, 2)
            promised = file.read()
    except (OSError, ValueError, EOFError) as error:
        warnings.warn(f"features {path.name[:12]}... are broken ({error}); making them again", stacklevel=4)
        return None
    digest = hashlib.sha256(json.dumps(shape).encode())
    fits = values.shape == shape and values.dtype == np.float32
    if fits:
        for start in range(0, len(values), _BLOCK):
            digest.update(np.ascontiguousarray(values[start : start + _BLOCK]).data)
    if not fits or digest.digest() != promised:
        warnings.warn(f"features {path.name[:12]}... are not those that were written; making them again", stacklevel=4)
        return None
    return cast("NDArray[np.float32]", values)


# ---------------------------------------------------------------- training on them


class FeatureModel(nn.Module):
    """What is left of a model when the encoder is: its head under the head's own name, and what the loss learns.

    Checkpoints of it hold the names that those of the whole model hold.
    """

    base_model_prefix = "encoder"

    def __init__(self, network: Network) -> None:
        """Take the head, and the objective where there is one; they stay parts of the network's model, too."""
        super().__init__()
        parent: nn.Module = self
        *parents, last = network.head_name.split(".")
        for name in parents:
            parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module(last, network.head_module)
        if hasattr(network.model, OBJECTIVE):
            self.add_module(OBJECTIVE, network.model.get_submodule(OBJECTIVE))
        self.head_name = network.head_name

    def forward(self, features: Tensor) -> Tensor:
        """(N, H) -> float32 (N, A)."""
        return cast("Tensor", self.get_submodule(self.head_name)(features))

    def num_parameters(self, **_: object) -> int:
        """What a Trainer asks a model for when it counts operations."""
        return sum(parameter.numel() for parameter in self.parameters())


@dataclass(kw_only=True)
class FeatureNetwork(Network):
    """A network over features: every text is one token, its row.

    Args:
        features: float32 (n, H).
    """

    features: NDArray[np.float32]

    def outputs(self, batch: Batch | PackedBatch) -> Tensor:
        """See `Network`; batches are padded ones, of one token a text."""
        rows = batch.input_ids[:, 0]
        inputs = torch.from_numpy(self.features[rows.cpu().numpy()]).to(rows.device)  # (N, H)
        return cast("Tensor", self.model(inputs)).float()


@dataclass(frozen=True)
class FeatureTable(ExampleTable):
    """Examples whose texts are rows of features.

    Args:
        of_ids: the same examples as ids: the order of training goes by their lengths.
    """

    of_ids: ExampleTable

    @property
    def longest(self) -> Rows:
        """See `ExampleTable`: of the real texts."""
        return self.of_ids.longest

    def costs(self, *, share: bool) -> Rows:
        """See `ExampleTable`: of the real texts."""
        return self.of_ids.costs(share=share)


class FeatureCollator(ExampleCollator):
    """Row numbers -> the batch of these examples, always in one part: rows of features need no planning."""

    def __call__(self, rows: Sequence[int]) -> dict[str, list[Part]]:
        """The batch."""
        return {"parts": [self.part(np.asarray(rows, dtype=np.int64))]}

    def _batches(self, answers: Rows) -> list[tuple[Batch | PackedBatch, Tensor]]:
        ids = torch.from_numpy(self.table.tokens.ids[answers].astype(np.int64))[:, None]  # (N, 1)
        return [(Batch(ids, torch.ones_like(ids), None), torch.arange(len(answers)))]


@dataclass(frozen=True)
class Learner:
    """What is trained, and on what: a network as it is.

    Args:
        network: what takes the steps.
        table: the training examples.
        dev_table: those of the dev part.
        reader: of the whole network's texts.
    """

    network: Network
    table: ExampleTable
    dev_table: ExampleTable | None
    reader: FeatureReader

    @property
    def batching(self) -> BatchingChoice:
        """How `network` reads many texts."""
        return self.reader.batching

    def collator(self, batch_tokens: int) -> ExampleCollator:
        """What makes the batches, in the order of the run's own batching."""
        pad_id, with_types = self.reader.padding
        return ExampleCollator(self.table, pad_id, with_types, self.reader.batching, batch_tokens)

    def score(self, tokens: TokenTable) -> Scores:
        """Float32 scores of texts by the whole network as it is, (n,)."""
        pad_id, with_types = self.reader.padding
        return score_tokens(
            self.reader.network, tokens, pad_id=pad_id, with_types=with_types, device=self.reader.device
        )

    def facts(self) -> dict[str, Any]:
        """What the record says of the features; empty where there are none."""
        return {}


@dataclass(frozen=True)
class HeadLearner(Learner):
    """The head alone, over features.

    Args:
        features: of all texts of both tables.
        precision: in which they were computed.
    """

    features: FrozenFeatures
    precision: Format

    @property
    def batching(self) -> BatchingChoice:
        """Rows of features are what they are."""
        return PADDED

    def collator(self, batch_tokens: int) -> ExampleCollator:
        """See `Learner`."""
        return FeatureCollator(self.table, 0, False, self.reader.batching, batch_tokens)

    def score(self, tokens: TokenTable) -> Scores:
        """See `Learner`; float32 features spare the encoder, once they are there."""
        found = self.features
        if self.precision != "float32" or not found.has(tokens):
            found = self.reader.read(tokens, precision="float32")
        inputs = torch.from_numpy(found.values[found.rows_of(tokens)]).to(self.reader.device)
        with torch.inference_mode():
            outputs = self.reader.network.head_module(inputs)
        return checked(outputs[:, 0].cpu().numpy(), len(tokens))

    def facts(self) -> dict[str, Any]:
        """See `Learner`."""
        texts, size = self.features.values.shape
        return {"features": {"texts": texts, "size": size, "precision": self.precision, "cache": self.features.origin}}

    def inputs(self, table: ExampleTable) -> NDArray[np.float32]:
        """What the head reads of each answer of one of the two tables, (num answers, H)."""
        return self.features.values[table.tokens.ids]


def obstacle(network: Network, settings: TrainSettings) -> str | None:
    """Why the features of a run with a frozen encoder would change under way; None where they do not."""
    if settings.dropout:
        return "dropout changes them at every step"
    if network.new_modules:
        return f"{', '.join(network.new_modules)} {'is' if len(network.new_modules) == 1 else 'are'} trained, too"
    if settings.layer_decay < 1:
        return "layer_decay asks for the layers"
    return None


def check_features(network: Network, settings: TrainSettings) -> None:
    """Refuse to solve for a head whose features change.

    Raises:
        SettingsError: saying why they do.
    """
    reason = obstacle(network, settings)
    if settings.head.solver != "adamw" and reason:
        raise SettingsError(
            f'features that stay as they are, for head.solver = "{settings.head.solver}"',
            reason,
            'Set head.solver = "adamw", or another pooling.',
        )


def choose_learner(
    reader: FeatureReader,
    table: ExampleTable,
    dev_table: ExampleTable | None,
    settings: TrainSettings,
    *,
    precision: Format,
    say: Say,
) -> Learner:
    """The head over features where the encoder is frozen and they cannot change, else the network as it is.

    Args:
        reader: of the network, which is on its device and has the objective in its model.
        table: the training examples.
        dev_table: those of the dev part.
        settings: of the run.
        precision: of the steps, and so of the features.
        say: prints a line.

    Raises:
        ModelError: if a feature is not finite.
    """
    network = reader.network
    if settings.freeze != "encoder":
        return Learner(network, table, dev_table, reader)
    if reason := obstacle(network, settings):
        say(f"features: not kept, for {reason}; every step runs the encoder")
        return Learner(network, table, dev_table, reader)
    tables = [table] if dev_table is None else [table, dev_table]
    features = reader.read(TokenTable.join([one.tokens for one in tables]), precision=precision)
    done = "cache hit, " if features.origin == "hit" else "computed "
    say(
        f"features: {done}{len(features.values):,} texts in {features.seconds:.1f} s; the head is trained on them alone"
    )
    model = cast(PreTrainedModel, FeatureModel(network))  # all that training asks of a model is to be a module
    whole = {one.name: getattr(network, one.name) for one in fields(network)}
    head_alone = FeatureNetwork(**whole | {"model": model}, features=features.values)
    rows, *dev_rows = (_on_rows(one, features) for one in tables)
    return HeadLearner(head_alone, rows, dev_rows[0] if dev_rows else None, reader, features, precision)


def _on_rows(table: ExampleTable, features: FrozenFeatures) -> FeatureTable:
    """The same examples, each text as one token."""
    rows = features.rows_of(table.tokens)
    ones, zeros = np.ones(len(rows), np.int32), np.zeros(len(rows), np.int32)
    tokens = TokenTable(rows.astype(np.int32), np.arange(len(rows) + 1), ones, zeros, zeros, zeros)
    return FeatureTable(table.ids, tokens, table.starts, table.labels, table.better, of_ids=table)
