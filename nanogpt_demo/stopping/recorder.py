"""Records all learning curves into ``curves.json``, or goes on where it was interrupted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from nanogpt_demo.corpus import load_corpus
from nanogpt_demo.environment import commit, environment
from nanogpt_demo.stopping.design import CurveSpec, spec_of
from nanogpt_demo.stopping.record import record_curve
from nanogpt_demo.store import Document, Store
from nanogpt_demo.stress import joined
from nanogpt_demo.workers import THREADS, Outcome, reporter, run_jobs

CURVES = "curves"  # name of the result file
RISE = 0.05  # of what training gains: a rise that is more than the noise of most curves


@dataclass(frozen=True)
class CurveJob:
    """One curve to record."""

    spec: CurveSpec

    @property
    def key(self) -> str:
        """Its name."""
        return self.spec.key

    @property
    def label(self) -> str:
        """Short name for the display."""
        return self.spec.name

    @property
    def steps(self) -> int:
        """Length of the run."""
        return self.spec.steps


def work(job: CurveJob) -> Outcome:
    """Record one curve in a worker."""
    return record_curve(job.spec, reporter(job.key))


def record(
    specs: Sequence[CurveSpec], folder: Path, workers: int, command: str, console: Console
) -> list[str]:
    """Record what is not recorded yet.

    Args:
        specs: The curves wanted.
        folder: Where ``curves.json`` is or will be.
        workers: Number of processes.
        command: What the user typed.
        console: Where to show progress.

    Returns:
        Keys of the runs that failed.
    """
    for corpus in {spec.corpus for spec in specs}:
        load_corpus(corpus)  # refused here if it cannot be had, before anything is written
    store, code = Store(folder, CURVES), commit()
    known = set(store.read()["traces"])
    jobs = [CurveJob(spec) for spec in specs if spec.key not in known]
    if len(jobs) < len(specs):
        console.print(f"{len(specs) - len(jobs)} of {len(specs)} curves are recorded already")

    def add(job: CurveJob, outcome: Outcome) -> None:
        def edit(document: Document) -> None:
            records = [r for r in document["records"] if spec_of(r).key != job.key]
            records.append(outcome[0] | {"commit": code})
            traces = document["traces"] | {job.key: outcome[1]}
            before = document.get("command")
            document.clear()
            document |= {
                "command": joined(before, command),
                "commit": code,
                "environment": environment(THREADS),
                "summary": describe(records, traces),
                "records": records,
                "traces": traces,
            }

        store.change(edit)

    return run_jobs(jobs, workers, add, console, work)


def describe(records: Sequence[dict[str, Any]], traces: dict[str, Any]) -> dict[str, Any]:
    """Say by split and workload how many curves there are, and what they look like."""
    summary: dict[str, Any] = {}
    for record in records:
        shapes = summary.setdefault(record["split"], {})
        counts = shapes.setdefault(record["workload"], Counter())
        counts.update(["curves", *_shapes(record, traces[spec_of(record).key]["val_loss"])])
    return {split: {w: dict(c) for w, c in found.items()} for split, found in summary.items()}


def _shapes(record: dict[str, Any], vals: list[float | None]) -> list[str]:
    """Words for the shape of a curve."""
    if None in vals or record["val_start"] is None:
        return ["not finite"]
    loss = np.array(vals, dtype=np.float64)
    gain = record["val_start"] - loss.min()
    lowest = np.minimum.accumulate(loss)
    place = int(loss.argmin())
    rises = loss - lowest > RISE * gain
    words = {
        "best in the first half": place < len(loss) // 2,
        "best in the last tenth": place >= 0.9 * len(loss),
        "overfits": bool(loss[-1] - loss[place] > RISE * gain),
        "descends twice": bool(rises[:place].any()),
    }
    return [word for word, holds in words.items() if holds]
