"""The reward model as users meet it: load a folder, score pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rewardsmith.config import ScoringSettings
from rewardsmith.data.golden import INPUTS
from rewardsmith.data.schema import Pair
from rewardsmith.errors import ModelError
from rewardsmith.model import artefact
from rewardsmith.model.attributes import AttributeHeads
from rewardsmith.model.network import Network, source_folder
from rewardsmith.model.precision import choose_device
from rewardsmith.model.render import Renderer, TokenTable
from rewardsmith.model.scoring import head_outputs
from rewardsmith.scores import Scores, ScoreTable, checked


class RewardModel:
    """A scorer with its contract.

    >>> model = RewardModel.load("runs/demo")  # doctest: +SKIP
    >>> model.score([("What is 2 + 2?", "4."), ("What is 2 + 2?", "5.")])  # doctest: +SKIP
    array([ 1.52, -0.61], dtype=float32)
    """

    def __init__(
        self,
        network: Network,
        renderer: Renderer,
        contract: artefact.Contract,
        settings: ScoringSettings | None = None,
        *,
        attributes: AttributeHeads | None = None,
    ) -> None:
        """Put the network on its device; use `load` for a folder."""
        self.attribute_heads = attributes
        self.settings = settings or ScoringSettings()
        self.network, self.renderer, self.contract = network, renderer, contract
        self.device = choose_device(self.settings.device)
        network.model.to(self.device)

    @classmethod
    def load(cls, source: str | Path, settings: ScoringSettings | None = None) -> RewardModel:
        """A model folder, a run folder, a plain single-logit folder (with a warning) or a Hugging Face name.

        Raises:
            ModelError: (or a subclass) saying what is wrong with it.
        """
        loaded = artefact.load(source_folder(str(source)))
        return cls(loaded.network, loaded.renderer, loaded.contract, settings, attributes=loaded.attributes)

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
        heads = self.attribute_heads
        if heads is None:
            raise ModelError(
                "a model that was trained on several attributes",
                f"one that was not (loss: {(self.contract.objective or {}).get('loss', 'unknown')})",
                'Train one with loss.name = "attributes".',
            )
        table, head = self.renderer.encode(pairs), self.network.head_module
        weight, bias = head.weight.detach().clone(), None if head.bias is None else head.bias.detach().clone()
        # Without their bias, which a decoder's head cannot hold: it is added outside.
        self.network.set_head(heads.weight, None if bias is None else torch.zeros_like(heads.bias))
        try:
            outputs = self._outputs(table)
        finally:
            self.network.set_head(weight, bias)
        outputs = outputs + heads.bias.numpy()
        return {name: checked(outputs[:, i], len(pairs)) for i, name in enumerate(heads.names)}

    def precision_record(self) -> dict[str, object]:
        """The precision of the scores; for bf16 with its own measured tolerance: the largest |difference| / max(1, |s|) on the golden inputs."""
        if self.settings.precision == "float32":
            return {"precision": "float32"}
        _, exact = artefact.golden_scores(self.network, self.renderer)
        found = self.score(INPUTS)
        return {"precision": self.settings.precision, "precision_max_difference": artefact.difference(exact, found)}

    def table(self, pairs: Sequence[Pair]) -> ScoreTable:
        """Scores with what was read and cut of each text; see `ScoreTable`."""
        tokens = self.renderer.encode(pairs)
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
        return head_outputs(
            self.network,
            tokens,
            pad_id=self.renderer.tokenizer.pad_token_id or 0,
            with_types=self.renderer.uses_types,
            device=self.device,
            precision=self.settings.precision,
            batch_tokens=self.settings.batch_tokens,
        )
