"""A state that is not finite is found even where no snapshot is taken or none is proved."""

import math

import pytest
import torch

from resilient_optim import ARS, Snapshots
from resilient_optim.keeper import LOOK_EVERY
from tests.training import Task, train


class Diary(torch.optim.SGD):
    """Its memory does not enter its steps, as a NaN in Lion's does not: the sign of one is zero."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("diary", torch.zeros_like(p)).lerp_(p.grad, 0.1)


def diary_of(optimizer):
    return next(iter(optimizer.base.state.values()))["diary"]


@pytest.mark.parametrize("period", [1, 5])
def test_a_state_that_is_not_finite_is_found_in_a_run_without_calm(period):
    """With outliers in every step no snapshot is taken, in every fifth none is proved."""
    task = Task(0)
    optimizer = ARS(Diary(task.model.parameters(), lr=3e-2), snapshot=Snapshots(every=8))
    train(task, optimizer, 0, 120)
    generator = torch.Generator().manual_seed(1)

    def noisy(step, y):
        return y + 20.0 * torch.randn(y.shape, generator=generator) * (step % period == 0)

    train(task, optimizer, 120, 140, noisy)
    before = optimizer.counters["rollbacks"]
    diary_of(optimizer).view(-1)[0] = math.nan
    train(task, optimizer, 140, 140 + LOOK_EVERY + 10, noisy)
    assert optimizer.counters["rollbacks"] == before + 1
    assert diary_of(optimizer).isfinite().all()
