"""Stopping rules in numbers: replayed on recorded curves, and live."""

from __future__ import annotations

from nanogpt_demo.markdown import percent
from nanogpt_demo.stopping.live import RESONANT, RESONANT_TOLD
from nanogpt_demo.stopping.rules import PATIENCE_TOLD, RCA_FAMILY, TOLD_FAMILY
from nanogpt_demo.stopping.summary import default_of
from nanogpt_demo.store import Document
from paper.common import HELD_OUT, Numbers, Summary, require, signed, word


def stopping(document: Document) -> Numbers:
    """The stopping rules on the held-out curves."""
    split = document["summary"][HELD_OUT]
    methods = split["methods"]
    alone, told, patience = (default_of(f).name for f in (RCA_FAMILY, TOLD_FAMILY, PATIENCE_TOLD))
    two = sorted(_records(document, told), key=lambda record: record["regret"])[-2:]
    require(all("/cleaned/" in record["curve"] for record in two), "put right in mid-run")
    return {
        "stopping-curves": str(split["curves"]),
        "stopping-workloads": word(len(methods[alone]["workloads"])),
        "rca-settings": word(len(split["against_patience"][RCA_FAMILY])),
        "rca-patience": word(methods[alone]["setting"]),
        "rca-paper-wrong": percent(methods["rca as published"]["wrong_stop"]),
        "rca-goals": word(len(split["acceptance"][RCA_FAMILY])),
        "told-two-worst": percent(split["told"]["two_worst"]),
        **_of_rule("rca", methods[alone]),
        **_of_rule("told", methods[told]),
        **_of_rule("patience-told", methods[patience]),
        **_of_family("rca", split, RCA_FAMILY),
        **_of_family("told", split, TOLD_FAMILY),
    }


def _records(document: Document, method: str) -> list[Summary]:
    found = document["records"]
    return [r for r in found if r["method"] == method and r["split"] == HELD_OUT]


def _of_rule(label: str, numbers: Summary) -> Numbers:
    return {
        f"{label}-saved": percent(numbers["saved"]),
        f"{label}-regret": _fine(numbers["regret"]),
        f"{label}-wrong": percent(numbers["wrong_stop"]),
    }


def _of_family(label: str, split: Summary, family: str) -> Numbers:
    """All settings of a family against the best patience rule at equal regret."""
    pairs = split["against_patience"][family]
    require(not any(low > 0 for low, _ in (p["points_ci"] for p in pairs)), "no better")
    points = [100 * pair["points"] for pair in pairs]
    missed = sum(not holds for _, holds in split["acceptance"][family].values())
    return {
        f"{label}-points-low": signed(min(points), 1),
        f"{label}-points-high": signed(max(points), 1),
        f"{label}-goals-missed": word(missed),
    }


def _fine(share: float) -> str:
    return f"{100 * share:.2f} %"


def stopping_live(document: Document) -> Numbers:
    """The policies that cut learning rates."""
    policies = {
        "ours": RESONANT,
        "told": RESONANT_TOLD,
        "plateau": "ReduceLROnPlateau + patience 25",
        "patience": "patience 10",
    }
    shown = {label: document["summary"][name] for label, name in policies.items()}
    return {
        "live-runs": str(shown["ours"]["n"]),
        "live-workloads": word(len({record["workload"] for record in document["records"]})),
        **{f"live-{label}-saved": percent(m["saved"]) for label, m in shown.items()},
        **{f"live-{label}-regret": _fine(m["regret"]) for label, m in shown.items()},
    }
