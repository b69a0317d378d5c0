"""What a run trains, and on what: the whole network, or what is left of it above parts that stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rewardsmith.model.batching_choice import BatchingChoice
from rewardsmith.model.examples import ExampleCollator, ExampleTable
from rewardsmith.model.feature_cache import FeatureReader
from rewardsmith.model.network import Network
from rewardsmith.model.render import TokenTable
from rewardsmith.model.scoring import score_tokens
from rewardsmith.scores import Scores

Say = Callable[[str], None]


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
