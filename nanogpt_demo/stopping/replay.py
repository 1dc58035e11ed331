"""Replays every rule on every recorded curve."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from rich.console import Console
from rich.progress import track

from nanogpt_demo.stopping.curves import Curve
from nanogpt_demo.stopping.rules import METHODS, Method

Record = dict[str, Any]
Stops = dict[str, list[int]]
"""By method: the epoch after which it stops, for each curve."""


def stops_of(curve: Curve) -> list[int]:
    """Where every method stops on a curve."""
    return [method.rule(curve) for method in METHODS]


def replay(curves: Sequence[Curve], workers: int, console: Console) -> Stops:
    """Replay every method on every curve.

    Args:
        curves: What to replay on.
        workers: Number of processes.
        console: Where to show progress.
    """
    if workers == 1:
        return _by_method(track(map(stops_of, curves), "replaying", len(curves), console=console))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        found = pool.map(stops_of, curves, chunksize=4)
        return _by_method(track(found, "replaying", len(curves), console=console))


def _by_method(rows: Iterable[list[int]]) -> Stops:
    columns = zip(*rows, strict=True)
    return dict(zip((method.name for method in METHODS), map(list, columns), strict=True))


def records_of(
    curves: Sequence[Curve], stops: Stops, methods: Sequence[Method] = METHODS
) -> list[Record]:
    """What every default method's stops come to, curve by curve."""
    return [
        _record(curve, method, stops[method.name][index])
        for method in methods
        if method.default
        for index, curve in enumerate(curves)
    ]


def _record(curve: Curve, method: Method, stop: int) -> Record:
    outcome = curve.outcome(stop)
    return {
        "curve": curve.name,
        "workload": curve.workload,
        "split": curve.split,
        "method": method.name,
        "stop_step": stop,
        "saved": round(outcome.saved, 5),
        "regret": round(outcome.regret, 7),
        "wrong_stop": outcome.wrong,
    }
