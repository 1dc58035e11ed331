"""Launches Triton kernels without having Triton look for them each time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from triton.compiler import CompiledKernel

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
"""How all kernels are compiled. Without fusion a product is rounded as torch rounds it, and a sum
as the host does; it would save nothing, as memory is the limit. With one warp the sorted windows
of the guard would spill."""

_compiled: dict[tuple[Any, ...], CompiledKernel] = {}
"""Compiled kernels by what they are compiled for: device and constants. The types of all other
arguments are always the same, their values never count."""


def launch(
    kernel: Any, programs: int, arguments: tuple[Any, ...], constants: Mapping[str, Any]
) -> None:
    """Queue a kernel on the current stream of its first argument's device.

    At each launch by name, `kernel[grid](...)`, Triton makes a text of all options and compares
    every constant that the source names with what it was when it was compiled, which for the guard
    takes longer than the kernel. So only the first launch goes by name; those after it use what
    that has compiled.

    Args:
        kernel: a function under `triton.jit` that specialises none of its arguments.
        programs: how many to run, at least one.
        arguments: for its parameters, constants excepted, always of the same types; the first is a
            tensor, numbers are below 2^31 unless the parameter has a type.
        constants: its constant parameters, which come last, in their order.
    """
    first: Tensor = arguments[0]
    key = (kernel, first.device, *constants.values())
    with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
        known = _compiled.get(key)
        if known is not None:
            known[(programs, 1, 1)](*arguments, *constants.values())
            return
        made = kernel[(programs,)](*arguments, **constants, **OPTIONS)
    if isinstance(made, CompiledKernel):  # the interpreter makes none
        _compiled[key] = made
