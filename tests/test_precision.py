"""Low precision and loss scaling: half-precision parameters, master weights, autocast, scalers."""

import copy
import math

import pytest
import torch
from torch import nn

from resilient_optim import ARS
from tests.helpers import CALM, bits, optimizer_bits, scripted

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
every_half = pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES.keys())

BASES = {
    "AdamW-foreach": lambda params: torch.optim.AdamW(params, lr=0.01, eps=1e-4, foreach=True),
    "AdamW-fused": lambda params: torch.optim.AdamW(params, lr=0.01, eps=1e-4, fused=True),
    "AdamW-loop": lambda params: torch.optim.AdamW(params, lr=0.01, eps=1e-4, foreach=False),
    "AdamW-capturable": lambda params: torch.optim.AdamW(  # elsewhere than on a GPU: fused only
        params, lr=torch.tensor(0.01), eps=1e-4, fused=True, capturable=True
    ),
    "SGD-foreach": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, foreach=True),
    "SGD-fused": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, fused=True),
}
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())
NAN_LOSS, INF_GRADIENT, OUTLIER, STEPS = 3, 6, 26, 29


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batch(index, dtype=torch.float32):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(index)).to(dtype)
    return x, (x[:, :3] * x[:, 3:]).detach()


def squared_error(model, index, dtype=torch.float32):
    x, y = batch(index, dtype)
    return (model(x) - y).square().mean()


class Plain:
    """Parameters of one dtype, stepped as they are."""

    def __init__(self, base, wrap, dtype):
        self.model, self.dtype = network(dtype), dtype
        self.optimizer = wrap(base(self.model.parameters()))

    def backward(self, index):
        self.optimizer.zero_grad()
        loss = squared_error(self.model, index, self.dtype)
        loss.backward()
        return loss

    def gradients(self):
        return [p.grad for p in self.model.parameters()]

    def step(self, loss):
        step(self.optimizer, loss)


class Masters(Plain):
    """A low-precision model and float32 masters of its weights, which the optimizer steps."""

    def __init__(self, base, wrap, dtype):
        self.model, self.dtype = network(dtype), dtype
        self.masters = [nn.Parameter(p.detach().float()) for p in self.model.parameters()]
        self.optimizer = wrap(base(self.masters))

    def backward(self, index):
        self.model.zero_grad()
        loss = squared_error(self.model, index, self.dtype)
        loss.backward()
        for master, p in zip(self.masters, self.model.parameters(), strict=True):
            master.grad = p.grad.float()
        return loss

    def gradients(self):
        return [master.grad for master in self.masters]

    def step(self, loss):
        step(self.optimizer, loss)
        with torch.no_grad():
            for master, p in zip(self.masters, self.model.parameters(), strict=True):
                p.copy_(master)


class Autocast(Plain):
    """float32 parameters, a forward pass in low precision."""

    def __init__(self, base, wrap, dtype):
        super().__init__(base, wrap, torch.float32)
        self.low = dtype

    def backward(self, index):
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=self.low):
            loss = squared_error(self.model, index)
        loss.backward()
        return loss


WAYS = {"parameters": Plain, "masters": Masters, "autocast": Autocast}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


def step(optimizer, loss):
    optimizer.step(loss) if isinstance(optimizer, ARS) else optimizer.step()


def everything(run):
    return bits(run.model), optimizer_bits(run.optimizer)


def calm(base):
    return ARS(base, **CALM)


def skip_what_torch_breaks(way, base):
    if way is Plain and base is BASES["SGD-fused"]:
        pytest.skip("fused SGD writes garbage into a half-precision momentum (torch 2.13)")


# -- half precision -----------------------------------------------------------------------------


@every_base
@every_half
@every_way
def test_quiet_run_is_the_bare_run(way, dtype, base):
    skip_what_torch_breaks(way, base)
    bare, quiet = way(base, lambda o: o, dtype), way(base, calm, dtype)
    before = everything(quiet)
    for index in range(20):
        for run in (bare, quiet):
            run.step(run.backward(index))
    assert everything(quiet) == everything(bare) != before
    assert quiet.optimizer.counters["touched"] == 0
    assert quiet.optimizer.counters["observed"] == 20


@every_base
@every_half
@every_way
def test_faults_are_skipped_and_an_outlier_is_bounded(way, dtype, base):
    skip_what_torch_breaks(way, base)
    run = way(base, lambda o: ARS(o, start_up=0), dtype)
    for index in range(STEPS):
        loss = run.backward(index)
        before = everything(run)
        if index == INF_GRADIENT:
            run.gradients()[0][0, 0] = math.inf
        if index == OUTLIER:
            for grad in run.gradients():
                grad.mul_(64.0)
            large = run.gradients()[0].abs().max().item()
        run.step(loss * math.nan if index == NAN_LOSS else loss)
        assert (everything(run) == before) == (index in (NAN_LOSS, INF_GRADIENT))
        if index == OUTLIER:
            seen = run.optimizer.last
            assert seen.reason == "outlier gradient" and 0.0 < seen.grad_scale < 0.2
            kept = run.gradients()[0].abs().max().item()
            assert kept == pytest.approx(large * seen.grad_scale, rel=0.01)
    assert run.optimizer.counters["skipped"] == 2
    assert {p.dtype for p in run.model.parameters()} == {run.dtype}


@every_half
@every_way
def test_restored_run_goes_on_alike(way, dtype):
    run = way(BASES["AdamW-foreach"], ARS, dtype)
    for index in range(5):
        run.step(run.backward(index))
    other = way(BASES["AdamW-foreach"], ARS, dtype)
    other.model.load_state_dict(run.model.state_dict())
    if way is Masters:
        for mine, theirs in zip(other.masters, run.masters, strict=True):
            mine.data.copy_(theirs)
    other.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    for index in range(5, 25):
        for r in (run, other):
            r.step(r.backward(index))
    assert everything(other) == everything(run)
    assert repr(other.optimizer.last) == repr(run.optimizer.last)
    assert bits(other.optimizer.state_dict()) == bits(run.optimizer.state_dict())


def test_fp16_norm_beyond_the_dtypes_range_is_no_fault():
    """The squares of 300 overflow float16, and the norm of 40000 such numbers does as well."""
    p = nn.Parameter(torch.zeros(40000, dtype=torch.float16))
    p.grad = torch.full_like(p, 500.0)
    optimizer = ARS(torch.optim.SGD([p], lr=1e-4), start_up=0)
    optimizer.step(1.0)
    assert optimizer.last.action == "apply"
    assert optimizer.last.grad_norm == pytest.approx(100_000.0, rel=1e-3)


@every_half
def test_jitter_reaches_half_precision_gradients(dtype):
    p = nn.Parameter(torch.zeros(4096, dtype=dtype))
    p.grad = torch.ones_like(p)
    scripted(torch.optim.SGD([p], lr=0.1), chi=0.25).step(1.0)
    assert p.grad.dtype == dtype
    noise = p.grad.float() - 1.0
    assert noise.std().item() == pytest.approx(0.25, rel=0.1)
    assert abs(noise.mean().item()) < 0.02


# -- loss scaling -------------------------------------------------------------------------------


class Scaled(Plain):
    """GradScaler with float16 autocast, gradients clipped after unscaling."""

    def __init__(self, base, wrap, growth=2.0):
        super().__init__(base, wrap, torch.float32)
        self.norms = []
        self.scaler = torch.amp.GradScaler(
            "cpu", init_scale=2.0**10, growth_factor=growth, growth_interval=3
        )

    def backward(self, index):
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = squared_error(self.model, index)
        self.scaler.scale(loss).backward()
        return loss

    def step(self, loss):
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.norms.append(min(0.5, norm.item()))
        pass_loss = (loss,) if isinstance(self.optimizer, ARS) else ()
        self.scaler.step(self.optimizer, *pass_loss)
        self.scaler.update()


@every_base
def test_scaled_fp16_run_is_the_bare_scaled_run(base):
    """The scale grows until float16 overflows, which the scaler finds and meets by itself."""
    bare, quiet = Scaled(base, lambda o: o, growth=2.0**8), Scaled(base, calm, growth=2.0**8)
    for index in range(24):
        for run in (bare, quiet):
            run.step(run.backward(index))
    assert everything(quiet) == everything(bare)
    assert quiet.scaler.state_dict() == bare.scaler.state_dict()
    assert 0 < 24 - quiet.optimizer.counters["observed"] < 20  # the overflows, left to the scaler


@every_base
def test_ars_under_a_scaler_sees_clipped_unscaled_gradients_and_skips_a_nan(base):
    run = Scaled(base, lambda o: ARS(o, start_up=0))
    for index in range(6):
        loss = run.backward(index)
        before = everything(run)
        scale = run.scaler.get_scale()
        run.step(loss * math.nan if index == 4 else loss)
        assert run.optimizer.last.grad_norm == pytest.approx(run.norms[-1], rel=1e-4)
        assert (everything(run) == before) == (index == 4)
    assert run.scaler.get_scale() >= scale  # a skip of ARS is no overflow to the scaler


# -- accumulation -------------------------------------------------------------------------------


def test_accumulated_micro_batches_are_one_step_of_their_mean():
    runs = []
    for parts in (1, 4):
        model = network()
        optimizer = ARS(torch.optim.AdamW(model.parameters(), lr=0.01), start_up=8)
        for index in range(12):
            optimizer.zero_grad()
            x, y = batch(index)
            losses = []
            for xs, ys in zip(x.chunk(parts), y.chunk(parts), strict=True):
                loss = (model(xs) - ys).square().mean()
                (loss / parts).backward()
                losses.append(loss.detach())
            optimizer.step(torch.stack(losses).mean())
        assert optimizer.counters["observed"] == 12
        runs.append((dict(model.named_parameters()), optimizer.last.values()))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-6, equal_nan=True)
