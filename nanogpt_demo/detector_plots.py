"""The picture of the detector study: false alarms, rhythms, delays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # files only: works without a display

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from nanogpt_demo.detector_rules import STREAK, SURPRISED  # noqa: E402
from nanogpt_demo.store import Document  # noqa: E402

Key = tuple[str, str]

# Okabe and Ito's colours. Each line: label, rule and setting of the records, colour, marker.
ALARMS = (
    (f"ARS: surprise ({SURPRISED})", ("policy", "as shipped"), "surprise", "#0072B2", "o"),
    ("ARS: new level", ("policy", "as shipped"), "new level", "#009E73", "s"),
    ("ARS: resonance", ("policy", "as shipped"), "resonance", "#CC79A7", "D"),
    ("OLMo: mean + 6 std of 128", ("mean and std of 128", "6 std"), "surprise", "#E69F00", "x"),
    ("2 x mean of 100", ("ratio to mean of 100", "2"), "surprise", "#000000", "+"),
)
RHYTHMS = (
    ("lag-1 anticorrelation (shipped statistic)", ("anticorrelation", "matched"), "#0072B2", "o"),
    ("spectral entropy", ("spectral entropy", "matched"), "#E69F00", "s"),
    ("Fisher's g, periods 2-8", ("Fisher's g", "matched"), "#009E73", "^"),
    ("g, also half-way frequencies", ("g at half steps", "matched"), "#D55E00", "D"),
    ("the same, whitened", ("g, whitened", "matched"), "#CC79A7", "v"),
)
CHANGES = (
    (f"{STREAK}, {SURPRISED}: as shipped", (STREAK, SURPRISED), "#0072B2", "o"),
    (STREAK, (STREAK, "matched on white"), "#56B4E9", "v"),
    ("two windows, 8 against 56", ("two windows", "matched on white"), "#E69F00", "s"),
    ("CUSUM of scores cut at 4", ("clipped CUSUM", "matched on white"), "#009E73", "^"),
    (
        "Page-Hinkley (takes one outlier of +20 for it)",
        ("Page-Hinkley", "matched on white"),
        "#CC79A7",
        "x",
    ),
)
EVENTS = (
    ("jump", "+1"), ("jump", "+2"), ("jump", "+4"), ("jump in a descent", "+4"),
    ("drift up", "+0.02/step"), ("drift up", "+0.05/step"), ("divergence", "x e/20 steps"),
)  # fmt: skip
MISSED = 280.0
"""Where a rule is drawn that finds fewer than half of the events (the horizon is 200 steps)."""

FLOOR = 0.01
"""Rates per 1000 below this are drawn here."""


def detectors_picture(document: Document, path: Path) -> None:
    """Draw the study.

    Args:
        document: A result file's content.
        path: The PNG to write.
    """
    figure, axes = plt.subplots(1, 3, figsize=(18, 6.2), layout="constrained")
    records = document["records"]
    _false_alarms(axes[0], records)
    _rhythms(axes[1], records)
    _delays(axes[2], records)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _false_alarms(axis: Axes, records: list[dict[str, Any]]) -> None:
    """Dots: what the rules say where nothing happens."""
    nulls = [r for r in records if r["family"] in ("null", "recorded")]
    nulls = [r for r in nulls if r["rate_per_1000"] is not None]
    signals = list(dict.fromkeys(r["signal"] for r in nulls if r["purpose"] == "surprise"))
    for row, (label, rule, purpose, colour, marker) in enumerate(ALARMS):
        rates = {r["signal"]: r["rate_per_1000"] for r in nulls
                 if (r["rule"], r["setting"]) == rule and r["purpose"] == purpose}  # fmt: skip
        height = np.arange(len(signals)) + 0.13 * (row - 2)
        drawn = [max(FLOOR, rates[signal]) for signal in signals]
        axis.plot(drawn, height, marker, color=colour, ms=7, label=label)
    axis.set_xscale("log")
    axis.set_xlim(FLOOR / 1.6, 160)
    axis.set_xticks([FLOOR, 0.1, 1, 10, 100], ["none", "0.1", "1", "10", "100"])
    _rows(axis, [s.replace(", ", ",\n") for s in signals])
    axis.set_xlabel("false alarms per 1000 steps (resonance: per 1000 evaluations)")
    axis.set_title(
        "Nothing happens: who cries wolf?\nthe last three: recorded losses before the shift",
        fontsize=11,
    )
    axis.legend(fontsize=8, loc="upper center", ncol=2, bbox_to_anchor=(0.5, -0.11))


def _rhythms(axis: Axes, records: list[dict[str, Any]]) -> None:
    """Lines: power against period, solid for an amplitude of one noise scale, dotted for two."""
    for label, rule, colour, marker in RHYTHMS:
        for amplitude, line in (("1", "-"), ("2", ":")):
            chosen = [r for r in records if (r["rule"], r["setting"]) == rule
                      and r["family"] == "alternative" and r["parameter"] == amplitude]  # fmt: skip
            periods = [r["signal"].removeprefix("period ") for r in chosen]
            power = [100 * r["power"] for r in chosen]
            size, named = (6, label) if line == "-" else (4, None)
            axis.plot(periods, power, line + marker, color=colour, ms=size, label=named)
    axis.set_xlabel("period of the oscillation (steps)")
    axis.set_ylabel("windows of 64 found (%)")
    axis.set_title(
        "The loss oscillates: who notices?\n"
        "amplitude 1 noise scale (solid), 2 (dotted); 1 false alarm in 1000",
        fontsize=11,
    )
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, loc="upper center", ncol=2, bbox_to_anchor=(0.5, -0.11))


def _delays(axis: Axes, records: list[dict[str, Any]]) -> None:
    """Dots: steps until half of the changes are found."""
    for row, (label, rule, colour, marker) in enumerate(CHANGES):
        chosen = [r for r in records if (r["rule"], r["setting"]) == rule]
        delays = {(r["signal"], r["parameter"]): r["median_delay"] for r in chosen}
        height = np.arange(len(EVENTS)) + 0.13 * (row - 2)
        drawn = [delays[event] or MISSED for event in EVENTS]
        axis.plot(drawn, height, marker, color=colour, ms=7, label=label)
    axis.set_xscale("log")
    axis.set_xticks([1, 2, 5, 10, 20, 50, 100, MISSED], "1 2 5 10 20 50 100 missed".split())
    axis.set_xticks([], minor=True)
    axis.axvline(200, color="#777777", lw=0.8)
    _rows(axis, [f"{name}\n{size}" for name, size in EVENTS])
    axis.set_xlabel("median delay (steps); missed: fewer than half found in 200 steps")
    axis.set_title(
        "The loss rises for good: who is first?\n"
        "1 false alarm in 10,000 steps of white noise (as shipped: none)",
        fontsize=11,
    )
    axis.legend(fontsize=8, loc="upper center", ncol=2, bbox_to_anchor=(0.5, -0.11))


def _rows(axis: Axes, labels: list[str]) -> None:
    axis.set_yticks(range(len(labels)), labels, fontsize=9)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    for row in range(1, len(labels), 2):
        axis.axhspan(row - 0.5, row + 0.5, color="#000000", alpha=0.05, lw=0)
    axis.grid(axis="x", alpha=0.25)
