"""A record of the event log as a line of JSON, and back.

JSON knows no NaN and no infinity: they are the strings "nan", "inf", "-inf".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_NOT_IN_JSON = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def as_line(record: dict[str, Any]) -> str:
    """The record as a line, with its end; what JSON does not know is written as its `repr`.

    Args:
        record: plain values, tensors, lists and dicts of them.
    """
    try:
        return _encode(record) + "\n"
    except ValueError:  # NaN or infinity somewhere, which is rare
        return _encode(_plain(record)) + "\n"


def from_line(line: bytes) -> Any:
    """What a line holds, with floats where a NaN or an infinity was written.

    Args:
        line: with or without its end.

    Raises:
        ValueError: the line is no JSON.
    """
    value = json.loads(line)
    return _with_floats(value) if b'nan"' in line or b'inf"' in line else value


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # tensors and numpy's values
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if value != value else "inf" if value > 0 else "-inf"
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)


_encode = json.JSONEncoder(allow_nan=False, default=_plain).encode


def _with_floats(value: Any) -> Any:
    """The inverse of `_plain` for NaN and infinities."""
    if isinstance(value, dict):
        return {key: _with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    return _NOT_IN_JSON.get(value, value) if isinstance(value, str) else value
