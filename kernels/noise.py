"""Standard normal numbers at the cost of reading them: one seeded table, fresh offsets each time.

Drawing a normal costs about 5 ns on a CPU, thirty optimizer steps' worth for every jittered step.
The table is drawn once, from a generator of its own, and each tensor reads it from an offset that
is a hash of (seed, step, tensor, piece): reproducible after a resume, no state, and the host
program's random numbers are never touched. On a GPU arithmetic is cheaper than memory: there the
noise is computed, see `philox.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

TABLE_SIZE = 1 << 21
"""Normals in the table (8 MiB in float32)."""

PIECE_SIZE = 1 << 20
"""Longest run read from one offset; half the table, so that offsets stay many."""

_MASK = (1 << 64) - 1

_SHARD_BITS = 32
"""Shards are counted above this bit of a tensor's index: tensors stay far below it."""


class NoiseSource(Protocol):
    """Standard normals as a function of (seed, step, tensor index); element i is `elements`' i."""

    @property
    def seed(self) -> int:
        """What tells one source from another."""

    def pieces(self, numel: int, step: int, tensor: int, device: torch.device) -> list[Tensor]:
        """Float32 vectors whose lengths add up to `numel`, to be read one after the other."""


class Noise:
    """A source of standard normal noise that depends on (seed, step, tensor index) alone.

    Args:
        seed: any integer; equal seeds give equal noise on every process.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._tables: dict[torch.device, Tensor] = {}

    def __getstate__(self) -> dict[str, int]:
        return {"seed": self.seed}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["seed"])  # type: ignore[misc]

    def table(self, device: torch.device) -> Tensor:
        """The table on a device, float32, shape (TABLE_SIZE,); drawn at its first use."""
        if device not in self._tables:
            generator = torch.Generator().manual_seed(self.seed & _MASK)
            self._tables[device] = torch.randn(TABLE_SIZE, generator=generator).to(device)
        return self._tables[device]

    def pieces(self, numel: int, step: int, tensor: int, device: torch.device) -> list[Tensor]:
        """Views of the table whose lengths add up to `numel`.

        Args:
            numel: how many normals are wanted.
            step: number of the step.
            tensor: index of the tensor among those jittered in this step.
            device: where the normals are wanted.
        """
        table = self.table(device)
        out = []
        for piece, start in enumerate(range(0, numel, PIECE_SIZE)):
            length = min(PIECE_SIZE, numel - start)
            offset = mix(self.seed, step, tensor, piece) % (TABLE_SIZE - length + 1)
            out.append(table[offset : offset + length])
        return out or [table[:0]]


class ShardNoise:
    """Noise for parts of tensors: each shard of a tensor has a stream of its own.

    With one stream for all, every shard would get the same numbers. Copies of a shard get the same,
    and a tensor in one piece (shard 0) those that `noise` gives it.

    Args:
        noise: the source.
        shards: for each tensor, which shard of it is here, counted from 0.
    """

    def __init__(self, noise: NoiseSource, shards: Sequence[int]) -> None:
        self._noise = noise
        self._shards = shards

    @property
    def seed(self) -> int:
        """What tells one source from another."""
        return self._noise.seed

    def pieces(self, numel: int, step: int, tensor: int, device: torch.device) -> list[Tensor]:
        """Normals for the shard of a tensor that is here, see `Noise.pieces`."""
        stream = tensor + (self._shards[tensor] << _SHARD_BITS)
        return self._noise.pieces(numel, step, stream, device)


def elements(tensor: Tensor) -> Tensor:
    """The real numbers of a strided tensor in the order in which noise counts them; a view.

    A dense tensor is the memory it fills, whatever its strides, and comes as a contiguous vector.
    One with gaps between its elements keeps its shape, is not contiguous, and counts in logical
    order. A complex number is two real ones.
    """
    if tensor.is_contiguous() and not tensor.is_complex():
        return tensor.view(-1)
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.as_strided((real.numel(),), (1,)) if _is_dense(real) else real


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a range of memory, each place once."""
    filled = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != filled:
            return False
        filled *= size
    return True


def mix(*words: int) -> int:
    """Hash integers to 64 well-mixed bits: the finalizer of SplitMix64 folded over the words.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state
