"""The fast path in plain torch: foreach calls for norm and scale, a table of normals for noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .noise import Noise

_HALF = (torch.float16, torch.bfloat16)


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm over all elements of all tensors, as a 0-d tensor on the first one's device.

    See `reference.global_norm`. Elements are squared in at least float32, where a value beyond
    1.8e19 overflows: the norm is then infinite although the tensor is finite.
    """
    if not tensors:
        return torch.zeros(())
    half = [t for t in tensors if t.dtype in _HALF]
    full = [t for t in tensors if t.dtype not in _HALF]
    norms: list[Tensor] = []
    if half:
        norms += torch._foreach_norm(half, 2, dtype=torch.float32)
    if full:
        norms += torch._foreach_norm(full, 2)
    device = norms[0].device
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))
    return total


def scale_and_jitter_(
    tensors: Sequence[Tensor],
    scale: float,
    jitter: float = 0.0,
    noise: Noise | None = None,
    step: int = 0,
    relative: bool = True,
) -> None:
    """In place: g <- scale * g + sigma * noise; see `reference.scale_and_jitter_`."""
    if scale != 1.0:
        _scale_(tensors, scale)
    if jitter == 0.0:
        return
    assert noise is not None
    for index, tensor in enumerate(tensors):
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        if real.numel() == 0:
            continue
        rms = global_norm([real]).item() / real.numel() ** 0.5 if relative else 1.0
        _add_noise_(real, noise.pieces(real.numel(), step, index, real.device), jitter * rms)


def _scale_(tensors: Sequence[Tensor], scale: float) -> None:
    full = [t for t in tensors if t.dtype not in _HALF]
    if full:
        torch._foreach_mul_(full, scale)
    for tensor in tensors:
        # The foreach call would round the factor itself to half precision, an error of up to 0.4 %.
        if tensor.dtype in _HALF:
            tensor.mul_(scale)


def _add_noise_(real: Tensor, pieces: list[Tensor], sigma: float) -> None:
    """Add sigma * noise to a real tensor; the pieces follow each other in its logical order."""
    if len(pieces) > 1 and not real.is_contiguous():
        pieces = [torch.cat(pieces)]
    flat = real.view(-1) if len(pieces) > 1 else real
    start = 0
    for piece in pieces:
        part = flat[start : start + len(piece)] if len(pieces) > 1 else flat
        normal = piece.view(part.shape)
        start += len(piece)
        if real.dtype in _HALF:
            part.copy_(part.float().add_(normal, alpha=sigma))
        else:
            part.add_(normal.to(real.dtype), alpha=sigma)
