"""Two processes that share the samples have the importances of one."""

from __future__ import annotations

import torch
import torch.distributed as dist

from maskcl.importance import estimate
from tests.helpers import in_two_processes
from tests.importance.zoo import assert_same, batches, make

KINDS = [{"kind": "mas"}, {"kind": "fisher"}]


def _process(rank: int, folder: str) -> None:
    """Rank 1 has another number of batches, and of samples."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model, x, y = make("convs")
    share = batches(x[:5], y[:5], 2) if rank == 0 else batches(x[5:], y[5:], 2)
    sent, plain = [], dist.all_reduce
    dist.all_reduce = lambda t, *args: (sent.append(t.numel()), plain(t, *args))
    found = [estimate(model, share, **kind) for kind in KINDS]
    assert len(sent) == len(KINDS), f"{len(sent)} messages for {len(KINDS)} passes"
    empty = estimate(model, share if rank == 0 else [])
    torch.save((found, empty), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    in_two_processes(_process, tmp_path)
    model, x, y = make("convs")
    for rank in range(2):
        found, empty = torch.load(tmp_path / f"{rank}.pt")
        for kind, importances in zip(KINDS, found, strict=True):
            assert_same(importances, estimate(model, batches(x, y, 7), **kind))
        # A process without samples still takes part.
        assert_same(empty, estimate(model, batches(x[:5], y[:5], 5)))
