"""Pictures drawn from result files and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")  # files only: works without a display

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from nanogpt_demo import measures  # noqa: E402
from nanogpt_demo.store import Document, record_key  # noqa: E402
from nanogpt_demo.summary import Record, by_method, groups  # noqa: E402

# Okabe and Ito's colours, told apart under every common colour blindness.
COLOURS = {
    "adamw": "#000000",
    "adamw+clip": "#E69F00",
    "adamw+warmup+clip": "#009E73",
    "ars-paper": "#CC79A7",
    "ars": "#0072B2",
    "ars+warmup": "#56B4E9",
}
SIGNALS = {"phi": "surprise gate Φ", "psi": "entropy guard Ψ", "chi": "chronos-jitter χ"}
SHOWN = ("ars-paper", "ars")  # whose signals are drawn, the default on top


def stress_picture(document: Document, path: Path) -> None:
    """Draw the stress test: a column for each comparison, the losses above, the signals below.

    Args:
        document: A result file's content.
        path: The PNG to write.
    """
    columns = groups(document["records"])
    if not columns:
        return
    figure, axes = plt.subplots(
        1 + len(SIGNALS),
        len(columns),
        figsize=(6.4 * len(columns), 8.6),
        sharex="col",
        squeeze=False,
        height_ratios=[4] + [1] * len(SIGNALS),
        layout="constrained",
    )
    for column, (name, members) in zip(axes.T, columns.items(), strict=True):
        summary = document["summary"][name]
        traces = {record_key(r): document["traces"][record_key(r)] for r in members}
        _losses(column[0], members, traces, summary)
        for axis, signal in zip(column[1:], SIGNALS, strict=True):
            _signal(axis, signal, members, traces)
        for axis in column:
            _mark_event(axis, members[0])
        column[-1].set_xlabel("step")
    figure.align_ylabels()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _losses(axis: Axes, members: list[Record], traces: Any, summary: dict[str, Any]) -> None:
    event = members[0]["shift_at"]
    for method, runs in by_method(members).items():
        smooth = np.array([_smoothed(traces[record_key(run)]["loss"], event) for run in runs])
        mean, se = smooth.mean(axis=0), _standard_error(smooth)
        ours = method == "ars"
        colour = COLOURS.get(method, "#777777")
        axis.fill_between(range(len(mean)), mean - se, mean + se, color=colour, alpha=0.18, lw=0)
        label = f"{method}: {_val(summary['methods'][method])}"
        width, order = (2.2, 3) if ours else (1.2, 2)
        axis.plot(mean, color=colour, lw=width, zorder=order, label=label)
    axis.set_title(_title(members), fontsize=11)
    axis.set_ylabel(f"train loss, trailing mean of {measures.SMOOTHING}\n(nats a character)")
    axis.legend(title="validation loss at the end, mean ± se", fontsize=8, title_fontsize=8)
    axis.grid(alpha=0.25)


def _smoothed(losses: list[float | None], event: int) -> NDArray[np.float64]:
    """Smooth each side of the event on its own, so that the jump stays where it is."""
    values = np.array(losses, dtype=np.float64)
    return np.concatenate([measures.smooth(values[:event]), measures.smooth(values[event:])])


def _standard_error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error over the first axis; zero for a single run."""
    n = len(values)
    return values.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(values.shape[1])


def _val(numbers: dict[str, Any]) -> str:
    if numbers["val"] is None:
        return "not finite"
    se = "" if numbers["val_se"] is None else f" ± {numbers['val_se']:.3f}"
    return f"{numbers['val']:.3f}{se}"


def _title(members: list[Record]) -> str:
    first = members[0]
    seeds = len({record["seed"] for record in members})
    what = f"{first['shift']} at step {first['shift_at']}"
    if first["shift_at"] >= first["steps"]:
        what = "no event"
    count = f"{seeds} seed" + ("s" if seeds > 1 else "")
    return f"{first['size']} size, {first['corpus']}: {what}\nlr {first['lr']:g}, {count}"


def _signal(axis: Axes, signal: str, members: list[Record], traces: Any) -> None:
    """Draw one signal of the ARS methods, the mean over seeds."""
    for method, runs in by_method(members).items():
        rows = [traces[record_key(run)].get(signal) for run in runs]
        if method not in SHOWN or not all(rows):
            continue
        mean = np.array(rows, dtype=np.float64).mean(axis=0)
        ours = method == "ars"
        axis.plot(mean, color=COLOURS[method], lw=1.2 if ours else 0.8, alpha=1 if ours else 0.6)
    axis.set_ylabel(SIGNALS[signal].replace(" ", "\n", 1) if " " in SIGNALS[signal] else signal)
    if signal != "chi":
        axis.set_ylim(-0.05, 1.08)
    axis.grid(alpha=0.25)


def _mark_event(axis: Axes, record: Record) -> None:
    if record["shift_at"] < record["steps"]:
        axis.axvline(record["shift_at"], color="#D55E00", lw=1, ls="--", zorder=1)
