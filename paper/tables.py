"""The tables of the paper, made from the result files alone."""

from __future__ import annotations

from typing import Any

from nanogpt_demo.faults.summary import reported as reported_faults
from nanogpt_demo.markdown import percent, plus_minus
from nanogpt_demo.store import Document
from nanogpt_demo.suite.profile import VERDICTS
from nanogpt_demo.suite.summary import BEST_PEER, against, method_order
from nanogpt_demo.suite.summary import reported as reported_suite
from nanogpt_demo.suite.tables import lost_share, verdicts
from nanogpt_demo.summary import OURS
from paper.common import HELD_OUT, Documents, Summary, signed
from paper.numbers_stress import comparisons

Table = dict[str, Any]
"""``header``: a list of words, ``rows``: lists of as many."""

FAMILIES = {
    "loss": "loss",
    "grad": "gradients",
    "weights": "weights",
    "state": "optimizer state",
    "lr": "learning rate",
    "batch": "data",
    "fp16": "other",
    "two": "other",
    "after": "other",
    "during": "other",
}
"""What is broken, by the first word of a fault's name."""


def tables(documents: Documents) -> dict[str, Table]:
    """All tables, by the names that ``paper.typ`` uses.

    Args:
        documents: the contents of the result files, by name.
    """
    return {
        "stress": stress(documents["stress"]),
        "suite": suite(documents["suite"]),
        "losses": losses(documents["suite"]),
        "ablation": ablation(documents["suite"]),
        "faults": faults(documents["faults"]),
        "stopping": stopping(documents["stopping"]),
        "overhead": overhead(documents["overhead"]),
    }


def stress(document: Document) -> Table:
    """A row for each method, two columns for each comparison: its loss, and how ARS compares."""
    summaries = [document["summary"][name] for name in comparisons(document).values()]
    methods = list(dict.fromkeys(m for summary in summaries for m in summary["methods"]))
    header = ["method"]
    for summary in summaries:
        size = "large" if summary["size"] == "paper" else "small"
        header += [f"{size}, step {summary['shift_at']}", "ARS is"]
    rows = [[m, *(cell for s in summaries for cell in _stress_cells(s, m))] for m in methods]
    return {"header": header, "rows": rows}


def _stress_cells(summary: Summary, method: str) -> tuple[str, str]:
    numbers = summary["methods"].get(method)
    if numbers is None:
        return "–", ""
    pair = summary[f"{OURS}_minus"].get(method)
    few = f" ({numbers['n']} seeds)" if numbers["n"] < summary["methods"][OURS]["n"] else ""
    return plus_minus(numbers["val"], numbers["val_se"]) + few, pair["verdict"] if pair else ""


def suite(document: Document) -> Table:
    """The methods that run in every cell, best mean rank first."""
    _, split = reported_suite(document["summary"])
    ranks = split["ranks"]["common"]["mean"]
    header = ["method", "mean rank", "lost", "in the worst cell", "profile"]
    header += [f"ARS {' / '.join(VERDICTS)}"]
    header += ["survived", "touched"]
    rows = [_suite_row(m, split) for m in method_order(split) if m in ranks]
    return {"header": header, "rows": rows}


def _suite_row(method: str, split: Summary) -> list[str]:
    numbers = split["methods"][method]
    return [
        method,
        f"{split['ranks']['common']['mean'][method]:.2f}",
        percent(numbers["regret_mean"]),
        percent(numbers["regret_max"]),
        f"{split['profile']['common'][method]['score']:.3f}",
        "" if method == OURS else verdicts(numbers[f"{OURS}_is"]),
        f"{numbers['survived']} of {numbers['runs']}",
        percent(numbers["touched_healthy"]),
    ]


def losses(document: Document) -> Table:
    """The cells in which ARS is worse than the best peer, the worst first."""
    _, split = reported_suite(document["summary"])
    pairs = {name: against(cell, BEST_PEER) for name, cell in split["cells"].items()}
    rows = [
        _loss_row(name, split["cells"][name], pair)
        for name, pair in pairs.items()
        if pair and pair["verdict"] == "worse"
    ]
    rows.sort(key=lambda row: -float(row[-1]))
    header = ["cell", "best peer", "its loss", "ARS", "ARS minus it", "% of the gain"]
    return {"header": header, "rows": rows}


def _loss_row(name: str, cell: dict[str, Any], pair: dict[str, Any]) -> list[str]:
    peer, ours = cell["methods"][cell["best_peer"]], cell["methods"][OURS]
    return [
        name,
        cell["best_peer"],
        plus_minus(peer["val"], peer["val_se"]),
        plus_minus(ours["val"], ours["val_se"]),
        plus_minus(pair["mean"], pair["se"], "+"),
        f"{100 * lost_share(cell, pair):.1f}",
    ]


def ablation(document: Document) -> Table:
    """What each part of ARS is worth, and in how many cells it does anything."""
    _, split = reported_suite(document["summary"])
    header = ["variant", "costs, %", "differs in", "dearest cell"]
    rows = [
        [variant.removeprefix(f"{OURS} "), *_ablation_cells(numbers)]
        for variant, numbers in split["ablation"].items()
    ]
    return {"header": header, "rows": rows}


def _ablation_cells(numbers: Summary) -> tuple[str, str, str]:
    cells = numbers["cells"]
    acts = {name: pair for name, pair in cells.items() if pair["mean"] or pair["se"]}
    mean = plus_minus(numbers["cost"]["mean"], numbers["cost"]["se"], "+").replace("-", "−")
    if not acts:
        return mean, f"0 of {len(cells)}", "–"
    dearest = max(acts, key=lambda name: float(acts[name]["percent"]))
    percent = signed(acts[dearest]["percent"], 1)
    return mean, f"{len(acts)} of {len(cells)}", f"{dearest} {percent}"


def faults(document: Document) -> Table:
    """Runs that end healthy, by what is broken."""
    _, split = reported_faults(document["summary"])
    methods = list(split["totals"])
    header = ["what is broken", "kinds", *(f"{method} healthy" for method in methods)]
    families: dict[str, list[Summary]] = {}
    for fault, by_method in split["faults"].items():
        families.setdefault(FAMILIES[fault.split("-")[0]], []).append(by_method)
    rows = [
        [name, str(len(kinds)), *(_summed(kinds, method) for method in methods)]
        for name, kinds in families.items()
    ]
    totals = split["totals"]
    for label, what in (("all", "healthy"), ("all, ARC's criterion", "lenient")):
        shares = [f"{totals[m][what]:,} of {totals[m]['runs']:,}" for m in methods]
        rows.append([label, str(len(split["faults"])), *shares])
    lost = [totals[m]["steps_lost"] for m in methods]
    rows.append(["steps lost, median", "", *("–" if n is None else f"{n:g}" for n in lost)])
    clean = [split["controls"][m] for m in methods]
    rows.append(["clean runs", "", *(f"{c['healthy']} of {c['runs']}" for c in clean)])
    return {"header": header, "rows": rows}


def _summed(kinds: list[Summary], method: str) -> str:
    healthy = sum(kind[method]["healthy"] for kind in kinds)
    return f"{healthy} of {sum(kind[method]['runs'] for kind in kinds)}"


def stopping(document: Document) -> Table:
    """The default settings of all rules, those that save most first."""
    methods = document["summary"][HELD_OUT]["methods"]
    shown = {name: m for name, m in methods.items() if m["default"]}
    rows = [
        [
            name,
            _interval(m["saved"], m["saved_ci"], 0),
            _interval(m["regret"], m["regret_ci"], 2),
            _interval(m["wrong_stop"], m["wrong_stop_ci"], 0),
        ]
        for name, m in sorted(shown.items(), key=lambda item: -float(item[1]["saved"]))
    ]
    return {"header": ["rule", "saved, %", "regret, %", "wrong, %"], "rows": rows}


def _interval(mean: float, interval: list[float], digits: int) -> str:
    low, high = (f"{100 * end:.{digits}f}" for end in interval)
    return f"{100 * mean:.{digits}f} ({low} to {high})"


def overhead(document: Document) -> Table:
    """A step as a multiple of the bare optimizer's."""
    ratios = {
        case.removesuffix(", adamw-fused"): by_method
        for case, by_method in document["summary"]["ratios"].items()
        if case.endswith(", adamw-fused")
    }
    cases = [case for case in ratios if case != "gpt-step"] + ["gpt-step"]
    methods = [method for method in next(iter(ratios.values())) if method != "bare"]
    rows = [[method, *(f"{ratios[case][method]:.3f}" for case in cases)] for method in methods]
    return {"header": ["method", *cases], "rows": rows}
