"""Scores of a token table: batches that waste nothing inside, the order asked for outside."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from rewardsmith.config import ScoringSettings
from rewardsmith.model.batching import Batch, collate, scoring_plan
from rewardsmith.model.batching_choice import BatchingChoice, choose_batching
from rewardsmith.model.network import Network
from rewardsmith.model.packing import PackedBatch, pack, packed_plan
from rewardsmith.model.precision import Format, running
from rewardsmith.model.prompt_states import PromptStates
from rewardsmith.model.render import TokenTable
from rewardsmith.scores import Scores, checked

BATCH_TOKENS = ScoringSettings().batch_tokens
"""Tokens of one forward pass. Not probed for: from 2,048 to 8,192 a CPU is equally fast, and equal runs must cut equal batches to be equal to the bit."""


def score_tokens(
    network: Network,
    table: TokenTable,
    *,
    pad_id: int,
    with_types: bool,
    device: torch.device,
    precision: Format = "float32",
    batch_tokens: int = BATCH_TOKENS,
    batching: BatchingChoice | None = None,
) -> Scores:
    """Raw float32 scores, shape (n,); in float32 they do not depend on the batch beyond 1e-5 x max(1, |s|).

    Texts of equal ids are read once and get the same score to the bit: two answers that the model cannot tell apart are an exact tie.

    Raises:
        ScoreError: if a score is not finite.
    """
    outputs = head_outputs(
        network,
        table,
        pad_id=pad_id,
        with_types=with_types,
        device=device,
        precision=precision,
        batch_tokens=batch_tokens,
        batching=batching,
    )
    return checked(outputs[:, 0], len(table))


def head_outputs(
    network: Network,
    table: TokenTable,
    *,
    pad_id: int,
    with_types: bool,
    device: torch.device,
    precision: Format = "float32",
    batch_tokens: int = BATCH_TOKENS,
    batching: BatchingChoice | None = None,
    memory: PromptStates | None = None,
) -> NDArray[np.float32]:
    """What the head says of each text, float32 (n, A); see `score_tokens`. Not checked for NaN.

    `batching` is chosen by the network and the device where None. `memory` is for a network that shares prompts and is read at its last token.
    """
    batching = batching or choose_batching(network, device)
    _, first, copies = np.unique(table.digests(), return_index=True, return_inverse=True)
    outputs = np.zeros((len(first), network.head_module.out_features), dtype=np.float32)
    places = np.zeros(len(table), dtype=np.int64)
    places[first] = np.arange(len(first))
    was_training = network.model.training
    network.model.eval()
    try:
        with running(precision, device):
            for rows, batch in batches(
                table, first, batch_tokens, batching, pad_id=pad_id, with_types=with_types, memory=memory
            ):
                outputs[places[rows]] = network.outputs(batch.to(device)).float().cpu().numpy()
                if memory is not None:
                    memory.settle()
    finally:
        network.model.train(was_training)
    return outputs[copies]


def batches(
    table: TokenTable,
    rows: NDArray[np.int64],
    batch_tokens: int,
    batching: BatchingChoice,
    *,
    pad_id: int,
    with_types: bool,
    memory: PromptStates | None = None,
) -> Iterator[tuple[NDArray[np.int64], Batch | PackedBatch]]:
    """(rows, batch) until every one of `rows` was in a batch, long texts first."""
    if batching.packed:
        for part in packed_plan(table, rows, batch_tokens, share=batching.share):
            yield part, pack(table, part, share=batching.share, with_types=with_types, memory=memory)
        return
    for order in scoring_plan(table.lengths[rows], batch_tokens):
        yield rows[order], collate(table, rows[order], pad_id=pad_id, with_types=with_types)
