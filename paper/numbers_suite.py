"""ARS against its peers, in numbers: the suite, the ideas, the detectors."""

from __future__ import annotations

from statistics import fmean

import numpy as np

from nanogpt_demo.markdown import percent, plus_minus
from nanogpt_demo.store import Document
from nanogpt_demo.suite.cells import LRS, RHYTHMS
from nanogpt_demo.suite.peers import AT_ONCE
from nanogpt_demo.suite.profile import TRIED_ON
from nanogpt_demo.suite.summary import BARE, BEST_PEER, CLIP, against, is_peer, reported
from nanogpt_demo.summary import OURS, Record
from paper.common import HELD_OUT, Numbers, Summary, capital, listed, require, signed, word
from paper.ranking import interval, rank_table
from resilient_optim.rca_statistics import student_tail

CLIPPED = f"{OURS}+clip"

GRU_SGD, HIGH = ("gru", "sgd"), 3.0
"""Where SGD is tried without an opening, and a learning rate there that is too high."""

NEGLIGIBLE = 0.2
"""Per cent of what training gains."""


def suite(document: Document) -> Numbers:
    """ARS against its peers."""
    _, split = reported(document["summary"])
    runs = [r for r in document["records"] if r["split"] == HELD_OUT]
    cells = [r for r in runs if r["kind"] == "cell"]
    return {
        **_design(split, runs),
        **_outcome(split, cells),
        **_order(cells),
        **_ablation(split["ablation"], runs),
        **_sweep(split["lr_sweep"]),
    }


def _design(split: Summary, runs: list[Record]) -> Numbers:
    cells = split["cells"].values()
    names = {key: {cell[key] for cell in cells} for key in ("workload", "optimizer", "scenario")}
    seeds = max(len(cell["seeds"]) for cell in cells)
    return {
        "suite-cells": str(len(cells)),
        "suite-workloads": word(len(names["workload"])),
        "suite-workloads-capital": capital(word(len(names["workload"]))),
        "suite-optimizers": word(len(names["optimizer"])),
        "suite-scenarios": word(len(names["scenario"])),
        "suite-runs": f"{len(runs):,}",
        "suite-seeds": word(seeds),
        "suite-pairs": str(split["ranks"]["common"]["pairs"]),
        "suite-methods": str(len(split["methods"])),
        "suite-common-methods": str(len(split["ranks"]["common"]["mean"])),
        # |t| > 2 by chance, with as many seeds
        "chance": f"{200 * student_tail(2.0, seeds - 1):.0f} %",
    }


def _outcome(split: Summary, runs: list[Record]) -> Numbers:
    methods, cells = split["methods"], split["cells"]
    ours = methods[OURS]
    common = split["ranks"]["common"]["mean"]
    surviving = [m for m in common if m != OURS and methods[m]["survived"] == methods[m]["runs"]]
    peers = [m for m in surviving if is_peer(m)]
    worst = {m: methods[m]["regret_max"] for m in common}
    best = next(method for method in common if is_peer(method))
    require(ours["survived"] == ours["runs"], "survives all runs")
    require(min(worst, key=lambda m: float(worst[m])) == OURS, "loses least in its worst cell")
    scores = {m: found["score"] for m, found in split["profile"]["common"].items()}
    require(max(scores, key=lambda m: float(scores[m])) == OURS, "the best profile score")
    require(common[CLIPPED] < common[OURS] and common[best] < common[OURS], "not first by rank")
    healthy = [r for r in runs if r["method"] == OURS and r["scenario"] == "none"]
    alternating = [c for c in cells.values() if c["scenario"] == "alternating"]
    slow = next(c for c in alternating if RHYTHMS[c["workload"]][1] > 2)
    require(_verdict(slow, BARE) == "worse", "in the other alternating cell worse than bare")
    return {
        "suite-ars-survived": str(ours["survived"]),
        "suite-ars-worst": percent(ours["regret_max"]),
        "suite-next-worst": percent(sorted(worst.values())[1]),
        "suite-ars-touched": percent(ours["touched_healthy"]),
        "suite-ars-touched-in-all": percent(fmean(r["touched"] for r in healthy)),
        "suite-ars-rank": f"{common[OURS]:.2f}",
        "suite-ars-clip-rank": f"{common[CLIPPED]:.2f}",
        "suite-best-peer": best,
        "suite-best-peer-rank": f"{common[best]:.2f}",
        "suite-peers-surviving": listed(peers),
        "suite-worse-cells": word(len(_worse(split, BEST_PEER))),
        "suite-worse-than-bare": word(len(_worse(split, BARE))),
        "suite-worse-than-bare-cells": listed(_worse(split, BARE)),
        "suite-worse-than-clip-controls": listed(
            [name for name in _worse(split, CLIP) if cells[name]["control"]]
        ),
        "suite-slow-period": str(RHYTHMS[slow["workload"]][1]),
        "suite-published-regret": percent(methods["ars-paper"]["regret_mean"]),
        "suite-bare-regret": percent(methods[BARE]["regret_mean"]),
    }


def _verdict(cell: Summary, reference: str) -> str | None:
    pair = against(dict(cell), reference)
    return str(pair["verdict"]) if pair else None


def _worse(split: Summary, reference: str) -> list[str]:
    """Cells in which ARS is worse than a method by more than two standard errors."""
    return [name for name, cell in split["cells"].items() if _verdict(cell, reference) == "worse"]


def _order(runs: list[Record]) -> Numbers:
    """How sure the first places are."""
    cells, methods, ranks = rank_table(runs)
    best = min((m for m in methods if is_peer(m)), key=lambda m: ranks[:, methods.index(m)].mean())
    low, high = interval(ranks[:, methods.index(OURS)] - ranks[:, methods.index(best)])
    require(low < 0 < high, "the first places are not told apart")
    finite = np.array(["nonfinite" not in cell for cell in cells])
    order = [methods[i] for i in np.argsort(ranks[finite].mean(axis=0))]
    return {
        "rank-difference-low": signed(low, 1),
        "rank-difference-high": signed(high, 1),
        "nonfinite-cells": word(int((~finite).sum())),
        "rank-of-ars-finite": str(1 + order.index(OURS)),
    }


def _ablation(ablation: Summary, runs: list[Record]) -> Numbers:
    """What the parts are worth; a variant is compared with ARS of the same code only."""
    varied = [r for r in runs if r["kind"] == "ablation"]
    seeds = {r["seed"] for r in varied}
    ours = [r for r in runs if r["kind"] == "cell" and r["method"] == OURS and r["seed"] in seeds]
    commits = {r["commit"] for r in (*varied, *ours)}
    require(len(commits) == 1, "variants and default are of one commit")
    cost = {variant: numbers["cost"] for variant, numbers in ablation.items()}
    dearest = max(cost, key=lambda variant: float(cost[variant]["mean"]))
    require(dearest == "ars no norm guard", "the norm guard carries the method")
    for variant in ("ars no resonance", "ars with jitter"):
        require(abs(cost[variant]["mean"]) <= 2 * cost[variant]["se"], "no net gain")
    acting = {
        variant: [name for name, pair in numbers["cells"].items() if pair["mean"] or pair["se"]]
        for variant, numbers in ablation.items()
    }
    require(2 in [period for _, period in RHYTHMS.values()], "a rhythm that it could see")
    require(not acting["ars no resonance"], "without the entropy guard nothing changes")
    for variant in ("ars no surprise gate", "ars no alert"):
        errors = cost[variant]["mean"] / cost[variant]["se"]
        require(1.0 < errors < 2.5, "each one or two standard errors")
    for variant in ("ars alpha 1", "ars phi_min 0.3", "ars window 128"):
        require(abs(cost[variant]["mean"]) < NEGLIGIBLE, "hardly matter")
    for variant in ("ars no start-up", "ars opening 15"):
        cells = ablation[variant]["cells"]
        worst = max(cells, key=lambda cell: float(cells[cell]["percent"]))
        rest = [pair["percent"] for cell, pair in cells.items() if cell != worst]
        require(worst == "gpt/adamw/high-lr", "at far too high a rate")
        require(abs(fmean(rest)) < NEGLIGIBLE, "nearly all in one cell")
    return {
        "ablation-seeds": word(max(p["n"] for n in ablation.values() for p in n["cells"].values())),
        "no-guard-cost": f"{cost['ars no norm guard']['mean']:.1f} %",
        "no-gate-cost": f"{cost['ars no surprise gate']['mean']:.1f} %",
        "no-alert-cost": f"{cost['ars no alert']['mean']:.1f} %",
        "no-start-up-cost": f"{cost['ars no start-up']['mean']:.1f} %",
        "opening-15-cost": f"{cost['ars opening 15']['mean']:.1f} %",
        "patience-one-cost": f"{cost['ars patience 1']['mean']:.1f} %",
        "lr-brake-cells": word(len(acting["ars no lr brake"])),
    }


def _sweep(sweeps: Summary) -> Numbers:
    by_workload = {name.split("/")[0]: sweep for name, sweep in sweeps.items()}
    cnn, gpt = by_workload["cnn"], by_workload["gpt"]
    require(_least_sensitive(cnn) == OURS, "ARS widens the range of the CNN")
    require(_least_sensitive(gpt) == OURS, "and that of the GPT")
    return {
        "lr-rates": word(len(cnn[OURS]["lrs"])),
        **{
            f"lr-{workload}-{method}": f"{sweep[method]['sensitivity']:.3f}"
            for workload, sweep in by_workload.items()
            for method in (OURS, BARE)
        },
    }


def _least_sensitive(sweep: Summary) -> str:
    return min(sweep, key=lambda method: float(sweep[method]["sensitivity"]))


def ideas(document: Document) -> Numbers:
    """What was tried for the policy and does not ship."""
    tried = document["summary"]["dev"]["ablation"]
    shipped = "ars opening for signs too"  # as the rule was before the one that ships
    others = {k: v for k, v in tried.items() if k not in (shipped, TRIED_ON, AT_ONCE)}
    better = [
        name
        for name, numbers in others.items()
        if numbers["cost"]["se"] and numbers["cost"]["mean"] < -2 * numbers["cost"]["se"]
    ]
    require(better == ["ars open at once"], "one idea is better over its cells")
    gain, alert = tried["ars open at once"]["cost"], tried["ars lasting alert"]["verdicts"]
    swept = document["summary"]["dev"]["lr_sweep"]["/".join(GRU_SGD)]
    place = swept[OURS]["lrs"].index(HIGH)
    ours, at_once = (swept[name]["val"][place] for name in (OURS, AT_ONCE))
    require(at_once > ours, "an opening is worth having at a rate that is too high")
    return {
        "ideas-count": word(len(others)),
        "ideas-runs": str(len(document["records"])),
        "lasting-alert-wins": word(alert["better"]),
        "lasting-alert-loses": word(alert["worse"]),
        "at-once-gain": f"{plus_minus(-gain['mean'], gain['se'])} %",
        "at-once-factor": word(round(HIGH / LRS[GRU_SGD])),
        "at-once-high": f"{at_once:.2f}",
        "opened-high": f"{ours:.2f}",
    }


def detectors(document: Document) -> Numbers:
    """False alarms and power of the shipped statistics."""
    shipped = document["summary"]["shipped_false_alarms_per_1000"]
    silent = [rates[0] for kind in ("new level", "resonance") for rates in shipped[kind].values()]
    require(not any(silent), "new levels and resonance never")
    shown = _power(document, "anticorrelation", "rho < -0.75", "period")
    longer = [
        share for (signal, size), share in shown.items() if size == "1" and signal[-2:] != " 2"
    ]
    require(not any(longer), "none of a longer period")
    whitened = _power(document, "g, whitened", "matched", "period")
    jump = _power(document, "leaky count of 8", "z > 4", "jump")
    surprise = shipped["surprise"]
    worst = max(surprise, key=lambda name: float(surprise[name][0]))
    require(worst == "mostly one value", "most where most losses are equal")
    return {
        "false-white": f"{surprise['white noise'][0]:.2f}",
        "false-heavy": f"{surprise['heavy tails'][0]:.1f}",
        "false-ar": f"{surprise['AR(1)'][0]:.1f}",
        "false-worst": f"{surprise[worst][0]:.1f}",
        "power-period-two": f"{100 * shown['period 2', '1']:.0f} %",
        "power-period-three": f"{100 * whitened['period 3', '1']:.0f} %",
        "power-jump-large": f"{100 * jump['jump', '+4']:.0f} %",
        "power-jump-small": word(round(100 * jump["jump", "+2"])),
    }


def _power(
    document: Document, rule: str, setting: str, signal: str
) -> dict[tuple[str, str], float]:
    """Share of windows in which a rule finds a change, by the change and its size."""
    return {
        (record["signal"], record["parameter"]): record["power"]
        for record in document["records"]
        if (record["rule"], record["setting"]) == (rule, setting)
        and record["signal"].startswith(signal) and record["power"] is not None
    }  # fmt: skip
