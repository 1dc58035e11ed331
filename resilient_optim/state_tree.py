"""Nested containers with tensors in them, taken apart and put together again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_UNCHANGING = (bool, int, float, str, type(None))
"""Nearly all of what is not a tensor; asking `copy` for each takes longer than the tensors do."""


class _Slot(NamedTuple):
    """Stands for a tensor in a tree without its tensors."""

    place: int


def local(tensor: Tensor) -> Tensor:
    """A tensor detached; of a sharded one this rank's shard."""
    if type(tensor) is Tensor and not tensor.requires_grad:
        return tensor  # nearly all of them; this takes a tenth of the time
    to_local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor.detach() if to_local is None else to_local().detach()


def pairs(state: dict[Any, Any], places: dict[int, int]) -> list[list[Any]]:
    """An optimizer's state as pairs: most keys are parameters, a few optimizers use strings.

    Args:
        state: of the optimizer.
        places: number of each parameter by its `id`, to stand for it.
    """
    return [
        [places.get(id(key), key), value]
        for key, value in state.items()
        if id(key) in places or isinstance(key, str)
    ]


def without_tensors(value: Any, found: list[Tensor]) -> Any:
    """A copy of the containers with a slot for each tensor; the tensors are added to `found`."""
    if type(value) in _UNCHANGING:
        return value
    if isinstance(value, Tensor):
        found.append(local(value))
        return _Slot(len(found) - 1)
    if isinstance(value, dict):
        return {key: without_tensors(item, found) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(without_tensors(item, found) for item in value)
    return _copied(value)


def with_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """The inverse of `without_tensors`."""
    if isinstance(value, _Slot):
        return tensors[value.place]
    if isinstance(value, dict):
        return {key: with_tensors(item, tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(with_tensors(item, tensors) for item in value)
    return _copied(value)


def _copied(value: Any) -> Any:
    if type(value) in _UNCHANGING:
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # a lock, a stream: nothing that training has made
        return value


Homes = Mapping[Tensor, torch.device]
"""Where tensors were copied from."""


def merged(live: Any, saved: Any, device: torch.device | None, homes: Homes) -> Any:
    """The saved value, in the tensors of the live one wherever they fit.

    Args:
        live: the present value.
        saved: what it is to be.
        device: for a tensor whose home is not known; None: where it lies.
        homes: of the saved tensors.
    """
    if isinstance(saved, Tensor):
        mine = local(live) if isinstance(live, Tensor) else None
        if mine is not None and (mine.shape, mine.dtype) == (saved.shape, saved.dtype):
            mine.copy_(saved)
            return live
        # A scalar that counts steps stays on the host, where most optimizers want it.
        fallback = saved.device if device is None or saved.dim() == 0 else device
        return saved.to(homes.get(saved, fallback), copy=True)
    if isinstance(saved, dict):
        old = live if isinstance(live, dict) else {}
        return {key: merged(old.get(key), item, device, homes) for key, item in saved.items()}
    if type(saved) in (list, tuple):
        old_items = live if type(live) is type(saved) and len(live) == len(saved) else None
        both = zip(old_items or [None] * len(saved), saved, strict=True)
        return type(saved)(merged(old, item, device, homes) for old, item in both)
    return _copied(saved)
