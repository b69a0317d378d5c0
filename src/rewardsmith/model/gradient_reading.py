"""What reading by gradients needs of a torch network: the table of embeddings, the places of tokens, and float32 with gradients whatever the caller is in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import nn

from rewardsmith.model.network import Network
from rewardsmith.model.render import Renderer
from rewardsmith.model.token_places import PlacedRenderer

# A text is held with all that its backward pass needs, which is several times what a score needs.
_SHARE_OF_TOKENS = 4


class GradientReader:
    """A network whose scores are differentiated by its tokens, in float32 on its device whatever the precision of its scores.

    Args:
        network: with its weights on `device`.
        renderer: of the texts.
        device: where the network is.
        batch_tokens: tokens of one forward pass of the scorer; here a quarter of it, at least one text.
    """

    def __init__(self, network: Network, renderer: Renderer, *, device: torch.device, batch_tokens: int) -> None:
        """Nothing is read yet."""
        self.network, self.renderer, self.device = network, renderer, device
        self.batch_tokens = max(1, batch_tokens // _SHARE_OF_TOKENS)

    @cached_property
    def _placed(self) -> PlacedRenderer:
        return PlacedRenderer(self.renderer.tokenizer, self.renderer.spec)

    @property
    def _embedding(self) -> nn.Module:
        embedding: nn.Module = self.network.model.get_input_embeddings()
        return embedding

    @contextlib.contextmanager
    def _in_float32(self) -> Iterator[None]:
        """With gradients, without dropout, and without whatever autocast the caller is in."""
        was_training = self.network.model.training
        self.network.model.eval()
        try:
            with torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            self.network.model.train(was_training)
