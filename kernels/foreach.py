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
    if not tensors:
        return
    if scale != 1.0:
        torch._foreach_mul_(list(tensors), scale)
    if jitter == 0.0:
        return
    assert noise is not None
    reals = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    sigmas = [jitter] * len(reals)
    if relative:
        norms = [global_norm([real]).item() for real in reals]
        sigmas = [jitter * n / max(1, r.numel()) ** 0.5 for n, r in zip(norms, reals, strict=True)]
    for index, (real, sigma) in enumerate(zip(reals, sigmas, strict=True)):
        pieces = noise.pieces(real.numel(), step, index, real.device)
        if len(pieces) == 1:
            real.add_(pieces[0].view(real.shape).to(real.dtype), alpha=sigma)
        elif real.is_contiguous():
            flat, start = real.view(-1), 0
            for piece in pieces:
                flat[start : start + len(piece)].add_(piece.to(real.dtype), alpha=sigma)
                start += len(piece)
        else:
            real.add_(torch.cat(pieces).view(real.shape).to(real.dtype), alpha=sigma)
