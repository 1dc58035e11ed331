"""The noise of the GPU kernels in plain torch: Philox 4x32-10 and Box-Muller, element by element.

Element i of tensor t at step s is lane i % 4 of the four normals computed from the 128-bit counter
(low word of i // 4, high word of i // 4, s, t) and a 64-bit key. Nothing is drawn or stored, so any
element can be had from anywhere, at any offset.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import mix

_WORD = 0xFFFFFFFF


def philox_4x32(counter: list[Tensor], key: int) -> list[Tensor]:
    """Ten rounds of Philox on four words, each an int64 tensor that holds uint32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _WORD, key >> 32 & _WORD
    for _ in range(10):
        # An int64 product wraps modulo 2^64, which leaves its 64 bits right; the mask drops signs.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (b >> 32 & _WORD) ^ c1 ^ k0, b & _WORD
        c2, c3 = (a >> 32 & _WORD) ^ c3 ^ k1, a & _WORD
        k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
    return [c0, c1, c2, c3]


def philox_bits(
    key: int, step: int, tensor: int, start: int, numel: int, device: torch.device | None = None
) -> Tensor:
    """Random bits of elements start ... start + numel - 1: int64 holding uint32, shape (numel,).

    Args:
        key: 64 bits.
        step: number of the step; its low 32 bits count.
        tensor: index of the tensor; its low 32 bits count.
        start: first element, at least 0; may be far beyond 2^31.
        numel: number of elements.
        device: where to compute; the CPU by default.
    """
    quads = torch.arange(start // 4, (start + numel + 3) // 4, device=device)
    step_word, tensor_word = (torch.full_like(quads, word & _WORD) for word in (step, tensor))
    counter = [quads & _WORD, quads >> 32, step_word, tensor_word]
    return torch.stack(philox_4x32(counter, key), dim=1).view(-1)[start % 4 :][:numel]


def philox_normals(
    key: int, step: int, tensor: int, start: int, numel: int, device: torch.device | None = None
) -> Tensor:
    """Standard normals of elements start ... start + numel - 1, float32; see `philox_bits`.

    The arithmetic of Triton's `randn4x`: 31 of 32 bits become a uniform number in [0, 1), and the
    two uniforms of lanes 2k and 2k + 1 become the two normals of those lanes.
    """
    skip = start % 4
    bits = philox_bits(key, step, tensor, start - skip, (skip + numel + 3) // 4 * 4, device)
    signed = bits.to(torch.int32)
    uniform = torch.where(signed < 0, ~signed, signed).float() * 4.6566127342e-10
    first, second = uniform.view(-1, 2).unbind(dim=1)
    angle = 6.283185307179586 * second
    radius = (-2.0 * first.clamp(min=1e-7).log()).sqrt()
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pairs.view(-1)[skip:][:numel]


@dataclass(frozen=True)
class PhiloxNoise:
    """The noise of the GPU kernels as a `NoiseSource`.

    Args:
        seed: any integer; equal seeds give equal noise on every process.
        stream: tells apart processes that must not share noise, such as holders of shards.
    """

    seed: int
    stream: int = 0

    @property
    def key(self) -> int:
        """The 64-bit key of the generator."""
        return mix(self.seed, self.stream)

    def pieces(self, numel: int, step: int, tensor: int, device: torch.device) -> list[Tensor]:
        """One vector of `numel` normals; arguments as of `Noise.pieces`."""
        return [philox_normals(self.key, step, tensor, 0, numel, device)]
