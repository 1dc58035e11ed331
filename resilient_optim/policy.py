"""The default policy: from what is known of a step to a Decision, as pure functions.

Nothing here touches a tensor, a clock or a random number; the same history gives the same
decision. Every rule compares losses with losses and norms with norms, so that l -> a*l + b (a > 0)
changes no decision; only the length of SGD's opening goes by what a step does to the loss itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import _checks, statistics
from .decision import APPLY, DAMP, QUIET, SKIP, Decision, Observation
from .gates import (
    MIN_HISTORY,
    NORM_FLOOR,
    chronos_jitter,
    entropy_guard,
    gradient_reach,
    is_far,
    lr_brake,
    norm_excess,
    norm_scale,
    opening_length,
    surprise,
    surprise_gate,
    young_loss_spike,
)
from .loss_buffer import LossBuffer
from .policy_state import MATURE, PolicyState, young_limit

LEVEL_SPAN = 24
"""The recent level is the median of this many values: short enough to follow a falling loss."""

SUMMARY_EVERY = 8
"""Level, noise and rhythm are taken from the window at every eighth step: they change slowly, and
their cost is thus spread."""

YOUNG_NORM_SPIKE = 3.0
"""While the gate opens: a gradient norm above this multiple of its reference is a spike."""


@dataclass(frozen=True)
class DefaultConfig:
    """Settings of the default policy. The defaults are meant for every model and optimizer.

    What each buys, measured: the ablation table in results/README.md.

    Attributes:
        alpha: steepness of the surprise gate, per noise scale; > 0.
        phi_min: the gate's floor, in [0, 1); a step whose Φ falls to it is left out altogether.
        jitter_scale: noise at full resonance, in units of each tensor's gradient RMS; >= 0. Off by
            default: no run was found in which it helps.
        window_size: losses and norms remembered; >= 32.
        rho_threshold: resonance counts once the lag-1 autocorrelation of the loss differences is
            below minus this, in (0.5, 1]; 0.5 is white noise, 1 a pure oscillation of period 2.
        z_threshold: surprise that is still normal, in noise scales; > 0.
        patience: at this surprising step in a row (an unsurprising one takes a third off the
            count) the surprise is accepted as the new level; >= 1.
        start_up: healthy steps until the gate of a young run is fully open (that of a run that
            warms up by itself, or steps by sign as Lion does, opens at once); 0 switches it off.
            Unless it is given, `ARS` takes more for Adam at a high rate on wide layers, up to 200.
        momentum_gain: of SGD, what momentum makes of a step in the long run, 1 / (1 - momentum).
            The gate then takes as many steps to open as the first gradient calls for, see
            `gates.gradient_reach`; >= 0, 0 for `start_up` steps. `ARS` sets it unless `start_up` is
            given, where all param groups (and ranks) have one rate and one momentum.
        norm_guard: measure the gradient norm each step: skip if it is not finite, bound outliers.
        norm_z: a gradient norm this many robust standard deviations of its logarithm above its
            reference is an outlier; > 0.
        alert_threshold: while the alert (see `PolicyState`) exceeds this, every gradient norm is
            held to its reference: trouble that comes in clusters is met with small steps, and a
            lone event costs nothing; >= 0, infinite switches it off.
        lr_jump: a learning rate of more than this multiple of the largest that the run has been
            through is approached step by step; > 1, infinite switches it off. Schedules that rise
            smoothly, or return to where they were, never jump.
        max_norm: also bound the gradient norm to this fixed value; None for no fixed bound.

    Raises:
        TypeError, ValueError: a setting is of a wrong type, or out of range.
    """

    alpha: float = 0.5
    phi_min: float = 0.02
    jitter_scale: float = 0.0
    window_size: int = 64
    rho_threshold: float = 0.75
    z_threshold: float = 4.0
    patience: int = 8
    start_up: int = 30
    momentum_gain: float = 0.0
    norm_guard: bool = True
    norm_z: float = 6.0
    alert_threshold: float = 1.0
    lr_jump: float = 2.0
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
        _checks.number("momentum_gain", self.momentum_gain, low=0.0, remedy="0 switches it off")
        _checks.boolean("norm_guard", self.norm_guard)
        _checks.number("norm_z", self.norm_z, low=0.0, open_low=True)
        if self.alert_threshold != math.inf:
            _checks.number("alert_threshold", self.alert_threshold, low=0.0)
        if self.lr_jump != math.inf:
            _checks.number("lr_jump", self.lr_jump, low=1.0, open_low=True)
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
        """The state at the first step of a run, or (not young) later; for ARS to call."""
        return PolicyState() if young and self.start_up > 0 else MATURE

    def resumed(self, state: PolicyState) -> PolicyState:
        """A saved state, not young if there is no start-up phase now; for ARS to call."""
        return MATURE if state.young_steps >= 0 and self.start_up == 0 else state

    def decide(
        self, state: PolicyState, buffer: LossBuffer, seen: Observation
    ) -> tuple[Decision, PolicyState]:
        """The verdict on a step from the history before it, and the next state; for ARS to call."""
        # Before anything else: a step that is skipped must not cost the summary its turn.
        if seen.step % SUMMARY_EVERY == 0:
            state = summarise(state, buffer, self)
        if not math.isfinite(seen.loss):
            return _skip(seen, "non-finite loss"), state
        if seen.grad_norm is not None and not math.isfinite(seen.grad_norm):
            return _skip(seen, "non-finite gradient"), state
        if not math.isfinite(seen.lr_ratio):
            return _skip(seen, "non-finite learning rate"), state
        rule = _decide_open if state.open else _decide_opening
        return rule(self, state, buffer, seen)


def summarise(state: PolicyState, buffer: LossBuffer, config: DefaultConfig) -> PolicyState:
    """The state with what the buffer says of level, noise and rhythm, and of the norm's noise."""
    losses, log_norms = buffer.losses.values, buffer.log_norms.values
    if len(log_norms) >= MIN_HISTORY:
        if state.log_norm_sigma == math.inf and state.young_steps < 0:
            # A run that was not followed from its beginning: one norm is no reference.
            state = state._replace(log_norm=statistics.median(log_norms))
        state = state._replace(log_norm_sigma=max(NORM_FLOOR, statistics.spread(log_norms)))
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


def _decide_open(
    config: DefaultConfig, state: PolicyState, buffer: LossBuffer, seen: Observation
) -> tuple[Decision, PolicyState]:
    rho = state.rho
    psi = entropy_guard(rho, config.rho_threshold)
    chi = chronos_jitter(psi, config.jitter_scale)
    z = surprise(seen.loss, state.level, state.scale)
    surprised = z > config.z_threshold
    excess = norm_excess(seen.grad_norm, state.log_norm)
    outlier = excess > config.norm_z * state.log_norm_sigma
    ordinary = state.level < math.inf and not surprised
    far = outlier and ordinary and is_far(excess, state.outliers, config.patience)
    state = state.moved_on(seen.grad_norm, surprised or far, outlier)
    if far:
        # Should the loss be surprising after them, it is soon clear that it is so for good.
        streak = min(config.patience - 1.0, state.streak + 1.0)
        return _skip(seen, "outlier gradient"), state._replace(streak=streak)
    held = outlier or state.alert > config.alert_threshold or state.young_steps >= 0
    grad_scale = norm_scale(excess if held else 0.0, seen.grad_norm, config.max_norm)
    lr_scale = lr_brake(seen.lr_ratio, config.lr_jump)
    if not surprised and grad_scale == lr_scale == 1.0 and chi == 0.0:
        return Decision(seen.step, APPLY, QUIET, seen.loss, seen.grad_norm, z, rho), state
    phi, action, reason, new_level = 1.0, APPLY, "resonance", False
    if grad_scale < 1.0:
        action, reason = DAMP, "start-up" if state.young_steps >= 0 else "outlier gradient"
    if lr_scale < 1.0:
        action, reason = DAMP, "learning-rate jump"
    if surprised and state.streak + 1.0 >= config.patience:
        new_level, reason = True, "new level"
        state = state._replace(streak=0.0, level=math.inf, scale=0.0, rho=math.nan)
    elif surprised:
        state = state._replace(streak=state.streak + 1.0)
        phi = surprise_gate(z - config.z_threshold, psi, config.alpha, config.phi_min)
        action, reason = (SKIP if phi <= config.phi_min else DAMP), "surprise"
    jumping = seen.lr_ratios if lr_scale < 1.0 else ()
    decision = Decision(
        seen.step, action, reason, seen.loss, seen.grad_norm, z, rho, psi, phi, chi,
        phi * lr_scale, grad_scale, new_level=new_level,
        abnormal_norm=outlier or state.alert > config.alert_threshold,
        lr_scales=tuple(phi * lr_brake(ratio, config.lr_jump) for ratio in jumping) or None,
    )  # fmt: skip
    return decision, state


def _decide_opening(
    config: DefaultConfig, state: PolicyState, buffer: LossBuffer, seen: Observation
) -> tuple[Decision, PolicyState]:
    """The gate opens as evidence accumulates: a warm-up that listens.

    With an empty buffer nobody knows what normal is, and the first steps of an adaptive optimizer
    are the largest it ever takes. Each healthy step opens the gate a little further, each spike
    of the loss or of the gradient norm closes it half-way; yet in a run that is all spikes (losses
    of two kinds that take turns) it is open by the end of the start-up phase, and not at once.
    """
    excess = norm_excess(seen.grad_norm, state.log_norm)
    norm_spike = excess > math.log(YOUNG_NORM_SPIKE)
    spike = norm_spike or young_loss_spike(buffer.losses.values, seen.loss)
    grad_scale = norm_scale(excess, seen.grad_norm, config.max_norm)
    healthy = state.healthy // 2 if spike else state.healthy + 1
    warms_up = state.warms_up or seen.own_warmup
    steps = state.opening_steps or _chosen_opening(config, seen)
    at_least = (state.young_steps + 1) * steps // young_limit(steps)
    opening = max(healthy, at_least) + 1
    phi = 1.0 if warms_up else min(1.0, opening / steps)
    state = state._replace(opening_steps=steps).moved_on(seen.grad_norm)
    is_open = state.young_steps < 0 or opening >= steps
    state = state._replace(healthy=healthy, warms_up=warms_up, open=is_open)
    quiet = phi == grad_scale == 1.0
    decision = Decision(
        seen.step, APPLY if quiet else DAMP, QUIET if quiet else "start-up", seen.loss,
        seen.grad_norm, phi=phi, update_scale=phi, grad_scale=grad_scale, abnormal_norm=norm_spike,
    )  # fmt: skip
    return decision, state


def _chosen_opening(config: DefaultConfig, seen: Observation) -> int:
    """Healthy steps until the gate is open, chosen at the first step of a run."""
    if not (config.momentum_gain > 0.0 < seen.lr and seen.grad_norm and seen.loss > 0.0):
        return config.start_up
    gain, bound = config.momentum_gain, config.max_norm
    return opening_length(gradient_reach(seen.lr, gain, seen.grad_norm, seen.loss, bound))


def _skip(seen: Observation, reason: str) -> Decision:
    return Decision(seen.step, SKIP, reason, seen.loss, seen.grad_norm, phi=0.0, update_scale=0.0)
