"""From single runs to a comparison of methods: means over seeds, and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nanogpt_demo import measures
from nanogpt_demo.methods import METHODS
from nanogpt_demo.store import record_key

OURS = "ars"
SETTINGS = ("size", "steps", "shift_at", "lr", "corpus", "corpus_sha256", "shift")

Record = dict[str, Any]
Traces = Mapping[str, Mapping[str, list[float | None]]]


def group_name(record: Mapping[str, Any]) -> str:
    """Name the comparison a run belongs to: everything but its method and its seed."""
    return (
        f"{record['size']}, {record['shift']} at {record['shift_at']} of {record['steps']}, "
        f"lr {record['lr']:g}, {record['corpus']} {record['corpus_sha256'][:8]}"
    )


def groups(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Sort runs into comparisons, each in the order of methods and seeds."""
    order = list(METHODS)

    def place(record: Record) -> tuple[int, str, int]:
        method = record["method"]
        return (order.index(method) if method in order else len(order), method, record["seed"])

    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: (r["size"] != "quick", r["shift_at"])):
        found.setdefault(group_name(record), []).append(record)
    return {name: sorted(members, key=place) for name, members in found.items()}


def by_method(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Sort the runs of one comparison by method."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["method"], []).append(record)
    return found


def fill_recovery(records: list[Record], traces: Traces) -> None:
    """Set ``recovery_steps`` of every record, against the best method on the same seed.

    Args:
        records: Changed in place.
        traces: Losses by key of the run.
    """
    for members in groups(records).values():
        for seed in {record["seed"] for record in members}:
            runs = [record for record in members if record["seed"] == seed]
            losses = {r["method"]: _losses(traces[record_key(r)]) for r in runs}
            event = runs[0]["shift_at"]
            if event >= runs[0]["steps"]:
                continue
            best = min(measures.final_level(values, event) for values in losses.values())
            for record in runs:
                values = losses[record["method"]]
                record["recovery_steps"] = measures.recovery_steps(values, event, best)


def _losses(trace: Mapping[str, list[float | None]]) -> np.ndarray:
    """Losses of a run; a non-finite one, stored as None, is worse than any level."""
    values = np.array(trace["loss"], dtype=np.float64)
    return np.where(np.isnan(values), np.inf, values)


def summarise(records: list[Record]) -> dict[str, Any]:
    """Compare the methods of each comparison.

    Args:
        records: Finished runs, with ``recovery_steps`` filled in.

    Returns:
        By name of the comparison: its settings, the numbers of each method, and the paired
        difference of ``ars`` from each other method.
    """
    return {name: _compare(members) for name, members in groups(records).items()}


def _compare(members: list[Record]) -> dict[str, Any]:
    methods = by_method(members)
    ours = methods.get(OURS, [])
    return {
        **{name: members[0][name] for name in SETTINGS},
        "methods": {name: _method(runs) for name, runs in methods.items()},
        f"{OURS}_minus": {
            name: compare_seeds(ours, runs)
            for name, runs in methods.items()
            if ours and name != OURS
        },
    }


def _method(runs: list[Record]) -> dict[str, Any]:
    """Numbers of one method; a mean is null if a run has no finite value to put into it."""
    val = _mean(runs, "val")
    recovered = [run for run in runs if run["recovery_steps"] is not None]
    crossed = [run for run in runs if run["weight_norm_100_at"] is not None]
    return {
        "n": len(runs),
        "seeds": [run["seed"] for run in runs],
        "val": val and val.mean,
        "val_se": val and val.se,
        **{name: _bare_mean(runs, name) for name in ("mean_after", "gap", "spike_score")},
        "touched": _bare_mean(runs, "touched"),
        "survived": sum(run["survived"] for run in runs),
        "recovered": len(recovered),
        "recovery_steps": _bare_mean(recovered, "recovery_steps"),
        "weight_norm_100": len(crossed),
        "weight_norm_100_at": _bare_mean(crossed, "weight_norm_100_at"),
        "weight_norm_max": _bare_mean(runs, "weight_norm_max"),
        "seconds": _bare_mean(runs, "seconds"),
    }


def _mean(runs: list[Record], name: str) -> measures.Mean | None:
    values = [run[name] for run in runs]
    return None if not values or None in values else measures.mean_se(values)


def _bare_mean(runs: list[Record], name: str) -> float | None:
    mean = _mean(runs, name)
    return mean.mean if mean else None


def compare_seeds(ours: list[Record], theirs: list[Record]) -> dict[str, Any]:
    """Paired difference in val over the seeds both have; null unless all of them are finite."""
    a, b = ({run["seed"]: run["val"] for run in runs} for runs in (ours, theirs))
    seeds = sorted(a.keys() & b.keys())
    usable = seeds and all(a[s] is not None and b[s] is not None for s in seeds)
    pair = measures.paired([a[s] for s in seeds], [b[s] for s in seeds]) if usable else None
    return {
        "mean": pair and pair.mean,
        "se": pair and pair.se,
        "n": len(seeds),
        "verdict": measures.verdict(pair),
    }
