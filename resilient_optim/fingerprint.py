"""A few numbers tell whether weights were changed between two steps, and whether gradients were."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .actuation import local_gradient

SAMPLED = 32
"""Tensors looked at in a step, one element of each: about two microseconds. If there are more
parameters they take turns."""

STRIDE = 2_654_435_761
"""Which element: a multiplicative hash of the step, so that all take their turn."""

_AS_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _View(NamedTuple):
    """The bits of a tensor as integers that share its memory, which begins at `place`."""

    bits: memoryview
    size: int
    tensor: Tensor
    place: int


class Fingerprint:
    """The sampled check of parameters in host memory; of others it says nothing."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Have nothing to compare with at the next step."""
        self._views: list[_View] = []
        self._in_turn: list[_View] = []
        self._sample: list[tuple[memoryview, int]] = []
        self._noted: list[int] = []

    def __bool__(self) -> bool:
        """Whether it knows where the weights are."""
        return bool(self._views)

    def remember(self, params: list[Tensor] | None, step: int) -> None:
        """Note some weights as they are.

        Args:
            params: the parameters, given when they may have moved in memory; None for the same.
            step: number of the step, by which the weights to look at are chosen.
        """
        if params is not None:
            self._views = [view for p in params if (view := _view(p)) is not None]
        views = self._views
        count = len(views)
        if count > SAMPLED:
            first = step * SAMPLED % count
            step = step * SAMPLED // count  # the round: else turns would share factors
            views = views[first : first + SAMPLED]
            views += self._views[: SAMPLED - len(views)]
        turn = step * STRIDE
        self._in_turn = views
        self._sample = [(bits, turn % size) for bits, size, _, _ in views]
        self._noted = [bits[i] for bits, i in self._sample]

    def changed(self) -> bool:
        """Whether any of the weights noted is no longer what it was, bit for bit."""
        found = [bits[i] for bits, i in self._sample]
        # Weights that have moved in memory say nothing, but it takes longer to find out.
        return found != self._noted and any(
            now != noted and view.tensor.data_ptr() == view.place
            for now, noted, view in zip(found, self._noted, self._in_turn, strict=True)
        )


def _view(p: Tensor) -> _View | None:
    size = p.element_size()
    if p.device.type != "cpu" or not p.numel() or size not in _AS_INTEGER or p.is_complex():
        return None
    flat = p.detach()
    if not flat.is_contiguous():
        return None
    array: Any = flat.reshape(-1).view(_AS_INTEGER[size]).numpy()
    return _View(memoryview(array), len(array), p, p.data_ptr())


class GradientFingerprint:
    """The sampled check of gradients, asked only where their norm is what it was."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Have nothing to compare with."""
        self._noted: list[complex] | None = None

    def is_the_same(self, norm: float, params: list[Tensor]) -> bool:
        """Whether some entries are those of the last time that this was asked.

        Of a norm that has not changed nothing follows: the gradient may have been normalised.

        Args:
            norm: of the gradient, the same as in the last step.
            params: whose gradients to look at.
        """
        flat = (local_gradient(p).reshape(-1) for p in params)
        grads = itertools.islice((grad for grad in flat if len(grad)), SAMPLED)
        sample = [complex(grad[len(grad) // 2]) for grad in grads]
        if not sample:
            return False  # all of them are frozen for the time being
        same = norm == 0.0 or self._noted in (None, sample)
        self._noted = sample
        return same
