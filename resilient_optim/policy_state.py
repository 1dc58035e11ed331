"""What the default policy remembers from step to step."""

from __future__ import annotations

import math
from typing import NamedTuple

from .gates import follow

STREAK_LEAK = 1 / 3
"""What an unsurprising step takes off the streak. Surprises that come more often than every fourth
step thus add up to a new level; rarer ones (corrupted batches) never do."""

START_UP_STEPS = 105
"""Start-up is over after so many steps, or twice what its opening takes, however unruly the run.
Until then gradient norms are held to their reference."""

ALERT_LEAK = 1 / 16
ALERT_MAX = 3.0
"""Each surprise and each outlier gradient adds one to the alert, up to three; each step takes a
sixteenth off."""

OUTLIERS_MAX = 256
"""After this many outlier gradients in a row they are the new normal: the reference follows them as
fast as that of a young run."""


class PolicyState(NamedTuple):
    """What the policy remembers besides the loss buffer; all numbers, so that it can be saved.

    Attributes:
        young_steps: steps of the start-up phase taken so far; -1 once it is over for good.
        opening_steps: healthy steps that the gate takes to open; 0 before the first step.
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
    opening_steps: int = 0
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

    def moved_on(
        self, norm: float | None, surprised: bool = False, outlier: bool = False
    ) -> PolicyState:
        """The state one step later: counts leaked, and the reference norm followed."""
        young_steps, streak, alert = self.young_steps, self.streak, self.alert
        if young_steps >= 0:
            over = young_steps + 1 >= young_limit(self.opening_steps)
            young_steps = -1 if over else young_steps + 1
        if streak and not surprised:
            streak = max(0.0, streak - STREAK_LEAK)
        if surprised or outlier:
            alert = min(ALERT_MAX, alert + 1.0)
        elif alert:
            alert = max(0.0, alert - ALERT_LEAK)
        outliers = self.outliers + 1 if outlier else 0
        if norm:
            young = young_steps >= 0 or outliers > OUTLIERS_MAX
            log_norm = follow(self.log_norm, math.log(norm), young)
        elif streak == self.streak and alert == self.alert and young_steps == self.young_steps:
            return self  # nearly always without a norm guard, and this is on the path of every step
        else:
            log_norm = self.log_norm
        return self._replace(
            young_steps=young_steps,
            streak=streak,
            alert=alert,
            log_norm=log_norm,
            outliers=outliers,
        )

    def without_levels(self) -> PolicyState:
        """The state of one that has seen no loss and no gradient, but steps."""
        start_up = ("young_steps", "opening_steps", "healthy", "open", "warms_up")
        return PolicyState(**{name: getattr(self, name) for name in start_up})

    @classmethod
    def of(cls, numbers: list[float]) -> PolicyState:
        """The state from its fields as floats, each turned back into the type that it has."""
        pairs = zip(cls(), numbers, strict=True)
        return cls._make(type(default)(number) for default, number in pairs)


def young_limit(opening_steps: int) -> int:
    """Steps after which the start-up phase is over, of a run that opens in so many."""
    return max(START_UP_STEPS, 2 * opening_steps)


MATURE = PolicyState(young_steps=-1, open=True)
"""The first state of a run that is under way."""
