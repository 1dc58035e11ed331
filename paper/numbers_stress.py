"""The replication of the published claim, in numbers."""

from __future__ import annotations

from statistics import median
from typing import Any

from nanogpt_demo.store import Document, record_key
from nanogpt_demo.summary import OURS, Record, by_method, compare_seeds, groups
from paper.common import Numbers, difference, require, word

PUBLISHED, PLAIN, RECIPE = "ars-paper", "adamw", "adamw+warmup+clip"
ENOUGH_SEEDS = 3
"""Fewer pairs say nothing of noise."""


def comparisons(document: Document) -> dict[str, str]:
    """The three comparisons of the stress test: by what the paper calls them, their full names."""
    members = {name: runs[0] for name, runs in groups(document["records"]).items()}
    small = sorted((r["shift_at"], name) for name, r in members.items() if r["size"] == "quick")
    return {"early": small[0][1], "late": small[1][1], "large": of_size(document, "paper")[0]}


def of_size(document: Document, size: str) -> tuple[str, list[Record]]:
    """The one comparison of a size: its full name and its runs."""
    (found,) = (
        (name, runs)
        for name, runs in groups(document["records"]).items()
        if runs[0]["size"] == size
    )
    return found


def stress(document: Document) -> Numbers:
    """What became of the claim, and what the runs show instead."""
    names, members = comparisons(document), groups(document["records"])
    methods = {label: by_method(members[name]) for label, name in names.items()}
    pairs = {label: compare_seeds(m[PUBLISHED], m[PLAIN]) for label, m in methods.items()}
    seeds = {label: _seeds(pair["n"]) for label, pair in pairs.items()}
    bare = [run for m in methods.values() for run in m[PLAIN]]
    large = document["summary"][names["large"]]
    gain = -pairs["large"]["mean"] / large["methods"][PLAIN]["val"]
    crossed = {m: large["methods"][m]["weight_norm_100"] for m in (OURS, PLAIN)}
    require(0 < gain < 0.01, "ahead of AdamW by less than a per cent at the large size")
    _check_words(pairs, bare, large)
    first = {label: members[name][0] for label, name in names.items()}
    return {
        **{f"claim-{label}": difference(pair) for label, pair in pairs.items()},
        **{f"claim-{label}-seeds": seeds[label] for label in ("early", "large")},
        **_published_gate(document, [run for m in methods.values() for run in m[PUBLISHED]]),
        "claim-large-share": f"{100 * gain:.1f} %",
        "large-ars-minus-recipe": difference(large[f"{OURS}_minus"][RECIPE]),
        **_small(document, names),
        "claim-adamw-runs": str(len(bare)),
        "stress-early-shift": str(first["early"]["shift_at"]),
        "stress-late-shift": str(first["late"]["shift_at"]),
        "stress-quick-steps": str(first["early"]["steps"]),
        "stress-large-steps": f"{first['large']['steps']:,}",
        "stress-large-shift": str(first["large"]["shift_at"]),
        "stress-small-params": f"{first['early']['params'] / 1e6:.2f} million",
        "stress-large-params": f"{first['large']['params'] / 1e6:.1f} million",
        "stress-large-adamw": f"{large['methods'][PLAIN]['val']:.2f}",
        "stress-large-clip": f"{large['methods']['adamw+clip']['val']:.2f}",
        "stress-large-recipe": f"{large['methods'][RECIPE]['val']:.2f}",
        "stress-large-ars": f"{large['methods'][OURS]['val']:.2f}",
        **_wide(document),
        "crossed-ars": f"{word(crossed[OURS])} of {word(large['methods'][OURS]['n'])}",
        "crossed-adamw": f"{word(crossed[PLAIN])} of {word(large['methods'][PLAIN]['n'])}",
    }


def _small(document: Document, names: dict[str, str]) -> Numbers:
    """ARS against the recipe at the small size."""
    pairs = {
        label: document["summary"][names[label]][f"{OURS}_minus"][RECIPE]
        for label in ("early", "late")
    }
    require(all(pair["verdict"] == "better" for pair in pairs.values()), "ahead at the small size")
    return {f"{label}-ars-minus-recipe": difference(pair) for label, pair in pairs.items()}


def _wide(document: Document) -> Numbers:
    """The layers of nanoGPT's model, on little text."""
    name, runs = of_size(document, "wide")
    summary = document["summary"][name]
    methods, minus = summary["methods"], summary[f"{OURS}_minus"]
    require(minus[RECIPE]["verdict"] == "tied", "level with warm-up with clipping")
    require(minus["adamw+clip"]["verdict"] == "better", "far ahead of clipping alone")
    return {
        "wide-ars": f"{methods[OURS]['val']:.2f}",
        "wide-clip": f"{methods['adamw+clip']['val']:.2f}",
        "wide-recipe": f"{methods[RECIPE]['val']:.2f}",
        "wide-minus-recipe": difference(minus[RECIPE]),
        "wide-seeds": word(methods[OURS]["n"]),
        "wide-steps": str(runs[0]["steps"]),
    }


def _seeds(count: int) -> str:
    return f"{word(count)} seed" + ("s" if count > 1 else "")


def _check_words(pairs: dict[str, Any], bare: list[Any], large: Any) -> None:
    require(all(pair["n"] >= ENOUGH_SEEDS for pair in pairs.values()), "on several seeds")
    small = [pairs[label]["verdict"] for label in ("early", "late")]
    require(set(small) <= {"tied", "unclear"}, "equals AdamW at the small size")
    require(all(run["survived"] for run in bare), "nothing diverges in it")
    minus = large[f"{OURS}_minus"]
    require(minus[PLAIN]["verdict"] == "better", "end far below AdamW")
    require(minus["adamw+clip"]["verdict"] == "better", "with or without clipping")
    require(minus[RECIPE]["verdict"] == "tied", "level with warm-up with clipping")


def _published_gate(document: Document, runs: list[Any]) -> Numbers:
    """How much the published gate and guard did in the runs of the published method."""
    traces = [document["traces"][record_key(run)] for run in runs]
    gate = [phi for trace in traces for phi in trace["phi"] if phi is not None]
    guard = [psi for trace in traces for psi in trace["psi"] if psi is not None]
    return {
        "published-gate-median": f"{median(gate):.2f}",
        "published-guard-fires": f"{100 * sum(psi < 1 for psi in guard) / len(guard):.1f} %",
    }
