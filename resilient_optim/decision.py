"""What ARS decided about one step, and on what evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

ROLLBACK = "rollback"
SKIP = "skip"
DAMP = "damp"
APPLY = "apply"
QUIET = "quiet"
"""Reason of a step that is the bare optimizer's to the bit."""


class Decision(NamedTuple):
    """The verdict on one step; `optimizer.last` holds the latest.

    Attributes:
        step: number of the step, counted from 0 over all steps that brought a loss.
        action: "apply", "damp" (with less than full strength), "skip" (the step is not taken, and
            nothing changes at all but for the reason "probe", when an earlier state takes the place
            of the present one for three batches) or "rollback" (weights and optimizer state are
            those of an earlier step again).
        reason: why, in a few words; "quiet" if nothing was found.
        loss: the loss that was judged (the mean over ranks in a distributed run).
        grad_norm: L2 norm over all gradients, None if the norm guard is off.
        z: surprise, in noise scales above the recent level (the paper preset: raw loss units).
        rho: lag-1 autocorrelation that the entropy guard saw, NaN before there is enough history.
        psi: entropy guard Ψ in (0, 1]; 1 means no oscillation.
        phi: surprise gate Φ in [0, 1]; 1 means open.
        chi: chronos-jitter χ, the strength of the noise; 0 means none.
        update_scale: factor on the update, applied through the learning rate; the smallest of all
            param groups'.
        grad_scale: factor on the gradients.
        as_published: Φ scales the gradient and χ counts in absolute units, as the paper has it;
            else Φ scales the update and χ counts in each tensor's own gradient RMS.
        new_level: a sustained surprise was accepted as the new normal at this step.
        abnormal_norm: the gradient norm says nothing about what is normal and is not recorded.
        rolled_back_to: of a rollback, the step that found the weights as they are again.
        lr_scales: factor on each param group's learning rate; None: `update_scale` on all of them.
    """

    step: int
    action: str
    reason: str
    loss: float
    grad_norm: float | None = None
    z: float = 0.0
    rho: float = math.nan
    psi: float = 1.0
    phi: float = 1.0
    chi: float = 0.0
    update_scale: float = 1.0
    grad_scale: float = 1.0
    as_published: bool = False
    new_level: bool = False
    abnormal_norm: bool = False
    rolled_back_to: int | None = None
    lr_scales: tuple[float, ...] | None = None

    def group_scales(self, groups: int) -> Sequence[float]:
        """Factor on each param group's learning rate.

        Args:
            groups: number of param groups.

        Returns:
            A factor for each.
        """
        return [self.update_scale] * groups if self.lr_scales is None else self.lr_scales

    def values(self) -> dict[str, float]:
        """The numbers the decision rests on and consists of.

        Returns:
            loss, grad_norm, z, rho, psi, phi and chi by name; those not known are left out.
        """
        names = ("loss", "grad_norm", "z", "rho", "psi", "phi", "chi")
        pairs = ((name, getattr(self, name)) for name in names)
        return {name: value for name, value in pairs if value is not None and value == value}

    @property
    def touched(self) -> bool:
        """Whether the step differed in any way from the bare optimizer's."""
        return (
            self.action in (SKIP, ROLLBACK)
            or self.update_scale != 1.0
            or self.grad_scale != 1.0
            or self.chi != 0.0
        )


class Observation(NamedTuple):
    """What is known when a step is to be decided.

    Attributes:
        step: number of the step, counted from 0 over all steps that brought a loss.
        loss: the loss, finite or not.
        grad_norm: L2 norm over all gradients, finite or not; None if it was not measured.
        own_warmup: the run needs no opening: it raises its own learning rate, or the steps of its
            optimizer are signs, the first no larger than any other.
        lr_ratio: the largest of `lr_ratios`; NaN if a learning rate is not finite.
        lr_ratios: of each param group, its learning rate over the largest one that it has been
            through.
        lr: the learning rate of all param groups, 0 if they differ; looked at in the first step.
    """

    step: int
    loss: float
    grad_norm: float | None = None
    own_warmup: bool = False
    lr_ratio: float = 1.0
    lr_ratios: Sequence[float] = ()
    lr: float = 0.0
