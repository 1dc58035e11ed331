"""What ARS remembers besides the policy's state: learning rates proven and packed."""

import math
import zlib

import numpy as np
import pytest
import torch

from resilient_optim import ARS, RCA
from resilient_optim.breaker_rules import BreakerState
from resilient_optim.decision import APPLY, DAMP, QUIET, Decision
from resilient_optim.gates import LR_GROWTH
from resilient_optim.loss_buffer import LossBuffer, Window
from resilient_optim.memory import COUNTERS, VERSION, Memory
from resilient_optim.policy_state import MATURE, PolicyState
from tests.policy_run import CALM


def memory():
    return Memory(LossBuffer(32), MATURE)


def taken(scale, *lr_scales):
    """A step with learning rates at a share of what they are."""
    return Decision(0, DAMP, "", 1.0, update_scale=scale, lr_scales=lr_scales or None)


def test_a_learning_rate_is_proven_by_a_step_taken_with_it():
    seen = memory()
    seen.see_lrs([{"lr": 0.1}, {"lr": 1.0}])
    assert seen.lr_ratio == 1.0  # nothing to compare with yet
    seen.prove_lrs(taken(0.5))
    assert seen.proven_lrs == [0.05, 0.5]
    assert seen.lr_ratio == 2.0
    seen.prove_lrs(taken(1.0))
    assert (seen.proven_lrs, seen.lr_ratio) == ([0.1, 1.0], 1.0)
    seen.see_lrs([{"lr": 0.01}, {"lr": 4.0}])
    assert seen.lr_ratio == 4.0  # the largest of all groups
    seen.see_lrs([{"lr": 0.01}, {"lr": 1.0}])
    assert seen.lr_ratio == 1.0


def test_a_group_that_begins_frozen_is_no_jump():
    seen = memory()
    for lr in (0.0, 0.1):
        seen.see_lrs([{"lr": lr}])
        assert seen.lr_ratio == 1.0
        seen.prove_lrs(taken(1.0))
    assert seen.proven_lrs == [0.1]


def test_each_group_has_its_own_ratio_and_its_own_proof():
    seen = memory()
    seen.see_lrs([{"lr": 0.1}, {"lr": 1.0}])
    seen.prove_lrs(taken(1.0))
    seen.see_lrs([{"lr": 0.8}, {"lr": 0.5}])
    assert seen.lr_ratios == pytest.approx([8.0, 0.5])
    seen.prove_lrs(taken(0.25, 0.25, 1.0))
    assert seen.proven_lrs == pytest.approx([0.2, 1.0])
    assert seen.lr_ratios == pytest.approx([4.0, 0.5])


def test_what_a_scheduler_found_counts_as_proven():
    p = torch.nn.Parameter(torch.zeros(()))
    optimizer = ARS(torch.optim.SGD([p], lr=0.1), start_up=0, norm_guard=False)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=3)
    for _ in range(3):  # in three large steps, as by the epoch
        for _ in range(40):
            p.grad = torch.ones(())
            optimizer.step(2.0)
            assert not optimizer.last.touched
        schedule.step()
    optimizer.param_groups[0]["lr"] = 0.3  # and no more than that
    optimizer.step(2.0)
    assert optimizer.last.reason == "learning-rate jump"


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Rprop])  # one without a usable rate
def test_only_the_group_whose_learning_rate_jumps_is_braked(kind):
    weights = [torch.nn.Parameter(torch.zeros(())) for _ in range(2)]
    bare = [torch.nn.Parameter(torch.zeros(())) for _ in range(2)]

    def groups(params):
        return [{"params": [p], "lr": lr} for p, lr in zip(params, (1e-3, 0.1), strict=True)]

    optimizer = ARS(kind(groups(weights), lr=0.1), start_up=0, norm_guard=False)
    alone = kind(groups(bare), lr=0.1)
    for step in range(30):
        for each in (optimizer, alone):
            each.param_groups[0]["lr"] = 1e-3 if step < 20 else 1.0
        for p in (*weights, *bare):
            p.grad = torch.ones(())
        optimizer.step(2.0)
        alone.step()
        assert weights[1] == bare[1], step
        assert (weights[0] == bare[0]) == (step < 20)
    assert optimizer.last.reason == "learning-rate jump"


def test_learning_rates_survive_packing():
    seen = memory()
    seen.see_lrs([{"lr": 0.1}, {"lr": 1.0}])
    seen.prove_lrs(taken(1.0))
    seen.see_lrs([{"lr": 0.3}, {"lr": 1.0}])
    seen.prove_lrs(taken(1.0))
    again = Memory.unpack(seen.pack(3)[:2], 32)
    assert (again.first_lrs, again.proven_lrs) == ([0.1, 1.0], [0.3, 1.0])
    assert all(math.isnan(value) for value in seen.pack(3)[2][-2:])  # a group not yet stepped


@pytest.mark.parametrize("resumed", [False, True])
def test_a_jump_of_the_learning_rate_is_approached_and_the_rate_left_alone(resumed):
    rng = np.random.default_rng(0)
    p = torch.nn.Parameter(torch.zeros(()))
    optimizer = ARS(torch.optim.SGD([p], lr=0.1), start_up=0, norm_guard=False)
    for loss in rng.normal(2.0, 0.1, 40):
        p.grad = torch.ones(())
        optimizer.step(float(loss))
    if resumed:
        state = optimizer.state_dict()
        optimizer = ARS(torch.optim.SGD([p], lr=0.1), start_up=0, norm_guard=False)
        optimizer.load_state_dict(state)
    optimizer.param_groups[0]["lr"] = 1.0
    before = p.item()
    p.grad = torch.ones(())
    optimizer.step(2.0)
    assert optimizer.last.reason == "learning-rate jump"
    assert before - p.item() == pytest.approx(0.1 * LR_GROWTH, rel=1e-5)
    assert optimizer.param_groups[0]["lr"] == 1.0
    steps = 0
    while optimizer.last.touched:
        optimizer.step(2.0)
        steps += 1
    # From a tenth to half of it, by 1 % a step; then the rest is no jump any more.
    assert steps == math.ceil(math.log(5.0) / math.log(LR_GROWTH))


@pytest.mark.parametrize("rate", [math.inf, math.nan])
def test_a_learning_rate_that_is_not_finite_from_the_first_step_on_is_waited_out(rate):
    model = torch.nn.Linear(3, 1)
    optimizer = ARS(torch.optim.SGD(model.parameters(), lr=rate))
    for step in range(4):
        model(torch.ones(2, 3)).square().mean().backward()
        optimizer.step(1.0)
        optimizer.zero_grad()
        assert optimizer.last.reason == ("start-up" if step == 3 else "non-finite learning rate")
        if step == 2:
            optimizer.param_groups[0]["lr"] = 0.1
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_version_tells_what_is_packed():
    """A checkpoint of another layout must be refused by its version, not misread."""
    packed = (*PolicyState._fields, *COUNTERS, *BreakerState._fields)
    assert (VERSION, len(packed), zlib.crc32(" ".join(packed).encode())) == (5.0, 41, 3519930577), (
        "what is packed has changed: raise memory.VERSION, say so in CHANGELOG.md, and write the "
        "three new numbers here"
    )


@pytest.mark.parametrize(("norm", "recorded"), [(0.0, 1), (1.0, 20), (None, 20)])
def test_a_loss_that_stands_still_without_a_gradient_is_recorded_once(norm, recorded):
    seen = memory()
    for step in range(20):
        seen.remember(Decision(step, APPLY, QUIET, 1.0, norm))
    assert seen.counters["observed"] == 20
    assert seen.buffer.losses.values.tolist() == [1.0] * recorded
    seen.remember(Decision(20, APPLY, QUIET, 2.0, norm))
    assert seen.buffer.losses.newest == 2.0


def test_the_right_losses_after_a_constant_one_are_no_surprise():
    """The constant, here without a gradient, was taken for the level."""
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ARS(torch.optim.SGD([p], lr=1e-3), start_up=0, snapshot=False)
    for step, loss in enumerate(CALM[:200]):
        constant = 100 <= step < 130
        p.grad = torch.zeros(2) if constant else torch.tensor([1.0, 0.01 * (step % 7)])
        optimizer.step(1.0 if constant else float(loss))
    assert optimizer.counters["touched"] == 0


def test_the_monitor_counts_a_loss_that_stands_still_as_often_as_it_came():
    """A run that has converged to the last bit is to be told from one that still improves."""
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ARS(torch.optim.SGD([p], lr=1e-3), start_up=0, snapshot=False)
    losses = [1.0 / (1 + step) for step in range(60)] + [0.0] * 100
    for loss in losses:
        p.grad = torch.full((2,), float(loss > 0.0))
        optimizer.step(loss)
    assert np.count_nonzero(optimizer.loss_buffer.losses.values == 0.0) == 1
    assert optimizer.monitor == RCA().read(np.array(losses[-64:]))
    assert optimizer.monitor.state != "improving"


@pytest.mark.parametrize(
    ("values", "times", "expected"),
    [
        ([], 5, []),
        ([1.0, 2.0], 1, [1.0, 2.0]),
        ([1.0, 2.0], 3, [1.0, 2.0, 2.0, 2.0]),
        ([1.0, 2.0, 2.0], 2, [1.0, 2.0, 2.0]),
        ([1.0, 2.0, 3.0, 4.0], 3, [3.0, 4.0, 4.0, 4.0]),
        ([2.0, 2.0], 99, [2.0] * 4),
    ],
)
def test_the_last_value_as_often_as_it_came(values, times, expected):
    window = Window(4)
    for value in values:
        window.append(value)
    assert window.with_last(times).tolist() == expected
    assert window.values.tolist() == values
