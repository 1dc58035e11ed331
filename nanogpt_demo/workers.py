"""Many runs at once: a pool of single-threaded processes and a live display of what they do.

Workers train and report; only the parent prints and writes results.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as Remaining

from nanogpt_demo.corpus import load_corpus
from nanogpt_demo.experiment import OnStep, run
from nanogpt_demo.spec import RunSpec

THREADS = 1  # of each run: as many runs side by side as there are cores is faster than any sharing
PRECISION = "high"
"""Of matrix products on a GPU: in TF32 where there is that."""
REPORT_SECONDS = 0.25

Outcome = tuple[dict[str, Any], dict[str, list[float | None]]]


class Task(Protocol):
    """What a pool has to know of a run: its name, how to show it, and how long it is."""

    @property
    def key(self) -> str:
        """Its name."""

    @property
    def label(self) -> str:
        """Short name for the display."""

    @property
    def steps(self) -> int:
        """Its length."""


T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class Job:
    """One run of the stress test to do.

    Attributes:
        key: Its name.
        spec: What to do.
        checkpoint: Where to keep it while it is half done.
        commit: Which code this is.
        device: Where to train.
    """

    key: str
    spec: RunSpec
    checkpoint: Path
    commit: str | None
    device: str = "cpu"

    @property
    def label(self) -> str:
        """Short name for the display."""
        return f"{self.spec.size} {self.spec.method} seed {self.spec.seed}"

    @property
    def steps(self) -> int:
        """Length of the run."""
        return self.spec.steps


class Stopped(Exception):
    """The parent asked this run to stop."""


_queue: Any = None
_stop: Any = None


def _attach(queue: Any, stop: Any) -> None:
    """Prepare a worker: Ctrl-C is the parent's business, which then sets ``stop``."""
    global _queue, _stop
    _queue, _stop = queue, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(THREADS)


def work(job: Job) -> Outcome:
    """Do one run in a worker, reporting a few times a second."""
    spec, device = job.spec, torch.device(job.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision(PRECISION)
    report = reporter(job.key)
    return run(spec, load_corpus(spec.corpus), report, job.checkpoint, job.commit, device=device)


def reporter(key: str) -> OnStep:
    """Return what a run in a worker calls after each step, with the step and its loss.

    It tells the parent a few times a second, and raises `Stopped` if the parent says so.
    """
    _queue.put((key, 0, None))
    last = time.monotonic()

    def report(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last < REPORT_SECONDS:
            return
        last = time.monotonic()
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)  # nobody is left to take the result; the checkpoint is on disk
        if _stop.is_set():
            raise Stopped
        _queue.put((key, step + 1, loss))

    return report


class Board:
    """Live display: one line for each active run, and one for all of them.

    Args:
        jobs: Everything that will be run.
        console: Where to draw.
    """

    def __init__(self, jobs: Sequence[Task], console: Console) -> None:
        """Lay out the display; nothing is drawn until it is entered."""
        self._jobs = {job.key: job for job in jobs}
        self._done = dict.fromkeys(self._jobs, 0)
        self._lines: dict[str, TaskID] = {}
        text = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
        self.progress = Progress(
            text[0], BarColumn(), MofNCompleteColumn(), text[1], Remaining(), console=console
        )
        total = sum(job.steps for job in jobs)
        self._all = self.progress.add_task("all runs", total=total, note="")

    @property
    def active(self) -> set[str]:
        """Keys of the runs that have started and not finished."""
        return set(self._lines)

    def show(self, key: str, step: int, loss: float | None) -> None:
        """Show that run ``key`` has done ``step`` steps."""
        if key not in self._lines:
            job = self._jobs[key]
            self._lines[key] = self.progress.add_task(job.label, total=job.steps, note="")
        note = "" if loss is None else f"loss {loss:.3f}"
        self.progress.update(self._lines[key], completed=step, note=note)
        self._count(key, step)

    def finish(self, job: Task, word: str, text: str) -> None:
        """Take a run off the display and leave one line about it."""
        if job.key in self._lines:
            self.progress.remove_task(self._lines.pop(job.key))
        self._count(job.key, job.steps)
        self.progress.console.print(f"{word} {job.label}: {text}", highlight=False)

    def _count(self, key: str, step: int) -> None:
        self._done[key] = step
        self.progress.update(self._all, completed=sum(self._done.values()))


def run_jobs(
    jobs: list[T],
    workers: int,
    on_result: Callable[[T, Outcome], None],
    console: Console,
    task: Callable[[T], Outcome],
) -> list[str]:
    """Do all jobs; one that fails does not stop the others.

    Args:
        jobs: What to do, in this order.
        workers: Number of processes.
        on_result: Called in this process with each job that succeeds, as soon as it does.
        console: Where to show progress.
        task: What a worker does with a job.

    Returns:
        Keys of the jobs that failed.

    Raises:
        KeyboardInterrupt: After the workers have been told to stop.
    """
    failed: list[str] = []
    if not jobs:
        return failed
    board = Board(jobs, console)
    with board.progress:
        todo = jobs
        while todo:
            todo = _one_pool(todo, workers, on_result, board, task, failed)
    return failed


def _one_pool(
    jobs: list[T],
    workers: int,
    on_result: Callable[[T, Outcome], None],
    board: Board,
    task: Callable[[T], Outcome],
    failed: list[str],
) -> list[T]:
    """Do jobs in one pool; return those it could not start because a worker died."""
    context = multiprocessing.get_context("spawn")
    queue, stop = context.SimpleQueue(), context.Event()
    count = min(workers, len(jobs))
    unstarted: list[T] = []
    with ProcessPoolExecutor(count, context, _attach, (queue, stop)) as pool:
        pending = {pool.submit(task, job): job for job in jobs}
        try:
            while pending:
                done, _ = wait(pending, timeout=REPORT_SECONDS, return_when=FIRST_COMPLETED)
                while not queue.empty():
                    board.show(*queue.get())
                for future in done:
                    job = pending.pop(future)
                    if _died_before(future, job, board):
                        unstarted.append(job)
                    elif not _collect(future, job, on_result, board):
                        failed.append(job.key)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return _retry(jobs, unstarted, board, failed)


def _died_before(future: Future[Outcome], job: Task, board: Board) -> bool:
    broken = isinstance(future.exception(), BrokenProcessPool)
    return broken and job.key not in board.active


def _collect(
    future: Future[Outcome], job: T, on_result: Callable[[T, Outcome], None], board: Board
) -> bool:
    error = future.exception()
    if error is not None:
        board.finish(job, "[red]failed[/]", escape(f"{type(error).__name__}: {error}"))
        return False
    record, trace = future.result()
    on_result(job, (record, trace))
    val = "not finite" if record["val"] is None else f"{record['val']:.3f}"
    board.finish(job, "[green]done[/]", f"val {val}, {record['seconds']:.0f} s")
    return True


def _retry(jobs: list[T], unstarted: list[T], board: Board, failed: list[str]) -> list[T]:
    """Jobs for the next pool; a pool that started none of its jobs would fail for ever."""
    if len(unstarted) < len(jobs):
        return unstarted
    for job in unstarted:
        board.finish(job, "[red]failed[/]", "its worker could not start")
        failed.append(job.key)
    return []
