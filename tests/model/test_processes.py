"""Two processes that train together: what each of them reads must reach the gradients of both."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from rewardsmith.model.batching import collate
from rewardsmith.model.network import build_network, load_tokenizer
from rewardsmith.model.packing import pack
from rewardsmith.model.render import Renderer, RenderSpec
from rewardsmith.model.trainer import route

_KEPT: list[DistributedDataParallel] = []
"""Alive until the process ends; see `one_of_two`."""
TEXTS = [(f"How do I mend item {i}?", answer) for i in range(4) for answer in ("Use glue.", "No.")]


def gradients(base, rows, *, packed, meeting=None, rank=0):
    """Of the sum of the scores of some texts; with a meeting place, of a process that averages them with another."""
    network = build_network(base, pooling="auto", seed=0, dropout=False)
    table = Renderer(load_tokenizer(base), RenderSpec(max_length=90)).encode(TEXTS)
    batch = (
        pack(table, rows, share=True, with_types=False) if packed else collate(table, rows, pad_id=0, with_types=False)
    )
    torch.nn.init.ones_(network.head_module.weight)
    route(network)
    model = network.model
    if meeting:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
        model = DistributedDataParallel(model, find_unused_parameters=True)
        _KEPT.append(model)
    model(batch=batch).sum().backward()
    return {name: p.grad for name, p in network.model.named_parameters() if p.grad is not None}


def one_of_two(rank, base, packed, folder):
    rows = [[0, 1, 2], [3, 4, 5, 6, 7]][rank]
    torch.save(gradients(base, rows, packed=packed, meeting=f"{folder}/meeting", rank=rank), f"{folder}/{rank}.pt")
    dist.barrier()
    # Without the destructors: torch's wait for gloo's thread with the interpreter's lock held, which that thread may want.
    os._exit(0)


@pytest.mark.parametrize("packed", [True, False])
def test_processes_average_the_gradients_of_what_each_of_them_read(packed, tiny, tmp_path):
    base = tiny("llama")
    alone = gradients(base, list(range(8)), packed=packed)
    mp.spawn(one_of_two, (base, packed, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(found[name], gradient / 2, atol=1e-5, rtol=1e-4)
