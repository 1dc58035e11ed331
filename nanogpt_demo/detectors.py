"""How often do the rules cry wolf, and what do they miss? Power and false alarms, measured.

The shipped rules, and what might replace them, on traces of known nature and on the recorded
losses of the stress test. One core, less than a minute.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from nanogpt_demo._checks import require_int
from nanogpt_demo.detector_plots import detectors_picture
from nanogpt_demo.detector_rules import STREAK, SURPRISED
from nanogpt_demo.detector_signals import ALTERNATIVES, HORIZON, NULLS, Signal
from nanogpt_demo.detector_signals import BURN_IN as START
from nanogpt_demo.detector_study import (
    CHANGE_RATE,
    PERIODS,
    RESONANCE_RATE,
    SURPRISE_RATE,
    Case,
    Record,
    Thresholds,
    calibrate,
    change_records,
    evidence,
    power_records,
    window_records,
)
from nanogpt_demo.environment import commit, environment
from nanogpt_demo.markdown import markdown
from nanogpt_demo.store import Document, Store, record_key

RESULTS = Path("results")
STEPS = 1000
WINDOWS_PER_TRACE = {"power": 10, "calibration": 500}
RECORDED_START = 100
"""The clean stretch of a recorded run begins here; before, a young run falls steeply."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add("--traces", type=int, default=200, help="traces of each kind (default: 200)")
    add("--seed", type=int, default=0, help="of all traces (default: 0)")
    add("--recorded", type=Path, default=RESULTS, help="folder of stress.json (default: results)")
    add("--out", type=Path, default=RESULTS, help="folder (default: results)")


def synthetic(signals: tuple[Signal, ...], seed: list[int], traces: int) -> Iterator[Case]:
    """Traces of each signal, every one from its own seed."""
    nulls = signals is NULLS
    steps, event = START + (STEPS if nulls else HORIZON), None if nulls else START
    for index, signal in enumerate(signals):
        losses = signal.make(np.random.default_rng([*seed, index]), traces, steps)
        family = "null" if nulls else "alternative"
        named = (family, signal.name, signal.parameter)
        yield Case(*named, losses, START, event, signal.outliers)


def recorded(document: Document) -> Iterator[tuple[Case, Case]]:
    """The runs of the stress test, by size and step of the shift: before it, and at it.

    Runs of one seed see the same batches under every method, so that the standard errors of these
    cases are rather too small.
    """
    records = sorted(document["records"], key=_group)
    for (size, at), members in itertools.groupby(records, key=_group):
        rows = [document["traces"][record_key(r)]["loss"] for r in members]
        complete = [row[: at + HORIZON] for row in rows if None not in row[: at + HORIZON]]
        if len(complete) < 2 or at <= RECORDED_START or len(complete[0]) <= at:
            continue
        losses = np.array(complete, dtype=np.float64)
        name = f"{size} run, shift at {at}"
        yield (
            Case("recorded", name, "before", losses[:, :at], RECORDED_START),
            Case("recorded", name, "shift", losses, RECORDED_START, at),
        )


def _group(record: dict[str, Any]) -> tuple[str, int]:
    return record["size"], record["shift_at"]


def study(traces: int, seed: int, stress: Document) -> tuple[list[Record], Thresholds]:
    """Run everything.

    Args:
        traces: Of each kind.
        seed: Of all of them.
        stress: Content of stress.json.
    """
    rng = np.random.default_rng([seed, 2])
    tuning = [evidence(case) for case in synthetic(NULLS, [seed, 0], traces)]
    at = calibrate(tuning, rng, WINDOWS_PER_TRACE["calibration"] * traces)
    nulls = list(synthetic(NULLS, [seed, 1], traces))
    changes = list(synthetic(ALTERNATIVES, [seed, 3], traces))
    pairs = list(recorded(stress))
    records: list[Record] = []
    for case in [*nulls, *changes, *itertools.chain.from_iterable(pairs)]:
        records += change_records(evidence(case), at)
    for case in [*nulls, *(before for before, _ in pairs)]:
        records += window_records(case, at)
    records += power_records(rng, WINDOWS_PER_TRACE["power"] * traces, at)
    return records, at


def summarise(records: list[Record], at: Thresholds) -> dict[str, Any]:
    """The shipped rules' false alarms by purpose and null, and the thresholds found."""
    shipped: dict[str, dict[str, Any]] = {}
    for record in records:
        if record["rule"] == "policy" and record["rate_per_1000"] is not None:
            rates = shipped.setdefault(record["purpose"], {})
            rates[record["signal"]] = [record["rate_per_1000"], record["se"]]
    return {
        "shipped_false_alarms_per_1000": shipped,
        "matched_rates_per_1000": {
            "surprise": SURPRISE_RATE,
            "new level": CHANGE_RATE,
            "resonance": RESONANCE_RATE,
        },
        "thresholds": at._asdict(),
    }


def main(options: argparse.Namespace, command: str, console: Console) -> int:
    """Run the study.

    Args:
        options: Parsed options of ``add_arguments``.
        command: What the user typed.
        console: Where to print.

    Returns:
        Exit code 0.

    Raises:
        ValueError: If an option is out of range.
    """
    require_int("traces", options.traces, 2, "a standard error needs two traces")
    require_int("seed", options.seed, 0, "give any seed from 0 on")
    stress = Store(options.recorded, "stress").read()
    records, at = study(options.traces, options.seed, stress)
    store = Store(options.out, "detectors")

    def replace(document: Document) -> None:
        document.clear()
        document |= {
            "command": command,
            "commit": commit(),
            "environment": environment(1),
            "seed": options.seed,
            "records": records,
            "summary": summarise(records, at),
            "traces": {},  # every result file has them; these can be made anew from the seed
        }

    document = store.change(replace)
    detectors_picture(document, store.picture)
    console.print(detectors_table(document), markup=False)
    console.print(f"results: {store.path}  picture: {store.picture}")
    return 0


# -- the tables of the front page --------------------------------------------------------------

CHANGES = {
    f"{STREAK}, {SURPRISED} (shipped)": (STREAK, SURPRISED),
    STREAK: (STREAK, "matched on white"),
    "clipped CUSUM": ("clipped CUSUM", "matched on white"),
    "CUSUM": ("CUSUM", "matched on white"),
    "Page-Hinkley": ("Page-Hinkley", "matched on white"),
    "two windows": ("two windows", "matched on white"),
}
RHYTHMS = {
    "anticorrelation below -0.75 (shipped)": ("anticorrelation", "rho < -0.75"),
    "anticorrelation": ("anticorrelation", "matched"),
    "spectral entropy": ("spectral entropy", "matched"),
    "Fisher's g": ("Fisher's g", "matched"),
    "g at half steps": ("g at half steps", "matched"),
    "g, whitened": ("g, whitened", "matched"),
}
"""Rules that are compared, by the name readers see: rule and setting of the records."""


def detectors_table(document: Document) -> str:
    """Three tables as Markdown: false alarms as shipped, finding a change, finding a rhythm."""
    shipped = document["summary"]["shipped_false_alarms_per_1000"]
    nulls = list(shipped["surprise"])
    alarms = [[name, *(_rate(shipped[purpose].get(name)) for purpose in shipped)] for name in nulls]
    changes = [
        ("jump", "+2"), ("jump", "+4"), ("jump in a descent", "+4"), ("drift up", "+0.05/step"),
        ("divergence", "x e/20 steps"),
    ]  # fmt: skip
    rhythms = [(f"period {period}", "1") for period in PERIODS]
    found = [[name, *_cells(document, rule, changes, _found)] for name, rule in CHANGES.items()]
    seen = [[name, *_cells(document, rule, rhythms, _share)] for name, rule in RHYTHMS.items()]
    return "\n\n".join(
        (
            markdown(["false alarms per 1000, as shipped", *shipped], alarms),
            markdown(["found (median delay)", *map(" ".join, changes)], found),
            markdown(["found at 1 noise scale", *(name for name, _ in rhythms)], seen),
        )
    )


def _rate(pair: list[float | None] | None) -> str:
    if pair is None:
        return ""
    rate, se = pair
    return f"{rate:.2f}" + ("" if se is None else f" ± {se:.2f}")


def _cells(
    document: Document,
    rule: tuple[str, str],
    signals: list[tuple[str, str]],
    show: Callable[[Record], str],
) -> list[str]:
    """What a rule made of each signal, given as name and parameter."""
    known = {(r["signal"], r["parameter"]): r for r in document["records"]
             if (r["rule"], r["setting"]) == rule and r["power"] is not None}  # fmt: skip
    return [show(known[signal]) for signal in signals]


def _share(record: Record) -> str:
    return f"{100 * record['power']:.0f} %"


def _found(record: Record) -> str:
    delay = record["median_delay"]
    return _share(record) + ("" if delay is None else f" ({delay:.0f})")
