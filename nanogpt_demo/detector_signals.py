"""Loss traces of known nature: nothing happens in a null, one known thing in an alternative.

All are built around a level of 2.5 with noise of 0.1, much as a small language model's loss; the
rules under test do not depend on either, the ratio rules of others do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from resilient_optim.loss_buffer import Array

LEVEL = 2.5
SIGMA = 0.1
BURN_IN = 128
"""Steps before counting starts: the longest window of all rules."""

HORIZON = 200
"""Steps after an event within which it must be found."""

OUTLIER_EVERY = 40
"""Outliers are so far apart that most of them do not see another in the recent level."""

Make = Callable[[np.random.Generator, int, int], Array]


class Signal(NamedTuple):
    """A kind of trace.

    Attributes:
        name: What it is.
        parameter: Its size, in noise scales where it has one; empty if there is no choice.
        make: From generator, number of traces and steps to an array (traces, steps).
        outliers: Whether the event is one value every `OUTLIER_EVERY` steps instead of a change.
    """

    name: str
    parameter: str
    make: Make
    outliers: bool = False


def white(rng: np.random.Generator, traces: int, steps: int) -> Array:
    """Independent normal noise round a constant."""
    return LEVEL + SIGMA * rng.standard_normal((traces, steps))


def _heavy_tails(rng: np.random.Generator, traces: int, steps: int) -> Array:
    """Student's t with 3 degrees of freedom, of unit variance."""
    noise = rng.standard_t(3, (traces, steps))
    return np.asarray(LEVEL + SIGMA / np.sqrt(3.0) * noise)


def _descent(rng: np.random.Generator, traces: int, steps: int) -> Array:
    """Exponential descent; the constant noise is 1 to 10 % of the final level, by trace."""
    noise = 10 ** rng.uniform(-2.0, -1.0, (traces, 1))
    level = 1.5 + 2.5 * np.exp(-np.arange(steps) / 300)
    return np.asarray(level + 1.5 * noise * rng.standard_normal((traces, steps)))


def _autoregressive(rng: np.random.Generator, traces: int, steps: int) -> Array:
    """AR(1) noise with correlation 0.5: neighbouring batches resemble each other."""
    noise = rng.standard_normal((traces, steps))
    for step in range(1, steps):
        noise[:, step] = 0.5 * noise[:, step - 1] + np.sqrt(0.75) * noise[:, step]
    return LEVEL + SIGMA * noise


def _shrinking(rng: np.random.Generator, traces: int, steps: int) -> Array:
    """Level and noise fall together, as when the training data are being learnt by heart."""
    level = LEVEL * np.exp(-np.arange(steps) / 300)
    return level * (1.0 + 0.05 * rng.standard_normal((traces, steps)))


def _sawtooth(rng: np.random.Generator, traces: int, steps: int) -> Array:
    """Harmless epochs of 50 to 200 steps: a drop of two noise scales, then a slow rise."""
    length = rng.integers(50, 201, (traces, 1))
    phase = (np.arange(steps) + rng.integers(0, 200, (traces, 1))) % length / length
    return white(rng, traces, steps) + 2 * SIGMA * (phase - 0.5)


def _mostly_one_value(rng: np.random.Generator, traces: int, steps: int) -> Array:
    """Zero but for 2 to 20 % of the steps, by trace: a margin loss that is nearly satisfied."""
    share = rng.uniform(0.02, 0.2, (traces, 1))
    some = rng.random((traces, steps)) < share
    return np.where(some, np.abs(rng.standard_normal((traces, steps))), 0.0)


NULLS = (
    Signal("white noise", "", white),
    Signal("heavy tails", "t, 3 dof", _heavy_tails),
    Signal("descent", "noise 1-10 %", _descent),
    Signal("AR(1)", "0.5", _autoregressive),
    Signal("shrinking noise", "5 %", _shrinking),
    Signal("epoch sawtooth", "2", _sawtooth),
    Signal("mostly one value", "80-98 %", _mostly_one_value),
)


def _changed(shape: Callable[[Array], Array]) -> Make:
    """White noise with `shape` added, a function of the steps since the event (0 at its first)."""

    def make(rng: np.random.Generator, traces: int, steps: int) -> Array:
        losses = white(rng, traces, steps)
        losses[:, -HORIZON:] += SIGMA * shape(np.arange(HORIZON, dtype=np.float64))
        return losses

    return make


def _with_outliers(size: float) -> Make:
    def make(rng: np.random.Generator, traces: int, steps: int) -> Array:
        losses = white(rng, traces, steps)
        losses[:, -HORIZON::OUTLIER_EVERY] += SIGMA * size
        return losses

    return make


def _jump(size: float) -> Make:
    return _changed(lambda since: np.full_like(since, size))


def _decaying(size: float) -> Make:
    return _changed(lambda since: size * np.exp(-3.0 * since / HORIZON))


def _jump_in_descent(rng: np.random.Generator, traces: int, steps: int) -> Array:
    """The level falls by one noise scale in 20 steps, and jumps by four."""
    return _jump(4.0)(rng, traces, steps) - SIGMA * np.arange(steps) / 20


def _drift(slope: float) -> Make:
    return _changed(lambda since: slope * (since + 1.0))


ALTERNATIVES = (
    *(Signal("outlier", f"+{size}", _with_outliers(size), outliers=True) for size in (3, 5, 8, 20)),
    *(Signal("jump", f"+{size}", _jump(size)) for size in (1, 2, 4)),
    *(Signal("jump, learnt", f"+{size}", _decaying(size)) for size in (2, 4, 20)),
    Signal("jump in a descent", "+4", _jump_in_descent),
    *(Signal("drift up", f"+{slope:g}/step", _drift(slope)) for slope in (0.02, 0.05)),
    Signal("divergence", "x e/20 steps", _changed(lambda since: np.expm1((since + 1.0) / 20.0))),
)


def oscillation(
    rng: np.random.Generator, windows: int, n: int, period: int, amplitude: float
) -> Array:
    """White noise with a cosine of random phase; at period 2 of full swing, up and down.

    Args:
        rng: Generator.
        windows: Number of windows.
        n: Length of each.
        period: Steps of a cycle.
        amplitude: In noise scales.
    """
    turns = rng.uniform(0.0, 1.0 if period > 2 else 0.0, (windows, 1)) + np.arange(n) / period
    noise = rng.standard_normal((windows, n))
    return LEVEL + SIGMA * (noise + amplitude * np.cos(2.0 * np.pi * turns))
