"""Statistics of windows of the loss: is there a rhythm, is there a trend?

All take an array (windows, n), oldest value first, and return one number for each window.
"""

from __future__ import annotations

import math

import numpy as np

from resilient_optim import statistics
from resilient_optim.loss_buffer import Array

BAND = (8, 31)
"""Fourier frequencies of an odd window of 63 with periods from 7.9 down to 2.03 steps."""

ORDINATES = BAND[1] - BAND[0] + 1


# -- rhythm: each statistic grows with it -----------------------------------------------------


def anticorrelation(windows: Array) -> Array:
    """Minus the shipped lag-1 autocorrelation of the differences."""
    return np.array([-statistics.difference_autocorrelation(window) for window in windows])


def periodogram(windows: Array, finer: int = 1) -> Array:
    """Power at the Fourier frequencies 1 to (n-1)/2 of the detrended newest n values, n odd.

    With n odd no frequency is exactly half the sampling rate, so that all ordinates of white
    noise have the same distribution and Fisher's test is exact.

    Args:
        windows: Shape (windows, n or n + 1).
        finer: Frequencies for each Fourier frequency, itself the last.
    """
    n = windows.shape[1] - (windows.shape[1] + 1) % 2
    spectrum = np.fft.rfft(detrended(windows[:, -n:]), finer * n, axis=1)[:, 1:]
    return np.asarray(np.abs(spectrum) ** 2)


def detrended(windows: Array) -> Array:
    """The windows without their mean and least-squares slope."""
    time = _centred_time(windows.shape[1])
    centred = windows - windows.mean(axis=1, keepdims=True)
    return np.asarray(centred - np.outer(centred @ time / (time @ time), time))


def _centred_time(n: int) -> Array:
    return np.arange(n, dtype=np.float64) - (n - 1) / 2


def spectral_order(windows: Array) -> Array:
    """Minus the spectral entropy, normalised: -1 is a flat spectrum, 0 a pure rhythm."""
    power = periodogram(windows)
    share = power / power.sum(axis=1, keepdims=True).clip(1e-300)
    logs = np.log(share.clip(1e-300))
    return np.asarray((share * logs).sum(axis=1) / math.log(power.shape[1]))


def fisher_g(windows: Array) -> Array:
    """Fisher's g: the largest share of one frequency in the power at periods from 2 to 8."""
    power = periodogram(windows)[:, BAND[0] - 1 : BAND[1]]
    return np.asarray(power.max(axis=1) / power.sum(axis=1).clip(1e-300))


def half_step_g(windows: Array) -> Array:
    """As `fisher_g`, looking half-way between the frequencies, too.

    A rhythm there (period 6 in a window of 63, or period 2) loses 60 % of its power to leakage.
    The null distribution is no longer exact. Period 2 counts half: it has one degree of freedom
    where the others have two, and would set the threshold for all of them.
    """
    power = periodogram(windows, finer=2)[:, 2 * BAND[0] - 2 :]
    power[:, -1] *= 0.5
    return np.asarray(power.max(axis=1) / power[:, 1::2].sum(axis=1).clip(1e-300))


def whitened_g(windows: Array) -> Array:
    """As `half_step_g`, of what neighbouring values do not predict of each other.

    Noise that is correlated from batch to batch has more power at long periods, which is no
    rhythm. A negative correlation is kept: that is what a rhythm of period 2 or 3 looks like.
    """
    residual = detrended(windows)
    power = (residual**2).sum(axis=1).clip(1e-300)
    rho = ((residual[:, 1:] * residual[:, :-1]).sum(axis=1) / power).clip(0.0)
    return half_step_g(residual[:, 1:] - rho[:, None] * residual[:, :-1])


def fisher_p(g: float, ordinates: int) -> float:
    """Probability that Fisher's g of white noise exceeds `g`; exact (Fisher 1929)."""
    terms = range(1, min(ordinates, int(1.0 / g)) + 1)
    signed = ((-1) ** (k - 1) * math.comb(ordinates, k) * (1 - k * g) ** (ordinates - 1)
              for k in terms)  # fmt: skip
    return min(1.0, max(0.0, math.fsum(signed)))


def fisher_threshold(p: float, ordinates: int = ORDINATES) -> float:
    """The g that white noise exceeds with probability `p`."""
    low, high = 1.0 / ordinates, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fisher_p(middle, ordinates) > p else (low, middle)
    return high


# -- trend -------------------------------------------------------------------------------------


def slope_scores(windows: Array, effective: bool) -> Array:
    """Standard-normal score of the least-squares slope; positive for a falling loss.

    Args:
        windows: Shape (windows, n).
        effective: Count n(1-rho)/(1+rho) values, rho the lag-1 autocorrelation of the residuals.
    """
    n = windows.shape[1]
    time = _centred_time(n)
    residual = detrended(windows)
    left = (residual**2).sum(axis=1)
    slope = (windows - windows.mean(axis=1, keepdims=True)) @ time / (time @ time)
    explained = slope**2 * (time @ time)
    rho = (residual[:, 1:] * residual[:, :-1]).sum(axis=1) / left.clip(1e-300)
    count = np.clip(n * (1 - rho) / (1 + rho), 4.0, n) if effective else np.full(len(windows), n)
    freedom = count - 2.0
    t_squared = explained / left.clip(1e-300) * freedom
    # Wallace's approximation of the normal score of Student's t: good to 0.01 from 2 dof on.
    score = (8 * freedom + 1) / (8 * freedom + 3) * np.sqrt(freedom * np.log1p(t_squared / freedom))
    return np.asarray(-np.sign(slope) * score)
