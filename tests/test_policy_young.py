"""The default policy in the start-up phase, on hand-made histories."""

import numpy as np
import pytest

from resilient_optim import DefaultConfig
from resilient_optim.decision import QUIET
from resilient_optim.gates import follow, young_loss_spike
from resilient_optim.policy import YOUNG_LIMIT
from resilient_optim.policy_state import MATURE
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


def test_start_up_ends_however_unruly_the_run():
    run = Run(start_up=8)
    for i in range(YOUNG_LIMIT * 8):
        assert run.state.young_steps == i
        run.see(2.0, 10.0 ** (i % 2))
    assert run.state.young_steps == -1
    assert run.state.open


def test_until_start_up_is_over_norms_are_held_to_their_reference():
    run = Run(start_up=4)
    losses = falling(40)
    run.see_all(losses[:20], np.ones(20))
    assert run.state.open
    assert run.see(losses[20], 1.2).grad_scale == pytest.approx(1 / 1.2)
    run.see_all(losses[21:], np.ones(19))
    assert run.state.young_steps == -1
    assert not run.see(losses[-1], 1.2).touched


def test_a_run_that_warms_up_by_itself_is_not_slowed():
    run = Run(start_up=20)
    first = run.see(4.0, 1.0, own_warmup=True)
    later = [run.see(loss, 1.0) for loss in falling(10)]
    assert [d.touched for d in [first, *later]] == [False] * 11


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
