"""A step decided on the device: the same as on the host, without ever waiting for it.

On a machine without a GPU the kernels are interpreted on CPU tensors.
"""

import copy
import logging
import math
import pickle

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from resilient_optim import ARS
from tests.helpers import CALM, bits, optimizer_bits
from tests.interpreter import DEVICE, ON_GPU

BASES = {
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr=lr, fused=True),
    "sgd": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9, fused=True),
}
every_base = pytest.mark.parametrize("base", BASES)
JITTER = {"jitter_scale": 0.2, "rho_threshold": 0.55, "window_size": 32, "start_up": 0}


pytestmark = pytest.mark.usefixtures("kernels_run_here")


class Training:
    """A small model and an ARS that decides where it is told to."""

    def __init__(self, base, backend, lr=3e-2, **settings):
        torch.manual_seed(0)
        layers = torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
        self.model = torch.nn.Sequential(*layers).to(DEVICE)
        lr = torch.tensor(lr, device=DEVICE)  # float32, as the device path makes of any other
        made = BASES[base](self.model.parameters(), lr)
        self.optimizer = made if backend is None else ARS(made, backend=backend, **settings)
        self.taken = 0

    def step(self, factor=1.0):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(self.taken)).to(DEVICE)
        self.taken += 1
        loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean() * factor
        self.optimizer.zero_grad()
        loss.backward()
        if isinstance(self.optimizer, ARS):
            self.optimizer.step(loss)
        else:
            self.optimizer.step()

    def steps(self, factors):
        decisions = []
        for factor in factors:
            self.step(factor)
            _wait()
            decisions.append(self.optimizer.last)
        return decisions


def _wait():
    if ON_GPU:
        torch.cuda.synchronize()


FACTORS = [math.nan, 1, 1, 1, 1, 60, 1, math.inf, 1, 1, 1, 1, 20, 1, 1]


@every_base
def test_the_device_decides_as_the_host_does(base):
    """With a first step, a middle one and an infinite one that are left out, and with outliers."""
    host, device = Training(base, "torch"), Training(base, "triton")
    expected, got = host.steps(FACTORS), device.steps(FACTORS)
    assert [d.reason for d in got] == [d.reason for d in expected]
    assert [d.action for d in got] == [d.action for d in expected]
    for a, b in zip(device.model.parameters(), host.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # norms are summed differently
    assert device.optimizer.counters == host.optimizer.counters
    assert device.optimizer.metrics() == pytest.approx(host.optimizer.metrics(), rel=1e-5)
    assert len(device.optimizer.loss_buffer.losses) == len(host.optimizer.loss_buffer.losses)


@every_base
def test_quiet_steps_are_the_bare_optimizers_to_the_bit(base):
    bare, wrapped = Training(base, None), Training(base, "triton", **CALM)
    bare.steps = [bare.step() for _ in range(6)]
    wrapped.steps([1.0] * 6)
    assert wrapped.optimizer.counters["touched"] == 0
    assert bits(wrapped.model) == bits(bare.model)
    assert optimizer_bits(wrapped.optimizer) == optimizer_bits(bare.optimizer)


@every_base
def test_a_skipped_step_changes_nothing(base):
    training = Training(base, "triton")
    training.steps([1.0, 1.0])
    before = bits(training.model), optimizer_bits(training.optimizer)
    (decision,) = training.steps([math.nan])
    assert (decision.action, decision.reason) == ("skip", "non-finite loss")
    assert (bits(training.model), optimizer_bits(training.optimizer)) == before


class NoWaiting(TorchDispatchMode):
    """Fails on everything that would make the host wait for a GPU.

    Without a GPU a copy to the host is none, and is not dispatched: it is known by its name.
    """

    FORBIDDEN = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select")

    def __enter__(self):
        self._names = NoCopies()
        self._names.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._names.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


class NoCopies(TorchFunctionMode):
    """Fails on `tensor.cpu()`, as a tensor is fetched from the device everywhere here."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function is not torch.Tensor.cpu, "cpu() waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{}, JITTER, {"norm_guard": False}], ids=str)
@every_base
def test_a_step_never_asks_for_a_value(base, settings):
    training = Training(base, "triton", **settings)
    training.step()  # the first state is kept
    with NoWaiting():  # who hears of a step left out waits, to look at the weights
        for factor in (1.0, 30.0, math.nan):
            training.step(factor)
    _wait()
    assert training.optimizer.counters["nonfinite"] == 1


def test_no_waiting_notices():
    for wait in (torch.Tensor.item, torch.Tensor.cpu):
        with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
            wait(torch.ones(1))


def test_noise_is_added_in_an_oscillation():
    host, device = Training("sgd", "torch", **JITTER), Training("sgd", "triton", **JITTER)
    for _ in range(48):
        host.step()
    saved = copy.deepcopy(host.optimizer.state_dict())
    ars = saved["param_groups"][0]["ars"]
    ars[4 + 12 + 9 + 1 :][:32] = 2.0 + torch.arange(32) % 2  # the losses remembered
    device.optimizer.load_state_dict(saved)
    quiet = copy.deepcopy(device)
    device.steps([1.0] * 8)
    assert device.optimizer.last.chi > 0.0
    assert device.optimizer.counters["jittered"] > 0
    again = quiet.steps([1.0] * 8)
    assert again[-1].chi == device.optimizer.last.chi
    assert bits(quiet.model) == bits(device.model)  # a function of seed and step alone


def test_state_moves_between_host_and_device():
    device = Training("adamw", "triton")
    device.steps([1.0] * 4 + [math.nan])
    host = Training("adamw", "torch")
    host.optimizer.load_state_dict(copy.deepcopy(device.optimizer.state_dict()))
    assert host.optimizer.counters == device.optimizer.counters
    assert host.optimizer.loss_buffer.losses.values.tolist() == (
        device.optimizer.loss_buffer.losses.values.tolist()
    )
    back = Training("adamw", "triton")
    back.optimizer.load_state_dict(copy.deepcopy(host.optimizer.state_dict()))
    key = "ars"
    assert bits(back.optimizer.state_dict()["param_groups"][0][key]) == bits(
        device.optimizer.state_dict()["param_groups"][0][key]
    )


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_by_themselves(twin):
    training = Training("adamw", "triton")
    training.steps([1.0, 1.0])
    copied = twin(training.optimizer)
    training.steps([1.0])
    assert copied.counters["observed"] == 2
    assert training.optimizer.counters["observed"] == 3


def test_learning_rates_are_put_back_and_followed():
    training = Training("adamw", "triton")
    group = training.optimizer.param_groups[0]
    group["lr"] = 0.01
    training.steps([1.0])
    assert group["lr"] == 0.01
    assert (
        training.optimizer.base.found_inf is None
        if hasattr(training.optimizer.base, "found_inf")
        else True
    )
    group["lr"] = 0.02
    training.steps([1.0])
    lrs = training.optimizer._known()
    assert lrs.proven_lrs == pytest.approx([0.02 * training.optimizer.last.phi])


def test_param_groups_may_be_added():
    training = Training("sgd", "triton")
    training.steps([1.0, 1.0])
    extra = torch.nn.Parameter(torch.zeros(3, device=DEVICE))
    training.optimizer.add_param_group({"params": [extra], "lr": 0.5})
    training.steps([1.0])
    memory = training.optimizer._known()
    assert memory.counters["observed"] == 3
    assert memory.first_lrs == pytest.approx([0.03, 0.5])


def test_many_skips_are_heard_of(caplog):
    training = Training("sgd", "triton")
    with caplog.at_level(logging.WARNING, logger="resilient_optim"):
        training.steps([math.nan] * 12)
    assert "skipped 10 steps in a row" in caplog.text


def test_steps_without_gradients_and_without_loss():
    training = Training("sgd", "triton")
    training.steps([1.0])
    training.optimizer.zero_grad()
    training.optimizer.step(1.0)
    training.optimizer.step()
    _wait()
    assert training.optimizer.counters["observed"] == 2
    assert training.optimizer.counters["unobserved"] == 1


def test_losses_of_any_form():
    training = Training("sgd", "triton")
    for loss in (1.0, torch.tensor(1.0), torch.tensor([1.0], device=DEVICE), torch.tensor(1)):
        training.optimizer.step(loss)
        _wait()
        assert training.optimizer.last.loss == 1.0
    training.optimizer.report(torch.tensor(2.0, device=DEVICE))
    training.optimizer.step()
    _wait()
    assert training.optimizer.last.loss == 2.0


def test_kernels_see_one_kind_of_memory(monkeypatch):
    """Of another type or place they would be compiled anew, in mid-run."""
    from resilient_optim.kernels import guard

    seen, judge = [], guard.judge_

    def noting(arrays, *tensors, **settings):
        given = [t for t in tensors if isinstance(t, torch.Tensor)]
        seen.append(([t.dtype for t in given], given[0].data_ptr()))
        judge(arrays, *tensors, **settings)

    monkeypatch.setattr(guard, "judge_", noting)
    training = Training("sgd", "triton")
    training.step()
    training.optimizer.zero_grad()
    losses = torch.ones(3, device=DEVICE)
    for loss in (1.0, losses[1], losses[2:].bfloat16(), losses[0].double()):
        training.optimizer.step(loss)
    assert seen == seen[:1] * 5
