"""What `step()` may be given: a loss in any form, or a closure that evaluates it."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

from torch import Tensor

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
    elif not isinstance(loss, bool) and isinstance(loss, numbers.Real):
        return float(loss)
    else:
        got = f"{type(loss).__name__} {loss!r}"
    raise TypeError(
        f"loss must be a float, a one-element real tensor or a closure, got {got}; "
        "pass the mean over the batch, loss.mean()"
    )


def replay(closure: Closure, result: Any) -> Closure:
    """A closure whose first call returns what was evaluated already, and later calls evaluate."""
    known = [result]

    def replayed() -> Any:
        return known.pop() if known else closure()

    return replayed
