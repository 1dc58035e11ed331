"""The competitors: everything that may happen between ``backward()`` and the next batch.

All of them drive the same AdamW at the same constant learning rate; they differ only in what they
put round it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from nanogpt_demo._checks import require_choice

MAX_NORM = 1.0  # the usual bound on the gradient norm
WARMUP_STEPS = 50


class Method(Protocol):
    """One way of turning gradients into an update."""

    touched: bool
    """Whether the last step differed from the bare optimizer's."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self, loss: Tensor) -> None:
        """Update the model from its gradients; ``loss`` is the 0-d loss they belong to."""

    def trace(self) -> dict[str, float]:
        """What the method saw at the last step, by name; empty if it looks at nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""


def warmup_factor(step: int) -> float:
    """Share of the learning rate at ``step`` (from 0): linear to 1 over ``WARMUP_STEPS``."""
    return min(1.0, (step + 1) / WARMUP_STEPS)


class Recipe:
    """An optimizer with optional norm clipping and optional warm-up.

    Args:
        model: Its parameters are updated.
        optimizer: Already built on them.
        max_norm: Bound on the total gradient norm, or None for no clipping.
        warmup: Whether the learning rate is ramped up over the first steps.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        max_norm: float | None = None,
        warmup: bool = False,
    ) -> None:
        """Attach the schedule, which sets the first learning rate."""
        self.optimizer = optimizer
        self.touched = False
        self._parameters = list(model.parameters())
        self._max_norm = max_norm
        self._schedule = LambdaLR(optimizer, warmup_factor) if warmup else None

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, loss: Tensor) -> None:
        """Clip if asked to, update, advance the warm-up if there is one."""
        self.touched = self._clip() or self._warming_up()
        self._update(loss)
        if self._schedule is not None:
            self._schedule.step()

    def _clip(self) -> bool:
        if self._max_norm is None:
            return False
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        return not float(norm) <= self._max_norm  # a NaN norm counts as touched

    def _warming_up(self) -> bool:
        return self._schedule is not None and warmup_factor(self._schedule.last_epoch) < 1

    def _update(self, loss: Tensor) -> None:
        self.optimizer.step()

    def trace(self) -> dict[str, float]:
        """Nothing is observed."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer and of the warm-up."""
        schedule = self._schedule.state_dict() if self._schedule is not None else {}
        return {"optimizer": self.optimizer.state_dict(), "schedule": schedule}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self._schedule is not None:
            self._schedule.load_state_dict(state["schedule"])


class ArsRecipe(Recipe):
    """An optimizer wrapped in ARS; the loss goes into ``step``."""

    @property
    def _ars(self) -> Any:
        return self.optimizer  # typed by its base class, which knows no `last`

    def _update(self, loss: Tensor) -> None:
        self._ars.step(loss)
        if loss.is_cuda:  # where it is decided, too: what was decided is known when it is done
            torch.cuda.synchronize(loss.device)
        self.touched = self.touched or bool(self._ars.last.touched)

    def trace(self) -> dict[str, float]:
        """Surprise gate phi, entropy guard psi and chronos-jitter chi of the last step."""
        last = self._ars.last
        return {"phi": float(last.phi), "psi": float(last.psi), "chi": float(last.chi)}


def base_optimizer(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """Build the AdamW that every method drives."""
    return torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.1, fused=True
    )


def _plain(max_norm: float | None = None, warmup: bool = False) -> Builder:
    def build(model: nn.Module, lr: float, seed: int) -> Method:
        return Recipe(model, base_optimizer(model, lr), max_norm, warmup)

    return build


def _ars(preset: str, warmup: bool = False) -> Builder:
    def build(model: nn.Module, lr: float, seed: int) -> Method:
        from resilient_optim import ARS  # only here, so that the bare methods do without it

        optimizer = ARS(base_optimizer(model, lr), preset=preset, seed=seed)
        return ArsRecipe(model, optimizer, warmup=warmup)

    return build


Builder = Callable[[nn.Module, float, int], Method]

METHODS: dict[str, Builder] = {
    "adamw": _plain(),
    "adamw+clip": _plain(max_norm=MAX_NORM),
    "adamw+warmup+clip": _plain(max_norm=MAX_NORM, warmup=True),
    "ars-paper": _ars("paper"),
    "ars": _ars("default"),
    "ars+warmup": _ars("default", warmup=True),
}


def build_method(name: str, model: nn.Module, lr: float, seed: int) -> Method:
    """Build the method called ``name`` on the parameters of ``model``.

    Args:
        name: A key of ``METHODS``.
        model: The model to train.
        lr: Learning rate of the base optimizer, above 0.
        seed: Seed of the method's own noise, if it makes any.

    Raises:
        ValueError: If the name is unknown.
    """
    require_choice("method", name, list(METHODS))
    return METHODS[name](model, lr, seed)
