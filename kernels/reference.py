"""Each operation in plain torch, one tensor at a time: the definition that fast paths must meet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .noise import Noise


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm over all elements of all tensors, as a 0-d tensor; 0 for none.

    Half-precision inputs are summed in float32. NaN or Inf anywhere gives NaN or Inf.
    """
    total = torch.zeros((), dtype=torch.float64)
    for tensor in tensors:
        total += tensor.abs().double().square().sum().cpu()
    return total.sqrt()


def scale_and_jitter_(
    tensors: Sequence[Tensor],
    scale: float,
    jitter: float = 0.0,
    noise: Noise | None = None,
    step: int = 0,
    relative: bool = True,
) -> None:
    """In place: g <- scale * g + sigma * noise, with sigma = jitter * RMS(scale * g) per tensor.

    Args:
        tensors: dense floating or complex tensors of any shapes, dtypes and devices; strides must
            not overlap.
        scale: factor on every tensor.
        jitter: strength of the noise; 0 for none.
        noise: where standard normal numbers come from; needed if jitter is not 0.
        step: selects fresh noise.
        relative: if False, sigma = jitter for every tensor.
    """
    for index, tensor in enumerate(tensors):
        tensor.mul_(scale)
        if jitter == 0.0 or tensor.numel() == 0:
            continue
        assert noise is not None
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        rms = real.double().square().mean().sqrt().item() if relative else 1.0
        normal = torch.cat(noise.pieces(real.numel(), step, index, real.device))
        # Half precision is summed in float32 and rounded once.
        wide = torch.promote_types(real.dtype, torch.float32)
        real.copy_(real.to(wide).add_(normal.view(real.shape).to(wide), alpha=jitter * rms))
