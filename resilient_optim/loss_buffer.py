"""The one record of recent losses and gradient norms: finite values only, saved and restored."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Window:
    """The last `capacity` finite values of a series, readable as one contiguous array.

    Values are written into an array twice as long; when it is full the newest `capacity` move to
    its front. Reading is thus a slice, never a copy, and writing costs O(1) on average.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._storage = np.empty(2 * capacity)
        self._end = 0

    def __len__(self) -> int:
        return min(self._end, self.capacity)

    @property
    def values(self) -> Array:
        """The recorded values, oldest first, shape (len(self),). A view: read it, never keep it."""
        return self._storage[max(0, self._end - self.capacity) : self._end]

    @property
    def newest(self) -> float:
        """The value recorded last; NaN if there is none."""
        return float(self._storage[self._end - 1]) if self._end else math.nan

    def with_last(self, times: int) -> Array:
        """The values as if the last had come so often in a row, at most `capacity` of them.

        For who asks how long it has stood still: that may not be recorded, see `Memory.remember`.
        """
        values = self.values
        if not len(values):
            return values
        others = np.flatnonzero(values != values[-1])
        recorded = len(values) - (1 + others[-1] if len(others) else 0)
        more = max(0, min(times, self.capacity) - recorded)
        return np.append(values, np.full(more, values[-1]))[-self.capacity :]

    def append(self, value: float) -> None:
        """Record a value, forgetting the oldest once there are more than `capacity`.

        Raises:
            ValueError: the value is NaN or infinite; one such value would poison every statistic.
        """
        if not math.isfinite(value):
            raise ValueError(f"value must be finite, got {value!r}; a non-finite step is skipped")
        if self._end == len(self._storage):
            self._storage[: self.capacity] = self._storage[self.capacity :]
            self._end = self.capacity
        self._storage[self._end] = value
        self._end += 1

    def clear(self) -> None:
        """Forget everything."""
        self._end = 0

    def padded(self) -> Array:
        """The values as an array of fixed shape (capacity,), NaN where nothing is recorded yet."""
        out = np.full(self.capacity, np.nan)
        out[: len(self)] = self.values
        return out

    def restore(self, padded: Array) -> None:
        """Take over the newest values of `padded`, as many as fit (the inverse of `padded`)."""
        self.clear()
        for value in padded[np.isfinite(padded)][-self.capacity :]:
            self.append(float(value))


class LossBuffer:
    """Recent losses and the logarithms of recent gradient norms; the guard and RCA both read it.

    Args:
        capacity: how many values of each are kept.

    Attributes:
        losses: the last `capacity`; `losses.values` is an array, oldest first, shape (n,).
        log_norms: likewise; natural logarithms.
    """

    def __init__(self, capacity: int) -> None:
        self.losses: Window = Window(capacity)
        self.log_norms: Window = Window(capacity)

    def append(self, loss: float, grad_norm: float | None = None) -> None:
        """Record the loss of a step and, if one was measured, its gradient norm.

        Args:
            loss: finite.
            grad_norm: L2 norm over all gradients, finite; None or 0 is not recorded, as its
                logarithm is.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        self.losses.append(loss)
        if grad_norm is not None and grad_norm > 0.0:
            self.log_norms.append(math.log(grad_norm))
