"""Which snapshots are kept, and when they are taken: a candidate, the last good one, the best one.

A state counts as good only after healthy steps have followed it: what is wrong with weights often
shows in the next loss, or in the one after. Three copies at most are held at a time.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import _checks
from .host_copy import free_memory
from .snapshot import Live, Snapshot, nbytes_of
from .snapshot_norms import Norms

log = logging.getLogger(__name__)

PROBATION = 8
"""Healthy steps after which a candidate counts as good, and the fewest steps between two."""

SHOWN = 2
"""Healthy steps in which weights or optimizer state that are wrong would have shown: a loss with
those weights, and one with weights that were made from that state."""

MEMORY_SHARE = 0.125
"""Share of the free host memory that snapshots take of their own accord; more has to be asked."""

FIRST_IS_SLOWER = 2.0
"""By this the first copy that is timed is slower than those that follow, or nearly."""

HOST_BANDWIDTH = 10e9
"""Bytes a second from a GPU to pinned memory, until a copy has been timed."""

GROWN = 100.0
"""A parameter whose norm exceeds the largest of the good state by this factor is no longer what
training made of it."""


@dataclass(frozen=True)
class Snapshots:
    """When snapshots are taken, and whether they are also written to disk.

    Attributes:
        every: observed steps between two; None: as often as `cost` allows.
        cost: share of the run's time that they may take, in (0, 1].
        directory: where good ones are also written, the last three, for `ARS.resume`;
            None: nowhere.

    Raises:
        TypeError: a setting is of a wrong type.
        ValueError: a setting is out of range.
    """

    every: int | None = None
    cost: float = 0.01
    directory: str | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            _checks.integer("every", self.every, low=1, remedy="None chooses by the cost")
        _checks.number("cost", self.cost, low=0.0, high=1.0, open_low=True)
        if self.directory is not None and not isinstance(self.directory, str | Path):
            raise TypeError(
                f"directory must be a path or None, got {self.directory!r}; None keeps snapshots "
                "in memory"
            )


class SnapshotRing:
    """Takes snapshots, and says which of them are good.

    Args:
        live: what to copy.
        settings: how often.
        unasked: whether nobody asked for snapshots: they then do without where memory is scarce.

    Attributes:
        good: the last state that proved good; None before the first.
        best: the good one with the lowest loss, often the same.
        found_corruption: a candidate turned out not to be finite, though its losses were fine.
    """

    def __init__(self, live: Live, settings: Snapshots, unasked: bool = False) -> None:
        self.live = live
        self.settings = settings
        self.off = False
        self._unasked = unasked
        self._has_said = False
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: self.__dict__[name]
            for name in ("live", "settings", "off", "_unasked", "_has_said")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.forget()

    def forget(self) -> None:
        """Drop all snapshots: they are of another run."""
        self.off = False
        self.good: Snapshot | None = None
        self.best: Snapshot | None = None
        self.found_corruption = False
        self._candidate: Snapshot | None = None
        self._healthy = 0
        self._spare: list[Snapshot] = []
        self._next = 0
        self._taken_at: tuple[int, float] | None = None
        self._seconds: deque[float] = deque(maxlen=8)
        self._gpu_seconds: deque[float] = deque(maxlen=8)
        self._most_a_byte = math.inf

    def is_due(self, step: int) -> bool:
        """Whether to take one after so many observed steps."""
        return step >= self._next and self._candidate is None and not self.off

    def take(
        self, step: int, level: float, notes: dict[str, Any], proven: bool = False
    ) -> int | None:
        """Copy the run as it is; a failure leaves the older snapshots as they are.

        Args:
            step: observed steps so far.
            level: of the loss.
            notes: plain data to keep along.
            proven: count it as good at once.

        Returns:
            Steps until the next one is due by its cost; None if there is no copy.
        """
        if self._unasked and not self._spare and not self._fits(copies=1 if self.good else 3):
            if not self._has_said:
                log.warning(
                    "ARS takes no further snapshots: one needs %.1f GB, and three may not take "
                    "more than an eighth of the free memory. Pass snapshot=True to insist.",
                    1e-9 * nbytes_of(self.live),
                )
            self._has_said, self._next = True, step + PROBATION
            return None
        snapshot = self.spare()
        began = time.perf_counter()
        try:
            at_hand = snapshot.take(self.live, step, level, notes)
        except (MemoryError, RuntimeError) as error:
            log.warning("ARS could not take a snapshot at step %d: %s", step, error)
            self._next = step + PROBATION
            return None
        now = time.perf_counter()
        if at_hand:
            self._seconds.append(now - began)
        else:  # new memory costs three times as much as a copy, but only once
            in_new = (now - began) / max(1, snapshot.nbytes)
            self._most_a_byte = min(self._most_a_byte, in_new)
        interval = self._interval(step, began, snapshot)
        self._taken_at = step, now
        self._next = step + interval
        self._candidate, self._healthy = snapshot, 0
        if proven:
            self.promote()
        return interval

    def postpone(self, interval: int) -> None:
        """Set the distance to the next snapshot: what all ranks have agreed on."""
        if self._taken_at is not None:
            self._next = self._taken_at[0] + interval

    def probation_ends(self) -> bool:
        """Count a healthy step; whether the candidate has had as many as it needs."""
        self._healthy += 1
        return self._candidate is not None and self._healthy >= PROBATION

    @property
    def has_candidate(self) -> bool:
        """Whether a copy is on probation."""
        return self._candidate is not None

    def is_finite(self) -> bool:
        """Whether parameters and optimizer state of the candidate are."""
        return self._candidate is not None and self._candidate.is_finite

    def sound_candidate(self) -> Snapshot | None:
        """The candidate, if it may be returned to from what went wrong just now; else None.

        What may have been wrong before (a level that rose, trouble that came back) asks for a good
        state. This does not make it one: if trouble comes back, the older states are there.
        """
        return self._candidate if self._healthy >= SHOWN and self.is_finite() else None

    def reject(self) -> Snapshot | None:
        """Drop the candidate, as the run is not finite though its losses are; returns None."""
        self.trouble(soon=True)
        self.found_corruption = True
        return None

    def give_up_candidate(self, step: int) -> None:
        """Drop the candidate, as there is none on another rank, and try again later."""
        self.trouble()
        self._next = step + PROBATION

    def trouble(self, soon: bool = False) -> None:
        """Drop the candidate: what went wrong may be in it already.

        Args:
            soon: take the next one at the next calm step, whether or not there was a candidate.
        """
        if self._candidate is not None:
            self._spare.append(self._candidate)
            self._candidate, soon = None, True
        self._next = 0 if soon else self._next

    def spare(self) -> Snapshot:
        """Memory for one more copy."""
        return self._spare.pop() if self._spare else Snapshot()

    def give_back(self, snapshot: Snapshot) -> None:
        """Return what `spare` gave."""
        self._spare.append(snapshot)

    def drop_good(self) -> None:
        """Forget the last good state, as trouble came back after it; the best one stays."""
        if self.good is not None and self.good is not self.best:
            self._spare.append(self.good)
            self.good = self.best

    def is_intact(self, norms: Norms) -> bool:
        """Whether parameters with these norms may be what training has made of the last good state.

        Args:
            norms: of each parameter.
        """
        if not np.isfinite(norms).all():
            return False
        before = 0.0 if self.good is None else float(self.good.norms.max(initial=0.0))
        # Of weights that began at zero, growth says nothing.
        return before == 0.0 or float(norms.max(initial=0.0)) <= GROWN * before

    def promote(self) -> Snapshot | None:
        """Count the candidate as good; returns it.

        Weights that grew are no sign of trouble here: the steps that followed were healthy.
        """
        snapshot, self._candidate = self._candidate, None
        if snapshot is None:
            return None
        if (on_gpu := snapshot.gpu_seconds) is not None:
            self._gpu_seconds.append(on_gpu)
        old, self.good = self.good, snapshot
        if self.best is None or self._is_as_good(snapshot, self.best):
            beaten, self.best = self.best, snapshot
            if beaten is not None and beaten is not old:
                self._spare.append(beaten)
        if old is not None and old is not self.best:
            self._spare.append(old)
        return snapshot

    @staticmethod
    def _is_as_good(snapshot: Snapshot, best: Snapshot) -> bool:
        """As good within the noise of the loss: the younger state is then the better one.

        The first state is kept until a level is known.
        """
        if math.isinf(snapshot.level) or math.isinf(best.level):
            return math.isfinite(snapshot.level)
        return snapshot.level <= best.level + float(best.notes.get("scale", 0.0))

    def _interval(self, step: int, began: float, snapshot: Snapshot) -> int:
        if self.settings.every is not None:
            return self.settings.every
        if self._taken_at is None or step <= self._taken_at[0] or not self._seconds:
            return PROBATION
        # The median of the last: a busy moment is no property of the copy.
        seconds = median(self._seconds) / (FIRST_IS_SLOWER if len(self._seconds) == 1 else 1.0)
        if len(self._seconds) < 3:  # nor is it if it takes longer than those into new memory
            seconds = min(seconds, self._most_a_byte * snapshot.nbytes)
        if snapshot.is_on_gpu:  # it waits for the host to queue them, or the host for it
            busy = self._gpu_seconds or [snapshot.nbytes / HOST_BANDWIDTH]
            seconds = max(seconds, median(busy))
        mean_step = (began - self._taken_at[1]) / (step - self._taken_at[0])
        wanted = seconds / (self.settings.cost * max(mean_step, 1e-9))
        # 8, 12, 16, 24, 32, 48, ...: two runs on one machine nearly always agree.
        power = 2 ** math.ceil(math.log2(max(1.0, wanted)))
        return int(max(PROBATION, power if wanted > 0.75 * power else 0.75 * power))

    def _fits(self, copies: int) -> bool:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # on this machine, says torchrun
        return ranks * copies * nbytes_of(self.live) <= MEMORY_SHARE * free_memory()
