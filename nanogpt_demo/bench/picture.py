"""The cost of a step in one picture, drawn from the result file and from nothing else."""

from __future__ import annotations

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from nanogpt_demo.bench.summary import Row, rows
from nanogpt_demo.plots import COLOURS
from nanogpt_demo.store import Document

SHOWN = ("adamw-fused", "sgd-fused")
PEER = "#777777"


def overhead_picture(document: Document, path: Path) -> None:
    """Draw the ratios to the bare step: a panel for each case, median and quartiles.

    Args:
        document: A result file's content.
        path: The PNG to write.
    """
    by_row = rows(document["records"])
    cases = list(dict.fromkeys(case for case, _ in by_row))
    bases = [base for base in SHOWN if any((case, base) in by_row for case in cases)]
    if not bases:
        return
    figure, axes = plt.subplots(
        len(bases),
        len(cases),
        figsize=(3.4 * len(cases) + 1.4, 3.4 * len(bases) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for line, base in zip(axes, bases, strict=True):
        measured = [case for case in cases if (case, base) in by_row]
        names = [name for name in by_row[measured[0], base] if name != "bare"]
        for axis, case in zip(line, cases, strict=True):
            if case in measured:
                _panel(axis, f"{case}, {base}", by_row[case, base], names)
                axis.set_yticks(range(len(names)), names if axis is line[0] else [""] * len(names))
            else:
                axis.set_axis_off()
    figure.suptitle("A step beside the bare optimizer's (= 1): median and quartiles", fontsize=12)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axis: Axes, title: str, row: Row, names: list[str]) -> None:
    for place, name in enumerate(names):
        record = row[name]
        ratio = record["ratio_to_bare"]
        colour = _colour(name)
        axis.hlines(
            place, record["ratio_to_bare_q1"], record["ratio_to_bare_q3"], color=colour, lw=2
        )
        axis.plot(ratio, place, "o", color=colour, ms=6)
        axis.annotate(
            f"{ratio:.2f}", (ratio, place), xytext=(0, 5), textcoords="offset points",
            ha="center", fontsize=7, color=colour,
        )  # fmt: skip
    axis.axvline(1.0, color=COLOURS["adamw"], lw=1)
    axis.set_xscale("log")  # some peers cost several times the step
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.invert_yaxis()
    axis.margins(x=0.12, y=0.08)
    axis.set_title(f"{title}: {row['bare']['ms']:.3g} ms", fontsize=10)
    axis.grid(axis="x", which="both", alpha=0.25)


def _colour(name: str) -> str:
    if name.startswith("ars-paper"):
        return COLOURS["ars-paper"]
    if name.startswith("ars"):
        return COLOURS["ars"]
    return COLOURS["adamw+clip"] if name == "clip" else PEER
