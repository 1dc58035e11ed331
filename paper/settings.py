"""The settings that the paper names, read from the library itself."""

from __future__ import annotations

import math

from nanogpt_demo.faults.summary import BOUND
from resilient_optim import DefaultConfig, PaperConfig, gates, paper, policy, statistics
from resilient_optim.breaker_rules import PROBE_STEPS
from resilient_optim.snapshot_ring import PROBATION


def settings() -> dict[str, str]:
    """Settings of the default policy, of the published method and of the circuit breaker."""
    default, published = DefaultConfig(), PaperConfig()
    null_error = math.sqrt(0.5 / (default.window_size - 1))
    return {
        "alpha": f"{default.alpha:g}",
        "phi-min": f"{default.phi_min:g}",
        "psi-min": f"{gates.PSI_MIN:g}",
        "window": str(default.window_size),
        "level-span": str(policy.LEVEL_SPAN),
        "deciles-to-sigma": f"{statistics.DECILES_TO_SIGMA:g}",
        "z-threshold": f"{default.z_threshold:g}",
        "rho-threshold": f"{default.rho_threshold:g}",
        "rho-threshold-sigmas": f"{(default.rho_threshold - 0.5) / null_error:.1f}",
        "patience": str(default.patience),
        "norm-z": f"{default.norm_z:g}",
        "follow-up": f"{gates.FOLLOW_UP:g}",
        "follow-down": f"{gates.FOLLOW_DOWN:g}",
        "norm-quantile": f"{gates.FOLLOW_UP / (gates.FOLLOW_UP + gates.FOLLOW_DOWN):.2f}",
        "lr-jump": f"{default.lr_jump:g}",
        "probation": str(PROBATION),
        "probe-steps": str(PROBE_STEPS),
        "faults-bound": f"{BOUND:g}",
        "published-alpha": f"{published.alpha:g}",
        "published-phi-min": f"{published.phi_min:g}",
        "published-window": str(published.window_size),
        "published-threshold": f"{published.rho_threshold:g}",
        "published-recent": str(paper.RECENT),
        "published-jitter-below": f"{paper.JITTER_BELOW:g}",
    }
