"""What only a GPU can show: no step waits for it, and a step can be captured in a CUDA graph.

Everything else about the device path is tested on every machine, see test_device_guard.py.
"""

import contextlib
import math
import warnings

import pytest
import torch

from resilient_optim import ARS
from tests.helpers import bits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SETTINGS = {"default": {}, "jitter": {"jitter_scale": 0.1, "rho_threshold": 0.55, "start_up": 0}}


@contextlib.contextmanager
def no_waiting():
    """Within it, whatever makes the host wait for the GPU raises."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the mode does not see everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def training(**settings):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 1))
    model.cuda()
    lr = torch.tensor(1e-2, device="cuda")
    base = torch.optim.AdamW(model.parameters(), lr=lr, fused=True, capturable=True)
    return model, ARS(base, backend="triton", **settings), torch.randn(256, 64, device="cuda")


def step(model, optimizer, x, factor):
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean() * factor
    loss.backward()
    optimizer.step(loss)
    optimizer.zero_grad(set_to_none=False)


@pytest.mark.parametrize("name", SETTINGS)
def test_no_step_waits(name):
    """Nor does one that is left out; the next to hear of it looks at the weights, and waits."""
    model, optimizer, x = training(**SETTINGS[name])
    factors = torch.ones(60, device="cuda")
    factors[-1] = math.nan
    step(model, optimizer, x, factors[0])  # compiles the kernels
    with no_waiting():
        for factor in factors[1:]:
            step(model, optimizer, x, factor)
    torch.cuda.synchronize()
    assert optimizer.counters["observed"] == 60
    assert optimizer.counters["nonfinite"] == 1


@pytest.mark.parametrize("name", SETTINGS)
def test_a_graph_replays_what_steps_do(name):
    factors = [1.0] * 20 + [math.nan, 50.0] + [1.0] * 20
    runs = []
    for captured in (False, True):
        model, optimizer, x = training(**SETTINGS[name])
        factor = torch.ones((), device="cuda")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # as torch asks before a capture
            for _ in range(3):
                step(model, optimizer, x, factor)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                step(model, optimizer, x, factor)
        for value in factors:
            factor.fill_(value)
            graph.replay() if captured else step(model, optimizer, x, factor)
        torch.cuda.synchronize()
        runs.append((bits(model.cpu()), dict(optimizer.counters), optimizer.last.reason))
    assert runs[0] == runs[1]
    assert runs[0][1]["nonfinite"] == 1


def test_auto_decides_on_the_gpu_where_it_can(caplog):
    weights = [torch.nn.Parameter(torch.ones(3, device="cuda"))]
    assert ARS(torch.optim.AdamW(weights, fused=True))._device is not None
    assert ARS(torch.optim.AdamW(weights, foreach=True))._device is None
    assert ARS(torch.optim.AdamW(weights, fused=True), preset="paper")._device is None
    assert ARS(torch.optim.AdamW(weights, fused=True), backend="torch")._device is None
