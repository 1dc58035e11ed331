"""Tensors in host memory: pinned if they come from a GPU, so that nobody waits for a copy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor


def memory_for(tensor: Tensor) -> Tensor:
    """Memory for a copy of a tensor."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)


def nbytes_for(tensor: Tensor) -> int:
    """What `memory_for` takes, in bytes."""
    if not tensor.is_cuda or tensor.nbytes == 0:
        return tensor.nbytes
    # torch takes pinned memory in powers of two, for each tensor.
    return 1 << (tensor.nbytes - 1).bit_length()


def fits(copies: list[Tensor], found: list[Tensor]) -> bool:
    """Whether tensors can be copied into the memory of others."""
    return len(copies) == len(found) and all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(copies, found, strict=True)
    )


def marks(tensors: Iterable[Tensor]) -> list[torch.cuda.Event]:
    """An event for each of the tensors' GPUs, behind all that has been queued there."""
    events = []
    for device in dict.fromkeys(tensor.device for tensor in tensors if tensor.is_cuda):
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        events.append(event)
    return events


def seconds_between(began: list[torch.cuda.Event], done: list[torch.cuda.Event]) -> float | None:
    """The longest time between marks of the same GPU; None without any, or before it is over."""
    over = [event.query() for event in done]  # type: ignore[no-untyped-call]
    if not over or not all(over):
        return None
    pairs = zip(began, done, strict=True)
    return max(float(one.elapsed_time(other)) for one, other in pairs) / 1e3


def free_memory() -> float:
    """Bytes of host memory that may still be used, infinite where the system does not say."""
    free = math.inf
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = 1024.0 * int(line.split()[1])
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            free = min(free, float(int(limit) - used))
    except (OSError, ValueError):
        pass
    return free
