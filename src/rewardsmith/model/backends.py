"""What reads token ids for a reward model: torch, or a graph that was exported to another program. The text side is the same for all."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rewardsmith.config import ScoringSettings
from rewardsmith.model.artefact import golden_scores
from rewardsmith.model.batching import collate, scoring_plan
from rewardsmith.model.batching_choice import choose_batching
from rewardsmith.model.network import Network
from rewardsmith.model.precision import choose_device
from rewardsmith.model.prompt_states import PromptStates
from rewardsmith.model.render import Renderer, TokenTable
from rewardsmith.model.runtimes import Runtime
from rewardsmith.model.scoring import head_outputs
from rewardsmith.scores import Scores


class Backend(Protocol):
    """Token ids in, what the head says out; `precision` is float32, bf16 or int8."""

    precision: str

    def outputs(self, tokens: TokenTable) -> NDArray[np.float32]:
        """What the head says of each text, (n, A), in the order of the table; texts of equal ids get equal numbers."""
        ...

    def golden_reference(self) -> Scores:
        """The scores of the golden inputs by the network in float32, which a lower precision is measured against."""
        ...


class TorchBackend:
    """The network itself, on its device.

    Raises:
        SettingsError: if the device or the batching asked for is not to be had.
    """

    def __init__(self, network: Network, renderer: Renderer, settings: ScoringSettings) -> None:
        """Put the network on its device."""
        self.network, self.renderer, self.settings = network, renderer, settings
        self.precision: str = settings.precision
        self.device = choose_device(settings.device)
        network.model.to(self.device)
        self.batching = choose_batching(network, self.device, wanted=settings.batching, share=settings.share_prompts)
        remembers = settings.prompt_states_mib > 0 and self.batching.share and network.pooling == "last"
        self.memory = PromptStates(settings.prompt_states_mib * 2**20) if remembers else None

    def outputs(self, tokens: TokenTable) -> NDArray[np.float32]:
        """See `Backend`."""
        return head_outputs(
            self.network,
            tokens,
            pad_id=self.renderer.tokenizer.pad_token_id or 0,
            with_types=self.renderer.uses_types,
            device=self.device,
            precision=self.settings.precision,
            batch_tokens=self.settings.batch_tokens,
            batching=self.batching,
            memory=self.memory,
        )

    def golden_reference(self) -> Scores:
        """See `Backend`."""
        return golden_scores(self.network, self.renderer)[1]


class GraphBackend:
    """An exported graph in the program that runs it.

    Args:
        runtime: that program, with the graph open.
        renderer: of the texts; it says how a batch is padded.
        precision: of the graph.
        reference: scores of the golden inputs by the network that it was made of.
        batch_tokens: tokens of one call, padding included.
    """

    def __init__(
        self, runtime: Runtime, renderer: Renderer, *, precision: str, reference: Scores, batch_tokens: int
    ) -> None:
        """Keep the parts."""
        self.runtime, self.renderer, self.precision, self.reference = runtime, renderer, precision, reference
        # An 8-bit program may scale its inputs by the largest number of a call: alone, a text's score cannot depend on its company.
        self.batch_tokens = 1 if precision == "int8" else batch_tokens

    def outputs(self, tokens: TokenTable) -> NDArray[np.float32]:
        """See `Backend`; A is 1."""
        _, first, copies = np.unique(tokens.digests(), return_index=True, return_inverse=True)
        scores = np.zeros(len(first), dtype=np.float32)
        pad_id, with_types = self.renderer.tokenizer.pad_token_id or 0, self.renderer.uses_types
        for rows in scoring_plan(tokens.lengths[first], self.batch_tokens):
            batch = collate(tokens, first[rows], pad_id=pad_id, with_types=with_types)
            scores[rows] = self.runtime.run([part.numpy() for part in batch if part is not None])
        return scores[copies][:, None]

    def golden_reference(self) -> Scores:
        """See `Backend`."""
        return self.reference
