"""What can happen to the text in mid-run: pure functions on a tensor of tokens."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def identity(tokens: Tensor) -> Tensor:
    """Leave the text as it is: the control.

    Args:
        tokens: int64 (N,).
    """
    return tokens


def reverse_text(tokens: Tensor) -> Tensor:
    """Read the text from its end to its beginning: same characters, other statistics.

    Args:
        tokens: int64 (N,).
    """
    return tokens.flip(0)


SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {"reverse": reverse_text, "none": identity}
