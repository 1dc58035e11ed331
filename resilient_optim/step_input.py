"""What `step()` may be given: a loss in any form, or a closure that evaluates it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import _checks

Closure = Callable[[], Any]


def as_loss(loss: Any) -> float | Tensor:
    """A loss as a Python float, or as a detached tensor of one element where it is.

    Raises:
        TypeError: not a real number or a one-element real tensor.
    """
    if type(loss) is float:
        return loss
    if isinstance(loss, Tensor):
        if loss.numel() == 1 and not loss.is_complex():
            return loss.detach()
        got = f"a {loss.dtype} tensor of shape {tuple(loss.shape)}"
        remedy = "pass the mean over the batch, loss.mean()"
    elif _checks.is_number(loss):
        return float(loss)
    else:
        got, remedy = f"{type(loss).__name__} {loss!r}", "pass what loss.backward() was called on"
    raise TypeError(
        f"loss must be a float, a one-element real tensor or a closure, got {got}; {remedy}"
    )


def replay(closure: Closure, result: Any, groups: list[dict[str, Any]]) -> Closure:
    """A closure whose first call returns what was evaluated already, and later calls evaluate.

    The first evaluates as well if the optimizer has changed a weight or a gradient by then: SAM and
    schedule-free optimizers ask for the loss at weights that they have moved to.

    Args:
        closure: of the user.
        result: what it returned when it was evaluated.
        groups: live param groups, as the evaluation left them but for what ARS did to gradients.
    """
    known = [(_versions(groups), result)]

    def replayed() -> Any:
        if known:
            versions, value = known.pop()
            if versions == _versions(groups):
                return value
        return closure()

    return replayed


def _versions(groups: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    """What changes when a weight or gradient does, even in place: no values are compared."""
    params = [p for group in groups for p in group["params"]]
    grads = [p.grad for p in params]
    return [
        (p._version, id(grad), 0 if grad is None else grad._version)
        for p, grad in zip(params, grads, strict=True)
    ]
