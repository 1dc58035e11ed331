"""Who is measured, and in which state: each brought into it on purpose and checked at every step.

Losses are given, not computed: they decide the state, and all methods of one state see the same.
The peers are those of the suite, through its recipes, whose own bookkeeping takes under a
microsecond. StabilityGuard's backward hooks and ARC's checks of the loss are at work; the hooks
only in a case that has a backward pass.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nanogpt_demo.bench.cases import LR, SEED
from nanogpt_demo.methods import MAX_NORM
from nanogpt_demo.suite import peers
from nanogpt_demo.suite.peers_packages import ArcGuarded, StabilityGuarded, ZClipped
from resilient_optim import ARS, Budgets, Decision
from resilient_optim.kernels import Noise, scale_and_jitter_

ADAMW = ("adamw-fused", "adamw-foreach")

JITTER = 0.1
"""Noise, in units of each tensor's gradient RMS."""

_noise = random.Random(SEED)
_STEADY = [2.0 + _noise.uniform(-0.1, 0.1) for _ in range(997)]

Losses = Callable[[int], float]


def steady(step: int) -> float:
    """Noise about a level: nothing that any method should answer to."""
    return _STEADY[step % len(_STEADY)]


def rising(step: int) -> float:
    """A loss that rises for good, so that every one is a surprise."""
    return steady(step) + 0.1 * step


def oscillating(step: int) -> float:
    """Period 2, the pattern that lowers the entropy guard."""
    return 2.0 + step % 2


@dataclass
class Subject:
    """A method attached to a model.

    Attributes:
        step: the call that is timed.
        in_state: whether the last step was of the kind to be measured.
        close: frees what the method holds.
        ars: the ARS, if it is one.
    """

    step: Callable[[Tensor], Any]
    in_state: Callable[[], bool] = lambda: True
    close: Callable[[], None] = lambda: None
    ars: ARS | None = None


Attach = Callable[[nn.Module, Optimizer], Subject]


@dataclass(frozen=True)
class Variant:
    """A method in a state.

    Attributes:
        method: its name.
        state: which kind of step; "any" where all steps are alike.
        attach: puts it round an optimizer.
        losses: what it is given, by step.
        warmup: steps before the measurement, until it does its full work.
        bases: the base optimizers it can be measured on; none means all.
    """

    method: str
    state: str
    attach: Attach
    losses: Losses = steady
    warmup: int = 3
    bases: tuple[str, ...] = ()


def _bare(model: nn.Module, optimizer: Optimizer) -> Subject:
    return Subject(lambda loss: optimizer.step())


def _clipped(model: nn.Module, optimizer: Optimizer) -> Subject:
    parameters = list(model.parameters())

    def step(loss: Tensor) -> None:
        nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()

    return Subject(step)


def _noise_alone(model: nn.Module, optimizer: Optimizer) -> Subject:
    """What noise takes at the least: the gradients read for their norms and again to add it."""
    noise, number = Noise(SEED), count()

    def step(loss: Tensor) -> None:
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        scale_and_jitter_(grads, 1.0, JITTER, noise, next(number))
        optimizer.step()

    return Subject(step)


def _untouched(recipe: Callable[[nn.Module, Optimizer], Any]) -> Attach:
    """A peer's recipe, which has to leave every step as it is."""

    def attach(model: nn.Module, optimizer: Optimizer) -> Subject:
        made = recipe(model, optimizer)
        close = getattr(made, "close", lambda: None)
        return Subject(made.step, lambda: not made.touched, close)

    return attach


def _spam(model: nn.Module, optimizer: Optimizer) -> Subject:
    """In place of AdamW: the optimizer given is left alone."""
    return Subject(peers.build("spam", model, "adamw", LR, SEED).step)


def _ars(is_so: Callable[[Decision], bool], **settings: Any) -> Attach:
    def attach(model: nn.Module, optimizer: Optimizer) -> Subject:
        # Without snapshots: all methods share one set of parameters here, see `snapshot_cost`.
        # The gradients are the same in all steps.
        patient = Budgets(stuck_steps=math.inf)
        ars = ARS(optimizer, snapshot=False, budgets=patient, **settings)
        return Subject(ars.step, lambda: ars.last is not None and is_so(ars.last), ars=ars)

    return attach


def _quiet(last: Decision) -> bool:
    return last.reason == "quiet"


def _bounded(last: Decision) -> bool:
    return last.grad_scale < 1.0 and last.update_scale == 1.0 and last.chi == 0.0


def _damped(last: Decision) -> bool:
    return last.action == "damp" and last.update_scale < 1.0 and last.grad_scale == 1.0


def _jittered(last: Decision) -> bool:
    return last.action == "apply" and last.chi > 0.0


def _published(last: Decision) -> bool:
    return last.phi < 1.0


BARE = Variant("bare", "any", _bare)

VARIANTS = (
    BARE,
    Variant("clip", "any", _clipped),
    Variant("zclip", "quiet", _untouched(ZClipped), warmup=26),
    Variant("arc", "quiet", _untouched(ArcGuarded), warmup=51),
    Variant("stabilityguard", "quiet", _untouched(StabilityGuarded), warmup=11),
    Variant("spam", "any", _spam, warmup=21, bases=ADAMW),
    Variant("ars no norm guard", "quiet", _ars(_quiet, start_up=0, norm_guard=False)),
    Variant("ars", "quiet", _ars(_quiet, start_up=0)),
    # The bound is below any gradient norm of the cases.
    Variant("ars", "bounded", _ars(_bounded, start_up=0, max_norm=1e-3)),
    # A gate too flat to leave a step out, a surprise that is never accepted as the new level.
    Variant(
        "ars", "damped",
        _ars(_damped, start_up=0, z_threshold=1.0, alpha=1e-4, patience=10**9,
             alert_threshold=float("inf")),
        rising,
    ),
    Variant("ars", "jittered", _ars(_jittered, start_up=0, jitter_scale=JITTER), oscillating),
    Variant("noise alone", "any", _noise_alone, bases=("adamw-fused", "sgd-fused")),
    Variant("ars-paper", "damped", _ars(_published, preset="paper")),
)  # fmt: skip


def variants_for(base: str) -> list[Variant]:
    """The variants that can be measured on a base optimizer."""
    return [variant for variant in VARIANTS if not variant.bases or base in variant.bases]


def as_loss(value: float, device: torch.device) -> Tensor:
    """A loss as training gives it: a 0-d tensor on the device."""
    return torch.full((), value, device=device)  # not from host memory: that would be waited for
