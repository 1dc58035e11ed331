"""RCA's tests against independent formulas and, by simulation, against their null distributions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilient_optim import rca_statistics as tests


def noise(rho, rows, n, seed=0):
    """Rows of AR(1) noise from its stationary distribution."""
    e = np.random.default_rng(seed).normal(size=(rows, n))
    e[:, 0] /= math.sqrt(1 - rho * rho)
    for i in range(1, n):
        e[:, i] += rho * e[:, i - 1]
    return e


def share(statistic, rows, level=0.05):
    return float(np.mean([statistic(row) < level for row in rows]))


@pytest.mark.parametrize(
    ("t", "dof", "tail"),
    [
        (2.228, 10, 0.025),
        (1.8125, 10, 0.05),
        (6.314, 1, 0.05),
        (1.64485, 1e6, 0.05),
        (-2.228, 10, 0.975),
    ],
)
def test_student_tail_against_the_tables(t, dof, tail):
    assert tests.student_tail(t, dof) == pytest.approx(tail, abs=3e-5)


@pytest.mark.parametrize(("f", "a", "b"), [(2.978, 10, 10), (4.964, 1, 10), (1.6928, 40, 40)])
def test_f_tail_against_the_tables(f, a, b):
    assert tests.f_tail(f, a, b) == pytest.approx(0.05, abs=2e-4)


@given(st.floats(0.5, 200), st.floats(0.5, 200), st.floats(0.0, 1.0))
def test_incomplete_beta_is_a_distribution_function(a, b, x):
    value = tests.incomplete_beta(a, b, x)
    assert -1e-12 <= value <= 1 + 1e-12
    assert value + tests.incomplete_beta(b, a, 1 - x) == pytest.approx(1.0, abs=1e-9)
    assert tests.incomplete_beta(a, b, min(1.0, x + 0.01)) >= value - 1e-9


def test_incomplete_beta_in_closed_form():
    for x in (0.1, 0.5, 0.9):
        assert tests.incomplete_beta(1, 3, x) == pytest.approx(1 - (1 - x) ** 3, abs=1e-14)
        assert tests.incomplete_beta(0.5, 0.5, x) == pytest.approx(
            2 / math.pi * math.asin(math.sqrt(x)), abs=1e-12
        )


def test_fisher_g_against_the_tables_and_its_bounds():
    # 5 % points of Fisher's g for 10 and 20 ordinates (Russell, 1985).
    assert tests.fisher_g_tail(0.44495, 10) == pytest.approx(0.05, abs=1e-4)
    assert tests.fisher_g_tail(0.27046, 20) == pytest.approx(0.05, abs=1e-4)
    assert tests.fisher_g_tail(1.0, 20) == 0.0
    assert tests.fisher_g_tail(1 / 20, 20) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("n", [8, 16, 32, 64])
def test_size_of_the_slope_test_under_white_noise(n):
    assert share(lambda row: tests.slope_test(row).p_down, noise(0.0, 800, n)) < 0.07
    assert share(lambda row: tests.slope_test(row).p_up, noise(0.0, 800, n)) < 0.07


@pytest.mark.parametrize(
    ("rho", "n", "limit"), [(0.3, 32, 0.08), (0.6, 32, 0.12), (0.6, 128, 0.09)]
)
def test_size_of_the_slope_test_under_autocorrelated_noise(rho, n, limit):
    rows = noise(rho, 500, n)
    size = share(lambda row: tests.slope_test(row).p_down, rows)
    assert size < limit

    def naive(row):  # what the effective sample size is for
        x = np.arange(n) - (n - 1) / 2
        slope = x @ row / (x @ x)
        rest = row - row.mean() - slope * x
        error = math.sqrt(rest @ rest / (n - 2) / (x @ x))
        return tests.student_tail(-slope / error, n - 2)

    assert share(naive, rows) > 1.4 * size


def test_power_of_the_slope_test():
    # A fall of 3 sigma over 32 values: z = 3 / sqrt(12 / 32) = 4.9.
    fall = -3 * np.arange(32) / 31
    assert share(lambda row: tests.slope_test(row).p_down, fall + noise(0.0, 200, 32)) > 0.95
    # The bend of a clean curve is not noise.
    for n in (8, 32, 128):
        assert tests.slope_test(np.exp(-np.arange(n) / n)).p_down < 0.01


def test_slope_of_a_line_and_of_a_constant():
    down = tests.slope_test(5 - 0.25 * np.arange(12))
    assert (down.slope, down.error, down.p_down, down.p_up) == (-0.25, 0.0, 0.0, 1.0)
    assert tests.slope_test(np.full(12, 3.7))[2:] == (1.0, 1.0)


def test_size_of_the_test_at_several_scales():
    rows = noise(0.0, 500, 64, seed=3)
    assert share(lambda row: tests.slopes(row)[0], rows) < 0.06
    assert share(lambda row: tests.slopes(row)[1], rows) < 0.06


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
def test_size_of_the_rhythm_test(rho):
    for n in (32, 63, 64):
        assert share(lambda row: tests.strongest_rhythm(row).p, noise(rho, 400, n)) < 0.08


def test_white_noise_has_a_strongest_rhythm_too():
    shares = [tests.strongest_rhythm(row).amplitude for row in noise(0.0, 400, 32)]
    assert np.mean(shares) == pytest.approx(math.log(16) / 16 + 0.577 / 16, abs=0.04)


@pytest.mark.parametrize(("period", "n"), [(2, 64), (4, 64), (8, 64), (5, 40)])
def test_a_rhythm_is_found_with_its_frequency(period, n):
    wave = np.cos(2 * np.pi * np.arange(n) / period)
    rhythm = tests.strongest_rhythm(wave + 0.3 * noise(0.0, 1, n)[0] - 0.05 * np.arange(n))
    assert rhythm.omega == pytest.approx(2 * math.pi / period)
    assert rhythm.amplitude > 0.5
    assert rhythm.p < 1e-6


def test_no_rhythm_in_a_line():
    assert tests.strongest_rhythm(0.1 * np.arange(40.0)) == tests.NO_RHYTHM


def test_growing_variance():
    rows = noise(0.0, 800, 64)
    assert share(tests.growth_p, rows) == pytest.approx(0.05, abs=0.025)
    assert share(tests.growth_p, rows * np.repeat([1.0, 2.5], 32)) > 0.95
    assert tests.growth_p(np.ones(20)) == 1.0
    assert tests.growth_p(np.r_[np.ones(16), np.tile([0.0, 1.0], 8)]) == 0.0


def test_oscillation_takes_rhythm_and_growth():
    i = np.arange(64)
    wave = np.where(i % 2, 1.0, -1.0)
    assert share(lambda row: tests.oscillation(row)[1], noise(0.0, 400, 64)) < 0.02
    assert tests.oscillation(wave)[1] > 0.4
    assert tests.oscillation(wave * np.exp(i / 30))[1] < 1e-3


def test_turning_points_of_white_noise_are_standard_normal():
    z = [tests.turning_point_z(row) for row in noise(0.0, 2000, 64)]
    assert np.mean(z) == pytest.approx(0.0, abs=0.08)
    assert np.std(z) == pytest.approx(1.0, abs=0.06)
    assert np.mean(np.array(z) < -1.645) == pytest.approx(0.05, abs=0.025)


def test_turning_points_by_hand():
    assert tests.turning_point_z(np.array([1.0, 3.0, 2.0, 5.0])) == pytest.approx(
        (2 - 4 / 3) / math.sqrt(35 / 90)
    )
    assert tests.turning_point_z(np.arange(30.0)) < -8
    assert tests.turning_point_z(np.tile([0.0, 1.0], 15)) > 3


def test_jumps_are_told_from_slopes_and_noise():
    rows = noise(0.0, 2000, 20)
    assert not any(tests.jumped(row) for row in rows)
    high = np.r_[np.zeros(16), np.full(4, 12.0)]
    assert np.mean([tests.jumped(row + high) for row in rows]) > 0.95
    assert not any(tests.jumped(row - high) for row in rows)
    assert not tests.jumped(np.arange(40.0))
    assert not tests.jumped(np.r_[np.zeros(16), np.full(3, 9.0)])


def test_improvement_is_from_the_first_entry_to_the_lowest_level():
    assert tests.improvement(np.array([5.0, 3, 1, 1, 1, 2, 2, 2])) == 4.0
    assert tests.improvement(np.arange(12.0)) == 0.0
