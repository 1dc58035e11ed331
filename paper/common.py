"""What the modules of the paper's numbers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nanogpt_demo.markdown import plus_minus
from nanogpt_demo.store import Document

Documents = Mapping[str, Document]
Numbers = dict[str, str]
Summary = Mapping[str, Any]

HELD_OUT = "held-out"

WORDS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
)  # fmt: skip


def require(condition: bool, words: str) -> None:
    """Stop the build if what the prose says in words is not what the results say.

    Raises:
        ValueError: If so.
    """
    if not condition:
        raise ValueError(f"the results must support the words {words!r} of paper.typ; rewrite them")


def word(count: int) -> str:
    """A small number in words, a large one in digits."""
    return WORDS[count] if count < len(WORDS) else f"{count:,}"


def capital(text: str) -> str:
    """The same at the beginning of a sentence."""
    return text[0].upper() + text[1:]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def signed(number: float, digits: int) -> str:
    """A difference, with a true minus sign."""
    return f"{number:+.{digits}f}".replace("-", "−")


def difference(pair: Summary) -> str:
    """A paired difference with its standard error and its verdict."""
    text = plus_minus(pair["mean"], pair["se"], "+").replace("-", "−")
    return f"{text}, {pair['verdict']}"
