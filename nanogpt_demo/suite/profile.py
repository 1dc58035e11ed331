"""What a run is worth, and comparisons over many cells: ranks, profiles, sweeps, ablations.

A run is worth its *capped* loss, see ``capped``. Time to target and its profile follow AlgoPerf
(Dahl et al., arXiv 2306.07179), the sensitivity follows Wortsman et al. (arXiv 2309.14322).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

from nanogpt_demo import measures
from nanogpt_demo.summary import OURS, Record

TARGET_SHARE = 0.05  # of what the best method gains: the distance that still counts as there
R_MAX = 4.0  # AlgoPerf's limit: who takes longer than this many times the fastest scores nothing

VERDICTS = ("better", "tied", "unclear", "worse")

TRIED_ON = "ars no snapshots"
"""What ideas are tried on, and compared with."""

Runs = dict[int, Record]  # by seed
Cell = dict[str, Runs]  # by method
Cells = dict[str, Cell]  # by name of the cell
Summary = dict[str, Any]


def capped(record: Record) -> float:
    """Clean loss at the end, at most that of the untrained model: what a dead run is worth."""
    start, val = float(record["val_start"]), record["val"]
    return start if val is None or not math.isfinite(val) else min(float(val), start)


def mean_capped(runs: Runs) -> float:
    """Mean capped loss of a method over its seeds."""
    return fmean(capped(run) for run in runs.values())


def seeds_of(cell: Cell) -> list[int]:
    """All seeds that any method of the cell has run on."""
    return sorted({seed for runs in cell.values() for seed in runs})


def complete(cell: Cell) -> list[str]:
    """Methods that have run on every seed of the cell; others cannot be compared fairly."""
    seeds = set(seeds_of(cell))
    return [method for method, runs in cell.items() if runs.keys() == seeds]


def levels(cell: Cell) -> tuple[float, float]:
    """Loss of the untrained model, and of the best method (lowest mean over all seeds)."""
    start = fmean(float(run["val_start"]) for runs in cell.values() for run in runs.values())
    return start, min((mean_capped(cell[method]) for method in complete(cell)), default=start)


def target(cell: Cell) -> float | None:
    """Loss that counts as there; None if no method has learned anything.

    It is set as a share of the way from the untrained model to the best method, so that it means
    the same for a cross-entropy near 2 and a squared error near 0.01.
    """
    start, best = levels(cell)
    return best + TARGET_SHARE * (start - best) if best < start else None


def time_to_target(record: Record, goal: float | None) -> float | None:
    """Share of the run until its clean loss is at or below ``goal``.

    Returns:
        None if it never is, or if the run did not survive: a model that is lost later is no use.
    """
    if goal is None or not record["survived"]:
        return None
    curve = record["curve"]
    reached = (i for i, loss in enumerate(curve, 1) if loss is not None and loss <= goal)
    first = next(reached, None)
    return None if first is None else first / len(curve)


def compare_runs(a: Runs, b: Runs) -> Summary:
    """Difference in capped loss, ``a`` minus ``b``, paired over the seeds both have."""
    seeds = sorted(a.keys() & b.keys())
    left, right = ([capped(runs[seed]) for seed in seeds] for runs in (a, b))
    pair = measures.paired(left, right) if seeds else None
    same = bool(seeds) and left == right  # a tie even on one seed, where there is no error
    return {
        "mean": pair and pair.mean,
        "se": pair and pair.se,
        "n": len(seeds),
        "verdict": "tied" if same else measures.verdict(pair),
    }


def tally(verdicts: Iterable[str]) -> dict[str, int]:
    """How often each verdict occurs."""
    found = Counter(verdicts)
    return {verdict: found[verdict] for verdict in VERDICTS}


def common(cells: Cells) -> list[str]:
    """Methods that run in every one of the cells."""
    first = next(iter(cells.values()), {})
    return [method for method in first if all(method in cell for cell in cells.values())]


def average_ranks(scores: Sequence[float]) -> list[float]:
    """Rank of each score, 1 for the lowest; equal ones share the mean of their places."""
    return [
        1 + sum(other < score for other in scores) + (sum(o == score for o in scores) - 1) / 2
        for score in scores
    ]


def ranks(cells: Cells) -> dict[str, Any]:
    """Mean rank over (cell, seed) pairs of the methods that run in every cell.

    Returns:
        ``pairs``: how many pairs all these methods have run on, only they count; ``mean``: by
        method, best first. Runs that did not survive all share the last place.
    """
    methods = common(cells)
    rows = []
    for cell in cells.values():
        for seed in set(seeds_of(cell)).intersection(*(cell[method] for method in methods)):
            runs = [cell[method][seed] for method in methods]
            rows.append(average_ranks([capped(r) if r["survived"] else math.inf for r in runs]))
    means = dict(zip(methods, map(fmean, zip(*rows, strict=True)), strict=True)) if rows else {}
    return {"pairs": len(rows), "mean": dict(sorted(means.items(), key=lambda item: item[1]))}


def profile(cells: Cells) -> dict[str, Any]:
    """Performance profile of the methods that run in every cell.

    Returns:
        By method, best first: ``score`` is the area under the profile up to ``R_MAX``, ``ratios``
        the sorted ratios to the fastest method of each cell, null where the target is missed.
    """
    methods = common(cells)
    ratios: dict[str, list[float]] = {method: [] for method in methods}
    for cell in cells.values():
        goal = target(cell)
        times = {method: _median_time(cell[method], goal) for method in methods}
        fastest = min(times.values(), default=math.inf)
        for method, time in times.items():
            ratios[method].append(time / fastest if math.isfinite(time) else math.inf)
    return {
        method: {
            "score": profile_score(values),
            "ratios": [r if math.isfinite(r) else None for r in sorted(values)],
        }
        for method, values in sorted(ratios.items(), key=lambda item: -profile_score(item[1]))
    }


def _median_time(runs: Runs, goal: float | None) -> float:
    times = (time_to_target(run, goal) for run in runs.values())
    return median(math.inf if time is None else time for time in times)


def profile_score(ratios: Sequence[float]) -> float:
    """Area under the share of ratios at or below tau, for tau from 1 to ``R_MAX``, scaled to 1.

    Each ratio r adds a step that is 1 from r on, so the integral is the mean of ``R_MAX`` - r.
    """
    return fmean(max(R_MAX - ratio, 0.0) / (R_MAX - 1) for ratio in ratios) if ratios else 0.0


def lr_sweep(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """Loss by learning rate, and how much a method loses on average by a rate that is not the best.

    Args:
        records: The runs of the sweep.

    Returns:
        By ``workload/optimizer`` and method: ``lrs``, mean capped loss ``val``, its ``se``, and
        ``sensitivity``: the mean over rates of ``val`` minus the best of any method and rate.
    """
    found: dict[str, dict[str, dict[float, list[float]]]] = {}
    for record in records:
        methods = found.setdefault(f"{record['workload']}/{record['optimizer']}", {})
        rates = methods.setdefault(record["method"], {})
        rates.setdefault(float(record["lr"]), []).append(capped(record))
    return {name: _sweep(methods) for name, methods in found.items()}


def _sweep(methods: dict[str, dict[float, list[float]]]) -> dict[str, Any]:
    means = {
        method: {lr: measures.mean_se(rates[lr]) for lr in sorted(rates)}
        for method, rates in methods.items()
    }
    best = min(value.mean for rates in means.values() for value in rates.values())
    return {
        method: {
            "lrs": list(rates),
            "val": [value.mean for value in rates.values()],
            "se": [value.se for value in rates.values()],
            "sensitivity": fmean(value.mean - best for value in rates.values()),
        }
        for method, rates in means.items()
    }


def ablation(variants: Cells, cells: Cells) -> dict[str, Summary]:
    """What becomes of ``ars`` without one of its parts.

    Args:
        variants: Runs of the ablation.
        cells: Runs of the suite; each variant is paired with ``ars`` on the same seeds, and where
            there are runs of ``TRIED_ON``, the others are paired with those.

    Returns:
        By variant: the paired difference (variant minus ``ars``) in each cell, a tally of their
        verdicts, and ``cost``: the mean over cells in percent of what ``ars`` learns there.
    """
    found: dict[str, dict[str, Summary]] = {}
    for name, cell in variants.items():
        ours = cells.get(name, {}).get(OURS, {})
        for variant, runs in cell.items():
            against = ours if variant == TRIED_ON else cell.get(TRIED_ON, ours)
            if against.keys() & runs.keys():
                found.setdefault(variant, {})[name] = _cost(runs, against)
    return {variant: _ablated(pairs) for variant, pairs in found.items()}


def _cost(runs: Runs, ours: Runs) -> Summary:
    """Paired difference from ``ars``, also in percent of what ``ars`` learns on these seeds."""
    both = [ours[seed] for seed in runs.keys() & ours.keys()]
    gained = fmean(float(run["val_start"]) - capped(run) for run in both)
    pair = compare_runs(runs, ours)
    return {**pair, "percent": 100 * pair["mean"] / gained if gained > 0 else None}


def _ablated(pairs: dict[str, Summary]) -> Summary:
    percents = [pair["percent"] for pair in pairs.values() if pair["percent"] is not None]
    cost = measures.mean_se(percents)._asdict() if percents else None
    verdicts = tally(pair["verdict"] for pair in pairs.values())
    return {"cells": pairs, "verdicts": verdicts, "cost": cost}
