"""All ranks decide on the same numbers; else replicas would drift apart without an error."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def agree(
    loss: float, grad_norm: float | None, group: Any = None, flag: bool = False
) -> tuple[float, float | None, bool]:
    """The mean over the ranks of loss and gradient norm, each NaN if any rank's is not finite.

    Gradients are taken to be the same on all ranks already (DDP) or their norm to be the whole
    model's (DTensor), so averaging it only makes it identical. One all-reduce of six
    numbers; nothing at all without an initialised default group of two or more ranks.

    Args:
        loss: this rank's loss.
        grad_norm: this rank's view of the gradient norm, or None on every rank.
        group: as to `ranks`.
        flag: of this rank; whether any rank has it is the third of the results.
    """
    if ranks(group) == 1:
        return loss, grad_norm, flag
    device = "cuda" if "nccl" in dist.get_backend(group) else "cpu"
    values = torch.tensor([loss, grad_norm or 0.0, flag], dtype=torch.float64, device=device)
    mean_loss, mean_norm, share = mean_or_nan(values, group).tolist()
    return mean_loss, None if grad_norm is None else mean_norm, share > 0.0


def mean_or_nan(values: Tensor, group: Any) -> Tensor:
    """The mean of each value over the ranks, NaN where any rank's is not finite.

    Args:
        values: this rank's, of shape (n,), on a device that the group's backend can reduce.
        group: process group; None for the default one.
    """
    finite = values.isfinite()
    vector = torch.cat([torch.where(finite, values, 0.0), (~finite).to(values.dtype)])
    dist.all_reduce(vector, group=group)
    total, bad = vector.chunk(2)
    return torch.where(bad > 0, math.nan, total / dist.get_world_size(group))


def any_rank(flag: bool, group: Any) -> bool:
    """Whether it is so on any rank; to be called by all of them."""
    return bool(largest(int(flag), group))


def largest(value: int, group: Any) -> int:
    """The largest of the values that the ranks have; to be called by all of them."""
    if ranks(group) == 1:
        return value
    device = "cuda" if "nccl" in dist.get_backend(group) else "cpu"
    vector = torch.tensor([value], device=device)
    dist.all_reduce(vector, dist.ReduceOp.MAX, group=group)
    return int(vector)


def in_common(values: set[Any], group: Any) -> set[Any]:
    """The values that all ranks have; to be called by all of them."""
    if ranks(group) == 1:
        return values
    of_all: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(of_all, values, group=group)
    return set.intersection(*of_all)


def ranks(group: Any) -> int:
    """How many processes decide together.

    Args:
        group: process group; None for the default one, 1 if that is not initialised; False for a
            process that decides alone.
    """
    if group is False or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)
