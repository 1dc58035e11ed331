"""When good states are kept: at the beginning, in calm, on all ranks after the same steps."""

from __future__ import annotations

import math

from . import distributed
from .decision import SKIP, Decision
from .memory import Memory
from .snapshot import Snapshot
from .snapshot_norms import health_of
from .watched_run import WatchedRun

CALM = 1.0
"""No snapshot is taken while the policy's alert is above this."""

LOOK_EVERY = 32
"""Steps between two looks at the optimizer's state where for want of calm no snapshot is taken."""


class Keeper:
    """Takes the snapshots of a run, and the fingerprints of its weights.

    Args:
        run: the run.
    """

    def __init__(self, run: WatchedRun) -> None:
        self.run = run
        self.ring = run.ring
        self._heard = -1
        self._copied = 0
        self._looked = -LOOK_EVERY

    @property
    def has_begun(self) -> bool:
        """Whether there is nothing to be done before the first step."""
        return self.ring is None or self.ring.off or self.ring.good is not None

    # -- decided on the host ----------------------------------------------------------------

    def begin(self, step: int, memory: Memory) -> bool:
        """Keep the state that the run begins with: there is no other to return to yet.

        Returns:
            Whether all ranks have one: if not they would not act alike.
        """
        if self.has_begun:
            return True
        live = self.run.live
        health = health_of(live.params(), live.state_tensors())  # resumed: there is a state
        finite = bool(health.isfinite().all())
        if not distributed.any_rank(not finite, self.run.process_group):
            self._take(step, memory, proven=True)
        return not distributed.any_rank(not self.has_begun, self.run.process_group)

    def keep_present(self, memory: Memory) -> None:
        """Count the present state as good: that of a checkpoint."""
        if self.ring is not None and self.ring.good is None:
            self._take(memory.counters["observed"], memory, proven=True)

    def after(self, decision: Decision, memory: Memory) -> None:
        """Take note of a step that was taken.

        Args:
            decision: carried out.
            memory: after the step.
        """
        run, ring, step = self.run, self.ring, decision.step + 1
        if ring is None or ring.off:
            return
        moved = not run.fingerprint
        if is_surprised(decision):
            self._drop_candidate()
        else:
            if ring.probation_ends():
                self._promote()
            if ring.is_due(step) and self._is_calm(memory):
                self._take(step, memory)
                moved = True
            elif ring.is_due(step) and abs(step - self._looked) >= LOOK_EVERY:
                self._look_at_state(step)
        run.fingerprint.remember(run.live.params() if moved else None, step)

    def _is_calm(self, memory: Memory) -> bool:
        policy = memory.policy
        return policy.alert <= CALM and policy.streak == 0.0 and self.run.state.high_since < 0

    def _take(self, step: int, memory: Memory, proven: bool = False) -> None:
        assert self.ring is not None
        memory.breaker = self.run.state
        notes = {
            "memory": memory.pack(len(self.run.live.base.param_groups)),
            "scale": memory.policy.scale,
        }
        if self.run.checkpoints is not None and not proven:
            self.run.checkpoints.note_rng(notes)
        self._agree(step, self.ring.take(step, memory.policy.level, notes, proven))

    def _look_at_state(self, step: int) -> None:
        """A state that is not finite need not show in the loss: Lion takes no step by it."""
        assert self.ring is not None
        self._looked = step
        finite = bool(health_of([], self.run.live.state_tensors()).isfinite().all())
        if distributed.any_rank(not finite, self.run.process_group):
            self.ring.reject()

    def _drop_candidate(self) -> None:
        """What was surprising may be in it already; if it is not finite, that is the proof."""
        ring = self.ring
        assert ring is not None
        group = self.run.process_group
        if ring.has_candidate and distributed.any_rank(not ring.is_finite(), group):
            ring.reject()
        else:
            ring.trouble()

    # -- decided on a GPU -------------------------------------------------------------------

    def begin_on_device(self, arrived: Decision | None) -> None:
        """Keep the state that a run on a GPU begins with; of several ranks none does."""
        ring, group = self.ring, self.run.process_group
        if ring is not None and distributed.ranks(group) > 1:
            ring.off = group is not False
        if ring is not None and not self.has_begun:
            ring.take(0 if arrived is None else arrived.step + 1, math.inf, {}, proven=True)

    def after_on_device(self, arrived: Decision | None, queued: int) -> None:
        """Take note of a step that was queued on a GPU.

        Args:
            arrived: the latest step known of.
            queued: steps so far, most of which have yet to be heard of.
        """
        ring = self.ring
        if ring is None or ring.off or arrived is None or arrived.step == self._heard:
            return
        self._heard = arrived.step
        if arrived.action == SKIP or is_surprised(arrived):
            ring.trouble()
            return
        # Word of a step that came before the copy says nothing of what is in it.
        if arrived.step >= self._copied and ring.probation_ends():
            self._promote()
        if ring.is_due(arrived.step + 1):
            self._copied = queued
            self._agree(arrived.step + 1, ring.take(arrived.step + 1, math.inf, {}))

    # -- both -------------------------------------------------------------------------------

    def last_sound(self) -> Snapshot | None:
        """The state to return to from weights that were changed just now, the same on all ranks."""
        good, ring = self.run.good, self.ring
        if ring is None or good is None or self.run.state.recent_rollbacks > 0.0:
            return good
        candidate = ring.sound_candidate()
        lacking = distributed.any_rank(candidate is None, self.run.process_group)
        return good if lacking else candidate

    def _promote(self) -> None:
        """Count the candidate, after enough healthy steps, as good."""
        assert self.ring is not None
        # All ranks keep it or none does: else they would not return to the same step.
        finite = not distributed.any_rank(not self.ring.is_finite(), self.run.process_group)
        good = self.ring.promote() if finite else self.ring.reject()
        if good is not None and self.run.checkpoints is not None:
            self.run.checkpoints.write(good)

    def _agree(self, step: int, interval: int | None) -> None:
        """Have all ranks take their next snapshot at the same step, and keep this one or not."""
        assert self.ring is not None
        failed = 1 << 40
        mine = failed if interval is None else interval
        slowest = distributed.largest(mine, self.run.process_group)
        if slowest == failed:
            self.ring.give_up_candidate(step)
        else:
            self.ring.postpone(slowest)


def is_surprised(decision: Decision) -> bool:
    """Whether the loss is higher than expected."""
    return decision.phi < 1.0 and decision.z > 0.0
