"""One run: a small model trained for a number of epochs, with or without RCA."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from nanogpt_demo.converge.datasets import Data, Split
from nanogpt_demo.converge.models import build, crop_and_flip
from nanogpt_demo.experiment import finite
from resilient_optim import ARS, ResonantCallback

FULL, DEFAULT = "full budget", "RCA default"
EVALUATION_BATCH = 1000
BATCH_STREAM = 1

OnEpoch = Callable[[int, float], None]


@dataclass(frozen=True)
class Task:
    """How a data set is trained.

    Attributes:
        epochs: The usual budget.
        batch: Samples in a batch.
        lr: Learning rate of AdamW.
        preset: The preset of ResonantCallback that was published for such a task.
        published: What the published example of this very data set has beside the preset.
        augment: Whether training images are shifted and mirrored.
    """

    epochs: int
    batch: int
    lr: float
    preset: str
    published: dict[str, Any] = field(default_factory=dict)
    augment: bool = False

    @property
    def methods(self) -> dict[str, dict[str, Any] | None]:
        """What is compared, by name: the arguments of ResonantCallback, or None without it.

        The preset "easy" has the values of the default and would give the same run again.
        """
        found: dict[str, dict[str, Any] | None] = {FULL: None, DEFAULT: {"preset": "default"}}
        if self.preset != "easy":
            name = ", ".join([self.preset, *(f"{k} {v}" for k, v in self.published.items())])
            found[f"RCA {name}"] = {"preset": self.preset, **self.published}
        return found


# Epochs, batch and lr of the images, and RCA's settings: repository Freeky7819/resonant-learner,
# examples/mnist_rca.py, fashion_mnist_rca.py, cifar10_rca.py (which shifts and mirrors, too) and
# hf_bert_glue.py; that one tunes BERT, ours starts from nothing and needs more epochs.
TASKS: dict[str, Task] = {
    "digits": Task(60, 32, 1e-3, "easy"),
    "mnist": Task(20, 64, 1e-3, "easy"),
    "fashion-mnist": Task(30, 64, 1e-3, "easy"),
    "cifar10": Task(60, 128, 1e-3, "medium", augment=True),
    "sst2": Task(20, 64, 1e-3, "fine-tune", {"patience_steps": 3}),
}


def train(
    data: Data, method: str, seed: int, epochs: int, on_epoch: OnEpoch | None = None
) -> tuple[dict[str, Any], dict[str, list[float | None]]]:
    """Train until the budget is spent or RCA stops.

    The weights at the start and the batches are those of the seed under every method.

    Args:
        data: What to train on.
        method: A key of the task's ``methods``.
        seed: Of weights, batches, dropout and the optimizer's noise.
        epochs: The budget.
        on_epoch: Called after each epoch with its number, from 1, and the validation loss.

    Returns:
        The record, and the validation loss and accuracy of every epoch.
    """
    settings = TASKS[data.name].methods[method]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        run = Run(data, seed)
        trace = run.train(settings, epochs, on_epoch)
    losses, accuracies = trace["val_loss"], trace["val_accuracy"]
    reached = [loss for loss in losses if loss is not None]
    record = {
        "dataset": data.name,
        "data_sha256": data.sha256,
        "method": method,
        "rca": settings,
        "seed": seed,
        "epochs": epochs,
        "batch": run.task.batch,
        "lr": run.task.lr,
        "epochs_run": len(losses),
        "saved": 1 - len(losses) / epochs,
        "lr_reductions": run.lr_reductions,
        "best_epoch": run.best_epoch,
        "best_val_loss": min(reached) if reached else None,
        "best_accuracy": max(x for x in accuracies if x is not None),
        "accuracy_at_best": run.accuracy_at_best,
        "kept_accuracy": run.kept_accuracy,
        "seconds": round(run.seconds, 2),
    }
    return record, trace


class Run:
    """A model in training; made and trained inside ``torch.random.fork_rng``.

    Attributes:
        task: How it is trained.
        lr_reductions: Cuts of the learning rate that RCA made.
        best_epoch: The epoch of the lowest validation loss; 0 if there was none.
        accuracy_at_best: Test accuracy after that epoch.
        kept_accuracy: Test accuracy of the model as the run leaves it behind.
        seconds: Time spent on training, validation and RCA.
    """

    def __init__(self, data: Data, seed: int) -> None:
        """Build the model and its optimizer."""
        self.task = TASKS[data.name]
        self.lr_reductions = self.best_epoch = 0
        self.accuracy_at_best = self.kept_accuracy = self.seconds = 0.0
        self._data = data
        self._model = build(data)
        base = torch.optim.AdamW(self._model.parameters(), lr=self.task.lr, fused=True)
        self._optimizer = ARS(base, seed=seed, process_group=False)
        # Not the seed itself: batches and weights would be drawn from one and the same sequence.
        (batches,) = np.random.SeedSequence([seed, BATCH_STREAM]).generate_state(1).tolist()
        self._generator = torch.Generator().manual_seed(batches)

    def train(
        self, settings: dict[str, Any] | None, epochs: int, on_epoch: OnEpoch | None
    ) -> dict[str, list[float | None]]:
        """Train, and measure what comes of it.

        Args:
            settings: Arguments of ResonantCallback; None trains without it.
            epochs: The budget.
            on_epoch: See ``train``.
        """
        rca = None
        if settings is not None:
            rca = ResonantCallback(verbose=False, process_group=False, **settings)
        trace: dict[str, list[float | None]] = {"val_loss": [], "val_accuracy": []}
        best, best_state = math.inf, copy.deepcopy(self._model.state_dict())
        for epoch in range(1, epochs + 1):
            began = time.perf_counter()
            self._epoch()
            loss, accuracy = evaluate(self._model, self._data.val)
            self.seconds += time.perf_counter() - began
            if loss < best:  # looked at before RCA, which may put older weights back
                best, self.best_epoch = loss, epoch
                best_state = copy.deepcopy(self._model.state_dict())
            began = time.perf_counter()
            if rca is not None:
                rca(val_loss=loss, model=self._model, optimizer=self._optimizer, epoch=epoch)
            self.seconds += time.perf_counter() - began
            trace["val_loss"].append(finite(loss))
            trace["val_accuracy"].append(accuracy)
            if on_epoch is not None:
                on_epoch(epoch, loss)
            if rca is not None and rca.should_stop():
                break
        if rca is not None:
            rca.finalize()
            self.lr_reductions = rca.get_statistics()["lr_reductions"]
        self.kept_accuracy = evaluate(self._model, self._data.test)[1]
        self._model.load_state_dict(best_state)
        self.accuracy_at_best = evaluate(self._model, self._data.test)[1]
        return trace

    def _epoch(self) -> None:
        x, y = self._data.train
        self._model.train()
        order = torch.randperm(len(y), generator=self._generator)
        for index in torch.split(order, self.task.batch):
            if len(index) == 1:  # batch normalisation has no variance of one sample
                continue
            inputs = x[index]
            if self.task.augment:
                inputs = crop_and_flip(inputs, self._generator)
            loss = F.cross_entropy(self._model(inputs), y[index])
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step(loss)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> tuple[float, float]:
    """Mean loss in nats, and the share of samples that are classified rightly."""
    model.eval()
    total, right = 0.0, 0
    batches = (torch.split(part, EVALUATION_BATCH) for part in split)
    for inputs, labels in zip(*batches, strict=True):
        logits = model(inputs)
        total += F.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(dim=1) == labels).sum())
    return total / len(split[1]), right / len(split[1])
