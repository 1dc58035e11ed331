"""ARS and RCA inside training frameworks: one thin module for each, none imported by the library.

The frameworks are extras: `pip install "resilient-optim[lightning]"`, `[transformers]`,
`[accelerate]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ars import ARS


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


def check_train_on(
    train_on: Any, stop_on: str | None, mode: str, settings: Mapping[str, Any]
) -> None:
    """Refuse a metric of the training loss that RCA could not go by.

    Args:
        train_on: the metric's name, or None for none.
        stop_on: that of the validation loss which it is compared with, None if there is none.
        mode: of RCA.
        settings: of RCA.

    Raises:
        TypeError: it is neither a str nor None.
        ValueError: there is no validation loss, or it is that, or RCA would know no training loss.
    """
    if train_on is None:
        return
    if not isinstance(train_on, str):
        raise TypeError(f"train_on must be a metric's name or None, got {train_on!r}; 'train_loss'")
    if stop_on is None or train_on == stop_on:
        raise ValueError(
            f"train_on must go with a validation loss of another name, got {train_on!r} beside "
            f"{stop_on=}; name that, as stop_on='val_loss'"
        )
    if mode != "min" or settings.get("preset") == "paper":
        raise ValueError(
            f"train_on must be left out with mode 'max' and preset 'paper', got {train_on!r} with "
            f"{mode=}, {settings}; it is compared with a validation loss of mode 'min'"
        )
