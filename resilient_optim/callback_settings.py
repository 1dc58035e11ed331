"""The arguments of `ResonantCallback`: presets by task, what is refused, the formulas of "auto"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from . import _checks

# Published values: repository Freeky7819/resonant-learner, docs/API.md "Configuration Examples"
# (the same in README.md and docs/QUICKSTART.md; its examples/hf_bert_glue.py has patience 3).
# In the order patience_steps, min_delta, max_lr_reductions, min_lr.
PRESETS: dict[str, tuple[int, float, int, float]] = {
    "default": (3, 0.01, 2, 1e-6),
    "paper": (3, 0.01, 2, 1e-6),
    "easy": (3, 0.01, 2, 1e-6),
    "medium": (4, 0.005, 2, 1e-6),
    "hard": (5, 0.005, 3, 1e-6),
    "fine-tune": (2, 0.005, 2, 1e-7),
    "auto": (3, 0.01, 2, 1e-6),
}

NOISE_WINDOW, NOISE_LEAST = 32, 8
"""Values that preset "auto" measures the noise from: the last so many, at least so many."""

Z95 = 1.6449
"""A standard normal variable is below this with 95 % probability."""

LOGGER_METHODS = ("add_scalar", "log")


class Settings:
    """The arguments of a `ResonantCallback` as attributes, those left open set by the preset.

    Args:
        modes: "min" or "max" for each metric.
        settings: of `RCA`.
        **others: see `ResonantCallback`, and there for what is raised.
    """

    preset: str
    patience_steps: int
    min_delta: float
    ema_alpha: float
    max_lr_reductions: int
    lr_reduction_factor: float
    min_lr: float
    verbose: bool
    cooldown: int
    warmup: int
    logger: Any
    process_group: Any
    signals: tuple[Any, ...]

    def __init__(
        self,
        modes: dict[str, str],
        settings: dict[str, Any],
        *,
        preset: str,
        patience_steps: int | None,
        min_delta: float | None,
        ema_alpha: float,
        max_lr_reductions: int | None,
        lr_reduction_factor: float,
        min_lr: float | None,
        verbose: bool,
        cooldown: int,
        warmup: int,
        logger: Any,
        process_group: Any,
        signals: Sequence[Any],
    ) -> None:
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
        patience, delta, cuts, floor = PRESETS[preset]
        self.patience_steps = patience if patience_steps is None else patience_steps
        self.min_delta = delta if min_delta is None else min_delta
        self.max_lr_reductions = cuts if max_lr_reductions is None else max_lr_reductions
        self.min_lr = floor if min_lr is None else min_lr
        self.preset, self.verbose, self.logger = preset, verbose, logger
        self.ema_alpha, self.lr_reduction_factor = ema_alpha, lr_reduction_factor
        self.cooldown, self.warmup = cooldown, warmup
        self.process_group, self.signals = process_group, tuple(signals)
        self._check(modes, settings)

    def _check(self, modes: dict[str, str], settings: dict[str, Any]) -> None:
        """Refuse bad arguments, see the class."""
        unpublished = (settings, self.signals, self.cooldown)
        if self.preset == "paper" and (len(modes) != 1 or any(unpublished)):
            raise ValueError(
                "preset='paper' must have one metric, no settings of RCA, signals or cooldown, got "
                f"{modes}, {unpublished}; the published rules know none"
            )
        _checks.integer("patience_steps", self.patience_steps, low=1)
        _checks.number("min_delta", self.min_delta, low=0.0)
        _checks.number("ema_alpha", self.ema_alpha, low=0.0, high=1.0, open_low=True)
        _checks.integer("max_lr_reductions", self.max_lr_reductions, low=0)
        _checks.number(
            "lr_reduction_factor", self.lr_reduction_factor, low=0.0, high=1.0,
            open_low=True, open_high=True,
        )  # fmt: skip
        _checks.number("min_lr", self.min_lr, low=0.0)
        _checks.boolean("verbose", self.verbose)
        _checks.integer("cooldown", self.cooldown, low=0)
        _checks.integer("warmup", self.warmup, low=0)
        if not modes or any(mode not in ("min", "max") for mode in modes.values()):
            raise ValueError(f"mode and metrics must name 'min' or 'max' for each, got {modes}")
        if self.logger is not None and not any(hasattr(self.logger, n) for n in LOGGER_METHODS):
            raise TypeError(
                f"logger must have add_scalar or log, got {type(self.logger).__name__}; pass a "
                "SummaryWriter, or a run of wandb"
            )
        group = self.process_group
        if group is not False and isinstance(group, (bool, int, str)):
            raise TypeError(
                f"process_group must be a ProcessGroup, None or False, got {group!r}; "
                "None takes all ranks, False none"
            )
        if not all(hasattr(signal, "should_stop") for signal in self.signals):
            raise TypeError(f"signals must all have should_stop(), got {self.signals!r}")


def from_noise(sigma: float, min_delta: float, alpha: float) -> tuple[int, float]:
    """Patience in epochs and threshold that go with a noise, see `ResonantCallback`.

    Args:
        sigma: standard deviation of the noise of a value, relative to its level.
        min_delta: least threshold, relative.
        alpha: weight of a new value in the smoothed one.
    """
    threshold = max(min_delta, Z95 * math.sqrt(2.0 * alpha / (2.0 - alpha)) * sigma)
    if sigma == 0.0:
        return 1, threshold
    return math.ceil(2.0 * (2.0 * Z95 * sigma / threshold) ** 2), threshold
