"""A run as all parts of the circuit breaker see it."""

from __future__ import annotations

import math
from typing import Any

from . import breaker_rules as rules
from .breaker_rules import BreakerState
from .budgets import Budgets
from .fingerprint import Fingerprint
from .resume import Checkpoints
from .snapshot import Live, Snapshot
from .snapshot_ring import SnapshotRing


class WatchedRun:
    """What the parts of the circuit breaker share.

    Args:
        live: the run's tensors.
        budgets: how much is put up with.
        ring: the snapshots; None for none, and then no rollback.
        process_group: see `ARS`.

    Attributes:
        checkpoints: good states on disk; None without a directory.
        fingerprint: tells whether somebody changed the weights between two steps.
        last_norm: of the latest gradient; NaN if it was not measured.
    """

    last_norm: float
    _state: BreakerState
    _quiet_steps: int

    def __init__(
        self, live: Live, budgets: Budgets, ring: SnapshotRing | None, process_group: Any
    ) -> None:
        self.live = live
        self.budgets = budgets
        self.ring = ring
        self.process_group = process_group
        directory = None if ring is None else ring.settings.directory
        self.checkpoints = None if directory is None else Checkpoints(directory, live)
        self.fingerprint = Fingerprint()
        self.state = BreakerState()

    def __getstate__(self) -> dict[str, Any]:
        # Snapshots are not copied along; a copy takes its own at its next step.
        kept = ("live", "budgets", "ring", "checkpoints", "state")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.process_group = None
        self.fingerprint = Fingerprint()
        for name, value in kept.items():
            setattr(self, name, value)

    @property
    def state(self) -> BreakerState:
        """What has to survive a checkpoint."""
        if self._quiet_steps:
            self._state = rules.passed(self._state, self._quiet_steps, self.last_norm)
            self._quiet_steps = 0
        return self._state

    @state.setter
    def state(self, state: BreakerState) -> None:
        self._state = state
        self._quiet_steps = 0
        self.last_norm = state.last_norm

    def pass_quietly(self, norm: float | None) -> None:
        """Count a step that nothing is to be said of; what fades is brought up to date later."""
        self._quiet_steps += 1
        self.last_norm = math.nan if norm is None else norm

    def needs_look(self) -> bool:
        """Whether even a quiet step calls for one: beginnings, and what was found meanwhile."""
        state, ring = self._state, self.ring
        if state.first != state.first or state.low_norms:
            return True
        return ring is not None and (
            ring.found_corruption or not (ring.good is not None or ring.off)
        )

    @property
    def good(self) -> Snapshot | None:
        """The last good state, if there is any."""
        return None if self.ring is None else self.ring.good

    def fits(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot is of the parameters there are: they may have been replaced."""
        return snapshot.shapes == [p.shape for p in self.live.params()]

    def put_back(self, snapshot: Snapshot) -> None:
        """Return weights and optimizer state to a snapshot; schedules stay as they are."""
        self.live.put_back(snapshot.tree(), scheduled=False)
        self.fingerprint.forget()

    def forget(self) -> None:
        """Drop what belongs to the tensors of another moment: they have been replaced."""
        self.fingerprint.forget()
        if self.ring is not None:
            self.ring.forget()
