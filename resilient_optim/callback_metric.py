"""What `ResonantCallback` judges: one metric, its direction, smoothed value and improvement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .callback_settings import NOISE_LEAST, NOISE_WINDOW, from_noise
from .rca import RCA, UNKNOWN
from .statistics import noise_scale


class Metric:
    """One metric: its RCA, its smoothed value, and the last level that counted as better."""

    def __init__(self, rca: RCA, threshold: float, alpha: float) -> None:
        self.rca = rca
        self.threshold = threshold
        self.alpha = alpha
        self.smoothed = self.level = math.nan
        self.finite = True
        self.recent: list[float] = []

    def see(self, value: float, train: float | None = None) -> bool:
        """Take in the value of an epoch; whether its smoothed value improved by the threshold.

        Args:
            value: of the epoch.
            train: training loss that goes with it, if known.
        """
        self.finite = math.isfinite(value)
        self.rca.update(value, train=train)
        if not self.finite:
            return False
        self.recent = [*self.recent, value][-NOISE_WINDOW:]
        before = value if math.isnan(self.smoothed) else self.smoothed
        self.smoothed = before + self.alpha * (value - before)
        if math.isnan(self.level) or better(
            self.smoothed, self.level, self.rca.mode, self.threshold
        ):
            self.level = self.smoothed
            return True
        return False

    @property
    def verdict(self) -> str:
        """The state of this metric in a word."""
        return (self.rca.reading or UNKNOWN).state if self.finite else "not finite"

    @property
    def agrees(self) -> bool:
        """Whether RCA wants a cut or a stop; what is not finite has nothing to say against it."""
        reading = self.rca.reading or UNKNOWN
        return not self.finite or reading.recommendation in ("reduce_lr", "stop")

    def measure_noise(self, patience: int, threshold: float) -> int:
        """Set the threshold by the noise; the patience that goes with it, in epochs."""
        if len(self.recent) < NOISE_LEAST:
            return max(patience, NOISE_LEAST)
        level = abs(self.smoothed)
        sigma = noise_scale(np.array(self.recent)) / level if level > 0.0 else 0.0
        found, self.threshold = from_noise(sigma, threshold, self.alpha)
        return max(patience, found)

    def state_dict(self) -> dict[str, Any]:
        """Everything that is remembered, as plain values."""
        plain = {k: v for k, v in vars(self).items() if k not in ("rca", "alpha")}
        return plain | {"rca": self.rca.state_dict(), "recent": list(self.recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.rca.load_state_dict(state["rca"])
        vars(self).update({k: v for k, v in state.items() if k != "rca"})


def better(value: float, reference: float, mode: str, min_delta: float = 0.0) -> bool:
    """Whether `value` is finite and better than `reference` by more than `min_delta` of it.

    Any finite value is better than an infinite reference.
    """
    if not math.isfinite(value) or math.isinf(reference):
        return math.isfinite(value)
    gain = reference - value if mode == "min" else value - reference
    return gain > min_delta * abs(reference)
