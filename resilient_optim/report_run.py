"""What a report shows of a run: columns, kinds of steps, and what RCA says along the way."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .decision import ROLLBACK, SKIP, Decision
from .events import read_events, read_header
from .loss_buffer import Array
from .rca import RCA, Reading
from .rca_statistics import MIN_HISTORY

Events = str | os.PathLike[str] | Iterable[Mapping[str, Any] | Decision]

READINGS = 200
"""Points of a run at which RCA is asked; each costs one to three milliseconds."""

COLUMNS = 1200
"""Points of a curve at most, about one for each pixel; more steps are drawn as their range."""


class Run:
    """The steps of a run, oldest first, as its event log has them.

    Args:
        source: the path of an event log, or its events (or decisions) in order.

    Raises:
        TypeError: `source` holds something that is no event.
        ValueError: the log is broken, see `read_events`.

    Attributes:
        events: a dict for each step.
        header: what the log's latest header says; {} without a file.
        steps: the number of each step.
        taken: whether each step was taken, that is, neither skipped nor rolled back.
        kinds: what ARS did in each step in a word, see `kind_of`.
    """

    def __init__(self, source: Events) -> None:
        self.header: dict[str, Any] = {}
        if isinstance(source, (str, os.PathLike)):
            self.header = read_header(source)
            self.events = read_events(source)
        else:
            self.events = [_as_event(item) for item in source]
        self.steps = self.column("step")
        actions = [event.get("action") for event in self.events]
        self.taken = np.array([action not in (SKIP, ROLLBACK) for action in actions], dtype=bool)
        self.kinds = np.array([kind_of(event) for event in self.events], dtype=str)

    def column(self, name: str) -> Array:
        """A field of every step, shape (n,); its default where the log leaves it out, else NaN."""
        default = Decision._field_defaults.get(name)
        values = [event.get(name, default) for event in self.events]
        return np.array([np.nan if x is None else x for x in values], dtype=np.float64)

    def counters(self) -> dict[str, int]:
        """How many steps there were of which kind; a step may be of several."""
        taken = self.taken
        skipped = np.array([event.get("action") == SKIP for event in self.events], dtype=bool)
        phi, grad_scale, chi = self.column("phi"), self.column("grad_scale"), self.column("chi")
        published = self.column("as_published") != 0.0
        reasons = [str(event.get("reason", "")) for event in self.events]
        nonfinite = np.array([text.startswith("non-finite") for text in reasons], dtype=bool)
        touched = ~taken | (self.column("update_scale") != 1.0) | (grad_scale != 1.0) | (chi != 0)
        return {
            "steps": len(self.events),
            "touched (not the bare optimizer's)": int(touched.sum()),
            "skipped": int(skipped.sum()),
            "not taken for a non-finite value": int((~taken & nonfinite).sum()),
            "damped": int((taken & (phi < 1.0)).sum()),
            "gradient bounded": int((taken & (grad_scale != 1.0) & ~published).sum()),
            "jittered": int((taken & (chi != 0.0)).sum()),
            "new levels": int((self.column("new_level") != 0.0).sum()),
            "rollbacks": int((self.kinds == "rolled back").sum()),
        }

    def rollbacks(self) -> list[tuple[int, int]]:
        """Where the run went back: (step, step of the state that was restored)."""
        pairs = ((event["step"], event.get("rolled_back_to")) for event in self.events)
        return [(int(step), int(back)) for step, back in pairs if back is not None]

    def given_up(self) -> dict[str, Any] | None:
        """The latest step that has a diagnosis: that of `TrainingDiverged`; None if none has."""
        return next((event for event in reversed(self.events) if event.get("diagnosis")), None)

    def readings(self) -> list[tuple[float, Reading]]:
        """RCA's word at up to `READINGS` steps, on the losses of taken steps since a new level.

        Beta and omega are those of the last 64 of them, as everywhere in RCA. A rollback takes the
        losses back that it takes steps back.
        """
        losses, new_level = self.column("loss"), self.column("new_level") != 0.0
        counts = np.isfinite(losses) & self.taken
        rollbacks = self.rollbacks()
        points = np.unique(np.linspace(0, len(losses) - 1, READINGS).astype(int))
        found = []
        for point in points if len(losses) else ():
            while rollbacks and rollbacks[0][0] <= self.steps[point]:
                step, back = rollbacks.pop(0)
                counts &= (self.steps < back) | (self.steps >= step)
            known = np.flatnonzero(counts[: point + 1])
            levels = known[new_level[known]]
            if len(levels):
                known = known[known >= levels[-1]]
            told = len(levels) > 0 and len(known) < MIN_HISTORY
            found.append((float(self.steps[point]), RCA().read(losses[known], shifted=told)))
        return found


class Curve(NamedTuple):
    """A column thinned out for drawing: at each x the middle value and the range."""

    x: Array
    low: Array
    middle: Array
    high: Array


def kind_of(event: Mapping[str, Any]) -> str:
    """The one word for a step, the gravest that applies."""
    if event.get("action") == ROLLBACK or event.get("rolled_back_to") is not None:
        return "rolled back"
    if event.get("action") == SKIP:
        return "skipped"
    if event.get("new_level"):
        return "new level"
    if event.get("reason") == "start-up" and not event.get("abnormal_norm"):
        return "start-up"
    bounded = event.get("grad_scale", 1.0) != 1.0 and not event.get("as_published")
    if bounded:
        return "gradient bounded"
    if event.get("phi", 1.0) < 1.0 or event.get("update_scale", 1.0) < 1.0:
        return "damped"
    return "jittered" if event.get("chi", 0.0) else "quiet"


def curve(x: Array, y: Array) -> Curve:
    """The values to draw: all of a short run, medians and ranges of equal parts of a long one.

    What is not finite counts as missing; where a part has nothing else, its values are NaN.
    """
    y = np.where(np.isfinite(y), y, np.nan)
    size = -(-len(y) // COLUMNS)
    if size <= 1:
        return Curve(x, y, y, y)
    missing = np.full(-len(y) % size, np.nan)
    parts = np.append(y, missing).reshape(-1, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of parts without any value
        middle = np.nanmedian(parts, axis=1)
    return Curve(x[::size], np.fmin.reduce(parts, 1), middle, np.fmax.reduce(parts, 1))


def thinned(where: NDArray[np.intp], total: int) -> NDArray[np.intp]:
    """Of the positions (of `total`) those that do not fall on the pixel of the one before."""
    pixels = where * COLUMNS // max(total, COLUMNS)
    return where[np.unique(pixels, return_index=True)[1]]


def stretches(x: Array, labels: list[str]) -> list[tuple[float, float, str]]:
    """Neighbours of the same label as (first x, x where the next label begins, label)."""
    found: list[tuple[float, float, str]] = []
    for here, label in zip(x.tolist(), labels, strict=True):
        if found and found[-1][2] == label:
            continue
        if found:
            found[-1] = (found[-1][0], here, found[-1][2])
        found.append((here, here, label))
    if found:
        found[-1] = (found[-1][0], float(x[-1]), found[-1][2])
    return found


def _as_event(item: Mapping[str, Any] | Decision) -> dict[str, Any]:
    event = item._asdict() if isinstance(item, Decision) else item
    if not isinstance(event, Mapping) or "step" not in event or "loss" not in event:
        raise TypeError(
            f"run must be the path of an event log or its events, got an item {item!r}; "
            "an event is a dict with a step and a loss, as read_events returns them"
        )
    return dict(event)
