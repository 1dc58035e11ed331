"""The circuit breaker of a run that is decided on a GPU: word of a step arrives after it.

On a machine without a GPU the kernels are interpreted on CPU tensors, a tenth of a second a step:
what comes before the trouble is trained on the host.
"""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from resilient_optim import Budgets, Snapshots, TrainingDiverged
from resilient_optim.device_guard import packed
from resilient_optim.memory import Memory
from tests.helpers import CALM, bits, optimizer_bits
from tests.interpreter import ON_GPU, interpreted
from tests.replica import arrive_late
from tests.test_device_guard import NoWaiting, Training

EVERY_8 = {"snapshot": Snapshots(every=8)}


pytestmark = pytest.mark.usefixtures("kernels_run_here")


def under_way(backend, steps=40, **settings):
    """A run that the host has taken so far, and that goes on with a backend."""
    before = Training("adamw", "torch", **settings)
    before.steps([1.0] * steps)
    run = Training("adamw", backend, **settings)
    run.model.load_state_dict(before.model.state_dict())
    run.optimizer.load_state_dict(copy.deepcopy(before.optimizer.state_dict()))
    run.taken = before.taken
    return run


def spoil(run):
    with torch.no_grad():
        run.model[0].weight[0, 0] = math.nan


def numbers(memory):
    """What is remembered, without what the circuit breaker keeps by itself."""
    return [array[: -2 - len(memory.breaker)] for array in memory.pack(1)]


def packed_memory(tensors):
    return Memory.unpack(packed([tensor.clone() for tensor in tensors]), 64)


def agree(device, host):
    """The host knows what is in the memory of the device."""
    np.testing.assert_array_equal(numbers(device), numbers(host))
    assert (device.first_lrs, device.proven_lrs) == (host.first_lrs, host.proven_lrs)


@pytest.fixture(scope="module")
def long():
    """Eighteen quiet steps in which nobody may wait, a fault, and what came of it."""
    seen = {}
    with pytest.MonkeyPatch.context() as patch, interpreted():
        patch.setenv("TRITON_INTERPRET", "1")
        settings = {**EVERY_8, **CALM}
        run = Training("adamw", "triton", **settings)
        ring = run.optimizer._breaker.ring
        run.step()  # the first state is kept
        seen["steps"] = [ring.good.step]
        with NoWaiting():
            for _ in range(17):
                run.step()
        run.optimizer._known()  # waits for the GPU
        seen["steps"].append(ring.good.step)
        seen["touched"] = run.optimizer.counters["touched"]
        seen["state"] = bits(run.model), optimizer_bits(run.optimizer)
        seen["good"] = bits(ring.good.tree()["params"])
        seen["known at good"] = packed_memory(ring.good.tree()["extra"])
        spoil(run)
        seen["decisions"] = run.steps([1.0, 1.0])
        seen["back"] = bits(list(run.model.parameters()))
        seen["known"] = run.optimizer._known()
        seen["remembered"] = copy.deepcopy(run.optimizer._memory)
        seen["metrics"] = [run.optimizer.metrics()]
        seen["decisions"] += run.steps([1.0])
        seen["metrics"].append(run.optimizer.metrics())
        seen["counters"] = run.optimizer.counters, run.optimizer._known().counters
    return seen


def test_no_step_waits_while_snapshots_are_taken(long):
    """Nor while they prove good; and they change nothing."""
    first, later = long["steps"]
    assert first == 0
    assert later == 9 or (ON_GPU and later < 18)  # there it depends on when words arrive
    assert long["touched"] == 0
    bare = Training("adamw", None)
    for _ in range(18):
        bare.step()
    assert long["state"] == (bits(bare.model), optimizer_bits(bare.optimizer))


def test_bad_weights_are_rolled_back(long):
    found, back, after = long["decisions"]
    assert (found.action, found.reason) == ("skip", "non-finite loss")
    assert (back.action, back.reason) == ("rollback", "corrupted weights")
    assert long["back"] == long["good"]
    assert after.action == "apply" and math.isfinite(after.loss)


def test_host_and_device_remember_the_same_after_a_rollback(long):
    """The losses of the good state, the counts of today."""
    agree(long["known"], long["remembered"])
    then = long["known at good"].buffer.losses.values.tolist()
    assert long["known"].buffer.losses.values.tolist() == then and len(then) in (8, 9)
    before, after = long["metrics"]
    assert (before["ars/rollbacks"], before["ars/observed"]) == (1.0, 20.0)
    assert (after["ars/rollbacks"], after["ars/observed"]) == (1.0, 21.0)
    assert long["counters"][0] == long["counters"][1]


def test_a_rollback_names_the_step_of_its_state(long):
    back = long["decisions"][1]
    assert back.rolled_back_to == len(long["known at good"].buffer.losses)


def test_checkpoints_are_written_by_a_host_that_decides(tmp_path):
    kept = Snapshots(every=8, directory=str(tmp_path))
    with pytest.raises(ValueError, match="directory must be None with backend 'triton'"):
        Training("adamw", "triton", snapshot=kept)


def test_the_first_state_is_kept_before_anything_is_known():
    run = Training("adamw", "triton", **EVERY_8)
    before = bits(run.model)
    run.steps([1.0])
    spoil(run)
    decisions = run.steps([1.0, 1.0])
    assert decisions[-1].rolled_back_to == 0
    assert bits(run.model) == before


@pytest.mark.skipif(ON_GPU, reason="there it comes when it comes")
def test_a_rollback_does_not_wait_for_its_word_to_come_soon(monkeypatch):
    """Word of each step comes two steps late."""
    run = under_way("triton", **EVERY_8)
    arrive_late(monkeypatch, 2)
    run.steps([1.0])
    spoil(run)
    decisions = run.steps([1.0] * 6)
    assert "rollback" in [d.action for d in decisions if d is not None]
    assert all(bool(p.isfinite().all()) for p in run.model.parameters())
    assert run.optimizer.counters["rollbacks"] == 1


def test_bad_data_end_the_run():
    run = under_way("triton", **EVERY_8)
    before = bits(run.model)
    with pytest.raises(TrainingDiverged, match="though the weights are") as caught:
        run.steps([math.nan] * 21)
    assert caught.value.cause == "bad data"
    assert 57 <= caught.value.step <= 59
    assert bits(run.model) == before  # trials put back what they take away


def test_budgets_are_those_of_the_user():
    run = under_way("triton", **EVERY_8, budgets=Budgets(skips_in_a_row=3))
    with pytest.raises(TrainingDiverged):
        run.steps([math.nan] * 4)


def test_each_rollback_costs():
    run = under_way("triton", **EVERY_8, budgets=Budgets(rollbacks=1))
    with pytest.raises(TrainingDiverged) as caught:
        for _ in range(3):
            run.steps([1.0])
            spoil(run)
            run.steps([1.0, 1.0])
    assert caught.value.cause == "corrupted weights"
    assert run.optimizer._breaker.run.state.rollbacks == 1


LEVEL = {**EVERY_8, "patience": 2}


def new_level(backend, steps):
    run = under_way(backend, **LEVEL)
    return run, run.steps([30.0] * steps)


def test_a_new_level_is_tried_once():
    run, decisions = new_level("triton", 12)
    reasons = [d.reason for d in decisions]
    assert reasons.count("probe") == 3
    assert decisions[-1].action != "skip"


def test_a_new_level_brings_a_trial():
    """Of the last good state; after three batches the run is where it was, bit for bit."""
    run, seen, weights = under_way("triton", **LEVEL), [], []
    for _ in range(10):
        seen += run.steps([30.0])
        weights.append(bits(run.model))
        if seen[-1].reason == "new level" and seen[-1].action == "skip":
            break
    reasons = [d.reason for d in seen]
    first = reasons.index("probe")
    assert reasons[first:] == ["probe"] * 3 + ["new level"]
    assert weights[first] != weights[first - 1] and weights[-1] == weights[first - 1]
    agree(run.optimizer._known(), run.optimizer._memory)


def test_a_new_level_is_counted_once():
    run, decisions = new_level("triton", 8)
    assert run.optimizer.counters["new_levels"] == 1


def test_skips_and_rollbacks_are_forgiven():
    """As on the host; else the hundredth skip of a long run would end it."""
    states = []
    for backend in ("torch", "triton"):
        run = under_way(backend, **EVERY_8)
        state = run.optimizer._breaker.run.state
        run.optimizer._breaker.run.state = state._replace(skip_share=0.5, recent_rollbacks=2.0)
        run.steps([1.0] * 6)
        states.append(run.optimizer._breaker.run.state)
    host, device = states
    assert device.recent_rollbacks == pytest.approx(host.recent_rollbacks, abs=0.011)
    assert device.skip_share == pytest.approx(host.skip_share, abs=0.006)


class Twin(Training):
    """A run that goes on with a copy of the optimizer, and the parameters in it."""

    def __init__(self, run, optimizer):
        self.model, self.optimizer, self.taken = copy.deepcopy(run.model), optimizer, run.taken
        params = optimizer.param_groups[0]["params"]
        for (name, _), p in zip(list(self.model.named_parameters()), params, strict=True):
            index, kind = name.split(".")
            self.model[int(index)]._parameters[kind] = p


TWINS = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
def test_a_copy_has_snapshots_of_its_own(twin):
    run = under_way("triton", **EVERY_8)
    run.steps([1.0])
    copied = Twin(run, twin(run.optimizer))
    live = copied.optimizer._breaker.run.live
    assert live.extra is not run.optimizer._breaker.run.live.extra
    assert all(a is b for a, b in zip(live.extra, copied.optimizer._device.tensors, strict=True))
    before = bits(run.model)
    copied.steps([1.0])
    spoil(copied)
    assert copied.steps([1.0, 1.0])[-1].action == "rollback"
    agree(copied.optimizer._known(), copied.optimizer._memory)
    assert bits(run.model) == before
    assert run.optimizer.counters["rollbacks"] == 0


def test_groups_added_and_states_loaded_begin_anew():
    run = under_way("triton", **EVERY_8)
    run.steps([1.0])
    saved = copy.deepcopy(run.optimizer.state_dict())
    extra = torch.nn.Parameter(torch.zeros(2, device=run.model[0].weight.device))
    run.optimizer.add_param_group({"params": [extra], "lr": 0.1})
    assert run.optimizer._breaker.ring.good is None
    live = run.optimizer._breaker.run.live
    assert all(a is b for a, b in zip(live.extra, run.optimizer._device.tensors, strict=True))
    run.steps([1.0])
    spoil(run)
    assert run.steps([1.0, 1.0])[-1].action == "rollback"
    other = Training("adamw", "triton", **EVERY_8)
    other.steps([1.0])
    other.optimizer.load_state_dict(saved)
    assert other.optimizer._breaker.ring.good is None
    assert other.optimizer.counters["observed"] == 41
