"""Hugging Face Trainer: show ARS the loss, which the Trainer keeps from its optimizer.

```python
import torch
from resilient_optim.integrations.transformers import ResilientTrainer, ResilientTrainerCallback
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

tokens = [{"input_ids": t, "labels": t} for t in torch.randint(0, 20, (32, 8))]
model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_layer=1, n_embd=16, n_head=2))
args = TrainingArguments("out", max_steps=8, logging_steps=1, report_to="none", use_cpu=True)
callback = ResilientTrainerCallback(stop_on="loss", min_values=500)
trainer = ResilientTrainer(model, args, train_dataset=tokens, callbacks=[callback])
trainer.train()
```

`ResilientTrainer` wraps the optimizer that the Trainer makes (`args.optim`), or takes yours:
`optimizers=(ARS(...), None)`. For a Trainer class of your own, as trl's, put the mixin first:
`class MyTrainer(ObservesLoss, SFTTrainer)`, and pass an ARS. With a plain Trainer every step comes
without a loss, ARS does nothing, and says so once.
"""

from __future__ import annotations

import logging
import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from ..ars import ARS
from ..rca import RCA, Reading
from . import check_train_on, find, unwrap

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError(
        "resilient_optim.integrations.transformers needs transformers and accelerate; "
        'pip install "resilient-optim[transformers]"'
    ) from error

__all__ = ["ObservesLoss", "ResilientTrainer", "ResilientTrainerCallback", "unwrap"]

log = logging.getLogger(__name__)

# At run time the mixin stands beside any Trainer class.
_Base: Any = Trainer if TYPE_CHECKING else object


class ObservesLoss(_Base):  # type: ignore[misc, unused-ignore]
    """Mixin for a Trainer class: gives the ARS in it the loss that each optimizer step is about.

    That is the sum of what `training_step` returned since the last step, which is what the Trainer
    logs as `loss`, whoever divides by the number of micro-batches, the Trainer or the model. The
    metrics of ARS go into the same log entries.

    Attributes:
        logs_metrics: whether they do.

    Raises:
        TypeError: from `training_step`, if the optimizer is no ARS.
    """

    logs_metrics = True
    _loss: Tensor | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does; what an interrupted run has accumulated is forgotten.

        Args:
            *args: as of the Trainer.
            **kwargs: as of the Trainer.

        Returns:
            What the Trainer returns.
        """
        self._loss = None
        return super().train(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, as the Trainer does it; the last one before a step reports the loss.

        Args:
            *args: as of the Trainer.
            **kwargs: as of the Trainer.

        Returns:
            The loss of the micro-batch, as the Trainer returns it.

        Raises:
            TypeError: the optimizer is no ARS.
        """
        loss: Tensor = super().training_step(*args, **kwargs)
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        if self.accelerator.sync_gradients:
            unwrap(self.optimizer).report(self._loss)
            self._loss = None
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does; entries of the training loss with the metrics of ARS.

        Args:
            logs: the entry, which is added to.
            *args: as of the Trainer.
            **kwargs: as of the Trainer.
        """
        ars = find(self.optimizer)
        # Here and not in a callback: the loggers' callbacks run before the user's.
        if self.logs_metrics and ars is not None and "loss" in logs:
            logs.update(ars.metrics())
        super().log(logs, *args, **kwargs)


class ResilientTrainer(ObservesLoss, Trainer):  # type: ignore[misc, unused-ignore]
    """A Trainer whose optimizer is an ARS that sees every loss.

    Args:
        *args: as of `transformers.Trainer`.
        ars: arguments of ARS, such as {"start_up": 0}, around the optimizer that the Trainer makes.
        **kwargs: as of `transformers.Trainer`. An optimizer given by `optimizers` is wrapped too,
            unless it is an ARS.

    Raises:
        ValueError: `ars` is given beside an ARS.
        TypeError: `ars` is no dict; or, from `train`, holds what ARS does not know.
    """

    def __init__(self, *args: Any, ars: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if ars is not None and not isinstance(ars, dict):
            raise TypeError(
                f"ars must be a dict of arguments of ARS, got {ars!r}; as {{'seed': 1}}"
            )
        super().__init__(*args, **kwargs)
        if ars and find(self.optimizer) is not None:
            raise ValueError(
                f"ars must be None beside an optimizer that is an ARS, got {ars!r}; give the "
                "settings to that ARS"
            )
        self._ars_settings = ars or {}

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Make the optimizer as the Trainer does, and wrap it."""
        optimizer: Optimizer = super().create_optimizer(*args, **kwargs)
        if find(optimizer) is None:
            optimizer = ARS(optimizer, **self._ars_settings)
        self.optimizer = optimizer
        return optimizer


class ResilientTrainerCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Stops the run on RCA's word, read from any value that the Trainer logs.

    A resumed run goes on from the log that the checkpoint holds; nothing else has to be saved.

    Args:
        stop_on: key in the log: "loss" (the mean since the last entry, see `logging_steps`: the
            run can stop within an epoch and without evaluation) or a metric such as "eval_loss".
        mode: "min" or "max".
        train_on: key in the log of the same loss on the training data, as "loss" beside
            "eval_loss": the mean of its entries since the last evaluation (if there are none, the
            mean before) tells RCA how long to wait, see `RCA.update`. None: RCA goes without.
        **settings: of `RCA`; `min_values` is the least number of entries before a stop. Its 12 are
            meant for evaluations, or means over many steps: a log of every step needs hundreds.

    Attributes:
        rca: the monitor; `rca.reading` is what it says, None before the first value.

    Raises:
        TypeError: `stop_on` or `train_on` is no str, or a setting is unknown or of a wrong type.
        ValueError: `mode` is unknown, a setting out of range, or `train_on` is `stop_on` itself, or
            given with mode "max" or preset "paper".
    """

    def __init__(
        self,
        stop_on: str = "eval_loss",
        *,
        mode: str = "min",
        train_on: str | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(stop_on, str):
            raise TypeError(f"stop_on must be a key of the log, got {stop_on!r}; as 'eval_loss'")
        self.stop_on = stop_on
        self.train_on = train_on
        self._train_losses: list[float] = []  # since the last one told
        self._train: float | None = None  # the last one told
        self._mode, self._settings = mode, settings
        self.rca: RCA = RCA(mode=mode, **settings)
        check_train_on(train_on, stop_on, self.rca)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take in the log of the run that is resumed, empty for a new one."""
        self.rca = RCA(mode=self._mode, **self._settings)
        self._train_losses, self._train = [], None
        for entry in state.log_history:
            self._take(entry)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Take in a log entry, and stop if there is nothing more to be had."""
        reading = self._take(logs or {})
        if reading is not None and reading.recommendation == "stop":
            log.info("RCA stops the run at step %d: %s", state.global_step, reading)
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say so if there was nothing to judge by, or no training loss to tell."""
        without_train = self.train_on is not None and self._train is None
        missing = {"stop_on": self.rca.reading is None, "train_on": without_train}
        for name in (name for name, is_missing in missing.items() if is_missing):
            log.warning(
                "%s must be a key that the Trainer logs in mid-run, got %r where there were %s; "
                "see logging_steps and eval_strategy.",
                name, getattr(self, name), sorted({key for e in state.log_history for key in e}),
            )  # fmt: skip

    def _take(self, logs: dict[str, Any]) -> Reading | None:
        train = logs.get(self.train_on) if self.train_on is not None else None
        if train is not None and math.isfinite(train):
            self._train_losses.append(train)
        value = logs.get(self.stop_on)
        if value is None:
            return None
        if self._train_losses:
            self._train, self._train_losses = fmean(self._train_losses), []
        return self.rca.update(value, train=self._train)
