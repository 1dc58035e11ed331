"""The default policy in the start-up phase, on hand-made histories."""

import numpy as np
import pytest
import torch

from resilient_optim import ARS, DefaultConfig, Snapshots
from resilient_optim.decision import QUIET
from resilient_optim.delegation import steps_by_sign
from resilient_optim.gates import follow, young_loss_spike
from resilient_optim.policy_state import MATURE, START_UP_STEPS
from tests.helpers import CASES, Layers, evaluate, train
from tests.policy_run import Run


def falling(n):
    return 4.0 - 0.05 * np.arange(n)


def test_the_gate_opens_with_every_healthy_step():
    run = Run(start_up=20)
    decisions = run.see_all(falling(30), np.ones(30))
    expected = [min(1.0, (i + 2) / 20) for i in range(30)]
    assert [d.update_scale for d in decisions] == pytest.approx(expected)
    assert {d.reason for d in decisions} == {"start-up", QUIET}
    assert run.state.open


def test_a_spike_closes_the_gate_half_way_and_its_gradient_is_bounded():
    run = Run(start_up=20)
    run.see_all(falling(9), np.ones(9))
    assert run.state.healthy == 9
    decision = run.see(3.5, 10.0)
    assert decision.grad_scale == pytest.approx(0.1)
    assert decision.abnormal_norm
    assert run.state.healthy == 4
    run.see(5.0, 1.0)
    assert run.state.healthy == 2


def test_a_fixed_bound_is_no_spike():
    run = Run(start_up=20, max_norm=0.5)
    decisions = run.see_all(falling(9), np.ones(9))
    assert [d.grad_scale for d in decisions] == [0.5] * 9
    assert run.state.healthy == 9


def test_independent_noise_rarely_looks_like_a_spike():
    noise = np.random.default_rng(2).normal(size=5000)
    spikes = [young_loss_spike(noise[i - 20 : i], noise[i]) for i in range(20, 5000)]
    assert np.mean(spikes) < 0.025


@pytest.mark.parametrize("start_up, length", [(8, START_UP_STEPS), (60, 120)])
def test_start_up_ends_however_unruly_the_run(start_up, length):
    run = Run(start_up=start_up)
    for i in range(length):
        assert run.state.young_steps == i
        run.see(2.0, 10.0 ** (i % 2))
    assert run.state.young_steps == -1
    assert run.state.open


def test_the_gate_of_a_run_that_is_all_spikes_opens_evenly_and_not_at_once():
    run = Run(start_up=8)
    opened = []
    while run.state.young_steps >= 0 and not run.state.open:
        opened.append(run.see(2.0, 10.0 ** (len(opened) % 2)).update_scale)
    assert len(opened) <= START_UP_STEPS
    assert opened[-1] == 1.0
    rises = np.diff(opened[START_UP_STEPS // 8 :])
    assert rises.min() == 0.0 and rises.max() == pytest.approx(1 / 8)


def test_losses_that_take_turns_cost_no_more_than_the_start_up_phase():
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = ARS(torch.optim.AdamW([p], lr=1e-3))
    for step in range(160):
        p.grad = torch.randn(2) * (30.0 if step % 2 else 1.0)
        optimizer.step(5.0 if step % 2 else 1.0)
        assert optimizer.last.reason != "learning-rate jump"
        assert optimizer.last.update_scale == 1.0 or step < START_UP_STEPS


def test_until_start_up_is_over_norms_are_held_to_their_reference():
    run = Run(start_up=4)
    losses = 4.0 - 0.01 * np.arange(START_UP_STEPS)
    run.see_all(losses[:20], np.ones(20))
    assert run.state.open
    assert run.see(losses[20], 1.2).grad_scale == pytest.approx(1 / 1.2)
    run.see_all(losses[21:], np.ones(START_UP_STEPS - 21))
    assert run.state.young_steps == -1
    assert not run.see(losses[-1], 1.2).touched


@pytest.mark.parametrize("at, back", [(0, [0]), (1, []), (8, [])])
def test_only_an_outlier_that_nobody_could_know_makes_a_run_begin_again(at, back):
    """Beside the first norm there is no reference; later ones are held to it, and do no harm."""
    p, told = torch.nn.Parameter(torch.zeros(8)), []
    optimizer = ARS(torch.optim.AdamW([p]), snapshot=Snapshots(every=8), on_event=told.append)
    for step in range(40):
        p.grad = torch.full((8,), 300.0 if step == at else 1.0)
        optimizer.step(4.0 - 0.01 * step)
    assert [d.rolled_back_to for d in told if d.reason == "outlier at the start"] == back


def test_a_run_that_warms_up_by_itself_is_not_slowed():
    run = Run(start_up=20)
    first = run.see(4.0, 1.0, own_warmup=True)
    later = [run.see(loss, 1.0) for loss in falling(10)]
    assert [d.touched for d in [first, *later]] == [False] * 11


class Lion(torch.optim.Optimizer):
    """As published, without weight decay."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            (slow, fast), lr = group["betas"], group["lr"]
            for p in group["params"]:
                average = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.sub_(average.lerp(p.grad, 1 - slow).sign_(), alpha=lr)
                average.lerp_(p.grad, 1 - fast)


def test_a_run_whose_steps_are_signs_is_not_slowed():
    """Its state tells, so the very first step is still a small one; norms are held all the same."""
    model = Layers()
    optimizer = ARS(Lion(model.parameters()))
    found = []
    for index in range(20):
        loss = evaluate(model, optimizer, index)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step(loss)
        moved = [
            (p - q).detach().abs().max() for p, q in zip(model.parameters(), before, strict=True)
        ]
        found.append((optimizer.last.update_scale, max(m.item() for m in moved)))
        if index == 10:
            copied = ARS(Lion(Layers().parameters()))
            copied.load_state_dict(optimizer.state_dict())
            assert copied._memory.policy.warms_up
    assert found[0] == pytest.approx((2 / 30, 2e-3 / 30), rel=1e-3)
    assert [scale for scale, _ in found[1:]] == [1.0] * 19
    assert [step for _, step in found[1:]] == pytest.approx([1e-3] * 19, rel=1e-3)
    assert optimizer._memory.policy.young_steps == 20
    assert optimizer.counters["bounded"] > 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_optimizer_of_torch_steps_by_sign(case):
    model, optimizer = case.build()
    train(model, optimizer, range(2), case.takes_closure)
    assert not steps_by_sign(optimizer)


def test_which_state_is_that_of_signs():
    weight = torch.nn.Parameter(torch.zeros(3))
    base = torch.optim.SGD([weight])
    many, one = torch.zeros(3), torch.tensor(1.0)
    for state, expected in (
        ({}, False),
        ({"exp_avg": many}, True),
        ({"exp_avg": many, "step": one}, True),
        ({"exp_avg": many, "row_var": torch.zeros(2)}, False),
        ({"state1": many}, False),
    ):
        base.state[weight] = state
        assert steps_by_sign(base) is expected


def test_a_run_under_way_is_not_young():
    assert DefaultConfig().first_state(young=False) == MATURE
    assert DefaultConfig(start_up=0).first_state(young=True) == MATURE


def test_spikes_of_a_young_run_by_hand():
    assert young_loss_spike(np.array([4.0, 3.8, 3.7]), 4.31)  # typical change: 0.15
    assert not young_loss_spike(np.array([4.0, 3.8, 3.7]), 4.29)


def test_the_reference_norm_settles_where_two_of_seven_norms_are_below_it():
    log_norms = np.random.default_rng(5).normal(size=20000)
    reference, settled = 0.0, []
    for log_norm in log_norms:
        reference = follow(reference, log_norm, young=True)
        settled.append(reference)
    assert np.mean(log_norms[1000:] < np.array(settled)[1000:]) == pytest.approx(2 / 7, abs=0.02)
