"""The peers that come as packages, used through what they make public, and torch's own scheduler.

All have their authors' defaults. A package is imported only when its peer is built.
"""

from __future__ import annotations

import tempfile
import warnings

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from nanogpt_demo.methods import Recipe

PLATEAU_EPOCH = 20  # steps whose mean loss counts as one "epoch" for ReduceLROnPlateau


class Replacement(Recipe):
    """An optimizer that takes AdamW's place, so that no step is AdamW's."""

    def _update(self, loss: Tensor) -> None:
        self.optimizer.step()
        self.touched = True


class ZClipped(Recipe):
    """The package zclip: clips gradient norms that stand out from their moving average.

    Args:
        model: Its parameters are updated.
        optimizer: Already built on them.
        max_norm: zclip's own constant bound, 1.0 by its default; None switches that off.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, max_norm: float | None = None
    ) -> None:
        """Attach zclip, and listen to what it does."""
        from zclip import ZClip

        super().__init__(model, optimizer)
        self._model = model
        self._zclip = ZClip(max_grad_norm=max_norm)
        self._apply = self._zclip.apply_in_place_clipping
        self._zclip.apply_in_place_clipping = self._listen

    def _listen(self, model: nn.Module, norm: float, bound: float) -> None:
        self.touched = norm > bound
        self._apply(model, norm, bound)

    def _update(self, loss: Tensor) -> None:
        first_steps, bound = not self._zclip.initialized, self._zclip.max_grad_norm
        norm = self._zclip.step(self._model)
        if first_steps and bound is not None:  # it then clips by torch's function
            self.touched = not norm <= bound
        self.optimizer.step()


class ArcGuarded(Recipe):
    """The package arc-training: watches loss, gradients and weights; skips and rolls back.

    The loop is the one that its README recommends, except that a run it calls unrecoverable goes
    on: ARC skips what it skips, and the result shows what that is worth.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, max_norm: float | None = None
    ) -> None:
        """Attach the controller; it takes its first snapshot now."""
        import arc

        super().__init__(model, optimizer, max_norm)
        self._arc = arc.Controller(model, optimizer, verbose=False)
        self._reductions = 0  # of the learning rate, in force

    def _update(self, loss: Tensor) -> None:
        before = self._lrs()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "ARC cannot recover", RuntimeWarning)
            action = self._arc.step(loss)
        if action.rolled_back or self._lrs() != before:
            self._keep_schedule(before)
        self.touched = self.touched or action.should_skip or self._reductions > 0
        if not action.should_skip:
            self.optimizer.step()

    def _lrs(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def _keep_schedule(self, before: list[float]) -> None:
        """Let a rollback not undo the loop's schedule: only ARC's own reductions count.

        A snapshot brings its learning rate back with it. ARC leaves it to the scheduler to set the
        rate right at the next step, and ours goes by factors on the present one.
        """
        reductions = int(self._arc.get_stats()["lr_reductions"])
        factor = self._arc.config.lr_reduction_factor ** (reductions - self._reductions)
        self._reductions = reductions
        for group, lr in zip(self.optimizer.param_groups, before, strict=True):
            group["lr"] = lr * factor

    def close(self) -> None:
        """Take ARC's hooks off the optimizer and end its snapshot thread."""
        self._arc.close()


class StabilityGuarded(Recipe):
    """The package stabilityguard: skips a step with an outlying or non-finite layer gradient."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, max_norm: float | None = None
    ) -> None:
        """Attach its backward hooks, and take away its console and its report files."""
        from stabilityguard import GuardedOptimizer

        super().__init__(model, optimizer, max_norm)
        # Torch warns of the hook on the first layer, whose input needs no gradient, in backward().
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        with tempfile.TemporaryDirectory() as scratch:  # it insists on making a directory
            self._guard = GuardedOptimizer(optimizer, model, log_dir=scratch, verbose=False)
        logger = self._guard._spike_logger  # it has no public switch for its alerts
        logger.enable_stdout = logger.enable_file = False

    def _update(self, loss: Tensor) -> None:
        skips = self._guard.total_skips
        self._guard.step()
        self.touched = self.touched or self._guard.total_skips > skips

    def close(self) -> None:
        """Take the hooks off the model."""
        self._guard.close()


class Plateau(Recipe):
    """Torch's ReduceLROnPlateau with its defaults, fed the mean loss of every 20 steps."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, max_norm: float | None = None
    ) -> None:
        """Attach the scheduler."""
        super().__init__(model, optimizer, max_norm)
        self._plateau = ReduceLROnPlateau(optimizer)
        self._losses: list[Tensor] = []
        self._reduced = False

    def _update(self, loss: Tensor) -> None:
        self.optimizer.step()
        self.touched = self.touched or self._reduced
        self._losses.append(loss)
        if len(self._losses) == PLATEAU_EPOCH:
            before = self.optimizer.param_groups[0]["lr"]
            self._plateau.step(float(torch.stack(self._losses).mean()))
            self._reduced = self._reduced or self.optimizer.param_groups[0]["lr"] != before
            self._losses.clear()
