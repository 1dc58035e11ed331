"""What ranks do when one of them is in trouble, for `tests/test_breaker_distributed.py`."""

import math
import os
import time
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist

from resilient_optim import ARS, Snapshots, TrainingDiverged, durable
from resilient_optim.snapshot import Snapshot
from resilient_optim.snapshot_ring import SnapshotRing
from tests.helpers import bits
from tests.processes import joined
from tests.replica import RANKS, Replica, arrive_late, compared, new_group

FAULT, STEPS = 30, 60


def nan_weights(rank, group, folder, at=FAULT, **settings):
    run = Replica(rank, group, **settings)

    def before(index):
        if index == at and rank == 1:
            run.model[0].weight.data[0, 0] = math.nan

    return run.train(0, STEPS, before).result()


def nan_at_the_start(rank, group, folder):
    return nan_weights(rank, group, folder, at=0)


def scaled_weights(rank, group, folder):
    run = Replica(rank, group)

    def before(index):
        if index == FAULT and rank == 0:
            run.model[2].weight.data.mul_(1000.0)

    return run.train(0, STEPS, before).result()


def nan_where_nobody_looks(rank, group, folder):
    """In a weight that takes no part: only the look at a snapshot can find it."""
    run = Replica(rank, group)

    def before(index):
        if index == FAULT and rank == 1:
            run.model.spare.data[:] = math.nan

    return run.train(0, STEPS, before).result()


def trial(rank, group, folder):
    """Twelve losses of rank 1 are NaN: the good state is tried, and it is not the weights."""
    run = Replica(rank, group)
    bad = range(FAULT, FAULT + 12)
    return run.train(
        0, STEPS, told=lambda index: math.nan if rank and index in bad else None
    ).result()


def spent(rank, group, folder):
    run = Replica(rank, group)
    try:
        run.train(0, STEPS, told=lambda index: math.nan if rank and index >= FAULT else None)
    except TrainingDiverged as error:
        return {"step": error.step, "cause": error.cause, "text": str(error), **run.result()}


def without_memory(rank, group, folder, calls):
    """The calls of `Snapshot.take` for which rank 1 finds no memory."""
    take, count = Snapshot.take, 0

    def scarce(self, *args):
        nonlocal count
        count += 1
        if rank == 1 and count in calls:
            raise MemoryError("no memory left on this rank")
        return take(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Snapshot, "take", scarce)
        return nan_weights(rank, group, folder)


def no_memory_once(rank, group, folder):
    return without_memory(rank, group, folder, [2])


def no_memory_at_first(rank, group, folder):
    return without_memory(rank, group, folder, [1])


def no_memory_for_a_trial(rank, group, folder):
    take = Snapshot.take

    def scarce(self, live, step, level, notes):
        if rank == 1 and not notes:  # the state that is put aside
            raise MemoryError("no memory left on this rank")
        return take(self, live, step, level, notes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Snapshot, "take", scarce)
        return trial(rank, group, folder)


def scarce_from(rank, group, folder, steps):
    """From some step on rank 1 has too little free memory for snapshots nobody asked for."""
    run = Replica(rank, group, snapshot="auto")
    with pytest.MonkeyPatch.context() as patch:

        def before(index):
            if index == steps and rank == 1:
                patch.setattr(SnapshotRing, "_fits", lambda self, copies: False)
            if index == FAULT and rank == 1:
                run.model[0].weight.data[0, 0] = math.nan

        return run.train(0, STEPS, before).result()


def scarce_at_first(rank, group, folder):
    return scarce_from(rank, group, folder, 0)


def scarce_later(rank, group, folder):
    return scarce_from(rank, group, folder, 12)


def cadence(rank, group, folder):
    """Copies take rank 1 five milliseconds: by their cost it would take them more seldom."""
    take, taken = Snapshot.take, []

    def slow(self, live, step, *args):
        taken.append(step)
        time.sleep(0.005 * rank)
        return take(self, live, step, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Snapshot, "take", slow)
        result = Replica(rank, group, snapshot=Snapshots(cost=0.05)).train(0, 100).result()
    return {**result, "taken": taken}


def kept(folder, name):
    return Snapshots(every=8, directory=f"{folder}/{name}")


def settle(run):
    writer = run.optimizer._breaker.checkpoints._writer
    if writer is not None:
        writer.submit(int).result()
    dist.barrier()


def resumed(rank, group, folder):
    """After a kill rank 1 has lost its newest file; later on, all of them."""
    whole = Replica(rank, group, snapshot=kept(folder, "ddp")).train(0, STEPS)
    settle(whole)
    mine = durable.found(whole.optimizer._breaker.checkpoints.directory, rank)
    if rank == 1:
        mine[0][1].unlink()
    dist.barrier()
    run = Replica(rank, group, snapshot=kept(folder, "ddp"))
    start = run.optimizer.resume()
    run.train(start, STEPS)
    same = run.losses == whole.losses[start:] and bits(run.model) == bits(whole.model)
    settle(run)
    if rank == 1:
        for _, path in durable.found(whole.optimizer._breaker.checkpoints.directory, rank):
            path.unlink()
    dist.barrier()
    again = Replica(rank, group, snapshot=kept(folder, "ddp")).optimizer.resume()
    return {"files": [steps for steps, _ in mine], "start": start, "same": same, "again": again}


def slow_disk(rank, group, folder):
    """The times at which files were written, and which there were then; rank 1 is slow."""
    write, events = durable.write, []

    def slow(content, directory, *args):
        time.sleep(0.2 * rank)
        write(content, directory, *args)
        found = [steps for steps, _ in durable.found(directory, rank)]
        events.append((time.monotonic(), rank, found))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "write", slow)
        settle(Replica(rank, group, snapshot=kept(folder, "slow")).train(0, STEPS))
    return {"events": events}


def sharded(rank, group, folder):
    """FSDP2, with a NaN in the shard of rank 1."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    base = torch.optim.AdamW(model.parameters(), lr=0.02, foreach=False)
    optimizer = ARS(base, model=model, snapshot=kept(folder, "sharded"))
    out = {"seen": [], "losses": []}
    try:
        optimizer.resume()
    except ValueError as error:
        out["error"] = str(error)
    optimizer = ARS(base, model=model, snapshot=Snapshots(every=8))
    for index in range(STEPS):
        first = next(model.parameters())
        if index == FAULT:
            out["places"] = first.to_local().data_ptr(), base.state[first]["exp_avg"]
            if rank == 1:
                first.to_local().data[0, 0] = math.nan
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(index))
        optimizer.zero_grad()
        loss = (model(x) - x[:, :2]).square().mean()
        loss.backward()
        optimizer.step(loss)
        last = optimizer.last
        out["seen"].append((last.step, last.action, last.reason, last.rolled_back_to))
        out["losses"].append(loss.item())
    place, moment = out.pop("places")
    out["in place"] = (
        first.to_local().data_ptr() == place and base.state[first]["exp_avg"] is moment
    )
    out["sharded"] = hasattr(moment, "placements")
    out["weights"] = bits([p.full_tensor() for p in model.parameters()])
    return out


def late_words(rank, group, folder):
    """Decided on a GPU, of which rank 1 hears a step later than rank 0."""
    if not find_spec("triton") or torch.cuda.is_available():
        return None
    from tests.interpreter import INTERPRETS, interpreted

    if not INTERPRETS:
        return None
    os.environ["TRITON_INTERPRET"] = "1"
    with interpreted(), pytest.MonkeyPatch.context() as patch:
        arrive_late(patch, rank)
        return Replica(rank, group, backend="triton").train(0, 16).result()


CHECKS = [
    nan_weights, scaled_weights, trial, spent, cadence, resumed, sharded, slow_disk,
    nan_where_nobody_looks, no_memory_for_a_trial, no_memory_once, no_memory_at_first,
    scarce_at_first, scarce_later, nan_at_the_start, late_words,
]  # fmt: skip


def worker(rank, folder):
    with joined(rank, folder, RANKS):
        for check in CHECKS:
            try:
                with compared():
                    result = check(rank, new_group(), folder)
            except TrainingDiverged as error:
                result = {"diverged": (error.step, error.cause)}
            except Exception as error:
                result = {"raised": f"{type(error).__name__}: {error}"}
            torch.save(result, f"{folder}/{check.__name__}-{rank}.pt")
            dist.barrier()
