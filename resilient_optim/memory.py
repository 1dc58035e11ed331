"""Everything ARS remembers between steps, in one place and as one array of numbers.

One float64 array of fixed shape survives every checkpoint format, `weights_only` loading included.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .loss_buffer import Array, LossBuffer
from .policy import PolicyState

STATE_KEY = "ars"
"""Key of the packed memory in every param group, which all checkpoint formats keep."""

VERSION = 1.0

COUNTERS = (
    "observed",
    "unobserved",
    "touched",
    "skipped",
    "nonfinite",
    "damped",
    "bounded",
    "jittered",
    "new_levels",
)


def zero_counters() -> Counter[str]:
    """Every counter at zero."""
    return Counter(dict.fromkeys(COUNTERS, 0))


@dataclass
class Memory:
    """What ARS knows of its run.

    Attributes:
        buffer: recent losses and gradient norms.
        policy: what the policy remembers besides.
        counters: how often ARS did what.
        skips_in_a_row: steps left out since the last one taken.
        last_lr: learning rate of the previous start-up step; NaN before the first.
    """

    buffer: LossBuffer
    policy: PolicyState
    counters: Counter[str] = field(default_factory=zero_counters)
    skips_in_a_row: int = 0
    last_lr: float = math.nan

    def pack(self) -> Array:
        """The memory as float64: version, sizes, scalars, then losses and norms padded with NaN."""
        sizes = [self.buffer.losses.capacity, len(PolicyState._fields), len(COUNTERS)]
        counts = [self.counters[name] for name in COUNTERS]
        scalars = [VERSION, *sizes, *self.policy, *counts, self.skips_in_a_row, self.last_lr]
        windows = self.buffer.losses.padded(), self.buffer.log_norms.padded()
        return np.concatenate([np.array(scalars, dtype=np.float64), *windows])

    @classmethod
    def unpack(cls, packed: Array, capacity: int) -> Memory:
        """The memory that `pack` wrote; a buffer of another capacity takes the newest values."""
        window, n_policy, n_counters = (int(n) for n in packed[1:4])
        policy, counts, others, windows = np.split(
            packed[4:], np.cumsum([n_policy, n_counters, 2]).tolist()
        )
        young_steps, healthy, warms_up, *rest = policy.tolist()
        buffer = LossBuffer(capacity)
        buffer.losses.restore(windows[:window])
        buffer.log_norms.restore(windows[window:])
        return cls(
            buffer,
            PolicyState(int(young_steps), int(healthy), bool(warms_up), *rest),
            Counter({name: int(n) for name, n in zip(COUNTERS, counts, strict=True)}),
            skips_in_a_row=int(others[0]),
            last_lr=float(others[1]),
        )


def check_version(groups: list[dict[str, Any]]) -> None:
    """Raise a ValueError if the param groups hold a memory that this version cannot read."""
    packed = groups[0].get(STATE_KEY) if groups else None
    if packed is not None and packed[0] != VERSION:
        raise ValueError(
            f"ARS state must be of version {VERSION:g}, got {float(packed[0]):g}; "
            "load it with the version of resilient_optim that wrote it"
        )
