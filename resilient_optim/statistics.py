"""Pure functions of a window of recent values: robust level and scale, z-score, autocorrelation.

Each takes an array of shape (n,), oldest value first, the value under judgement *excluded*: inside
a window of n values no z-score can exceed sqrt(n - 1), so an outlier would hide itself.
"""

from __future__ import annotations

import math

from .loss_buffer import Array

DECILES_TO_SIGMA = 2.563
"""The outer deciles of a normal distribution lie 2.563 standard deviations apart."""

WHITE_NOISE_RHO = -0.5
"""Lag-1 autocorrelation of the differences of white noise."""

ROUNDING = 1e-12
"""Differences below this share of the values are rounding, not signal."""

SPAN_FLOOR = 0.01
"""No scale is smaller than this share of the window's range. A noise-free descent has next to no
noise, yet a rise that is tiny beside the progress just made is no surprise."""


def median(values: Array) -> float:
    """The median; the mean of the two middle values if their number is even."""
    return _middle(_sorted(values))


def spread(values: Array) -> float:
    """Robust standard deviation: the interdecile range of the values over 2.563.

    Unmoved by outliers that are rarer than one in ten on either side. Unlike the median absolute
    deviation it does not collapse when two levels alternate.
    """
    return _decile_sigma(_sorted(values))


def noise_scale(values: Array) -> float:
    """Standard deviation of the noise of a drifting series; same unit as the values.

    The smaller of two estimates: the width of the deciles (robust to outliers, inflated by a
    trend) and the standard deviation of the differences over sqrt(2) (unmoved by a trend, inflated
    by outliers). The width is the interdecile range or twice its upper half, whichever is more: the
    losses of a run that has nearly converged are skewed. Floored at `SPAN_FLOOR` of the range.
    Where most values are equal (a loss that is mostly zero, or coarsely rounded) neither says
    anything and the range itself is taken: what has been seen before is then no surprise. Zero for
    a constant series. Unchanged by a shift of the series and proportional to its scale.
    """
    ordered = _sorted(values)
    differences = values[1:] - values[:-1]
    from_differences = math.sqrt(float(differences @ differences) / (2 * len(differences)))
    span = float(ordered[-1] - ordered[0])
    sigma = max(_decile_sigma(ordered), _upper_sigma(ordered))
    return max(min(sigma, from_differences), SPAN_FLOOR * span) if sigma > 0.0 else span


def difference_autocorrelation(values: Array) -> float:
    """Lag-1 autocorrelation of the differences of the values, in [-1, 1].

    It is -1/2 for white noise, 0 for a random walk, -1 for an oscillation of period 2 and positive
    for a smooth descent. Under white noise it is asymptotically normal with standard deviation
    sqrt(0.5 / n) for n differences (Bartlett's formula). A constant or linear series, of which
    nothing can be said, gives the white-noise value.
    """
    differences = values[1:] - values[:-1]
    differences -= float(values[-1] - values[0]) / len(differences)  # their mean
    power = float(differences @ differences)
    # What is left of a linear series after rounding carries no information.
    if power <= float(values @ values) * ROUNDING**2:
        return WHITE_NOISE_RHO
    return float(differences[1:] @ differences[:-1]) / power


def _sorted(values: Array) -> Array:
    ordered: Array = values.copy()
    ordered.sort()
    return ordered


def _decile_sigma(ordered: Array) -> float:
    tail = len(ordered) // 10
    return float(ordered[-1 - tail] - ordered[tail]) / DECILES_TO_SIGMA


def _upper_sigma(ordered: Array) -> float:
    tail = len(ordered) // 10
    return 2 * (float(ordered[-1 - tail]) - _middle(ordered)) / DECILES_TO_SIGMA


def _middle(ordered: Array) -> float:
    n = len(ordered)
    upper = float(ordered[n // 2])
    return upper if n % 2 else 0.5 * (float(ordered[n // 2 - 1]) + upper)
