"""Learning-rate schedules beyond torch's, all of them `LRScheduler`s whose state can be saved.

Here: `WSD`, `InfiniteSchedule`, `REX`, `LinearDecay` and `RefinedDecay`, each the peak learning
rate (the one given to the optimizer) times a factor. Warm-ups are (step + 1) / (warmup_steps + 1);
in the formulas z is the share of the phase that is over, in [0, 1]. Next door, and to be had from
here: `PhaseSchedule` (a text of points and pieces), `ReWarm` (around any scheduler) and `plot`.

Functions of the step number alone set the learning rate, like torch's LambdaLR, and do not multiply
it: in a ChainedScheduler they come first. Call `step()` after each step, also a skipped one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from . import _checks, schedule_shapes
from .loss_buffer import Array
from .schedule_phased import PhaseSchedule
from .schedule_phases import Phases, Point, parse_phases
from .schedule_plot import plot
from .schedule_rewarm import ReWarm
from .schedule_shapes import refined_decay

__all__ = [
    "WSD",
    "REX",
    "FactorSchedule",
    "InfiniteSchedule",
    "LinearDecay",
    "PhaseSchedule",
    "Phases",
    "Point",
    "ReWarm",
    "RefinedDecay",
    "parse_phases",
    "plot",
    "refined_decay",
]


class FactorSchedule(LRScheduler):
    """Base of the schedules that are a factor, by step number, on each group's peak learning rate.

    A subclass sets its attributes (plain values: they are the state) before it calls this
    constructor, which takes the first step.

    Args:
        optimizer: its learning rates at this moment are the peak ones.
        last_epoch: number of the last step, to resume without `state_dict`; -1: a new run.
    """

    def factor(self, step: int) -> float:
        """The factor on the peak learning rate at a step.

        Args:
            step: calls of `step()` before it.

        Returns:
            The factor, >= 0.
        """
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each param group at the current step; for torch to call."""
        factor = self.factor(self.last_epoch)
        return [lr * factor for lr in self.base_lrs]


class WSD(FactorSchedule):
    """Warm-up, stable, decay; Hu et al., arXiv:2404.06395, and Hägele et al., arXiv:2405.18392.

    Args:
        optimizer: its learning rates are those of the stable phase.
        total_steps: length of the run.
        decay_steps: how many of them decay; 10 to 20 % is usual.
        warmup_steps: how many of them lie below the peak in the beginning.
        decay: "1-sqrt", 1 - (1 - final_factor) sqrt(z): falls fast, then slowly, the better one in
            the paper; or "linear", the same with z.
        final_factor: what the decay ends at, over the peak; in [0, 1].
        last_epoch: see `FactorSchedule`.

    Raises:
        TypeError: a setting is of a wrong type.
        ValueError: a setting is out of range, or warm-up and decay are longer than the run.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        decay_steps: int,
        warmup_steps: int = 0,
        decay: str = "1-sqrt",
        final_factor: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        _check_lengths(total_steps, warmup_steps)
        _checks.integer("decay_steps", decay_steps, low=1)
        if warmup_steps + decay_steps > total_steps:
            raise ValueError(
                "decay_steps must be at most total_steps - warmup_steps = "
                f"{total_steps - warmup_steps}, got {decay_steps!r}; shorten warm-up or decay"
            )
        if decay not in ("1-sqrt", "linear"):
            raise ValueError(f'decay must be "1-sqrt" or "linear", got {decay!r}')
        _checks.number("final_factor", final_factor, low=0.0, high=1.0)
        self.total_steps = total_steps
        self.decay_steps = decay_steps
        self.warmup_steps = warmup_steps
        self.decay = decay
        self.final_factor = final_factor
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Learning rate at a step over the peak one."""
        return schedule_shapes.wsd_factor(
            step,
            self.total_steps,
            self.decay_steps,
            self.warmup_steps,
            self.decay,
            self.final_factor,
        )


class InfiniteSchedule(FactorSchedule):
    """Warm-up, cosine to a constant rate, annealing on demand; Ibrahim et al., arXiv:2403.08763.

    The run needs no planned length. To end it (or to get a good model on the way) save a checkpoint
    and call `start_annealing`; to go on, with new data for instance, load that checkpoint.

    Args:
        optimizer: its learning rates are the peak ones.
        warmup_steps: steps below the peak in the beginning.
        cooldown_steps: steps of the cosine from the peak to the constant rate.
        constant_factor: the constant rate over the peak; in (0, 1].
        final_factor: what the annealing ends at, over the peak; in (0, 1].
        last_epoch: see `FactorSchedule`.

    Raises:
        TypeError, ValueError: a setting is of a wrong type, or out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int,
        cooldown_steps: int,
        constant_factor: float,
        final_factor: float,
        last_epoch: int = -1,
    ) -> None:
        _checks.integer("warmup_steps", warmup_steps, low=0)
        _checks.integer("cooldown_steps", cooldown_steps, low=0)
        _checks.number("constant_factor", constant_factor, low=0.0, high=1.0, open_low=True)
        _checks.number("final_factor", final_factor, low=0.0, high=1.0, open_low=True)
        self.warmup_steps = warmup_steps
        self.cooldown_steps = cooldown_steps
        self.constant_factor = constant_factor
        self.final_factor = final_factor
        self.annealing_start: int | None = None
        self.annealing_steps: int = 0
        super().__init__(optimizer, last_epoch)

    def start_annealing(self, steps: int) -> None:
        """Fall as rate (final / rate)^z from the current rate to the final one.

        In any phase, without a jump. While it anneals, and after, another call changes nothing.

        Args:
            steps: calls of `step()`, >= 1.

        Raises:
            TypeError, ValueError: `steps` is not an integer, or below 1.
            RuntimeError: the schedule has not begun (its turn in a SequentialLR has not come).
        """
        _checks.integer("steps", steps, low=1)
        if self.last_epoch < 0:
            raise RuntimeError(
                f"start_annealing must come after the first step, got step {self.last_epoch}; "
                "wait for the schedule's turn"
            )
        if self.annealing_start is None:
            self.annealing_start = self.last_epoch
            self.annealing_steps = steps

    def factor(self, step: int) -> float:
        """Learning rate at a step over the peak one."""
        start = self.annealing_start
        held = step if start is None else min(step, start)
        factor = schedule_shapes.infinite_factor(
            held, self.warmup_steps, self.cooldown_steps, self.constant_factor
        )
        if start is None or step <= start:
            return factor
        return schedule_shapes.annealed_factor(
            step - start, self.annealing_steps, factor, self.final_factor
        )


class LinearDecay(FactorSchedule):
    """Linear decay 1 - z, after an optional warm-up; Defazio et al., arXiv:2310.07831, 2023.

    Args:
        optimizer: its learning rates are the peak ones.
        total_steps: length of the run.
        warmup_steps: how many of them lie below the peak in the beginning.
        last_epoch: see `FactorSchedule`.

    Raises:
        TypeError, ValueError: a length is not an integer, or out of range.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 0, last_epoch: int = -1
    ) -> None:
        _check_lengths(total_steps, warmup_steps)
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Learning rate at a step over the peak one."""
        return schedule_shapes.linear_factor(step, self.total_steps, self.warmup_steps)


class REX(LinearDecay):
    """As `LinearDecay`, but (1 - z) / (1 - z / 2); Chen et al., arXiv:2107.04197, 2021."""

    def factor(self, step: int) -> float:
        """Learning rate at a step over the peak one."""
        return schedule_shapes.rex_factor(step, self.total_steps, self.warmup_steps)


class RefinedDecay(FactorSchedule):
    """Factors refined from an earlier run, stretched to this run's length.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> factors = refined_decay([4.0, 2.0, 1.0, 1.0, 1.0], smoothing=0.0)
        >>> scheduler = RefinedDecay(optimizer, total_steps=100, factors=factors)

    Args:
        optimizer: its learning rates are the peak ones.
        total_steps: length of this run.
        factors: of `refined_decay`, or any others; at least two, each in [0, 1]; shape (T,). They
            are part of the state.
        last_epoch: see `FactorSchedule`.

    Raises:
        TypeError: `total_steps` is not an integer.
        ValueError: it is below 1, there are fewer than two factors, or one is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        factors: Sequence[float] | Array,
        last_epoch: int = -1,
    ) -> None:
        _checks.integer("total_steps", total_steps, low=1)
        values = np.asarray(factors, dtype=np.float64)
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(
                f"factors must be a sequence of at least 2 numbers, got shape {values.shape}; "
                "make them with refined_decay"
            )
        for place, value in enumerate(values.tolist()):
            if not (math.isfinite(value) and 0.0 <= value <= 1.0):
                raise ValueError(
                    f"factors must be in [0, 1], got {value!r} at {place}; divide them by the "
                    "largest"
                )
        self.total_steps = total_steps
        self.factors: list[float] = values.tolist()
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Learning rate at a step over the peak one."""
        return schedule_shapes.interpolated_factor(step, self.total_steps, self.factors)


def _check_lengths(total_steps: int, warmup_steps: int) -> None:
    _checks.integer("total_steps", total_steps, low=1)
    _checks.integer("warmup_steps", warmup_steps, low=0)
    if warmup_steps >= total_steps:
        raise ValueError(
            f"warmup_steps must be below total_steps = {total_steps}, got {warmup_steps!r}; "
            "shorten the warm-up"
        )
