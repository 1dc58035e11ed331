"""Ranks decide together: two processes, gloo, data-parallel replicas compared bit for bit."""

import math
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from resilient_optim import ARS, distributed
from tests.helpers import Layers, bits, scripted
from tests.processes import CAN_SHARD, joined, run_ranks, sharded_on_cpu

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)

RANKS = 2
STEPS = 40
SPIKE, BAD = 30, 20


def reported(rank, step, loss):
    """What a rank tells ARS: rank 0 sees a spike that rank 1 does not, rank 1 a NaN."""
    if (rank, step) == (0, SPIKE):
        return 1000.0
    if (rank, step) == (1, BAD):
        return math.nan
    return loss


def replica_run(rank, wrap, reported=reported, steps=STEPS):
    """Data-parallel training on different batches; the weights and every step's action."""
    torch.manual_seed(0)
    model = Layers()
    replica = DistributedDataParallel(model.stack)
    optimizer = wrap(torch.optim.AdamW(model.parameters(), lr=0.02, fused=True))
    actions = []
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(2 * step + rank))
        loss = (replica(x) - x[:, :2]).square().mean()
        loss.backward()
        optimizer.step(reported(rank, step, loss.detach()))
        actions.append(optimizer.last.action)
    return {"weights": bits(model), "actions": actions}


def by_kernels(act):
    """What comes of an act with the kernels interpreted; None where they cannot be."""
    if not find_spec("triton") or torch.cuda.is_available():
        return None
    from tests.interpreter import INTERPRETS, interpreted

    if not INTERPRETS:
        return None
    os.environ["TRITON_INTERPRET"] = "1"
    with interpreted():
        return act()


def on_device(rank):
    """The same with decisions taken by the kernels, interpreted; rank 1 sees two bad losses."""
    return by_kernels(
        lambda: replica_run(
            rank,
            lambda base: ARS(base, backend="triton"),
            lambda rank, step, loss: math.nan if rank and step in (0, 3) else loss,
            steps=6,
        )
    )


def alone(rank, **settings):
    """Rank 0 steps by itself: would wait for ever if it asked the other."""
    if rank != 0:
        return None
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = ARS(torch.optim.SGD([p], lr=0.1, fused=True), process_group=False, **settings)
    optimizer.step(7.0)
    return optimizer.last.loss, optimizer._breaker.ring.good is not None


def alone_on_device(rank):
    """The same with decisions taken by the kernels, interpreted."""
    return by_kernels(lambda: alone(rank, backend="triton"))


def opening(rank):
    """Steps of the opening where each rank has a stage of the model, rank 1 the wider one."""
    stage = torch.nn.Linear(1024 if rank else 16, 4)
    return ARS(torch.optim.AdamW(stage.parameters(), lr=3e-3)).config.start_up


def opening_of_sgd(rank, lrs):
    """Steps that the gate takes to open where each rank has a stage and a rate of its own."""
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ARS(torch.optim.SGD([p], lr=lrs[rank], momentum=0.9))
    p.grad = torch.ones(2)
    optimizer.step(2.0)
    return optimizer._memory.policy.opening_steps


def sharded(rank):
    """The gradient norm that ARS sees on a model of which one layer is sharded (FSDP2)."""
    if not CAN_SHARD:
        return None
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Linear(6, 2))
    x = torch.randn(8, 5)
    model(x).square().mean().backward()
    whole = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    model.zero_grad()
    fully_shard(model[0], mesh=init_device_mesh("cpu", (RANKS,)))
    optimizer = ARS(torch.optim.AdamW(model.parameters(), lr=0.02, foreach=False), start_up=0)
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step(loss)
    return {"whole": whole, "seen": optimizer.last.grad_norm}


def agreed(rank, group=None):
    """What both ranks take for loss and norm, from different values."""
    return {
        "mean": distributed.agree(float(rank), 10.0 + rank, group),
        "no norm": distributed.agree(float(rank), None, group, flag=rank == 1),
        "bad loss": distributed.agree(math.nan if rank else 1.0, 2.0, group),
        "bad norm": distributed.agree(1.0, math.inf if rank else 2.0, group),
        "infinities": distributed.agree(math.inf if rank else -math.inf, 2.0, group),
    }


def asked_of_nobody(rank):
    """What a rank that decides alone takes for the answers of all."""
    if rank != 0:
        return None
    return [
        distributed.ranks(False),
        distributed.agree(1.0, 2.0, False, flag=True),
        distributed.any_rank(True, False),
        distributed.largest(3, False),
        distributed.in_common({4}, False),
    ]


def worker(rank, folder):
    with joined(rank, folder, RANKS):
        subgroup = dist.new_group([0])
        results = {
            "together": replica_run(rank, lambda base: ARS(base, start_up=0)),
            "apart": replica_run(rank, lambda base: ARS(base, start_up=0, process_group=False)),
            "jitter": replica_run(
                rank, lambda base: scripted(base, chi=0.3), lambda *seen: seen[-1]
            ),
            "alone": alone(rank),
            "opening": opening(rank),
            "opening of sgd": [opening_of_sgd(rank, lrs) for lrs in ((0.1, 0.1), (0.1, 0.01))],
            "on the device": on_device(rank),
            "alone on the device": alone_on_device(rank),
            "asked of nobody": asked_of_nobody(rank),
            "sharded": sharded(rank),
            "agreed": agreed(rank),
            "in a group of one": agreed(rank, subgroup) if rank == 0 else None,
        }
        torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both ranks; one start of two processes serves all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(worker, folder, RANKS)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(RANKS)]


def test_replicas_stay_identical_although_ranks_see_different_losses(ranks):
    first, second = (rank["together"] for rank in ranks)
    assert first == second
    assert first["actions"][SPIKE] == "skip"


def test_ranks_that_decide_together_open_together(ranks):
    assert [rank["opening"] for rank in ranks] == [77, 77]
    # Of ranks with different rates nobody knows whose the gradient is.
    assert [rank["opening of sgd"] for rank in ranks] == [[25, 30], [25, 30]]


def test_nan_on_one_rank_skips_on_both(ranks):
    assert [rank["together"]["actions"][BAD] for rank in ranks] == ["skip", "skip"]


def test_ranks_that_decide_alone_drift_apart(ranks):
    """What `process_group=False` means; and proof that the runs above put agreement to the test."""
    first, second = (rank["apart"] for rank in ranks)
    assert (first["actions"][SPIKE], second["actions"][SPIKE]) == ("skip", "apply")
    assert (first["actions"][BAD], second["actions"][BAD]) == ("apply", "skip")
    assert first["weights"] != second["weights"]


def test_replicas_get_the_same_noise(ranks):
    first, second = (rank["jitter"] for rank in ranks)
    assert first["weights"] == second["weights"]
    assert first["weights"] != ranks[0]["together"]["weights"]


@sharded_on_cpu
def test_sharded_and_whole_gradients_give_the_norm_of_the_whole_model(ranks):
    for rank in ranks:
        assert rank["sharded"]["seen"] == pytest.approx(rank["sharded"]["whole"], rel=1e-5)
    assert ranks[0]["sharded"]["seen"] == ranks[1]["sharded"]["seen"]


def test_ranks_agree_on_the_device(ranks):
    first, second = (rank["on the device"] for rank in ranks)
    if first is None:
        pytest.skip("needs triton, and no GPU: the kernels are interpreted")
    assert first == second
    assert [step for step, action in enumerate(first["actions"]) if action == "skip"] == [0, 3]


def test_deciding_alone_needs_no_other_rank(ranks):
    assert ranks[0]["alone"] == (7.0, True)
    assert ranks[0]["asked of nobody"] == [1, (1.0, 2.0, True), True, 3, {4}]


def test_deciding_alone_on_the_device_needs_no_other_rank(ranks):
    """And has snapshots, which the kernels of several ranks do without."""
    if ranks[0]["on the device"] is None:
        pytest.skip("needs triton, and no GPU: the kernels are interpreted")
    assert ranks[0]["alone on the device"] == (7.0, True)


def test_ranks_agree_on_the_mean_and_on_any_bad_value(ranks):
    for rank in ranks:
        found = rank["agreed"]
        assert found["mean"] == (0.5, 10.5, False)
        assert found["no norm"] == (0.5, None, True)
        assert math.isnan(found["bad loss"][0]) and found["bad loss"][1] == 2.0
        assert found["bad norm"][0] == 1.0 and math.isnan(found["bad norm"][1])
        assert math.isnan(found["infinities"][0])


def test_group_of_one_changes_nothing(ranks):
    assert ranks[0]["in a group of one"]["mean"] == (0.0, 10.0, False)


def test_only_the_given_group_is_asked(monkeypatch):
    """Stand-ins: a group smaller than the world but larger than one would need a third process."""
    asked = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group: asked.append(group) or 2)
    monkeypatch.setattr(dist, "get_backend", lambda group: asked.append(group) or "gloo")
    monkeypatch.setattr(dist, "all_reduce", lambda vector, group: asked.append(group))
    distributed.agree(1.0, 2.0, "mine")
    assert set(asked) == {"mine"}


def test_without_initialisation_nothing_is_exchanged():
    assert not dist.is_initialized()
    assert distributed.agree(1.5, 2.5) == (1.5, 2.5, False)
    assert distributed.agree(math.inf, None, flag=True) == (math.inf, None, True)
