"""ARS and RCA inside training frameworks: one thin module for each, none imported by the library.

The frameworks are extras: `pip install "resilient-optim[lightning]"`, `[transformers]`,
`[accelerate]`.
"""

from __future__ import annotations

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
