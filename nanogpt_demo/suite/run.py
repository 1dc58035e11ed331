"""One run of the suite: a small model, an optimizer, a method round it, and what happens to them.

Every random choice has a generator of its own: initialisation by the run's seed, data by (seed,
step), events by (seed, step), evaluation fixed for good. So every method sees the same weights,
batches and events.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nanogpt_demo import measures
from nanogpt_demo.experiment import finite, rounded
from nanogpt_demo.methods import WARMUP_STEPS, warmup_factor
from nanogpt_demo.suite import peers
from nanogpt_demo.suite.scenarios import ONSET, SCENARIOS, At, Conditions, final_shift
from nanogpt_demo.suite.workloads import Batch, Workload, load_workload

EVALUATIONS = 20  # over a run: enough for the time to a target, cheap beside the training
COOLDOWN = 0.2  # last share of a run, in which the learning rate falls to nothing
LATE = 105  # steps: the start-up phase of the default policy

OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class SuiteSpec:
    """One run.

    Attributes:
        workload: a key of ``WORKLOADS``.
        optimizer: a key of ``OPTIMIZERS``.
        scenario: a key of ``SCENARIOS``.
        strength: of the scenario.
        method: a key of ``ALL`` peers.
        seed: of initialisation, data, events and the method's own noise.
        lr: learning rate of the base optimizer.
        split: "dev" (for choosing) or "held-out" (for reporting).
        kind: "cell", "lr-sweep" or "ablation".
        corpus: what ``load_corpus`` takes.
    """

    workload: str
    optimizer: str
    scenario: str
    strength: float
    method: str
    seed: int
    lr: float
    split: str
    kind: str
    corpus: str

    @property
    def steps(self) -> int:
        """Length of the run."""
        return load_workload(self.workload, self.corpus).steps

    @property
    def key(self) -> str:
        """Name of the run."""
        return "-".join(str(value) for value in asdict(self).values())


class World:
    """What a run meets, step by step; the same for every method.

    Args:
        spec: Which run.
        workload: Its workload.
    """

    def __init__(self, spec: SuiteSpec, workload: Workload) -> None:
        """Remember the run."""
        self._spec, self._workload = spec, workload
        self._scenario = SCENARIOS[spec.scenario]
        self._warms_up = peers.ALL[spec.method].warmup

    def conditions(self, step: int) -> Conditions:
        """Return the events of a step."""
        at = At(step, self._workload.steps, self._spec.seed)
        return self._scenario(at, self._spec.strength)

    def warming_up(self, step: int) -> bool:
        """Whether the method has its learning rate ramped up at this step."""
        return self._warms_up and step < WARMUP_STEPS - 1

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, as a factor on the nominal one.

        Every run ends with a linear cool-down, as real ones do: what is compared is what was
        learned, not the noise that a high learning rate leaves in the last weights.
        """
        ramp = warmup_factor(step) if self._warms_up else 1.0
        left = (self._workload.steps - step) / (COOLDOWN * self._workload.steps)
        return ramp * self.conditions(step).lr * min(1.0, left)

    def batch(self, step: int, now: Conditions) -> Batch:
        """Draw the data of a step, with what has happened to them."""
        rng = np.random.default_rng([self._spec.seed, 1, step])
        size = max(1, round(self._workload.batch * now.batch))
        batch = self._workload.draw(rng, size, round(size * now.shifted))
        if now.mislabel:
            batch = self._workload.mislabel(batch, rng, now.mislabel)
        return self._workload.corrupt(batch, rng) if now.corrupt else batch

    def harm(self, parameters: list[Tensor], step: int, now: Conditions) -> None:
        """Do to the gradients what the step does to them."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if now.grad != 1.0:
            torch._foreach_mul_(grads, now.grad)
        if now.poison is not None:
            rng = np.random.default_rng([self._spec.seed, 3, step])
            grads[rng.integers(len(grads))].view(-1)[0] = now.poison


class Evaluation:
    """Clean loss on the final distribution.

    Args:
        spec: Which run.
        workload: Its workload.
    """

    def __init__(self, spec: SuiteSpec, workload: Workload) -> None:
        """Fix the batches."""
        share = final_shift(spec.scenario, spec.strength, workload.steps)
        weighted = ((False, 1 - share), (True, share))
        self._workload = workload
        self._parts = [(workload.evaluation(shifted), w) for shifted, w in weighted if w > 0]

    def __call__(self, model: nn.Module) -> float:
        """Mean loss of the model as it is."""
        model.eval()
        with torch.no_grad():
            total = sum(
                weight * float(np.mean([float(self._workload.loss(model, b)) for b in batches]))
                for batches, weight in self._parts
            )
        model.train()
        return float(total)


def run(spec: SuiteSpec, on_step: OnStep | None = None) -> dict[str, Any]:
    """Train once.

    Args:
        spec: Which run.
        on_step: Called with (step, loss) after every step.

    Returns:
        The record: the spec, and what came of it; flat, JSON-ready.
    """
    workload = load_workload(spec.workload, spec.corpus)
    torch.manual_seed(spec.seed)
    model = workload.model()
    method = peers.build(spec.method, model, spec.optimizer, spec.lr, spec.seed)
    world, evaluate = World(spec, workload), Evaluation(spec, workload)
    losses: list[float] = []
    touched: list[bool] = []
    curve: list[float] = []
    val_start = evaluate(model)
    began = time.process_time()  # of this process: other runs share the machine
    error = None
    try:
        for step in range(workload.steps):
            loss = _step(model, method, world, workload, step)
            losses.append(loss)
            touched.append(bool(method.touched) or world.warming_up(step))
            if (step + 1) % (workload.steps // EVALUATIONS) == 0:
                curve.append(evaluate(model))
            if on_step is not None:
                on_step(step, loss)
    except (ArithmeticError, RuntimeError, ValueError) as raised:  # a method that gives up
        error = f"{type(raised).__name__}: {raised}"[:200]
    finally:
        close = getattr(method, "close", None)
        if close is not None:
            close()
    seconds = time.process_time() - began
    return _record(spec, model, losses, touched, curve, val_start, error, seconds)


def _step(
    model: nn.Module, method: peers.Method, world: World, workload: Workload, step: int
) -> float:
    now = world.conditions(step)
    _set_lr(method, world, step)
    model.zero_grad(set_to_none=True)
    loss = workload.loss(model, world.batch(step, now))
    if now.loss != 1.0:
        loss = loss * now.loss
    loss.backward()  # type: ignore[no-untyped-call]
    world.harm(list(model.parameters()), step, now)
    method.step(loss.detach())
    return float(loss.detach())


def _set_lr(method: peers.Method, world: World, step: int) -> None:
    """Change the learning rate by as much as the schedule changes it.

    By factors, so that what a method has done to the rate on its own account stays done.
    """
    change = world.lr(step) / (world.lr(step - 1) if step else 1.0)
    if change != 1.0:
        for group in method.optimizer.param_groups:
            group["lr"] *= change


def _record(
    spec: SuiteSpec,
    model: nn.Module,
    losses: list[float],
    touched: list[bool],
    curve: list[float],
    val_start: float,
    error: str | None,
    seconds: float,
) -> dict[str, Any]:
    steps = spec.steps
    val = curve[-1] if len(curve) == EVALUATIONS else math.nan
    healthy = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    curve += [math.nan] * (EVALUATIONS - len(curve))
    return {
        **asdict(spec),
        "steps": steps,
        "val_start": val_start,
        "val": finite(val),
        "survived": healthy and error is None and val < val_start,
        "error": error,
        "touched": sum(touched) / steps,
        "touched_late": sum(touched[LATE:]) / (steps - LATE),
        "spike_score": measures.spike_score(losses),
        "gap": finite(measures.gap(losses, int(ONSET * steps))) if losses else None,
        "curve": [rounded(value) for value in curve],
        "seconds": round(seconds, 2),
    }
