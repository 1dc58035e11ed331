"""The default policy: from what is known of a step to a Decision, as pure functions.

Nothing here touches a tensor, a clock or a random number; the same history gives the same
decision. Every rule compares losses with losses and norms with norms, so that l -> a*l + b (a > 0)
changes no decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import _checks, statistics
from .decision import APPLY, DAMP, QUIET, SKIP, Decision, Observation
from .gates import (
    MIN_HISTORY,
    chronos_jitter,
    entropy_guard,
    norm_bound,
    surprise,
    surprise_gate,
    young_loss_spike,
    young_norm_scale,
)
from .loss_buffer import LossBuffer

LEVEL_SPAN = 24
"""The recent level is the median of this many values: short enough to follow a falling loss."""

STREAK_LEAK = 1 / 3
"""What an unsurprising step takes off the streak. Surprises that come more often than every fourth
step thus add up to a new level; rarer ones (corrupted batches) never do."""

SUMMARY_EVERY = 8
"""Level, noise, rhythm and norm bound are taken from the window at every eighth step: they change
slowly, and their cost is thus spread."""

YOUNG_LIMIT = 5
"""Start-up is over after this many times its nominal length, however unruly the run."""


@dataclass(frozen=True)
class DefaultConfig:
    """Settings of the default policy. The defaults are meant for every model and optimizer.

    Attributes:
        alpha: steepness of the surprise gate, per noise scale; > 0.
        phi_min: the gate's floor, in [0, 1); a step whose Φ falls to it is left out altogether.
        jitter_scale: noise at full resonance, in units of each tensor's gradient RMS; >= 0.
        window_size: losses and norms remembered; >= 32.
        rho_threshold: resonance counts once the lag-1 autocorrelation of the loss differences is
            below minus this, in (0.5, 1]; 0.5 is white noise, 1 a pure oscillation of period 2.
        z_threshold: surprise that is still normal, in noise scales; > 0.
        patience: at this surprising step in a row (an unsurprising one takes a third off the
            count) the surprise is accepted as the new level; >= 1.
        start_up: healthy steps until the gate of a young run is fully open; 0 switches it off.
        norm_guard: measure the gradient norm each step: skip if it is not finite, bound outliers.
        norm_z: outlier bound of the gradient norm, in robust standard deviations of its
            logarithm; > 0.
        max_norm: also bound the gradient norm to this fixed value; None for no fixed bound.
    """

    alpha: float = 0.5
    phi_min: float = 0.02
    jitter_scale: float = 0.1
    window_size: int = 64
    rho_threshold: float = 0.75
    z_threshold: float = 3.0
    patience: int = 4
    start_up: int = 20
    norm_guard: bool = True
    norm_z: float = 6.0
    max_norm: float | None = None

    def __post_init__(self) -> None:
        _checks.number("alpha", self.alpha, low=0.0, open_low=True)
        _checks.number("phi_min", self.phi_min, low=0.0, high=1.0, open_high=True)
        _checks.number("jitter_scale", self.jitter_scale, low=0.0, remedy="0 switches it off")
        _checks.integer("window_size", self.window_size, low=32)
        _checks.number("rho_threshold", self.rho_threshold, low=0.5, high=1.0, open_low=True)
        _checks.number("z_threshold", self.z_threshold, low=0.0, open_low=True)
        _checks.integer("patience", self.patience, low=1)
        _checks.integer("start_up", self.start_up, low=0, remedy="0 switches it off")
        _checks.boolean("norm_guard", self.norm_guard)
        _checks.number("norm_z", self.norm_z, low=0.0, open_low=True)
        if self.max_norm is not None:
            _checks.number("max_norm", self.max_norm, low=0.0, open_low=True)
            if not self.norm_guard:
                raise ValueError(
                    f"max_norm must be None without the norm guard, got {self.max_norm!r}; "
                    "pass norm_guard=True"
                )

    @property
    def history(self) -> int:
        """Values the loss buffer has to hold."""
        return self.window_size

    @property
    def measures_norm(self) -> bool:
        """Whether a step needs the gradient norm."""
        return self.norm_guard

    def first_state(self, young: bool) -> PolicyState:
        """The policy's state at the first step of a run, or (not young) of one under way."""
        return PolicyState() if young and self.start_up > 0 else MATURE

    def resumed(self, state: PolicyState) -> PolicyState:
        """A saved state under these settings: without a start-up phase no run is young."""
        return MATURE if state.young_steps >= 0 and self.start_up == 0 else state

    def decide(
        self, state: PolicyState, buffer: LossBuffer, seen: Observation
    ) -> tuple[Decision, PolicyState]:
        """Decide on a step from the history before it; returns the decision and the next state."""
        young = state.young_steps >= 0
        # Before anything else: a step that is skipped must not cost the summary its turn.
        if not young and seen.step % SUMMARY_EVERY == 0:
            state = summarise(state, buffer, self)
        if not math.isfinite(seen.loss):
            return _skip(seen, "non-finite loss"), state
        if seen.grad_norm is not None and not math.isfinite(seen.grad_norm):
            return _skip(seen, "non-finite gradient"), state
        rule = _decide_young if young else _decide_mature
        return rule(self, state, buffer, seen)


class PolicyState(NamedTuple):
    """What the policy remembers besides the loss buffer; all numbers, so that it can be saved.

    Attributes:
        young_steps: steps of the start-up phase taken so far; -1 once it is over for good.
        healthy: healthy start-up steps, halved at every spike; the gate's opening.
        warms_up: the run raises its own learning rate: its opening is left to it.
        streak: leaky count of surprising steps.
        level: recent level of the loss; infinite while there is too little history.
        scale: noise scale of the loss.
        rho: lag-1 autocorrelation of the differences of the loss; NaN with too little history.
        norm_bound: largest gradient norm that counts as normal.
    """

    young_steps: int = 0
    healthy: int = 0
    warms_up: bool = False
    streak: float = 0.0
    level: float = math.inf
    scale: float = 0.0
    rho: float = math.nan
    norm_bound: float = math.inf


MATURE = PolicyState(young_steps=-1)


def summarise(state: PolicyState, buffer: LossBuffer, config: DefaultConfig) -> PolicyState:
    """The state with what the buffer says of level, noise, rhythm and norm."""
    losses = buffer.losses.values
    state = state._replace(norm_bound=norm_bound(buffer.log_norms.values, config.norm_z))
    if len(losses) < MIN_HISTORY:
        return state
    full = len(losses) >= config.window_size
    # Squares of losses beyond 1e154 overflow; an infinite scale then means: no judgement.
    with np.errstate(over="ignore", invalid="ignore"):
        return state._replace(
            level=statistics.median(losses[-LEVEL_SPAN:]),
            scale=statistics.noise_scale(losses),
            rho=statistics.difference_autocorrelation(losses) if full else math.nan,
        )


def _decide_mature(
    config: DefaultConfig, state: PolicyState, buffer: LossBuffer, seen: Observation
) -> tuple[Decision, PolicyState]:
    rho = state.rho
    psi = entropy_guard(rho, config.rho_threshold)
    chi = chronos_jitter(psi, config.jitter_scale)
    z = surprise(seen.loss, state.level, state.scale)
    grad_scale = _grad_scale(config, state.norm_bound, seen.grad_norm)
    surprised = z > config.z_threshold
    if state.streak and not surprised:
        state = state._replace(streak=max(0.0, state.streak - STREAK_LEAK))
    if not surprised and grad_scale == 1.0 and chi == 0.0:
        return Decision(seen.step, APPLY, QUIET, seen.loss, seen.grad_norm, z, rho), state
    phi, action, reason, new_level = 1.0, APPLY, "resonance", False
    if grad_scale < 1.0:
        action, reason = DAMP, "outlier gradient"
    if surprised and state.streak + 1.0 >= config.patience:
        new_level, reason = True, "new level"
        state = PolicyState(young_steps=-1, norm_bound=state.norm_bound)
    elif surprised:
        state = state._replace(streak=state.streak + 1.0)
        phi = surprise_gate(z - config.z_threshold, psi, config.alpha, config.phi_min)
        action, reason = (SKIP if phi <= config.phi_min else DAMP), "surprise"
    decision = Decision(
        seen.step, action, reason, seen.loss, seen.grad_norm, z, rho, psi, phi, chi,
        phi, grad_scale, new_level=new_level,
    )  # fmt: skip
    return decision, state


def _decide_young(
    config: DefaultConfig, state: PolicyState, buffer: LossBuffer, seen: Observation
) -> tuple[Decision, PolicyState]:
    """The gate opens as evidence accumulates: a warm-up that listens.

    With an empty buffer nobody knows what normal is, and the first steps of an adaptive optimizer
    are the largest it ever takes. Each healthy step opens the gate a little further, each spike
    of the loss or of the gradient norm closes it half-way.
    """
    grad_scale = young_norm_scale(buffer.log_norms.values, seen.grad_norm)
    spike = grad_scale < 1.0 or young_loss_spike(buffer.losses.values, seen.loss)
    grad_scale = min(grad_scale, _grad_scale(config, math.inf, seen.grad_norm))
    healthy = state.healthy // 2 if spike else state.healthy + 1
    young_steps = state.young_steps + 1
    warms_up = state.warms_up or seen.own_warmup
    phi = 1.0 if warms_up else min(1.0, (healthy + 1) / config.start_up)
    over = healthy + 1 >= config.start_up or young_steps >= YOUNG_LIMIT * config.start_up
    quiet = phi == 1.0 and grad_scale == 1.0
    decision = Decision(
        seen.step, APPLY if quiet else DAMP, QUIET if quiet else "start-up", seen.loss,
        seen.grad_norm, phi=phi, update_scale=phi, grad_scale=grad_scale,
    )  # fmt: skip
    return decision, MATURE if over else PolicyState(young_steps, healthy, warms_up)


def _grad_scale(config: DefaultConfig, bound: float, grad_norm: float | None) -> float:
    """Factor that brings an outlier gradient back to the bound."""
    if grad_norm is None:
        return 1.0
    if config.max_norm is not None:
        bound = min(bound, config.max_norm)
    return bound / grad_norm if grad_norm > bound else 1.0


def _skip(seen: Observation, reason: str) -> Decision:
    return Decision(seen.step, SKIP, reason, seen.loss, seen.grad_norm, phi=0.0, update_scale=0.0)
