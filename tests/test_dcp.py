"""torch.distributed.checkpoint: a sharded run saved by two ranks goes on on four, and on one."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from resilient_optim import ARS
from tests.helpers import Layers, bits
from tests.processes import joined, run_ranks, sharded_on_cpu

pytestmark = [
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
    ),
    sharded_on_cpu,
    # torch of itself: no process group, and what its planner does there.
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable):UserWarning"),
]

RANKS = 4
SAVED_AT, END = 24, 34
OPTIONS = {
    "default": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True),
}
modes = pytest.mark.parametrize("mode", OPTIONS)


def start(mesh=None, group=None):
    """A model of 2-row and 4-row matrices, sharded over `mesh` if given, and ARS for it."""
    torch.manual_seed(0)
    model = Layers().stack
    if mesh is not None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(model[2], mesh=mesh)
        fully_shard(model, mesh=mesh)
    first, last = model.parameters()
    groups = [{"params": [first]}, {"params": [last], "lr": 0.01}]
    return model, ARS(torch.optim.AdamW(groups, lr=0.02), start_up=8, process_group=group)


def go(model, optimizer, steps):
    """Train; a NaN before and one after the save, then a spike. The decisions, in words."""
    decisions = []
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x[:, :2]).square().mean()
        loss.backward()
        optimizer.step(
            math.nan if step in (20, 28) else loss * 50.0 if step == 31 else loss.detach()
        )
        seen = optimizer.last
        decisions.append((seen.step, seen.action, seen.reason, round(seen.z, 3)))
    return decisions


def whole_weights(model):
    params = model.named_parameters()
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for name, p in params
    }


def learned(optimizer):
    """Everything that ARS remembers, without what the groups have of their own."""
    return bits([group["ars"] for group in optimizer.state_dict()["param_groups"]])


def contents(model, optimizer, mode):
    return {
        "model": get_model_state_dict(model),
        "optim": get_optimizer_state_dict(model, optimizer, options=OPTIONS[mode]),
    }


def restore(model, optimizer, mode, folder, **how):
    """Load a run from files into a fresh one, as torch's documentation has it."""
    if mode == "full":
        state = torch.load(f"{folder}/full.pt", weights_only=True)
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, state["model"], options=options)
    else:
        state = contents(model, optimizer, mode)
        dcp.load(state, checkpoint_id=f"{folder}/{mode}", **how)
        set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optim"], options=OPTIONS[mode])


def finish(model, optimizer):
    memory = learned(optimizer)
    decisions = go(model, optimizer, range(SAVED_AT, END))
    return {
        "restored": memory,
        "decisions": decisions,
        "skipped": optimizer.counters["skipped"],
        "weights": whole_weights(model),
    }


def saving(mesh, group, folder, mode):
    model, optimizer = start(mesh, group)
    go(model, optimizer, range(SAVED_AT))
    if mode == "full":
        state = contents(model, optimizer, mode)
        options = StateDictOptions(full_state_dict=True)
        state["model"] = get_model_state_dict(model, options=options)
        torch.save(state, f"{folder}/full.pt") if mesh.get_local_rank() == 0 else None
    else:
        state = contents(model, optimizer, mode)
        dcp.save(state, checkpoint_id=f"{folder}/{mode}", process_group=group)
    return finish(model, optimizer)


def dummy_step(mesh):
    """What is left of the step by which torch makes the state of a fresh optimizer."""
    model, optimizer = start(mesh)
    before = bits(whole_weights(model))
    get_optimizer_state_dict(model, optimizer)
    moments = [state["exp_avg"].full_tensor().abs().max() for state in optimizer.state.values()]
    return {
        "same": bits(whole_weights(model)) == before,
        "last": optimizer.last,
        "observed": optimizer.counters["observed"],
        "losses": len(optimizer.loss_buffer.losses),
        "moments": [float(moment) for moment in moments],
    }


def worker(rank, folder):
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    with joined(rank, folder, RANKS):
        everyone = init_device_mesh("cpu", (RANKS,))
        half = dist.new_group([0, 1])
        results = {"dummy step": dummy_step(everyone)}
        for mode in OPTIONS:
            if rank < 2:
                mesh = DeviceMesh.from_group(half, "cpu")
                results[f"saved {mode}"] = saving(mesh, half, folder, mode)
            dist.barrier()
            model, optimizer = start(everyone)
            restore(model, optimizer, mode, folder)
            results[f"loaded {mode}"] = finish(model, optimizer)
        torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(worker, folder, RANKS)
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def assert_goes_on_as_saved(found, saved, rtol=0.0, atol=0.0):
    assert found["decisions"] == saved["decisions"]
    assert [found["skipped"], saved["skipped"]] == [3, 3]
    assert found["restored"] == saved["restored"]
    torch.testing.assert_close(found["weights"], saved["weights"], rtol=rtol, atol=atol)


def test_the_future_puts_the_memory_to_the_test(ranks):
    decided = [d[1] for d in ranks[0]["saved default"]["decisions"]]
    assert {"skip", "damp"} <= set(decided)
    assert decided[28 - SAVED_AT] == decided[31 - SAVED_AT] == "skip"


@modes
def test_four_ranks_go_on_from_what_two_have_saved(ranks, mode):
    for rank in ranks:
        assert_goes_on_as_saved(rank[f"loaded {mode}"], ranks[0][f"saved {mode}"])


@modes
def test_one_process_goes_on_from_what_two_ranks_have_saved(ranks, folder, mode):
    model, optimizer = start()
    restore(model, optimizer, mode, folder, no_dist=True)
    # The sum of a norm has another order without shards, and early gradients are scaled by it.
    saved = ranks[0][f"saved {mode}"]
    assert_goes_on_as_saved(finish(model, optimizer), saved, rtol=1e-5, atol=1e-6)


def test_dummy_step_of_a_sharded_model_leaves_no_trace(ranks):
    expected = {"same": True, "last": None, "observed": 0, "losses": 0, "moments": [0.0, 0.0]}
    assert [rank["dummy step"] for rank in ranks] == [expected] * RANKS
