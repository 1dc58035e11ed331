"""Where a learning curve is going: power laws with an offset, averaged by their evidence.

Model: v(t) = c + a * (1 + t / (k * tau))^-k + noise: the power law c + a'(t + t0)^-k with
t0 = k * tau (pow3 and pow4 of Domhan, Springenberg and Hutter, IJCAI 2015), and for k -> infinity
the exponential c + a * exp(-t / tau). k and tau lie on a grid; given both, c and a are a linear
least-squares fit in closed form. Instead of choosing one node of the grid, every forecast is
averaged over all by their marginal likelihood: most of the uncertainty of an extrapolation is the
shape, not the noise. A negative fall (a rising curve) counts as no gain. No random numbers, no
iteration. The grid's steps (a quarter of an octave in tau, half of one in k) leave an error of
some per cent of the gain, which the interval of a curve almost without noise does not show.
"""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from .loss_buffer import Array
from .rca_statistics import effective_size, turning_point_z

MIN_VALUES = 6
"""Two linear and two shape parameters; below six values nothing checks them."""

SUFFIX_MIN = 24
"""A part of the curve is fitted alone only if it has this many values."""

MISFIT_Z = -2.5
"""A fit whose residuals turn this much too seldom misses the curve's shape; p < 0.01 under white
residuals."""

CLOSE_FIT = 0.01
"""Residuals below this share of the fitted fall do not matter, however smooth."""

SHAPES = tuple(
    (k, 2.0 ** (i / 4))
    for k in (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0, math.inf)
    for i in range(-20 if k >= 2.0 else -32, 17)
)
"""Pairs (k, tau), tau in units of the fitted length: up to 16 (straight), down to 1/32 where the
curve has long settled by then, to 1/256 where it has not: a power law that began at the first of
256 values has its offset there."""

ATOMS = 33
QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / ATOMS) for i in range(ATOMS)])
# The same quantiles in an order that is uncorrelated with the first (the golden ratio mod 1).
SHUFFLED = QUANTILES[np.argsort([(i * 0.6180339887498949) % 1.0 for i in range(ATOMS)])]


class Forecast(NamedTuple):
    """A forecast with its 90 % interval; of the level, not of one noisy value."""

    final: float
    low: float
    high: float


class Fit(NamedTuple):
    """The posterior of a falling curve, as weighted atoms on a grid of shapes.

    Attributes:
        exponents: k of each shape, shape (J,).
        scales: tau of each shape, in values, shape (J,).
        falls: fall over the fitted part, shape (J, ATOMS); never negative.
        weights: probability of each atom, shape (J, ATOMS); they add up to 1.
        level: the fitted value at the last one (posterior mean).
        sigma: standard deviation of the noise of one value.
        level_error: standard error of the mean of the fitted part.
        length: values fitted.
    """

    exponents: Array
    scales: Array
    falls: Array
    weights: Array
    level: float
    sigma: float
    level_error: float
    length: int

    def gains(self, steps: float, start: float = 0.0) -> Array:
        """Fall from `start` to `start + steps` values after the last, of each atom."""
        now = self.length - 1 + start
        drop = _decay(self.exponents, self.scales, np.array([now, now + steps]))
        whole = _decay(self.exponents, self.scales, np.array([0.0, self.length - 1.0]))
        ratio = (drop[:, 0] - drop[:, 1]) / (whole[:, 0] - whole[:, 1])
        gains: Array = self.falls * ratio[:, None]
        return gains

    def gain(self, steps: float, start: float = 0.0) -> Forecast:
        """Expected fall over the next `steps` values and its 90 % interval; never negative."""
        return _summary(self.gains(steps, start), self.weights)

    def probability_below(self, gain: float, steps: float) -> float:
        """Posterior probability that the fall over the next `steps` values is at most `gain`."""
        return min(1.0, float(self.weights[self.gains(steps) <= gain].sum()))


def fit_curve(values: Array) -> Fit:
    """Fit the longest part of the curve that one law describes: all, the last half, quarter ...

    A change of the learning rate bends a curve as no power law does; its residuals then turn too
    seldom (turning points test) and the older half is left out.
    """
    while True:
        fit, residuals = _fit(values)
        half = len(values) // 2
        smooth = turning_point_z(residuals) < MISFIT_Z
        span = float(values.max() - values.min())
        if half < SUFFIX_MIN or not smooth or fit.sigma <= CLOSE_FIT * span:
            return fit
        values = values[-half:]


def extrapolate(values: Array, steps: float) -> Forecast:
    """Where a falling curve will be `steps` values on, with a 90 % interval.

    Args:
        values: the curve so far, lower is better, shape (n,), n >= 6, finite.
        steps: how far to look, in values; >= 0.

    Raises:
        ValueError: too few values.
    """
    fit = fit_curve(_checked(values))
    levels = fit.level - fit.gains(steps) + fit.level_error * SHUFFLED
    return _summary(levels, fit.weights)


def steps_until(values: Array, gain: float, horizon: float, limit: int = 2**20) -> int | None:
    """How many values on the expected fall over the next `horizon` values is at most `gain`.

    Returns:
        0 if it is now; None if it is not within `limit` values.
    """
    fit = fit_curve(_checked(values))
    if fit.gain(horizon, limit).final > gain:
        return None
    low, high = -1, limit  # the fall of every shape slows down: bisect
    while high - low > 1:
        middle = (low + high) // 2
        if fit.gain(horizon, middle).final <= gain:
            high = middle
        else:
            low = middle
    return high


def _fit(values: Array) -> tuple[Fit, Array]:
    n = len(values)
    exponents, scales, bases, s_xx = _grid(n)
    unit = float(np.abs(values - values[-1]).max())
    if unit == 0.0:
        level, nothing = float(values[-1]), np.zeros((1, ATOMS))
        sure = np.full((1, ATOMS), 1 / ATOMS)
        fit = Fit(exponents[:1], scales[:1], nothing, sure, level, 0.0, 0.0, n)
        return fit, np.zeros(n)
    shifted = (values - values[-1]) / unit
    mean = float(shifted.mean())
    centred = shifted - mean
    falls = bases @ centred / s_xx
    squares = np.maximum(float(centred @ centred) - falls**2 * s_xx, 1e-24 * n)
    best = int(squares.argmin())
    residuals = centred - float(falls[best]) * bases[best]
    n_eff = effective_size(residuals, 2)
    dof = max(2.0, n_eff - 2)
    sigma = math.sqrt(max(float(residuals @ residuals), 1e-24 * n) / max(1, n - 3))
    # Student's quantiles by the first terms of their Cornish-Fisher expansion.
    student = QUANTILES + (QUANTILES**3 + QUANTILES) / (4 * dof)
    errors = np.sqrt(squares / max(1, n - 3) / s_xx * n / n_eff)
    # Marginal likelihood with flat priors on offset and fall; what cannot matter is left out.
    log_evidence = -0.5 * dof * np.log(squares / squares.min()) - 0.5 * np.log(s_xx)
    evidence = np.exp(log_evidence - log_evidence.max())
    kept = evidence > 1e-4
    evidence = evidence[kept] / evidence[kept].sum()
    end = mean + float((evidence * falls[kept]) @ bases[kept, -1])
    atoms = np.maximum(falls[kept, None] + errors[kept, None] * student, 0.0)
    weights = np.repeat(evidence[:, None] / ATOMS, ATOMS, axis=1)
    level_error = sigma / math.sqrt(n_eff) * unit
    level = float(values[-1]) + unit * end
    fit = Fit(
        exponents[kept], scales[kept], atoms * unit, weights, level, sigma * unit, level_error, n
    )
    return fit, residuals


@functools.lru_cache(maxsize=8)
def _grid(n: int) -> tuple[Array, Array, Array, Array]:
    """Shapes for n values: exponents, time scales, centred bases that fall by 1, their squares."""
    exponents = np.array([k for k, _ in SHAPES])
    scales = np.array([tau * n for _, tau in SHAPES])
    bases = _decay(exponents, scales, np.arange(float(n)))
    bases /= bases[:, :1] - bases[:, -1:]
    bases -= bases.mean(axis=1, keepdims=True)
    return exponents, scales, bases, np.einsum("ij,ij->i", bases, bases)


def _decay(exponents: Array, scales: Array, t: Array) -> Array:
    """(1 + t / (k tau))^-k of each shape at each time, exp(-t / tau) for an infinite k."""
    finite = np.minimum(exponents, 1e6)[:, None]
    decay: Array = np.exp(-finite * np.log1p(t / (finite * scales[:, None])))
    return decay


def _summary(atoms: Array, weights: Array) -> Forecast:
    order = atoms.ravel().argsort()
    ordered, shares = atoms.ravel()[order], weights.ravel()[order].cumsum()
    last = len(ordered) - 1
    low, high = (min(last, int(np.searchsorted(shares, q * shares[-1]))) for q in (0.05, 0.95))
    mean = float((atoms * weights).sum())
    return Forecast(mean, float(ordered[low]), float(ordered[high]))


def _checked(values: Array) -> Array:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < MIN_VALUES or not np.isfinite(values).all():
        raise ValueError(
            f"values must be at least {MIN_VALUES} finite numbers in a row, got shape "
            f"{values.shape}; drop what is not finite"
        )
    return values
