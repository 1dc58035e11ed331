"""Pictures of the suite, drawn from its result file and from nothing else."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from nanogpt_demo.plots import COLOURS  # and picks the backend that works without a display
from nanogpt_demo.store import Document
from nanogpt_demo.suite.profile import R_MAX, Summary
from nanogpt_demo.suite.summary import (
    BARE,
    BEST_PEER,
    CLIP,
    WARMUP_CLIP,
    against,
    is_peer,
    method_order,
    regret,
    reported,
)
from nanogpt_demo.summary import OURS

REGRET_MAX = 0.25  # of what the best method gains; what is worse is as dark as this
CURVES = 7  # as many as can be told apart
CONTROL = {False: "", True: " (control)"}
NOT_RUN = "#DDDDDD"
DEAD = "#000000"
METHOD_COLOURS = {
    BARE: COLOURS["adamw"],
    CLIP: COLOURS["adamw+clip"],
    WARMUP_CLIP: COLOURS["adamw+warmup+clip"],
    OURS: COLOURS["ars"],
}
SPARE_COLOURS = (COLOURS["ars-paper"], "#D55E00", COLOURS["ars+warmup"])
MARKS = {  # sign and word, so that colour is never needed to read it: (text, ground, ink)
    "better": ("▲ better", COLOURS["ars"], "white"),
    "tied": ("= tied", "#BFDDF0", "black"),
    "unclear": ("? unclear", "#EEEEEE", "black"),
    "worse": ("▼ worse", "#D55E00", "white"),
}


def headline(split: Summary) -> str:
    """What the heat map shows, in words."""
    cells, found = split["counts"]["cells"], split["counts"]["all"]
    peers = sum(is_peer(method) for method in split["methods"])
    lines = [
        f"{OURS} against the best of {peers} other methods, picked anew in each of {cells} cells: "
        f"{tallied(found[BEST_PEER])}",
        f"{OURS} against gradient clipping: {tallied(found[CLIP])}",
    ]
    ranked = list(split["ranks"]["common"]["mean"])
    if OURS in ranked:
        place = (
            f"{OURS} is number {ranked.index(OURS) + 1} of the {len(ranked)} that run everywhere"
        )
        lines[1] += f". By mean rank {place}"
    return "\n".join(lines)


def tallied(verdicts: dict[str, int]) -> str:
    """Counts of verdicts in words, those that do not occur left out."""
    found = [f"{verdict} in {count}" for verdict, count in verdicts.items() if count]
    return ", ".join(found) or "not comparable yet"


def suite_pictures(document: Document, folder: Path) -> None:
    """Draw ``suite.png`` and ``suite_lr.png``, each only if there is something to show.

    Args:
        document: A result file's content, with its summary.
        folder: Where to write.
    """
    if any(split["cells"] for split in document["summary"].values()):
        suite_picture(document, folder / "suite.png")
    lr_picture(document, folder / "suite_lr.png")


def suite_picture(document: Document, path: Path, profile: bool = True) -> None:
    """Draw the heat map of all cells and methods, and the performance profile.

    Args:
        document: A result file's content, with its summary.
        path: The picture to write.
        profile: Whether to draw the profile; without it there is more room for the map.
    """
    name, split = reported(document["summary"])
    methods, cells = method_order(split), list(split["cells"].values())
    map_width, height = 0.36 * len(methods) + 1.2, 0.235 * len(cells) + 3.4
    widths = [0.95, map_width, 4.6] if profile else [0.95, map_width]
    figure, axes = plt.subplots(
        1,
        len(widths),
        figsize=(sum(widths) + (2.65 if profile else 2.0), max(height, 6.5)),
        width_ratios=widths,
        layout="constrained",
    )
    _verdicts(axes[0], cells)
    _heat_map(figure, axes[1], cells, methods, split)
    if profile:
        _profile(axes[2], split)
    seeds = max(len(cell["seeds"]) for cell in cells)
    large = min(14, 0.88 * figure.get_figwidth())  # the headline has to fit
    figure.suptitle(headline(split), fontsize=large, fontweight="bold", x=0.01, ha="left")
    figure.supxlabel(
        f"{name} split, mean of up to {seeds} seeds; a cell is a model with an optimizer and what "
        f"happens to the run; a dead run counts as an untrained model",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _rows(axis: Any, cells: list[Summary], columns: int) -> None:
    """Set up an axis with a row for each cell, with lines between the workloads."""
    axis.set_xlim(-0.5, columns - 0.5)
    axis.set_ylim(len(cells) - 0.5, -0.5)
    axis.set_yticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for top, _, _ in _blocks(cells)[1:]:
        axis.axhline(top - 0.5, color="black", lw=1.2)


def _blocks(cells: list[Summary]) -> list[tuple[int, int, str]]:
    """First row, number of rows and name of each workload."""
    sizes = [(name, len(list(rows))) for name, rows in groupby(c["workload"] for c in cells)]
    tops = np.cumsum([0, *(size for _, size in sizes)])
    return [(int(top), size, name) for top, (name, size) in zip(tops, sizes, strict=False)]


def _verdicts(axis: Any, cells: list[Summary]) -> None:
    """Name the cells, and say how ours fares against the best peer of each."""
    _rows(axis, cells, 1)
    labels = [
        f"{cell['optimizer']}  {cell['scenario']}{CONTROL[cell['control']]}" for cell in cells
    ]
    axis.set_yticks(range(len(cells)), labels, fontsize=9)
    axis.set_xticks([0], [f"{OURS} against\nthe best other"], fontsize=9)
    axis.xaxis.tick_top()
    for row, cell in enumerate(cells):
        pair = against(cell, BEST_PEER)
        text, ground, ink = MARKS[pair["verdict"]] if pair else ("", NOT_RUN, "black")
        axis.add_patch(Rectangle((-0.5, row - 0.46), 1, 0.92, color=ground, lw=0))
        axis.text(0, row, text, color=ink, ha="center", va="center", fontsize=8.5)
    for top, size, name in _blocks(cells):
        place = (-2.75, top + size / 2 - 0.5)
        axis.text(*place, name, rotation=90, fontsize=13, fontweight="bold", va="center")


def _heat_map(
    figure: Any, axis: Any, cells: list[Summary], methods: list[str], split: Summary
) -> None:
    regrets = [[regret(cell, method) for method in methods] for cell in cells]
    values = np.array(regrets, dtype=np.float64)  # None becomes NaN, which is drawn grey
    colours = plt.get_cmap("YlOrRd").with_extremes(bad=NOT_RUN)
    image = axis.imshow(values, cmap=colours, vmin=0, vmax=REGRET_MAX, aspect="auto")
    _rows(axis, cells, len(methods))
    slanted = {"rotation": 60, "rotation_mode": "anchor", "ha": "left", "fontsize": 9}
    axis.set_xticks(range(len(methods)), methods, **slanted)
    axis.xaxis.tick_top()
    for row, cell in enumerate(cells):
        for column, method in enumerate(methods):
            _mark(axis, cell, method, column, row)
    for edge in np.arange(0.5, len(methods) - 1):
        axis.axvline(edge, color="white", lw=0.8)
    everywhere = len(split["ranks"]["common"]["mean"])
    if 0 < everywhere < len(methods):
        axis.axvline(everywhere - 0.5, color="black", lw=1.2)
    if OURS in methods:
        ours = methods.index(OURS)
        outline: Any = {"fill": False, "ec": COLOURS["ars"], "lw": 3, "zorder": 5, "clip_on": False}
        axis.add_patch(Rectangle((ours - 0.5, -0.5), 1, len(cells), **outline))
        axis.get_xticklabels()[ours].set(color=COLOURS["ars"], fontweight="bold", fontsize=12)
    bar = figure.colorbar(image, ax=axis, location="bottom", shrink=0.75, pad=0.02, aspect=45)
    ticks = np.linspace(0, REGRET_MAX, 6)
    labels = [f"{100 * tick:.0f} %" for tick in ticks]
    bar.set_ticks(ticks, labels=["best", *labels[1:-1], f"{labels[-1]} or more"])
    bar.set_label(
        "validation loss lost to the best method of the cell, in % of what that one learns\n"
        "● best    ✕ on black: all runs died    hatched: some died    grey: does not apply\n"
        "columns by mean rank, best on the left; behind the black line: not in every cell",
        fontsize=9,
    )


def _mark(axis: Any, cell: Summary, method: str, column: int, row: int) -> None:
    """Mark the best method of a cell, and dead runs."""
    numbers = cell["methods"].get(method)
    if numbers is None:
        return
    corner = (column - 0.5, row - 0.5)
    text: Any = {"ha": "center", "va": "center", "fontsize": 8}
    if numbers["survived"] == 0:
        axis.add_patch(Rectangle(corner, 1, 1, color=DEAD, lw=0))
        axis.text(column, row, "✕", color="white", **text)
    elif numbers["survived"] < numbers["n"]:
        axis.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", ec=DEAD, lw=0))
    elif regret(cell, method) == 0:
        axis.text(column, row, "●", **text)


def shown(split: Summary) -> list[str]:
    """Methods whose profile is drawn: ours and the usual ones, then the best other peers."""
    found = split["profile"]["common"]
    zclip = [method for method in found if method.startswith("zclip")]
    others = [method for method in found if is_peer(method)]
    wanted = [OURS, CLIP, WARMUP_CLIP, BARE, *zclip[:1], *others]
    return [method for method in dict.fromkeys(wanted) if method in found][:CURVES]


def _colours(methods: list[str]) -> dict[str, str]:
    others = (method for method in methods if method not in METHOD_COLOURS)
    return METHOD_COLOURS | dict(zip(others, SPARE_COLOURS, strict=False))


def _profile(axis: Any, split: Summary) -> None:
    """Draw for each method the share of cells in which it is at most tau times the fastest."""
    found, methods = split["profile"]["common"], shown(split)
    colours = _colours(methods)
    for method in sorted(methods, key=lambda m: -float(found[m]["score"])):
        ratios = [ratio for ratio in found[method]["ratios"] if ratio is not None]
        share = 100 / max(len(found[method]["ratios"]), 1)
        inside = [ratio for ratio in ratios if ratio <= R_MAX]
        heights = [share * sum(r <= at for r in ratios) for at in [1.0, *inside, R_MAX]]
        width, order = (3.2, 3) if method == OURS else (1.5, 2)
        style: Any = {"color": colours[method], "lw": width, "zorder": order, "where": "post"}
        label = f"{method}: {found[method]['score']:.3f}"
        axis.step([1.0, *inside, R_MAX], heights, label=label, **style)
    best = max(methods, key=lambda method: float(found[method]["score"]), default=None)
    axis.set_title(
        f"Gets there fast and reliably: of these {best} leads" if best else "", fontsize=11
    )
    axis.set_xscale("log", base=2)
    axis.set_xticks([1, 1.5, 2, 3, R_MAX], ["1", "1.5", "2", "3", f"{R_MAX:.0f}"])
    axis.minorticks_off()
    axis.set_xlim(1, R_MAX)
    axis.set_ylim(0, 102)
    axis.set_xlabel("time to a good loss, as a multiple of the fastest method's")
    axis.set_ylabel("% of cells reached by then (median of seeds)")
    axis.grid(alpha=0.25)
    axis.legend(title="method: score (1 is perfect)", fontsize=9, loc="lower right")


def lr_headline(sweep: Summary) -> str:
    """Which method loses least by a learning rate that is not the best, in words."""
    names = sorted(sweep, key=lambda method: float(sweep[method]["sensitivity"]))
    numbers = ", ".join(f"{method} {sweep[method]['sensitivity']:.2f}" for method in names)
    return f"least sensitive to the rate: {names[0]}\nmean loss above the best: {numbers}"


def lr_picture(document: Document, path: Path) -> None:
    """Draw the loss over the learning rate, a panel for each workload and optimizer.

    Args:
        document: A result file's content, with its summary.
        path: The PNG to write; none is written if no split has a sweep.
    """
    sweeps = {name: split["lr_sweep"] for name, split in document["summary"].items()}
    split, panels = next(((n, sweep) for n, sweep in sweeps.items() if sweep), ("", {}))
    if not panels:
        return
    size = (6.2 * len(panels), 4.8)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axis, (name, sweep) in zip(axes[0], panels.items(), strict=True):
        _sweep(axis, sweep)
        axis.set_title(f"{name} ({split}), {lr_headline(sweep)}", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _sweep(axis: Any, sweep: Summary) -> None:
    colours = _colours(list(sweep))
    for method, numbers in sweep.items():
        width, order = (3.0, 3) if method == OURS else (1.5, 2)
        style: Any = {"color": colours.get(method, "#777777"), "lw": width, "zorder": order}
        errors = [se or 0.0 for se in numbers["se"]]
        axis.errorbar(
            numbers["lrs"], numbers["val"], errors, marker="o", ms=4, label=method, **style
        )
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("validation loss at the end, mean ± se\n(a dead run counts as untrained)")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=9)
