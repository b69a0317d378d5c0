"""The last layer of an encoder that is read at each text's first token: there only these tokens ask, and what the layer would make of the others is not computed.

Their keys and values are needed, so two of the layer's twelve parts of arithmetic stay (BERT: queries, keys, values and output are one part each of H x H, the feed-forward network is eight). Of a
MiniLM's six layers that is a seventh of all products, in training and in scoring; scores and gradients are those of the whole layer.

Legend: `N` texts, `T` tokens of a row, `H` hidden, `D` numbers a head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertAttention
from transformers.models.electra.modeling_electra import ElectraAttention
from transformers.models.roberta.modeling_roberta import RobertaAttention

from rewardsmith.model.attention import SEGMENTS, segment_attention

FIRST = "rewardsmith_first_tokens"
"""The keyword under which a model's forward tells its last layer that only the first token of each text of a padded batch is read."""
# They are one class under three names.
_KNOWN = (BertAttention, ElectraAttention, RobertaAttention)


def can_shorten(backbone: PreTrainedModel) -> bool:
    """Whether the last layer of a backbone is of a kind that is known here."""
    return _last_attention(backbone) is not None


def shorten(backbone: PreTrainedModel) -> None:
    """Make a backbone ready to be asked for first tokens alone; asked for all, it stays what it was. Twice is once."""
    attention = _last_attention(backbone)
    assert attention is not None
    if not isinstance(attention.forward, partial):
        attention.forward = partial(_forward, attention, attention.forward)


def _last_attention(backbone: PreTrainedModel) -> nn.Module | None:
    layers = getattr(getattr(backbone, "encoder", None), "layer", None)
    attention = layers[-1].attention if isinstance(layers, nn.ModuleList) and len(layers) else None
    return attention if isinstance(attention, _KNOWN) and not attention.self.is_decoder else None


def _forward(
    attention: Any, whole: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, Any]:
    """What transformers' BertAttention does, for the first tokens: (1, T, H) -> (1, N, H) of a packed row, (N, T, H) -> (N, 1, H) of a padded batch."""
    plan, inner = kwargs.get(SEGMENTS), attention.self
    if plan is not None and plan.first_tokens is not None:
        first, options = hidden_states[:, plan.first_tokens], {SEGMENTS: plan.of_first_tokens()}
    elif kwargs.get(FIRST):
        first, options = hidden_states[:, :1], {}
        attention_mask = None if attention_mask is None else attention_mask[:, :, :1]
    else:
        return whole(hidden_states, attention_mask, **kwargs)

    def heads(part: nn.Module, states: Tensor) -> Tensor:
        return part(states).view(*states.shape[:2], -1, inner.attention_head_size).transpose(1, 2)

    mixed, _ = segment_attention(
        inner,
        heads(inner.query, first),
        heads(inner.key, hidden_states),
        heads(inner.value, hidden_states),
        attention_mask,
        scaling=inner.scaling,
        **options,
    )
    return attention.output(mixed.reshape(*first.shape[:2], -1), first), None
