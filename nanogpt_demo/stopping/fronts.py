"""Pareto fronts of saved compute against regret, and comparisons along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nanogpt_demo.stopping.curves import Array

Point = tuple[float, float]  # saved, regret


def pareto(points: Mapping[str, Point]) -> list[str]:
    """Names of the points that no other one beats, by what they save.

    One beats another if it saves at least as much at no more regret, and is better in one of them.
    """
    found, lowest = [], np.inf
    # From the most saved on, each has to have less regret than all before it.
    for name in sorted(points, key=lambda n: (-points[n][0], points[n][1])):
        if points[name][1] < lowest:
            lowest = points[name][1]
            found.append(name)
    return found[::-1]


def front(saved: ArrayLike, regret: ArrayLike) -> tuple[Array, Array]:
    """The front of a family, beginning with full training, which saves and loses nothing.

    Returns:
        Saved and regret of the points on it; both rise strictly.
    """
    places = np.column_stack([np.append(saved, 0.0), np.append(regret, 0.0)])
    points = {str(i): (float(s), float(r)) for i, (s, r) in enumerate(places)}
    kept = np.array([points[name] for name in pareto(points)])
    return kept[:, 0], kept[:, 1]


def gain_over(point: Point, saved: ArrayLike, regret: ArrayLike) -> float:
    """Share of the budget that ``point`` saves beyond the best of a family at equal regret.

    Between two settings of the family the line between them counts: choosing between the two by
    lot gets there. Beyond its last setting it saves no more.
    """
    best_saved, best_regret = front(saved, regret)
    return float(point[0] - np.interp(point[1], best_regret, best_saved))


def dominance(
    families: Mapping[str, Sequence[Point]], ours: str, within: tuple[float, float]
) -> list[dict[str, Any]]:
    """Regret of ours and of the best other family at the same saved share, every five points.

    Args:
        families: Points of each.
        ours: A key of it.
        within: The lowest and the highest share looked at.

    Returns:
        For each share: our regret (None where no setting of ours saves so much), that of the best
        other family, its name, and whether ours is no higher.
    """
    fronts = {name: front(*np.array(points).T) for name, points in families.items()}
    steps = round((within[1] - within[0]) / 0.05)
    rows = []
    for share in np.linspace(*within, steps + 1):
        at = {
            name: float(np.interp(share, saved, regret))
            for name, (saved, regret) in fronts.items()
            if saved[-1] >= share
        }
        mine = at.pop(ours, None)
        best = min(at, key=lambda name: at[name], default=None)
        rows.append(
            {
                "saved": round(float(share), 2),
                "ours": mine,
                "best_other": None if best is None else at[best],
                "other": best,
                "on_front": mine is not None and (best is None or mine <= at[best]),
            }
        )
    return rows
