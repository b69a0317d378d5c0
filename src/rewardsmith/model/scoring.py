"""Scores of a token table: batches of like length inside, the order asked for outside."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rewardsmith.model.batching import collate, scoring_plan
from rewardsmith.model.network import Network
from rewardsmith.model.precision import Format, running
from rewardsmith.model.render import TokenTable
from rewardsmith.scores import Scores, checked


def score_tokens(
    network: Network,
    table: TokenTable,
    *,
    pad_id: int,
    with_types: bool,
    device: torch.device,
    precision: Format = "float32",
    batch_tokens: int = 8192,
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
    batch_tokens: int = 8192,
) -> NDArray[np.float32]:
    """What the head says of each text, float32 (n, A); see `score_tokens`. Not checked for NaN."""
    _, first, copies = np.unique(table.digests(), return_index=True, return_inverse=True)
    outputs = np.zeros((len(first), network.head_module.out_features), dtype=np.float32)
    was_training = network.model.training
    network.model.eval()
    try:
        with running(precision, device):
            for rows in scoring_plan(table.lengths[first], batch_tokens):
                batch = collate(table, first[rows], pad_id=pad_id, with_types=with_types).to(device)
                outputs[rows] = network.outputs(batch).float().cpu().numpy()
    finally:
        network.model.train(was_training)
    return outputs[copies]
