"""Data that have turned into noise end a run; data, or a loss, that are only other ones do not."""

import logging
import math

import numpy as np
import pytest
import torch

from resilient_optim import Budgets, Snapshots
from resilient_optim import breaker_rules as rules
from resilient_optim.breaker_rules import BreakerState
from tests.breaker_runs import Run

LEARNED = BreakerState(first=10.0, best=2.0, best_scale=0.5)
"""A run that has come from 10 down to 2: most of it is lost above 8."""

STEPS = 150  # before the data change: a run that learns nothing has three quarters as many more


def trained(**settings):
    run = Run("adamw", snapshot=Snapshots(every=8), **settings)
    run.train(STEPS)
    return run


def noise(scale):
    """Targets of which nothing can be learned."""
    generator = torch.Generator().manual_seed(0)
    return lambda step, y: scale * torch.randn(y.shape, generator=generator)


# -- the rules ----------------------------------------------------------------------------------


def test_a_run_that_was_shown_new_data_is_watched_for_progress():
    state = rules.blamed_on_data(LEARNED._replace(high_since=90), 100)
    assert (state.data_since, state.data_best, state.data_lost) == (100, 2.0, 8.0)
    assert (repr(state.first), repr(state.best), state.high_since) == ("nan", "nan", -1)
    state = rules.watched(state, 112, 22.0, 0.5)
    assert (state.data_since, state.data_level, state.best) == (100, 22.0, 22.0)
    state = rules.watched(state, 120, 16.0, 0.5)  # by 6: so much had been lost
    assert (state.data_since, state.data_level) == (100, 22.0)
    again = rules.blamed_on_data(state, 124)
    assert again[7:11] == state[7:11], "another new level is measured by what was known before all"
    state = rules.watched(again, 128, 15.9, 0.5)
    assert (state.data_since, state.data_level) == (128, 15.9)
    assert rules.watched(state, 136, 9.9, 0.5).data_since == 128
    assert rules.watched(state, 136, 8.0, 0.5).data_since == -1, "something of it is known"
    far = again._replace(data_level=102.0)  # a fifth of 100 is not more than a fifth
    assert rules.watched(far, 128, 82.0, 0.5).data_since == 100
    assert rules.watched(far, 128, 81.9, 0.5).data_since == 128
    assert rules.watched(far, 128, 81.9, 5.1).data_since == 100, "that may be noise"


def test_it_is_hopeless_if_nothing_is_learned_for_long():
    state, flat = rules.blamed_on_data(LEARNED, 100)._replace(data_level=22.0), np.full(64, 22.0)
    assert rules.is_hopeless(state, 164, flat, 22.0, fruitless=0.5)
    assert not rules.is_hopeless(state, 163, flat, 22.0, fruitless=0.5), "at least 64 steps"
    assert not rules.is_hopeless(state, 199, flat, 22.0, fruitless=1.0)
    assert rules.is_hopeless(state, 200, flat, 22.0, fruitless=1.0), "a share of those before"
    assert not rules.is_hopeless(state, 10**9, flat, 22.0, fruitless=math.inf)
    for level in (8.0, math.nan):
        assert not rules.is_hopeless(state, 10**4, flat, level, fruitless=0.5)
    assert not rules.is_hopeless(state._replace(data_since=-1), 10**4, flat, 22.0, 0.5)
    assert not rules.is_hopeless(state._replace(data_level=math.nan), 10**4, flat, 22.0, 0.5)


def test_it_is_not_hopeless_while_the_loss_comes_down():
    """It has to fall within the window by half of what it is still above 8."""
    state = rules.blamed_on_data(LEARNED, 100)._replace(data_level=22.0)
    losses = np.concatenate([np.full(24, 20.0), np.full(40, 16.0)])
    assert rules.is_hopeless(state, 10**4, losses, 16.1, 0.5)
    assert not rules.is_hopeless(state, 10**4, losses, 16.0, 0.5)
    assert not rules.is_hopeless(state, 10**4, losses[:47], 16.1, 0.5), "too short to tell"


# -- runs ---------------------------------------------------------------------------------------


def test_noise_for_ever_ends_a_run_by_default():
    run = trained()
    error = run.train_until_diverged(200, noise(30.0))
    assert error.cause == "bad data"
    assert 0.75 * STEPS <= error.step - STEPS <= 0.75 * STEPS + 24
    assert "nothing was learned from them" in str(error)
    assert run.state() == run.found[error.rolled_back_to]
    assert STEPS // 2 < error.rolled_back_to <= STEPS, "of before the noise"
    assert "accept_level()" in str(error)


def test_who_wants_it_may_train_on_noise(caplog):
    run = trained(budgets=Budgets(fruitless=math.inf))
    with caplog.at_level(logging.WARNING):
        run.train(200, noise(30.0))
    assert run.optimizer.counters["new_levels"] == 1
    assert "accept_level()" in caplog.text


def test_an_accepted_level_is_no_noise_however_little_is_learned_at_it():
    run = trained()
    run.optimizer.accept_level()
    run.train(200, noise(30.0))
    assert run.optimizer.counters["rollbacks"] == 0


@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_another_task_is_learned_and_ends_nothing(shift):
    run = trained()
    decisions = run.train(300, lambda step, y: shift - y)
    assert run.optimizer.counters["new_levels"] > 0
    assert run.optimizer.counters["rollbacks"] == 0
    assert decisions[-1].loss < 0.5 * decisions[0].loss


def test_a_trial_and_a_rollback_are_not_twenty_steps_left_out():
    """Bad labels in bursts: the good state happens to be tried on three batches without."""
    run = trained()
    fine = range(STEPS + 8, STEPS + 11)

    def burst(step, y):
        return y if step in fine or step >= STEPS + 40 else 10.0 * y

    decisions = run.train(150, burst)
    reasons = [d.reason for d in decisions]
    assert run.optimizer.counters["rollbacks"] == 1 and reasons.index("learning rate") == 13
    assert reasons[14:22] == ["surprise"] * 7 + ["new level"], "eight more of them are accepted"
    assert decisions[-1].action != "skip"
    assert run.task.validation() < 0.5
