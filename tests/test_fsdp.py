"""Sharded models (FSDP2, HSDP) and groups of ranks: four real processes against one."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from resilient_optim import ARS
from tests.helpers import CALM, Layers, bits, scripted
from tests.processes import joined, run_ranks, sharded_on_cpu

pytestmark = [
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
    ),
    sharded_on_cpu,
]

RANKS = 4
NAN_LOSS, NAN_GRADIENT, OUTLIER, STEPS = 3, 6, 26, 29
LOOKED_AT = (0, 2, NAN_LOSS, 5, NAN_GRADIENT, OUTLIER - 1, STEPS - 1)
BASES = {
    "foreach": lambda params: torch.optim.AdamW(params, lr=0.02, foreach=True),
    "fused": lambda params: torch.optim.AdamW(params, lr=0.02, fused=True),
}


def stack():
    """A model of which the last layer's two rows leave two of four ranks without any."""
    torch.manual_seed(0)
    return Layers().stack


def batch(index):
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(index))


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def weights(model):
    return {name: whole(p.detach()).clone() for name, p in model.named_parameters()}


def troubled_run(model, base, rank=None):
    """The same batches everywhere, and a fault of each kind; `rank` None is the whole run.

    Only rank 1 loses its loss and only rank 3 one of its gradients.
    """
    optimizer = ARS(base(model.parameters()), start_up=0)
    out = {"decisions": [], "norms": [], "weights": {}}
    for step in range(STEPS):
        optimizer.zero_grad()
        x = batch(step)
        loss = (model(x) - x[:, :2]).square().mean()
        loss.backward()
        first = next(model.parameters()).grad
        if step == NAN_GRADIENT and rank in (None, 3):
            local(first)[-1, 0] = math.nan
        if step == OUTLIER:
            for p in model.parameters():
                p.grad.mul_(1024.0)
        optimizer.step(math.nan if step == NAN_LOSS and rank in (None, 1) else loss)
        seen = optimizer.last
        out["decisions"].append((seen.action, seen.reason, seen.phi))
        out["norms"].append(seen.grad_norm)
        if step in LOOKED_AT:
            out["weights"][step] = weights(model)
    return out


def shared_work(model, rank=None):
    """Every rank has a part of the batch; gradients are clipped before ARS sees them."""
    optimizer = ARS(BASES["foreach"](model.parameters()))
    for step in range(20):
        optimizer.zero_grad()
        parts = [batch(100 * step + r) for r in (range(RANKS) if rank is None else [rank])]
        x = torch.cat(parts)
        loss = (model(x) - x[:, :2]).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step(loss)
    return {"weights": weights(model), "loss": optimizer.last.loss, "phi": optimizer.last.phi}


def noise_on(p, grad, seed):
    """What the jitter of one step adds to this rank's part of a gradient."""
    p.grad = grad.clone()
    before = local(p.grad).clone()
    scripted(torch.optim.SGD([p], lr=0.1), seed=seed, chi=0.3).step(1.0)
    return local(p.grad) - before


def jitters(mesh, seed):
    """Noise on a gradient whose rows, one of them on each shard, have very different sizes."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    placements = [Replicate()] * (mesh.ndim - 1) + [Shard(0)]
    rows = mesh.size(-1)
    p = torch.nn.Parameter(distribute_tensor(torch.zeros(rows, 4096), mesh, placements))
    sizes = torch.tensor([10.0**-r for r in range(rows)])
    grad = distribute_tensor(sizes[:, None].expand(-1, 4096).contiguous(), mesh, placements)
    return noise_on(p, grad, seed)


def pairs(rank):
    """Two pairs of replicas that know nothing of one another; the last rank loses its loss."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mine = groups[rank // 2]
    model = stack()
    replica = DistributedDataParallel(model, process_group=mine)
    optimizer = ARS(BASES["foreach"](model.parameters()), process_group=mine, start_up=0)
    losses, actions = [], []
    for step in range(6):
        optimizer.zero_grad()
        x = batch(10 * step + rank)
        loss = (replica(x) - x[:, :2]).square().mean()
        loss.backward()
        optimizer.step(math.nan if (rank, step) == (3, 4) else float(10 * step + rank))
        losses.append(optimizer.last.loss)
        actions.append(optimizer.last.action)
    return {"losses": losses, "actions": actions, "weights": bits(model)}


def quiet_run(model, wrap):
    optimizer = wrap(BASES["foreach"](model.parameters()))
    for step in range(12):
        optimizer.zero_grad()
        x = batch(step)
        loss = (model(x) - x[:, :2]).square().mean()
        loss.backward()
        optimizer.step(loss) if isinstance(optimizer, ARS) else optimizer.step()
    return weights(model)


def worker(rank, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with joined(rank, folder, RANKS):
        flat = init_device_mesh("cpu", (RANKS,))
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))

        def sharded(mesh):
            model = stack()
            fully_shard(model[2], mesh=mesh)
            return fully_shard(model, mesh=mesh)

        results = {
            "bare": quiet_run(sharded(flat), lambda base: base),
            "quiet": quiet_run(sharded(flat), lambda base: ARS(base, **CALM)),
            **{f"fsdp {b}": troubled_run(sharded(flat), BASES[b], rank) for b in BASES},
            "hsdp foreach": troubled_run(sharded(grid), BASES["foreach"], rank),
            "shared work": shared_work(sharded(flat), rank),
            "empty shard": local(next(iter(sharded(flat)[2].parameters()))).numel() == 0,
            "noise": jitters(flat, seed=0),
            "seeded noise": jitters(flat, seed=rank),
            "hsdp noise": jitters(grid, seed=0),
            "pairs": pairs(rank),
        }
        torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(worker, folder, RANKS)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone():
    """The same runs on the whole model in this process."""
    return {b: troubled_run(stack(), BASES[b]) for b in BASES}


runs = pytest.mark.parametrize("run", ["fsdp foreach", "fsdp fused", "hsdp foreach"])


def test_the_problem_has_an_empty_shard(ranks):
    assert [rank["empty shard"] for rank in ranks] == [False, False, True, True]


def test_quiet_sharded_run_is_the_bare_one(ranks):
    for rank in ranks:
        assert bits(rank["quiet"]) == bits(rank["bare"])


@runs
def test_every_rank_decides_alike(ranks, run):
    assert len({repr(rank[run]["decisions"]) for rank in ranks}) == 1
    assert len({repr(rank[run]["norms"]) for rank in ranks}) == 1
    assert len({repr(bits(rank[run]["weights"])) for rank in ranks}) == 1


@runs
def test_fault_of_one_rank_is_met_as_a_fault_of_the_whole_model(ranks, alone, run):
    seen, expected = ranks[0][run], alone[run.split()[1]]
    decided = {step: seen["decisions"][step][:2] for step in (NAN_LOSS, NAN_GRADIENT, OUTLIER)}
    assert decided == {
        NAN_LOSS: ("skip", "non-finite loss"),
        NAN_GRADIENT: ("skip", "non-finite gradient"),
        OUTLIER: ("damp", "outlier gradient"),
    }
    assert seen["decisions"] == expected["decisions"]
    assert [d[0] for d in seen["decisions"]].count("apply") == STEPS - 3
    for step in (NAN_LOSS, NAN_GRADIENT):
        assert bits(seen["weights"][step]) == bits(seen["weights"][step - 1])


@runs
def test_norm_is_that_of_the_whole_model(ranks, alone, run):
    finite = [step for step in range(STEPS) if step != NAN_GRADIENT]
    seen, expected = (r["norms"] for r in (ranks[0][run], alone[run.split()[1]]))
    for step in finite:
        assert seen[step] == pytest.approx(expected[step], rel=1e-5)
    assert math.isnan(seen[NAN_GRADIENT])
    assert expected[OUTLIER] > 100 * expected[OUTLIER - 1]


@runs
def test_sharded_weights_are_the_whole_models(ranks, alone, run):
    """To the bit, but for torch's fused kernel (it rounds by position in a shard) and an outlier.

    The outlier is scaled by the norm, a sum that has another order over shards.
    """
    seen, expected = (r["weights"] for r in (ranks[0][run], alone[run.split()[1]]))
    assert bits(seen[0]) != bits(seen[OUTLIER - 1])
    if "fused" not in run:
        assert bits(seen[OUTLIER - 1]) == bits(expected[OUTLIER - 1])
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)


def test_ranks_with_parts_of_a_batch_train_as_one_with_all(ranks):
    expected = shared_work(stack())
    for rank in ranks:
        torch.testing.assert_close(rank["shared work"], expected, rtol=1e-5, atol=1e-6)


def test_shards_get_different_noise(ranks):
    directions = [rank["noise"].sign().tolist() for rank in ranks]
    assert all(a != b for i, a in enumerate(directions) for b in directions[:i])


def test_shards_get_different_noise_from_different_seeds(ranks):
    directions = [rank["seeded noise"].sign().tolist() for rank in ranks]
    assert all(a != b for i, a in enumerate(directions) for b in directions[:i])


def test_copies_of_a_shard_get_the_same_noise_and_other_shards_another(ranks):
    first, second = (rank["hsdp noise"].sign().tolist() for rank in ranks[:2])
    assert first != second
    assert bits(ranks[0]["hsdp noise"]) == bits(ranks[2]["hsdp noise"])
    assert bits(ranks[1]["hsdp noise"]) == bits(ranks[3]["hsdp noise"])


@pytest.mark.parametrize(("noise", "shards"), [("noise", RANKS), ("hsdp noise", 2)])
def test_noise_counts_in_the_whole_tensors_rms(ranks, noise, shards):
    rms = math.sqrt(sum(100.0**-r for r in range(shards)) / shards)
    for rank in ranks:
        assert rank[noise].std().item() == pytest.approx(0.3 * rms, rel=0.1)


def test_only_the_given_group_is_asked(ranks):
    found = [rank["pairs"] for rank in ranks]
    assert found[0]["losses"] == found[1]["losses"] == [10 * step + 0.5 for step in range(6)]
    assert found[2]["losses"][:4] == [10 * step + 2.5 for step in range(4)]
    skipped = [[step for step, a in enumerate(f["actions"]) if a == "skip"] for f in found]
    assert [4 in steps for steps in skipped] == [False, False, True, True]
    assert found[0]["weights"] == found[1]["weights"] != found[2]["weights"]
    assert found[2]["weights"] == found[3]["weights"]
