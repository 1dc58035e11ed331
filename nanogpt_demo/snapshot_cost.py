"""The command ``snapshots``: what the snapshots of ARS cost, in time and in memory.

Two ARS step side by side on the same gradients, one with snapshots and one without, in blocks that
take turns. Each has parameters of its own, as snapshots and the check for changes from outside are
of a run's own memory.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from nanogpt_demo.bench.cases import BASES, CASES, Case
from nanogpt_demo.bench.methods import steady
from nanogpt_demo.environment import commit, environment
from nanogpt_demo.markdown import markdown
from nanogpt_demo.store import Document, Store
from nanogpt_demo.stress import DEFAULT_OUT
from resilient_optim import ARS, Budgets, Snapshots

BASE = "adamw-fused"
SECONDS = 15.0
"""Of stepping for each of the two, at least."""

SNAPSHOTS = 2
"""Distances between copies that are measured, at least: how much of the time they take shows in
whole ones only."""

BLOCK = 64
"""Steps of a turn; fewer where a step is long, so that a turn takes half a second."""

PATIENT = Budgets(stuck_steps=math.inf)
"""The gradients are the same in all steps."""

Record = dict[str, Any]


class Run:
    """An ARS with a model of its own.

    Args:
        case: what is stepped.
        snapshot: as `ARS` takes it.
    """

    def __init__(self, case: Case, snapshot: Any) -> None:
        """Build it, and let it take its first steps."""
        self._workload = case.make(torch.device("cpu"))
        self.model: nn.Module = self._workload.model()
        self.ars = ARS(
            BASES[BASE](self.model.parameters()), snapshot=snapshot, budgets=PATIENT, start_up=0
        )
        self.steps = 0
        self.copying = 0.0
        self.running = 0.0
        self._paused_at: float | None = None
        ring = self.ars._breaker.ring
        if ring is not None:
            ring.take = self._timed(ring.take)  # type: ignore[method-assign]
        self.ring = ring

    def _timed(self, take: Callable[..., int | None]) -> Callable[..., int | None]:
        def timed(*args: Any, **kwargs: Any) -> int | None:
            began = time.perf_counter()
            interval = take(*args, **kwargs)
            self.copying += time.perf_counter() - began
            return interval

        return timed

    def step(self) -> float:
        """One step; returns the seconds of what counts in this case, see `bench.cases`."""
        began = time.perf_counter()
        self._workload.gradients(self.model)
        ready = time.perf_counter()
        self.ars.step(steady(self.steps))
        self.steps += 1
        return time.perf_counter() - (began if self._workload.trains else ready)

    def block(self, steps: int) -> float:
        """Seconds of some steps; `running` counts all that the loop does for them."""
        began = time.perf_counter()
        if self._paused_at is not None:
            self._leave_out(began - self._paused_at)
        seconds = sum(self.step() for _ in range(steps))
        self._paused_at = time.perf_counter()
        self.running += self._paused_at - began
        return seconds

    def _leave_out(self, pause: float) -> None:
        """The other's turn is no time of this run: by it copies would come more often."""
        if self.ring is not None and self.ring._taken_at is not None:
            step, at = self.ring._taken_at
            self.ring._taken_at = step, at + pause

    @property
    def held(self) -> int:
        """Bytes of all copies."""
        if self.ring is None:
            return 0
        kept = {self.ring.good, self.ring.best, self.ring._candidate, *self.ring._spare}
        return sum(snapshot.nbytes for snapshot in kept if snapshot is not None)


def measure(case: Case, console: Console) -> Record:
    """Step with and without snapshots.

    Returns:
        ``step_ms`` and ``step_ms_without``: mean over all steps after the first forty, and
        ``added``: the median over the blocks of their ratio, minus 1, with quartiles; ``copying``:
        share of the run's time that copies took, from one of them to another, that between the
        steps included; ``every``: steps between the last two; ``held``: bytes of all copies,
        ``state``: bytes of what is copied.
    """
    gc.collect()
    runs = Run(case, Snapshots()), Run(case, False)
    first = max(run.block(40) for run in runs) / 40
    block = max(8, min(BLOCK, int(0.5 / first)))
    ring = runs[0].ring
    assert ring is not None
    blocks = max(8, int(SECONDS / first / block))
    totals, ratios, taken, last = [0.0, 0.0], [], 0, ring.good
    for done in track(itertools.count(1), case.name, total=blocks, console=console):
        seconds = [run.block(block) for run in runs]
        totals = [total + more for total, more in zip(totals, seconds, strict=True)]
        ratios.append(seconds[0] / seconds[1])
        if ring.good is last:
            continue
        taken, last = taken + 1, ring.good
        if taken == 1:
            runs[0].copying = runs[0].running = 0.0
        elif taken > SNAPSHOTS and done >= blocks:
            break
    assert ring.good is not None
    q1, median, q3 = np.percentile(ratios, [25, 50, 75])
    steps = block * len(ratios)
    return {
        "case": case.name,
        "base": BASE,
        "steps": steps,
        "step_ms": 1e3 * totals[0] / steps,
        "step_ms_without": 1e3 * totals[1] / steps,
        "mean_ratio": totals[0] / totals[1],
        "added": median - 1,
        "added_q1": q1 - 1,
        "added_q3": q3 - 1,
        "copying": runs[0].copying / runs[0].running,
        "every": ring._next - ring.good.step,
        "held": runs[0].held,
        "state": ring.good.nbytes,
        "seconds": sum(totals),
    }


def snapshots_table(document: Document) -> str:
    """One row for each case, as Markdown."""
    header = ["case", "step, ms", "share of the run's time spent copying", "a step longer by"]
    header += ["one copy, MB", "all copies, MB"]
    rows = [
        [
            r["case"],
            f"{r['step_ms_without']:.2f}",
            f"{100 * r['copying']:.2f} %",
            f"{100 * (r['mean_ratio'] - 1):.1f} %",
            f"{r['state'] / 1e6:.1f}",
            f"{r['held'] / 1e6:.1f}",
        ]
        for r in document["records"]
    ]
    return (
        f"{markdown(header, rows)}\n\nFused AdamW with ARS, quiet steps, two threads. The step is "
        "that without snapshots; it is longer by the copies and by the check for weights that "
        "somebody else has changed. The run's time holds what makes the gradients as well."
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the results")


def main(options: argparse.Namespace, command: str, console: Console) -> int:
    """Measure all cases.

    Args:
        options: Parsed options of ``add_arguments``.
        command: What the user typed.
        console: Where to print.

    Returns:
        Exit code 0.
    """
    store = Store(options.out, "snapshots")
    code = commit()
    records = [measure(case, console) | {"commit": code} for case in CASES]

    def edit(document: Document) -> None:
        document.clear()
        document |= {
            "command": command,
            "commit": code,
            "environment": environment(torch.get_num_threads()),
            "summary": {},
            "records": records,
        }

    console.print(snapshots_table(store.change(edit)), markup=False)
    return 0
