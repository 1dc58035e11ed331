"""The settings that the paper names, read from the library itself, and what follows from them."""

from __future__ import annotations

import math
from fractions import Fraction

from nanogpt_demo.faults.summary import BOUND, LENIENT_BOUND
from nanogpt_demo.suite.profile import TARGET_SHARE
from paper.common import word
from resilient_optim import (
    DefaultConfig,
    PaperConfig,
    RCAConfig,
    Snapshots,
    breaker_rules,
    gates,
    paper,
    policy,
    policy_state,
    rca_reading,
    rca_statistics,
    rollback,
    statistics,
)
from resilient_optim.snapshot_ring import PROBATION, SHOWN

SLOW, FAST = 0.999, 0.99  # second-moment rates: torch's default, and that of the stress test
FIRST = 0.9
CLOSED = 0.3  # the published floor of the gate


def settings() -> dict[str, str]:
    """Settings of the default policy, of the published method and of the circuit breaker."""
    default, published = DefaultConfig(), PaperConfig()
    null_error = math.sqrt(0.5 / (default.window_size - 1))
    rise, fall = gates.FOLLOW_UP, gates.FOLLOW_DOWN
    return {
        "alpha": f"{default.alpha:g}",
        "phi-min": f"{default.phi_min:g}",
        "psi-min": f"{gates.PSI_MIN:g}",
        "window": str(default.window_size),
        "history": str(gates.MIN_HISTORY),
        "summary-every": word(policy.SUMMARY_EVERY),
        "level-span": str(policy.LEVEL_SPAN),
        "deciles-to-sigma": f"{statistics.DECILES_TO_SIGMA:g}",
        "span-floor": _percent(statistics.SPAN_FLOOR),
        "z-threshold": f"{default.z_threshold:g}",
        "z-floor": f"{default.z_threshold + math.atanh(1 - default.phi_min) / default.alpha:.1f}",
        "rho-threshold": f"{default.rho_threshold:g}",
        "rho-threshold-sigmas": f"{(default.rho_threshold - 0.5) / null_error:.1f}",
        "patience": word(default.patience),
        "streak-leak": _fraction(policy_state.STREAK_LEAK),
        "streak-period": word(1 + round(1 / policy_state.STREAK_LEAK)),
        "norm-z": word(int(default.norm_z)),
        "norm-floor": _percent(gates.NORM_FLOOR),
        "norm-smallest": f"{math.exp(default.norm_z * gates.NORM_FLOOR):.1f}",
        "follow-up": f"{rise:g}",
        "follow-down": f"{fall:g}",
        "follow-mature": _fraction(gates.FOLLOW_MATURE),
        "norm-quantile": f"{rise / (rise + fall):.2f}",
        "outliers-most": str(policy_state.OUTLIERS_MAX),
        "norm-far": word(round(math.exp(gates.LOG_NORM_FAR))),
        "alert-leak": _fraction(policy_state.ALERT_LEAK),
        "opening": word(default.start_up),
        "opening-pace": str(gates.STEPS_PER_REACH),
        "opening-least": word(gates.SHORTEST_OPENING),
        "opening-most": str(gates.LONGEST_OPENING),
        "start-up": str(policy_state.young_limit(default.start_up)),
        "lr-jump": word(int(default.lr_jump)),
        "lr-growth": _percent(gates.LR_GROWTH - 1),
        "probation": word(PROBATION),
        "shown": word(SHOWN),
        "snapshot-cost": _percent(Snapshots().cost),
        "probe-steps": word(breaker_rules.PROBE_STEPS),
        "lr-cut": f"{rollback.LR_CUT:g}",
        "faults-bound": f"{BOUND:g}",
        "faults-bound-arc": word(int(LENIENT_BOUND)),
        "target": _percent(TARGET_SHARE),
        "jump-length": word(rca_statistics.JUMP_LENGTH),
        "jump-before": word(rca_statistics.JUMP_BEFORE),
        "jump-chance": f"1/{_jumps():,}",
        "rca-horizon": _fraction(float(RCAConfig().horizon)),
        "rca-by-heart": _fraction(rca_reading.BY_HEART),
        "kick-slow": f"{kick(SLOW):.1f}",
        "kick-fast": f"{kick(FAST):.1f}",
        "kick-slow-rate": f"{SLOW:g}",
        "kick-fast-rate": f"{FAST:g}",
        "kick-first-rate": f"{FIRST:g}",
        "published-alpha": f"{published.alpha:g}",
        "published-phi-min": f"{published.phi_min:g}",
        "published-window": str(published.window_size),
        "published-threshold": f"{published.rho_threshold:g}",
        "published-recent": word(paper.RECENT),
        "published-jitter-below": f"{paper.JITTER_BELOW:g}",
    }


def kick(second: float) -> float:
    """Largest overshoot of Adam's update after its gradients were scaled by `CLOSED` for long.

    For a constant gradient, relative to the update before; see the paper.

    Args:
        second: decay rate of the second moment.
    """
    return max(
        (1 - FIRST**j * (1 - CLOSED)) / math.sqrt(1 - second**j * (1 - CLOSED**2))
        for j in range(1, 10_000)
    )


def _jumps() -> int:
    """Orders of the values of a jump test, of which one is a jump."""
    length = rca_statistics.JUMP_LENGTH
    return math.comb(length + rca_statistics.JUMP_BEFORE, length)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _fraction(share: float) -> str:
    return str(Fraction(share).limit_denominator(100))
