"""Lightning: return an ARS from `configure_optimizers`; a callback logs, and stops on RCA's word.

```python
import lightning.pytorch as pl
import torch
from resilient_optim import ARS
from resilient_optim.integrations.lightning import ResilientCallback


class Regression(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return ARS(torch.optim.AdamW(self.parameters(), lr=3e-3))


x = torch.randn(64, 8)
data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
loader = torch.utils.data.DataLoader(data, batch_size=8)
callback = ResilientCallback(stop_on="ars/loss")
trainer = pl.Trainer(max_epochs=2, callbacks=[callback], accelerator="cpu", logger=False)
trainer.fit(Regression(), loader)
```

In automatic optimization the loss reaches ARS without more. The callback is needed for
`accumulate_grad_batches` (Lightning shows only the last micro-batch's share of the loss) and for
precision "16-mixed" (it shows none). In manual optimization say `optimizer.step(loss=loss)`; what
`self.optimizers()` returns only looks like an ARS: `unwrap` it before you `report` to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ars import ARS
from ..decision import SKIP
from ..rca import RCA
from . import check_train_on, find, unwrap

try:
    import lightning.pytorch as pl
except ImportError as error:
    raise ImportError(
        "resilient_optim.integrations.lightning needs lightning; "
        'pip install "resilient-optim[lightning]"'
    ) from error

__all__ = ["STEP_LOSS", "ResilientCallback", "unwrap"]

log = logging.getLogger(__name__)

STEP_LOSS = "ars/loss"
"""Value of `stop_on` for the loss of every optimizer step."""


STEP_MIN_VALUES = 500
"""Steps before a stop on the loss of every step: RCA's own 12 are meant for epochs. At such a noise
a flat warm-up, or slow progress, looks like the end for a while."""

ASKED_EVERY = 10
"""Optimizer steps between questions whether to stop: the ranks have to agree on the answer."""


class ResilientCallback(pl.Callback):  # type: ignore[misc, unused-ignore]
    """Logs what ARS does, shows it whole losses, and stops the run on RCA's word.

    The metrics of ARS are logged every `log_every_n_steps` steps (of several ARS with their number,
    as "ars/0/loss"). Where micro-batches are accumulated, ARS judges the mean of their losses.

    What RCA has seen is part of Lightning's checkpoints. `min_epochs` and `min_steps` of the
    Trainer are respected; all ranks stop if one of them would.

    Args:
        stop_on: None: never stop. "ars/loss": the loss of every optimizer step, without validation
            and within an epoch; asked at every tenth. Else the name of a metric
            that the module logs, read after each validation, such as "val_loss".
        mode: "min" or "max".
        train_on: name of a metric that the module logs, the same loss on the training data, as
            "train_loss" beside "val_loss": it tells RCA how long to wait, see `RCA.update`. Log it
            with `on_epoch=True`, or it is that of one batch. Read after each validation, when the
            mean is that of the epoch before; at first there is none. None: RCA goes without.
        **settings: of `RCA`; `min_values` is the least number of values before a stop, for
            "ars/loss" 500 unless given.

    Attributes:
        rca: the monitor; `rca.reading` is what it says, None before the first value.

    Raises:
        TypeError: `stop_on` or `train_on` is neither a str nor None, or a setting is unknown or of
            a wrong type; from `fit`, if no optimizer is an ARS and one is needed.
        ValueError: `mode` is unknown, a setting out of range, or one is given without `stop_on`;
            `train_on` is given without a metric of validation to stop on, is that metric itself, or
            is given with mode "max" or preset "paper"; from `fit`, if `stop_on` is not among the
            metrics.
    """

    def __init__(
        self,
        stop_on: str | None = None,
        *,
        mode: str = "min",
        train_on: str | None = None,
        **settings: Any,
    ) -> None:
        if stop_on is not None and not isinstance(stop_on, str):
            raise TypeError(f"stop_on must be a metric's name or None, got {stop_on!r}; 'val_loss'")
        if stop_on == STEP_LOSS:
            settings = {"min_values": STEP_MIN_VALUES} | settings
        self.stop_on, self.train_on = stop_on, train_on
        self.rca: RCA = RCA(mode=mode, **settings)
        check_train_on(train_on, stop_on, self.rca)
        self._train: float | None = None  # the last value of train_on
        if stop_on is None and (settings or mode != "min"):
            raise ValueError(
                f"stop_on must be given with settings of RCA, got None and {mode=}, {settings}; "
                "name what is judged, as stop_on='val_loss'"
            )
        self._told = False  # to stop, since the ranks were last asked
        self._seen = -1  # number of the last step given to RCA
        self._micro_losses: list[Tensor] = []  # since the last optimizer step
        self._stepped = False
        self._installed = False

    @property
    def state_key(self) -> str:
        """The name under which checkpoints keep this callback's state."""
        return self._generate_state_key(stop_on=self.stop_on)

    def state_dict(self) -> dict[str, Any]:
        """What RCA remembers, as plain Python values."""
        return {"rca": self.rca.state_dict(), "seen": self._seen, "train": self._train}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as the callback that the state was taken from.

        Raises:
            ValueError: it had another mode.
        """
        self.rca.load_state_dict(state_dict["rca"])
        self._seen = state_dict["seen"]
        self._train = state_dict.get("train")

    # -- the loss of a step -----------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look for an ARS, unless RCA is all that is wanted."""
        if not _all_ars(trainer) and self.stop_on in (None, STEP_LOSS):
            raise TypeError(
                "configure_optimizers must return an ARS, got "
                f"{[type(optimizer).__name__ for optimizer in trainer.optimizers]}; return "
                "ARS(torch.optim.AdamW(self.parameters()))"
            )
        self._micro_losses, self._stepped = [], False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have whole losses shown to ARS."""
        # On the instance, for a callback has no hook around the step: what Lightning calls next is
        # the module's own `optimizer_step`, overridden or not. Not earlier, as other callbacks look
        # there for the user's overrides when training starts; and one such callback is enough.
        if pl_module.automatic_optimization and "optimizer_step" not in vars(pl_module):
            original, self._installed = pl_module.optimizer_step, True

            def optimizer_step(
                epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
            ) -> None:
                closure = self._showing_mean(trainer, optimizer, optimizer_closure)
                original(epoch, batch_idx, optimizer, closure)
                self._micro_losses, self._stepped = [], True

            pl_module.optimizer_step = optimizer_step  # type: ignore[method-assign, unused-ignore]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the module as it was; say so if there was no training loss to tell."""
        self._uninstall(pl_module)
        if self.train_on is not None and self._train is None:
            log.warning(
                "train_on must be a logged metric, got %r where there are %s; log it in "
                "training_step.", self.train_on, sorted(trainer.callback_metrics),
            )  # fmt: skip

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        self._uninstall(pl_module)

    def _uninstall(self, pl_module: pl.LightningModule) -> None:
        if self._installed:
            del pl_module.optimizer_step
            self._installed = False

    def _showing_mean(
        self, trainer: pl.Trainer, optimizer: Any, closure: Callable[[], Any]
    ) -> Callable[[], Any]:
        """A closure that returns the mean over the micro-batches, where `closure` the last share.

        Lightning divides each loss by `accumulate_grad_batches`, even where an epoch ends early.
        """

        def shown() -> Any:
            last = closure()
            losses = self._micro_losses + ([] if last is None else [last])
            if not losses:
                return None
            mean = losses[0]
            if len(losses) > 1 or trainer.accumulate_grad_batches > 1:
                mean = torch.stack(losses).mean() * trainer.accumulate_grad_batches
            ars = find(optimizer)
            # With a loss scaler Lightning runs the closure itself and steps without it.
            if ars is not None and getattr(trainer.precision_plugin, "scaler", None) is not None:
                ars.report(mean)
            return mean

        return shown

    # -- logging and stopping ---------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """After a micro-batch: keep its loss; after a step: log it and ask RCA."""
        if pl_module.automatic_optimization and not self._stepped:
            loss = outputs.get("loss") if isinstance(outputs, dict) else None
            self._micro_losses += [] if loss is None else [loss]
            return
        self._stepped = False
        found = _all_ars(trainer)
        if _is_logged(trainer, pl_module):
            for number, ars in enumerate(found):
                prefix = "ars/" if len(found) == 1 else f"ars/{number}/"
                metrics = {prefix + key[len("ars/") :]: x for key, x in ars.metrics().items()}
                pl_module.log_dict(metrics, on_step=True, on_epoch=False)
        if self.stop_on == STEP_LOSS:
            decision = found[0].last
            # On a GPU the latest decision that has arrived: maybe the one seen before.
            if decision is not None and decision.step > self._seen:
                self._seen = decision.step
                if decision.action != SKIP:
                    self._judge(decision.loss, decision.new_level)
            if trainer.global_step % ASKED_EVERY == 0:
                self._stop_if_told(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask RCA about the metric."""
        if (
            self.stop_on in (None, STEP_LOSS)
            or trainer.state.fn != "fit"
            or trainer.sanity_checking
        ):
            return
        if self.stop_on not in trainer.callback_metrics:
            raise ValueError(
                f"stop_on must be a logged metric, got {self.stop_on!r} where there are "
                f"{sorted(trainer.callback_metrics)}; log it in validation_step"
            )
        if self.train_on is not None and self.train_on in trainer.callback_metrics:
            self._train = float(trainer.callback_metrics[self.train_on])
        self._judge(trainer.callback_metrics[self.stop_on], train=self._train)
        self._stop_if_told(trainer)

    def _judge(
        self, value: float | Tensor, shifted: bool = False, train: float | None = None
    ) -> None:
        reading = self.rca.update(value, train=train, shifted=shifted)
        self._told = self._told or reading.recommendation == "stop"

    def _stop_if_told(self, trainer: pl.Trainer) -> None:
        told, self._told = self._told, False
        if trainer.strategy.reduce_boolean_decision(told, all=False):
            log.info("RCA stops the run at step %d: %s", trainer.global_step, self.rca.reading)
            trainer.should_stop = True


def _is_logged(trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
    """Whether Lightning writes the values of this step; for all others logging is milliseconds."""
    every = getattr(trainer, "log_every_n_steps", 0)
    automatic = pl_module.automatic_optimization
    # Lightning counts batches that stepped; with manual optimization a batch has several steps.
    steps = trainer.global_step if automatic else trainer.fit_loop.total_batch_idx + 1
    return bool(every) and steps % every == 0


def _all_ars(trainer: pl.Trainer) -> list[ARS]:
    return [ars for ars in map(find, trainer.optimizers) if ars is not None]
