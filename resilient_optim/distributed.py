"""All ranks decide on the same numbers; else replicas would drift apart without an error."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist


def agree(loss: float, grad_norm: float | None, group: Any = None) -> tuple[float, float | None]:
    """The mean over the ranks of loss and gradient norm, each NaN if any rank's is not finite.

    Gradients are taken to be the same on all ranks already (DDP) or their norm to be the whole
    model's (DTensor), so averaging it only makes it identical. One all-reduce of four
    numbers; nothing at all without an initialised default group of two or more ranks.

    Args:
        loss: this rank's loss.
        grad_norm: this rank's view of the gradient norm, or None on every rank.
        group: process group; None for the default one.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return loss, grad_norm
    ranks = dist.get_world_size(group)
    if ranks == 1:
        return loss, grad_norm
    norm = 0.0 if grad_norm is None else grad_norm
    finite = math.isfinite(loss), math.isfinite(norm)
    vector = torch.tensor(
        [
            loss if finite[0] else 0.0,
            float(not finite[0]),
            norm if finite[1] else 0.0,
            float(not finite[1]),
        ],
        dtype=torch.float64,
        device="cuda" if "nccl" in dist.get_backend(group) else "cpu",
    )
    dist.all_reduce(vector, group=group)
    total, bad_losses, norms, bad_norms = vector.tolist()
    mean_loss = math.nan if bad_losses else total / ranks
    if grad_norm is None:
        return mean_loss, None
    return mean_loss, math.nan if bad_norms else norms / ranks
