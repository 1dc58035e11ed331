"""Tensors in host memory: pinned if they come from a GPU, so that nobody waits for a copy."""

from __future__ import annotations

from collections.abc import Iterable

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


def arrivals(tensors: Iterable[Tensor]) -> list[torch.cuda.Event]:
    """Events behind which all that has been queued on the tensors' GPUs is done."""
    events = []
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        events.append(event)
    return events
