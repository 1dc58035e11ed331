"""Numbers and tables as Markdown, the same on every page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plus_minus(mean: float | None, se: float | None, sign: str = "") -> str:
    """A mean with its standard error, with as many digits as a small error needs, at least 3."""
    if mean is None:
        return "-"
    digits = 3 if not se else min(max(3, -math.floor(math.log10(se))), 6)
    return f"{mean:{sign}.{digits}f}" + ("" if se is None else f" ± {se:.{digits}f}")


def difference(pair: Mapping[str, Any] | None) -> str:
    """A paired difference with its verdict."""
    if pair is None:
        return "-"
    return f"{plus_minus(pair['mean'], pair['se'], '+')} ({pair['verdict']})"


def percent(share: float | None) -> str:
    """A share in percent."""
    return "-" if share is None else f"{100 * share:.1f} %"
