"""The circuit breaker: what is done when leaving out steps is not enough.

It rolls back to the last sound state when the weights are corrupted, tries that state when it is
open whether weights or data are at fault, and stops with a diagnosis when its budgets are spent.
"""

from __future__ import annotations

import math

import numpy as np

from . import breaker_rules as rules
from . import diagnosis, distributed, statistics
from .decision import QUIET, SKIP, Decision
from .diagnosis import NONFINITE_LR
from .endings import Endings
from .fingerprint import GradientFingerprint
from .keeper import Keeper, is_surprised
from .loss_buffer import Array
from .memory import Memory
from .policy import SUMMARY_EVERY
from .policy_state import PolicyState
from .rollback import Outcome, Trial, WayBack
from .snapshot import Snapshot
from .snapshot_norms import norms_of
from .watched_run import WatchedRun


class Breaker:
    """Watches the decisions of a run, and has its parts act on them.

    Args:
        run: what its parts share.

    Attributes:
        keeper: takes the snapshots.
        way_back: rolls back, and tries good states.
        endings: gives up.
    """

    def __init__(self, run: WatchedRun) -> None:
        self.run = run
        self.ring = run.ring
        self.checkpoints = run.checkpoints
        self.keeper = Keeper(run)
        self.endings = Endings(run)
        self.way_back = WayBack(run, self.endings)
        self._gradient = GradientFingerprint()
        self._minds_stuck = run.budgets.stuck_steps < math.inf

    def __reduce__(self) -> tuple[type[Breaker], tuple[WatchedRun]]:
        return Breaker, (self.run,)  # a copy takes snapshots of its own: its parts are new

    def forget(self) -> None:
        """Drop what belongs to the tensors of another moment: they have been replaced."""
        for part in (self.run, self.endings, self.way_back, self._gradient):
            part.forget()

    # -- before a step ----------------------------------------------------------------------

    def review(
        self, decision: Decision, policy: PolicyState, memory: Memory, changed: bool
    ) -> Outcome | None:
        """Look at a decision before it is carried out.

        Args:
            decision: the policy's.
            policy: its next state.
            memory: before the step.
            changed: whether somebody changed the weights since the last step.

        Returns:
            What was done in place of the step; None if it is to be taken as decided.

        Raises:
            TrainingDiverged: a budget is spent.
        """
        if not changed and self._is_unremarkable(decision, memory):
            self.run.pass_quietly(decision.grad_norm)
            return None
        self._count(decision, memory, changed)
        self._begin(decision, memory)
        if decision.step <= rules.OPENING_STEPS:
            self.run.state = rules.opened(self.run.state, decision.grad_norm)
        if decision.reason != QUIET:
            self.endings.recent.append(decision)
        if self._is_corrupted(decision, memory, changed):
            sound, cause = self.keeper.last_sound(), diagnosis.CORRUPTED_WEIGHTS
            if sound is not None and self._fits(sound):
                return self.way_back.roll_back(decision, sound, memory, cause, cut=False)
        outcome = self._turn_to_good_state(decision, policy, memory)
        if outcome is None:
            self.endings.check(decision, memory)
        return outcome

    def _is_unremarkable(self, decision: Decision, memory: Memory) -> bool:
        """Whether a step only has to be counted: in a healthy run seven of eight."""
        return (
            decision.reason == QUIET
            and decision.step % SUMMARY_EVERY != 0
            and decision.step > rules.OPENING_STEPS
            and (decision.grad_norm != self.run.last_norm or not self._minds_stuck)
            and not memory.lr_ratio > rules.WILD_LR
            and not self.run.needs_look()
        )

    def _count(self, decision: Decision, memory: Memory, changed: bool) -> None:
        run, norm, top_lr = self.run, decision.grad_norm, max(memory.lrs, default=0.0)
        same = norm is not None and norm == run.state.last_norm and self._minds_stuck
        if same and norm is not None:
            params = [p for group in run.live.base.param_groups for p in group["params"]]
            same = self._gradient.is_the_same(norm, params) and top_lr != 0.0
        wild = memory.lr_ratio > rules.WILD_LR and top_lr > rules.LARGE_LR
        skipped = decision.action == SKIP
        run.state = rules.counted(run.state, skipped, norm, same, wild, changed)

    def _begin(self, decision: Decision, memory: Memory) -> None:
        """Note the first loss, and keep the state that the run begins with."""
        run = self.run
        if math.isnan(run.state.first) and math.isfinite(decision.loss):
            run.state = run.state._replace(first=decision.loss)
        if self.ring is not None and not self.keeper.begin(decision.step, memory):
            self.forget()
            self.ring.off = True

    def _fits(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot is of the parameters there are; forgets all of them if not."""
        fits = self.run.fits(snapshot)
        if not fits:
            self.forget()
        return fits

    # -- corruption -------------------------------------------------------------------------

    def _is_corrupted(self, decision: Decision, memory: Memory, changed: bool) -> bool:
        """Whether the weights have to be taken for wrong: by suspicion or by proof."""
        if self.ring is not None and self.ring.found_corruption:
            return True
        on_purpose = self.run.state.habit >= rules.HABIT_MAX
        if changed and not on_purpose and _suffers(decision, memory.buffer.losses.values):
            return True
        blind = _is_blind(decision)
        surprised = is_surprised(decision) or decision.new_level
        # Nobody means weights that grow out of all proportion; it takes a norm of each to see it.
        may_have_grown = changed and (not on_purpose or decision.loss > self.run.state.first)
        if not (blind or may_have_grown or (surprised and decision.action == SKIP)):
            return False
        if distributed.any_rank(not self._is_intact(), self.run.process_group):
            return True
        if blind and self.run.good is not None:
            self._mend_buffers(self.run.good)
        return False

    def _is_intact(self) -> bool:
        """Whether the weights may be what training made of them; if not, that is the proof."""
        norms = norms_of(self.run.live.params()).cpu().numpy()
        return bool(np.isfinite(norms).all()) and (self.ring is None or self.ring.is_intact(norms))

    def _mend_buffers(self, good: Snapshot) -> None:
        """A batch that is left out has still written to them."""
        if self.run.live.mend_buffers(good.tree()):
            assert self.ring is not None
            self.ring.trouble()

    # -- weights or data? -------------------------------------------------------------------

    def _turn_to_good_state(
        self, decision: Decision, policy: PolicyState, memory: Memory
    ) -> Outcome | None:
        """Try a good state if it is open whether data or weights are at fault, or return to it."""
        ring = self.ring
        if ring is None or ring.good is None or ring.best is None:
            return None
        if decision.new_level:
            trial = self._trial_of_level(ring.good, decision, policy, memory)
        elif _is_blind(decision) and memory.skips_in_a_row + 1 == rules.NONFINITE_PROBE:
            trial = Trial(ring.good, diagnosis.CORRUPTED_WEIGHTS, math.inf, cut=False)
        elif self._began_with_outlier(ring.best, decision, policy):
            cause = "outlier at the start"
            return self.way_back.roll_back(decision, ring.best, memory, cause, cut=False)
        else:
            trial = self._trial_of_divergence(ring.best, decision.step, memory)
        if trial is None or not self._fits(trial.target):
            return None
        return self.way_back.begin(trial, decision, memory)

    def _trial_of_level(
        self, good: Snapshot, decision: Decision, policy: PolicyState, memory: Memory
    ) -> Trial | None:
        """The policy takes a surprise that stays for the new level: has it come with the data?"""
        state = self.run.state
        recent = self.endings.recent
        surprises = [d.loss for d in recent if d.reason in ("surprise", "new level")]
        high = min(decision.loss, statistics.median(np.array(surprises[-8:])))
        # On a GPU the level has been accepted by the time that its word arrives.
        level = memory.policy.level if math.isfinite(memory.policy.level) else good.level
        if decision.step < state.next_trial or high - level < rules.NEGLIGIBLE * state.learned:
            return None
        return Trial(good, diagnosis.LEARNING_RATE, (level + high) / 2, cut=True, accepted=policy)

    def _began_with_outlier(self, best: Snapshot, decision: Decision, policy: PolicyState) -> bool:
        """Whether the first gradient norms were out of all proportion, as those after them tell.

        And whether they did harm: the loss has not fallen since, or the very first one, the only
        one that is held to no reference, is in moments that last.
        """
        state, norm = self.run.state, decision.grad_norm
        late = decision.step > rules.OPENING_STEPS or best.step > 0
        if late or state.low_norms < rules.PROBE_STEPS or not norm:
            return False
        was_first = policy.log_norm > math.log(rules.HINDSIGHT * norm)
        return not decision.loss < state.first or (was_first and self.run.live.remembers_long())

    def _trial_of_divergence(self, best: Snapshot, step: int, memory: Memory) -> Trial | None:
        """The loss has been too high for long: since the beginning, or since the best level."""
        state, losses, level = self.run.state, memory.buffer.losses.values, memory.policy.level
        if step == rules.OPENING_STEPS and best.step == 0 and rules.began_badly(state, losses):
            limit = (state.first + statistics.median(losses[-8:])) / 2
        elif (
            step % SUMMARY_EVERY == 0
            and step >= state.next_trial
            and rules.has_diverged(state, step, losses, level)
        ):
            limit = (state.best + level) / 2
        else:
            return None
        return Trial(best, diagnosis.LEARNING_RATE, limit, cut=True)

    # -- after a step -----------------------------------------------------------------------

    def after(self, decision: Decision, memory: Memory) -> None:
        """Take note of a step that was taken.

        Args:
            decision: carried out.
            memory: after the step.
        """
        step = decision.step + 1
        if step % SUMMARY_EVERY == 0:
            self._watch(step, memory)
        self.keeper.after(decision, memory)

    def _watch(self, step: int, memory: Memory) -> None:
        run, policy = self.run, memory.policy
        if not rules.is_frozen(memory.buffer.losses.values, policy.level):
            run.state = rules.watched(run.state, step, policy.level, policy.scale)

    def pass_over(self, steps: int) -> None:
        """Take note of steps on a GPU that nothing is to be said of."""
        if steps:
            self.run.state = rules.passed(self.run.state, min(steps, rules.SHARE_SPAN), math.nan)


def _is_blind(decision: Decision) -> bool:
    """Whether loss or gradient are not finite, and not for the learning rate's sake."""
    return decision.reason.startswith("non-finite") and decision.reason != NONFINITE_LR


def _suffers(decision: Decision, losses: Array) -> bool:
    """Whether the loss is the worse for something, so that who wrote to the weights is suspect."""
    shocked = _is_blind(decision) or is_surprised(decision) or decision.new_level
    return shocked or rules.stands_out(losses, decision.loss)
