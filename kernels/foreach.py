"""The fast path in plain torch: foreach calls for norm and scale, one pass more for noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress

import torch
from torch import Tensor

from .noise import NoiseSource, elements

_HALF = (torch.float16, torch.bfloat16)

SMALL = 1 << 12
"""Tensors of up to this many elements cost more in calls than in arithmetic: they are handled many
at a time, even at the price of a copy."""

Noised = tuple[Tensor, Tensor, float]
"""A tensor, the noise it gets, and how much of it."""

DOT_SIZE = 1 << 20
"""Longest dot product of a norm."""


def square_sums(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of squares of each tensor, and whether it holds NaN or Inf; see `reference.square_sums`.

    The results lie on the first tensor's device. Reads the norms on the host.
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int32)
    sums = norms(tensors).double().square()
    # Only where the norm is not finite may an element be so.
    suspects = (~sums.isfinite()).int().tolist()
    flags = [int(bad and not t.isfinite().all()) for bad, t in zip(suspects, tensors, strict=True)]
    return sums, torch.tensor(flags, dtype=torch.int32, device=sums.device)


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm over all elements of all tensors, as a 0-d tensor on the first one's device.

    See `reference.global_norm`. Elements are squared in at least float32, where a value beyond
    1.8e19 overflows: the norm is then infinite although the tensor is finite.
    """
    total: Tensor = torch.linalg.vector_norm(norms(gathered(tensors)))
    return total


def gathered(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same elements in fewer tensors: small ones of a device and dtype as one vector."""
    large: list[Tensor] = []
    small: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() > SMALL:
            large.append(tensor)
        else:
            small.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    joined = [torch._C._nn.flatten_dense_tensors(alike) for alike in small.values()]
    # Backwards: the optimizer begins with the first, which are then still in the cache.
    return large[::-1] + joined


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm of each tensor, shape (n,), float32 or wider, on the first one's device."""
    if not tensors:
        return torch.zeros(0)
    by_dot = [t.numel() > SMALL and _has_dot(t) for t in tensors]
    if all(by_dot):
        return _dot_norms(tensors)
    dotted = [t for t, so in zip(tensors, by_dot, strict=True) if so]
    found = iter(_dot_norms(dotted).to(tensors[0].device) if dotted else ())
    rest = iter(foreach_norms([t for t, so in zip(tensors, by_dot, strict=True) if not so]))
    each = [next(found) if so else next(rest).to(tensors[0].device) for so in by_dot]
    return torch.stack(each)


def foreach_norms(tensors: Sequence[Tensor], order: int = 2) -> list[Tensor]:
    """Norm of each tensor, float32 or wider, where the tensor is.

    The norm of half-precision numbers overflows long before they do, and a wider copy of all of
    them may be more than a GPU has left: they are widened one by one as they are read.
    """
    found = [torch.empty(0)] * len(tensors)
    for dtype in (torch.float32, None):
        chosen = [i for i, t in enumerate(tensors) if (t.dtype in _HALF) == (dtype is not None)]
        if chosen:
            each = torch._foreach_norm([tensors[i] for i in chosen], order, dtype=dtype)
            for i, norm in zip(chosen, each, strict=True):
                found[i] = norm
    return found


def _has_dot(tensor: Tensor) -> bool:
    full = tensor.dtype in (torch.float32, torch.float64)
    return full and tensor.device.type == "cpu" and tensor.is_contiguous()


def _dot_norms(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norms of contiguous tensors on a CPU by dot products, shape (n,), float64.

    With several threads they read memory a third faster than torch's norm does. Long tensors in
    pieces, whose sums are added in float64: one long sum in float32 would lose digits.
    """
    flat = [tensor.view(-1) for tensor in tensors]
    # Cutting into one piece would cost a tenth of what reading it does.
    cut = [torch.split(f, DOT_SIZE) if len(f) > DOT_SIZE else (f,) for f in flat]
    squares = torch.stack([torch.dot(piece, piece) for pieces in cut for piece in pieces]).double()
    if len(squares) > len(tensors):
        owners = torch.tensor([owner for owner, pieces in enumerate(cut) for _ in pieces])
        squares = squares.new_zeros(len(tensors)).index_add_(0, owners, squares)
    return squares.sqrt()


def gate_(
    tensors: Sequence[Tensor],
    phi: Sequence[float],
    sigma: Sequence[float],
    noise: NoiseSource | None,
    step: int,
) -> None:
    """In place, for each tensor i: g <- phi[i] * g + sigma[i] * noise; see `reference.gate_`."""
    # Half precision that gets noise is scaled along with it, so as to be rounded once; and a
    # foreach call would round the factor itself to half precision, an error of up to 0.4 %.
    full = [p != 1.0 and t.dtype not in _HALF for t, p in zip(tensors, phi, strict=True)]
    if any(full):
        torch._foreach_mul_(list(compress(tensors, full)), list(compress(phi, full)))
    small: list[Noised] = []
    large: list[Noised] = []
    # Backwards: the last were measured last, and the optimizer begins with the first.
    for index in reversed(range(len(tensors))):
        tensor = tensors[index]
        half = tensor.dtype in _HALF
        if sigma[index] != 0.0 and tensor.numel() != 0:
            assert noise is not None
            real = elements(tensor)
            pieces = noise.pieces(real.numel(), step, index, real.device)
            if half:
                _add_noise_to_half_(real, pieces, phi[index], sigma[index])
            elif real.numel() <= SMALL and len(pieces) == 1:
                small.append((real, pieces[0].view(real.shape), sigma[index]))
            else:
                large += [(*matched, sigma[index]) for matched in _matched(real, pieces)]
        elif half and phi[index] != 1.0:
            tensor.mul_(phi[index])
    # One after the other without a pause, in which torch's threads would fall asleep.
    for part, normal, strength in large:
        part.add_(normal, alpha=strength)
    if small:
        reals, normals, strengths = zip(*small, strict=True)
        torch._foreach_add_(reals, torch._foreach_mul(normals, strengths))


def scale_and_jitter_(
    tensors: Sequence[Tensor],
    scale: float,
    jitter: float = 0.0,
    noise: NoiseSource | None = None,
    step: int = 0,
    relative: bool = True,
    known_norms: Tensor | None = None,
) -> None:
    """In place: g <- scale * g + sigma * noise; see `reference.scale_and_jitter_`."""
    sigma = [jitter] * len(tensors)
    if relative and jitter != 0.0:
        counts = [max(t.numel() * (1 + t.is_complex()), 1) for t in tensors]
        of_each = (norms(tensors) if known_norms is None else known_norms).tolist()
        strength = jitter * abs(scale)
        sigma = [strength * x / n**0.5 for x, n in zip(of_each, counts, strict=True)]
    gate_(tensors, [scale] * len(tensors), sigma, noise, step)


def _matched(real: Tensor, pieces: list[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
    """Views of what `elements` gave, each with its normals in the same shape."""
    if not real.is_contiguous():
        return [(real, torch.cat(pieces).view(real.shape))]
    if len(pieces) == 1:
        return [(real, pieces[0])]
    return zip(torch.split(real, [len(piece) for piece in pieces]), pieces, strict=True)


def _add_noise_to_half_(real: Tensor, pieces: list[Tensor], phi: float, sigma: float) -> None:
    """In place on what `elements` gave: phi * g + sigma * noise, rounded once."""
    for part, normal in _matched(real, pieces):
        part.copy_(part.float().mul_(phi).add_(normal, alpha=sigma))
