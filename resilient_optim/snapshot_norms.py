"""Norms of parameters and of an optimizer's state: not finite where one has gone wrong."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .kernels.foreach import foreach_norms, gathered

_MEASURED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What norms are taken of; anything else, an 8-bit or an integer weight, is made float32."""

Norms = npt.NDArray[np.float32]


@torch.no_grad()  # gradients may have a graph
def norms_of(params: Iterable[Tensor]) -> Tensor:
    """L2 norm of each tensor, shape (tensors,); NaN or infinite where one is not finite."""
    return _stacked(foreach_norms(_measurable(params)))


@torch.no_grad()
def health_of(params: Iterable[Tensor], state: Iterable[Tensor]) -> Tensor:
    """A few numbers, not all of them finite if parameters or optimizer state have gone wrong.

    They are norms of the parameters (weights whose squares overflow are wrong), and sums of the
    absolute values of the state (second moments whose squares overflow are not). Small tensors
    are taken together, as they cost more in calls than in arithmetic.
    """
    norms = foreach_norms(gathered(_measurable(params)))
    sums = foreach_norms(gathered(_measurable(state)), order=1)
    return _stacked(norms + sums)


def _measurable(tensors: Iterable[Tensor]) -> list[Tensor]:
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    return [t if t.dtype in _MEASURED else t.float() for t in real]


def _stacked(norms: list[Tensor]) -> Tensor:
    """As one vector of float32, on the first one's device."""
    if not norms:
        return torch.zeros(0)
    device = norms[0].device
    same = all(norm.device == device and norm.dtype == torch.float32 for norm in norms)
    return torch.stack(norms if same else [norm.to(device, torch.float32) for norm in norms])
