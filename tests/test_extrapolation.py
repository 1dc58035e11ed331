"""Learning curves continued: known curves, coverage, invariances, the record they are kept in."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_optim.extrapolation import (
    extrapolate,
    fit_curve,
    steps_until,
)
from resilient_optim.run_record import RECORD, RunRecord

CURVES = {
    "power 0.35": lambda t: 2 + (1 + t) ** -0.35,
    "power 0.5": lambda t: 2 + (1 + t) ** -0.5,
    "power 1": lambda t: (1 + t / 10) ** -1.0,
    "exponential": lambda t: np.exp(-t / 40),
    "slow exponential": lambda t: 5 + np.exp(-t / 200),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("n", [32, 256])
def test_a_clean_curve_is_continued(name, n):
    curve = CURVES[name]
    values = curve(np.arange(float(n)))
    forecast = extrapolate(values, n / 2)
    fall = values[0] - values[-1]
    assert forecast.final == pytest.approx(curve(1.5 * n - 1), abs=0.04 * fall)
    assert forecast.low <= forecast.final <= forecast.high


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("sigma", [0.01, 0.05])
def test_the_interval_covers_or_is_close(name, sigma):
    # Off-grid shapes are missed by up to a grid step: "close" is 25 % of the true gain.
    n, rng = 64, np.random.default_rng(1)
    truth = CURVES[name](np.arange(1.5 * n))
    gain = truth[n - 1] - truth[-1]
    slack = 0.25 * gain
    inside = []
    for _ in range(60):
        got = fit_curve(truth[:n] + sigma * rng.normal(size=n)).gain(n / 2)
        inside.append(got.low - slack <= gain <= got.high + slack)
    assert np.mean(inside) > 0.8


@pytest.mark.parametrize("n", [16, 64, 256])
def test_the_gain_of_flat_noise_shrinks_with_the_values(n):
    rng = np.random.default_rng(2)
    highs = []
    for _ in range(60):
        fit = fit_curve(rng.normal(size=n))
        highs.append(fit.gain(n / 2).high / fit.sigma)
    assert np.median(highs) < 3.2 / math.sqrt(n)
    assert np.median(highs) > 0.5 / math.sqrt(n)


def test_noise_of_the_values_is_recovered():
    rng = np.random.default_rng(3)
    t = np.arange(200.0)
    sigmas = [fit_curve(np.exp(-t / 50) + 0.1 * rng.normal(size=200)).sigma for _ in range(30)]
    assert np.mean(sigmas) == pytest.approx(0.1, rel=0.05)


def test_a_change_of_the_learning_rate_leaves_the_older_half_out():
    t = np.arange(128.0)
    noise = 0.005 * np.random.default_rng(4).normal(size=128)
    curve = np.where(t < 64, 1 - 0.2 * t / 64, 0.4 * np.exp(-(t - 64) / 20) + 0.1)
    assert fit_curve(curve + noise).length < 128
    assert fit_curve(np.exp(-t / 40) + noise).length == 128


def test_a_rising_curve_has_nothing_to_gain():
    rise = np.arange(40.0) + 0.1 * np.random.default_rng(5).normal(size=40)
    fit = fit_curve(rise)
    assert fit.gain(20) == (0.0, 0.0, 0.0)
    assert fit.probability_below(0.0, 20) == 1.0
    assert extrapolate(rise, 10).low <= extrapolate(rise, 10).final
    assert steps_until(rise, 0.1, 10) == 0


def test_a_constant_curve_stays():
    assert extrapolate(np.full(20, 3.7), 100) == pytest.approx((3.7, 3.7, 3.7))
    assert steps_until(np.full(20, 3.7), 0.0, 10) == 0


def test_steps_until_the_gain_is_gone():
    values = np.exp(-np.arange(100.0) / 50)
    # exp(-(99 + s)/50) * (1 - exp(-20/50)) = 0.01 at s = 50 ln(0.3297/0.01) - 99 = 75.8
    assert steps_until(values, 0.01, 20) == pytest.approx(75.8, abs=5)
    assert steps_until(values, 1.0, 20) == 0
    assert steps_until(np.arange(100.0)[::-1], 1e-6, 20, limit=10) is None


def test_probability_agrees_with_the_interval():
    fit = fit_curve(np.random.default_rng(6).normal(size=50))
    gain = fit.gain(25)
    assert fit.probability_below(gain.high, 25) == pytest.approx(0.95, abs=0.02)
    assert fit.probability_below(gain.low - 1e-9, 25) <= 0.06


@given(st.integers(0, 1000), st.integers(-30, 30), st.integers(-50, 50))
@settings(max_examples=30)
def test_forecasts_follow_scale_and_shift(seed, exponent, shift):
    values = np.random.default_rng(seed).integers(0, 4096, size=40) / 64 + np.arange(40.0)[::-1]
    factor = 2.0**exponent
    here, there = extrapolate(values, 20), extrapolate(factor * (values + shift), 20)
    for a, b in zip(here, there, strict=True):
        assert b == pytest.approx(factor * (a + shift), rel=1e-9, abs=1e-7 * factor)


@pytest.mark.parametrize("values", [np.ones(5), np.r_[np.ones(9), np.nan], np.ones((4, 4))])
def test_what_cannot_be_fitted_is_refused(values):
    with pytest.raises(ValueError, match="values must be at least 6 finite numbers"):
        extrapolate(values, 5)


def test_it_is_fast():
    values = np.exp(-np.arange(256.0) / 50) + 0.01 * np.random.default_rng(7).normal(size=256)
    extrapolate(values, 100)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        extrapolate(values, 100)
        times.append(time.perf_counter() - start)
    assert min(times) < 5e-3


@given(st.integers(0, 3000))
@settings(max_examples=20)
def test_the_record_grows_value_by_value_as_at_once(n):
    values = np.random.default_rng(n).integers(0, 4096, size=n) / 64
    one, all_at_once = RunRecord(), RunRecord()
    for value in values.tolist():
        one.append(value)
    all_at_once.fill(values)
    assert one.block == all_at_once.block
    assert len(one.entries) <= RECORD
    np.testing.assert_array_equal(one.entries, all_at_once.entries)
    assert one.partial[1] == n - len(one.entries) * one.block
