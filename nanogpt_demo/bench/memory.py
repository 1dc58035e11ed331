"""How many bytes ARS adds to the optimizer inside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from resilient_optim import ARS
from resilient_optim.memory import STATE_KEY


def bytes_of(ars: ARS) -> dict[str, int]:
    """Bytes of the arrays and tensors that ARS holds, by part.

    Args:
        ars: counted as it is now: the noise table exists once noise has been used.

    Returns:
        "state": packed copies in the param groups; "buffer": losses and norms; "table": noise;
        "other": whatever else is found, as a snapshot of weights would be.
    """
    seen: set[int] = set()
    parts = {
        "state": [group[STATE_KEY] for group in ars.base.param_groups],
        "buffer": ars.loss_buffer,
        "table": ars._noise,
        "other": {name: value for name, value in vars(ars).items() if name != "base"},
    }
    seen.add(id(ars.base))
    return {part: sum(_sizes(owner, seen)) for part, owner in parts.items()}


def _sizes(owner: Any, seen: set[int]) -> Iterator[int]:
    """Bytes of each array below an object, counted once; the base optimizer is in `seen`."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, Tensor):
        yield owner.untyped_storage().nbytes()
    elif isinstance(owner, np.ndarray):
        yield owner.nbytes
    elif isinstance(owner, dict):
        for value in owner.values():
            yield from _sizes(value, seen)
    elif isinstance(owner, (list, tuple)):
        for value in owner:
            yield from _sizes(value, seen)
    elif hasattr(owner, "__dict__") and not callable(owner):
        yield from _sizes(vars(owner), seen)
