"""One wording for every complaint about an argument: what it must be, what it was, what to do."""

from __future__ import annotations

import math
from typing import Any


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
    left, right = "(" if open_low else "[", ")" if open_high else "]"
    rule = "a finite number"
    if low > -math.inf or high < math.inf:
        rule += f" in {left}{low:g}, {high:g}{right}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(_message(name, rule, value, remedy))
    below = value <= low if open_low else value < low
    above = value >= high if open_high else value > high
    if not math.isfinite(value) or below or above:
        raise ValueError(_message(name, rule, value, remedy))


def integer(name: str, value: Any, *, low: int, remedy: str = "") -> None:
    """Raise unless `value` is an integer of at least `low`.

    Raises:
        TypeError: `value` is not an integer.
        ValueError: `value` is below `low`.
    """
    rule = f"an integer of at least {low}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(_message(name, rule, value, remedy))
    if value < low:
        raise ValueError(_message(name, rule, value, remedy))


def boolean(name: str, value: Any) -> None:
    """Raise a TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(_message(name, "True or False", value, ""))


def _message(name: str, rule: str, value: Any, remedy: str) -> str:
    return f"{name} must be {rule}, got {value!r}" + (f"; {remedy}" if remedy else "")
