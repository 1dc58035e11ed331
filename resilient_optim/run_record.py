"""A whole run in constant memory: the curve that is extrapolated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .loss_buffer import Array

RECORD = 256
"""Entries of the record of the whole run; when it is full, neighbours are averaged pairwise."""


class RunRecord:
    """The curve to fit: a whole run in at most `RECORD` entries, means of `block` neighbours."""

    def __init__(self) -> None:
        self.entries: Array = np.empty(0)
        self.block = 1
        self.partial: list[float] = [0.0, 0]  # sum and number of the values of the next entry

    def append(self, value: float) -> bool:
        """Record a value; whether an entry was completed."""
        if len(self.entries) == RECORD and self.partial[1] == 0:
            # The mean of halves, not half the sum: values near the largest float do not overflow.
            self.entries = 0.5 * self.entries[::2] + 0.5 * self.entries[1::2]
            self.block *= 2
        self.partial[0] += value / self.block
        self.partial[1] += 1
        if self.partial[1] < self.block:
            return False
        self.entries = np.append(self.entries, self.partial[0])
        self.partial = [0.0, 0]
        return True

    def fill(self, values: Array) -> None:
        """Record all values at once; only complete entries."""
        while len(values) // self.block > RECORD:
            self.block *= 2
        n = len(values) // self.block
        parts = values[: n * self.block].reshape(n, self.block)
        self.entries = (parts / self.block).sum(axis=1)

    def state(self) -> dict[str, Any]:
        """Everything remembered, as plain Python values."""
        return {"entries": self.entries.tolist(), "block": self.block, "partial": [*self.partial]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue as the record that `state` was taken from."""
        self.entries = np.array(state["entries"], dtype=np.float64)
        self.block, self.partial = int(state["block"]), [*state["partial"]]
