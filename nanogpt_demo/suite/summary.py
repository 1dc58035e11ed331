"""From the runs of the suite to its summary: what ``results/suite.json`` says beside the runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from nanogpt_demo import measures
from nanogpt_demo.suite import profile
from nanogpt_demo.suite.profile import (
    Cell,
    Cells,
    Runs,
    Summary,
    capped,
    compare_runs,
    mean_capped,
    tally,
)
from nanogpt_demo.summary import OURS, Record

WORKLOADS = ("gpt", "gru", "cnn", "mlp")
OPTIMIZERS = ("adamw", "sgd", "lion")
SPLITS = ("held-out", "dev")
BARE, CLIP, WARMUP_CLIP = "bare", "clip", "warmup+clip"
BEST_PEER = "best peer"
REFERENCES = (BEST_PEER, CLIP, WARMUP_CLIP, BARE)  # what ars is counted against
HEALTHY = "none"
CONTROLS = (HEALTHY,)


def cell_name(record: Record) -> str:
    """Name of the cell a run belongs to."""
    return f"{record['workload']}/{record['optimizer']}/{record['scenario']}"


def is_peer(method: str) -> bool:
    """Whether a method is none of ours."""
    return not method.startswith(OURS)


def _ordered(records: Iterable[Record], scenarios: Sequence[str]) -> list[Record]:
    """Sort by workload, optimizer and scenario; what is not listed follows as it appears."""
    found = list(records)
    order = list(dict.fromkeys([*scenarios, *(record["scenario"] for record in found)]))
    places = {"workload": list(WORKLOADS), "optimizer": list(OPTIMIZERS), "scenario": order}

    def place(record: Record) -> list[int]:
        return [
            values.index(record[name]) if record[name] in values else len(values)
            for name, values in places.items()
        ]

    return sorted(found, key=place)


def grouped(records: Iterable[Record], scenarios: Sequence[str] = ()) -> Cells:
    """Sort runs by cell, method and seed.

    Args:
        records: Runs of one split and kind.
        scenarios: Order of the scenarios (default: as they appear).

    Raises:
        ValueError: If two runs have the same cell, method and seed.
    """
    cells: Cells = {}
    for record in _ordered(records, scenarios):
        name, method, seed = cell_name(record), record["method"], record["seed"]
        runs = cells.setdefault(name, {}).setdefault(method, {})
        if seed in runs:
            raise ValueError(
                f"records must hold a run once, got {name}, {method}, seed {seed} twice"
            )
        runs[seed] = record
    return cells


def summarise(records: Sequence[Record], scenarios: Sequence[str] = ()) -> dict[str, Summary]:
    """Compare the methods, for each split apart.

    Args:
        records: Finished runs.
        scenarios: Order of the scenarios (default: as they appear).

    Returns:
        By split that has runs: its cells, ranks, profile, sweep, ablation, counts and controls.
    """
    splits = {split: [r for r in records if r["split"] == split] for split in SPLITS}
    return {split: _split(found, scenarios) for split, found in splits.items() if found}


def _split(records: list[Record], scenarios: Sequence[str]) -> Summary:
    def of_kind(kind: str) -> list[Record]:
        found = [record for record in records if record["kind"] == kind]
        return _ordered(found, scenarios)

    cells = grouped(of_kind("cell"), scenarios)
    # Some methods exist for AdamW only: the common ranking leaves them out, so they get their own.
    pools = {"common": cells, "adamw": {n: c for n, c in cells.items() if "/adamw/" in n}}
    summaries = {name: compare_cell(cell) for name, cell in cells.items()}
    return {
        "cells": summaries,
        "methods": _overall(cells, summaries),
        "ranks": {name: profile.ranks(pool) for name, pool in pools.items()},
        "profile": {name: profile.profile(pool) for name, pool in pools.items()},
        "lr_sweep": profile.lr_sweep(of_kind("lr-sweep")),
        "ablation": profile.ablation(grouped(of_kind("ablation"), scenarios), cells),
        "counts": counts(summaries, cells),
        "controls": {n: _control(s, cells[n]) for n, s in summaries.items() if s["control"]},
    }


def compare_cell(cell: Cell) -> Summary:
    """Numbers of each method of one cell, and of ``ars`` minus each other one.

    The best peer is picked after the fact, on the seeds it is then compared on, which favours it.
    """
    first = next(iter(next(iter(cell.values())).values()))
    start, best = profile.levels(cell)
    goal = profile.target(cell)
    peers = [method for method in profile.complete(cell) if is_peer(method)]
    best_peer = min(peers, key=lambda method: mean_capped(cell[method]), default=None)
    minus = {m: compare_runs(cell[OURS], cell[m]) for m in cell if OURS in cell and m != OURS}
    against = minus.get(best_peer) if best_peer else None
    return {
        **{name: first[name] for name in ("workload", "optimizer", "scenario", "strength")},
        "control": first["scenario"] in CONTROLS,
        "seeds": profile.seeds_of(cell),
        "val_start": start,
        "best": best,
        "target": goal,
        "methods": {method: _method(runs, goal) for method, runs in cell.items()},
        "best_peer": best_peer,
        f"{OURS}_minus": minus,
        "against_best": against,
        "verdict_best": against and against["verdict"],
        "against_clip": minus.get(CLIP),
        "against_warmup_clip": minus.get(WARMUP_CLIP),
    }


def _method(runs: Runs, goal: float | None) -> Summary:
    val = measures.mean_se([capped(run) for run in runs.values()])
    times = [profile.time_to_target(run, goal) for run in runs.values()]
    reached = [time for time in times if time is not None]
    means = ("touched", "touched_late", "spike_score", "seconds")
    return {
        "n": len(runs),
        "val": val.mean,
        "val_se": val.se,
        "survived": survived(runs),
        **{name: _mean(run[name] for run in runs.values()) for name in means},
        "recovery": _mean(reached),
        "recovered": len(reached),
    }


def survived(runs: Runs) -> int:
    """Number of runs that survived."""
    return sum(bool(run["survived"]) for run in runs.values())


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def _overall(cells: Cells, summaries: dict[str, Summary]) -> Summary:
    """Numbers of each method over all the cells that it runs in."""
    methods = dict.fromkeys(method for cell in cells.values() for method in cell)
    return {method: _over_cells(method, cells, summaries) for method in methods}


def _over_cells(method: str, cells: Cells, summaries: dict[str, Summary]) -> Summary:
    present = {name: cell for name, cell in cells.items() if method in cell}
    healthy = [
        run["touched_late"]
        for name, cell in present.items()
        if summaries[name]["scenario"] == HEALTHY
        for run in cell[method].values()
    ]
    pairs = [summaries[name][f"{OURS}_minus"].get(method) for name in present]
    regrets = [found for cell in summaries.values() if (found := regret(cell, method)) is not None]
    return {
        "cells": len(present),
        "regret_mean": fmean(regrets),
        "regret_max": max(regrets),
        "runs": sum(len(cell[method]) for cell in present.values()),
        "survived": sum(survived(cell[method]) for cell in present.values()),
        "touched_healthy": _mean(healthy),
        f"{OURS}_is": tally(pair["verdict"] for pair in pairs if pair),
    }


def regret(cell: Summary, method: str) -> float | None:
    """Distance of a method from the best of its cell, as a share of what the best one gains."""
    gain = cell["val_start"] - cell["best"]
    if method not in cell["methods"]:
        return None
    return float(cell["methods"][method]["val"] - cell["best"]) / gain if gain > 0 else 0.0


def against(cell: Summary, reference: str) -> Summary | None:
    """Difference of ``ars`` from a reference; None where that does not run."""
    method = cell["best_peer"] if reference == BEST_PEER else reference
    found: Summary | None = cell[f"{OURS}_minus"].get(method)
    return found


def counts(summaries: dict[str, Summary], cells: Cells) -> Summary:
    """How ``ars`` fares against each reference, and whose runs survive what."""
    sick = [cell for cell in summaries.values() if not cell["control"]]
    by_pool = {
        pool: {
            reference: tally(pair["verdict"] for c in members if (pair := against(c, reference)))
            for reference in REFERENCES
        }
        for pool, members in (("all", list(summaries.values())), ("sick", sick))
    }
    nonfinite = {
        name: cell for name, cell in cells.items() if "/nonfinite" in name and OURS in cell
    }
    return {
        "cells": len(summaries),
        "sick_cells": len(sick),
        **by_pool,
        "sick_better_than_clip": by_pool["sick"][CLIP]["better"],
        "lost_by_ars_only": [name for name, cell in cells.items() if _lost(cell)],
        "nonfinite_runs": sum(len(cell[OURS]) for cell in nonfinite.values()),
        "nonfinite_survived": sum(survived(cell[OURS]) for cell in nonfinite.values()),
    }


def _lost(cell: Cell) -> bool:
    """Whether the bare optimizer survived on a seed on which ``ars`` did not."""
    ours, bare = cell.get(OURS, {}), cell.get(BARE, {})
    return any(bare[s]["survived"] and not ours[s]["survived"] for s in ours.keys() & bare.keys())


def _control(summary: Summary, cell: Cell) -> Summary:
    """What ``ars`` costs where nothing is wrong, against the better of bare and clip."""
    present = [method for method in (BARE, CLIP) if method in cell]
    better = min(present, key=lambda method: mean_capped(cell[method]), default=None)
    late = {
        method: found
        for method, runs in cell.items()
        if (found := [r["touched_late"] for r in runs.values() if r["touched_late"] is not None])
    }
    return {
        "false_alarms": summary["scenario"] == HEALTHY,
        "reference": better,
        "against_reference": summary[f"{OURS}_minus"].get(better),
        "touched_late": {m: {"mean": fmean(v), "max": max(v)} for m, v in late.items()},
    }


def reported(summary: dict[str, Summary]) -> tuple[str, Summary]:
    """Return the split to report, by name: the held-out one if it has cells.

    Raises:
        ValueError: If no split has any.
    """
    for split in SPLITS:
        if summary.get(split, {}).get("cells"):
            return split, summary[split]
    raise ValueError("summary must have a split with cells, got none; run some cells first")


def method_order(split: Summary) -> list[str]:
    """All methods, best mean rank first; those that do not run everywhere follow."""
    ranked = (method for pool in split["ranks"].values() for method in pool["mean"])
    return list(dict.fromkeys([*ranked, *split["methods"]]))
