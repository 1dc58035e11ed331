"""One wording for every complaint about an argument: what it must be, what it was, what to do."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
from torch import Tensor


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    remedy: str = "",
) -> None:
    """Raise unless `value` is a finite real number in the given range.

    Raises:
        TypeError: `value` is not a real number.
        ValueError: `value` is not finite or out of range.
    """
    left = "(" if open_low else "["
    right = ")" if open_high or math.isinf(high) else "]"
    rule = "a finite number"
    if low > -math.inf or high < math.inf:
        rule += f" in {left}{low:g}, {high:g}{right}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(_message(name, rule, value, remedy))
    x = float(value)
    below = x <= low if open_low else x < low
    above = x >= high if open_high else x > high
    if not math.isfinite(x) or below or above:
        raise ValueError(_message(name, rule, value, remedy))


def integer(name: str, value: Any, *, low: int | None = None, remedy: str = "") -> None:
    """Raise unless `value` is an integer, of at least `low` if that is given.

    Raises:
        TypeError: `value` is not an integer.
        ValueError: `value` is below `low`.
    """
    rule = "an integer" if low is None else f"an integer of at least {low}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(_message(name, rule, value, remedy))
    if low is not None and value < low:
        raise ValueError(_message(name, rule, value, remedy))


def boolean(name: str, value: Any) -> None:
    """Raise a TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(_message(name, "True or False", value, ""))


def is_number(value: Any) -> bool:
    """Whether `value` is a real number of Python or numpy, also as an array without dimensions."""
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and value.dtype.kind in "fiu"
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def as_float(name: str, value: Any, remedy: str) -> float:
    """A number of any kind, or a tensor of one element, as a float; NaN and infinities included.

    Raises:
        TypeError: `value` is not a real number, nor a one-element real tensor.
    """
    if type(value) is float:
        return value
    if isinstance(value, Tensor):
        if value.numel() == 1 and not value.is_complex():
            return float(value.detach())
        got = f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    elif is_number(value):
        return float(value)
    else:
        got = repr(value)
    raise TypeError(f"{name} must be a float or a one-element real tensor, got {got}; {remedy}")


def _message(name: str, rule: str, value: Any, remedy: str) -> str:
    return f"{name} must be {rule}, got {value!r}" + (f"; {remedy}" if remedy else "")
