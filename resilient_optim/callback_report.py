"""What `ResonantCallback` says after an epoch: one line in the log, numbers to a logger."""

from __future__ import annotations

import logging
import math
from typing import Any

log = logging.getLogger(f"{__package__}.callback")  # one name for all messages of the callback


def report(facts: dict[str, Any], values: dict[str, float], verbose: bool, logger: Any) -> None:
    """Tell of an epoch.

    Args:
        facts: what `ResonantCallback.get_statistics` returned.
        values: of the metrics.
        verbose: whether to write the line.
        logger: see `ResonantCallback`; None for none.
    """
    if verbose:
        log.info(
            "RCA epoch %d: %s (best %.6g in epoch %d), beta %.2f, omega %.2f, %s: %s (%s)",
            facts["current_epoch"], ", ".join(f"{k} {v:.6g}" for k, v in values.items()),
            facts["best_loss"], facts["best_epoch"], facts["beta"], facts["omega"], facts["state"],
            facts["action"], facts["reason"],
        )  # fmt: skip
    if logger is None:
        return
    scalars = {
        f"rca/{name}": float(x)
        for name, x in (facts | values).items()
        if isinstance(x, (int, float)) and math.isfinite(x)
    }
    if hasattr(logger, "add_scalar"):
        for tag, scalar in scalars.items():
            logger.add_scalar(tag, scalar, facts["current_epoch"])
    else:
        logger.log(scalars)
