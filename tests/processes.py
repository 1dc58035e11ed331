"""Starts the ranks of a distributed test as processes of their own, joined by gloo."""

import contextlib
import datetime
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

CAN_SHARD = hasattr(torch.cpu.Stream, "record_event")
sharded_on_cpu = pytest.mark.skipif(not CAN_SHARD, reason="fully_shard of torch 2.6 needs a GPU")


@contextlib.contextmanager
def joined(rank, folder, ranks):
    """While it lasts, this process is one of the ranks; all of them end together."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),
    )
    yield
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(worker, folder, ranks):
    """Run worker(rank, folder) in a process for each rank; a deadlock fails the test."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        spawned = mp.spawn(worker, args=(str(folder),), nprocs=ranks, join=False)
        deadline = datetime.datetime.now() + datetime.timedelta(seconds=180)
        while not spawned.join(timeout=5):
            if datetime.datetime.now() > deadline:
                for process in spawned.processes:
                    process.kill()
                pytest.fail("the processes did not end within 180 seconds: a deadlock")
