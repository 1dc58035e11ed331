"""The default policy, rung by rung, on hand-made histories."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_optim import DefaultConfig
from resilient_optim.decision import APPLY, DAMP, SKIP
from resilient_optim.gates import (
    FOLLOW_DOWN,
    FOLLOW_MATURE,
    FOLLOW_UP,
    LR_GROWTH,
    PSI_MIN,
    chronos_jitter,
    entropy_guard,
    follow,
    surprise,
    surprise_gate,
)
from resilient_optim.policy_state import PolicyState
from tests.policy_run import CALM, Run


def calm_run(**settings):
    run = Run(**settings)
    run.see_all(CALM[:161])  # not a multiple of eight: the next step keeps the summary
    return run


# -- the formulas ---------------------------------------------------------------------------


unit = st.floats(0.0, 1.0)
positive = st.floats(1e-3, 1e3)


@given(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0), st.floats(0.51, 1.0))
def test_psi_is_in_range_and_falls_with_oscillation(rho, other, threshold):
    lower, upper = sorted([rho, other])
    assert PSI_MIN <= entropy_guard(rho, threshold) <= 1.0
    assert entropy_guard(lower, threshold) <= entropy_guard(upper, threshold)
    assert entropy_guard(-threshold, threshold) == 1.0


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.1, 1.0), positive, st.floats(0, 0.99))
def test_phi_is_in_range_and_falls_with_surprise(excess, other, psi, alpha, phi_min):
    lower, upper = sorted([excess, other])
    assert phi_min <= surprise_gate(upper, psi, alpha, phi_min) <= 1.0
    assert surprise_gate(upper, psi, alpha, phi_min) <= surprise_gate(lower, psi, alpha, phi_min)
    assert surprise_gate(0.0, psi, alpha, phi_min) == 1.0


@given(st.floats(0.1, 1.0), st.floats(0.1, 1.0), st.floats(0, 1e3), positive)
def test_phi_falls_with_resonance(psi, other, excess, alpha):
    lower, upper = sorted([psi, other])
    assert surprise_gate(excess, lower, alpha, 0.0) <= surprise_gate(excess, upper, alpha, 0.0)


def test_formulas_by_hand():
    assert entropy_guard(math.nan, 0.75) == 1.0
    assert entropy_guard(-0.8, 0.75) == pytest.approx(1 - 2 * 0.3)
    assert entropy_guard(-1.0, 0.75) == PSI_MIN
    assert surprise_gate(2.0, 0.5, 0.5, 0.02) == pytest.approx(1 - math.tanh(2.0))
    assert surprise_gate(50.0, 1.0, 0.5, 0.02) == 0.02
    assert chronos_jitter(0.25, 0.1) == pytest.approx(0.075)
    assert surprise(5.0, 2.0, 0.5) == 6.0
    assert surprise(1.0, 2.0, 0.0) == 0.0
    assert surprise(5.0, math.inf, 0.0) == 0.0
    assert surprise(2.1, 2.0, 0.0) == 0.0


def test_the_reference_norm_follows_at_a_bounded_pace():
    assert follow(math.nan, 1.5, young=True) == 1.5
    assert follow(0.0, 5.0, young=True) == FOLLOW_UP
    assert follow(0.0, -5.0, young=True) == -FOLLOW_DOWN
    assert follow(0.0, 0.001, young=True) == 0.001
    assert follow(0.0, 5.0, young=False) == pytest.approx(FOLLOW_MATURE * FOLLOW_UP)


# -- the mature run -------------------------------------------------------------------------


def test_a_calm_run_is_quiet():
    run = Run()
    touched = [d.touched for d in run.see_all(CALM, np.exp(CALM))]
    # z > 3 happens to one normal loss in 740; the scale is estimated, hence some slack.
    assert np.mean(touched) <= 0.01


@pytest.mark.parametrize(("loss", "grad_norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan)])
def test_a_non_finite_value_skips_and_leaves_the_state_alone(loss, grad_norm):
    run = calm_run()
    state = run.state
    decision = run.see(loss, grad_norm)
    assert decision.action == SKIP
    assert decision.reason.startswith("non-finite")
    assert decision.touched
    assert run.state == state


def test_a_surprise_is_damped_by_the_gate():
    run = calm_run()
    level, scale = run.state.level, run.state.scale
    decision = run.see(level + 5.0 * scale)
    assert (decision.action, decision.reason) == (DAMP, "surprise")
    assert decision.z == pytest.approx(5.0)
    assert decision.phi == decision.update_scale == pytest.approx(1 - math.tanh(0.5 * 1.0))
    assert decision.grad_scale == 1.0


def test_a_large_surprise_is_left_out_and_not_learned_from():
    run = calm_run()
    recorded = run.buffer.losses.values.copy()
    decision = run.see(100.0)
    assert (decision.action, decision.reason) == (SKIP, "surprise")
    assert run.buffer.losses.values.tolist() == recorded.tolist()


def test_a_sustained_surprise_is_accepted_as_the_new_level():
    run = calm_run(patience=4)
    decisions = [run.see(5.0 + CALM[i]) for i in range(30)]
    assert [d.action for d in decisions[:4]] == [SKIP, SKIP, SKIP, APPLY]
    assert [d.new_level for d in decisions[:5]] == [False, False, False, True, False]
    assert not any(d.touched for d in decisions[3:])
    # And once there is a history of the new level, it is guarded again.
    assert run.see(50.0).action == SKIP


def test_rare_bad_batches_are_never_accepted_but_frequent_ones_are():
    rare, frequent = calm_run(), calm_run()
    rare_levels = [rare.see(9.0 if i % 14 == 0 else CALM[i]).new_level for i in range(200)]
    frequent_levels = [frequent.see(9.0 if i % 2 else CALM[i]).new_level for i in range(200)]
    assert not any(rare_levels)
    assert sum(frequent_levels) == 1


@pytest.mark.parametrize(
    "losses",
    [
        np.where(np.random.default_rng(3).random(600) < 0.05, 1.5, 0.0),  # a hinge: mostly zero
        2.0 + 2**-7 * (np.random.default_rng(4).random(600) < 0.06),  # rounded to bfloat16
        np.where(np.arange(600) % 50 == 49, 2.0 + 3e-8, 2.0),  # constant but for rounding
    ],
    ids=["sparse", "rounded", "constant"],
)
def test_a_loss_that_is_mostly_one_value_is_not_taken_for_noise_free(losses):
    assert not any(d.action == SKIP for d in Run().see_all(losses))


def test_regular_nans_do_not_blind_the_guard():
    run = Run()
    run.see_all([math.nan if i % 8 == 0 else loss for i, loss in enumerate(CALM[:200])])
    assert run.see(100.0).action == SKIP


def test_losses_too_large_to_square_are_borne():
    decisions = Run().see_all([1e200 * (-1) ** i for i in range(100)])
    assert not any(d.action == SKIP for d in decisions)


def test_the_state_survives_as_numbers():
    state = PolicyState(7, 30, 3, True, False, 1.5, 0.25, 2.0, 0.1, -0.5, 0.3, 0.2, 4)
    assert PolicyState.of([float(value) for value in state]) == state
    assert [type(value) for value in PolicyState.of([0.0] * len(state))] == [
        type(value) for value in PolicyState()
    ]


def test_a_learning_rate_jump_is_approached_step_by_step():
    run = calm_run(lr_jump=2.0)
    decision = run.see(2.0, lr_ratio=10.0)
    assert (decision.action, decision.reason) == (DAMP, "learning-rate jump")
    assert decision.update_scale == pytest.approx(LR_GROWTH / 10.0)
    assert not run.see(2.0, lr_ratio=2.0).touched
    assert not calm_run(lr_jump=math.inf).see(2.0, lr_ratio=1e6).touched


def test_max_norm_bounds_every_gradient():
    run = Run(max_norm=1.0)
    assert run.see(2.0, 4.0).grad_scale == 0.25
    assert run.see(2.0, 0.5).grad_scale == 1.0


def test_an_oscillation_gets_noise_and_white_noise_gets_none():
    run = Run(jitter_scale=0.1)
    decisions = run.see_all(np.tile([2.0, 2.2], 80) + 1e-3 * CALM[:160])
    assert (decisions[-1].action, decisions[-1].reason) == (APPLY, "resonance")
    assert decisions[-1].psi == PSI_MIN
    assert decisions[-1].chi == pytest.approx(0.09)
    assert not any(d.chi for d in Run(jitter_scale=0.1).see_all(CALM))


# -- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("alpha", 0.0),
        ("alpha", math.nan),
        ("phi_min", 1.0),
        ("phi_min", -0.1),
        ("jitter_scale", -1.0),
        ("window_size", 31),
        ("rho_threshold", 0.5),
        ("rho_threshold", 1.1),
        ("z_threshold", math.inf),
        ("patience", 0),
        ("start_up", -1),
        ("norm_z", 0.0),
        ("alert_threshold", -1.0),
        ("lr_jump", 1.0),
        ("max_norm", -1.0),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(name, bad):
    with pytest.raises(ValueError, match=f"{name} must be .*got {bad!r}"):
        DefaultConfig(**{name: bad})


@pytest.mark.parametrize(
    ("name", "bad"), [("alpha", "1"), ("patience", 2.5), ("norm_guard", 1), ("start_up", True)]
)
def test_a_setting_of_the_wrong_type_is_named_with_its_value(name, bad):
    with pytest.raises(TypeError, match=f"{name} must be .*got {bad!r}"):
        DefaultConfig(**{name: bad})


def test_a_fixed_bound_needs_the_norm_guard():
    with pytest.raises(ValueError, match="max_norm must be None.*norm_guard=True"):
        DefaultConfig(norm_guard=False, max_norm=1.0)
