"""The published ARS to the letter, so that anyone can check our claim about it.

Source: "Adaptive Resonance Suppression", the Resilient-Nano-Trainer repository (January 2026),
`ars_optimizer.py`, with the settings its experiments call optimized. Known faults, measured in
this project: the surprise is in raw loss units and brakes good surprises too; the autocorrelation
of |surprise| is silent on an oscillation of period 2 and fires on a smooth descent; scaling the
gradient hardly brakes Adam. One departure, for safety: a non-finite loss is skipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import _checks
from .decision import APPLY, DAMP, QUIET, SKIP, Decision, Observation
from .gates import PSI_MIN, surprise_gate
from .loss_buffer import Array, LossBuffer
from .policy_state import MATURE, PolicyState

RECENT = 10
"""The surprise is the distance from the mean of this many losses."""

JITTER_BELOW = 0.5
"""Noise is added while Ψ is below this."""


@dataclass(frozen=True)
class PaperConfig:
    """Settings of the published method; the defaults are its authors' optimized ones.

    Attributes:
        alpha: steepness of the surprise gate, per unit of loss; > 0.
        phi_min: the gate's floor, in [0, 1].
        jitter_scale: standard deviation of the noise, in units of the gradient; >= 0.
        window_size: surprises over which the autocorrelation is taken; >= 3.
        rho_threshold: |autocorrelation| above which the entropy guard acts, in [0, 1].

    Raises:
        TypeError: a setting is of a wrong type.
        ValueError: a setting is out of range.
    """

    alpha: float = 1.0
    phi_min: float = 0.3
    jitter_scale: float = 0.005
    window_size: int = 50
    rho_threshold: float = 0.75

    def __post_init__(self) -> None:
        _checks.number("alpha", self.alpha, low=0.0, open_low=True)
        _checks.number("phi_min", self.phi_min, low=0.0, high=1.0)
        _checks.number("jitter_scale", self.jitter_scale, low=0.0)
        _checks.integer("window_size", self.window_size, low=3)
        _checks.number("rho_threshold", self.rho_threshold, low=0.0, high=1.0)

    @property
    def history(self) -> int:
        """Values the loss buffer has to hold: the oldest surprise needs ten losses before it."""
        return self.window_size + RECENT

    @property
    def measures_norm(self) -> bool:
        """The published method never looks at the gradient."""
        return False

    def first_state(self, young: bool) -> PolicyState:
        """The same for every run: it keeps nothing but the losses; for ARS to call."""
        return MATURE

    def resumed(self, state: PolicyState) -> PolicyState:
        """A saved state, perhaps of another preset: nothing of it is needed; for ARS to call."""
        return MATURE

    def decide(
        self, state: PolicyState, buffer: LossBuffer, seen: Observation
    ) -> tuple[Decision, PolicyState]:
        """Decide on a step by the published formulas; for ARS to call."""
        if not math.isfinite(seen.loss):
            return Decision(seen.step, SKIP, "non-finite loss", seen.loss, phi=0.0), state
        surprises = published_surprises(np.append(buffer.losses.values, seen.loss), self.history)
        rho = published_autocorrelation(surprises, self.window_size)
        psi = 1.0
        if abs(rho) > self.rho_threshold:
            psi = max(PSI_MIN, 1.0 - abs(rho))
        phi = surprise_gate(float(surprises[-1]), psi, self.alpha, self.phi_min)
        chi = self.jitter_scale if psi < JITTER_BELOW else 0.0
        damped = phi < 1.0
        reason = "surprise" if damped else "resonance" if chi else QUIET
        decision = Decision(
            seen.step, DAMP if damped else APPLY, reason, seen.loss,
            z=float(surprises[-1]), rho=rho, psi=psi, phi=phi, chi=chi,
            grad_scale=phi, as_published=True,
        )  # fmt: skip
        return decision, state


def published_surprises(losses: Array, history: int) -> Array:
    """Each loss's distance from the mean of the ten before it; zero for the first two of a run.

    Args:
        losses: shape (n,), oldest first, the current one last.
        history: how many losses were kept before the current one; n <= history means that the
            run began with losses[0].

    Returns:
        Shape (n,) while the run is that young, (n - 10,) afterwards.
    """
    first = 0 if len(losses) <= history else RECENT
    out = np.zeros(len(losses) - first)
    for i in range(max(first, 2), len(losses)):
        out[i - first] = abs(losses[i] - losses[max(0, i - RECENT) : i].mean())
    return out


def published_autocorrelation(surprises: Array, window: int) -> float:
    """Lag-1 autocorrelation of the last `window` surprises; 0 while there are fewer."""
    if len(surprises) < window:
        return 0.0
    deviations = surprises[-window:] - surprises[-window:].mean()
    power = float(deviations @ deviations)
    return float(deviations[1:] @ deviations[:-1]) / power if power >= 1e-8 else 0.0
