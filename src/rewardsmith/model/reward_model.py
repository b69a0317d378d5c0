"""The reward model as users meet it: load a folder, score pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from rewardsmith.config import ScoringSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.data.schema import Pair
from rewardsmith.errors import ModelError
from rewardsmith.model import artefact, exported
from rewardsmith.model.attributes import AttributeHeads
from rewardsmith.model.attribution import IntegratedGradients
from rewardsmith.model.backends import Backend, TorchBackend
from rewardsmith.model.batching_choice import BatchingChoice
from rewardsmith.model.network import Network, source_folder
from rewardsmith.model.render import Renderer, TokenTable
from rewardsmith.model.trigger_gradients import TriggerGradients
from rewardsmith.scores import EncodedText, Input, Scores, ScoreTable, checked

if TYPE_CHECKING:
    from rewardsmith.model.shorter import LimitedModel


class RewardModel:
    """A scorer with its contract.

    >>> model = RewardModel.load("runs/demo")  # doctest: +SKIP
    >>> model.score([("What is 2 + 2?", "4."), ("What is 2 + 2?", "5.")])  # doctest: +SKIP
    array([ 1.52, -0.61], dtype=float32)
    """

    def __init__(
        self,
        network: Network | Backend,
        renderer: Renderer,
        contract: artefact.Contract,
        settings: ScoringSettings | None = None,
        *,
        attributes: AttributeHeads | None = None,
    ) -> None:
        """Put the network on its device, or take what runs it elsewhere; use `load` for a folder."""
        self.attribute_heads = attributes
        self.settings = settings or ScoringSettings()
        self.renderer, self.contract = renderer, contract
        self.backend: Backend = (
            TorchBackend(network, renderer, self.settings) if isinstance(network, Network) else network
        )

    @classmethod
    def load(cls, source: str | Path, settings: ScoringSettings | None = None) -> RewardModel:
        """A model folder, a run folder, an exported folder, a plain single-logit folder (with a warning) or a Hugging Face name.

        Raises:
            ModelError: (or a subclass) saying what is wrong with it.
        """
        if exported.is_exported(source):
            found = exported.load(source, settings)
            return cls(found.backend, found.renderer, found.contract, settings)
        loaded = artefact.load(source_folder(str(source)))
        return cls(loaded.network, loaded.renderer, loaded.contract, settings, attributes=loaded.attributes)

    @property
    def network(self) -> Network:
        """The torch network.

        Raises:
            ModelError: of an exported model, which has none.
        """
        if not isinstance(self.backend, TorchBackend):
            raise ModelError(
                "a model folder, with weights that torch can read", "an exported one", "Load what it was made of."
            )
        return self.backend.network

    @property
    def batching(self) -> BatchingChoice | None:
        """How texts share a forward pass of the torch network, and why; None of an exported model."""
        return self.backend.batching if isinstance(self.backend, TorchBackend) else None

    @cached_property
    def attributions(self) -> IntegratedGradients | None:
        """What says which words moved a score, by gradients; None of an exported model, which has none."""
        if not isinstance(self.backend, TorchBackend):
            return None
        tokens = self.settings.batch_tokens
        return IntegratedGradients(self.network, self.renderer, device=self.backend.device, batch_tokens=tokens)

    @cached_property
    def token_gradients(self) -> TriggerGradients | None:
        """What says which words would raise a score, by gradients; None of an exported model, which has none."""
        if not isinstance(self.backend, TorchBackend):
            return None
        tokens = self.settings.batch_tokens
        return TriggerGradients(self.network, self.renderer, device=self.backend.device, batch_tokens=tokens)

    @cached_property
    def limited(self) -> LimitedModel:
        """The same model at other limits of length, and its control tokens."""
        from rewardsmith.model.shorter import LimitedModel  # it makes reward models itself

        return LimitedModel(self)

    @property
    def precision(self) -> str:
        """In which the linear layers are computed: float32, bf16 or int8."""
        return self.backend.precision

    @property
    def tolerance(self) -> float:
        """How far, times max(1, |s|), the company of a batch may move a score."""
        return artefact.TOLERANCE_BF16 if self.precision == "bf16" else artefact.TOLERANCE

    def score(self, pairs: Sequence[Pair]) -> Scores:
        """Raw float32 scores of (prompt, answer) pairs, shape (n,), in the order given.

        Only differences between answers to one prompt have a meaning that was trained.
        """
        return self.table(pairs).score

    def attributes(self, pairs: Sequence[Pair]) -> dict[str, Scores]:
        """What each attribute's head says of (prompt, answer) pairs, {name: float32 (n,)}, in the units of its ratings.

        Raises:
            ModelError: if the model was not trained on attributes.
        """
        network, heads = self.network, self.attribute_heads
        if heads is None:
            raise ModelError(
                "a model that was trained on several attributes",
                f"one that was not (loss: {(self.contract.objective or {}).get('loss', 'unknown')})",
                'Train one with loss.name = "attributes".',
            )
        table, head = self.renderer.encode(pairs), network.head_module
        weight, bias = head.weight.detach().clone(), None if head.bias is None else head.bias.detach().clone()
        # Without their bias, which a decoder's head cannot hold: it is added outside.
        network.set_head(heads.weight, None if bias is None else torch.zeros_like(heads.bias))
        try:
            outputs = self._outputs(table)
        finally:
            network.set_head(weight, bias)
        outputs = outputs + heads.bias.numpy()
        return {name: checked(outputs[:, i], len(pairs)) for i, name in enumerate(heads.names)}

    def precision_record(self) -> dict[str, object]:
        """The precision of the scores; below float32 with its own measured tolerance: the largest |difference| / max(1, |s|) on the golden inputs.

        Of an exported model also the program that runs it; the difference is to the scores of the network that it was made of.
        """
        record: dict[str, object] = {"precision": self.precision}
        if self.contract.backend is not None:
            record = {"backend": self.contract.backend["name"], **record}
        if self.precision == "float32":
            return record
        found = checked(self._outputs(artefact.golden_table(self.renderer))[:, 0], len(INPUTS))
        return {**record, "precision_max_difference": artefact.difference(self.backend.golden_reference(), found)}

    def table(self, pairs: Sequence[Pair]) -> ScoreTable:
        """Scores with what was read and cut of each text; see `ScoreTable`."""
        return self._scored(self.renderer.encode(pairs))

    def encode(self, inputs: Sequence[Input]) -> list[EncodedText]:
        """Each input as the model reads it, in their order; (prompt, answer) pairs through the template, raw texts and ids as they stand.

        Raises:
            LengthError: with the policy "error", at a text that is too long.
            DataError: at a raw text that this model cannot read; see `Renderer.encode_raw`.
            ModelError: if the chat template refuses or alters a conversation.
        """
        pairs = self.renderer.encode([one for one in inputs if isinstance(one, tuple)])
        raw = self.renderer.encode_raw([one for one in inputs if not isinstance(one, tuple)])
        of_pairs, of_raw = iter(_rows(pairs)), iter(_rows(raw))
        return [next(of_pairs) if isinstance(one, tuple) else next(of_raw) for one in inputs]

    def score_encoded(self, texts: Sequence[EncodedText]) -> ScoreTable:
        """Scores of what `encode` returned, of one call or of many, in the order given.

        Raises:
            ScoreError: if a score is not finite.
        """
        return self._scored(TokenTable.join([text.tokens for text in texts]))

    def _scored(self, tokens: TokenTable) -> ScoreTable:
        scores = checked(self._outputs(tokens)[:, 0], len(tokens))
        cut = tokens.prompt_cut.astype(np.int64), tokens.answer_cut.astype(np.int64)
        return ScoreTable(
            score=scores,
            tokens=tokens.lengths,
            full_tokens=tokens.lengths + cut[0] + cut[1],
            truncated=tokens.truncated,
            prompt_cut=cut[0],
            answer_cut=cut[1],
            special_strings=tokens.special_strings.astype(np.int64),
            digest=tokens.digests(),
        )

    def _outputs(self, tokens: TokenTable) -> NDArray[np.float32]:
        """What the head says of each text, (n, A)."""
        return self.backend.outputs(tokens)


def _rows(table: TokenTable) -> list[EncodedText]:
    """Each row of a table by itself."""
    parts = [table.take(np.array([row])) for row in range(len(table))]
    return [EncodedText(len(part.ids), part) for part in parts]
