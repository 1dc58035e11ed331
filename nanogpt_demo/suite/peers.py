"""The peers: every way of guarding an optimizer that the suite compares with ARS.

A name that ends in "+clip" has the gradient norm clipped to 1.0 before anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from nanogpt_demo._checks import require_choice
from nanogpt_demo.methods import MAX_NORM, ArsRecipe, Recipe
from nanogpt_demo.suite.optimizers import BETAS, OPTIMIZERS, WEIGHT_DECAY
from nanogpt_demo.suite.peers_packages import (
    ArcGuarded,
    Plateau,
    Replacement,
    StabilityGuarded,
    ZClipped,
)
from nanogpt_demo.suite.peers_reimplemented import AdaGC, SkipStep
from nanogpt_demo.suite.profile import TRIED_ON

SNAPSHOT_EVERY = 20
"""Steps between two snapshots of ARS: by itself it would go by the clock, and a run in which one is
needed would not repeat to the bit."""


class Method(Protocol):
    """An optimizer with something round it; one that holds resources also has ``close()``."""

    optimizer: Optimizer
    """Its ``param_groups`` carry the learning rate, which the loop scales with the schedule."""

    touched: bool
    """Whether the last step differed from what the bare base optimizer would have done."""

    def step(self, loss: Tensor) -> None:
        """Update the model from its gradients; ``loss`` is the detached 0-d loss, maybe NaN."""


Builder = Callable[[nn.Module, str, float, int], Method]
Wrapper = Callable[[nn.Module, Optimizer, float | None], Method]


@dataclass(frozen=True)
class Peer:
    """One entry of the comparison.

    Attributes:
        build: makes it from model, optimizer name, learning rate and seed.
        source: where it comes from.
        warmup: the loop ramps the learning rate up over the first steps.
        optimizers: names of the base optimizers that it can drive.
        scenarios: of an idea, those in which it can do anything; empty for all.
    """

    build: Builder
    source: str
    warmup: bool = False
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    scenarios: tuple[str, ...] = ()


def _around(recipe: Wrapper, max_norm: float | None = None) -> Builder:
    def build(model: nn.Module, optimizer: str, lr: float, seed: int) -> Method:
        return recipe(model, OPTIMIZERS[optimizer](model.parameters(), lr), max_norm)

    return build


def _instead(package: str, kind: str, max_norm: float | None, **settings: Any) -> Builder:
    """Build an optimizer that takes AdamW's place, with its betas and decoupled weight decay."""

    def build(model: nn.Module, optimizer: str, lr: float, seed: int) -> Method:
        made = getattr(import_module(package), kind)(
            model.parameters(), lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY, **settings
        )
        return Replacement(model, made, max_norm)

    return build


def _ars(max_norm: float | None = None, **settings: Any) -> Builder:
    def build(model: nn.Module, optimizer: str, lr: float, seed: int) -> Method:
        from resilient_optim import ARS, Snapshots  # only here: the other peers do without it

        base = OPTIMIZERS[optimizer](model.parameters(), lr)
        # The paper has no circuit breaker, and takes none.
        snapshot = settings.get("preset") != "paper" and Snapshots(every=SNAPSHOT_EVERY)
        return ArsRecipe(model, ARS(base, seed=seed, snapshot=snapshot, **settings), max_norm)

    return build


def _idea(
    kind: str,
    scenarios: tuple[str, ...] = (),
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS),
    **settings: Any,
) -> Peer:
    """An experiment with ARS; its module loads the library, which the other peers do without."""

    def build(model: nn.Module, optimizer: str, lr: float, seed: int) -> Method:
        from nanogpt_demo.suite import ideas

        base = OPTIMIZERS[optimizer](model.parameters(), lr)
        return ArsRecipe(model, ideas.make(kind, base, seed=seed, **settings))

    return Peer(build, f"this repository, ideas.{kind}", False, optimizers, scenarios)


def _guards() -> dict[str, Peer]:
    """What goes round any optimizer, each with and without clipping."""
    guards: dict[str, tuple[Wrapper, str]] = {
        "zclip": (ZClipped, "zclip 1.0.0 (PyPI), defaults; its constant bound only in +clip"),
        "adagc": (AdaGC, "re-implemented from arXiv 2502.11034, its defaults"),
        "skip-step": (SkipStep, "re-implemented after OLMo-core's SkipStepOptimizer, defaults"),
        "arc": (ArcGuarded, "arc-training 5.2.0.post1 (PyPI), defaults"),
        "stabilityguard": (StabilityGuarded, "stabilityguard 0.3.0 (PyPI), defaults"),
        "plateau": (Plateau, "torch ReduceLROnPlateau, defaults, one epoch = 20 steps"),
    }
    peers = {}
    for name, (recipe, source) in guards.items():
        peers[name] = Peer(_around(recipe), source)
        peers[f"{name}+clip"] = Peer(_around(recipe, MAX_NORM), source)
    return peers


def _replacements() -> dict[str, Peer]:
    """What takes AdamW's place; its authors' defaults where AdamW has no such setting."""
    made: dict[str, tuple[str, str, dict[str, Any], str]] = {
        # Without Triton it is the same on every device; decouple_lr=False is AdamW's decay.
        "stableadamw": ("optimi", "StableAdamW", {"triton": False}, "torch-optimi 0.3.3 (PyPI)"),
        "spam": ("pytorch_optimizer", "SPAM", {}, "pytorch-optimizer 4.1.0 (PyPI)"),
        "adabelief": ("pytorch_optimizer", "AdaBelief", {}, "pytorch-optimizer 4.1.0 (PyPI)"),
    }
    peers = {}
    for name, (package, kind, settings, source) in made.items():
        for suffix, max_norm in (("", None), ("+clip", MAX_NORM)):
            build = _instead(package, kind, max_norm, **settings)
            peers[name + suffix] = Peer(build, source, optimizers=("adamw",))
    return peers


PEERS: dict[str, Peer] = {
    "bare": Peer(_around(Recipe), "torch"),
    "clip": Peer(_around(Recipe, MAX_NORM), "torch clip_grad_norm_"),
    "warmup+clip": Peer(
        _around(Recipe, MAX_NORM), "the loop's linear warm-up, torch clip_grad_norm_", warmup=True
    ),
    **_guards(),
    **_replacements(),
    "ars": Peer(_ars(), "this repository"),
    "ars+clip": Peer(_ars(MAX_NORM), "this repository"),
    "ars+warmup+clip": Peer(_ars(MAX_NORM), "this repository", warmup=True),
    "ars-paper": Peer(_ars(preset="paper"), "this repository, the published formulas"),
    "ars-paper+clip": Peer(
        _ars(MAX_NORM, preset="paper"), "this repository, the published formulas"
    ),
}

_ABLATED: dict[str, dict[str, Any]] = {
    "ars no start-up": {"start_up": 0},
    "ars opening 15": {"start_up": 15},
    "ars opening 30": {"start_up": 30},
    "ars no surprise gate": {"z_threshold": 1e9},
    "ars patience 1": {"patience": 1},
    "ars no norm guard": {"norm_guard": False},
    "ars no alert": {"alert_threshold": math.inf},
    "ars no lr brake": {"lr_jump": math.inf},
    "ars alpha 1": {"alpha": 1.0},
    "ars phi_min 0.3": {"phi_min": 0.3},
    "ars window 128": {"window_size": 128},
    "ars no resonance": {"rho_threshold": 1.0},
    "ars with jitter": {"jitter_scale": 0.1, "rho_threshold": 0.55},
}
"""The default with one component taken away, one setting moved, or (the last) one component
added; `max_norm` is "ars+clip". A floor of Φ of 0.3 damps what else is left out."""

ABLATIONS: dict[str, Peer] = {
    name: Peer(_ars(**settings), f"this repository, {settings}")
    for name, settings in _ABLATED.items()
}

NEW_LEVELS = ("reversed", "alternating", "label-noise")  # nowhere else is one accepted
SURPRISES = (*NEW_LEVELS, "corrupted-burst", "lr-spikes", "high-lr")
BEGINNINGS = ("none", "high-lr")

AT_ONCE, FIXED = "ars open at once, snapshots", "ars opening 30, snapshots"
"""What an opening is for shows at rates that are too high, beside all else that ships."""

IDEAS: dict[str, Peer] = {
    TRIED_ON: _idea("ARS"),
    "ars + momentum refreshed": _idea("MomentumRefreshed", NEW_LEVELS),
    "ars + moments refreshed": _idea("MomentsRefreshed", NEW_LEVELS),
    "ars + beta2 lowered": _idea("Forgetful", NEW_LEVELS),
    "ars + re-warm": _idea("ReWarmed", NEW_LEVELS),
    "ars alert ends at new level": _idea("AlertEnds", NEW_LEVELS),
    "ars fresh reference at new level": _idea("FreshReference", NEW_LEVELS),
    "ars + own doing undone": _idea("OwnDoing", SURPRISES),
    "ars + own doing unbraked": _idea("OwnDoingUnbraked", SURPRISES),
    "ars + own doing, no lr brake": _idea("OwnDoing", ("lr-spikes",), lr_jump=math.inf),
    "ars + own doing unbraked, no lr brake": _idea(
        "OwnDoingUnbraked", ("lr-spikes",), lr_jump=math.inf
    ),
    "ars opening for signs too": _idea("OpeningForAll", optimizers=("lion",)),
    "ars opening 4": _idea("ARS", BEGINNINGS, start_up=4),
    "ars opening 10": _idea("ARS", BEGINNINGS, start_up=10),
    "ars opening 60": _idea("ARS", BEGINNINGS, start_up=60),
    "ars open at once": _idea("OpenAtOnce", optimizers=("sgd",)),
    AT_ONCE: _idea("OpenAtOnce", ("none",), ("sgd",), every=SNAPSHOT_EVERY),
    FIXED: _idea("ARS", ("none",), ("sgd",), every=SNAPSHOT_EVERY, start_up=30),
    "ars opening by the norm": _idea("OpeningByNorm", BEGINNINGS),
    "ars hold only while opening": _idea("ShortHold", BEGINNINGS),
    "ars hold without opening": _idea("NoOpening", BEGINNINGS),
    "ars hold to twice the norm": _idea("LooseHold", BEGINNINGS),
    "ars lasting alert": _idea("LastingAlert"),
    "ars lasting full alert": _idea("LastingFullAlert"),
    "ars loose alert": _idea("LooseAlert"),
}
"""The default with one thing done differently: what was tried, on the development split only."""

ALL: dict[str, Peer] = PEERS | ABLATIONS | IDEAS


def applicable(name: str, optimizer: str) -> bool:
    """Whether the peer can drive the optimizer.

    Args:
        name: A key of ``ALL``.
        optimizer: A key of ``OPTIMIZERS``.
    """
    return optimizer in ALL[name].optimizers


def build(name: str, model: nn.Module, optimizer: str, lr: float, seed: int) -> Method:
    """Build a peer round an optimizer on the parameters of a model.

    Args:
        name: A key of ``ALL``.
        model: The model to train.
        optimizer: A key of ``OPTIMIZERS`` that the peer can drive.
        lr: Learning rate of the base optimizer, above 0.
        seed: Seed of the method's own noise, if it makes any.

    Raises:
        ValueError: If a name is unknown, or the peer cannot drive the optimizer.
    """
    require_choice("name", name, list(ALL))
    require_choice("optimizer", optimizer, list(ALL[name].optimizers))
    return ALL[name].build(model, optimizer, lr, seed)
