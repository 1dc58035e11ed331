"""What the default policy remembers from step to step."""

from __future__ import annotations

import math
from typing import NamedTuple


class PolicyState(NamedTuple):
    """What the policy remembers besides the loss buffer; all numbers, so that it can be saved.

    Attributes:
        young_steps: steps of the start-up phase taken so far; -1 once it is over for good.
        healthy: healthy start-up steps, halved at every spike; the gate's opening.
        open: the gate has opened for good.
        warms_up: the run needs no opening: it raises its own learning rate, or the steps of its
            optimizer are signs.
        streak: leaky count of surprising steps.
        alert: leaky count of surprises and outlier gradients.
        level: recent level of the loss; infinite while there is too little history.
        scale: noise scale of the loss.
        rho: lag-1 autocorrelation of the differences of the loss; NaN with too little history.
        log_norm: logarithm of the reference of the gradient norm; NaN before the first.
        log_norm_sigma: noise scale of that logarithm; infinite while there is too little history.
        outliers: outlier gradients in a row.
    """

    young_steps: int = 0
    healthy: int = 0
    open: bool = False
    warms_up: bool = False
    streak: float = 0.0
    alert: float = 0.0
    level: float = math.inf
    scale: float = 0.0
    rho: float = math.nan
    log_norm: float = math.nan
    log_norm_sigma: float = math.inf
    outliers: int = 0

    def without_levels(self) -> PolicyState:
        """The state of one that has seen no loss and no gradient, but steps."""
        start_up = ("young_steps", "healthy", "open", "warms_up")
        return PolicyState(**{name: getattr(self, name) for name in start_up})

    @classmethod
    def of(cls, numbers: list[float]) -> PolicyState:
        """The state from its fields as floats, each turned back into the type that it has."""
        pairs = zip(cls(), numbers, strict=True)
        return cls._make(type(default)(number) for default, number in pairs)


MATURE = PolicyState(young_steps=-1, open=True)
"""The first state of a run that is under way."""
