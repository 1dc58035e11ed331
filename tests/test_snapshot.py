"""A snapshot holds all that training has made, and puts it back in place, bit for bit."""

import copy
import math

import numpy as np
import pytest
import pytorch_optimizer
import schedulefree
import torch

from resilient_optim.snapshot import Live, Snapshot, nbytes_of
from tests.helpers import CASES, Layers, Lookup, bits, optimizer_bits, train

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def taken(live, step=0, **notes):
    snapshot = Snapshot()
    snapshot.take(live, step, math.inf, notes)
    return snapshot


def put_back(live, snapshot, scheduled=False):
    live.put_back(snapshot.tree(), scheduled=scheduled)


def tensors(value, path=""):
    """Every tensor of a nested value by its path."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, (list, tuple)) else items
    return {k: v for key, item in items for k, v in tensors(item, f"{path}/{key}").items()}


def places(model, base):
    """Where each parameter and each tensor of the state lies in memory."""
    found = tensors([list(model.parameters()), list(base.state.values())])
    return {path: tensor.data_ptr() for path, tensor in found.items()}


@every_case
def test_put_back_is_exact_and_training_goes_on_as_it_did(case):
    model, base = case.build()
    live = Live(base, model)
    train(model, base, range(3), case.takes_closure)
    snapshot = taken(live)
    then = bits(model), optimizer_bits(base)
    train(model, base, range(3, 6), case.takes_closure)
    later = bits(model), optimizer_bits(base)
    assert later[0] != then[0]
    put_back(live, snapshot)
    assert (bits(model), optimizer_bits(base)) == then
    train(model, base, range(3, 6), case.takes_closure)
    assert (bits(model), optimizer_bits(base)) == later, "the copy is not the live tensors"
    put_back(live, snapshot)
    assert (bits(model), optimizer_bits(base)) == then, "and has not been trained along"


@every_case
def test_put_back_keeps_every_tensor_where_it_is(case):
    model, base = case.build()
    live = Live(base, model)
    train(model, base, range(3), case.takes_closure)
    snapshot, before = taken(live), places(model, base)
    with torch.no_grad():
        for tensor in tensors([list(model.parameters()), list(base.state.values())]).values():
            tensor.zero_()
    put_back(live, snapshot)
    assert places(model, base) == before


@every_case
def test_state_that_did_not_exist_is_removed(case):
    model, base = case.build()
    live = Live(base, model)
    snapshot, fresh = taken(live), optimizer_bits(base)
    train(model, base, range(3), case.takes_closure)
    put_back(live, snapshot)
    assert optimizer_bits(base) == fresh
    train(model, base, range(1), case.takes_closure)  # and the optimizer can begin again


def test_entries_that_only_the_state_of_later_steps_has_are_removed():
    model = Layers()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    live = Live(base)
    train(model, base, range(2))
    snapshot = taken(live)
    first = next(iter(base.state.values()))
    first["later"], first["momentum_buffer"] = torch.ones(3), None
    put_back(live, snapshot)
    assert set(next(iter(base.state.values()))) == {"momentum_buffer"}
    assert isinstance(next(iter(base.state.values()))["momentum_buffer"], torch.Tensor)


@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["float", "tensor"])
def test_what_belongs_to_schedules_is_left_alone_unless_asked_for(lr):
    model = Layers()
    base = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), foreach=False)
    live = Live(base)
    base.param_groups[0]["initial_lr"] = 0.01
    train(model, base, range(2))
    snapshot = taken(live)
    group = base.param_groups[0]
    changed = {"betas": (0.5, 0.6), "weight_decay": 0.7, "initial_lr": 0.2, "eps": 1e-3}
    group.update(changed)
    if isinstance(lr, torch.Tensor):
        group["lr"].fill_(0.5)
    else:
        group["lr"] = 0.5
    owner = group["lr"]
    put_back(live, snapshot)
    kept = {key: group[key] for key in changed}
    assert kept == changed | {"eps": 1e-8}
    assert float(group["lr"]) == 0.5
    put_back(live, snapshot, scheduled=True)
    kept = {key: group[key] for key in changed}
    assert kept == {"betas": (0.9, 0.99), "weight_decay": 0.01, "initial_lr": 0.01, "eps": 1e-8}
    assert float(group["lr"]) == pytest.approx(0.01)
    assert isinstance(lr, float) or group["lr"] is owner


@pytest.mark.parametrize("kind", [pytorch_optimizer.AdaBelief, schedulefree.AdamWScheduleFree])
def test_counters_in_the_groups_are_put_back(kind):
    model = Layers()
    base = kind(model.parameters(), lr=0.02)
    getattr(base, "train", lambda: None)()
    live = Live(base)
    train(model, base, range(3))
    counts = [k for k in ("step", "k", "weight_sum", "lr_max") if k in base.param_groups[0]]
    snapshot, then = taken(live), optimizer_bits(base)
    old = {key: base.param_groups[0][key] for key in counts}
    train(model, base, range(3, 7))
    later = bits(model), optimizer_bits(base)
    assert counts and {key: base.param_groups[0][key] for key in counts} != old
    put_back(live, snapshot)
    assert optimizer_bits(base) == then
    train(model, base, range(3, 7))
    assert (bits(model), optimizer_bits(base)) == later


def test_counters_that_the_groups_did_not_have_yet_are_removed():
    model = Layers()
    base = pytorch_optimizer.AdaBelief(model.parameters(), lr=0.02)
    live = Live(base)
    snapshot = taken(live)
    train(model, base, range(3))
    first = bits(model), optimizer_bits(base)
    put_back(live, snapshot)
    train(model, base, range(3))
    assert (bits(model), optimizer_bits(base)) == first


def with_buffers():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_buffers_belong_to_a_snapshot_only_with_the_model():
    model, base = with_buffers()
    live, blind = Live(base, model), Live(base)
    model(torch.randn(8, 3))
    with_model, without, then = taken(live), taken(blind), bits(model)
    model(torch.randn(8, 3))
    later = bits(model)
    assert int(model[1].num_batches_tracked) == 2
    put_back(blind, without)
    assert bits(model) == later
    put_back(live, with_model)
    assert bits(model) == then


def test_buffers_are_mended_only_where_they_are_not_finite():
    model, base = with_buffers()
    live = Live(base, model)
    model(torch.randn(8, 3))
    snapshot, mean = taken(live), model[1].running_mean.clone()
    model(torch.randn(8, 3))
    var, count = model[1].running_var.clone(), int(model[1].num_batches_tracked)
    model[1].running_mean[2] = math.nan
    live.mend_buffers(snapshot.tree())
    assert torch.equal(model[1].running_mean, mean)
    assert torch.equal(model[1].running_var, var)
    assert int(model[1].num_batches_tracked) == count


def odd_tensors():
    """Shapes and types that not every operation takes."""
    generator = torch.Generator().manual_seed(0)
    return {
        "empty": torch.zeros(0, 3),
        "bfloat16": torch.randn(5, generator=generator).bfloat16(),
        "float16": torch.randn(5, generator=generator).half(),
        "float64": torch.randn(5, generator=generator).double(),
        "complex": torch.randn(5, dtype=torch.complex64, generator=generator),
        "scalar": torch.tensor(2.0),
        "transposed": torch.randn(4, 5, generator=generator).t(),
        "with NaN": torch.tensor([math.nan, -0.0, math.inf]),
    }


def test_every_kind_of_tensor_is_kept():
    weights = {name: torch.nn.Parameter(value) for name, value in odd_tensors().items()}
    base = torch.optim.SGD(list(weights.values()), lr=0.1)
    for value in weights.values():
        base.state[value] = {"like": value.detach().clone(), "flags": torch.tensor([True, False])}
    live, then = Live(base), bits(weights)
    snapshot = taken(live)
    state = optimizer_bits(base)
    with torch.no_grad():
        for value in weights.values():
            value.add_(1)
            base.state[value]["like"].mul_(0)
            base.state[value]["flags"].logical_not_()
    assert bits(weights) != then
    put_back(live, snapshot)
    assert bits(weights) == then
    assert optimizer_bits(base) == state


def test_tied_frozen_and_sparsely_trained_parameters_are_kept():
    model = Lookup()
    model.right.weight.requires_grad_(False)
    model.tied = model.left.weight
    base = torch.optim.SGD(model.parameters(), lr=0.5)
    live, then = Live(base, model), bits(model)
    snapshot = taken(live)
    assert snapshot.nbytes == 4 * (7 * 3 + 5 * 3), "a tied parameter is copied once"
    train(model, base, range(3))
    with torch.no_grad():
        model.right.weight.zero_()
    assert bits(model) != then
    put_back(live, snapshot)
    assert bits(model) == then
    assert model.tied is model.left.weight


def test_a_second_copy_goes_into_the_memory_of_the_first():
    model = Layers()
    base = torch.optim.AdamW(model.parameters())
    live = Live(base)
    train(model, base, range(2))
    snapshot = Snapshot()
    assert not snapshot.take(live, 2, 1.0, {}), "the memory had to be made"
    old = {path: t.data_ptr() for path, t in tensors(snapshot.tree()).items()}
    train(model, base, range(2, 4))
    assert snapshot.take(live, 4, 0.5, {"a": 1})
    assert {path: t.data_ptr() for path, t in tensors(snapshot.tree()).items()} == old
    assert (snapshot.step, snapshot.level, snapshot.notes) == (4, 0.5, {"a": 1})
    then = bits(model)
    train(model, base, range(4, 6))
    put_back(live, snapshot)
    assert bits(model) == then


def test_a_snapshot_knows_its_size_its_norms_and_whether_it_is_finite():
    model = Layers()
    base = torch.optim.AdamW(model.parameters())
    train(model, base, range(2))
    live = Live(base)
    snapshot = taken(live, step=7)
    params, states = list(model.parameters()), list(base.state.values())
    assert snapshot.norms.tolist() == pytest.approx([float(p.detach().norm()) for p in params])
    assert snapshot.nbytes == nbytes_of(live) == 4 * (3 * 28 + 2)  # and two counts of steps
    assert not snapshot.is_on_gpu and snapshot.is_finite
    states[-1]["exp_avg"][0, 0] = math.nan
    assert not taken(live).is_finite
    params[0].detach()[0, 0] = math.nan
    assert np.isfinite(snapshot.norms).all() and snapshot.is_finite, "it says it of the copy"
    assert math.isnan(taken(live).norms[0]) and np.isfinite(taken(live).norms[1:]).all()


def test_norms_are_those_of_the_last_copy():
    model = Layers()
    live = Live(torch.optim.SGD(model.parameters(), lr=0.1))
    snapshot = taken(live)
    before = snapshot.norms.tolist()
    with torch.no_grad():
        torch._foreach_mul_(list(model.parameters()), 2.0)
    snapshot.take(live, 1, 1.0, {})
    assert snapshot.norms.tolist() == [2.0 * norm for norm in before]


def test_plain_notes_and_objects_in_the_state_are_copied_not_shared():
    model = Layers()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    base.state["global"] = {"seen": [1, 2], "pair": (torch.ones(2), "a")}
    live = Live(base)
    snapshot = taken(live)
    then = copy.deepcopy(dict(base.state["global"]))
    base.state["global"]["seen"].append(3)
    base.state["global"]["pair"][0].zero_()
    put_back(live, snapshot)
    assert bits(dict(base.state["global"])) == bits(then)
    base.state["global"]["seen"].append(3)
    put_back(live, snapshot)
    assert base.state["global"]["seen"] == [1, 2]
