"""A picture of a schedule before anything is trained with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from . import _checks
from .schedule_phases import Phases, parse_phases

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Factory = Callable[[Optimizer], LRScheduler]


def plot(
    schedule: Factory | Phases | str, steps: int, ax: Axes | None = None, lr: float = 1.0
) -> Axes:
    """Draw the learning rate of each step, and what a step takes of a weight, if anything.

    The second curve, on an axis of its own to the right, is lr * weight_decay.

    Args:
        schedule: a text or its `Phases`, with times in steps; or a function that makes a scheduler
            (of torch, of this package, of anybody) for the optimizer it is given, for example
            `lambda optimizer: REX(optimizer, 1000)`.
        steps: how many; >= 1.
        ax: where to draw; None for a new figure.
        lr: learning rate of the optimizer that the function is given; > 0.

    Returns:
        The axes of the learning rate.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `schedule` is none of these, or a setting is of a wrong type.
        ValueError: a setting is out of range, or the text is no schedule.
    """
    _checks.integer("steps", steps, low=1)
    _checks.number("lr", lr, low=0.0, open_low=True)
    if isinstance(schedule, str):
        schedule = parse_phases(schedule, "schedule")
    if not callable(schedule):
        raise TypeError(
            "schedule must be a text, Phases or a function that makes a scheduler, got "
            f"{type(schedule).__name__}; pass lambda optimizer: YourScheduler(optimizer)"
        )
    if isinstance(schedule, Phases):
        lrs, shares = [schedule(step) for step in range(steps)], [0.0] * steps
    else:
        lrs, shares = trace(schedule, steps, lr)
    ax = _new_axes() if ax is None else ax
    ax.plot(range(steps), lrs, color="tab:blue", label="learning rate")
    ax.set_xlabel("step")
    ax.set_ylabel("learning rate")
    if any(shares):
        right = ax.twinx()
        right.plot(range(steps), shares, color="tab:orange", label="lr * weight decay")
        right.set_ylabel("share of a weight that a step takes")
        ax.legend(handles=[*ax.lines, *right.lines])
    return ax


def trace(factory: Factory, steps: int, lr: float = 1.0) -> tuple[list[float], list[float]]:
    """Learning rate and lr * weight_decay of each step under a scheduler, without training.

    Args:
        factory: makes the scheduler for the optimizer it is given: SGD with momentum (which torch's
            cyclic schedulers ask for) and one parameter.
        steps: how many.
        lr: learning rate of that optimizer.

    Returns:
        Two lists of `steps` numbers.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr, momentum=0.9)
    scheduler = factory(optimizer)
    lrs, shares = [], []
    for step in range(steps):
        group = optimizer.param_groups[0]
        lrs.append(float(group["lr"]))
        shares.append(lrs[-1] * float(group["weight_decay"]))
        optimizer.step()  # does nothing without gradients, but torch warns if it is missing
        if step + 1 < steps:  # OneCycleLR raises beyond its last step
            scheduler.step()
    return lrs, shares


def _new_axes() -> Axes:
    try:
        from matplotlib import pyplot  # here: it is optional, and slow to load
    except ImportError as error:
        raise ImportError(
            "plot needs matplotlib; install it with: pip install resilient-optim[report]"
        ) from error
    return pyplot.subplots()[1]
