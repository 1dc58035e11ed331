"""Chooses the implementation of each operation.

Single operations go through plain torch, on every device. A whole step on a GPU goes through the
Triton kernels of `norm`, `guard` and `gate`, if `triton_problem` finds none.
"""

from __future__ import annotations

import os
import re

import torch

from .foreach import global_norm, norms, scale_and_jitter_

__all__ = ["global_norm", "norms", "scale_and_jitter_", "triton_problem"]

OLDEST_TRITON = (3, 4)
"""Of those before, 3.3 makes NaN of infinity when it sorts, and does not compile `gate`."""


def triton_problem(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on a device, in words; None if they can.

    Asks the driver: that triton can be imported says nothing about a GPU. With TRITON_INTERPRET=1
    they run on the CPU, for tests.
    """
    try:
        import triton
    except ImportError as error:
        return f"triton is not installed ({error})"
    found = f"triton {triton.__version__}"
    if _version(triton.__version__) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"{found} is too old, the kernels need {oldest}; torch 2.8 is the first to bring it"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return f"{found} runs on GPUs, but the parameters are on {device}"
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # whatever a broken or missing driver raises
        return f"{found} has no driver for {device} ({error})"
    return None


def _version(text: str) -> tuple[int, ...]:
    """Major and minor version; builds of vendors append letters and signs."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
