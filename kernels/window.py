"""Windows on the device and their statistics, as functions of a Triton program (see `guard`).

Each is `resilient_optim.statistics` or `loss_buffer` once more, in float64. A window is `size`
values in memory, oldest first, NaN where nothing is recorded yet; `index` counts up to a power of
two, of which the first n are values.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from resilient_optim import gates, statistics

INFINITY = tl.constexpr(math.inf)
YOUNG_LOSS_SPIKE = tl.constexpr(gates.YOUNG_LOSS_SPIKE)
DECILES_TO_SIGMA = tl.constexpr(statistics.DECILES_TO_SIGMA)
SPAN_FLOOR = tl.constexpr(statistics.SPAN_FLOOR)
ROUNDING_SQUARED = tl.constexpr(statistics.ROUNDING**2)
WHITE_NOISE_RHO = tl.constexpr(statistics.WHITE_NOISE_RHO)


@triton.jit
def at(values, index, position):
    """The value at a position."""
    return tl.sum(tl.where(index == position, values, 0.0))


@triton.jit
def ascending(values, member):
    """The members in ascending order, then infinity."""
    return tl.sort(tl.where(member, values, INFINITY))


@triton.jit
def middle(ordered, index, n):
    """The median of n ordered values."""
    upper = at(ordered, index, n // 2)
    lower = at(ordered, index, n // 2 - 1)
    return tl.where(n % 2 == 1, upper, 0.5 * (lower + upper))


@triton.jit
def decile_sigma(ordered, index, n):
    """`statistics.spread` of n ordered values."""
    tail = n // 10
    return (at(ordered, index, n - 1 - tail) - at(ordered, index, tail)) / DECILES_TO_SIGMA


@triton.jit
def noise_scale(values, before, ordered, index, n):
    """`statistics.noise_scale`."""
    upper = 2 * (at(ordered, index, n - 1 - n // 10) - middle(ordered, index, n))
    sigma = tl.maximum(decile_sigma(ordered, index, n), upper / DECILES_TO_SIGMA)
    change = tl.where((index > 0) & (index < n), values - before, 0.0)
    from_differences = tl.sqrt(tl.sum(change * change) / (2 * (n - 1)))
    span = at(ordered, index, n - 1) - at(ordered, index, 0)
    scale = tl.maximum(tl.minimum(sigma, from_differences), SPAN_FLOOR * span)
    return tl.where(sigma > 0.0, scale, span)


@triton.jit
def difference_autocorrelation(values, before, before_that, index, n):
    """`statistics.difference_autocorrelation`."""
    mean = (at(values, index, n - 1) - at(values, index, 0)) / (n - 1)
    change = tl.where((index > 0) & (index < n), values - before - mean, 0.0)
    lagged = tl.where((index > 1) & (index < n), before - before_that - mean, 0.0)
    power = tl.sum(change * change)
    square = tl.sum(tl.where(index < n, values * values, 0.0))
    constant = power <= square * ROUNDING_SQUARED
    safe = tl.where(constant, 1.0, power)
    return tl.where(constant, WHITE_NOISE_RHO, tl.sum(change * lagged) / safe)


@triton.jit
def young_loss_spike(values, before, index, n, loss):
    """`gates.young_loss_spike`."""
    recent = tl.where((index >= n - 3) & (index < n), values, -INFINITY)
    n_changes = tl.minimum(n - 1, 16)
    member = (index >= tl.maximum(n - n_changes, 1)) & (index < n)
    typical = middle(ascending(tl.abs(values - before), member), index, n_changes)
    return (n >= 3) & (loss > tl.max(recent) + YOUNG_LOSS_SPIKE * typical)


@triton.jit
def load(window, index, n):
    """The values (0 where there are none), and for each the one before it and the one before that.

    Zeros, not NaN: a NaN times nothing is still one.
    """
    values = tl.load(window + index, mask=index < n, other=0.0)
    before = tl.load(window + index - 1, mask=(index > 0) & (index < n), other=0.0)
    before_that = tl.load(window + index - 2, mask=(index > 1) & (index < n), other=0.0)
    return values, before, before_that


@triton.jit
def count(window, index, size):
    """How many values a window holds: the rest of it is NaN."""
    values = tl.load(window + index, mask=index < size, other=float("nan"))
    return tl.sum((values == values).to(tl.int32))


@triton.jit
def append(window, index, n, size, value):
    """Append to a window; a full one forgets its oldest value."""
    values = tl.load(window + index, mask=index < n, other=0.0)
    tl.debug_barrier()  # all of it is read before any of it moves
    moves = tl.where(n == size, size, 0)
    tl.store(window + index - 1, values, mask=(index > 0) & (index < moves))
    tl.debug_barrier()
    tl.store(window + tl.minimum(n, size - 1), value)


@triton.jit
def clear(window, index, size):
    """Forget everything."""
    tl.store(window + index, tl.full(index.shape, float("nan"), tl.float64), mask=index < size)
    tl.debug_barrier()
