"""One run: train a small GPT, shift its text in mid-run, and record what happened.

Every random choice has a generator of its own: initialisation and method by the run's seed,
training batches by (seed, step), evaluation batches fixed for good. So all methods see identical
weights and batches, evaluating changes nothing, and a resumed run is the run it would have been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanogpt_demo import measures
from nanogpt_demo.checkpoint import Checkpoint
from nanogpt_demo.corpus import Corpus
from nanogpt_demo.methods import Method, build_method
from nanogpt_demo.model import GPT, build, parameter_count
from nanogpt_demo.shifts import SHIFTS
from nanogpt_demo.spec import SIZES, RunSpec, Size

PUBLISHED_NORM = 100.0  # "diverged" in the published experiment: total weight norm above this
CHECKPOINT_SECONDS = 60.0
EVAL_STREAM = (9, 2)
CPU = torch.device("cpu")

OnStep = Callable[[int, float], None]
Batch = tuple[Tensor, Tensor]
Trace = dict[str, list[float]]


def cut_batch(tokens: Tensor, size: Size, generator: np.random.Generator) -> Batch:
    """Cut random sequences out of a text.

    Args:
        tokens: int64 (N,), longer than the context.
        size: Gives batch and context.
        generator: Source of the offsets.

    Returns:
        Inputs and the tokens that follow them, both int64 (batch, block).
    """
    offsets = generator.integers(0, len(tokens) - size.block, size=(size.batch, 1))
    rows = tokens[torch.from_numpy(offsets + np.arange(size.block + 1))]
    return rows[:, :-1], rows[:, 1:]


class Batches:
    """The data of one run, the same for every method.

    Args:
        spec: Which run.
        corpus: The text.
        device: Where the model is.
    """

    def __init__(self, spec: RunSpec, corpus: Corpus, device: torch.device = CPU) -> None:
        """Shift the splits once."""
        shift = SHIFTS[spec.shift]
        self._device = device
        self._spec = spec
        self._size = SIZES[spec.size]
        self._before = corpus.train
        self._after = shift(corpus.train)
        self._val = shift(corpus.val) if spec.shifts else corpus.val

    def train(self, step: int) -> Batch:
        """Training batch of ``step``: a pure function of the seed and the step."""
        tokens = self._before if step < self._spec.shift_at else self._after
        return self._cut(tokens, np.random.default_rng([self._spec.seed, 1, step]))

    def evaluation(self) -> list[Batch]:
        """Fixed clean validation batches of the final distribution, the same for all seeds."""
        generator = np.random.default_rng(EVAL_STREAM)
        return [self._cut(self._val, generator) for _ in range(self._size.eval_batches)]

    def _cut(self, tokens: Tensor, generator: np.random.Generator) -> Batch:
        x, y = cut_batch(tokens, self._size, generator)
        return x.to(self._device), y.to(self._device)


def evaluate(model: GPT, batches: list[Batch]) -> float:
    """Mean loss of ``model`` over ``batches``, in nats per token."""
    model.eval()
    with torch.no_grad():
        losses = [float(model(x, y)[1]) for x, y in batches]
    model.train()
    return math.fsum(losses) / len(losses)


@dataclass
class Progress:
    """What a run has gathered so far; all of it goes into a checkpoint."""

    val_start: float
    trace: Trace = field(default_factory=lambda: {"loss": []})
    touched: int = 0
    norm_max: float = 0.0
    norm_100_at: int | None = None
    seconds: float = 0.0

    @property
    def step(self) -> int:
        """Number of steps done."""
        return len(self.trace["loss"])

    def add(self, loss: float, method: Method, norm: float) -> None:
        """Note one step: its loss, what the method saw and did, the weight norm after it."""
        if not norm <= PUBLISHED_NORM and self.norm_100_at is None:
            self.norm_100_at = self.step
        self.trace["loss"].append(loss)
        for name, value in method.trace().items():
            self.trace.setdefault(name, []).append(value)
        self.touched += method.touched
        self.norm_max = max(self.norm_max, norm) if math.isfinite(norm) else norm


def weight_norm(parameters: list[Tensor]) -> float:
    """Euclidean norm of all parameters together."""
    with torch.no_grad():
        return float(torch.stack(torch._foreach_norm(parameters)).norm())


def run(
    spec: RunSpec,
    corpus: Corpus,
    on_step: OnStep | None = None,
    checkpoint: Path | None = None,
    commit: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    device: torch.device = CPU,
) -> tuple[dict[str, Any], dict[str, list[float | None]]]:
    """Train once.

    Args:
        spec: Which run.
        corpus: The loaded ``spec.corpus``.
        on_step: Called with (step, loss) after every step.
        checkpoint: File to save the half-done run in and to resume it from; gone when it is done.
        commit: Which code this is; a checkpoint of other code is not resumed.
        checkpoint_seconds: Time between two checkpoints.
        device: Where to train.

    Returns:
        The record (flat, JSON-ready) and the trace of every step (four significant digits, None
        for non-finite values).
    """
    identity = {**spec.as_dict(), "corpus_sha256": corpus.sha256, "commit": commit}
    batches = Batches(spec, corpus, device)
    evaluation = batches.evaluation()
    model = build(SIZES[spec.size].config(corpus.vocab_size), spec.seed).to(device)
    method = build_method(spec.method, model, spec.lr, spec.seed)
    saved = Checkpoint(checkpoint, identity, model, method, checkpoint_seconds)
    state = saved.load()
    progress = Progress(**state) if state else Progress(val_start=evaluate(model, evaluation))
    train(model, method, batches, spec.steps, progress, on_step, lambda: saved.save(vars(progress)))
    val = evaluate(model, evaluation)
    saved.remove()
    record = _record(spec, corpus, model, progress, val) | {"commit": commit}
    return record, {name: [rounded(v) for v in vs] for name, vs in progress.trace.items()}


def train(
    model: GPT,
    method: Method,
    batches: Batches,
    steps: int,
    progress: Progress,
    on_step: OnStep | None,
    after_step: Callable[[], None],
) -> None:
    """Go on from ``progress.step`` up to ``steps``."""
    parameters: list[Tensor] = list(model.parameters())
    for step in range(progress.step, steps):
        began = time.perf_counter()
        loss = model(*batches.train(step))[1]
        method.zero_grad()
        loss.backward()
        value = float(loss.detach())
        method.step(loss.detach())
        progress.add(value, method, weight_norm(parameters))
        progress.seconds += time.perf_counter() - began
        if on_step is not None:
            on_step(step, value)
        after_step()


def rounded(value: float) -> float | None:
    """Four significant digits; None for a non-finite value, which JSON cannot hold."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def finite(value: float | None) -> float | None:
    """The value itself, or None if it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def _record(
    spec: RunSpec, corpus: Corpus, model: GPT, progress: Progress, val: float
) -> dict[str, Any]:
    losses = progress.trace["loss"]
    after = losses[spec.shift_at :]
    healthy = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    return {
        **spec.as_dict(),
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "params": parameter_count(model),
        "val_start": finite(progress.val_start),
        "val": finite(val),
        "survived": healthy and val < progress.val_start,
        "recovery_steps": None,  # needs the other methods: filled in by the summary
        "gap": finite(measures.gap(losses, spec.shift_at)),
        "mean_after": finite(float(np.mean(after))) if after else None,
        "spike_score": measures.spike_score(losses),
        "weight_norm_100_at": progress.norm_100_at,
        "weight_norm_max": finite(progress.norm_max),
        "touched": progress.touched / spec.steps,
        "seconds": round(progress.seconds, 2),
    }
