"""The rules of `resilient_optim.policy`, as functions of a Triton program (see `guard`)."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from resilient_optim import gates, policy, policy_state
from resilient_optim.memory import COUNTERS, HEADER
from resilient_optim.policy_state import PolicyState

from . import window as windows

_PLACES = {name: HEADER + i for i, name in enumerate((*PolicyState._fields, *COUNTERS, "skips"))}
# Where each number of the packed memory is, see `Memory.pack`.
YOUNG_STEPS = tl.constexpr(_PLACES["young_steps"])
OPENING_STEPS = tl.constexpr(_PLACES["opening_steps"])
HEALTHY = tl.constexpr(_PLACES["healthy"])
OPEN = tl.constexpr(_PLACES["open"])
WARMS_UP = tl.constexpr(_PLACES["warms_up"])
STREAK = tl.constexpr(_PLACES["streak"])
ALERT = tl.constexpr(_PLACES["alert"])
LEVEL = tl.constexpr(_PLACES["level"])
SCALE = tl.constexpr(_PLACES["scale"])
RHO = tl.constexpr(_PLACES["rho"])
LOG_NORM = tl.constexpr(_PLACES["log_norm"])
LOG_NORM_SIGMA = tl.constexpr(_PLACES["log_norm_sigma"])
OUTLIERS = tl.constexpr(_PLACES["outliers"])
OBSERVED = tl.constexpr(_PLACES["observed"])
TOUCHED = tl.constexpr(_PLACES["touched"])
SKIPPED = tl.constexpr(_PLACES["skipped"])
NONFINITE = tl.constexpr(_PLACES["nonfinite"])
DAMPED = tl.constexpr(_PLACES["damped"])
BOUNDED = tl.constexpr(_PLACES["bounded"])
JITTERED = tl.constexpr(_PLACES["jittered"])
NEW_LEVELS = tl.constexpr(_PLACES["new_levels"])
SKIPS = tl.constexpr(_PLACES["skips"])
LOSSES = tl.constexpr(_PLACES["skips"] + 1)

VERDICT = (
    "step", "reason", "loss", "grad_norm", "z", "rho", "psi", "phi", "chi", "update_scale",
    "grad_scale", "new_level", "abnormal_norm", "skip",
)  # fmt: skip
"""What the kernel tells of its decision, in this order, see `Decision`; `reason` is a code."""

_TOLD = {name: 1 + i for i, name in enumerate(VERDICT)}
# Where each is told, after the number of the step that comes first, see `Guard.told`.
TOLD_STEP = tl.constexpr(_TOLD["step"])
TOLD_REASON = tl.constexpr(_TOLD["reason"])
TOLD_LOSS = tl.constexpr(_TOLD["loss"])
TOLD_GRAD_NORM = tl.constexpr(_TOLD["grad_norm"])
TOLD_Z = tl.constexpr(_TOLD["z"])
TOLD_RHO = tl.constexpr(_TOLD["rho"])
TOLD_PSI = tl.constexpr(_TOLD["psi"])
TOLD_PHI = tl.constexpr(_TOLD["phi"])
TOLD_CHI = tl.constexpr(_TOLD["chi"])
TOLD_UPDATE_SCALE = tl.constexpr(_TOLD["update_scale"])
TOLD_GRAD_SCALE = tl.constexpr(_TOLD["grad_scale"])
TOLD_NEW_LEVEL = tl.constexpr(_TOLD["new_level"])
TOLD_ABNORMAL_NORM = tl.constexpr(_TOLD["abnormal_norm"])
TOLD_SKIP = tl.constexpr(_TOLD["skip"])
TOLD_COUNTERS = tl.constexpr(1 + len(VERDICT))

INFINITY = tl.constexpr(math.inf)
LOG_YOUNG_NORM_SPIKE = tl.constexpr(math.log(policy.YOUNG_NORM_SPIKE))
SUMMARY_EVERY = tl.constexpr(policy.SUMMARY_EVERY)
LEVEL_SPAN = tl.constexpr(policy.LEVEL_SPAN)
STREAK_LEAK = tl.constexpr(policy_state.STREAK_LEAK)
ALERT_LEAK = tl.constexpr(policy_state.ALERT_LEAK)
ALERT_MAX = tl.constexpr(policy_state.ALERT_MAX)
START_UP_STEPS = tl.constexpr(policy_state.START_UP_STEPS)
OUTLIERS_MAX = tl.constexpr(policy_state.OUTLIERS_MAX)
LR_GROWTH = tl.constexpr(gates.LR_GROWTH)
WARMUP_RISE = tl.constexpr(gates.WARMUP_RISE)
MIN_HISTORY = tl.constexpr(gates.MIN_HISTORY)
STEPS_PER_REACH = tl.constexpr(gates.STEPS_PER_REACH)
SHORTEST_OPENING = tl.constexpr(gates.SHORTEST_OPENING)
LONGEST_OPENING = tl.constexpr(gates.LONGEST_OPENING)
PSI_MIN = tl.constexpr(gates.PSI_MIN)
NORM_FLOOR = tl.constexpr(gates.NORM_FLOOR)
LOG_NORM_FAR = tl.constexpr(gates.LOG_NORM_FAR)
FOLLOW_UP = tl.constexpr(gates.FOLLOW_UP)
FOLLOW_DOWN = tl.constexpr(gates.FOLLOW_DOWN)
FOLLOW_MATURE = tl.constexpr(gates.FOLLOW_MATURE)


@triton.jit
def summarise(state, index, n_losses, n_norms, SIZE: tl.constexpr):
    """`policy.summarise`, written back to the state."""
    if n_norms >= MIN_HISTORY:
        norms = tl.load(state + LOSSES + SIZE + index, mask=index < n_norms, other=0.0)
        ordered = windows.ascending(norms, index < n_norms)
        sigma = tl.maximum(windows.decile_sigma(ordered, index, n_norms), NORM_FLOOR)
        middle, reference = windows.middle(ordered, index, n_norms), tl.load(state + LOG_NORM)
        # A run that was not followed from its beginning: one norm is no reference.
        late = (tl.load(state + LOG_NORM_SIGMA) == INFINITY) & (tl.load(state + YOUNG_STEPS) < 0.0)
        tl.debug_barrier()
        tl.store(state + LOG_NORM, tl.where(late, middle, reference))
        tl.store(state + LOG_NORM_SIGMA, sigma)
    if n_losses >= MIN_HISTORY:
        losses, before, before_that = windows.load(state + LOSSES, index, n_losses)
        ordered = windows.ascending(losses, index < n_losses)
        newest = (index >= n_losses - LEVEL_SPAN) & (index < n_losses)
        n_newest = tl.minimum(n_losses, LEVEL_SPAN)
        level = windows.middle(windows.ascending(losses, newest), index, n_newest)
        tl.store(state + LEVEL, level)
        tl.store(state + SCALE, windows.noise_scale(losses, before, ordered, index, n_losses))
        rho = windows.difference_autocorrelation(losses, before, before_that, index, n_losses)
        tl.store(state + RHO, tl.where(n_losses == SIZE, rho, float("nan")))
    tl.debug_barrier()


@triton.jit
def entropy_guard(rho, rho_threshold):
    """`gates.entropy_guard`."""
    psi = tl.maximum(1.0 - 2.0 * (-rho - 0.5), PSI_MIN)
    return tl.where(-rho > rho_threshold, psi, 1.0)


@triton.jit
def surprise(loss, level, scale):
    """`gates.surprise`."""
    known = (loss > level) & (scale > 0.0)
    return tl.where(known, (loss - level) / tl.where(known, scale, 1.0), 0.0)


@triton.jit
def surprise_gate(excess, psi, alpha, phi_min):
    """`gates.surprise_gate`; 1 - tanh(x) is 2 / (exp(2 x) + 1)."""
    return tl.maximum(phi_min, 2.0 / (tl.exp(2.0 * alpha * excess / psi) + 1.0))


@triton.jit
def followed(log_reference, log_norm, young):
    """`gates.follow`."""
    rate = tl.where(young, 1.0, tl.full((), FOLLOW_MATURE, tl.float64))
    change = tl.maximum(-rate * FOLLOW_DOWN, log_norm - log_reference)
    followed = log_reference + tl.minimum(rate * FOLLOW_UP, change)
    return tl.where(log_reference == log_reference, followed, log_norm)


@triton.jit
def is_far(excess, outliers, patience):
    """`gates.is_far`."""
    return (excess > LOG_NORM_FAR) & (outliers >= 1.0) & (outliers < patience)


@triton.jit
def lr_brake(ratio, lr_jump):
    """`gates.lr_brake`."""
    return tl.where(ratio > lr_jump, LR_GROWTH / ratio, 1.0)


@triton.jit
def young_loss_spike(state, index, n_losses, loss):
    """`gates.young_loss_spike`."""
    losses, before, _ = windows.load(state + LOSSES, index, n_losses)
    return windows.young_loss_spike(losses, before, index, n_losses, loss)


@triton.jit
def chosen_opening(start_up, momentum_gain, lr, norm, max_norm, loss):
    """`policy._chosen_opening`."""
    known = (momentum_gain > 0.0) & (lr > 0.0) & (norm > 0.0) & (loss > 0.0)
    reach = lr * momentum_gain * norm * tl.minimum(norm, max_norm) / tl.where(known, loss, 1.0)
    steps = tl.ceil(tl.minimum(STEPS_PER_REACH * reach, LONGEST_OPENING))
    return tl.where(known, tl.maximum(steps, SHORTEST_OPENING), start_up)


@triton.jit
def young_limit(opening_steps):
    """`policy_state.young_limit`."""
    return tl.maximum(2.0 * opening_steps, START_UP_STEPS)


@triton.jit
def moved_on(state, opening_steps, has_norm, log_of_norm, surprised, outlier):
    """`PolicyState.moved_on`: counts leaked, and the reference norm followed."""
    young_steps = tl.load(state + YOUNG_STEPS) + 1.0
    over = (young_steps == 0.0) | (young_steps >= young_limit(opening_steps))
    young_steps = tl.where(over, -1.0, young_steps)
    streak, alert = tl.load(state + STREAK), tl.load(state + ALERT)
    streak = tl.where(surprised, streak, tl.maximum(streak - STREAK_LEAK, 0.0))
    raised, leaked = tl.minimum(alert + 1.0, ALERT_MAX), tl.maximum(alert - ALERT_LEAK, 0.0)
    alert = tl.where(surprised | outlier, raised, leaked)
    outliers = tl.where(outlier, tl.load(state + OUTLIERS) + 1.0, 0.0)
    log_norm = tl.load(state + LOG_NORM)
    young = (young_steps >= 0.0) | (outliers > OUTLIERS_MAX)
    log_norm = tl.where(has_norm, followed(log_norm, log_of_norm, young), log_norm)
    return young_steps, streak, alert, outliers, log_norm


@triton.jit
def reason_code(quiet, young, grad_scale, lr_scale, surprised, new_level, far):
    """Place of the reason in `guard.REASONS`; the last that applies counts."""
    code = tl.where(young, 1, tl.where(grad_scale < 1.0, 2, 4))
    code = tl.where(lr_scale < 1.0, 3, code)
    code = tl.where(surprised, tl.where(new_level, 5, 6), code)
    return tl.where(quiet, 0, tl.where(far, 2, code))


@triton.jit
def decide(
    state, settings, index, n_losses, loss, norm, lr, lr_ratio, own_warmup, nonfinite,
):  # fmt: skip
    """`policy._decide_open` and `policy._decide_opening` side by side; the state moves on.

    Of a step that is not finite nothing is learned: it is left out, and the state stays.
    """
    alpha, phi_min, jitter_scale = tl.load(settings), tl.load(settings + 1), tl.load(settings + 2)
    rho_threshold, z_threshold = tl.load(settings + 3), tl.load(settings + 4)
    patience, start_up, norm_z = tl.load(settings + 5), tl.load(settings + 6), tl.load(settings + 7)
    alert_threshold, lr_jump = tl.load(settings + 8), tl.load(settings + 9)
    max_norm, momentum_gain = tl.load(settings + 10), tl.load(settings + 11)

    # What is seen.
    is_open = tl.load(state + OPEN) != 0.0
    rho, reference = tl.load(state + RHO), tl.load(state + LOG_NORM)
    psi = tl.where(is_open, entropy_guard(rho, rho_threshold), 1.0)
    chi = jitter_scale * (1.0 - psi)
    z = tl.where(is_open, surprise(loss, tl.load(state + LEVEL), tl.load(state + SCALE)), 0.0)
    surprised = is_open & (z > z_threshold)
    has_norm = norm > 0.0
    log_norm = tl.log(tl.where(has_norm, norm, 1.0))
    referred = has_norm & (reference == reference)
    excess = tl.where(referred, tl.maximum(log_norm - reference, 0.0), 0.0)
    outlier = is_open & (excess > norm_z * tl.load(state + LOG_NORM_SIGMA))
    ordinary = (tl.load(state + LEVEL) < INFINITY) & (surprised == 0)
    far = outlier & ordinary & is_far(excess, tl.load(state + OUTLIERS), patience)

    # The state one step later, and how far a young run's gate is open.
    opening_steps = tl.load(state + OPENING_STEPS)
    chosen = chosen_opening(start_up, momentum_gain, lr, norm, max_norm, loss)
    opening_steps = tl.where(is_open | (opening_steps > 0.0), opening_steps, chosen)
    young_steps, streak, alert, outliers, reference = moved_on(
        state, opening_steps, has_norm, log_norm, surprised | far, outlier
    )
    norm_spike = (is_open == 0) & (excess > LOG_YOUNG_NORM_SPIKE)
    spike = norm_spike
    if is_open == 0:  # seldom, and it sorts
        spike = norm_spike | young_loss_spike(state, index, n_losses, loss)
    healthy = tl.load(state + HEALTHY)
    healthier = tl.where(spike, tl.floor(healthy * 0.5), healthy + 1.0)
    healthy = tl.where(is_open, healthy, healthier)
    warms_up = (tl.load(state + WARMS_UP) != 0.0) | ((is_open == 0) & own_warmup)
    evenly = (tl.load(state + YOUNG_STEPS) + 1.0) * opening_steps / young_limit(opening_steps)
    opening = tl.maximum(healthy, tl.floor(evenly)) + 1.0
    opens = is_open | (young_steps < 0.0) | (opening >= opening_steps)
    opening = tl.minimum(opening / tl.maximum(opening_steps, 1.0), 1.0)

    # What follows.
    new_level = surprised & (streak + 1.0 >= patience)
    damped = surprised & (new_level == 0)
    gate = surprise_gate(tl.maximum(z - z_threshold, 0.0), psi, alpha, phi_min)
    phi = tl.where(is_open | warms_up, 1.0, opening)
    phi = tl.where(damped, gate, phi)
    left_out = nonfinite | far
    skip = left_out | (damped & (phi <= phi_min))
    alarmed = is_open & (alert > alert_threshold)
    young = (is_open == 0) | (young_steps >= 0.0)
    bound = max_norm / tl.where(has_norm, norm, 1.0)
    grad_scale = tl.where(young | outlier | alarmed, tl.exp(-excess), 1.0)
    grad_scale = tl.minimum(grad_scale, tl.where(has_norm, bound, 1.0))
    lr_scale = tl.where(is_open, lr_brake(lr_ratio, lr_jump), 1.0)
    touched = (phi != 1.0) | (grad_scale != 1.0) | (lr_scale != 1.0) | (chi != 0.0)
    quiet = (surprised | touched) == 0
    abnormal_norm = tl.where(is_open, (quiet == 0) & (outlier | alarmed), norm_spike)
    reason = reason_code(quiet, young, grad_scale, lr_scale, surprised, new_level, far)
    streak = tl.where(new_level, 0.0, streak + tl.where(surprised | far, 1.0, 0.0))

    tl.debug_barrier()  # no warp writes before all have read
    if nonfinite == 0:
        tl.store(state + YOUNG_STEPS, young_steps)
        tl.store(state + OPENING_STEPS, opening_steps)
        tl.store(state + HEALTHY, healthy)
        tl.store(state + OPEN, tl.where(opens, 1.0, 0.0))
        tl.store(state + WARMS_UP, tl.where(warms_up, 1.0, 0.0))
        tl.store(state + STREAK, tl.where(far, tl.minimum(streak, patience - 1.0), streak))
        tl.store(state + ALERT, alert)
        tl.store(state + LOG_NORM, reference)
        tl.store(state + OUTLIERS, outliers)
        if new_level:
            tl.store(state + LEVEL, INFINITY)
            tl.store(state + SCALE, 0.0)
            tl.store(state + RHO, float("nan"))
    return (
        reason, tl.where(left_out, 0.0, z),
        tl.where(left_out | (is_open == 0), float("nan"), rho),
        tl.where(left_out | quiet, 1.0, psi), tl.where(left_out, 0.0, phi),
        tl.where(left_out, 0.0, chi), lr_scale, tl.where(left_out, 1.0, grad_scale), skip,
        new_level & (nonfinite == 0), abnormal_norm & (left_out == 0),
    )  # fmt: skip
