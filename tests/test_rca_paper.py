"""`preset="paper"` is the published RCA, rule for rule, and its documented faults are its own."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_optim.rca import RCA
from resilient_optim.rca_paper import (
    PaperRCAConfig,
    PaperState,
    Published,
    published,
    published_state,
    published_step,
    published_stop,
)

losses = st.lists(st.floats(0.01, 10), min_size=1, max_size=30)


def naive(values):
    """The published quantities written down independently, with numpy."""
    w = np.array(values[-10:])
    if len(w) < 4:
        return 0.0, 0.0, 0.0
    d = np.diff(w)
    beta = float(np.clip(1 - np.abs(d).max() / (w.mean() + 1e-8), 0, 1))
    omega = float(np.clip(2 * np.pi * np.sum(d[1:] * d[:-1] < 0) / len(d), 1, 12))
    confidence = min(1, len(values) / 10) * (1 / (1 + w.std()) if len(w) >= 5 else 1)
    return beta, omega, confidence


@given(losses)
def test_the_published_quantities(values):
    assert published(values)[:3] == pytest.approx(naive(values), rel=1e-9, abs=1e-12)
    assert RCA("paper").read(np.array(values))[2:6] == (
        published(values).state, *published(values)[:3]
    )  # fmt: skip


@given(losses, st.sampled_from([None, 0, 2]))
def test_the_monitor_follows_the_published_rules(values, reductions):
    monitor = RCA("paper", max_lr_reductions=reductions)
    best, since, cuts, stopped = math.inf, 0, 0, False
    for i, value in enumerate(values):
        seen = values[: i + 1]
        beta, omega, confidence = naive(seen)
        state = published_state(beta, omega)
        if best == math.inf or (best - value) / best > 0.01:
            best, since = value, 0
        else:
            since += 1
        cut = False
        if reductions is not None and since >= 3:
            if cuts < reductions:
                cuts, since, cut = cuts + 1, 0, True
            else:
                stopped = True
        if state == "plateau" and beta > 0.85 and since >= 2:
            stopped = True
        elif state == "plateau" and beta > 0.80 and since >= 3:
            stopped = True
        if len(seen) >= 3 and seen[-3] < seen[-2] < seen[-1] and since >= 2:
            stopped = True
        if beta > 0.85 and 4.5 <= omega <= 6.5 and confidence > 0.7:
            stopped = True
        reading = monitor.update(value)
        assert reading.recommendation == ("stop" if stopped else "reduce_lr" if cut else "continue")
        assert math.isnan(reading.gain)
        assert math.isnan(reading.p_improving)


@pytest.mark.parametrize(
    ("beta", "omega", "state"),
    [
        (0.9, 6.0, "converging"), (0.9, 5.4, "plateau"), (0.8, 6.0, "plateau"),
        (0.5, 8.1, "unstable"), (0.2, 3.0, "unstable"), (0.5, 3.0, "improving"),
    ],
)  # fmt: skip
def test_the_published_states(beta, omega, state):
    assert published_state(beta, omega) == state


@pytest.mark.parametrize(
    ("quantities", "three", "since", "reason"),
    [
        (Published(0.86, 2.0, 0.5, "plateau"), [3, 2, 1], 2, "strong plateau"),
        (Published(0.81, 2.0, 0.5, "plateau"), [3, 2, 1], 3, "stable plateau"),
        (Published(0.81, 2.0, 0.5, "plateau"), [3, 2, 1], 2, ""),
        (Published(0.5, 2.0, 0.5, "improving"), [1, 2, 3], 2, "overfitting"),
        (Published(0.5, 2.0, 0.5, "improving"), [1, 2, 3], 1, ""),
        (Published(0.9, 4.6, 0.71, "plateau"), [3, 2, 1], 0, "approaching universal resonance"),
        (Published(0.9, 4.6, 0.7, "plateau"), [3, 2, 1], 0, ""),
    ],
)
def test_the_published_stops(quantities, three, since, reason):
    assert published_stop(quantities, three, since, patience=3) == reason


def test_cuts_come_before_the_stop_and_end_at_the_smallest_lr():
    config, state, actions = PaperRCAConfig(), PaperState(), []
    for loss in [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]:  # beta is 0.33
        state, _, action = published_step(state, loss, config)
        actions.append(action)
    assert actions == ["continue"] * 3 + ["reduce_lr"] + ["continue"] * 2 + ["reduce_lr"] + [
        "continue"
    ] * 2 + ["stop"]
    assert published_step(state, 0.1, config)[2] == "stop"  # for good
    waiting = PaperState(losses=(1.0, 2.0, 1.0), seen=3, best=1.0, since_improvement=2)
    assert published_step(waiting, 2.0, config)[2] == "reduce_lr"
    assert published_step(waiting, 2.0, config, lr_at_minimum=True)[2] == "stop"


def test_fault_omega_cannot_reach_the_rarest_rules():
    rng = np.random.default_rng(0)
    omegas = {round(published(rng.normal(5, 1, size=10).tolist()).omega, 3) for _ in range(500)}
    assert max(omegas) <= round(16 * math.pi / 9, 3)  # 5.585


def test_fault_white_noise_is_in_the_universal_band_once_in_six_windows():
    rng = np.random.default_rng(1)
    inside = [4.5 <= published(row).omega <= 6.5 for row in rng.normal(9, 1, (2000, 10)).tolist()]
    assert np.mean(inside) == pytest.approx(0.167, abs=0.03)


def test_fault_steady_progress_has_a_high_beta():
    falling = [2.0 * 0.95**i for i in range(10)]
    assert published(falling).beta > 0.93
    assert published(falling).state == "plateau"


def test_fault_runs_that_still_improve_are_stopped_and_the_default_does_not():
    rng = np.random.default_rng(2)
    stopped = {"paper": 0, "default": 0}
    for _ in range(25):
        curve = np.exp(-0.01 * np.arange(60)) * (1 + 0.02 * rng.normal(size=60))
        for preset in stopped:
            monitor = RCA(preset)
            actions = [monitor.update(value).recommendation for value in curve]
            stopped[preset] += "stop" in actions
    assert stopped["paper"] >= 0.37 * 25
    assert stopped["default"] == 0


def test_a_non_finite_loss_changes_nothing():
    state = PaperState(losses=(1.0, 2.0), seen=2, best=1.0, since_improvement=1)
    assert published_step(state, math.nan, PaperRCAConfig())[0] == state


@pytest.mark.parametrize(
    "settings", [{"patience": 0}, {"min_delta": -1.0}, {"max_lr_reductions": -1}]
)
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        PaperRCAConfig(**settings)
