"""RCA: has the run converged? Tests on its recent values and on its whole record, in one Reading.

rca = RCA()
reading = rca.update(val_loss)          # or optimizer.monitor for that of an ARS
if reading.recommendation == "stop": ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor

from . import _checks
from .loss_buffer import Array, Window
from .rca_paper import PaperRCAConfig, PaperState, Published, published, published_step
from .rca_reading import UNKNOWN, RCAConfig, Reading, judge, share_of_best
from .rca_statistics import JUMP_CONFIDENCE, JUMP_LENGTH, MIN_HISTORY, VALUE_LIMIT, jumped
from .run_record import RunRecord

__all__ = ["RCA", "UNKNOWN", "RCAConfig", "Reading", "judge"]

PRESETS: dict[str, type[RCAConfig] | type[PaperRCAConfig]] = {
    "default": RCAConfig,
    "paper": PaperRCAConfig,
}


class RCA:
    """Convergence monitor of a series of losses or metrics, at the level of steps or epochs.

    A falling curve goes on while its gain over the horizon is three times the share worth having
    and above the noise of a value; a flat one with white noise is stopped within 256 values (half
    of them within 40). Both by simulation, and tested. Memory is constant. A reading costs one to
    three milliseconds and is formed when the record gains an entry: at every value of a short run,
    at every sixteenth after 2 000 to 4 000 values.

    Args:
        preset: "default", or "paper" for the published rules (see `rca_paper`).
        mode: "min" if lower values are better, else "max".
        **settings: fields of `RCAConfig`, or of `PaperRCAConfig`.

    Raises:
        TypeError: a setting is unknown or of a wrong type.
        ValueError: unknown preset or mode, or a setting out of range.

    Attributes:
        config: the settings in force.
        reading: the latest, None before the first value.
    """

    def __init__(self, preset: str = "default", *, mode: str = "min", **settings: Any) -> None:
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
        modes = ("min",) if preset == "paper" else ("min", "max")  # the paper divides by the mean
        if mode not in modes:
            raise ValueError(f"mode must be one of {modes} here, got {mode!r}")
        kind = PRESETS[preset]
        known = ", ".join(field.name for field in fields(kind))
        for name, given in settings.items():
            if name not in known.split(", "):
                raise TypeError(
                    f"{name} must be a setting of preset {preset!r}, got {name}={given!r}; "
                    f"its settings are {known}"
                )
        self.preset: str = preset
        self.mode: str = mode
        self.config: RCAConfig | PaperRCAConfig = kind(**settings)
        self.reading: Reading | None = None
        self._sign = 1.0 if mode == "min" else -1.0
        self._recent = Window(self.config.window if isinstance(self.config, RCAConfig) else 10)
        self._record = RunRecord()
        self._paper = PaperState()
        self._best, self._waited = math.inf, 0
        self._settling = 0.0  # confidence that there was a shift, until enough is known of it

    def update(
        self,
        value: float | Tensor,
        *,
        train: float | Tensor | None = None,
        shifted: bool = False,
    ) -> Reading:
        """Take in the next value; a non-finite one is counted and otherwise ignored.

        Args:
            value: the loss or metric; a tensor is copied to the host, which waits for it.
            train: where `value` is a validation loss, the same loss on the training data, such as
                its mean over the epoch: decides how long to wait for a better value (see
                `RCAConfig.patience`). None, negative or not finite: unknown.
            shifted: the level is new from this value on (ARS accepted it): forget the old one.

        Returns:
            The reading after this value, also to be had as `reading`.

        Raises:
            TypeError: `value` or `train` is not a number, or a tensor of more than one element.
            ValueError: `train` is given with preset "paper" or mode "max".
        """
        value = _checks.as_float("value", value, "give one number a call, such as a mean loss")
        train_loss = self._train_loss(train)
        reading = self.reading or UNKNOWN
        reading = reading._replace(step=reading.step + 1, value=value)
        usable = abs(value) < VALUE_LIMIT  # NaN is not
        if isinstance(self.config, PaperRCAConfig):
            self._paper, found, action = published_step(
                self._paper, value if usable else math.nan, self.config
            )
            reading = _as_published(reading, found, action)
        elif usable and self._take(self._sign * value, shifted):
            judged = judge(
                self._record, self._recent.values, self._waited, self.config, self._settling,
                share_of_best(train_loss, self._best),
            )  # fmt: skip
            reading = judged._replace(step=reading.step, value=value)
            if len(self._record.entries) >= MIN_HISTORY:
                self._settling = 0.0
        self.reading = reading._replace(train_share=share_of_best(train_loss, self._best))
        return self.reading

    def read(self, values: Array, shifted: bool = False) -> Reading:
        """A reading of any window, oldest value first; changes nothing.

        Args:
            values: shape (n,), for instance the losses of a `LossBuffer`; what is not finite is
                left out.
            shifted: the level of the window's last values is known to be new.

        Returns:
            What a monitor says that has seen this window and nothing before it.

        Raises:
            ValueError: `values` has not one dimension.
        """
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 1:
            raise ValueError(f"values must be of shape (n,), got {values.shape}; one run at a time")
        finite = self._sign * values[np.abs(values) < VALUE_LIMIT]
        last = float(values[-1]) if len(values) else math.nan
        if isinstance(self.config, PaperRCAConfig):
            found = published(finite.tolist())
            return _as_published(UNKNOWN._replace(step=len(values), value=last), found, "continue")
        record = RunRecord()
        record.fill(finite)
        recent = finite[-self.config.window :]
        shift = 1.0 if shifted else JUMP_CONFIDENCE if jumped(recent) else 0.0
        waited = len(finite) - 1 - int(finite.argmin()) if len(finite) else 0
        judged = judge(record, recent, waited, self.config, shift)
        return judged._replace(step=len(values), value=last)

    def state_dict(self) -> dict[str, Any]:
        """Everything that is remembered.

        Returns:
            Plain Python values.
        """
        return {
            "preset": self.preset,
            "mode": self.mode,
            "reading": tuple(self.reading or ()),
            "recent": self._recent.values.tolist(),
            "record": self._record.state(),
            "best": self._best,
            "waited": self._waited,
            "settling": self._settling,
            "paper": tuple(self._paper),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as the monitor that `state` was taken from.

        Args:
            state: what `state_dict` returned.

        Raises:
            ValueError: it was taken with another preset or mode.
        """
        for name in ("preset", "mode"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"{name} must be {getattr(self, name)!r} in the state, got {state[name]!r}; "
                    f"make the monitor with {name}={state[name]!r}"
                )
        self.reading = Reading(*state["reading"]) if state["reading"] else None
        self._recent.restore(np.array(state["recent"], dtype=np.float64))
        self._record.restore(state["record"])
        self._best, self._waited = state["best"], state["waited"]
        self._settling = state["settling"]
        losses, *rest = state["paper"]
        self._paper = PaperState(tuple(losses), *rest)

    def _train_loss(self, train: float | Tensor | None) -> float:
        """The training loss, NaN if it is not told; raises as `update` says."""
        if train is None:
            return math.nan
        if self.preset == "paper":
            raise ValueError(
                f"train must be left out with preset 'paper', got {train!r}; the published rules "
                "know no training loss"
            )
        if self.mode == "max":
            raise ValueError(
                f"train must be left out with mode 'max', got {train!r}; it is compared with a "
                "validation loss: pass that as the value, with mode 'min'"
            )
        return _checks.as_float("train", train, "give the mean training loss")

    def _take(self, value: float, shifted: bool) -> bool:
        """Record a finite value; whether the reading has to be formed anew."""
        if shifted:
            self._forget(1.0)
        grown = self._append(value)
        if not shifted and jumped(self._recent.values):
            new = self._recent.values[-JUMP_LENGTH:].tolist()
            self._forget(JUMP_CONFIDENCE)
            for x in new:
                self._append(x)
            return True
        return grown

    def _append(self, value: float) -> bool:
        self._recent.append(value)
        self._waited = 0 if value < self._best else self._waited + 1
        self._best = min(self._best, value)
        return self._record.append(value)

    def _forget(self, confidence: float) -> None:
        self._best, self._waited = math.inf, 0
        self._recent.clear()
        self._record = RunRecord()
        self._settling = confidence


def _as_published(reading: Reading, found: Published, action: str) -> Reading:
    nothing = math.nan  # the published method has no slope test and expects no gain
    return Reading(
        reading.step, reading.value, found.state, found.beta, found.omega, found.confidence,
        nothing, nothing, nothing, nothing, action,
    )  # fmt: skip
