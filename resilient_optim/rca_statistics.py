"""Tests on a window of values: slope, rhythm, growth, turning points, level jump, and their tails.

Each takes an array of shape (n,), oldest value first, and states its null distribution; every one
is unchanged by v -> a*v + b with a > 0.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from . import statistics
from .loss_buffer import Array

SLOPE_DEGREE = 2
"""Noise is what a parabola leaves: the bend of a healthy curve is not mistaken for noise."""

RHO_MAX = 0.95
"""Beyond this autocorrelation a window holds less than one independent value in forty."""

JUMP_LENGTH = 4
JUMP_BEFORE = 16
JUMP_SIGMAS = 4.0
JUMP_CONFIDENCE = 1.0 - 1.0 / math.comb(JUMP_LENGTH + JUMP_BEFORE, JUMP_LENGTH)
"""A level jump: each of the last 4 values above all 16 before them by 4 standard deviations."""


VALUE_LIMIT = 1e150
"""Values beyond this count as infinite: their squares overflow, and such a run has diverged."""

MIN_HISTORY = 8
"""Entries of the record below which nothing is said."""

SLOPE_PARTS = (2, 4, 8)
"""The slope is tested over the last half, quarter and eighth of the record. All of it would never
forget how steeply the run began."""

LEVEL_LENGTH = 3
"""A level is the mean of at least this many entries, and of at least an eighth of the record."""


class SlopeTest(NamedTuple):
    """Slope per value with its standard error, and the one-sided p-values of a fall and a rise."""

    slope: float
    error: float
    p_down: float
    p_up: float


class Rhythm(NamedTuple):
    """The strongest rhythm: share of the variance, angular frequency in (0, pi], p-value."""

    amplitude: float
    omega: float
    p: float


NO_RHYTHM = Rhythm(0.0, 0.0, 1.0)


def slope_test(values: Array) -> SlopeTest:
    """One-sided t-tests of the least-squares slope; n >= 6.

    Null (white or AR(1) noise around a constant): Student's t with n_eff - 3 degrees of freedom,
    n_eff = n(1 - rho1)/(1 + rho1) independent values. The variance and rho1 are those of the
    residuals of a parabola; rho1 is corrected for the bias of detrending and not below 0. Source:
    SLOPE (statopt; arXiv 1909.09785), with the effective sample size of Bayley and Hammersley
    (1946). Approximate: sizes are measured in `tests/test_rca_statistics.py`.
    """
    n = len(values)
    x = np.arange(n) - 0.5 * (n - 1)
    s_xx = n * (n * n - 1) / 12
    slope = float(x @ (values - values[-1])) / s_xx
    residuals = detrended(values, SLOPE_DEGREE)
    if not residuals.any():
        return SlopeTest(slope, 0.0, *((0.0, 1.0) if slope < 0 else (1.0, float(slope == 0.0))))
    n_eff = effective_size(residuals, SLOPE_DEGREE)
    dof = max(1.0, n_eff - SLOPE_DEGREE - 1)
    variance = float(residuals @ residuals) / (n - SLOPE_DEGREE - 1)
    error = math.sqrt(variance / s_xx * n / n_eff)
    p_down = student_tail(-slope / error, dof)
    return SlopeTest(slope, error, p_down, 1.0 - p_down)


def effective_size(residuals: Array, degree: int) -> float:
    """n(1 - rho1)/(1 + rho1) for the residuals of a fitted polynomial; at least 2.

    A negative rho1 counts as 0: it would claim more evidence than there are values. Detrending
    lowers rho1 by about (degree + 1)(1 + rho1)/n, which is added back.
    """
    n = len(residuals)
    power = float(residuals @ residuals)
    rho = float(residuals[1:] @ residuals[:-1]) / power if power > 0.0 else 0.0
    rho += (degree + 1) * (1 + rho) / n
    rho = min(max(rho, 0.0), RHO_MAX)
    return max(2.0, n * (1 - rho) / (1 + rho))


def detrended(values: Array, degree: int) -> Array:
    """Residuals of a least-squares polynomial; exactly zero where only rounding is left."""
    basis = _polynomials(len(values), degree)
    shifted = values - values[-1]
    residuals: Array = shifted - basis @ (basis.T @ shifted)
    if float(np.abs(residuals).max()) <= statistics.ROUNDING * float(np.abs(values).max()):
        return np.zeros(len(values))
    return residuals


@functools.lru_cache(maxsize=1024)
def _polynomials(n: int, degree: int) -> Array:
    x = np.linspace(-1.0, 1.0, n)
    return np.linalg.qr(np.vander(x, degree + 1))[0]


def strongest_rhythm(values: Array) -> Rhythm:
    """The largest periodogram ordinate of the window, a parabola taken out; n >= 8.

    Null (white or positively autocorrelated AR(1) noise): Fisher's g over n // 2 frequencies. The
    p-value is taken after prewhitening by a positive rho1; amplitude and frequency are not.
    Conservative: the parabola takes from the lowest frequency, and the highest, which has one
    degree of freedom instead of two, is counted in full. A large amplitude is a rhythm only if p
    is small: of 32 values of white noise the strongest rhythm holds about a fifth of the variance.
    """
    residuals = detrended(values, 2)
    shares = _spectrum(residuals)
    if not shares.any():
        return NO_RHYTHM
    strongest = int(shares.argmax())
    n = len(values)
    n_eff = effective_size(residuals, 2)
    rho = (n - n_eff) / (n + n_eff)  # back from n_eff = n(1 - rho)/(1 + rho)
    whitened = residuals[1:] - rho * residuals[:-1] if rho > 0.0 else residuals
    white_shares = _spectrum(whitened)
    p = fisher_g_tail(float(white_shares.max()), len(white_shares))
    return Rhythm(float(shares[strongest]), 2 * math.pi * (strongest + 1) / n, p)


def _spectrum(residuals: Array) -> Array:
    """Shares of the variance at the frequencies 2*pi*j/n, j = 1 ... n // 2."""
    power = np.abs(np.fft.rfft(residuals)[1:]) ** 2
    if len(residuals) % 2 == 0:
        power[-1] *= 0.5  # the highest frequency appears once in the full spectrum, others twice
    total = float(power.sum())
    return power / total if total > 0.0 else power


def growth_p(values: Array) -> float:
    """p-value of a variance that grows from the first half of a window to the second; n >= 12.

    Null (independent normal noise): the ratio of the two residual variances follows F; each half
    is detrended by a line of its own.
    """
    half = len(values) // 2
    early = detrended(values[:half], 1)
    late = detrended(values[-half:], 1)
    before, after = float(early @ early), float(late @ late)
    if after == 0.0:
        return 1.0
    return f_tail(after / before, half - 2, half - 2) if before > 0.0 else 0.0


def slopes(record: Array) -> tuple[float, float]:
    """p-values of a fall and of a rise over the last half, quarter and eighth of the record.

    The smallest of the scales' p-values times their number (Bonferroni): under the null of
    `slope_test` at most uniform. The half has the power, the shorter parts see what is new.
    """
    lengths = {max(len(record) // part, MIN_HISTORY) for part in SLOPE_PARTS}
    tests = [slope_test(record[-length:]) for length in sorted(lengths)]
    down = min(test.p_down for test in tests) * len(tests)
    up = min(test.p_up for test in tests) * len(tests)
    return min(1.0, down), min(1.0, up)


def oscillation(recent: Array) -> tuple[Rhythm, float]:
    """The strongest rhythm of the recent values, and the p-value of one that grows.

    It takes both a rhythm (Fisher's g) and growth (F test): the larger p-value of the two, whose
    size is at most that of either.
    """
    span = float(np.abs(recent - recent[-1]).max()) if len(recent) else 0.0
    if len(recent) < 2 * MIN_HISTORY or span == 0.0:
        return NO_RHYTHM, 1.0
    scaled = (recent - recent[-1]) / span
    rhythm = strongest_rhythm(scaled)
    return rhythm, max(rhythm.p, growth_p(scaled))


def improvement(record: Array) -> float:
    """From the first entry to the lowest level since."""
    length = max(LEVEL_LENGTH, len(record) // 8)
    sums = np.concatenate(([0.0], record.cumsum()))
    levels = (sums[length:] - sums[:-length]) / length
    return max(0.0, float(record[0] - levels.min()))


def turning_point_z(values: Array) -> float:
    """Turning points, standardised: high in an oscillation, low in a smooth series; n >= 3.

    Null (exchangeable values of any continuous distribution): asymptotically standard normal,
    mean 2(n - 2)/3 and variance (16n - 29)/90 (Bienaymé, 1874).
    """
    n = len(values)
    steps = np.sign(values[1:] - values[:-1])
    turns = int((steps[1:] * steps[:-1] < 0).sum())
    return (turns - 2 * (n - 2) / 3) / math.sqrt((16 * n - 29) / 90)


def jumped(values: Array) -> bool:
    """Whether the level rose at once, `JUMP_LENGTH` values ago; False for fewer than 20 values.

    Null (exchangeable values): below 1 / C(20, 4) = 2e-4 by ranks alone, and far below it for
    light tails. A rise that takes several values is a slope, not a jump.
    """
    if len(values) < JUMP_LENGTH + JUMP_BEFORE:
        return False
    before = values[-JUMP_LENGTH - JUMP_BEFORE : -JUMP_LENGTH]
    rise = float(values[-JUMP_LENGTH:].min() - before.max())
    return rise > 0.0 and rise > JUMP_SIGMAS * statistics.noise_scale(before)


def fisher_g_tail(g: float, frequencies: int) -> float:
    """P(largest share >= g) of white noise's variance (Fisher, 1929).

    The alternating sum loses all digits for many frequencies; beyond 64 its first term, an upper
    bound that is close wherever p is small, is returned.
    """
    if g >= 1.0:
        return 0.0
    terms = min(frequencies, int(1 / g)) if frequencies <= 64 else 1
    tail = math.fsum(
        (-1) ** (j - 1) * math.comb(frequencies, j) * max(0.0, 1 - j * g) ** (frequencies - 1)
        for j in range(1, terms + 1)
    )
    return min(max(tail, 0.0), 1.0)


def student_tail(t: float, dof: float) -> float:
    """P(T >= t) of Student's t."""
    tail = 0.5 * incomplete_beta(0.5 * dof, 0.5, dof / (dof + t * t))
    return tail if t >= 0.0 else 1.0 - tail


def f_tail(ratio: float, dof_above: float, dof_below: float) -> float:
    """P(F >= ratio) of Fisher's F."""
    x = dof_below / (dof_below + dof_above * ratio)
    return incomplete_beta(0.5 * dof_below, 0.5 * dof_above, x)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function, by its continued fraction (DLMF 8.17.22, Lentz)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):  # where the fraction of the mirrored function converges faster
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0))
    fraction = d
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = fraction
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d)
            c = 1.0 + term / c
            fraction *= c * d
        if abs(fraction - before) <= 1e-15 * abs(fraction):
            break
    return math.exp(log_front) * fraction / a
