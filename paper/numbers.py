"""Every measured number of the paper's prose, by name, made from the result files alone.

Where the prose says more than a number ("third by mean rank", "in no cell"), the words are checked
here, too: `require` stops the build when the results no longer say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanogpt_demo.faults.summary import reported as reported_faults
from nanogpt_demo.markdown import difference, percent
from nanogpt_demo.store import Document
from nanogpt_demo.suite.summary import BARE, BEST_PEER, CLIP, against, is_peer, method_order
from nanogpt_demo.suite.summary import reported as reported_suite
from nanogpt_demo.summary import OURS, by_method, compare_seeds, groups

Documents = Mapping[str, Document]
Numbers = dict[str, str]

PUBLISHED = "ars-paper"
CLIPPED = f"{OURS}+clip"
HELD_OUT = "held-out"
FILES = (
    "stress", "suite", "ideas", "detectors", "faults", "stopping", "stopping_live", "curves",
    "overhead", "snapshots",
)  # fmt: skip
"""The result files that the paper is made from."""


def require(condition: bool, words: str) -> None:
    """Stop the build if what the prose says in words is not what the results say.

    Raises:
        ValueError: If so.
    """
    if not condition:
        raise ValueError(f"the results must support the words {words!r} of paper.typ; rewrite them")


def numbers(documents: Documents) -> Numbers:
    """All measured numbers, by the names that ``paper.typ`` uses.

    Args:
        documents: the contents of `FILES`, by name.

    Raises:
        ValueError: If the results do not support the paper's words any more.
    """
    parts = (
        stress(documents["stress"]),
        suite(documents["suite"]),
        ideas(documents["ideas"]),
        detectors(documents["detectors"]),
        faults(documents["faults"]),
        stopping(documents["stopping"]),
        stopping_live(documents["stopping_live"]),
        cost(documents["overhead"], documents["snapshots"]),
        {"results-hours": f"{core_hours(documents):.0f}"},
    )
    return {name: text for part in parts for name, text in part.items()}


def core_hours(documents: Documents) -> float:
    """Hours that the runs of all files took, one core each."""
    runs = (record for document in documents.values() for record in document["records"])
    return sum(float(record.get("seconds", 0.0)) for record in runs) / 3600


def comparisons(document: Document) -> dict[str, str]:
    """The three comparisons of the stress test: by what the paper calls them, their full names."""
    small = sorted(
        (members[0]["shift_at"], name)
        for name, members in groups(document["records"]).items()
        if members[0]["size"] == "quick"
    )
    (large,) = (
        name for name, members in groups(document["records"]).items()
        if members[0]["size"] == "paper"
    )  # fmt: skip
    return {"quick-early": small[0][1], "quick-late": small[1][1], "paper": large}


def stress(document: Document) -> Numbers:
    """The replication of the published claim."""
    found: Numbers = {}
    bare_runs, diverged = 0, 0
    members = groups(document["records"])
    for label, name in comparisons(document).items():
        methods = by_method(members[name])
        pair = compare_seeds(methods[PUBLISHED], methods["adamw"])
        require(pair["verdict"] in ("tied", "unclear"), "equals AdamW to within noise")
        found[f"claim-{label}-difference"] = difference(pair)
        bare_runs += len(methods["adamw"])
        diverged += sum(not run["survived"] for run in methods["adamw"])
    early, large = members[comparisons(document)["quick-early"]][0], comparisons(document)["paper"]
    late = members[comparisons(document)["quick-late"]][0]
    minus = document["summary"][large][f"{OURS}_minus"]
    require(diverged == 0, "nothing diverges in it")
    require(minus["adamw"]["verdict"] == "better", "both gain over AdamW")
    require(minus["adamw+warmup+clip"]["verdict"] in ("tied", "unclear"), "even with warm-up")
    return found | {
        "claim-paper-seeds": str(len(by_method(members[large])[PUBLISHED])),
        "claim-quick-seeds": str(len({run["seed"] for run in members[
            comparisons(document)["quick-early"]]})),
        "claim-diverged": str(diverged),
        "claim-adamw-runs": str(bare_runs),
        "stress-early-shift": str(early["shift_at"]),
        "stress-late-shift": str(late["shift_at"]),
        "stress-quick-steps": str(early["steps"]),
        "stress-paper-params": f"{members[large][0]['params'] / 1e6:.1f} million",
    }  # fmt: skip


def suite(document: Document) -> Numbers:
    """ARS against its peers."""
    _, split = reported_suite(document["summary"])
    methods, ranks = split["methods"], split["ranks"]["common"]["mean"]
    order = [method for method in method_order(split) if method in ranks]
    ours, best = methods[OURS], next(method for method in order if is_peer(method))
    surviving = [m for m in order if is_peer(m) and methods[m]["survived"] == methods[m]["runs"]]
    worse = [c for c in split["cells"].values() if verdict(c) == "worse"]
    require(order[:3] == [CLIPPED, best, OURS], "it comes third, behind itself with clipping")
    require(ours["survived"] == ours["runs"], "survives all runs")
    others = [methods[m]["regret_max"] for m in order if m != OURS]
    require(ours["regret_max"] < min(others), "loses least in its worst cell")
    healthy = [against(c, CLIP) for c in split["cells"].values() if c["control"]]
    mean = sum(pair["mean"] for pair in healthy if pair) / len(healthy)
    require(mean > 0, "on the healthy controls clipping is as good or better")
    _ablation_words(split["ablation"])
    sweeps = {name.split("/")[0]: sweep for name, sweep in split["lr_sweep"].items()}
    swept = {
        f"lr-{workload}-{method}": f"{sweep[method]['sensitivity']:.3f}"
        for workload, sweep in sweeps.items()
        for method in (OURS, BARE)
    }
    cnn, gpt = sweeps["cnn"], sweeps["gpt"]
    wider = cnn[OURS]["sensitivity"] < cnn[BARE]["sensitivity"]
    require(wider, "widens the range of the one")
    require(gpt[OURS]["sensitivity"] > gpt[BARE]["sensitivity"], "and not of the other")
    return swept | {
        "suite-cells": str(len(split["cells"])),
        "suite-runs": f"{sum(r['split'] == HELD_OUT for r in document['records']):,}",
        "suite-seeds": str(max(len(cell["seeds"]) for cell in split["cells"].values())),
        "suite-pairs": str(split["ranks"]["common"]["pairs"]),
        "suite-common-methods": str(len(order)),
        "suite-ars-survived": str(ours["survived"]),
        "suite-ars-worst": percent(ours["regret_max"]),
        "suite-ars-touched": percent(ours["touched_healthy"]),
        "suite-ars-time": f"{ours['time']:.2f}",
        "suite-ars-rank": f"{ranks[OURS]:.2f}",
        "suite-ars-clip-rank": f"{ranks[CLIPPED]:.2f}",
        "suite-best-peer": best,
        "suite-best-peer-rank": f"{ranks[best]:.2f}",
        "suite-best-peer-time": f"{methods[best]['time']:.2f}",
        "suite-peers-surviving": listed(surviving),
        "suite-worse-cells": str(len(worse)),
    }


def _ablation_words(ablation: Mapping[str, Any]) -> None:
    cost = {variant: numbers["cost"] for variant, numbers in ablation.items()}
    dearest = max(cost, key=lambda variant: float(cost[variant]["mean"]))
    require(dearest == "ars no norm guard", "the norm guard carries the method")
    for variant in ("ars no resonance", "ars with jitter"):
        require(abs(cost[variant]["mean"]) < 2 * cost[variant]["se"], "resonance buys nothing")


def verdict(cell: Mapping[str, Any]) -> str | None:
    """How ARS does against the best peer of a cell."""
    pair = against(dict(cell), BEST_PEER)
    return str(pair["verdict"]) if pair else None


def listed(names: list[str]) -> str:
    """Names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def ideas(document: Document) -> Numbers:
    """What was tried for the policy and does not ship."""
    tried = document["summary"]["dev"]["ablation"]
    return {"ideas-count": str(len(tried)), "ideas-runs": str(len(document["records"]))}


def detectors(document: Document) -> Numbers:
    """False alarms and power of the shipped statistics."""
    shipped = document["summary"]["shipped_false_alarms_per_1000"]
    silent = [rates[0] for kind in ("new level", "resonance") for rates in shipped[kind].values()]
    require(not any(silent), "new levels and resonance never")
    shown = _rhythms_found(document, "anticorrelation", "rho < -0.75")
    longer = [share for period, share in shown.items() if period != "period 2"]
    require(not any(longer), "none of a longer period")
    whitened = _rhythms_found(document, "g, whitened", "matched")
    surprise = shipped["surprise"]
    return {
        "false-white": f"{surprise['white noise'][0]:.2f}",
        "false-heavy": f"{surprise['heavy tails'][0]:.1f}",
        "false-ar": f"{surprise['AR(1)'][0]:.1f}",
        "power-period-2": f"{100 * shown['period 2']:.0f} %",
        "power-period-3": f"{100 * whitened['period 3']:.0f} %",
    }


def _rhythms_found(document: Document, rule: str, setting: str) -> dict[str, float]:
    """Share of windows in which a rule finds a rhythm of one noise scale, by its period."""
    return {
        record["signal"]: record["power"]
        for record in document["records"]
        if (record["rule"], record["setting"], record["parameter"]) == (rule, setting, "1")
        and record["signal"].startswith("period")
    }


def faults(document: Document) -> Numbers:
    """Faults that pass, faults that stay, and clean runs."""
    _, split = reported_faults(document["summary"])
    totals, controls = split["totals"], split["controls"]
    lasting = [kind["methods"][OURS] for kind in split["persistent"].values()]
    stopped = [kind for kind in lasting if kind["stopped"]]
    require(all(k["stopped"] == k["cause_right"] for k in lasting), "all with the right cause")
    silent = [name for name, k in split["persistent"].items() if not k["methods"][OURS]["stopped"]]
    require(silent == ["always-batch-noise"], "the kind it does not stop is finite garbage")
    require(controls[OURS]["touched_late"] > 0.005, "above the half per cent")
    return {
        "faults-kinds": str(len(split["faults"])),
        "faults-runs": f"{totals[OURS]['runs']:,}",
        "faults-all-runs": f"{sum(r['split'] == HELD_OUT for r in document['records']):,}",
        **{f"faults-{m}-healthy": f"{totals[m]['healthy']:,}" for m in (OURS, "arc", BARE)},
        "persistent-kinds": str(len(lasting)),
        "persistent-runs": str(sum(kind["runs"] for kind in lasting)),
        "persistent-stopped": str(sum(kind["stopped"] for kind in lasting)),
        "persistent-fastest": f"{min(kind['stopped_after'] for kind in stopped):g}",
        "persistent-slowest": f"{max(kind['stopped_after_max'] for kind in stopped):g}",
        "controls-runs": str(controls[OURS]["runs"]),
        "controls-rollbacks": str(controls[OURS]["rollbacks"]),
        "controls-touched": percent(controls[OURS]["touched_late"]),
        "controls-arc-rollbacks": str(controls["arc"]["rollbacks"]),
    }


def stopping(document: Document) -> Numbers:
    """The stopping rules on the held-out curves."""
    split = document["summary"][HELD_OUT]
    (default,) = (m for n, m in split["methods"].items() if n.startswith("rca ") and m["default"]
                  and m["family"] == "rca")  # fmt: skip
    published = split["methods"]["rca as published"]
    points = [pair["points"] for pair in split["against_patience"]]
    crossing = [pair["points_ci"] for pair in split["against_patience"]]
    require(all(low < 0 < high for low, high in crossing), "no better than patience")
    return {
        "stopping-curves": str(split["curves"]),
        "rca-saved": percent(default["saved"]),
        "rca-regret": f"{100 * default['regret']:.2f} %",
        "rca-points-low": f"{100 * min(points):+.1f}",
        "rca-points-high": f"{100 * max(points):+.1f}",
        "rca-paper-wrong": percent(published["wrong_stop"]),
    }


def stopping_live(document: Document) -> Numbers:
    """The policies that cut learning rates."""
    ours = document["summary"]["ResonantCallback"]
    plateau = document["summary"]["ReduceLROnPlateau + patience 25"]
    return {
        "live-runs": str(ours["n"]),
        "live-ours-saved": percent(ours["saved"]),
        "live-ours-regret": f"{100 * ours['regret']:.2f} %",
        "live-plateau-saved": percent(plateau["saved"]),
        "live-plateau-regret": f"{100 * plateau['regret']:.2f} %",
    }


def cost(overhead: Document, snapshots: Document) -> Numbers:
    """What a step costs, and what snapshots do."""
    checks = overhead["summary"]["checks"]
    ours = overhead["summary"]["bytes"]["ars, quiet"]
    copying = {record["case"]: record["copying"] for record in snapshots["records"]}
    ratios = overhead["summary"]["ratios"]
    for case in ("20x1M, adamw-fused", "gpt2-124m, adamw-fused"):
        require(ratios[case]["ars, quiet"] < ratios[case]["clip"], "less than clip_grad_norm_")
    return {
        "overhead-promises": str(len(checks)),
        "overhead-held": str(sum(check["holds"] for check in checks)),
        "overhead-bytes": f"{sum(ours.values()):,}",
        "snapshots-training": f"{100 * copying['gpt-step']:.2f} %",
        "snapshots-most": f"{100 * max(copying.values()):.1f} %",
    }
