"""`preset="paper"` is the published algorithm, step for step."""

import math

import numpy as np
import pytest
import torch

from resilient_optim import ARS


class Published:
    """The published algorithm written down independently, with plain growing lists."""

    def __init__(self, alpha=1.0, phi_min=0.3, jitter=0.005, window=50, threshold=0.75):
        self.alpha, self.phi_min, self.jitter = alpha, phi_min, jitter
        self.window, self.threshold = window, threshold
        self.losses, self.surprises = [], []

    def gate(self, loss):
        recent = self.losses[-10:]
        surprise = abs(loss - sum(recent) / len(recent)) if len(recent) >= 2 else 0.0
        self.losses.append(loss)
        self.surprises.append(surprise)
        rho = 0.0
        if len(self.surprises) >= self.window:
            s = np.array(self.surprises[-self.window :])
            d = s - s.mean()
            if (d**2).sum() >= 1e-8:
                rho = (d[:-1] * d[1:]).sum() / (d**2).sum()
        psi = max(0.1, 1 - abs(rho)) if abs(rho) > self.threshold else 1.0
        phi = max(self.phi_min, 1 - math.tanh(self.alpha * surprise / psi))
        return phi, psi, psi < 0.5


def losses_of_all_kinds():
    rng = np.random.default_rng(0)
    noisy = 2 + 0.3 * rng.normal(size=120)
    descent = 4 * np.exp(-np.arange(150) / 40)  # fires the published guard although healthy
    walk = 3 + rng.normal(size=200).cumsum() * 0.1
    return np.concatenate([noisy, descent, walk]).tolist()


def one_parameter():
    weight = torch.nn.Parameter(torch.zeros(10_000))
    return weight, torch.optim.SGD([weight], lr=1.0)


def test_gate_and_guard_follow_the_published_formulas():
    weight, base = one_parameter()
    optimizer, published = ARS(base, preset="paper"), Published()
    fired = 0
    for loss in losses_of_all_kinds():
        weight.grad = torch.ones_like(weight)
        optimizer.step(loss)
        phi, psi, jitter = published.gate(loss)
        fired += jitter
        assert optimizer.last.phi == pytest.approx(phi, rel=1e-9)
        assert optimizer.last.psi == pytest.approx(psi, rel=1e-9)
        assert optimizer.last.chi == (0.005 if jitter else 0.0)
    assert fired > 20  # the comparison has seen the guard at work


def test_the_gradient_is_jittered_then_scaled():
    weight, base = one_parameter()
    optimizer = ARS(base, preset="paper", alpha=0.2)
    before = weight.detach().clone()
    for loss in losses_of_all_kinds():
        weight.grad = torch.ones_like(weight)
        before.copy_(weight.detach())
        optimizer.step(loss)
        if optimizer.last.chi and optimizer.last.phi < 1:
            break
    moved = before - weight.detach()
    phi = optimizer.last.phi
    assert moved.mean().item() == pytest.approx(phi, rel=1e-3)
    assert moved.std().item() == pytest.approx(0.005 * phi, rel=0.05)


def test_a_non_finite_loss_is_skipped_and_forgotten():
    weight, base = one_parameter()
    optimizer = ARS(base, preset="paper")
    for loss in [1.0, 1.0, 1.0, math.nan, 1.0]:
        weight.grad = torch.ones_like(weight)
        optimizer.step(loss)
    assert optimizer.last.phi == 1.0
    assert weight.detach().unique().tolist() == [-4.0]


def test_settings_of_the_default_preset_are_not_settings_of_the_paper():
    _, base = one_parameter()
    with pytest.raises(TypeError, match="start_up must be a setting of preset 'paper', got"):
        ARS(base, preset="paper", start_up=5)
