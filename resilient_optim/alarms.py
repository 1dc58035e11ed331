"""The few things ARS says unasked, through `logging`."""

from __future__ import annotations

import logging
import math
from typing import Any

from torch import Tensor

from .decision import Decision

logger = logging.getLogger(__name__)

LOUD_AFTER = 10
"""Consecutive skipped steps after which a warning is logged (and again at every tenfold)."""

STILL_AFTER = 20
"""Steps with one and the same loss, to the bit, or without a learning rate, that are told of."""

FIRST_LOOKS = 3
"""Steps in which at least one parameter has to have a gradient."""


class SkipAlarm:
    """Warns of steps skipped in a row: at the tenth, the hundredth, and so on."""

    def __init__(self) -> None:
        self._next = LOUD_AFTER

    def hear(self, skips_in_a_row: int, decision: Decision | None) -> None:
        """Take note of how many steps in a row have been skipped, the last by `decision`."""
        if skips_in_a_row < LOUD_AFTER:
            self._next = LOUD_AFTER
        elif skips_in_a_row >= self._next and decision is not None:
            self._next = 10 ** len(str(skips_in_a_row))
            logger.warning(
                "ARS skipped %d steps in a row, the last at step %d: %s (loss %g, gradient norm "
                "%s). The model does not learn meanwhile; look at the data and the learning rate.",
                skips_in_a_row, decision.step, decision.reason, decision.loss, decision.grad_norm,
            )  # fmt: skip


class StandstillAlarm:
    """Says, once each, that the loss or the learning rate stands still while steps are taken.

    It does nothing else: a loss may be constant, and a schedule may end at zero.

    Attributes:
        same_losses: steps in a row with one and the same loss, up to the last heard of.
    """

    def __init__(self) -> None:
        self._loss = math.nan
        self.same_losses = 0
        self._has_moved = False
        self._zero_lrs = 0
        self._has_told_of_loss = False
        self._has_told_of_lr = False

    def hear(
        self, decision: Decision, lrs: list[float], proven_lrs: list[float], steps: int = 1
    ) -> None:
        """Take note of a step that was taken.

        Args:
            decision: on it.
            lrs: each param group's learning rate; NaN if it is not known here.
            proven_lrs: see `Memory`; tells that a resumed run had other learning rates.
            steps: observed since the last one heard of, itself included.
        """
        self.same_losses = self.same_losses + steps if decision.loss == self._loss else 1
        self._loss = decision.loss
        if self.same_losses >= STILL_AFTER and not self._has_told_of_loss:
            self._tell_of_loss(decision)
        if any(lrs):
            self._has_moved, self._zero_lrs = True, 0
        elif self._has_moved or any(proven_lrs):
            self._zero_lrs += steps
            if self._zero_lrs >= STILL_AFTER and not self._has_told_of_lr:
                self._tell_of_lr(decision)

    def _tell_of_loss(self, decision: Decision) -> None:
        self._has_told_of_loss = True
        logger.warning(
            "ARS was given the loss %r in each of the last %d steps up to step %d, the same to "
            "the bit, and the steps were taken (gradient norm %s). Most likely an old value is "
            "reported: pass step() the loss that the gradients in place come from. If it is, no "
            "step changes the loss: look at the learning rate and at what requires gradients.",
            decision.loss, self.same_losses, decision.step, decision.grad_norm,
        )  # fmt: skip

    def _tell_of_lr(self, decision: Decision) -> None:
        self._has_told_of_lr = True
        logger.warning(
            "All learning rates have been 0 for the last %d steps up to step %d: the model no "
            "longer changes. That is right if the schedule has come to its end; if not, look at "
            "its length, and at its step after a resume.",
            self._zero_lrs, decision.step,
        )  # fmt: skip


class WiringAlarm:
    """Says, once each, that ARS is not connected: steps without a loss, or without a gradient.

    Gradients are looked for in the first steps only.
    """

    def __init__(self) -> None:
        self._without_loss = 0
        self._looks_left = FIRST_LOOKS

    def hear(self, has_loss: bool, groups: list[dict[str, Any]]) -> None:
        """Take note of a step before it is taken.

        Args:
            has_loss: whether it brought a loss.
            groups: live param groups.
        """
        if not has_loss:
            self._without_loss += 1
            # Not at the first: torch.distributed.checkpoint makes one such step for the state.
            if self._without_loss == 2:
                logger.warning(
                    "ARS.step() was called without a loss: ARS does nothing in such a step. Call "
                    "step(loss), or report(loss) before it."
                )
        elif self._looks_left:
            self._looks_left -= 1
            if any(p.grad is not None for group in groups for p in group["params"]):
                self._looks_left = 0
            elif self._looks_left == 0:
                logger.warning(
                    "No parameter of the optimizer had a gradient in the first %d steps: nothing "
                    "is learned. Call loss.backward() before step(loss), zero_grad() after it, and "
                    "give the optimizer the parameters of the model that the loss comes from.",
                    FIRST_LOOKS,
                )


def lrs_at_hand(groups: list[dict[str, Any]]) -> list[float]:
    """Each param group's learning rate without waiting for a GPU: NaN if it may be there."""
    lrs = [group.get("lr") for group in groups]
    return [math.nan if isinstance(lr, Tensor) else float(lr or 0.0) for lr in lrs]
