"""The formulas of ARS: surprise, entropy guard Ψ, surprise gate Φ, chronos-jitter χ, norm bounds.

Pure functions of numbers. Ψ, Φ and χ go back to "Adaptive Resonance Suppression" (the
Resilient-Nano-Trainer repository, January 2026); what they are fed with is our own, because the
published signals do not say what they are meant to (see `paper`).
"""

from __future__ import annotations

import math

import numpy as np

from . import statistics
from .loss_buffer import Array

MIN_HISTORY = 16
"""Values needed before a level and a scale mean anything."""

PSI_MIN = 0.1
"""Floor of the entropy guard, so that S/Ψ stays finite."""

NORM_FLOOR = 0.1
"""Smallest scale of the logarithm of the gradient norm: 10 %."""

LOG_NORM_FAR = math.log(5.0)
"""Logarithm of the multiple of its reference above which a norm is far out: more, for two steps in
a row, than any change of the data in the development runs of the suite made of it, garbage less."""

FOLLOW_UP, FOLLOW_DOWN = 0.02, 0.05
"""Largest change of the logarithm of the reference norm in a step of a young run. As it rises less
than it falls, the reference settles where 2/7 of the norms are below it."""

FOLLOW_MATURE = 0.1
"""A mature run's reference follows at a tenth of that: what is normal changes slowly."""

LR_GROWTH = 1.01
"""After a jump a learning rate is approached by 1 % a step."""

WARMUP_RISE = 1.5
"""A learning rate this many times its first value is being warmed up."""

STEPS_PER_REACH = 25
"""Steps of a young run's opening for each unit by which its first steps may change things; what a
unit is, `opening.opening_steps` and `gradient_reach` say."""

SHORTEST_OPENING, LONGEST_OPENING = 4, 200
"""Steps of an opening by the first gradient, at least; steps of any that is chosen here, at most: a
rate for which that is too short is no working rate."""

YOUNG_LOSS_SPIKE = 2.0
"""While the run is young: a loss above the worst of the last three by this many typical changes is
a spike. Independent noise exceeds it in one step of fifty."""


def surprise(loss: float, level: float, scale: float) -> float:
    """One-sided z-score: how many noise scales the loss lies above the level.

    Zero at or below the level: a good surprise is none. Zero without any noise, too: a loss that
    has been constant gives no measure of what is normal.
    """
    excess = loss - level
    if not excess > 0.0:
        return 0.0
    return excess / scale if scale > 0.0 else 0.0


def entropy_guard(rho: float, rho_threshold: float) -> float:
    """Entropy guard Ψ in [0.1, 1]: 1 without resonance, falling as the loss oscillates.

    Args:
        rho: lag-1 autocorrelation of the differences of the loss; NaN if there is no history.
        rho_threshold: resonance counts below minus this value.
    """
    if not -rho > rho_threshold:
        return 1.0
    resonance = 2.0 * (-rho - 0.5)
    return max(PSI_MIN, 1.0 - resonance)


def surprise_gate(excess: float, psi: float, alpha: float, phi_min: float) -> float:
    """Surprise gate Φ = max(phi_min, 1 - tanh(alpha * S / Ψ)) in [phi_min, 1]; 1 for S = 0.

    Args:
        excess: surprise S beyond what is normal, >= 0.
        psi: entropy guard in (0, 1]: the same surprise closes the gate further in an oscillation.
        alpha: steepness.
        phi_min: floor.
    """
    return max(phi_min, 1.0 - math.tanh(alpha * max(0.0, excess) / psi))


def chronos_jitter(psi: float, jitter_scale: float) -> float:
    """Chronos-jitter χ = jitter_scale * (1 - Ψ): no noise without resonance."""
    return jitter_scale * (1.0 - psi)


def follow(log_reference: float, log_norm: float, young: bool) -> float:
    """The logarithm of the reference norm after one more norm: a quantile tracker.

    Its growth is bounded: no burst of large gradients, however long, becomes normal at once. A
    gradient norm is positive and its noise multiplicative, hence the logarithm.

    Args:
        log_reference: before; NaN if there is none yet.
        log_norm: of the step.
        young: whether to follow at the pace of a run in its start-up phase.
    """
    if math.isnan(log_reference):
        return log_norm
    rate = 1.0 if young else FOLLOW_MATURE
    change = log_norm - log_reference
    return log_reference + min(rate * FOLLOW_UP, max(-rate * FOLLOW_DOWN, change))


def norm_excess(norm: float | None, log_reference: float) -> float:
    """By how much the logarithm of the gradient norm exceeds its reference; 0 without one."""
    if not norm or math.isnan(log_reference):
        return 0.0
    return max(0.0, math.log(norm) - log_reference)


def norm_scale(excess: float, norm: float | None, max_norm: float | None) -> float:
    """Factor that takes an excess of the logarithm of the norm away, and keeps to `max_norm`."""
    scale = math.exp(-excess)
    if norm and max_norm is not None:
        scale = min(scale, max_norm / norm)
    return scale


def is_far(excess: float, outliers: int, patience: int) -> bool:
    """Whether an outlier gradient with an ordinary loss is left out, not bounded: not the first.

    One alone may be a rare batch, and bounded it does no harm. Several in a row that no change of
    the data explains (a broken reduction, a flipped sign) are directions that nobody should follow;
    after `patience` of them they are how things are.

    Args:
        excess: of the logarithm of the outlier's norm over its reference.
        outliers: those in a row right before it.
        patience: so many in a row are bounded again.
    """
    return excess > LOG_NORM_FAR and 1 <= outliers < patience


def lr_brake(ratio: float, lr_jump: float) -> float:
    """Factor on a learning rate that is `ratio` times the largest one proven: 1 without a jump."""
    return LR_GROWTH / ratio if ratio > lr_jump else 1.0


def gradient_reach(
    lr: float, momentum_gain: float, norm: float, loss: float, max_norm: float | None = None
) -> float:
    """What share of the loss steps of SGD are to take away, as far as the first gradient says.

    A step `lr * gradient` lowers the loss by `lr * norm**2` to first order, and momentum repeats
    it. Beyond 1 this promises a loss below zero: the gradient does not hold so far. It is the
    learning rate in units of Polyak's step size for a smallest loss of 0 (Hazan and Kakade, arXiv
    1905.00313).

    Args:
        lr: learning rate, > 0.
        momentum_gain: size of a step that momentum repeats, over that of its gradient's own.
        norm: of the gradient, > 0.
        loss: > 0.
        max_norm: what the step's gradient is bounded to; None for no bound.
    """
    bounded = norm if max_norm is None else min(norm, max_norm)
    return lr * momentum_gain * norm * bounded / loss


def opening_length(reach: float) -> int:
    """Healthy steps in which the gate opens before first steps of such a reach, >= 0."""
    return max(SHORTEST_OPENING, math.ceil(min(STEPS_PER_REACH * reach, LONGEST_OPENING)))


def young_loss_spike(losses: Array, loss: float) -> bool:
    """Whether the loss exceeds the worst of the last three by more than its usual changes."""
    if len(losses) < 3:
        return False
    typical_change = statistics.median(np.abs(losses[1:] - losses[:-1])[-16:])
    return bool(loss > losses[-3:].max() + YOUNG_LOSS_SPIKE * typical_change)
