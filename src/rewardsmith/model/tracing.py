"""A network as a graph of ids and mask to score, written so that a tracer keeps batch and length open."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rewardsmith.data.golden import INPUTS
from rewardsmith.model.artefact import golden_table
from rewardsmith.model.batching import collate
from rewardsmith.model.last_layer import FIRST, can_shorten, shorten
from rewardsmith.model.modeling_rewardsmith import ScoreHead, first_positions, last_positions, pool
from rewardsmith.model.network import Network, quiet_loading
from rewardsmith.model.render import Renderer

INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT_NAME = "score"
# Golden inputs of three lengths: whatever the tracer takes for a constant then differs in the proof that follows each export.
_EXAMPLES = (0, 3, 5)


class _SpelledHead(ScoreHead):
    """The head as products and a sum: tools that lower a graph's precision look for matrix products, and the head must stay float32."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, H) -> (N, 1)."""
        score = (input.float() * self.weight[0]).sum(dim=-1, keepdim=True)
        return score if self.bias is None else score + self.bias


class ScoreGraph(nn.Module):
    """The scores of a network, (N,), as one module; the network's head is replaced by one of the same weights.

    The rows of `Network.outputs` are picked by numbers that a tracer would freeze at the example's batch; here they are gathered. That both give one score
    is proven at every export.
    """

    def __init__(self, network: Network) -> None:
        """Take the network over; it serves nothing else afterwards."""
        super().__init__()
        old = network.head_module
        head = _SpelledHead(old.in_features, 1, bias=old.bias is not None)
        head.load_state_dict(old.state_dict())
        parent, _, child = network.head_name.rpartition(".")
        setattr(network.model.get_submodule(parent), child, head)
        self.model, self.pooling, self.native, self.head_name = (
            network.model,
            network.pooling,
            network.native,
            network.head_name,
        )
        backbone = getattr(self.model, self.model.base_model_prefix)
        self.options: dict[str, bool] = {}
        if self.pooling in ("pooler", "cls") and can_shorten(backbone):
            shorten(backbone)
            self.options = {FIRST: True}
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Right-padded ids and mask, (N, T) -> (N,)."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if self.pooling in ("pooler", "native"):
            return self.model(**inputs, **self.options).logits[:, 0]
        backbone = getattr(self.model, self.model.base_model_prefix)
        known = inspect.signature(backbone.forward).parameters
        if self.native and "position_ids" in known:
            inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        options = {"use_cache": False} if "use_cache" in known else {}
        states = backbone(**inputs, **options, **self.options).last_hidden_state
        return self.model.get_submodule(self.head_name)(self._pooled(states, attention_mask))[:, 0]

    def _pooled(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, T, H) -> (N, H)."""
        if self.pooling == "mean":
            return pool(states, attention_mask, "mean")
        place = (last_positions if self.pooling == "last" else first_positions)(attention_mask)
        return states.gather(1, place[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]


def example_inputs(renderer: Renderer) -> dict[str, Tensor]:
    """A small padded batch by input name, for the tracer."""
    table = golden_table(renderer, INPUTS)
    pad_id = renderer.tokenizer.pad_token_id or 0
    batch = collate(table, _EXAMPLES, pad_id=pad_id, with_types=renderer.uses_types)
    return {name: part for name, part in zip(INPUT_NAMES, batch, strict=True) if part is not None}


@contextlib.contextmanager
def quiet_tracing() -> Iterator[None]:
    """Without gradients, and without a tracer's warnings: what they warn of, a score that depends on the example, is looked for in the proof."""
    with torch.no_grad(), warnings.catch_warnings(), quiet_loading():
        warnings.simplefilter("ignore")
        yield
