"""ResonantCallback: acts on what RCA reads from the validation metrics of a run.

with ResonantCallback("checkpoints") as rca:
    for epoch in range(1, epochs + 1):
        rca(val_loss=val_loss, model=model, optimizer=optimizer, epoch=epoch)
        if rca.should_stop():
            break
# the model is now the best one, however the loop ended
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from . import _checks
from .callback_input import check_run, check_schedule
from .callback_metric import Metric, better
from .callback_report import report
from .callback_rules import SAVED, Rules
from .callback_settings import check_folder, modes_of
from .checkpointing import BestState
from .lr_cuts import lrs_of
from .rca import RCA, UNKNOWN
from .rca_paper import PaperState, published

log = logging.getLogger(__name__)


class ResonantCallback(Rules):
    """Cuts the learning rate, then stops, and leaves the best model behind.

    Each epoch's metrics go to `RCA`, smoothed ones into the count of epochs without improvement.
    When `patience_steps` such epochs have passed and RCA recommends "reduce_lr" or "stop", every
    param group's lr is multiplied by `lr_reduction_factor` and the run goes on from the best
    weights and optimizer state (of ARS: with its memory and counters); when no cut is left, or no
    optimizer was given, it stops. The best state, that of the best value as it came, is restored at
    a stop, by `finalize()`, and at the end of a `with`. RCA forgets nothing that a cut undoes.

    The arguments named below are the callback's: how many epochs pass, and what is done then. What
    counts as evidence is RCA's, passed on by `**settings`; but not its `patience` and `min_values`:
    they hold back only its "stop", and "reduce_lr" ends runs too. `patience_steps` delays both.

    Several metrics: improvement of any counts, a cut or stop takes RCA's recommendation for all,
    the best epoch is that of the first. NaN and infinities never improve, and oppose nothing.

    Who owns the lr: the schedule, if a `scheduler` is passed; a cut rescales it (`base_lrs`, see
    `cut_lrs`), so that LambdaLR, CosineAnnealingLR and the others go on at a smaller scale.
    ReduceLROnPlateau makes the cuts itself: they are counted here, and a stop waits for the last.

    Distributed: every rank calls it; all decide on the mean of their values; rank 0 writes.

    preset="paper": the published rules (`rca_paper`), for mode "min" alone: the best moves by
    `min_delta`, a cut restores nothing. One departure: a cut is of all param groups, not of one.
    preset="auto": with the noise sigma measured on the last 32 values, relative to their level, and
    a = ema_alpha: min_delta is raised to 1.645 sqrt(2a / (2 - a)) sigma, which noise alone passes
    in 5 % of comparisons of two smoothed values; patience_steps to 2 (3.290 sigma / min_delta)^2,
    the epochs whose mean shows a gain of min_delta over as many earlier ones with 95 % power in a
    one-sided test at 5 %. Neither is lowered; nothing is judged before 8 values.

    Args:
        checkpoint_dir: where the best state is kept, in best_epoch{epoch}_{value}.pt, a dict with
            keys model, optimizer, epoch and value; None: in memory.
        patience_steps: epochs without improvement before anything is done, the `patience` of
            EarlyStopping and ReduceLROnPlateau; None: the preset's (3).
        min_delta: improvement that counts, as a share of the best; None: the preset's (0.01).
        ema_alpha: weight of the new value in the smoothed one, in (0, 1]; 1 smooths nothing.
        max_lr_reductions: cuts before a stop; None: the preset's (2).
        lr_reduction_factor: of a cut, in (0, 1); the `factor` of ReduceLROnPlateau.
        min_lr: no cut goes below; None: the preset's (1e-6).
        verbose: one `logging.INFO` line an epoch.
        cooldown: epochs after a cut that are not counted.
        warmup: epochs at the start in which nothing is judged; the best state is kept.
        mode: "min" or "max", of val_loss.
        metrics: name and mode of each metric, in place of val_loss, the decisive one first.
        preset: "default", "paper", "auto", or by task "easy", "medium", "hard", "fine-tune".
        logger: anything with add_scalar(tag, value, step) or log(dict).
        process_group: ranks that decide together. None: all. False: this process alone.
        signals: their should_stop() has to agree; a `LayerVariationStopper`, after its `end_epoch`.
        **settings: window, horizon, min_gain, min_gain_noise, significance: see `RCAConfig`.

    Raises:
        TypeError, ValueError: an argument is of a wrong type, unknown or out of range.
    """

    def __init__(
        self,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        patience_steps: int | None = None,
        min_delta: float | None = None,
        ema_alpha: float = 0.3,
        max_lr_reductions: int | None = None,
        lr_reduction_factor: float = 0.5,
        min_lr: float | None = None,
        verbose: bool = True,
        *,
        cooldown: int = 0,
        warmup: int = 0,
        mode: str = "min",
        metrics: Mapping[str, str] | None = None,
        preset: str = "default",
        logger: Any = None,
        process_group: Any = None,
        signals: Sequence[Any] = (),
        **settings: Any,
    ) -> None:
        modes = modes_of(mode, metrics)
        check_folder(checkpoint_dir, modes)
        super().__init__(
            modes, settings, preset=preset, patience_steps=patience_steps, min_delta=min_delta,
            ema_alpha=ema_alpha, max_lr_reductions=max_lr_reductions,
            lr_reduction_factor=lr_reduction_factor, min_lr=min_lr, verbose=verbose,
            cooldown=cooldown, warmup=warmup, logger=logger, process_group=process_group,
            signals=signals,
        )  # fmt: skip
        made = {name: RCA(mode=m, **settings) for name, m in modes.items()}
        self._start({k: Metric(rca, self.min_delta, ema_alpha) for k, rca in made.items()})
        self.best: BestState = BestState(checkpoint_dir)
        self.current_epoch: int = 0
        self._at_best = False
        self._run: tuple[nn.Module | None, Optimizer | None] = (None, None)

    def __call__(
        self,
        val_loss: Any = None,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        epoch: int | None = None,
        *,
        train_loss: Any = None,
        metrics: Mapping[str, Any] | None = None,
        scheduler: Any = None,
    ) -> None:
        """Take in the validation of an epoch: judge, keep the best state, cut the lr or stop.

        Args:
            val_loss: a float, or a tensor of one element.
            model: what to keep and restore; None: nothing is kept.
            optimizer: whose lr is cut; None: no cuts.
            epoch: its number; None: one more than the last.
            train_loss: val_loss on the training data; moves only RCA's "stop", see `RCA.update`.
            metrics: the values of all metrics by name, if they were named at construction.
            scheduler: the lr scheduler of `optimizer`, stepped by you, before or after this call.

        Raises:
            TypeError: a value is not a number, or model, optimizer or scheduler something else.
            ValueError: wrong metrics; a scheduler without optimizer; train_loss without val_loss.
            OSError, RuntimeError: the best state cannot be written; the old one is still there.
        """
        if epoch is not None:
            _checks.integer("epoch", epoch)
        check_run(model, optimizer)
        check_schedule(scheduler, optimizer)
        values, train = self._agreed(val_loss, metrics, train_loss)
        self.current_epoch = self.current_epoch + 1 if epoch is None else epoch
        self.seen += 1
        self._run, self._at_best = (model, optimizer), False
        self._watch_schedule(optimizer, scheduler)
        first, stopped = next(iter(values.values())), self._stop
        if self.preset == "paper":
            improved = self._judge_as_published(first, optimizer, scheduler)
        else:
            self.action, self.reason = self._judge(values, train, optimizer, scheduler)
            improved = better(first, self.best_loss, self._first.rca.mode)
        if improved:
            self._keep(model, optimizer, first)
        if self.action == "reduce_lr" and self.preset != "paper":
            self._count_cut(lrs_of(optimizer))
            self.finalize()
            self._at_best = False  # the run goes on, and may end anywhere
        elif self.action == "stop" and not stopped:
            self._stop = True
            self.finalize()
        if self._leads:
            report(self.get_statistics(), values, self.verbose, self.logger)

    def _keep(self, model: nn.Module | None, optimizer: Optimizer | None, value: float) -> None:
        problem = None
        if model is not None:
            self.best.writes = self._leads
            try:
                self.best.save(model, optimizer, self.current_epoch, value)
            except (OSError, RuntimeError, TypeError) as error:
                problem = error
            # A rank that raised alone would leave the others waiting for it.
            if math.isnan(self._mean(math.nan if problem else 0.0)):
                raise problem or OSError("the best state could not be saved, see another rank")
            self.best.drop_copy()
        self.best_loss, self.best_epoch = value, self.current_epoch

    def should_stop(self) -> bool:
        """Whether to end the run.

        Returns:
            True from the epoch on at which it decided to stop.
        """
        return self._stop

    def get_statistics(self) -> dict[str, Any]:
        """What is known after the latest epoch.

        Returns:
            As published: current_epoch, best_epoch, best_loss (of the first metric; infinite
            before any), lr_reductions, beta, omega, confidence, state. Besides: p_improving, gain,
            gain_low, gain_high, recommendation and train_share (see `Reading`; none as published),
            action ("wait", "continue", "reduce_lr" or "stop") and its reason, min_delta,
            epochs_since_improvement, patience_steps, smoothed, best_path.
        """
        reading = (self._first.rca.reading or UNKNOWN)._asdict()
        if self.preset == "paper":
            reading = published(self._paper.losses, self._paper.seen)._asdict()
        return {
            "current_epoch": self.current_epoch,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "lr_reductions": self.lr_reductions,
            **{key: x for key, x in reading.items() if key not in ("step", "value")},
            "action": self.action,
            "reason": self.reason,
            "epochs_since_improvement": self.waited,
            "patience_steps": self.patience_steps,
            "min_delta": self.min_delta,
            "smoothed": self._first.smoothed,
            "best_path": None if self.best.path is None else str(self.best.path),
        }

    def finalize(self, model: nn.Module | None = None, optimizer: Optimizer | None = None) -> None:
        """Restore the best state, unless it is in place already; the learning rates stay.

        Args:
            model: what to restore; None: the model and optimizer of the latest epoch.
            optimizer: the optimizer that goes with `model`.

        Raises:
            TypeError: they are something else.
        """
        check_run(model, optimizer)
        if model is None:
            model, optimizer = self._run
        if self.best.epoch is not None and not self._at_best:
            if model is None:  # resumed, or its last call came without it
                log.warning("RCA: the best state is not restored; pass the model to finalize")
            else:
                self.best.restore(model, optimizer)
                self._at_best = True

    def __enter__(self) -> ResonantCallback:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            self.finalize()
        except Exception:
            if kind is None:
                raise
            log.exception("RCA: the best state could not be restored")  # the run's error is first

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs.

        Returns:
            Plain values and tensors; with a `checkpoint_dir` the best state by its file's name.
        """
        return {
            "preset": self.preset,
            "metrics": {name: metric.state_dict() for name, metric in self.metrics.items()},
            "best": self.best.state_dict(),
            "paper": tuple(self._paper),
            **{name: getattr(self, name) for name in SAVED},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as the callback that `state` was taken from, made with the same arguments.

        Args:
            state: what `state_dict` returned.

        Raises:
            ValueError: it had another preset or other metrics.
            FileNotFoundError: the best state is on disk, but not in `checkpoint_dir`.
        """
        had, have = (state["preset"], list(state["metrics"])), (self.preset, list(self.metrics))
        if had != have:
            raise ValueError(
                f"state must be of preset and metrics {have}, got {had}; make the callback with "
                "the arguments of the run that is resumed"
            )
        self.best.load_state_dict(state["best"])
        for name, metric in self.metrics.items():
            metric.load_state_dict(state["metrics"][name])
        losses, *rest = state["paper"]
        self._paper = PaperState(tuple(losses), *rest)
        for name in SAVED:
            setattr(self, name, state[name])
