"""Ideas for the policy that were tried: each is ARS with one thing done differently.

They are compared with the default on the development split (``--tier ideas``), which is for
choosing; what they cost or bring is in results/README.md. None of them is what `ARS` does. They
lean on its private methods, and what they remember is not saved: they are experiments. Unless told
otherwise neither they nor the default beside them take snapshots: a trial of a good state would
stand between an idea and what it does at a new level.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from torch.optim import Optimizer

from resilient_optim import ARS, Snapshots
from resilient_optim.decision import APPLY, DAMP, QUIET, SKIP, Decision, Observation
from resilient_optim.loss_buffer import LossBuffer
from resilient_optim.policy import DefaultConfig
from resilient_optim.policy_state import PolicyState

FIRST_MOMENTS = ("exp_avg", "momentum_buffer")


def forget_momentum(optimizer: Any) -> None:
    """Zero the first moments of an optimizer; its second moments and step counters stay."""
    for state in optimizer.state.values():
        for name in FIRST_MOMENTS:
            if isinstance(state.get(name), torch.Tensor):
                state[name].zero_()


class AtNewLevel(ARS):
    """Does something more when a sustained surprise is accepted, before that very step is taken."""

    since: float = math.inf
    """Steps since a level was accepted."""

    def _decide(self, loss: float, norm: float | None) -> tuple[Decision, PolicyState]:
        decision, policy = super()._decide(loss, norm)
        if decision.new_level:
            self.since = 0
            self.accept()
        elif decision.action != SKIP:
            self.since += 1
        return self.afterwards(decision), policy

    def accept(self) -> None:
        """What is done at the new level."""

    def afterwards(self, decision: Decision) -> Decision:
        """What becomes of a decision, `since` steps after a new level."""
        return decision


class MomentumRefreshed(AtNewLevel):
    """Momentum is of the old data: begin it anew."""

    def accept(self) -> None:
        """Zero the first moments."""
        forget_momentum(self.base)


class MomentsRefreshed(AtNewLevel):
    """All moments are of the old data: begin them anew, with the bias correction."""

    def accept(self) -> None:
        """Drop the state; the optimizer makes a new one in its step."""
        for state in self.base.state.values():
            state.clear()


class Forgetful(AtNewLevel):
    """The second moment (of Lion: the momentum) forgets faster for a while."""

    span, beta2 = 50, 0.9
    usual: list[tuple[float, float]] | None = None

    def afterwards(self, decision: Decision) -> Decision:
        """Set the betas of this step."""
        groups = [group for group in self.base.param_groups if "betas" in group]
        if self.since < self.span and self.usual is None:
            self.usual = [group["betas"] for group in groups]
            for group in groups:
                group["betas"] = (group["betas"][0], self.beta2)
        elif self.since >= self.span and self.usual is not None:
            for group, betas in zip(groups, self.usual, strict=True):
                group["betas"] = betas
            self.usual = None
        return decision


class ReWarmed(AtNewLevel):
    """The update is ramped up again over a few steps."""

    span, floor = 10, 0.3

    def afterwards(self, decision: Decision) -> Decision:
        """Brake this step."""
        if self.since >= self.span or decision.action == SKIP:
            return decision
        brake = self.floor + (1.0 - self.floor) * self.since / self.span
        return braked(decision, brake)


def braked(decision: Decision, brake: float) -> Decision:
    """The decision with a smaller update."""
    scale = brake * decision.update_scale
    reason = "re-warm" if decision.reason == QUIET else decision.reason
    return decision._replace(action=DAMP, reason=reason, update_scale=scale)


def bounded(decision: Decision, scale: float) -> Decision:
    """The decision with another factor on the gradients; quiet if nothing is left of it."""
    decision = decision._replace(grad_scale=scale)
    return decision if decision.touched else decision._replace(action=APPLY, reason=QUIET)


class OwnDoing(ARS):
    """Asks of repeated surprises whether they are our own doing, and undoes that.

    They are ours if the learning rate is or was just now well above its usual, or if an outlier
    gradient came shortly before the first; a loss that jumps out of quiet is new data. Ours:
    momentum is made of bad steps, so it is begun anew and the update is braked for a while.
    """

    patience, span, floor = 3.0, 30, 0.1
    since, warned = math.inf, False

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.lrs: deque[float] = deque(maxlen=256)

    def _decide(self, loss: float, norm: float | None) -> tuple[Decision, PolicyState]:
        before = self._memory.policy
        if before.streak == 0.0:
            self.warned = before.alert > 0.5  # an outlier gradient in the last eight steps
        self.lrs.append(max(float(group["lr"]) for group in self.base.param_groups))
        decision, policy = super()._decide(loss, norm)
        self.since += 1
        if policy.streak >= self.patience and policy.streak > before.streak and self.ours():
            forget_momentum(self.base)
            self.since = 0
        if self.since >= self.span or decision.action == SKIP:
            return decision, policy
        brake = self.floor + (1.0 - self.floor) * self.since / self.span
        return braked(decision, brake), policy

    def ours(self) -> bool:
        """Whether the surprises are our own doing."""
        return self.warned or max(list(self.lrs)[-16:]) > 1.5 * median(self.lrs)


class OwnDoingUnbraked(OwnDoing):
    """The same without the brake: only the momentum is begun anew."""

    span = 0


Verdict = tuple[Decision, PolicyState]


class ShortHold(DefaultConfig):
    """Norms are held only while the gate opens."""

    def decide(self, state: PolicyState, buffer: LossBuffer, seen: Observation) -> Verdict:
        """End the phase in which norms are held as soon as the gate is open."""
        decision, after = super().decide(state, buffer, seen)
        return decision, after._replace(young_steps=-1) if after.open else after


class NoOpening(DefaultConfig):
    """Norms are held for 105 steps, the gate is open from the first."""

    def decide(self, state: PolicyState, buffer: LossBuffer, seen: Observation) -> Verdict:
        """Begin with an open gate; norms are held all the same."""
        return super().decide(state._replace(open=True), buffer, seen)


class LooseHold(DefaultConfig):
    """While young, norms are held to twice their reference."""

    slack = math.log(2.0)

    def decide(self, state: PolicyState, buffer: LossBuffer, seen: Observation) -> Verdict:
        """While young, a norm up to twice its reference is left alone."""
        decision, after = super().decide(state, buffer, seen)
        if decision.reason == "start-up" and seen.grad_norm and not math.isnan(state.log_norm):
            excess = max(0.0, math.log(seen.grad_norm) - state.log_norm - self.slack)
            decision = bounded(decision, min(1.0, math.exp(-excess)))
        return decision, after


class OpeningByNorm(DefaultConfig):
    """The gate opens faster while norms do not fall."""

    pace = 3

    def decide(self, state: PolicyState, buffer: LossBuffer, seen: Observation) -> Verdict:
        """The gate opens faster while the norm does not fall: the steps are small as yet."""
        decision, after = super().decide(state, buffer, seen)
        grows = seen.grad_norm and math.log(seen.grad_norm) > state.log_norm
        if grows and after.healthy == state.healthy + 1:
            healthy = state.healthy + self.pace
            opened = after.open or healthy >= after.opening_steps
            after = after._replace(healthy=healthy, open=opened)
        return decision, after


class LastingAlert(DefaultConfig):
    """Norms are held for longer after repeated outliers."""

    above, leak = 1.0, 1 / 64

    def decide(self, state: PolicyState, buffer: LossBuffer, seen: Observation) -> Verdict:
        """An alert that holds norms dies down four times more slowly."""
        decision, after = super().decide(state, buffer, seen)
        if self.above < after.alert < state.alert:
            after = after._replace(alert=state.alert - self.leak)
        return decision, after


class LastingFullAlert(LastingAlert):
    """The same, once at least three outliers have come together."""

    above = 2.0


class LooseAlert(DefaultConfig):
    """While the alert holds norms, one within its usual noise is left alone."""

    def decide(self, state: PolicyState, buffer: LossBuffer, seen: Observation) -> Verdict:
        """Hold norms to one noise scale above the reference; outliers to the reference itself."""
        decision, after = super().decide(state, buffer, seen)
        if decision.grad_scale < 1.0 and decision.abnormal_norm and state.young_steps < 0:
            excess = -math.log(decision.grad_scale)
            if excess <= self.norm_z * after.log_norm_sigma:
                decision = bounded(decision, math.exp(-max(0.0, excess - after.log_norm_sigma)))
        return decision, after


class AlertEnds(DefaultConfig):
    """A new level ends the alert."""

    def decide(self, state: PolicyState, buffer: LossBuffer, seen: Observation) -> Verdict:
        """A new level ends the alert: what is to be learned is not held back."""
        decision, after = super().decide(state, buffer, seen)
        return decision, after._replace(alert=0.0) if decision.new_level else after


class FreshReference(DefaultConfig):
    """A new level ends the alert and sets the reference."""

    def decide(self, state: PolicyState, buffer: LossBuffer, seen: Observation) -> Verdict:
        """A new level ends the alert, and its gradient norm is the new reference."""
        decision, after = super().decide(state, buffer, seen)
        if decision.new_level and seen.grad_norm:
            after = after._replace(alert=0.0, log_norm=math.log(seen.grad_norm))
        return decision, after


class OpenAtOnce(DefaultConfig):
    """The gate is open from the first step, as for runs that warm up by themselves."""

    def decide(self, state: PolicyState, buffer: LossBuffer, seen: Observation) -> Verdict:
        """Take every run for one that warms up by itself; norms are held all the same."""
        return super().decide(state, buffer, seen._replace(own_warmup=True))


class OpeningForAll(DefaultConfig):
    """Runs whose steps are signs are opened step by step like any other, as they once were."""

    def decide(self, state: PolicyState, buffer: LossBuffer, seen: Observation) -> Verdict:
        """Hear nothing of it (no run of the suite that this is for warms up by itself)."""
        return super().decide(state, buffer, seen._replace(own_warmup=False))


def make(kind: str, optimizer: Optimizer, every: int | None = None, **settings: Any) -> ARS:
    """Build an idea round an optimizer.

    Args:
        kind: Name of a class above: ARS with other acts, or its config with other rules.
        optimizer: The base optimizer.
        every: Steps from one snapshot to the next; None: without snapshots.
        **settings: As of `ARS`.
    """
    found: Any = globals()[kind]
    settings["snapshot"] = every is not None and Snapshots(every=every)
    if issubclass(found, ARS):
        acts: ARS = found(optimizer, **settings)
        return acts
    ruled = ARS(optimizer, **settings)
    ruled.config = found(**asdict(ruled.config))
    return ruled
