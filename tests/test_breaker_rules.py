"""The rules of the circuit breaker, on numbers made by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_optim import Budgets
from resilient_optim import breaker_rules as rules
from resilient_optim.breaker_rules import BreakerState

LEARNED = BreakerState(first=10.0, best=2.0, best_scale=0.5)
"""A run that has come from 10 down to 2: most is lost above 8, everything above 10."""


def array(*values):
    return np.array(values, dtype=np.float64)


def counted(state, skipped=False, norm=1.0, same=False, wild_lr=False, changed=False):
    return rules.counted(state, skipped, norm, same, wild_lr, changed)


# -- what is counted ----------------------------------------------------------------------------


def test_the_share_of_skipped_steps_is_an_average_over_a_hundred():
    state = BreakerState()
    for _ in range(100):
        state = counted(state, skipped=True)
    assert state.skip_share == pytest.approx(1 - 0.99**100)
    for _ in range(100):
        state = counted(state)
    assert state.skip_share == pytest.approx((1 - 0.99**100) * 0.99**100)


def test_a_rollback_is_forgiven_after_a_hundred_steps_and_never_more_than_that():
    state = BreakerState(recent_rollbacks=1.0, rollbacks=1)
    for _ in range(99):
        state = counted(state)
    assert 0.0 < state.recent_rollbacks < 0.02
    for _ in range(5):
        state = counted(state)
    assert state.recent_rollbacks == 0.0 and state.rollbacks == 1


def test_equal_gradients_and_wild_learning_rates_are_counted_in_a_row():
    state = counted(counted(BreakerState(), same=True), same=True)
    assert state.same_gradients == 2 and state.last_norm == 1.0
    assert counted(state, norm=None).same_gradients == 0
    assert math.isnan(counted(state, norm=None).last_norm)
    wild = counted(counted(state, wild_lr=True), wild_lr=True)
    assert wild.wild_lrs == 2
    assert counted(wild).wild_lrs == 0


@given(st.floats(0.0, 1.0), st.floats(0.0, 5.0), st.floats(0.0, 50.0), st.integers(1, 120))
def test_quiet_steps_counted_together_are_as_if_counted_one_by_one(share, recent, habit, n):
    before = BreakerState(share, 2, recent, same_gradients=3, wild_lrs=4, habit=habit, low_norms=1)
    one_by_one = before
    for _ in range(n):
        one_by_one = counted(one_by_one, norm=2.0)
    assert repr(rules.passed(before, n, 2.0)) == repr(one_by_one), "to the bit"


def test_weights_that_change_every_now_and_then_are_changed_on_purpose():
    def habit(every, steps=2000):
        state = BreakerState()
        for step in range(steps):
            state = counted(state, changed=step % every == 0)
        return max(counted(state, changed=True).habit, 1.0)

    assert habit(1) > habit(20) > rules.HABIT_MAX > habit(100) > 1.0
    assert counted(BreakerState(), changed=True).habit == 1.0, "once is no habit"


def test_a_learning_rate_is_wild_after_twenty_steps():
    assert not rules.has_wild_lr(BreakerState(wild_lrs=19))
    assert rules.has_wild_lr(BreakerState(wild_lrs=20))


def test_a_state_comes_back_from_its_numbers():
    state = BreakerState(
        0.25, 3, 1.5, 10.0, 2.0, 0.1, -1, 64, 5.0, 1.0, 4.0, 7.0, 2, 9, 1.0, 4, 1.5, 90
    )  # fmt: skip
    assert BreakerState.of([float(x) for x in state]) == state
    assert [type(x) for x in BreakerState.of(list(map(float, state)))] == list(map(type, state))
    blank = BreakerState.of([float(x) for x in BreakerState()])
    assert repr(blank) == repr(BreakerState())


# -- divergence ---------------------------------------------------------------------------------


def test_limits_are_the_first_loss_and_three_quarters_of_the_way_to_it():
    assert LEARNED.limit == 10.0 and LEARNED.mostly_lost == 8.0
    noisy = LEARNED._replace(best_scale=2.0)  # 8 scales are more than all that was learned
    assert noisy.limit == 18.0
    assert noisy.mostly_lost == 18.0, "4 scales or less is next to nothing"
    assert LEARNED._replace(best_scale=1.9999).mostly_lost == 8.0
    assert (LEARNED.learned, BreakerState(first=1.0, best=2.0).learned) == (8.0, 0.0)
    assert BreakerState().learned == 0.0
    assert BreakerState().limit == BreakerState(best=1.0).limit == math.inf
    assert BreakerState(first=1.0).mostly_lost == math.inf


def test_the_best_level_is_kept_with_its_noise():
    state = BreakerState(first=10.0)
    for step, (level, scale) in enumerate([(8.0, 1.0), (5.0, 0.5), (6.0, 0.1), (5.0, 0.7)]):
        state = rules.watched(state, 8 * step, level, scale)
    assert (state.best, state.best_scale, state.high_since) == (5.0, 0.7, -1)


@pytest.mark.parametrize("level, scale", [(math.inf, 0.1), (math.nan, 0.1), (1.0, math.inf)])
def test_an_unknown_level_changes_nothing(level, scale):
    assert rules.watched(LEARNED, 8, level, scale) is LEARNED


def test_a_run_is_high_since_it_lost_all_that_it_had_learned():
    state = rules.watched(LEARNED, 80, 10.0, 0.5)
    assert state.high_since == -1, "the limit itself is not beyond it"
    state = rules.watched(state, 88, 10.1, 0.5)
    state = rules.watched(state, 96, 50.0, 0.5)
    assert state.high_since == 88
    assert rules.watched(state, 104, 9.9, 0.5).high_since == -1


def test_it_has_diverged_if_that_lasts_and_the_loss_does_not_come_down():
    high = LEARNED._replace(high_since=100)
    flat = np.full(64, 30.0)
    assert rules.has_diverged(high, 164, flat, 30.0)
    assert not rules.has_diverged(high, 163, flat, 30.0)
    assert not rules.has_diverged(LEARNED, 164, flat, 30.0)
    assert not rules.has_diverged(high, 164, flat[:47], 30.0)
    assert rules.has_diverged(high, 164, flat[:48], 30.0)
    # Half of what is in excess of 10 has to be made good within the window.
    assert rules.has_diverged(high, 164, flat, 23.4)
    assert not rules.has_diverged(high, 164, flat, 23.3)


# Few bits: a * l + b is then exact, and decisions are equal to the bit.
dyadic = st.integers(-4096, 4096).map(lambda n: n / 64)
series = st.lists(dyadic, min_size=0, max_size=64).map(lambda xs: array(*xs))


def moved(state, a, b):
    """The state of the run whose losses are a * l + b."""
    levels = ("first", "best", "data_level", "data_best", "data_lost")
    new = {name: a * getattr(state, name) + b for name in levels}
    return state._replace(best_scale=a * state.best_scale, **new)


@given(
    st.builds(
        BreakerState,
        first=dyadic,
        best=dyadic,
        best_scale=dyadic.map(abs),
        high_since=st.sampled_from([-1, 50, 100]),
        data_since=st.sampled_from([-1, 50, 100]),
        data_level=st.one_of(dyadic, st.just(math.nan)),
        data_best=dyadic,
        data_lost=dyadic,
        same_gradients=st.sampled_from([0, 49, 50]),
    ),
    series,
    dyadic,
    st.integers(-8, 8).map(lambda e: 2.0**e),
    dyadic,
)
def test_no_rule_minds_the_unit_of_the_loss(state, losses, level, a, b):
    other, scaled = moved(state, a, b), a * losses + b
    for step in (100, 164, 1000):
        verdicts = [
            [
                rules.has_diverged(s, step, values, at),
                rules.is_hopeless(s, step, values, at, 0.5),
                rules.began_badly(s, values),
                rules.is_stuck(s, values, 50),
                rules.stands_out(values, at),
                at > s.limit,
                at > s.mostly_lost,
            ]
            for s, values, at in ((state, losses, level), (other, scaled, a * level + b))
        ]
        assert verdicts[0] == verdicts[1]
        blamed = rules.blamed_on_data(other, step)
        assert repr(blamed) == repr(moved(rules.blamed_on_data(state, step), a, b))
        watched = rules.watched(other, step, a * level + b, a * 0.25)
        assert repr(watched) == repr(moved(rules.watched(state, step, level, 0.25), a, b))


def test_a_loss_that_stood_still_is_no_level():
    losses = array(3.0, *[2.5] * 4, 2.0)
    assert not rules.is_frozen(losses, 2.5)
    assert rules.is_frozen(np.append(losses, 2.5), 2.5)
    assert not rules.is_frozen(np.append(losses, 2.5), 2.0) and not rules.is_frozen(array(), 2.5)


# -- the opening, and standing still --------------------------------------------------------------


def test_a_run_began_badly_if_it_is_worse_than_its_first_loss_by_twice_its_noise():
    state = BreakerState(first=4.0)
    tail = array(*[0.0] * 8, *[7.0, 9.0] * 4)  # 8 in the middle, and a range of 2
    assert not rules.began_badly(state, tail)
    assert rules.began_badly(BreakerState(first=3.99), tail)
    assert not rules.began_badly(BreakerState(first=3.99), tail[1:]), "too short"
    assert not rules.began_badly(BreakerState(), tail), "the first loss is not known"


def test_gradient_norms_far_below_the_largest_of_the_opening_are_counted_in_a_row():
    state = rules.opened(BreakerState(), 1000.0)
    assert (state.top_norm, state.low_norms) == (1000.0, 0)
    state = rules.opened(rules.opened(state, 9.99), 1.0)
    assert (state.top_norm, state.low_norms) == (1000.0, 2)
    for nothing in (None, 0.0, math.nan, math.inf):
        assert rules.opened(state, nothing) is state
    assert rules.opened(state, 10.0).low_norms == 0
    higher = rules.opened(state, 2000.0)
    assert (higher.top_norm, higher.low_norms) == (2000.0, 0)


def test_a_loss_stands_out_above_the_window_by_more_than_its_range():
    window = array(1.0, 3.0, *[2.0] * 14)
    assert rules.stands_out(window, 5.01) and not rules.stands_out(window, 5.0)
    assert rules.stands_out(np.ones(16), 1.0001), "of a constant loss any change does"
    assert not rules.stands_out(np.ones(15), 100.0) and not rules.stands_out(array(), 1.0)
    assert not rules.stands_out(window, math.nan)


def test_gradients_are_stuck_only_while_the_loss_goes_up_and_down():
    stuck = BreakerState(same_gradients=50)
    wavy = array(*[1.0, 2.0] * 32)
    assert rules.is_stuck(stuck, wavy, 50)
    assert not rules.is_stuck(stuck._replace(same_gradients=49), wavy, 50)
    assert rules.is_stuck(stuck._replace(same_gradients=49), wavy, 49)
    assert not rules.is_stuck(stuck, wavy, math.inf)
    for steady in (np.ones(64), np.arange(64.0), -np.arange(64.0), array()):
        assert not rules.is_stuck(stuck, steady, 50)
    before = array(*[1.0, 2.0] * 7, *[2.0] * 50)
    assert not rules.is_stuck(stuck, before, 50), "what was before does not count"


# -- budgets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, error, words",
    [
        ({"skips_in_a_row": 0}, ValueError, ["skips_in_a_row", "0", "at least 1"]),
        ({"skips_in_a_row": 2.0}, TypeError, ["skips_in_a_row", "2.0", "an integer"]),
        ({"skip_share": 0.0}, ValueError, ["skip_share", "0.0", "(0, 1]"]),
        ({"skip_share": 1.01}, ValueError, ["skip_share", "1.01", "(0, 1]"]),
        ({"skip_share": None}, TypeError, ["skip_share", "None"]),
        ({"rollbacks": -1}, ValueError, ["rollbacks", "-1", "at least 0"]),
        ({"rollbacks": True}, TypeError, ["rollbacks", "True", "an integer"]),
        ({"fruitless": 0.0}, ValueError, ["fruitless", "0.0"]),
        ({"fruitless": math.nan}, ValueError, ["fruitless", "nan"]),
        ({"fruitless": "never"}, TypeError, ["fruitless", "'never'"]),
        ({"stuck_steps": 1}, ValueError, ["stuck_steps", "1", "[2, inf"]),
        ({"stuck_steps": math.nan}, ValueError, ["stuck_steps", "nan"]),
    ],
)
def test_wrong_budgets_are_named_with_their_value_and_what_they_must_be(settings, error, words):
    with pytest.raises(error) as info:
        Budgets(**settings)
    assert all(word in str(info.value) for word in words)


def test_the_widest_and_the_narrowest_budgets_are_accepted():
    Budgets(1, 1e-9, 0, 1e-9, 2)
    Budgets(10**9, 1.0, 10**9, math.inf, math.inf)
