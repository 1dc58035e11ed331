"""When `ResonantCallback` cuts the learning rate and when it stops: its rules and the published.

Both read the metrics of an epoch, the same on all ranks, and count the epochs that they wait.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from . import distributed
from .callback_input import LOSS, train_loss_of, values_of
from .callback_metric import Metric, better
from .callback_settings import Settings
from .lr_cuts import can_reduce, cut_lrs, lrs_of, ownership
from .rca_paper import PaperRCAConfig, PaperState, published_step

log = logging.getLogger(f"{__package__}.callback")  # one name for all messages of the callback

SAVED = (
    "current_epoch", "best_epoch", "best_loss", "seen", "waited", "lr_reductions",
    "cooldown_left", "patience_steps", "min_delta", "action", "reason", "_stop", "_told", "_lrs",
)  # fmt: skip
"""Attributes of `ResonantCallback` that are saved as they are."""


class Rules(Settings):
    """The part of `ResonantCallback` that decides, and cuts the lr.

    `_judge` or, with preset "paper", `_judge_as_published` leaves what to do in `action` and why in
    `reason`.
    """

    metrics: dict[str, Metric]
    action: str
    reason: str
    best_epoch: int
    best_loss: float
    seen: int
    waited: int
    lr_reductions: int
    cooldown_left: int

    def _start(self, metrics: dict[str, Metric]) -> None:
        """Set all counts to the beginning of a run with these metrics."""
        self.metrics = metrics
        self._first = next(iter(self.metrics.values()))
        self._least = (self.patience_steps, self.min_delta)
        self.best_epoch = 0
        self.best_loss = math.inf if self._first.rca.mode == "min" else -math.inf
        self.seen = self.waited = self.lr_reductions = self.cooldown_left = 0
        self.action, self.reason = "wait", "nothing seen yet"
        self._stop = self._told = False
        self._lrs: list[float] = []
        self._paper = PaperState()

    def _agreed(
        self, val_loss: Any, metrics: Mapping[str, Any] | None, train_loss: Any
    ) -> tuple[dict[str, float], float | None]:
        """The values by name, and the training loss if there is one; the same on all ranks."""
        values = values_of(val_loss, metrics, self.metrics)
        train = self._mean(train_loss_of(train_loss, self.metrics, self.preset))
        agreed = {name: self._mean(value) for name, value in values.items()}
        return agreed, None if math.isnan(train) else train

    @property
    def _leads(self) -> bool:
        """Whether this rank writes and reports."""
        if self.process_group is False or distributed.ranks(self.process_group) == 1:
            return True
        return dist.get_rank(self.process_group) == 0

    def _mean(self, value: float) -> float:
        """Over the ranks; NaN if it is not finite on any."""
        if self.process_group is False:
            return value
        return distributed.agree(value, None, self.process_group)[0]

    def _all_signals(self) -> bool:
        """Whether every signal says stop, on every rank."""
        return self._mean(float(all(s.should_stop() for s in self.signals))) == 1.0

    def _watch_schedule(self, optimizer: Optimizer | None, scheduler: Any) -> None:
        """Say once who owns the lr; count the cuts of a ReduceLROnPlateau."""
        if scheduler is None:
            return
        if not self._told:
            self._told = True
            log.info("RCA: %s", ownership(scheduler))
        lrs = lrs_of(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            if any(new < old for new, old in zip(lrs, self._lrs, strict=False)):
                self._count_cut(lrs)
        self._lrs = lrs

    def _count_cut(self, lrs: list[float]) -> None:
        """Wait anew after a cut to these learning rates."""
        self.lr_reductions, self._lrs = self.lr_reductions + 1, lrs
        self.waited, self.cooldown_left = 0, self.cooldown

    def _judge(
        self,
        values: dict[str, float],
        train: float | None,
        optimizer: Optimizer | None,
        scheduler: Any,
    ) -> tuple[str, str]:
        """What to do, and why; a cut of the lr is made here, as only that shows if it can be."""
        if self._stop:
            return "stop", self.reason
        if self.seen <= self.warmup:
            return "wait", f"warm-up, epoch {self.seen} of {self.warmup}"
        improved = [
            metric.see(values[name], train if name == LOSS else None)
            for name, metric in self.metrics.items()
        ]
        if self.preset == "auto":
            measured = [metric.measure_noise(*self._least) for metric in self.metrics.values()]
            self.patience_steps = max(measured)
            self.min_delta = max(metric.threshold for metric in self.metrics.values())
        if self.cooldown_left > 0:
            self.cooldown_left -= 1
            return "wait", f"cooldown, {self.cooldown_left} epochs left"
        self.waited = 0 if any(improved) else self.waited + 1
        if any(improved):
            return "continue", "improved"
        if self.waited < self.patience_steps:
            return "wait", f"no improvement, {self.waited} of {self.patience_steps} epochs"
        found = ", ".join(metric.verdict for metric in self.metrics.values())
        if not all(metric.agrees for metric in self.metrics.values()):
            return "wait", f"no improvement for {self.waited} epochs, but RCA: {found}"
        if self.signals and not self._all_signals():
            return "wait", f"RCA: {found}; a signal is against it"
        if optimizer is not None and self.lr_reductions < self.max_lr_reductions:
            if isinstance(scheduler, ReduceLROnPlateau):
                if can_reduce(scheduler):
                    return "wait", "a stop waits for the cuts of ReduceLROnPlateau"
            elif cut_lrs(optimizer, self.lr_reduction_factor, self.min_lr, scheduler):
                return "reduce_lr", f"no improvement for {self.waited} epochs, RCA: {found}"
        return "stop", f"no improvement for {self.waited} epochs, RCA: {found}"

    def _judge_as_published(
        self, value: float, optimizer: Optimizer | None, scheduler: Any
    ) -> bool:
        """Follow the published rules; return whether the best moved."""
        if self.seen <= self.warmup:
            self.action, self.reason = "wait", f"warm-up, epoch {self.seen} of {self.warmup}"
            return better(value, self.best_loss, self._first.rca.mode)
        cuts = None if optimizer is None else self.max_lr_reductions
        config = PaperRCAConfig(self.patience_steps, self.min_delta, cuts)
        lrs = lrs_of(optimizer)
        at_minimum = all(lr <= max(lr * self.lr_reduction_factor, self.min_lr) for lr in lrs)
        signed = value if self._first.rca.mode == "min" else -value
        old, (self._paper, _, action) = (
            self._paper,
            published_step(self._paper, signed, config, at_minimum),
        )
        self.waited = self._paper.since_improvement
        self.action, self.reason = action, f"published rules, {self.waited} epochs waited"
        self.lr_reductions = self._paper.lr_reductions
        if self.lr_reductions > old.lr_reductions and optimizer is not None:
            cut_lrs(optimizer, self.lr_reduction_factor, self.min_lr, scheduler)
            self._lrs = lrs_of(optimizer)
        return self._paper.best < old.best
