"""Fused optimizers scale gradients in their own pass; the outcome is the same as outside it."""

import functools

import pytest
import torch
from torch import nn

from tests.helpers import scripted

FUSED = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "Adagrad": torch.optim.Adagrad,
    "SGD": torch.optim.SGD,
    "SGD-momentum": functools.partial(torch.optim.SGD, momentum=0.9),
    "SGD-maximize": functools.partial(torch.optim.SGD, maximize=True),
    "SGD-decay": functools.partial(torch.optim.SGD, weight_decay=0.1),
}
every_base = pytest.mark.parametrize("make", FUSED.values(), ids=FUSED.keys())
PHI = 0.3  # no power of two: dividing by 1/phi and multiplying by phi round differently


def one_step(make, fused, dtype=torch.float32, **verdict):
    generator = torch.Generator().manual_seed(0)
    params = [
        nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in [(7, 3), (5,)]
    ]
    base = make(params, lr=0.01, **({"fused": True} if fused else {"foreach": True}))
    optimizer = scripted(base, **verdict)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    optimizer.step(1.0)
    return params, base


@every_base
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gradients_after_the_step_are_the_same(make, dtype):
    fused, _ = one_step(make, True, dtype, grad_scale=PHI)
    foreach, _ = one_step(make, False, dtype, grad_scale=PHI)
    # 1/phi is rounded to float32 and the division rounds again: two half units in the last
    # place of float32, or one of a coarser type.
    ulp = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    for p, q in zip(fused, foreach, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=ulp, atol=0.0)


@every_base
def test_weights_after_the_step_are_the_same(make):
    fused, _ = one_step(make, True, grad_scale=PHI)
    foreach, _ = one_step(make, False, grad_scale=PHI)
    for p, q in zip(fused, foreach, strict=True):
        torch.testing.assert_close(p, q, rtol=2**-22, atol=2**-22)  # two ulps of weights near 1


@every_base
def test_after_an_unfused_checkpoint_gradients_are_scaled_outside(make):
    """The optimizer steps unfused from then on, and its step takes no scale."""
    p = nn.Parameter(torch.ones(3))
    base = make([p], lr=0.01, fused=True)
    base.load_state_dict(make([nn.Parameter(torch.ones(3))], lr=0.01, foreach=True).state_dict())
    optimizer = scripted(base, grad_scale=PHI)
    p.grad = torch.ones(3)
    optimizer.step(1.0)
    torch.testing.assert_close(p.grad, torch.full((3,), PHI))


@every_base
def test_gradients_are_really_scaled(make):
    untouched, _ = one_step(make, True, grad_scale=1.0)
    scaled, _ = one_step(make, True, grad_scale=PHI)
    for p, q in zip(untouched, scaled, strict=True):
        torch.testing.assert_close(PHI * p.grad, q.grad, rtol=2**-22, atol=0.0)


@every_base
def test_gate_closed_to_zero_is_a_zero_gradient(make):
    """The published gate with phi_min=0 closes fully."""
    params, _ = one_step(make, True, grad_scale=0.0)
    assert all((p.grad == 0.0).all() for p in params)
    assert all(p.isfinite().all() for p in params)


@every_base
def test_scaler_attributes_are_gone_after_the_step(make):
    _, base = one_step(make, True, grad_scale=PHI)
    assert not hasattr(base, "grad_scale")
    assert not hasattr(base, "found_inf")


def test_scaler_attributes_are_gone_after_an_error():
    class Breaks(torch.optim.SGD):
        def step(self, closure=None):
            assert self.grad_scale.item() == pytest.approx(1 / PHI)
            raise RuntimeError("out of memory")

    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    base = Breaks([p], lr=0.5, fused=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        scripted(base, grad_scale=PHI, update_scale=0.5).step(1.0)
    assert not hasattr(base, "grad_scale")
    assert not hasattr(base, "found_inf")
    assert base.param_groups[0]["lr"] == 0.5


@every_base
def test_jitter_is_the_same_fused_or_not(make):
    fused, _ = one_step(make, True, grad_scale=0.5, chi=0.2)
    foreach, _ = one_step(make, False, grad_scale=0.5, chi=0.2)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(fused, foreach, strict=True))


def test_fused_base_with_a_shared_gradient_scales_it_once():
    shared = torch.full((2,), 8.0)
    params = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for p in params:
        p.grad = shared
    base = torch.optim.SGD(params, lr=1.0, fused=True)
    scripted(base, grad_scale=0.5).step(1.0)
    assert [p.tolist() for p in params] == [[-4.0, -4.0]] * 2
    assert shared.tolist() == [4.0, 4.0]


@pytest.mark.parametrize("scale", [1e-30, 1e-45, 1e30])
def test_extreme_scales_stay_finite(scale):
    params, _ = one_step(torch.optim.SGD, True, grad_scale=scale)
    assert all(p.isfinite().all() for p in params)


def test_first_parameter_may_lack_a_gradient():
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    second.grad = torch.full((2,), 8.0)
    base = torch.optim.SGD([{"params": [first]}, {"params": [second]}], lr=1.0, fused=True)
    scripted(base, grad_scale=0.5).step(1.0)
    assert first.tolist() == [0.0, 0.0]
    assert second.tolist() == [-4.0, -4.0]
