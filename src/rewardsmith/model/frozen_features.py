"""Training on frozen features: without the encoder, by the same trainer, losses and order as ever.

For it a text is one token, the number of its row of features. Legend: `n` texts, `H` hidden, `N` answers of a batch, `A` outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardsmith.config import TrainSettings
from rewardsmith.errors import SettingsError
from rewardsmith.model.batching import Batch
from rewardsmith.model.batching_choice import PADDED, BatchingChoice
from rewardsmith.model.examples import ExampleCollator, ExampleTable, Part
from rewardsmith.model.feature_cache import FeatureReader, FrozenFeatures, Rows
from rewardsmith.model.frozen_trunk import choose_above
from rewardsmith.model.learner import Learner, Say
from rewardsmith.model.network import Network
from rewardsmith.model.optimiser import OBJECTIVE
from rewardsmith.model.packing import PackedBatch
from rewardsmith.model.precision import Format
from rewardsmith.model.render import TokenTable
from rewardsmith.scores import Scores, checked


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
    """The head over features where the encoder is frozen, what stands above frozen layers where these are; else the network as it is.

    Parts that would change under way are not read beforehand.

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
        return choose_above(reader, table, dev_table, settings, precision=precision, say=say)
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
