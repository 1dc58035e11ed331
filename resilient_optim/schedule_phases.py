"""Schedules as text: points [value, time] joined by linear, cosine or constant pieces."""

import functools
import math
import re
from typing import NamedTuple

WORDS = ("lin", "cos", "const")

_WORD = re.compile(r"[^\s\[\]]+")
_POINT = re.compile(r"\[([^\[\],]*),([^\[\],]*)\]")
_SPACE = re.compile(r"\s*")


class Point(NamedTuple):
    """Where a piece of a schedule ends.

    Attributes:
        word: how the value gets here from the point before: "lin", "cos", or "const" (it stays
            there until `time`, and jumps). The first point has no piece before it: "".
        value: a learning rate or a weight decay, >= 0.
        time: in epochs, steps or whatever unit the schedule is used with.
    """

    word: str
    value: float
    time: float


class Phases(NamedTuple):
    """A piecewise schedule, as made by `parse_phases`; call it with a time to get the value.

    `str(phases)` is a text that parses to the same schedule.

    Attributes:
        points: at least one, by increasing time.
    """

    points: tuple[Point, ...]

    def __call__(self, time: float) -> float:
        """The value at a time.

        Args:
            time: in the unit of the points' times.

        Returns:
            Before the first point its value, after the last one that one's.
        """
        before = self.points[0]
        if time <= before.time:
            return before.value
        for point in self.points[1:]:
            if time < point.time:
                z = (time - before.time) / (point.time - before.time)
                return between(before.value, point.value, z, point.word)
            before = point
        return before.value

    def __str__(self) -> str:
        return " ".join(
            f"{p.word}[{_shortest(p.value)},{_shortest(p.time)}]".strip() for p in self.points
        )

    @property
    def peak(self) -> float:
        """The largest value."""
        return max(point.value for point in self.points)


def between(start: float, end: float, z: float, word: str) -> float:
    """The value after the share z of a piece from `start` to `end`.

    lin: start + (end - start) z; cos: start + (end - start) (1 - cos(pi z)) / 2, the cosine
    annealing of Loshchilov and Hutter, SGDR, arXiv:1608.03983, eq. 5, in either direction.

    Args:
        start: value at z = 0.
        end: value at z = 1.
        z: share of the piece, in [0, 1).
        word: shape of the piece, one of `WORDS` ("" before the first point: constant).
    """
    if word == "lin":
        share = z
    elif word == "cos":
        share = 0.5 * (1.0 - math.cos(math.pi * z))
    else:
        share = 0.0
    # Not start + (end - start) * share: rounding of that may fall below zero.
    return start * (1.0 - share) + end * share


def parse_phases(text: str, name: str = "phases") -> Phases:
    """Read a schedule such as "[8e-4,0] lin[1.25e-3,6] cos[1e-5,20] const[6e-6,30]".

    Points are [value, time]. Every point but the first is preceded by the word that says how the
    value gets there: `lin` in a straight line, `cos` along half a cosine wave, `const` by staying
    at the value before until the point's time, and jumping.

    Example:
        >>> phases = parse_phases("[0,0] lin[1,4] const[0.5,8]")
        >>> phases(2), phases(7), phases(8), phases(100)
        (0.5, 1.0, 0.5, 0.5)
        >>> str(phases)
        '[0,0] lin[1,4] const[0.5,8]'

    Args:
        text: the schedule; spaces between its parts do not matter.
        name: of the argument, for error messages.

    Returns:
        The schedule: a function of time.

    Raises:
        TypeError: `text` is not a string.
        ValueError: it is not such a schedule; the message says where and why.
    """
    if not isinstance(text, str):
        raise TypeError(
            f'{name} must be a text like "[1e-3,0] lin[0,10]", got {type(text).__name__} {text!r}'
        )
    return _parsed(text, name)


# A schedule keeps its text, which can be saved anywhere, and asks for a value at every step.
@functools.lru_cache(maxsize=256)
def _parsed(text: str, name: str) -> Phases:
    points: list[Point] = []
    at = _skip_space(text, 0)
    while at < len(text):
        word, start = _read_word(text, at, name, first=not points)
        at = _skip_space(text, start)
        value, time, end = _read_point(text, at, name)
        if points and time <= points[-1].time:
            rule = f"have increasing times, each above the {_shortest(points[-1].time)} before"
            raise _error(name, rule, f"time {_shortest(time)}", at, text)
        points.append(Point(word, value, time))
        at = _skip_space(text, end)
    if not points:
        raise _error(name, "have at least one point [value, time]", "none", 0, text)
    return Phases(tuple(points))


def _read_word(text: str, at: int, name: str, first: bool) -> tuple[str, int]:
    """The word at this position, and where it ends."""
    match = _WORD.match(text, at)
    word = match.group() if match else ""
    if first and word:
        raise _error(name, "begin with a point [value, time]", repr(word), at, text)
    if not first and word not in WORDS:
        rule = "have lin, cos or const before every point but the first"
        raise _error(name, rule, repr(word or text[at]), at, text)
    return word, at + len(word)


def _read_point(text: str, at: int, name: str) -> tuple[float, float, int]:
    """Value and time of the point at this position, and where it ends."""
    match = _POINT.match(text, at)
    if match is None:
        got = repr(text[at : at + 12]) if at < len(text) else "the end"
        raise _error(name, "have a point [value, time] here", got, at, text)
    numbers = []
    for part in (1, 2):
        raw, where = match.group(part).strip(), match.start(part)
        try:
            x = float(raw)
        except ValueError:
            raise _error(name, "consist of numbers", repr(raw), where, text) from None
        if not math.isfinite(x):
            raise _error(name, "consist of finite numbers", repr(raw), where, text)
        if part == 1 and x < 0.0:
            raise _error(name, "have values of at least 0", repr(raw), where, text)
        numbers.append(x + 0.0)  # no negative zero: it would print as one
    return numbers[0], numbers[1], match.end()


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _error(name: str, rule: str, got: str, at: int, text: str) -> ValueError:
    return ValueError(
        f"{name} must {rule}, got {got} at character {at + 1} of {text!r}; "
        'an example is "[1e-3,0] lin[2e-3,5] cos[1e-5,20]"'
    )


def _shortest(x: float) -> str:
    """A short text that reads as exactly this number."""
    short = f"{x:g}"
    return short if float(short) == x else repr(x)
