"""Turns of a run that is decided on the device: first steps of SGD, CUDA graphs, what is loaded.

On a machine without a GPU the kernels are interpreted on CPU tensors.
"""

import copy
import math

import pytest
import torch

pytest.importorskip("triton")

from resilient_optim import ARS, Snapshots
from resilient_optim.device_guard import DeviceGuard
from tests.helpers import CALM, bits
from tests.interpreter import DEVICE, ON_GPU
from tests.replica import arrive_late
from tests.test_device_guard import NoWaiting, Training, _wait

pytestmark = pytest.mark.usefixtures("kernels_run_here")


# -- SGD that has not stepped ---------------------------------------------------------------------


def late_group(monkeypatch, **settings):
    """A run of SGD with a param group whose own first step is left out, and then one taken."""
    empty_like = torch.empty_like  # a GPU's memory holds anything
    monkeypatch.setattr(torch, "empty_like", lambda t, **k: empty_like(t, **k).fill_(math.nan))
    training = Training("sgd", "triton", start_up=0)
    training.steps([1.0])
    late = torch.nn.Parameter(torch.ones(3, device=DEVICE))
    training.optimizer.add_param_group({"params": [late], "lr": 0.1, **settings})
    for factor in (math.nan, 1.0):
        late.grad = torch.full((3,), 2.0 * factor, device=DEVICE)
        x = torch.ones(16, 6, device=DEVICE)
        training.model(x).mean().backward()
        training.optimizer.step(factor)
        _wait()
    return late, training.optimizer.base.state[late]["momentum_buffer"]


@pytest.mark.parametrize("settings", [{}, {"dampening": 0.5}], ids=str)
def test_a_first_step_left_out_leaves_no_momentum(monkeypatch, settings):
    late, momentum = late_group(monkeypatch, **settings)
    assert momentum.tolist() == [2.0] * 3
    torch.testing.assert_close(late, torch.full_like(late, 0.8))


@pytest.mark.parametrize("settings", [{}, {"nesterov": True}, {"maximize": True}], ids=str)
def test_a_first_momentum_is_torchs_to_the_bit(settings):
    """Zeros have signs, and 0 + -0 is 0."""
    values = [0.0, -0.0, 1.5, -1e-40, 3e38]
    states = []
    for backend in (None, "triton"):
        p = torch.nn.Parameter(torch.tensor([-0.0, -0.0, 0.0, 1.0, 2.0], device=DEVICE))
        lr = torch.tensor(0.5, device=DEVICE)
        base = torch.optim.SGD([p], lr=lr, momentum=0.9, fused=True, **settings)
        optimizer = base if backend is None else ARS(base, backend=backend, norm_guard=False)
        p.grad = torch.tensor(values, device=DEVICE)
        if backend is None:
            optimizer.step()
        else:
            optimizer._device.load(optimizer._new_memory(young=False))
            optimizer.step(1.0)
        states.append((bits(p), bits(base.state[p]["momentum_buffer"])))
    assert states[0] == states[1]


# -- CUDA graphs, as far as they show without a GPU -----------------------------------------------


@pytest.fixture
def capturing(monkeypatch):
    """Steps believe that they are being captured; all the same they happen."""
    return lambda: monkeypatch.setattr(DeviceGuard, "is_being_captured", lambda self: True)


def test_a_capture_needs_gradients_that_stay(capturing):
    training = Training("adamw", "triton")
    training.step()
    capturing()
    training.optimizer.step(1.0)  # with those of before
    for p in training.model.parameters():
        p.grad = p.grad.clone()
    with pytest.raises(RuntimeError, match="set_to_none=False"):
        training.optimizer.step(1.0)


def test_what_was_captured_is_kept(monkeypatch):
    """Replays read the table, whatever gradients other steps have meanwhile."""
    training = Training("adamw", "triton")
    training.step()
    table = training.optimizer._device._table
    with monkeypatch.context() as patch:
        patch.setattr(DeviceGuard, "is_being_captured", lambda self: True)
        training.optimizer.step(1.0)
    for p in training.model.parameters():
        p.grad = p.grad.clone()
    training.optimizer.step(1.0)
    assert training.optimizer._device._table is not table
    assert [kept[0] for kept in training.optimizer._device._captured] == [table]


def test_a_captured_learning_rate_is_not_in_force_yet(capturing):
    training = Training("adamw", "triton")
    training.optimizer.param_groups[0]["lr"] = 0.01
    training.step()
    training.optimizer.param_groups[0]["lr"] = 0.02
    capturing()
    training.optimizer.step(1.0)
    assert training.optimizer._device._lrs == [None]


def test_a_capture_needs_a_momentum(capturing):
    training = Training("sgd", "triton")
    capturing()
    for p in training.model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(RuntimeError, match="take a step before the capture"):
        training.optimizer.step(1.0)


def test_a_capture_waits_for_nothing_that_is_pending(capturing):
    """Neither for word of a step left out nor for a snapshot; and it takes no part in a trial."""
    training = Training("adamw", "triton")
    training.steps([1.0, math.nan])
    capturing()
    seen = training.optimizer._seen
    with NoWaiting():
        training.optimizer.step(1.0)
    assert training.optimizer._seen == seen
    training.optimizer._breaker.way_back.probe = object()
    with pytest.raises(RuntimeError, match="while ARS tries a good state"):
        training.optimizer.step(1.0)


# -- what is loaded or added may not be fused -----------------------------------------------------


def unfused(run):
    saved = copy.deepcopy(run.optimizer.state_dict())
    for group in saved["param_groups"]:
        group["fused"] = None
    return saved


def test_an_unfused_checkpoint_is_refused_on_the_device():
    training = Training("adamw", "triton")
    training.steps([1.0, 1.0])
    with pytest.raises(RuntimeError, match=r"param_groups\[0\] has fused=None"):
        training.optimizer.load_state_dict(unfused(training))
    training.step()  # who goes on all the same goes on on the host
    assert training.optimizer.counters["observed"] == 3


def test_an_unfused_checkpoint_moves_an_automatic_run_to_the_host():
    training = Training("adamw", "triton")
    training.optimizer._backend = "auto"  # which chooses the device only where there is a GPU
    training.steps([1.0, 1.0])
    training.optimizer.load_state_dict(unfused(training))
    training.step()
    assert training.optimizer._device is None
    assert training.optimizer.counters["observed"] == 3
    assert training.optimizer._breaker.run.live.extra == []


def test_an_unfused_group_is_refused_on_the_device():
    training = Training("adamw", "triton")
    training.step()
    extra = torch.nn.Parameter(torch.zeros(2, device=DEVICE))
    with pytest.raises(RuntimeError, match=r"param_groups\[1\] has fused=False"):
        training.optimizer.add_param_group({"params": [extra], "fused": False})
    training.step()
    assert training.optimizer.counters["observed"] == 2


# -- learning rates and snapshots ------------------------------------------------------------------


def test_a_number_is_followed_after_a_tensor():
    training = Training("sgd", "triton")
    group = training.optimizer.param_groups[0]
    for lr in (0.01, torch.tensor(0.02, device=DEVICE), 0.01):
        group["lr"] = lr
        training.step()
        assert training.optimizer._device.guard.lrs.tolist() == pytest.approx([float(lr)])


def test_a_schedulers_learning_rate_is_taken_over_once():
    training = Training("sgd", "triton")
    group = training.optimizer.param_groups[0]
    group["initial_lr"] = 0.5
    training.step()
    assert training.optimizer._known().proven_lrs == [0.5]
    group["initial_lr"] = 7.0
    training.optimizer._device.guard.proven_lrs.fill_(math.nan)
    training.step()
    assert training.optimizer._known().proven_lrs < [0.5]


@pytest.mark.skipif(ON_GPU, reason="there it comes when it comes")
def test_a_state_proves_good_by_the_steps_after_it(monkeypatch):
    """However far the host is ahead: a word that is read twice is no second healthy step."""
    run = Training("adamw", "triton", snapshot=Snapshots(every=8), **CALM)
    run.steps([1.0] * 2)
    arrive_late(monkeypatch, 12)
    run.steps([1.0] * 13)
    ring = run.optimizer._breaker.ring
    ring._next = 0  # due at the next word, that of step 2, while a dozen are on their way
    run.step()
    assert ring._candidate.step == 16
    calls = 0
    while ring.good.step == 0:
        run.step()
        calls += 1
    assert calls == 16 + 7 - 2  # until the word of the eighth step after the copy
