"""Numbers that sum up a run: pure functions of its losses, small enough to check by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

SMOOTHING = 20  # steps: shorter than any event we time, longer than the batch noise
SPIKE_WINDOW = 128
SPIKE_STD = 7.0
RECOVERY_TOLERANCE = 0.05


def smooth(losses: ArrayLike, window: int = SMOOTHING) -> NDArray[np.float64]:
    """Trailing mean: entry i averages the last ``window`` values up to and including i.

    Args:
        losses: (N,) values; a non-finite one makes the entries that include it non-finite.
        window: At least 1; the first entries average what there is.

    Returns:
        (N,) means.
    """
    values = np.asarray(losses, dtype=np.float64)
    starts = np.maximum(np.arange(len(values)) - window + 1, 0)
    return np.array([values[s : i + 1].mean() for i, s in enumerate(starts)])


def spike_score(losses: ArrayLike, window: int = SPIKE_WINDOW, std: float = SPIKE_STD) -> float:
    """Share of values above mean + ``std`` standard deviations of the ``window`` before them.

    Args:
        losses: (N,) values; a non-finite value whose window is finite is a spike, a window with a
            non-finite value judges nothing.
        window: Number of preceding values; the first ``window`` values have too few and are not
            judged.
        std: Height of the threshold.

    Returns:
        Percent of all N values; 0 if there are none to judge.
    """
    values = np.asarray(losses, dtype=np.float64)
    if len(values) <= window:
        return 0.0
    before = np.lib.stride_tricks.sliding_window_view(values, window)[:-1]  # (N - window, window)
    with np.errstate(invalid="ignore"):
        limit = before.mean(axis=1) + std * before.std(axis=1)
    spikes = np.isfinite(limit) & ~(values[window:] <= limit)  # NaN counts as above
    return float(100 * spikes.sum() / len(values))


def gap(losses: ArrayLike, event: int, window: int = SMOOTHING) -> float | None:
    """Worst smoothed loss after an event minus the level before it.

    Args:
        losses: (N,) values.
        event: Index of the first value after the event.
        window: Smoothing in steps; the two sides are smoothed apart.

    Returns:
        The gap in nats, or None if one side is empty.
    """
    values = np.asarray(losses, dtype=np.float64)
    if not 0 < event < len(values):
        return None
    with np.errstate(invalid="ignore"):  # both sides infinite: not a number, and said so
        return float(smooth(values[event:], window).max() - values[:event][-window:].mean())


def final_level(losses: ArrayLike, event: int = 0, window: int = SMOOTHING) -> float:
    """Mean of the last ``window`` values from ``event`` on."""
    return float(np.asarray(losses, dtype=np.float64)[event:][-window:].mean())


def recovery_steps(
    losses: ArrayLike,
    event: int,
    reference_level: float,
    tolerance: float = RECOVERY_TOLERANCE,
    window: int = SMOOTHING,
) -> int | None:
    """Steps after an event until the smoothed loss is close to a reference level.

    Only values after the event are averaged, else the good ones before it would count as recovery.

    Args:
        losses: (N,) values.
        event: Index of the first value after the event.
        reference_level: What counts as recovered, e.g. the best method's final level.
        tolerance: How far above it is still close, relative.
        window: Smoothing in steps; no earlier entry counts, for it would rest on fewer values.

    Returns:
        Number of steps taken since the event, or None if that level was never reached.
    """
    if not math.isfinite(reference_level):
        return None
    after = smooth(np.asarray(losses, dtype=np.float64)[event:], window)
    reached = np.flatnonzero(after[window - 1 :] <= (1 + tolerance) * reference_level)
    return int(reached[0]) + window if len(reached) else None


class Mean(NamedTuple):
    """A mean, its standard error (None for fewer than two values) and the number of values."""

    mean: float
    se: float | None
    n: int


def mean_se(values: Sequence[float]) -> Mean:
    """Mean and standard error s / sqrt(n), with n - 1 in the denominator of s².

    Raises:
        ValueError: If there are no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("values must be non-empty, got []; leave out groups without runs")
    se = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return Mean(float(np.mean(values)), se, n)


def paired(a: Sequence[float], b: Sequence[float]) -> Mean:
    """Mean and standard error of a[i] - b[i].

    Raises:
        ValueError: If the lengths differ or are zero.
    """
    if len(a) != len(b):
        raise ValueError(
            f"a and b must be equally long, got {len(a)} and {len(b)}; pair them by seed"
        )
    return mean_se([x - y for x, y in zip(a, b, strict=True)])


def verdict(difference: Mean | None) -> str:
    """Judge a paired difference of losses (ours minus theirs).

    Returns:
        ``"better"`` or ``"worse"`` beyond two standard errors, ``"tied"`` within one, else
        ``"unclear"``; also ``"unclear"`` without a standard error.
    """
    if difference is None or difference.se is None:
        return "unclear"
    if abs(difference.mean) <= difference.se:
        return "tied"
    if abs(difference.mean) <= 2 * difference.se:
        return "unclear"
    return "better" if difference.mean < 0 else "worse"
