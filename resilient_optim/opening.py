"""How many healthy steps the gate of a young run takes to open."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from . import distributed
from .delegation import inside
from .gates import LONGEST_OPENING, opening_length
from .policy import DefaultConfig


def opening_steps(optimizer: Optimizer, process_group: Any = False) -> int:
    """The opening that optimizer and model call for: `DefaultConfig.start_up`, or longer.

    The first steps of Adam are signs of one batch's gradient: a unit with `fan_in` inputs of size
    one may then change what it puts out by `lr * fan_in`, whatever its weights are (which is why
    the best rate of Adam falls with the width: Yang et al., arXiv 2203.03466). The wider the model
    and the higher the rate, the longer the first steps have to be small. What convolutions put out
    is normalised as a rule: only matrices count. Other optimizers have no `betas` in their groups;
    for SGD see `momentum_gain`.

    Args:
        optimizer: the base optimizer, with the rates that the run begins with.
        process_group: ranks that decide together and have to open together; False for this
            process alone.

    Returns:
        Steps, the same on all ranks.
    """
    reach = max((_reach(group) for group in optimizer.param_groups), default=0.0)
    steps = max(DefaultConfig.start_up, opening_length(reach))
    return distributed.largest(steps, process_group)


def momentum_gain(optimizer: Optimizer, process_group: Any = False) -> float:
    """What momentum makes of a step of SGD in the long run; 0 where no one number says it.

    Its steps are as large as the gradients, so that the first one tells how far they reach, see
    `gates.gradient_reach`. Others that take no `betas` (Adagrad, RMSprop) divide by what they know
    of the gradients, and one that maximises takes nothing away. Of param groups, or ranks, with
    different rates nobody knows whose the gradient is.

    Args:
        optimizer: the base optimizer, with the rates that the run begins with.
        process_group: as to `opening_steps`.

    Returns:
        1 / (1 - momentum), at most `LONGEST_OPENING`: so often an opening repeats a step.
    """
    groups = optimizer.param_groups
    is_sgd = isinstance(inside(optimizer), torch.optim.SGD)
    kinds = {(float(group["lr"]), float(group.get("momentum", 0.0))) for group in groups if is_sgd}
    alike = len(kinds) == 1 and not any(group.get("maximize") for group in groups)
    if not distributed.in_common({frozenset(kinds) if alike else None}, process_group) or not alike:
        return 0.0
    (_, momentum), *_ = kinds
    return 1.0 / max(1.0 - momentum, 1.0 / LONGEST_OPENING)


def _reach(group: dict[str, Any]) -> float:
    """By how much a first step may change what the widest layer of a param group puts out."""
    # Prodigy and D-Adaptation multiply the rate by an estimate of their own, "d".
    rate = float(group.get("lr") or 0.0) * float(group.get("d", 1.0))
    if "betas" not in group or not 0.0 < rate < math.inf:
        return 0.0
    fans = (p.shape[1] for p in group["params"] if not is_lazy(p) and p.ndim == 2)
    return rate * max(fans, default=0)
