"""What an audit asks of a local model beside its scores: the same model at other limits of length, and its control tokens."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from rewardsmith.errors import SettingsError
from rewardsmith.model.backends import GraphBackend
from rewardsmith.model.network import position_capacity
from rewardsmith.model.render import Renderer
from rewardsmith.model.reward_model import RewardModel


class LimitedModel:
    """A reward model that can be read at other values of max_length: `LengthLimited` and `SpecialTokens` of rewardsmith.scores.

    >>> LimitedModel(RewardModel.load("runs/demo")).at_max_length(256).score([("What is 2 + 2?", "4.")])  # doctest: +SKIP
    array([1.52], dtype=float32)

    Args:
        model: itself; its weights are shared, and it stays as it is.
    """

    def __init__(self, model: RewardModel) -> None:
        """Keep the model."""
        self.model = model

    @property
    def max_length(self) -> int:
        """Tokens of one text at which the model is read otherwise."""
        return self.model.renderer.spec.max_length

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the model can be asked to read: as many as it has positions.

        Of an exported model its own limit, for the graph does not tell. Rotary and relative positions go on without an end, but the model has never seen those
        beyond the number in its config, or beyond the limit that it was trained with.
        """
        if isinstance(self.model.backend, GraphBackend):
            return self.max_length
        network = self.model.network
        known = max(getattr(network.backbone_config, "max_position_embeddings", 0) or 0, self.max_length)
        return min(known, position_capacity(network.model) or known)

    def at_max_length(self, tokens: int) -> RewardModel:
        """The model with another limit, texts being cut by its own policy; by keep_answer where that refuses long texts.

        Raises:
            SettingsError: if the model cannot read so much.
            LengthError: if the limit leaves no room beside the template.
        """
        if tokens > self.longest:
            raise SettingsError(
                f"a limit of at most {self.longest} tokens, where the model's positions end",
                f"{tokens}",
                "Choose a lower limit.",
            )
        model = self.model
        spec = replace(model.renderer.spec, max_length=tokens)
        if spec.truncation == "error":
            spec = replace(spec, truncation="keep_answer")
        renderer = Renderer(model.renderer.tokenizer, spec)
        if not isinstance(model.backend, GraphBackend):
            return RewardModel(model.network, renderer, model.contract, model.settings)
        backend = GraphBackend(
            model.backend.runtime,
            renderer,
            precision=model.backend.precision,
            reference=model.backend.reference,
            batch_tokens=model.settings.batch_tokens,
        )
        return RewardModel(backend, renderer, model.contract, model.settings)

    def special_tokens(self) -> tuple[str, ...]:
        """The strings that the tokenizer would read as control tokens, those of a chat template included.

        The token for what is unknown and the one that fills batches up mean nothing in a text, and are left out unless they serve as something else, too.
        """
        return control_strings(self.model.renderer.tokenizer)


def control_strings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The special tokens of a tokenizer as it writes them; see `LimitedModel.special_tokens`."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    around = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.cls_token, tokenizer.sep_token}
    means_nothing = {tokenizer.unk_token, tokenizer.pad_token} - around
    return tuple(token for token in dict.fromkeys(added) if token not in means_nothing)
