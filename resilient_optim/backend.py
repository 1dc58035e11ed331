"""Where ARS decides: on the host, or, so that no step waits for it, on the GPU."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.optim import Optimizer

from .kernels import triton_problem
from .policy import DefaultConfig

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "torch", "triton")

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""Optimizers whose fused kernels leave a step out for `found_inf`. Others take it as well, but not
all of them to the same effect: none is trusted that the device path was not tested with."""


def decides_on_device(
    backend: Any, optimizer: Optimizer, config: Any, directory: Any = None
) -> bool:
    """Whether to decide on the device that holds the parameters.

    Args:
        backend: "torch": on the host. "triton": on the device. "auto": on the device if that is a
            GPU and all that is needed is there, else on the host.
        optimizer: the base optimizer.
        config: settings of the preset.
        directory: where checkpoints are written, which the host does; None if nowhere.

    Raises:
        ValueError: there is no such backend, or "triton" was asked for with a directory.
        RuntimeError: "triton" was asked for and cannot be had.
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if backend == "torch" or (backend == "auto" and not (params and params[0].is_cuda)):
        return False
    problem = _problem(optimizer, config, params)
    if problem is not None and backend == "triton":
        raise RuntimeError(
            f"backend must be 'auto' or 'torch' here, got 'triton': {problem} "
            f"(torch {torch.__version__})"
        )
    if directory is not None and problem is None:
        if backend == "triton":
            raise ValueError(
                f"directory must be None with backend 'triton', got {directory!r}; checkpoints "
                "are written by backend 'torch'"
            )
        return False
    if problem is not None:
        logger.info("ARS decides on the host, which waits for the GPU in each step: %s", problem)
    return problem is None


def _problem(optimizer: Optimizer, config: Any, params: list[Any]) -> str | None:
    if not isinstance(config, DefaultConfig):
        return "only the default preset has a kernel"
    name, remedy = type(optimizer).__name__, "fused=True makes Adam, AdamW and SGD"
    if not isinstance(optimizer, FUSED):
        return f"{name} cannot leave a step out on the device; {remedy} able to"
    # The groups tell, not the constructor: a checkpoint brings the `fused` it was saved with.
    for i, group in enumerate(optimizer.param_groups):
        if not group.get("fused"):
            found = f"param_groups[{i}] has fused={group.get('fused')}"
            return f"{name} cannot leave a step out on the device, as {found}; {remedy} able to"
    if any(hasattr(p, "full_tensor") for p in params):
        return "the parameters are sharded, and their norms are summed by the host"
    devices = sorted({str(p.device) for p in params})
    if len(devices) != 1:
        return f"the parameters must be on one device, found {', '.join(devices) or 'none'}"
    problem: str | None = triton_problem(params[0].device)
    return problem
