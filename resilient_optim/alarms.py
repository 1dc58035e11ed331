"""The few things ARS says unasked, through `logging`."""

from __future__ import annotations

import logging

from .decision import Decision

logger = logging.getLogger(__name__)

LOUD_AFTER = 10
"""Consecutive skipped steps after which a warning is logged (and again at every tenfold)."""


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


def warn_of_unobserved(steps: int) -> None:
    """Say, once, that steps come without a loss.

    Not at the first: torch.distributed.checkpoint makes one such step to create the state.
    """
    if steps == 2:
        logger.warning(
            "ARS.step() was called without a loss: ARS does nothing in such a step. Call "
            "step(loss), or report(loss) before it."
        )
