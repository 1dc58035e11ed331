"""From the stops to the summary: saved compute, regret and wrong stops of every method.

Means are over curves. Their intervals are bootstrapped over configurations within each workload:
the two seeds of a configuration are no independent evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanogpt_demo.stopping.curves import Array, Curve
from nanogpt_demo.stopping.fronts import dominance, gain_over, pareto
from nanogpt_demo.stopping.replay import Stops
from nanogpt_demo.stopping.rules import (
    METHODS,
    ORACLE,
    PATIENCE_FAMILIES,
    PATIENCE_TOLD,
    RCA_FAMILY,
    TOLD_FAMILY,
    Method,
)

SPLITS = ("held-out", "dev")
OURS = (RCA_FAMILY, TOLD_FAMILY)
TOLD = (TOLD_FAMILY, PATIENCE_TOLD)
"""Families that know the training loss: those that do not are not measured against them."""
RESAMPLES = 1000
SEED = 5
COVERAGE = 0.95
SAVED_RANGE = (0.2, 0.7)  # where rules are compared: less is hardly worth it, more is reckless

WANTED = {"saved": 0.36, "regret": 0.005, "wrong_stop": 0.05, "points": 0.05}
"""What the issue asks of the default: at least, at most, at most, at least."""


class Table(NamedTuple):
    """Outcomes on the curves of one split, each of shape (methods, curves)."""

    saved: Array
    regret: Array
    wrong: Array
    curves: list[Curve]


def outcomes(curves: Sequence[Curve], stops: Stops, split: str) -> Table:
    """Work out what every stop on the curves of a split comes to."""
    chosen = [(i, curve) for i, curve in enumerate(curves) if curve.split == split]
    rows = [[c.outcome(stops[method.name][i]) for i, c in chosen] for method in METHODS]
    values = np.array([[(o.saved, o.regret, o.wrong) for o in row] for row in rows], np.float64)
    saved, regret, wrong = np.moveaxis(values, 2, 0) if chosen else np.empty((3, 0, 0))
    return Table(saved, regret, wrong, [curve for _, curve in chosen])


def resample(curves: Sequence[Curve], resamples: int = RESAMPLES) -> Array:
    """Weights of the curves in each bootstrap sample, shape (resamples, curves), rows sum to 1."""
    rng = np.random.default_rng(SEED)
    clusters: dict[str, dict[str, list[int]]] = {}
    for index, curve in enumerate(curves):
        clusters.setdefault(curve.workload, {}).setdefault(curve.config, []).append(index)
    weights = np.zeros((resamples, len(curves)))
    for configs in clusters.values():
        members = list(configs.values())
        drawn = rng.multinomial(len(members), [1 / len(members)] * len(members), size=resamples)
        for column, indices in zip(drawn.T, members, strict=True):
            weights[:, indices] = column[:, None]
    normalised: Array = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def interval(samples: NDArray[Any]) -> list[float]:
    """The middle 95 % of bootstrap samples, over the first axis."""
    edges = np.quantile(samples, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)
    return [_short(float(edge)) for edge in edges]


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def summarise(curves: Sequence[Curve], stops: Stops) -> dict[str, Any]:
    """Compare the methods on each split.

    Args:
        curves: All recorded curves.
        stops: What `replay` found on them.
    """
    tables = {split: outcomes(curves, stops, split) for split in SPLITS}
    return {split: _split(table) for split, table in tables.items() if table.curves}


def _split(table: Table) -> dict[str, Any]:
    weights = resample(table.curves)
    boot = {"saved": weights @ table.saved.T, "regret": weights @ table.regret.T}
    means = {"saved": table.saved.mean(axis=1), "regret": table.regret.mean(axis=1)}
    wrong, wrong_boot = table.wrong.mean(axis=1), weights @ table.wrong.T
    workloads = list(dict.fromkeys(curve.workload for curve in table.curves))
    methods: dict[str, Any] = {}
    for m, method in enumerate(METHODS):
        methods[method.name] = {
            "family": method.family,
            "setting": method.setting,
            "default": method.default,
            **{name: _short(float(values[m])) for name, values in means.items()},
            "wrong_stop": _short(float(wrong[m])),
            **{f"{name}_ci": interval(values[:, m]) for name, values in boot.items()},
            "wrong_stop_ci": interval(wrong_boot[:, m]),
            "workloads": {w: _workload(table, m, w) for w in workloads},
        }
    points = {name: (n["saved"], n["regret"]) for name, n in methods.items()}
    rivals = [m.name for m in METHODS if m.family != ORACLE]
    against = {family: _against_patience(family, means, boot) for family in OURS}
    fronts = {family: _front(family, means) for family in OURS}
    return {
        "curves": len(table.curves),
        "configurations": len({(c.workload, c.config) for c in table.curves}),
        "methods": methods,
        "pareto": pareto({name: points[name] for name in rivals}),
        "against_patience": against,
        "front": fronts,
        "told": _told(table, weights),
        "acceptance": {f: _acceptance(f, methods, against[f], fronts[f]) for f in OURS},
    }


def _told(table: Table, weights: Array) -> dict[str, Any]:
    """What RCA's default gains by the training loss: paired differences, told minus alone."""
    alone, told = (METHODS.index(default_of(family)) for family in OURS)
    found = {}
    for name in ("saved", "regret", "wrong"):
        change = getattr(table, name)[told] - getattr(table, name)[alone]
        found[name] = [_short(float(change.mean())), *interval(weights @ change)]
    regret = np.sort(table.regret[told])[::-1]
    whole = float(regret.sum())
    return {
        **found,
        "wrong_stops": [int(table.wrong[m].sum()) for m in (alone, told)],
        "two_worst": _short(float(regret[:2].sum()) / whole) if whole else 0.0,
    }


def _workload(table: Table, m: int, workload: str) -> list[float]:
    """Mean saved, mean regret and wrong-stop rate on one workload."""
    chosen = [curve.workload == workload for curve in table.curves]
    parts = (table.saved, table.regret, table.wrong)
    return [_short(float(part[m, chosen].mean())) for part in parts]


def _places(*families: str) -> list[int]:
    return [m for m, method in enumerate(METHODS) if method.family in families]


def _families(means: Mapping[str, Array]) -> dict[str, list[tuple[float, float]]]:
    """Points of each family: the patience rules are one, and those of one setting are points."""
    families: dict[str, list[tuple[float, float]]] = {}
    for m, method in enumerate(METHODS):
        if method.family == ORACLE:
            continue
        name = PATIENCE_FAMILIES[0] if method.family in PATIENCE_FAMILIES else method.family
        point = float(means["saved"][m]), float(means["regret"][m])
        families.setdefault(name, []).append(point)
    return families


def _front(ours: str, means: Mapping[str, Array]) -> list[Any]:
    """One family of ours against all others that know no more."""
    hidden = {*OURS, *(() if ours in TOLD else TOLD)} - {ours}
    known = {family: points for family, points in _families(means).items() if family not in hidden}
    return dominance(known, ours, SAVED_RANGE)


def _against_patience(
    ours: str, means: Mapping[str, Array], boot: Mapping[str, Array]
) -> list[Any]:
    """For each setting of ours: points saved more than by the best patience at equal regret.

    Where ours is told the training loss, so is one of the patience rules.
    """
    rules = _places(*PATIENCE_FAMILIES, *((PATIENCE_TOLD,) if ours in TOLD else ()))
    found = []
    for m in _places(ours):
        samples = np.array(
            [
                gain_over((saved[m], regret[m]), saved[rules], regret[rules])
                for saved, regret in zip(boot["saved"], boot["regret"], strict=True)
            ]
        )
        place = float(means["saved"][m]), float(means["regret"][m])
        points = gain_over(place, means["saved"][rules], means["regret"][rules])
        found.append(
            {
                "method": METHODS[m].name,
                "saved": _short(place[0]),
                "regret": _short(place[1]),
                "patience_saved": _short(place[0] - points),
                "points": _short(points),
                "points_ci": interval(samples),
                "in_range": SAVED_RANGE[0] <= place[0] <= SAVED_RANGE[1],
            }
        )
    return found


def default_of(family: str) -> Method:
    """The default method of a family."""
    return next(m for m in METHODS if m.family == family and m.default)


def _acceptance(
    ours: str, methods: Mapping[str, Any], against: Sequence[Any], front: Sequence[Any]
) -> dict[str, Any]:
    """What was found, and whether it is what was asked: of the default, and of all settings."""
    numbers = methods[default_of(ours).name]
    points = min((row["points"] for row in against if row["in_range"]), default=None)
    share = sum(row["on_front"] for row in front) / len(front)
    return {
        "saved": [numbers["saved"], numbers["saved"] >= WANTED["saved"]],
        "regret": [numbers["regret"], numbers["regret"] <= WANTED["regret"]],
        "wrong_stop": [numbers["wrong_stop"], numbers["wrong_stop"] <= WANTED["wrong_stop"]],
        "points": [points, points is not None and points >= WANTED["points"]],
        "front": [_short(share), share == 1.0],
    }
