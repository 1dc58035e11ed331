"""ReWarm: raise the learning rate again when ARS confirms that the data have shifted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from . import _checks
from .ars import ARS
from .lr_cuts import lrs_of, schedulers_in
from .schedule_phased import PhaseSchedule


def boost(age: float, warmup_steps: int, decay_steps: int) -> float:
    """How far the learning rate is raised, `age` steps after a shift: from 0 up to 1 and back.

    Linearly up over the warm-up, then down along a cosine: the shape of re-warming and re-decaying
    in Gupta et al., arXiv:2308.04014, 2023, and Ibrahim et al., arXiv:2403.08763, 2024.
    """
    if age < warmup_steps:
        return age / warmup_steps
    z = min(1.0, (age - warmup_steps) / decay_steps)
    return 0.5 * (1.0 + math.cos(math.pi * z))


class ReWarm(LRScheduler):
    """Around any scheduler: re-warms and re-decays the learning rate after a shift.

    When ARS accepts a new loss level (`optimizer.last.new_level`), the learning rate rises linearly
    from what the schedule says to `factor` times the peak, the largest that the schedule has had in
    this run, and returns to the schedule along a cosine:

        lr = scheduled + boost * max(0, factor * peak - scheduled)

    So it lies between the schedule and a learning rate that the run has been through, which ARS's
    brake on jumps (`lr_jump`) lets pass at any speed. Where the schedule itself is above the target
    nothing happens, and until the first shift the learning rates are the scheduler's own, bit for
    bit. A shift during a re-warming starts the climb anew from where the learning rate is.

    A `PhaseSchedule` inside keeps its decoupled weight decay: more learning rate, the same decay.
    Learning rates that are tensors on a GPU are read at every step, which waits for the GPU.

    Example:
        >>> import torch
        >>> from torch.optim.lr_scheduler import CosineAnnealingLR
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = ARS(torch.optim.AdamW(model.parameters(), lr=3e-3))
        >>> scheduler = CosineAnnealingLR(optimizer, 10_000)
        >>> scheduler = ReWarm(scheduler, optimizer, warmup_steps=100, decay_steps=900)

    Args:
        scheduler: any scheduler, also ReduceLROnPlateau (`step` hands its arguments on). ReWarm
            goes outside all others: not into a SequentialLR, but around it.
        ars: tells of shifts; the optimizer that the scheduler drives, or the ARS around that.
        warmup_steps: steps (calls of `step()`) from the schedule up to the peak; >= 1.
        decay_steps: steps from there back to the schedule; >= 1.
        factor: height of the re-warming, over the peak; in (0, 1].

    Raises:
        TypeError: `scheduler` is no scheduler, `ars` no ARS, or a setting is of a wrong type.
        ValueError: the scheduler drives another optimizer, or a setting is out of range.

    Attributes:
        scheduler: the scheduler inside.
        age: steps since the latest shift; None if the learning rate is the schedule's.
    """

    def __init__(
        self,
        scheduler: LRScheduler,
        ars: ARS,
        *,
        warmup_steps: int,
        decay_steps: int,
        factor: float = 1.0,
    ) -> None:
        if not isinstance(scheduler, LRScheduler):
            raise TypeError(
                f"scheduler must be an LRScheduler, got {type(scheduler).__name__}; "
                "make it for the same optimizer first"
            )
        if not isinstance(ars, ARS):
            raise TypeError(
                f"ars must be an ARS, got {type(ars).__name__}; if a framework wrapped it, pass "
                "the one inside"
            )
        if scheduler.optimizer.param_groups is not ars.param_groups:
            raise ValueError(
                "scheduler must drive the optimizer of ars, got one of another optimizer; make it "
                "for this ARS"
            )
        _checks.integer("warmup_steps", warmup_steps, low=1)
        _checks.integer("decay_steps", decay_steps, low=1)
        _checks.number("factor", factor, low=0.0, high=1.0, open_low=True)
        # As torch's own wrappers, without LRScheduler's constructor, which would take a step.
        self.scheduler = scheduler
        self.ars = ars
        self.optimizer: Optimizer = scheduler.optimizer
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self.factor = factor
        self.age: float | None = None
        self.shifts_seen: int = ars.counters["new_levels"]
        self.scheduled_lrs: list[float] = lrs_of(self.optimizer)
        self.raised_lrs: list[float] = list(self.scheduled_lrs)
        self.peak_lrs: list[float] = list(self.scheduled_lrs)
        self._step_count = 1  # Accelerate counts on it

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Step the scheduler inside, then re-warm what it says, if due.

        Args:
            *args: for the scheduler inside, such as the metric for ReduceLROnPlateau.
            **kwargs: likewise.
        """
        self._step_count += 1
        self._give_back()
        self.scheduler.step(*args, **kwargs)
        self.scheduled_lrs = lrs_of(self.optimizer)
        self.peak_lrs = [max(pair) for pair in zip(self.peak_lrs, self.scheduled_lrs, strict=True)]
        self._grow_older()
        if self.age is not None:
            self._raise_lrs(boost(self.age, self.warmup_steps, self.decay_steps))
        self.raised_lrs = lrs_of(self.optimizer)

    def _initial_step(self) -> None:
        # SequentialLR asks for this; it would step the scheduler inside once too often.
        raise RuntimeError(
            "ReWarm must be outside all other schedulers, got ReWarm inside one; "
            "wrap that one instead"
        )

    def get_last_lr(self) -> list[float | Tensor]:
        """The learning rates now in force.

        Returns:
            One for each param group, re-warmed.
        """
        lrs = (group["lr"] for group in self.optimizer.param_groups)
        return [lr.clone() if isinstance(lr, Tensor) else lr for lr in lrs]

    def _give_back(self) -> None:
        """Restore the scheduler's own learning rates, from which it may compute the next.

        Whoever changed the learning rates in between (a cut by `ResonantCallback`) meant all of
        them: the scheduled ones change by the same ratio, and so does the peak, but never up, where
        no learning rate is proven.
        """
        now = lrs_of(self.optimizer)
        if now == self.scheduled_lrs:
            return
        pairs = zip(now, self.raised_lrs, strict=True)
        ratios = [lr / raised if raised > 0.0 else 1.0 for lr, raised in pairs]
        if ratios != [1.0] * len(ratios):
            self.scheduled_lrs = _product(self.scheduled_lrs, ratios)
            self.peak_lrs = _product(self.peak_lrs, [min(1.0, ratio) for ratio in ratios])
        if self.age is not None:
            self._set_lrs(self.scheduled_lrs)

    def _grow_older(self) -> None:
        """Count the steps since the last shift."""
        if self.age is not None:
            self.age += 1.0
            if self.age >= self.warmup_steps + self.decay_steps:
                self.age = None
        # The count, not the flag of the latest step: a scheduler may be stepped once an epoch, and
        # a decision made on a GPU arrives late.
        shifts = self.ars.counters["new_levels"]
        if shifts > self.shifts_seen:
            # At the height where it is now, but climbing.
            high = 0.0 if self.age is None else boost(self.age, self.warmup_steps, self.decay_steps)
            self.age = high * self.warmup_steps
        self.shifts_seen = shifts

    def _raise_lrs(self, height: float) -> None:
        pairs = zip(self.scheduled_lrs, self.peak_lrs, strict=True)
        raised = [lr + height * max(0.0, self.factor * peak - lr) for lr, peak in pairs]
        self._set_lrs(raised)
        for each in schedulers_in(self):
            if isinstance(each, PhaseSchedule):
                each.set_weight_decay(raised)

    def _set_lrs(self, lrs: Sequence[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """What is remembered; ARS's own state is in its optimizer.

        Returns:
            Plain values, with the state of the scheduler inside under "scheduler".
        """
        state = {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "ars")}
        state["scheduler"] = self.scheduler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, that of the scheduler inside included.

        Args:
            state_dict: what `state_dict` returned.
        """
        state = dict(state_dict)
        self.scheduler.load_state_dict(state.pop("scheduler"))
        self.__dict__.update(state)


def _product(lrs: Sequence[float], ratios: Sequence[float]) -> list[float]:
    return [lr * ratio for lr, ratio in zip(lrs, ratios, strict=True)]
