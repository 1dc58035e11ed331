"""Statistics against independent formulas, hand-worked values and their null distributions."""

import math
import statistics as stdlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resilient_optim import statistics

# Dyadic values: sums and differences are exact, so that equalities can be tested to the bit.
dyadic = st.integers(-(2**20), 2**20).map(lambda n: n / 1024)
windows = hnp.arrays(np.float64, st.integers(3, 70), elements=dyadic)


@given(windows)
def test_median_is_the_median(values):
    assert statistics.median(values) == stdlib.median(values.tolist())


def test_noise_scale_takes_the_smaller_of_both_estimates():
    steep = np.arange(64.0) * 10 + np.tile([0.5, -0.5], 32)
    # Differences are 9 and 11: rms over sqrt(2), far below the spread of the trend.
    assert statistics.noise_scale(steep) == pytest.approx(math.sqrt((32 * 81 + 31 * 121) / 126))
    outlier = np.tile([1.0, -1.0], 32)
    outlier[10] = 1e6
    # The outer deciles are -1 and 1, but the floor is a hundredth of the range.
    assert statistics.noise_scale(outlier) == pytest.approx(0.01 * (1e6 + 1))
    outlier[10] = 50.0
    assert statistics.noise_scale(outlier) == pytest.approx(2 / 2.563)


def test_noise_scale_of_mostly_equal_values_is_their_range():
    mostly_zero = np.zeros(64)
    mostly_zero[[5, 40]] = 3.0
    assert statistics.noise_scale(mostly_zero) == 3.0
    assert statistics.noise_scale(np.ones(64)) == 0.0


def test_spread_by_hand():
    assert statistics.spread(np.arange(20.0)[::-1]) == pytest.approx((17 - 2) / 2.563)
    assert statistics.spread(np.tile([1.0, 3.0], 32)) == pytest.approx(2 / 2.563)


def test_noise_scale_of_white_noise_is_its_standard_deviation():
    noise = np.random.default_rng(0).normal(5.0, 3.0, size=(400, 64))
    scales = [statistics.noise_scale(row) for row in noise]
    # The smaller of two noisy estimates is a little low: about 8 % at n = 64.
    assert np.mean(scales) == pytest.approx(3.0, rel=0.12)


@given(windows, st.integers(-20, 20), dyadic)
def test_noise_scale_ignores_shifts_and_follows_scale(values, exponent, shift):
    factor = 2.0**exponent
    expected = factor * statistics.noise_scale(values)
    assert statistics.noise_scale(values * factor + shift * factor) == expected


def naive_autocorrelation(values):
    differences = np.diff(values)
    deviations = differences - differences.mean()
    products = sum(a * b for a, b in zip(deviations, deviations[1:], strict=False))
    return products / sum(d * d for d in deviations)


@given(hnp.arrays(np.float64, 64, elements=dyadic, unique=True))
def test_autocorrelation_matches_the_naive_formula(values):
    expected = naive_autocorrelation(values)
    assert statistics.difference_autocorrelation(values) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("period 2", np.tile([1.0, 2.0], 32), -62 / 63),
        ("constant", np.full(64, 3.7), -0.5),
        ("linear", 0.1 * np.arange(64) + 3.7, -0.5),
        ("smooth descent", np.exp(-0.05 * np.arange(64)), 0.9),
    ],
)
def test_autocorrelation_of_known_series(name, values, expected):
    assert statistics.difference_autocorrelation(values) == pytest.approx(expected, abs=0.06)


def test_null_distributions_of_the_autocorrelation():
    random = np.random.default_rng(1).normal(size=(2000, 65))
    white = [statistics.difference_autocorrelation(row) for row in random]
    walk = [statistics.difference_autocorrelation(row) for row in random.cumsum(axis=1)]
    assert np.mean(white) == pytest.approx(-0.5, abs=0.02)
    assert np.mean(walk) == pytest.approx(0.0, abs=0.03)
    # Bartlett's standard error for n = 64 differences, which sets the guard's false-alarm rate.
    assert np.std(white) == pytest.approx(math.sqrt(0.5 / 64), rel=0.12)
    assert np.mean(np.array(white) < -0.75) < 0.01
