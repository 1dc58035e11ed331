"""When to give up, and what to say then."""

from __future__ import annotations

import logging
from collections import Counter, deque

import numpy as np

from . import breaker_rules as rules
from . import diagnosis, distributed
from .actuation import local_gradient
from .decision import SKIP, Decision
from .diagnosis import NONFINITE_LR, TrainingDiverged
from .memory import Memory
from .policy import SUMMARY_EVERY
from .snapshot_norms import Norms, norms_of
from .watched_run import WatchedRun

log = logging.getLogger(__name__)


class Endings:
    """Keeps to the budgets of a run, and knows what happened to it lately.

    Args:
        run: the run.

    Attributes:
        recent: the latest decisions that were not quiet, oldest first.
        shown: of the steps left out, how many were a trial of which state.
    """

    def __init__(self, run: WatchedRun) -> None:
        self.run = run
        self.forget()

    def forget(self) -> None:
        """Know nothing of what happened."""
        self.recent: deque[Decision] = deque(maxlen=32)
        self.shown: Counter[str] = Counter()
        self._ended_at: int | None = None

    def check(self, decision: Decision, memory: Memory) -> None:
        """Give up if a budget is spent.

        Args:
            decision: that is about to be carried out.
            memory: before the step.

        Raises:
            TrainingDiverged: a budget is spent.
        """
        if decision.action == SKIP:
            self._check_skips(decision, memory)
        if decision.step % SUMMARY_EVERY:
            return
        state, budgets, level = self.run.state, self.run.budgets, memory.policy.level
        losses = memory.buffer.losses.values
        if rules.is_stuck(state, losses, budgets.stuck_steps):
            seen = f"the gradient (norm {decision.grad_norm:g}) was the same to the bit in each of "
            seen += f"the last {state.same_gradients} steps, while the loss went up and down."
            raise self.given_up(diagnosis.STUCK_GRADIENT, seen, decision, memory)
        if rules.has_wild_lr(state):
            seen = "for many steps a learning rate has been more than ten thousand times the "
            seen += "largest that the run has been through."
            raise self.given_up(diagnosis.LEARNING_RATE, seen, decision, memory)
        if rules.is_hopeless(state, decision.step, losses, level, budgets.fruitless):
            self._give_up_on_data(level, decision, memory)

    def _give_up_on_data(self, level: float, decision: Decision, memory: Memory) -> None:
        """Nothing was learned from the latest data, and what was known before is put back."""
        state, ring = self.run.state, self.run.ring
        if ring is None or ring.best is None or not self.run.fits(ring.best):
            return  # what the trial was of is gone
        self.run.put_back(ring.best)
        seen = f"the loss is {level:g}, after {state.data_best:g} at its best; the last good state "
        seen += f"had no better one on these data, and in {decision.step - state.data_since} steps "
        seen += "nothing was learned from them. (A loss that means something else from one step on "
        seen += "has to be told by accept_level().)"
        raise self.given_up(diagnosis.BAD_DATA, seen, decision, memory, ring.best.step)

    def _check_skips(self, decision: Decision, memory: Memory) -> None:
        in_a_row = memory.skips_in_a_row + 1
        share, budgets = self.run.state.skip_share, self.run.budgets
        if in_a_row < budgets.skips_in_a_row and share <= budgets.skip_share:
            return
        cause, why = self.cause_of_skips()
        causes = list(diagnosis.REMEDIES)  # all ranks name the same
        cause = causes[distributed.largest(causes.index(cause), self.run.process_group)]
        seen = f"{in_a_row} steps in a row were left out, this one included, and "
        seen += f"{100 * share:.0f} % of the last {rules.SHARE_SPAN} or so{why}."
        raise self.given_up(cause, seen, decision, memory)

    def cause_of_skips(self) -> tuple[str, str]:
        """What most of the skipped steps had in common, and the parameters it was found in."""
        reasons = Counter(d.reason for d in self.recent if d.reason.startswith("non-finite"))
        reason = reasons.most_common(1)[0][0] if reasons else ""
        if reason == NONFINITE_LR:
            return diagnosis.LEARNING_RATE, ": a learning rate is not finite"
        live = self.run.live
        params = norms_of(live.params()).cpu().numpy()
        if not np.isfinite(params).all():
            named = diagnosis.wrong_parameters(params, live.names(), self._history())
            return diagnosis.CORRUPTED_WEIGHTS, f": weights are not finite in {named}"
        if reason == "non-finite gradient":
            grads = [local_gradient(p) for g in live.base.param_groups for p in g["params"]]
            norms = norms_of(grads).cpu().numpy()
            named = diagnosis.wrong_parameters(norms, live.names(), [])
            return diagnosis.BAD_GRADIENT, f": the loss is finite, but not the gradient of {named}"
        seen = "the loss is not finite" if reason else "their losses are out of line"
        return diagnosis.BAD_DATA, f": {seen}, though the weights are finite"

    def _history(self) -> list[tuple[int, Norms]]:
        ring = self.run.ring
        kept = [] if ring is None else [ring.best, ring.good]
        return [(s.step, s.norms) for s in dict.fromkeys(kept) if s is not None]

    def given_up(
        self,
        cause: str,
        seen: str,
        decision: Decision,
        memory: Memory,
        rolled_back_to: int | None = None,
    ) -> TrainingDiverged:
        """The exception that ends the run; its counts are those of the steps before.

        Args:
            cause: see `diagnosis.diverged`.
            seen: likewise.
            decision: that is not carried out.
            memory: before the step.
            rolled_back_to: see `TrainingDiverged`.
        """
        if self._ended_at != decision.step:  # a run that goes on meets its end again and again
            log.error("ARS gives up at step %d: %s", decision.step, cause)
        self._ended_at = decision.step
        if self.recent and self.recent[-1] is decision:
            self.recent.pop()  # what raises has not happened
        skipped = memory.counters["skipped"] - self.shown.total()
        tried = Counter({"rolled back": self.run.state.rollbacks, "skipped": skipped}) + self.shown
        latest = {d.step: d for d in [*self.recent, decision]}  # a trial begins with a bad step
        finite = bool(norms_of(self.run.live.params()).isfinite().all())
        finite = not distributed.any_rank(not finite, self.run.process_group)
        weights = diagnosis.weights_left(rolled_back_to, finite, self.run.good is not None)
        recent = list(latest.values())[-5:]
        return diagnosis.diverged(cause, seen, decision, recent, tried, weights, rolled_back_to)
