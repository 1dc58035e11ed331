"""The live part: rules that change the learning rate cannot be replayed, they have to be run.

Every run starts from the same weights and sees the same batches under each policy; the budget is
that of the recorded curves, the learning rate is constant until a policy cuts it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from nanogpt_demo import measures
from nanogpt_demo.environment import commit, environment
from nanogpt_demo.experiment import OnStep, finite
from nanogpt_demo.markdown import markdown
from nanogpt_demo.stopping.curves import STILL_TO_GAIN
from nanogpt_demo.stopping.design import CurveSpec, design, spec_of
from nanogpt_demo.stopping.record import Run
from nanogpt_demo.store import Document, Store
from nanogpt_demo.stress import joined
from nanogpt_demo.workers import THREADS, Outcome, reporter, run_jobs
from resilient_optim.callback import ResonantCallback

LIVE = "stopping_live"  # name of the result file
SEEDS = (11, 12, 13)
WORKLOADS = ("mlp", "regression")  # the fast ones
CONFIGS = ("constant", "high-lr", "low-lr", "tiny-batch", "label-noise", "overfit")

Policy = Callable[[Mapping[str, float], Run, int], bool]
"""Told what an epoch brought, the run and the number of epochs; returns whether to stop."""


def full_budget() -> Policy:
    """Train to the end."""
    return lambda found, run, epoch: False


class Patience:
    """Patience early stopping.

    Args:
        stop_after: Epochs in a row without a new best after which to stop.
    """

    def __init__(self, stop_after: int) -> None:
        """Nothing has been seen."""
        self._stop_after, self._waited, self._best = stop_after, 0, math.inf

    def __call__(self, found: Mapping[str, float], run: Run, epoch: int) -> bool:
        """Say whether to stop."""
        loss = found["val_loss"]
        self._waited = 0 if loss < self._best else self._waited + 1
        self._best = min(self._best, loss)
        return self._waited >= self._stop_after


class Plateau(Patience):
    """Torch's ReduceLROnPlateau, and patience on top of it.

    Args:
        stop_after: As `Patience` takes it.
        **settings: As ReduceLROnPlateau takes them.
    """

    def __init__(self, stop_after: int, **settings: Any) -> None:
        """Wait for the first epoch, which brings the optimizer."""
        super().__init__(stop_after)
        self._settings = settings
        self._scheduler: ReduceLROnPlateau | None = None

    def __call__(self, found: Mapping[str, float], run: Run, epoch: int) -> bool:
        """Cut the learning rate if it is time, and say whether to stop."""
        if self._scheduler is None:
            self._scheduler = ReduceLROnPlateau(run.optimizer, **self._settings)
        self._scheduler.step(found["val_loss"])
        return super().__call__(found, run, epoch)


class Resonant:
    """ResonantCallback as it comes.

    Args:
        told: Whether it is told the training losses as well.
    """

    def __init__(self, told: bool = False) -> None:
        """Keep the best state in memory."""
        self._callback = ResonantCallback(verbose=False, process_group=False)
        self._told = told

    def __call__(self, found: Mapping[str, float], run: Run, epoch: int) -> bool:
        """Let it cut, and say whether to stop."""
        optimizer: Optimizer = run.optimizer
        train = found["train_loss"] if self._told else None
        self._callback(found["val_loss"], run.model, optimizer, epoch, train_loss=train)
        return bool(self._callback.should_stop())


FULL, RESONANT = "full budget", "ResonantCallback"
RESONANT_TOLD = f"{RESONANT}, training loss told"
POLICIES: dict[str, Callable[[], Policy]] = {
    FULL: full_budget,
    "patience 10": lambda: Patience(10),
    "ReduceLROnPlateau + patience 25": lambda: Plateau(25),
    "ReduceLROnPlateau(factor 0.5, patience 3) + patience 10": lambda: Plateau(
        10, factor=0.5, patience=3
    ),
    RESONANT: Resonant,
    RESONANT_TOLD: lambda: Resonant(told=True),
}
"""Torch's defaults are factor 0.1 and patience 10: 25 epochs leave room for two cuts. The second
one has the factor and the patience of ResonantCallback."""


@dataclass(frozen=True)
class LiveJob:
    """One configuration under one policy."""

    spec: CurveSpec
    policy: str

    @property
    def key(self) -> str:
        """Its name."""
        return f"{self.spec.key}-{self.policy}"

    @property
    def label(self) -> str:
        """Short name for the display."""
        return f"{self.spec.name} {self.policy}"

    @property
    def steps(self) -> int:
        """Length of the run, if it is not stopped."""
        return self.spec.steps


def live_specs(corpus: str) -> list[CurveSpec]:
    """The held-out level of some fast configurations, on seeds of their own."""
    chosen = [
        spec
        for spec in design(corpus, 1)
        if spec.split == "held-out" and spec.workload in WORKLOADS and spec.config in CONFIGS
    ]
    return [replace(spec, seed=seed) for seed in SEEDS for spec in chosen]


def run_live(spec: CurveSpec, policy: str, on_step: OnStep | None = None) -> dict[str, Any]:
    """Train under a policy until it stops, or to the end.

    Args:
        spec: Which run.
        policy: A key of ``POLICIES``.
        on_step: Called with (step, loss) after every step.
    """
    run, decide = Run(spec), POLICIES[policy]()
    val_start = run.start()
    began = time.perf_counter()
    run.follow_schedule()
    vals: list[float] = []
    lr = spec.lr
    for epoch in range(1, spec.epochs + 1):
        found = run.epoch(on_step)
        vals.append(found["val_loss"])
        lr = found["lr"]
        if decide(found, run, epoch):
            break
    seconds = time.perf_counter() - began
    kept = float(np.nanmin(vals)) if np.isfinite(vals).any() else math.nan
    return {
        **asdict(spec),
        "policy": policy,
        "val_start": finite(val_start),
        "val": finite(kept),
        "lr_end": lr,
        "stop_step": len(vals),
        "saved": 1 - len(vals) / spec.epochs,
        "seconds": round(seconds, 2),
    }


def work(job: LiveJob) -> Outcome:
    """Do one run in a worker."""
    return run_live(job.spec, job.policy, reporter(job.key)), {}


def live(
    specs: Sequence[CurveSpec], folder: Path, workers: int, command: str, console: Console
) -> list[str]:
    """Run every configuration under every policy, or go on with it; return what failed."""
    store, code = Store(folder, LIVE), commit()
    known = {LiveJob(spec_of(r), r["policy"]).key for r in store.read()["records"]}
    jobs = [LiveJob(spec, policy) for spec in specs for policy in POLICIES]
    jobs = [job for job in jobs if job.key not in known]

    def add(job: LiveJob, outcome: Outcome) -> None:
        def edit(document: Document) -> None:
            records = [*document["records"], outcome[0] | {"commit": code}]
            before = document.get("command")
            document.clear()
            document |= {
                "command": joined(before, command),
                "commit": code,
                "environment": environment(THREADS),
                "summary": summarise_live(records),
                "records": records,
                "traces": {},
            }

        store.change(edit)

    return run_jobs(jobs, workers, add, console, work)


def summarise_live(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By policy: what it saves, and what it loses to the full budget on the same run.

    The regret is a share of what the full budget gains; it is negative where lower learning rates
    reach what the constant one does not.
    """
    full = {spec_of(r).key: r for r in records if r["policy"] == FULL}
    summary: dict[str, Any] = {}
    for policy in POLICIES:
        pairs = [
            (r, full[spec_of(r).key])
            for r in records
            if r["policy"] == policy and spec_of(r).key in full
        ]
        regrets = [_regret(ours, reference) for ours, reference in pairs]
        if not regrets:
            continue
        saved = measures.mean_se([ours["saved"] for ours, _ in pairs])
        regret = measures.mean_se(regrets)
        summary[policy] = {
            "n": len(regrets),
            "saved": saved.mean,
            "saved_se": saved.se,
            "regret": regret.mean,
            "regret_se": regret.se,
            "wrong_stop": sum(value > STILL_TO_GAIN for value in regrets) / len(regrets),
        }
    return summary


def _regret(ours: dict[str, Any], reference: dict[str, Any]) -> float:
    if ours["val"] is None:
        return 1.0
    gain = reference["val_start"] - reference["val"]
    return float((ours["val"] - reference["val"]) / gain)


def live_table(document: Document) -> str:
    """What the policies save and lose, as Markdown."""
    rows = [
        [
            name,
            str(n["n"]),
            f"{100 * n['saved']:.1f} ± {100 * (n['saved_se'] or 0):.1f} %",
            f"{100 * n['regret']:.2f} ± {100 * (n['regret_se'] or 0):.2f} %",
            f"{100 * n['wrong_stop']:.0f} %",
        ]
        for name, n in document["summary"].items()
    ]
    return markdown(["policy", "runs", "saved", "regret", "wrong stops"], rows)
