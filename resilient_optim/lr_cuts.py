"""Cuts of the learning rate that last under a schedule, and who owns the learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

LR_KEYS = ("lr", "initial_lr", "max_lr", "min_lr")
"""What a param group knows of learning rates: the schedule's, never part of a best state."""


def cut_lrs(optimizer: Optimizer, factor: float, min_lr: float, scheduler: Any = None) -> bool:
    """Multiply the learning rate of every param group by `factor`, but not below `min_lr`.

    Whatever the scheduler computes learning rates from is multiplied likewise: `base_lrs` and
    `max_lrs` (also of the schedulers inside a SequentialLR or ChainedScheduler), the groups'
    `initial_lr`, and for OneCycleLR their `max_lr` and `min_lr`. The schedule then goes on
    as it would have, at a smaller scale.

    Returns:
        Whether any learning rate changed.
    """
    groups = optimizer.param_groups
    old = [float(group["lr"]) for group in groups]
    new = [min(lr, max(lr * factor, min_lr)) for lr in old]
    if new == old:
        return False
    ratios = [b / a if a > 0.0 else 1.0 for a, b in zip(old, new, strict=True)]
    found = list(schedulers_in(scheduler))
    keys = LR_KEYS[1:] if any(isinstance(s, OneCycleLR) for s in found) else ("initial_lr",)
    for group, lr, ratio in zip(groups, new, ratios, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
        group.update({key: group[key] * ratio for key in keys if key in group})
    for each in found:
        for name in ("base_lrs", "max_lrs"):
            lrs = getattr(each, name, None)
            if lrs is not None:
                setattr(each, name, [lr * ratio for lr, ratio in zip(lrs, ratios, strict=False)])
    return True


def lrs_of(optimizer: Optimizer | None) -> list[float]:
    """The learning rate of each param group."""
    return [] if optimizer is None else [float(group["lr"]) for group in optimizer.param_groups]


def can_reduce(scheduler: ReduceLROnPlateau) -> bool:
    """Whether a ReduceLROnPlateau has not reached its least learning rates yet."""
    pairs = zip(lrs_of(scheduler.optimizer), scheduler.min_lrs, strict=False)
    return any(lr - max(lr * scheduler.factor, low) > scheduler.eps for lr, low in pairs)


def ownership(scheduler: Any) -> str:
    """Who owns the learning rate in a run with this scheduler, in a sentence."""
    name = type(scheduler).__name__
    if isinstance(scheduler, ReduceLROnPlateau):
        return f"{name} owns the lr and makes the cuts; they are counted, and a stop waits for them"
    if any(hasattr(each, "base_lrs") for each in schedulers_in(scheduler)):
        return f"{name} owns the lr; a cut rescales its base lrs, and it goes on at that scale"
    return f"{name} owns the lr and has no base_lrs to rescale; a cut may last until its next step"


def schedulers_in(scheduler: Any) -> Iterator[Any]:
    """A scheduler and those inside it; none for None. A framework's wrapper is looked through."""
    if scheduler is not None:
        if not hasattr(scheduler, "base_lrs") and hasattr(scheduler, "scheduler"):
            scheduler = scheduler.scheduler
        yield scheduler
        for inner in getattr(scheduler, "_schedulers", ()):
            yield from schedulers_in(inner)
