"""Each operation in plain torch, one tensor at a time: the definition that fast paths must meet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .noise import NoiseSource, elements


def square_sums(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of squares of each tensor, and whether it holds NaN or Inf.

    Fast paths square in float32 where the tensor is no wider: values beyond 1.8e19 then give an
    infinite sum although the tensor is finite, which the second result tells apart.

    Args:
        tensors: dense floating or complex tensors of any shapes, dtypes and devices.

    Returns:
        Sums, float64, and flags, int32 of 0 or 1; both of shape (len(tensors),), on the CPU.
    """
    sums = [tensor.abs().double().square().sum().item() for tensor in tensors]
    flags = [int(not tensor.isfinite().all()) for tensor in tensors]
    return torch.tensor(sums, dtype=torch.float64), torch.tensor(flags, dtype=torch.int32)


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm over all elements of all tensors, as a 0-d tensor; 0 for none.

    NaN or Inf anywhere gives NaN or Inf.
    """
    return square_sums(tensors)[0].sum().sqrt()


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm of each tensor, float64 of shape (n,)."""
    return square_sums(tensors)[0].sqrt()


def gate_(
    tensors: Sequence[Tensor],
    phi: Sequence[float],
    sigma: Sequence[float],
    noise: NoiseSource | None,
    step: int,
) -> None:
    """In place, for each tensor i: g <- phi[i] * g + sigma[i] * noise.

    Half precision is computed in float32 and rounded once. Plain arithmetic: phi = 0 does not
    remove a NaN. A tensor with phi 1 and sigma 0 is not touched, one with sigma 0 draws no noise.

    Args:
        tensors: floating or complex tensors of any shapes, dtypes and devices; their strides must
            not overlap.
        phi: factor on each tensor.
        sigma: standard deviation of the noise on each, in units of the gradient.
        noise: where standard normal numbers come from; needed if any sigma is not 0.
        step: selects fresh noise.
    """
    for index, tensor in enumerate(tensors):
        real = elements(tensor)
        if real.numel() == 0 or (phi[index] == 1.0 and sigma[index] == 0.0):
            continue
        wide = real.to(torch.promote_types(real.dtype, torch.float32)) * phi[index]
        if sigma[index] != 0.0:
            assert noise is not None
            normal = torch.cat(noise.pieces(real.numel(), step, index, real.device))
            wide += sigma[index] * normal.view(real.shape).to(wide.dtype)
        real.copy_(wide)


def scale_and_jitter_(
    tensors: Sequence[Tensor],
    scale: float,
    jitter: float = 0.0,
    noise: NoiseSource | None = None,
    step: int = 0,
    relative: bool = True,
    known_norms: Tensor | None = None,
) -> None:
    """In place: g <- scale * g + sigma * noise, with sigma = jitter * RMS(scale * g) per tensor.

    Args:
        tensors: as of `gate_`.
        scale: factor on every tensor.
        jitter: strength of the noise; 0 for none.
        noise: where standard normal numbers come from; needed if jitter is not 0.
        step: selects fresh noise.
        relative: if False, sigma = jitter for every tensor.
        known_norms: `norms` of the tensors, if they have been taken already.
    """
    sigma = [jitter] * len(tensors)
    if relative and jitter != 0.0:
        counts = [max(elements(tensor).numel(), 1) for tensor in tensors]
        of_each = norms(tensors) if known_norms is None else known_norms.double()
        rms = of_each / torch.tensor(counts).sqrt()
        sigma = (jitter * abs(scale) * rms).tolist()
    gate_(tensors, [scale] * len(tensors), sigma, noise, step)
