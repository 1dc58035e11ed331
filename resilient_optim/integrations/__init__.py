"""ARS and RCA inside training frameworks: one thin module for each, none imported by the library.

The frameworks are extras: `pip install "resilient-optim[lightning]"`, `[transformers]`,
`[accelerate]`.
"""

from __future__ import annotations

from typing import Any

from ..ars import ARS
from ..rca import RCA


def find(optimizer: Any) -> ARS | None:
    """Look for the ARS inside what a framework made of an optimizer.

    Args:
        optimizer: an ARS, or whatever keeps one under the attribute `optimizer`, such as
            AcceleratedOptimizer or LightningOptimizer.

    Returns:
        The innermost ARS, None if there is none.
    """
    found = None
    while optimizer is not None:
        # The innermost: LightningOptimizer claims to be of the class that it holds.
        found = optimizer if isinstance(optimizer, ARS) else found
        optimizer = getattr(optimizer, "optimizer", None)
    return found


def unwrap(optimizer: Any) -> ARS:
    """The ARS inside what a framework made of it, for `last`, `metrics()`, `report` and the like.

    Args:
        optimizer: see `find`; what `accelerator.prepare` returned, `trainer.optimizer`, or
            `self.optimizers()` in a LightningModule.

    Returns:
        The ARS itself.

    Raises:
        TypeError: there is no ARS inside.
    """
    ars = find(optimizer)
    if ars is None:
        raise TypeError(
            f"optimizer must hold an ARS, got {type(optimizer).__name__}; give the framework "
            "ARS(torch.optim.AdamW(model.parameters()))"
        )
    return ars


def check_train_on(train_on: Any, stop_on: str | None, rca: RCA) -> None:
    """Refuse a metric of the training loss that RCA could not go by.

    Args:
        train_on: the metric's name, or None for none.
        stop_on: that of the validation loss which it is compared with; one that is itself of the
            training data ("ars/loss", "loss") is none, and neither is None.
        rca: the monitor that is to be told.

    Raises:
        TypeError: it is neither a str nor None.
        ValueError: there is no validation loss, or it is that, or RCA would know no training loss.
    """
    if train_on is None:
        return
    if not isinstance(train_on, str):
        raise TypeError(f"train_on must be a metric's name or None, got {train_on!r}; 'train_loss'")
    if stop_on in (None, "loss", "ars/loss", train_on):
        raise ValueError(
            f"train_on must go with a validation loss of another name, got {train_on!r} beside "
            f"{stop_on=}; stop on that, as 'val_loss' or 'eval_loss'"
        )
    if rca.mode != "min" or rca.preset == "paper":
        raise ValueError(
            f"train_on must be left out with mode 'max' and preset 'paper', got {train_on!r} with "
            f"{rca.mode!r} and {rca.preset!r}; it is compared with a validation loss"
        )
