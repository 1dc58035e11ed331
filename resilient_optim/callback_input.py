"""What a call of `ResonantCallback` may be given: values, model, optimizer and scheduler."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from . import _checks
from .callback_metric import Metric

LOSS = "val_loss"
"""The metric that a training loss is compared with."""

STATEFUL = ("state_dict", "load_state_dict")


def values_of(
    val_loss: Any, metrics: Mapping[str, Any] | None, names: Collection[str]
) -> dict[str, float]:
    """The value of each metric that is judged, in the order of `names`.

    Raises:
        TypeError: a value is not a number, or `metrics` no mapping.
        ValueError: the metrics are not those of `names`, or val_loss is given twice.
    """
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(
            f"metrics must be a dict of values by name, got {metrics!r}; as "
            f"metrics={{{next(iter(names))!r}: 0.5}}"
        )
    given = dict(metrics or {})
    if val_loss is not None:
        if LOSS in given:
            raise ValueError(
                f"val_loss must be given once, got {val_loss!r} and, in metrics, "
                f"{given[LOSS]!r}; leave one of them out"
            )
        given[LOSS] = val_loss
    if not given and list(names) == [LOSS]:
        raise ValueError(
            "val_loss must be given at every call, got None; pass the loss of the validation, and "
            "call only after one"
        )
    if given.keys() != set(names):
        raise ValueError(
            f"metrics must be {list(names)}, got {list(given)}; pass the value of each, or name "
            "others at construction, as metrics={'val_loss': 'min', 'accuracy': 'max'}"
        )
    remedy = "pass its mean over the validation set"
    return {name: _checks.as_float(name, given[name], remedy) for name in names}


def train_loss_of(train_loss: Any, metrics: Mapping[str, Metric], preset: str) -> float:
    """The training loss; NaN without one.

    Raises:
        TypeError: it is not a number.
        ValueError: there is no validation loss among `metrics` that it goes with, or the published
            rules are asked for.
    """
    if train_loss is None:
        return math.nan
    if preset == "paper":
        raise ValueError(
            f"train_loss must be left out with preset 'paper', got {train_loss!r}; the published "
            "rules know no training loss"
        )
    if LOSS not in metrics or metrics[LOSS].rca.mode != "min":
        raise ValueError(
            f"train_loss must be left out without a metric {LOSS!r} of mode 'min', got "
            f"{train_loss!r}; it is compared with the validation loss: give that this name"
        )
    return _checks.as_float("train_loss", train_loss, "pass its mean over the epoch")


def check_run(model: Any, optimizer: Any) -> None:
    """Refuse what cannot be kept, cut or restored; either may be None.

    What they can do counts, not their class: frameworks wrap models and optimizers in their own.

    Raises:
        TypeError: one of them is something else, or they are swapped.
    """
    if _is_optimizer(model):
        if optimizer is not None and not _is_optimizer(optimizer):
            raise TypeError(
                f"model and optimizer must not be swapped, got model={_name(model)} and "
                f"optimizer={_name(optimizer)}; the model comes first"
            )
        raise TypeError(
            f"model must be a model, got the optimizer {_name(model)}; pass it as optimizer="
        )
    if model is not None and not _has(model, STATEFUL):
        raise TypeError(
            f"model must have state_dict() and load_state_dict(), got {_name(model)}; pass the "
            "torch.nn.Module itself"
        )
    # Without a model nothing is kept, and only the learning rates are touched.
    if optimizer is not None and not (
        _is_optimizer(optimizer) and (model is None or _has(optimizer, STATEFUL))
    ):
        raise TypeError(
            f"optimizer must have param_groups, state_dict() and load_state_dict(), got "
            f"{_name(optimizer)}; pass the torch.optim.Optimizer, or the ARS around it"
        )


def check_schedule(scheduler: Any, optimizer: Any) -> None:
    """Refuse what is no lr scheduler, and one without its optimizer; None is neither.

    Raises:
        TypeError: it is something else.
        ValueError: it comes without its optimizer.
    """
    if scheduler is None:
        return
    if _is_optimizer(scheduler) or not hasattr(scheduler, "step"):
        raise TypeError(
            f"scheduler must be an lr scheduler, got {_name(scheduler)}; pass the one that you "
            "step, made as CosineAnnealingLR(optimizer, epochs)"
        )
    if optimizer is None:
        raise ValueError(
            f"optimizer must be given with a scheduler, got None and {_name(scheduler)}; pass the "
            "optimizer that it was made on"
        )


def _is_optimizer(thing: Any) -> bool:
    # A model may have something of that name.
    return hasattr(thing, "param_groups") and not isinstance(thing, nn.Module)


def _has(thing: Any, methods: tuple[str, ...]) -> bool:
    # A class has them as well, but no state.
    return not isinstance(thing, type) and all(hasattr(thing, name) for name in methods)


def _name(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
