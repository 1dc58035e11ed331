"""How near the operations on gradients come to the speed at which a GPU copies memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanogpt_demo.bench.cases import SEED, Shape
from resilient_optim.kernels import Noise, norms, scale_and_jitter_

COPIED = 1 << 28  # float32 numbers, 1 GiB: far beyond every cache
REPEATS = 51
WARMUP = 5


def measure_kernels(shapes: dict[str, list[Shape]], device: torch.device) -> list[dict[str, Any]]:
    """Measure on a CUDA device, by its own clock, copy and operations in the same run.

    Bytes are those that have to move: a gradient is read once for a norm and, where it is changed,
    read and written; jitter relative to the gradient needs its norm first.

    Args:
        shapes: sets of float32 tensors, by name of the case.
        device: a CUDA device.

    Returns:
        Flat records: seconds, bytes a second, and that as a share of the copy's.
    """
    copied = _copy(device)
    found = [copied]
    for case, members in shapes.items():
        grads = [torch.randn(shape, device=device) for shape in members]
        found += [_record(name, case, *what, device) for name, what in _operations(grads).items()]
    return [
        record | {"share_of_copy": record["bytes_per_s"] / copied["bytes_per_s"]}
        for record in found
    ]


def _operations(grads: list[Tensor]) -> dict[str, tuple[Callable[[], Any], int]]:
    """What is measured, with the bytes that it has to move."""
    size, noise = sum(grad.nbytes for grad in grads), Noise(SEED)
    return {
        "norm": (lambda: norms(grads), size),
        "scale": (lambda: scale_and_jitter_(grads, 0.999), 2 * size),
        "scale and jitter": (lambda: scale_and_jitter_(grads, 0.999, 0.01, noise), 3 * size),
    }


def _copy(device: torch.device) -> dict[str, Any]:
    source = torch.empty(COPIED, device=device)
    target = torch.empty_like(source)
    return _record("copy", "1 GiB", lambda: target.copy_(source), 2 * source.nbytes, device)


def _record(
    operation: str, case: str, call: Callable[[], Any], size: int, device: torch.device
) -> dict[str, Any]:
    seconds = float(np.median([_seconds(call) for _ in range(WARMUP + REPEATS)][WARMUP:]))
    return {
        "kind": "kernel",
        "operation": operation,
        "case": case,
        "device": torch.cuda.get_device_name(device),
        "ms": 1e3 * seconds,
        "bytes": size,
        "bytes_per_s": size / seconds,
    }


def _seconds(call: Callable[[], Any]) -> float:
    began: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    done: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    began.record()
    call()
    done.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(done)) / 1e3
