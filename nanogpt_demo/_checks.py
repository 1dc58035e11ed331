"""Argument checks with the one error wording of this project."""

from __future__ import annotations

import math


def require(ok: bool, argument: str, rule: str, value: object, remedy: str) -> None:
    """Raise unless ``ok``.

    Raises:
        ValueError: ``<argument> must be <rule>, got <value>; <remedy>``.
    """
    if not ok:
        raise ValueError(f"{argument} must be {rule}, got {value!r}; {remedy}")


def require_int(argument: str, value: object, low: int, remedy: str) -> None:
    """Check that ``value`` is an integer of at least ``low``.

    Raises:
        TypeError: If it is no integer (a bool is none).
        ValueError: If it is below ``low``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument} must be an integer, got {value!r}; {remedy}")
    require(value >= low, argument, f"at least {low}", value, remedy)


def require_positive(argument: str, value: object, remedy: str) -> None:
    """Check that ``value`` is a finite number above zero.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not finite or not above zero.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number, got {value!r}; {remedy}")
    require(math.isfinite(value) and value > 0, argument, "finite and above 0", value, remedy)


def require_choice(argument: str, value: object, names: list[str]) -> None:
    """Check that ``value`` is one of ``names``.

    Raises:
        ValueError: If it is not; the message lists the names.
    """
    require(value in names, argument, "a known name", value, f"choose from {', '.join(names)}")
