"""How sure the order of the methods by mean rank is: a bootstrap over the cells of the suite."""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from nanogpt_demo.suite.profile import average_ranks, capped, common, seeds_of
from nanogpt_demo.suite.summary import grouped
from nanogpt_demo.summary import Record

SAMPLES = 10_000


def rank_table(records: list[Record]) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Mean ranks in each cell of the methods that run in all of them.

    Args:
        records: runs of one split, of the kind "cell".

    Returns:
        Names of the cells, names of the methods, and ranks of shape (cells, methods), lower is
        better; runs that did not survive share the last place.
    """
    cells = grouped(records)
    methods = common(cells)
    rows = []
    for cell in cells.values():
        runs = [[cell[method][seed] for method in methods] for seed in seeds_of(cell)]
        ranks = [average_ranks([_score(run) for run in of_seed]) for of_seed in runs]
        rows.append([fmean(column) for column in zip(*ranks, strict=True)])
    return list(cells), methods, np.array(rows)


def _score(run: Record) -> float:
    return capped(run) if run["survived"] else math.inf


def interval(ranks: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over cells.

    Args:
        ranks: a number for each cell, shape (cells,).
        seed: of the draws.
    """
    draws = np.random.default_rng(seed).integers(len(ranks), size=(SAMPLES, len(ranks)))
    low, high = np.quantile(ranks[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
