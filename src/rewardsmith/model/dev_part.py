"""What a network in training makes of the dev part."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import torch
from numpy.typing import NDArray

from rewardsmith import metrics
from rewardsmith.model import processes
from rewardsmith.model.batching import Batch
from rewardsmith.model.batching_choice import BatchingChoice, choose_batching
from rewardsmith.model.examples import ExampleTable
from rewardsmith.model.losses import Objective
from rewardsmith.model.network import Network
from rewardsmith.model.packing import PackedBatch
from rewardsmith.model.precision import Format
from rewardsmith.model.render import TokenTable
from rewardsmith.model.scoring import batches, head_outputs
from rewardsmith.model.sharding import Sharding

# Examples of the dev part that a loss is shown at once.
_AT_ONCE = 256


def dev_numbers(
    network: Network,
    table: ExampleTable,
    objective: Objective,
    *,
    pad_id: int,
    with_types: bool,
    device: torch.device,
    precision: Format,
    batching: BatchingChoice | None = None,
    sharding: Sharding | None = None,
) -> tuple[float, float]:
    """(mean of the objective's dev losses, accuracy on the comparisons that the labels imply, ties one half) of a network as it is.

    The accuracy is 0.5 where the labels compare nothing.

    Args:
        network: to read with, in whatever mode it is.
        table: the dev part.
        objective: the loss; it is not changed.
        pad_id: of the tokenizer.
        with_types: whether the network reads token types.
        device: that the network is on.
        precision: of the passes.
        batching: how texts share a batch; chosen by the network where None.
        sharding: of the network over the processes; all of them must call then.
    """
    batching = batching or choose_batching(network, device)

    def first_text() -> Batch | PackedBatch:
        _, batch = next(
            batches(table.tokens, np.array([0]), 1, batching, pad_id=pad_id, with_types=with_types),
        )
        return batch.to(device)

    def read(tokens: TokenTable) -> NDArray[np.float32]:
        with contextlib.nullcontext(network) if sharding is None else sharding.reader(first_text) as reading:
            return head_outputs(
                reading,
                tokens,
                pad_id=pad_id,
                with_types=with_types,
                device=device,
                precision=precision,
                batching=batching,
            )

    outputs = torch.from_numpy(
        processes.read_in_shares(table.tokens, read, width=network.head_module.out_features),
    )
    with torch.inference_mode():
        on_cpu = copy.deepcopy(objective).to("cpu")
        scores = on_cpu.score(outputs).double().numpy()
        # By parts, for a loss may compare every answer with every other of what it is given.
        parts = [
            on_cpu.dev_losses(outputs[table.starts[rows[0]] : table.starts[rows[-1] + 1]], table.labels_of(rows))
            for rows in np.split(np.arange(len(table)), range(_AT_ONCE, len(table), _AT_ONCE))
        ]
        losses = torch.cat(parts)
    margins = scores[table.better[:, 0]] - scores[table.better[:, 1]]
    return float(losses.double().mean()), float(metrics.wins(margins).mean()) if len(margins) else 0.5
