"""The published RCA (v5, Community Edition) to the letter, so that anyone can check our claims.

Source: "Resonant Convergence Analysis", repository Freeky7819/resonant-learner,
`resonant_callback.py`, read at commit 850de22. Written anew from its rules.

Known faults, measured in this project:
- omega is 2*pi times a share of sign changes of at most 8/9, so it never exceeds 5.585: the state
  "converging" (5.5 to 6.5) needs all eight changes, and the stop at 5.8 to 6.2 and the state of
  omega > 8 cannot happen.
- White noise puts omega into the stopping band of 4.5 to 6.5 with probability 0.167 per window;
  37-93 % of noisy runs that were still improving were ended there within 60 epochs.
- beta is one minus the largest relative step: 0.94 while the loss falls by 5 % an epoch, and any
  loss with a large offset has beta near 1. It is no amplitude and not free of scale or shift.
- confidence divides by 1 plus a standard deviation in units of the loss.
- The best value moves only by steps above `min_delta`: a run improving by less an epoch can end.
- Relative improvement divides by the best value: for negative losses improvements count as none.

Departures, for safety: a non-finite loss changes nothing (as published, NaN gives beta = 1, a
plateau), and the best value is kept whether or not there is a model to save (as published, without
a model every value is an improvement).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from . import _checks

WINDOW = 10
"""Losses that beta, omega and confidence are taken from."""


@dataclass(frozen=True)
class PaperRCAConfig:
    """Settings of the published rules; the defaults are its authors'.

    Attributes:
        patience: epochs without improvement before the lr is cut; >= 1.
        min_delta: relative improvement on the best loss that counts; >= 0.
        max_lr_reductions: how often the lr may be cut before a stop; >= 0. None: no optimizer is
            given, there are no cuts and patience alone never stops.
    """

    patience: int = 3
    min_delta: float = 0.01
    max_lr_reductions: int | None = 2

    def __post_init__(self) -> None:
        _checks.integer("patience", self.patience, low=1)
        _checks.number("min_delta", self.min_delta, low=0.0)
        if self.max_lr_reductions is not None:
            _checks.integer("max_lr_reductions", self.max_lr_reductions, low=0)


class Published(NamedTuple):
    """The published quantities of a window."""

    beta: float
    omega: float
    confidence: float
    state: str


class PaperState(NamedTuple):
    """What the published rules remember between losses; `losses` are the last `WINDOW`."""

    losses: tuple[float, ...] = ()
    seen: int = 0
    best: float = math.inf
    since_improvement: int = 0
    lr_reductions: int = 0
    stopped: bool = False


Action = Literal["continue", "reduce_lr", "stop"]


def published(losses: Sequence[float], seen: int | None = None) -> Published:
    """The published beta, omega, confidence and state.

    Args:
        losses: the losses so far, oldest first; only the last ten are looked at.
        seen: how many there were, if more than are given.
    """
    seen = len(losses) if seen is None else seen
    window = [float(loss) for loss in losses[-WINDOW:]]
    if len(window) < 4:
        return Published(0.0, 0.0, 0.0, published_state(0.0, 0.0))
    n = len(window)
    mean = sum(window) / n
    steps = [b - a for a, b in zip(window, window[1:], strict=False)]
    beta = 1.0 - max(abs(step) for step in steps) / (mean + 1e-8)
    beta = max(0.0, min(1.0, beta))
    changes = sum(a * b < 0 for a, b in zip(steps, steps[1:], strict=False))
    omega = max(1.0, min(12.0, 2.0 * math.pi * (changes / len(steps))))
    confidence = min(1.0, seen / 10.0)
    if n >= 5:
        confidence *= 1.0 / (1.0 + math.sqrt(sum((x - mean) ** 2 for x in window) / n))
    return Published(beta, omega, confidence, published_state(beta, omega))


def published_state(beta: float, omega: float) -> str:
    """The published state of a beta and an omega."""
    if beta > 0.85 and 5.5 <= omega <= 6.5:
        return "converging"
    if beta > 0.7:
        return "plateau"
    if omega > 8.0 or beta < 0.3:
        return "unstable"
    return "improving"


def published_stop(
    quantities: Published, last_three: Sequence[float], since_improvement: int, patience: int
) -> str:
    """The reason why the published rules stop without looking at the lr; empty if they do not."""
    beta, omega, confidence, state = quantities
    if state == "plateau" and beta > 0.85 and since_improvement >= 2:
        return "strong plateau"
    if state == "plateau" and beta > 0.80 and since_improvement >= patience:
        return "stable plateau"
    if len(last_three) == 3 and last_three[0] < last_three[1] < last_three[2]:
        if since_improvement >= 2:
            return "overfitting"
    if beta > 0.85 and 4.5 <= omega <= 6.5 and confidence > 0.7:
        return "approaching universal resonance"
    if beta > 0.90 and 5.8 <= omega <= 6.2 and confidence > 0.8:  # implied by the rule above
        return "universal resonance"
    return ""


def published_step(
    state: PaperState,
    loss: float,
    config: PaperRCAConfig,
    lr_at_minimum: bool = False,
) -> tuple[PaperState, Published, Action]:
    """One epoch of the published callback.

    Args:
        state: what was remembered.
        loss: the epoch's validation loss; nothing happens if it is not finite.
        config: the settings.
        lr_at_minimum: no cut is left because the lr is at its minimum (1e-6 as published).

    Returns:
        The new state, the quantities of the window, and what the callback does: cut the lr (by
        the published factor of 0.5), stop, or go on. A stop is for good and goes before a cut.
    """
    if not math.isfinite(loss):
        kept = published(state.losses, state.seen)
        return state, kept, "stop" if state.stopped else "continue"
    losses = (*state.losses, float(loss))[-WINDOW:]
    quantities = published(losses, state.seen + 1)
    best, since, reductions = state.best, state.since_improvement, state.lr_reductions
    first = best == math.inf
    if first or (best != 0.0 and (best - loss) / best > config.min_delta):
        # The published best moves down only, whatever the sign of the quotient.
        best, since = min(best, loss), 0
    else:
        since += 1
    stop, cut = state.stopped, False
    if config.max_lr_reductions is not None and since >= config.patience:
        cut = reductions < config.max_lr_reductions and not lr_at_minimum
        stop = stop or not cut
        if cut:
            reductions, since = reductions + 1, 0
    stop = stop or bool(published_stop(quantities, losses[-3:], since, config.patience))
    new = PaperState(losses, state.seen + 1, best, since, reductions, stop)
    return new, quantities, "stop" if stop else "reduce_lr" if cut else "continue"
