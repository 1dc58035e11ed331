"""Draws ``stopping.png`` from ``stopping.json`` and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: works without a display

from matplotlib import pyplot as plt  # noqa: E402

from nanogpt_demo.stopping.rules import (  # noqa: E402
    ORACLE,
    PATIENCE_TOLD,
    PUBLISHED,
    RCA_FAMILY,
    TOLD_FAMILY,
)
from nanogpt_demo.stopping.summary import OURS, SAVED_RANGE, SPLITS, WANTED  # noqa: E402
from nanogpt_demo.store import Document  # noqa: E402

# Okabe and Ito's colours, told apart under every common colour blindness.
COLOURS = {
    "patience": "#000000",
    "patience, 0.1 % better": "#999999",
    PATIENCE_TOLD: "#332288",
    RCA_FAMILY: "#0072B2",
    TOLD_FAMILY: "#8B0000",
    "rca, reduce_lr stops": "#56B4E9",
    "slope test": "#009E73",
    "layer variation": "#E69F00",
    PUBLISHED: "#D55E00",
    "lightning": "#CC79A7",
    "keras": "#882255",
    ORACLE: "#777777",
}
LINEAR = 1e-4  # regrets below this are drawn on a linear scale, so that zero has a place


def stopping_picture(document: Document, path: Path) -> None:
    """Draw saved compute against regret, and the wrong stops, on the held-out curves.

    Args:
        document: Content of stopping.json.
        path: The PNG to write.
    """
    split = document["summary"].get(SPLITS[0])
    if split is None:
        return
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 6), width_ratios=(3, 2), layout="constrained"
    )
    families: dict[str, list[dict[str, Any]]] = {}
    for numbers in split["methods"].values():
        families.setdefault(numbers["family"], []).append(numbers)
    for family, members in families.items():
        _family(left, family, sorted(members, key=lambda n: n["setting"] or 0))
    _frame(left, split)
    _wrong_stops(right, split)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _family(axis: Any, family: str, members: list[dict[str, Any]]) -> None:
    colour, ours = COLOURS[family], family in OURS
    x = [100 * n["saved"] for n in members]
    y = [100 * n["regret"] for n in members]
    low, high = ([100 * n["regret_ci"][i] for n in members] for i in (0, 1))
    star = {PUBLISHED: "X", ORACLE: "*"}.get(family, "o")
    if len(members) > 1:
        axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        axis.plot(x, y, color=colour, lw=2.2 if ours else 1.2, marker=".", label=family,
                  zorder=4 if ours else 2)  # fmt: skip
    else:
        error = [[y[0] - low[0]], [high[0] - y[0]]]
        axis.errorbar(x, y, yerror(error), fmt=star, ms=9, color=colour, label=family, zorder=5)
    for place, value, n in zip(x, y, members, strict=True):
        if n["default"] and len(members) > 1:
            axis.plot(place, value, "o", ms=9, mfc="none", mec=colour, zorder=5)


def yerror(error: list[list[float]]) -> list[list[float]]:
    """Distances to the interval's ends, none below zero: a mean may lie outside by rounding."""
    return [[max(0.0, value) for value in side] for side in error]


def _frame(axis: Any, split: dict[str, Any]) -> None:
    axis.set_yscale("symlog", linthresh=100 * LINEAR)
    axis.axvspan(*(100 * edge for edge in SAVED_RANGE), color="#000000", alpha=0.04, lw=0)
    axis.axhline(100 * WANTED["regret"], color="#D55E00", lw=0.8, ls=":")
    axis.axvline(100 * WANTED["saved"], color="#D55E00", lw=0.8, ls=":")
    axis.set_ylim(bottom=0)
    axis.set_xlim(0, 100)
    axis.set_xlabel("saved, % of the budget (mean over curves)")
    axis.set_ylabel("regret, % of what training gains (mean; band: bootstrap 95 %)")
    axis.set_title(
        f"{split['curves']} held-out curves, {split['configurations']} configurations: "
        "down and right is better\nrings: defaults; dotted: what is asked; grey: where compared",
        fontsize=10,
    )
    axis.legend(fontsize=8)
    axis.grid(alpha=0.25)


def _wrong_stops(axis: Any, split: dict[str, Any]) -> None:
    shown = [(name, n) for name, n in split["methods"].items() if n["default"]]
    shown.sort(key=lambda item: item[1]["wrong_stop"])
    for place, (_, n) in enumerate(shown):
        rate = 100 * n["wrong_stop"]
        low, high = (100 * edge for edge in n["wrong_stop_ci"])
        axis.barh(place, rate, color=COLOURS[n["family"]], alpha=0.85)
        axis.errorbar(rate, place, xerr=yerror([[rate - low], [high - rate]]), color="#444444")
    axis.axvline(100 * WANTED["wrong_stop"], color="#D55E00", lw=0.8, ls=":")
    axis.set_yticks(range(len(shown)), [name for name, _ in shown], fontsize=8)
    axis.set_xlim(0, 100)
    axis.set_xlabel("wrong stops, % of curves (more than 1 % still to gain)")
    axis.set_title("defaults: how often they stop too early", fontsize=10)
    axis.grid(alpha=0.25, axis="x")
