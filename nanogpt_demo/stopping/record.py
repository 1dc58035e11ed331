"""Records one learning curve: trains a small model to well past convergence and looks every epoch.

Every random choice has a generator of its own: initialisation by the run's seed, training set and
label noise by (seed, phase), batches by (seed, step). Evaluation is on fixed clean data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from nanogpt_demo.corpus import load_corpus
from nanogpt_demo.experiment import OnStep
from nanogpt_demo.model import GPT, GPTConfig
from nanogpt_demo.stopping.design import CurveSpec
from nanogpt_demo.suite.models import GRULanguageModel, ResidualCNN, regression_mlp
from nanogpt_demo.suite.optimizers import BETAS
from nanogpt_demo.suite.workloads import Batch, Regression, Text, Workload, load_workload
from resilient_optim.layer_variation import LayerVariationStopper

DIGITS = 5  # significant ones of everything that is kept
CLASSES = 10
PIXELS = 64
STD = "std:"  # begins the names of the traces of layers
DATA = {"cnn": "cnn", "mlp": "cnn", "regression": "mlp", "gpt": "gpt", "lstm": "gru"}
"""Workload of the suite whose data and loss are used; "cnn" there means the digits."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "steps": lambda done: 0.1 ** int(2 * done),
}
"""Learning rate as a factor on its peak, by the share of the run that is done."""

Trace = dict[str, list[float | None]]


class LSTMLanguageModel(GRULanguageModel):
    """The suite's recurrent language model with an LSTM in place of the GRU."""

    def __init__(self, vocab_size: int, width: int) -> None:
        """Build the layers."""
        super().__init__(vocab_size, width)
        self.add_module("recurrent", nn.LSTM(width, width, batch_first=True))


def _digits_mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, CLASSES),
    )  # fmt: skip


def build_model(spec: CurveSpec) -> nn.Module:
    """Build the model from torch's current random state."""
    width = spec.width
    if spec.workload == "gpt":
        return GPT(GPTConfig(load_corpus(spec.corpus).vocab_size, 2, 2, width, Text.block))
    if spec.workload == "lstm":
        return LSTMLanguageModel(load_corpus(spec.corpus).vocab_size, width)
    if spec.workload == "regression":
        return regression_mlp(Regression.width, width)
    return ResidualCNN(CLASSES, width) if spec.workload == "cnn" else _digits_mlp(width)


def build_optimizer(spec: CurveSpec, model: nn.Module) -> Optimizer:
    """Build the optimizer; only here, because the suite's have a fixed weight decay."""
    lr, decay, parameters = spec.lr, spec.weight_decay, model.parameters()
    if spec.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=decay, fused=True)


class TrainingSet:
    """A finite training set, which may be exchanged in mid-run.

    Args:
        spec: Which run.
        workload: Where the samples come from.
    """

    def __init__(self, spec: CurveSpec, workload: Workload) -> None:
        """Draw the samples of both phases."""
        self._spec = spec
        self._change = round(spec.shift_at * spec.steps)
        shares = (spec.foreign, spec.foreign_after) if self._change else (spec.foreign,)
        self._phases = [self._draw(workload, phase, share) for phase, share in enumerate(shares)]

    def _draw(self, workload: Workload, phase: int, share: float) -> Batch:
        rng = np.random.default_rng([self._spec.seed, 2, phase])
        samples = workload.draw(rng, self._spec.pool, round(share * self._spec.pool))
        noise = self._spec.label_noise
        return workload.mislabel(samples, rng, noise) if noise else samples

    def batch(self, step: int) -> Batch:
        """Return the batch of a step: drawn with replacement, by the seed and the step alone."""
        x, y = self._phases[step >= self._change if len(self._phases) > 1 else 0]
        rng = np.random.default_rng([self._spec.seed, 1, step])
        index = torch.from_numpy(rng.integers(0, len(x), size=self._spec.batch))
        return x[index], y[index]


def watch(model: nn.Module) -> LayerVariationStopper:
    """Attach what measures the spread of each layer's output: all linear, convolution and LSTM."""
    kinds = (nn.Conv2d, nn.Linear, nn.LSTM)
    layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    # Not rounded here: a replay rounds as its rule says.
    return LayerVariationStopper(model, layers, decimals=12, process_group=False)


def evaluate(spec: CurveSpec, workload: Workload, model: nn.Module) -> dict[str, float]:
    """Loss and, for classes, accuracy on the fixed clean data of the unshifted task."""
    model.eval()
    (batch,) = workload.evaluation(False)
    with torch.no_grad():
        found = {"val_loss": float(workload.loss(model, batch))}
        if spec.workload != "regression":
            text = spec.workload in ("gpt", "lstm")
            logits = model(*batch)[0] if text else model(batch[0])
            found["accuracy"] = float((logits.argmax(-1) == batch[1]).double().mean())
    model.train()
    return found


class Run:
    """A run that can be taken epoch by epoch, so that a rule may act on it.

    Args:
        spec: Which run.
    """

    def __init__(self, spec: CurveSpec) -> None:
        """Build everything; nothing is trained yet."""
        self.spec = spec
        self.workload = load_workload(DATA[spec.workload], spec.corpus)
        torch.manual_seed(spec.seed)
        self.model = build_model(spec)
        self.optimizer = build_optimizer(spec, self.model)
        self.done = 0
        self._data = TrainingSet(spec, self.workload)
        self._layers = watch(self.model)

    def start(self) -> float:
        """Validation loss before any training."""
        return evaluate(self.spec, self.workload, self.model)["val_loss"]

    def epoch(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Train for one epoch and evaluate; the learning rate is left to whoever sets it.

        Args:
            on_step: Called with (step, loss) after every step.

        Returns:
            val_loss, accuracy where there is one, train_loss, lr, and the spread of each layer.
        """
        losses = []
        for _ in range(self.spec.epoch_steps):
            losses.append(self._step())
            if on_step is not None:
                on_step(self.done - 1, losses[-1])
        return {
            **evaluate(self.spec, self.workload, self.model),
            "train_loss": float(np.mean(losses)),
            "lr": self.optimizer.param_groups[0]["lr"],
            **self._spread(),
        }

    def _spread(self) -> dict[str, float]:
        """Mean over the epoch of the standard deviation of each layer's output."""
        self._layers.end_epoch()
        named = zip(self._layers.names, self._layers.means[-1], strict=True)
        return {STD + name: mean for name, mean in named}

    def _step(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.workload.loss(self.model, self._data.batch(self.done))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.done += 1
        return float(loss.detach())

    def follow_schedule(self) -> None:
        """Set the learning rate of the coming epoch."""
        factor = SCHEDULES[self.spec.schedule](self.done / self.spec.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.lr * factor


def record_curve(spec: CurveSpec, on_step: OnStep | None = None) -> tuple[dict[str, Any], Trace]:
    """Train for the full budget.

    Args:
        spec: Which run.
        on_step: Called with (step, loss) after every step.

    Returns:
        The record (the spec, and what came of it) and the curve: a value for each epoch, to five
        significant digits, None where it is not finite.
    """
    run = Run(spec)
    val_start = run.start()
    began = time.perf_counter()
    rows = []
    for _ in range(spec.epochs):
        run.follow_schedule()
        rows.append(run.epoch(on_step))
    seconds = time.perf_counter() - began
    trace: Trace = {name: [rounded(row[name]) for row in rows] for name in rows[0]}
    finite_vals = [value for value in trace["val_loss"] if value is not None]
    record = {
        **asdict(spec),
        "name": spec.name,
        "val_start": rounded(val_start),
        "best": min(finite_vals, default=None),
        "val": trace["val_loss"][-1],
        "seconds": round(seconds, 2),
    }
    return record, trace


def rounded(value: float) -> float | None:
    """Five significant digits; None for a non-finite value, which JSON cannot hold."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
