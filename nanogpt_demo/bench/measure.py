"""Times the methods of one case in turn, round by round, on the same gradients.

A machine has good and bad moments; a ratio of two times that lie minutes apart says more of them
than of the methods. So every method has its turn in every round, in shuffled order, and is compared
with the bare optimizer of the same round. Only the step itself is timed, and in a training case the
forward and backward pass before it.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nanogpt_demo.bench.cases import BASES, SEED, Case, Workload
from nanogpt_demo.bench.memory import bytes_of
from nanogpt_demo.bench.methods import BARE, Subject, Variant, as_loss, variants_for

HISTORY = 80
"""Losses that ARS is given before anything is timed: its window is full then."""

IN_STATE = 0.95
"""Least share of the timed steps that must have been in the state that is measured."""

Record = dict[str, Any]
Rounds = NDArray[np.float64]


class WrongStateError(RuntimeError):
    """A method was in another state than the one that was to be measured."""


@dataclass
class Turns:
    """One method's part of a measurement.

    Attributes:
        variant: the method and its state.
        subject: the method, attached.
        model: what it is attached to.
        whole: seconds of each round's step, forward and backward included where they are timed.
        step: seconds of the method's own call in it.
        checked: for each timed step whether it was in the state.
        given: losses given so far.
    """

    variant: Variant
    subject: Subject
    model: nn.Module
    whole: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    checked: list[bool] = field(default_factory=list)
    given: int = 0


class Bench:
    """The methods of one case on one base optimizer.

    Args:
        case: what is stepped.
        base: a key of ``BASES``.
        device: where.
    """

    def __init__(self, case: Case, base: str, device: torch.device) -> None:
        """Attach every method to the workload."""
        self._case, self._base, self._device = case, base, device
        self._workload: Workload = case.make(device)
        self._queues = self._workload.trains and device.type == "cuda"
        self.turns: list[Turns] = []
        for variant in variants_for(base):
            model = self._workload.model()
            optimizer = BASES[base](model.parameters())
            self._workload.share(optimizer, model)
            self.turns.append(Turns(variant, variant.attach(model, optimizer), model))

    def warm_up(self) -> None:
        """Bring every method to where it does its full work."""
        for turns in self.turns:
            if turns.subject.ars is not None:
                # Without gradients a step costs next to nothing, and its loss counts all the same.
                turns.model.zero_grad(set_to_none=True)
                for _ in range(HISTORY):
                    turns.subject.step(self._next_loss(turns))
            for _ in range(turns.variant.warmup):
                self._timed(turns)

    def round(self, rng: random.Random) -> None:
        """Give every method its turn.

        Args:
            rng: of the order.
        """
        for turns in rng.sample(self.turns, len(self.turns)):
            whole, step = self._queued(turns) if self._queues else self._one_by_one(turns)
            turns.whole.append(whole)
            turns.step.append(step)

    def _one_by_one(self, turns: Turns) -> tuple[float, float]:
        """Mean times of the steps of a turn, see `_timed`; on a GPU each is waited for."""
        times = []
        for _ in range(self._case.steps):
            times.append(self._timed(turns))
            turns.checked.append(turns.subject.in_state())
        whole, step = np.mean(times, axis=0)
        return float(whole), float(step)

    def _queued(self, turns: Turns) -> tuple[float, float]:
        """As training does on a GPU: the host goes ahead, and only the end is waited for.

        What the method's own call takes cannot be told then; all that it adds is in the whole.
        """
        losses = [self._next_loss(turns) for _ in range(self._case.steps)]
        began = self._now()
        for loss in losses:
            self._workload.gradients(turns.model)
            turns.subject.step(loss)
        whole = (self._now() - began) / len(losses)
        turns.checked.append(turns.subject.in_state())
        return whole, whole

    def close(self) -> None:
        """Let the methods free what they hold."""
        for turns in self.turns:
            turns.subject.close()

    def records(self) -> list[Record]:
        """What was measured: times of every method, and bytes of ARS.

        Raises:
            WrongStateError: If a method was too often in another state than its own.
        """
        bare = next(turns for turns in self.turns if turns.variant is BARE)
        place = {"case": self._case.name, "base": self._base, "device": device_name(self._device)}
        times = [
            {"kind": "time", **place, **self._times(turns, bare)}
            | {"rounds": self._case.rounds, "steps": self._case.steps}
            for turns in self.turns
        ]
        return [*times, *(found | place for found in self._memory())]

    def _next_loss(self, turns: Turns) -> torch.Tensor:
        turns.given += 1
        return as_loss(turns.variant.losses(turns.given), self._device)

    def _timed(self, turns: Turns) -> tuple[float, float]:
        """Seconds of one step as it counts in this case, and of the method's own call in it."""
        loss = self._next_loss(turns)
        began = self._now()
        self._workload.gradients(turns.model)
        ready = self._now()
        turns.subject.step(loss)
        done = self._now()
        return done - (began if self._workload.trains else ready), done - ready

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _times(self, turns: Turns, bare: Turns) -> Record:
        variant, share = turns.variant, float(np.mean(turns.checked))
        # Where gradients are real, a peer may answer to one now and then: its users pay for that.
        may_answer = self._workload.trains and turns.subject.ars is None
        if share < IN_STATE and not may_answer:
            raise WrongStateError(
                f"{variant.method} on {self._case.name}, {self._base} must be {variant.state} at "
                f"{IN_STATE:.0%} of the timed steps, got {share:.0%}"
            )
        whole, step = np.array(turns.whole), np.array(turns.step)
        bare_whole, bare_step = np.array(bare.whole), np.array(bare.step)
        return {
            "method": variant.method,
            "state": variant.state,
            **quartiles("ms", 1e3 * whole),
            **quartiles("ratio_to_bare", whole / bare_whole),
            **quartiles("added", (step - bare_step) / bare_whole),
            "in_state": share,
        }

    def _memory(self) -> Iterator[Record]:
        for turns in self.turns:
            if turns.subject.ars is not None:
                named = {"method": turns.variant.method, "state": turns.variant.state}
                for part, size in bytes_of(turns.subject.ars).items():
                    yield {"kind": "memory", **named, "part": part, "bytes": size}


def quartiles(name: str, values: Rounds) -> dict[str, float]:
    """Median and quartiles over the rounds, five significant digits."""
    low, median, high = (float(f"{q:.5g}") for q in np.percentile(values, [25, 50, 75]))
    return {name: median, f"{name}_q1": low, f"{name}_q3": high}


@contextmanager
def attached(case: Case, base: str, device: torch.device) -> Iterator[Bench]:
    """A bench that is closed in the end."""
    bench = Bench(case, base, device)
    try:
        yield bench
    finally:
        bench.close()


def measure(
    case: Case,
    base: str,
    device: torch.device,
    track: Callable[[range], Iterable[int]] = iter,
) -> list[Record]:
    """Measure one case on one base optimizer.

    Args:
        case: what is stepped.
        base: a key of ``BASES``.
        device: where.
        track: shows the progress over the rounds.

    Returns:
        Flat records without commit. ``ms`` is the time of a step, ``ratio_to_bare`` its ratio to
        the bare optimizer's in the same round, ``added`` what the method's own call takes longer
        than the bare optimizer's, as a share of that round's bare step; each with ``_q1``, ``_q3``.

    Raises:
        WrongStateError: If a method was too often in another state than its own.
    """
    gc.collect()  # peers in cycles may keep gigabytes of the case before
    with attached(case, base, device) as bench:
        bench.warm_up()
        rng = random.Random(SEED)
        for _ in track(range(case.rounds)):
            bench.round(rng)
        return bench.records()


def device_name(device: torch.device) -> str:
    """The processor: "cpu", or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
