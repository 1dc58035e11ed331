"""How many healthy steps the gate of a young run takes to open."""

from __future__ import annotations

import math
from typing import Any

from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from . import distributed
from .policy import DefaultConfig

STEPS_PER_REACH = 25
"""Steps of the opening for each unit by which a step of Adam may move what a layer puts out."""

LONGEST = 200
"""Most steps chosen here: a rate for which that is too short is no working rate."""


def opening_steps(optimizer: Optimizer, process_group: Any = False) -> int:
    """The opening that optimizer and model call for: `DefaultConfig.start_up`, or longer.

    The first steps of Adam are signs of one batch's gradient: a unit with `fan_in` inputs of size
    one may then change what it puts out by `lr * fan_in`, whatever its weights are (which is why
    the best rate of Adam falls with the width: Yang et al., arXiv 2203.03466). The wider the model
    and the higher the rate, the longer the first steps have to be small. Other optimizers
    (recognised by their groups having no `betas`) take steps in proportion to the gradient, and
    what convolutions put out is normalised as a rule: only matrices count.

    Args:
        optimizer: the base optimizer, with the rates that the run begins with.
        process_group: ranks that decide together and have to open together; False for this
            process alone.

    Returns:
        Steps, the same on all ranks.
    """
    reach = max((_reach(group) for group in optimizer.param_groups), default=0.0)
    steps = max(DefaultConfig.start_up, math.ceil(min(STEPS_PER_REACH * reach, LONGEST)))
    return distributed.largest(steps, process_group)


def _reach(group: dict[str, Any]) -> float:
    """By how much a first step may change what the widest layer of a param group puts out."""
    # Prodigy and D-Adaptation multiply the rate by an estimate of their own, "d".
    rate = float(group.get("lr") or 0.0) * float(group.get("d", 1.0))
    if "betas" not in group or not 0.0 < rate < math.inf:
        return 0.0
    fans = (p.shape[1] for p in group["params"] if not is_lazy(p) and p.ndim == 2)
    return rate * max(fans, default=0)
