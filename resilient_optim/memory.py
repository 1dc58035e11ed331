"""Everything ARS remembers between steps, in one place and as one array of numbers.

One float64 array of fixed shape survives every checkpoint format, `weights_only` loading included.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .breaker_rules import BreakerState
from .decision import QUIET, ROLLBACK, SKIP, Decision
from .gates import MIN_HISTORY, WARMUP_RISE
from .loss_buffer import Array, LossBuffer
from .policy_state import PolicyState

STATE_KEY = "ars"
"""Key of the packed memory in every param group, which all checkpoint formats keep."""

VERSION = 5.0

HEADER = 4
"""Numbers before the policy's in the packed memory: the version and three sizes."""

COUNTERS = (
    "observed",
    "unobserved",
    "touched",
    "skipped",
    "nonfinite",
    "damped",
    "bounded",
    "jittered",
    "new_levels",
    "rollbacks",
)


def zero_counters() -> Counter[str]:
    """Every counter at zero."""
    return Counter(dict.fromkeys(COUNTERS, 0))


@dataclass
class Memory:
    """What ARS knows of its run.

    Attributes:
        buffer: recent losses and gradient norms.
        policy: what the policy remembers besides.
        counters: how often ARS did what.
        skips_in_a_row: steps left out since the last one taken, or since the last rollback.
        first_lrs: each param group's learning rate at its first step.
        proven_lrs: the largest that each param group has taken a step with, or that a scheduler of
            torch found in it (its `initial_lr`); 0 before.
        lrs: those of the latest step; `lr_ratios`, `lr_ratio` (the largest) and `lrs_proven` say
            how they compare.
    """

    buffer: LossBuffer
    policy: PolicyState
    counters: Counter[str] = field(default_factory=zero_counters)
    skips_in_a_row: int = 0
    first_lrs: list[float] = field(default_factory=list)
    proven_lrs: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    lrs_proven: bool = False
    lr_ratios: list[float] = field(default_factory=list)
    lr_ratio: float = 1.0
    breaker: BreakerState = BreakerState()

    def pack(self, groups: int) -> list[Array]:
        """The memory as float64, an array for each param group.

        Version, sizes, scalars, then losses and norms padded with NaN, then what the circuit
        breaker remembers; all equal but for the last two entries, the group's own first and proven
        learning rates.

        Args:
            groups: number of param groups.
        """
        sizes = [self.buffer.losses.capacity, len(PolicyState._fields), len(COUNTERS)]
        counts = [self.counters[name] for name in COUNTERS]
        scalars = [VERSION, *sizes, *self.policy, *counts, self.skips_in_a_row]
        windows = self.buffer.losses.padded(), self.buffer.log_norms.padded()
        common = np.concatenate([np.array(scalars, dtype=np.float64), *windows, self.breaker])
        lrs = list(zip(self.first_lrs, self.proven_lrs, strict=True))
        unknown = [(math.nan, math.nan)] * (groups - len(lrs))
        return [np.append(common, pair) for pair in [*lrs, *unknown]]

    def remember(self, decision: Decision) -> None:
        """Count a step and record what may be learned from: never a skipped step's values."""
        counters = self.counters
        counters["observed"] += 1
        if decision.action in (SKIP, ROLLBACK):
            counters["touched"] += 1
            counters["skipped"] += decision.action == SKIP
            counters["nonfinite"] += decision.reason.startswith("non-finite")
            # A rollback is a new start: it has a budget of its own.
            self.skips_in_a_row = 0 if decision.action == ROLLBACK else self.skips_in_a_row + 1
            return
        self.skips_in_a_row = 0
        self.prove_lrs(decision)
        norm = decision.grad_norm
        # A constant in place of the loss gives no gradient, and would be taken for the level.
        stands_still = norm == 0.0 and decision.loss == self.buffer.losses.newest
        if decision.reason != QUIET:
            counters["touched"] += decision.touched
            counters["damped"] += decision.phi < 1.0
            counters["bounded"] += decision.grad_scale != 1.0 and not decision.as_published
            counters["jittered"] += decision.chi != 0.0
            counters["new_levels"] += decision.new_level
            if decision.new_level:
                self.buffer.losses.clear()
            norm = None if decision.abnormal_norm else norm
        if not stands_still:
            self.buffer.append(decision.loss, norm)

    def see_lrs(self, groups: list[dict[str, Any]]) -> None:
        """Take note of the learning rates of a step; a group that is new is remembered with its."""
        lrs = [float(group.get("lr") or 0.0) for group in groups]
        if lrs == self.lrs:  # nearly always, and this is on the path of every step
            return
        if not all(math.isfinite(lr) for lr in lrs):
            self.lrs, self.lr_ratio = lrs, math.nan  # and nothing is learned from it
            return
        self.first_lrs += lrs[len(self.first_lrs) :]
        self.proven_lrs += [initial_lr(group) for group in groups[len(self.proven_lrs) :]]
        self.lrs = lrs
        self.lrs_proven = False
        self._compare_lrs()

    def prove_lrs(self, decision: Decision) -> None:
        """Note that a step was taken as decided, with the learning rates seen."""
        if self.lrs_proven:
            return
        scales = decision.group_scales(len(self.lrs))
        taken = [scale * lr for scale, lr in zip(scales, self.lrs, strict=True)]
        self.proven_lrs = [max(pair) for pair in zip(self.proven_lrs, taken, strict=True)]
        self.lrs_proven = all(a >= b for a, b in zip(self.proven_lrs, self.lrs, strict=True))
        self._compare_lrs()

    def _compare_lrs(self) -> None:
        pairs = zip(self.lrs, self.proven_lrs, strict=True)
        self.lr_ratios = [lr / proven if proven else 1.0 for lr, proven in pairs]
        self.lr_ratio = max(self.lr_ratios, default=1.0)

    @property
    def common_lr(self) -> float:
        """The learning rate of all param groups; 0 if they differ."""
        return self.lrs[0] if len(set(self.lrs)) == 1 else 0.0

    def notices_warmup(self) -> bool:
        """Whether the run warms up by itself: each group's learning rate is well above its first.

        Half as much again, so that no rounding, restart or decaying schedule looks like a warm-up.
        Until it shows, the gate slows only steps that the warm-up keeps small anyway.
        """
        if len(self.first_lrs) < len(self.lrs):  # none of a group's was finite yet
            return False
        pairs = zip(self.lrs, self.first_lrs, strict=True)
        return all(lr > WARMUP_RISE * first for lr, first in pairs)

    def forget_levels(self) -> None:
        """Have no idea of what loss and gradient norm are usual; a start-up phase goes on."""
        self.buffer = LossBuffer(self.buffer.losses.capacity)
        self.policy = self.policy.without_levels()

    @property
    def at_new_level(self) -> bool:
        """Whether a new level was accepted of which little is known yet."""
        return self.counters["new_levels"] > 0 and len(self.buffer.losses) < MIN_HISTORY

    @classmethod
    def saved_in(cls, groups: list[dict[str, Any]], capacity: int) -> Memory | None:
        """The memory in live param groups, if it is in all of them."""
        packed = [group.get(STATE_KEY) for group in groups]
        found = [tensor.cpu().numpy() for tensor in packed if tensor is not None]
        if not found or len(found) < len(packed):
            return None
        return cls.unpack(found, capacity)

    @classmethod
    def unpack(cls, groups: list[Array], capacity: int) -> Memory:
        """The memory that `pack` wrote for each param group.

        A buffer of another capacity takes the newest values.
        """
        window, n_policy, n_counters = (int(n) for n in groups[0][1:4])
        sizes = [n_policy, n_counters, 1, window, window, len(BreakerState._fields)]
        policy, counts, skips, losses, log_norms, breaker, _ = np.split(
            groups[0][HEADER:], np.cumsum(sizes).tolist()
        )
        buffer = LossBuffer(capacity)
        buffer.losses.restore(losses)
        buffer.log_norms.restore(log_norms)
        return cls(
            buffer,
            PolicyState.of(policy.tolist()),
            Counter({name: int(n) for name, n in zip(COUNTERS, counts, strict=True)}),
            skips_in_a_row=int(skips[0]),
            first_lrs=[float(packed[-2]) for packed in groups if packed[-2] == packed[-2]],
            proven_lrs=[float(packed[-1]) for packed in groups if packed[-1] == packed[-1]],
            breaker=BreakerState.of(breaker.tolist()),
        )


def initial_lr(group: dict[str, Any]) -> float:
    """The learning rate that the user gave a group, if a scheduler has taken it over; else 0.

    A warm-up that reaches it in a few large steps does what was asked for.
    """
    lr = float(group.get("initial_lr") or 0.0)
    return lr if math.isfinite(lr) else 0.0


def check_version(groups: list[dict[str, Any]]) -> None:
    """Raise a ValueError if the param groups hold a memory that this version cannot read."""
    packed = groups[0].get(STATE_KEY) if groups else None
    if packed is not None and packed[0] != VERSION:
        raise ValueError(
            f"ARS state must be of version {VERSION:g}, got {float(packed[0]):g}; "
            "load it with the version of resilient_optim that wrote it"
        )
