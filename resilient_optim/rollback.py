"""The way back: a rollback, and the trial of a good state that comes before it where in doubt.

Where it is open whether the weights or the data are at fault, the good state sees three batches. If
it does no better, it is the data. If it does, the present state sees three more: only if those are
still bad the run is rolled back; else the trouble has passed. In both other cases the run goes on
from where it was, bit for bit.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from . import breaker_rules as rules
from . import diagnosis, distributed
from .decision import ROLLBACK, SKIP, Decision
from .device_guard import packed
from .endings import Endings
from .memory import Memory
from .policy import DefaultConfig
from .policy_state import PolicyState
from .snapshot import Snapshot
from .watched_run import WatchedRun

log = logging.getLogger(__name__)

LR_CUT = 0.4
"""After a divergence no learning rate above this share of the present one counts as proven; the
policy's brake then approaches it by 1 % a step. A power of it if rollbacks follow each other."""


PURPOSE = " Whoever changes weights on purpose tells it by accept_weights()."

SHOWN_TO_GOOD = "shown a batch to a good state"
SHOWN_TO_PRESENT = "shown a batch to the present state once more"


class Outcome(NamedTuple):
    """What was done in place of a step.

    Attributes:
        decision: what `optimizer.last` is to be.
        memory: what ARS remembers from now on.
    """

    decision: Decision
    memory: Memory


class Trial(NamedTuple):
    """A good state that is to be tried on the batches of the present.

    Attributes:
        target: the good state.
        cause: what a rollback is called if it stands.
        limit: a median loss below this speaks for the good state.
        cut: whether learning rates are cut if the rollback stands.
        accepted: the policy's next state if it is the data: a new level; None to leave it alone.
    """

    target: Snapshot
    cause: str
    limit: float
    cut: bool
    accepted: PolicyState | None = None


@dataclass
class Probe:
    """A trial under way.

    Attributes:
        trial: what is tried.
        abandoned: the state that it is tried in place of.
        losses: seen so far by the state on trial.
        target_is_better: the good state has been tried; now it is the turn of the abandoned one.
    """

    trial: Trial
    abandoned: Snapshot
    losses: list[float] = field(default_factory=list)
    target_is_better: bool = False

    def add(self, decision: Decision) -> None:
        """Take note of a batch; without a finite loss and gradient it speaks against the state."""
        fine = decision.grad_norm is None or math.isfinite(decision.grad_norm)
        value = decision.loss if fine and math.isfinite(decision.loss) else math.inf
        self.losses.append(value)

    @property
    def is_good(self) -> bool:
        """Whether the state on trial does well on the batches it has seen."""
        return sorted(self.losses)[rules.PROBE_STEPS // 2] < self.trial.limit


class WayBack:
    """What is done with the snapshots of a run.

    Args:
        run: the run.
        endings: asked when there have been too many rollbacks.

    Attributes:
        probe: the trial under way, if any.
    """

    def __init__(self, run: WatchedRun, endings: Endings) -> None:
        self.run = run
        self.endings = endings
        self.forget()

    def forget(self) -> None:
        """Know of no trial, and of no earlier rollback."""
        self.probe: Probe | None = None
        self._causes: deque[str] = deque(maxlen=32)

    # -- trials -----------------------------------------------------------------------------

    def begin(self, trial: Trial, decision: Decision, memory: Memory) -> Outcome | None:
        """Put a good state in place of the present one, to see what losses it has.

        Args:
            trial: of which state, and what follows.
            decision: at which it was found to be called for.
            memory: before the step.

        Returns:
            What stands for the step; None if there is no memory for a trial.
        """
        run, ring = self.run, self.run.ring
        assert ring is not None
        ring.trouble()
        abandoned = ring.spare()
        failed = False
        try:
            abandoned.take(run.live, decision.step, math.inf, {})
        except (MemoryError, RuntimeError) as error:
            log.warning("ARS could not try the last good state: %s", error)
            failed = True
        if distributed.any_rank(failed, run.process_group):
            return None
        run.put_back(trial.target)
        self.probe = Probe(trial, abandoned)
        return self._wait(decision, memory)

    def go_on(self, decision: Decision, memory: Memory) -> Outcome:
        """One batch of a trial; the gradients of these steps are nobody's.

        Args:
            decision: holds step, loss and gradient norm.
            memory: before the step.

        Raises:
            TrainingDiverged: the good state is to be returned to, once too often.
        """
        probe = self.probe
        assert probe is not None
        shown = SHOWN_TO_PRESENT if probe.target_is_better else SHOWN_TO_GOOD
        outcome = self._judge(probe, decision, memory)
        self.endings.shown[shown] += outcome.decision.action == SKIP
        return outcome

    def _judge(self, probe: Probe, decision: Decision, memory: Memory) -> Outcome:
        run, ring = self.run, self.run.ring
        assert ring is not None
        probe.add(decision)
        if len(probe.losses) < rules.PROBE_STEPS:
            return self._wait(decision, memory)
        run.state = run.state._replace(next_trial=decision.step + rules.TRIAL_PAUSE)
        is_good, trial = probe.is_good, probe.trial
        if probe.target_is_better and not is_good:
            self._end_probe(probe)
            # Weights that grew out of all proportion were not grown by the learning rate.
            intact = probe.abandoned.is_finite and ring.is_intact(probe.abandoned.norms)
            cut = trial.cut and not distributed.any_rank(not intact, run.process_group)
            cause = trial.cause if cut else diagnosis.CORRUPTED_WEIGHTS
            return self.roll_back(decision, trial.target, memory, cause, cut)
        if not probe.target_is_better:
            run.put_back(probe.abandoned)
            if is_good:
                probe.target_is_better, probe.losses = True, []
                return self._wait(decision, memory)
        self._end_probe(probe)
        if not is_good:
            return self._blame_data(trial, decision, memory)
        return self._wait(decision, memory)  # trouble has passed

    def abort(self) -> None:
        """End a trial without a verdict: the present state is back."""
        if self.probe is not None:
            self.run.put_back(self.probe.abandoned)
            self._end_probe(self.probe)

    def _end_probe(self, probe: Probe) -> None:
        assert self.run.ring is not None
        self.run.ring.give_back(probe.abandoned)
        self.probe = None

    def _blame_data(self, trial: Trial, decision: Decision, memory: Memory) -> Outcome:
        """The good state does no better: the losses of before say little about these data."""
        run = self.run
        run.state = rules.blamed_on_data(run.state, decision.step)
        if trial.accepted is None:
            return self._wait(decision, memory)
        log.warning(
            "ARS takes the loss of step %d (%g) for a new level: the good state of step %d does no "
            "better on these batches. Look at the data; if they or the loss have been changed on "
            "purpose, say so by accept_level().", decision.step, decision.loss, trial.target.step,
        )  # fmt: skip
        memory.policy = trial.accepted
        memory.buffer.losses.clear()
        memory.counters["new_levels"] += not run.live.extra  # a guard on a GPU has counted it
        outcome = self._wait(decision, memory, "new level")
        return outcome._replace(decision=outcome.decision._replace(new_level=True))

    def _wait(self, decision: Decision, memory: Memory, reason: str = "probe") -> Outcome:
        """The step is left out."""
        told = _instead(decision, SKIP, reason)
        self.endings.recent.append(told)
        return Outcome(told, memory)

    # -- rollbacks --------------------------------------------------------------------------

    def roll_back(
        self, decision: Decision, target: Snapshot, memory: Memory, cause: str, cut: bool
    ) -> Outcome:
        """Return to a good state.

        Args:
            decision: at which it was found to be called for.
            target: the good state; an older one is taken if trouble has come back.
            memory: before the step.
            cause: in a few words.
            cut: whether learning rates are cut.

        Raises:
            TrainingDiverged: too many of them; the best state is in place then.
        """
        run, ring, state = self.run, self.run.ring, self.run.state
        assert ring is not None and ring.best is not None
        ring.trouble(soon=True)
        ring.found_corruption = False
        if state.recent_rollbacks > 0.0 and target is ring.good:
            # Trouble is back: what it comes from may be in the last good state, too.
            ring.drop_good()
            target = ring.best
            cut = cut or state.recent_rollbacks > 1.5
        self._causes.append(cause)
        run.put_back(target)
        if state.recent_rollbacks + 1.0 > run.budgets.rollbacks:
            likely = Counter(self._causes).most_common(1)[0][0]
            if likely not in (diagnosis.CORRUPTED_WEIGHTS, diagnosis.LEARNING_RATE):
                likely = diagnosis.BAD_DATA
            seen = f"the run went wrong again after each of {state.rollbacks} rollbacks."
            raise self.endings.given_up(likely, seen, decision, memory, target.step)
        recent = state.recent_rollbacks + 1.0
        run.state = state._replace(
            rollbacks=state.rollbacks + 1, recent_rollbacks=recent, high_since=-1, data_since=-1,
            same_gradients=0, top_norm=0.0, low_norms=0,
        )  # fmt: skip
        restored = _memory_of(target, memory)
        if cut and all(math.isfinite(lr) for lr in memory.lrs):
            restored.proven_lrs = [LR_CUT ** math.ceil(recent) * lr for lr in memory.lrs]
            # The first gradient has said that the rate is low enough, and that was wrong.
            steps = max(restored.policy.opening_steps, DefaultConfig.start_up)
            restored.policy = restored.policy._replace(opening_steps=steps)
        log.warning(
            "ARS rolled back from step %d to step %d: %s (loss %g)%s.%s",
            decision.step, target.step, cause, decision.loss,
            ", and approaches the learning rate slowly" if cut else "",
            PURPOSE if cause == diagnosis.CORRUPTED_WEIGHTS else "",
        )  # fmt: skip
        told = _instead(decision, ROLLBACK, cause)._replace(rolled_back_to=target.step)
        self.endings.recent.append(told)
        return Outcome(told, restored)


def _instead(decision: Decision, action: str, reason: str) -> Decision:
    """The verdict on a step that is not taken, on the evidence of another."""
    return Decision(
        decision.step, action, reason, decision.loss, decision.grad_norm, decision.z,
        decision.rho, decision.psi, phi=0.0, update_scale=0.0,
    )  # fmt: skip


def _memory_of(snapshot: Snapshot, present: Memory) -> Memory:
    """What was known of the run at a snapshot, with the counts of today."""
    extra = snapshot.tree()["extra"]
    arrays = packed(extra) if extra else snapshot.notes["memory"]
    restored = Memory.unpack(arrays, present.buffer.losses.capacity)
    restored.counters = present.counters
    restored.counters["rollbacks"] += 1
    restored.skips_in_a_row = present.skips_in_a_row
    return restored
