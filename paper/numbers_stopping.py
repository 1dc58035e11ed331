"""Stopping rules in numbers: replayed on recorded curves, and live."""

from __future__ import annotations

from nanogpt_demo.markdown import percent
from nanogpt_demo.stopping.rules import RCA_FAMILY
from nanogpt_demo.stopping.summary import default_of
from nanogpt_demo.store import Document
from paper.common import HELD_OUT, Numbers, Summary, require, signed, word


def stopping(document: Document) -> Numbers:
    """The stopping rules on the held-out curves."""
    split = document["summary"][HELD_OUT]
    default, published = split["methods"][default_of(RCA_FAMILY).name], "rca as published"
    pairs = split["against_patience"]
    require(all(low < 0 < high for low, high in (p["points_ci"] for p in pairs)), "no better")
    goals = split["acceptance"]
    require(not any(point["on_front"] for point in split["front"]), "nowhere on the front")
    return {
        "stopping-curves": str(split["curves"]),
        "stopping-workloads": word(len(default["workloads"])),
        "rca-settings": word(len(pairs)),
        "rca-patience": word(default["setting"]),
        "rca-saved": percent(default["saved"]),
        "rca-regret": _fine(default["regret"]),
        "rca-points-low": signed(100 * min(p["points"] for p in pairs), 1),
        "rca-points-high": signed(100 * max(p["points"] for p in pairs), 1),
        "rca-paper-wrong": percent(split["methods"][published]["wrong_stop"]),
        "rca-goals": word(len(goals)),
        "rca-goals-missed": word(sum(not holds for _, holds in goals.values())),
        **_slope_front(split),
    }


def _slope_front(split: Summary) -> Numbers:
    """Where the slope test is the best of the other rules."""
    where = [point["saved"] for point in split["front"] if point["other"] == "slope test"]
    return {"slope-from": f"{100 * min(where):.0f}", "slope-to": f"{100 * max(where):.0f} %"}


def _fine(share: float) -> str:
    return f"{100 * share:.2f} %"


def stopping_live(document: Document) -> Numbers:
    """The policies that cut learning rates."""
    policies = {
        "ours": "ResonantCallback",
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
