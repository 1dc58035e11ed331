"""The arguments of `ResonantCallback`: presets by task, what is refused, the formulas of "auto"."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from . import _checks
from .rca_reading import RCAConfig

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

INSTEAD = {
    "patience": "patience_steps is the number of epochs without improvement",
    "min_values": "warmup is the number of epochs that are not judged, patience_steps that of "
    "epochs without improvement",
    "factor": "lr_reduction_factor is that of a cut",
    "threshold": "min_delta is the relative improvement that counts",
    "monitor": "metrics={'accuracy': 'max'} names what is judged",
    "restore_best_weights": "the best state is restored in any case",
}
"""What to say instead: of RCA, where it means less than a reader would think, as the run can end on
RCA's "reduce_lr" too; of the early stopping of Keras and Lightning, and of ReduceLROnPlateau."""

OF_RCA = tuple(field.name for field in fields(RCAConfig) if field.name not in INSTEAD)
"""The settings that are passed on."""


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
        if not isinstance(signals, Iterable):
            raise TypeError(
                f"signals must be a sequence, got {type(signals).__name__}; put it in a list"
            )
        self.process_group, self.signals = process_group, tuple(signals)
        self._check(modes, settings)

    def _check(self, modes: dict[str, str], settings: dict[str, Any]) -> None:
        """Refuse bad arguments, see the class."""
        _check_names(settings)
        unpublished = (settings, self.signals, self.cooldown)
        if self.preset == "paper" and (len(modes) != 1 or any(unpublished)):
            raise ValueError(
                "preset='paper' must have one metric, no settings of RCA, signals or cooldown, got "
                f"{modes}, {unpublished}; the published rules know none"
            )
        if self.preset == "paper" and "max" in modes.values():
            raise ValueError(
                f"preset='paper' must have mode 'min', got {modes}; by the published rules no "
                "negative value ever improves: pass what falls, such as 1 - accuracy"
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
        if not all(callable(getattr(signal, "should_stop", None)) for signal in self.signals):
            raise TypeError(f"signals must all have should_stop(), got {self.signals!r}")


def _check_names(settings: dict[str, Any]) -> None:
    """Refuse what is neither the callback's nor for RCA."""
    for name, given in settings.items():
        if name in INSTEAD:
            raise TypeError(
                f"{name} must not be given to ResonantCallback, got {name}={given!r}; "
                f"{INSTEAD[name]}"
            )
        if name not in OF_RCA:
            own = ("checkpoint_dir", "mode", "metrics", *Settings.__annotations__)
            raise TypeError(
                f"{name} must be a setting of ResonantCallback, got {name}={given!r}; it has "
                f"{', '.join(own)}, and of RCA {', '.join(OF_RCA)}"
            )


def modes_of(mode: str, metrics: Mapping[str, str] | None) -> dict[str, str]:
    """The mode of each metric by name.

    Raises:
        TypeError: `metrics` is no mapping.
        ValueError: a mode is unknown, there is no metric, or `mode` is given beside `metrics`.
    """
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(
            f"metrics must be a dict of modes by name, got {metrics!r}; as "
            "metrics={'accuracy': 'max'}"
        )
    if metrics is not None and mode != "min":
        raise ValueError(
            f"mode must be left out beside metrics, got {mode!r}; it is that of val_loss alone, "
            "those of others stand in metrics={'accuracy': 'max'}"
        )
    modes = {"val_loss": mode} if metrics is None else dict(metrics)
    if not modes or any(each not in ("min", "max") for each in modes.values()):
        raise ValueError(f"mode and metrics must name 'min' or 'max' for each, got {modes}")
    return modes


def check_folder(checkpoint_dir: Any, modes: Mapping[str, str]) -> None:
    """Refuse what is no path, and the words that come first in EarlyStopping("val_loss", "min").

    Raises:
        TypeError: neither a path nor None.
        ValueError: a metric's name, or a mode.
    """
    if checkpoint_dir is not None and not isinstance(checkpoint_dir, (str, os.PathLike)):
        raise TypeError(
            f"checkpoint_dir must be a folder or None, got {type(checkpoint_dir).__name__}; name "
            "the other arguments, as patience_steps=10"
        )
    if isinstance(checkpoint_dir, str) and checkpoint_dir in {*modes, "min", "max"}:
        raise ValueError(
            f"checkpoint_dir must be a folder, got {checkpoint_dir!r}; what is judged is named by "
            f"metrics={{'accuracy': 'max'}}, a folder of that name is './{checkpoint_dir}'"
        )


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
